"""The part of the probe's program that reads some embeddings of a delta instead of all.

The probe loads it by its path; like the probe, it imports nothing of Deltaguard. What it reads goes to the file
`records` of the working folder (see `shared.inspection.answers`), two pages for each collection: the embeddings, and
then their distances from `question`, as vectors of one number.
"""

from __future__ import annotations

import json
import os
import sqlite3
from collections.abc import Callable
from contextlib import closing
from typing import Any, BinaryIO

_PAGE = 100
_DATABASE = ("default_database", "default_tenant")


def read_some(
    folder: str,
    asked: str,
    answer: dict[str, Any],
    opened: Callable[[str], Any],
    reach: Callable[[dict[str, Any], str], None],
) -> None:
    """Reads embeddings by their ids through Chroma, from the default database.

    Args:
        folder: A disposable copy of the delta.
        asked: A file of JSON, `{"ids": {collection: [id, ...]}, "alone": bool}`: what to read, and whether all else
            is removed from the queue first. Then Chroma builds no index but of these, and gives the same for them:
            an operation changes nothing but the embedding that it names.
        answer: Where to note how far it came, and what it saw.
        opened: Opens a client on a folder.
        reach: Notes a stage in the answer.

    Raises:
        BaseException: Whatever Chroma raises.
    """
    import chromadb

    answer["chromadb"] = chromadb.__version__
    with open(asked, encoding="utf-8") as file:  # noqa: PTH123 -- as in the probe
        request = json.load(file)
    if request["alone"]:
        reach(answer, "shortening the queue")
        _shorten_queue(folder, {id_ for ids in request["ids"].values() for id_ in ids})
    reach(answer, "open")
    client = opened(folder)
    with open("records", "wb") as records:  # noqa: PTH123 -- relative to the working folder
        for name, ids in request["ids"].items():
            reach(answer, f"count of {name!r}")
            collection = client.get_collection(name, embedding_function=None)
            seen = {"id": str(collection.id), "name": name, "database": _DATABASE[0], "tenant": _DATABASE[1]}
            seen |= {"count": collection.count(), "ids": 0, "digest": ""}
            for start in range(0, len(ids), _PAGE):
                reach(answer, f"get of {name!r}")
                seen["ids"] += _read(collection, ids[start : start + _PAGE], records)
            answer["collections"].append(seen)


def question(dimension: int) -> Any:
    """The vector whose distances are measured: any that is neither short nor parallel to those of a delta."""
    import numpy as np

    return np.random.default_rng(dimension).standard_normal(dimension).astype(np.float32)


def _read(collection: Any, ids: list[str], records: BinaryIO) -> int:
    """Writes what there is of these embeddings to `records`. Returns how many."""
    import numpy as np

    found = collection.get(ids=ids, include=["embeddings", "documents", "metadatas", "uris"])
    if not found["ids"]:
        return 0
    vectors = np.asarray(found["embeddings"], "<f4").reshape(len(found["ids"]), -1)
    columns = {key: found[key] for key in ("ids", "documents", "metadatas", "uris")}
    _write(records, {"collection": str(collection.id), "width": vectors.shape[1], **columns}, vectors)
    nearest = collection.query(
        query_embeddings=[question(vectors.shape[1])],
        ids=found["ids"],
        n_results=len(found["ids"]),
        include=["distances"],
    )
    distances = np.asarray(nearest["distances"][0], "<f4")
    columns = {"ids": nearest["ids"][0], "documents": None, "metadatas": None, "uris": None}
    _write(records, {"collection": str(collection.id), "width": 1, **columns}, distances)
    return len(found["ids"])


def _write(records: BinaryIO, head: dict[str, Any], vectors: Any) -> None:
    records.write(json.dumps(head, ensure_ascii=False, default=repr).encode("utf-8", "surrogatepass") + b"\n")
    records.write(vectors.tobytes())


def _shorten_queue(folder: str, ids: set[str]) -> None:
    with closing(sqlite3.connect(os.path.join(folder, "chroma.sqlite3"), isolation_level=None)) as connection:  # noqa: PTH118
        connection.execute("PRAGMA trusted_schema=OFF")
        connection.execute("PRAGMA journal_mode=OFF")  # of a copy, which is thrown away
        connection.execute("PRAGMA synchronous=OFF")
        connection.execute("CREATE TEMP TABLE asked (id TEXT PRIMARY KEY)")
        connection.execute("BEGIN")
        connection.executemany("INSERT INTO asked VALUES (?)", ((id_,) for id_ in ids))
        connection.execute("DELETE FROM embeddings_queue WHERE id NOT IN (SELECT id FROM asked)")
        connection.execute("COMMIT")
