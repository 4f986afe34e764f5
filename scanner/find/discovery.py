"""Where deltas lie: from a prefix of a bucket, or a local folder, to the deltas at and below it.

A delta is found by its files' names alone, so one whose database is missing is found as well. Memory stays constant:
of each folder on the way to the current one no more is kept than a listing has (`shared.model.delta.Gathering`).
Each delta comes with a bookmark, from which another pass goes on behind it without a look at what lies before.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from shared.model.delta import DATABASE, JOURNALS, MANIFEST, DeltaFile, DeltaLocation, Gathering, Listing, segment_of
from shared.model.errors import faults_explained

_AT_TOP = frozenset({DATABASE, MANIFEST, *JOURNALS})


class Walk(Protocol):
    """What lists objects: a `shared.storage.store.Store`, or what looks on while one does."""

    def walk(self, bucket: str, prefix: str, after: str = "") -> Iterator[tuple[str, DeltaFile]]:
        """Every object below a prefix whose key comes after another, in the order of the keys."""


@dataclass(frozen=True, slots=True)
class Bookmark:
    """How far a pass had come when it found a delta.

    Args:
        after: The last key that it had seen.
        open: The folders around that key which are known to be deltas and were not found yet.
    """

    after: str
    open: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class FoundDelta:
    """A delta in S3 with its objects as they were listed; `listing` is None where not all were seen, or too many."""

    location: DeltaLocation
    listing: Listing | None
    bookmark: Bookmark

    @property
    def name(self) -> str:
        """The delta as verdicts name it."""
        return self.location.uri


@dataclass(frozen=True, slots=True)
class FoundFolder:
    """A local folder that is a delta."""

    path: Path
    bookmark: Bookmark

    @property
    def name(self) -> str:
        """The delta as verdicts name it."""
        return str(self.path)


def find_stored(
    store: Walk, bucket: str, prefix: str, skip: tuple[str, ...] = (), since: Bookmark | None = None
) -> Iterator[FoundDelta]:
    """The deltas at and below a prefix, each once, from one listing. One inside another comes before it.

    Args:
        store: Where they lie.
        bucket: Their bucket.
        prefix: Ends with `/`, or is empty for the whole bucket.
        skip: Prefixes (ending with `/`) below which nothing counts: those of quarantined deltas.
        since: The bookmark of a delta: only those that come behind it are found.

    Raises:
        StorageError: A request failed; `ObjectGone` when there is no such bucket.
    """
    objects: Iterable[tuple[str, DeltaFile]] = store.walk(bucket, prefix, since.after if since else "")
    if skip:
        objects = (found for found in objects if not found[0].startswith(skip))
    for folder, bookmark in _deltas(objects, prefix, since):
        yield FoundDelta(DeltaLocation(bucket, folder.prefix), folder.listing(), bookmark)


def find_folders(path: Path, since: Bookmark | None = None) -> Iterator[FoundFolder]:
    """The folders at and below `path` that are deltas, each once, in the order of their names. Links are not followed.

    Args:
        path: Where to look.
        since: The bookmark of a delta: only those that come behind it are found.

    Raises:
        CouldNotCheck: A folder cannot be listed.
    """
    keys = _keys_below(path, since.after if since else "")
    for folder, bookmark in _deltas(((key, None) for key in keys), "./", since):
        yield FoundFolder(path / folder.prefix, bookmark)


def _keys_below(path: Path, after: str) -> Iterator[str]:
    """The files below a folder in the order of a listing, as keys that begin with `./`, so that none is without prefix.

    A folder may be deeper than Python may recurse.
    """
    waiting = ["./"]
    while waiting:
        key = waiting.pop()
        if key <= after and not after.startswith(key if key.endswith("/") else f"{key}/"):
            continue
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
    """A folder on the way to the current key, with what lies in it and below it."""

    prefix: str
    is_delta: bool = False
    whole: bool = True
    gathering: Gathering = field(default_factory=Gathering)

    def add(self, key: str, file: DeltaFile | None) -> None:
        """Takes in an object; None for a local file, of which only the name is known."""
        name = key[len(self.prefix) :]
        if file is not None and name:
            self.gathering.add(DeltaFile(name, file.size, file.etag, file.modified))

    def listing(self) -> Listing | None:
        """The objects by their names in the folder; None when not all were seen, or too many."""
        return self.gathering.listing() if self.whole and not self.gathering.overfull else None


def _deltas(
    objects: Iterable[tuple[str, DeltaFile | None]], root: str, since: Bookmark | None = None
) -> Iterator[tuple[_Folder, Bookmark]]:
    """The folders at and below `root` that are deltas, from objects of which those of a folder come in one run.

    The run of a delta may hold those of deltas below it: `a/0b3c.../header.bin`, `a/b/chroma.sqlite3`,
    `a/chroma.sqlite3`. So a folder is known for what it is only when its run has ended.
    """
    way: list[_Folder] = [_Folder(root)]
    current, owner, key = None, None, ""
    if since is not None:
        _enter(way, since.after[: since.after.rfind("/") + 1])
        for place in way:  # what lies in it before the bookmark is not seen again
            place.is_delta, place.whole = place.prefix in since.open, False
        key = since.after
    for entry in objects:
        before, key = key, entry[0]
        folder = key[: key.rfind("/") + 1]
        if folder != current:
            current = folder
            if not folder.startswith(way[-1].prefix):
                yield from _marked(_leave(way, folder), way, before)
            _enter(way, folder)
            above = folder[: folder.rfind("/", 0, -1) + 1]
            owner = way[-2] if len(way) > 1 and way[-2].prefix == above else None
        if key[len(folder) :] in _AT_TOP:
            way[-1].is_delta = way[-1].is_delta or bool(folder.strip("/"))
        elif owner is not None and not owner.is_delta and segment_of(key[len(owner.prefix) :]) is not None:
            owner.is_delta = bool(owner.prefix.strip("/"))
        for place in way:
            if place.whole:
                place.add(*entry)
    yield from _marked([folder for folder in reversed(way) if folder.is_delta], [], key)


def _leave(way: list[_Folder], folder: str) -> list[_Folder]:
    """Goes up the way until `folder` lies below its end. Returns the deltas that were left behind."""
    left = []
    while not folder.startswith(way[-1].prefix):
        if (done := way.pop()).is_delta:
            left.append(done)
    return left


def _enter(way: list[_Folder], folder: str) -> None:
    """Goes down to `folder`, which lies at or below the end of the way."""
    start = len(way[-1].prefix)
    while (end := folder.find("/", start)) >= 0:
        start = end + 1
        way.append(_Folder(folder[:start]))


def _marked(left: list[_Folder], way: list[_Folder], key: str) -> Iterator[tuple[_Folder, Bookmark]]:
    """The deltas that were left behind at this key, each with its bookmark."""
    around = tuple(folder.prefix for folder in way if folder.is_delta)
    for number, folder in enumerate(left, 1):
        yield folder, Bookmark(key, (*(other.prefix for other in left[number:]), *around))
