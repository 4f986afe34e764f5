"""The program of the probe: imports chromadb once, and reads each delta with Chroma in a process forked for it alone.

It is run by its path and imports nothing of Deltaguard, since whatever it imports may be killed by a hostile delta.
The process that was started touches no delta: it only forks. It ends when its standard input does, so it never outlives
the process that started it, and each fork dies with it.

Requests are lines of JSON on standard input: `{"folder", "asked", "scratch", "seconds", "memory", "file"}`: where the
delta is (null: the fork makes one of its own, to show that Chroma works here at all), the file that names what is read
of it (null: everything; see `sample_program`), where the fork may write, how long it may take, how many bytes of memory
it may use and how long a file may become that it writes. The answers are lines on standard output: first `{"ready":
true}`, then for each request `{"status", "busy", "late", "grown"}`: the wait status of the fork, the processor time
that it took, and whether it was ended because its time or its memory was used up. What the fork itself has to say is
JSON in `scratch/answer`, what it read in `scratch/records`, and how far it came in `scratch/progress`.
"""

from __future__ import annotations

import ctypes
import errno
import hashlib
import importlib
import importlib.util
import json
import os
import re
import resource
import select
import signal
import sqlite3
import sys
import time
from contextlib import closing, suppress
from typing import Any, BinaryIO, TextIO
from urllib.parse import quote

_FIRST_PAGE, _LARGEST_PAGE, _PAGE_BYTES = 50, 500, 8 * 1024**2
_NEAREST = 1000  # that a query asks for at most
_FEW = 0.5  # an index that finds less than this share of what it is asked for has come apart
_MOSTLY = 0.9
_MOST_DATABASES = 10_000
_STAGE_BYTES = 200
_WATCH_SECONDS = 0.05
_DESCRIPTORS, _SPARE_DESCRIPTORS = 1024, 32  # a small delta takes 25
_VIRTUAL_BYTES = 1024**3  # of which a probe touches a tenth (measured, chromadb 1.5.9)
_CONTROL_ROWS = 60
_DEFAULT = ("default_database", "default_tenant")
# What a filter or a full-text query is asked for is so plain that nothing can be meant by it but itself.
_PLAIN_KEY = re.compile(r"[A-Za-z][A-Za-z0-9_.-]{0,99}")
_PLAIN_TEXT = re.compile(r"[A-Za-z0-9 ]{3,40}")
_ASKED_TYPES = ("str", "int", "float", "bool")
_LONGEST_ASKED, _LARGEST_ASKED = 200, 1e15
_PR_SET_PDEATHSIG = 1  # prctl(2)
_progress: int | None = None
# What chromadb itself imports only when a client is opened; another version may lack some.
_PRELOADED = ("chromadb", "chromadb.api.rust", "chromadb.telemetry.product.posthog")


