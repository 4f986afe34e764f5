"""Disposable children: whatever a damaged delta does to the process that reads it, it does to one of these."""

from __future__ import annotations

import ctypes
import json
import os
import resource
import select
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

Emit = Callable[[str], None]
Task = Callable[[Emit], Any]

WALL_SECONDS = 8.0
_CPU_SECONDS = 6  # of all threads together; a healthy delta takes 0.2, so a busy machine makes no hang of it
_MOST_MEMORY = 12 * 1024**3
_MOST_FILE = 2 * 1024**3
_PR_SET_PDEATHSIG = 1  # prctl(2)


@dataclass(frozen=True, slots=True)
class Ended:
    """How a child ended.

    Args:
        stage: The last stage that it announced.
        value: What its task returned, None when it did not get so far.
        trouble: In a few words why it did not; empty when it did.
        died: Whether the process died or was stuck, rather than reporting an exception.
    """

    stage: str
    value: Any = None
    trouble: str = ""
    died: bool = False


def forked(task: Task, seconds: float = WALL_SECONDS) -> Ended:
    """Runs `task` in a forked child and waits for it. The child is gone afterwards, whatever it did.

    Args:
        task: Gets a function to announce its stages with, and returns something that JSON can hold.
        seconds: Time limit. Besides, the child may use six seconds of processor time.
    """
    parent = os.getpid()
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(reading)
        _child(task, writing, parent)
    os.close(writing)
    late = True
    try:
        said, late = _listen(reading, seconds)
    finally:
        os.close(reading)
        if late or not _gone(pid):
            os.kill(pid, signal.SIGKILL)
        _, status = os.waitpid(pid, 0)
    return _ended(said, late, status)


def _gone(pid: int) -> bool:
    """Whether the child has ended by itself, or does so within a moment."""
    end = time.monotonic() + 1.0
    while os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None:
        if time.monotonic() > end:
            return False
        time.sleep(0.0005)
    return True


def _listen(reading: int, seconds: float) -> tuple[bytes, bool]:
    """What the child says until it closes its end, and whether it was late."""
    said, end = b"", time.monotonic() + seconds
    while True:
        ready, _, _ = select.select([reading], [], [], max(0.0, end - time.monotonic()))
        if not ready:
            return said, True
        block = os.read(reading, 1 << 20)
        if not block:
            return said, False
        said += block


def _ended(said: bytes, late: bool, status: int) -> Ended:
    lines = [json.loads(line) for line in said.split(b"\n")[:-1]]
    stage = next((line["stage"] for line in reversed(lines) if "stage" in line), "start")
    for line in lines:
        if "value" in line:
            return Ended(stage, line["value"])
        if "error" in line:
            return Ended(stage, trouble=f"{line['error']} at {stage}")
    signalled = os.WTERMSIG(status) if os.WIFSIGNALED(status) else 0
    if late or signalled == signal.SIGXCPU:
        return Ended(stage, trouble=f"hangs at {stage}", died=True)
    name = signal.Signals(signalled).name if signalled else f"exit code {os.waitstatus_to_exitcode(status)}"
    return Ended(stage, trouble=f"{name} at {stage}", died=True)


def _child(task: Task, writing: int, parent: int) -> NoReturn:
    def say(line: dict[str, Any]) -> None:
        os.write(writing, json.dumps(line).encode() + b"\n")

    try:
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:  # it died before the line above
            os._exit(1)
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, signal.SIG_DFL)
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        resource.setrlimit(resource.RLIMIT_CPU, (_CPU_SECONDS, _CPU_SECONDS + 1))
        resource.setrlimit(resource.RLIMIT_AS, (_MOST_MEMORY, _MOST_MEMORY))
        resource.setrlimit(resource.RLIMIT_FSIZE, (_MOST_FILE, _MOST_FILE))
        nowhere = os.open(os.devnull, os.O_RDWR)
        for descriptor in (0, 1, 2):
            os.dup2(nowhere, descriptor)
        value = task(lambda stage: say({"stage": stage}))
        say({"value": value})
    except BaseException as error:  # noqa: BLE001 -- Rust's panics are no Exception; the parent is told
        say({"error": f"{type(error).__name__}: {error}"[:200]})
    finally:
        os._exit(0)  # no goodbye from Chroma's threads, and nothing of the parent's is flushed twice


def in_folder(folder: Path, task: Task) -> Task:
    """The task, run with `folder` as working directory."""

    def moved(emit: Emit) -> Any:
        os.chdir(folder)
        return task(emit)

    return moved
