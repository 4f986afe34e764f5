"""Throttling slows the run down, and loses no verdict."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from scanner.run import throttle as module
from scanner.run.throttle import Pace, Patient


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PAUSES", (0.001, 0.002, 0.003))


def test_throttling_halves_the_number_once_a_second_and_down_to_one() -> None:
    clock = Clock()
    pace = Pace(16, clock)
    seen = []
    for moment in (0.0, 0.1, 0.9, 1.0, 2.0, 3.0, 4.0, 5.0):
        clock.now = moment
        pace.throttled()
        seen.append(pace.allowed)
    assert seen == [8, 8, 8, 4, 2, 1, 1, 1]


def test_answers_in_time_bring_it_back_step_by_step() -> None:
    pace = Pace(4, Clock())
    pace.throttled()
    assert (pace.allowed, pace.slowed) == (2, True)
    for _ in range(3):
        pace.eased()
    assert pace.allowed == 3
    for _ in range(20):
        pace.eased()
    assert (pace.allowed, pace.slowed) == (4, False)


def test_no_more_run_at_once_than_are_allowed() -> None:
    pace = Pace(8, Clock())
    pace.throttled()
    running = most = 0
    lock = threading.Lock()

    def work(_: int) -> None:
        nonlocal running, most
        with pace.turn():
            with lock:
                running += 1
                most = max(most, running)
            threading.Event().wait(0.002)
            with lock:
                running -= 1

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(work, range(40)))
    assert most <= pace.allowed == 4


def test_what_was_throttled_is_tried_again_and_only_the_last_answer_counts() -> None:
    answers = iter(["throttled", "throttled", "healthy"])
    check = Patient(lambda _: next(answers), Pace(4), lambda answer: answer == "throttled")
    assert check("delta") == "healthy"


def test_what_stays_throttled_is_told_in_the_end() -> None:
    calls: list[str] = []

    def judge(delta: str) -> str:
        calls.append(delta)
        return "throttled"

    assert Patient(judge, Pace(4), lambda answer: answer == "throttled")("delta") == "throttled"
    assert len(calls) == 4


def test_nobody_waits_for_a_run_that_has_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PAUSES", (3600.0,))
    pace = Pace(4)
    pace.end()
    assert Patient(lambda _: "throttled", pace, lambda _: True)("delta") == "throttled"
