"""The time that is left for a piece of work: made once where it begins, and passed to every step of it."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from dataclasses import dataclass
from typing import TypeVar

from shared.model.errors import CouldNotCheck

_TOGETHER = 8  # requests at once: a good part of a round trip each, and no burden for the store

Item = TypeVar("Item")
Result = TypeVar("Result")


@dataclass(frozen=True, slots=True)
class Deadline:
    """A moment of the monotonic clock, in seconds; infinity where there is none."""

    moment: float

    @classmethod
    def after(cls, seconds: float) -> Deadline:
        """So many seconds from now."""
        return cls(time.monotonic() + seconds)

    @property
    def left(self) -> float:
        """Seconds that are left, never less than 0; infinity where there is no deadline."""
        return max(0.0, self.moment - time.monotonic())

    @property
    def passed(self) -> bool:
        """Whether nothing is left."""
        return time.monotonic() >= self.moment

    def within(self, seconds: float) -> Deadline:
        """The deadline of a step that may take so many seconds itself."""
        return Deadline(min(self.moment, time.monotonic() + seconds))

    def check(self, doing: str) -> None:
        """Raises `CouldNotCheck` (`check.timeout`) when it has passed.

        Args:
            doing: What would be done next, the beginning of the message.
        """
        if self.passed:
            raise CouldNotCheck("check.timeout", f"{doing}: no time is left for it")


UNLIMITED = Deadline(float("inf"))
"""No deadline."""


def side_by_side(
    action: Callable[[Item], Result], items: Iterable[Item], deadline: Deadline, doing: str
) -> list[Result]:
    """What an action that waits for a service returns of each item, in the order of the items; some run at once.

    Args:
        action: May be called in any thread. It minds the deadline itself, too, where it takes several steps.
        items: What it is called with.
        deadline: After it, nothing is begun, and nothing is waited for.
        doing: What the action does, for the message.

    Raises:
        CouldNotCheck: The deadline passed (`check.timeout`), or no thread could be started.
        Exception: What the action raised.
    """
    waiting = list(items)
    deadline.check(doing)
    if len(waiting) < 2:  # no thread is worth it
        return [action(item) for item in waiting]
    pool = ThreadPoolExecutor(min(_TOGETHER, len(waiting)), thread_name_prefix="side-by-side")
    try:
        try:
            futures = [pool.submit(action, item) for item in waiting]
        except RuntimeError as error:
            raise CouldNotCheck("check.memory", f"{doing}: {error}") from error
        left = deadline.left
        wait(futures, None if left == float("inf") else left, FIRST_EXCEPTION)
        done = [future for future in futures if future.done()]
        for future in done:
            future.result()
        if len(done) < len(futures):
            deadline.check(f"{doing}, {len(done)} of {len(futures)} done")
        return [future.result() for future in futures]
    finally:
        # What still runs after the deadline hangs in a request; it ends by itself and nobody waits for it.
        pool.shutdown(wait=not deadline.passed, cancel_futures=True)
