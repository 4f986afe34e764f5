"""Deltas made by the real Chroma: what goes in comes out, the same each time, and a torn copy is torn."""

from __future__ import annotations

import os
import sqlite3
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest

from devtools.damage.deltas import DeltaRecipe, build_delta, copy_while_writing, read_delta, writing_client
from shared.model.delta import DATABASE, JOURNALS, SEGMENT_FILES


@pytest.mark.parametrize("embeddings", [0, 1, 50, 500, pytest.param(2_500, marks=pytest.mark.slow)])
def test_chroma_gives_back_what_was_built(tmp_path: Path, embeddings: int) -> None:
    built = build_delta(tmp_path / "delta", DeltaRecipe(embeddings=embeddings))
    assert built.count == embeddings
    assert read_delta(tmp_path / "delta") == built


@pytest.mark.parametrize(
    "recipe",
    [
        DeltaRecipe(collections=0),
        DeltaRecipe(collections=3, collection_name="birds"),
        DeltaRecipe(updates=20, deletes=15),
        DeltaRecipe(deletes=50),
        DeltaRecipe(documents=False, updates=5, deletes=5),
        DeltaRecipe(space="ip", sync_threshold=20),
        DeltaRecipe(embeddings=90, collections=2, updates=20, deletes=20, sync_threshold=20, batch=20),
    ],
)
def test_every_recipe_is_stored_in_full(tmp_path: Path, recipe: DeltaRecipe) -> None:
    built = build_delta(tmp_path / "delta", recipe)
    assert built.count == recipe.collections * (recipe.embeddings - recipe.deletes)
    assert read_delta(tmp_path / "delta") == built


@pytest.mark.parametrize("sync_threshold", [None, 20])
def test_cosine_vectors_come_back_to_the_last_place(tmp_path: Path, sync_threshold: int | None) -> None:
    recipe = DeltaRecipe(embeddings=70, space="cosine", sync_threshold=sync_threshold)
    (built,) = build_delta(tmp_path / "delta", recipe).collections
    (read,) = read_delta(tmp_path / "delta").collections
    assert read.ids == built.ids
    np.testing.assert_allclose(read.vectors, built.vectors, rtol=5e-7)


def test_content_follows_from_the_seed(tmp_path: Path) -> None:
    first, again, other = (
        build_delta(tmp_path / str(number), DeltaRecipe(updates=5, deletes=5, seed=seed))
        for number, seed in enumerate([1, 1, 2])
    )
    assert first == again
    assert first != other


def test_a_few_embeddings_stay_in_the_queue_and_a_threshold_flushes_them(tmp_path: Path) -> None:
    build_delta(tmp_path / "queued", DeltaRecipe(embeddings=40))
    build_delta(tmp_path / "flushed", DeltaRecipe(embeddings=70, sync_threshold=20, batch=20))
    queued, flushed = ({path.name for path in (tmp_path / name).glob("*/*")} for name in ("queued", "flushed"))
    assert flushed == set(SEGMENT_FILES)
    assert queued == flushed - {"index_metadata.pickle"}
    with closing(sqlite3.connect(tmp_path / "flushed" / DATABASE)) as database:
        assert database.execute("SELECT min(seq_id), max(seq_id) FROM embeddings_queue").fetchone() == (60, 70)


def test_reading_leaves_the_delta_as_it_was(tmp_path: Path) -> None:
    build_delta(tmp_path / "delta")
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    read_delta(tmp_path / "delta")
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


def test_a_delta_is_never_built_over_another(tmp_path: Path) -> None:
    build_delta(tmp_path, DeltaRecipe(embeddings=1))
    with pytest.raises(FileExistsError, match="a delta is there already"):
        build_delta(tmp_path, DeltaRecipe(embeddings=1))


def test_updates_and_deletes_never_meet(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="30 updates and 30 deletes"):
        DeltaRecipe(embeddings=50, updates=30, deletes=30)


def test_a_copy_during_a_write_has_a_journal(tmp_path: Path) -> None:
    copy_while_writing(tmp_path / "torn")
    assert (tmp_path / "torn" / DATABASE).stat().st_size > 0
    assert any((tmp_path / "torn" / JOURNALS[0]).read_bytes())


def test_the_writer_ends_with_its_block_even_on_an_error(tmp_path: Path) -> None:
    with pytest.raises(KeyError), writing_client(tmp_path / "delta") as writer:
        assert writer.poll() is None
        raise KeyError
    with pytest.raises(ProcessLookupError):
        os.kill(writer.pid, 0)
