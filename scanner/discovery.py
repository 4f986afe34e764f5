"""Where deltas lie: from a prefix of a bucket, or a local folder, to the deltas at and below it.

A delta is found by its files' names alone, so one whose database is missing is found as well. Memory stays constant:
the files of the folders on the way to the current one, and of each folder that is no delta no more than a few.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from shared.delta import DATABASE, JOURNALS, MANIFEST, MAX_FILES, DeltaFile, DeltaLocation, Listing, segment_of
from shared.errors import faults_explained

if TYPE_CHECKING:
    from shared.storage import Store

_AT_TOP = frozenset({DATABASE, MANIFEST, *JOURNALS})
_KEPT = 256  # files of a folder that are kept before one of them shows that it is a delta


@dataclass(frozen=True, slots=True)
class FoundDelta:
    """A delta in S3 with its objects as they were listed; `listing` is None where they were too many to keep."""

    location: DeltaLocation
    listing: Listing | None


def find_stored(store: Store, bucket: str, prefix: str, skip: tuple[str, ...] = ()) -> Iterator[FoundDelta]:
    """The deltas at and below a prefix, each once, from one listing. One inside another comes before it.

    Args:
        store: Where they lie.
        bucket: Their bucket.
        prefix: Ends with `/`, or is empty for the whole bucket.
        skip: Prefixes (ending with `/`) below which nothing counts: those of quarantined deltas.

    Raises:
        StorageError: A request failed; `ObjectGone` when there is no such bucket.
    """
    objects: Iterable[tuple[str, DeltaFile]] = store.walk(bucket, prefix)
    if skip:
        objects = (found for found in objects if not found[0].startswith(skip))
    for folder in _deltas(objects, prefix):
        yield FoundDelta(DeltaLocation(bucket, folder.prefix), folder.listing())


def find_folders(path: Path) -> Iterator[Path]:
    """The folders at and below `path` that are deltas, each once, in the order of their names. Links are not followed.

    Raises:
        CouldNotCheck: A folder cannot be listed.
    """
    for folder in _deltas(((key, None) for key in _keys_below(path)), "./"):
        yield path / folder.prefix


def _keys_below(path: Path) -> Iterator[str]:
    """The files below a folder in the order of a listing, as keys that begin with `./`, so that none is without prefix.

    A folder may be deeper than Python may recurse.
    """
    waiting = ["./"]
    while waiting:
        key = waiting.pop()
        if not key.endswith("/"):
            yield key
            continue
        waiting += (key + name for name in sorted(_names_in(path / key), reverse=True))


def _names_in(folder: Path) -> list[str]:
    """The names in a folder, those of folders with a `/` at the end; none when it was removed since it was seen."""
    with faults_explained(f"listing {folder}"):
        try:
            with os.scandir(folder) as entries:
                return [entry.name + "/" * entry.is_dir(follow_symlinks=False) for entry in entries]
        except FileNotFoundError:
            return []


@dataclass(slots=True)
class _Folder:
    """A folder on the way to the current key, with all that lies in it and below it."""

    prefix: str
    is_delta: bool = False
    whole: bool = True
    objects: list[tuple[str, DeltaFile | None]] = field(default_factory=list)

    def add(self, entry: tuple[str, DeltaFile | None]) -> None:
        """Takes in an object, as long as there are not too many."""
        if self.whole:
            self.objects.append(entry)
            if len(self.objects) > (MAX_FILES if self.is_delta else _KEPT):
                self.whole = False
                self.objects.clear()

    def listing(self) -> Listing | None:
        """The objects by their names in the folder; None when there were too many."""
        if not self.whole:
            return None
        start = len(self.prefix)
        files = (DeltaFile(key[start:], f.size, f.etag, f.modified) for key, f in self.objects if f and key[start:])
        return Listing.of(files)


def _deltas(objects: Iterable[tuple[str, DeltaFile | None]], root: str) -> Iterator[_Folder]:
    """The folders at and below `root` that are deltas, from objects of which those of a folder come in one run.

    The run of a delta may hold those of deltas below it: `a/0b3c.../header.bin`, `a/b/chroma.sqlite3`,
    `a/chroma.sqlite3`. So a folder is known for what it is only when its run has ended.
    """
    way: list[_Folder] = [_Folder(root)]
    current, owner = None, None
    for entry in objects:
        key = entry[0]
        folder = key[: key.rfind("/") + 1]
        if folder != current:
            current = folder
            yield from _enter(way, folder)
            above = folder[: folder.rfind("/", 0, -1) + 1]
            owner = way[-2] if len(way) > 1 and way[-2].prefix == above else None
        if key[len(folder) :] in _AT_TOP:
            way[-1].is_delta = way[-1].is_delta or bool(folder.strip("/"))
        elif owner is not None and not owner.is_delta and segment_of(key[len(owner.prefix) :]) is not None:
            owner.is_delta = bool(owner.prefix.strip("/"))
        for place in way:
            place.add(entry)
    yield from (folder for folder in reversed(way) if folder.is_delta)


def _enter(way: list[_Folder], folder: str) -> list[_Folder]:
    """Changes the way from one folder to that of the next key. Returns the deltas that were left behind."""
    left = []
    while not folder.startswith(way[-1].prefix):
        if (done := way.pop()).is_delta:
            left.append(done)
    start = len(way[-1].prefix)
    while (end := folder.find("/", start)) >= 0:
        start = end + 1
        way.append(_Folder(folder[:start]))
    return left
