"""Depth `open`: Chroma's own word on a delta, given by a child process on a disposable copy.

A child may crash, hang or be killed. Once is an accident; only the same again in a fresh process, with memory to
spare, is a proof. Whatever the machine rather than the bytes may have caused is `CouldNotCheck`.
"""

from __future__ import annotations

import json
import os
import signal
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from shared.delta import is_chroma_file
from shared.errors import CouldNotCheck, faults_explained
from shared.inspection.pool import POOL
from shared.inspection.records import Contents
from shared.scratch import copy_file, scratch_folder
from shared.verdict import Finding

ATTEMPTS = 2
"""How often Chroma is asked, at most: a failure counts only when it happens again."""

_ROOM_BYTES = 256 * 1024 * 1024
_ROOM_FACTOR = 4
_BUSY_SHARE = 0.5
"""A child that hangs because of the bytes keeps the processor busy; one that waits is starved, not stuck."""
_MOST_ANSWER, _MOST_ERRORS = 1024 * 1024, 64 * 1024

# Words of an environment fault in the messages of Chroma, SQLite and the operating system, and what they say.
_ENVIRONMENT_WORDS = (
    ("code: 14", "check.cannot_open"),
    ("unable to open database file", "check.cannot_open"),
    ("too many open files", "check.descriptors"),
    ("no space left", "check.disk_full"),
    ("database or disk is full", "check.disk_full"),
    ("file too large", "check.disk_full"),
    ("cannot allocate memory", "check.memory"),
    ("out of memory", "check.memory"),
    ("memory allocation of", "check.memory"),
    ("permission denied", "check.local_io"),
    ("disk i/o error", "check.local_io"),
)
# What a process does to itself. Any other signal comes from somebody else: an operator, a container, the kernel.
_CRASHES = {signal.SIGSEGV, signal.SIGBUS, signal.SIGABRT, signal.SIGILL, signal.SIGFPE, signal.SIGTRAP}
_ENVIRONMENT_ERRORS = {"ModuleNotFoundError", "ImportError", "MemoryError"}


@dataclass(frozen=True, slots=True)
class _Death:
    """How a child ended without an answer, as the finding it would be if it happens again."""

    finding: Finding


@dataclass(frozen=True, slots=True)
class _Answer:
    """What a child printed."""

    chromadb: str
    stage: str
    error: str | None
    message: str
    collections: tuple[tuple[str, int, int, str], ...]


def probe(folder: Path, expected: tuple[Contents, ...], seconds: float) -> tuple[list[Finding], str]:
    """Has Chroma read a delta, and compares what it returns with what the bytes hold.

    Args:
        folder: The delta. It is copied for each attempt and never opened itself.
        expected: What the records of the delta say it holds.
        seconds: Time limit of one attempt.

    Returns:
        The findings, and the version of chromadb that was asked.

    Raises:
        CouldNotCheck: The probe could not be run to an answer that is about the bytes.
    """
    earlier: Finding | None = None
    for _ in range(ATTEMPTS):
        outcome = _attempt(folder, seconds, fresh=earlier is not None)
        if isinstance(outcome, _Answer) and outcome.error is None:
            return _compare(outcome, expected), outcome.chromadb
        found = outcome.finding if isinstance(outcome, _Death) else _failure(outcome)
        if earlier is not None and found.code == earlier.code:
            return [found], outcome.chromadb if isinstance(outcome, _Answer) else ""
        earlier = found
    raise CouldNotCheck(
        "check.probe_failed", f"two probes of the same bytes ended differently, the second: {found.detail}"
    )


def warm_up() -> None:
    """Lets a process for the next probe import chromadb while something else is done."""
    with suppress(CouldNotCheck):  # the probe itself will tell, if it comes to one
        POOL.warm_up()


def _attempt(folder: Path, seconds: float, *, fresh: bool) -> _Answer | _Death:
    with scratch_folder() as scratch:
        copy = scratch / "delta"
        with faults_explained("copying the delta for the probe"):
            size = _copy(folder, copy)
        room = _available_memory()
        if room is not None and room < _ROOM_BYTES + _ROOM_FACTOR * size:
            detail = f"{room} bytes of memory are left, a probe of {size} bytes needs more"
            raise CouldNotCheck("check.memory", detail)
        return _run(copy, scratch, seconds, fresh=fresh)


