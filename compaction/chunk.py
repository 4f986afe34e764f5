"""Chunks of deltas, groups of chunks: from what a caller says to a merge, and to the answer."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from compaction import bucket_keys
from compaction.merge import Merged, Plan, Source, merge
from shared.model.chunk import Chunk
from shared.model.delta import printable
from shared.model.errors import TargetError
from shared.model.settings import Settings
from shared.storage.scratch import sweep_scratch
from shared.storage.store import Store, current_store


def process(
    batch_id: str,
    chunk_index: int,
    chunk_deltas: Sequence[Mapping[str, Any]],
    deltas_by_collection: Mapping[str, Sequence[Mapping[str, Any]]],
    *,
    store: Store | None = None,
    settings: Settings | None = None,
) -> dict[str, Any]:
    """`compaction.process_chunk_deltas`, with the store and the settings to use (by default the environment's)."""
    started = time.perf_counter()
    settings = settings or Settings.from_environment()
    sweep_scratch()
    bucket, batch_id = bucket_keys.bucket(), bucket_keys.batch_name(batch_id)
    chunk_index = bucket_keys.index(chunk_index, "chunk_index")
    chunk = Chunk.of(list(chunk_deltas))
    if not chunk.deltas:
        raise TargetError(f"chunk {chunk_index} of batch {batch_id} has no deltas: there is nothing to merge")
    plan = _plan(chunk, _grouped(deltas_by_collection), bucket, batch_id, chunk_index)
    merged = merge(store or current_store(), plan, bucket_keys.chunk(bucket, batch_id, chunk_index), settings)
    return _answer(merged, started)


def merge_group(
    batch_id: str,
    group_index: int,
    intermediate_keys: Sequence[str],
    *,
    store: Store | None = None,
    settings: Settings | None = None,
) -> dict[str, Any]:
    """Merges intermediates of one batch into one, by the rules of a chunk, the later ones winning.

    Args:
        batch_id: The batch.
        group_index: Number of the group in the batch, from 0.
        intermediate_keys: Their prefixes, in the order of their chunks.
        store: By default the environment's.
        settings: By default the environment's.

    Returns:
        As for a chunk.

    Raises:
        TargetError: A key is not that of an intermediate of this batch, or there is none.
        ChunkRejected, MergeFailed, UploadFailed: As for a chunk.
    """
    started = time.perf_counter()
    settings = settings or Settings.from_environment()
    sweep_scratch()
    bucket, batch_id = bucket_keys.bucket(), bucket_keys.batch_name(batch_id)
    group_index = bucket_keys.index(group_index, "group_index")
    sources = intermediates(intermediate_keys, bucket, batch_id)
    plan = Plan(sources, batch_id, None, {"batch_id": batch_id, "group_index": group_index})
    merged = merge(store or current_store(), plan, bucket_keys.group(bucket, batch_id, group_index), settings)
    return _answer(merged, started)


def _answer(merged: Merged, started: float) -> dict[str, Any]:
    return {
        "intermediate_key": merged.location.prefix,
        "embeddings_processed": merged.embeddings,
        "processing_time": round(time.perf_counter() - started, 3),
    }


def intermediates(keys: Iterable[str], bucket: str, batch_id: str) -> tuple[Source, ...]:
    """Intermediates of one batch as sources of a merge.

    Raises:
        TargetError: There is none, one is named twice, or one is not of this batch.
    """
    chunk = Chunk.of([{"delta_key": key} for key in keys])
    if not chunk.deltas:
        raise TargetError(f"batch {batch_id} has no intermediates: there is nothing to merge")
    home = bucket_keys.chunk(bucket, batch_id, 0).prefix.rpartition("chunk-")[0]
    for delta in chunk.deltas:
        if not delta.delta_key.startswith(home):
            raise TargetError(f"{printable(delta.delta_key)!r} is no intermediate of batch {batch_id}: none of {home}")
    return tuple(Source(location, said) for location, said in zip(chunk.locations(bucket), chunk.deltas, strict=True))


def _plan(chunk: Chunk, grouped: Mapping[str, Sequence[str]], bucket: str, batch_id: str, chunk_index: int) -> Plan:
    """The plan of a chunk. Of a collection that is named, the deltas go in as its own list has them.

    Raises:
        TargetError: The two descriptions of the chunk contradict each other.
    """
    locations = {d.delta_key: at for d, at in zip(chunk.deltas, chunk.locations(bucket), strict=True)}
    named = {key for of_collection in grouped.values() for key in of_collection}
    if grouped and named != locations.keys():
        odd = min(named.symmetric_difference(locations))
        raise TargetError(f"chunk_deltas and deltas_by_collection name different deltas, such as {printable(odd)!r}")
    sources = []
    for delta in chunk.deltas:
        collections = tuple(name for name, of_collection in grouped.items() if delta.delta_key in of_collection)
        if not grouped and delta.collection is not None:
            collections = (delta.collection,)
        sources.append(Source(locations[delta.delta_key], delta, collections or None))
    orders = {name: tuple(locations[key] for key in of_collection) for name, of_collection in grouped.items()}
    metadata = {"batch_id": batch_id, "chunk_index": chunk_index}
    return Plan(tuple(sources), batch_id, chunk_index, metadata, orders)


def _grouped(deltas_by_collection: object) -> dict[str, list[str]]:
    """The keys of the deltas of each collection.

    Raises:
        TargetError: It is no mapping of names to lists of deltas.
    """
    if deltas_by_collection is None:
        return {}
    if not isinstance(deltas_by_collection, Mapping):
        raise TargetError(f"deltas_by_collection is a {type(deltas_by_collection).__name__}, not a mapping")
    grouped = {}
    for name, deltas in deltas_by_collection.items():
        if not isinstance(name, str) or not isinstance(deltas, Sequence) or isinstance(deltas, str):
            raise TargetError(f"deltas_by_collection[{printable(repr(name))}] is not a list of deltas")
        grouped[name] = [delta.delta_key for delta in Chunk.of(list(deltas)).deltas]
    return grouped
