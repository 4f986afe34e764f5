"""When a message comes back: a delta that settles at its time, what could not be checked after growing pauses."""

from __future__ import annotations

import json
import math
import time
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from pathlib import Path
from typing import Any

import boto3
import pytest
from hypothesis import given
from hypothesis import strategies as st

from devtools.stack.stack import DELTAS, InvocationContext, LocalStack
from shared.aws.messaging import MOST_HIDDEN_SECONDS
from shared.model.delta import DATABASE
from tests.support import faults
from tests.support.uploads import files_of, in_queue, put, s3_event, stored
from tests.validator.conftest import Through
from validator import redelivery
from validator.handler import handler
from validator.redelivery import next_look, pause_after, seconds_until

KEY = "words/delta/one"
NOW = datetime(2026, 1, 1, tzinfo=UTC)
ONE = s3_event("deltas", f"{KEY}/{DATABASE}")
TWO = s3_event("deltas", "words/delta/two/chroma.sqlite3")

chances = st.floats(0, 1)
receives = st.integers(1, 10_000)
moments = st.none() | st.integers(-10_000, 10_000_000).map(lambda seconds: NOW + timedelta(seconds=seconds / 7))


def put_off(capsys: pytest.CaptureFixture[str]) -> list[int]:
    """For how many seconds messages were put off, by the log."""
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    return [line["seconds"] for line in lines if line.get("message") == "Message put off"]


@pytest.mark.parametrize(("number", "seconds"), [(1, 30), (2, 60), (3, 120), (10, 15_360), (11, 21_600), (99, 21_600)])
def test_the_pause_doubles_from_half_a_minute_to_six_hours(number: int, seconds: float) -> None:
    assert pause_after(number, 1) == seconds
    assert pause_after(number, 0) == seconds / 2


@given(st.lists(moments), receives, chances)
def test_a_message_comes_back_when_its_soonest_delta_needs_it_and_within_the_bounds_of_sqs(
    needed: list[datetime | None], number: int, chance: float
) -> None:
    seconds = seconds_until(needed, number, NOW, chance)
    assert 1 <= seconds < MOST_HIDDEN_SECONDS
    pause = pause_after(number, chance)
    waits = [pause if moment is None else (moment - NOW).total_seconds() for moment in needed] or [pause]
    assert seconds >= min(waits) or seconds == MOST_HIDDEN_SECONDS - 900
    assert seconds < max(1, min(waits)) + 1


@given(moments.filter(bool), receives, chances)
def test_how_often_a_message_came_does_not_matter_to_a_delta_that_settles(
    moment: datetime, number: int, chance: float
) -> None:
    assert seconds_until([moment], number, NOW, chance) == seconds_until([moment], 1, NOW, 0)


