"""What was merged is compared with Chroma's own answer before it is uploaded: a reader made wrong is found out."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from compaction import comparison
from compaction import merge as merge_module
from compaction.chunk import merge_group, process
from compaction.comparison import Choice
from compaction.errors import MergeDiffers, MergeFailed
from compaction.snapshot import final_merge
from devtools.damage.deltas import DeltaRecipe, _client, build_delta
from shared.inspection.chroma import index_settings, sysdb
from shared.inspection.chroma.contents import OpenDelta, Records, StoredCollection
from shared.inspection.chroma.index_settings import IndexSettings
from shared.inspection.probe.sample import read_sample
from shared.model.delta import DATABASE, DeltaLocation
from shared.model.errors import CouldNotCheck
from shared.storage.client import s3_client
from shared.storage.store import Store
from tests.compaction.conftest import Deltas, rows_of, upserted, vectors
from tests.samples import SAMPLES

Objects = Callable[[str], set[str]]
Stored = Callable[[str], dict[str, dict[str, Any]]]


def run(deltas: Deltas) -> dict[str, Any]:
    return process("batch-1", 0, deltas, {"words": deltas})


def other_vector(records: Records) -> Records:
    records.vectors[-1] *= np.float32(1.001)
    return records


def unit_vectors(records: Records) -> Records:
    lengths = np.linalg.norm(records.vectors, axis=1, keepdims=True)
    return replace(records, vectors=(records.vectors / lengths).astype(np.float32))


def other_document(records: Records) -> Records:
    return replace(records, documents=[*records.documents[:-1], "another"])


def no_documents(records: Records) -> Records:
    return replace(records, documents=[None] * len(records.ids))


def other_metadata(records: Records) -> Records:
    return replace(records, metadatas=[*records.metadatas[:-1], {**(records.metadatas[-1] or {}), "number": -1}])


def more_metadata(records: Records) -> Records:
    return replace(records, metadatas=[*records.metadatas[:-1], {**(records.metadatas[-1] or {}), "new": "x"}])


def a_uri(records: Records) -> Records:
    return replace(records, uris=[*records.uris[:-1], "s3://elsewhere"])


def one_less(records: Records) -> Records:
    parts = (records.documents, records.metadatas, records.uris)
    return Records(records.ids[:-1], records.vectors[:-1], *(part[:-1] for part in parts))  # type: ignore[arg-type]


def another_id(records: Records) -> Records:
    return replace(records, ids=[*records.ids[:-1], "unknown"])


FAULTS = {
    other_vector: "another vector", unit_vectors: "another vector", other_document: "another document",
    no_documents: "another document", other_metadata: "another metadata 'number'",
    more_metadata: "another metadata 'new'", a_uri: "another URI", one_less: "counts 12 embeddings",
    another_id: "does not know 1 ids",
}  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.__name__)
def test_a_reader_that_takes_one_value_for_another_merges_nothing(
    fault: Callable[[Records], Records], chunk: Deltas, objects: Objects, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The fault is in what was read of the first delta alone, which also says who is named."""
    original = OpenDelta.records
    before = objects("")

    def records(self: OpenDelta, *arguments: Any, **options: Any) -> Iterator[Records]:
        for page in original(self, *arguments, **options):
            yield fault(page) if len(page.ids) == 12 else page

    monkeypatch.setattr(OpenDelta, "records", records)
    with pytest.raises(MergeDiffers, match=FAULTS[fault]) as refused:
        run(chunk)
    assert refused.value.place.endswith("/words/delta/d0/")
    assert objects("") == before


