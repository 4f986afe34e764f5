"""Documents and metadata of the rows against the queue that they were written from.

As long as the operation that stored an embedding is still in the queue (always, below `sync_threshold`), it says which
document and metadata the rows must hold. Measured on chromadb 0.4.24 to 1.5.9: an update or upsert merges its keys into
those of a known id, and a null removes a key.
"""

from __future__ import annotations

import json
import math
import sqlite3
from typing import Any, NoReturn

_ROWS = """
    SELECT e.embedding_id, m.key, coalesce(m.string_value, m.int_value, m.float_value, m.bool_value)
    FROM embeddings AS e JOIN embedding_metadata AS m ON m.id = e.id
    WHERE e.segment_id = ? AND e.embedding_id IN (SELECT id FROM embeddings_queue WHERE substr(topic, -36) = ?)
"""
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
        metadata = _decode(text)
    except RecursionError as error:
        raise ValueError("nested too deeply") from error
    if not isinstance(metadata, dict):
        raise ValueError(f"a {type(metadata).__name__} instead of an object")
    return metadata


class ExpectedMetadata:
    """What the rows of one collection must hold, learnt from its queue operation by operation."""

    def __init__(self) -> None:
        self._expected: dict[str, dict[str, Any]] = {}

    def store(self, id_: str, metadata: dict[str, Any]) -> None:
        """Takes in an operation that stores a new id."""
        self._expected[id_] = {key: value for key, value in metadata.items() if value is not None}

    def merge(self, id_: str, metadata: dict[str, Any]) -> None:
        """Takes in an operation that changes a known id."""
        expected = self._expected.setdefault(id_, {})
        for key, value in metadata.items():
            if value is None:
                expected.pop(key, None)
            else:
                expected[key] = value

    def forget(self, id_: str) -> None:
        """Takes in that nothing is known of an id (any more)."""
        self._expected.pop(id_, None)

    def missing(self, connection: sqlite3.Connection, segment: str, collection: str) -> list[tuple[str, str]]:
        """Id and key of every value that its row lacks or has otherwise.

        Args:
            connection: The database.
            segment: Id of the metadata segment.
            collection: Id of the collection.
        """
        if not any(self._expected.values()):
            return []
        rows = connection.execute(_ROWS, (segment, collection)).fetchall()
        wanted = [(id_, key, value) for id_, values in self._expected.items() for key, value in values.items()]
        # Equal tuples need no further look, and nearly all are equal: JSON's true equals the 1 of a row.
        simple = {place for place in wanted if type(place[2]) not in (list, dict)}  # these are kept in other tables
        suspicious = simple.difference(rows)
        stored = {(id_, key): value for id_, key, value in rows} if suspicious else {}
        return [(id_, key) for id_, key, value in suspicious if not _close(value, stored.get((id_, key)))]


def _close(expected: Any, stored: object) -> bool:
    """Whether two numbers are the same but for the last digits. Lists and sparse vectors never come here."""
    numbers = isinstance(expected, int | float) and isinstance(stored, int | float)
    return numbers and math.isclose(expected, stored, rel_tol=_DIGITS)  # type: ignore[arg-type]


def _refuse(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is not JSON")


_decode = json.JSONDecoder(parse_constant=_refuse).decode
