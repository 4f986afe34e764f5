"""Depth `open`: Chroma's own word on a delta, given by a child process on a disposable copy.

A child may crash, hang or be killed. Once is an accident; only the same again in a fresh process, with memory to
spare, is a proof. Whatever the machine rather than the bytes may have caused is `CouldNotCheck`; that a child is slow
proves nothing, however long it takes.
"""

from __future__ import annotations

import os
import shutil
import signal
import struct
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from shared.inspection.chroma.records import Contents
from shared.inspection.probe.agreement import differences, unanswered
from shared.inspection.probe.answers import Answer, parse_answer
from shared.inspection.probe.pool import POOL, Ending, Limits
from shared.model.delta import DATABASE, is_chroma_file, printable
from shared.model.errors import CouldNotCheck, faults_explained
from shared.model.verdict import Finding
from shared.storage.scratch import copy_file, scratch_folder

ATTEMPTS = 2
"""How often Chroma is asked, at most: a failure counts only when it happens again."""

Look = Callable[[Answer, Path], list[Finding]]
"""Finds what is wrong with what Chroma gave back: its answer, and the file with the embeddings (see `answers`)."""

# Bytes of memory that a child uses (measured, chromadb 1.5.9): 50 million for a small delta, 2.6 million for each
# collection, twice the vectors that wait in the queue, and 48 for each element that an index has room for.
_ROOM_BYTES, _ROOM_FACTOR, _COLLECTION_BYTES, _ELEMENT_BYTES = 256 * 1024**2, 4, 8 * 1024**2, 64
# Healthy indexes have room for 50 times what they hold, or for 10,000. More than this is not believed.
_CAPACITY_FACTOR, _CAPACITY_BYTES = 32, 64 * 1024**2
_MOST_ANSWER, _MOST_ERRORS, _MOST_STAGE = 64 * 1024**2, 64 * 1024, 200
_FILE_FACTOR, _FILE_BYTES, _SPARE_DISK_BYTES = 4, 1024**3, 16 * 1024**2
_CAPACITY = struct.Struct("<12xQ")  # of `header.bin`: version, offset, max_elements

# Words of an environment fault in the messages of Chroma, SQLite and the operating system, and what they say.
_ENVIRONMENT_WORDS = (
    ("code: 14", "check.cannot_open"),
    ("unable to open database file", "check.cannot_open"),
    ("too many open files", "check.descriptors"),
    ("no space left", "check.disk_full"),
    ("database or disk is full", "check.disk_full"),
    ("file too large", "check.disk_full"),
    ("quota exceeded", "check.disk_full"),
    ("cannot allocate memory", "check.memory"),
    ("out of memory", "check.memory"),
    ("not enough memory", "check.memory"),
    ("memory allocation of", "check.memory"),
    ("bad_alloc", "check.memory"),
    ("resource temporarily unavailable", "check.memory"),  # no more threads
    ("permission denied", "check.local_io"),
    ("read-only file system", "check.local_io"),
    ("disk i/o error", "check.local_io"),
    ("input/output error", "check.local_io"),
    ("timed out", "check.timeout"),
    ("database is locked", "check.probe_failed"),
)
# What a process does to itself. Any other signal comes from somebody else: an operator, a container, the kernel.
_CRASHES = {signal.SIGSEGV, signal.SIGBUS, signal.SIGABRT, signal.SIGILL, signal.SIGFPE, signal.SIGTRAP}
_ENVIRONMENT_ERRORS = {"ModuleNotFoundError", "ImportError", "MemoryError"}


@dataclass(frozen=True, slots=True)
class Outcome:
    """What one attempt showed.

    Args:
        findings: What is wrong by Chroma's word; none when it gave back everything.
        stage: How far it came.
        version: The version of chromadb, empty where the child did not come to tell it.
    """

    findings: tuple[Finding, ...]
    stage: str = ""
    version: str = ""

    def repeats(self, other: Outcome) -> bool:
        """Whether both attempts ended alike."""
        codes, others = ({finding.code for finding in outcome.findings} for outcome in (self, other))
        return codes == others and self.stage == other.stage


