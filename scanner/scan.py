"""Many deltas judged at once, a bounded number in flight, and the tally of their verdicts."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, as_completed, wait
from dataclasses import dataclass, field
from typing import Any, TypeVar

from shared.verdict import Depth, Status, Verdict

MAX_JOBS = 64

_Delta = TypeVar("_Delta")


def judge_all(
    deltas: Iterable[_Delta], judge: Callable[[_Delta], Verdict], jobs: int
) -> Generator[Verdict, None, None]:
    """Judges deltas in parallel and yields their verdicts as they complete.

    `deltas` is consumed as verdicts come, so millions of them need no more memory than a few. When the iterator is
    closed, interrupted or fails, checks that wait are cancelled; those that run end on their own behind it, and clean
    up behind themselves.

    Args:
        deltas: What to judge.
        judge: Judges one of them, in several threads at once. An exception of it ends the iteration and is raised here.
        jobs: How many are judged at once.
    """
    pool = ThreadPoolExecutor(jobs, thread_name_prefix="check")
    running: set[Future[Verdict]] = set()
    try:
        for delta in deltas:
            running.add(pool.submit(judge, delta))
            full = len(running) >= 2 * jobs
            done, running = wait(running, timeout=None if full else 0, return_when=FIRST_COMPLETED)
            for future in done:
                yield future.result()
        for future in as_completed(running):
            yield future.result()
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


def default_jobs(depth: Depth, cpus: int) -> int:
    """How many deltas to judge at once: most checks wait for S3, but one of depth `open` keeps a CPU to itself."""
    return max(1, min(MAX_JOBS, cpus if depth is Depth.OPEN else 4 * cpus))


@dataclass(slots=True)
class Tally:
    """The verdicts so far, in numbers.

    Args:
        counts: Verdicts by status.
        notes: Notes of all verdicts.
        size: Bytes of all deltas.
        unfinished: Whether deltas were left out because they could not be found.
        interrupted: Whether the user ended the run.
        started: `time.perf_counter()` at the beginning.
    """

    counts: dict[Status, int] = field(default_factory=lambda: dict.fromkeys(Status, 0))
    notes: int = 0
    size: int = 0
    unfinished: bool = False
    interrupted: bool = False
    started: float = field(default_factory=time.perf_counter)

    def add(self, verdict: Verdict) -> None:
        """Counts one verdict."""
        self.counts[verdict.status] += 1
        self.notes += len(verdict.notes)
        self.size += verdict.size

    @property
    def total(self) -> int:
        """How many deltas have a verdict."""
        return sum(self.counts.values())

    def exit_code(self) -> int:
        """0 all healthy, 1 a corrupt or incomplete delta, 3 none, but not everything was checked, 130 interrupted."""
        if self.interrupted:
            return 130
        if self.counts[Status.CORRUPT] or self.counts[Status.INCOMPLETE]:
            return 1
        return 3 if self.counts[Status.UNDETERMINED] or self.unfinished else 0

    def as_json(self) -> dict[str, Any]:
        """The summary as the ndjson contract has it; `duration_ms` is the wall time up to now."""
        return {
            **{status.value: count for status, count in self.counts.items()},
            "total": self.total,
            "bytes": self.size,
            "duration_ms": round((time.perf_counter() - self.started) * 1000, 3),
        }
