"""A bucket for compaction, deltas in it, and a reader of what came out that shares no code with compaction."""

from __future__ import annotations

import base64
import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import boto3
import numpy as np
import pytest
import stamina

from devtools.damage.deltas import DeltaRecipe, build_delta
from shared.inspection.chroma.contents import opened_delta
from shared.upload import upload_delta

Deltas = list[dict[str, Any]]
Rows = dict[str, tuple[bytes, str | None, dict[str, Any] | None]]
"""Vector (float32), document and metadata of each id."""

_READER = """
import base64, json, sys
import numpy as np
import chromadb

def read(folder):
    answer = {}
    with chromadb.PersistentClient(folder, settings=chromadb.config.Settings(anonymized_telemetry=False)) as client:
        for listed in client.list_collections():
            collection = client.get_collection(listed.name, embedding_function=None)
            found = collection.get(include=["embeddings", "documents", "metadatas"])
            vectors = [base64.b64encode(np.asarray(v, np.float32).tobytes()).decode() for v in found["embeddings"]]
            rows = dict(zip(found["ids"], zip(vectors, found["documents"], found["metadatas"])))
            assert collection.count() == len(rows)
            hnsw = collection.configuration["hnsw"]
            answer[listed.name] = {"rows": rows, "metadata": collection.metadata, "hnsw": hnsw}
    return answer

print(json.dumps([read(folder) for folder in sys.argv[1:]]))
"""


@pytest.fixture(autouse=True)
def environment(bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CHROMADB_BUCKET", bucket)
    monkeypatch.setenv("DELTAGUARD_SETTLE_SECONDS", "0")
    monkeypatch.setenv("DELTAGUARD_ARRIVAL_SECONDS", "0")
    stamina.set_testing(True, attempts=3, cap=True)


def read_with_chroma(folders: Sequence[Path]) -> list[dict[str, dict[str, Any]]]:
    """Everything that plain Chroma reads from folders, in a process of its own; they are spoilt by it."""
    command = [sys.executable, "-c", _READER, *map(str, folders)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    answers = json.loads(done.stdout)
    for answer in answers:
        for collection in answer.values():
            rows = collection["rows"].items()
            collection["rows"] = {id_: (base64.b64decode(vector), *rest) for id_, (vector, *rest) in rows}
    return answers


@pytest.fixture
def stored(bucket: str, tmp_path: Path) -> Callable[[str], dict[str, dict[str, Any]]]:
    """What plain Chroma reads of the directory under a key."""

    def read(key: str) -> dict[str, dict[str, Any]]:
        client = boto3.client("s3")
        folder = tmp_path / f"read-{len(list(tmp_path.iterdir()))}"
        for entry in client.list_objects_v2(Bucket=bucket, Prefix=key)["Contents"]:
            path = folder / entry["Key"].removeprefix(key)
            path.parent.mkdir(parents=True, exist_ok=True)
            client.download_file(bucket, entry["Key"], str(path))
        return read_with_chroma([folder])[0]

    return read


@pytest.fixture(scope="session")
def chunk_folders(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Three deltas of one collection; the second has a flushed index, updates and deletes."""
    recipes = [
        DeltaRecipe(embeddings=12, dimension=8, seed=1),
        DeltaRecipe(embeddings=40, dimension=8, seed=2, sync_threshold=20, batch=10, updates=4, deletes=5),
        DeltaRecipe(embeddings=9, dimension=8, seed=3, documents=False),
    ]
    home = tmp_path_factory.mktemp("chunk")
    for number, recipe in enumerate(recipes):
        build_delta(home / f"d{number}", recipe)
    return sorted(home.iterdir())


@pytest.fixture
def put_chunk(bucket: str) -> Callable[..., Deltas]:
    """Uploads folders as producers do, and describes them as a chunk."""

    def put(folders: Sequence[Path], collection: str = "words", prefix: str = "words/delta") -> Deltas:
        deltas = []
        for folder in folders:
            key = f"{prefix}/{folder.name}"
            upload_delta(folder, bucket, key)
            with opened_delta(folder) as delta:
                count = sum(found.count for found in delta.collections if found.name == collection)
            said = {"delta_key": key, "delta_id": folder.name, "embedding_count": count, "collection": collection}
            deltas.append(said)
        return deltas

    return put


@pytest.fixture
def chunk(put_chunk: Callable[..., Deltas], chunk_folders: list[Path]) -> Deltas:
    return put_chunk(chunk_folders)


@pytest.fixture
def objects(bucket: str) -> Callable[[str], set[str]]:
    """The keys below a prefix."""

    def keys(prefix: str) -> set[str]:
        found = boto3.client("s3").list_objects_v2(Bucket=bucket, Prefix=prefix).get("Contents", [])
        return {entry["Key"] for entry in found}

    return keys


def upserted(contents: Sequence[Mapping[str, Rows]]) -> dict[str, Rows]:
    """What upserts in this order come to, by Chroma's rule: a metadata key that the later one lacks is kept."""
    result: dict[str, Rows] = {}
    for content in contents:
        for name, rows in content.items():
            known = result.setdefault(name, {})
            for id_, (vector, text, metadata) in rows.items():
                _, old_text, old_metadata = known.get(id_, (b"", None, None))
                merged = {**(old_metadata or {}), **(metadata or {})} or None
                known[id_] = (vector, text if text is not None else old_text, merged)
    return result


def rows_of(folders: Sequence[Path], tmp_path: Path) -> list[dict[str, Rows]]:
    """What plain Chroma reads of local deltas, from copies."""
    start = len(list(tmp_path.iterdir()))
    copies = [Path(shutil.copytree(f, tmp_path / f"rows-{start + number}")) for number, f in enumerate(folders)]
    return [{name: found["rows"] for name, found in answer.items()} for answer in read_with_chroma(copies)]


def vectors(rows: Rows) -> np.ndarray:
    """The vectors of rows, in the order of their ids."""
    return np.stack([np.frombuffer(rows[id_][0], np.float32) for id_ in sorted(rows)])
