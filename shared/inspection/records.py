"""The rows of the database against each other and against the indexes: is every stored id there with its vector?

The master invariant, per collection:

    {ids in the index} + {queue operations after the index's last} = {embedding_id of the metadata segment}

A delta that breaks it has lost vectors or ids, however happily it opens.
"""

from __future__ import annotations

import hashlib
import sqlite3
from collections.abc import Set
from dataclasses import dataclass

from shared.delta import DATABASE
from shared.inspection.idmap import IdMap
from shared.inspection.replay import WIDTH, Replay
from shared.inspection.schema import Schema
from shared.inspection.sqlite import explained
from shared.inspection.sysdb import Collection
from shared.inspection.values import is_text, shown
from shared.verdict import CollectionCount, Finding

_IDS = "SELECT id, embedding_id FROM embeddings WHERE segment_id = ?"
# The vectors that are still in the queue, whatever was flushed.
_QUEUED = """
    SELECT DISTINCT id FROM embeddings_queue
    WHERE substr(topic, -36) = ? AND operation IN (0, 1, 2) AND encoding = 'FLOAT32' AND length(vector) = ?
"""


@dataclass(frozen=True, slots=True)
class Contents:
    """What one collection holds after all operations: how much, and which ids."""

    count: CollectionCount
    ids: Set[str]

    @property
    def digest(self) -> str:
        """sha256 (hex) over the sorted ids, each ended by a line feed."""
        lines = "".join(f"{id_}\n" for id_ in sorted(self.ids))
        return hashlib.sha256(lines.encode("utf-8", "surrogateescape")).hexdigest()


def inspect_collection(
    connection: sqlite3.Connection, schema: Schema, collection: Collection, index: IdMap | None, *, index_readable: bool
) -> tuple[Contents, list[Finding]]:
    """The master invariant of one collection, and every vector that waits in the queue.

    Args:
        connection: A database whose schema is sound.
        schema: That schema.
        collection: The collection.
        index: The id map of its index, None when it was never flushed.
        index_readable: False when there is an index whose id map cannot be read: ids cannot be compared then.

    Raises:
        CouldNotCheck: The rows could not be read for a reason outside the bytes.
    """
    rows: dict[str, int] = {}
    findings: list[Finding] = []
    with explained(f"reading the ids of {shown(collection.name)}") as unread:
        rows, findings = _metadata_ids(connection, collection)
    flushed_to = collection.flushed_to
    if flushed_to is None and index is not None:
        flushed_to = index.max_seq_id  # chromadb 0.4 keeps it in the id map
    replay = Replay(collection, flushed_to or 0, set(index.labels) if index else set(), rows)
    with explained(f"replaying the queue of {shown(collection.name)}") as failed:
        replay.run(connection, booleans=schema.has("embedding_metadata", "bool_value"))
    findings += unread + failed + replay.findings
    if index_readable and not unread and not failed:
        findings += replay.contradictions()
    count = CollectionCount(collection.name, collection.dimension, len(replay.with_row))
    return Contents(count, replay.with_row), findings


def recoverable(
    connection: sqlite3.Connection, collection: Collection, index: IdMap | None, *, index_sound: bool
) -> str:
    """Whether all that a damaged collection holds is still somewhere, in words.

    Args:
        connection: The database.
        collection: The collection.
        index: The id map of its index, None when there is none that can be read.
        index_sound: Whether nothing is wrong with that index.

    Raises:
        CouldNotCheck: The rows could not be read for a reason outside the bytes.
    """
    ids: set[str] = set()
    queued: set[object] = set()
    with explained(f"reading what is left of {shown(collection.name)}") as unread:
        ids = {*_metadata_ids(connection, collection)[0]}
        width = WIDTH * (collection.dimension or 0)
        queued = {id_ for (id_,) in connection.execute(_QUEUED, (collection.id, width))} & ids
    if unread:
        return f"of {shown(collection.name)} not even the ids can be read"
    indexed = ids & index.labels.keys() if index is not None and index_sound else set()
    lost = len(ids) - len(queued | indexed)
    held = (
        f"{len(ids)} embeddings of {shown(collection.name)} have their rows; "
        f"vectors: {len(queued)} in the queue, {len(indexed - queued)} in a sound index, {lost} in neither"
    )
    return f"{held}: {'all can be recovered' if not lost else f'{lost} depend on what is damaged or missing'}"


def _metadata_ids(connection: sqlite3.Connection, collection: Collection) -> tuple[dict[str, int], list[Finding]]:
    """The ids that have a row in `embeddings`, with the number of that row."""
    rows = connection.execute(_IDS, (collection.metadata_segment,)).fetchall()
    readable = {id_: row for row, id_ in rows if isinstance(id_, str)}
    if not is_text("".join(readable)):
        readable = {id_: row for id_, row in readable.items() if is_text(id_)}
    if len(readable) == len(rows):
        return readable, []
    detail = f"{len(rows) - len(readable)} rows of embeddings in {shown(collection.name)} have an id that is no text"
    return readable, [Finding("records.row_unreadable", DATABASE, detail)]
