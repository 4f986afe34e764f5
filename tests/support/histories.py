"""Any history of operations on a delta, done and read back by real Chroma in a child process."""

from __future__ import annotations

import base64
import pickle
import subprocess
from pathlib import Path
from typing import Any

from hypothesis import strategies as st

# A program that knows nothing of Deltaguard: each line it reads is a task, each line it writes an answer.
PROGRAM = """
import base64, json, pickle, shutil, sys, tempfile
from pathlib import Path
import chromadb
from chromadb.config import Settings

def client(folder):
    return chromadb.PersistentClient(folder, settings=Settings(anonymized_telemetry=False))

def write(folder, collections, history):
    with client(folder) as writer:
        if collections:
            for name, hnsw in collections.items():
                writer.create_collection(name, embedding_function=None, configuration={"hnsw": hnsw})
        opened = {listed.name: writer.get_collection(listed.name, embedding_function=None)
                  for listed in writer.list_collections()}
        for name, operation, rows in history:
            getattr(opened[name], operation)(**rows)

def read(folder):
    answer = {}
    with tempfile.TemporaryDirectory() as scratch:
        with client(shutil.copytree(folder, Path(scratch) / "copy")) as reader:
            for listed in reader.list_collections():
                collection = reader.get_collection(listed.name, embedding_function=None)
                found = collection.get(include=["embeddings", "documents", "metadatas", "uris"])
                answer[listed.name] = {"count": collection.count(), "metadata": collection.metadata, **found}
    return answer

for line in sys.stdin:
    task, arguments = pickle.loads(base64.b64decode(line))
    answer = {"write": write, "read": read}[task](*arguments)
    sys.stdout.write(base64.b64encode(pickle.dumps(answer)).decode() + "\\n")
    sys.stdout.flush()
"""


class Chroma:
    """Real Chroma in a child process."""

    def __init__(self, child: subprocess.Popen[str]) -> None:
        self._child = child

    def _do(self, task: str, *arguments: object) -> Any:
        self._child.stdin.write(base64.b64encode(pickle.dumps((task, arguments))).decode() + "\n")
        self._child.stdin.flush()
        return pickle.loads(base64.b64decode(self._child.stdout.readline()))

    def write(self, folder: Path, collections: dict[str, dict], history: list[tuple[str, str, dict]]) -> None:
        """Makes these collections, then does these operations."""
        self._do("write", str(folder), collections, history)

    def read(self, folder: Path) -> dict[str, Any]:
        """What it returns from a copy of the delta, by collection."""
        return self._do("read", str(folder))


_numbers = st.floats(width=32, allow_nan=False, allow_infinity=False)
_values = st.one_of(
    st.text(max_size=5).filter(lambda text: "\0" not in text),
    st.integers(-(2**63), 2**63 - 1),
    st.floats(allow_nan=False, allow_infinity=False),
    st.booleans(),
    st.lists(st.sampled_from(["p", "q", "p", "雪"]), min_size=1, max_size=4),
    st.lists(st.integers(-9, 9), min_size=1, max_size=4),
    st.lists(st.booleans(), min_size=1, max_size=3),
    st.lists(st.floats(-9, 9), min_size=1, max_size=3),
)
_keys = st.sampled_from(["a", "b", "chroma:other", "é"])


@st.composite
def histories(draw: st.DrawFn, dimension: int) -> list[tuple[str, str, dict]]:
    """Operations of every kind on few ids, so that they meet each other."""
    history = []
    for _ in range(draw(st.integers(1, 12))):
        name = draw(st.sampled_from(["one", "two"]))
        operation = draw(st.sampled_from(["add", "add", "upsert", "update", "delete"]))
        ids = draw(st.lists(st.sampled_from("abcdef"), min_size=1, max_size=4, unique=True))
        rows: dict[str, Any] = {"ids": ids}
        if operation != "delete":
            size = len(ids)
            vectors = st.lists(_numbers, min_size=dimension, max_size=dimension)
            documents = draw(
                st.none() | st.lists(st.none() | st.text("xyz ", max_size=6), min_size=size, max_size=size)
            )
            if documents and any(text is not None for text in documents):
                rows["documents"] = documents
            values = _values | st.none() if operation != "add" else _values
            metadatas = st.none() | st.dictionaries(_keys, values, min_size=1, max_size=3)
            rows["metadatas"] = draw(st.lists(metadatas, min_size=size, max_size=size))
            if not any(rows["metadatas"]):
                del rows["metadatas"]
            if draw(st.booleans()):
                rows["uris"] = draw(st.lists(st.none() | st.just("u:1"), min_size=size, max_size=size))
            if operation != "update" or "documents" in rows or draw(st.booleans()):
                rows["embeddings"] = draw(st.lists(vectors, min_size=size, max_size=size))
        history.append((name, operation, rows))
    return history


spaces = st.fixed_dictionaries(
    {"space": st.sampled_from(["l2", "cosine", "ip"])},
    optional={"sync_threshold": st.integers(3, 9), "batch_size": st.just(3)},
).filter(lambda chosen: ("sync_threshold" in chosen) == ("batch_size" in chosen))
"""Settings of an index, which is flushed early or never."""
