"""Chroma's own records of a delta: tenants, databases, collections with their settings, segments, sequence numbers.

What is wrong here makes Chroma refuse the whole delta or pass over a collection, however whole its vectors are.
"""

from __future__ import annotations

import re
import sqlite3
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from shared.inspection.chroma.index_settings import IndexSettings, SettingsRefused, index_settings
from shared.inspection.hnsw.id_map import MAX_SEQUENCE_NUMBER
from shared.inspection.sqlite.database_file import explained
from shared.inspection.sqlite.schema import Schema
from shared.inspection.values import is_text, shown, some
from shared.model.delta import DATABASE, printable
from shared.model.verdict import Finding

_SEGMENT_TYPES = {
    "VECTOR": {"urn:chroma:segment/vector/hnsw-local-persisted", "urn:chroma:segment/vector/hnsw-local-memory"},
    "METADATA": {"urn:chroma:segment/metadata/sqlite"},
}
_SEGMENT_TYPE = re.compile(r"urn:chroma:segment/[a-z]+/[a-z]+(?:-[a-z]+)*")
_UUID = re.compile(r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}", re.IGNORECASE)
_LONGEST_NAME = 512  # characters of a collection's name; Chroma takes no longer ones
_NUMBERS_SINCE = ("metadb", 5)
_DEFAULT_DATABASE = ("00000000-0000-0000-0000-000000000000", "default_database", "default_tenant")
_QUEUE_SETTINGS = """
    SELECT id, config_json_str, CASE WHEN json_valid(config_json_str) THEN
        json_type(config_json_str, '$.automatically_purge') IN ('true', 'false')
        AND ifnull(json_type(config_json_str, '$._type'), 'text') = 'text'
    END FROM embeddings_queue_config
"""
_PURGES = """
    SELECT CASE WHEN json_valid(config_json_str) THEN json_extract(config_json_str, '$.automatically_purge') ELSE 1 END
    FROM embeddings_queue_config
"""
# Segments without a collection. Deleting a database leaves them behind: 1.x without operations, 0.6.3 with operations
# and with rows whose `seq_id` is eight bytes. Rows of 1.x together with operations are left by nobody.
_OF_NO_COLLECTION = """
    SELECT s.collection, count(e.id), ifnull(max(typeof(e.seq_id) = 'integer'), 0)
        AND EXISTS (SELECT 1 FROM embeddings_queue AS q WHERE substr(q.topic, -36) = s.collection)
    FROM segments AS s LEFT JOIN embeddings AS e ON e.segment_id = s.id
    WHERE s.collection NOT IN (SELECT id FROM collections) GROUP BY s.collection
"""


@dataclass(frozen=True, slots=True)
class Collection:
    """One collection and its two segments.

    Args:
        id: Its UUID.
        name: Its name.
        dimension: Length of its vectors, None as long as it has none.
        settings: The settings of its index, None when Chroma refuses what is written down.
        vector_segment: Id of its vector segment, the name of the index's folder.
        metadata_segment: Id of its metadata segment.
        flushed_to: The last queue operation that its index holds.
        applied_to: The last queue operation that its rows hold.
        database: Name of the database that it is in, None when there is none.
        tenant: Tenant of that database.
    """

    id: str
    name: str
    dimension: int | None
    settings: IndexSettings | None
    vector_segment: str | None
    metadata_segment: str | None
    flushed_to: int | None
    applied_to: int
    database: str | None = None
    tenant: str | None = None

    @property
    def cosine(self) -> bool:
        """Whether its index is known to be one of cosine distances, which keeps vectors of length 1."""
        return self.settings is not None and self.settings.space == "cosine"

    @property
    def is_default(self) -> bool:
        """Whether it is in the database of the tenant that a client opens unless it is told otherwise."""
        return self.database is None or (self.database, self.tenant) == _DEFAULT_DATABASE[1:]


