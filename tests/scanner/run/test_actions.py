"""What a scan moves when it was asked to: what is corrupt, once all is judged; nothing where that is too much."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import boto3
import pytest
from click.testing import CliRunner, Result
from hypothesis import given
from hypothesis import strategies as st

from devtools.stack.shim import InvocationContext
from scanner.cli import cli
from scanner.handler import handler
from scanner.run import workers as scan_module
from scanner.run.actions import MOST_SHARE, MOST_UNASKED, Brake
from shared.model.delta import DATABASE
from shared.model.errors import SettingsError
from tests.conftest import CopyOf, PutDelta


def run(*arguments: str | Path) -> Result:
    return CliRunner().invoke(cli, [str(argument) for argument in arguments], catch_exceptions=False)


def moved(result: Result) -> int:
    return int(json.loads(result.stdout.splitlines()[-1])["summary"]["quarantined"])


def places(prefix: str) -> set[str]:
    found = boto3.client("s3").list_objects_v2(Bucket="deltas", Prefix=prefix).get("Contents", [])
    return {entry["Key"].split("/")[1] for entry in found}


@pytest.fixture
def forest(healthy_delta: Path, copy_of: CopyOf, put_delta: PutDelta, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Puts so many healthy and so many truncated deltas below `words/`."""
    monkeypatch.setenv("DELTAGUARD_SETTLE_SECONDS", "0")
    broken = copy_of(healthy_delta)
    os.truncate(broken / DATABASE, (broken / DATABASE).stat().st_size // 2)

    def put(healthy: int, corrupt: int) -> None:
        for number in range(healthy):
            put_delta(healthy_delta, f"words/good-{number}")
        for number in range(corrupt):
            put_delta(broken, f"words/bad-{number}")

    return put


@pytest.mark.parametrize("dry_run", [[], ["--dry-run"]])
@pytest.mark.parametrize("command", [["check", "s3://no-such-bucket/words/one"], ["scan", "s3://no-such-bucket"]])
def test_without_chromadb_quarantine_is_refused_before_anything_is_asked_of_s3(
    command: list[str], dry_run: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scan_module, "find_spec", lambda _: None)
    result = run(*command, "--quarantine", *dry_run)
    assert result.exit_code == 2
    assert result.stdout == ""
    (line,) = result.stderr.splitlines()
    assert "chromadb is not installed: pip install 'deltaguard[chroma]'" in line


def test_without_chromadb_a_scan_that_moves_nothing_runs(forest: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    forest(1, 0)
    monkeypatch.setattr(scan_module, "find_spec", lambda _: None)
    assert run("scan", "s3://deltas/words").exit_code == 0


def test_without_chromadb_the_function_refuses_to_move_anything(forest: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    forest(0, 1)
    monkeypatch.setattr(scan_module, "find_spec", lambda _: None)
    with pytest.raises(SettingsError, match="chromadb is not installed"):
        handler({"targets": ["s3://deltas/words/"], "quarantine": True}, InvocationContext())
    assert places("words/") == {"bad-0"}


@given(st.integers(0, 10**6), st.integers(0, 10**6))
def test_the_brake_holds_a_great_share_of_more_than_a_few(judged: int, corrupt: int) -> None:
    held = Brake(judged, corrupt, yes=False).holds
    assert held == (corrupt > MOST_UNASKED and corrupt / max(judged, 1) > MOST_SHARE)
    assert not Brake(judged, corrupt, yes=True).holds


def test_a_scan_that_finds_most_of_it_corrupt_moves_nothing_and_says_what_to_do(forest: Any) -> None:
    forest(healthy=2, corrupt=6)
    before = places("words/")
    result = run("scan", "s3://deltas/words", "--quarantine", "--format", "ndjson")
    assert (result.exit_code, moved(result)) == (1, 0)
    assert "nothing was moved: 6 of 8 deltas are corrupt, more than 20%" in result.stderr
    assert "--yes" in result.stderr
    assert places("words/") == before
    assert places("quarantine/") == set()


def test_with_yes_it_moves_them_all(forest: Any) -> None:
    forest(healthy=2, corrupt=6)
    result = run("scan", "s3://deltas/words", "--quarantine", "--yes", "--format", "ndjson")
    assert (result.exit_code, moved(result)) == (1, 6)
    assert places("words/") == {"good-0", "good-1"}


def test_a_few_are_moved_whatever_their_share_is(forest: Any) -> None:
    forest(healthy=0, corrupt=MOST_UNASKED)
    assert moved(run("scan", "s3://deltas/words", "--quarantine", "--format", "ndjson")) == MOST_UNASKED


def test_a_dry_run_tells_that_nothing_would_be_moved(forest: Any) -> None:
    forest(healthy=2, corrupt=6)
    result = run("scan", "s3://deltas/words", "--quarantine", "--dry-run")
    assert "nothing was moved: 6 of 8 deltas are corrupt" in result.stderr
    assert "would move" not in result.stderr


def test_deltas_that_are_named_one_by_one_are_moved(forest: Any) -> None:
    forest(healthy=0, corrupt=6)
    targets = [f"s3://deltas/words/bad-{number}" for number in range(6)]
    assert moved(run("check", *targets, "--quarantine", "--format", "ndjson")) == 6


def test_what_an_earlier_run_found_corrupt_is_moved_by_the_one_that_goes_on(forest: Any, tmp_path: Path) -> None:
    forest(healthy=2, corrupt=6)
    scan = ("scan", "s3://deltas/words", "--quarantine", "--resume", str(tmp_path / "checkpoint"), "--format", "ndjson")
    assert moved(run(*scan)) == 0
    assert moved(run(*scan, "--yes")) == 6
    again = run(*scan, "--yes")
    assert (moved(again), again.stderr) == (0, "")


def test_yes_alone_is_a_usage_error(forest: Any) -> None:
    result = run("scan", "s3://deltas/words", "--yes")
    assert (result.exit_code, result.stdout) == (2, "")
    assert "--yes goes with --quarantine" in result.stderr


def test_the_function_has_the_same_brake(forest: Any) -> None:
    forest(healthy=2, corrupt=6)
    request: dict[str, Any] = {"targets": ["s3://deltas/words/"], "quarantine": True}
    assert handler(request, InvocationContext())["summary"]["quarantined"] == 0
    assert places("quarantine/") == set()
    assert handler({**request, "yes": True}, InvocationContext())["summary"]["quarantined"] == 6


def test_a_target_inside_quarantine_does_not_end_the_scan_of_a_function(forest: Any) -> None:
    forest(healthy=1, corrupt=2)
    assert handler({"targets": ["s3://deltas/words/"], "quarantine": True}, InvocationContext())
    targets = ["s3://deltas/quarantine/", "s3://deltas/words/"]
    summary = handler({"targets": targets, "quarantine": True}, InvocationContext())["summary"]
    assert (summary["corrupt"], summary["quarantined"], summary["healthy"]) == (2, 0, 1)


def test_a_delta_that_was_moved_counts_also_where_nobody_could_be_told(
    forest: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    forest(healthy=1, corrupt=2)
    monkeypatch.setenv("DELTAGUARD_EVENT_BUS", "arn:aws:events:us-east-1:123456789012:event-bus/nowhere")
    summary = handler({"targets": ["s3://deltas/words/"], "quarantine": True}, InvocationContext())["summary"]
    assert (summary["quarantined"], summary["complete"]) == (2, True)


@pytest.mark.parametrize("where", ["scan", "function"])
def test_report_only_moves_nothing_whoever_asks_for_it(
    forest: Any, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    forest(healthy=1, corrupt=2)
    monkeypatch.setenv("DELTAGUARD_ACT", "report")
    if where == "scan":
        result = run("scan", "s3://deltas/words", "--quarantine", "--format", "ndjson")
        assert (result.exit_code, moved(result)) == (1, 0)
        assert "nothing is moved: DELTAGUARD_ACT=report" in result.stderr
    else:
        answer = handler({"targets": ["s3://deltas/words/"], "quarantine": True}, InvocationContext())
        assert answer["summary"]["quarantined"] == 0
    assert places("words/") == {"good-0", "bad-0", "bad-1"}
    assert places("quarantine/") == set()
