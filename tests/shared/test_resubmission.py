"""A batch is started again for each quarantine once, a few times, in whatever order and however often it is asked."""

from __future__ import annotations

import itertools
import json
from concurrent.futures import ThreadPoolExecutor
from typing import Any, ClassVar

import boto3
import pytest

from devtools.stack.stack import BATCHES, NOTICES, LocalStack
from shared.aws.events import Resubmission, ResubmissionExhausted, ResubmitRequest
from shared.aws.messaging import Messaging, current_messaging
from shared.model.delta import DeltaLocation
from shared.model.errors import MessagingError, SettingsError, StorageError, TargetError
from shared.model.settings import Settings
from shared.quarantine.record import RECORD
from shared.quarantine.restore import held_below, purge
from shared.resubmission import Outcome, resubmit
from shared.storage.store import Store, current_store
from tests.support import faults, races
from tests.support.records import place_for, plant, quarantined, record_of
from tests.support.uploads import stored

ROLE = "arn:aws:iam::123456789012:role/states"
PASS = json.dumps({"StartAt": "Pass", "States": {"Pass": {"Type": "Pass", "End": True}}})


def request_for(number: int, batch_id: str = "batch-40") -> ResubmitRequest:
    """The request of the number-th quarantine of a batch."""
    return quarantined(f"s3://deltas/words/delta/{number}/", batch_id)


def starts() -> dict[str, bytes]:
    """What is remembered of starts."""
    return stored("deltas", "quarantine/resubmissions/")


@pytest.fixture
def settings(stack: LocalStack) -> Settings:
    return Settings.from_environment()


def ask(request: ResubmitRequest, settings: Settings, store: Store | None = None) -> Outcome:
    return resubmit(store or current_store(), current_messaging(), request, settings)


def test_a_request_starts_its_batch_with_all_that_is_known(stack: LocalStack, settings: Settings) -> None:
    assert ask(request_for(1), settings) is Outcome.STARTED
    (body,) = stack.taken(BATCHES)
    started = Resubmission.model_validate(body)
    assert (started.batch_id, started.attempt) == ("batch-40", 1)
    assert started.reason == "sqlite.truncated: 100 bytes are lost"
    assert (started.delta, started.quarantine) == (request_for(1).delta, request_for(1).quarantine)


def test_a_request_that_is_repeated_starts_nothing_again(stack: LocalStack, settings: Settings) -> None:
    outcomes = [ask(request_for(1), settings) for _ in range(3)]
    assert outcomes == [Outcome.STARTED, Outcome.REPEATED, Outcome.REPEATED]
    assert len(stack.taken(BATCHES)) == 1


def test_a_batch_is_started_three_times_and_then_a_person_is_told_once(
    stack: LocalStack, settings: Settings, capsys: pytest.CaptureFixture[str]
) -> None:
    outcomes = [ask(request_for(number), settings) for number in range(1, 7)]
    assert outcomes == [Outcome.STARTED] * 3 + [Outcome.EXHAUSTED] * 3
    assert [body["attempt"] for body in stack.taken(BATCHES)] == [1, 2, 3]
    (event,) = stack.taken(NOTICES)
    assert event["detail-type"] == "Resubmission Exhausted"
    told = ResubmissionExhausted.model_validate(event["detail"])
    assert (told.batch_id, told.attempts, told.delta) == ("batch-40", 3, "s3://deltas/words/delta/4/")
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert sum(line["BatchesResubmitted"][0] for line in lines if "BatchesResubmitted" in line) == 3
    assert sum(line["ResubmissionsExhausted"][0] for line in lines if "ResubmissionsExhausted" in line) == 1


def test_an_early_request_that_comes_late_again_is_known_also_when_none_is_left(settings: Settings) -> None:
    for number in range(1, 5):
        ask(request_for(number), settings)
    assert [ask(request_for(number), settings) for number in (2, 1, 3)] == [Outcome.REPEATED] * 3


