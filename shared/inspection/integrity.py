"""SQLite's integrity check in a thread of its own, beside all else that is asked of the same database.

It takes a third of the time of a look at a delta and nearly always finds nothing, so nobody waits for it: what is read
in the meantime counts for nothing if it finds damage. SQLite works without the interpreter's lock, so another processor
can do it; and since a thread may wait milliseconds for that lock, this one takes it only at its begin and its end. What
else SQLite can answer alone may follow in the same thread.
"""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import AbstractContextManager, contextmanager

from shared.errors import CouldNotCheck
from shared.inspection.sqlite import inspect_integrity
from shared.verdict import Finding

_AGAIN_SECONDS = 0.01

Look = Callable[[sqlite3.Connection], list[Finding]]
"""A look at a database that is one or two statements long."""


class IntegrityCheck:
    """An integrity check that has begun (see `integrity_checked`)."""

    def __init__(self, own: sqlite3.Connection, beside: sqlite3.Connection, seconds: float) -> None:
        self._own, self._beside = own, beside
        self._seconds, self._deadline = seconds, time.monotonic() + seconds
        self._thread = ThreadPoolExecutor(1, "integrity check")
        self._integrity = self._begun(self._check)
        self._following: list[Future[list[Finding]]] = []

    def findings(self) -> list[Finding]:
        """Waits for its end and returns what it found.

        Raises:
            CouldNotCheck: It could not be carried through, or not in time.
            NotUtf8: See `sqlite.explained`.
        """
        return self._found(self._integrity)

    def then(self, look: Look) -> Callable[[], list[Finding]]:
        """Lets another look follow in the same thread.

        Returns:
            What waits for that and returns its findings, none where the integrity check has found any. It raises what
            the look does, and what `findings` does.
        """

        def follow(connection: sqlite3.Connection) -> list[Finding]:
            return [] if self._integrity.result() else look(connection)

        following = self._begun(follow)
        self._following.append(following)
        return lambda: self._found(following)

    def end(self) -> None:
        """Ends what still runs."""
        begun = [future for future in (self._integrity, *self._following) if not future.cancel()]
        while wait(begun, 0).not_done:
            self._own.interrupt()  # which does nothing to a statement that has not begun yet
            wait(begun, _AGAIN_SECONDS)
        self._thread.shutdown()

    def _begun(self, look: Look) -> Future[list[Finding]]:
        try:
            return self._thread.submit(look, self._own)
        except RuntimeError:  # the machine runs short of threads, or the interpreter is ending
            self._thread.shutdown(wait=False, cancel_futures=True)
            done: Future[list[Finding]] = Future()
            done.set_result(look(self._beside))
            return done

    def _found(self, future: Future[list[Finding]]) -> list[Finding]:
        try:
            return future.result(max(0.0, self._deadline - time.monotonic()))
        except TimeoutError:
            self.end()
            raise CouldNotCheck("check.timeout", f"the integrity check took longer than {self._seconds:g} s") from None

    def _check(self, connection: sqlite3.Connection) -> list[Finding]:
        sound = False
        try:
            findings = inspect_integrity(connection)
            sound = not findings
        finally:
            if not sound:
                self._beside.interrupt()
        return findings


@contextmanager
def integrity_checked(
    opened: AbstractContextManager[sqlite3.Connection], beside: sqlite3.Connection, seconds: float
) -> Iterator[IntegrityCheck]:
    """Checks the integrity of a database while the block reads in it.

    Args:
        opened: The database, opened once more: a connection serves one statement at a time.
        beside: The connection that the block uses. Its statement is interrupted once damage is proven or the check has
            failed, since what it reads is of no use then.
        seconds: After what time the check is given up.

    Raises:
        CouldNotCheck: The database could not be opened again.
    """
    with opened as own:
        own.set_progress_handler(None, 0)  # it would take the interpreter's lock; `findings` minds the time
        check = IntegrityCheck(own, beside, seconds)
        try:
            yield check
        finally:
            check.end()