def _copy(folder: Path, copy: Path) -> int:
    size = 0
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if is_chroma_file(name) and path.is_file() and not path.is_symlink():
            target = copy / name
            target.parent.mkdir(parents=True, exist_ok=True)
            size += copy_file(path, target)
    return size


def _run(copy: Path, scratch: Path, seconds: float, *, fresh: bool) -> _Answer | _Death:
    # Files instead of pipes: a process that prints without end meets the limit on file size, not this one's memory.
    answer, errors = scratch / "answer", scratch / "errors"
    with faults_explained("preparing a probe"):
        for path in (answer, errors):
            path.open("xb").close()
    ending = POOL.run(copy, scratch, seconds, fresh=fresh)
    if ending.hung:
        return _hung(ending.busy, seconds)
    with faults_explained("reading the answer of a probe"):
        said = _head(errors, _MOST_ERRORS).decode(errors="replace")
        output = _head(answer, _MOST_ANSWER)
    if os.WIFSIGNALED(ending.status):
        return _killed(os.WTERMSIG(ending.status), said)
    return _parse(output, said, os.WEXITSTATUS(ending.status))


def _head(path: Path, length: int) -> bytes:
    with path.open("rb") as file:
        return file.read(length)


def _hung(busy: float, seconds: float) -> _Death:
    if busy < _BUSY_SHARE * seconds:
        detail = f"the probe had no answer in {seconds:g} s, of which it could run {busy:.1f} s"
        raise CouldNotCheck("check.timeout", detail)
    return _Death(Finding("chroma.hung", "", f"Chroma was busy {busy:.1f} s of {seconds:g} s without an answer"))


def _killed(number: int, said: str) -> _Death:
    fault = _environment_fault(said)
    if fault is None and number not in _CRASHES:
        fault = "check.memory" if number == signal.SIGKILL else "check.probe_failed"
    if fault is not None:
        raise CouldNotCheck(fault, f"the probe was ended by signal {number}")
    name = signal.Signals(number).name
    return _Death(Finding("chroma.crashed", "", f"Chroma was killed by {name} while it read the delta"))


def _parse(output: bytes, said: str, code: int) -> _Answer:
    try:
        answer = json.loads(output)
        collections = tuple((c["name"], c["count"], c["ids"], c["digest"]) for c in answer["collections"])
        return _Answer(
            answer.get("chromadb", ""), answer["stage"], answer.get("error"), answer.get("message", ""), collections
        )
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        detail = f"the probe ended with {code} and no answer: {said.strip()[-300:] or output[:100]!r}"
        raise CouldNotCheck("check.probe_failed", detail) from error


def _failure(answer: _Answer) -> Finding:
    detail = f"Chroma {answer.chromadb} at {answer.stage}: {answer.error}: {answer.message}"
    if answer.error in _ENVIRONMENT_ERRORS or answer.stage == "import":
        raise CouldNotCheck("check.probe_failed" if answer.error != "MemoryError" else "check.memory", detail)
    fault = _environment_fault(answer.message)
    if fault is not None:
        raise CouldNotCheck(fault, detail)
    return Finding("chroma.failed", "", detail)


def _environment_fault(text: str) -> str | None:
    lowered = text.lower()
    return next((code for words, code in _ENVIRONMENT_WORDS if words in lowered), None)


def _compare(answer: _Answer, expected: tuple[Contents, ...]) -> list[Finding]:
    seen = {name: (count, ids, digest) for name, count, ids, digest in answer.collections}
    findings = []
    for contents in expected:
        name, stored = contents.count.name, contents.count.count
        count, ids, digest = seen.get(name, (None, None, None))
        if count is None:
            detail = f"Chroma lists no collection {name!r}; the bytes hold {stored} embeddings of it"
        elif (count, ids) != (stored, stored):
            detail = f"Chroma counts {count} and returns {ids} of the {stored} embeddings of {name!r}"
        elif digest != contents.digest:
            detail = f"Chroma returns other ids for {name!r} than the bytes hold"
        else:
            continue
        findings.append(Finding("chroma.content_differs", "", detail))
    return findings


def _available_memory() -> int | None:
    """Bytes of memory that are free to use, by the machine and by the control group; None where neither says."""
    limits = []
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        limits += [int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:")]
        most = Path("/sys/fs/cgroup/memory.max").read_text().strip()
        if most != "max":
            limits.append(int(most) - int(Path("/sys/fs/cgroup/memory.current").read_text()))
    except OSError:
        pass  # no such file on this kernel: the other limit stands
    return min(limits, default=None)
