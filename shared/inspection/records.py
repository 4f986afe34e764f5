"""The rows of the database against each other and against the indexes: is every stored id there with its vector?

The master invariant, per collection:

    {ids in the index} + {queue operations after the index's last} = {embedding_id of the metadata segment}

A delta that breaks it has lost vectors or ids, however happily it opens.
"""

from __future__ import annotations

import hashlib
import re
import sqlite3
from collections.abc import Mapping, Set
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from shared.delta import DATABASE, printable
from shared.inspection.hnsw import rows_not_finite
from shared.inspection.idmap import MAX_SEQUENCE_NUMBER, IdMap
from shared.inspection.metadata import ExpectedMetadata, parse
from shared.inspection.sqlite import explained
from shared.verdict import CollectionCount, Finding

_ADD, _UPDATE, _UPSERT, _DELETE = range(4)
_ENCODING = "FLOAT32"  # chromadb.types.ScalarEncoding also knows INT32, which no version writes
_WIDTH = 4
_QUEUE = """
    SELECT seq_id, operation, id, vector, encoding, metadata FROM embeddings_queue
    WHERE substr(topic, -36) = ? AND seq_id > ? ORDER BY seq_id
"""
_IDS = """
    SELECT embedding_id FROM embeddings WHERE segment_id = ? AND typeof(embedding_id) = 'text'
    AND (typeof(seq_id) = 'integer' OR typeof(seq_id) = 'blob' AND length(seq_id) = 8)
"""
_COUNT = "SELECT count(*) FROM embeddings WHERE segment_id = ?"
_BATCH_BYTES = 4 * 1024 * 1024
_IDS_SHOWN = 3
_NOT_UTF8 = re.compile("[\udc80-\udcff]")


@dataclass(frozen=True, slots=True)
class Collection:
    """One collection and its two segments; `flushed_to` is the last queue operation that its index holds."""

    id: str
    name: str
    dimension: int | None
    vector_segment: str | None
    metadata_segment: str | None
    flushed_to: int | None
    applied_to: int


@dataclass(frozen=True, slots=True)
class Contents:
    """What one collection holds after all operations: `digest` is sha256 over its sorted ids, each ended by LF."""

    count: CollectionCount
    digest: str


def read_collections(connection: sqlite3.Connection) -> tuple[list[Collection], list[Finding]]:
    """The collections of a database whose schema is sound.

    Raises:
        CouldNotCheck: The rows could not be read for a reason outside the bytes.
    """
    collections: list[Collection] = []
    findings: list[Finding] = []
    with explained("reading the collections") as unread:
        findings = _settings_findings(connection)
        flushed_to, unreadable = _sequence_numbers(connection)
        findings += unreadable
        segments: dict[tuple[object, object], str] = {}
        for segment, scope, owner in connection.execute("SELECT id, scope, collection FROM segments"):
            if isinstance(segment, str) and _is_text(segment):
                segments[owner, scope] = segment
        for id_, name, dimension in connection.execute("SELECT id, name, dimension FROM collections ORDER BY name"):
            texts = all(isinstance(text, str) and _is_text(text) for text in (id_, name))
            if not texts or not _is_dimension(dimension):
                detail = (
                    f"collection {_shown(name)} has an id, a name or a dimension ({_shown(dimension)}) that is none"
                )
                findings.append(Finding("records.row_unreadable", DATABASE, detail))
                continue
            vector, metadata = segments.get((id_, "VECTOR")), segments.get((id_, "METADATA"))
            for scope, segment in (("vector", vector), ("metadata", metadata)):
                if segment is None:
                    detail = f"collection {_shown(name)} has no {scope} segment"
                    findings.append(Finding("records.segment_missing", DATABASE, detail))
            applied_to = flushed_to.get(metadata, 0)
            collections.append(Collection(id_, name, dimension, vector, metadata, flushed_to.get(vector), applied_to))
        lost = {owner for owner, _ in segments} - {collection.id for collection in collections}
        if lost and not findings:
            detail = f"{len(lost)} collections have segments but no row in collections: {_some(lost)}"
            findings.append(Finding("records.collection_missing", DATABASE, detail))
    return collections, unread + findings


