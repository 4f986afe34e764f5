"""SQLite's integrity check in a thread of its own, beside all else that is asked of the same database.

It takes a third of the time of a look at a delta and nearly always finds nothing, so nobody waits for it: what is read
in the meantime counts for nothing if it finds damage. SQLite works without the interpreter's lock, so another processor
can do it; and since a thread may wait milliseconds for that lock, this one takes it only at its begin and its end. One
more look that SQLite can take alone may follow in the same thread.
"""

from __future__ import annotations

import math
import sqlite3
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from threading import Thread

from shared.inspection.sqlite.database_file import inspect_integrity
from shared.model.verdict import Finding

_AGAIN_SECONDS = 0.01
_LOOK_SECONDS = 0.25  # between two looks at its processor time

Look = Callable[[sqlite3.Connection], list[Finding]]
"""A look at a database that is one or two statements long."""


class IntegrityCheck:
    """An integrity check that has begun (see `integrity_checked`)."""

    def __init__(
        self, own: sqlite3.Connection, beside: sqlite3.Connection, seconds: float, processor_seconds: float
    ) -> None:
        self._own, self._beside = own, beside
        self._processor_seconds = processor_seconds
        self._took = 0.0
        self._deadline = time.monotonic() + seconds
        self._findings: list[Finding] = []
        self._next: Look | None = None
        self._next_findings: list[Finding] | None = None
        self._error: BaseException | None = None
        self._thread = Thread(target=self._run, name="integrity check")
        try:
            self._thread.start()
        except RuntimeError:  # the machine runs short of threads, or the interpreter is ending
            self._findings = inspect_integrity(beside)

    def findings(self) -> list[Finding]:
        """Waits for its end and returns what it found.

        Raises:
            CouldNotCheck: It could not be carried through, or not in time.
            NotUtf8: See `sqlite.explained`.
        """
        self._wait()
        return self._findings

    def then(self, look: Look) -> Callable[[], list[Finding]]:
        """Lets a look follow in the same thread if no damage is found. One may.

        Returns:
            What waits for that look and returns its findings. It raises what `findings` does.
        """
        self._next = look

        def found() -> list[Finding]:
            self._wait()
            if self._next_findings is None:  # the thread had ended before it heard of this look, or never began
                self._next_findings = [] if self._findings else look(self._beside)
            return self._next_findings

        return found

    def _wait(self) -> None:
        while self._thread.is_alive() and self._time_left():
            self._thread.join(_LOOK_SECONDS)
        self.end()
        if self._error is not None:
            raise self._error

    def _time_left(self) -> bool:
        """Whether it may go on, by the clock and by the processor time that its thread has taken."""
        ident = self._thread.ident
        if ident is not None and hasattr(time, "pthread_getcpuclockid"):
            with suppress(OSError):  # it has ended just now
                self._took = time.clock_gettime(time.pthread_getcpuclockid(ident))
        return time.monotonic() < self._deadline and self._took < self._processor_seconds

    def end(self) -> None:
        """Ends it where it still runs."""
        while self._thread.is_alive():
            self._own.interrupt()  # which does nothing to a statement that has not begun yet
            self._thread.join(_AGAIN_SECONDS)

    def _run(self) -> None:
        try:
            self._findings = inspect_integrity(self._own)
            if self._next is not None and not self._findings:
                self._next_findings = self._next(self._own)
        except BaseException as error:  # noqa: BLE001 -- it is raised where the findings are asked for
            self._error = error
        if self._findings or self._error is not None:
            self._beside.interrupt()


@contextmanager
def integrity_checked(
    opened: AbstractContextManager[sqlite3.Connection],
    beside: sqlite3.Connection,
    seconds: float,
    processor_seconds: float = math.inf,
) -> Iterator[IntegrityCheck]:
    """Checks the integrity of a database while the block reads in it.

    Args:
        opened: The database, opened once more: a connection serves one statement at a time.
        beside: The connection that the block uses. Its statement is interrupted once damage is proven or the check has
            failed, since what it reads is of no use then.
        seconds: After what time the check is given up.
        processor_seconds: After what processor time it is, where the system tells that of a thread.

    Raises:
        CouldNotCheck: The database could not be opened again.
    """
    with opened as own:
        own.set_progress_handler(None, 0)  # it would take the interpreter's lock; `findings` minds the time
        check = IntegrityCheck(own, beside, seconds, processor_seconds)
        try:
            yield check
        finally:
            check.end()
