"""The rows of the database against each other and against the indexes: is every stored id there with its vector?

The master invariant, per collection:

    {ids in the index} + {queue operations after the index's last} = {embedding_id of the metadata segment}

A delta that breaks it has lost vectors or ids, however happily it opens.
"""

from __future__ import annotations

import hashlib
import sqlite3
from collections.abc import Sequence, Set
from dataclasses import dataclass
from heapq import heapify, heappop, heappush

import numpy as np

from shared.inspection.chroma.metadata import parse_queued
from shared.inspection.chroma.queue import ADD, DELETE, UPDATE, UPSERT, WIDTH, Replay
from shared.inspection.chroma.sysdb import Collection
from shared.inspection.hnsw.id_map import IdMap
from shared.inspection.limits import NO_LIMITS, ROW, Limits, memory_of
from shared.inspection.sqlite.database_file import explained
from shared.inspection.sqlite.schema import Schema
from shared.inspection.values import is_text, shown
from shared.model.delta import DATABASE
from shared.model.verdict import CollectionCount, Finding

_IDS = "SELECT id, embedding_id FROM embeddings WHERE segment_id = ?"
_BATCH = 100  # rows
_QUEUED = """
    SELECT operation, id, CASE WHEN encoding = 'FLOAT32' THEN vector ELSE iif(vector IS NULL, NULL, x'') END
    FROM embeddings_queue WHERE substr(topic, -36) = ? ORDER BY seq_id
"""
_TEXTS_LEFT = (
    "SELECT f.id FROM embedding_fulltext_search_content AS f"
    " WHERE NOT EXISTS (SELECT 1 FROM embeddings AS e WHERE e.id = f.id)"
)
_OTHERS = "SELECT ifnull(max(id), 0) FROM embeddings WHERE segment_id IS NOT ?"
_WAITING = (
    "SELECT seq_id, operation, id, metadata FROM embeddings_queue WHERE substr(topic, -36) = ? AND seq_id > ?"
    " ORDER BY seq_id"
)
_DOCUMENT = "chroma:document"


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
    connection: sqlite3.Connection,
    schema: Schema,
    collection: Collection,
    index: IdMap | None,
    *,
    index_readable: bool,
    ahead: int = 0,
    limits: Limits = NO_LIMITS,
) -> tuple[Contents, list[Finding]]:
    """The master invariant of one collection, and every vector that waits in the queue.

    Args:
        connection: A database whose schema is sound.
        schema: That schema.
        collection: The collection.
        index: The id map of its index, None when it was never flushed.
        index_readable: False when there is an index whose id map cannot be read: ids cannot be compared then.
        ahead: See `hnsw.Index`.
        limits: What it may cost.

    Raises:
        CouldNotCheck: The rows could not be read for a reason outside the bytes.
    """
    rows: dict[str, int] = {}
    findings: list[Finding] = []
    with explained(f"reading the ids of {shown(collection.name)}") as unread:
        rows, findings = _metadata_ids(connection, collection, limits)
    # Without a row in max_seq_id Chroma 1.x replays the whole queue, whatever the id map of 0.4 says.
    replay = Replay(collection, collection.flushed_to or 0, set(index.labels) if index else set(), rows, limits)
    with explained(f"replaying the queue of {shown(collection.name)}") as failed:
        replay.run(connection, booleans=schema.has("embedding_metadata", "bool_value"))
    findings += unread + failed + replay.findings
    if index_readable and not unread and not failed:
        findings += replay.contradictions()
        if index is not None:
            findings += _labels_to_come(collection, index, replay.added, ahead)
    count = CollectionCount(collection.name, collection.dimension, len(replay.with_row))
    return Contents(count, replay.with_row), findings