def probe(
    folder: Path, expected: Sequence[Contents], seconds: float, *, searchable: bool = True
) -> tuple[list[Finding], str]:
    """Has Chroma read a delta, and compares what it returns with what the bytes hold.

    Args:
        folder: The delta. It is copied for each attempt and never opened itself.
        expected: What the records of the delta say it holds.
        seconds: Time limit of one attempt.
        searchable: Whether a full-text query must find what is there.

    Returns:
        The findings, and the version of chromadb that was asked.

    Raises:
        CouldNotCheck: The probe could not be run to an answer that is about the bytes.
    """
    look = partial(differences, expected=expected, folder=folder, searchable=searchable)
    outcome = ask_twice(folder, seconds, look, len(expected))
    return [*outcome.findings], outcome.version


def ask_twice(
    folder: Path, seconds: float, look: Look, collections: int, openings: int = 1, asked: Path | None = None
) -> Outcome:
    """Has Chroma read a delta, and, where something is wrong with what it gives back, once more in a fresh process.

    Args:
        folder: The delta. It is copied for each attempt and never opened itself.
        seconds: Time limit of one process.
        look: Finds what is wrong with what Chroma gave back.
        collections: How many collections there are.
        openings: How often a copy is opened, one process after the other: what Chroma writes at the first may lose
            something for the second.
        asked: The file that names what is read (see `sampler`); None has everything read.

    Raises:
        CouldNotCheck: What happened may be the environment's doing, or was not the same both times.
    """
    attempt = partial(_attempt, folder, seconds, look, collections, openings, asked)
    with faults_explained("asking Chroma about a copy of the delta"):
        first = attempt(fresh=False)
        if not first.findings:
            return first
        second = attempt(fresh=True)
        if not second.findings:
            return second
        if not second.repeats(first):
            detail = f"two probes of the same bytes ended differently, the second: {second.findings[0].detail}"
            raise CouldNotCheck("check.probe_failed", detail)
        _control(seconds)
        return second


def _control(seconds: float) -> None:
    """Has Chroma make a delta and read it: a broken installation, or a limit, must not speak against any other.

    Raises:
        CouldNotCheck: It cannot.
    """
    with scratch_folder() as scratch:
        outcome = _run(None, scratch, Limits(seconds, _ROOM_BYTES, _FILE_BYTES), _nothing_lost, fresh=False)
    if outcome.findings:
        detail = f"Chroma cannot even read a delta that it made itself here: {outcome.findings[0].detail}"
        raise CouldNotCheck("check.probe_failed", detail)


def _nothing_lost(answer: Answer, found: Path) -> list[Finding]:  # noqa: ARG001 -- one of the looks
    return [Finding("chroma.content_differs", "", detail) for detail in unanswered(answer)]


def warm_up() -> None:
    """Lets a process for the next probe import chromadb while something else is done."""
    with suppress(CouldNotCheck):  # the probe itself will tell, if it comes to one
        POOL.warm_up()


def _attempt(
    folder: Path, seconds: float, look: Look, collections: int, openings: int, asked: Path | None, *, fresh: bool
) -> Outcome:
    with scratch_folder() as scratch:
        copy = scratch / "delta"
        size = _copy(folder, copy)
        waiting = (copy / DATABASE).stat().st_size if asked else 0  # of which next to nothing is read then
        limits = Limits(seconds, _memory(copy, size - waiting, collections), _FILE_FACTOR * size + _FILE_BYTES)
        for number in range(openings):
            own = scratch / f"opening-{number}"
            own.mkdir()
            outcome = _run(copy, own, limits, look, fresh=fresh, asked=asked)
            if outcome.findings:
                break
            shutil.rmtree(own)
        return outcome


