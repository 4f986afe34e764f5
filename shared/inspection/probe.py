"""The program of the probe: imports chromadb once, and reads each delta with Chroma in a process forked for it alone.

It is run by its path and imports nothing of Deltaguard, since whatever it imports may be killed by a hostile delta.
The process that was started touches no delta: it only forks. It ends when its standard input does, so it never outlives
the process that started it, and each fork dies with it.

Requests are lines of JSON on standard input: `{"folder", "scratch", "seconds"}`. The answers are lines on standard
output: first `{"ready": true}`, then for each request `{"status", "busy", "hung"}`, the wait status of the fork, the
processor time that it took, and whether it was ended because its time was over. What the fork itself has to say is JSON
in `scratch/answer`.
"""

from __future__ import annotations

import ctypes
import hashlib
import importlib
import json
import os
import resource
import select
import signal
import sys
from contextlib import suppress
from typing import Any, TextIO

_PAGE = 500
_MAX_FILE_BYTES = 16 * 1024**3
_PR_SET_PDEATHSIG = 1  # prctl(2)
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
        child = os.fork()
        if child == 0:
            os.close(answers.fileno())
            _probe(request["folder"], request["scratch"], forker)
        _say(answers, _await(child, request["seconds"]))
    return 0


def _say(output: TextIO, answer: dict[str, Any]) -> None:
    print(json.dumps(answer), file=output, flush=True)


def _await(child: int, seconds: float) -> dict[str, Any]:
    """Waits for a fork, no longer than it may take, and no longer than somebody waits for the answer."""
    pidfd = os.pidfd_open(child)
    try:
        poll = select.poll()
        poll.register(pidfd, select.POLLIN)
        poll.register(sys.stdin.fileno(), 0)  # hang-up only: nobody asks before this answer
        events = dict(poll.poll(seconds * 1000))
        hung = not events
        if pidfd not in events:
            with suppress(ProcessLookupError):
                os.killpg(child, signal.SIGKILL)
    finally:
        os.close(pidfd)
    _, status, usage = os.wait4(child, 0)
    with suppress(ProcessLookupError):
        os.killpg(child, signal.SIGKILL)  # what it started itself
    return {"status": status, "busy": usage.ru_utime + usage.ru_stime, "hung": hung}


def _probe(folder: str, scratch: str, forker: int) -> None:
    """The fork: reads one delta, writes the answer, and ends without a return."""
    try:
        os.setsid()
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != forker:  # it died before the line above
            os._exit(1)
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        resource.setrlimit(resource.RLIMIT_FSIZE, (_MAX_FILE_BYTES, _MAX_FILE_BYTES))
        os.environ["HOME"] = os.environ["TMPDIR"] = scratch
        os.chdir(scratch)
        for descriptor, name in enumerate(("/dev/null", "answer", "errors")):
            opened = os.open(name, os.O_RDWR)
            os.dup2(opened, descriptor)
            os.close(opened)
        answer: dict[str, Any] = {"stage": "import", "collections": []}
        try:
            read(folder, answer)
            answer["stage"] = "done"
        except (SystemExit, KeyboardInterrupt):
            raise
        except BaseException as error:  # Rust panics arrive as PanicException, which is no Exception
            answer["error"] = type(error).__name__
            answer["message"] = str(error)[:500]
        _say(sys.stdout, answer)
        os._exit(0)  # Chroma's threads need no goodbye, and a crash in one would spoil the answer
    except SystemExit as end:
        os._exit(end.code if isinstance(end.code, int) else 1)
    finally:
        os._exit(1)


def read(folder: str, answer: dict[str, Any]) -> None:
    """Reads the delta in `folder` through Chroma, and notes in `answer` how far it came and what it saw.

    Raises:
        BaseException: Whatever Chroma raises.
    """
    import chromadb
    import numpy as np

    answer["chromadb"] = chromadb.__version__
    answer["stage"] = "open"
    client = opened(folder)
    answer["stage"] = "list"
    for listed in client.list_collections():
        answer["stage"] = f"count of {listed.name!r}"
        collection = client.get_collection(listed.name, embedding_function=None)
        count = collection.count()
        answer["stage"] = f"get of {listed.name!r}"
        ids, vector, document = _get_all(collection, count, np)
        answer["stage"] = f"query of {listed.name!r}"
        if vector is not None:
            collection.query(query_embeddings=[vector], n_results=min(3, count))
        answer["stage"] = f"full-text query of {listed.name!r}"
        if document is not None:
            collection.get(where_document={"$contains": document}, limit=1, include=[])
        digest = hashlib.sha256("".join(f"{id_}\n" for id_ in sorted(ids)).encode("utf-8", "surrogateescape"))
        answer["collections"].append(
            {"name": listed.name, "count": count, "ids": len(ids), "digest": digest.hexdigest()}
        )


def opened(folder: str) -> Any:
    """A client of Chroma on the delta in `folder`, which is written to.

    Where opening changed the tables, an older version had written them, and the client is opened once more. Chroma has
    several connections to a database, and one that was there before the change may take the old columns for those of
    today: every hundredth client of a busy machine then dies of a healthy delta (`ColumnNotFound("bool_value")`, or
    `Error sending backfill request`; measured, chromadb 1.5.9 on deltas of 0.4).

    Raises:
        BaseException: Whatever Chroma raises.
    """
    import chromadb
    from chromadb.config import Settings

    settings = Settings(anonymized_telemetry=False)
    before = _schema_cookie(folder)
    client = chromadb.PersistentClient(folder, settings=settings)
    if _schema_cookie(folder) != before:
        client.close()
        client = chromadb.PersistentClient(folder, settings=settings)
    return client


def _schema_cookie(folder: str) -> bytes:
    """The number that changes with every change of a table (section 1.3.9 of SQLite's file format)."""
    with suppress(FileNotFoundError), open(os.path.join(folder, "chroma.sqlite3"), "rb") as database:  # noqa: PTH118, PTH123
        return database.read(44)[40:]
    return b""


def _get_all(collection: Any, count: int, np: Any) -> tuple[set[str], Any, str | None]:
    ids: set[str] = set()
    vector = document = None
    for offset in range(0, count, _PAGE):
        page = collection.get(limit=_PAGE, offset=offset, include=["embeddings", "documents", "metadatas"])
        ids.update(page["ids"])
        if len(page["embeddings"]) != len(page["ids"]):
            raise ValueError(f"{len(page['embeddings'])} vectors for {len(page['ids'])} ids")
        if not np.isfinite(page["embeddings"]).all():
            raise ValueError("a vector holds NaN or infinity")
        if vector is None and len(page["ids"]):
            vector = page["embeddings"][0]
        if document is None:
            document = next((text[:40] for text in page["documents"] or [] if text and len(text) >= 3), None)
    return ids, vector, document


if __name__ == "__main__":
    sys.exit(main())