def main() -> int:
    """Answers requests until standard input ends."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever a module prints is no answer
    for module in _PRELOADED:
        with suppress(BaseException):  # the fork tries again, and tells what is wrong
            importlib.import_module(module)
    _say(answers, {"ready": True})
    for line in sys.stdin.buffer:
        request = json.loads(line)
        forker = os.getpid()
        most = _anonymous_bytes(forker) + request["memory"]
        child = os.fork()
        if child == 0:
            os.close(answers.fileno())
            _probe(request, forker)
        _say(answers, _await(child, request["seconds"], most))
    return 0


def _say(output: TextIO, answer: dict[str, Any]) -> None:
    print(json.dumps(answer), file=output, flush=True)


def _await(child: int, seconds: float, most: int) -> dict[str, Any]:
    """Waits for a fork, no longer than it may take, and no longer than somebody waits for the answer.

    Its memory is watched and not limited: where Chroma asks for more than it gets, it says anything but that.
    """
    pidfd = os.pidfd_open(child)
    late = grown = False
    deadline = time.monotonic() + seconds
    try:
        poll = select.poll()
        poll.register(pidfd, select.POLLIN)
        poll.register(sys.stdin.fileno(), 0)  # hang-up only: nobody asks before this answer
        events: dict[int, int] = {}
        while not events and not late and not grown:
            left = deadline - time.monotonic()
            events = dict(poll.poll(max(0.0, min(left, _WATCH_SECONDS)) * 1000))
            late = not events and time.monotonic() >= deadline
            grown = not events and _anonymous_bytes(child) > most
        if pidfd not in events:
            with suppress(ProcessLookupError):
                os.killpg(child, signal.SIGKILL)
            with suppress(ProcessLookupError):  # it may not have a group of its own yet
                os.kill(child, signal.SIGKILL)
    finally:
        os.close(pidfd)
    _, status, usage = os.wait4(child, 0)
    with suppress(ProcessLookupError):
        os.killpg(child, signal.SIGKILL)  # what it started itself
    return {"status": status, "busy": usage.ru_utime + usage.ru_stime, "late": late, "grown": grown}


def _anonymous_bytes(pid: int) -> int:
    """Bytes of memory that a process uses, its files apart; 0 when it has ended."""
    with suppress(OSError), open(f"/proc/{pid}/status") as status:  # noqa: PTH123
        for line in status:
            if line.startswith("RssAnon:"):
                return int(line.split()[1]) * 1024
    return 0


def _probe(request: dict[str, Any], forker: int) -> None:
    """The fork: reads one delta, writes the answer, and ends without a return."""
    try:
        folder, scratch = request["folder"], request["scratch"]
        os.setsid()
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != forker:  # it died before the line above
            os._exit(1)
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        _limit(resource.RLIMIT_FSIZE, request["file"])
        os.environ["HOME"] = os.environ["TMPDIR"] = scratch
        os.chdir(scratch)
        for descriptor, name in enumerate(("/dev/null", "answer", "errors")):
            file = os.open(name, os.O_RDWR)
            os.dup2(file, descriptor)
            os.close(file)
        global _progress  # noqa: PLW0603 -- of this process, which reads one delta
        _progress = os.open("progress", os.O_RDWR)
        answer: dict[str, Any] = {"stage": "import", "collections": []}
        try:
            _demand(request["memory"])
            if folder is None:
                control(answer)
            elif request["asked"] is not None:
                _sampler().read_some(folder, request["asked"], answer, opened, _reach)
            else:
                read(folder, answer)
            _reach(answer, "done")
        except (SystemExit, KeyboardInterrupt):
            raise
        except BaseException as error:  # Rust panics arrive as PanicException, which is no Exception
            answer["error"] = type(error).__name__
            answer["message"] = str(error)[:500]
            if _descriptors_left() < _SPARE_DESCRIPTORS:
                answer["message"] += " (too many open files)"  # which Chroma does not always say
        _say(sys.stdout, answer)
        os._exit(0)  # Chroma's threads need no goodbye, and a crash in one would spoil the answer
    except SystemExit as end:
        os._exit(end.code if isinstance(end.code, int) else 1)
    finally:
        os._exit(1)


def _sampler() -> Any:
    """The module `sample_program`, found by its path, since this program does not know the package that both are in."""
    path = os.path.join(os.path.dirname(__file__), "sample_program.py")  # noqa: PTH118, PTH120
    spec = importlib.util.spec_from_file_location("sample_program", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _limit(what: int, most: int) -> None:
    """Lowers a limit of this process; one that is lower already stays."""
    soft, hard = resource.getrlimit(what)
    lowest = min(value for value in (most, soft, hard) if value != resource.RLIM_INFINITY)
    resource.setrlimit(what, (lowest, lowest))


def _demand(memory: int) -> None:
    """Sees to it that this process has what Chroma needs: where it gets less, it may say that the delta is broken.

    Raises:
        OSError: It has not.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < _DESCRIPTORS:
        soft = _DESCRIPTORS if hard == resource.RLIM_INFINITY else min(_DESCRIPTORS, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    if _descriptors_left() < 2 * _SPARE_DESCRIPTORS:
        raise OSError(errno.EMFILE, f"too many open files: this process may have {soft}")
    for what in (resource.RLIMIT_AS, resource.RLIMIT_DATA):
        most = resource.getrlimit(what)[0]
        if most != resource.RLIM_INFINITY and most < _VIRTUAL_BYTES + memory:
            raise MemoryError(f"this process may have {most} bytes of memory, a probe needs {_VIRTUAL_BYTES + memory}")


def _descriptors_left() -> int:
    """How many files this process may still open."""
    try:
        used = len(os.listdir("/proc/self/fd"))  # noqa: PTH208
    except OSError:
        return 0
    return int(resource.getrlimit(resource.RLIMIT_NOFILE)[0]) - used


def control(answer: dict[str, Any]) -> None:
    """Has Chroma make a delta with an index and read it again: where that fails, it says nothing of any other delta.

    Raises:
        BaseException: Whatever Chroma raises.
    """
    import numpy as np

    vectors = np.random.default_rng(0).standard_normal((_CONTROL_ROWS, 8)).astype(np.float32)
    ids = [str(number) for number in range(_CONTROL_ROWS)]
    client = opened("control")
    indexed = {"hnsw:batch_size": _CONTROL_ROWS // 3, "hnsw:sync_threshold": _CONTROL_ROWS // 2}
    collection = client.create_collection("control", embedding_function=None, metadata=indexed)
    collection.add(ids=ids, embeddings=vectors, documents=ids, metadatas=[{"number": int(id_)} for id_ in ids])
    client.close()
    read("control", answer)


def read(folder: str, answer: dict[str, Any]) -> None:
    """Reads the delta in `folder` through Chroma, and notes in `answer` how far it came and what it saw.

    Every tenant, database and collection is read in full, and asked one question of each kind. What is read goes to
    the file `records` of the working folder (see `shared.inspection.probe.answers`), a page at a time.

    Raises:
        BaseException: Whatever Chroma raises.
    """
    import chromadb

    answer["chromadb"] = chromadb.__version__
    _reach(answer, "open")
    places = _places(folder)
    if places == []:  # all databases were deleted; a client of any would be refused
        chromadb.AdminClient(_settings(folder)).get_tenant(_DEFAULT[1])
        return
    client = opened(folder, places[0] if places else _DEFAULT)
    with open("records", "wb") as records:  # noqa: PTH123 -- relative to the working folder
        for database, tenant in places or _places(folder) or [_DEFAULT]:
            _reach(answer, f"list of {database!r}")
            client.set_tenant(tenant, database)
            for listed in client.list_collections():
                seen = {"id": str(listed.id), "name": listed.name, "database": database, "tenant": tenant}
                answer["collections"].append(seen)
                collection = client.get_collection(listed.name, embedding_function=None)
                _read_collection(collection, seen, answer, records)


def _read_collection(collection: Any, seen: dict[str, Any], answer: dict[str, Any], records: BinaryIO) -> None:
    _reach(answer, f"count of {collection.name!r}")
    seen["count"] = count = collection.count()
    _reach(answer, f"get of {collection.name!r}")
    sample = _Sample()
    ids = _write_all(collection, count, sample, records)
    seen["ids"] = len(ids)
    text = "".join(f"{id_}\n" for id_ in sorted(set(ids)))
    seen["digest"] = hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()
    if count:
        _ask(collection, count, sample, seen, answer)


def _write_all(collection: Any, count: int, sample: _Sample, records: BinaryIO) -> list[str]:
    """Writes all embeddings of a collection to `records`, and returns their ids."""
    import numpy as np

    ids: list[str] = []
    size = _FIRST_PAGE
    while len(ids) < count:
        page = collection.get(limit=size, offset=len(ids), include=["embeddings", "documents", "metadatas", "uris"])
        found = page["ids"]
        if not found:
            break
        if len(page["embeddings"]) != len(found):
            raise ValueError(f"{len(page['embeddings'])} vectors for {len(found)} ids")
        vectors = np.asarray(page["embeddings"], "<f4").reshape(len(found), -1)
        sample.take(vectors, page["documents"] or (), page["metadatas"] or ())
        head = {
            "collection": str(collection.id),
            "width": vectors.shape[1],
            **{key: page[key] for key in ("ids", "documents", "metadatas", "uris")},
        }
        line = json.dumps(head, ensure_ascii=False, default=repr).encode("utf-8", "surrogatepass") + b"\n"
        records.write(line)
        records.write(vectors.tobytes())
        ids += found
        # Memory stays flat however long texts and vectors are.
        size = min(_LARGEST_PAGE, max(1, _PAGE_BYTES * len(found) // (len(line) + vectors.nbytes)))
    records.flush()
    return ids


class _Sample:
    """What is asked for: some of what `get` gave back.

    `distinct` says whether hardly a vector of the first ones is there twice: an index of equal vectors falls apart.
    """

    def __init__(self) -> None:
        self.vectors: list[Any] = []
        self.finite = True
        self.text: str | None = None
        self.values: dict[str, tuple[str, Any]] = {}
        self._hashes: set[int] = set()
        self._hashed = 0

    def take(self, vectors: Any, documents: Any, metadatas: Any) -> None:
        import numpy as np

        finite = np.isfinite(vectors).all(axis=1)
        self.finite = self.finite and bool(finite.all())
        usable = vectors[finite]
        if len(usable):
            self.vectors = [*self.vectors[:1], usable[0], usable[-1]]
        new = vectors[: max(0, _NEAREST - self._hashed)]
        self._hashes.update(hash(vector.tobytes()) for vector in new)
        self._hashed += len(new)
        if self.text is None:
            found = (_PLAIN_TEXT.search(text) for text in documents if text)
            self.text = next((match[0] for match in found if match), None)
        if len(self.values) < len(_ASKED_TYPES):
            for metadata in metadatas:
                for key, value in (metadata or {}).items():
                    kind = type(value).__name__
                    if kind in _ASKED_TYPES and kind not in self.values and _is_plain(key, value):
                        self.values[kind] = (key, value)

    @property
    def distinct(self) -> bool:
        return len(self._hashes) >= _MOSTLY * self._hashed


def _is_plain(key: str, value: Any) -> bool:
    """Whether a filter on this value can mean nothing else."""
    plain = _PLAIN_KEY.fullmatch(key) is not None
    if isinstance(value, str):
        return plain and len(value) <= _LONGEST_ASKED and value.isprintable()
    return plain and abs(value) <= _LARGEST_ASKED  # no NaN either


def _ask(collection: Any, count: int, sample: _Sample, seen: dict[str, Any], answer: dict[str, Any]) -> None:
    """Asks one question of each kind. `seen["unanswered"]` then names those that find nothing of what is there."""
    name = collection.name
    seen["unanswered"] = unanswered = []
    _reach(answer, f"peek of {name!r}")
    if not collection.peek(limit=1)["ids"]:
        unanswered.append("peek")
    wanted = min(count, _NEAREST)
    found = wanted
    if sample.vectors:
        found = 0
        for vector in sample.vectors:
            _reach(answer, f"query of {name!r}")
            nearest = collection.query(query_embeddings=[vector], n_results=wanted, include=["distances"])
            found = max(found, len(set(nearest["ids"][0])))
            if found >= _FEW * wanted:
                break
    # Which neighbours a query finds varies, and it finds few among vectors that are equal, or no numbers.
    if found < _FEW * wanted and sample.finite and sample.distinct:
        unanswered.append(f"query for {wanted}, which finds {found},")
    for kind, (key, value) in sample.values.items():
        _reach(answer, f"filter of {name!r} by a value of type {kind}")
        if _nothing(collection, where={key: value}) and kind != "float":  # whose last digit may be another
            unanswered.append(f"filter by a value of type {kind}")
    if sample.text is not None:
        _reach(answer, f"full-text query of {name!r}")
        if _nothing(collection, where_document={"$contains": sample.text}):
            unanswered.append("full-text query")


def _nothing(collection: Any, **question: Any) -> bool:
    """Whether a filter finds nothing. One that the collection's own schema has turned off has no answer."""
    from chromadb.errors import InvalidArgumentError

    try:
        return not collection.get(limit=1, include=[], **question)["ids"]
    except InvalidArgumentError as error:
        if "is disabled" in str(error):
            return False
        raise


def _reach(answer: dict[str, Any], stage: str) -> None:
    """Notes a stage, also in the file `progress`, which tells how far a process came that was ended."""
    answer["stage"] = stage
    if _progress is not None:
        os.pwrite(_progress, stage.encode("utf-8", "replace")[:_STAGE_BYTES].ljust(_STAGE_BYTES), 0)


def _places(folder: str) -> list[tuple[str, str]] | None:
    """Name and tenant of each database, the default one first; None where the file does not tell."""
    path = os.path.abspath(os.path.join(folder, "chroma.sqlite3"))  # noqa: PTH100, PTH118
    if not os.path.isfile(path):  # noqa: PTH113
        return None
    try:
        with closing(sqlite3.connect(f"file:{quote(path)}?mode=ro&immutable=1", uri=True)) as connection:
            connection.execute("PRAGMA trusted_schema=OFF")
            rows = connection.execute("SELECT name, tenant_id FROM databases").fetchmany(_MOST_DATABASES)
    except sqlite3.Error:
        return None
    if not all(isinstance(value, str) for row in rows for value in row):
        return None
    return sorted(set(rows), key=lambda row: (row != _DEFAULT, row))


def _settings(folder: str) -> Any:
    from chromadb.config import Settings

    return Settings(anonymized_telemetry=False, is_persistent=True, persist_directory=folder)


def opened(folder: str, place: tuple[str, str] = _DEFAULT) -> Any:
    """A client of Chroma on the delta in `folder`, which is written to.

    Where opening changed the tables, an older version had written them, and the client is opened once more. Chroma has
    several connections to a database, and one that was there before the change may take the old columns for those of
    today: every hundredth client of a busy machine then dies of a healthy delta (`ColumnNotFound("bool_value")`, or
    `Error sending backfill request`; measured, chromadb 1.5.9 on deltas of 0.4).

    Args:
        folder: The delta.
        place: Name and tenant of the database that the client is for.

    Raises:
        BaseException: Whatever Chroma raises.
    """
    import chromadb

    database, tenant = place
    before = _schema_cookie(folder)
    client = chromadb.PersistentClient(folder, settings=_settings(folder), tenant=tenant, database=database)
    if _schema_cookie(folder) != before:
        client.close()
        client = chromadb.PersistentClient(folder, settings=_settings(folder), tenant=tenant, database=database)
    return client


def _schema_cookie(folder: str) -> bytes:
    """The number that changes with every change of a table (section 1.3.9 of SQLite's file format)."""
    with suppress(FileNotFoundError), open(os.path.join(folder, "chroma.sqlite3"), "rb") as database:  # noqa: PTH118, PTH123
        return database.read(44)[40:]
    return b""


if __name__ == "__main__":
    sys.exit(main())
