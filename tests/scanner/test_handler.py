"""The scanner's Lambda: what it is asked for, what it answers, and what it leaves alone."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import boto3
import pytest

from devtools.stack.shim import InvocationContext
from scanner.handler import handler
from shared.model.delta import DATABASE
from shared.model.errors import TargetError
from tests.conftest import CopyOf, PutDelta


@pytest.fixture
def three_deltas(healthy_delta: Path, copy_of: CopyOf, put_delta: PutDelta) -> str:
    """Two healthy deltas and a truncated one, below a prefix."""
    broken = copy_of(healthy_delta)
    os.truncate(broken / DATABASE, (broken / DATABASE).stat().st_size // 2)
    put_delta(healthy_delta, "words/delta/one")
    put_delta(broken, "words/delta/two")
    put_delta(healthy_delta, "words/delta/three")
    return "s3://deltas/words/"


def keys(prefix: str) -> list[str]:
    found = boto3.client("s3").list_objects_v2(Bucket="deltas", Prefix=prefix)
    return [entry["Key"] for entry in found.get("Contents", [])]


def test_it_answers_with_a_summary_and_changes_nothing(three_deltas: str) -> None:
    before = keys("")
    answer = handler({"targets": [three_deltas]}, InvocationContext())
    summary = answer["summary"]
    assert (summary["total"], summary["healthy"], summary["corrupt"]) == (3, 2, 1)
    assert (summary["complete"], summary["quarantined"]) == (True, 0)
    assert "output" not in answer
    assert keys("") == before


def test_the_results_go_where_they_are_asked_for_as_the_command_line_writes_them(three_deltas: str) -> None:
    answer = handler({"targets": [three_deltas], "output": "s3://deltas/results/today.ndjson"}, InvocationContext())
    assert answer["output"] == "s3://deltas/results/today.ndjson"
    body = boto3.client("s3").get_object(Bucket="deltas", Key="results/today.ndjson")["Body"].read()
    *verdicts, last = [json.loads(line) for line in body.splitlines()]
    assert last == {"summary": answer["summary"]}
    statuses = {verdict["delta"].rstrip("/").rpartition("/")[2]: verdict["status"] for verdict in verdicts}
    assert statuses == {"one": "healthy", "two": "corrupt", "three": "healthy"}


def test_only_when_asked_corrupt_deltas_go_to_quarantine(three_deltas: str) -> None:
    answer = handler({"targets": [three_deltas], "quarantine": True}, InvocationContext())
    assert answer["summary"]["quarantined"] == 1
    assert keys("words/delta/two/") == []
    assert len(keys("quarantine/words/delta/two/")) > 1
    assert len(keys("words/delta/one/")) == len(keys("words/delta/three/")) > 1


def test_what_could_not_be_quarantined_is_said_and_stays(three_deltas: str, monkeypatch: pytest.MonkeyPatch) -> None:
    before = keys("words/")
    monkeypatch.setenv("DELTAGUARD_QUARANTINE_BUCKET", "not-there")
    answer = handler({"targets": [three_deltas], "quarantine": True}, InvocationContext())
    assert (answer["summary"]["quarantined"], answer["summary"]["complete"]) == (0, False)
    assert keys("words/") == before


@pytest.mark.parametrize("limit", ["of the request", "of the invocation"])
def test_out_of_time_it_begins_nothing_more_and_says_so(three_deltas: str, limit: str) -> None:
    request: dict[str, Any] = {"targets": [three_deltas]}
    request |= {"max_duration": 1e-9} if limit == "of the request" else {}
    answer = handler(request, InvocationContext(timeout=300.0 if limit == "of the request" else 20.0))
    assert (answer["summary"]["total"], answer["summary"]["complete"]) == (0, False)


@pytest.mark.parametrize(
    ("event", "said"),
    [
        ({}, "targets: Field required"),
        ({"targets": []}, "targets: "),
        ({"targets": ["s3://deltas"], "depth": "deep"}, "depth: "),
        ({"targets": ["s3://deltas"], "delete": True}, "delete: Extra inputs"),
        ({"targets": ["/etc"]}, "/etc: not an s3://bucket/prefix"),
        ({"targets": ["s3://deltas"], "output": "s3://deltas/"}, "output s3://deltas/: not an s3://bucket/key"),
        ({"targets": ["s3://no-such-bucket/x"]}, "no such bucket"),
        ("s3://deltas", "not a request for a scan"),
    ],
)
def test_a_request_that_cannot_be_is_one_clear_error(bucket: str, event: object, said: str) -> None:
    with pytest.raises(TargetError, match=said):
        handler(event, InvocationContext())
