"""A lock in S3: one object, written on the condition that it is not there, renewed while it is held.

A lock that is not renewed expires. Expiry makes it a promise, not a proof: a holder that was stopped for longer than
it lasts may believe that it still has it. So whoever writes under a lock calls `check` before, writes where nobody else
does, and publishes on a condition of its own (see `compaction.snapshot`), which an overtaken holder cannot meet.
https://docs.aws.amazon.com/AmazonS3/latest/userguide/conditional-writes.html

No clock of a machine decides: a holder measures what has passed since it renewed the lock, and whoever finds a lock
compares it with the time of the store.
"""

from __future__ import annotations

import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Literal

from pydantic import AwareDatetime, BaseModel, ConfigDict, ValidationError

from shared.aws.telemetry import logger
from shared.model.errors import DeltaguardError, ObjectChanged, ObjectGone, StorageError
from shared.storage.store import Store

SECONDS = 120.0
"""How long a lock lasts that is not renewed, as when its holder was killed."""

_RENEWALS = 3  # of which two may fail before the lock expires
_LOOK_SECONDS = 5.0  # between looks at the lock that are made before writes
_MARGIN_SECONDS = 5.0  # a holder gives up before others may take over: the time of a store is exact to a second or two
_SHORTEST_PAUSE = 0.05  # seconds between renewals
_MAX_BYTES = 64 * 1024


class LockHeld(DeltaguardError):
    """Another process holds the lock; try again once it is done, or once its lock has expired."""


class LockLost(DeltaguardError):
    """The lock expired, or another process has taken it: nothing may be published any more."""


class _Content(BaseModel):
    """What the object says: who has the lock, what for, and until when."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    format: Literal[1] = 1
    holder: str
    purpose: str
    expires_at: AwareDatetime

    def as_bytes(self) -> bytes:
        """The object."""
        return self.model_dump_json().encode() + b"\n"


class Lock:
    """A lock that is held. Made by `held_lock`."""

    def __init__(self, store: Store, bucket: str, key: str, content: _Content, seconds: float, asked_at: float) -> None:
        self._store = store
        self._bucket = bucket
        self._key = key
        self._content = content
        self._seconds = seconds
        self._ours_until = self._end_of(asked_at)
        self._looked_at = asked_at
        self._lost = ""
        self._failure: BaseException | None = None  # of the last renewal

    @property
    def holder(self) -> str:
        """Who holds it: an id that no other holder has."""
        return self._content.holder

    def check(self) -> None:
        """Returns while the lock is still this holder's and has not expired.

        Raises:
            LockLost: It is not.
            StorageError: It could not be asked.
        """
        if self._lost:
            raise LockLost(self._lost)
        if time.monotonic() >= self._ours_until:
            why = f"; renewing it failed: {self._failure}" if self._failure else ""
            until = self._content.expires_at
            raise LockLost(f"{_place(self._bucket, self._key)}: the lock expired at {until:%H:%M:%SZ}{why}")
        now = time.monotonic()
        self._etag()
        self._looked_at = now

    def check_if_due(self) -> None:
        """`check`, but not more than once in a few seconds: for every write but the one that publishes.

        Raises:
            LockLost, StorageError: As `check` does.
        """
        now = time.monotonic()
        if self._lost or now >= self._ours_until or now >= self._looked_at + _LOOK_SECONDS:
            self.check()

    def renew(self) -> None:
        """Has the lock last anew.

        Raises:
            LockLost: It is another's.
            StorageError: A request failed; the lock lasts as long as it did.
        """
        asked_at, etag = time.monotonic(), self._etag()
        expires_at = self._store.now() + timedelta(seconds=self._seconds)
        content = self._content.model_copy(update={"expires_at": expires_at})
        if not self._store.replace(self._bucket, self._key, content.as_bytes(), etag):
            self._etag()
            raise StorageError("check.changed", f"renewing {_place(self._bucket, self._key)}: refused", "NotRenewed")
        self._content, self._ours_until, self._looked_at = content, self._end_of(asked_at), asked_at
        self._failure = None

    def keep(self, done: threading.Event) -> None:
        """Renews the lock until it is done with: the work of a thread."""
        while not done.wait(max(self._seconds / _RENEWALS, _SHORTEST_PAUSE)):
            try:
                self.renew()
            except LockLost as error:
                self._lost = str(error)
                logger.error("Lock lost", extra={"lock": self._key, "reason": str(error)})
                return
            except BaseException as error:  # noqa: BLE001 - `check` tells it once the lock has expired
                self._failure = error
                logger.warning("Lock not renewed", extra={"lock": self._key, "reason": str(error)})

    def release(self) -> None:
        """Gives the lock back, if it is still this holder's. A store that does not answer is no error: it expires."""
        try:
            found = _read(self._store, self._bucket, self._key)
            if found and found[0] and found[0].holder == self.holder:
                self._store.delete(self._bucket, self._key, found[1])
        except StorageError as error:
            logger.warning("Lock not released, it will expire", extra={"lock": self._key, "reason": str(error)})

    def _etag(self) -> str:
        """The ETag of the lock as it is now, which is this holder's."""
        found = _read(self._store, self._bucket, self._key)
        if found and found[0] and found[0].holder == self.holder:
            return found[1]
        now_with = found[0].holder if found and found[0] else "nobody"
        raise LockLost(f"{_place(self._bucket, self._key)}: the lock of {self.holder} is lost to {now_with}")

    def _end_of(self, asked_at: float) -> float:
        return asked_at + self._seconds - min(_MARGIN_SECONDS, self._seconds / 10)


