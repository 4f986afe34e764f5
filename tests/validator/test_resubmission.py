"""The Lambda behind the resubmit queue: from a corrupt delta to its batch being started again, and to a person."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import boto3
import pytest

from devtools.damage.catalogue import apply_damage
from devtools.stack.stack import BATCHES, NOTICES, RESUBMIT, InvocationContext, LocalStack
from shared.aws.events import ResubmitRequest
from shared.aws.messaging import Messaging
from shared.model.delta import DATABASE, MANIFEST, DeltaLocation
from shared.model.errors import SettingsError
from tests.conftest import CopyOf
from tests.support import faults
from tests.support.records import place_for, plant, record_of
from tests.support.uploads import files_of, in_queue, manifest_of, put
from validator.events import EventError
from validator.handler import handler as validate
from validator.resubmission import handler

DELTA = "s3://deltas/words/delta/planted/"
RECORDED = record_of(DeltaLocation.parse(DELTA))
REQUEST = ResubmitRequest(
    batch_id="batch-40",
    delta=DELTA,
    reason="sqlite.truncated: 100 bytes are lost",
    attempt=1,
    quarantine=place_for(RECORDED).uri,
    fingerprint=RECORDED.fingerprint,
).model_dump()


@pytest.fixture(autouse=True)
def environment(stack: LocalStack, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DELTAGUARD_SETTLE_SECONDS", "0")
    monkeypatch.setenv("DELTAGUARD_ARRIVAL_SECONDS", "0")
    monkeypatch.setenv("DELTAGUARD_DEPTH", "structure")
    plant(RECORDED)


def test_a_batch_that_stays_corrupt_is_processed_three_times_more_and_then_a_person_is_told(
    stack: LocalStack, healthy_delta: Path, copy_of: CopyOf
) -> None:
    manifest = manifest_of(healthy_delta, "batch-40")
    tries = 0
    pending: list[Any] = [None]  # the first processing of the batch
    while pending:
        pending.pop()
        tries += 1
        folder = copy_of(healthy_delta)
        apply_damage("queue-row-deleted", folder, tries)
        put("deltas", f"words/delta/{tries}", {**files_of(folder), MANIFEST: manifest})
        while stack.deliver(validate) or stack.deliver(handler, RESUBMIT):
            pass
        pending += stack.taken(BATCHES)
    assert tries == 1 + 3
    told = [event["detail-type"] for event in stack.taken(NOTICES)]
    assert sorted(told) == ["Delta Quarantined"] * 4 + ["Resubmission Exhausted"]
    assert (stack.waiting(), stack.waiting(RESUBMIT)) == ((0, 0), (0, 0))


@pytest.mark.parametrize(
    "body",
    [{}, [], {**REQUEST, "delta": "no uri"}, {**REQUEST, "batch_id": ""}, {**REQUEST, "more": 1}],
    ids=["empty", "a list", "no delta", "no batch", "a field too much"],
)
def test_a_message_that_is_no_request_comes_back_alone_and_goes_to_the_dead_letter_queue(
    stack: LocalStack, body: Any
) -> None:
    answer = handler(in_queue(body, REQUEST), InvocationContext())
    assert answer == {"batchItemFailures": [{"itemIdentifier": "message-1"}]}
    assert len(stack.taken(BATCHES)) == 1


def test_a_target_that_cannot_be_reached_keeps_the_request_until_it_can(
    stack: LocalStack, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, refusing = faults.hooked(faults.refusal("AccessDenied", 403))
    monkeypatch.setattr("validator.resubmission.current_messaging", lambda: refusing)
    assert len(handler(in_queue(REQUEST), InvocationContext())["batchItemFailures"]) == 1
    monkeypatch.setattr("validator.resubmission.current_messaging", Messaging)
    assert handler(in_queue(REQUEST), InvocationContext()) == {"batchItemFailures": []}
    assert [body["attempt"] for body in stack.taken(BATCHES)] == [1]


def test_without_a_target_there_is_one_clear_error(stack: LocalStack, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DELTAGUARD_RESUBMIT_TARGET")
    with pytest.raises(SettingsError, match="DELTAGUARD_RESUBMIT_TARGET"):
        handler(in_queue(REQUEST), InvocationContext())


@pytest.mark.parametrize("event", [None, [], {}, {"Records": None}, {"Records": [{}]}])
def test_what_is_no_event_of_a_queue_is_refused(stack: LocalStack, event: Any) -> None:
    with pytest.raises(EventError):
        handler(event, InvocationContext())


def test_nothing_of_a_quarantined_delta_is_read_or_moved_for_its_batch(stack: LocalStack) -> None:
    boto3.client("s3").put_object(Bucket="deltas", Key=f"words/delta/planted/{DATABASE}", Body=b"newer")
    handler(in_queue(REQUEST), InvocationContext())
    listed = boto3.client("s3").list_objects_v2(Bucket="deltas")["Contents"]
    assert [entry["Key"].split("/")[:2] for entry in listed] == [
        ["quarantine", "resubmissions"],
        ["quarantine", "resubmissions"],
        ["quarantine", "words"],
        ["words", "delta"],
    ]
