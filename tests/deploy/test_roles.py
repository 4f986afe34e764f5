"""Every right of a role is used by its function, and every request that a function makes is a right of its role."""

from __future__ import annotations

import fnmatch
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from botocore.client import BaseClient
from click.testing import CliRunner

from compaction import handler as compaction
from devtools.reference.roles import roles
from devtools.stack.raw_copy import copy
from devtools.stack.shim import InvocationContext
from devtools.stack.stack import RESUBMIT, LocalStack, addresses
from scanner import handler as scanner
from scanner.cli import cli
from scanner.gate import ChunkRejected
from shared.model.delta import DATABASE
from shared.upload import upload_delta
from tests.support.states import made_machine, running_functions
from validator import handler as validator
from validator import resubmission

pytestmark = pytest.mark.slow

Used = set[tuple[str, str]]
_ACCOUNT = "123456789012"
_NAMES = {
    "${Deltas}": "deltas",
    "${Quarantine}": "held",
    "${WatchedPrefix}": "words/",
    "${AWS::Partition}": "aws",
    "${AWS::Region}": "us-east-1",
    "${AWS::AccountId}": _ACCOUNT,
    "${ResubmitQueueName}": "batches",
    "${ResubmitQueue.Arn}": f"arn:aws:sqs:us-east-1:{_ACCOUNT}:resubmit",
    "${DeltasQueue.Arn}": f"arn:aws:sqs:us-east-1:{_ACCOUNT}:deltas",
    "${ScannerLambdaFunction.Arn}": f"arn:aws:lambda:us-east-1:{_ACCOUNT}:function:scanner",
    "${ResubmitStateMachine}": f"arn:aws:states:us-east-1:{_ACCOUNT}:stateMachine:words",
    "event-bus/default": "event-bus/deltaguard",  # the local stack's
}
_OF_LAMBDA = {
    *("logs:CreateLogStream", "logs:PutLogEvents", "xray:PutTraceSegments", "xray:PutTelemetryRecords"),
    *("sqs:ReceiveMessage", "sqs:DeleteMessage", "sqs:GetQueueAttributes"),
}
"""Used by Lambda itself in the name of the function."""
_SELDOM = {
    "sqs:ChangeMessageVisibility": "messages are put off when something fails",
    "s3:AbortMultipartUpload": "an upload in parts fails",
    "states:StartExecution": "the target of resubmissions is a state machine",
    "FindUploads": "a file of a delta is missing, and its arrival time is over",
    "FindParts": "such a file is being uploaded in parts",
    "TryConditionalDelete": "a store is asked once whether it knows conditional deletes",
}
"""Rights that these runs need not use, by action or statement, and when they are used."""


def allowed(function: str) -> list[dict[str, Any]]:
    """The statements of a function's role, with the names of the local stack."""
    return allowed_to(f"{function.capitalize()}Role")


def allowed_to(name: str) -> list[dict[str, Any]]:
    """The same of any role."""
    role = json.loads(roles())["Resources"][name]
    statements = role["Properties"]["Policies"][0]["PolicyDocument"]["Statement"]
    return [_named(statement["Fn::If"][1] if "Fn::If" in statement else statement) for statement in statements]


def _named(value: Any) -> Any:
    if isinstance(value, dict) and "Fn::Sub" in value:
        text = value["Fn::Sub"][0] if isinstance(value["Fn::Sub"], list) else value["Fn::Sub"]
        for placeholder, name in _NAMES.items():
            text = text.replace(placeholder, name)
        return text
    if isinstance(value, dict):
        return {name: _named(part) for name, part in value.items()}
    return [_named(part) for part in value] if isinstance(value, list) else value


@contextmanager
def recorded(monkeypatch: pytest.MonkeyPatch) -> Iterator[Used]:
    """The actions and resources of all requests that are made to AWS in the block."""
    used: Used = set()
    call = BaseClient._make_api_call

    def recording(client: BaseClient, operation: str, parameters: dict[str, Any]) -> Any:
        used.update(_rights(client.meta.service_model.service_name, operation, parameters))
        return call(client, operation, parameters)

    with monkeypatch.context() as patch:
        patch.setattr(BaseClient, "_make_api_call", recording)
        yield used


def _rights(service: str, operation: str, parameters: dict[str, Any]) -> Iterator[tuple[str, str]]:
    if service == "s3":
        yield from _rights_in_s3(operation, parameters)
    elif service == "sqs":
        name = parameters["QueueUrl"].rpartition("/")[2]
        yield f"sqs:{operation}", f"arn:aws:sqs:us-east-1:{_ACCOUNT}:{name}"
    elif service == "events":
        bus = parameters["Entries"][0]["EventBusName"]
        yield f"events:{operation}", f"arn:aws:events:us-east-1:{_ACCOUNT}:event-bus/{bus}"
    elif service == "lambda":
        function = parameters["FunctionName"].rpartition(":")[2]
        yield "lambda:InvokeFunction", f"arn:aws:lambda:us-east-1:{_ACCOUNT}:function:{function}"
    else:
        raise AssertionError(f"a request to {service}")


