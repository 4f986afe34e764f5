"""Salvage: whole where the bytes prove everything, refused otherwise, and never a wrong vector."""

from __future__ import annotations

import os
import sqlite3
import struct
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest

from devtools.damage.catalogue import apply_damage
from devtools.damage.deltas import DeltaRecipe, build_delta, read_delta
from shared.check.judgement import judge_folder
from shared.inspection.recovery.evidence import NothingProven, gathered
from shared.model.delta import DATABASE, MANIFEST
from shared.model.errors import CouldNotCheck
from shared.model.settings import Settings
from shared.model.verdict import Depth
from shared.salvage.salvage import Salvage, salvage_folder
from shared.upload import _manifest_of
from tests.samples import SAMPLES, Sample

CopyOf = Callable[[Path], Path]
SETTINGS = Settings(probe_timeout_seconds=300)


def fill_unused(folder: Path, record: Callable[[int], bytes]) -> None:
    """Fills the records behind the last one of each index, which hold whatever was in Chroma's memory.

    Args:
        folder: The delta.
        record: What to write into each, given the size of a record.
    """
    for data in folder.glob("*/data_level0.bin"):
        count, size = struct.unpack_from("<QQ", (data.parent / "header.bin").read_bytes(), 20)
        content = data.read_bytes()
        unused = len(content) // size - count
        assert unused > 0
        data.write_bytes(content[: count * size] + record(size) * unused)


@pytest.fixture(scope="module")
def flushed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """70 embeddings, of which the first 60 are in an index."""
    folder = tmp_path_factory.mktemp("salvage") / "flushed"
    build_delta(folder, DeltaRecipe(embeddings=70, dimension=8, sync_threshold=20, batch=20))
    fill_unused(folder, bytes)
    return folder


@pytest.fixture(scope="module")
def two_flushed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("salvage") / "two"
    build_delta(folder, DeltaRecipe(embeddings=70, dimension=8, sync_threshold=20, batch=20, collections=2))
    fill_unused(folder, bytes)
    return folder


def execute(folder: Path, *statements: str) -> None:
    with closing(sqlite3.connect(folder / DATABASE)) as database, database:
        for statement in statements:
            database.execute(statement)


def salvaged(folder: Path, *, partial: bool = False) -> tuple[Salvage, Path]:
    target = folder.with_name("salvaged")
    return salvage_folder(folder, target, SETTINGS, partial=partial), target


def proven(folder: Path, damaged: frozenset[str] = frozenset()) -> list[tuple[str, int, int, str]]:
    """Name, embeddings proven, ids lost, and why, of each collection."""
    with gathered(folder, damaged) as evidence:
        return [(part.stored.name, part.stored.count, len(part.lost), part.why) for part in evidence]


@pytest.mark.slow
@pytest.mark.parametrize(
    "damage", ["pickle-missing", "header-garbage", "links-truncated", "lengths-missing", "header-cur-count-high"]
)
def test_a_damaged_index_whose_vectors_are_proven_is_salvaged_whole(
    damage: str, copy_of: CopyOf, flushed: Path
) -> None:
    folder = copy_of(flushed)
    apply_damage(damage, folder)
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    salvage, target = salvaged(folder)
    assert (salvage.outcome, salvage.reason) == ("whole", "")
    assert read_delta(target) == read_delta(flushed)
    assert judge_folder(target, Depth.STRUCTURE, SETTINGS).verdict.findings == ()
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before


@pytest.mark.slow
@pytest.mark.parametrize("table", ["embeddings", "embedding_metadata", "segments", "tenants", "migrations"])
def test_a_table_that_the_queue_or_every_delta_holds_can_be_missing(
    table: str, copy_of: CopyOf, healthy_delta: Path
) -> None:
    folder = copy_of(healthy_delta)
    execute(folder, f"DROP TABLE {table}")
    salvage, target = salvaged(folder)
    assert (salvage.outcome, salvage.reason) == ("whole", "")
    assert read_delta(target) == read_delta(healthy_delta)


@pytest.mark.slow
def test_a_cosine_collection_comes_back_as_from_the_delta_it_was_in(tmp_path: Path) -> None:
    build_delta(tmp_path / "delta", DeltaRecipe(embeddings=50, space="cosine"))
    expected = read_delta(tmp_path / "delta")
    execute(tmp_path / "delta", "DELETE FROM embedding_metadata WHERE id = 7")
    salvage, target = salvaged(tmp_path / "delta")
    assert salvage.outcome == "whole"
    assert read_delta(target) == expected


@pytest.mark.slow
def test_what_is_lost_is_refused_and_in_part_written_with_its_ids(copy_of: CopyOf, healthy_delta: Path) -> None:
    folder = copy_of(healthy_delta)
    execute(folder, "DELETE FROM embeddings_queue WHERE seq_id IN (7, 8)")
    refused, target = salvaged(folder)
    assert refused.outcome == "refused"
    assert not target.exists()
    partial, _ = salvaged(folder, partial=True)
    (collection,) = partial.collections
    assert (partial.outcome, collection.count, collection.lost) == ("partial", 48, ("item-0-6", "item-0-7"))
    assert set(read_delta(target).collections[0].ids) == {*read_delta(healthy_delta).collections[0].ids} - {
        *collection.lost
    }


