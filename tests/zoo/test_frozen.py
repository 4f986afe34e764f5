"""Directories that real clients of 14 releases wrote, frozen: they are judged, read, merged, uploaded and salvaged as
Chroma's own answer says.

Everything is judged up to `structure`; what takes longer is done with a sample, in `make test-all` with all of them.
"""

from __future__ import annotations

import re
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import boto3
import numpy as np
import pytest

from compaction.chunk import process
from compaction.errors import MergeFailed
from devtools.zoo.frozen import Frozen, all_frozen, releases
from devtools.zoo.history import DEFAULT, History
from devtools.zoo.kinds import KINDS
from devtools.zoo.opinion import answers_difference, content_difference
from devtools.zoo.outcomes import judged, settled
from devtools.zoo.releases import RELEASES
from devtools.zoo.specimens import Specimen
from devtools.zoo.truth import Answer, Reader
from shared.check.judgement import judge_stored
from shared.inspection.chroma.contents import opened_delta
from shared.model.delta import DATABASE, DeltaLocation
from shared.model.errors import CouldNotCheck
from shared.model.settings import Settings
from shared.model.verdict import Depth, Status
from shared.salvage.salvage import salvage_folder
from shared.storage.store import Store
from shared.upload import upload_delta
from tests.support import sweep

pytestmark = pytest.mark.slow

FROZEN = all_frozen()
SETTINGS = Settings(settle_seconds=0, arrival_seconds=0, probe_timeout_seconds=900)


def sample(purpose: str, most: int, *names: str) -> list[Frozen]:
    """Some of them, always the same, and those that have these names."""
    chosen = sweep.some(FROZEN, most, seed=purpose)
    named = [one for one in FROZEN if one.name in names]
    assert len(named) == len(names)
    return sorted({*chosen, *named}, key=lambda one: one.name)


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


def difference(reader: Reader, folder: Path, specimen: Specimen) -> str:
    """How what Chroma gives back of a new directory differs from what it gave back of the old one."""
    found = reader.ask(folder)
    assert "error" not in found, found["error"]
    with opened_delta(folder) as delta:
        cosine = {collection.name for collection in delta.collections if collection.cosine}
    wanted = [part for part in specimen.truth.answer["collections"] if tuple(part["at"]) == DEFAULT]
    return answers_difference(found, {"collections": wanted}, cosine=cosine)


def created(history: History) -> list[dict[str, Any]]:
    """The operations of a history that create a collection."""
    lists = [ops for step in history["steps"] for ops in (step.get("ops", ()), step.get("before", ()))]
    return [op for ops in lists for op in ops if op["do"] == "create"]


def not_taken(answer: Answer) -> Iterator[str]:
    """What old releases took and Chroma takes no more, or what is never written anew: what then is said."""
    for part in answer["collections"]:
        if tuple(part["at"]) != DEFAULT and part["count"]:
            yield "in another database"
        if not np.isfinite(np.array(part["vectors"], np.float32)).all():
            yield "NaN or [iI]nfinity"
        if "" in part["ids"]:
            yield "Empty ID"


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


@each(sample("open", 13, "outgrown-small-50"))
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


@each(sample("merge", 13, "uris-289"))
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
    chunk = [{"delta_key": key, "delta_id": "one"}]
    if obstacles := [*not_taken(specimen.truth.answer)]:
        with pytest.raises(MergeFailed, match="|".join(obstacles)):
            process("batch-1", 0, chunk, {}, store=store, settings=SETTINGS)
        return
    made = process("batch-1", 0, chunk, {}, store=store, settings=SETTINGS)["intermediate_key"]
    assert difference(reader, download(bucket, made, tmp_path / "merged"), specimen) == ""


@each(sample("salvage", 13, "chained-139"))
def test_what_loses_its_texts_and_links_is_salvaged_whole(
    frozen: Frozen, specimen: Specimen, reader: Reader, tmp_path: Path
) -> None:
    folder = folder_of(specimen, tmp_path)
    _break(folder)
    obstacles = [*not_taken(specimen.truth.answer)]
    if any(tuple(part["at"]) != DEFAULT for part in specimen.truth.answer["collections"]):
        obstacles.append("in another database")
    if len(created(specimen.history)) > 1:  # the queue of one has gaps where another's was purged
        obstacles.append("the queue lacks operations since the flush")
    try:
        salvage = salvage_folder(folder, tmp_path / "salvaged", SETTINGS)
    except CouldNotCheck as error:
        assert re.search("|".join(obstacles) or "nothing", str(error))
        return
    if salvage.outcome == "healthy":
        pytest.skip("there was nothing to break")
    if salvage.outcome == "refused" and obstacles:
        assert re.search("|".join(obstacles), salvage.reason)
        return
    assert salvage.outcome == "whole", salvage.reason
    assert difference(reader, tmp_path / "salvaged", specimen) == ""


def _break(folder: Path) -> None:
    """Damages what can be made anew: the full-text table and the links of indexes."""
    with closing(sqlite3.connect(folder / DATABASE)) as database, database:
        if database.execute("SELECT 1 FROM sqlite_master WHERE name = 'embedding_fulltext_search_content'").fetchone():
            database.execute("DELETE FROM embedding_fulltext_search_content")
    for links in folder.glob("*/link_lists.bin"):
        links.write_bytes(b"")