def test_an_arriving_delta_comes_back_when_it_has_settled_and_uses_two_receives_in_all(
    stack: LocalStack, healthy_delta: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("DELTAGUARD_SETTLE_SECONDS", "2")
    monkeypatch.setenv("DELTAGUARD_DEPTH", "structure")
    put("deltas", KEY, files_of(healthy_delta))
    deliveries = []
    deadline = time.monotonic() + 60
    while stack.waiting()[0] and time.monotonic() < deadline:
        delivery = stack.deliver(handler)
        deliveries += [delivery.failed] if delivery else []
    assert stack.waiting() == (0, 0), "settled, although the queue hides a message for 1000 s by itself"
    assert all(1 <= seconds <= 2 for seconds in put_off(capsys))
    assert sum(deliveries) <= 1


def test_the_rest_of_the_settle_time_is_rounded_up(
    stack: LocalStack, healthy_delta: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("DELTAGUARD_SETTLE_SECONDS", "3600")
    put("deltas", KEY, files_of(healthy_delta))
    newest = max(o["LastModified"] for o in boto3.client("s3").list_objects_v2(Bucket="deltas")["Contents"])
    monkeypatch.setattr("shared.storage.store.Store.now", lambda _: newest + timedelta(seconds=1000.25))
    for number in (1, 9):
        handler(in_queue(ONE, receives=number), InvocationContext())
        hidden = [line for line in capsys.readouterr().out.splitlines() if "put off" in line]
        assert [json.loads(line)["seconds"] for line in hidden] == [math.ceil(3600 - 1000.25)]


def test_a_message_about_several_deltas_comes_back_for_the_soonest(
    stack: LocalStack, healthy_delta: Path, through: Through, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.setenv("DELTAGUARD_SETTLE_SECONDS", "3600")
    for key in (KEY, "words/delta/two"):
        put("deltas", key, files_of(healthy_delta))
    through(lambda request: faults.refusal("SlowDown", 503)(request) if "two" in request.url else None)
    both = {"Records": ONE["Records"] + TWO["Records"]}
    handler(in_queue(both, ONE, TWO), InvocationContext())
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    tried = {line["message_id"]: line["seconds"] for line in lines if str(line.get("message")).startswith("Message")}
    assert 15 <= tried["message-1"] <= 30
    assert 3500 <= tried["message-2"] <= 3601
    assert 15 <= tried["message-3"] <= 30


def test_a_visibility_that_cannot_be_changed_is_logged_and_the_message_comes_back_nevertheless(
    stack: LocalStack, healthy_delta: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("DELTAGUARD_SETTLE_SECONDS", "3600")
    put("deltas", KEY, files_of(healthy_delta))
    answer = handler(in_queue(ONE), InvocationContext())  # its receipt handle is none of the queue's
    assert answer == {"batchItemFailures": [{"itemIdentifier": "message-1"}]}
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    (line,) = (line for line in lines if line.get("message") == "Message could not be put off")
    assert "ReceiptHandleIsInvalid" in line["reason"]


def test_a_required_manifest_that_does_not_come_is_asked_for_with_growing_pauses(
    stack: LocalStack, healthy_delta: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("DELTAGUARD_MANIFEST", "required")
    put("deltas", KEY, files_of(healthy_delta))
    for number, least, most in ((1, 15, 30), (5, 240, 480)):
        handler(in_queue(ONE, receives=number), InvocationContext())
        lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
        (seconds,) = (line["seconds"] for line in lines if str(line.get("message")).startswith("Message"))
        assert least <= seconds <= most


@pytest.mark.slow
def test_what_can_never_be_checked_ends_in_the_dead_letter_queue_untouched(
    stack: LocalStack, healthy_delta: Path, through: Through, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DELTAGUARD_SETTLE_SECONDS", "0")
    monkeypatch.setenv("DELTAGUARD_ARRIVAL_SECONDS", "0")
    monkeypatch.setattr(redelivery, "FIRST_PAUSE_SECONDS", 0.0)
    put("deltas", KEY, files_of(healthy_delta))
    before = stored("deltas")
    through(lambda request: faults.refusal("AccessDenied", 403)(request) if DATABASE in request.url else None)
    deadline = time.monotonic() + 120
    while stack.waiting(DELTAS)[0] and time.monotonic() < deadline:
        stack.deliver(handler)
    assert stack.waiting(DELTAS) == (0, 1)
    assert stored("deltas") == before


@given(st.floats(1, 3600), st.floats(3600, 40_000), chances)
def test_a_delta_that_lacks_a_file_is_looked_at_early_and_once_its_time_is_over_before_the_queue_gives_up(
    age: float, arrival: float, chance: float
) -> None:
    """S3 tells of no index file, so nothing but a look finds that one came. The queue allows ten receives."""
    over_at, now, looks = NOW + timedelta(seconds=arrival), NOW + timedelta(seconds=age), [age]
    while now < over_at:
        moment = next_look(NOW, over_at, len(looks), now, chance)
        assert now < moment <= over_at
        now = moment
        looks.append((now - NOW).total_seconds())
    assert len(looks) <= 10
    rounding = 1e-3
    most = redelivery.FIRST_PAUSE_SECONDS * 2**9
    assert all(later <= max(3 * age, age + most) + rounding for age, later in pairwise(looks))


def test_a_delta_that_lacks_a_file_comes_back_before_its_arrival_time_is_over(
    stack: LocalStack, healthy_delta: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("DELTAGUARD_DEPTH", "structure")
    files = files_of(healthy_delta)
    put("deltas", KEY, {name: data for name, data in files.items() if name != DATABASE})
    newest = max(o["LastModified"] for o in boto3.client("s3").list_objects_v2(Bucket="deltas")["Contents"])
    for age, least, most in ((100, 200, 200), (5000, 10_000, 10_000), (21_000, 600, 600)):
        with monkeypatch.context() as later:
            later.setattr("shared.storage.store.Store.now", lambda _, age=age: newest + timedelta(seconds=age))
            handler(in_queue(ONE), InvocationContext())
        lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
        (seconds,) = (line["seconds"] for line in lines if str(line.get("message")).startswith("Message"))
        assert least <= seconds <= most + 1