@pytest.mark.slow
def test_settings_metadata_lists_uris_and_numbers_survive(tmp_path: Path) -> None:
    import chromadb

    stored = {"real": 0.1 + 0.2, "tiny": 5e-324, "third": 1 / 3, "whole": 2**62, "truth": True, "list": ["b", "a"]}
    with chromadb.PersistentClient(tmp_path / "delta") as client:
        collection = client.create_collection(
            "named",
            metadata={"owner": "us", "ratio": 0.1, "on": True, "rank": 3},
            configuration={"hnsw": {"space": "ip", "ef_construction": 77, "max_neighbors": 9}},
        )
        collection.add(ids=["z", "a"], embeddings=[[1, 2], [3, 4]], metadatas=[stored, None], uris=["u:z", None])
        expected = collection.get(include=["embeddings", "documents", "metadatas", "uris"])
        settings = collection.configuration_json["hnsw"]
        client.create_collection("empty", embedding_function=None)
    execute(tmp_path / "delta", "DROP TABLE embeddings")
    salvage, target = salvaged(tmp_path / "delta")
    assert (salvage.outcome, salvage.reason) == ("whole", "")
    with chromadb.PersistentClient(target) as client:
        collection = client.get_collection("named", embedding_function=None)
        found = collection.get(include=["embeddings", "documents", "metadatas", "uris"])
        assert collection.configuration_json["hnsw"] == settings
        assert collection.metadata == {"owner": "us", "ratio": 0.1, "on": True, "rank": 3}
        assert client.get_collection("empty").count() == 0
    for field in ("ids", "documents", "metadatas", "uris"):
        assert found[field] == expected[field]
    assert np.array_equal(found["embeddings"], expected["embeddings"])


@pytest.mark.parametrize("sample", SAMPLES, ids=lambda sample: sample.name)
def test_all_of_a_healthy_delta_of_any_version_is_proven(sample: Sample, tmp_path: Path) -> None:
    counts = [(collection.name, len(collection.ids), 0, "") for collection in sample.content.collections]
    assert proven(sample.unpack(tmp_path)) == counts


@pytest.mark.parametrize(
    "damage",
    ["data-neighbour-outside", "data-label-changed", "data-delete-mark", "data-vector-nan", "data-truncated",
     "data-garbage", "data-block-zeroed"],
)  # fmt: skip
def test_a_file_that_holds_vectors_and_is_damaged_proves_none_of_them(
    damage: str, copy_of: CopyOf, flushed: Path
) -> None:
    folder = copy_of(flushed)
    apply_damage(damage, folder)
    ((name, count, lost, why),) = proven(folder)
    assert (name, count, lost) == ("words", 11, 59)  # the queue keeps the last vector that was flushed
    assert "data_level0.bin" in why


def test_a_lost_header_is_not_worked_out_where_unused_records_look_like_used_ones(
    copy_of: CopyOf, flushed: Path
) -> None:
    folder = copy_of(flushed)
    (data,) = folder.glob("*/data_level0.bin")
    fill_unused(folder, lambda size: data.read_bytes()[:size])
    assert proven(folder) == [("words", 70, 0, "")], "with its header, nobody reads them"
    apply_damage("header-missing", folder)
    ((_, count, lost, why),) = proven(folder)
    assert (count, lost) == (11, 59)
    assert "the labels do not tell how many records there are" in why


def test_an_id_map_is_rebuilt_only_where_the_order_of_rows_tells_it(copy_of: CopyOf, flushed: Path) -> None:
    folder = copy_of(flushed)
    apply_damage("pickle-missing", folder)
    assert proven(folder) == [("words", 70, 0, "")]
    with closing(sqlite3.connect(folder / DATABASE)) as database, database:
        database.execute("UPDATE embeddings_queue SET operation = 3, vector = NULL WHERE seq_id = 65")
    ((_, _, _, why),) = proven(folder)
    assert "the order of the rows does not tell the labels" in why


def test_indexes_that_were_swapped_are_told_apart_by_what_the_queue_has_kept(
    copy_of: CopyOf, two_flushed: Path
) -> None:
    folder = copy_of(two_flushed)
    apply_damage("segments-swapped-ids", folder)
    assert proven(folder) == [("words", 70, 0, ""), ("words-1", 70, 0, "")]
    apply_damage("segments-swapped-data", folder)
    assert [(count, why) for _, count, _, why in proven(folder)] == [
        (11, "its index: it holds other vectors than the queue has kept of it")
    ] * 2


