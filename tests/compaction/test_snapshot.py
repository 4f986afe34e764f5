"""A batch ends as one snapshot, and the pointer moves to it once, or not at all."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import boto3
import pytest

from compaction import snapshot as snapshot_module
from compaction.chunk import merge_group, process
from compaction.lock import LockHeld, LockLost, held_lock
from compaction.snapshot import final_merge
from scanner.gate import ChunkRejected
from shared.check.judgement import judge_stored
from shared.model.delta import DeltaLocation
from shared.model.errors import StorageError, TargetError
from shared.model.settings import Settings
from shared.model.verdict import Depth, Status
from shared.storage.store import Store
from tests.compaction.conftest import Deltas, rows_of, upserted

LATEST = "snapshots/latest.json"


def latest(bucket: str) -> dict[str, Any]:
    return json.loads(boto3.client("s3").get_object(Bucket=bucket, Key=LATEST)["Body"].read())


@pytest.fixture
def keys(chunk: Deltas) -> list[str]:
    """The intermediates of a batch of two chunks."""
    parts = [chunk[:2], chunk[2:]]
    return [process("b", number, part, {"words": part})["intermediate_key"] for number, part in enumerate(parts)]


@pytest.mark.slow
def test_a_batch_ends_as_one_healthy_snapshot_with_all_that_its_deltas_held(
    keys: list[str], chunk_folders: list[Path], stored: Any, store: Store, bucket: str, tmp_path: Path
) -> None:
    group = merge_group("b", 0, keys)["intermediate_key"]
    answer = final_merge("b", [group])
    assert answer["latest_key"] == LATEST
    pointer = latest(bucket)
    expected = upserted(rows_of(chunk_folders, tmp_path))
    assert {name: found["rows"] for name, found in stored(pointer["snapshot_key"]).items()} == expected
    assert pointer["snapshot_key"] == answer["snapshot_key"]
    assert pointer["embeddings"] == len(expected["words"])
    verdict = judge_stored(store, DeltaLocation(bucket, answer["snapshot_key"]), Depth.OPEN, Settings()).verdict
    assert (verdict.status, verdict.fingerprint) == (Status.HEALTHY, pointer["fingerprint"])


def test_each_snapshot_has_a_key_of_its_own_and_the_pointer_knows_the_one_before(keys: list[str], bucket: str) -> None:
    first = final_merge("b", keys[:1])["snapshot_key"]
    second = final_merge("b", keys)["snapshot_key"]
    assert first != second
    assert (latest(bucket)["snapshot_key"], latest(bucket)["previous"]) == (second, first)


def test_a_repeated_final_merge_changes_nothing(keys: list[str], bucket: str) -> None:
    first = final_merge("b", keys)
    pointer = latest(bucket)
    assert final_merge("b", keys)["snapshot_key"] == first["snapshot_key"]
    assert latest(bucket) == pointer


def test_only_one_final_merge_is_at_work(keys: list[str], store: Store, bucket: str) -> None:
    with held_lock(store, bucket, "snapshots/lock.json", "another"), pytest.raises(LockHeld, match="another"):
        final_merge("b", keys)


@pytest.mark.parametrize("published_before", [False, True])
def test_one_that_was_overtaken_does_not_move_the_pointer(
    published_before: bool, keys: list[str], bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is stopped after its last look at the lock; meanwhile the lock expires, and another publishes."""
    if published_before:
        final_merge("b", keys[:1])
    other = {"format": 1, "snapshot_key": "snapshots/other/1/", "batch_id": "other", "fingerprint": "f"}
    other |= {"embeddings": 1, "published_at": "2026-01-01T00:00:00Z", "previous": None}

    def overtaken(*_: Any) -> None:
        boto3.client("s3").put_object(Bucket=bucket, Key=LATEST, Body=json.dumps(other).encode())

    monkeypatch.setattr("compaction.lock.Lock.check", overtaken)
    with pytest.raises(LockLost, match="was moved by another process"):
        final_merge("b", keys)
    assert latest(bucket)["snapshot_key"] == "snapshots/other/1/"


def test_one_whose_lock_expired_while_it_merged_publishes_nothing(
    keys: list[str], objects: Callable[[str], set[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(snapshot_module, "held_lock", lambda *arguments: held_lock(*arguments, seconds=0))
    with pytest.raises(LockLost, match="expired"):
        final_merge("b", keys)
    assert LATEST not in objects("snapshots/")


def test_a_damaged_intermediate_is_refused_and_the_pointer_stays(keys: list[str], bucket: str) -> None:
    final_merge("b", keys[:1])
    pointer = latest(bucket)
    boto3.client("s3").put_object(Bucket=bucket, Key=f"{keys[1]}chroma.sqlite3", Body=b"not a database")
    with pytest.raises(ChunkRejected, match=keys[1]):
        final_merge("b", keys)
    assert latest(bucket) == pointer


def test_a_pointer_that_cannot_be_read_is_left_alone(keys: list[str], bucket: str) -> None:
    boto3.client("s3").put_object(Bucket=bucket, Key=LATEST, Body=b"{}")
    with pytest.raises(StorageError, match="not a pointer to a snapshot"):
        final_merge("b", keys)


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ([], "no intermediates"),
        (["intermediate/other/chunk-0"], "no intermediate of batch b"),
        (["words/delta/one"], "no intermediate of batch b"),
        (["intermediate/b/chunk-0", "intermediate/b/chunk-0/"], "more than once"),
    ],
)
def test_what_is_no_intermediate_of_the_batch_is_refused(keys: list[str], message: str) -> None:
    with pytest.raises(TargetError, match=message):
        final_merge("b", keys)
    with pytest.raises(TargetError, match=message):
        merge_group("b", 0, keys)
