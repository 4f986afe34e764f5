"""Where each embedding of a collection is: the number of its row, and its vector in the queue or in the index.

The queue is replayed as Chroma 1.5 does: on the rows what they have not taken up yet, on the index what it lacks.
Measured on chromadb 1.5.9 with deltas of 0.4.3 to 1.5.9.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from shared.inspection.chroma.sysdb import Collection

ADD, UPDATE, UPSERT, DELETE = range(4)
"""`embeddings_queue.operation`."""

_ROWS = "SELECT embedding_id, id FROM embeddings WHERE segment_id = ? ORDER BY id"
# Whether there is a vector is known without reading it.
_OPERATIONS = """
    SELECT seq_id, operation, id, vector IS NOT NULL FROM embeddings_queue
    WHERE substr(topic, -36) = ? AND seq_id > ? ORDER BY seq_id
"""
_LATE = """
    SELECT operation, id, metadata FROM embeddings_queue WHERE substr(topic, -36) = ? AND seq_id > ? ORDER BY seq_id
"""
_LARGEST_SIGNIFICAND = 2**64 - 1
_LARGEST_POWER = 308


@dataclass(frozen=True, slots=True)
class Placement:
    """The embeddings of one collection in the order in which Chroma gives them back, and where their parts are.

    Args:
        ids: The ids.
        rows: For each the number of its row in `embeddings`; 0 when it has none yet.
        queued: For each the `seq_id` of the operation that holds its vector; 0 when none does.
        labels: For each its label in the index, if the vector is there; else -1.
        late: Metadata by id that the rows have not taken up yet; None stands for a key that is removed.
    """

    ids: list[str]
    rows: NDArray[np.int64]
    queued: NDArray[np.int64]
    labels: NDArray[np.int64]
    late: Mapping[str, Mapping[str, Any]]

    def without_vector(self) -> list[str]:
        """The ids whose vector is nowhere; none in a healthy delta."""
        return [self.ids[at] for at in np.flatnonzero((self.queued == 0) & (self.labels < 0))]


def place(
    connection: sqlite3.Connection, collection: Collection, labels: Mapping[str, int], flushed_to: int
) -> Placement:
    """Replays the queue of a collection on its rows and on its index.

    Args:
        connection: A database whose schema is sound.
        collection: The collection.
        labels: Label of each id in its index; empty when there is no index.
        flushed_to: The last operation that the index holds; 0 without one.

    Raises:
        sqlite3.Error: The tables cannot be read.
        ValueError: The metadata of an operation is not JSON.
    """
    rows: dict[str, int] = dict(connection.execute(_ROWS, (collection.metadata_segment,)))
    vectors = {id_: -label - 1 for id_, label in labels.items()}
    for seq_id, kind, id_, has_vector in connection.execute(_OPERATIONS, (collection.id, flushed_to)):
        if kind == DELETE:
            vectors.pop(id_, None)
        elif has_vector and (kind == UPSERT or (id_ in vectors) == (kind == UPDATE)):
            vectors[id_] = seq_id
    late: dict[str, dict[str, Any]] = {}
    for kind, id_, text in connection.execute(_LATE, (collection.id, collection.applied_to)):
        if kind == DELETE:
            rows.pop(id_, None)
            late.pop(id_, None)
        elif kind == UPSERT or (id_ in rows) == (kind == UPDATE):
            rows.setdefault(id_, 0)
            late.setdefault(id_, {}).update(json.loads(text, parse_float=number) if text else {})
    places = np.fromiter((vectors.get(id_, 0) for id_ in rows), np.int64, len(rows))
    return Placement(
        list(rows),
        np.fromiter(rows.values(), np.int64, len(rows)),
        np.maximum(places, 0),
        np.where(places < 0, -places - 1, -1),
        late,
    )


def number(text: str) -> float:
    """A JSON number as Chroma 1.5 reads it: at most the last digit off, and so not always the nearest float.

    Zero has no sign, since the column that it goes through keeps whole numbers as integers (section 3 of SQLite's
    datatype3.html).
    Source: serde_json 1.0 without its feature `float_roundtrip`.
    """
    mantissa, _, exponent = text.lower().partition("e")
    whole, _, fraction = mantissa.removeprefix("-").partition(".")
    significand, power = 0, int(exponent or 0)
    for position, digit in enumerate(whole + fraction):
        larger = 10 * significand + int(digit)
        if larger > _LARGEST_SIGNIFICAND:
            power += max(0, len(whole) - position)
            break
        significand = larger
        power -= position >= len(whole)
    value = float(significand)
    while power < -_LARGEST_POWER and value:
        value /= 1e308
        power += _LARGEST_POWER
    value = value * float(f"1e{power}") if power >= 0 else value / float(f"1e{min(-power, _LARGEST_POWER)}")
    return -value if text.startswith("-") and value else value
