"""The Lambda's operations: what they need, what they answer, and how they refuse."""

from __future__ import annotations

import json
from typing import Any

import boto3
import pytest

from compaction.handler import InvalidRequest, handler
from scanner.gate import ChunkRejected
from tests.compaction.conftest import Deltas

KEY = "intermediate/b/chunk-{}/"


def call(operation: str = "process_chunk", **more: Any) -> dict[str, Any]:
    return handler({"operation": operation, "batch_id": "b", **more}, None)


@pytest.fixture
def chunks_file(bucket: str, chunk: Deltas) -> dict[str, str]:
    """Three chunks in S3; the second is empty."""
    chunks = [{"chunk_index": i, "batch_id": "b", "deltas": part} for i, part in enumerate([chunk[:2], [], chunk[2:]])]
    boto3.client("s3").put_object(Bucket=bucket, Key="chunks/b.json", Body=json.dumps(chunks).encode())
    return {"chunks_s3_bucket": bucket, "chunks_s3_key": "chunks/b.json"}


@pytest.mark.parametrize("name", ["deltas", "delta_results", "chunk_deltas"])
def test_a_chunk_that_comes_with_the_event_is_merged(name: str, chunk: Deltas) -> None:
    answer = call(chunk_index=7, **{name: chunk})
    assert (answer["status"], answer["chunk_index"], answer["intermediate_key"]) == ("merged", 7, KEY.format(7))
    assert answer["embeddings_processed"] == 12 + 35 + 9


def test_a_chunk_is_found_in_s3(chunks_file: dict[str, str]) -> None:
    answer = call(chunk_index=2, **chunks_file)
    assert (answer["intermediate_key"], answer["embeddings_processed"]) == (KEY.format(2), 9)


def test_the_bucket_of_the_chunks_file_is_by_default_that_of_the_compaction(chunks_file: dict[str, str]) -> None:
    assert call(chunk_index=2, chunks_s3_key=chunks_file["chunks_s3_key"])["embeddings_processed"] == 9


def test_several_chunks_are_answered_one_by_one_and_an_empty_one_is_skipped(chunks_file: dict[str, str]) -> None:
    answer = call(chunk_indices=[2, 1, 0], **chunks_file)
    assert [(r["chunk_index"], r["status"], r["intermediate_key"]) for r in answer["results"]] == [
        (2, "merged", KEY.format(2)),
        (1, "skipped", None),
        (0, "merged", KEY.format(0)),
    ]
    assert (answer["status"], answer["embeddings_processed"]) == ("merged", 12 + 35 + 9)


def test_an_empty_chunk_is_skipped_and_that_is_a_success() -> None:
    answer = call(chunk_index=0, deltas=[])
    assert answer == {
        "status": "skipped", "batch_id": "b", "chunk_index": 0, "intermediate_key": None, "embeddings_processed": 0
    }  # fmt: skip


def test_the_answers_of_each_step_are_what_the_next_one_takes(chunks_file: dict[str, str], bucket: str) -> None:
    chunks = call(chunk_indices=[0, 1, 2], **chunks_file)
    group = call("merge_chunk_group", group_index=0, results=[chunks])
    final = call("final_merge", results=[group])
    assert group["intermediate_key"] == "intermediate/b/group-0/"
    assert final["status"] == "merged"
    assert final["embeddings_processed"] == 12 + 35 + 9
    pointer = json.loads(boto3.client("s3").get_object(Bucket=bucket, Key=final["latest_key"])["Body"].read())
    assert pointer["snapshot_key"] == final["snapshot_key"]
    json.dumps([chunks, group, final])


def test_a_group_or_batch_of_nothing_but_skipped_chunks_is_skipped() -> None:
    skipped = call(chunk_index=0, deltas=[])
    assert call("merge_chunk_group", group_index=0, results=[skipped])["status"] == "skipped"
    assert call("final_merge", results=[skipped])["status"] == "skipped"


def test_a_refused_chunk_is_raised_so_that_the_state_fails(chunk: Deltas) -> None:
    with pytest.raises(ChunkRejected, match="words/delta/gone/ is"):
        call(chunk_index=0, deltas=[*chunk, {"delta_key": "words/delta/gone", "collection": "words"}])


@pytest.mark.parametrize(
    ("event", "message"),
    [
        ([], "the event is a list"),
        ({}, "operation None is none of process_chunk, merge_chunk_group, final_merge"),
        ({"operation": ["process_chunk"]}, "is none of"),
        ({"operation": "process_chunk"}, "process_chunk: batch_id None"),
        ({"operation": "process_chunk", "batch_id": "b", "deltas": []}, "chunk_index None"),
        ({"operation": "process_chunk", "batch_id": "b", "chunk_index": 0}, "give the chunk as `deltas`"),
        (
            {"operation": "process_chunk", "batch_id": "b", "chunk_index": 0, "deltas": [], "chunks_s3_key": "a"},
            "and not both",
        ),
        ({"operation": "process_chunk", "batch_id": "b", "chunk_index": 0, "deltas": "a/b"}, "not a chunk"),
        (
            {"operation": "process_chunk", "batch_id": "b", "chunk_index": 0, "deltas": [{"delta_key": "a"}]},
            "only a prefix",
        ),
        ({"operation": "process_chunk", "batch_id": "b", "chunk_indices": []}, "a list of 1 to"),
        ({"operation": "process_chunk", "batch_id": "b", "chunk_indices": [0, 0]}, "names a chunk twice"),
        ({"operation": "process_chunk", "batch_id": "b", "chunk_indices": [0]}, "chunks_s3_key must be"),
        ({"operation": "merge_chunk_group", "batch_id": "b", "intermediate_keys": []}, "group_index None"),
        ({"operation": "final_merge", "batch_id": "b"}, "`intermediate_keys` or as `results`"),
        ({"operation": "final_merge", "batch_id": "b", "intermediate_keys": "a"}, "must be a list"),
        ({"operation": "final_merge", "batch_id": "b", "intermediate_keys": [1]}, "must be keys"),
        ({"operation": "final_merge", "batch_id": "b", "intermediate_keys": ["a/b"]}, "no intermediate of batch b"),
    ],
)
def test_a_wrong_event_is_refused_with_the_place_of_the_mistake(event: Any, message: str) -> None:
    with pytest.raises(InvalidRequest, match=message):
        handler(event, None)


@pytest.mark.parametrize(
    ("index", "message"), [(3, "no chunk 3 among the 3"), (0, "says that it is chunk 0 of batch b")]
)
def test_a_chunk_of_another_number_or_batch_is_refused(index: int, message: str, chunks_file: dict[str, str]) -> None:
    with pytest.raises(InvalidRequest, match=message):
        handler(
            {"operation": "process_chunk", "batch_id": "b" if index else "c", "chunk_index": index, **chunks_file}, None
        )


def test_one_wrong_chunk_of_several_and_none_is_merged(chunks_file: dict[str, str], objects: Any) -> None:
    with pytest.raises(InvalidRequest, match="no chunk 9"):
        call(chunk_indices=[0, 9], **chunks_file)
    assert objects("intermediate/") == set()
