"""Many checks at once: every verdict arrives, memory stays bounded, and nothing that goes wrong is lost."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest

from scanner.run.workers import Tally, default_jobs, judge_all
from shared.model.verdict import Depth, Finding, Status, Verdict

HEALTHY = Verdict("healthy", Depth.STRUCTURE, size=10)
CORRUPT = Verdict("corrupt", Depth.STRUCTURE, (Finding("sqlite.empty", "chroma.sqlite3", "0 bytes"),), size=1)
INCOMPLETE = Verdict("incomplete", Depth.STRUCTURE, (Finding("arrival.settling", "", "1 s ago"),))
UNDETERMINED = Verdict("undetermined", Depth.STRUCTURE, (Finding("check.storage", "", "time-out"),))


def verdict_named(delta: int) -> Verdict:
    return Verdict(str(delta), Depth.LISTING)


@pytest.mark.parametrize("jobs", [1, 3, 64])
def test_every_delta_gets_its_verdict_once(jobs: int) -> None:
    found = [verdict.delta for verdict in judge_all(range(200), verdict_named, jobs)]
    assert sorted(found, key=int) == [str(number) for number in range(200)]


def test_verdicts_come_as_they_complete_and_not_in_the_order_given() -> None:
    second_is_out = threading.Event()

    def judge(delta: int) -> Verdict:
        if delta == 0:
            assert second_is_out.wait(10)
        return verdict_named(delta)

    verdicts = judge_all([0, 1], judge, jobs=2)
    assert next(verdicts).delta == "1"
    second_is_out.set()
    assert next(verdicts).delta == "0"


def test_no_more_deltas_are_taken_than_are_in_flight() -> None:
    taken = 0

    def endless() -> Iterator[int]:
        nonlocal taken
        while True:
            taken += 1
            yield taken

    verdicts = judge_all(endless(), verdict_named, jobs=4)
    for seen in range(1, 101):
        next(verdicts)
        assert taken <= seen + 2 * 4
    verdicts.close()


def test_an_unexpected_error_in_a_check_is_raised_and_cancels_what_waits() -> None:
    def judge(delta: int) -> Verdict:
        if delta == 5:
            raise ZeroDivisionError("a mistake of ours")
        return verdict_named(delta)

    with pytest.raises(ZeroDivisionError, match="a mistake of ours"):
        list(judge_all(range(1_000_000), judge, jobs=2))


def test_ctrl_c_cancels_what_waits_and_keeps_what_was_told() -> None:
    begun: list[int] = []
    release = threading.Event()

    def judge(delta: int) -> Verdict:
        begun.append(delta)
        assert delta == 0 or release.wait(10)
        return verdict_named(delta)

    def interrupted() -> Iterator[int]:
        yield from range(6)
        raise KeyboardInterrupt

    told = []
    with pytest.raises(KeyboardInterrupt):
        for verdict in judge_all(interrupted(), judge, jobs=3):
            told.append(verdict.delta)  # noqa: PERF401 - what came before the interruption counts
    release.set()
    assert told in (["0"], [])
    assert len(begun) <= 4


def test_the_tally_counts_by_status() -> None:
    tally = Tally()
    for verdict in (HEALTHY, HEALTHY, CORRUPT, UNDETERMINED):
        tally.add(verdict)
    summary = tally.as_json()
    assert summary.pop("duration_ms") >= 0
    assert summary == {"healthy": 2, "corrupt": 1, "incomplete": 0, "undetermined": 1, "total": 4, "bytes": 21}


@pytest.mark.parametrize(
    ("verdicts", "code"),
    [
        ([], 0),
        ([HEALTHY], 0),
        ([HEALTHY, CORRUPT], 1),
        ([INCOMPLETE], 1),
        ([HEALTHY, UNDETERMINED], 3),
        ([UNDETERMINED, CORRUPT], 1),
        ([UNDETERMINED, INCOMPLETE], 1),
    ],
)
def test_the_worst_verdict_makes_the_exit_code(verdicts: list[Verdict], code: int) -> None:
    tally = Tally()
    for verdict in verdicts:
        tally.add(verdict)
    assert tally.exit_code() == code


def test_an_unfinished_listing_is_not_all_healthy() -> None:
    assert Tally(unfinished=True).exit_code() == 3
    assert Tally(counts={**dict.fromkeys(Status, 0), Status.CORRUPT: 1}, unfinished=True).exit_code() == 1


def test_an_interruption_outweighs_everything() -> None:
    assert Tally(counts={**dict.fromkeys(Status, 0), Status.CORRUPT: 1}, interrupted=True).exit_code() == 130


@pytest.mark.parametrize(
    ("depth", "cpus", "jobs"),
    [
        (Depth.STRUCTURE, 2, 8),
        (Depth.LISTING, 1, 4),
        (Depth.STRUCTURE, 96, 64),
        (Depth.OPEN, 8, 8),
        (Depth.OPEN, 96, 64),
    ],
)
def test_jobs_follow_the_cpus(depth: Depth, cpus: int, jobs: int) -> None:
    assert default_jobs(depth, cpus) == jobs