def inspect_waiting_texts(
    connection: sqlite3.Connection, collections: Sequence[Collection], limits: Limits = NO_LIMITS
) -> list[Finding]:
    """Whether the documents that wait in the queue find room in the full-text table.

    Chroma gives a new embedding the number after the highest, and adds its document under the same. That fails, and
    with it every read, where a text is there already: 0.4 left texts of what was deleted behind, and an upgrade from
    0.4.3 to 0.4.5 puts texts under numbers of other rows. Source: `apply_logs` in chroma-core/chroma 1.5.9,
    `rust/segment/src/sqlite_metadata.rs`; an update or upsert makes room first.

    Args:
        connection: A database with a full-text table that may be read.
        collections: Its collections.
        limits: What it may cost.

    Raises:
        CouldNotCheck: It could not be read for a reason outside the bytes.
    """
    with explained("reading the texts that wait in the queue") as findings:
        texts = set()
        for (number,) in connection.execute(_TEXTS_LEFT):
            limits.keep(ROW)
            texts.add(number)
        if not texts:
            return findings
        waiting = [c for c in collections if connection.execute(_WAITING, (c.id, c.applied_to)).fetchone()]
        blocked = [_blocked(connection, collection, {*texts}, limits) for collection in waiting]
        if all(blocked):  # else the numbers depend on which one is read first
            findings += [finding for found in blocked for finding in found]
    return findings


def _blocked(connection: sqlite3.Connection, collection: Collection, texts: set[int], limits: Limits) -> list[Finding]:
    """The first operation of a queue whose document finds the number of its embedding taken."""
    rows, findings = _metadata_ids(connection, collection, limits)
    if findings:
        return []  # told elsewhere
    ((others,),) = connection.execute(_OTHERS, (collection.metadata_segment,))
    numbers = [-others, *(-number for number in rows.values())]
    heapify(numbers)
    taken = {others, *rows.values()}
    for seq_id, kind, id_, text in connection.execute(_WAITING, (collection.id, collection.applied_to)):
        try:
            document = parse_queued(text).get(_DOCUMENT)
        except ValueError:
            return []  # Chroma comes no further than this, which is told elsewhere
        if kind == DELETE:
            number = rows.pop(id_, None)
            texts.discard(number)
            taken.discard(number)
            continue
        known = id_ in rows
        if not known and kind in (ADD, UPSERT):
            limits.keep(ROW + memory_of(id_))
            while -numbers[0] not in taken:
                heappop(numbers)
            rows[id_] = 1 - numbers[0]
            heappush(numbers, -rows[id_])
            taken.add(rows[id_])
        if document is None or id_ not in rows:
            continue
        if kind == ADD and not known and rows[id_] in texts:
            detail = (
                f"row {seq_id} of embeddings_queue adds {shown(id_)} to {shown(collection.name)} as number "
                f"{rows[id_]}, under which the full-text table has a text already"
            )
            return [Finding("sqlite.fulltext_unusable", DATABASE, detail)]
        if kind != ADD:
            texts.discard(rows[id_])
    return []


def _labels_to_come(collection: Collection, index: IdMap, added: int, ahead: int) -> list[Finding]:
    """What the labels that the queue's new ids will take collide with, or leave without an id.

    Source: `next_label` in chroma-core/chroma 1.5.9, `rust/segment/src/local_hnsw.rs`.
    """
    folder = collection.vector_segment
    taken = [label for label in index.labels.values() if index.added < label <= index.added + added]
    if taken:
        detail = f"{index.added} labels were given out, but the highest is {max(index.labels.values())}"
        return [Finding("hnsw.label_mismatch", f"{folder}/index_metadata.pickle", detail)]
    if ahead > index.added + added:
        detail = f"a record has the label {ahead}: {index.added} were given out, and the queue needs {added} more"
        return [Finding("hnsw.label_mismatch", f"{folder}/data_level0.bin", detail)]
    return []


