"""A sample that Chroma gives back of a delta: the same as all of it, whatever waits in the queue beside."""

from __future__ import annotations

import shutil
import sqlite3
import tempfile
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from devtools.damage.catalogue import apply_damage
from devtools.damage.deltas import DeltaRecipe, _client, build_delta
from shared.inspection.probe.sample import ChromaRefused, Sample, read_sample
from shared.inspection.probe.sample_program import question
from shared.model.delta import DATABASE
from shared.model.errors import CouldNotCheck
from tests.samples import SAMPLES
from tests.samples import Sample as Frozen
from tests.support.histories import Chroma, histories, spaces

SECONDS = 60.0


def rows(sample: Sample) -> dict[str, Any]:
    found = sample.embeddings.items()
    return {id_: (one.vector.tobytes(), one.document, dict(one.metadata), one.uri) for id_, one in found}


def whole(told: dict[str, Any]) -> dict[str, Any]:
    """What Chroma gives back of a collection when it is asked for everything, in the same form."""
    columns = [told[key] for key in ("embeddings", "documents", "metadatas", "uris")]
    return {
        id_: (np.asarray(vector, np.float32).tobytes(), text, metadata or {}, uri)
        for id_, vector, text, metadata, uri in zip(told["ids"], *columns, strict=True)
    }


def require_same(folder: Path, chroma: Chroma, step: int) -> None:
    """Asks for each `step`th embedding, and for some that are not there."""
    told = chroma.read(folder)
    asked = {name: [*collection["ids"][::step], "not there"] for name, collection in told.items()}
    found = read_sample(folder, asked, SECONDS)
    assert {name: sample.count for name, sample in found.items()} == {name: c["count"] for name, c in told.items()}
    for name, sample in found.items():
        every = whole(told[name])
        assert rows(sample) == {id_: every[id_] for id_ in asked[name] if id_ != "not there"}


@pytest.mark.slow
@pytest.mark.parametrize("frozen", SAMPLES, ids=lambda frozen: frozen.name)
def test_deltas_of_every_version_give_the_same_back_as_when_all_is_asked_for(
    frozen: Frozen, tmp_path: Path, chroma: Chroma
) -> None:
    require_same(frozen.unpack(tmp_path), chroma, 3)


@pytest.mark.slow
@settings(max_examples=10, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_what_waits_for_the_rows_stays_in_the_queue(data: st.DataObject, chroma: Chroma) -> None:
    """Of a delta whose writer was killed before the rows had taken up the last operations, Chroma counts them, too."""
    collections = {"one": data.draw(spaces), "two": data.draw(spaces)}
    with tempfile.TemporaryDirectory() as scratch:
        early, late = Path(scratch) / "early", Path(scratch) / "late"
        chroma.write(early, collections, data.draw(histories(3)))
        shutil.copytree(early, late)
        chroma.write(late, {}, data.draw(histories(3)))
        with closing(sqlite3.connect(early / DATABASE)) as database, database:
            database.execute("ATTACH ? AS late", (str(late / DATABASE),))
            database.execute(
                """INSERT INTO embeddings_queue SELECT * FROM late.embeddings_queue
                   WHERE seq_id > (SELECT coalesce(max(seq_id), 0) FROM embeddings_queue)"""
            )
            database.execute("UPDATE collections SET dimension = 3")
        require_same(early, chroma, 2)


@pytest.mark.parametrize("sync_threshold", [1000, 10])
def test_distances_are_those_of_the_index(sync_threshold: int, tmp_path: Path) -> None:
    vectors = np.random.default_rng(1).standard_normal((25, 3)).astype(np.float32) * 3
    ids = [str(number) for number in range(25)]
    asked = question(3).astype(np.float64)
    lengths = np.linalg.norm(vectors, axis=1) * np.linalg.norm(asked)
    expected = {
        "l2": np.square(vectors - asked).sum(axis=1),
        "ip": 1 - vectors @ asked,
        "cosine": 1 - vectors @ asked / lengths,
    }
    with _client(tmp_path / "delta") as client:
        for space in expected:
            hnsw: Any = {"space": space, "sync_threshold": sync_threshold, "batch_size": 5}
            collection = client.create_collection(space + "-index", configuration={"hnsw": hnsw})
            collection.add(ids=ids, embeddings=vectors)
    found = read_sample(tmp_path / "delta", {space + "-index": ids for space in expected}, SECONDS)
    for space, distances in expected.items():
        given_ = [found[space + "-index"].embeddings[id_].distance for id_ in ids]
        np.testing.assert_allclose(np.array(given_, float), distances, rtol=1e-4, atol=1e-4)


def test_a_delta_that_chroma_cannot_read_is_no_fault_of_the_environment(tmp_path: Path) -> None:
    build_delta(tmp_path / "delta", DeltaRecipe(embeddings=12, dimension=4))
    apply_damage("sqlite-truncated", tmp_path / "delta", 1)
    before = {path.name: path.read_bytes() for path in (tmp_path / "delta").iterdir() if path.is_file()}
    with pytest.raises(ChromaRefused, match=r"Chroma .* at "):
        read_sample(tmp_path / "delta", {"words": ["item-0"]}, SECONDS)
    assert {path.name: path.read_bytes() for path in (tmp_path / "delta").iterdir() if path.is_file()} == before


def test_what_takes_too_long_could_not_be_asked(tmp_path: Path) -> None:
    build_delta(tmp_path / "delta", DeltaRecipe(embeddings=12, dimension=4))
    with pytest.raises(CouldNotCheck) as fault:
        read_sample(tmp_path / "delta", {"words": ["item-0"]}, 0.0)
    assert fault.value.code == "check.timeout"
