"""The simulation of a fleet scan: what S3 allows is never exceeded, and the page of figures is what it prints."""

from __future__ import annotations

from pathlib import Path

import pytest

from bench.cost.scale import PARTITION_READS, REQUESTS, Bucket, Simulation, lines, price

PAGE = Path(__file__).parents[3] / "docs/scale.md"


def test_a_bucket_gives_no_more_than_its_rate_and_what_it_saved_in_a_second() -> None:
    bucket = Bucket(10.0, 10.0)
    given = [bucket.take(step / 100) for step in range(1000)]
    assert sum(given) == pytest.approx(10 + 10 * 10, abs=1)
    assert all(given[:10])


def test_the_same_seed_gives_the_same_outcome() -> None:
    one, same, other = (Simulation(3, 1, 500, seed).run() for seed in (1, 1, 2))
    assert one == same
    assert one != other


def test_every_delta_is_judged_and_each_of_its_requests_is_counted() -> None:
    outcome = Simulation(2, 1, 300).run()
    assert (outcome.refused, outcome.undetermined, outcome.requests) == (0, 0, 300 * REQUESTS)


def test_more_functions_than_a_partition_feeds_are_throttled_and_lose_no_delta() -> None:
    few, many = Simulation(5, 1, 3000).run(), Simulation(100, 1, 12_000).run()
    assert few.refused == 0 < many.refused
    assert many.undetermined == 0
    assert (many.requests - many.refused) / many.seconds < PARTITION_READS
    assert many.rate < 20 * few.rate


def test_more_partitions_feed_more_functions() -> None:
    one, four = (Simulation(60, partitions, 12_000).run() for partitions in (1, 4))
    assert four.seconds < one.seconds
    assert four.refused < one.refused


def test_the_price_grows_with_the_deltas() -> None:
    sample = Simulation(5, 1, 2000).run()
    assert price(2_000_000, sample).dollars == pytest.approx(2 * price(1_000_000, sample).dollars)


@pytest.mark.slow
def test_the_page_shows_what_the_simulation_prints() -> None:
    printed = "\n".join(line.rstrip() for line in lines())
    assert printed in PAGE.read_text()