def _sequence_numbers(connection: sqlite3.Connection) -> tuple[dict[object, int], list[Finding]]:
    """The last operation that each segment has taken up."""
    numbers: dict[object, int] = {}
    findings = []
    for segment, value in connection.execute("SELECT segment_id, seq_id FROM max_seq_id"):
        number = _sequence_number(value)
        if number is not None:
            numbers[segment] = number
        elif value is not None:
            detail = f"max_seq_id of segment {_shown(segment)} is {_shown(value)}, which is no sequence number"
            findings.append(Finding("records.row_unreadable", DATABASE, detail))
    return numbers, findings


def _settings_findings(connection: sqlite3.Connection) -> list[Finding]:
    """Whether the settings of the collections are JSON. Their columns came with 0.5 and 1.3; older deltas lack them."""
    present = {row[1] for row in connection.execute("PRAGMA table_info(collections)")}
    findings = []
    for column in ("config_json_str", "schema_str"):
        if column in present:
            query = f"SELECT name FROM collections WHERE {column} IS NOT NULL AND NOT json_valid({column})"  # noqa: S608
            for (name,) in connection.execute(query):
                detail = f"{column} of collection {_shown(name)} is not JSON"
                findings.append(Finding("records.row_unreadable", DATABASE, detail))
    return findings


def inspect_collection(
    connection: sqlite3.Connection, collection: Collection, index: IdMap | None, *, index_readable: bool
) -> tuple[Contents, list[Finding]]:
    """The master invariant of one collection, and every vector that waits in the queue.

    Args:
        connection: A database whose schema is sound.
        collection: The collection.
        index: The id map of its index, None when it was never flushed.
        index_readable: False when there is an index whose id map cannot be read: ids cannot be compared then.

    Raises:
        CouldNotCheck: The rows could not be read for a reason outside the bytes.
    """
    rows: set[str] = set()
    findings: list[Finding] = []
    with explained(f"reading the ids of {collection.name!r}") as unread:
        rows, findings = _metadata_ids(connection, collection)
    flushed_to = collection.flushed_to
    if flushed_to is None and index is not None:
        flushed_to = index.max_seq_id  # chromadb 0.4 keeps it in the id map
    replay = _Replay(collection, flushed_to or 0, set(index.labels) if index else set(), rows)
    with explained(f"replaying the queue of {collection.name!r}") as failed:
        replay.run(connection)
    findings += unread + failed + replay.findings
    if index_readable and not unread and not failed:
        findings += replay.contradictions()
    count = CollectionCount(collection.name, collection.dimension, len(replay.with_row))
    return Contents(count, digest_of(replay.with_row)), findings


def digest_of(ids: set[str]) -> str:
    """sha256 (hex) over the sorted ids, each ended by a line feed."""
    return hashlib.sha256("".join(f"{id_}\n" for id_ in sorted(ids)).encode("utf-8", "surrogateescape")).hexdigest()


def _metadata_ids(connection: sqlite3.Connection, collection: Collection) -> tuple[set[str], list[Finding]]:
    ids = {id_ for (id_,) in connection.execute(_IDS, (collection.metadata_segment,))}
    ((rows,),) = connection.execute(_COUNT, (collection.metadata_segment,))
    if not _is_text("".join(ids)):
        ids = set(filter(_is_text, ids))
    if len(ids) == rows:
        return ids, []
    detail = f"{rows - len(ids)} rows of embeddings in {_shown(collection.name)} have an id or seq_id of a wrong type"
    return ids, [Finding("records.row_unreadable", DATABASE, detail)]


class _Operation(NamedTuple):
    """One operation of the queue whose id and kind can be read; its metadata is None when that cannot."""

    seq_id: int
    kind: int
    id: str
    vector: object
    encoding: object
    metadata: dict[str, Any] | None


