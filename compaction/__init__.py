"""Compaction, all or nothing: a chunk of healthy deltas becomes one intermediate, a batch becomes one snapshot."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any


def process_chunk_deltas(
    batch_id: str,
    chunk_index: int,
    chunk_deltas: Sequence[Mapping[str, Any]],
    deltas_by_collection: Mapping[str, Sequence[Mapping[str, Any]]],
) -> dict[str, Any]:
    """Merges a chunk of deltas into one intermediate, or fails without leaving anything that looks like one.

    The gate judges every delta first. Then all of them go into one Chroma directory, collection by collection, with
    Chroma's own upsert in the order given: of an id that comes twice, the later vector, document and metadata values
    win. The directory is closed, uploaded with its manifest last, and validated where it arrived. A call that is
    repeated after it succeeded returns the intermediate that is there, as long as the deltas are still the same.

    Args:
        batch_id: The batch; letters, digits, `.`, `_` and `-`.
        chunk_index: Number of the chunk in the batch, from 0.
        chunk_deltas: The deltas, each with `delta_key`, and perhaps `delta_id`, `embedding_count`, `collection`.
        deltas_by_collection: For each collection, those of the deltas that hold it, in the order of the merge. Empty:
            the collections are those that the deltas name, or all that they hold.

    Returns:
        `intermediate_key`, the prefix of the intermediate in the bucket, ending in `/`; `embeddings_processed`, how
        many embeddings were read from the deltas; `processing_time` in seconds.

    Raises:
        TargetError: The chunk contradicts itself or is empty.
        SettingsError: `CHROMADB_BUCKET` or another setting is missing or wrong.
        ChunkRejected: Not every delta is healthy; every other one is named.
        MergeFailed: A delta could not be merged; it is named.
        UploadFailed: The intermediate did not arrive.
    """
    from compaction.chunk import process  # noqa: PLC0415 - boto3 and all, for whoever calls

    return process(batch_id, chunk_index, chunk_deltas, deltas_by_collection)
