"""Bytes in, findings out. Knows the format of a delta, nothing of S3, and writes to nothing it is given."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from shared.inspection import layout
from shared.inspection.chroma import records
from shared.inspection.chroma.metadata import inspect_values
from shared.inspection.chroma.records import Contents
from shared.inspection.chroma.sysdb import Collection, flushed, purges, read_collections
from shared.inspection.hnsw import header, vector_index
from shared.inspection.limits import COLLECTION, ID, Limits, counted, integrity_seconds
from shared.inspection.probe import chroma
from shared.inspection.sqlite import database_file
from shared.inspection.sqlite.database_file import explained
from shared.inspection.sqlite.integrity import IntegrityCheck, integrity_checked
from shared.inspection.sqlite.pages import schema_bytes
from shared.inspection.sqlite.schema import Schema, inspect_schema, read_schema
from shared.model.deadline import UNLIMITED, Deadline
from shared.model.delta import DATABASE, JOURNALS, Listing
from shared.model.errors import CouldNotCheck, faults_explained
from shared.model.verdict import RULES, CollectionCount, Depth, Finding, Status, status_of

_SQL_SECONDS = 120.0
_MAX_SCHEMA_BYTES = 2 * 1024 * 1024  # Chroma's has 10 KB
_HOLDING = (
    "collections",
    "embeddings",
    "embedding_metadata",
    "embeddings_queue",
)  # the tables that hold what is stored


class Content(Protocol):
    """Where the bytes of a delta come from.

    Args:
        in_place: Whether they are where Chroma wrote them, and no copy.
    """

    in_place: bool

    def head(self, name: str, length: int) -> bytes:
        """The first `length` bytes of the file `name` (fewer where it is shorter)."""

    def folder(self) -> Path:
        """A local folder with all of Chroma's files of the delta. It is only read."""


@dataclass(slots=True)
class Examination:
    """What an examination brought to light."""

    observed: list[Finding] = field(default_factory=list)
    collections: tuple[CollectionCount, ...] = ()
    versions: dict[str, str] = field(default_factory=lambda: {"rules": RULES, "sqlite": sqlite3.sqlite_version})


def examine(
    listing: Listing,
    content: Content,
    depth: Depth,
    probe_seconds: float,
    step: Callable[[str], AbstractContextManager[Any]] = nullcontext,
    *,
    proven: bool = False,
    deadline: Deadline = UNLIMITED,
) -> Examination:
    """Examines a delta up to `depth`. It goes no further once something is proven that the next depth stands on.

    An index that looks damaged from outside proves nothing as long as the database was not asked whether a collection
    refers to it (a deleted collection leaves its folder behind). Such a suspicion is looked into at `structure`, also
    when less was asked for: a false alarm costs more than a download.

    Args:
        listing: The delta's files.
        content: Their bytes.
        depth: How far to go.
        probe_seconds: Time limit of one Chroma probe, at depth `open`.
        step: Put around the probe (`probe`); by default nothing is.
        proven: Whether a manifest proves every byte, so that depth `header` need not look at an index as well.
        deadline: What is not done then is given up.

    Returns:
        The findings. What could not be checked is among them, as a `check.*` finding; nothing is raised for it.
    """
    examination = Examination()
    observed = examination.observed
    if depth is Depth.OPEN:
        chroma.warm_up()  # half a second, during which the bytes come and are looked at
    try:
        observed += layout.inspect_names(listing)
        for journal in layout.journals_in(listing):
            head = content.head(journal, layout.JOURNAL_HEAD)
            size = listing.by_name[journal].size
            observed += layout.inspect_journal(journal, size, head, in_place=content.in_place)
        suspicions = layout.suspect_segments(listing)
        if depth.includes(Depth.HEADER) and not _blocked(observed):
            database = content.head(DATABASE, database_file.HEADER_BYTES)
            observed += database_file.inspect_header(database, listing.by_name[DATABASE].size)
            if depth is Depth.HEADER and not proven:
                suspicions += _suspect_index(listing, content)
        if (suspicions or depth.includes(Depth.STRUCTURE)) and not _blocked(observed):
            folder = content.folder()
            contents = _structure(listing, folder, examination, deadline)
            if depth.includes(Depth.OPEN) and status_of(observed) is Status.HEALTHY:
                deadline.check("asking Chroma")
                seconds = min(probe_seconds, deadline.left / chroma.ATTEMPTS)
                with step("probe"):
                    found, version = chroma.probe(folder, contents, seconds, searchable=_searchable(observed))
                observed += found
                if version:
                    examination.versions["chromadb"] = version
    except CouldNotCheck as fault:
        observed.append(Finding(fault.code, "", fault.detail))
    return examination


def _searchable(findings: list[Finding]) -> bool:
    """Whether a full-text query must find what is there: not where an upgrade put the texts under other numbers."""
    return all(finding.code != "sqlite.fulltext_outdated" for finding in findings)