def _run(
    copy: Path | None, scratch: Path, limits: Limits, look: Look, *, fresh: bool, asked: Path | None = None
) -> Outcome:
    # Files instead of pipes: a process that prints without end meets the limit on file size, not this one's memory.
    for name in ("answer", "errors", "progress"):
        (scratch / name).open("xb").close()
    ending = POOL.run(copy, scratch, limits, fresh=fresh, asked=asked)
    said, output, reached = (
        _head(scratch / name, most)
        for name, most in (("errors", _MOST_ERRORS), ("answer", _MOST_ANSWER), ("progress", _MOST_STAGE))
    )
    disk = os.statvfs(scratch)
    stage = printable(reached.decode(errors="replace").strip(), _MOST_STAGE) or "its start"
    errors = said.decode(errors="replace")
    if ending.late:
        detail = f"Chroma had no answer in {limits.seconds:g} s, of which it could run {ending.busy:.1f} s"
        raise CouldNotCheck("check.timeout", f"{detail}; it came to {stage}")
    if ending.grown:
        detail = f"Chroma uses more than the {limits.memory} bytes of memory that this delta can need"
        raise CouldNotCheck("check.memory", f"{detail}; it came to {stage}")
    answer = None if os.WIFSIGNALED(ending.status) else _parsed(output, errors, ending)
    if answer is not None and answer.error is None:
        return Outcome(tuple(look(answer, scratch / "records")), answer.stage, answer.chromadb)
    if disk.f_bavail * disk.f_frsize < _SPARE_DISK_BYTES:
        detail = f"{disk.f_bavail * disk.f_frsize} bytes are left on the scratch disk, and Chroma came to {stage}"
        raise CouldNotCheck("check.disk_full", detail)
    return _killed(ending, errors) if answer is None else _failed(answer, errors)


def _copy(folder: Path, copy: Path) -> int:
    size = 0
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if is_chroma_file(name) and path.is_file() and not path.is_symlink():
            target = copy / name
            target.parent.mkdir(parents=True, exist_ok=True)
            size += copy_file(path, target)
    return size


def _head(path: Path, length: int) -> bytes:
    with path.open("rb") as file:
        return file.read(length)


def _memory(copy: Path, size: int, collections: int) -> int:
    """Bytes of memory that a probe of a delta can need.

    Raises:
        CouldNotCheck: This machine has less to spare.
    """
    folders = [path for path in copy.iterdir() if path.is_dir()] if copy.is_dir() else []
    needed = _ROOM_BYTES + _ROOM_FACTOR * size + _COLLECTION_BYTES * max(collections, len(folders))
    for folder in folders:
        data = folder / "data_level0.bin"
        held = data.stat().st_size if data.is_file() else 0
        needed += min(_ELEMENT_BYTES * _capacity(folder), _CAPACITY_FACTOR * held + _CAPACITY_BYTES)
    room = _available_memory()
    if room is not None and room < needed:
        detail = f"{room} bytes of memory are left, a probe of {size} bytes needs {needed}"
        raise CouldNotCheck("check.memory", detail)
    return needed


def _capacity(folder: Path) -> int:
    """How many elements an index has room for, as its header says; 0 where there is none that is used."""
    header = folder / "header.bin"
    if not header.is_file() or not (folder / "index_metadata.pickle").is_file():
        return 0
    head = _head(header, _CAPACITY.size)
    return int(_CAPACITY.unpack(head)[0]) if len(head) == _CAPACITY.size else 0


def _killed(ending: Ending, said: str) -> Outcome:
    number = os.WTERMSIG(ending.status)
    fault = _environment_fault(said)
    if fault is None and number not in _CRASHES:
        fault = "check.memory" if number == signal.SIGKILL else "check.probe_failed"
    if fault is not None:
        raise CouldNotCheck(fault, f"the probe was ended by signal {number}")
    name = signal.Signals(number).name
    return Outcome((Finding("chroma.crashed", "", f"Chroma was killed by {name} while it read the delta"),))


def _parsed(output: bytes, said: str, ending: Ending) -> Answer:
    try:
        return parse_answer(output)
    except ValueError as error:
        code = os.WEXITSTATUS(ending.status)
        detail = f"the probe ended with {code} and no answer: {said.strip()[-300:] or output[:100]!r}"
        raise CouldNotCheck("check.probe_failed", detail) from error


def _failed(answer: Answer, said: str) -> Outcome:
    detail = f"Chroma {answer.chromadb} at {answer.stage}: {answer.error}: {answer.message}"
    fault = _environment_fault(f"{answer.message}\n{said}")
    if fault is None and (answer.error in _ENVIRONMENT_ERRORS or answer.stage == "import"):
        fault = "check.memory" if answer.error == "MemoryError" else "check.probe_failed"
    if fault is not None:
        raise CouldNotCheck(fault, detail)
    return Outcome((Finding("chroma.failed", "", detail),), answer.stage, answer.chromadb)


def _environment_fault(text: str) -> str | None:
    lowered = text.lower()
    return next((code for words, code in _ENVIRONMENT_WORDS if words in lowered), None)


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
