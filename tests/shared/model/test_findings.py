"""Every code of the catalogue is brought about by really breaking a delta that is healthy without it."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from devtools.damage.catalogue import apply_damage
from devtools.damage.deltas import DeltaRecipe, build_delta
from shared.check.judgement import judge_folder
from shared.model.delta import DATABASE, MANIFEST
from shared.model.findings import CATALOGUE, Weight
from shared.model.manifest import Manifest, ManifestCollection, ManifestFile
from shared.model.settings import Settings
from shared.model.verdict import Depth, Status, Verdict
from shared.storage.folder import checksum_of, list_folder
from tests.support.databases import changed
from tests.support.indexes import LEVEL0, RECORD, VECTOR

Break = Callable[[Path], object]
TESTS = Path(__file__).parents[2]
RECIPES = {
    "queued": DeltaRecipe(embeddings=50, dimension=32),
    "flushed": DeltaRecipe(embeddings=130, dimension=16, sync_threshold=50, batch=25, deletes=7, updates=7),
    "cosine": DeltaRecipe(embeddings=100, dimension=16, sync_threshold=50, batch=50, space="cosine"),
}


@pytest.fixture(scope="module")
def healthy(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A healthy delta of each recipe, and `uploaded`: one with its manifest."""
    folder = tmp_path_factory.mktemp("healthy")
    for name, recipe in RECIPES.items():
        build_delta(folder / name, recipe)
    uploaded = Path(shutil.copytree(folder / "queued", folder / "uploaded"))
    files = list_folder(uploaded).files
    manifest = Manifest(
        batch_id=None,
        attempt=1,
        chromadb="1.5.9",
        collections=(ManifestCollection(name="words", dimension=32, count=50),),
        files=tuple(ManifestFile(name=f.name, size=f.size, crc64nvme=checksum_of(uploaded / f.name)) for f in files),
    )
    (uploaded / MANIFEST).write_bytes(manifest.as_bytes())
    return {name: folder / name for name in (*RECIPES, "uploaded")}


def judged(delta: Path) -> Verdict:
    return judge_folder(delta, Depth.STRUCTURE, Settings()).verdict


def damage(kind: str) -> Break:
    return lambda delta: apply_damage(kind, delta)


def sql(*statements: str) -> Break:
    return lambda delta: changed(delta, *statements)


def doubled_vector(delta: Path) -> None:
    """As after a flipped bit in an exponent: still finite, but not of length 1."""
    path = next(delta.rglob(LEVEL0))
    data = bytearray(path.read_bytes())
    vector = np.frombuffer(bytes(data[RECORD + VECTOR : RECORD + VECTOR + 64]), "<f4") * np.float32(2)
    data[RECORD + VECTOR : RECORD + VECTOR + 64] = vector.tobytes()
    path.write_bytes(data)


def flipped_bit(delta: Path) -> None:
    data = (delta / DATABASE).read_bytes()
    (delta / DATABASE).write_bytes(data[:-1] + bytes([data[-1] ^ 1]))


def in_manifest(old: bytes, new: bytes) -> Break:
    return lambda delta: (delta / MANIFEST).write_bytes((delta / MANIFEST).read_bytes().replace(old, new))


def fulltext_of_old(delta: Path) -> None:
    """As the migration of 0.4.6 fills it: by the number of a metadata row instead of that of its embedding."""
    fill = (
        "INSERT INTO embedding_fulltext_search (rowid, string_value) SELECT rowid, string_value FROM embedding_metadata"
    )
    changed(delta, "DELETE FROM embedding_fulltext_search", fill)


def index_lost_and_queue_kept(delta: Path) -> None:
    apply_damage("pickle-missing", delta)
    changed(delta, "UPDATE embeddings_queue_config SET config_json_str = '{\"automatically_purge\": false}'")


def database_deleted(delta: Path) -> None:
    import chromadb

    with chromadb.PersistentClient(delta) as client:
        admin = chromadb.AdminClient(client.get_settings())
        admin.create_database("other")
        client.set_database("other")
        client.create_collection("gone", embedding_function=None).add(ids=["a"], embeddings=[[1, 2]])
        admin.delete_database("other")


