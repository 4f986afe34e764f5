"""The probe: Chroma's word counts, an accident of the machine does not, and nothing is left behind either way."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import select
import shutil
import signal
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Protocol

import chromadb
import pytest

from shared.inspection.chroma import records
from shared.inspection.chroma.records import Contents
from shared.inspection.chroma.sysdb import read_collections
from shared.inspection.hnsw.id_map import parse
from shared.inspection.probe import chroma, pool
from shared.inspection.probe.chroma import ask_twice, probe
from shared.inspection.probe.pool import Pool
from shared.inspection.probe.program import opened
from shared.inspection.sqlite import database_file
from shared.inspection.sqlite.schema import read_schema
from shared.model.delta import DATABASE
from shared.model.errors import CouldNotCheck
from shared.model.verdict import CollectionCount, Finding
from shared.storage.folder import list_folder
from tests.samples import SAMPLES


class Program(Protocol):
    """Puts other code in the place of the probe's.

    Args:
        code: What is done with a delta, `folder`. It prints the `answer`, or dies.
        control: What is done instead of making a delta and reading it, which is nothing where that works.
        before: What the process that forks the probes does first.
    """

    def __call__(self, code: str, *, control: str = "", before: str = "") -> None: ...


HEALTHY = {"stage": "done", "chromadb": "9.9", "collections": []}


def failing(message: str, error: str = "InternalError", stage: str = "open") -> dict[str, object]:
    return {"stage": stage, "chromadb": "9.9", "collections": [], "error": error, "message": message}


def alive(pid: int) -> bool:
    """Whether a process still runs; one that was killed a moment ago gets the time to die."""
    try:
        process = os.pidfd_open(pid)
    except ProcessLookupError:
        return False
    try:
        return not select.select([process], [], [], 5)[0]
    finally:
        os.close(process)


@pytest.fixture(autouse=True)
def nothing_is_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Pool]:
    """Whatever a test here does with its pool: afterwards there is no scratch folder, and no process of it lives."""
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(scratch))
    own = Pool()
    monkeypatch.setattr(chroma, "POOL", own)
    yield own
    own.end()
    assert list(scratch.iterdir()) == []
    pids = tmp_path / "pids"
    assert not any(alive(int(pid)) for pid in (pids.read_text().split() if pids.exists() else []))


# The real program, in which other code takes the place of what it does with a delta.
HARNESS = """
import importlib.util, json, os, resource, signal, sys, time
from pathlib import Path
here = Path({here!r})
spec = importlib.util.spec_from_file_location("probe", {program!r})
probe = importlib.util.module_from_spec(spec)
spec.loader.exec_module(probe)
healthy = {healthy!r}
{before}
def die(number):
    if number != signal.SIGKILL:
        signal.signal(number, signal.SIG_DFL)
    os.kill(os.getpid(), number)
    time.sleep(60)
def read(folder, answer):
    sys.argv = ["probe", folder]
    with (here / "pids").open("a") as pids:
        print(os.getpid(), file=pids)
    with (here / "parents").open("a") as parents:
        print(os.getppid(), file=parents)
    first = len((here / "pids").read_text().split()) == 1
    try:
        exec({code!r}, globals() | {{"first": first, "folder": folder, "answer": answer}})
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
    os._exit(0)
def control(answer):
    probe.read = real_read
    exec({control!r}, globals() | {{"answer": answer}})
real_read, real_control = probe.read, probe.control
probe.read, probe.control = read, control
probe._PRELOADED = ()
sys.exit(probe.main())
"""


@pytest.fixture
def program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Program:
    """A fault to order. `here` is a folder of the test's."""
    real = str(pool._PROGRAM)

    def put(code: str, *, control: str = "", before: str = "") -> None:
        path = tmp_path / "program.py"
        filled = HARNESS.format(
            here=str(tmp_path), program=real, healthy=HEALTHY, code=code, control=control, before=before
        )
        path.write_text(filled)
        monkeypatch.setattr(pool, "_PROGRAM", path)

    return put


def starts(tmp_path: Path) -> int:
    return len((tmp_path / "pids").read_text().split())


def parents(tmp_path: Path) -> list[str]:
    """The warm process of each probe, in their order."""
    return (tmp_path / "parents").read_text().split()