def read_collections(connection: sqlite3.Connection, schema: Schema) -> tuple[list[Collection], list[Finding]]:
    """The collections of a database whose schema is sound.

    Raises:
        CouldNotCheck: The rows could not be read for a reason outside the bytes.
    """
    collections: list[Collection] = []
    findings: list[Finding] = []
    with explained("reading the collections") as unread:
        findings += _inspect_queue_settings(connection, schema)
        databases = _databases(connection, findings) if schema.has("collections", "database_id") else None
        numbers = _sequence_numbers(connection, findings, blobs=not schema.reached(_NUMBERS_SINCE))
        segments = _segments(connection, findings)
        metadata_of = _segment_metadata(connection, schema)
        for id_, name, dimension, database, declared, configured in connection.execute(_collections_query(schema)):
            texts = is_text(name) and len(name) <= _LONGEST_NAME and is_text(id_) and _UUID.fullmatch(id_)
            if not texts or not _is_dimension(dimension):
                what = f"collection {shown(name)} has an id, a name or a dimension ({shown(dimension)}) that is none"
                findings.append(Finding("records.row_unreadable", DATABASE, what))
                continue
            if databases is not None and database not in databases:
                what = f"collection {shown(name)} belongs to {shown(database)}, which is no database of the delta"
                findings.append(Finding("records.database_missing", DATABASE, what))
            vector, metadata = segments.get((id_, "VECTOR")), segments.get((id_, "METADATA"))
            for scope, segment in (("vector", vector), ("metadata", metadata)):
                if segment is None:
                    detail = f"collection {shown(name)} has no {scope} segment"
                    findings.append(Finding("records.segment_missing", DATABASE, detail))
            taken = None
            try:
                # An index is not made before there is a vector, so the metadata of its segment is not looked at either.
                legacy = metadata_of.get(vector, {}) if dimension is not None else {}
                taken = index_settings(declared, configured, legacy)
            except SettingsRefused as error:
                detail = f"{error.place} of collections {shown(name)} is not what Chroma can parse: {error.reason}"
                findings.append(Finding("records.row_unreadable", DATABASE, printable(detail, 200)))
            place = (databases or {}).get(database, (None, None))
            applied_to, flushed_to = numbers.get(metadata, 0), numbers.get(vector)
            collections.append(
                Collection(id_, name, dimension, taken, vector, metadata, flushed_to, applied_to, *place)
            )
        lost = {owner for owner, _ in segments} - {collection.id for collection in collections}
        if lost and not findings:
            findings += _left_over(connection)
    return collections, unread + findings


def purges(connection: sqlite3.Connection, schema: Schema) -> bool:
    """Whether Chroma removes operations from the queue that all segments say they have taken up.

    Where nothing is written down, it does from the first operation on or never.

    Raises:
        sqlite3.Error: The tables cannot be read.
    """
    if schema.has("embeddings_queue_config", "config_json_str"):
        for (purge,) in connection.execute(_PURGES):
            return bool(purge)
    return connection.execute("SELECT 1 FROM embeddings_queue LIMIT 1").fetchone() is None


def flushed(collection: Collection, segments: Mapping[str, Mapping[str, int]]) -> bool:
    """Whether the collection's vectors are (partly) in an index: its id map is there, or the database says so."""
    files = segments.get(collection.vector_segment or "", {})
    return collection.flushed_to is not None or "index_metadata.pickle" in files


def _collections_query(schema: Schema) -> str:
    columns = [
        f"c.{column}" if schema.has("collections", column) else "NULL"
        for column in ("database_id", "schema_str", "config_json_str")
    ]
    return f"SELECT c.id, c.name, c.dimension, {', '.join(columns)} FROM collections AS c ORDER BY c.name"  # noqa: S608


def _left_over(connection: sqlite3.Connection) -> list[Finding]:
    """What segments without a collection tell: that a database was deleted, or that a collection was lost."""
    found = connection.execute(_OF_NO_COLLECTION).fetchall()
    findings = []
    for code, groups in (
        ("records.collection_missing", [row for row in found if row[2]]),
        ("records.leftover", [row for row in found if not row[2]]),
    ):
        if groups:
            ids, rows = some({owner for owner, _, _ in groups}), sum(count for _, count, _ in groups)
            detail = (
                f"{len(groups)} collections have segments but no row in collections: {ids}; {rows} rows of embeddings "
                f"belong to none"
            )
            findings.append(Finding(code, DATABASE, detail))
    return findings


def _inspect_queue_settings(connection: sqlite3.Connection, schema: Schema) -> list[Finding]:
    """Whether the settings of the queue are JSON, which Chroma parses before it counts."""
    findings = []
    if schema.has("embeddings_queue_config", "config_json_str"):
        for owner, text, fit in connection.execute(_QUEUE_SETTINGS):
            if not (fit and is_text(text)):
                column = f"config_json_str of embeddings_queue_config {shown(owner)}"
                detail = f"{column} is not what Chroma can parse: {shown(text)}"
                findings.append(Finding("records.row_unreadable", DATABASE, detail))
    return findings