def _blocked(findings: list[Finding]) -> bool:
    """Whether the database, on which every deeper check stands, is known to be unusable or half written."""
    return any(
        f.code == "layout.journal_unsettled" or (f.file in (DATABASE, *JOURNALS) and status_of([f]) is Status.CORRUPT)
        for f in findings
    )


def _suspect_index(listing: Listing, content: Content) -> list[Finding]:
    """What the header of one flushed index contradicts: the largest, so that one read is enough for any delta."""
    needed = {layout.PICKLE, "header.bin"}
    segments = {s: sizes for s, sizes in layout.segments_in(listing).items() if needed <= sizes.keys()}
    if not segments:
        return []
    segment = max(segments, key=lambda s: sum(segments[s].values()))
    head = content.head(f"{segment}/header.bin", header.HEADER_BYTES + 1)
    return header.inspect_header(segment, head, segments[segment])[1]


def _structure(listing: Listing, folder: Path, examination: Examination, deadline: Deadline) -> tuple[Contents, ...]:
    """Looks through the database and the indexes, a second time where a text is not UTF-8. Returns their contents."""
    with faults_explained(f"reading {DATABASE}"):
        try:
            observed, contents = _look(listing, folder, deadline, lenient=False)
        except database_file.NotUtf8:
            observed, contents = _look(listing, folder, deadline, lenient=True)
    examination.observed += observed
    examination.collections = tuple(collection.count for collection in contents)
    return contents


def _look(
    listing: Listing, folder: Path, deadline: Deadline, *, lenient: bool
) -> tuple[list[Finding], tuple[Contents, ...]]:
    deadline.check(f"reading {DATABASE}")
    _check_schema_size(folder / DATABASE)
    limits = Limits.of(max(file.size for file in listing.files), deadline)
    opened = partial(
        database_file.opened, folder / DATABASE, min(_SQL_SECONDS, deadline.left), lenient=lenient, limits=limits
    )
    with opened() as connection:
        # The schema comes first, since an integrity check evaluates its expressions.
        with counted(connection, limits):
            schema, observed = read_schema(connection)
        if status_of(observed) is not Status.HEALTHY:
            return observed + _left(connection, schema, observed), ()
        most = integrity_seconds(listing.by_name[DATABASE].size)
        with integrity_checked(opened(), connection, min(_SQL_SECONDS, deadline.left), most) as integrity:
            try:
                found, contents = _look_inside(connection, schema, integrity, listing, folder, limits)
            except Exception:
                # In a damaged database anything may come up, and nothing more is to be learnt from it.
                if not integrity.findings():
                    raise
            damage = integrity.findings()
    if damage:
        with opened() as connection:
            return observed + damage + _left(connection, schema, damage), ()
    return observed + found, contents


def _check_schema_size(database: Path) -> None:
    """Raises `CouldNotCheck` when SQLite would take more memory for the schema alone than a look may (30 times it)."""
    with database.open("rb") as file:
        size = schema_bytes(lambda at, length: os.pread(file.fileno(), length, at), _MAX_SCHEMA_BYTES)
    if size > _MAX_SCHEMA_BYTES:
        raise CouldNotCheck("check.size_cap", f"the schema of {DATABASE} has more than {_MAX_SCHEMA_BYTES} bytes")


def _look_inside(
    connection: sqlite3.Connection,
    schema: Schema,
    integrity: IntegrityCheck,
    listing: Listing,
    folder: Path,
    limits: Limits,
) -> tuple[list[Finding], tuple[Contents, ...]]:
    """What Chroma stored in a database that is sound as far as SQLite goes, and in the indexes beside it."""
    with counted(connection, limits):
        observed = inspect_schema(connection, schema)
    if status_of(observed) is not Status.HEALTHY:
        return observed + _left(connection, schema, observed), ()
    search = partial(database_file.inspect_fulltext, migrated=schema.fulltext_migrated)
    unsearchable = integrity.then(search if schema.searches_fulltext else database_file.foresee_fulltext)
    with counted(connection, limits):
        collections, found = read_collections(connection, schema)
    observed += found
    observed += _left(connection, schema, found)
    segments = layout.segments_in(listing)
    in_index = any(flushed(collection, segments) for collection in collections)
    observed += inspect_values(connection, schema, of_embeddings=in_index)
    look = partial(_collections, connection, schema, collections, segments, folder, limits)
    damaged = status_of(observed) is Status.CORRUPT
    contents, found = look(damaged=damaged)
    texts = unsearchable()
    if schema.fulltext and not damaged and status_of(texts) is Status.HEALTHY:
        texts += records.inspect_waiting_texts(connection, collections, limits)
    if (
        status_of(texts) is Status.CORRUPT and not damaged
    ):  # then it has to be told of every collection what is left of it
        contents, found = look(damaged=True)
    observed = texts + observed + found
    known = {collection.vector_segment for collection in collections}
    for segment in segments.keys() - known:
        observed.append(Finding("layout.segment_unreferenced", segment, "no collection refers to this folder"))
    return observed, contents