@pytest.mark.parametrize("most", [0, 1, 5])
def test_the_setting_says_how_often(stack: LocalStack, monkeypatch: pytest.MonkeyPatch, most: int) -> None:
    monkeypatch.setenv("DELTAGUARD_MAX_RESUBMISSIONS", str(most))
    settings = Settings.from_environment()
    outcomes = [ask(request_for(number), settings) for number in range(1, 8)]
    assert outcomes == [Outcome.STARTED] * most + [Outcome.EXHAUSTED] * (7 - most)


def test_batches_are_counted_apart_whatever_their_ids_are(stack: LocalStack, settings: Settings) -> None:
    hostile = ["../../words", "a/b", "a", "ä🦆", "\0", "x" * 1024, "1", "1.started"]
    for batch_id in hostile:
        assert ask(request_for(1, batch_id), settings) is Outcome.STARTED
    bodies = stack.taken(BATCHES)
    assert {body["batch_id"] for body in bodies} == set(hostile)
    assert len({body["id"] for body in bodies}) == len(hostile)
    folders = {key.rpartition("/")[0] for key in starts()}
    assert len(folders) == len(hostile)
    assert all(folder.count("/") == 2 for folder in folders)


def test_a_state_machine_is_started_once_for_each_quarantine(stack: LocalStack, monkeypatch: Any) -> None:
    states = boto3.client("stepfunctions")
    machine = states.create_state_machine(name="batches", definition=PASS, roleArn=ROLE)["stateMachineArn"]
    monkeypatch.setenv("DELTAGUARD_RESUBMIT_TARGET", machine)
    settings = Settings.from_environment()
    for number in (1, 1, 2):
        ask(request_for(number), settings)
    executions = states.list_executions(stateMachineArn=machine)["executions"]
    inputs = [json.loads(states.describe_execution(executionArn=e["executionArn"])["input"]) for e in executions]
    assert sorted(body["attempt"] for body in inputs) == [1, 2]


@pytest.mark.slow
@pytest.mark.parametrize("target", ["queue", "state machine"])
def test_killed_before_any_request_the_start_is_made_good_and_counts_once(
    stack: LocalStack, monkeypatch: pytest.MonkeyPatch, target: str
) -> None:
    states = boto3.client("stepfunctions")
    machine = states.create_state_machine(name="batches", definition=PASS, roleArn=ROLE)["stateMachineArn"]
    if target == "state machine":
        monkeypatch.setenv("DELTAGUARD_RESUBMIT_TARGET", machine)
    settings = Settings.from_environment()
    for killed in itertools.count(1):
        batch_id = f"batch-{killed}"
        try:
            resubmit(*faults.hooked(faults.CrashAt(killed)), request_for(1, batch_id), settings)
            break
        except faults.Crash:
            ask(request_for(1, batch_id), settings)
        if target == "queue":
            started = stack.taken(BATCHES)
            # Killed between the message and its mark, it is sent again, with the same id.
            assert {body["id"] for body in started} == {started[0]["id"]}
            assert {body["attempt"] for body in started} == {1}
        else:
            assert len(states.list_executions(stateMachineArn=machine)["executions"]) == killed
    assert killed > 4


@pytest.mark.slow
@pytest.mark.parametrize("killed", range(1, 8))
def test_killed_while_telling_a_person_it_is_told_by_the_next(
    stack: LocalStack, settings: Settings, killed: int
) -> None:
    for number in range(1, 4):
        ask(request_for(number), settings)
    try:
        resubmit(*faults.hooked(faults.CrashAt(killed)), request_for(4), settings)
    except faults.Crash:
        ask(request_for(4), settings)
    events = stack.taken(NOTICES)
    assert len({event["detail"]["id"] for event in events}) == 1
    assert len(stack.taken(BATCHES)) == 3


