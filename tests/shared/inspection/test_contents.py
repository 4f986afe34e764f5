"""What the reader returns is what Chroma returns: asked of real Chroma in a child process, for every kind of delta."""

from __future__ import annotations

import base64
import json
import pickle
import shutil
import sqlite3
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from shared.delta import DATABASE
from shared.inspection.contents import opened_delta
from tests.samples import SAMPLES, Sample

# A child that knows nothing of Deltaguard: each line it reads is a task, each line it writes an answer.
_CHROMA = """
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


@pytest.fixture(scope="module")
def chroma() -> Iterator[Chroma]:
    command = [sys.executable, "-c", _CHROMA]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as child:
        yield Chroma(child)
        child.stdin.close()


def differences(folder: Path, answer: dict[str, Any]) -> list[str]:
    found = []
    with opened_delta(folder) as delta:
        if {c.name for c in delta.collections} != set(answer):
            found.append(f"collections {[c.name for c in delta.collections]} instead of {sorted(answer)}")
        for collection in delta.collections:
            expected = answer[collection.name]
            if collection.count != expected["count"] or collection.metadata != expected["metadata"]:
                found.append(f"{collection} instead of {expected['count']}, {expected['metadata']}")
            parts = list(delta.records(collection.name, most=7))
            for field in ("ids", "documents", "metadatas", "uris"):
                read = [value for part in parts for value in getattr(part, field)]
                if json.dumps(read, sort_keys=True) != json.dumps(expected[field], sort_keys=True):
                    found.append(f"{field} of {collection.name}: {read} instead of {expected[field]}")
            vectors = [part.vectors for part in parts]
            stored = np.asarray(expected["embeddings"], np.float32)
            if stored.size and np.concatenate(vectors).tobytes() != stored.tobytes():
                places = np.flatnonzero((np.concatenate(vectors) != stored).any(axis=1))
                found.append(f"vectors of {collection.name}: rows {places} differ")
    return found


@pytest.mark.slow
@pytest.mark.parametrize("sample", SAMPLES, ids=lambda sample: sample.name)
def test_samples_of_every_version_read_as_chroma_reads_them(sample: Sample, tmp_path: Path, chroma: Chroma) -> None:
    folder = sample.unpack(tmp_path)
    assert differences(folder, chroma.read(folder)) == []


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


@pytest.mark.slow
@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_any_history_reads_as_chroma_reads_it(data: st.DataObject, chroma: Chroma) -> None:
    dimension = data.draw(st.integers(1, 9))
    hnsw = st.fixed_dictionaries(
        {"space": st.sampled_from(["l2", "cosine", "ip"])},
        optional={"sync_threshold": st.integers(3, 9), "batch_size": st.just(3)},
    ).filter(lambda chosen: ("sync_threshold" in chosen) == ("batch_size" in chosen))
    collections = {"one": data.draw(hnsw), "two": data.draw(hnsw)}
    history = data.draw(histories(dimension))
    with tempfile.TemporaryDirectory() as scratch:
        chroma.write(Path(scratch), collections, history)
        assert differences(Path(scratch), chroma.read(Path(scratch))) == []


@pytest.mark.slow
@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_operations_that_the_rows_have_not_taken_up_yet_count(data: st.DataObject, chroma: Chroma) -> None:
    collections = {"one": {"space": "l2"}, "two": {"space": "cosine"}}
    first, later = data.draw(histories(3)), data.draw(histories(3))
    with tempfile.TemporaryDirectory() as scratch:
        early, late = Path(scratch) / "early", Path(scratch) / "late"
        chroma.write(early, collections, first)
        shutil.copytree(early, late)
        chroma.write(late, {}, later)
        with closing(sqlite3.connect(early / DATABASE)) as database, database:
            database.execute("ATTACH ? AS late", (str(late / DATABASE),))
            database.execute(
                """INSERT INTO embeddings_queue SELECT * FROM late.embeddings_queue
                   WHERE seq_id > (SELECT coalesce(max(seq_id), 0) FROM embeddings_queue)"""
            )
            database.execute("UPDATE collections SET dimension = 3")
        assert differences(early, chroma.read(early)) == []
