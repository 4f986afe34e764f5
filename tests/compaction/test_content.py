"""Any chunk: what comes out is what plain Chroma says that upserts of its deltas, in order, come to."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import chromadb
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from compaction.chunk import process
from compaction.compatibility import Settlement
from compaction.errors import MergeFailed
from compaction.writer import CollectionPlan, opened_target
from devtools.damage.deltas import DeltaRecipe, _client, build_delta
from shared.inspection.chroma.contents import opened_delta
from tests.compaction.conftest import Deltas, Rows, upserted
from tests.support import sweep

_DIMENSION = 3
_texts = st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=12)
_values = st.one_of(
    _texts,
    st.integers(-(2**62), 2**62),
    st.booleans(),
    st.floats(allow_nan=False, allow_infinity=False, allow_subnormal=False),
)
_metadatas = st.none() | st.dictionaries(st.sampled_from(["a", "b", "c"]), _values, min_size=1)
_vectors = st.lists(st.floats(-1e6, 1e6, width=32), min_size=_DIMENSION, max_size=_DIMENSION)
_rows = st.tuples(_vectors, st.none() | _texts, _metadatas)
_deltas = st.dictionaries(st.sampled_from([f"id-{i}" for i in range(6)]), _rows, min_size=1)
_chunks = st.lists(_deltas, min_size=1, max_size=3)


@pytest.mark.slow
@pytest.mark.parametrize("indexed", [False, True])
@settings(max_examples=sweep.few(8, 25), deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(chunk=_chunks)
def test_any_chunk_comes_out_as_its_deltas_in_order(indexed: bool, chunk: list[dict[str, Any]]) -> None:
    with tempfile.TemporaryDirectory() as scratch:
        folders = [Path(scratch) / f"delta-{number}" for number in range(len(chunk))]
        contents = [{"words": _written(folder, delta)} for folder, delta in zip(folders, chunk, strict=True)]
        _merged(folders, Path(scratch) / "merged", indexed=indexed)
        assert _read(Path(scratch) / "merged") == upserted(contents)["words"]


@pytest.mark.slow
def test_what_lies_in_another_database_is_never_left_behind(put_chunk: Callable[..., Deltas], tmp_path: Path) -> None:
    build_delta(tmp_path / "words", DeltaRecipe(embeddings=5, dimension=4))
    with _client(tmp_path / "words") as client:
        chromadb.AdminClient(client.get_settings()).create_database("other")
        client.set_database("other")
        elsewhere = client.create_collection("more", embedding_function=None)
        elsewhere.add(ids=["a"], embeddings=[[1.0, 2.0, 3.0, 4.0]])
    with pytest.raises(MergeFailed, match="it holds 1 embeddings of 'more' in another database"):
        process("batch-1", 0, put_chunk([tmp_path / "words"]), {})


@pytest.mark.slow
def test_an_embedding_may_have_a_uri_and_no_metadata(
    put_chunk: Callable[..., Deltas], stored: Callable[[str], Any], tmp_path: Path
) -> None:
    with _client(tmp_path / "delta") as client:
        collection = client.create_collection("words", embedding_function=None)
        collection.add(ids=["a"], embeddings=[[1.0, 2.0]], uris=["s3://some/where"])
    made = process("batch-1", 0, put_chunk([tmp_path / "delta"]), {})["intermediate_key"]
    assert stored(made)["words"]["rows"]["a"] == (np.array([1, 2], np.float32).tobytes(), None, {})


def _written(folder: Path, delta: dict[str, Any]) -> Rows:
    """A delta with these rows, and what Chroma itself reads of it."""
    with _client(folder) as client:
        collection = client.create_collection("words", embedding_function=None)
        for id_, (vector, text, metadata) in delta.items():
            collection.add(
                ids=[id_],
                embeddings=[vector],
                documents=None if text is None else [text],
                metadatas=None if metadata is None else [metadata],
            )
    return _read(folder)


def _merged(folders: list[Path], target: Path, *, indexed: bool) -> None:
    settlement = Settlement()
    for folder in folders:
        with opened_delta(folder) as delta:
            settlement.add(folder.name, delta.collections, ("words",))
    plans = [CollectionPlan(found.name, found.hnsw, {"chunk_index": 0}) for found in settlement.collections]
    with opened_target(target, plans, indexed=indexed) as merged:
        for folder in folders:
            with opened_delta(folder) as delta:
                for records in delta.records("words", 2, as_given=True):
                    merged.upsert("words", records)


def _read(folder: Path) -> Rows:
    with _client(folder) as client:
        found = client.get_collection("words", embedding_function=None).get(
            include=["embeddings", "documents", "metadatas"]
        )
    vectors = [np.asarray(vector, np.float32).tobytes() for vector in found["embeddings"]]
    return dict(zip(found["ids"], zip(vectors, found["documents"], found["metadatas"], strict=True), strict=True))


def test_numbers_that_chroma_misreads_come_out_right(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    numbers = (rng.standard_normal(900) * 10.0 ** rng.integers(-30, 30, 900)).tolist()
    delta = {f"id-{i}": ([0.0, 1.0, float(i)], None, {"a": number}) for i, number in enumerate(numbers)}
    held = _written_at_once(tmp_path / "delta", delta)
    with opened_delta(tmp_path / "delta") as source:
        (records,) = source.records("words")
    with opened_target(tmp_path / "merged", [CollectionPlan("words", {}, {"chunk_index": 0})], indexed=False) as target:
        target.upsert("words", records)
    assert target.misread, "chance gave no such number"
    assert _read(tmp_path / "merged") == held


def _written_at_once(folder: Path, delta: dict[str, Any]) -> Rows:
    with _client(folder) as client:
        vectors, _, metadatas = zip(*delta.values(), strict=True)
        client.create_collection("words", embedding_function=None).add(
            ids=[*delta], embeddings=[*vectors], metadatas=[*metadatas]
        )
    return _read(folder)
