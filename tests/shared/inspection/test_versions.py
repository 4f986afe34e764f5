"""Deltas of every line of Chroma since 0.4 are healthy, and today's Chroma reads from them what was written."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from local.deltas import read_delta
from shared.findings import Weight
from shared.folder import FolderContent, list_folder
from shared.inspection import Examination, examine
from shared.verdict import Depth, Status, status_of
from tests.samples import SAMPLES, Sample

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
def test_notes_are_made_of_nothing_but_what_a_deleted_collection_left(sample: Sample, tmp_path: Path) -> None:
    codes = {found.code for found in examined(sample.unpack(tmp_path), Depth.STRUCTURE).observed}
    assert codes <= ({"layout.segment_unreferenced"} if sample.name.endswith("-deleted") else set())


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
