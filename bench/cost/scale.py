"""`python -m bench.cost.scale`: how long a fleet scan takes when S3 throttles it, and its price. Simulated, not timed.

Discrete events: each check makes its requests one after another; each request takes a token of its partition's bucket;
without one it is answered with SlowDown after a round trip, and repeated as botocore does. A check that is still
throttled is repeated later, and slows its function down: that is `scanner.run.throttle.Throttle` itself, on the
simulation's clock. The same seed gives the same figures.
"""

from __future__ import annotations

import heapq
import random
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field

from scanner.find.cost import GET_DOLLARS, LIST_DOLLARS, PAGE
from scanner.run.throttle import PAUSES, Throttle

PARTITION_READS = 5500.0
"""GET and HEAD requests a second that S3 promises for each partitioned prefix:
https://docs.aws.amazon.com/AmazonS3/latest/userguide/optimizing-performance.html
"""
PUT_DOLLARS = 0.005 / 1000
GB_SECOND_DOLLARS = 0.0000166667
TRANSITION_DOLLARS = 0.025 / 1000
INVOCATION_DOLLARS = 0.20 / 1e6
"""us-east-1, x86-64, list prices of November 2025."""

FILES = 6
REQUESTS = 8
CPU_SECONDS = 0.0145
"""Of a delta of 50 embeddings of dimension 1536 with a manifest, at depth `structure`: its objects; the requests for it
(6 HEAD and 2 GET, counted on moto); one CPU's seconds of `judge`, measured there with botocore's share."""
PLAN_SECONDS = 0.1 / PAGE * FILES
"""Of a delta: a listing's page of 1,000 keys takes 0.1 s (`scanner.find.cost.REQUEST_SECONDS`)."""
REPORTED = 5_000_000
"""Deltas that one report can surely hold: each takes 0.15 ms of its 15 minutes, as measured, and 393 bytes of disk."""

_ROUND_TRIP = 0.03
_CPUS = 2048 / 1769
"""Of a function with 2048 MB: https://docs.aws.amazon.com/lambda/latest/dg/configuration-memory.html"""
_GB = 2.0
_JOBS = 8  # 4 for each of the 2 processors that a function of this size sees
_COLD_SECONDS = 3.0
_BATCH = 1000
_ATTEMPTS = 5
_LONGEST_BACKOFF = 20.0
_TRANSITIONS = 3
_SHARE = 20  # of a batch, that a function takes at once here: less than a batch, for a sample that ends evenly
_SAMPLE, _SAMPLE_OF_A_FUNCTION = 40_000, 250
_MIDDLE = (0.4, 0.9)  # the part of a sample that its rate is taken from: no cold start, no saved up tokens, no end
_SEED = 40


@dataclass(slots=True)
class Bucket:
    """Tokens of one partition: so many a second, and no more than those of a second are saved up."""

    rate: float
    tokens: float
    at: float = 0.0

    def take(self, now: float) -> bool:
        """Whether there was a token left."""
        self.tokens = min(self.rate, self.tokens + (now - self.at) * self.rate)
        self.at = now
        if self.tokens < 1:
            return False
        self.tokens -= 1
        return True


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of a scan.

    Args:
        deltas: How many deltas were to be judged.
        seconds: When the last one was done.
        rate: Deltas a second, once it runs evenly.
        busy: Seconds of all functions together.
        requests: How many requests were made, those among them that were refused included.
        refused: How many were refused.
        undetermined: Deltas that were still throttled after the last pause.
    """

    deltas: int
    seconds: float
    rate: float
    busy: float
    requests: int
    refused: int
    undetermined: int


@dataclass(slots=True)
class _Check:
    """One delta in one of a function's turns: how many requests are answered, and how often what was refused."""

    partition: int
    answered: int = 0
    refusals: int = 0
    attempt: int = 0


@dataclass(slots=True)
class _Function:
    throttle: Throttle
    running: int = 0
    cpu_free: float = 0.0
    left: int = 0
    ended: float = 0.0
    waiting: list[_Check] = field(default_factory=list)
    pausing: int = 0


