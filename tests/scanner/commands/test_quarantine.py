"""`deltaguard quarantine`: what it prints, how it ends, and that it asks before it destroys."""

from __future__ import annotations

import json
from typing import Any

import boto3
import pytest
from click.testing import CliRunner, Result

from scanner.cli import cli
from shared.model.delta import DATABASE, DeltaLocation
from shared.model.settings import Settings
from shared.quarantine.move import quarantine
from shared.quarantine.record import RECORD
from shared.storage.store import Store
from tests.support.verdicts import confirmed

KEY = "words/delta/1"


@pytest.fixture(autouse=True)
def _held(store: Store, bucket: str, settled: Settings) -> None:
    for key in (KEY, "words/delta/2"):
        location = DeltaLocation(bucket, f"{key}/")
        store.put(bucket, location.key(DATABASE), b"no database")
        quarantine(store, location, confirmed(store, location, settled), settled)


def run(*arguments: str, answer: str = "") -> Result:
    return CliRunner().invoke(cli, ["quarantine", *arguments], input=answer, catch_exceptions=False)


def lines(result: Result) -> list[dict[str, Any]]:
    return [json.loads(line) for line in result.stdout.splitlines()]


def keys(prefix: str) -> list[str]:
    found = boto3.client("s3").list_objects_v2(Bucket="deltas", Prefix=prefix).get("Contents", [])
    return [entry["Key"].removeprefix(prefix) for entry in found]


def test_list_names_what_is_held_and_why() -> None:
    result = run("list", "s3://deltas/words")
    assert result.exit_code == 0
    assert result.stdout.count("sqlite.truncated") == 2
    assert result.stdout.endswith("2 held\n")
    first, second, summary = lines(run("list", "s3://deltas", "--format", "ndjson"))
    assert [first["delta"], second["delta"]] == ["s3://deltas/words/delta/1/", "s3://deltas/words/delta/2/"]
    assert summary == {"summary": {"held": 2}}


def test_list_of_nothing_is_no_error() -> None:
    assert run("list", "s3://deltas/other").exit_code == 0


def test_a_record_that_cannot_be_read_is_told_and_the_rest_is_listed() -> None:
    place = lines(run("list", f"s3://deltas/{KEY}", "--format", "ndjson"))[0]["quarantine"]
    key = place.removeprefix("s3://deltas/") + RECORD
    boto3.client("s3").put_object(Bucket="deltas", Key=key, Body=b"{}")
    result = run("list", "s3://deltas", "--format", "ndjson")
    assert result.exit_code == 3
    assert "not a quarantine record" in result.stderr
    assert lines(result)[-1] == {"summary": {"held": 1}}


def test_show_has_record_history_and_missing_copies() -> None:
    result = run("show", f"s3://deltas/{KEY}", "--format", "ndjson")
    shown = lines(result)[0]
    assert result.exit_code == 0
    assert (shown["record"]["prefix"], shown["history"], shown["missing"]) == (f"{KEY}/", [], [])
    copy = shown["quarantine"].removeprefix("s3://deltas/") + DATABASE
    boto3.client("s3").delete_object(Bucket="deltas", Key=copy)
    result = run("show", f"s3://deltas/{KEY}")
    assert result.exit_code == 3
    assert "COPIES MISSING" in result.stdout


def test_restore_says_clearly_that_a_delta_is_still_corrupt() -> None:
    result = run("restore", f"s3://deltas/{KEY}", "--format", "ndjson")
    line, summary = lines(result)
    assert (result.exit_code, line["restored"], line["status"]) == (1, True, "corrupt")
    assert line["reason"].startswith("restored, but still corrupt; the validator will quarantine it again: sqlite.")
    assert summary["summary"]["corrupt"] == 1
    assert keys(f"{KEY}/") == [DATABASE]
    assert lines(run("list", f"s3://deltas/{KEY}", "--format", "ndjson"))[0]["restored_at"]


def test_restore_leaves_what_lies_in_its_place_unless_told_to_overwrite() -> None:
    boto3.client("s3").put_object(Bucket="deltas", Key=f"{KEY}/{DATABASE}", Body=b"newer")
    result = run("restore", f"s3://deltas/{KEY}")
    assert (result.exit_code, result.stdout) == (2, "")
    assert "--overwrite" in result.stderr and len(result.stderr.splitlines()) == 1
    assert run("restore", f"s3://deltas/{KEY}", "--overwrite", "--yes").exit_code == 1


def test_restore_of_the_state_that_was_quarantined_last(store: Store, settled: Settings) -> None:
    location = DeltaLocation("deltas", f"{KEY}/")
    store.put("deltas", location.key(DATABASE), b"another one, broken too")
    last = quarantine(store, location, confirmed(store, location, settled), settled)
    run("restore", f"s3://deltas/{KEY}")
    assert boto3.client("s3").get_object(Bucket="deltas", Key=location.key(DATABASE))["ContentLength"] == 23
    boto3.client("s3").delete_object(Bucket="deltas", Key=location.key(DATABASE))
    fingerprints = [line["fingerprint"] for line in lines(run("list", f"s3://deltas/{KEY}", "--format", "ndjson"))[:-1]]
    (first,) = set(fingerprints) - {last.record.fingerprint}
    run("restore", f"s3://deltas/{KEY}", "--fingerprint", first[:8])
    assert boto3.client("s3").get_object(Bucket="deltas", Key=location.key(DATABASE))["ContentLength"] == 11


