"""The part of the probe's program that reads some embeddings of a delta instead of all.

The probe loads it by its path; like the probe, it imports nothing of Deltaguard. What it reads goes to the file
`records` of the working folder (see `shared.inspection.probe.answers`), two pages for each collection: the embeddings,
and then their distances from `question`, as vectors of one number.
"""

from __future__ import annotations

import json
import os
import sqlite3
from collections.abc import Callable
from contextlib import closing
from typing import Any, BinaryIO

_PAGE = 100
_APPLIED = """
    SELECT s.collection, m.seq_id FROM max_seq_id AS m JOIN segments AS s ON s.id = m.segment_id
    WHERE s.scope = 'METADATA'
"""
_SHORTEN = """
    DELETE FROM embeddings_queue
    WHERE substr(topic, -36) = ? AND seq_id <= ? AND id NOT IN (SELECT id FROM asked)
"""
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
        asked: A file of JSON, `{collection: [id, ...]}`.
        answer: Where to note how far it came, and what it saw.
        opened: Opens a client on a folder.
        reach: Notes a stage in the answer.

    Raises:
        BaseException: Whatever Chroma raises.
    """
    import chromadb

    answer["chromadb"] = chromadb.__version__
    with open(asked, encoding="utf-8") as file:  # noqa: PTH123 -- as in the probe
        wanted = json.load(file)
    reach(answer, "shortening the queue")
    _shorten_queue(folder, {id_ for ids in wanted.values() for id_ in ids})
    reach(answer, "open")
    client = opened(folder)
    with open("records", "wb") as records:  # noqa: PTH123 -- relative to the working folder
        for name, ids in wanted.items():
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
    """Removes operations on other embeddings from the queue, as far as the rows have them.

    Chroma adds each vector that waits there to an index in memory before it answers. An operation changes nothing but
    the embedding that it names, so the others are given back as they were.
    """
    with closing(sqlite3.connect(os.path.join(folder, "chroma.sqlite3"), isolation_level=None)) as connection:  # noqa: PTH118
        connection.execute("PRAGMA trusted_schema=OFF")
        applied = connection.execute(_APPLIED).fetchall()
        connection.execute("PRAGMA journal_mode=OFF")  # of a copy, which is thrown away
        connection.execute("PRAGMA synchronous=OFF")
        connection.execute("CREATE TEMP TABLE asked (id TEXT PRIMARY KEY)")
        connection.execute("BEGIN")
        connection.executemany("INSERT INTO asked VALUES (?)", ((id_,) for id_ in ids))
        for collection, last in applied:
            number = int.from_bytes(last[:8], "big") if isinstance(last, bytes) else last  # 0.x writes it as bytes
            connection.execute(_SHORTEN, (collection, number))
        connection.execute("COMMIT")
