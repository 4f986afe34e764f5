"""Figures are pure: ratios, targets, and the table. Measures are taken in turns."""

from __future__ import annotations

import pytest

from bench.cost.figures import Figure, Target, missed, short, table
from bench.cost.timing import in_turns, timed


def _figure(ours: float, theirs: float, target: Target | None = None, spoilt: str = "") -> Figure:
    return Figure("suite/name", "ours", ours, "theirs", theirs, "ms", target, spoilt)


@pytest.mark.parametrize(
    ("target", "ours", "theirs", "met"),
    [
        (Target("cheaper", 50), 2.0, 100.0, True),
        (Target("cheaper", 50), 2.0, 99.0, False),
        (Target("as much", 1.6), 16.0, 10.0, True),
        (Target("as much", 1.6), 16.1, 10.0, False),
        (Target("as much", 1, "MB", beyond=80), 205.0, 125.0, True),
        (Target("as much", 1, "MB", beyond=80), 206.0, 125.0, False),
        (Target("below", 400, "ms"), 399.0, 1.0, True),
        (Target("below", 400, "ms"), 400.0, 9999.0, False),
    ],
)
def test_a_target_is_met_up_to_its_limit(target: Target, ours: float, theirs: float, met: bool) -> None:
    assert _figure(ours, theirs, target).met is met


def test_a_target_says_what_it_wants() -> None:
    assert Target("cheaper", 50).text == "at least 50 times cheaper"
    assert Target("as much", 1.6).text == "at most 1.6 times as much"
    assert Target("as much", 1, "MB", beyond=80).text == "at most as much and 80 MB"
    assert Target("below", 400, "ms").text == "below 400 ms"


def test_without_a_target_there_is_nothing_to_meet() -> None:
    assert _figure(5.0, 1.0).met is None


def test_what_spoils_a_figure_misses_its_target_whatever_the_cost() -> None:
    assert _figure(1.0, 100.0, Target("below", 400, "ms"), "it imports chromadb").met is False


@pytest.mark.parametrize(
    ("figure", "ratio", "text"),
    [
        (_figure(2.0, 100.0), 50.0, "50.0 x cheaper"),
        (_figure(4.0, 3.0), 0.75, "1.33 x as much"),
        (_figure(4.0, 3.0, Target("cheaper", 3)), 0.75, "1.33 x as much"),
        (_figure(3.0, 4.0, Target("as much", 1.6)), 4 / 3, "0.75 x as much"),
        (_figure(0.0, 4.0), float("inf"), "inf x cheaper"),
    ],
)
def test_a_ratio_is_how_many_times_cheaper_ours_is(figure: Figure, ratio: float, text: str) -> None:
    assert figure.ratio == pytest.approx(ratio)
    assert figure.ratio_text == text


@pytest.mark.parametrize(
    ("number", "text"),
    [(0, "0"), (0.01234, "0.0123"), (0.5, "0.5"), (1.234, "1.23"), (12.34, "12.3"), (123.4, "123"), (1234.5, "1234")],
)
def test_numbers_keep_three_digits(number: float, text: str) -> None:
    assert short(number) == text


def test_missed_figures_are_those_with_a_target_that_is_not_met() -> None:
    met, failed, free = _figure(1, 9, Target("cheaper", 3)), _figure(1, 2, Target("cheaper", 3)), _figure(1, 1)
    assert missed([met, failed, free]) == [failed]


def test_the_table_has_a_line_for_each_figure_and_lines_up() -> None:
    figures = [
        _figure(2.0, 100.0, Target("cheaper", 10)),
        _figure(50.0, 100.0, Target("cheaper", 10)),
        _figure(1234.0, 5.0),
        _figure(1.0, 5.0, Target("below", 9, "ms"), "it imports chromadb"),
    ]
    head, *lines = table(figures).splitlines()
    assert len(lines) == 4
    assert lines[0].endswith("at least 10 times cheaper  met")
    assert lines[1].endswith("at least 10 times cheaper  MISSED")
    assert lines[2].endswith("247 x as much  -")
    assert lines[3].endswith("MISSED: it imports chromadb")
    assert {line.index("theirs") for line in lines} == {head.index("against")}


def test_measures_are_taken_in_turns_and_the_first_round_does_not_count() -> None:
    taken: list[str] = []

    def measure(name: str) -> float:
        taken.append(name)
        return float(len(taken))

    costs = in_turns([lambda: measure("a"), lambda: measure("b")], rounds=2)
    assert taken == ["a", "b"] * 3
    assert costs == [[3.0, 5.0], [4.0, 6.0]]


def test_an_action_is_timed_each_time_it_is_measured() -> None:
    done: list[int] = []
    measure = timed(lambda: done.append(1))
    assert measure() >= 0
    assert measure() >= 0
    assert len(done) == 2
