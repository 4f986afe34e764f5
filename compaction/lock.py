"""A lock in S3: one object, written on the condition that it is not there, which expires by itself.

Expiry makes a lock a promise, not a proof: a holder that was stopped for longer than it lasts may believe that it still
has it. So whoever publishes under a lock calls `check` just before, and publishes on a condition of its own (see
`compaction.snapshot`), which a holder that was overtaken cannot meet.
https://docs.aws.amazon.com/AmazonS3/latest/userguide/conditional-writes.html
"""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from typing import Literal

from pydantic import AwareDatetime, BaseModel, ConfigDict, ValidationError

from shared.errors import DeltaguardError, ObjectChanged, ObjectGone, StorageError
from shared.storage import Store
from shared.telemetry import logger

SECONDS = 900.0
"""How long a lock lasts: the longest that a Lambda runs."""

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


class Lock:
    """A lock that is held. Made by `held_lock`."""

    def __init__(self, store: Store, bucket: str, key: str, content: _Content) -> None:
        self._store = store
        self._bucket = bucket
        self._key = key
        self._content = content

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
        found = _read(self._store, self._bucket, self._key)
        holder = found[0].holder if found and found[0] else None
        if holder != self.holder:
            now_with = holder or "nobody"
            raise LockLost(f"{_place(self._bucket, self._key)}: the lock of {self.holder} is lost to {now_with}")
        if datetime.now(UTC) >= self._content.expires_at:
            raise LockLost(
                f"{_place(self._bucket, self._key)}: the lock expired at {self._content.expires_at:%H:%M:%SZ}"
            )

    def release(self) -> None:
        """Gives the lock back, if it is still this holder's. A store that does not answer is no error: it expires."""
        try:
            found = _read(self._store, self._bucket, self._key)
            if found and found[0] == self._content:
                self._store.delete(self._bucket, self._key, found[1])
        except StorageError as error:
            logger.warning("Lock not released, it will expire", extra={"lock": self._key, "reason": str(error)})


@contextmanager
def held_lock(store: Store, bucket: str, key: str, purpose: str, seconds: float = SECONDS) -> Iterator[Lock]:
    """Holds a lock during the block.

    Args:
        store: Where it lies.
        bucket: In which bucket.
        key: Under which key.
        purpose: What for, in a few words, for whoever finds it.
        seconds: How long it lasts if it is not released.

    Raises:
        LockHeld: Another process has it.
        StorageError: A request failed.
    """
    expires_at = datetime.now(UTC) + timedelta(seconds=seconds)
    content = _Content(holder=uuid.uuid4().hex, purpose=purpose, expires_at=expires_at)
    data = content.model_dump_json().encode() + b"\n"
    if not store.put(bucket, key, data, only_if_absent=True):
        _take_over(store, bucket, key, data)
    lock = Lock(store, bucket, key, content)
    try:
        yield lock
    finally:
        lock.release()


def _take_over(store: Store, bucket: str, key: str, data: bytes) -> None:
    """Replaces a lock that has expired."""
    found = _read(store, bucket, key)
    if found is None:
        taken = store.put(bucket, key, data, only_if_absent=True)
    else:
        content, etag = found
        if content is not None and datetime.now(UTC) < content.expires_at:
            raise LockHeld(
                f"{_place(bucket, key)}: held by {content.holder} ({content.purpose}) "
                f"until {content.expires_at:%Y-%m-%dT%H:%M:%SZ}; try again then"
            )
        taken = store.replace(bucket, key, data, etag)
    if not taken:
        raise LockHeld(f"{_place(bucket, key)}: another process has just taken it; try again later")


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