@contextmanager
def held_lock(store: Store, bucket: str, key: str, purpose: str, seconds: float = SECONDS) -> Iterator[Lock]:
    """Holds a lock during the block, and renews it in the background.

    Args:
        store: Where it lies.
        bucket: In which bucket.
        key: Under which key.
        purpose: What for, in a few words, for whoever finds it.
        seconds: How long it lasts when it is neither renewed nor released; 0: it has expired from the beginning.

    Raises:
        LockHeld: Another process has it.
        StorageError: A request failed.
    """
    asked_at = time.monotonic()
    store.holds(bucket, key)  # whose answer tells the time of the store
    expires_at = store.now() + timedelta(seconds=seconds)
    content = _Content(holder=uuid.uuid4().hex, purpose=purpose, expires_at=expires_at)
    if not store.put(bucket, key, content.as_bytes(), only_if_absent=True):
        content, asked_at = _taken_over(store, bucket, key, content, seconds)
    lock = Lock(store, bucket, key, content, seconds, asked_at)
    done = threading.Event()
    renewing = threading.Thread(target=lock.keep, args=(done,), name="lock", daemon=True)
    if seconds > 0:
        renewing.start()
    try:
        yield lock
    finally:
        done.set()
        if seconds > 0:
            renewing.join()
        lock.release()


def _taken_over(store: Store, bucket: str, key: str, content: _Content, seconds: float) -> tuple[_Content, float]:
    """Replaces a lock that has expired. Returns what was written, and when that was begun (monotonic).

    Raises:
        LockHeld: It has not expired, or another process was faster.
        StorageError: A request failed.
    """
    asked_at, found = time.monotonic(), _read(store, bucket, key)
    there, etag = found or (None, "")
    if there is not None and there.holder == content.holder:
        return content, asked_at  # written by this call, and only the answer lost
    if there is not None and store.now() < there.expires_at:
        raise LockHeld(
            f"{_place(bucket, key)}: held by {there.holder} ({there.purpose}) "
            f"until {there.expires_at:%Y-%m-%dT%H:%M:%SZ} or longer; try again then"
        )
    content = content.model_copy(update={"expires_at": store.now() + timedelta(seconds=seconds)})
    data = content.as_bytes()
    if found is None:
        taken = store.put(bucket, key, data, only_if_absent=True)
    else:
        taken = store.replace(bucket, key, data, etag)
    if not taken:
        raise LockHeld(f"{_place(bucket, key)}: another process has just taken it; try again later")
    return content, asked_at


def _read(store: Store, bucket: str, key: str) -> tuple[_Content | None, str] | None:
    """The lock and its ETag; None where there is no lock. One that cannot be read counts as expired."""
    try:
        etag = store.head(bucket, key).etag
        data = store.read(bucket, key, _MAX_BYTES, etag)
    except ObjectGone:
        return None
    except ObjectChanged:  # between the two requests: it is somebody's, and fresh
        return _read(store, bucket, key)
    try:
        return _Content.model_validate_json(data), etag
    except ValidationError:
        return None, etag


def _place(bucket: str, key: str) -> str:
    return f"s3://{bucket}/{key}"
