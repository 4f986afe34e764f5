"""The validator with little time: every step minds it, what was finished takes none of it, and each round gets on.

Time is counted in requests here: each takes 20 ms of a clock of this test's, those that wait side by side an eighth.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import boto3
import pytest

from devtools.stack.stack import InvocationContext, LocalStack
from shared.check.judgement import judge_stored
from shared.model.deadline import Deadline
from shared.model.delta import DATABASE, MANIFEST, MAX_OWN_FILES, DeltaLocation
from shared.model.manifest import Manifest
from shared.model.settings import Settings
from shared.model.verdict import Depth, Status
from shared.storage.store import Store
from shared.upload import upload_delta
from tests.conftest import PutDelta
from tests.support import faults
from tests.support.uploads import in_queue, s3_event
from tests.validator.conftest import Through
from validator.handler import handler

REQUEST_SECONDS, TOGETHER = 0.02, 8
RESERVE_SECONDS = 10.0


class Clock:
    """A clock that only requests move."""

    def __init__(self) -> None:
        self.now = 0.0
        self.requests = 0
        self._lock = threading.Lock()

    def tick(self, _: Any) -> None:
        together = threading.current_thread().name.startswith("side-by-side")
        with self._lock:
            self.requests += 1
            self.now += REQUEST_SECONDS / (TOGETHER if together else 1)


class Invocation(InvocationContext):
    """An invocation that has so many seconds for its work, by that clock."""

    def __init__(self, clock: Clock, seconds: float, number: int) -> None:
        super().__init__(aws_request_id=str(number))
        self._clock, self._end = clock, clock.now + seconds + RESERVE_SECONDS

    def get_remaining_time_in_millis(self) -> int:
        return round((self._end - self._clock.now) * 1000)


@pytest.fixture
def clock(stack: LocalStack, through: Through, monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    through(clock.tick)
    monkeypatch.setattr("shared.model.deadline.time", SimpleNamespace(monotonic=lambda: clock.now))
    monkeypatch.setattr("validator.handler._LEAST_SECONDS", 0.0)
    monkeypatch.setenv("DELTAGUARD_SETTLE_SECONDS", "0")
    monkeypatch.setenv("DELTAGUARD_DEPTH", "structure")
    return clock


def put_many(healthy_delta: Path, count: int) -> list[DeltaLocation]:
    body = (healthy_delta / DATABASE).read_bytes()
    keys = [f"words/delta/{number:03d}/" for number in range(count)]
    for key in keys:
        boto3.client("s3").put_object(Bucket="deltas", Key=key + DATABASE, Body=body)
    return [DeltaLocation("deltas", key) for key in keys]


def test_what_was_finished_does_not_eat_the_time_of_the_rest(clock: Clock, healthy_delta: Path) -> None:
    deltas = put_many(healthy_delta, 15)
    event = in_queue(s3_event("deltas", *(delta.key(DATABASE) for delta in deltas)))
    rounds = 0
    while rounds < 12:
        rounds += 1
        if not handler(event, Invocation(clock, 0.6, rounds))["batchItemFailures"]:
            break
    assert rounds < 12, "30 requests a round, one after another, answer for 10 finished deltas"
    for delta in deltas:
        found = boto3.client("s3").get_object_tagging(Bucket="deltas", Key=delta.key(DATABASE))["TagSet"]
        assert {"Key": "deltaguard:status", "Value": "healthy"} in found


def test_no_round_goes_far_beyond_its_time(clock: Clock, healthy_delta: Path) -> None:
    deltas = put_many(healthy_delta, 15)
    event = in_queue(s3_event("deltas", *(delta.key(DATABASE) for delta in deltas)))
    assert handler(event, Invocation(clock, 0.4, 1))["batchItemFailures"]
    assert clock.now < 0.4 + 6 * REQUEST_SECONDS, "what was begun last is brought to its end, and the message put off"


def test_what_was_not_begun_comes_back_at_once(
    clock: Clock, healthy_delta: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    deltas = put_many(healthy_delta, 12)
    event = in_queue(*(s3_event("deltas", delta.key(DATABASE)) for delta in deltas), receives=9)
    answer = handler(event, Invocation(clock, 0.4, 1))
    assert 0 < len(answer["batchItemFailures"]) < len(deltas)
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    hidden = {line["message_id"]: line["seconds"] for line in lines if str(line.get("message")).startswith("Message")}
    assert hidden == {failure["itemIdentifier"]: 1 for failure in answer["batchItemFailures"]}
    assert not [line for line in lines if line.get("DeltasUndetermined", [0]) != [0]], "nobody is told of bad luck"


def test_a_delta_that_is_slow_by_itself_comes_back_after_a_pause(
    clock: Clock, flushed_delta: Path, put_delta: PutDelta, capsys: pytest.CaptureFixture[str]
) -> None:
    location = put_delta(flushed_delta, "words/delta/slow")
    event = in_queue(s3_event("deltas", location.key(DATABASE)), receives=3)
    assert handler(event, Invocation(clock, 2 * REQUEST_SECONDS, 1))["batchItemFailures"]
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    (told,) = (line for line in lines if line.get("status") == "undetermined")
    assert [finding["code"] for finding in told["findings"]] == ["check.timeout"]
    (hidden,) = (line["seconds"] for line in lines if str(line.get("message")).startswith("Message"))
    assert hidden >= 60


def many_files(count: int) -> Iterator[str]:
    for number in range(count // 5):
        for name in ("data_level0.bin", "header.bin", "index_metadata.pickle", "length.bin", "link_lists.bin"):
            yield f"{number:08x}-0000-4000-8000-000000000000/{name}"


def put_past_http(location: DeltaLocation, names: Iterator[str]) -> None:
    """Tiny objects, thousands in no time: the server runs in this process."""
    from moto.core import DEFAULT_ACCOUNT_ID
    from moto.s3.models import s3_backends

    backend = s3_backends[DEFAULT_ACCOUNT_ID]["aws"]
    for name in names:
        backend.put_object(location.bucket, location.prefix + name, b"tiny")


def test_a_delta_of_too_many_tiny_files_is_over_the_cap_and_costs_a_few_requests(
    clock: Clock, healthy_delta: Path, put_delta: PutDelta, capsys: pytest.CaptureFixture[str]
) -> None:
    location = put_delta(healthy_delta, "words/delta/tiny")
    put_past_http(location, many_files(MAX_OWN_FILES + 5))
    event = in_queue(s3_event("deltas", location.key(DATABASE)))
    assert handler(event, Invocation(clock, 10.0, 1))["batchItemFailures"]
    assert clock.requests < 12
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    (told,) = (line for line in lines if line.get("status") == "undetermined")
    assert [finding["code"] for finding in told["findings"]] == ["check.size_cap"]
    assert str(MAX_OWN_FILES) in told["findings"][0]["detail"]


def test_the_most_files_that_are_checked_are_asked_for_side_by_side(
    clock: Clock, healthy_delta: Path, through: Through, store: Store, settled: Settings
) -> None:
    upload_delta(healthy_delta, "deltas", "words/delta/many")
    location = DeltaLocation("deltas", "words/delta/many/")
    names = list(many_files(80))
    put_past_http(location, iter(names))
    body = boto3.client("s3").get_object(Bucket="deltas", Key=location.key(MANIFEST))["Body"].read()
    manifest = json.loads(body)
    manifest["files"] += [{"name": name, "size": 4, "crc64nvme": "AAAAAAAAAAA="} for name in names]
    Manifest.parse(json.dumps(manifest).encode())
    boto3.client("s3").put_object(Bucket="deltas", Key=location.key(MANIFEST), Body=json.dumps(manifest).encode())
    hooked = faults.doing(clock.tick)
    judgement = judge_stored(hooked, location, Depth.STRUCTURE, settled, deadline=Deadline.after(600))
    assert judgement.verdict.status is not Status.HEALTHY
    assert clock.requests >= 2 * len(names)
    assert clock.now < clock.requests * REQUEST_SECONDS / 4


@pytest.mark.parametrize("stage", ["list-type", "chroma.sqlite3", "data_level0.bin"])
def test_a_request_during_which_the_time_runs_out_is_the_last_one(
    stage: str, clock: Clock, flushed_delta: Path, put_delta: PutDelta, settled: Settings
) -> None:
    location = put_delta(flushed_delta, "words/delta/one")
    after: list[str] = []

    def act(request: Any) -> None:
        if clock.now > 60:
            after.append(request.url)
        if stage in request.url:
            clock.now = 100.0

    verdict = judge_stored(faults.doing(act), location, Depth.STRUCTURE, settled, deadline=Deadline.after(60)).verdict
    assert [finding.code for finding in verdict.findings] == ["check.timeout"]
    assert len(after) < TOGETHER


def test_a_request_that_hangs_is_not_waited_for(
    flushed_delta: Path, put_delta: PutDelta, settled: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    location = put_delta(flushed_delta, "words/delta/one")
    answered = threading.Event()

    def act(request: Any) -> None:
        if "data_level0.bin" in request.url:
            answered.wait(60)

    try:
        deadline = Deadline.after(2.0)
        verdict = judge_stored(faults.doing(act), location, Depth.STRUCTURE, settled, deadline=deadline).verdict
        assert not answered.is_set()
    finally:
        answered.set()
    assert [finding.code for finding in verdict.findings] == ["check.timeout"]
