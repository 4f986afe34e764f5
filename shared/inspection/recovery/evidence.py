"""What a damaged delta still proves, collection by collection. Nothing is guessed: what is not proven is lost.

The database is either believed or not, for SQLite keeps no checksum that would tell its whole pages from its damaged
ones: where a page, or a stored value, contradicts the rest, nothing in it proves anything. Whole rows or tables that
are missing from a sound file say nothing against the others. An index is a source of its own (see `index_evidence`).

A collection is proven whole in one of two ways. *By its rows*: each id has its row, and its vector in a proven index or
in the queue, which has every operation since the flush, and the last on each id is the one that its row names. *By its
queue*: the queue has every operation since the first, so that rows and index do not matter.
"""

from __future__ import annotations

import math
import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from shared.inspection.chroma import sysdb
from shared.inspection.chroma.contents import (
    OpenDelta,
    RecordReader,
    Records,
    StoredCollection,
    Unreadable,
    reading,
)
from shared.inspection.chroma.metadata import inspect_values
from shared.inspection.chroma.placement import DELETE, UPDATE, UPSERT, Placement, place
from shared.inspection.chroma.queue import Replay
from shared.inspection.chroma.sysdb import Collection
from shared.inspection.recovery.index_evidence import IndexEvidence, NotProven, prove_index
from shared.inspection.sqlite.database_file import inspect_fulltext, inspect_integrity, opened
from shared.inspection.sqlite.schema import Schema, inspect_schema, read_schema
from shared.inspection.values import shown, some
from shared.model.delta import DATABASE
from shared.model.errors import DeltaguardError
from shared.model.verdict import Finding, Status, status_of

_SQL_SECONDS = 3600.0
_DIGITS = 1e-15
_DEFAULT = "00000000-0000-0000-0000-000000000000"
# Tables that can be done without, and what stands in for them: their rows are the same in every delta, or in the queue.
_STAND_INS = {
    "tenants": ("id", "SELECT 'default_tenant'"),
    "databases": ("id, name, tenant_id", f"SELECT '{_DEFAULT}', 'default_database', 'default_tenant'"),
    "segments": ("id, type, scope, collection", ""),
    "embeddings": ("id, segment_id, embedding_id, seq_id, created_at", ""),
    "embedding_metadata": ("id, key, string_value, int_value, float_value, bool_value", ""),
    "embedding_metadata_array": ("id, key, string_value, int_value, float_value, bool_value", ""),
    "segment_metadata": ("", ""),
    "embeddings_queue_config": ("", ""),
    "migrations": ("", ""),
}
_OF_ROWS = ("embeddings", "embedding_metadata", "embedding_metadata_array")
_LISTS_SINCE = ("metadb", 6)
_DOCUMENTS_DIFFER = """
    SELECT count(*) FROM embedding_metadata AS m JOIN embedding_fulltext_search_content AS f ON f.id = m.id
    WHERE m.key = 'chroma:document' AND f.c0 IS NOT NULL AND f.c0 != m.string_value
"""
_OPERATIONS = """
    SELECT seq_id, operation, id FROM embeddings_queue
    WHERE substr(topic, -36) = ? AND seq_id > ? AND seq_id <= ? ORDER BY seq_id
"""
_SEQ = "CASE typeof(seq_id) WHEN 'blob' THEN NULL ELSE seq_id END"


class NothingProven(DeltaguardError):
    """The database does not prove anything, so nothing can be salvaged; the message says why."""


@dataclass(frozen=True, slots=True)
class Evidence:
    """What is proven of one collection.

    Args:
        stored: The collection, with the count of what is proven.
        placement: Where the proven embeddings are.
        rows_from: `rows` or `queue`: where documents and metadata are taken from.
        lost: Ids that are known, but not what belongs to them.
        why: Why something is lost; empty when nothing is.
        remarks: What had to be worked out anew.
        reader: Reads the proven embeddings.
    """

    stored: StoredCollection
    placement: Placement
    rows_from: str
    lost: tuple[str, ...]
    why: str
    remarks: tuple[str, ...]
    reader: RecordReader

    def records(self, most: int = 1000) -> Iterator[Records]:
        """The proven embeddings; those of the queue as they were put in.

        Raises:
            Unreadable, CouldNotCheck: They cannot be read.
        """
        for start in range(0, len(self.placement.ids), most):
            with reading(f"the embeddings of {shown(self.stored.name)}"):
                records = self.reader.read(start, min(start + most, len(self.placement.ids)))
            yield records


