"""Subsets are the same in every run, spread evenly, and do not depend on the order."""

from __future__ import annotations

import random
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scanner.find.selection import Budget, Share, moment, seconds, subset


@dataclass(frozen=True)
class Item:
    name: str
    size: int = 1


ITEMS = [Item(f"s3://bucket/words/delta/{number}/") for number in range(5000)]


def share(text: str) -> Share:
    made = subset(text)
    assert isinstance(made, Share)
    return made


def budget(text: str) -> Budget:
    made = subset(text)
    assert isinstance(made, Budget)
    return made


def test_the_parts_are_the_whole_and_share_nothing() -> None:
    parts = [list(share(f"{number}/7").of(ITEMS)) for number in range(1, 8)]
    assert sorted((item for part in parts for item in part), key=ITEMS.index) == ITEMS
    assert all(600 < len(part) < 830 for part in parts)


def test_a_share_is_about_that_large_and_lies_within_a_larger_one() -> None:
    some, more = set(share("5%").of(ITEMS)), set(share("20%").of(ITEMS))
    assert some < more
    assert 180 < len(some) < 320
    assert set(share("1/5").of(ITEMS)) == more
    assert list(share("100%").of(ITEMS)) == ITEMS


@given(st.lists(st.integers(0, 50), max_size=60), st.integers(1, 300), st.randoms())
def test_a_budget_is_kept_and_does_not_depend_on_the_order(sizes: list[int], most: int, rng: random.Random) -> None:
    items = [Item(str(number), size) for number, size in enumerate(sizes)]
    shuffled = rng.sample(items, len(items))
    kept = Budget(most).of(items, lambda item: item.size)
    assert sum(item.size for item in kept) <= most
    assert kept == [item for item in items if item in set(kept)], "in their order"
    assert set(Budget(most).of(shuffled, lambda item: item.size)) == set(kept)
    if sum(sizes) <= most:
        assert kept == items


def test_a_budget_keeps_no_more_than_fit_in_memory() -> None:
    kept = budget("1K").of((Item(str(number), 100) for number in range(10_000)), lambda item: item.size)
    assert len(kept) == 10


def test_what_is_larger_than_the_budget_does_not_use_it_up() -> None:
    assert budget("2K").of([Item("large", 4096), Item("small", 1)], lambda item: item.size) == [Item("small", 1)]


@pytest.mark.parametrize(("text", "size"), [("2G", 2 * 1024**3), ("512", 512), ("10k", 10_240), ("1MiB", 1024**2)])
def test_budgets_are_read(text: str, size: int) -> None:
    assert subset(text) == Budget(size)


@pytest.mark.parametrize(
    "text", ["", "0/10", "11/10", "1/0", "0%", "101%", "0", "0G", "-1G", "2X", "half", "1/10/2", "5 %"]
)
def test_what_is_no_subset_is_told(text: str) -> None:
    with pytest.raises(ValueError, match="must be"):
        subset(text)


@pytest.mark.parametrize(("text", "length"), [("90s", 90), ("10m", 600), ("1.5h", 5400), ("7d", 604_800)])
def test_durations_are_read(text: str, length: float) -> None:
    assert seconds(text) == length


@pytest.mark.parametrize("text", ["", "10", "0s", "-5m", "7 d", "1y", "99999999999d"])
def test_what_is_no_duration_is_told(text: str) -> None:
    with pytest.raises(ValueError, match="must be a duration"):
        seconds(text)


def test_a_moment_is_a_date_a_time_or_a_while_ago() -> None:
    now = datetime(2026, 11, 25, 12, tzinfo=UTC)
    assert moment("2026-11-01", now) == datetime(2026, 11, 1, tzinfo=UTC)
    assert moment("2026-11-01T02:00:00+02:00", now) == datetime(2026, 11, 1, tzinfo=UTC)
    assert moment("7d", now) == now - timedelta(days=7)
    with pytest.raises(ValueError, match="must be a date"):
        moment("yesterday", now)
