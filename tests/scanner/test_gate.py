"""The gate: a chunk passes whole, or is refused with every bad delta named."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from local.damage import apply_damage
from scanner.gate import ChunkRejected, precheck
from shared.errors import TargetError
from shared.judgement import judge_stored
from shared.quarantine import quarantine
from shared.settings import Settings
from shared.storage import Store
from shared.verdict import Depth, Status
from tests import faults
from tests.conftest import CopyOf, PutDelta
from validator.response import respond


def chunk(*keys: str) -> list[dict[str, Any]]:
    """Deltas as a compaction describes them."""
    return [{"delta_key": key, "delta_id": key[-1], "embedding_count": 50, "collection": "words"} for key in keys]


@pytest.fixture
def broken_delta(healthy_delta: Path, copy_of: CopyOf) -> Path:
    folder = copy_of(healthy_delta)
    apply_damage("sqlite-truncated", folder)
    return folder


def test_a_healthy_chunk_passes_in_its_order(bucket: str, healthy_delta: Path, put_delta: PutDelta) -> None:
    keys = [put_delta(healthy_delta, f"d/{name}").prefix for name in "cab"]
    verdicts = precheck(bucket, chunk(*keys))
    assert [verdict.delta for verdict in verdicts] == [f"s3://{bucket}/{key}" for key in keys]
    assert {verdict.status for verdict in verdicts} == {Status.HEALTHY}


def test_an_empty_chunk_passes(bucket: str) -> None:
    assert precheck(bucket, []) == ()


def test_the_refusal_names_every_bad_delta_with_its_findings(
    bucket: str, healthy_delta: Path, broken_delta: Path, put_delta: PutDelta, capsys: pytest.CaptureFixture[str]
) -> None:
    put_delta(healthy_delta, "d/1")
    put_delta(broken_delta, "d/2")
    put_delta(broken_delta, "d/4")
    with pytest.raises(ChunkRejected) as raised:
        precheck(bucket, chunk("d/1", "d/2", "d/3", "d/4"))
    assert [verdict.delta for verdict in raised.value.rejected] == [f"s3://{bucket}/d/{i}/" for i in (2, 3, 4)]
    assert "3 of 4 deltas are not healthy" in str(raised.value)
    for part in ("d/2/ is corrupt: sqlite.truncated", "d/3/ is corrupt: layout.database_missing", "d/4/ is corrupt"):
        assert part in str(raised.value)
    output = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert sum(line["ChunksRejected"][0] for line in output if "ChunksRejected" in line) == 1


def test_a_quarantined_delta_is_named_with_its_place_and_reason(
    bucket: str, store: Store, broken_delta: Path, put_delta: PutDelta, settled: Settings
) -> None:
    location = put_delta(broken_delta, "d/1")
    done = quarantine(store, location, judge_stored(store, location, Depth.STRUCTURE, settled), settled)
    with pytest.raises(ChunkRejected, match=r"quarantine\.held") as raised:
        precheck(bucket, ["d/1"])
    assert done.place.uri in str(raised.value)
    assert "sqlite.truncated" in str(raised.value)


def test_what_cannot_be_checked_does_not_pass_either(
    bucket: str, healthy_delta: Path, put_delta: PutDelta, fast_retries: None
) -> None:
    put_delta(healthy_delta, "d/1")
    with pytest.raises(ChunkRejected) as raised:
        precheck(bucket, ["d/1"], store=faults.answering("SlowDown", 503))
    assert raised.value.rejected[0].status is Status.UNDETERMINED
    assert "check.throttled" in str(raised.value)


def test_tagged_deltas_are_not_read_again(
    bucket: str, store: Store, healthy_delta: Path, put_delta: PutDelta, settled: Settings
) -> None:
    location = put_delta(healthy_delta, "d/1")
    assert respond(store, location, judge_stored(store, location, Depth.STRUCTURE, settled), settled)
    requests: list[str] = []
    precheck(bucket, ["d/1"], store=faults.doing(lambda request: requests.append(request.url)))
    assert len(requests) == 2
    assert requests[1].endswith("?tagging")


def test_an_overwritten_delta_loses_its_tags_force(
    bucket: str, store: Store, healthy_delta: Path, broken_delta: Path, put_delta: PutDelta, settled: Settings
) -> None:
    location = put_delta(healthy_delta, "d/1")
    respond(store, location, judge_stored(store, location, Depth.STRUCTURE, settled), settled)
    tags = store.tags(bucket, location.key("chroma.sqlite3"))
    put_delta(broken_delta, "d/1")
    store.set_tags(bucket, location.key("chroma.sqlite3"), tags)
    with pytest.raises(ChunkRejected):
        precheck(bucket, ["d/1"])


@pytest.mark.parametrize("delta", ["", {}, {"delta_key": None}, {"delta_key": ""}, "/"])
def test_a_delta_without_a_key_is_a_clear_error(bucket: str, delta: Any) -> None:
    with pytest.raises(TargetError):
        precheck(bucket, [delta])
