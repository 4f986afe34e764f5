"""The Chroma directory that deltas are merged into: the only module of compaction that has Chroma write.

**The index is built once, at the end.** Chroma adds every vector to an index in memory as soon as it is written, which
costs four fifths of a merge and which the next merge throws away. So an intermediate is written with the cheapest index
that Chroma can build and never flushes: its vectors wait in Chroma's queue, as in every small delta. Once it is closed,
its settings are set to what the deltas had, and the unused index is removed; Chroma builds the real one whenever the
intermediate is opened. A snapshot is written with its real settings and a flushed index.

**Numbers stay what they are.** Chroma 1.5 takes metadata through JSON and reads about one float in a hundred of it back
with its last digit changed (serde_json without `float_roundtrip`). Each merge would change more of them, so those are
set right in the closed database.
"""

from __future__ import annotations

import math
import shutil
import sqlite3
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from shared.delta import DATABASE
from shared.inspection.contents import Records
from shared.inspection.placement import number

HNSW_DEFAULTS: Mapping[str, Any] = {
    "space": "l2",
    "ef_construction": 100,
    "max_neighbors": 16,
    "ef_search": 100,
    "batch_size": 100,
    "sync_threshold": 1000,
}
"""What Chroma takes for a setting that nobody gave (https://docs.trychroma.com/docs/collections/configure)."""

_DEFERRED: Mapping[str, Any] = {
    "ef_construction": 1,
    "max_neighbors": 2,
    "batch_size": 100,
    "sync_threshold": 2**31 - 1,
}
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
            metadatas=_given(records.metadatas),
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
    import chromadb  # noqa: PLC0415 - half a second, and only for a merge that the gate let pass
    from chromadb.config import Settings  # noqa: PLC0415

    with chromadb.PersistentClient(path=folder, settings=Settings(anonymized_telemetry=False)) as client:
        made = {}
        for plan in plans:
            hnsw = dict(plan.hnsw) if indexed else {**plan.hnsw, **_DEFERRED}
            made[plan.name] = client.create_collection(
                plan.name, metadata=dict(plan.metadata), configuration={"hnsw": hnsw}, embedding_function=None
            )
        target = Target(made)
        yield target
    with closing(sqlite3.connect(folder / DATABASE)) as connection, connection:
        connection.executemany(_SET_NUMBER, ((value, *place) for place, value in target.misread.items()))
        if not indexed:
            _restore_settings(connection, plans)
    if not indexed:
        for index in folder.iterdir():
            if index.is_dir():
                shutil.rmtree(index)


def _is_misread(value: float) -> bool:
    text = repr(value)
    return len(text) > _EXACT_LENGTH and math.isfinite(value) and number(text) != value


def _restore_settings(connection: sqlite3.Connection, plans: list[CollectionPlan]) -> None:
    """Gives collections that were written with the cheapest index their real settings."""
    for plan in plans:
        wanted = {name: plan.hnsw.get(name, HNSW_DEFAULTS[name]) for name in _DEFERRED}
        for column, places in _COLUMNS.items():
            changes = [(f"{place}.{name}", value) for place in places for name, value in wanted.items()]
            marks = ", ".join(["?, ?"] * len(changes))
            connection.execute(
                f"UPDATE collections SET {column} = json_replace({column}, {marks}) WHERE name = ?",  # noqa: S608
                (*(part for change in changes for part in change), plan.name),
            )


def _given(values: list[Any]) -> list[Any] | None:
    """The values, or None when there is none: Chroma takes no list of nothing."""
    return values if any(value is not None for value in values) else None
