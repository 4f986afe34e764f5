"""How many deltas are judged at once: fewer while the store asks to slow down, and more again when it does not.

Additive increase, multiplicative decrease, as TCP shares a line (RFC 5681): each throttled delta halves the number,
each unthrottled round adds one. A throttled delta is tried again later, so throttling costs time and no verdict.
"""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Generic, TypeVar

PAUSES = (1.0, 2.0, 4.0, 8.0, 16.0, 30.0)
"""Seconds between the attempts of one delta that was throttled; each is taken at half to full length."""

_REACTION_SECONDS = 1.0  # what was asked before the last slowing down says nothing about it

_Delta = TypeVar("_Delta")
_Answer = TypeVar("_Answer")


class Throttle:
    """The number of checks at once, between 1 and `most`.

    Args:
        most: How many at once when nothing is in the way.
        clock: Seconds, for tests.
    """

    def __init__(self, most: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._most = most
        self._allowed = float(most)
        self._running = 0
        self._clock = clock
        self._slowed = -_REACTION_SECONDS
        self._free = threading.Condition()
        self._ended = threading.Event()

    @property
    def allowed(self) -> int:
        """How many may be judged at once now."""
        return int(self._allowed)

    @property
    def slowed(self) -> bool:
        """Whether that is fewer than were asked for."""
        return self.allowed < self._most

    @contextmanager
    def turn(self) -> Iterator[None]:
        """Waits until one more may be judged; the block is that one."""
        with self._free:
            self._free.wait_for(lambda: self._running < self.allowed)
            self._running += 1
        try:
            yield
        finally:
            with self._free:
                self._running -= 1
                self._free.notify()

    def slow_down(self) -> None:
        """Takes note that the store asked to slow down."""
        with self._free:
            if self._clock() - self._slowed >= _REACTION_SECONDS:
                self._allowed = max(1.0, self._allowed / 2)
                self._slowed = self._clock()

    def speed_up(self) -> None:
        """Takes note that the store answered in time."""
        if self._allowed < self._most:
            with self._free:
                self._allowed = min(self._most, self._allowed + 1 / self._allowed)
                self._free.notify()

    def pause(self, attempt: int) -> bool:
        """Waits before the next attempt of something that was throttled. Returns False when there is to be none."""
        if attempt >= len(PAUSES):
            return False
        return not self._ended.wait(PAUSES[attempt] * random.uniform(0.5, 1.0))  # noqa: S311 - spreads retries, no secret

    def end(self) -> None:
        """Has nobody wait any more: what was throttled stays so."""
        self._ended.set()


class RetriedCheck(Generic[_Delta, _Answer]):
    """A check that is repeated, more and more slowly, as long as the store throttles it.

    Args:
        check: Judges one delta.
        throttle: Shared by all checks.
        is_throttled: Whether an answer only says that the store asked to slow down.
    """

    def __init__(
        self, check: Callable[[_Delta], _Answer], throttle: Throttle, is_throttled: Callable[[_Answer], bool]
    ) -> None:
        self._check = check
        self._throttle = throttle
        self._is_throttled = is_throttled

    def __call__(self, delta: _Delta) -> _Answer:
        """The answer on one delta; one that is still throttled after a minute is that answer."""
        attempt = 0
        while True:
            with self._throttle.turn():
                answer = self._check(delta)
            if not self._is_throttled(answer):
                self._throttle.speed_up()
                return answer
            self._throttle.slow_down()
            if not self._throttle.pause(attempt):
                return answer
            attempt += 1
