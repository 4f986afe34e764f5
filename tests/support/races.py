"""Enumerations of what can happen at each request of some work: another actor, a kill, a fault.

The work gets a store of its own and is done once without any disturbance, which counts its requests. Then it is done
again for each request (or an even sample of them, see `sweep`), with one disturbance at that request. Requests are
counted as they are sent, botocore's own repeats included.
"""

from __future__ import annotations

import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest
from botocore.awsrequest import AWSResponse
from botocore.exceptions import ConnectionClosedError
from botocore.httpsession import URLLib3Session

from shared.storage.client import s3_client
from shared.storage.store import Store
from tests.support import faults

Work = Callable[[Store], Any]
Fault = Callable[[Any], AWSResponse | None]
"""Given the request before it is sent: the answer in place of the service's, None to let it through, or it raises."""


class Killed(BaseException):
    """The process was killed: no request of it leaves any more, so whatever its cleanup tries changes nothing."""


@dataclass(frozen=True, slots=True)
class Ran:
    """How some work ended.

    Args:
        requests: How many it sent.
        reached: Whether it came to the request that was to be disturbed.
        result: What it returned.
        error: What it raised in place of that.
    """

    requests: int
    reached: bool
    result: Any = None
    error: BaseException | None = None


def counted(work: Work) -> int:
    """How many requests the work makes when nothing disturbs it. What it raises is raised."""
    ran = disturbed(0, work, lambda _: None)
    if ran.error is not None:
        raise ran.error
    return ran.requests


def run_in_front_of(request_number: int, work: Work, other_actor: Callable[[], Any]) -> Ran:
    """Does the work, and has another actor run to its end in front of its n-th request, counted from 1."""

    def act(_: Any) -> None:
        other_actor()

    return disturbed(request_number, work, act)


def run_killed(request_number: int, work: Work, moment: str) -> Ran:
    """Does the work in what behaves as a process that is killed `before` or `after` its n-th request was done."""
    return disturbed(request_number, work, _killed_before if moment == "before" else _killed_after)


def disturbed(request_number: int, work: Work, fault: Fault, *, repeats: bool = True) -> Ran:
    """Does the work with one fault, at its n-th request.

    Args:
        request_number: Counted from 1; 0 stands for none.
        work: What to do.
        fault: What happens to that request.
        repeats: Whether botocore repeats what fails, as it does by default. Otherwise the fault is final.
    """
    client = s3_client()
    hook = _Hook(request_number, fault)
    client.meta.events.register_first("before-send.s3", hook)
    if not repeats:
        client.meta.events.unregister("needs-retry.s3", unique_id="retry-config-s3")
    try:
        result = work(Store(client))
    except BaseException as error:  # a kill is none of `Exception`, and its end is looked at, too
        if isinstance(error, (KeyboardInterrupt, SystemExit)):
            raise
        return Ran(hook.seen, hook.reached, error=error)
    return Ran(hook.seen, hook.reached, result)


def refused_503(request: Any) -> AWSResponse | None:
    """The store is busy."""
    return faults.refusal("SlowDown", 503)(request)


def reset_before(_: Any) -> AWSResponse:
    """The connection breaks before the store hears of the request."""
    raise ConnectionClosedError(endpoint_url="http://s3")


def reset_after(request: Any) -> AWSResponse:
    """The store has done it, and the connection breaks before it answers."""
    URLLib3Session().send(request)
    raise ConnectionClosedError(endpoint_url="http://s3")


def refused_after(request: Any) -> AWSResponse | None:
    """The store has done it, and answers with an internal error."""
    URLLib3Session().send(request)
    return faults.refusal("InternalError", 500)(request)


def body_cut(request: Any) -> AWSResponse | None:
    """Half of the body of an object comes, and then the connection breaks."""
    return faults.cut_short(request) if _reads_object(request) else None


def body_altered(request: Any) -> AWSResponse | None:
    """One bit of the body of an object is another one."""
    if not _reads_object(request):
        return None
    whole = URLLib3Session().send(request)
    body = bytearray(whole.content)
    if body:
        body[len(body) // 2] ^= 1
    return AWSResponse(request.url, whole.status_code, whole.headers, faults._Raw(bytes(body)))


FAULTS: dict[str, Fault] = {
    "503": refused_503,
    "reset before": reset_before,
    "reset after": reset_after,
    "500 after": refused_after,
    "body cut": body_cut,
    "body altered": body_altered,
}
"""What may happen to a request, by name."""

MARKED_FAULTS = [name if name == "reset after" else pytest.param(name, marks=pytest.mark.slow) for name in FAULTS]
"""Their names as parameters of a test: the most treacherous one always, the others among the slow tests."""


@dataclass
class Tally:
    """What an enumeration saw, for its summary line and its verdict.

    Args:
        name: Of the enumeration.
    """

    name: str
    ends: Counter[str] = field(default_factory=Counter)
    violations: list[str] = field(default_factory=list)

    @contextmanager
    def case(self, *what: object) -> Iterator[None]:
        """One case; an `AssertionError` in the block is a violation."""
        try:
            yield
        except AssertionError as error:
            self.violations.append(f"{' '.join(map(str, what))}: {error}")

    def ended(self, ran: Ran) -> None:
        """Takes note of how one case ended."""
        self.ends["finished" if ran.error is None else type(ran.error).__name__] += 1

    def check(self) -> None:
        """Prints the counts, and fails if anything was violated, or if there was no case."""
        cases = sum(self.ends.values())
        counts = ", ".join(f"{end} {count}" for end, count in sorted(self.ends.items()))
        sys.stdout.write(f"\n{self.name}: {cases} cases ({counts}), {len(self.violations)} violations\n")
        assert cases
        assert not self.violations, "\n".join(self.violations)


class _Hook:
    """Counts requests and disturbs one. While it does, no other request of the same work is sent."""

    def __init__(self, request_number: int, fault: Fault) -> None:
        self.seen = 0
        self.reached = False
        self._number = request_number
        self._fault = fault
        self._dead = False
        self._one_by_one = threading.RLock()

    def __call__(self, request: Any, **_: Any) -> AWSResponse | None:
        with self._one_by_one:
            if self._dead:
                raise Killed
            self.seen += 1
            if self.seen != self._number:
                return None
            self.reached = True
            try:
                return self._fault(request)
            except Killed:
                self._dead = True
                raise


def _killed_before(_: Any) -> AWSResponse:
    raise Killed


def _killed_after(request: Any) -> AWSResponse:
    URLLib3Session().send(request)
    raise Killed


def _reads_object(request: Any) -> bool:
    return bool(request.method == "GET" and "?" not in request.url)