class _Replay:
    """The operations of one collection, applied in order as Chroma does.

    Adding a known id and updating or deleting an unknown one do nothing.

    Args:
        collection: The collection.
        flushed_to: The last operation that is in its index.
        with_vector: Ids that have a vector in the index.
        rows: Ids that have a row in `embeddings`.
    """

    def __init__(self, collection: Collection, flushed_to: int, with_vector: set[str], rows: set[str]) -> None:
        self._collection = collection
        self._flushed_to = flushed_to
        self._rows = rows
        self._problems = _VectorProblems(collection)
        self._expected = ExpectedMetadata()
        self.with_vector = with_vector
        self.with_row = set(rows)
        self.findings: list[Finding] = []

    def run(self, connection: sqlite3.Connection) -> None:
        """Applies every operation that the index or the rows have not taken up yet."""
        first = min(self._flushed_to, self._collection.applied_to)
        for row in connection.execute(_QUEUE, (self._collection.id, first)):
            operation = self._read(*row)
            if operation is not None:
                self._expect(operation)
                if operation.seq_id > self._flushed_to:
                    self._apply_to_index(operation)
                if operation.seq_id > self._collection.applied_to:
                    self._apply_to_rows(operation)
        self.findings += self._problems.findings()
        segment = str(self._collection.metadata_segment)
        missing = self._expected.missing(connection, segment, self._collection.id)
        ids = {id_ for id_, _ in missing} & self._rows
        if ids:
            values = sum(id_ in ids for id_, _ in missing)
            detail = f"{values} values of {len(ids)} embeddings of {_shown(self._collection.name)}: {_some(ids)}"
            self.findings.append(Finding("records.metadata_missing", DATABASE, detail))

    def contradictions(self) -> list[Finding]:
        """What breaks the master invariant."""
        findings = []
        name = _shown(self._collection.name)
        if self._collection.dimension is None and self.with_vector:
            detail = f"{name} holds {len(self.with_vector)} vectors, but its dimension is not set"
            findings.append(Finding("records.dimension_missing", DATABASE, detail))
        lost = self.with_row - self.with_vector
        if lost:
            detail = f"{len(lost)} of {len(self.with_row)} embeddings of {name} have no vector: {_some(lost)}"
            findings.append(Finding("records.vector_missing", DATABASE, detail))
        unknown = self.with_vector - self.with_row
        if unknown:
            detail = f"{len(unknown)} vectors of {name} have no row in embeddings: {_some(unknown)}"
            findings.append(Finding("records.id_missing", DATABASE, detail))
        return findings

    def _read(
        self, seq_id: int, kind: Any, id_: object, vector: object, encoding: object, text: object
    ) -> _Operation | None:
        if not isinstance(id_, str) or not _is_text(id_) or kind not in (_ADD, _UPDATE, _UPSERT, _DELETE):
            detail = f"row {seq_id} of embeddings_queue: operation {_shown(kind)} on {_shown(id_)}"
            self.findings.append(Finding("records.operation_unknown", DATABASE, detail))
            return None
        metadata = None
        try:
            metadata = parse(text)
        except ValueError as error:
            detail = f"row {seq_id} of embeddings_queue: the metadata of {_shown(id_)} is not readable: {error}"
            self.findings.append(Finding("records.row_unreadable", DATABASE, printable(detail, 200)))
        return _Operation(seq_id, kind, id_, vector, encoding, metadata)

    def _expect(self, operation: _Operation) -> None:
        known = operation.id in self.with_vector
        late = operation.seq_id > self._collection.applied_to
        if operation.kind == _DELETE or operation.metadata is None or late:
            self._expected.forget(operation.id)
        elif known and operation.kind != _ADD:
            self._expected.merge(operation.id, operation.metadata)
        elif not known and operation.kind != _UPDATE:
            self._expected.store(operation.id, operation.metadata)

    def _apply_to_index(self, operation: _Operation) -> None:
        if operation.kind == _DELETE:
            self.with_vector.discard(operation.id)
            self._problems.forget(operation.id, operation.seq_id)
        elif self._problems.add(operation) and operation.kind != _UPDATE:
            self.with_vector.add(operation.id)

    def _apply_to_rows(self, operation: _Operation) -> None:
        if operation.kind == _DELETE:
            self.with_row.discard(operation.id)
        elif operation.kind != _UPDATE:
            self.with_row.add(operation.id)


