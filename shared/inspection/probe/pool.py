"""Warm processes that have chromadb imported and fork a fresh one for each delta: a fraction of a start's cost each.

A process of the pool never touches a delta itself (see `probe`). It serves one probe at a time and then waits for the
next one, until this process ends. One whose fork crashed or hung is not used again.
"""

from __future__ import annotations

import atexit
import json
import os
import select
import subprocess
import sys
import threading
import time
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from shared.model.delta import printable
from shared.model.errors import CouldNotCheck, faults_explained

_PROGRAM = Path(__file__).with_name("program.py")
_OF_THE_LOADER = ("LD_LIBRARY_PATH", "PYTHONHOME")  # without which a Python that needs them does not start
_SAID_BYTES = 2000
_GRACE_SECONDS = 10.0  # for a process that has to kill its fork first


@dataclass(frozen=True, slots=True)
class Ending:
    """How the process that read a delta ended.

    Args:
        status: As `os.wait4` gives it.
        busy: Processor time that it took, in seconds.
        late: Whether it was ended because its time was over.
        grown: Whether it was ended because it used more memory than it may.
    """

    status: int
    busy: float
    late: bool
    grown: bool


@dataclass(frozen=True, slots=True)
class Limits:
    """What the process that reads a delta may use.

    Args:
        seconds: Time, the start of a process included if none was waiting.
        memory: Bytes of memory, besides what the process has when it begins.
        file: Length in bytes of the longest file that it may write.
    """

    seconds: float
    memory: int
    file: int


class Pool:
    """Processes that wait for work. All methods may be called in any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._idle: list[_Process] = []

    def warm_up(self) -> None:
        """Starts a process if none is waiting, without waiting for it: it imports while something else is done.

        Raises:
            CouldNotCheck: It could not be started.
        """
        with self._lock:
            if not self._idle:
                self._idle.append(_Process())

    def run(
        self, folder: Path | None, scratch: Path, limits: Limits, *, fresh: bool = False, asked: Path | None = None
    ) -> Ending:
        """Has one delta read in a process of its own, which finds `answer`, `errors` and `progress` in `scratch`.

        Args:
            folder: A disposable copy of the delta; None has the process make one of its own and read that.
            scratch: Where that process may write.
            limits: What it may use.
            fresh: Whether to fork from a process that was never used before.
            asked: The file that names what is read (see `sampler`); None has everything read.

        Raises:
            CouldNotCheck: The process could not be started, or has no answer in time.
        """
        deadline = time.monotonic() + limits.seconds
        process = _Process() if fresh else self._take()
        try:
            ending = process.ask(folder, asked, scratch, limits, deadline)
        except BaseException:
            process.end()
            raise
        if ending.status == 0:
            with self._lock:
                self._idle.append(process)
        else:
            process.end()
        return ending

    def end(self) -> None:
        """Ends the processes that wait. The next probe begins with a new one."""
        with self._lock:
            processes, self._idle = self._idle, []
        for process in processes:
            process.end()

    def _take(self) -> _Process:
        with self._lock:
            while self._idle:
                process = self._idle.pop()
                if process.waits():
                    return process
                process.end()
        return _Process()


class _Process:
    """One warm process."""

    def __init__(self) -> None:
        # Hardly anything of this process's environment goes along: a hostile delta must not find credentials.
        environment = {name: os.environ[name] for name in _OF_THE_LOADER if name in os.environ} | {
            "PATH": os.defpath,
            "HOME": os.devnull,
            "PYTHONPATH": os.pathsep.join(entry for entry in sys.path if entry),
            "ANONYMIZED_TELEMETRY": "False",
            "RUST_BACKTRACE": "0",
            "OMP_NUM_THREADS": "1",
        }
        with ExitStack() as opened, faults_explained("starting a probe"):
            self._errors = opened.enter_context(os.fdopen(os.memfd_create("errors"), "r+b"))
            # -P: the program's own folder holds modules that must not shadow others'.
            self._process = subprocess.Popen(  # noqa: S603 - the command is this module's own
                [sys.executable, "-P", str(_PROGRAM)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._errors,
                env=environment,
                cwd="/",
                start_new_session=True,
            )
            opened.pop_all()
        self._ready = False
        self._said = b""

    def waits(self) -> bool:
        """Whether it still runs."""
        return self._process.poll() is None

    def ask(self, folder: Path | None, asked: Path | None, scratch: Path, limits: Limits, deadline: float) -> Ending:
        """Has it fork a process for one delta, and waits for the end of that.

        Raises:
            CouldNotCheck: It does not answer.
        """
        if not self._ready:
            self._answer(deadline)
            self._ready = True
        request = {
            "folder": folder and str(folder),
            "asked": asked and str(asked),
            "scratch": str(scratch),
            "seconds": max(0.0, deadline - time.monotonic()),
            "memory": limits.memory,
            "file": limits.file,
        }
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps(request).encode() + b"\n")
            self._process.stdin.flush()
        except BrokenPipeError as error:
            raise CouldNotCheck(
                "check.probe_failed", f"the process that forks the probes is gone{self._why()}"
            ) from error
        answer = self._answer(deadline + _GRACE_SECONDS)
        return Ending(answer["status"], answer["busy"], answer["late"], answer["grown"])

    def _answer(self, deadline: float) -> dict[str, Any]:
        assert self._process.stdout is not None
        descriptor = self._process.stdout.fileno()
        poll = select.poll()
        poll.register(descriptor, select.POLLIN)
        while b"\n" not in self._said:
            if not poll.poll(max(0.0, deadline - time.monotonic()) * 1000):
                raise CouldNotCheck("check.timeout", "the process that forks the probes has no answer in time")
            more = os.read(descriptor, 4096)
            if not more:
                detail = f"the process that forks the probes has ended{self._why()}"
                raise CouldNotCheck("check.probe_failed", detail)
            self._said += more
        line, _, self._said = self._said.partition(b"\n")
        return cast(dict[str, Any], json.loads(line))

    def _why(self) -> str:
        """The end of what it said on standard error, if it said anything, and how it ended."""
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(_GRACE_SECONDS)
        length = os.fstat(self._errors.fileno()).st_size
        said = os.pread(self._errors.fileno(), _SAID_BYTES, max(0, length - _SAID_BYTES)).decode(errors="replace")
        return f" with {self._process.returncode}" + (
            f": {printable(said.strip()[-500:], 500)}" if said.strip() else ""
        )

    def end(self) -> None:
        """Ends it, and with it what it has forked."""
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout, self._errors):
            if pipe is not None:
                pipe.close()


POOL = Pool()
"""The pool of this process."""

atexit.register(POOL.end)
