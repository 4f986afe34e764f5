"""Deltas of every line of Chroma since 0.4 are healthy, and today's Chroma reads from them what was written."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from devtools.damage.deltas import read_delta
from shared.inspection.chroma.contents import opened_delta
from shared.inspection.examination import Examination, examine
from shared.model.findings import Weight
from shared.model.verdict import Depth, Status, status_of
from shared.storage.folder import FolderContent, list_folder
from tests.samples import SAMPLES, Sample
from tests.support.databases import changed
from tests.support.histories import Chroma

VERSIONS = ("0.4.3", "0.4.24", "0.5.23", "0.6.3", "1.0.21", "1.5.9")
NAMES = ("cosine", "deleted", "empty", "flushed", "queued")

every_sample = pytest.mark.parametrize("sample", SAMPLES, ids=lambda sample: sample.name)


def examined(folder: Path, depth: Depth) -> Examination:
    listing = list_folder(folder)
    return examine(listing, FolderContent(folder, listing, 2**31), depth, probe_seconds=60)


def test_there_is_a_sample_of_every_kind_from_every_version() -> None:
    assert {sample.name for sample in SAMPLES} == {f"{version}-{name}" for version in VERSIONS for name in NAMES}


@every_sample
@pytest.mark.parametrize("depth", [*list(Depth)[:3], pytest.param(Depth.OPEN, marks=pytest.mark.slow)])
def test_a_delta_of_any_version_is_healthy_at_every_depth(sample: Sample, depth: Depth, tmp_path: Path) -> None:
    examination = examined(sample.unpack(tmp_path), depth)
    assert [found for found in examination.observed if found.weight is not Weight.NOTE] == []
    assert status_of(examination.observed) is Status.HEALTHY


@every_sample
def test_the_counts_of_any_version_are_what_was_written(sample: Sample, tmp_path: Path) -> None:
    examination = examined(sample.unpack(tmp_path), Depth.STRUCTURE)
    counted = [(count.name, count.count) for count in examination.collections]
    assert counted == [(collection.name, len(collection.ids)) for collection in sample.content.collections]
    dimensions = {count.name: count.dimension for count in examination.collections if count.count}
    assert dimensions == {c.name: c.dimension for c in sample.content.collections if c.ids}


@every_sample
def test_notes_are_made_of_what_a_deletion_left_or_an_upgrade_will_not_find_and_of_nothing_else(
    sample: Sample, tmp_path: Path
) -> None:
    codes = {found.code for found in examined(sample.unpack(tmp_path), Depth.STRUCTURE).observed}
    left = {"layout.segment_unreferenced"} if sample.name.endswith("-deleted") else set()
    unsearchable = {"sqlite.fulltext_outdated"} if sample.name.startswith("0.4.3-") else set()
    assert codes <= left | unsearchable


@pytest.mark.slow
@every_sample
def test_chroma_of_today_reads_exactly_what_any_version_wrote(sample: Sample, tmp_path: Path) -> None:
    read, written = read_delta(sample.unpack(tmp_path)).collections, sample.content.collections
    assert [collection.name for collection in read] == [collection.name for collection in written]
    for got, given in zip(read, written, strict=True):
        assert (got.ids, got.documents, got.metadatas) == (given.ids, given.documents, given.metadatas)
        if got.name in sample.cosine:
            np.testing.assert_allclose(got.vectors, given.vectors, rtol=1e-6)
        else:
            assert got.vectors.tobytes() == given.vectors.tobytes()


@every_sample
def test_a_sample_tells_nothing_of_the_machine_it_was_made_on(sample: Sample, tmp_path: Path) -> None:
    words = [b"/tmp", b"/home", b"/root", b"site-packages", Path(__file__).parents[3].as_posix().encode()]
    for path in sample.unpack(tmp_path).rglob("*"):
        if path.is_file():
            content = path.read_bytes()
            assert [word for word in words if word in content] == [], path


def compare(folder: Path, chroma: Chroma) -> None:
    """Every depth calls it healthy, and its content is read as Chroma gives it back."""
    truth = chroma.read(folder)
    for depth in list(Depth)[:3]:
        examination = examined(folder, depth)
        assert status_of(examination.observed) is Status.HEALTHY, examination.observed
    with opened_delta(folder) as delta:
        assert {collection.name for collection in delta.collections} == truth.keys()
        for collection in delta.collections:
            parts = list(delta.records(collection.name))
            assert [id_ for part in parts for id_ in part.ids] == truth[collection.name]["ids"]
            vectors = truth[collection.name]["embeddings"]
            if len(vectors):
                assert np.concatenate([part.vectors for part in parts]).tobytes() == np.float32(vectors).tobytes()


@pytest.mark.parametrize("name", ["0.4.24-queued", "0.6.3-queued", "1.0.21-queued", "0.5.23-cosine", "0.4.3-flushed"])
def test_a_delta_that_today_s_chroma_went_on_with_is_healthy(name: str, tmp_path: Path, chroma: Chroma) -> None:
    """It writes its index over the files that are there (1,000 or 10,000 slots), and shortens none."""
    sample = next(sample for sample in SAMPLES if sample.name == name)
    folder = sample.unpack(tmp_path)
    history: list[tuple[str, str, dict]] = []
    for collection in sample.content.collections:
        if collection.ids:
            rows = np.random.default_rng(1).normal(size=(1001, collection.dimension)).astype(np.float32)
            ids = [f"later {number}" for number in range(len(rows))]
            history.append((collection.name, "add", {"ids": ids, "embeddings": rows}))
    chroma.write(folder, {}, history)
    assert any(folder.glob("*/index_metadata.pickle"))
    compare(folder, chroma)


@pytest.mark.parametrize("name", ["0.4.24-cosine", "0.5.23-cosine", "0.6.3-cosine", "0.4.24-flushed", "0.6.3-flushed"])
@pytest.mark.parametrize(
    "change", ["DELETE FROM collection_metadata", "UPDATE collection_metadata SET str_value = 'ip'"]
)
def test_the_space_of_an_old_index_is_not_that_of_metadata_that_changed_since(
    name: str, change: str, tmp_path: Path, chroma: Chroma
) -> None:
    """`modify(metadata=...)` of any version changes the collection, and never its segment."""
    sample = next(sample for sample in SAMPLES if sample.name == name)
    compare(changed(sample.unpack(tmp_path), f"{change} WHERE key = 'hnsw:space'"), chroma)