def test_several_deltas_are_restored_only_when_somebody_says_yes() -> None:
    refused = run("restore", "s3://deltas/words")
    assert (refused.exit_code, keys("words/")) == (2, [])
    assert "--yes" in refused.stderr
    assert run("restore", "s3://deltas/words", "--dry-run").stdout.endswith("2 would be restored\n")
    assert keys("words/") == []
    assert run("restore", "s3://deltas/words", "--yes").exit_code == 1
    assert len(keys("words/")) == 2


def test_one_that_cannot_be_restored_does_not_stop_the_others() -> None:
    boto3.client("s3").put_object(Bucket="deltas", Key=f"{KEY}/{DATABASE}", Body=b"newer")
    result = run("restore", "s3://deltas/words", "--yes", "--format", "ndjson")
    first, second, _ = lines(result)
    assert (first["restored"], second["restored"]) == (False, True)
    assert "would be lost" in first["reason"]


def test_purge_keeps_what_is_younger_than_the_retention(monkeypatch: pytest.MonkeyPatch) -> None:
    result = run("purge", "s3://deltas", "--yes", "--format", "ndjson")
    assert (result.exit_code, lines(result)) == (0, [{"summary": {"purged": 0, "kept": 2}}])
    assert "2 deltas held for less than 30 days: kept" in result.stderr
    monkeypatch.setenv("DELTAGUARD_QUARANTINE_RETENTION_DAYS", "0")
    assert lines(run("purge", f"s3://deltas/{KEY}", "--yes", "--format", "ndjson"))[-1]["summary"]["purged"] == 1


def test_purge_asks_and_does_nothing_without_a_yes() -> None:
    before = keys("")
    result = run("purge", "s3://deltas", "--older-than", "0d")
    assert (result.exit_code, keys("")) == (2, before)
    assert "nobody is there to be asked" in result.stderr
    assert run("purge", "s3://deltas", "--older-than", "0d", "--dry-run").stdout.endswith("2 would be purged\n")
    assert keys("") == before
    assert run("purge", "s3://deltas", "--older-than", "0d", "--yes").exit_code == 0
    assert [key for key in keys("quarantine/") if key.endswith(RECORD)] == []


@pytest.mark.parametrize(("answer", "left"), [("n\n", 2), ("y\n", 0)])
def test_purge_at_a_terminal_takes_the_answer(monkeypatch: pytest.MonkeyPatch, answer: str, left: int) -> None:
    monkeypatch.setattr("scanner.commands.quarantine._is_asked", lambda: True)
    result = run("purge", "s3://deltas", "--older-than", "0d", answer=answer)
    assert result.exit_code == 0
    assert "for good? [y/N]" in result.stderr
    assert len([key for key in keys("quarantine/") if key.endswith(RECORD)]) == left


def test_what_a_retention_of_the_bucket_forbids_is_named_and_the_rest_is_purged(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from shared.model.errors import StorageError
    from shared.quarantine.restore import Held, purge

    def forbid(store: Store, held: Held) -> None:
        if held.record.prefix == f"{KEY}/":
            raise StorageError(
                "check.access_denied", "deleting version 1 of s3://deltas/x: AccessDenied", "AccessDenied"
            )
        purge(store, held)

    monkeypatch.setattr("shared.quarantine.restore.purge", forbid)
    result = run("purge", "s3://deltas", "--older-than", "0d", "--yes", "--format", "ndjson")
    first, second, summary = lines(result)
    assert (result.exit_code, first["purged"], second["purged"]) == (3, False, True)
    assert "AccessDenied" in first["reason"]
    assert summary == {"summary": {"purged": 1, "kept": 1}}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["list", "words/delta"], "give the place in S3 that the delta was taken from"),
        (["list", "gs://deltas"], "not an s3://bucket/prefix"),
        (["list", "s3://no-such-bucket"], "s3://no-such-bucket: no such bucket"),
        (["show", "s3://deltas/nothing"], "nothing of it lies in quarantine"),
        (["restore", "s3://deltas/nothing"], "nothing of it lies in quarantine"),
        (["purge", "s3://deltas", "--older-than", "soon"], "'soon' is not an age such as 30d, 12h or 90m"),
        (["restore"], "Missing argument"),
    ],
)
def test_wrong_usage_is_one_clear_line(arguments: list[str], message: str) -> None:
    result = run(*arguments)
    assert (result.exit_code, result.stdout) == (2, "")
    assert message in result.stderr.splitlines()[-1]


@pytest.mark.parametrize("command", ["list", "show", "restore", "purge"])
def test_help_tells_the_exit_status(command: str) -> None:
    assert "Exit status:" in run(command, "--help").stdout