def test_an_older_vector_is_never_taken_for_a_newer_one_that_is_lost(tmp_path: Path) -> None:
    import chromadb

    with chromadb.PersistentClient(tmp_path / "delta") as client:
        collection = client.create_collection("words", embedding_function=None)
        collection.add(ids=["a", "b"], embeddings=[[1, 1], [2, 2]])
        collection.update(ids=["a"], embeddings=[[9, 9]])
        collection.update(ids=["a"], metadatas=[{"changed": True}])
    execute(tmp_path / "delta", "DELETE FROM embeddings_queue WHERE seq_id = 3")
    ((_, count, lost, why),) = proven(tmp_path / "delta")
    assert (count, lost, why) == (1, 1, "the queue lacks operations since the flush")


@pytest.mark.parametrize(
    ("statement", "reason"),
    [
        ("UPDATE embeddings_queue SET id = 'other' WHERE seq_id = 5", "differ in 2 ids"),
        ("UPDATE embeddings_queue SET vector = substr(vector, 5) WHERE seq_id = 5", "records.vector_length"),
        ("UPDATE embeddings_queue SET operation = 9 WHERE seq_id = 5", "records.operation_unknown"),
        ("UPDATE embedding_metadata SET string_value = 'x' WHERE key = 'chroma:document'", "documents differ"),
        ("DROP TABLE collection_metadata", "collection_metadata is missing"),
        ("DROP TABLE max_seq_id", "max_seq_id is missing"),
        ("UPDATE collections SET database_id = 'other'", "records.database_missing"),
    ],
)
def test_a_database_whose_values_contradict_each_other_proves_nothing(
    statement: str, reason: str, copy_of: CopyOf, healthy_delta: Path
) -> None:
    folder = copy_of(healthy_delta)
    execute(folder, statement)
    with pytest.raises(NothingProven, match=reason):
        proven(folder)


def test_collections_outside_the_default_database_are_not_moved_into_it(copy_of: CopyOf, healthy_delta: Path) -> None:
    folder = copy_of(healthy_delta)
    execute(
        folder,
        "INSERT INTO databases (id, name, tenant_id) VALUES ('other', 'other', 'default_tenant')",
        "UPDATE collections SET database_id = 'other'",
    )
    with pytest.raises(NothingProven, match="another database than default_database"):
        proven(folder)


def test_metadata_of_rows_and_queue_may_not_differ_when_the_queue_must_prove_them(
    copy_of: CopyOf, healthy_delta: Path
) -> None:
    folder = copy_of(healthy_delta)
    execute(
        folder,
        "DELETE FROM embedding_metadata WHERE id = 9",
        "UPDATE embedding_metadata SET int_value = 77 WHERE id = 3 AND key = 'position'",
    )
    with pytest.raises(NothingProven, match="other metadata than the queue says"):
        proven(folder)


def test_a_healthy_delta_is_left_as_it_is(healthy_delta: Path, tmp_path: Path) -> None:
    assert salvage_folder(healthy_delta, tmp_path / "out", SETTINGS).outcome == "healthy"
    assert not (tmp_path / "out").exists()


def with_journal(folder: Path) -> Path:
    (folder / "chroma.sqlite3-journal").write_bytes(bytes.fromhex("d9d505f920a163d7") + bytes(504))
    return folder


def test_a_journal_without_a_manifest_is_refused(copy_of: CopyOf, healthy_delta: Path) -> None:
    salvage, target = salvaged(with_journal(copy_of(healthy_delta)))
    assert (salvage.outcome, "no manifest proves that it is foreign" in salvage.reason) == ("refused", True)
    assert not target.exists()


@pytest.fixture
def promised(copy_of: CopyOf, healthy_delta: Path) -> Path:
    """A delta with its manifest."""
    folder = copy_of(healthy_delta)
    manifest = _manifest_of(folder, judge_folder(folder, Depth.STRUCTURE, SETTINGS), None)
    (folder / MANIFEST).write_bytes(manifest.as_bytes())
    return folder


@pytest.mark.slow
def test_a_journal_that_the_manifest_proves_foreign_does_not_matter(promised: Path, healthy_delta: Path) -> None:
    salvage, target = salvaged(with_journal(promised))
    assert (salvage.outcome, salvage.reason) == ("whole", "")
    assert read_delta(target) == read_delta(healthy_delta)


def test_a_database_that_the_manifest_contradicts_proves_nothing(promised: Path) -> None:
    execute(promised, "UPDATE embeddings_queue SET vector = zeroblob(length(vector)) WHERE seq_id = 3")
    salvage, _ = salvaged(promised)
    assert (salvage.outcome, "is not the file that the manifest lists" in salvage.reason) == ("refused", True)


def test_nothing_is_left_when_chroma_cannot_write(
    copy_of: CopyOf, flushed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = copy_of(flushed)
    apply_damage("pickle-missing", folder)
    monkeypatch.setattr("shared.salvage.rebuild._PROGRAM", Path(os.devnull))
    with pytest.raises(CouldNotCheck, match="no answer"):
        salvaged(folder)
    assert sorted(path.name for path in folder.parent.iterdir()) == [folder.name]
