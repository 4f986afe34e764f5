"""Logs, metrics and traces as CloudWatch and X-Ray receive them."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from dataclasses import replace
from typing import Any

import pytest

from shared.aws import telemetry
from shared.model.verdict import Depth, Finding, Verdict

HEALTHY = Verdict("s3://deltas/d/1/", Depth.OPEN, duration_ms=12.5)
CORRUPT = Verdict("s3://deltas/d/1/", Depth.OPEN, (Finding("sqlite.empty", "chroma.sqlite3", "0 bytes"),))
UNDETERMINED = Verdict("s3://deltas/d/1/", Depth.OPEN, (Finding("check.timeout", "", "60 s"),))


def emitted(capsys: pytest.CaptureFixture[str]) -> list[dict[str, Any]]:
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


@pytest.mark.parametrize(
    ("verdict", "one"),
    [
        (HEALTHY, "DeltaValidationSuccess"),
        (CORRUPT, "DeltaValidationFailures"),
        (UNDETERMINED, "DeltasUndetermined"),
    ],
)
def test_a_verdict_is_an_attempt_a_duration_and_the_metric_of_its_status(
    capsys: pytest.CaptureFixture[str], verdict: Verdict, one: str
) -> None:
    telemetry.count_verdict("validator", "prod", verdict, "words")
    (line,) = emitted(capsys)
    outcomes = ("DeltaValidationSuccess", "DeltaValidationFailures", "DeltasUndetermined")
    assert {name: line[name] for name in outcomes} == {name: [1.0] if name == one else [0.0] for name in outcomes}
    assert (line["DeltaValidationAttempts"], line["DeltaValidationDuration"]) == ([1.0], [verdict.duration_ms])
    (directive,) = line["_aws"]["CloudWatchMetrics"]
    assert directive["Namespace"] == "Deltaguard"
    assert {frozenset(dimensions) for dimensions in directive["Dimensions"]} == {
        frozenset({"service", "stage"}),
        frozenset({"service", "stage", "collection"}),
        frozenset({"service", "stage", "depth"}),
    }
    assert {metric["Name"]: metric["Unit"] for metric in directive["Metrics"]}[
        "DeltaValidationDuration"
    ] == "Milliseconds"


def test_a_verdict_on_which_bytes_and_chroma_disagree_is_counted_as_such(capsys: pytest.CaptureFixture[str]) -> None:
    doubtful = replace(UNDETERMINED, observed=(Finding("verdict.disagreement", "", "the bytes read healthy"),))
    for verdict in (HEALTHY, UNDETERMINED, doubtful):
        telemetry.count_verdict("validator", "prod", verdict, "words")
    assert [line["VerdictDisagreements"] for line in emitted(capsys)] == [[0.0], [0.0], [1.0]]


def test_a_delta_without_a_collection_is_counted_under_unknown(capsys: pytest.CaptureFixture[str]) -> None:
    telemetry.count("gate", "prod", "ChunksRejected")
    (line,) = emitted(capsys)
    assert (line["collection"], line["ChunksRejected"]) == ("unknown", [1.0])


def test_a_program_with_results_on_stdout_sends_the_rest_to_stderr(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(telemetry._output, "to_stderr", False)
    telemetry.use_stderr()
    telemetry.logger.info("Validating uploaded delta...")
    telemetry.count("gate", "prod", "ChunksRejected")
    captured = capsys.readouterr()
    assert captured.out == ""
    assert len(captured.err.splitlines()) == 2


def test_in_lambda_a_trace_reaches_the_daemon_with_its_annotations() -> None:
    daemon = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    daemon.bind(("127.0.0.1", 0))
    daemon.settimeout(10)
    environment = {
        **os.environ,
        "LAMBDA_TASK_ROOT": "/var/task",
        "_X_AMZN_TRACE_ID": "Root=1-5759e988-bd862e3fe1be46a994272793;Parent=53995c3f42cd8ad8;Sampled=1",
        "AWS_XRAY_DAEMON_ADDRESS": f"127.0.0.1:{daemon.getsockname()[1]}",
    }
    environment.pop("AWS_XRAY_SDK_ENABLED", None)
    program = (
        "from shared.aws.telemetry import traced\nwith traced('validate', delta_id='one') as a: a('status', 'healthy')"
    )
    subprocess.run([sys.executable, "-c", program], env=environment, check=True, timeout=60)
    with daemon:
        header, _, document = daemon.recvfrom(65536)[0].decode().partition("\n")
    trace = json.loads(document)
    assert json.loads(header)["format"] == "json"
    assert (trace["name"], trace["annotations"]) == ("## validate", {"delta_id": "one", "status": "healthy"})
