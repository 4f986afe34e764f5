"""Bytes in, findings out. Knows the format of a delta, nothing of S3, and writes to nothing it is given."""

from __future__ import annotations

import sqlite3
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import numpy as np

from shared.delta import DATABASE, JOURNALS, Listing
from shared.errors import CouldNotCheck, faults_explained
from shared.inspection import chroma, hnsw, layout, records, sqlite
from shared.inspection.records import Collection, Contents
from shared.verdict import RULES, CollectionCount, Depth, Finding, Status, status_of

_SQL_SECONDS = 120.0


class Content(Protocol):
    """Where the bytes of a delta come from."""

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


def examine(listing: Listing, content: Content, depth: Depth, probe_seconds: float) -> Examination:
    """Examines a delta up to `depth`. It goes no further once something is proven that the next depth stands on.

    An index that looks damaged from outside proves nothing as long as the database was not asked whether a collection
    refers to it (a deleted collection leaves its folder behind). Such a suspicion is looked into at `structure`, also
    when less was asked for: a false alarm costs more than a download.

    Args:
        listing: The delta's files.
        content: Their bytes.
        depth: How far to go.
        probe_seconds: Time limit of one Chroma probe, at depth `open`.

    Returns:
        The findings. What could not be checked is among them, as a `check.*` finding; nothing is raised for it.
    """
    examination = Examination()
    observed = examination.observed
    try:
        observed += layout.inspect_names(listing)
        suspicions = layout.suspect_segments(listing)
        if depth.includes(Depth.HEADER) and not _blocked(observed):
            database = content.head(DATABASE, sqlite.HEADER_BYTES)
            observed += sqlite.inspect_header(database, listing.by_name[DATABASE].size)
            if depth is Depth.HEADER:
                suspicions += _suspect_index(listing, content)
        if (suspicions or depth.includes(Depth.STRUCTURE)) and not _blocked(observed):
            folder = content.folder()
            contents = _structure(listing, folder, examination)
            if depth.includes(Depth.OPEN) and status_of(observed) is Status.HEALTHY:
                found, version = chroma.probe(folder, contents, probe_seconds)
                observed += found
                if version:
                    examination.versions["chromadb"] = version
    except CouldNotCheck as fault:
        observed.append(Finding(fault.code, "", fault.detail))
    return examination


def _blocked(findings: list[Finding]) -> bool:
    """Whether the database, on which every deeper check stands, is known to be unusable or half written."""
    return any(f.file in (DATABASE, *JOURNALS) and status_of([f]) is Status.CORRUPT for f in findings)


def _suspect_index(listing: Listing, content: Content) -> list[Finding]:
    """What the header of one flushed index contradicts: the largest, so that one read is enough for any delta."""
    needed = {layout.PICKLE, "header.bin"}
    segments = {s: sizes for s, sizes in layout.segments_in(listing).items() if needed <= sizes.keys()}
    if not segments:
        return []
    segment = max(segments, key=lambda s: sum(segments[s].values()))
    head = content.head(f"{segment}/header.bin", hnsw.HEADER_BYTES + 1)
    return hnsw.inspect_header(segment, head, segments[segment])[1]


def _structure(listing: Listing, folder: Path, examination: Examination) -> tuple[Contents, ...]:
    observed = examination.observed
    database = folder / DATABASE
    all_contents: list[Contents] = []
    with faults_explained(f"reading {DATABASE}"), sqlite.opened(database, _SQL_SECONDS) as connection:
        for check in (sqlite.inspect_integrity, sqlite.inspect_schema):
            observed += check(connection)
            if status_of(observed) is not Status.HEALTHY:
                return ()
        observed += sqlite.inspect_fulltext(connection)
        collections, found = records.read_collections(connection)
        observed += found
        segments = layout.segments_in(listing)
        for collection in collections:
            contents, found = _collection(connection, collection, segments, folder)
            all_contents.append(contents)
            observed += found
        known = {collection.vector_segment for collection in collections}
        for segment in segments.keys() - known:
            observed.append(Finding("layout.segment_unreferenced", segment, "no collection refers to this folder"))
    examination.collections = tuple(contents.count for contents in all_contents)
    return tuple(all_contents)


def _collection(
    connection: sqlite3.Connection, collection: Collection, segments: dict[str, dict[str, int]], folder: Path
) -> tuple[Contents, list[Finding]]:
    """One collection with its index, if it ever had one. An index that was never flushed is a skeleton: ignored."""
    if not records.flushed(collection, segments):
        return records.inspect_collection(connection, collection, None, index_readable=True)
    segment = str(collection.vector_segment)
    missing = [base for base in (*layout.INDEX_FILES, layout.PICKLE) if base not in segments.get(segment, {})]
    if layout.PICKLE in missing:
        detail = f"flushed up to operation {collection.flushed_to}, but the id map is not there"
        findings = [Finding("hnsw.pickle_missing", f"{segment}/{layout.PICKLE}", detail)]
        contents, found = records.inspect_collection(connection, collection, None, index_readable=True)
        return contents, findings + found
    if missing:
        contents, found = records.inspect_collection(connection, collection, None, index_readable=False)
        return contents, [
            Finding("layout.segment_file_missing", f"{segment}/{base}", "not there, although the index was flushed")
            for base in missing
        ] + found
    files = {
        base: np.fromfile(folder / segment / base, dtype=np.uint8) for base in (*layout.INDEX_FILES, layout.PICKLE)
    }
    index = hnsw.inspect_index(segment, files, collection.dimension)
    contents, found = records.inspect_collection(
        connection, collection, index.ids, index_readable=index.ids is not None
    )
    return contents, index.findings + found
