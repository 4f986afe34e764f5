"""A child process in which the validator runs while something of the machine runs short.

Run as `python -m tests.support.limits FAULT WARM EVENT`. It first handles the event WARM at leisure, so that all is
imported and connected, and then EVENT under the fault, once for each degree of it. It prints one JSON object for each:
the answer, and status and finding codes of the verdict (null where there was none).
"""

from __future__ import annotations

import io
import json
import os
import resource
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout, suppress
from pathlib import Path
from typing import Any

from devtools.stack.stack import InvocationContext
from shared.inspection.probe import pool
from tests import ROOT
from validator.handler import handler

PROGRAM = pool._PROGRAM.as_posix().encode()


def under(fault: str, warm: dict[str, Any], event: dict[str, Any], **environment: str) -> list[dict[str, Any]]:
    """Runs the validator on an event under each degree of a fault, in a child."""
    command = [sys.executable, "-m", "tests.support.limits", fault, json.dumps(warm), json.dumps(event)]
    with tempfile.TemporaryDirectory() as scratch:  # what a killed process leaves there is no other test's
        variables = {**os.environ, **environment, "TMPDIR": scratch}
        done = subprocess.run(
            command, cwd=ROOT, capture_output=True, text=True, timeout=300, check=False, env=variables
        )
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


@contextmanager
def _limit(kind: int, soft: int) -> Iterator[None]:
    before = resource.getrlimit(kind)
    resource.setrlimit(kind, (soft, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(kind, before)


def _descriptors() -> Iterator[Any]:
    """From none to a dozen descriptors left."""
    highest = max(int(entry.name) for entry in Path("/proc/self/fd").iterdir())
    for left in range(13):
        yield _limit(resource.RLIMIT_NOFILE, highest + left)


def _disk() -> Iterator[Any]:
    """No file may grow beyond so many bytes: a disk that is full at once, after some pages, after most of them."""
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    for most in (0, 1, 4096, 40_000, 100_000):
        yield _limit(resource.RLIMIT_FSIZE, most)


@contextmanager
def _signalled(number: int) -> Iterator[None]:
    """Every process of the pool of probes, and each of their forks, is sent a signal as soon as it is there.

    Not before it has become one: whoever starts a process waits for that without end, so that a stop between fork and
    exec, which nothing but this test could do, would hold up the handler itself.
    """
    ended = threading.Event()
    signalled: set[int] = set()

    def send() -> None:
        while not ended.is_set():
            for pid in _descendants(os.getpid()):
                with suppress(ProcessLookupError, FileNotFoundError):
                    if PROGRAM in Path(f"/proc/{pid}/cmdline").read_bytes():
                        os.kill(pid, number)
                        signalled.add(pid)
            time.sleep(0.005)

    thread = threading.Thread(target=send)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
        for pid in signalled:  # also those that have lost their parent
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)


def _descendants(pid: int) -> Iterator[int]:
    for task in Path(f"/proc/{pid}/task").glob("*/children"):
        try:
            children = task.read_text().split()
        except OSError:
            continue
        for child in map(int, children):
            yield child
            yield from _descendants(child)


@contextmanager
def _without_chromadb() -> Iterator[None]:
    folder = Path(tempfile.mkdtemp())
    (folder / "chromadb.py").write_text("raise ModuleNotFoundError('No module named chromadb')")
    sys.path.insert(0, str(folder))
    yield


FAULTS: dict[str, Callable[[], Iterator[Any]]] = {
    "descriptors": _descriptors,
    "disk": _disk,
    "killed": lambda: iter([_signalled(signal.SIGKILL)]),
    "stopped": lambda: iter([_signalled(signal.SIGSTOP)]),
    "missing": lambda: iter([_without_chromadb()]),
}


def main(fault: str, warm: str, event: str) -> None:
    with redirect_stdout(io.StringIO()):
        handler(json.loads(warm), InvocationContext())
    for degree in FAULTS[fault]():
        with redirect_stdout(io.StringIO()) as output, degree:
            answer = handler(json.loads(event), InvocationContext())
        lines = [json.loads(line) for line in output.getvalue().splitlines()]
        verdict = next((line for line in lines if "status" in line and "findings" in line), None)
        codes = verdict and [finding["code"] for finding in verdict["findings"]]
        outcome = {"answer": answer, "status": verdict and verdict["status"], "codes": codes}
        sys.stdout.write(json.dumps(outcome) + "\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
