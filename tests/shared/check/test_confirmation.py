"""Before an act, `corrupt` needs a manifest's proof or Chroma as a second witness; a doubt moves nothing."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest

from devtools.damage.catalogue import apply_damage
from devtools.damage.deltas import DeltaRecipe, build_delta
from shared.check.judgement import Judgement, judge_folder, judge_stored
from shared.inspection import layout
from shared.inspection.probe import witness
from shared.model.delta import DATABASE, DeltaLocation
from shared.model.errors import CouldNotCheck
from shared.model.settings import Settings
from shared.model.verdict import Depth, Finding, Status
from shared.storage.store import Store
from shared.upload import upload_delta
from tests.conftest import CopyOf, PutDelta

KEY = "words/delta/one"


def asked(store: Store, location: DeltaLocation, settings: Settings, depth: Depth = Depth.STRUCTURE) -> Judgement:
    return judge_stored(store, location, depth, settings, confirm=True)


def said(judgement: Judgement) -> dict[str, str]:
    return {finding.code: finding.detail for finding in judgement.verdict.observed}


@pytest.fixture
def damaged(flushed_delta: Path, copy_of: CopyOf, put_delta: PutDelta) -> Any:
    def damage(kind: str) -> DeltaLocation:
        folder = copy_of(flushed_delta)
        apply_damage(kind, folder)
        return put_delta(folder, KEY)

    return damage


@pytest.mark.parametrize(
    "kind", ["sqlite-truncated", "table-dropped-segments", "queue-encoding-unknown", "pickle-garbage"]
)
@pytest.mark.parametrize("depth", [Depth.STRUCTURE, Depth.OPEN])
def test_what_chroma_fails_at_as_well_is_confirmed(
    store: Store, damaged: Any, settled: Settings, kind: str, depth: Depth
) -> None:
    judgement = asked(store, damaged(kind), settled, depth)
    assert (judgement.verdict.status, judgement.confirmed) == (Status.CORRUPT, True)
    assert said(judgement)["verdict.confirmed"]
    assert judgement.verdict.versions["chromadb"] == metadata.version("chromadb")


def test_a_database_without_bytes_needs_no_chroma_to_confirm_it(
    store: Store, damaged: Any, settled: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(witness, "metadata", None)  # nothing is asked
    judgement = asked(store, damaged("sqlite-empty"), settled)
    assert judgement.confirmed
    assert said(judgement)["verdict.confirmed"].endswith("Chroma creates an empty database and gives back nothing")


def test_where_nobody_acts_chroma_is_not_asked(store: Store, damaged: Any, settled: Settings) -> None:
    judgement = judge_stored(store, damaged("queue-encoding-unknown"), Depth.STRUCTURE, settled)
    assert (judgement.verdict.status, judgement.confirmed) == (Status.CORRUPT, False)
    assert not said(judgement).keys() & {"verdict.confirmed", "verdict.unconfirmed"}


def test_without_chromadb_nothing_is_confirmed(
    store: Store, damaged: Any, settled: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    def missing(name: str) -> str:
        raise metadata.PackageNotFoundError(name)

    location = damaged("queue-encoding-unknown")
    monkeypatch.setattr(metadata, "version", missing)
    judgement = asked(store, location, settled)
    assert (judgement.verdict.status, judgement.confirmed) == (Status.UNDETERMINED, False)
    assert "install deltaguard[chroma]" in said(judgement)["verdict.unconfirmed"]


@pytest.mark.parametrize("code", ["check.timeout", "check.memory", "check.disk_full", "check.descriptors"])
def test_where_chroma_could_not_answer_nothing_is_confirmed(
    store: Store, damaged: Any, settled: Settings, monkeypatch: pytest.MonkeyPatch, code: str
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise CouldNotCheck(code, "a fault to order")

    location = damaged("queue-encoding-unknown")
    monkeypatch.setattr("shared.inspection.probe.chroma._attempt", refuse)
    judgement = asked(store, location, settled)
    assert (judgement.verdict.status, judgement.confirmed) == (Status.UNDETERMINED, False)
    assert said(judgement).keys() >= {code, "verdict.unconfirmed", "records.vector_encoding"}


def test_a_rule_of_ours_that_is_wrong_moves_nothing_where_chroma_gives_back_all(
    store: Store, flushed_delta: Path, put_delta: PutDelta, settled: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    rules = layout.inspect_names
    wrong = Finding("sqlite.malformed", DATABASE, "a rule that is wrong")
    monkeypatch.setattr(layout, "inspect_names", lambda listing: [*rules(listing), wrong])
    judgement = asked(store, put_delta(flushed_delta, KEY), settled)
    assert (judgement.verdict.status, judgement.confirmed) == (Status.UNDETERMINED, False)
    detail = said(judgement)["verdict.disagreement"]
    assert detail.startswith("the bytes say sqlite.malformed, but: Chroma ")
    assert "gives back all that the bytes hold: 123 embeddings in 1 collections" in detail


@pytest.mark.parametrize("confirm", [False, True])
def test_bytes_that_read_healthy_where_chroma_fails_are_in_doubt(
    store: Store, put_delta: PutDelta, flushed_delta: Path, settled: Settings, chroma_dies: None, confirm: bool
) -> None:
    """The other way round: whoever is wrong, the delta is not touched, and both sides can be read in the verdict."""
    judgement = judge_stored(store, put_delta(flushed_delta, KEY), Depth.OPEN, settled, confirm=confirm)
    assert (judgement.verdict.status, judgement.confirmed) == (Status.UNDETERMINED, False)
    assert said(judgement)["verdict.disagreement"] == "the bytes read healthy, but: Chroma was killed by SIGSEGV"
    assert "chroma.crashed" in said(judgement)


def test_what_both_find_is_no_disagreement(store: Store, damaged: Any, settled: Settings, chroma_dies: None) -> None:
    judgement = asked(store, damaged("queue-encoding-unknown"), settled, Depth.OPEN)
    assert (judgement.verdict.status, judgement.confirmed) == (Status.CORRUPT, True)
    assert "verdict.disagreement" not in said(judgement)


def test_what_a_manifest_proves_needs_no_chroma(
    store: Store, bucket: str, flushed_delta: Path, settled: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    upload_delta(flushed_delta, bucket, KEY)
    location = DeltaLocation(bucket, f"{KEY}/")
    body = (flushed_delta / DATABASE).read_bytes()
    store._client.put_object(Bucket=bucket, Key=location.key(DATABASE), Body=body[:-1] + bytes([body[-1] ^ 1]))
    monkeypatch.setattr(witness, "metadata", None)  # nothing is asked
    judgement = asked(store, location, settled)
    assert (judgement.verdict.status, judgement.confirmed) == (Status.CORRUPT, True)
    assert said(judgement).keys() >= {"manifest.checksum_differs"}


A_TEXT = "UPDATE embeddings_queue SET vector = CAST(vector AS TEXT) WHERE operation = 1"
LONGER = "UPDATE embeddings_queue SET vector = CAST(vector || X'0000803f' AS BLOB) WHERE operation = 1"
A_VIEW = """
    UPDATE embeddings_queue_config SET config_json_str = replace(config_json_str, 'true', 'false');
    ALTER TABLE embeddings_queue RENAME TO moved;
    CREATE VIEW embeddings_queue AS SELECT * FROM moved
"""


@pytest.mark.parametrize(
    "damage", [LONGER, A_TEXT, A_VIEW], ids=["longer than its dimension", "a text", "behind a view"]
)
def test_what_chroma_reads_of_a_queue_that_is_refused_is_not_other_than_the_bytes_hold(
    tmp_path: Path, settled: Settings, damage: str
) -> None:
    """An index was taken for the last word on a vector where the update in the queue was none that the rules read.

    Chroma reads as many numbers as the collection has dimensions, and a view like a table as long as it need not purge.
    """
    build_delta(tmp_path, DeltaRecipe(embeddings=90, sync_threshold=20, batch=20, updates=8))
    with closing(sqlite3.connect(tmp_path / DATABASE)) as database:
        ((updates,),) = database.execute("SELECT count(*) FROM embeddings_queue WHERE operation = 1")
        assert updates
        database.executescript(damage)
    judgement = judge_folder(tmp_path, Depth.STRUCTURE, settled, confirm=True)
    assert said(judgement).keys() & {"records.vector_length", "sqlite.table_replaced"}
    assert (judgement.verdict.status, judgement.confirmed) == (Status.UNDETERMINED, False), said(judgement)
