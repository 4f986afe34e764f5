"""What a fleet scan works through: deltas in batches, each a file in S3, and a list of the batches for the map.

A batch holds the listing of each of its deltas, so that nobody lists them again: a LIST costs as much as twelve GETs.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any

from scanner.find.discovery import Bookmark, FoundDelta
from shared.model.delta import DeltaFile, DeltaLocation, Listing
from shared.model.errors import ObjectGone
from shared.model.verdict import Depth

if TYPE_CHECKING:
    from shared.storage.store import Store

MOST_BATCHES = 10_000
"""Of one map. A distributed map has no more children at once than that:
https://docs.aws.amazon.com/step-functions/latest/dg/service-quotas.html
"""

_DELTAS = {Depth.LISTING: 2000, Depth.HEADER: 1000, Depth.STRUCTURE: 1000, Depth.OPEN: 200}
_BYTES = {Depth.LISTING: 10**15, Depth.HEADER: 10**15, Depth.STRUCTURE: 10**10, Depth.OPEN: 2 * 10**9}
_FILES = 100_000  # keeps the file of a batch below 20 MB
_MOST_BYTES = 256 * 1024**2  # of a file that is read; ours are far smaller


@dataclass(frozen=True, slots=True)
class BatchSize:
    """How much one invocation is given: as much as it can surely judge in a third of its 15 minutes.

    Args:
        deltas: At most so many.
        size: A batch that has as many bytes takes no more.
    """

    deltas: int
    size: int

    @classmethod
    def of(cls, depth: Depth, deltas: int | None = None) -> BatchSize:
        """The size for a depth, or this number of deltas."""
        return cls(deltas or _DELTAS[depth], _BYTES[depth])


def in_batches(deltas: Iterable[FoundDelta], size: BatchSize) -> Iterator[list[FoundDelta]]:
    """The deltas in batches, in their order. One with more files than are kept counts as without bytes."""
    batch: list[FoundDelta] = []
    held = files = 0
    for delta in deltas:
        batch.append(delta)
        if delta.listing is not None:
            held += delta.listing.size
            files += len(delta.listing.files) + len(delta.listing.others) + len(delta.listing.below)
        if len(batch) >= size.deltas or held >= size.size or files >= _FILES:
            yield batch
            batch, held, files = [], 0, 0
    if batch:
        yield batch


def as_line(delta: FoundDelta) -> str:
    """A delta as a line of a batch's file: where it lies, and its objects as they were listed."""
    listing = delta.listing
    if listing is None:
        told = None
    else:
        beside = [listing.more, listing.crowded, listing.below, listing.unseen]
        told = [*map(_told, (listing.files, listing.others)), *beside]
    return json.dumps([delta.location.bucket, delta.location.prefix, told], separators=(",", ":")) + "\n"


def of_line(line: str) -> FoundDelta:
    """The delta that `as_line` wrote, without its bookmark."""
    bucket, prefix, told = json.loads(line)
    listing = None
    if told is not None:
        files, others, more, crowded, below, unseen = told
        listing = Listing(tuple(map(_file, files)), tuple(map(_file, others)), more, crowded, tuple(below), unseen)
    return FoundDelta(DeltaLocation(bucket, prefix), listing, Bookmark(""))


def _told(files: Iterable[DeltaFile]) -> list[list[object]]:
    return [[file.name, file.size, file.etag, file.modified.isoformat()] for file in files]


def _file(told: tuple[str, int, str, str]) -> DeltaFile:
    name, size, etag, modified = told
    return DeltaFile(name, size, etag, datetime.fromisoformat(modified))


@dataclass(frozen=True, slots=True)
class Shelf:
    """Where one fleet scan keeps its work and its results: below `prefix`, which ends with `/`.

    Every file is written whole by one request, under a name that only depends on its number. So an invocation that is
    repeated writes the same file again, and a batch is done exactly when the file of its verdicts is there.
    """

    store: Store
    bucket: str
    prefix: str

    def uri(self, name: str) -> str:
        """A file as `s3://bucket/key`."""
        return f"s3://{self.bucket}/{self.prefix}{name}"

    def put_batch(self, number: int, deltas: Iterable[FoundDelta]) -> None:
        """Writes a batch.

        Raises:
            StorageError: The request failed.
        """
        self._put(f"batches/{number:07}.ndjson", "".join(map(as_line, deltas)))

    def batch(self, number: int) -> list[FoundDelta]:
        """The deltas of a batch.

        Raises:
            StorageError: It cannot be read.
        """
        return [of_line(line) for line in self._lines(f"batches/{number:07}.ndjson")]

    def put_verdicts(self, number: int, verdicts: Iterable[dict[str, Any]]) -> None:
        """Writes the verdicts on a batch, lines of the ndjson contract.

        Raises:
            StorageError: The request failed.
        """
        self._put(f"verdicts/{number:07}.ndjson", "".join(json.dumps(verdict) + "\n" for verdict in verdicts))

    def verdicts(self, number: int) -> list[dict[str, Any]] | None:
        """The verdicts on a batch; None when it was never done.

        Raises:
            StorageError: They cannot be read.
        """
        try:
            return [json.loads(line) for line in self._lines(f"verdicts/{number:07}.ndjson")]
        except ObjectGone:
            return None

    def put_worklist(self, number: int, batches: Iterable[dict[str, int]]) -> str:
        """Writes the list of the batches of a map, a JSON array. Returns its key.

        Raises:
            StorageError: The request failed.
        """
        name = f"worklist-{number:04}.json"
        self._put(name, json.dumps(list(batches)))
        return self.prefix + name

    def _put(self, name: str, text: str) -> None:
        self.store.put(self.bucket, self.prefix + name, text.encode())

    def _lines(self, name: str) -> list[str]:
        return self.store.read(self.bucket, self.prefix + name, _MOST_BYTES).decode().splitlines()