@contextmanager
def gathered(folder: Path, damaged: frozenset[str]) -> Iterator[list[Evidence]]:
    """The evidence of a delta, whose files may be read as long as the block lasts.

    Args:
        folder: The delta, which nobody else can change.
        damaged: Names of files that a manifest says are not what they were.

    Raises:
        NothingProven: The database proves nothing.
        CouldNotCheck: It could not be read for a reason outside the bytes.
    """
    if DATABASE in damaged:
        raise NothingProven(f"{DATABASE} is not the file that the manifest lists")
    with opened(folder / DATABASE, _SQL_SECONDS, lenient=False) as connection:
        try:
            with reading("the database"):
                schema, missing = _sound_schema(connection)
                collections = _collections(connection, schema)
                delta = OpenDelta(folder, connection, schema, collections)
                stored = delta.collections
                evidence = [
                    _Assessment(connection, schema, missing, folder, damaged, collection, described).evidence()
                    for collection, described in zip(collections, stored, strict=True)
                ]
        except Unreadable as error:
            raise NothingProven(str(error)) from error
        yield evidence


def _sound_schema(connection: sqlite3.Connection) -> tuple[Schema, list[str]]:
    """The schema of a sound database, and tables of rows that it lacks. For some missing tables others stand in."""
    schema, findings = read_schema(connection)
    _refuse(findings)
    _refuse(inspect_integrity(connection))
    findings = inspect_schema(connection, schema) if "migrations" in schema.tables else []
    _refuse([finding for finding in findings if finding.code != "sqlite.table_missing"])
    # Early versions have no table of lists; without the record of migrations nobody knows which version it was.
    early = "migrations" in schema.tables and not schema.reached(_LISTS_SINCE)
    expected = _OF_ROWS[:-1] if early else _OF_ROWS
    missing = [table for table in expected if table not in schema.tables]
    for table, (columns, rows) in _STAND_INS.items():
        if table not in schema.tables and columns:
            connection.execute(f"CREATE TEMP TABLE {table} ({columns})")
            if rows:
                connection.execute(f"INSERT INTO temp.{table} {rows}")
            schema.tables[table] = set(columns.split(", "))
    for table in ("collections", "collection_metadata", "max_seq_id", "embeddings_queue"):
        if table not in schema.tables:
            raise NothingProven(f"table {table} is missing, and nothing else holds what it held")
    if "segment_metadata" not in schema.tables:
        ((legacy,),) = connection.execute(
            "SELECT count(*) FROM collection_metadata WHERE key >= 'hnsw:' AND key < 'hnsw;'"
        )
        if legacy:
            raise NothingProven("segment_metadata is missing, which says by which distance an index of 0.x measures")
    if schema.tables.keys() >= {"embedding_fulltext_search_content"} and schema.fulltext:
        ((differing,),) = connection.execute(_DOCUMENTS_DIFFER)
        found = inspect_fulltext(connection, migrated=schema.fulltext_migrated) if differing else []
        if any(finding.code != "sqlite.fulltext_outdated" for finding in found):  # an upgrade puts them elsewhere
            raise NothingProven(f"{differing} documents differ between the rows and the full-text table")
    return schema, missing


def _collections(connection: sqlite3.Connection, schema: Schema) -> list[Collection]:
    collections, findings = sysdb.read_collections(connection, schema)
    _refuse([finding for finding in findings if finding.code != "records.segment_missing"])
    _refuse(inspect_values(connection, schema, of_embeddings=True))
    elsewhere = sum(not collection.is_default for collection in collections)
    if elsewhere:
        raise NothingProven(f"{elsewhere} collections are in another database than default_database")
    return collections


def _refuse(findings: Sequence[Finding]) -> None:
    """Raises when there is a proof of damage among findings about the database."""
    for finding in findings:
        if status_of([finding]) is not Status.HEALTHY:
            raise NothingProven(f"{finding.code}: {finding.detail}")