BROKEN: dict[str, tuple[str, Break]] = {
    "layout.database_missing": ("queued", damage("sqlite-missing")),
    "layout.journal_unsettled": ("queued", damage("journal-hot")),
    "layout.journal_stale": ("queued", damage("journal-garbage")),
    "layout.segment_file_missing": ("flushed", damage("links-missing")),
    "layout.file_name_hostile": ("queued", lambda delta: (delta / "..\\escape").write_bytes(b"x")),
    "layout.foreign_file": ("queued", damage("harmless-foreign-file")),
    "layout.empty_journal": ("queued", damage("harmless-empty-journal")),
    "layout.segment_unreferenced": ("queued", damage("harmless-segment-unreferenced")),
    "sqlite.empty": ("queued", damage("sqlite-empty")),
    "sqlite.not_a_database": ("queued", damage("sqlite-text-file")),
    "sqlite.header_invalid": ("queued", damage("sqlite-page-size-broken")),
    "sqlite.truncated": ("queued", damage("sqlite-truncated")),
    "sqlite.trailing_bytes": ("queued", damage("harmless-trailing-bytes")),
    "sqlite.malformed": ("queued", damage("sqlite-root-page-zeroed")),
    "sqlite.readable": ("queued", damage("sqlite-leaf-page-zeroed")),
    "sqlite.table_missing": ("queued", damage("table-dropped-segments")),
    "sqlite.column_missing": ("queued", sql("ALTER TABLE segments RENAME COLUMN scope TO other")),
    "sqlite.unexpected_trigger": (
        "queued", sql("CREATE TRIGGER t AFTER INSERT ON acquire_write BEGIN DELETE FROM embeddings; END"),
    ),
    "sqlite.foreign_trigger": (
        "queued", sql("CREATE TABLE notes (a)", "CREATE TRIGGER t AFTER INSERT ON notes BEGIN SELECT 1; END"),
    ),
    "sqlite.unexpected_view": ("queued", sql("CREATE VIEW extra AS SELECT 1")),
    "sqlite.table_replaced": ("queued", damage("table-viewed-collections")),
    "sqlite.unexpected_expression": ("queued", sql("CREATE INDEX computed ON embeddings (hex(seq_id))")),
    "sqlite.migration_mismatch": ("queued", sql("UPDATE migrations SET sql = sql || ' ' WHERE version = 2")),
    "sqlite.schema_newer": ("queued", sql("INSERT INTO migrations VALUES ('sysdb', 99, 'name', 'sql', 'hash')")),
    "sqlite.fulltext_unusable": ("queued", damage("fulltext-rows-deleted")),
    "sqlite.fulltext_unknown": (
        "queued",
        sql("DROP TABLE embedding_fulltext_search", "CREATE TABLE embedding_fulltext_search (string_value)"),
    ),
    "sqlite.fulltext_outdated": ("queued", fulltext_of_old),
    "hnsw.header_invalid": ("flushed", damage("header-version")),
    "hnsw.size_mismatch": ("flushed", damage("data-truncated")),
    "hnsw.link_invalid": ("flushed", damage("data-neighbour-outside")),
    "hnsw.entry_point_invalid": ("flushed", damage("header-entry-point")),
    "hnsw.vector_not_finite": ("flushed", damage("data-vector-nan")),
    "hnsw.vector_not_normal": ("cosine", doubled_vector),
    "hnsw.label_mismatch": ("flushed", damage("data-label-changed")),
    "hnsw.pickle_unreadable": ("flushed", damage("pickle-garbage")),
    "hnsw.pickle_hostile": ("flushed", damage("pickle-malicious")),
    "hnsw.pickle_missing": ("flushed", damage("pickle-missing")),
    "hnsw.index_missing": ("flushed", index_lost_and_queue_kept),
    "hnsw.dimension_mismatch": ("flushed", damage("collection-dimension-changed")),
    "records.vector_missing": ("queued", damage("queue-row-deleted")),
    "records.id_missing": ("queued", damage("embedding-row-removed")),
    "records.vector_length": ("queued", damage("queue-vector-short")),
    "records.vector_encoding": ("queued", damage("queue-encoding-unknown")),
    "records.vector_not_finite": ("queued", damage("queue-vector-nan")),
    "records.operation_unknown": ("queued", damage("queue-operation-unknown")),
    "records.row_unreadable": ("queued", damage("queue-metadata-garbled")),
    "records.metadata_missing": ("queued", damage("metadata-rows-removed")),
    "records.segment_missing": ("queued", damage("vector-segment-removed")),
    "records.database_missing": ("queued", sql("PRAGMA foreign_keys = OFF", "DELETE FROM tenants")),
    "records.collection_missing": ("queued", damage("collection-removed")),
    "records.leftover": ("queued", database_deleted),
    "records.dimension_missing": ("queued", damage("collection-dimension-null")),
    "records.recoverable": ("queued", damage("queue-emptied")),
    "manifest.unreadable": ("uploaded", lambda delta: (delta / MANIFEST).write_bytes(b"{")),
    "manifest.file_missing": ("uploaded", damage("harmless-skeleton-file-missing")),
    "manifest.file_unlisted": ("uploaded", lambda delta: (delta / f"{DATABASE}-shm").write_bytes(b"x")),
    "manifest.size_differs": ("uploaded", damage("harmless-trailing-bytes")),
    "manifest.checksum_differs": ("uploaded", flipped_bit),
    "manifest.content_differs": ("uploaded", in_manifest(b'"count": 50', b'"count": 51')),
    "check.foreign_expression": ("queued", sql("CREATE TABLE notes (a)", "CREATE INDEX n ON notes (hex(a))")),
}  # fmt: skip