def contents_of(delta: Path) -> tuple[Contents, ...]:
    """What the bytes of a delta of one collection hold."""
    pickles = list(delta.rglob("index_metadata.pickle"))
    index = parse(pickles[0].read_bytes()) if pickles else None
    with database_file.opened(delta / DATABASE, 60) as connection:
        schema, _ = read_schema(connection)
        (collection,), _ = read_collections(connection, schema)
        return (records.inspect_collection(connection, schema, collection, index, index_readable=True)[0],)


# --- Chroma's own word


@pytest.mark.parametrize("name", ["healthy_delta", "flushed_delta"])
def test_chroma_confirms_a_healthy_delta_and_tells_its_version(name: str, request: pytest.FixtureRequest) -> None:
    delta = request.getfixturevalue(name)
    assert probe(delta, contents_of(delta), 60) == ([], version("chromadb"))


def test_probing_changes_no_byte_of_the_delta_although_opening_writes(flushed_delta: Path) -> None:
    before = {path: path.read_bytes() for path in flushed_delta.rglob("*") if path.is_file()}
    probe(flushed_delta, (), 60)
    assert {path: path.read_bytes() for path in flushed_delta.rglob("*") if path.is_file()} == before


def test_a_delta_that_chroma_refuses_twice_has_failed(healthy_delta: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(healthy_delta, tmp_path / "copy"))
    with closing(sqlite3.connect(copy / DATABASE, isolation_level=None)) as connection:
        connection.execute("DROP TABLE embeddings")
    (finding,), asked = probe(copy, (), 60)
    assert finding.code == "chroma.failed"
    assert finding.detail.startswith(f"Chroma {version('chromadb')} at ")
    assert "no such table" in finding.detail
    assert asked == version("chromadb")


THREE = Contents(CollectionCount("words", 4, 3), {"a", "b", "c"})
WORDS = [
    {
        "id": "1", "name": "words", "database": "default_database", "tenant": "default_tenant",
        "count": 3, "ids": 3, "digest": THREE.digest,
    }
]  # fmt: skip


@pytest.mark.parametrize(
    ("answered", "detail"),
    [
        (WORDS, None),
        ([*WORDS, {**WORDS[0], "name": "more"}], None),
        ([], "Chroma lists no collection 'words'; the bytes hold 3 embeddings of it"),
        ([{**WORDS[0], "count": 2}], "Chroma counts 2 and returns 3 of the 3 embeddings of 'words'"),
        ([{**WORDS[0], "ids": 2}], "Chroma counts 3 and returns 2 of the 3 embeddings of 'words'"),
        ([{**WORDS[0], "digest": "e"}], "Chroma returns other ids for 'words' than the bytes hold"),
        (
            [{**WORDS[0], "unanswered": ["peek"]}],
            "a peek of 'words' finds nothing, or too little, of its 3 embeddings",
        ),
    ],
)
def test_what_chroma_returns_is_compared_with_what_the_bytes_hold(
    healthy_delta: Path, program: Program, answered: object, detail: str | None
) -> None:
    program(f"Path('records').touch(); print(json.dumps({{**healthy, 'collections': {answered!r}}}))")
    findings = [] if detail is None else [Finding("chroma.content_differs", "", detail)]
    assert probe(healthy_delta, (THREE,), 30) == (findings, "9.9")


CHANGES = {
    "vectors": "vectors = vectors[:-4] + bytes(4)",
    "documents": "head['documents'][-1] += 'x'",
    "metadata": "head['metadatas'][-1] = {'other': 1}",
    "URIs": "head['uris'][-1] = 'x'",
}


@pytest.mark.parametrize("part", CHANGES)
def test_every_value_that_chroma_returns_is_compared_with_the_bytes(
    healthy_delta: Path, program: Program, part: str
) -> None:
    change = f"""
real_read(folder, answer)
records = Path("records").read_bytes()
head, _, vectors = records.partition(b"\\n")
head = json.loads(head)
{CHANGES[part]}
Path("records").write_bytes(json.dumps(head).encode() + b"\\n" + vectors)
print(json.dumps(answer))
"""
    program(change)
    ((finding,), _) = probe(healthy_delta, contents_of(healthy_delta), 60)
    assert finding.code == "chroma.content_differs"
    assert finding.detail.startswith(f"Chroma gives back other {part} of 1 embeddings of 'words' than the bytes: ")


