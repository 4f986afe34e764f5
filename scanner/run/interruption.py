"""Ctrl-C at the right moment: a step that must not be torn apart is ended first."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


class Interruption:
    """Turns SIGINT into `KeyboardInterrupt`, but not in the middle of a step. A second one does at once."""

    def __init__(self) -> None:
        self._stepping = False
        self._asked = False

    def __call__(self, _number: int, _frame: FrameType | None) -> None:
        """The handler of the signal."""
        if not self._stepping or self._asked:
            raise KeyboardInterrupt
        self._asked = True

    @contextmanager
    def step(self) -> Iterator[None]:
        """The block is run to its end; an interrupt that came meanwhile is raised behind it."""
        self._stepping = True
        try:
            yield
        finally:
            self._stepping = False
        if self._asked:
            raise KeyboardInterrupt


@contextmanager
def interruptible() -> Iterator[Interruption]:
    """Has SIGINT handled so inside the block, which runs in the main thread."""
    interruption = Interruption()
    before = signal.signal(signal.SIGINT, interruption)
    try:
        yield interruption
    finally:
        signal.signal(signal.SIGINT, before)