def test_many_consumers_at_once_count_no_start_twice_and_lose_none(stack: LocalStack, settings: Settings) -> None:
    requests = [request_for(number) for number in range(1, 5) for _ in range(3)]
    outcomes: list[Outcome | None] = []

    def consume(request: ResubmitRequest) -> None:
        outcomes.append(resubmit(current_store(), Messaging(), request, settings))

    with ThreadPoolExecutor(6) as pool:
        list(pool.map(consume, requests))
    started = stack.taken(BATCHES)
    assert {body["attempt"] for body in started} == {1, 2, 3}
    # Who reads a claim before it is marked as started starts it, too: the same id, for the same quarantine.
    assert len({(body["id"], body["attempt"], body["quarantine"]) for body in started}) == 3


@pytest.mark.slow
@pytest.mark.parametrize(
    "refusal", [faults.refusal("AccessDenied", 403), faults.refusal("SlowDown", 503)], ids=["403", "503"]
)
def test_a_request_that_is_refused_anywhere_can_be_repeated_and_counts_once(
    stack: LocalStack, settings: Settings, refusal: faults.Answer
) -> None:
    for refused in itertools.count(1):
        left = iter(range(refused - 1, -1, -1))
        store, messaging = faults.hooked(lambda request, left=left: refusal(request) if next(left, 1) == 0 else None)
        request = request_for(1, f"batch-{refused}")
        try:
            resubmit(store, messaging, request, settings)
            break
        except (StorageError, MessagingError):
            ask(request, settings)
        assert {body["attempt"] for body in stack.taken(BATCHES)} == {1}
    assert refused > 4


@pytest.mark.slow
@pytest.mark.parametrize("actor", ["the same request", "another quarantine of the batch", "a purge"])
def test_with_another_actor_in_front_of_any_request_a_batch_starts_once_for_each_quarantine(
    stack: LocalStack, settings: Settings, actor: str
) -> None:
    def work(batch_id: str) -> races.Work:
        request = request_for(1, batch_id)
        return lambda store: ask(request, settings, store)

    def act(batch_id: str, request: ResubmitRequest) -> None:
        if actor == "a purge":
            (held,) = held_below(current_store(), "deltas", "words/delta/1/", settings, pytest.fail)
            purge(current_store(), held)
        else:
            ask(request if actor == "another quarantine of the batch" else request_for(1, batch_id), settings)

    tally = races.Tally(f"resubmission, {actor} in front of each request")
    for number in range(1, races.counted(work("undisturbed")) + 1):
        stack.taken(BATCHES)
        batch_id = f"batch-{number}"
        one, other = work(batch_id), request_for(2, batch_id)
        ran = races.run_in_front_of(number, one, lambda batch_id=batch_id, other=other: act(batch_id, other))
        tally.ended(ran)
        started = [(body["attempt"], body["quarantine"]) for body in stack.taken(BATCHES)]
        with tally.case(number):
            if actor == "a purge":  # before the record was read there is nothing to start a batch for
                assert ran.error is None or isinstance(ran.error, TargetError), ran.error
                assert len(started) == (ran.error is None)
            else:
                assert ran.error is None, ran.error
                wanted = 2 if actor == "another quarantine of the batch" else 1
                assert len({quarantine for _, quarantine in started}) == wanted
                assert len(set(started)) == wanted, "one quarantine with two numbers"
                assert {attempt for attempt, _ in started} == {*range(1, wanted + 1)}
    tally.check()


@pytest.mark.slow
@pytest.mark.usefixtures("fast_retries")
@pytest.mark.parametrize("fault", races.FAULTS)
def test_with_a_fault_at_any_request_a_batch_starts_once_or_may_be_asked_for_again(
    stack: LocalStack, settings: Settings, fault: str
) -> None:
    tally = races.Tally(f"resubmission, {fault} at each request")
    ask(request_for(1, "undisturbed"), settings)
    requests = races.counted(lambda store: ask(request_for(2, "undisturbed"), settings, store))
    for number in range(1, requests + 1):
        stack.taken(BATCHES)
        request = request_for(1, f"batch-{number}")
        ran = races.disturbed(
            number, lambda store, request=request: ask(request, settings, store), races.FAULTS[fault], repeats=False
        )
        tally.ended(ran)
        with tally.case(number):
            assert ran.error is None or isinstance(ran.error, (StorageError, TargetError)), ran.error
            if ran.error is not None:
                ask(request, settings)
            started = {(body["attempt"], body["id"]) for body in stack.taken(BATCHES)}
            assert len(started) == 1 and {attempt for attempt, _ in started} == {1}
    tally.check()