def _collections(
    connection: sqlite3.Connection,
    schema: Schema,
    collections: Sequence[Collection],
    segments: dict[str, dict[str, int]],
    folder: Path,
    limits: Limits,
    *,
    damaged: bool,
) -> tuple[tuple[Contents, ...], list[Finding]]:
    looked = []
    for collection in collections:
        limits.check(f"reading the collections of {DATABASE}")
        left = limits.left
        looked.append(_collection(connection, schema, collection, segments, folder, limits, damaged=damaged))
        # What stays of it are its ids and its findings.
        limits.drop(max(0, left - limits.left - COLLECTION - ID * len(looked[-1][0].ids)))
    return tuple(contents for contents, _ in looked), [finding for _, findings in looked for finding in findings]


def _collection(
    connection: sqlite3.Connection,
    schema: Schema,
    collection: Collection,
    segments: dict[str, dict[str, int]],
    folder: Path,
    limits: Limits,
    *,
    damaged: bool,
) -> tuple[Contents, list[Finding]]:
    """One collection with its index, if it ever had one. An index that was never flushed is a skeleton: ignored.

    What can be recovered is told of a collection with damage, and of every one when what they share is `damaged`.
    """
    index = None
    findings: list[Finding] = []
    if flushed(collection, segments):
        index, findings = _index(collection, segments, folder, limits)
    if index is None or (index.ids is not None and not index.ids.labels):
        collection, findings = _without_index(connection, schema, collection, findings)
        index = None
    ids = index.ids if index else None
    # Ids cannot be compared with an index that is there and cannot be read.
    comparable = index is None or ids is not None
    ahead = index.ahead if index else 0
    contents, found = records.inspect_collection(
        connection, schema, collection, ids, index_readable=comparable, ahead=ahead, limits=limits
    )
    findings = findings + found
    if damaged or status_of(findings) is Status.CORRUPT:
        left = records.recoverable(connection, collection, index.recoverable() if index else set(), limits)
        findings.append(Finding("records.recoverable", DATABASE, left))
    return contents, findings


def _without_index(
    connection: sqlite3.Connection, schema: Schema, collection: Collection, findings: list[Finding]
) -> tuple[Collection, list[Finding]]:
    """A collection whose id map is missing or empty, as Chroma takes it: it makes the index anew from the whole queue.

    That nothing is missing yet proves nothing where Chroma purges: it purges up to the last flush that the database
    knows of, when it has read the queue and before it has written an index.
    """
    missing = [finding for finding in findings if finding.code == "hnsw.pickle_missing"]
    if missing:
        with explained("reading the settings of the queue"):
            if not purges(connection, schema):
                missing = [Finding("hnsw.index_missing", found.file, found.detail) for found in missing]
    return (
        collection if any(f.code == "hnsw.pickle_missing" for f in missing) else replace(collection, flushed_to=None)
    ), missing


def _index(
    collection: Collection, segments: dict[str, dict[str, int]], folder: Path, limits: Limits
) -> tuple[vector_index.Index | None, list[Finding]]:
    """The index of a collection that was flushed; None when there is nothing to compare ids with but the queue."""
    segment = str(collection.vector_segment)
    sizes = segments.get(segment, {})
    if layout.PICKLE not in sizes:
        detail = f"flushed up to operation {collection.flushed_to}, but the id map is not there"
        return None, [Finding("hnsw.pickle_missing", f"{segment}/{layout.PICKLE}", detail)]
    missing = {f"{segment}/{base}" for base in layout.INDEX_FILES if base not in sizes}
    # A missing file is looked at like an empty one, so that what the others still hold is known.
    files = vector_index.IndexFiles(dict.fromkeys(layout.INDEX_FILES, 0) | sizes, partial(_part, folder / segment))
    index = vector_index.inspect_index(segment, files, collection.dimension, cosine=collection.cosine, limits=limits)
    findings = [
        Finding("layout.segment_file_missing", name, "not there, although the index was flushed")
        for name in sorted(missing)
    ]
    return index, findings + [finding for finding in index.findings if finding.file not in missing]


def _left(connection: sqlite3.Connection, schema: Schema, observed: list[Finding]) -> list[Finding]:
    """What can still be read of a database that is not sound; nothing of one that would have to be run."""
    if schema.computing or status_of(observed) is not Status.CORRUPT:
        return []
    readable = database_file.what_is_readable(connection, (table for table in _HOLDING if table in schema.tables))
    return [Finding("sqlite.readable", DATABASE, readable)] if readable else []


def _part(folder: Path, base: str, start: int, length: int) -> NDArray[np.uint8]:
    if not length:
        return np.empty(0, np.uint8)
    with faults_explained(f"reading {base} of an index"):
        part = np.fromfile(folder / base, dtype=np.uint8, count=length, offset=start)
    if len(part) != length:
        raise CouldNotCheck("check.changed", f"{base} of an index became shorter while it was read")
    return part
