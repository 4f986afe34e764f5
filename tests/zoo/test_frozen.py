"""Directories that real clients of 14 releases wrote, frozen: they are judged, read, merged, uploaded and salvaged as
Chroma's own answer says.

Everything is judged up to `structure`; what takes longer is done with a sample, with `DELTAGUARD_ZOO_SAMPLE=500` with
all of them.
"""

from __future__ import annotations

import os
import random
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import boto3
import pytest

from compaction.chunk import process
from compaction.failure import MergeFailed
from devtools.zoo.frozen import Frozen, all_frozen, releases
from devtools.zoo.history import DEFAULT
from devtools.zoo.kinds import KINDS
from devtools.zoo.opinion import answers_difference, content_difference
from devtools.zoo.outcomes import judged, settled
from devtools.zoo.releases import RELEASES
from devtools.zoo.specimens import Specimen
from devtools.zoo.truth import Reader
from shared.delta import DATABASE, DeltaLocation
from shared.judgement import judge_stored
from shared.salvage import salvage_folder
from shared.settings import Settings
from shared.storage import Store
from shared.upload import upload_delta
from shared.verdict import Depth, Status

pytestmark = pytest.mark.slow

FROZEN = all_frozen()
SETTINGS = Settings(settle_seconds=0, arrival_seconds=0, probe_timeout_seconds=900)


def sample(purpose: str, most: int) -> list[Frozen]:
    """Some of them, always the same."""
    most = min(int(os.environ.get("DELTAGUARD_ZOO_SAMPLE", most)), len(FROZEN))
    chosen = random.Random(purpose).sample(FROZEN, most)
    return sorted(chosen, key=lambda one: one.name)


def each(frozen: list[Frozen]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("frozen", frozen, ids=lambda one: one.name)


@pytest.fixture(scope="module")
def reader() -> Iterator[Reader]:
    started = Reader()
    yield started
    started.close()


@pytest.fixture
def specimen(frozen: Frozen, tmp_path: Path) -> Specimen:
    """The directory, as Chroma leaves it where a killed writer's journal lies in it; skips what Chroma cannot read."""
    made = frozen.thaw(tmp_path / "frozen")
    if made.truth.outcome == "fails":
        pytest.skip("Chroma cannot read it")
    return made


def folder_of(specimen: Specimen, tmp_path: Path) -> Path:
    if judged(specimen, [Depth.LISTING]).unsettled:
        return settled(specimen.folder, tmp_path / "settled")
    return specimen.folder


def download(bucket: str, prefix: str, folder: Path) -> Path:
    client = boto3.client("s3")
    for entry in client.list_objects_v2(Bucket=bucket, Prefix=prefix)["Contents"]:
        path = folder / entry["Key"].removeprefix(prefix)
        path.parent.mkdir(parents=True, exist_ok=True)
        client.download_file(bucket, entry["Key"], str(path))
    return folder


def of_default_database(answer: dict[str, Any]) -> dict[str, Any]:
    return {"collections": [part for part in answer["collections"] if tuple(part["at"]) == DEFAULT]}


def test_every_kind_and_every_release_is_among_them(tmp_path: Path) -> None:
    written_by: set[str] = set()
    for frozen in FROZEN:
        with frozen.thawed() as made:
            written_by |= releases(made.history)
    assert {frozen.kind for frozen in FROZEN} == {kind.name for kind in KINDS}
    assert written_by >= {*RELEASES}


@each(FROZEN)
def test_what_chroma_gives_back_is_healthy_and_read_value_by_value(frozen: Frozen, tmp_path: Path) -> None:
    outcome = judged(frozen.thaw(tmp_path), [Depth.LISTING, Depth.HEADER, Depth.STRUCTURE])
    assert not outcome.disagreement, (outcome.why, outcome.opinion)


@each(sample("open", 14))
def test_chroma_finds_nothing_wrong_with_it_at_depth_open(frozen: Frozen, tmp_path: Path) -> None:
    outcome = judged(frozen.thaw(tmp_path), [Depth.OPEN])
    assert not outcome.disagreement, (outcome.why, outcome.opinion)


@each(sample("upload", 10))
def test_what_is_uploaded_comes_back(
    frozen: Frozen, specimen: Specimen, bucket: str, store: Store, tmp_path: Path
) -> None:
    key = upload_delta(folder_of(specimen, tmp_path), bucket, "words/one", store=store, settings=SETTINGS)
    verdict = judge_stored(store, DeltaLocation(bucket, key), Depth.STRUCTURE, SETTINGS).verdict
    assert verdict.status is Status.HEALTHY
    assert content_difference(download(bucket, key, tmp_path / "down"), specimen.truth.answer) == ""


@each(sample("merge", 14))
def test_what_is_merged_is_what_chroma_gave_back(
    frozen: Frozen,
    specimen: Specimen,
    bucket: str,
    store: Store,
    reader: Reader,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("CHROMADB_BUCKET", bucket)
    key = upload_delta(folder_of(specimen, tmp_path), bucket, "words/one", store=store, settings=SETTINGS)
    wanted = of_default_database(specimen.truth.answer)
    chunk = [{"delta_key": key, "delta_id": "one"}]
    if any(part["count"] for part in specimen.truth.answer["collections"] if tuple(part["at"]) != DEFAULT):
        with pytest.raises(MergeFailed, match="in another database"):
            process("batch-1", 0, chunk, {}, store=store, settings=SETTINGS)
        return
    made = process("batch-1", 0, chunk, {}, store=store, settings=SETTINGS)["intermediate_key"]
    merged = reader.ask(download(bucket, made, tmp_path / "merged"))
    assert "error" not in merged
    assert answers_difference(merged, wanted) == ""


@each(sample("salvage", 14))
def test_what_loses_its_texts_and_headers_is_salvaged_whole(
    frozen: Frozen, specimen: Specimen, reader: Reader, tmp_path: Path
) -> None:
    folder = folder_of(specimen, tmp_path)
    _break(folder)
    salvage = salvage_folder(folder, tmp_path / "salvaged", SETTINGS)
    if salvage.outcome == "healthy":
        pytest.skip("there was nothing to break")
    assert salvage.outcome == "whole", salvage.reason
    salvaged = reader.ask(tmp_path / "salvaged")
    assert answers_difference(salvaged, of_default_database(specimen.truth.answer)) == ""


def _break(folder: Path) -> None:
    """Damages what can be worked out anew: the full-text table and the heads of indexes."""
    with closing(sqlite3.connect(folder / DATABASE)) as database, database:
        if database.execute("SELECT 1 FROM sqlite_master WHERE name = 'embedding_fulltext_search_content'").fetchone():
            database.execute("DELETE FROM embedding_fulltext_search_content")
    for header in folder.glob("*/header.bin"):
        header.write_bytes(b"\0" * 100)
