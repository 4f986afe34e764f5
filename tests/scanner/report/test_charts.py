"""The drawings: well-formed, inside their bounds, and right in their numbers."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta
from xml.etree import ElementTree

import pytest

from scanner.report.charts import percent, prefix_map, rate_over_time, shares, shown, step
from scanner.report.overview import Bin, PrefixTree
from shared.model.verdict import Status

START = datetime(2026, 8, 3, tzinfo=UTC)


@pytest.mark.parametrize(
    ("rate", "text"), [(0, "0 %"), (0.00001, "< 0.1 %"), (0.025, "2.5 %"), (0.05, "5 %"), (0.4, "40 %"), (1, "100 %")]
)
def test_a_rate_in_words(rate: float, text: str) -> None:
    assert percent(rate) == text


@pytest.mark.parametrize(("rate", "colour"), [(0, 0), (0.001, 1), (0.01, 2), (0.05, 3), (0.2, 4), (1, 4)])
def test_a_rate_as_a_colour(rate: float, colour: int) -> None:
    assert step(rate) == colour


def test_shares_fill_the_bar_and_the_smallest_is_still_seen() -> None:
    bar = ElementTree.fromstring(shares([("healthy", 999_999), ("corrupt", 1), ("incomplete", 0)]))
    widths = [float(rect.attrib["width"].rstrip("%")) for rect in bar]
    assert len(widths) == 2
    assert sum(widths) == pytest.approx(100, abs=0.01)
    assert widths[1] > 0.5


def test_bars_of_a_rate_stay_below_the_top_of_their_scale() -> None:
    bins = [Bin(START + timedelta(days=n), 10, n) for n in range(11)]
    drawn = ElementTree.fromstring(rate_over_time(bins, "day"))
    heights = [float(rect.attrib["height"]) for rect in drawn.iter("rect") if rect.attrib["class"] == "corrupt"]
    assert heights == pytest.approx([12.0 * n for n in range(11)])


def test_a_map_is_as_wide_as_all_and_no_child_wider_than_its_prefix() -> None:
    tree = PrefixTree()
    for n in range(4000):
        tree.add(f"s3://b/{'<x>' if n % 7 else n}/{n % 3}/{n}/", Status.CORRUPT if n < 9 else Status.HEALTHY)
    drawn = prefix_map(tree.root())
    ElementTree.fromstring(drawn)
    rows: dict[str, float] = {}
    for y, width in re.findall(r'y="(\d+)" width="([\d.]+)%"', drawn):
        rows[y] = rows.get(y, 0) + float(width)
    assert rows["0"] == 100
    assert all(width <= 100.01 for width in rows.values())
    assert "&lt;x&gt;: " in drawn


def test_text_of_a_delta_is_no_markup_and_has_no_control_characters() -> None:
    assert shown("<b>\x1b'\"") == "&lt;b&gt;\\u001b&#x27;&quot;"