def test_a_damaged_count_stops_the_batch_instead_of_starting_it_for_ever(stack: LocalStack, settings: Settings) -> None:
    ask(request_for(1), settings)
    (key,) = (key for key in starts() if key.endswith("/1.json"))
    boto3.client("s3").put_object(Bucket="deltas", Key=key, Body=b"{}")
    with pytest.raises(StorageError, match="not a start of a batch"):
        ask(request_for(2), settings)
    assert len(stack.taken(BATCHES)) == 1


@pytest.mark.usefixtures("bucket")
def test_without_a_target_there_is_one_clear_error(store: Store) -> None:
    with pytest.raises(SettingsError, match="DELTAGUARD_RESUBMIT_TARGET is not set"):
        ask(request_for(1), Settings(), store)


def test_a_request_about_no_delta_in_s3_is_refused(settings: Settings) -> None:
    request = request_for(1).model_copy(update={"delta": "/etc/passwd"})
    with pytest.raises(TargetError):
        ask(request, settings)
    assert starts() == {}


class TestForged:
    """A message proves nothing, and a record proves something only where the layout has it."""

    LIES: ClassVar[dict[str, dict[str, str]]] = {
        "another delta": {"delta": "s3://deltas/words/delta/2/"},
        "a delta of another bucket": {"delta": "s3://victim/words/delta/1/"},
        "another fingerprint": {"fingerprint": "f" * 64},
        "a fingerprint that is a path": {"fingerprint": "../../resubmissions"},
        "another batch": {"batch_id": "batch-41"},
        "another place": {"quarantine": "s3://deltas/quarantine/words/delta/2/"},
        "a place that the producer may write": {"quarantine": f"s3://deltas/words/delta/9/{'f' * 64}/"},
    }

    @pytest.mark.parametrize("lie", LIES)
    def test_a_request_that_differs_from_its_record_writes_nothing(
        self, stack: LocalStack, settings: Settings, lie: str
    ) -> None:
        boto3.client("s3").create_bucket(Bucket="victim")
        request = request_for(1).model_copy(update=self.LIES[lie])
        with pytest.raises(TargetError):
            ask(request, settings)
        assert starts() == stored("victim") == {}
        assert stack.taken(BATCHES) == []

    def test_a_request_whose_record_was_purged_starts_nothing(self, stack: LocalStack, settings: Settings) -> None:
        request = request_for(1)
        place = place_for(record_of(DeltaLocation.parse(request.delta)))
        boto3.client("s3").delete_object(Bucket="deltas", Key=place.key(RECORD))
        with pytest.raises(TargetError, match="no record of a quarantine"):
            ask(request, settings)
        assert stack.taken(BATCHES) == []

    def test_a_record_in_the_place_of_another_is_not_believed(self, settings: Settings) -> None:
        request = request_for(1)
        plant(record_of(DeltaLocation.parse("s3://deltas/words/delta/2/")), place_for(record_of(_location(request))))
        with pytest.raises(TargetError, match="the record of another place"):
            ask(request, settings)

    def test_deltas_elsewhere_use_up_no_start_of_a_batch(self, settings: Settings) -> None:
        """A manifest may name any batch: only that of deltas beside it is counted."""
        elsewhere = [quarantined(f"s3://deltas/mallory/{number}/") for number in range(5)]
        assert [ask(request, settings) for request in elsewhere][-1] is Outcome.EXHAUSTED
        assert ask(request_for(1), settings) is Outcome.STARTED


def _location(request: ResubmitRequest) -> DeltaLocation:
    return DeltaLocation.parse(request.delta)
