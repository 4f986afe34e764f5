"""The Chroma directory that deltas are merged into: the only module of compaction that has Chroma write.

**The index is built once, at the end.** Chroma adds every vector to an index in memory as soon as it is written. That
is most of the time of a merge, and some 18 KB for each embedding of dimension 1536, which stay until the process ends;
and the next merge throws the index away. So an intermediate is written without one: before its first embedding, the new
database is told that its index has had every operation that there will ever be (`max_seq_id`), and that the queue is
kept nevertheless. Chroma then adds nothing to the index, and vectors wait in the queue, as in every small delta. In the
closed database both are taken back, and Chroma builds the index when the intermediate is opened. A snapshot is written
with its index, and flushed.

**Numbers stay what they are.** Chroma 1.5 takes metadata through JSON and reads about one float in a hundred of it back
with its last digit changed (serde_json without `float_roundtrip`). Each merge would change more of them, so those are
set right in the closed database.
"""

from __future__ import annotations

import math
import shutil
import sqlite3
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from shared.inspection.chroma.contents import Records
from shared.inspection.chroma.placement import number
from shared.model.delta import DATABASE

HNSW_DEFAULTS: Mapping[str, Any] = {
    "space": "l2",
    "ef_construction": 100,
    "max_neighbors": 16,
    "ef_search": 100,
    "batch_size": 100,
    "sync_threshold": 1000,
}
"""What Chroma takes for a setting that nobody gave (https://docs.trychroma.com/docs/collections/configure)."""

_NEVER = 2**31 - 1  # as a sync threshold: a flush would write down how far the index really is
_END_OF_TIME = 2**62  # as an operation; Chroma counts on from it
_HOLD_BACK = "INSERT INTO max_seq_id (segment_id, seq_id) SELECT id, ? FROM segments WHERE scope = 'VECTOR'"
_RELEASE = "DELETE FROM max_seq_id WHERE segment_id IN (SELECT id FROM segments WHERE scope = 'VECTOR')"
_PURGE = """
    UPDATE embeddings_queue_config SET config_json_str = json_set(config_json_str, '$.automatically_purge', json(?))
"""
_EXACT_LENGTH = 16  # characters: numbers of up to 15 digits come back as they are
_SET_NUMBER = """
    UPDATE embedding_metadata SET float_value = ? WHERE id = (
        SELECT e.id FROM embeddings AS e
        JOIN segments AS s ON s.id = e.segment_id JOIN collections AS c ON c.id = s.collection
        WHERE c.name = ? AND e.embedding_id = ?
    ) AND key = ?
"""
_COLUMNS = {
    "schema_str": (
        "$.defaults.float_list.vector_index.config.hnsw",
        '$.keys."#embedding".float_list.vector_index.config.hnsw',
    ),
    "config_json_str": ("$.vector_index.hnsw",),
}


@dataclass(frozen=True, slots=True)
class CollectionPlan:
    """A collection to be made.

    Args:
        name: Its name.
        hnsw: Settings of its index, as `configuration={"hnsw": ...}` takes them.
        metadata: Its own metadata.
    """

    name: str
    hnsw: Mapping[str, Any]
    metadata: Mapping[str, Any]


class Target:
    """An open Chroma directory. Made by `opened_target`."""

    def __init__(self, collections: Mapping[str, Any]) -> None:
        self._collections = collections
        self.misread: dict[tuple[str, str, str], float] = {}

    def _note_numbers(self, collection: str, records: Records) -> None:
        """Takes note of the numbers that Chroma will misread, by collection, id and key."""
        for id_, metadata in zip(records.ids, records.metadatas, strict=True):
            for key, value in (metadata or {}).items():
                if isinstance(value, float) and _is_misread(value):
                    self.misread[collection, id_, key] = value
                elif self.misread:
                    self.misread.pop((collection, id_, key), None)

    def upsert(self, collection: str, records: Records) -> None:
        """Writes embeddings as Chroma's upsert does: a known id gets the new vector, document and metadata values."""
        self._note_numbers(collection, records)
        self._collections[collection].upsert(
            ids=records.ids,
            embeddings=records.vectors,
            documents=_given(records.documents),
            metadatas=_given([metadata or None for metadata in records.metadatas]),  # with a URI alone Chroma says {}
            uris=_given(records.uris),
        )


@contextmanager
def opened_target(folder: Path, plans: list[CollectionPlan], *, indexed: bool) -> Iterator[Target]:
    """A new Chroma directory with these collections, which is closed and complete after the block.

    Args:
        folder: Where to; it must not exist.
        plans: The collections.
        indexed: Whether the index is built and flushed now.
    """
    hnsw = [dict(plan.hnsw) if indexed else {**plan.hnsw, "sync_threshold": _NEVER} for plan in plans]
    with ExitStack() as open_:
        client = open_.enter_context(_client(folder))
        made = {}
        for plan, settings in zip(plans, hnsw, strict=True):
            made[plan.name] = client.create_collection(
                plan.name, metadata=dict(plan.metadata), configuration={"hnsw": settings}, embedding_function=None
            )
        if not indexed:
            open_.close()
            _hold_back(folder)
            client = open_.enter_context(_client(folder))
            made = {plan.name: client.get_collection(plan.name, embedding_function=None) for plan in plans}
        target = Target(made)
        yield target
    with closing(sqlite3.connect(folder / DATABASE)) as connection, connection:
        connection.executemany(_SET_NUMBER, ((value, *place) for place, value in target.misread.items()))
        if not indexed:
            _release(connection, plans)
    if not indexed:
        for index in folder.iterdir():
            if index.is_dir():
                shutil.rmtree(index)


def _client(folder: Path) -> AbstractContextManager[Any]:
    import chromadb  # noqa: PLC0415 - half a second, and only for a merge that the gate let pass
    from chromadb.config import Settings  # noqa: PLC0415

    client: AbstractContextManager[Any] = chromadb.PersistentClient(folder, Settings(anonymized_telemetry=False))
    return client


def _is_misread(value: float) -> bool:
    text = repr(value)
    return len(text) > _EXACT_LENGTH and math.isfinite(value) and number(text) != value


def _hold_back(folder: Path) -> None:
    """Has Chroma add nothing to the index of any collection, from the next client on."""
    with closing(sqlite3.connect(folder / DATABASE)) as connection, connection:
        connection.execute(_HOLD_BACK, (_END_OF_TIME,))
        connection.execute(_PURGE, ("false",))


def _release(connection: sqlite3.Connection, plans: list[CollectionPlan]) -> None:
    """Takes back what held the index back, and gives each collection its real threshold."""
    connection.execute(_RELEASE)
    connection.execute(_PURGE, ("true",))
    for plan in plans:
        threshold = plan.hnsw.get("sync_threshold", HNSW_DEFAULTS["sync_threshold"])
        for column, places in _COLUMNS.items():
            changes = [(f"{place}.sync_threshold", threshold) for place in places]
            marks = ", ".join(["?, ?"] * len(changes))
            connection.execute(
                f"UPDATE collections SET {column} = json_replace({column}, {marks}) WHERE name = ?",  # noqa: S608
                (*(part for change in changes for part in change), plan.name),
            )


def _given(values: list[Any]) -> list[Any] | None:
    """The values, or None when there is none: Chroma takes no list of nothing."""
    return values if any(value is not None for value in values) else None
