"""Throttling slows the run down, and loses no verdict."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from scanner.run import throttle as module
from scanner.run.throttle import RetriedCheck, Throttle


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
    throttle = Throttle(16, clock)
    seen = []
    for moment in (0.0, 0.1, 0.9, 1.0, 2.0, 3.0, 4.0, 5.0):
        clock.now = moment
        throttle.slow_down()
        seen.append(throttle.allowed)
    assert seen == [8, 8, 8, 4, 2, 1, 1, 1]


def test_answers_in_time_bring_it_back_step_by_step() -> None:
    throttle = Throttle(4, Clock())
    throttle.slow_down()
    assert (throttle.allowed, throttle.slowed) == (2, True)
    for _ in range(3):
        throttle.speed_up()
    assert throttle.allowed == 3
    for _ in range(20):
        throttle.speed_up()
    assert (throttle.allowed, throttle.slowed) == (4, False)


def test_no_more_run_at_once_than_are_allowed() -> None:
    throttle = Throttle(8, Clock())
    throttle.slow_down()
    running = most = 0
    lock = threading.Lock()

    def work(_: int) -> None:
        nonlocal running, most
        with throttle.turn():
            with lock:
                running += 1
                most = max(most, running)
            threading.Event().wait(0.002)
            with lock:
                running -= 1

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(work, range(40)))
    assert most <= throttle.allowed == 4


def test_what_was_throttled_is_tried_again_and_only_the_last_answer_counts() -> None:
    answers = iter(["throttled", "throttled", "healthy"])
    check = RetriedCheck(lambda _: next(answers), Throttle(4), lambda answer: answer == "throttled")
    assert check("delta") == "healthy"


def test_what_stays_throttled_is_told_in_the_end() -> None:
    calls: list[str] = []

    def judge(delta: str) -> str:
        calls.append(delta)
        return "throttled"

    assert RetriedCheck(judge, Throttle(4), lambda answer: answer == "throttled")("delta") == "throttled"
    assert len(calls) == 4


def test_nobody_waits_for_a_run_that_has_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PAUSES", (3600.0,))
    throttle = Throttle(4)
    throttle.end()
    assert RetriedCheck(lambda _: "throttled", throttle, lambda _: True)("delta") == "throttled"
