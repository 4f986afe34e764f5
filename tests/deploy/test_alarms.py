"""No alarm and no line of the dashboard watches a metric that nobody sends: the functions run, their output is read."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import boto3
import pytest

from devtools.stack.shim import InvocationContext
from devtools.stack.stack import DELTAS, RESUBMIT, LocalStack, addresses
from scanner.gate import ChunkRejected, precheck
from shared.model.delta import DATABASE
from shared.upload import upload_delta
from tests.support import faults
from validator import handler as validator
from validator import resubmission

pytestmark = pytest.mark.slow

STAGE = "test"
ALARMS = {
    "CorruptionSeen",
    "CorruptionRate",
    "Undetermined",
    "DeltasDead",
    "ResubmitDead",
    "ScanFailing",
    "ChunkRejected",
    "ResubmissionExhausted",
    "FunctionsFailing",
    "OldestMessage",
    "Disagreement",
}
Metric = tuple[str, str, frozenset[tuple[str, str]]]


@pytest.fixture
def sent(
    aws: str, healthy_delta: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> set[Metric]:
    """Every metric that the functions send in a run in which all happens: healthy, corrupt, undetermined, refused."""
    settings = {
        "STAGE": STAGE,
        "DEPTH": "structure",
        "SETTLE_SECONDS": "0",
        "ARRIVAL_SECONDS": "0",
        "MAX_RESUBMISSIONS": "1",
    }
    for name, value in (addresses(aws) | {f"DELTAGUARD_{name}": value for name, value in settings.items()}).items():
        monkeypatch.setenv(name, value)
    stack = LocalStack(aws, "deltas")
    stack.create(prefix="words/", visibility_seconds=0)
    for number in (1, 2):  # the second corrupt delta of the batch is one too many
        upload_delta(healthy_delta, "deltas", f"words/delta/broken-{number}", batch_id="b-1")
        stack.s3.put_object(Bucket="deltas", Key=f"words/delta/broken-{number}/{DATABASE}", Body=b"no database")
    upload_delta(healthy_delta, "deltas", "words/delta/healthy")
    capsys.readouterr()
    with monkeypatch.context() as broken:
        broken.setattr(validator, "current_store", lambda: faults.answering("AccessDenied", 403))
        stack.deliver(validator.handler)
    while stack.waiting(DELTAS)[0]:
        boto3.client("sqs").set_queue_attributes(
            QueueUrl=f"{aws}/123456789012/deltas", Attributes={"VisibilityTimeout": "0"}
        )
        validator.handler(events(stack), InvocationContext())
    while stack.deliver(resubmission.handler, RESUBMIT):
        pass
    with pytest.raises(ChunkRejected):
        precheck("deltas", ["words/delta/broken-1"])
    return set(metrics(capsys.readouterr().out))


def events(stack: LocalStack) -> Any:
    """The events of all uploads, whatever the queue still hides; the queue is emptied."""
    keys = [o["Key"] for o in stack.s3.list_objects_v2(Bucket="deltas", Prefix="words/")["Contents"]]
    boto3.client("sqs").purge_queue(QueueUrl=f"{stack.endpoint}/123456789012/deltas")
    return {
        "Records": [
            {"eventName": "ObjectCreated:Put", "s3": {"bucket": {"name": "deltas"}, "object": {"key": key}}}
            for key in keys
        ]
    }


def metrics(output: str) -> Iterator[Metric]:
    """The metrics that CloudWatch makes of these EMF lines: namespace, name and dimensions with their values."""
    for line in map(json.loads, output.splitlines()):
        for directive in line.get("_aws", {}).get("CloudWatchMetrics", []):
            for dimensions in directive["Dimensions"]:
                values = frozenset((name, line[name]) for name in dimensions)
                yield from ((directive["Namespace"], metric["Name"], values) for metric in directive["Metrics"])


def watched(alarm: dict[str, Any]) -> list[dict[str, Any]]:
    return (
        [alarm] if "MetricName" in alarm else [m["MetricStat"]["Metric"] for m in alarm["Metrics"] if "MetricStat" in m]
    )


def dimensions_of(metric: dict[str, Any]) -> dict[str, Any]:
    return {dimension["Name"]: dimension["Value"] for dimension in metric["Dimensions"]}


def alarms(resources: dict[str, Any]) -> dict[str, Any]:
    return {name: r["Properties"] for name, r in resources.items() if r["Type"] == "AWS::CloudWatch::Alarm"}


def test_every_alarm_watches_a_metric_that_a_function_or_aws_sends(
    resources: dict[str, Any], sent: set[Metric]
) -> None:
    found = alarms(resources)
    assert set(found) == ALARMS
    for alarm in found.values():
        for metric in watched(alarm):
            dimensions = dimensions_of(metric)
            if metric["Namespace"] == "Deltaguard":
                assert ("Deltaguard", metric["MetricName"], frozenset(dimensions.items())) in sent
            elif metric["Namespace"] == "AWS/SQS":
                queue, attribute = dimensions["QueueName"]["Fn::GetAtt"]
                assert (resources[queue]["Type"], attribute) == ("AWS::SQS::Queue", "QueueName")
            elif (
                metric["Namespace"] == "AWS/States"
            ):  # https://docs.aws.amazon.com/step-functions/latest/dg/procedure-cw-metrics.html
                assert metric["MetricName"] in ("ExecutionsFailed", "ExecutionsTimedOut")
                assert resources[dimensions["StateMachineArn"]["Ref"]]["Type"] == "AWS::StepFunctions::StateMachine"
            else:
                assert (metric["Namespace"], metric["MetricName"]) == ("AWS/Lambda", "Errors")
                assert resources[dimensions["FunctionName"]["Ref"]]["Type"] == "AWS::Lambda::Function"


def test_failures_of_every_function_are_counted(resources: dict[str, Any]) -> None:
    watching = {
        dimensions_of(metric)["FunctionName"]["Ref"] for metric in watched(alarms(resources)["FunctionsFailing"])
    }
    assert watching == {name for name, r in resources.items() if r["Type"] == "AWS::Lambda::Function"}


def test_every_dead_letter_queue_is_watched(resources: dict[str, Any]) -> None:
    dead = {
        r["Properties"]["RedrivePolicy"]["deadLetterTargetArn"]["Fn::GetAtt"][0]
        for r in resources.values()
        if r["Type"] == "AWS::SQS::Queue" and "RedrivePolicy" in r["Properties"]
    }
    watching = {
        dimensions_of(metric)["QueueName"]["Fn::GetAtt"][0]
        for name in ("DeltasDead", "ResubmitDead")
        for metric in watched(alarms(resources)[name])
    }
    assert watching == dead


def test_every_alarm_tells_the_topic_and_thresholds_can_be_set(resources: dict[str, Any]) -> None:
    found = alarms(resources)
    assert all(alarm["AlarmActions"] == [{"Ref": "Notices"}] for alarm in found.values())
    assert {name: alarm["Threshold"] for name, alarm in found.items() if isinstance(alarm["Threshold"], dict)} == {
        "CorruptionSeen": {"Ref": "CorruptDeltas"},
        "CorruptionRate": {"Ref": "CorruptPercent"},
        "Undetermined": {"Ref": "UndeterminedDeltas"},
        "OldestMessage": {"Ref": "OldestMessageSeconds"},
        "FunctionsFailing": {"Ref": "FunctionErrors"},
    }


def test_every_line_of_the_dashboard_shows_a_metric_that_a_function_sends(
    resources: dict[str, Any], sent: set[Metric]
) -> None:
    body = json.loads(resources["Dashboard"]["Properties"]["DashboardBody"]["Fn::Sub"])
    rows = [row for widget in body["widgets"] for row in widget["properties"]["metrics"]]
    named = [row for row in rows if isinstance(row[0], str) and row[0] == "Deltaguard"]
    for namespace, metric, *rest in named:
        pairs = [part for part in rest if isinstance(part, str)]
        assert (namespace, metric, frozenset(zip(pairs[::2], pairs[1::2], strict=True))) in sent
    searches = [row[0]["expression"] for row in rows if isinstance(row[0], dict) and "SEARCH" in row[0]["expression"]]
    for search in searches:
        schema = re.search(r"\{Deltaguard,([a-z,]+)\}", search)
        wanted = dict(re.findall(r'(\w+)="(\w+)"', search))
        assert schema, search
        name = wanted.pop("MetricName")
        assert [
            metric
            for metric in sent
            if metric[1] == name
            and {dimension for dimension, _ in metric[2]} == set(schema[1].split(","))
            and wanted.items() <= dict(metric[2]).items()
        ], search
    assert (len(named), len(searches)) == (9, 5)