def _databases(connection: sqlite3.Connection, findings: list[Finding]) -> dict[object, tuple[str, str]]:
    """Name and tenant of each database by its id; a collection must be in one of them to be found."""
    tenants = {tenant for (tenant,) in connection.execute("SELECT id FROM tenants")}
    rows = connection.execute("SELECT id, name, tenant_id FROM databases").fetchall()
    for row in rows:
        id_, name, tenant = row
        default = id_ == _DEFAULT_DATABASE[0]
        if tenant not in tenants or not is_text(name) or (default and row != _DEFAULT_DATABASE):
            detail = f"database {shown(id_)} is named {shown(name)}, of tenant {shown(tenant)}"
            if default:
                detail += f"; Chroma opens {_DEFAULT_DATABASE[1]} of {_DEFAULT_DATABASE[2]}"
            findings.append(Finding("records.database_missing", DATABASE, detail))
    return {id_: (name, tenant) for id_, name, tenant in rows}


def _sequence_numbers(connection: sqlite3.Connection, findings: list[Finding], *, blobs: bool) -> dict[object, int]:
    """The last operation that each segment has taken up.

    Args:
        connection: The database.
        findings: Takes in what is wrong.
        blobs: Whether numbers may be eight bytes. Chroma 1.x turns them into integers when it opens a delta, once; an
            older version that writes one after that makes the delta unreadable.
    """
    numbers: dict[object, int] = {}
    for segment, value in connection.execute("SELECT segment_id, seq_id FROM max_seq_id"):
        number = _sequence_number(value) if blobs or not isinstance(value, bytes) else None
        if number is not None:
            numbers[segment] = number
        elif value is not None:
            detail = f"max_seq_id of segment {shown(segment)} is {shown(value)}, which is no sequence number"
            findings.append(Finding("records.row_unreadable", DATABASE, detail))
    return numbers


def _segments(connection: sqlite3.Connection, findings: list[Finding]) -> dict[tuple[object, object], str]:
    """Id of each segment, by the id of its collection and its scope."""
    segments: dict[tuple[object, object], str] = {}
    for segment, kind, scope, owner in connection.execute("SELECT id, type, scope, collection FROM segments"):
        if not is_text(segment) or not _UUID.fullmatch(segment):
            detail = f"a segment of collection {shown(owner)} has the id {shown(segment)}, which is no UUID"
            findings.append(Finding("records.row_unreadable", DATABASE, detail))
            continue
        if kind not in _SEGMENT_TYPES.get(scope, ()):
            detail = f"segment {segment} has the type {shown(kind)} in the scope {shown(scope)}"
            known = scope in _SEGMENT_TYPES and is_text(kind) and _SEGMENT_TYPE.fullmatch(kind)
            code = "sqlite.schema_newer" if known else "records.row_unreadable"
            findings.append(Finding(code, DATABASE, detail))
        segments[owner, scope] = segment
    return segments


def _segment_metadata(connection: sqlite3.Connection, schema: Schema) -> dict[object, dict[str, Any]]:
    """The metadata of each segment: 0.x keeps the settings of an index there."""
    if "segment_metadata" not in schema.tables:
        return {}
    boolean = "bool_value" if schema.has("segment_metadata", "bool_value") else "NULL"
    metadata: dict[object, dict[str, Any]] = {}
    sql = f"SELECT segment_id, key, str_value, int_value, float_value, {boolean} FROM segment_metadata"  # noqa: S608
    for segment, key, text, whole, real, truth in connection.execute(sql):
        values = [value for value in (text, whole, real, None if truth is None else bool(truth)) if value is not None]
        if values and isinstance(key, str):
            metadata.setdefault(segment, {})[key] = values[0]
    return metadata


def _sequence_number(value: object) -> int | None:
    """The number in `max_seq_id.seq_id`: an integer in 1.x, eight big-endian bytes in 0.x; None when it is neither."""
    if isinstance(value, bytes) and len(value) == 8:
        value = int.from_bytes(value, "big")
    return value if isinstance(value, int) and 0 <= value <= MAX_SEQUENCE_NUMBER else None


def _is_dimension(value: object) -> bool:
    return value is None or (isinstance(value, int) and 0 < value < 1_000_000)
