"""Fair comparison: whatever is compared is measured in turns, so that what slows the machine down slows down all."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from statistics import median
from typing import Any

Measure = Callable[[], float]
"""Does something once and returns what it cost."""


def timed(action: Callable[[], Any]) -> Measure:
    """The measure of an action: milliseconds from its call to its return."""

    def measure() -> float:
        started = time.perf_counter()
        action()
        return (time.perf_counter() - started) * 1000

    return measure


def steady(measure: Measure, times: int = 5) -> Measure:
    """The median of some measurements in a row: what a thing costs where it is done again and again.

    Taken once between turns of another process, the smallest cost is mostly that of cold processor caches.
    """
    return lambda: median(measure() for _ in range(times))


def in_turns(measures: Sequence[Measure], rounds: int) -> list[list[float]]:
    """Takes each measure in turn (A, B, A, B, ...), after one round that warms the caches and is not counted.

    Args:
        measures: What is compared.
        rounds: How often each is counted.

    Returns:
        The costs of each measure, in the order of `measures`.
    """
    for measure in measures:
        measure()
    costs: list[list[float]] = [[] for _ in measures]
    for _ in range(rounds):
        for measure, cost in zip(measures, costs, strict=True):
            cost.append(measure())
    return costs
