"""`compaction.handler.handler`: the Lambda entry point of a compaction's state machine.

`operation` says what to do. What fails is raised, so that the state fails and nothing after it runs; the name of the
error is what a `Retry` or `Catch` of Step Functions goes by.

- `process_chunk` needs `batch_id` and the chunk: `deltas` with `chunk_index`, or `chunks_s3_key` (`chunks_s3_bucket`
  for another bucket) with `chunk_index` or `chunk_indices`. It answers as `process_chunk_deltas` does, for
  `chunk_indices` with one of `results` for each.
- `merge_chunk_group` needs `batch_id`, `group_index` and `intermediate_keys`, and answers likewise.
- `final_merge` needs `batch_id` and `intermediate_keys`, and answers with `snapshot_key` and `latest_key`.

In place of `intermediate_keys` the answers of the steps before may be given as they are, as `results`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from compaction import bucket_keys, process_chunk_deltas
from compaction.chunk import merge_group
from compaction.snapshot import final_merge
from shared.model.chunk import MAX_CHUNK_BYTES, Chunk, chunk_at, chunks_in
from shared.model.delta import printable
from shared.model.errors import TargetError
from shared.storage.store import current_store

_MOST_CHUNKS = 1000  # of one invocation


class InvalidRequest(TargetError):
    """The event asks for something that cannot be done, whatever the deltas are like: do not retry."""


def handler(event: object, _context: Any) -> dict[str, Any]:
    """Does one step of a compaction.

    Args:
        event: `operation` and what it needs; see above.
        context: Lambda's; not needed.

    Returns:
        What the operation answers, and `status`: `merged`, or `skipped` for a chunk without deltas.

    Raises:
        InvalidRequest: The event is wrong; the message says where.
        ChunkRejected, MergeFailed, UploadFailed, LockHeld, LockLost, StorageError, CouldNotCheck, SettingsError: As
            the operation does.
    """
    if not isinstance(event, Mapping):
        raise InvalidRequest(f"the event is a {type(event).__name__}, not an object with an `operation`")
    operation = event.get("operation")
    known = _OPERATIONS.get(operation) if isinstance(operation, str) else None
    if known is None:
        raise InvalidRequest(f"operation {printable(repr(operation))} is none of {', '.join(_OPERATIONS)}")
    try:
        return known(event)
    except InvalidRequest:
        raise
    except TargetError as error:
        raise InvalidRequest(f"{operation}: {error}") from error


def _process_chunk(event: Mapping[str, Any]) -> dict[str, Any]:
    batch_id = bucket_keys.batch_name(event.get("batch_id"))
    indices = event.get("chunk_indices")
    if indices is None:
        chunk_index = bucket_keys.index(event.get("chunk_index"), "chunk_index")
        return _one_chunk(batch_id, chunk_index, _chunk(event, chunk_index))
    if not isinstance(indices, list) or not indices or len(indices) > _MOST_CHUNKS:
        raise InvalidRequest(f"chunk_indices must be a list of 1 to {_MOST_CHUNKS} numbers")
    indices = [bucket_keys.index(value, "chunk_indices") for value in indices]
    if len(set(indices)) != len(indices):
        raise InvalidRequest("chunk_indices names a chunk twice")
    stored = _stored_chunks(event)
    chunks = [chunk_at(stored, chunk_index) for chunk_index in indices]  # all are looked at before one is merged
    results = [_one_chunk(batch_id, index, chunk) for index, chunk in zip(indices, chunks, strict=True)]
    merged = any(result["status"] == "merged" for result in results)
    embeddings = sum(result["embeddings_processed"] for result in results)
    return {
        "status": "merged" if merged else "skipped",
        "batch_id": batch_id,
        "results": results,
        "embeddings_processed": embeddings,
    }


def _one_chunk(batch_id: str, chunk_index: int, chunk: Chunk) -> dict[str, Any]:
    if chunk.batch_id not in (None, batch_id) or chunk.chunk_index not in (None, chunk_index):
        says = f"chunk {chunk.chunk_index} of batch {chunk.batch_id}"
        raise InvalidRequest(f"chunk {chunk_index} of batch {batch_id} says that it is {says}")
    facts: dict[str, Any] = {"batch_id": batch_id, "chunk_index": chunk_index}
    if not chunk.deltas:
        return {"status": "skipped", **facts, "intermediate_key": None, "embeddings_processed": 0}
    deltas = [delta.model_dump(exclude_none=True) for delta in chunk.deltas]
    grouped: dict[str, list[dict[str, Any]]] = {}
    if all("collection" in delta for delta in deltas):
        for delta in deltas:
            grouped.setdefault(delta["collection"], []).append(delta)
    return {"status": "merged", **facts, **process_chunk_deltas(batch_id, chunk_index, deltas, grouped)}


def _chunk(event: Mapping[str, Any], chunk_index: int) -> Chunk:
    """The chunk that an event brings along, or names."""
    names = [name for name in ("deltas", "delta_results", "chunk_deltas") if name in event]
    if len(names) + ("chunks_s3_key" in event) != 1:
        raise InvalidRequest("give the chunk as `deltas`, or by `chunks_s3_key`, and not both")
    if names:
        return Chunk.of(event[names[0]])
    return chunk_at(_stored_chunks(event), chunk_index)


def _stored_chunks(event: Mapping[str, Any]) -> list[Any]:
    key = event.get("chunks_s3_key")
    bucket = event.get("chunks_s3_bucket") or bucket_keys.bucket()
    if not isinstance(key, str) or not key or not isinstance(bucket, str):
        raise InvalidRequest(
            "chunks_s3_key must be the key of a chunks file, in chunks_s3_bucket or else in the bucket"
        )
    return chunks_in(current_store().read(bucket, key, MAX_CHUNK_BYTES + 1))


def _merge_chunk_group(event: Mapping[str, Any]) -> dict[str, Any]:
    batch_id = bucket_keys.batch_name(event.get("batch_id"))
    group_index = bucket_keys.index(event.get("group_index"), "group_index")
    keys = _intermediate_keys(event)
    facts: dict[str, Any] = {"batch_id": batch_id, "group_index": group_index}
    if not keys:
        return {"status": "skipped", **facts, "intermediate_key": None, "embeddings_processed": 0}
    return {"status": "merged", **facts, **merge_group(batch_id, group_index, keys)}


def _final_merge(event: Mapping[str, Any]) -> dict[str, Any]:
    batch_id = bucket_keys.batch_name(event.get("batch_id"))
    keys = _intermediate_keys(event)
    if not keys:
        return {"status": "skipped", "batch_id": batch_id, "snapshot_key": None, "embeddings_processed": 0}
    return {"status": "merged", "batch_id": batch_id, **final_merge(batch_id, keys)}


def _intermediate_keys(event: Mapping[str, Any]) -> list[str]:
    """The keys of the intermediates: given as such, or inside the answers of earlier steps, of which some skipped."""
    if ("intermediate_keys" in event) == ("results" in event):
        raise InvalidRequest("give the intermediates as `intermediate_keys` or as `results`, and not both")
    given = event["intermediate_keys"] if "intermediate_keys" in event else event["results"]
    if not isinstance(given, list):
        raise InvalidRequest("the intermediates must be a list")
    keys: list[str] = []
    for value in given:
        if isinstance(value, Mapping) and isinstance(value.get("results"), list):
            keys += _intermediate_keys({"results": value["results"]})
        elif isinstance(value, Mapping) and "intermediate_key" in value:
            keys += [value["intermediate_key"]] if value["intermediate_key"] is not None else []
        else:
            keys.append(value)
    if not all(isinstance(key, str) for key in keys):
        raise InvalidRequest("the intermediates must be keys, or answers that have an `intermediate_key`")
    return keys


_OPERATIONS: Mapping[str, Callable[[Mapping[str, Any]], dict[str, Any]]] = {
    "process_chunk": _process_chunk,
    "merge_chunk_group": _merge_chunk_group,
    "final_merge": _final_merge,
}
