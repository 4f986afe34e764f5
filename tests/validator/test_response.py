"""What the validator tells, to whom, and how often: after the act, at least once, and seldom twice."""

from __future__ import annotations

import json
import os
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import boto3
import pytest

from devtools.damage.catalogue import apply_damage
from devtools.stack.stack import NOTICES, RESUBMIT, InvocationContext, LocalStack
from shared.aws.events import DeltaCorrupt, DeltaQuarantined, DeltaUndetermined, DeltaValidated, ResubmitRequest
from shared.model.delta import DATABASE, MANIFEST
from shared.model.verdict import Depth, Finding, Verdict
from shared.storage.store import Store
from tests.conftest import CopyOf
from tests.support import faults, sweep
from tests.support.uploads import files_of, in_queue, manifest_of, put, s3_event, stored
from tests.validator.conftest import Through
from validator.handler import handler
from validator.response import _stays_in_doubt

KEY = "words/delta/one"
NOTHING_FAILED: dict[str, Any] = {"batchItemFailures": []}
EVENT = in_queue(s3_event("deltas", f"{KEY}/{DATABASE}"))


@pytest.fixture(autouse=True)
def environment(stack: LocalStack, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DELTAGUARD_SETTLE_SECONDS", "0")
    monkeypatch.setenv("DELTAGUARD_ARRIVAL_SECONDS", "0")
    monkeypatch.setenv("DELTAGUARD_DEPTH", "structure")


@pytest.fixture
def healthy(healthy_delta: Path) -> dict[str, bytes]:
    return {**files_of(healthy_delta), MANIFEST: manifest_of(healthy_delta, "batch-40")}


@pytest.fixture
def broken(healthy: dict[str, bytes], healthy_delta: Path, copy_of: CopyOf) -> dict[str, bytes]:
    """The same with a database that lost a row, and a manifest that tells of the whole one."""
    folder = copy_of(healthy_delta)
    apply_damage("queue-row-deleted", folder)
    return {**healthy, DATABASE: (folder / DATABASE).read_bytes()}


def run(event: dict[str, Any] = EVENT) -> dict[str, Any]:
    return handler(event, InvocationContext())


def test_a_healthy_delta_is_told_of_once_however_many_events_there_are(
    stack: LocalStack, healthy: dict[str, bytes]
) -> None:
    put("deltas", KEY, healthy)
    assert [run() for _ in range(3)] == [NOTHING_FAILED] * 3
    (event,) = stack.taken(NOTICES)
    assert event["detail-type"] == "Delta Validated"
    told = DeltaValidated.model_validate(event["detail"])
    assert (told.delta, told.batch_id, told.depth) == (f"s3://deltas/{KEY}/", "batch-40", "structure")
    assert [(c.name, c.dimension, c.count) for c in told.collections] == [("words", 32, 50)]
    assert stack.taken(RESUBMIT) == []


def test_a_corrupt_delta_is_told_of_and_its_batch_asked_for_once(stack: LocalStack, broken: dict[str, bytes]) -> None:
    put("deltas", KEY, broken)
    assert [run() for _ in range(3)] == [NOTHING_FAILED] * 3
    (event,) = stack.taken(NOTICES)
    assert event["detail-type"] == "Delta Quarantined"
    told = DeltaQuarantined.model_validate(event["detail"])
    assert told.quarantine == f"s3://deltas/quarantine/{KEY}/{told.fingerprint}/"
    assert {"manifest.checksum_differs"} <= {finding.code for finding in told.findings}
    (body,) = stack.taken(RESUBMIT)
    request = ResubmitRequest.model_validate(body)
    assert (request.batch_id, request.attempt, request.quarantine) == ("batch-40", 1, told.quarantine)
    assert request.reason.startswith("manifest.")


def test_without_a_known_batch_nothing_is_asked_for(stack: LocalStack, broken: dict[str, bytes]) -> None:
    put("deltas", KEY, {name: data for name, data in broken.items() if name != MANIFEST})
    run()
    (event,) = stack.taken(NOTICES)
    assert event["detail"]["batch_id"] is None
    assert stack.taken(RESUBMIT) == []


def test_a_batch_id_of_megabytes_is_none(stack: LocalStack, broken: dict[str, bytes]) -> None:
    put("deltas", KEY, {**broken, MANIFEST: broken[MANIFEST].replace(b"batch-40", b"x" * 2_000_000)})
    assert run() == NOTHING_FAILED
    (event,) = stack.taken(NOTICES)
    assert event["detail"]["batch_id"] is None
    assert stack.taken(RESUBMIT) == []


def test_without_bus_and_queue_the_act_is_the_same(
    stack: LocalStack, broken: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("DELTAGUARD_EVENT_BUS")
    monkeypatch.delenv("DELTAGUARD_RESUBMIT_QUEUE_URL")
    put("deltas", KEY, broken)
    assert run() == NOTHING_FAILED
    assert stored("deltas", "words/") == {}
    assert stack.taken(NOTICES) == stack.taken(RESUBMIT) == []


def test_a_delta_that_could_not_be_checked_is_told_of_each_time_with_one_id(
    stack: LocalStack, healthy: dict[str, bytes], through: Through
) -> None:
    put("deltas", KEY, healthy)
    through(lambda request: faults.refusal("AccessDenied", 403)(request) if DATABASE in request.url else None)
    for _ in range(2):
        assert run()["batchItemFailures"] == [{"itemIdentifier": "message-1"}]
    one, two = (DeltaUndetermined.model_validate(event["detail"]) for event in stack.taken(NOTICES))
    assert one.id == two.id
    assert [finding.code for finding in one.findings] == ["check.access_denied"]


class TestDoubt:
    """What a person must look at is settled once one was told: the same bytes would only say the same again."""

    EVENT = in_queue(s3_event("deltas", f"words/delta/{DATABASE}"))

    @pytest.fixture(autouse=True)
    def stray(self, healthy: dict[str, bytes]) -> None:
        put("deltas", KEY, healthy)
        put("deltas", "words/delta", {DATABASE: b"SQLite format 3, almost"})

    def test_a_stray_file_above_deltas_is_told_of_and_nothing_moves(
        self, stack: LocalStack, capsys: pytest.CaptureFixture[str]
    ) -> None:
        before = stored("deltas")
        assert run(self.EVENT) == NOTHING_FAILED
        assert stored("deltas") == before
        (event,) = stack.taken(NOTICES)
        told = DeltaUndetermined.model_validate(event["detail"])
        assert told.delta == "s3://deltas/words/delta/"
        assert "verdict.deltas_below" in {finding.code for finding in told.findings}
        out = capsys.readouterr().out
        assert "a person must look at it" in out and "DeltasUndetermined" in out

    @pytest.mark.usefixtures("chroma_dies")
    def test_where_chroma_dies_of_what_reads_healthy_a_person_is_told_and_nothing_moves(
        self, stack: LocalStack, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        monkeypatch.setenv("DELTAGUARD_DEPTH", "open")
        before = stored("deltas")
        assert run(EVENT) == NOTHING_FAILED
        assert stored("deltas") == before
        (event,) = stack.taken(NOTICES)
        told = DeltaUndetermined.model_validate(event["detail"])
        assert "verdict.disagreement" in {finding.code for finding in told.findings}
        metrics = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
        assert [line["VerdictDisagreements"] for line in metrics if "VerdictDisagreements" in line] == [[1.0]]
        assert stack.taken(RESUBMIT) == []

    def test_it_is_not_settled_before_somebody_was_told(self, stack: LocalStack, through: Through) -> None:
        refused = faults.refusal("AccessDenied", 403)
        through(lambda request: refused(request) if _is_service(request, "AWSEvents") else None)
        assert run(self.EVENT)["batchItemFailures"] == [{"itemIdentifier": "message-1"}]
        through(lambda _: None)
        assert run(self.EVENT) == NOTHING_FAILED
        assert len(stack.taken(NOTICES)) == 1

    def test_it_is_not_settled_while_the_environment_has_a_part_in_it(self) -> None:
        doubt, fault = (Finding(code, "", "seen") for code in ("verdict.disagreement", "check.throttled"))
        both, one, other = (
            _stays_in_doubt(Verdict("s3://deltas/d/", Depth.OPEN, findings))
            for findings in ((doubt, fault), (doubt,), (fault,))
        )
        assert (both, one, other) == (False, True, False)

    def test_a_late_event_of_a_stray_file_that_is_gone_is_dealt_with(self, stack: LocalStack) -> None:
        boto3.client("s3").delete_object(Bucket="deltas", Key=f"words/delta/{DATABASE}")
        assert run(self.EVENT) == NOTHING_FAILED
        assert stack.taken(NOTICES) == []


def test_nobody_is_told_that_a_delta_changed_while_it_was_looked_at(
    stack: LocalStack, healthy: dict[str, bytes], through: Through
) -> None:
    put("deltas", KEY, healthy)

    def overwrite(request: Any) -> None:
        if request.method == "HEAD" and DATABASE in request.url:
            put("deltas", KEY, {DATABASE: b"newer"})

    through(overwrite)
    assert run()["batchItemFailures"] == [{"itemIdentifier": "message-1"}]
    assert stack.taken(NOTICES) == []


def test_a_bus_that_cannot_be_reached_keeps_the_message_until_it_can(
    stack: LocalStack, healthy: dict[str, bytes], broken: dict[str, bytes], through: Through
) -> None:
    put("deltas", KEY, broken)
    put("deltas", "words/delta/two", healthy)
    event = in_queue(s3_event("deltas", f"{KEY}/{DATABASE}"), s3_event("deltas", f"words/delta/two/{DATABASE}"))
    through(lambda request: faults.refusal("AccessDenied", 403)(request) if _is_service(request, "AWSEvents") else None)
    assert len(run(event)["batchItemFailures"]) == 2
    assert stored("deltas", f"{KEY}/") == {}, "the quarantine does not wait for the bus"
    through(lambda _: None)
    assert run(event) == NOTHING_FAILED
    assert {event["detail-type"] for event in stack.taken(NOTICES)} == {"Delta Quarantined", "Delta Validated"}
    assert len(stack.taken(RESUBMIT)) == 1


def test_what_was_left_untold_is_told_although_a_healthy_delta_lies_there_now(
    stack: LocalStack, healthy: dict[str, bytes], broken: dict[str, bytes], through: Through
) -> None:
    put("deltas", KEY, broken)
    through(_crash_at_service("AWSEvents"))
    with pytest.raises(faults.Crash):
        run()
    put("deltas", KEY, healthy)
    through(lambda _: None)
    assert run() == NOTHING_FAILED
    assert {event["detail-type"] for event in stack.taken(NOTICES)} == {"Delta Quarantined", "Delta Validated"}


@pytest.mark.slow
def test_killed_before_any_request_a_quarantine_is_finished_and_told_of_by_the_next_run(
    stack: LocalStack, broken: dict[str, bytes], through: Through
) -> None:
    """Also the notices: after the last delete, before the event, between event and request, before the mark."""
    for killed in sweep.stepping(4):
        key = f"words/delta/{killed}"
        event = in_queue(s3_event("deltas", f"{key}/{DATABASE}"))
        put("deltas", key, broken)
        through(faults.CrashAt(killed))
        try:
            run(event)
            break
        except faults.Crash:
            through(lambda _: None)
            assert run(event) == NOTHING_FAILED
        held = stored("deltas", f"quarantine/{key}/")
        assert stored("deltas", f"{key}/") == {}
        assert {name.rpartition("/")[2] for name in held} >= {"quarantine.json", "told.json"}
        assert broken.items() <= {name.split("/", 5)[5]: data for name, data in held.items()}.items()
        assert len({event["detail"]["id"] for event in stack.taken(NOTICES)}) == 1
        assert len({body["quarantine"] for body in stack.taken(RESUBMIT)}) == 1
    assert killed > 30


@pytest.mark.slow
def test_killed_before_any_request_a_healthy_delta_is_tagged_and_told_of_by_the_next_run(
    stack: LocalStack, healthy: dict[str, bytes], through: Through
) -> None:
    for killed in sweep.stepping(4):
        key = f"words/delta/{killed}"
        event = in_queue(s3_event("deltas", f"{key}/{DATABASE}"))
        put("deltas", key, healthy)
        through(faults.CrashAt(killed))
        try:
            run(event)
            break
        except faults.Crash:
            through(lambda _: None)
            assert run(event) == NOTHING_FAILED
        assert stored("deltas", f"{key}/") == {f"{key}/{name}": data for name, data in healthy.items()}
        tags = boto3.client("s3").get_object_tagging(Bucket="deltas", Key=f"{key}/{DATABASE}")["TagSet"]
        assert {"Key": "deltaguard:status", "Value": "healthy"} in tags
        told = stack.taken(NOTICES)
        assert {event["detail-type"] for event in told} == {"Delta Validated"}
        assert len({event["detail"]["id"] for event in told}) == 1
    assert killed > 12


def _is_service(request: Any, target: str) -> bool:
    return target in str(request.headers.get("X-Amz-Target", b""))


def _crash_at_service(target: str) -> faults.Answer:
    def answer(request: Any) -> None:
        if _is_service(request, target):
            raise faults.Crash

    return answer


def test_a_database_in_a_store_without_tags_is_left_as_it_is(
    stack: LocalStack, aws: str, foreign_store: Store, healthy: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", os.environ["AWS_ENDPOINT_URL"])
    monkeypatch.setenv("AWS_ENDPOINT_URL", aws)
    put("deltas", KEY, healthy)
    assert [run(), run()] == [NOTHING_FAILED] * 2
    assert [event["detail-type"] for event in stack.taken(NOTICES)] == ["Delta Validated"], "told once, not twice"
    assert stored("deltas", f"{KEY}/") == {f"{KEY}/{name}": data for name, data in healthy.items()}


def test_where_only_reports_are_wanted_a_corrupt_delta_is_told_of_and_stays(
    stack: LocalStack, broken: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DELTAGUARD_ACT", "report")
    put("deltas", KEY, broken)
    before = stored("deltas", "")
    assert run() == NOTHING_FAILED
    (event,) = stack.taken(NOTICES)
    told = DeltaCorrupt.model_validate(event["detail"])
    assert (event["detail-type"], told.delta, told.batch_id) == ("Delta Corrupt", f"s3://deltas/{KEY}/", "batch-40")
    assert told.kept == "DELTAGUARD_ACT=report moves nothing"
    assert stack.taken(RESUBMIT) == []
    assert stored("deltas", "") == before


def test_a_flood_of_corrupt_deltas_is_told_of_and_no_longer_moved(
    stack: LocalStack, broken: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DELTAGUARD_MAX_QUARANTINES_PER_MINUTE", "2")
    frozen = datetime.now(UTC) + timedelta(minutes=1)  # one minute, however slow this machine is
    monkeypatch.setattr(Store, "now", lambda _: frozen)
    names = [f"words/delta/{number}" for number in range(4)]
    for name in names:
        put("deltas", name, broken)
        assert run(in_queue(s3_event("deltas", f"{name}/{DATABASE}"))) == NOTHING_FAILED
    assert [bool(stored("deltas", f"{name}/")) for name in names] == [False, False, True, True]
    kinds = [event["detail-type"] for event in stack.taken(NOTICES)]
    assert sorted(kinds) == ["Delta Corrupt"] * 2 + ["Delta Quarantined"] * 2
    monkeypatch.setattr(Store, "now", lambda _: frozen + timedelta(minutes=1))
    assert run(in_queue(s3_event("deltas", f"{names[2]}/{DATABASE}"))) == NOTHING_FAILED
    assert stored("deltas", f"{names[2]}/") == {}, "the next minute allows for more"