@pytest.mark.parametrize(("truth", "taken"), [("cosine", "l2"), ("l2", "cosine"), ("ip", "l2"), ("l2", "ip")])
@pytest.mark.parametrize("sync_threshold", [1000, 20])
def test_a_space_taken_for_another_merges_nothing(
    truth: str,
    taken: str,
    sync_threshold: int,
    put_chunk: Callable[..., Deltas],
    objects: Objects,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Where vectors still wait in the queue they are the same in any space: then only distances tell."""
    recipe = DeltaRecipe(embeddings=30, dimension=4, space=truth, sync_threshold=sync_threshold, batch=10)
    build_delta(tmp_path / "delta", recipe)
    chunk = put_chunk([tmp_path / "delta"])

    def hnsw(self: StoredCollection) -> dict[str, Any]:
        return {**self.settings.given, "space": taken}

    monkeypatch.setattr(StoredCollection, "hnsw", property(hnsw))
    with pytest.raises(MergeDiffers, match=r"another distance|another vector"):
        run(chunk)
    assert objects("intermediate/") == set()


def test_deltas_merged_in_another_order_than_was_said_are_refused(
    put_chunk: Callable[..., Deltas], objects: Objects, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both hold the same ids, so the earlier one's values would have won."""
    for number in range(2):
        build_delta(tmp_path / f"d{number}", DeltaRecipe(embeddings=9, dimension=4, seed=1, updates=5 * number))
    chunk = put_chunk([tmp_path / "d0", tmp_path / "d1"])
    written = merge_module._written

    def backwards(plan: Any, *rest: Any) -> Choice:
        order = tuple(reversed([source.location for source in plan.sources]))
        return written(replace(plan, orders={"words": order}), *rest)

    monkeypatch.setattr(merge_module, "_written", backwards)
    with pytest.raises(MergeDiffers, match="than was merged"):
        run(chunk)
    assert objects("intermediate/") == set()


def test_groups_and_snapshots_are_compared_too(
    chunk: Deltas, objects: Objects, monkeypatch: pytest.MonkeyPatch
) -> None:
    key = run(chunk)["intermediate_key"]
    before = objects("")
    original = OpenDelta.records

    def records(self: OpenDelta, *arguments: Any, **options: Any) -> Iterator[Records]:
        yield from map(no_documents, original(self, *arguments, **options))

    monkeypatch.setattr(OpenDelta, "records", records)
    for merged in (lambda: merge_group("batch-1", 0, [key]), lambda: final_merge("batch-1", [key])):
        with pytest.raises(MergeDiffers, match="another document"):
            merged()
    assert objects("") == before


def test_that_chroma_could_not_be_asked_is_the_environments_fault_and_nothing_is_uploaded(
    chunk: Deltas, objects: Objects, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_room(*_: Any) -> None:
        raise CouldNotCheck("check.memory", "no room")

    monkeypatch.setattr(comparison, "read_sample", no_room)
    with pytest.raises(CouldNotCheck, match=r"embeddings of s3://deltas/words/delta/d0/, .*: no room") as fault:
        run(chunk)
    assert fault.value.code == "check.memory"
    assert not isinstance(fault.value, MergeFailed)
    assert objects("intermediate/") == set()


def test_embeddings_with_a_uri_and_no_metadata_are_merged(
    put_chunk: Callable[..., Deltas], bucket: str, tmp_path: Path
) -> None:
    """Chroma gives them back with metadata that are empty, and takes none that are."""
    with _client(tmp_path / "delta") as client:
        collection = client.create_collection("words", embedding_function=None)
        collection.add(ids=["a", "b"], embeddings=[[1, 2], [3, 4]], uris=["s3://one", "s3://two"])
        collection.add(ids=["c"], embeddings=[[5, 6]], metadatas=[{"number": 1}])
    key = run(put_chunk([tmp_path / "delta"]))["intermediate_key"]
    store, location = Store(s3_client()), DeltaLocation(bucket, key)
    for file in store.list_delta(location).files:
        (tmp_path / "merged" / file.name).parent.mkdir(parents=True, exist_ok=True)
        store.download(location, file, tmp_path / "merged" / file.name)
    found = read_sample(tmp_path / "merged", {"words": ["a", "b", "c"]}, 60)["words"].embeddings
    assert {id_: (one.uri, one.metadata) for id_, one in found.items()} == {
        "a": ("s3://one", {}), "b": ("s3://two", {}), "c": (None, {"number": 1})
    }  # fmt: skip


# --- the space of an index of 0.x stands in the metadata of its segment


@pytest.fixture
def modified(tmp_path: Path) -> Path:
    """A cosine collection of 0.4.24 whose own metadata was modified later: `collection.modify(metadata=...)`."""
    (sample,) = (sample for sample in SAMPLES if sample.name == "0.4.24-cosine")
    folder = sample.unpack(tmp_path)
    with closing(sqlite3.connect(folder / DATABASE)) as database, database:
        database.execute("DELETE FROM collection_metadata")
        insert = "INSERT INTO collection_metadata (collection_id, key, str_value) SELECT id, 'source', 'later'"
        database.execute(f"{insert} FROM collections")
    return folder


def test_a_collection_of_0x_whose_metadata_was_modified_is_merged_as_chroma_reads_it(
    modified: Path, put_chunk: Callable[..., Deltas], stored: Stored, tmp_path: Path
) -> None:
    deltas = put_chunk([modified])
    process("batch-1", 0, [{"delta_key": delta["delta_key"]} for delta in deltas], {})
    expected = upserted(rows_of([modified], tmp_path))
    found = stored("intermediate/batch-1/chunk-0/")
    assert found.keys() == expected.keys()
    for name, rows in expected.items():
        assert found[name]["hnsw"]["space"] == "cosine"
        np.testing.assert_allclose(vectors(found[name]["rows"]), vectors(rows), rtol=3e-7)


def test_a_reader_that_never_looks_into_the_metadata_of_the_segment_is_found_out(
    modified: Path, put_chunk: Callable[..., Deltas], objects: Objects, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The mistake that was made: both our verdict and what was merged agreed with each other, and not with Chroma."""
    deltas = put_chunk([modified])

    def blind(schema: str | None, configured: str | None, segment: Any) -> IndexSettings:
        return index_settings.index_settings(schema, configured, {})

    monkeypatch.setattr(sysdb, "index_settings", blind)
    with pytest.raises(MergeDiffers, match="another vector"):
        process("batch-1", 0, [{"delta_key": delta["delta_key"]} for delta in deltas], {})
    assert objects("intermediate/") == set()


# --- which embeddings


def test_the_choice_is_the_same_in_every_run_and_bounded() -> None:
    deltas = [DeltaLocation("bucket", f"words/{number}/") for number in range(3)]

    def chosen(parts: int) -> list[set[str]]:
        choice = Choice(parts)
        for delta in deltas:
            for start in range(0, 900, 250):
                choice.see(delta, "words", [f"{delta.prefix}{number}" for number in range(start, start + 250)])
        assert choice.read == 3000
        return [choice.of_delta(delta, "words") for delta in deltas]

    assert chosen(3) == chosen(3)
    assert [len(ids) for ids in chosen(3)] == [20, 20, 20]
    assert [len(ids) for ids in chosen(100)] == [10, 10, 10]
    assert [len(ids) for ids in chosen(5000)] == [1, 1, 1]
    assert len({id_.rpartition("/")[2] for ids in chosen(3) for id_ in ids}) > 40, "each delta has a chance of its own"
