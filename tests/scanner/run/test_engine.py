"""Long runs from the command line: stopped, resumed, narrowed down, slowed down, and asked to move what is corrupt."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import boto3
import pytest
from click.testing import CliRunner, Result

from scanner.cli import cli
from scanner.find.cost import Estimate
from scanner.run import throttle
from shared.check.judgement import judge_stored
from shared.model.delta import DATABASE, DeltaLocation
from shared.model.settings import Settings
from shared.model.tags import with_verdict
from shared.model.verdict import Depth
from shared.storage.store import Store
from shared.upload import upload_delta
from tests import ROOT
from tests.conftest import CopyOf, PutDelta
from tests.support import faults

SERVERS = ("moto", "rclone")


def run(*arguments: str | Path) -> Result:
    return CliRunner().invoke(cli, [str(argument) for argument in arguments], catch_exceptions=False)


def verdicts_of(result: Result) -> dict[str, str]:
    """Status by delta, from ndjson; each delta has one line."""
    lines = [json.loads(line) for line in result.stdout.splitlines()[:-1]]
    assert len({line["delta"] for line in lines}) == len(lines)
    return {line["delta"]: line["status"] for line in lines}


def summary_of(result: Result) -> dict[str, Any]:
    summary: dict[str, Any] = json.loads(result.stdout.splitlines()[-1])["summary"]
    return summary


@pytest.fixture
def broken(copy_of: CopyOf, healthy_delta: Path) -> Path:
    folder = copy_of(healthy_delta)
    os.truncate(folder / DATABASE, (folder / DATABASE).stat().st_size // 2)
    return folder


@pytest.fixture
def many(tmp_path: Path) -> Path:
    """Folders that are corrupt deltas, more than a pipe holds lines for."""
    for number in range(600):
        folder = tmp_path / "many" / f"{number:03}"
        folder.mkdir(parents=True)
        (folder / DATABASE).write_bytes(b"")
    return tmp_path / "many"


@pytest.fixture
def seen_requests(aws: str, monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The requests of every store made from now on."""
    requests: list[Any] = []
    store = faults.doing(requests.append)
    monkeypatch.setattr("shared.storage.store.current_store", lambda: store)
    return requests


def kind_of(request: Any) -> str:
    if request.method == "HEAD":
        return "HEAD"
    if "list-type=2" in request.url:
        return "LIST"
    if request.url.endswith("?tagging"):
        return "GET tags"
    return "GET range" if "Range" in request.headers else "GET"


def objects_in(bucket: str) -> dict[str, str]:
    pages = boto3.client("s3").get_paginator("list_objects_v2").paginate(Bucket=bucket)
    return {entry["Key"]: entry["ETag"] for page in pages for entry in page.get("Contents", [])}


