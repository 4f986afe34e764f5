"""Chroma's own records of a delta: tenants, databases, collections with their settings, segments, sequence numbers.

What is wrong here makes Chroma refuse the whole delta or pass over a collection, however whole its vectors are.
"""

from __future__ import annotations

import re
import sqlite3
from collections.abc import Mapping
from dataclasses import dataclass

from shared.delta import DATABASE
from shared.inspection.idmap import MAX_SEQUENCE_NUMBER
from shared.inspection.schema import Schema
from shared.inspection.sqlite import explained
from shared.inspection.values import is_text, shown, some
from shared.verdict import Finding

_SEGMENT_TYPES = {
    "VECTOR": {"urn:chroma:segment/vector/hnsw-local-persisted", "urn:chroma:segment/vector/hnsw-local-memory"},
    "METADATA": {"urn:chroma:segment/metadata/sqlite"},
}
_SEGMENT_TYPE = re.compile(r"urn:chroma:segment/[a-z]+/[a-z]+(?:-[a-z]+)*")
_UUID = re.compile(r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}", re.IGNORECASE)
_LONGEST_NAME = 512  # characters of a collection's name; Chroma takes no longer ones
_DEFAULT_DATABASE = ("00000000-0000-0000-0000-000000000000", "default_database", "default_tenant")
# Table, what tells its rows apart, a column of JSON, and what Chroma needs of it.
_SETTINGS = (
    ("collections", "name", "config_json_str", "json_type({0}) = 'object'"),
    ("collections", "name", "schema_str", "json_type({0}) = 'object'"),
    (
        "embeddings_queue_config",
        "id",
        "config_json_str",
        """json_type({0}, '$.automatically_purge') IN ('true', 'false')
        AND ifnull(json_type({0}, '$._type'), 'text') = 'text'""",
    ),
)
# Where the distance of an index is written, the places that later versions of Chroma go by first.
_SPACES = (
    ("schema_str", '$.keys."#embedding".float_list.vector_index.config.space'),
    ("schema_str", "$.defaults.float_list.vector_index.config.space"),
    ("config_json_str", "$.vector_index.hnsw.space"),
)
_ROWS_OF_NO_COLLECTION = """
    SELECT count(*) FROM embeddings
    WHERE segment_id NOT IN (SELECT s.id FROM segments AS s JOIN collections AS c ON c.id = s.collection)
"""
_SPACE_OF_METADATA = "(SELECT str_value FROM collection_metadata WHERE collection_id = c.id AND key = 'hnsw:space')"


@dataclass(frozen=True, slots=True)
class Collection:
    """One collection and its two segments.

    Args:
        id: Its UUID.
        name: Its name.
        dimension: Length of its vectors, None as long as it has none.
        cosine: Whether its index is known to be one of cosine distances, which keeps vectors of length 1.
        vector_segment: Id of its vector segment, the name of the index's folder.
        metadata_segment: Id of its metadata segment.
        flushed_to: The last queue operation that its index holds.
        applied_to: The last queue operation that its rows hold.
    """

    id: str
    name: str
    dimension: int | None
    cosine: bool
    vector_segment: str | None
    metadata_segment: str | None
    flushed_to: int | None
    applied_to: int


def read_collections(connection: sqlite3.Connection, schema: Schema) -> tuple[list[Collection], list[Finding]]:
    """The collections of a database whose schema is sound.

    Raises:
        CouldNotCheck: The rows could not be read for a reason outside the bytes.
    """
    collections: list[Collection] = []
    findings: list[Finding] = []
    with explained("reading the collections") as unread:
        findings += _inspect_settings(connection, schema)
        databases = _databases(connection, findings) if schema.has("collections", "database_id") else None
        numbers = _sequence_numbers(connection, findings)
        segments = _segments(connection, findings)
        for id_, name, dimension, database, space in connection.execute(_collections_query(schema)):
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
            applied_to = numbers.get(metadata, 0)
            cosine = space == "cosine"
            flushed_to = numbers.get(vector)
            collections.append(Collection(id_, name, dimension, cosine, vector, metadata, flushed_to, applied_to))
        lost = {owner for owner, _ in segments} - {collection.id for collection in collections}
        if lost and not findings:
            ((rows,),) = connection.execute(_ROWS_OF_NO_COLLECTION)
            detail = (
                f"{len(lost)} collections have segments but no row in collections: {some(lost)}; {rows} rows of "
                f"embeddings belong to none"
            )
            findings.append(Finding("records.collection_missing", DATABASE, detail))
    return collections, unread + findings


def flushed(collection: Collection, segments: Mapping[str, Mapping[str, int]]) -> bool:
    """Whether the collection's vectors are (partly) in an index: its id map is there, or the database says so."""
    files = segments.get(collection.vector_segment or "", {})
    return collection.flushed_to is not None or "index_metadata.pickle" in files


def _collections_query(schema: Schema) -> str:
    database = "c.database_id" if schema.has("collections", "database_id") else "NULL"
    spaces = [
        f"CASE WHEN json_valid(c.{column}) THEN json_extract(c.{column}, '{path}') END"
        for column, path in _SPACES
        if schema.has("collections", column)
    ]
    space = f"coalesce({', '.join([*spaces, _SPACE_OF_METADATA, 'NULL'])})"
    return f"SELECT c.id, c.name, c.dimension, {database}, {space} FROM collections AS c ORDER BY c.name"  # noqa: S608


def _inspect_settings(connection: sqlite3.Connection, schema: Schema) -> list[Finding]:
    """Whether the settings are JSON, which Chroma parses before it lists a collection. A collection may have none."""
    findings = []
    for table, name, column, fits in _SETTINGS:
        if schema.has(table, column):
            sql = f"SELECT {name}, {column}, CASE WHEN json_valid({column}) THEN {fits} END FROM {table}"  # noqa: S608
            for owner, text, fit in connection.execute(sql.format(column)):
                if not (fit and is_text(text)) and not (text is None and table == "collections"):
                    detail = f"{column} of {table} {shown(owner)} is not what Chroma can parse: {shown(text)}"
                    findings.append(Finding("records.row_unreadable", DATABASE, detail))
    return findings


def _databases(connection: sqlite3.Connection, findings: list[Finding]) -> set[object]:
    """Ids of the databases that a tenant has, which a collection must be in to be found."""
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
    return {id_ for id_, _, _ in rows}


def _sequence_numbers(connection: sqlite3.Connection, findings: list[Finding]) -> dict[object, int]:
    """The last operation that each segment has taken up."""
    numbers: dict[object, int] = {}
    for segment, value in connection.execute("SELECT segment_id, seq_id FROM max_seq_id"):
        number = _sequence_number(value)
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


def _sequence_number(value: object) -> int | None:
    """The number in `max_seq_id.seq_id`: an integer in 1.x, eight big-endian bytes in 0.x; None when it is neither."""
    if isinstance(value, bytes) and len(value) == 8:
        value = int.from_bytes(value, "big")
    return value if isinstance(value, int) and 0 <= value <= MAX_SEQUENCE_NUMBER else None


def _is_dimension(value: object) -> bool:
    return value is None or (isinstance(value, int) and 0 < value < 1_000_000)
