"""Makes the frozen samples of one version of chromadb: run it with a Python that has that version.

    python3.11 -m venv old
    old/bin/pip install "chromadb==0.5.23" "numpy<2" "setuptools<80"
    PYTHONPATH=. old/bin/python tests/samples/make.py [FOLDER]

It writes `<version>-<name>.tar.xz`, a delta, and `<version>-<name>.json`, what was put into it, to FOLDER (this one
unless told otherwise). Only calls that every version since 0.4 has are made, and every embedding is given, so that no
model is downloaded. Segment ids are random, so two runs never make the same bytes; the samples are made once.
"""

from __future__ import annotations

import base64
import json
import random
import struct
import sys
import tempfile
from pathlib import Path
from typing import Any

import chromadb
from chromadb.api.types import validate_metadata
from chromadb.config import Settings

from devtools.zoo.packing import blank, pack

DIMENSION = 8
WORDS = ("amber", "birch", "cedar", "delta", "ember", "fjörd", "grove", "haven", "inlet", "jetty", "雪", "ledge")
FLUSHED = {"hnsw:sync_threshold": 10, "hnsw:batch_size": 5}


def has_truth_values() -> bool:
    """Whether this version takes them as metadata: 0.4.3 does not yet."""
    try:
        validate_metadata({"truth": True})
    except ValueError:
        return False
    return True


class Writer:
    """One collection, written through Chroma and remembered beside it."""

    def __init__(self, client: Any, name: str, metadata: dict[str, Any] | None = None) -> None:
        self.name = name
        self.space = (metadata or {}).get("hnsw:space", "l2")
        self._rng = random.Random(name)
        self._collection = client.create_collection(name, metadata=metadata, embedding_function=None)
        self.rows: dict[str, dict[str, Any]] = {}

    def _rows(self, numbers: range) -> dict[str, dict[str, Any]]:
        rng = self._rng
        rows = {
            f"{self.name}-{number}": {
                "vector": [struct.unpack("<f", struct.pack("<f", rng.gauss(0, 1)))[0] for _ in range(DIMENSION)],
                "document": " ".join(rng.choices(WORDS, k=6)) + f" number {number}",
                # The same keys in every row: an update merges keys.
                "metadata": {
                    "text": rng.choice(WORDS),
                    "whole": rng.randrange(-(2**31), 2**31),
                    "real": round(rng.uniform(-9, 9), 3),
                    "truth": rng.random() < 0.5,
                },
            }
            for number in numbers
        }
        if not has_truth_values():
            for row in rows.values():
                del row["metadata"]["truth"]
        return rows

    def _send(self, method: Any, numbers: range) -> dict[str, dict[str, Any]]:
        rows = self._rows(numbers)
        values = list(rows.values())
        method(
            ids=list(rows),
            embeddings=[row["vector"] for row in values],
            documents=[row["document"] for row in values],
            metadatas=[row["metadata"] for row in values],
        )
        return rows

    def add(self, numbers: range) -> None:
        self.rows.update(self._send(self._collection.add, numbers))

    def update(self, numbers: range) -> None:
        rows = self._send(self._collection.update, numbers)
        self.rows.update({id_: row for id_, row in rows.items() if id_ in self.rows})

    def upsert(self, numbers: range) -> None:
        self.rows.update(self._send(self._collection.upsert, numbers))

    def delete(self, numbers: range) -> None:
        ids = [f"{self.name}-{number}" for number in numbers]
        self._collection.delete(ids=ids)
        for id_ in ids:
            del self.rows[id_]

    def content(self) -> dict[str, Any]:
        ids = sorted(self.rows)
        vectors = b"".join(struct.pack(f"<{DIMENSION}f", *self.rows[id_]["vector"]) for id_ in ids)
        return {
            "name": self.name,
            "space": self.space,
            "dimension": DIMENSION if ids else None,
            "ids": ids,
            "vectors": base64.b64encode(vectors).decode(),
            "documents": [self.rows[id_]["document"] for id_ in ids],
            "metadatas": [self.rows[id_]["metadata"] for id_ in ids],
        }


def changed(writer: Writer) -> Writer:
    """Flushes several times on the way, ends with operations of every kind in the queue."""
    for start in range(0, 30, 5):
        writer.add(range(start, start + 5))
    writer.update(range(2, 6))
    writer.delete(range(10, 14))
    writer.upsert(range(28, 33))
    writer.add(range(40, 42))
    writer.update(range(1))
    writer.delete(range(41, 42))
    return writer


def queued(client: Any) -> list[Writer]:
    """The normal case: all vectors wait in the queue."""
    writer = Writer(client, "words")
    writer.add(range(20))
    return [writer]


def flushed(client: Any) -> list[Writer]:
    """Vectors in an index, later operations in the queue."""
    return [changed(Writer(client, "words", FLUSHED))]


def cosine(client: Any) -> list[Writer]:
    """Unit vectors and their lengths apart, flushed and not."""
    queue = Writer(client, "queued", {"hnsw:space": "cosine"})
    queue.add(range(20))
    return [changed(Writer(client, "flushed", {**FLUSHED, "hnsw:space": "cosine"})), queue]


def deleted(client: Any) -> list[Writer]:
    """Three collections, of which one was deleted after a flush: its index folder, sometimes its rows, stay behind."""
    first, doomed, last = (Writer(client, name, FLUSHED) for name in ("first", "doomed", "last"))
    for start in range(0, 20, 5):
        for writer in (first, doomed, last):
            writer.add(range(start, start + 5))
    client.delete_collection("doomed")
    last.delete(range(3, 6))
    return [first, last]


def empty(client: Any) -> list[Writer]:
    """A collection that never held anything, and one that was emptied."""
    emptied = Writer(client, "emptied")
    emptied.add(range(20))
    emptied.delete(range(20))
    return [Writer(client, "empty"), emptied]


def make(folder: Path, version: str) -> None:
    for write in (queued, flushed, cosine, deleted, empty):
        with tempfile.TemporaryDirectory() as scratch:
            client = chromadb.PersistentClient(scratch, settings=Settings(anonymized_telemetry=False))
            writers = write(client)
            close = getattr(client, "close", None) or client._system.stop
            close()
            blank(Path(scratch))
            pack(Path(scratch), folder / f"{version}-{write.__name__}.tar.xz")
        content = {
            "chromadb": version,
            "collections": sorted((writer.content() for writer in writers), key=lambda content: content["name"]),
        }
        text = json.dumps(content, ensure_ascii=False, separators=(",", ":"))
        (folder / f"{version}-{write.__name__}.json").write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    make(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent, chromadb.__version__)
