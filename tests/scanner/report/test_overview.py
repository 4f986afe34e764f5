"""What is said of any number of deltas, in bounded memory."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scanner.report.overview import MORE, PrefixTree, Timeline, worst
from shared.model.verdict import Status

START = datetime(2026, 8, 3, tzinfo=UTC)


def timeline(*hours: float) -> Timeline:
    made = Timeline()
    for number, hour in enumerate(hours):
        made.add(START + timedelta(hours=hour), corrupt=number == 0)
    return made


class TestTimeline:
    @pytest.mark.parametrize(
        ("hours", "width", "number"),
        [
            ((0, 0.5), "minute", 31),
            ((0, 9), "10 minutes", 55),
            ((0, 59), "hour", 60),
            ((0, 100), "6 hours", 17),
            ((0, 24 * 56), "day", 57),
            ((0, 24 * 70), "week", 11),
            ((0, 24 * 366 * 3), "4 weeks", 40),
            ((0, 24 * 366 * 30), "52 weeks", 31),
        ],
    )
    def test_the_bins_are_as_wide_as_the_time_needs(self, hours: tuple[float, ...], width: str, number: int) -> None:
        bins, words = timeline(*hours).bins(60)
        assert (words, len(bins)) == (width, number)
        assert (bins[0].total, bins[0].corrupt, bins[0].rate) == (1, 1, 1.0)
        assert (bins[-1].total, bins[-1].corrupt, bins[-1].rate) == (1, 0, 0.0)

    def test_a_week_begins_on_monday(self) -> None:
        bins, width = timeline(0, 24 * 100).bins(60)
        assert width == "week"
        assert all(bin_.start.weekday() == 0 and bin_.start.hour == 0 for bin_ in bins)

    def test_nothing_has_no_bins(self) -> None:
        assert Timeline().bins(60) == ([], "")

    @given(st.lists(st.datetimes(datetime(1, 1, 2), datetime(9999, 12, 30)), min_size=1, max_size=30))
    def test_any_time_can_be_counted(self, moments: list[datetime]) -> None:
        made = Timeline()
        for moment in moments:
            made.add(moment.replace(tzinfo=UTC), corrupt=True)
        bins, _ = made.bins(60)
        assert 1 <= len(bins) <= 60
        assert 1 <= sum(bin_.total for bin_ in bins) <= len(moments)

    def test_memory_is_bounded(self) -> None:
        made = timeline(*(n * 1.7 for n in range(50_000)))
        assert len(made._bins) <= 2_000
        assert sum(bin_.total for bin_ in made.bins(10_000)[0]) == 50_000


def tree(*deltas: str) -> PrefixTree:
    made = PrefixTree()
    for delta in deltas:
        made.add(delta, Status.CORRUPT if "bad" in delta else Status.HEALTHY)
    return made


class TestPrefixes:
    def test_a_chain_without_a_choice_is_one_prefix(self) -> None:
        root = tree("s3://b/words/delta/1/", "s3://b/words/delta/bad/").root()
        assert (root.name, root.total, root.corrupt, root.rate, root.children) == ("s3://b/words/delta", 2, 1, 0.5, {})

    def test_where_there_is_a_choice_there_are_children(self) -> None:
        root = tree("s3://b/x/delta/1/", "s3://b/y/delta/bad/", "s3://b/y/delta/2/").root()
        assert root.name == "s3://b"
        assert sorted((child.name, child.total) for child in root.children.values()) == [("x/delta", 1), ("y/delta", 2)]
        assert [(name, prefix.corrupt) for name, prefix in worst(root, 8)] == [("s3://b/y/delta", 1)]

    @pytest.mark.parametrize(
        ("delta", "name"),
        [
            ("s3://b/1/", "s3://b"),
            ("/srv/deltas/1", "/srv/deltas"),
            ("deltas/1", "deltas"),
            ("1", "."),
            ("/1", "."),
            ("s3://b//x//1/", "s3://b/x"),
        ],
    )
    def test_the_prefix_of_a_delta(self, delta: str, name: str) -> None:
        assert tree(delta).root().name == name

    def test_several_buckets_have_no_common_prefix(self) -> None:
        assert tree("s3://a/x/1/", "s3://b/x/1/", "c/1").root().name == ""

    def test_prefixes_beyond_the_first_many_are_put_together(self) -> None:
        root = tree(*(f"s3://b/{n}/delta/bad/" for n in range(1000))).root()
        assert len(root.children) == 65
        assert root.children[MORE].corrupt == 1000 - 64
        assert root.total == 1000

    def test_memory_is_bounded_whatever_the_layout(self) -> None:
        made = tree(*(f"s3://b/{n % 50}/{n % 1999}/{n}/{n}/x/{n}/1/" for n in range(20_000)))

        def size(prefix: object) -> int:
            return 1 + sum(map(size, prefix.children.values()))

        assert size(made._root) < 4_096 * 2
        assert made.root().total == 20_000