class _VectorProblems:
    """Collects what is wrong with the vectors of the queue; their numbers are looked at some megabytes at a time.

    A vector that Chroma cannot decode stops its reader wherever it stands. One that decodes to wrong numbers does harm
    only while no later operation replaces or deletes it.
    """

    def __init__(self, collection: Collection) -> None:
        self._collection = collection
        self._dimension = collection.dimension
        self._waiting: list[tuple[str, int, bytes | None]] = []
        self._bytes = 0
        self._stopping: list[tuple[str, int, str]] = []
        self._wrong: dict[str, tuple[str, int, str]] = {}

    def add(self, operation: _Operation) -> bool:
        """Takes one vector in. Returns whether there is one that can be read."""
        seq_id, id_, vector, encoding = operation.seq_id, operation.id, operation.vector, operation.encoding
        if vector is None and operation.kind == _UPDATE:
            return False
        if not isinstance(vector, bytes):
            self._stopping.append(("records.vector_length", seq_id, "no vector"))
            return False
        if encoding != _ENCODING:
            detail = f"encoding {_shown(encoding)}, expected {_ENCODING}"
            self._stopping.append(("records.vector_encoding", seq_id, detail))
            return False
        if self._dimension is None:
            self._dimension = len(vector) // _WIDTH
        if len(vector) == _WIDTH * self._dimension:
            self._waiting.append((id_, seq_id, vector))
            self._bytes += len(vector)
            if self._bytes >= _BATCH_BYTES:
                self._look()
            return True
        needed = f"dimension {self._dimension} needs {_WIDTH * self._dimension}"
        problem = ("records.vector_length", seq_id, f"{len(vector)} bytes, {needed}")
        if len(vector) % _WIDTH:
            self._stopping.append(problem)
        else:
            self._look()
            self._wrong[id_] = problem
        return False

    def forget(self, id_: str, seq_id: int) -> None:
        """Takes note that an id was deleted, and with it what was wrong with its vector."""
        self._waiting.append((id_, seq_id, None))

    def findings(self) -> list[Finding]:
        """One finding for each kind of problem: how many rows, and the first of them."""
        self._look()
        by_code: dict[str, list[tuple[int, str]]] = {}
        for code, seq_id, detail in sorted([*self._stopping, *self._wrong.values()], key=lambda problem: problem[1]):
            by_code.setdefault(code, []).append((seq_id, detail))
        return [
            Finding(
                code,
                DATABASE,
                f"{len(rows)} queued vectors of {_shown(self._collection.name)}, "
                f"the first in row {rows[0][0]} of embeddings_queue: {rows[0][1]}",
            )
            for code, rows in by_code.items()
        ]

    def _look(self) -> None:
        vectors = [vector for _, _, vector in self._waiting if vector is not None]
        matrix = np.frombuffer(b"".join(vectors), dtype="<f4").reshape(len(vectors), self._dimension or 0)
        not_finite = rows_not_finite(matrix)
        if not self._wrong and not not_finite.any():
            self._waiting.clear()
            self._bytes = 0
            return
        broken = iter(not_finite.tolist())
        for id_, seq_id, vector in self._waiting:
            if vector is not None and next(broken):
                self._wrong[id_] = ("records.vector_not_finite", seq_id, "NaN or infinity")
            else:
                self._wrong.pop(id_, None)
        self._waiting.clear()
        self._bytes = 0


def _sequence_number(value: object) -> int | None:
    """The number in `max_seq_id.seq_id`: an integer in 1.x, eight big-endian bytes in 0.x; None when it is neither."""
    if isinstance(value, bytes) and len(value) == 8:
        value = int.from_bytes(value, "big")
    return value if isinstance(value, int) and 0 <= value <= MAX_SEQUENCE_NUMBER else None


def _is_dimension(value: object) -> bool:
    return value is None or (isinstance(value, int) and 0 < value < 1_000_000)


def _is_text(text: str) -> bool:
    """Whether the stored bytes were UTF-8; others come in as lone surrogates (see `sqlite.opened`)."""
    return text.isascii() or not _NOT_UTF8.search(text)


def _shown(value: object) -> str:
    return printable(repr(value), 60)


def _some(ids: Set[Any]) -> str:
    first = ", ".join(_shown(id_) for id_ in sorted(ids, key=str)[:_IDS_SHOWN])
    return first + (", …" if len(ids) > _IDS_SHOWN else "")


def flushed(collection: Collection, segments: Mapping[str, Mapping[str, int]]) -> bool:
    """Whether the collection's vectors are (partly) in an index: its id map is there, or the database says so."""
    files = segments.get(collection.vector_segment or "", {})
    return collection.flushed_to is not None or "index_metadata.pickle" in files
