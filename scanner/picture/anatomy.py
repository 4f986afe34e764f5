"""What one delta is made of, gathered for a drawing: files, pages, indexes, collections, and where the damage sits.

A drawing is most wanted of what is broken, so each part is gathered for itself, and one that cannot be says why.
"""

from __future__ import annotations

import os
import re
import sqlite3
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from shared.check.judgement import Judgement, judge_folder, judge_stored
from shared.inspection import layout
from shared.inspection.chroma.sysdb import Collection, flushed, read_collections
from shared.inspection.hnsw.header import HEADER_BYTES, IndexHeader, inspect_header
from shared.inspection.sqlite import database_file
from shared.inspection.sqlite.pages import PageKind, PageMap, map_pages
from shared.inspection.sqlite.schema import inspect_schema, read_schema
from shared.model.delta import DATABASE, DeltaFile, DeltaLocation, Listing
from shared.model.errors import CouldNotCheck, faults_explained
from shared.model.settings import Settings
from shared.model.verdict import Depth, Finding, Status, Verdict, status_of
from shared.storage.folder import check_size
from shared.storage.scratch import scratch_folder

if TYPE_CHECKING:
    from shared.storage.store import Store

_SQL_SECONDS = 60.0
_MOST_COUNTED = 50  # collections, more than any drawing shows
_OFFSET = re.compile(r"\boffset (\d{1,18})\b")
_PAGE = re.compile(r"\bpage (\d{1,10})\b")
_ROWS = "SELECT count(*) FROM embeddings WHERE segment_id = ?"
_QUEUED = "SELECT count(*), min(seq_id), max(seq_id) FROM embeddings_queue WHERE substr(topic, -36) = ?"


@dataclass(frozen=True, slots=True)
class Place:
    """A finding with the byte of its file that it points to; None where it does not say."""

    finding: Finding
    offset: int | None


@dataclass(frozen=True, slots=True)
class IndexPart:
    """The folder of one vector index.

    Args:
        segment: Its name.
        sizes: Bytes of its files by base name.
        header: What its header says; None when there is none or it makes no sense.
        problem: Why there is no header.
        flushed: Whether vectors were ever written to it; otherwise nothing in it counts. None when nobody refers to it.
    """

    segment: str
    sizes: Mapping[str, int]
    header: IndexHeader | None
    problem: str
    flushed: bool | None


@dataclass(frozen=True, slots=True)
class CollectionPart:
    """One collection: what its rows and the queue hold. A number that is not known is None."""

    collection: Collection
    rows: int | None
    queued: int | None
    queue_first: int | None
    queue_last: int | None


@dataclass(frozen=True, slots=True)
class Anatomy:
    """One delta, taken apart.

    Args:
        verdict: The verdict on it.
        files: Its files, sorted by name.
        pages: The map of its database, or why there is none.
        marked: Numbers of the pages that are broken or that a finding names.
        indexes: Its vector indexes.
        collections: Its collections, or why they could not be read.
        places: All findings, notes last, sorted by file and offset.
    """

    verdict: Verdict
    files: tuple[DeltaFile, ...]
    pages: PageMap | str
    marked: Mapping[int, str]
    indexes: tuple[IndexPart, ...]
    collections: tuple[CollectionPart, ...] | str
    places: tuple[Place, ...]


def take_apart(delta: DeltaLocation | Path, depth: Depth, settings: Settings, store: Store | None) -> Anatomy:
    """Judges a delta and gathers what a drawing shows. What cannot be read is part of the verdict.

    Args:
        delta: Where it lies.
        depth: How far the verdict goes; the drawing is the same.
        settings: Caps and time limits.
        store: S3, for a delta that lies there.

    Raises:
        TargetError: There is no such folder.
    """
    if isinstance(delta, Path):
        return _gathered(judge_folder(delta, depth, settings), settings, _Folder(delta))
    assert store is not None
    judgement = judge_stored(store, delta, depth, settings)
    with ExitStack() as scratch:
        return _gathered(judgement, settings, _Stored(store, delta, judgement.listing, scratch))