# --- crashes and hangs


@pytest.mark.parametrize("name", ["SIGSEGV", "SIGABRT", "SIGBUS", "SIGFPE", "SIGILL"])
def test_a_crash_that_happens_again_is_the_delta_s(
    healthy_delta: Path, tmp_path: Path, program: Program, name: str
) -> None:
    program(f"die(signal.{name})")
    detail = f"Chroma was killed by {name} while it read the delta"
    assert probe(healthy_delta, (), 30) == ([Finding("chroma.crashed", "", detail)], "")
    assert starts(tmp_path) == 2


@pytest.mark.parametrize("accident", ["die(signal.SIGSEGV)", f"print(json.dumps({failing('oops')!r})); sys.exit()"])
def test_an_accident_that_does_not_happen_again_is_healthy(
    healthy_delta: Path, tmp_path: Path, program: Program, accident: str
) -> None:
    program(f"if first: {accident}\nprint(json.dumps(healthy))")
    assert probe(healthy_delta, (), 30) == ([], "9.9")
    assert starts(tmp_path) == 2


def test_two_accidents_of_different_kinds_prove_nothing(healthy_delta: Path, program: Program) -> None:
    program(f"if first: die(signal.SIGSEGV)\nprint(json.dumps({failing('oops')!r}))")
    with pytest.raises(CouldNotCheck, match="ended differently") as fault:
        probe(healthy_delta, (), 30)
    assert fault.value.code == "check.probe_failed"


@pytest.mark.parametrize("hang", ["time.sleep(60)", "while True: pass"])
def test_that_a_child_has_no_answer_proves_nothing_however_busy_it_is(
    healthy_delta: Path, tmp_path: Path, program: Program, hang: str
) -> None:
    program(f"if not first:\n  {hang}\nprint(json.dumps(healthy))")
    assert probe(healthy_delta, (), 30) == ([], "9.9")  # from here on a process waits
    with pytest.raises(CouldNotCheck, match=r"had no answer in 0\.5 s, of which it could run") as fault:
        probe(healthy_delta, (), 0.5)
    assert fault.value.code == "check.timeout"
    assert starts(tmp_path) <= 2


def test_the_children_of_a_child_that_hangs_are_ended_too(healthy_delta: Path, program: Program) -> None:
    program(
        "if os.fork() == 0:\n  with (here / 'pids').open('a') as pids: print(os.getpid(), file=pids)\ntime.sleep(60)"
    )
    with pytest.raises(CouldNotCheck):
        probe(healthy_delta, (), 0.5)


@pytest.mark.parametrize(
    ("number", "code"),
    [
        (signal.SIGKILL, "check.memory"),
        (signal.SIGTERM, "check.probe_failed"),
        (signal.SIGINT, "check.probe_failed"),
        (signal.SIGHUP, "check.probe_failed"),
        (signal.SIGXFSZ, "check.probe_failed"),
        (40, "check.probe_failed"),  # a real-time signal, which has no name
    ],
)
def test_a_child_that_someone_else_ended_proves_nothing(
    healthy_delta: Path, tmp_path: Path, program: Program, number: int, code: str
) -> None:
    program(f"die({int(number)})")
    with pytest.raises(CouldNotCheck) as fault:
        probe(healthy_delta, (), 30)
    assert fault.value.code == code
    assert starts(tmp_path) == 1


def test_a_child_that_ran_out_of_memory_proves_nothing_however_it_ended(healthy_delta: Path, program: Program) -> None:
    program("print('memory allocation of 1234 bytes failed', file=sys.stderr, flush=True)\ndie(signal.SIGABRT)")
    with pytest.raises(CouldNotCheck) as fault:
        probe(healthy_delta, (), 30)
    assert fault.value.code == "check.memory"


# --- an installation that does not work