class _Assessment:
    """One collection while its evidence is gathered."""

    def __init__(
        self,
        connection: sqlite3.Connection,
        schema: Schema,
        missing: list[str],
        folder: Path,
        damaged: frozenset[str],
        collection: Collection,
        stored: StoredCollection,
    ) -> None:
        self._connection = connection
        self._missing = missing
        self._schema = schema
        self._folder = folder
        self._damaged = damaged
        self._stored = stored
        self._collection = self._with_dimension(collection)
        rows = connection.execute(
            f"SELECT embedding_id, id, {_SEQ}, seq_id FROM embeddings WHERE segment_id = ? ORDER BY id",  # noqa: S608
            (collection.metadata_segment,),
        ).fetchall()
        self._rows = {id_: row for id_, row, _, _ in rows}
        self._touched = {id_: seq if seq is not None else _from_bytes(raw) for id_, _, seq, raw in rows}

    def evidence(self) -> Evidence:
        """By its rows if they prove the collection whole, else by its queue, else what is proven of it."""
        if self._missing:
            index, why = None, f"{', '.join(self._missing)} is missing"
        else:
            index, problem = self._index()
            why = problem or self._contradiction(index)
        if not why:
            return self._by_rows(index, None, "")
        if not self._queue_lacks():
            return self._by_queue()
        return self._by_rows(index, self._touched, why)

    def _with_dimension(self, collection: Collection) -> Collection:
        """The collection with a dimension, if it is not set and all its queued vectors have the same length."""
        if collection.dimension is not None:
            return collection
        sql = "SELECT DISTINCT length(vector) FROM embeddings_queue WHERE substr(topic, -36) = ? AND vector IS NOT NULL"
        lengths = self._connection.execute(sql, (collection.id,)).fetchall()
        if len(lengths) != 1 or lengths[0][0] % 4:
            return collection
        dimension = lengths[0][0] // 4
        self._stored = replace(self._stored, dimension=dimension)
        return replace(collection, dimension=dimension)

    def _index(self) -> tuple[IndexEvidence | None, str]:
        """What the index proves; and why nothing, if it holds vectors and does not prove them."""
        collection = self._collection
        segment = collection.vector_segment
        if segment is None:
            return None, "it has no vector segment"
        files = {segment: {path.name: 0 for path in (self._folder / segment).glob("*")}}
        if not sysdb.flushed(collection, files):
            return None, ""
        damaged = {name.rpartition("/")[2] for name in self._damaged if name.startswith(f"{segment}/")}
        links = self._stored.hnsw.get("max_neighbors")
        try:
            evidence = prove_index(
                self._connection,
                collection,
                self._rows,
                self._folder / segment,
                damaged,
                links if isinstance(links, int) else None,
                alone=len([*self._folder.glob("*/data_level0.bin")]) == 1,
            )
        except NotProven as error:
            return None, f"its index: {error}"
        return evidence, ""

    def _contradiction(self, index: IndexEvidence | None) -> str:
        """Why the rows do not prove the collection whole; empty when they do."""
        collection = self._collection
        flushed_to = index.flushed_to if index else 0
        replay = Replay(collection, flushed_to, set(index.labels) if index else set(), self._rows)
        replay.run(self._connection, booleans=self._schema.has("embedding_metadata", "bool_value"))
        _refuse([finding for finding in replay.findings if finding.code != "records.metadata_missing"])
        for finding in (*replay.findings, *replay.contradictions()):
            if status_of([finding]) is not Status.HEALTHY:
                return finding.detail
        if self._gap(flushed_to):
            return "the queue lacks operations since the flush"
        last = self._last_operations(set(index.labels) if index else set(), flushed_to)
        for id_, seq_id in self._touched.items():
            if (last.get(id_, seq_id) != seq_id) or (seq_id > flushed_to and id_ not in last):
                return f"the row of {shown(id_)} names operation {seq_id}, which is not the last of the queue on it"
        return ""

    def _gap(self, flushed_to: int) -> bool:
        applied_to = self._collection.applied_to
        if applied_to < flushed_to:
            return True
        sql = "SELECT count(*) FROM embeddings_queue WHERE seq_id > ? AND seq_id <= ?"
        ((there,),) = self._connection.execute(sql, (flushed_to, applied_to))
        return bool(there != applied_to - flushed_to)

    def _last_operations(self, known: set[str], flushed_to: int) -> dict[str, int]:
        """The last operation since the flush on each id, which does something: adding a known id does not."""
        last: dict[str, int] = {}
        range_ = (self._collection.id, flushed_to, self._collection.applied_to)
        for seq_id, kind, id_ in self._connection.execute(_OPERATIONS, range_):
            if kind == DELETE:
                known.discard(id_)
                last.pop(id_, None)
            elif kind == UPSERT or (id_ in known) == (kind == UPDATE):
                known.add(id_)
                last[id_] = seq_id
        return last

    def _queue_lacks(self) -> str:
        """Why the queue does not prove the collection; empty when it has every operation since the first."""
        sql = "SELECT coalesce(min(seq_id), 0), coalesce(max(seq_id), 0), count(*) FROM embeddings_queue"
        ((first, last, count),) = self._connection.execute(sql)
        ((applied,),) = self._connection.execute("SELECT max(seq_id) FROM max_seq_id WHERE typeof(seq_id) = 'integer'")
        ((blob,),) = self._connection.execute("SELECT max(seq_id) FROM max_seq_id WHERE typeof(seq_id) = 'blob'")
        applied = max(applied or 0, _from_bytes(blob) if blob else 0)
        if not count or first != 1 or last != count or applied > last:  # 1.x applies what waits when it reads
            return f"the queue holds {count} operations, from {first} to {last}, of {applied}"
        return ""

    def _by_queue(self) -> Evidence:
        """The collection by its queue alone; what rows there are may not contradict it."""
        collection = replace(self._collection, metadata_segment=None, applied_to=0, flushed_to=None)
        replay = Replay(collection, 0, set(), {})
        replay.run(self._connection, booleans=False)
        _refuse(replay.findings)
        placement = place(self._connection, collection, {}, 0)
        if placement.without_vector():
            raise NothingProven("an operation of the queue has lost its vector")
        evidence = self._made(placement, collection, None, "queue", (), "", ("rows and metadata taken from the queue",))
        # A row that is missing and an id of the queue that is another look the same, so either proves nothing.
        differing = self._rows.keys() ^ set(placement.ids) if self._rows else set()
        if differing:
            detail = f"rows and queue of {shown(collection.name)} differ in {len(differing)} ids: {some(differing)}"
            raise NothingProven(detail)
        self._compare_rows(evidence)
        return evidence

    def _compare_rows(self, evidence: Evidence) -> None:
        """Raises when a value of a row is another than the queue says. Missing ones are no contradiction."""
        ids = [id_ for id_ in evidence.placement.ids if id_ in self._rows]
        rows = np.array([self._rows[id_] for id_ in ids], np.int64)
        none = np.zeros(len(ids), np.int64)
        reader = RecordReader(
            self._connection, self._schema, self._collection, Placement(ids, rows, none, none - 1, {}), None,
            as_given=True,
        )  # fmt: skip
        stored: dict[str, dict[str, object]] = {}
        for start in range(0, len(ids), 1000):
            stored.update(zip(ids[start : start + 1000], reader.metadatas(start, start + 1000), strict=True))
        for start in range(0, len(evidence.placement.ids), 1000):
            end = min(start + 1000, len(evidence.placement.ids))
            for id_, queued in zip(
                evidence.placement.ids[start:end], evidence.reader.metadatas(start, end), strict=True
            ):
                if any(not _same(queued.get(key), value) for key, value in stored.get(id_, {}).items()):
                    raise NothingProven(f"the row of {shown(id_)} holds other metadata than the queue says")

    def _by_rows(self, index: IndexEvidence | None, touched: dict[str, int] | None, why: str) -> Evidence:
        """The collection by its rows: whole, or what `touched` (the last operation of each row) proves of it."""
        collection = self._collection
        labels, flushed_to = (index.labels, index.flushed_to) if index else ({}, 0)
        placement = place(self._connection, collection, labels, flushed_to)
        lost: tuple[str, ...] = ()
        if touched is not None:
            last = np.array([touched.get(id_, -1) for id_ in placement.ids], np.int64)
            proven = (placement.queued == last) | ((placement.labels >= 0) & (last <= flushed_to))
            proven &= np.array([id_ not in placement.late for id_ in placement.ids], bool)
            proven &= collection.dimension is not None and not self._missing
            known = {*placement.ids, *labels}
            kept = np.flatnonzero(proven)
            placement = Placement(
                [placement.ids[at] for at in kept],
                placement.rows[kept],
                placement.queued[kept],
                placement.labels[kept],
                {},
            )
            lost = tuple(sorted(known - set(placement.ids)))
        remarks = index.remarks if index else ()
        return self._made(placement, collection, index, "rows", lost, why, remarks)

    def _made(
        self,
        placement: Placement,
        collection: Collection,
        index: IndexEvidence | None,
        rows_from: str,
        lost: tuple[str, ...],
        why: str,
        remarks: tuple[str, ...],
    ) -> Evidence:
        vectors = index.vectors if index else None
        reader = RecordReader(self._connection, self._schema, collection, placement, vectors, as_given=True)
        stored = replace(self._stored, count=len(placement.ids))
        return Evidence(stored, placement, rows_from, lost, why, remarks, reader)


def _same(queued: object, stored: object) -> bool:
    """Whether a value of the queue is that of a row; chromadb 0.x and 1.x read the last digit differently."""
    if isinstance(queued, float) and isinstance(stored, float):
        return math.isclose(queued, stored, rel_tol=_DIGITS)
    return type(queued) is type(stored) and queued == stored


def _from_bytes(value: object) -> int:
    """A sequence number as chromadb 0.x stores it."""
    return int.from_bytes(value, "big") if isinstance(value, bytes) else 0