def cells(pages: PageMap, marked: Mapping[int, str], most: int) -> tuple[int, list[PageKind]]:
    """The map in at most so many cells: how many pages a cell stands for, and the kind that it shows.

    A cell of several pages shows a broken one if it has any, else one that nothing refers to, else what most are.
    """
    width = max(1, -(-len(pages.kinds) // most))
    kinds = bytearray(pages.kinds)
    for number in marked:
        if 1 <= number <= len(kinds):
            kinds[number - 1] = PageKind.BROKEN
    return width, [_shown(kinds[start : start + width]) for start in range(0, len(kinds), width)]


def _shown(kinds: Sequence[int]) -> PageKind:
    for loud in (PageKind.BROKEN, PageKind.UNREACHED):
        if loud in kinds:
            return loud
    return PageKind(Counter(kinds).most_common(1)[0][0])


class _Folder:
    """The files of a delta in a local folder."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def head(self, name: str, length: int) -> bytes:
        with faults_explained(f"reading {name}"), (self._path / name).open("rb") as file:
            return file.read(length)

    def database(self) -> Path:
        return self._path / DATABASE


class _Stored:
    """The files of a delta in S3; its database is downloaded when it is needed."""

    def __init__(self, store: Store, location: DeltaLocation, listing: Listing, scratch: ExitStack) -> None:
        self._store = store
        self._location = location
        self._listing = listing
        self._scratch = scratch

    def head(self, name: str, length: int) -> bytes:
        file = self._listing.by_name[name]
        if not file.size:
            return b""
        return self._store.read(self._location.bucket, self._location.key(name), length, file.etag)

    def database(self) -> Path:
        path = self._scratch.enter_context(scratch_folder()) / DATABASE
        self._store.download(self._location, self._listing.by_name[DATABASE], path)
        return path


def _gathered(judgement: Judgement, settings: Settings, source: _Folder | _Stored) -> Anatomy:
    verdict, listing = judgement.verdict, judgement.listing
    pages: PageMap | str = f"there is no {DATABASE}"
    collections: tuple[CollectionPart, ...] | str = f"there is no {DATABASE}"
    indexes: tuple[IndexPart, ...] = ()
    try:
        if DATABASE in listing.by_name:
            pages, collections = "it could not be read", "the database could not be read"
            check_size(listing, settings.max_delta_bytes)
            path = source.database()
            pages = _pages(path)
            collections = _collections(path)
        indexes = _indexes(listing, source.head, collections)
    except CouldNotCheck as fault:
        verdict = replace(verdict, observed=(*verdict.observed, Finding(fault.code, "", fault.detail)))
    places = tuple(_places(verdict, listing, pages))
    return Anatomy(verdict, listing.files, pages, _marked(pages, places), indexes, collections, places)


def _pages(path: Path) -> PageMap | str:
    with faults_explained(f"reading {DATABASE}"), path.open("rb", buffering=0) as file:

        def read(offset: int, length: int) -> bytes:
            return os.pread(file.fileno(), length, offset)

        return map_pages(read, os.fstat(file.fileno()).st_size)


def _collections(path: Path) -> tuple[CollectionPart, ...] | str:
    try:
        return _read_collections(path)
    except CouldNotCheck as fault:
        return f"they could not be read: {fault.detail}"


def _read_collections(path: Path) -> tuple[CollectionPart, ...] | str:
    with database_file.opened(path, _SQL_SECONDS) as connection:
        schema, observed = read_schema(connection)
        if status_of(observed) is Status.HEALTHY:
            observed += inspect_schema(connection, schema)
        bad = next((finding for finding in observed if status_of([finding]) is not Status.HEALTHY), None)
        if bad is not None:
            return f"its tables cannot be read: {bad.code}"
        collections, unread = read_collections(connection, schema)
        if not collections and unread:
            return f"they cannot be read: {unread[0].code}"
        counted = [_collection(connection, collection) for collection in collections[:_MOST_COUNTED]]
        rest = [CollectionPart(collection, None, None, None, None) for collection in collections[_MOST_COUNTED:]]
        return (*counted, *rest)


def _collection(connection: sqlite3.Connection, collection: Collection) -> CollectionPart:
    (rows,) = _row(connection, _ROWS, collection.metadata_segment) or (None,)
    queued, first, last = _row(connection, _QUEUED, collection.id) or (None, None, None)
    return CollectionPart(collection, rows, queued, first, last)


def _row(connection: sqlite3.Connection, query: str, key: str | None) -> tuple[int | None, ...] | None:
    """One row of numbers; None when it cannot be read."""
    row: Sequence[object] = ()
    with database_file.explained("counting rows") as unread:
        row = connection.execute(query, (key,)).fetchone()
    return None if unread else tuple(number if isinstance(number, int) else None for number in row)


def _indexes(
    listing: Listing, head: Callable[[str, int], bytes], collections: tuple[CollectionPart, ...] | str
) -> tuple[IndexPart, ...]:
    segments = layout.segments_in(listing)
    owners = {} if isinstance(collections, str) else {part.collection.vector_segment: part for part in collections}
    parts = []
    for segment, sizes in segments.items():
        owner = owners.get(segment)
        known = None if owner is None else flushed(owner.collection, segments)
        header, problem = None, f"there is no {layout.INDEX_FILES[0]}"
        if "header.bin" in sizes:
            header, found = inspect_header(segment, head(f"{segment}/header.bin", HEADER_BYTES + 1), sizes)
            problem = found[0].detail if found and header is None else ""
        parts.append(IndexPart(segment, sizes, header, problem, known))
    return tuple(parts)


def _places(verdict: Verdict, listing: Listing, pages: PageMap | str) -> Iterator[Place]:
    for findings in (verdict.findings, verdict.notes):
        placed = [Place(finding, _offset(finding, listing, pages)) for finding in findings]
        yield from sorted(placed, key=lambda place: (place.finding.file, place.offset or 0))


def _offset(finding: Finding, listing: Listing, pages: PageMap | str) -> int | None:
    """The byte that a finding points to: it names it, or a page, or says that the file ends too early."""
    file = listing.by_name.get(finding.file)
    if file is None:
        return None
    if named := _OFFSET.search(finding.detail):
        return int(named[1])
    if finding.code == "sqlite.truncated":
        return file.size
    if file.name == DATABASE and isinstance(pages, PageMap) and (named := _PAGE.search(finding.detail)):
        return max(0, int(named[1]) - 1) * pages.page_size
    return None


def _marked(pages: PageMap | str, places: Sequence[Place]) -> dict[int, str]:
    if isinstance(pages, str):
        return {}
    named = {
        place.offset // pages.page_size + 1: place.finding.detail
        for place in places
        if place.finding.file == DATABASE and place.offset is not None and status_of([place.finding]) is Status.CORRUPT
    }
    return {number: why for number, why in (named | pages.broken).items() if 1 <= number <= len(pages.kinds)}