@pytest.mark.parametrize(
    "control",
    [
        "die(signal.SIGSEGV)",
        "raise RuntimeError('broken')",
        f"answer['collections'] = [{WORDS[0] | {'unanswered': ['full-text query']}}]",
        "time.sleep(60)",
    ],
    ids=["dies", "fails", "finds nothing", "hangs"],
)
@pytest.mark.parametrize("code", ["die(signal.SIGSEGV)", "raise RuntimeError('broken')"], ids=["dies", "fails"])
def test_where_chroma_cannot_read_a_delta_of_its_own_it_says_nothing_of_another(
    healthy_delta: Path, program: Program, code: str, control: str
) -> None:
    program(code, control=control)
    with pytest.raises(CouldNotCheck) as fault:
        probe(healthy_delta, (), 1)
    assert fault.value.code in ("check.probe_failed", "check.timeout")


def test_an_installation_that_fails_at_every_delta_speaks_against_none(healthy_delta: Path, program: Program) -> None:
    program(
        "real_read(folder, answer)\nprint(json.dumps(answer))",
        control="real_control(answer)",
        before="import chromadb\nchromadb.Collection.count = lambda _: 1 // 0",
    )
    with pytest.raises(CouldNotCheck, match=r"cannot even read a delta that it made itself here: .* by zero") as fault:
        probe(healthy_delta, (), 60)
    assert fault.value.code == "check.probe_failed"


# --- memory, descriptors and disk


@pytest.mark.parametrize("end", ["", "while True: pass"])
def test_a_child_that_uses_more_memory_than_the_delta_can_need_is_ended_and_proves_nothing(
    healthy_delta: Path, tmp_path: Path, program: Program, monkeypatch: pytest.MonkeyPatch, end: str
) -> None:
    monkeypatch.setattr(chroma, "_ROOM_BYTES", 32 * 1024**2)
    program(f"kept = b'x' * 2**28\n{end or 'time.sleep(60)'}")
    with pytest.raises(CouldNotCheck, match=r"Chroma uses more than the \d+ bytes of memory that this delta") as fault:
        probe(healthy_delta, (), 30)
    assert fault.value.code == "check.memory"
    assert starts(tmp_path) == 1


