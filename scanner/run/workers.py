"""Many deltas judged at once, a bounded number in flight, and the tally of their verdicts."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from importlib.util import find_spec
from queue import SimpleQueue
from typing import Any, TypeVar

from shared.model.errors import SettingsError
from shared.model.verdict import Depth, Status, Verdict

MAX_JOBS = 64

_Delta = TypeVar("_Delta")
_Answer = TypeVar("_Answer")


def judge_all(
    deltas: Iterable[_Delta], judge: Callable[[_Delta], _Answer], jobs: int
) -> Generator[_Answer, None, None]:
    """Judges deltas in parallel and yields the answers as they complete.

    `deltas` is consumed as answers come, so millions of them need no more memory than a few. When the iterator is
    closed, interrupted or fails, checks that wait are cancelled; those that run end on their own behind it, and clean
    up behind themselves.

    Args:
        deltas: What to judge.
        judge: Judges one of them, in several threads at once. An exception of it ends the iteration and is raised here.
        jobs: How many are judged at once.
    """
    pool = ThreadPoolExecutor(jobs, thread_name_prefix="check")
    done: SimpleQueue[Future[_Answer]] = SimpleQueue()
    running = 0
    try:
        for delta in deltas:
            pool.submit(judge, delta).add_done_callback(done.put)
            running += 1
            while running >= 2 * jobs or not done.empty():
                yield done.get().result()
                running -= 1
        while running:
            yield done.get().result()
            running -= 1
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


def require_witness() -> None:
    """Sees to it that Chroma can be asked as a second witness, without which nothing is moved.

    Raises:
        SettingsError: chromadb is not installed.
    """
    if find_spec("chromadb") is None:
        raise SettingsError(
            "quarantine asks Chroma about each corrupt delta before it moves one, and chromadb is not installed: "
            "pip install 'deltaguard[chroma]'"
        )


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
        out_of_time: Whether deltas were left out because the time that was given is over.
        interrupted: Whether the user ended the run.
        quarantined: Deltas moved to quarantine; None when nobody asked for it.
        movable: Deltas that would be moved to quarantine; None when nobody asked for it.
        earlier: How many of the verdicts are those of earlier runs that this one goes on from.
        started: `time.perf_counter()` at the beginning.
    """

    counts: dict[Status, int] = field(default_factory=lambda: dict.fromkeys(Status, 0))
    notes: int = 0
    size: int = 0
    unfinished: bool = False
    out_of_time: bool = False
    interrupted: bool = False
    quarantined: int | None = None
    movable: int | None = None
    earlier: int = 0
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
        return 3 if self.counts[Status.UNDETERMINED] or self.unfinished or self.out_of_time else 0

    @property
    def seconds(self) -> float:
        """The wall time of this run up to now."""
        return time.perf_counter() - self.started

    @property
    def reservations(self) -> list[str]:
        """What the numbers do not tell, and a reader of them should know."""
        told = {
            "interrupted": self.interrupted,
            "the time was over before all were checked": self.out_of_time,
            "not everything could be listed": self.unfinished,
            f"{self.earlier:,} of them checked by earlier runs": self.earlier,
            f"{self.quarantined or 0:,} quarantined": self.quarantined is not None,
            f"{self.movable or 0:,} would be quarantined": self.movable is not None,
        }
        return [text for text, holds in told.items() if holds]

    def as_json(self) -> dict[str, Any]:
        """The summary as the ndjson contract has it; `duration_ms` is the wall time up to now."""
        return {
            **{status.value: count for status, count in self.counts.items()},
            "total": self.total,
            "bytes": self.size,
            "duration_ms": round(self.seconds * 1000, 3),
            **({} if self.quarantined is None else {"quarantined": self.quarantined}),
            **({} if self.movable is None else {"would_quarantine": self.movable}),
        }
