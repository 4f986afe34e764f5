"""The gate: a chunk passes whole, or is refused with every bad delta named."""

from __future__ import annotations

import json
import threading
from pathlib import Path
from typing import Any

import pytest

from devtools.damage.catalogue import apply_damage
from devtools.damage.deltas import DeltaRecipe, build_delta
from devtools.stack.stack import NOTICES, LocalStack
from scanner.gate import JOBS, ChunkRejected, precheck
from shared.aws import events
from shared.aws.messaging import current_messaging
from shared.model.chunk import Chunk
from shared.model.errors import TargetError
from shared.model.settings import Settings
from shared.model.verdict import Depth, Status
from shared.quarantine.move import quarantine
from shared.storage.client import s3_client
from shared.storage.store import Store
from tests.conftest import CopyOf, PutDelta
from tests.support import faults
from tests.support.verdicts import confirmed
from validator.response import respond


def chunk(*keys: str) -> list[dict[str, Any]]:
    """Deltas as a compaction describes them."""
    return [
        {"delta_key": key, "delta_id": key.strip("/")[-1], "embedding_count": 50, "collection": "words"} for key in keys
    ]


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
    done = quarantine(store, location, confirmed(store, location, settled), settled)
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


def test_a_delta_that_reads_healthy_and_that_chroma_dies_of_does_not_pass(
    bucket: str, healthy_delta: Path, put_delta: PutDelta, chroma_dies: None
) -> None:
    put_delta(healthy_delta, "d/1")
    with pytest.raises(ChunkRejected, match=r"d/1/ is undetermined: .*verdict\.disagreement") as raised:
        precheck(bucket, ["d/1"], depth=Depth.OPEN)
    assert raised.value.rejected[0].status is Status.UNDETERMINED


def test_tagged_deltas_cost_a_request_each_and_one_for_all_and_no_object_is_read(
    bucket: str, store: Store, healthy_delta: Path, put_delta: PutDelta, settled: Settings
) -> None:
    keys = [f"d/{name}" for name in range(5)]
    for key in keys:
        location = put_delta(healthy_delta, key)
        assert respond(store, current_messaging(), location, confirmed(store, location, settled), settled)
    requests: list[tuple[str, str]] = []
    watched = faults.doing(lambda request: requests.append((request.method, request.url)))
    precheck(bucket, chunk(*keys), store=watched)
    assert len(requests) == len(keys) + 1
    assert sum("list-type=2" in url for _, url in requests) == 1
    assert sum(url.endswith("chroma.sqlite3?tagging") for _, url in requests) == len(keys)
    assert {method for method, _ in requests} == {"GET"}


def test_a_chunk_whose_deltas_cannot_be_listed_together_is_judged_delta_by_delta(
    bucket: str, healthy_delta: Path, put_delta: PutDelta
) -> None:
    keys = [put_delta(healthy_delta, f"d/{name}").prefix for name in range(4)]

    def together(request: Any) -> bool:
        return "start-after" in request.url

    assert len(precheck(bucket, keys, store=faults.answering("AccessDenied", 403, together))) == 4


def test_all_deltas_are_judged_at_once(bucket: str, healthy_delta: Path, put_delta: PutDelta) -> None:
    keys = [put_delta(healthy_delta, f"d/{name}").prefix for name in range(4)]
    together = threading.Barrier(4)  # breaks after its time unless four requests are under way at the same moment

    def wait_for_the_others(request: Any) -> None:
        if request.url.endswith("?tagging"):
            together.wait(60)

    assert len(precheck(bucket, keys, store=faults.doing(wait_for_the_others))) == 4


def test_the_pool_of_connections_is_not_smaller_than_the_jobs(store: Store) -> None:
    assert s3_client().meta.config.max_pool_connections >= JOBS


def test_a_refusal_is_data_too_with_advice_on_each_delta(
    bucket: str, store: Store, healthy_delta: Path, broken_delta: Path, put_delta: PutDelta, settled: Settings
) -> None:
    put_delta(healthy_delta, "d/1")
    put_delta(broken_delta, "d/2")
    location = put_delta(broken_delta, "d/3")
    quarantine(store, location, confirmed(store, location, settled), settled)
    with pytest.raises(ChunkRejected) as raised:
        precheck(bucket, chunk("d/1", "d/2", "d/3", "d/4"))
    refusal = json.loads(json.dumps(raised.value.as_json()))
    assert refusal["total"] == 4
    assert [(delta["delta"][-4:], delta["status"], delta["advice"]["action"]) for delta in refusal["rejected"]] == [
        ("d/2/", "corrupt", "quarantine"),
        ("d/3/", "corrupt", "resubmit"),
        ("d/4/", "corrupt", "resubmit"),
    ]
    assert refusal["rejected"][0]["findings"][0]["code"] == "sqlite.truncated"
    assert "  quarantine: take it away" in str(raised.value)
    assert [advice and advice.action for advice in raised.value.advice] == ["quarantine", "resubmit", "resubmit"]