class Simulation:
    """A fleet that judges deltas which are spread evenly over the partitions of a bucket.

    Args:
        functions: How many at once.
        partitions: How many partitioned prefixes S3 has made of the deltas.
        deltas: How many there are.
        seed: Of everything that is random.
    """

    def __init__(self, functions: int, partitions: int, deltas: int, seed: int = _SEED) -> None:
        self._random = random.Random(seed)  # noqa: S311 - no secret
        self._now = 0.0
        self._deltas, self._planned = deltas, deltas
        self._buckets = [Bucket(PARTITION_READS, PARTITION_READS) for _ in range(partitions)]
        self._events: list[tuple[float, int, _Function, _Check | None]] = []
        self._number = 0
        self._done: list[float] = []
        self._requests = self._refused = self._undetermined = 0
        self._functions = [_Function(Throttle(_JOBS, lambda: self._now)) for _ in range(functions)]

    def run(self) -> Outcome:
        """Judges all deltas."""
        for function in self._functions:
            self._at(_COLD_SECONDS * self._random.uniform(0.5, 1.0), function, None)
        while self._events:
            self._now, _, function, check = heapq.heappop(self._events)
            if check is not None and check.answered == REQUESTS:
                function.running -= 1
                function.throttle.speed_up()
                self._done.append(self._now)
                function.ended = self._now
            elif check is not None and check.refusals == -1:  # its pause is over
                check.refusals = 0
                function.pausing -= 1
                function.waiting.append(check)
            elif check is not None:
                self._ask(function, check)
            self._begin(function)
        seconds = max(function.ended for function in self._functions)
        busy = sum(function.ended for function in self._functions)
        first, last = (int(len(self._done) * part) for part in _MIDDLE)
        rate = (last - first) / max(self._done[last] - self._done[first], 1e-9)
        return Outcome(self._deltas, seconds, rate, busy, self._requests, self._refused, self._undetermined)

    def _begin(self, function: _Function) -> None:
        """Starts as many checks as the throttle allows."""
        # A turn that pauses keeps its thread, so it counts among those that there are, but not among those that run.
        while function.running < function.throttle.allowed and function.running + function.pausing < _JOBS:
            if function.waiting:
                check = function.waiting.pop()
            elif self._next(function):
                check = _Check(self._random.randrange(len(self._buckets)))
            else:
                return
            function.running += 1
            self._ask(function, check)

    def _next(self, function: _Function) -> bool:
        """Whether there is one more delta for this function."""
        if not function.left:
            function.left = min(_SHARE, self._planned)
            self._planned -= function.left
        if not function.left:
            return False
        function.left -= 1
        return True

    def _ask(self, function: _Function, check: _Check) -> None:
        self._requests += 1
        back = self._now + _ROUND_TRIP * self._random.uniform(0.7, 1.3)
        if self._buckets[check.partition].take(self._now):
            check.answered, check.refusals = check.answered + 1, 0
            if check.answered == REQUESTS:
                function.cpu_free = max(back, function.cpu_free) + CPU_SECONDS / _CPUS
                back = function.cpu_free
            self._at(back, function, check)
            return
        self._refused += 1
        check.refusals += 1
        if check.refusals < _ATTEMPTS:
            backoff = self._random.random() * min(2.0 ** (check.refusals - 1), _LONGEST_BACKOFF)
            self._at(back + backoff, function, check)
            return
        function.running -= 1
        function.throttle.slow_down()
        function.ended = self._now
        if check.attempt == len(PAUSES):
            self._undetermined += 1
            return
        pause = PAUSES[check.attempt] * self._random.uniform(0.5, 1.0)
        check.answered, check.refusals, check.attempt = 0, -1, check.attempt + 1
        function.pausing += 1
        self._at(back + pause, function, check)

    def _at(self, time: float, function: _Function, check: _Check | None) -> None:
        self._number += 1
        heapq.heappush(self._events, (time, self._number, function, check))


@dataclass(frozen=True, slots=True)
class Price:
    """What a scan of so many deltas costs, in dollars."""

    reads: float
    lists: float
    compute: float
    steps: float

    @property
    def dollars(self) -> float:
        """All together."""
        return self.reads + self.lists + self.compute + self.steps


def price(deltas: float, sample: Outcome) -> Price:
    """The price of a scan whose functions are as busy, and are refused as often, as those of the sample."""
    share = deltas / sample.deltas
    batches = deltas / _BATCH
    seconds = sample.busy * share + deltas * PLAN_SECONDS
    return Price(
        (sample.requests - sample.refused) * share * GET_DOLLARS,  # refused requests are not charged
        deltas * FILES / PAGE * LIST_DOLLARS + 2 * batches * PUT_DOLLARS,
        seconds * _GB * GB_SECOND_DOLLARS + batches * INVOCATION_DOLLARS,
        batches * _TRANSITIONS * TRANSITION_DOLLARS,
    )


def lines() -> Iterator[str]:
    """The tables of docs/scale.md."""
    yield "functions  partitions  deltas/s  refused  undetermined"
    samples = {}
    for functions, partitions in ((5, 1), (10, 1), (20, 1), (40, 1), (100, 1), (100, 4), (300, 16), (1000, 16)):
        deltas = max(_SAMPLE, functions * _SAMPLE_OF_A_FUNCTION)
        sample = samples[functions, partitions] = Simulation(functions, partitions, deltas).run()
        refused = sample.refused / sample.requests
        yield f"{functions:>9}  {partitions:>10}  {sample.rate:>8,.0f}  {refused:>7.1%}  {sample.undetermined:>12}"
    yield ""
    yield "deltas  executions  functions  partitions  planning  judging   dollars"
    for exponent, key in ((4, (20, 1)), (5, (20, 1)), (6, (20, 1)), (7, (100, 4)), (8, (300, 16)), (9, (300, 16))):
        sample = samples[key]
        total = 10**exponent
        executions = -(-total // REPORTED)
        planning, judging = _duration(total / executions * PLAN_SECONDS), _duration(_COLD_SECONDS + total / sample.rate)
        dollars = price(total, sample).dollars
        yield (
            f"  10^{exponent}  {executions:>10}  {key[0]:>9}  {key[1]:>10}"
            f"  {planning:>8}  {judging:>7}  {dollars:>8,.2f}"
        )


def _duration(seconds: float) -> str:
    for unit, length in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:.0f} {unit}"
    return f"{seconds:.0f} s"


if __name__ == "__main__":
    for line in lines():
        sys.stdout.write(line + "\n")