def _rights_in_s3(operation: str, parameters: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """What a request needs, see https://docs.aws.amazon.com/AmazonS3/latest/API/ under each operation."""
    bucket = f"arn:aws:s3:::{parameters['Bucket']}"
    object_ = f"{bucket}/{parameters.get('Key', '')}"
    match operation:
        case "ListObjectsV2":
            yield "s3:ListBucket", bucket
        case "HeadObject" | "GetObject":
            yield from (("s3:GetObject", object_), ("s3:ListBucket", bucket))  # or what is gone looks forbidden
        case "GetObjectTagging" | "PutObjectTagging":
            yield f"s3:{operation}", object_
        case "DeleteObject":
            yield "s3:DeleteObject", object_
            if "IfMatch" in parameters:
                yield "s3:GetObject", object_
        case "PutObject" | "CreateMultipartUpload" | "UploadPart" | "CompleteMultipartUpload":
            yield "s3:PutObject", object_
        case "CopyObject":
            source = f"arn:aws:s3:::{parameters['CopySource']['Bucket']}/{parameters['CopySource']['Key']}"
            yield from (("s3:GetObject", source), ("s3:GetObjectTagging", source))
            yield from (("s3:PutObject", object_), ("s3:PutObjectTagging", object_))
        case _:
            raise AssertionError(f"which right does {operation} need?")


@pytest.fixture
def stack(aws: str, monkeypatch: pytest.MonkeyPatch) -> LocalStack:
    settings = {
        "DEPTH": "structure",
        "SETTLE_SECONDS": "0",
        "ARRIVAL_SECONDS": "0",
        "QUARANTINE_BUCKET": "held",
        "MAX_RESUBMISSIONS": "1",
    }
    for name, value in (addresses(aws) | {f"DELTAGUARD_{name}": value for name, value in settings.items()}).items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("CHROMADB_BUCKET", "deltas")
    stack = LocalStack(aws, "deltas")
    stack.create(prefix="words/", visibility_seconds=0)
    stack.s3.create_bucket(Bucket="held")
    return stack


def put_corrupt(stack: LocalStack, healthy: Path, name: str) -> str:
    """A corrupt delta with a manifest of batch `b-1`. Returns the key of its database."""
    upload_delta(healthy, "deltas", f"words/delta/{name}", batch_id="b-1")
    key = f"words/delta/{name}/{DATABASE}"
    stack.s3.put_object(Bucket="deltas", Key=key, Body=b"no database")
    return key


def uploaded(key: str) -> dict[str, Any]:
    record = {"eventName": "ObjectCreated:Put", "s3": {"bucket": {"name": "deltas"}, "object": {"key": key}}}
    return {"Records": [record]}


def run_validator(stack: LocalStack, healthy: Path) -> None:
    upload_delta(healthy, "deltas", "words/delta/healthy")
    for key in (put_corrupt(stack, healthy, "broken"), f"words/delta/healthy/{DATABASE}"):
        validator.handler(uploaded(key), InvocationContext())


def run_scanner(stack: LocalStack, healthy: Path) -> None:
    put_corrupt(stack, healthy, "broken")
    request = {"targets": ["s3://deltas/words/"], "quarantine": True, "output": "s3://held/results/one.ndjson"}
    assert scanner.handler(request, InvocationContext())["summary"]["quarantined"] == 1
    copy(healthy, "s3://deltas/words/delta/healthy/")
    fleet = {"run": "weekly", "request": {"targets": ["s3://deltas/words/"]}}
    planned = scanner.handler({"operation": "plan", **fleet}, InvocationContext())
    began = "2026-11-25T03:00:00Z"
    report = {"operation": "report", "batches": planned["batches"] + 1, "began": began, **fleet}
    stack.s3.put_object(Bucket="held", Key="results/weekly/batches/0000001.ndjson", Body=b"")  # nobody judged it
    scanner.handler({"operation": "judge", "batch": 0, **fleet}, InvocationContext())
    scanner.handler(report, InvocationContext())


def run_resubmission(stack: LocalStack, healthy: Path) -> None:
    for name in ("one", "two"):
        validator.handler(uploaded(put_corrupt(stack, healthy, name)), InvocationContext())


def run_compaction(stack: LocalStack, healthy: Path) -> None:
    validator.handler(uploaded(put_corrupt(stack, healthy, "held")), InvocationContext())
    for name in ("one", "two"):
        copy(healthy, f"s3://deltas/words/delta/{name}/")
    # The rest of an attempt that was killed makes room.
    stack.s3.put_object(Bucket="deltas", Key=f"intermediate/b-1/chunk-0/{DATABASE}", Body=b"half")
    chunk = compaction.handler({**_chunk("one", "two"), "chunk_index": 0}, None)
    compaction.handler({"operation": "final_merge", "batch_id": "b-1", "results": [chunk]}, None)
    with pytest.raises(ChunkRejected, match=r"quarantine\.held"):
        compaction.handler({**_chunk("one", "held"), "chunk_index": 1}, None)


def _chunk(*names: str) -> dict[str, Any]:
    deltas = [
        {"delta_key": f"words/delta/{name}/", "delta_id": name, "embedding_count": 50, "collection": "words"}
        for name in names
    ]
    return {"operation": "process_chunk", "batch_id": "b-1", "deltas": deltas}


@pytest.mark.parametrize("function", ["validator", "scanner", "compaction", "resubmission"])
def test_a_role_allows_what_its_function_does_and_nothing_more(
    stack: LocalStack, healthy_delta: Path, monkeypatch: pytest.MonkeyPatch, function: str
) -> None:
    runs: dict[str, Callable[[LocalStack, Path], None]] = {
        "validator": run_validator,
        "scanner": run_scanner,
        "compaction": run_compaction,
        "resubmission": run_resubmission,
    }
    with _only(function, monkeypatch) as used:
        runs[function](stack, healthy_delta)
        if function == "resubmission":
            used.clear()
            while stack.waiting(RESUBMIT)[0]:
                used.update(_resubmitting(stack, monkeypatch))
    statements = allowed(function)
    refused = {
        (action, resource) for action, resource in used if not any(_covers(s, action, resource) for s in statements)
    }
    assert refused == set()
    idle = {
        (statement["Sid"], action)
        for statement in statements
        for action in statement["Action"]
        if action not in _OF_LAMBDA
        and not {action, statement["Sid"]} & _SELDOM.keys()
        and not any(_covers({**statement, "Action": [action]}, *right) for right in used)
    }
    assert idle == set()


def test_the_state_machine_is_allowed_what_it_does_and_what_aws_says_that_a_map_needs(
    stack: LocalStack, healthy_delta: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy(healthy_delta, "s3://deltas/words/delta/one/")
    used: Used = set()
    call = BaseClient._make_api_call

    def recording(client: BaseClient, operation: str, parameters: dict[str, Any]) -> Any:
        if client._request_signer._credentials.access_key == "ak":  # moto's, in the name of the state machine
            used.update(_rights(client.meta.service_model.service_name, operation, parameters))
        return call(client, operation, parameters)

    monkeypatch.setattr(BaseClient, "_make_api_call", recording)
    with running_functions(stack.endpoint, monkeypatch):
        monkeypatch.setenv("DELTAGUARD_SCAN_STATE_MACHINE", made_machine("held"))
        assert CliRunner().invoke(cli, ["scan", "--remote", "s3://deltas/words/"]).exit_code == 0
    statements = allowed_to("ScanMachineRole")
    # Step Functions itself looks at nothing that is not there.
    needed = {(action, resource) for action, resource in used if action != "s3:ListBucket"}
    assert {right for right in needed if not any(_covers(s, *right) for s in statements)} == set()
    idle = {s["Sid"] for s in statements if not any(_covers(s, *right) for right in needed)}
    assert idle == {"StartChildren", "FollowChildren"}  # moto starts children by itself


@contextmanager
def _only(function: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Used]:
    """The requests of the handler alone, not those that prepare its run."""
    used: Used = set()
    module = {"validator": validator, "scanner": scanner, "compaction": compaction, "resubmission": resubmission}[
        function
    ]
    handler = module.handler

    def recording(event: object, context: Any) -> Any:
        with recorded(monkeypatch) as requests:
            try:
                return handler(event, context)
            finally:
                used.update(requests)

    with monkeypatch.context() as patch:
        patch.setattr(module, "handler", recording)
        yield used


def _resubmitting(stack: LocalStack, monkeypatch: pytest.MonkeyPatch) -> Used:
    requests: Used = set()

    def handler(event: object, context: Any) -> Any:
        with recorded(monkeypatch) as used:
            answer = resubmission.handler(event, context)
            requests.update(used)
            return answer

    stack.deliver(handler, RESUBMIT)
    return requests


def _covers(statement: dict[str, Any], action: str, resource: str) -> bool:
    return action in statement["Action"] and any(
        fnmatch.fnmatchcase(resource, pattern) for pattern in statement["Resource"]
    )
