"""Documents and metadata of the rows against the queue that they were written from.

As long as the operation that stored an embedding is still in the queue (always, below `sync_threshold`), it says which
document and metadata the rows must hold. Measured on chromadb 0.4.24 to 1.5.9: an update or upsert merges its keys into
those of a known id, and a null removes a key.
"""

from __future__ import annotations

import json
import math
import sqlite3
from collections.abc import Iterable, Mapping, Sequence
from itertools import chain
from typing import Any, NoReturn

from shared.inspection.sqlite.database_file import explained
from shared.inspection.sqlite.schema import Schema
from shared.model.delta import DATABASE
from shared.model.verdict import Finding

# Documents may be long and are not compared here: the full-text table has them, too.
_VALUES = """
    SELECT m.id, m.key, CASE WHEN m.key = 'chroma:document' AND typeof(m.string_value) = 'text' THEN ''
        ELSE coalesce(m.string_value, m.int_value, m.float_value{boolean}) END
    FROM embedding_metadata AS m
"""
_MOST_PARAMETERS = 500
_MOST_ROWS = 10_000  # that are compared at once, some 10 MB
# Chroma passes over a row without one value of its column's type. One that belongs to no embedding is left behind by a
# deleted collection (lists in 1.5) and read by nobody. SQLite orders numbers before text before blobs, which tells
# types faster than typeof().
_UNREADABLE = """
    SELECT count(*), min(rowid) FROM {table} WHERE key >= x'' OR (
        ({text} >= x'' OR int_value >= '' OR int_value != CAST(int_value AS INTEGER) OR float_value >= '' {not_boolean})
        AND NOT ifnull({text} < x'', 0) AND NOT ifnull(int_value = CAST(int_value AS INTEGER) AND int_value < '', 0)
        AND NOT ifnull(float_value < '', 0) {no_boolean}
    )
"""
_NOT_BOOLEAN, _NO_BOOLEAN = "OR bool_value NOT IN (0, 1)", "AND NOT ifnull(bool_value IN (0, 1), 0)"
_DOCUMENT = "chroma:document"
_DIGITS = 1e-9  # Chroma 1.5 reads numbers of 16 digits one unit in the last place off


def parse(text: object) -> dict[str, Any]:
    """The metadata of a queued operation; empty when it has none.

    Raises:
        ValueError: It is not a JSON object, or not one that Chroma 1.5 can read (0.x could write NaN).
    """
    if text is None:
        return {}
    if not isinstance(text, str):
        raise ValueError(f"a {type(text).__name__} instead of JSON")
    try:
        text = text.strip(_WHITESPACE)
        metadata, end = _decode(text)
        if end != len(text):
            raise ValueError(f"something follows after {end} characters")
    except RecursionError as error:
        raise ValueError("nested too deeply") from error
    if not isinstance(metadata, dict):
        raise ValueError(f"a {type(metadata).__name__} instead of an object")
    return metadata


def parse_queued(text: object) -> dict[str, Any]:
    """The metadata of an operation that Chroma has to read; see `parse`.

    Raises:
        ValueError: Chroma 1.5 cannot read it, or dies of it: 0.x wrote null for the document of an embedding that has
            none among others that have (`rust/log/src/sqlite_log.rs`: "Document not found in metadata").
    """
    metadata = parse(text)
    if _DOCUMENT in metadata and not isinstance(metadata[_DOCUMENT], str):
        raise ValueError(f"its {_DOCUMENT} is no text, of which Chroma dies")
    return metadata


def inspect_values(connection: sqlite3.Connection, schema: Schema, *, of_embeddings: bool) -> list[Finding]:
    """Whether each metadata value has the type of its column.

    Args:
        connection: A database whose schema is sound.
        schema: That schema.
        of_embeddings: Whether to look at the embeddings' metadata too, and not only at the collections'. That of
            embeddings whose operations are in the queue is compared with these (see `ExpectedMetadata`).

    Raises:
        CouldNotCheck: The rows could not be read for a reason outside the bytes.
    """
    findings = []
    tables = [("collection_metadata", "str_value")]
    if of_embeddings:
        tables += [("embedding_metadata", "string_value"), ("embedding_metadata_array", "string_value")]
    for table, text in tables:
        if table in schema.tables:
            unreadable, first = 0, None
            has = schema.has(table, "bool_value")
            not_boolean, no_boolean = (_NOT_BOOLEAN, _NO_BOOLEAN) if has else ("", "")
            with explained(f"reading {table}") as unread:
                sql = _UNREADABLE.format(table=table, text=text, not_boolean=not_boolean, no_boolean=no_boolean)
                ((unreadable, first),) = connection.execute(sql)
            findings += unread
            if unreadable:
                detail = f"{unreadable} rows of {table}, the first {first}: no value of its column's type"
                findings.append(Finding("records.row_unreadable", DATABASE, detail))
    return findings