ELSEWHERE = {
    # Chroma's own word, which needs its processes
    "layout.journal_present": "shared/inspection/test_examination.py",
    "chroma.failed": "shared/inspection/probe/test_chroma.py",
    "chroma.crashed": "shared/inspection/probe/test_chroma.py",
    "chroma.content_differs": "shared/inspection/probe/test_chroma.py",
    # what the environment does, and what a store knows of an upload
    "quarantine.held": "scanner/test_gate.py",
    "quarantine.set_aside": "shared/quarantine/test_restore.py",
    "chunk.content_differs": "scanner/test_gate.py",
    # what speaks against acting on a verdict
    "verdict.deltas_below": "shared/check/test_judgement.py",
    "verdict.disagreement": "shared/check/test_confirmation.py",
    "verdict.unconfirmed": "shared/check/test_confirmation.py",
    "verdict.confirmed": "shared/check/test_confirmation.py",
    "check.in_use": "scanner/test_advice.py",
    "check.storage": "shared/check/test_judgement.py",
    "check.access_denied": "shared/check/test_judgement.py",
    "check.throttled": "shared/check/test_judgement.py",
    "check.changed": "shared/inspection/test_examination.py",
    "check.reads_differ": "shared/check/test_read_twice.py",
    "check.gone": "scanner/run/test_checker.py",
    "check.local_io": "shared/check/test_judgement.py",
    "check.disk_full": "shared/inspection/test_examination.py",
    "check.descriptors": "shared/model/test_errors.py",
    "check.memory": "shared/inspection/probe/test_chroma.py",
    "check.timeout": "shared/inspection/sqlite/test_database_file.py",
    "check.batch_failed": "scanner/fleet/test_steps.py",
    "check.cannot_open": "shared/inspection/sqlite/test_database_file.py",
    "check.probe_failed": "shared/inspection/probe/test_chroma.py",
    "check.size_cap": "shared/check/test_judgement.py",
    "arrival.settling": "shared/check/test_judgement.py",
    "arrival.manifest_awaited": "shared/check/test_judgement.py",
    "arrival.file_awaited": "shared/check/test_judgement.py",
}


@pytest.mark.parametrize("name", [*RECIPES, "uploaded"])
def test_without_damage_there_is_no_finding_at_all(healthy: dict[str, Path], name: str) -> None:
    verdict = judged(healthy[name])
    assert (verdict.status, verdict.observed) == (Status.HEALTHY, ())


@pytest.mark.parametrize("code", BROKEN)
def test_a_delta_that_is_broken_in_this_way_gets_the_code(healthy: dict[str, Path], code: str, tmp_path: Path) -> None:
    name, break_ = BROKEN[code]
    delta = Path(shutil.copytree(healthy[name], tmp_path / "delta"))
    break_(delta)
    verdict = judged(delta)
    found = [finding for finding in verdict.observed if finding.code == code]
    assert found, verdict.observed
    assert all(finding.detail.isprintable() and finding.detail for finding in found)
    if CATALOGUE[code].weight in (Weight.PROOF, Weight.PENDING):
        assert verdict.status is Status.CORRUPT
    elif CATALOGUE[code].weight in (Weight.UNCHECKED, Weight.DOUBT):
        assert verdict.status is Status.UNDETERMINED


def test_every_code_of_the_catalogue_is_tested() -> None:
    assert BROKEN.keys() | ELSEWHERE.keys() == CATALOGUE.keys()
    assert not BROKEN.keys() & ELSEWHERE.keys()


@pytest.mark.parametrize("code", ELSEWHERE)
def test_a_code_that_no_broken_bytes_bring_about_is_tested_where_it_is_said(code: str) -> None:
    text = (TESTS / ELSEWHERE[code]).read_text()
    assert f'"{code}"' in text or code.replace(".", r"\.") in text


def test_every_code_that_makes_corrupt_has_its_source() -> None:
    """A rule that follows from nothing that Chroma, hnswlib or SQLite does must not condemn a delta."""
    text = (TESTS.parent / "docs" / "verdicts.md").read_text()
    table = text.partition("## Where each rule comes from")[2].partition("\n## ")[0]
    rules = {
        code for row in re.findall(r"^\| (`.+?) \|", table, re.MULTILINE) for code in re.findall(r"`([\w.]+)`", row)
    }
    assert rules == {code for code, kind in CATALOGUE.items() if kind.weight in (Weight.PROOF, Weight.PENDING)}