@pytest.mark.parametrize(
    ("said", "told"),
    [
        ({"embedding_count": 51}, "the chunk says 51 embeddings in 'words', the delta holds 50 in 'words'"),
        ({"collection": "letters"}, "the chunk says collection 'letters', the delta holds 50 in 'words'"),
        ({"collection": None, "embedding_count": 9}, "the chunk says 9 embeddings in all"),
    ],
)
def test_a_delta_that_holds_other_than_the_chunk_says_is_refused_and_not_called_corrupt(
    bucket: str, healthy_delta: Path, put_delta: PutDelta, said: dict[str, Any], told: str
) -> None:
    put_delta(healthy_delta, "d/1")
    with pytest.raises(ChunkRejected) as raised:
        precheck(bucket, [chunk("d/1")[0] | said])
    (verdict,) = raised.value.rejected
    assert (verdict.status, [f.code for f in verdict.findings]) == (Status.UNDETERMINED, ["chunk.content_differs"])
    assert told in str(raised.value)
    assert raised.value.advice[0] is not None and raised.value.advice[0].action == "compare"


@pytest.mark.parametrize("said", [{}, {"collection": None}, {"embedding_count": None}])
def test_what_the_chunk_does_not_say_is_not_compared(
    bucket: str, healthy_delta: Path, put_delta: PutDelta, said: dict[str, Any]
) -> None:
    put_delta(healthy_delta, "d/1")
    assert precheck(bucket, [chunk("d/1")[0] | said])[0].status is Status.HEALTHY


def test_an_empty_delta_of_which_the_chunk_says_so_passes(bucket: str, put_delta: PutDelta, tmp_path: Path) -> None:
    build_delta(tmp_path / "empty", DeltaRecipe(collections=0))
    put_delta(tmp_path / "empty", "d/1")
    assert precheck(bucket, [chunk("d/1")[0] | {"embedding_count": 0}])


def test_an_overwritten_delta_loses_its_tags_force(
    bucket: str, store: Store, healthy_delta: Path, broken_delta: Path, put_delta: PutDelta, settled: Settings
) -> None:
    location = put_delta(healthy_delta, "d/1")
    respond(store, current_messaging(), location, confirmed(store, location, settled), settled)
    tags = store.tags(bucket, location.key("chroma.sqlite3"))
    put_delta(broken_delta, "d/1")
    store.set_tags(bucket, location.key("chroma.sqlite3"), tags)
    with pytest.raises(ChunkRejected):
        precheck(bucket, ["d/1"])


@pytest.mark.parametrize("delta", ["", {}, {"delta_key": None}, {"delta_key": ""}, "/", "d", None, 7])
def test_a_delta_without_a_key_is_a_clear_error(bucket: str, delta: Any) -> None:
    with pytest.raises(TargetError, match="not a chunk: deltas"):
        precheck(bucket, [delta])


def test_a_delta_that_is_there_twice_is_a_clear_error(bucket: str) -> None:
    with pytest.raises(TargetError, match="'d/1' is there more than once"):
        precheck(bucket, ["d/1", "d/1/"])


def test_a_chunk_that_was_read_before_is_taken_as_it_is(bucket: str, healthy_delta: Path, put_delta: PutDelta) -> None:
    put_delta(healthy_delta, "d/1")
    assert len(precheck(bucket, Chunk.of({"chunk_index": 3, "deltas": chunk("d/1")}))) == 1


def test_a_refusal_is_told_on_the_bus_with_batch_and_chunk(
    stack: LocalStack, broken_delta: Path, put_delta: PutDelta
) -> None:
    put_delta(broken_delta, "d/2")
    refused = Chunk.of({"batch_id": "batch-40", "chunk_index": 40, "deltas": [{"delta_key": "d/2"}]})
    with pytest.raises(ChunkRejected):
        precheck("deltas", refused)
    (event,) = stack.taken(NOTICES)
    notice = events.ChunkRejected.model_validate(event["detail"])
    assert (event["detail-type"], notice.batch_id, notice.chunk_index) == ("Chunk Rejected", "batch-40", 40)
    assert [(delta.delta, delta.status) for delta in notice.deltas] == [("s3://deltas/d/2/", Status.CORRUPT)]


def test_a_bus_that_is_not_there_changes_no_refusal(bucket: str, broken_delta: Path, put_delta: PutDelta) -> None:
    put_delta(broken_delta, "d/2")
    settings = Settings(event_bus="arn:aws:events:us-east-1:123456789012:event-bus/nowhere")
    with pytest.raises(ChunkRejected):
        precheck(bucket, chunk("d/2"), settings=settings)
