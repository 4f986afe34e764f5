"""The program of a child process that writes a delta through Chroma: what to write comes on standard input.

It is run by its path and imports nothing of Deltaguard. The input is a line of JSON with the collections, then for each
batch a line of JSON and the bytes of its vectors (little-endian float32); see `shared.salvage.rebuild`, which sends it.
"""

from __future__ import annotations

import ctypes
import json
import os
import resource
import signal
import sqlite3
import sys
from contextlib import closing
from typing import Any, BinaryIO

_PR_SET_PDEATHSIG = 1  # prctl(2)
_COLUMNS = {str: "str_value", bool: "bool_value", int: "int_value", float: "float_value"}


def main(folder: str, parent: int) -> int:
    """Writes the delta into an empty folder. The answer is JSON on standard output, the exit code 0."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it died before the line above
        return 1
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    answer: dict[str, Any] = {}
    try:
        answer["chromadb"] = _write(folder, sys.stdin.buffer)
    except (SystemExit, KeyboardInterrupt):
        raise
    except BaseException as error:  # Rust panics arrive as PanicException, which is no Exception
        answer = {"error": type(error).__name__, "message": str(error)[:500]}
    print(json.dumps(answer), flush=True)
    return 0


def _write(folder: str, source: BinaryIO) -> str:
    import chromadb
    import numpy as np
    from chromadb.config import Settings

    def client() -> Any:
        return chromadb.PersistentClient(folder, settings=Settings(anonymized_telemetry=False))

    collections = json.loads(source.readline())
    with client() as empty:
        for collection in collections:
            empty.create_collection(collection["name"], embedding_function=None)
    # Settings are carried over as they are stored, so that Chroma understands them as it did before.
    _settle(folder, collections)
    with client() as filled:
        for line in source:
            batch = json.loads(line)
            size = 4 * len(batch["ids"]) * batch["dimension"]
            vectors = np.frombuffer(source.read(size), "<f4").reshape(len(batch["ids"]), -1)
            # A list of nothing but None may not be given.
            rest = {
                field: batch[field]
                for field in ("documents", "metadatas", "uris")
                if any(value is not None for value in batch[field])
            }
            target = filled.get_collection(batch["collection"], embedding_function=None)
            target.add(ids=batch["ids"], embeddings=vectors, **rest)
    return str(chromadb.__version__)


def _settle(folder: str, collections: list[dict[str, Any]]) -> None:
    with closing(sqlite3.connect(f"{folder}/chroma.sqlite3")) as database, database:
        for collection in collections:
            database.execute(
                "UPDATE collections SET dimension = ?, config_json_str = ?, schema_str = ? WHERE name = ?",
                [collection[field] for field in ("dimension", "configuration", "schema", "name")],
            )
            for key, value in (collection["metadata"] or {}).items():
                database.execute(
                    f"INSERT INTO collection_metadata (collection_id, key, {_COLUMNS[type(value)]}) "  # noqa: S608
                    "SELECT id, ?, ? FROM collections WHERE name = ?",
                    (key, value, collection["name"]),
                )


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], int(sys.argv[2])))
