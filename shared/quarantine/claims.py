"""Who is at work on one place in quarantine: a move into it, a restore from it, or a purge of it.

A move and a restore count on the copies there and a purge deletes them, so they keep apart. Each first writes a claim
and then looks for those of the others. Of two that come at once, at least one sees the other (S3 is strongly
consistent, https://docs.aws.amazon.com/AmazonS3/latest/userguide/Welcome.html#ConsistencyModel) and gives way before it
changed anything. Two moves, two restores, or one of each spoil nothing of each other.

A claim is two objects below `<quarantine prefix>/.claims/<sha256 of the place>/`: `<kind>-<run>.begun`, and `.ended`
when the work is over. The claim of a killed process ends by itself after `CLAIM_SECONDS` of the store's time.
"""

from __future__ import annotations

import hashlib
import re
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum

from shared.model.delta import DeltaLocation
from shared.model.errors import StorageError
from shared.storage.store import Store

CLAIMS = ".claims"
"""Name, below the quarantine prefix, of the folder of all claims."""

CLAIM_SECONDS = 3600
"""How long a claim counts whose end was never told: several times what a function may run."""

_NAME = re.compile(r"(move|restore|purge)-([0-9a-f]{32})\.(begun|ended)")


class Work(StrEnum):
    """What is done with a place in quarantine."""

    MOVE = "move"
    RESTORE = "restore"
    PURGE = "purge"


@dataclass(frozen=True, slots=True)
class Claim:
    """One claim on a place, with the store's times; `ended` is None where its end was never told."""

    work: Work
    run: str
    begun: datetime
    ended: datetime | None

    @property
    def names(self) -> tuple[str, str]:
        """Of its two objects."""
        return f"{self.work}-{self.run}.begun", f"{self.work}-{self.run}.ended"

    def is_over(self, now: datetime) -> bool:
        """Whether it does not count any more at this moment of the store's time."""
        return self.ended is not None or now >= self.over_by

    @property
    def over_by(self) -> datetime:
        """When the work was over, or counts as over."""
        return self.ended or self.begun + timedelta(seconds=CLAIM_SECONDS)


class OwnClaim:
    """The claim of this process on a place."""

    def __init__(self, store: Store, place: DeltaLocation, root: str, work: Work) -> None:
        self._store = store
        self._folder = folder_of(place, root)
        self._run = f"{work}-{secrets.token_hex(16)}"
        self.name = f"{self._run}.begun"
        """Of the object that tells of the beginning."""
        self._put(self.name)

    def end(self) -> None:
        """Tells that the work is over.

        Raises:
            StorageError: The request failed; the claim then ends by itself.
        """
        self._put(f"{self._run}.ended")

    def _put(self, name: str) -> None:
        self._store.put(self._folder.bucket, self._folder.key(name), name.encode() + b"\n")


def folder_of(place: DeltaLocation, root: str) -> DeltaLocation:
    """Where the claims on a place lie, given the prefix of the quarantine, which ends with `/`."""
    digest = hashlib.sha256(place.uri.encode("utf-8", "surrogatepass")).hexdigest()
    return DeltaLocation(place.bucket, f"{root}{CLAIMS}/{digest}/")


def claims_on(store: Store, place: DeltaLocation, root: str) -> list[Claim]:
    """All claims on a place that were made since it was purged last.

    Raises:
        StorageError: They cannot be listed.
    """
    folder = folder_of(place, root)
    times: dict[tuple[Work, str], dict[str, datetime]] = {}
    for key, file in store.walk(folder.bucket, folder.prefix):
        if match := _NAME.fullmatch(key.removeprefix(folder.prefix)):
            times.setdefault((Work(match[1]), match[2]), {})[match[3]] = file.modified
    return [
        Claim(work, run, told["begun"], told.get("ended")) for (work, run), told in times.items() if "begun" in told
    ]


def claim(store: Store, place: DeltaLocation, root: str, work: Work) -> OwnClaim:
    """Claims a place for this work.

    Args:
        store: Where the quarantine is.
        place: In quarantine.
        root: The prefix of the quarantine, ending with `/`.
        work: What is going to be done.

    Raises:
        StorageError: Others are at work there (`Claimed`), and this claim is given up; or a request failed.
    """
    own = OwnClaim(store, place, root, work)
    for other in claims_on(store, place, root):
        rivals = (other.work is Work.PURGE) != (work is Work.PURGE)
        if rivals and not other.is_over(store.now()):
            own.end()
            detail = f"{place.uri}: a {other.work} is under way there since {other.begun:%Y-%m-%dT%H:%M:%SZ}"
            raise StorageError("check.changed", f"{detail}; nothing was changed, try again later", "Claimed")
    return own


@contextmanager
def claimed(store: Store, place: DeltaLocation, root: str, work: Work) -> Iterator[None]:
    """A claim on a place for as long as the block runs. The arguments are those of `claim`.

    Raises:
        StorageError: As `claim` raises it.
    """
    own = claim(store, place, root, work)
    try:
        yield
    finally:
        own.end()
