"""Time that is left: one deadline, minded by every step, and requests that wait side by side."""

from __future__ import annotations

import threading
import time

import pytest

from shared.model.deadline import UNLIMITED, Deadline, side_by_side
from shared.model.errors import CouldNotCheck

PAST = Deadline(time.monotonic() - 1)


def test_without_a_deadline_there_is_always_time_left() -> None:
    assert UNLIMITED.left == float("inf")
    assert not UNLIMITED.passed
    UNLIMITED.check("anything")


def test_what_has_passed_has_nothing_left_and_says_what_was_not_done() -> None:
    assert (PAST.left, PAST.passed) == (0.0, True)
    with pytest.raises(CouldNotCheck, match="reading s3://b/k: no time is left for it") as fault:
        PAST.check("reading s3://b/k")
    assert fault.value.code == "check.timeout"


def test_a_step_has_no_more_time_than_the_whole() -> None:
    assert PAST.within(60).passed
    assert 0 < UNLIMITED.within(60).left <= 60
    assert Deadline.after(3600).within(60).left <= 60


@pytest.mark.parametrize("count", [0, 1, 2, 100])
def test_results_come_in_the_order_of_the_items(count: int) -> None:
    assert side_by_side(lambda number: 2 * number, range(count), UNLIMITED, "doubling") == [
        2 * number for number in range(count)
    ]


def test_items_wait_side_by_side() -> None:
    together = threading.Barrier(4, timeout=60)
    assert sorted(side_by_side(lambda _: together.wait(), range(4), UNLIMITED, "meeting")) == [0, 1, 2, 3]


def test_after_the_deadline_nothing_is_begun() -> None:
    begun: list[int] = []
    with pytest.raises(CouldNotCheck, match="no time is left"):
        side_by_side(begun.append, range(3), PAST, "beginning")
    assert begun == []


def test_what_hangs_is_not_waited_for() -> None:
    ended = threading.Event()
    try:
        with pytest.raises(CouldNotCheck, match="waiting, 1 of 3 done") as fault:
            side_by_side(lambda number: number == 0 or ended.wait(60), range(3), Deadline.after(0.2), "waiting")
        assert fault.value.code == "check.timeout"
        assert not ended.is_set()
    finally:
        ended.set()


@pytest.mark.parametrize("error", [ValueError, CouldNotCheck("check.storage", "no"), KeyboardInterrupt])
def test_what_fails_ends_all_and_leaves_nothing_running(error: BaseException | type[BaseException]) -> None:
    running: set[int] = set()

    def act(number: int) -> None:
        running.add(number)
        try:
            if number == 3:
                raise error
            time.sleep(0.01)
        finally:
            running.discard(number)

    with pytest.raises(error if isinstance(error, type) else type(error)):
        side_by_side(act, range(200), UNLIMITED, "failing")
    assert not running