def test_memory_that_a_child_reserves_and_does_not_use_is_not_counted(
    healthy_delta: Path, program: Program, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(chroma, "_ROOM_BYTES", 32 * 1024**2)
    program("import mmap\nkept = mmap.mmap(-1, 2**33)\ntime.sleep(0.2)\nprint(json.dumps(healthy))")
    assert probe(healthy_delta, (), 30) == ([], "9.9")


def test_an_index_with_room_for_more_than_it_holds_may_use_that_memory(flushed_delta: Path, tmp_path: Path) -> None:
    delta = Path(shutil.copytree(flushed_delta, tmp_path / "copy"))
    header = next(delta.rglob("header.bin"))
    size = sum(path.stat().st_size for path in delta.rglob("*"))
    before = chroma._memory(delta, size, 1)
    for capacity, more in ((2**16, 2**22), (2**60, 2**32)):
        header.write_bytes(header.read_bytes()[:12] + capacity.to_bytes(8, "little") + header.read_bytes()[20:])
        needed = chroma._memory(delta, size, 1)
        assert before < needed < before + more  # and what no index has is not believed
    next(delta.rglob("index_metadata.pickle")).unlink()
    assert chroma._memory(delta, size, 1) <= before  # a skeleton's header holds anything


LIMITS = [
    ("RLIMIT_NOFILE", 40, "check.descriptors"),
    ("RLIMIT_AS", 2**30, "check.memory"),
    ("RLIMIT_DATA", 2**30, "check.memory"),
]


@pytest.mark.parametrize(("limit", "most", "code"), LIMITS)
def test_a_child_that_may_use_less_than_chroma_needs_says_nothing_of_the_delta(
    healthy_delta: Path, tmp_path: Path, program: Program, limit: str, most: int, code: str
) -> None:
    before = f"resource.setrlimit(resource.{limit}, ({most}, {most}))"
    program("print(json.dumps(healthy))", before=before)
    with pytest.raises(CouldNotCheck, match="this process may have") as fault:
        probe(healthy_delta, (), 30)
    assert fault.value.code == code
    assert not (tmp_path / "pids").exists()


def test_a_child_raises_its_own_limit_of_descriptors_as_far_as_it_may(
    healthy_delta: Path, tmp_path: Path, program: Program
) -> None:
    program("(here / 'seen').write_text(str(resource.getrlimit(resource.RLIMIT_NOFILE)))\n"
            "print(json.dumps(healthy))",
            before="resource.setrlimit(resource.RLIMIT_NOFILE, (40, 200))")  # fmt: skip
    assert probe(healthy_delta, (), 30) == ([], "9.9")
    assert (tmp_path / "seen").read_text() == "(200, 200)"


def test_whatever_a_child_says_that_has_no_descriptors_left_proves_nothing(
    healthy_delta: Path, program: Program
) -> None:
    program("files = []\ntry:\n  while True: files.append(os.dup(0))\n"
            "except OSError: raise RuntimeError('oops') from None")  # fmt: skip
    with pytest.raises(CouldNotCheck, match=r"oops \(too many open files\)") as fault:
        probe(healthy_delta, (), 30)
    assert fault.value.code == "check.descriptors"


@pytest.mark.parametrize("code", ["die(signal.SIGBUS)", "raise RuntimeError('malformed')"])
def test_what_a_child_says_on_a_disk_that_is_nearly_full_proves_nothing(
    healthy_delta: Path, tmp_path: Path, program: Program, monkeypatch: pytest.MonkeyPatch, code: str
) -> None:
    program(f"if first: {code}\nprint(json.dumps(healthy))")
    monkeypatch.setattr(chroma.os, "statvfs", lambda _: SimpleNamespace(f_bavail=1000, f_frsize=4096))
    with pytest.raises(CouldNotCheck, match="4096000 bytes are left on the scratch disk") as fault:
        probe(healthy_delta, (), 30)
    assert fault.value.code == "check.disk_full"
    assert starts(tmp_path) == 1
    assert probe(healthy_delta, (), 30) == ([], "9.9")


def test_a_child_that_writes_a_longer_file_than_it_may_proves_nothing(
    healthy_delta: Path, program: Program, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(chroma, "_FILE_FACTOR", 0)
    monkeypatch.setattr(chroma, "_FILE_BYTES", 2**20)
    program("with open('big', 'wb') as file: file.write(bytes(2**21))")
    with pytest.raises(CouldNotCheck) as fault:
        probe(healthy_delta, (), 30)
    assert fault.value.code == "check.disk_full"


# --- faults of the environment in Chroma's words


@pytest.mark.parametrize(
    ("answer", "code"),
    [
        (failing("error returned from database: (code: 14) unable to open database file"), "check.cannot_open"),
        (failing("unable to open database file"), "check.cannot_open"),
        (failing("Too many open files (os error 24)"), "check.descriptors"),
        (failing("No space left on device (os error 28)"), "check.disk_full"),
        (failing("(code: 13) database or disk is full"), "check.disk_full"),
        (failing("Cannot allocate memory (os error 12)"), "check.memory"),
        (failing("Permission denied (os error 13)"), "check.local_io"),
        (failing("(code: 10) disk I/O error"), "check.local_io"),
        (failing("", error="MemoryError"), "check.memory"),
        (failing("No module named 'chromadb'", error="ModuleNotFoundError", stage="import"), "check.probe_failed"),
        (failing("libstdc++.so.6: not found", error="ImportError"), "check.probe_failed"),
        (failing("anything", stage="import"), "check.probe_failed"),
    ],
)
def test_a_fault_of_the_environment_is_never_held_against_the_delta(
    healthy_delta: Path, tmp_path: Path, program: Program, answer: object, code: str
) -> None:
    program(f"print(json.dumps({answer!r}))")
    with pytest.raises(CouldNotCheck) as fault:
        probe(healthy_delta, (), 30)
    assert fault.value.code == code
    assert starts(tmp_path) == 1


def test_corrupt_bytes_in_chroma_s_words_are_held_against_it(healthy_delta: Path, program: Program) -> None:
    program(f"print(json.dumps({failing('(code: 11) database disk image is malformed')!r}))")
    detail = "Chroma 9.9 at open: InternalError: (code: 11) database disk image is malformed"
    assert probe(healthy_delta, (), 30) == ([Finding("chroma.failed", "", detail)], "9.9")


@pytest.mark.parametrize(
    "code",
    [
        "",
        "sys.exit(3)",
        "print('Traceback: oops', file=sys.stderr)",
        "os._exit(4)",
        "print('no json')",
        "print('{}')",
        "print('[]')",
        "print('5')",
        "print('\"text\"')",
        "print(json.dumps({**healthy, 'collections': 5}))",
        "print(json.dumps({**healthy, 'collections': [{}]}))",
        "print(json.dumps({**healthy, 'collections': [5]}))",
        "print(json.dumps(healthy) * 2)",
        "sys.stdout.buffer.write(b'\\xff\\xfe')",
        "print('[' * 100_000)",
    ],
)
def test_an_answer_that_is_none_is_a_fault_of_the_probe(healthy_delta: Path, program: Program, code: str) -> None:
    program(code)
    with pytest.raises(CouldNotCheck, match=r"the probe ended with \d and no answer") as fault:
        probe(healthy_delta, (), 30)
    assert fault.value.code == "check.probe_failed"
    assert len(fault.value.detail) < 500


# --- what a child gets


def test_a_child_sees_nothing_of_this_process_s_environment(
    healthy_delta: Path, tmp_path: Path, program: Program, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in (
        "AWS_SECRET_ACCESS_KEY",
        "AWS_SESSION_TOKEN",
        "AWS_CONTAINER_CREDENTIALS_FULL_URI",
        "DELTAGUARD_STAGE",
    ):
        monkeypatch.setenv(name, "secret")
    program("(here / 'seen').write_text(json.dumps([dict(os.environ), os.getcwd(), sys.stdin.read()]))\n"
            "print(json.dumps(healthy))")  # fmt: skip
    probe(healthy_delta, (), 30)
    environment, folder, read = json.loads((tmp_path / "seen").read_text())
    assert "secret" not in environment.values()
    assert environment.keys() - {"LC_CTYPE"} == {
        "PATH", "HOME", "TMPDIR", "PYTHONPATH", "ANONYMIZED_TELEMETRY", "RUST_BACKTRACE", "OMP_NUM_THREADS",
    }  # fmt: skip
    assert environment["HOME"] == environment["TMPDIR"] == folder
    assert Path(folder).is_relative_to(tmp_path / "scratch")
    assert read == ""


def test_a_child_gets_a_copy_of_chroma_s_files_and_of_nothing_else(
    healthy_delta: Path, tmp_path: Path, program: Program
) -> None:
    copy = Path(shutil.copytree(healthy_delta, tmp_path / "copy"))
    (copy / "foreign.txt").write_text("x")
    (copy / "chroma.sqlite3-journal").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "elsewhere").write_text("x")
    program("names = [str(p.relative_to(sys.argv[1])) for p in Path(sys.argv[1]).rglob('*') if p.is_file()]\n"
            "(here / 'seen').write_text(json.dumps([sys.argv[1], names]))\nprint(json.dumps(healthy))")  # fmt: skip
    probe(copy, (), 30)
    folder, names = json.loads((tmp_path / "seen").read_text())
    assert Path(folder).is_relative_to(tmp_path / "scratch")
    assert sorted(names) == [file.name for file in list_folder(healthy_delta).files]


def test_a_hole_of_a_file_costs_the_scratch_disk_nothing(healthy_delta: Path, tmp_path: Path, program: Program) -> None:
    delta = Path(shutil.copytree(healthy_delta, tmp_path / "copy"))
    size = (delta / DATABASE).stat().st_size
    with (delta / DATABASE).open("r+b") as database:
        database.seek(2**30)
        database.write(b"the last page")
        database.truncate(2**31)
    program("import hashlib; path = Path(sys.argv[1]) / 'chroma.sqlite3'; file = path.open('rb')\n"
            f"head = hashlib.sha256(file.read({size})).hexdigest(); file.seek(2**30); tail = file.read(13).decode()\n"
            "seen = [path.stat().st_size, path.stat().st_blocks * 512, head, tail]\n"
            "(here / 'seen').write_text(json.dumps(seen)); print(json.dumps(healthy))")  # fmt: skip
    probe(delta, (), 30)
    length, taken, head, tail = json.loads((tmp_path / "seen").read_text())
    assert (length, tail) == (2**31, "the last page")
    assert head == hashlib.sha256((healthy_delta / DATABASE).read_bytes()).hexdigest()
    assert taken < size + 2**20


def test_every_attempt_gets_a_fresh_copy(healthy_delta: Path, tmp_path: Path, program: Program) -> None:
    program("seen = Path(sys.argv[1]) / 'seen'\n"
            "with (here / 'copies').open('a') as copies: print(seen.exists(), file=copies)\n"
            "seen.touch()\ndie(signal.SIGSEGV)")  # fmt: skip
    probe(healthy_delta, (), 30)
    assert (tmp_path / "copies").read_text().split() == ["False", "False"]


@pytest.mark.parametrize(("openings", "codes", "children"), [(1, [], 1), (2, ["chroma.failed"], 4)])
def test_a_copy_is_opened_as_often_as_asked_and_what_only_a_later_opening_finds_counts(
    healthy_delta: Path, tmp_path: Path, program: Program, openings: int, codes: list[str], children: int
) -> None:
    program(f"seen = Path(folder) / 'seen'\nif seen.exists(): print(json.dumps({failing('no such table')!r}))\n"
            "else: seen.touch(); print(json.dumps(healthy))")  # fmt: skip
    outcome = ask_twice(healthy_delta, 30, chroma._nothing_lost, 1, openings)
    assert [finding.code for finding in outcome.findings] == codes
    assert starts(tmp_path) == children


def test_a_client_that_changed_the_tables_is_opened_anew_since_its_connections_may_not_all_know_of_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clients: list[Any] = []
    client_of = chromadb.PersistentClient

    def noted(*args: Any, **named: Any) -> Any:
        clients.append(client_of(*args, **named))
        return clients[-1]

    monkeypatch.setattr(chromadb, "PersistentClient", noted)
    folder = next(sample for sample in SAMPLES if sample.name == "0.4.3-flushed").unpack(tmp_path)
    with opened(str(folder)) as second:
        first, last = clients
        assert second is last
        with pytest.raises(AttributeError, match="bindings"):  # what chromadb says of a closed client
            first.list_collections()
    with opened(str(folder)):
        assert len(clients) == 3


# --- faults before a child runs


@pytest.mark.parametrize("room", [0, 1000, 255 * 1024 * 1024])
def test_without_memory_to_spare_no_child_is_started(
    healthy_delta: Path, tmp_path: Path, program: Program, monkeypatch: pytest.MonkeyPatch, room: int
) -> None:
    program("print(json.dumps(healthy))")
    monkeypatch.setattr(chroma, "_available_memory", lambda: room)
    with pytest.raises(CouldNotCheck, match=f"{room} bytes of memory are left") as fault:
        probe(healthy_delta, (), 30)
    assert fault.value.code == "check.memory"
    assert not (tmp_path / "pids").exists()


def test_a_machine_that_does_not_tell_its_memory_is_trusted(
    healthy_delta: Path, program: Program, monkeypatch: pytest.MonkeyPatch
) -> None:
    program("print(json.dumps(healthy))")
    monkeypatch.setattr(chroma, "_available_memory", lambda: None)
    assert probe(healthy_delta, (), 30) == ([], "9.9")


def test_the_memory_of_this_machine_is_a_plausible_number() -> None:
    room = chroma._available_memory()
    assert room is not None and 10**6 < room < 10**15


@pytest.mark.parametrize(
    ("where", "number", "code"),
    [
        ("shared.inspection.probe.pool.subprocess.Popen", errno.EMFILE, "check.descriptors"),
        ("shared.inspection.probe.pool.subprocess.Popen", errno.ENOMEM, "check.memory"),
        ("shared.inspection.probe.chroma.copy_file", errno.ENOSPC, "check.disk_full"),
        ("shared.inspection.probe.chroma.Path.open", errno.ENOSPC, "check.disk_full"),
        ("shared.inspection.probe.chroma.Path.open", errno.EMFILE, "check.descriptors"),
    ],
)
def test_a_probe_that_cannot_be_started_is_a_fault_of_the_environment(
    healthy_delta: Path, monkeypatch: pytest.MonkeyPatch, where: str, number: int, code: str
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(where, refuse)
    with pytest.raises(CouldNotCheck) as fault:
        probe(healthy_delta, (), 30)
    assert fault.value.code == code


# --- the pool of warm processes


def test_one_warm_process_forks_a_fresh_one_for_each_delta(
    healthy_delta: Path, tmp_path: Path, program: Program
) -> None:
    program("print(json.dumps(healthy))")
    for _ in range(3):
        assert probe(healthy_delta, (), 30) == ([], "9.9")
    pids = (tmp_path / "pids").read_text().split()
    assert len({*pids}) == 3
    assert len({*parents(tmp_path)}) == 1
    assert not {*pids} & {*parents(tmp_path)}


@pytest.mark.parametrize("accident", ["die(signal.SIGSEGV)", f"print(json.dumps({failing('oops')!r}))"])
def test_a_probe_is_repeated_from_a_process_that_was_never_used(
    healthy_delta: Path, tmp_path: Path, program: Program, accident: str
) -> None:
    program(f"if (here / 'broken').exists(): {accident}\nelse: print(json.dumps(healthy))")
    probe(healthy_delta, (), 30)
    (tmp_path / "broken").touch()
    probe(healthy_delta, (), 30)
    warm, first, second = parents(tmp_path)
    assert first == warm
    assert second != first


def test_a_warm_process_that_died_meanwhile_is_replaced(healthy_delta: Path, tmp_path: Path, program: Program) -> None:
    program("print(json.dumps(healthy))")
    probe(healthy_delta, (), 30)
    os.kill(int(parents(tmp_path)[0]), signal.SIGKILL)
    assert not alive(int(parents(tmp_path)[0]))
    assert probe(healthy_delta, (), 30) == ([], "9.9")


def test_a_warm_process_that_dies_during_a_probe_proves_nothing_and_takes_the_probe_along(
    healthy_delta: Path, program: Program
) -> None:
    program("os.kill(os.getppid(), signal.SIGKILL)\ntime.sleep(60)")
    with pytest.raises(CouldNotCheck, match="the process that forks the probes has ended") as fault:
        probe(healthy_delta, (), 30)
    assert fault.value.code == "check.probe_failed"


def test_a_warm_process_is_started_once_ahead_and_then_used(
    healthy_delta: Path, tmp_path: Path, program: Program, nothing_is_left: Pool
) -> None:
    program("print(json.dumps(healthy))")
    nothing_is_left.warm_up()
    nothing_is_left.warm_up()
    (waiting,) = nothing_is_left._idle
    probe(healthy_delta, (), 30)
    assert parents(tmp_path) == [str(waiting._process.pid)]


def test_what_a_module_prints_while_it_is_imported_is_no_answer(
    healthy_delta: Path, tmp_path: Path, program: Program
) -> None:
    (tmp_path / "chatty.py").write_text("import os\nprint('{}', flush=True)\nos.write(1, b'{}')")
    program("print(json.dumps(healthy))")
    path = pool._PROGRAM
    path.write_text(
        path.read_text().replace("_PRELOADED = ()", f"_PRELOADED = ('chatty',); sys.path.append({str(tmp_path)!r})")
    )
    assert probe(healthy_delta, (), 30) == ([], "9.9")


def test_many_threads_have_a_probe_each_at_once(healthy_delta: Path, tmp_path: Path, program: Program) -> None:
    program("(here / f'at-{os.getpid()}').touch()\n"
            "while len(list(here.glob('at-*'))) < 3: time.sleep(0.01)\nprint(json.dumps(healthy))")  # fmt: skip
    with ThreadPoolExecutor(3) as threads:
        answers = list(threads.map(lambda _: probe(healthy_delta, (), 60), range(3)))
    assert answers == [([], "9.9")] * 3
    assert len({*parents(tmp_path)}) == 3


@pytest.mark.slow
def test_nothing_of_a_process_that_was_killed_goes_on(healthy_delta: Path, tmp_path: Path, program: Program) -> None:
    program("time.sleep(300)")
    code = (
        "import sys; from pathlib import Path; from shared.inspection.probe import chroma, pool\n"
        "pool._PROGRAM = Path(sys.argv[1])\nchroma.probe(Path(sys.argv[2]), (), 300)"
    )
    command = [sys.executable, "-c", code, str(pool._PROGRAM), str(healthy_delta)]
    environment = os.environ | {"TMPDIR": str(tmp_path), "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    with subprocess.Popen(command, env=environment) as killed:
        while killed.poll() is None and not ((tmp_path / "pids").exists() and (tmp_path / "pids").read_text()):
            time.sleep(0.05)
        killed.kill()
    assert not any(alive(int(pid)) for pid in [*parents(tmp_path), *(tmp_path / "pids").read_text().split()])
