"""What the merged collections will be like, and whether the deltas can be merged at all. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from compaction.errors import MergeFailed
from compaction.writer import HNSW_DEFAULTS
from shared.inspection.chroma.contents import StoredCollection
from shared.model.delta import printable

_BINDING = (
    "space",
    "ef_construction",
    "max_neighbors",
)  # they decide what a query returns, and cannot be changed later
_TUNING = ("ef_search", "batch_size", "sync_threshold", "resize_factor")
_SETTING = "hnsw:"  # so begin settings of the index in the metadata of older collections
_OURS = ("batch_id", "chunk_index", "group_index")


@dataclass(slots=True)
class SettledCollection:
    """One collection of the result.

    Args:
        name: Its name.
        hnsw: Settings of its index.
        hnsw_of: The delta that decided on the index.
        deltas: The deltas that have this collection.
        metadata: Its own metadata; of a key that several deltas have, the last one's value.
        dimension: Length of its vectors; None as long as no delta has any.
        dimension_of: The delta that decided on the dimension.
    """

    name: str
    hnsw: dict[str, Any]
    hnsw_of: str
    deltas: set[str] = field(default_factory=set)
    metadata: dict[str, Any] = field(default_factory=dict)
    dimension: int | None = None
    dimension_of: str = ""


class Settlement:
    """Takes the deltas in one by one, in the order of the merge."""

    def __init__(self) -> None:
        self._collections: dict[str, SettledCollection] = {}

    @property
    def collections(self) -> list[SettledCollection]:
        """The collections of the result, in the order in which they first came."""
        return list(self._collections.values())

    def add(
        self,
        delta: str,
        stored: Sequence[StoredCollection],
        expected: Sequence[str] | None,
        elsewhere: Sequence[StoredCollection] = (),
    ) -> None:
        """Takes in the collections of one delta.

        Args:
            delta: Its place, for messages.
            stored: What it holds.
            expected: The collections that its chunk says it holds; None where it does not say.
            elsewhere: What it holds in other databases, which are not merged.

        Raises:
            MergeFailed: It holds other collections, or one that does not fit those of the deltas before.
        """
        for collection in elsewhere:
            if collection.count:
                name = _shown(collection.name)
                raise MergeFailed(delta, f"it holds {collection.count} embeddings of {name} in another database")
        if expected is not None:
            _compare(delta, stored, expected)
        for collection in stored:
            self._add(delta, collection)

    def _add(self, delta: str, stored: StoredCollection) -> None:
        hnsw = {name: stored.hnsw[name] for name in (*_BINDING, *_TUNING) if name in stored.hnsw}
        known = self._collections.get(stored.name)
        if known is None:
            known = self._collections[stored.name] = SettledCollection(stored.name, hnsw, delta)
        for name in _BINDING:
            ours, theirs = (settings.get(name, HNSW_DEFAULTS[name]) for settings in (known.hnsw, hnsw))
            if ours != theirs:
                reason = f"its index of {_shown(stored.name)} has {name} {theirs}, that of {known.hnsw_of} {ours}"
                raise MergeFailed(delta, reason)
        known.hnsw |= {name: hnsw[name] for name in _TUNING if name in hnsw}
        known.deltas.add(delta)
        known.metadata |= _own(stored.metadata or {})
        if stored.dimension is None or not stored.count:
            return
        if known.dimension is None:
            known.dimension, known.dimension_of = stored.dimension, delta
        elif known.dimension != stored.dimension:
            reason = (
                f"its vectors in {_shown(stored.name)} have dimension {stored.dimension}, "
                f"those of {known.dimension_of} {known.dimension}"
            )
            raise MergeFailed(delta, reason)


def _compare(delta: str, stored: Sequence[StoredCollection], expected: Sequence[str]) -> None:
    """Nothing that a chunk promises may be missing, and nothing that a delta holds may be left behind."""
    names = {collection.name for collection in stored}
    missing = [name for name in expected if name not in names]
    if missing:
        raise MergeFailed(delta, f"it holds no collection {_shown(missing[0])}, only {_listed(sorted(names))}")
    more = [collection for collection in stored if collection.name not in expected and collection.count]
    if more:
        reason = f"it holds {more[0].count} embeddings of {_shown(more[0].name)}, which the chunk does not name"
        raise MergeFailed(delta, reason)


def _own(metadata: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in metadata.items() if not key.startswith(_SETTING) and key not in _OURS}


def _shown(name: str) -> str:
    return repr(printable(name))


def _listed(names: Sequence[str]) -> str:
    return ", ".join(map(_shown, names[:5])) or "none"
