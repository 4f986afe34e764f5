"""The queue of one collection, Chroma's write-ahead log, replayed on what its index and its rows hold."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from shared.inspection.chroma.metadata import ExpectedMetadata, parse_queued
from shared.inspection.chroma.sysdb import Collection
from shared.inspection.hnsw.vector_index import rows_not_finite
from shared.inspection.limits import NO_LIMITS, Limits, memory_of, memory_of_operation
from shared.inspection.values import is_text, shown, some
from shared.model.delta import DATABASE, printable
from shared.model.verdict import Finding

ENCODING = "FLOAT32"
"""The only encoding that any version writes; chromadb.types.ScalarEncoding also knows INT32."""
WIDTH = 4
"""Bytes of one number of a vector."""

ADD, UPDATE, UPSERT, DELETE = range(4)
"""The operations of a queue."""

_QUEUE = """
    SELECT seq_id, operation, id, vector, encoding, metadata, created_at FROM embeddings_queue
    WHERE substr(topic, -36) = ? AND seq_id > ? ORDER BY seq_id
"""
_EXTENT = "SELECT min(seq_id), max(seq_id), count(*) FROM embeddings_queue"
# As Chroma asks (chroma-core/chroma 1.5.9, rust/log/src/sqlite_log.rs): up to the last second of its nanoseconds, 2262.
_IS_TIME = "SELECT ifnull(CAST(strftime('%s', ?1) AS INTEGER) <= 9223372036, 0)"
_LONGEST_TIME, _MOST_TIMES = 40, 1000  # that are remembered
# So little that it stays in the processor's cache, and that malloc neither gives it back nor has it faulted in anew.
_BATCH_ROWS = 20
_BATCH_BYTES = 128 * 1024
_FORGOTTEN_BYTES = 100
_METADATA = 5  # its place in a row of the queue


class _Operation(NamedTuple):
    """One operation of the queue whose id and kind can be read; its metadata is None when that cannot."""

    seq_id: int
    kind: int
    id: str
    vector: object
    encoding: object
    metadata: dict[str, Any] | None


class Replay:
    """The operations of one collection, applied in order as Chroma does.

    Adding a known id and updating or deleting an unknown one do nothing.

    Args:
        collection: The collection.
        flushed_to: The last operation that is in its index.
        with_vector: Ids that have a vector in the index.
        rows: Ids that have a row in `embeddings`, with the number of that row.
        limits: What it may cost.
    """

    def __init__(
        self,
        collection: Collection,
        flushed_to: int,
        with_vector: set[str],
        rows: dict[str, int],
        limits: Limits = NO_LIMITS,
    ) -> None:
        self._collection = collection
        self._limits = limits
        self._flushed_to = flushed_to
        self._rows = rows
        self._problems = _VectorProblems(collection)
        self._expected = ExpectedMetadata()
        self._times = _Times()
        self.with_vector = with_vector
        self.with_row = set(rows)
        self._named: set[str] = set()
        self._has_all = False
        self.added = 0
        """How many ids the index is given anew; each takes one more label."""
        self.findings: list[Finding] = []

    def run(self, connection: sqlite3.Connection, *, booleans: bool) -> None:
        """Applies every operation that the index or the rows have not taken up yet.

        Args:
            connection: The database.
            booleans: Whether truth values have a column of their own.
        """
        first = min(self._flushed_to, self._collection.applied_to)
        ((lowest, highest, count),) = connection.execute(_EXTENT)
        self._has_all = first == 0 and lowest == 1 and highest == count
        self._apply_all(connection, first)
        self.findings += self._problems.findings()
        missing = self._expected.missing(connection, self._rows, booleans=booleans)
        if missing:
            id_, key = missing[0]
            detail = (
                f"{len(missing)} values of {len({id_ for id_, _ in missing})} embeddings of "
                f"{shown(self._collection.name)} are not as the queue has them, the first {shown(key)} of {shown(id_)} "
                f"in row {self._rows[id_]} of embeddings"
            )
            self.findings.append(Finding("records.metadata_missing", DATABASE, detail))

    def _apply_all(self, connection: sqlite3.Connection, first: int) -> None:
        for batch in self._batches(connection.execute(_QUEUE, (self._collection.id, first))):
            timed = self._times.readable(connection, [row[-1] for row in batch])
            if not (all(timed) and self._store_all(batch)):
                for row, is_timed in zip(batch, timed, strict=True):
                    self._apply(row, timed=is_timed)

    def _batches(self, operations: sqlite3.Cursor) -> Iterator[list[tuple[Any, ...]]]:
        """Operations a few at a time, so that what they take in memory is counted before more is read."""
        batch: list[tuple[Any, ...]] = []
        size = 0
        for row in operations:
            batch.append(row)
            read = sum(map(memory_of, row))
            size += read
            self._limits.keep(2 * read + memory_of_operation(row[_METADATA]))
            self._limits.drop(read)  # SQLite has a copy of the last row alone
            if len(batch) == _BATCH_ROWS or size >= _BATCH_BYTES:
                yield batch
                batch = []
                self._limits.drop(size)
                size = 0
        if batch:
            yield batch
            self._limits.drop(size)

    def contradictions(self) -> list[Finding]:
        """What breaks the master invariant."""
        findings = []
        name = shown(self._collection.name)
        if self._collection.dimension is None and self.with_vector:
            detail = f"{name} holds {len(self.with_vector)} vectors, but its dimension is not set"
            findings.append(Finding("records.dimension_missing", DATABASE, detail))
        lost = self.with_row - self.with_vector
        if lost:
            detail = f"{len(lost)} of {len(self.with_row)} embeddings of {name} have no vector: {some(lost)}"
            findings.append(Finding("records.vector_missing", DATABASE, detail))
        unknown = self.with_vector - self.with_row
        if self._has_all and (unstored := unknown - self._named):
            # 0.x may write its index ahead of the database, and be killed before that is committed.
            detail = f"{len(unstored)} vectors of {name} are of operations that were never committed: {some(unstored)}"
            findings.append(Finding("records.leftover", DATABASE, detail))
            unknown -= unstored
        if unknown:
            detail = f"{len(unknown)} vectors of {name} have no row in embeddings: {some(unknown)}"
            findings.append(Finding("records.id_missing", DATABASE, detail))
        return findings

    def _store_all(self, batch: Sequence[tuple[Any, ...]]) -> bool:
        """Applies operations that do nothing but store new ids, all at once: nearly all queues are of these.

        Returns:
            False when there is anything else among them; then nothing was done.
        """
        seq_ids, kinds, ids, vectors, encodings, texts, _ = zip(*batch, strict=True)
        if (
            {*map(type, seq_ids), *map(type, kinds)} != {int}
            or not self._flushed_to < seq_ids[0] <= seq_ids[-1] <= self._collection.applied_to
            or not {*kinds} <= {ADD, UPSERT}
            or {*map(type, ids)} != {str}
            or not is_text("".join(ids))
            or len({*ids}) != len(ids)
            or not self.with_vector.isdisjoint(ids)
            or {*encodings} != {ENCODING}
            or {*map(type, vectors)} != {bytes}
            or {*map(len, vectors)} != {WIDTH * (self._collection.dimension or -1)}
        ):
            return False
        try:
            metadatas = [parse_queued(text) for text in texts]
        except ValueError:
            return False
        self.with_vector.update(ids)
        self._named.update(ids)
        self.added += len(ids)
        self._limits.earn(len(ids))
        self._problems.add_all(ids, seq_ids, vectors)
        for id_, metadata in zip(ids, metadatas, strict=True):
            self._expected.store(id_, metadata)
        return True

    def _apply(self, row: Sequence[Any], *, timed: bool) -> None:
        operation = self._read(*row[:-1])
        if operation is None:
            return
        if not timed:
            self._unreadable(operation.seq_id, f"the time at which {shown(operation.id)} was queued is none")
            return
        self._expect(operation)
        self._named.add(operation.id)
        if operation.seq_id > self._flushed_to:
            self._apply_to_index(operation)
        if operation.seq_id > self._collection.applied_to:
            self._apply_to_rows(operation)

    def _read(
        self, seq_id: object, kind: Any, id_: object, vector: object, encoding: object, text: object
    ) -> _Operation | None:
        if not isinstance(seq_id, int):
            self._unreadable(seq_id, "its number is none")
            return None
        if not isinstance(id_, str) or not is_text(id_) or kind not in (ADD, UPDATE, UPSERT, DELETE):
            detail = (
                f"row {seq_id} of embeddings_queue: operation {shown(kind)} on {shown(id_)}, expected 0 to 3 (add, "
                f"update, upsert, delete) on a text"
            )
            self.findings.append(Finding("records.operation_unknown", DATABASE, detail))
            return None
        metadata = None
        try:
            metadata = parse_queued(text)
        except ValueError as error:
            self._unreadable(seq_id, f"the metadata of {shown(id_)} is not readable: {error}")
        return _Operation(seq_id, kind, id_, vector, encoding, metadata)

    def _unreadable(self, seq_id: object, problem: str) -> None:
        detail = printable(f"row {shown(seq_id)} of embeddings_queue: {problem}", 200)
        self.findings.append(Finding("records.row_unreadable", DATABASE, detail))

    def _expect(self, operation: _Operation) -> None:
        known = operation.id in self.with_vector
        late = operation.seq_id > self._collection.applied_to
        if operation.kind == DELETE or operation.metadata is None or late:
            self._expected.forget(operation.id)
        elif known and operation.kind != ADD:
            self._expected.merge(operation.id, operation.metadata)
        elif not known and operation.kind != UPDATE:
            self._expected.store(operation.id, operation.metadata)

    def _apply_to_index(self, operation: _Operation) -> None:
        if operation.kind == DELETE:
            self.with_vector.discard(operation.id)
            self._problems.forget(operation.id, operation.seq_id)
        elif self._problems.add(operation) and operation.kind != UPDATE:
            self.added += operation.id not in self.with_vector
            self.with_vector.add(operation.id)

    def _apply_to_rows(self, operation: _Operation) -> None:
        if operation.kind == DELETE:
            self.with_row.discard(operation.id)
        elif operation.kind != UPDATE:
            self.with_row.add(operation.id)


class _Times:
    """Tells which times of the queue Chroma can read: it passes over a row with any other.

    A batch of embeddings is queued in one moment, so one answer of SQLite's serves for many rows.
    """

    def __init__(self) -> None:
        self._known: set[object] = set()

    def readable(self, connection: sqlite3.Connection, times: Sequence[object]) -> list[bool]:
        """Whether each of these can be read."""
        if self._known.issuperset(times):
            return [True] * len(times)
        return [self._is_readable(connection, time) for time in times]

    def _is_readable(self, connection: sqlite3.Connection, time: object) -> bool:
        if time in self._known:
            return True
        if isinstance(time, str) and not is_text(time):
            return False
        if not connection.execute(_IS_TIME, (time,)).fetchone()[0]:
            return False
        if isinstance(time, str) and len(time) <= _LONGEST_TIME and len(self._known) < _MOST_TIMES:
            self._known.add(time)
        return True


class _VectorProblems:
    """Collects what is wrong with the vectors of the queue; their numbers are looked at many rows at a time.

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
        """Takes one vector in. Returns whether Chroma can decode it, to right numbers or wrong ones."""
        seq_id, id_, vector, encoding = operation.seq_id, operation.id, operation.vector, operation.encoding
        if vector is None and operation.kind == UPDATE:
            return False
        if not isinstance(vector, bytes):
            needed = WIDTH * self._dimension if self._dimension else "some"
            self._stopping.append(("records.vector_length", seq_id, f"no vector, expected {needed} bytes"))
            return False
        if encoding != ENCODING:
            detail = f"encoding {shown(encoding)}, expected {ENCODING}"
            self._stopping.append(("records.vector_encoding", seq_id, detail))
            return False
        if self._dimension is None:
            self._dimension = len(vector) // WIDTH
        if len(vector) == WIDTH * self._dimension:
            self._waiting.append((id_, seq_id, vector))
            self._bytes += len(vector)
            if self._bytes >= _BATCH_BYTES:
                self._look()
            return True
        needed = f"dimension {self._dimension} needs {WIDTH * self._dimension}"
        problem = ("records.vector_length", seq_id, f"{len(vector)} bytes, {needed}")
        if len(vector) % WIDTH:
            self._stopping.append(problem)
            return False
        self._look()
        self._wrong[id_] = problem
        return True

    def add_all(self, ids: tuple[str, ...], seq_ids: tuple[int, ...], vectors: tuple[bytes, ...]) -> None:
        """Takes in vectors that are known to have the right length and encoding."""
        if not self._waiting and not self._wrong and not self._not_finite(vectors).any():
            return
        self._waiting.extend(zip(ids, seq_ids, vectors, strict=True))
        self._bytes += sum(map(len, vectors))
        if self._bytes >= _BATCH_BYTES:
            self._look()

    def forget(self, id_: str, seq_id: int) -> None:
        """Takes note that an id was deleted, and with it what was wrong with its vector."""
        self._waiting.append((id_, seq_id, None))
        self._bytes += _FORGOTTEN_BYTES
        if self._bytes >= _BATCH_BYTES:
            self._look()

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
                f"{len(rows)} queued vectors of {shown(self._collection.name)}, "
                f"the first in row {rows[0][0]} of embeddings_queue: {rows[0][1]}",
            )
            for code, rows in by_code.items()
        ]

    def _not_finite(self, vectors: Sequence[bytes]) -> NDArray[np.bool_]:
        matrix = np.frombuffer(b"".join(vectors), dtype="<f4").reshape(len(vectors), self._dimension or 0)
        return rows_not_finite(matrix)

    def _look(self) -> None:
        vectors = [vector for _, _, vector in self._waiting if vector is not None]
        not_finite = self._not_finite(vectors)
        if not self._wrong and not not_finite.any():
            self._waiting.clear()
            self._bytes = 0
            return
        broken = iter(not_finite.tolist())
        for id_, seq_id, vector in self._waiting:
            if vector is not None and next(broken):
                self._wrong[id_] = ("records.vector_not_finite", seq_id, "NaN or infinity, expected finite numbers")
            else:
                self._wrong.pop(id_, None)
        self._waiting.clear()
        self._bytes = 0
