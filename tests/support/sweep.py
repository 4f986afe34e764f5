"""How much of an enumeration runs: a fixed sample in `make test`, all of it in `make test-all`."""

from __future__ import annotations

import itertools
import os
import zlib
from collections.abc import Iterator, Sequence
from random import Random
from typing import TypeVar

T = TypeVar("T")

ALL = os.environ.get("DELTAGUARD_TEST_SWEEP") == "all"
"""Whether every case of every enumeration is to run. Tests marked `sweep` run only then."""


def few(sample: int, everything: int) -> int:
    """How many of so many."""
    return everything if ALL else sample


def some(cases: Sequence[T], sample: int, seed: int | str = 0) -> list[T]:
    """So many of the cases, in their order and always the same for a seed."""
    chosen = range(len(cases)) if ALL else Random(seed).sample(range(len(cases)), min(sample, len(cases)))
    return [cases[index] for index in sorted(chosen)]


def numbers(requests: int, sample: int) -> list[int]:
    """The requests to disturb, from 1: evenly spread, the first and the last among them."""
    if ALL or requests <= sample:
        return list(range(1, requests + 1))
    return sorted({1 + round(step * (requests - 1) / (sample - 1)) for step in range(sample)})


def stepping(every: int) -> Iterator[int]:
    """Numbers from 1 without end, of which each `every`-th; tests with other parameters take other ones."""
    test = os.environ["PYTEST_CURRENT_TEST"].partition(" ")[0]
    return itertools.count(1) if ALL else itertools.count(1 + zlib.crc32(test.encode()) % every, every)