class TestResume:
    @pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL])
    def test_a_scan_that_was_stopped_goes_on_and_reports_on_all(self, many: Path, tmp_path: Path, how: int) -> None:
        checkpoint = tmp_path / "checkpoint"
        options = ("scan", str(many), "--format", "ndjson", "--resume", str(checkpoint))
        with subprocess.Popen(
            [sys.executable, "-m", "scanner", *options],
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        ) as first:
            assert first.stdout is not None
            first.stdout.readline()
            first.send_signal(how)
            first.stdout.read()
            assert first.wait(60) == (130 if how == signal.SIGINT else -signal.SIGKILL)
        done = checkpoint.read_text().count('"verdict"')
        assert 0 < done < 600
        second = run(*options)
        assert second.exit_code == 1
        assert verdicts_of(second) == {str(many / f"{number:03}"): "corrupt" for number in range(600)}
        assert checkpoint.read_text().count('"number"') in (600, 601), "one was perhaps torn; no other was judged twice"
        assert summary_of(second)["corrupt"] == 600

    def test_a_scan_in_s3_reads_no_page_before_the_bookmark(
        self, put_delta: PutDelta, healthy_delta: Path, tmp_path: Path, bucket: str, seen_requests: list[Any]
    ) -> None:
        for name in "ab":
            put_delta(healthy_delta, f"words/{name}")
        options = ("scan", f"s3://{bucket}/words", "--resume", tmp_path / "file", "--format", "ndjson", "--jobs", "1")
        assert run(*options).exit_code == 0
        put_delta(healthy_delta, "words/c")
        seen_requests.clear()
        again = run(*options)
        assert verdicts_of(again) == {f"s3://{bucket}/words/{name}/": "healthy" for name in "abc"}
        assert sum("start-after=words/b/" in request.url.replace("%2F", "/") for request in seen_requests) == 1
        assert not [request.url for request in seen_requests if "/words/a/" in request.url.partition("?")[0]]

    def test_what_could_not_be_checked_is_tried_again(
        self, put_delta: PutDelta, healthy_delta: Path, tmp_path: Path, bucket: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        for name in "abc":
            put_delta(healthy_delta, f"words/{name}")
        options = ("scan", f"s3://{bucket}/words", "--resume", tmp_path / "file", "--format", "ndjson")
        with monkeypatch.context() as patch:
            store = faults.answering("AccessDenied", 403, lambda request: request.url.endswith(f"b/{DATABASE}"))
            patch.setattr("shared.storage.store.current_store", lambda: store)
            first = run(*options)
        assert (first.exit_code, verdicts_of(first)[f"s3://{bucket}/words/b/"]) == (3, "undetermined")
        second = run(*options)
        assert (second.exit_code, set(verdicts_of(second).values())) == (0, {"healthy"})
        assert summary_of(second)["total"] == 3

    def test_another_scan_may_not_go_on_with_it(self, healthy_delta: Path, tmp_path: Path) -> None:
        assert run("scan", healthy_delta, "--resume", tmp_path / "file").exit_code == 0
        result = run("scan", healthy_delta, "--resume", tmp_path / "file", "--depth", "header")
        assert (result.exit_code, result.stdout) == (2, "")
        assert 'a scan with depth "structure", not "header"' in result.stderr

    def test_it_is_not_overwritten_by_the_report(self, healthy_delta: Path, tmp_path: Path) -> None:
        result = run("scan", healthy_delta, "--resume", tmp_path / "file", "--output", tmp_path / "file")
        assert (result.exit_code, (tmp_path / "file").exists()) == (2, False)


class TestSelection:
    def test_the_parts_are_the_whole(self, many: Path) -> None:
        parts = [verdicts_of(run("scan", many, "--subset", f"{n}/3", "--format", "ndjson")) for n in (1, 2, 3)]
        assert sum(map(len, parts)) == len(parts[0] | parts[1] | parts[2]) == 600

    def test_a_budget_is_kept_over_all_prefixes(self, put_delta: PutDelta, healthy_delta: Path, bucket: str) -> None:
        size = sum(path.stat().st_size for path in healthy_delta.rglob("*") if path.is_file())
        for name in "abcd":
            put_delta(healthy_delta, f"words/{name}")
        options = ("scan", f"s3://{bucket}/words", "--subset", str(3 * size - 1), "--format", "ndjson")
        first = verdicts_of(run(*options))
        assert len(first) == 2
        assert verdicts_of(run(*options)) == first

    def test_a_budget_can_be_resumed(self, many: Path, tmp_path: Path, healthy_delta: Path) -> None:
        options = ("scan", many, healthy_delta, "--subset", "1T", "--resume", tmp_path / "file", "--format", "ndjson")
        with_limit = run(*options, "--max-duration", "0.05s")
        assert with_limit.exit_code in (1, 3)
        assert len(verdicts_of(run(*options))) == 601

    def test_only_what_was_modified_since(self, put_delta: PutDelta, healthy_delta: Path, bucket: str) -> None:
        put_delta(healthy_delta, "words/old")
        time.sleep(1.1)  # S3 keeps whole seconds
        moment = datetime.now(UTC)
        time.sleep(1.1)
        put_delta(healthy_delta, "words/new")
        found = verdicts_of(
            run("scan", f"s3://{bucket}/words", "--newer-than", moment.isoformat(), "--format", "ndjson")
        )
        assert set(found) == {f"s3://{bucket}/words/new/"}
        assert len(verdicts_of(run("scan", f"s3://{bucket}/words", "--newer-than", "1h", "--format", "ndjson"))) == 2

    def test_nothing_wanted_is_said(self, healthy_delta: Path) -> None:
        result = run("scan", healthy_delta, "--newer-than", "2999-01-01")
        assert (result.exit_code, result.stderr) == (0, "no deltas found that are wanted\n")

    def test_the_time_that_was_given_ends_the_run_and_shows_in_the_exit_status(self, healthy_delta: Path) -> None:
        result = run("scan", healthy_delta, "--max-duration", "0.000001s")
        assert result.exit_code == 3
        assert "the time was over before all were checked" in " ".join(result.stdout.split())

    @pytest.mark.parametrize(
        "options",
        [("--subset", "11/10"), ("--newer-than", "soon"), ("--max-duration", "0m"), ("--max-duration", "ten")],
    )
    def test_what_cannot_be_read_is_a_usage_error(self, healthy_delta: Path, options: tuple[str, str]) -> None:
        result = run("scan", healthy_delta, *options)
        assert result.exit_code == 2
        assert "must be" in result.stderr


class TestThrottling:
    def test_a_throttled_delta_is_tried_again_and_gets_its_verdict(
        self, put_delta: PutDelta, healthy_delta: Path, bucket: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        for name in "abcd":
            put_delta(healthy_delta, f"words/{name}")
        left = 6

        def throttled(request: Any) -> bool:
            nonlocal left
            left -= request.url.endswith(DATABASE) and left > 0
            return bool(request.url.endswith(DATABASE) and left > 0)

        store = faults.answering("SlowDown", 503, throttled)
        monkeypatch.setattr("shared.storage.store.current_store", lambda: store)
        monkeypatch.setattr(throttle, "PAUSES", (0.01,) * 8)
        result = run("scan", f"s3://{bucket}/words", "--format", "ndjson")
        assert (result.exit_code, len(verdicts_of(result)), left) == (0, 4, 0)

    def test_a_throttled_listing_goes_on_where_it_was(
        self, put_delta: PutDelta, healthy_delta: Path, bucket: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        for name in "abcd":
            put_delta(healthy_delta, f"words/{name}")
        listings = 0

        def throttled(request: Any) -> bool:
            nonlocal listings
            listings += "list-type=2" in request.url
            return "list-type=2" in request.url and listings in (3, 4)

        store = faults.answering("SlowDown", 503, throttled)
        real = store._client.list_objects_v2
        monkeypatch.setattr(store._client, "list_objects_v2", lambda **request: real(**{"MaxKeys": 4, **request}))
        monkeypatch.setattr("shared.storage.store.current_store", lambda: store)
        monkeypatch.setattr(throttle, "PAUSES", (0.01,) * 8)
        result = run("scan", f"s3://{bucket}/words", "--format", "ndjson", "--depth", "listing")
        assert (result.exit_code, len(verdicts_of(result))) == (0, 4)
        assert listings > 4


class TestTags:
    @pytest.fixture
    def tagged(self, put_delta: PutDelta, broken: Path, store: Store) -> DeltaLocation:
        """A corrupt delta with a tag that says it is healthy: who believes it shows."""
        location = put_delta(broken, "words/tagged")
        verdict = judge_stored(store, location, Depth.LISTING, Settings(settle_seconds=0, arrival_seconds=0)).verdict
        healthy = type(verdict)(verdict.delta, Depth.OPEN, (), fingerprint=verdict.fingerprint)
        store.set_tags(location.bucket, location.key(DATABASE), with_verdict({}, healthy, datetime.now(UTC)) or {})
        return location

    @pytest.mark.server("moto")
    def test_a_tag_on_the_same_objects_is_believed_unless_not_wanted(self, tagged: DeltaLocation) -> None:
        for command in ("check", "scan"):
            assert run(command, tagged.uri).exit_code == 0
            assert run(command, tagged.uri, "--no-cache").exit_code == 1

    @pytest.mark.server("moto")
    def test_an_overwritten_delta_loses_it(self, tagged: DeltaLocation, store: Store) -> None:
        tags = store.tags(tagged.bucket, tagged.key(DATABASE))
        store.put(tagged.bucket, tagged.key(f"{DATABASE}-shm"), b"newer")
        store.set_tags(tagged.bucket, tagged.key(DATABASE), tags)
        assert run("scan", tagged.uri).exit_code == 1

    @pytest.mark.server("moto")
    def test_a_tagged_delta_costs_one_request(self, tagged: DeltaLocation, seen_requests: list[Any]) -> None:
        run("scan", f"s3://{tagged.bucket}", "--jobs", "1")
        kinds = [kind_of(request) for request in seen_requests]
        assert kinds == ["LIST", "LIST", "GET tags", "GET tags"], "the first: whether this store has tags at all"

    @pytest.mark.server("rclone")
    def test_a_store_without_tags_is_asked_once(
        self, put_delta: PutDelta, healthy_delta: Path, bucket: str, seen_requests: list[Any]
    ) -> None:
        for name in "abc":
            put_delta(healthy_delta, f"words/{name}")
        assert run("scan", f"s3://{bucket}/words").exit_code == 0
        urls = [request.url for request in seen_requests if kind_of(request) == "GET tags"]
        assert len(set(urls)) == 1

    def test_a_scan_writes_nothing(self, put_delta: PutDelta, healthy_delta: Path, seen_requests: list[Any]) -> None:
        location = put_delta(healthy_delta, "words/a")
        seen_requests.clear()
        assert run("scan", location.uri).exit_code == 0
        assert {request.method for request in seen_requests} <= {"GET", "HEAD"}


class TestQuarantine:
    @pytest.fixture
    def mixed(self, put_delta: PutDelta, healthy_delta: Path, broken: Path, monkeypatch: pytest.MonkeyPatch) -> str:
        """A healthy and a corrupt delta that both have settled."""
        monkeypatch.setenv("DELTAGUARD_SETTLE_SECONDS", "0")
        monkeypatch.setenv("DELTAGUARD_ARRIVAL_SECONDS", "0")
        put_delta(healthy_delta, "words/good")
        return put_delta(broken, "words/bad").bucket

    def test_a_dry_run_says_what_would_move_and_touches_nothing(self, mixed: str, seen_requests: list[Any]) -> None:
        before = objects_in(mixed)
        result = run("scan", f"s3://{mixed}", "--quarantine", "--dry-run")
        assert result.exit_code == 1
        assert f"would move s3://{mixed}/words/bad/ to s3://{mixed}/quarantine/words/bad/" in result.stderr
        assert "words/good" not in result.stderr
        assert "1 would be quarantined" in " ".join(result.stdout.split())
        assert objects_in(mixed) == before
        assert {request.method for request in seen_requests} == {"GET"}

    @pytest.mark.server("moto")
    @pytest.mark.parametrize("command", ["scan", "check"])
    def test_what_is_corrupt_is_moved_whole_and_said(self, mixed: str, command: str) -> None:
        before = objects_in(mixed)
        targets = [f"s3://{mixed}/words/{name}" for name in ("bad", "good")]
        result = run(command, *targets, "--quarantine", "--format", "ndjson")
        assert (result.exit_code, summary_of(result)["quarantined"]) == (1, 1)
        (said,) = result.stderr.splitlines()
        moved, place = said.removeprefix("moved ").split(" to ")
        assert moved == f"s3://{mixed}/words/bad/"
        after = objects_in(mixed)
        below = place.removeprefix(f"s3://{mixed}/")
        for key, etag in before.items():
            good = "/good/" in key
            assert after.get(key) == (etag if good else None)
            assert good or after[below + key.removeprefix("words/bad/")] == etag
        assert below + "quarantine.json" in after
        again = run("scan", f"s3://{mixed}", "--quarantine")
        assert (again.exit_code, again.stderr) == (0, "")

    @pytest.mark.server("moto")
    def test_logs_of_quarantine_are_no_part_of_the_results(self, mixed: str, broken: Path, put_delta: PutDelta) -> None:
        run("scan", f"s3://{mixed}", "--quarantine")
        time.sleep(1.1)  # S3 keeps seconds, and what came back is newer than its record
        put_delta(broken, "words/bad")
        result = run("scan", f"s3://{mixed}", "--quarantine", "--format", "ndjson")
        assert all({"status", "summary"} & json.loads(line).keys() for line in result.stdout.splitlines())
        assert "Delta came back as it was quarantined before" in result.stderr

    @pytest.mark.server("rclone")
    def test_a_store_without_conditions_is_looked_at_again_before_each_delete(self, mixed: str) -> None:
        before = objects_in(mixed)
        result = run("scan", f"s3://{mixed}", "--quarantine", "--format", "ndjson")
        assert (result.exit_code, summary_of(result)["quarantined"]) == (1, 1)
        held = set(objects_in(mixed).values())
        assert {etag for key, etag in before.items() if "/bad/" in key} <= held
        assert not any(key.startswith("words/bad/") for key in objects_in(mixed))

    @pytest.mark.server("moto")
    def test_whom_the_settings_name_is_told_of_what_was_moved(
        self, mixed: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("DELTAGUARD_EVENT_BUS", "arn:aws:events:us-east-1:123456789012:event-bus/nowhere")
        result = run("scan", f"s3://{mixed}", "--quarantine", "--format", "ndjson")
        assert (result.exit_code, summary_of(result)["quarantined"]) == (1, 1)
        assert "moved, but not everybody was told of s3://deltas/words/bad/: " in result.stderr
        boto3.client("events").create_event_bus(Name="nowhere")
        assert run("scan", f"s3://{mixed}", "--quarantine").exit_code == 0

    @pytest.mark.server("moto")
    def test_what_cannot_be_moved_is_said_and_the_run_goes_on(
        self, mixed: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        before = objects_in(mixed)
        store = faults.answering("AccessDenied", 403, lambda request: request.method == "PUT")
        monkeypatch.setattr("shared.storage.store.current_store", lambda: store)
        result = run("scan", f"s3://{mixed}", "--quarantine", "--format", "ndjson")
        assert (result.exit_code, summary_of(result)["total"], summary_of(result)["quarantined"]) == (1, 2, 0)
        assert "not moved" in result.stderr
        assert "AccessDenied" in result.stderr
        assert objects_in(mixed) == before

    def test_what_is_not_corrupt_is_never_moved(
        self, put_delta: PutDelta, healthy_delta: Path, bucket: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        put_delta(healthy_delta, "words/good")
        store = faults.answering("AccessDenied", 403, lambda request: request.url.endswith(DATABASE))
        monkeypatch.setattr("shared.storage.store.current_store", lambda: store)
        before = objects_in(bucket)
        assert run("scan", f"s3://{bucket}", "--quarantine").exit_code == 3
        assert objects_in(bucket) == before

    def test_a_local_folder_cannot_be_moved(self, healthy_delta: Path) -> None:
        for command in ("check", "scan"):
            result = run(command, healthy_delta, "--quarantine")
            assert (result.exit_code, result.stdout) == (2, "")
            assert "--quarantine moves deltas in S3, not local folders" in result.stderr

    def test_a_dry_run_of_nothing_is_a_usage_error(self, healthy_delta: Path) -> None:
        assert "--dry-run goes with --quarantine" in run("scan", healthy_delta, "--dry-run").stderr


class TestEstimate:
    @pytest.mark.server("moto")
    @pytest.mark.parametrize("cache", [True, False])
    @pytest.mark.parametrize("depth", ["listing", "header", "structure"])
    def test_it_tells_exactly_the_requests_of_the_scan(
        self,
        put_delta: PutDelta,
        healthy_delta: Path,
        flushed_delta: Path,
        bucket: str,
        depth: str,
        cache: bool,
        seen_requests: list[Any],
    ) -> None:
        put_delta(healthy_delta, "words/a")
        put_delta(flushed_delta, "words/b")
        for name, folder in (("c", healthy_delta), ("d", flushed_delta)):
            upload_delta(folder, bucket, f"words/{name}", batch_id="batch")
        options = (f"s3://{bucket}/words", "--depth", depth, *(() if cache else ("--no-cache",)))
        told = json.loads(run("estimate", *options, "--format", "json").stdout)
        seen_requests.clear()
        scanned = run("scan", *options, "--format", "ndjson")
        assert set(verdicts_of(scanned).values()) == {"healthy"}
        asked = Counter(map(kind_of, seen_requests))
        if cache and depth == "structure":
            asked["GET tags"] -= 1  # whether this store has tags at all is asked once
        assert told["requests"] == asked
        assert (told["deltas"], told["bytes"]) == (4, summary_of(scanned)["bytes"])

    def test_dollars_follow_the_requests(self) -> None:
        made = Estimate(Depth.HEADER, asks_tags=True)
        made.requests.update({"LIST": 1000, "GET range": 10_000})
        assert made.dollars == pytest.approx(0.005 + 0.004)
        assert made.seconds(jobs=8, cpus=2) == pytest.approx(10_000 * 0.1 / 8)

    def test_people_get_a_few_lines(self, put_delta: PutDelta, healthy_delta: Path, bucket: str) -> None:
        put_delta(healthy_delta, "words/a")
        lines = run("estimate", f"s3://{bucket}/words").stdout.splitlines()
        assert [line[:12].strip() for line in lines] == [
            "depth", "deltas", "requests", "bytes read", "price", "", "time",
        ]  # fmt: skip
        assert "(1 GET, 1 GET tags, 2 LIST)" in lines[2]

    def test_it_reads_no_object(
        self, put_delta: PutDelta, healthy_delta: Path, bucket: str, seen_requests: list[Any]
    ) -> None:
        put_delta(healthy_delta, "words/a")
        assert run("estimate", f"s3://{bucket}/words").exit_code == 0
        assert {kind_of(request) for request in seen_requests} == {"LIST"}
