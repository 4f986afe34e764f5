"""`deltaguard salvage` as its users meet it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from devtools.damage.catalogue import apply_damage
from devtools.damage.deltas import read_delta
from scanner.cli import cli
from shared.check.judgement import judge_folder, judge_stored
from shared.model.delta import MANIFEST, DeltaLocation
from shared.model.settings import Settings
from shared.model.verdict import Depth, Status
from shared.storage.store import Store
from shared.upload import _manifest_of

CopyOf = Callable[[Path], Path]
PutDelta = Callable[[Path, str], DeltaLocation]


def run(*arguments: str | Path) -> Result:
    command = ["salvage", *map(str, arguments)]
    return CliRunner().invoke(cli, command, catch_exceptions=False, env={"DELTAGUARD_PROBE_TIMEOUT_SECONDS": "300"})


@pytest.fixture
def broken(copy_of: CopyOf, flushed_delta: Path) -> Path:
    """A delta whose index has no header any more."""
    folder = copy_of(flushed_delta)
    apply_damage("header-missing", folder)
    return folder


@pytest.fixture
def lossy(copy_of: CopyOf, healthy_delta: Path) -> Path:
    """A delta whose queue has lost an operation."""
    folder = copy_of(healthy_delta)
    apply_damage("queue-row-deleted", folder)
    return folder


@pytest.mark.slow
def test_a_whole_delta_is_written_and_the_report_says_what_was_used(
    broken: Path, flushed_delta: Path, tmp_path: Path
) -> None:
    result = run(broken, tmp_path / "out")
    assert result.exit_code == 0
    assert "was salvaged whole" in result.stdout
    assert "123 embeddings proven; vectors: 34 from the queue, 89 from the index" in result.stdout
    assert read_delta(tmp_path / "out") == read_delta(flushed_delta)


@pytest.mark.slow
def test_from_s3_to_s3_the_new_delta_has_a_manifest_of_the_same_batch_and_is_healthy(
    broken: Path, flushed_delta: Path, put_delta: PutDelta, store: Store
) -> None:
    manifest = _manifest_of(flushed_delta, judge_folder(flushed_delta, Depth.STRUCTURE, Settings()), "batch-7")
    (broken / MANIFEST).write_bytes(manifest.as_bytes())
    source = put_delta(broken, "words/delta/broken")
    result = run("--format", "json", source.uri, "s3://deltas/words/delta/salvaged")
    assert (result.exit_code, json.loads(result.stdout)["batch_id"]) == (0, "batch-7")
    assert "Validating uploaded delta" in result.stderr, "logs are no part of the answer"
    judgement = judge_stored(
        store, DeltaLocation.parse("s3://deltas/words/delta/salvaged"), Depth.STRUCTURE, Settings()
    )
    assert (judgement.verdict.status, judgement.checksums_proven) == (Status.HEALTHY, True)
    assert judgement.manifest is not None
    assert judgement.manifest.batch_id == "batch-7"


@pytest.mark.slow
def test_a_part_is_written_when_asked_for_and_the_exit_code_still_tells(lossy: Path, tmp_path: Path) -> None:
    result = run("--partial", "--format", "json", lossy, tmp_path / "out")
    said = json.loads(result.stdout)
    assert (result.exit_code, said["outcome"]) == (1, "partial")
    (collection,) = said["collections"]
    assert (collection["count"], len(collection["lost"])) == (49, 1)
    assert (tmp_path / "out").is_dir()


def test_what_is_not_proven_is_refused(lossy: Path, tmp_path: Path) -> None:
    result = run(lossy, tmp_path / "out")
    assert result.exit_code == 1
    assert "nothing was written" in result.stdout
    assert not (tmp_path / "out").exists()


def test_a_healthy_delta_needs_no_salvage(healthy_delta: Path, tmp_path: Path) -> None:
    result = run(healthy_delta, tmp_path / "out")
    assert (result.exit_code, "is healthy" in result.stdout) == (0, True)


def test_nothing_is_ever_written_in_place_or_over_something(broken: Path, tmp_path: Path) -> None:
    for out in (broken, tmp_path):
        result = run(broken, out)
        assert (result.exit_code, "exists already" in result.stderr) == (2, True)


def test_nothing_is_written_over_what_lies_in_s3(broken: Path, put_delta: PutDelta) -> None:
    source = put_delta(broken, "words/delta/broken")
    result = run(broken, source.uri)
    assert (result.exit_code, "exists already" in result.stderr) == (2, True)


def test_a_target_that_is_not_there_is_a_usage_error(tmp_path: Path, bucket: str) -> None:
    for target in (tmp_path / "none", f"s3://{bucket}/none/at/all"):
        result = run(target, tmp_path / "out")
        assert (result.exit_code, result.stderr.count("\n")) == (2, 1)