class ExpectedMetadata:
    """What the rows of one collection must hold, learnt from its queue operation by operation.

    Of a document it is only told that there is one: the full-text table has it, too, and there the row was compared.
    """

    def __init__(self) -> None:
        self._expected: dict[str, dict[str, Any]] = {}

    def store(self, id_: str, metadata: dict[str, Any]) -> None:
        """Takes in an operation that stores a new id, and keeps its metadata."""
        if None in metadata.values():
            metadata = {key: value for key, value in metadata.items() if value is not None}
        if _DOCUMENT in metadata:
            metadata[_DOCUMENT] = ""
        self._expected[id_] = metadata

    def merge(self, id_: str, metadata: dict[str, Any]) -> None:
        """Takes in an operation that changes a known id."""
        expected = self._expected.setdefault(id_, {})
        for key, value in metadata.items():
            if value is None:
                expected.pop(key, None)
            else:
                expected[key] = value if key != _DOCUMENT else ""

    def forget(self, id_: str) -> None:
        """Takes in that nothing is known of an id (any more)."""
        self._expected.pop(id_, None)

    def missing(
        self, connection: sqlite3.Connection, rows: Mapping[str, int], *, booleans: bool
    ) -> list[tuple[str, str]]:
        """Id and key of every value that its row lacks or has otherwise. An id without a row is not this one's to tell.

        Args:
            connection: The database.
            rows: Number of the row of each id.
            booleans: Whether truth values have a column of their own, which came with the second migration.
        """
        expected = {rows[id_]: id_ for id_, values in self._expected.items() if values and id_ in rows}
        ordered = sorted(expected)
        missing: list[tuple[str, str]] = []
        for start in range(0, len(ordered), _MOST_ROWS):
            part = ordered[start : start + _MOST_ROWS]
            wanted = {row: self._expected[expected[row]] for row in part}
            found: dict[int, set[str]] = {row: set() for row in part}
            for row, key, value in _values(connection, part, booleans=booleans):
                values = wanted.get(row)
                if values is not None and key in values and _same(values[key], value):
                    found[row].add(key)
            for row, values in wanted.items():
                if len(values) > len(found[row]):
                    keys = [key for key, value in values.items() if key not in found[row]]
                    missing += [(expected[row], key) for key in keys if not _same(values[key], None)]
        return missing


def _values(connection: sqlite3.Connection, rows: Sequence[int], *, booleans: bool) -> Iterable[tuple[Any, ...]]:
    """Row, key and value of the metadata of some rows, given in order, and perhaps of others."""
    sql = _VALUES.format(boolean=", m.bool_value" if booleans else "")
    ((total,),) = connection.execute("SELECT count(*) FROM embeddings")
    if 2 * len(rows) > total:  # one look through the table is faster than finding each of its rows
        return connection.execute(sql)
    if 2 * len(rows) > rows[-1] - rows[0]:
        return connection.execute(f"{sql} WHERE m.id BETWEEN ? AND ?", (rows[0], rows[-1]))
    starts = range(0, len(rows), _MOST_PARAMETERS)
    parts = (rows[start : start + _MOST_PARAMETERS] for start in starts)
    return chain.from_iterable(
        connection.execute(f"{sql} WHERE m.id IN ({', '.join('?' * len(part))})", part) for part in parts
    )


def _same(expected: Any, stored: object) -> bool:
    """Whether a row holds an expected value; numbers may differ in the last digits."""
    if expected == stored or isinstance(expected, list | dict):  # lists and sparse vectors are kept in other tables
        return True
    if not (isinstance(expected, int | float) and isinstance(stored, int | float)):
        return False
    try:
        return math.isclose(expected, stored, rel_tol=_DIGITS)
    except OverflowError:  # a whole number of hundreds of digits, which no column holds
        return False


def _refuse(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is not JSON")


_decode = json.JSONDecoder(parse_constant=_refuse).raw_decode
_WHITESPACE = " \t\n\r"