def recoverable(
    connection: sqlite3.Connection, collection: Collection, indexed: Set[str], limits: Limits = NO_LIMITS
) -> str:
    """How much of what a damaged collection holds is still somewhere in the delta, in words.

    Args:
        connection: The database.
        collection: The collection.
        indexed: The ids whose vector can be read from its index.
        limits: What it may cost.

    Raises:
        CouldNotCheck: The rows could not be read for a reason outside the bytes.
    """
    name = shown(collection.name)
    ids: set[str] = set()
    queue = _Queue(ids, indexed)
    with explained(f"reading what is left of {name}") as unread:
        ids.update(_metadata_ids(connection, collection, limits)[0])
        for operation, id_, vector in connection.execute(_QUEUED, (collection.id,)):
            limits.keep(ROW + memory_of(id_))
            queue.apply(operation, id_, vector)
    if unread:
        return f"of {name} not even the ids can be read"
    queued = queue.usable(collection.dimension)
    sound = indexed - queue.vectors.keys() - queue.deleted
    where = f"vectors of {len(queued)} are in the queue, of {len(sound)} in sound records of the index"
    if collection.metadata_segment is None:
        return f"which rows are those of {name} is not told; {where}"
    every = ids | queue.added | sound
    bare = sound - ids - queue.added
    lost = every - queued - sound
    whole = len(every) - len(lost) - len(bare)
    head = f"all {len(every)}" if whole == len(every) else f"{whole} of {len(every)}"
    missing = f"{len(lost)} have no sound vector, {len(bare)} no row"
    return f"{head} embeddings of {name} can be recovered: {where}; {missing}"


class _Queue:
    """The last vector that the queue has of each id, whether or not its operation was flushed.

    Args:
        ids: Ids that have a row.
        indexed: Ids that have a vector in the index.
    """

    def __init__(self, ids: Set[str], indexed: Set[str]) -> None:
        self._ids = ids
        self._indexed = indexed
        self.vectors: dict[str, int] = {}
        """Bytes of the vector of each id, 0 for one that cannot be used."""
        self.added: set[str] = set()
        self.deleted: set[str] = set()

    def apply(self, operation: object, id_: object, vector: object) -> None:
        """Takes in one operation, in order. Of one that is none nothing can be used."""
        if not isinstance(id_, str) or not is_text(id_):
            return
        if operation == DELETE:
            self.vectors.pop(id_, None)
            self.added.discard(id_)
            self.deleted.add(id_)
        elif operation in (ADD, UPSERT):
            if operation == UPSERT or not self.vectors.get(id_):
                self.vectors[id_] = _usable_bytes(vector)
            self.added.add(id_)
            self.deleted.discard(id_)
        elif operation == UPDATE and vector is not None and self._knows(id_):
            self.vectors[id_] = _usable_bytes(vector)

    def _knows(self, id_: str) -> bool:
        return id_ in self.vectors or id_ in self._ids or id_ in self._indexed

    def usable(self, dimension: int | None) -> Set[str]:
        """Ids whose vector has the right length.

        When nothing was flushed and all vectors agree on another length than the collection's, it is the collection's
        that is damaged.
        """
        lengths = {*self.vectors.values()} - {0}
        needed = WIDTH * (dimension or 0)
        if len(lengths) == 1 and (dimension is None or (not self._indexed and len(self.vectors) > 1)):
            (needed,) = lengths
        return {id_ for id_, length in self.vectors.items() if length == needed != 0}


def _usable_bytes(vector: object) -> int:
    """Bytes of a vector that can be decoded to finite numbers, else 0."""
    if not isinstance(vector, bytes) or len(vector) % WIDTH:
        return 0
    return len(vector) if np.isfinite(np.frombuffer(vector, "<f4")).all() else 0


def _metadata_ids(
    connection: sqlite3.Connection, collection: Collection, limits: Limits
) -> tuple[dict[str, int], list[Finding]]:
    """The ids that have a row in `embeddings`, with the number of that row."""
    readable: dict[str, int] = {}
    total = 0
    rows = connection.execute(_IDS, (collection.metadata_segment,))
    while batch := rows.fetchmany(_BATCH):
        total += len(batch)
        limits.keep(sum(ROW + memory_of(id_) for _, id_ in batch))
        found = {id_: row for row, id_ in batch if isinstance(id_, str) and isinstance(row, int)}
        if not all(map(is_text, found)):
            found = {id_: row for id_, row in found.items() if is_text(id_)}
        readable |= found
    if len(readable) == total:
        return readable, []
    unreadable = total - len(readable)
    detail = f"{unreadable} rows of embeddings in {shown(collection.name)} have an id that is no text, or no number"
    return readable, [Finding("records.row_unreadable", DATABASE, detail)]
