"""Step Functions run for real by moto, with the scanner's code behind moto's Lambda."""

from __future__ import annotations

import json
import threading
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import boto3
import pytest

from devtools.stack.shim import InvocationContext
from scanner.handler import handler

_DEFINITION = Path(__file__).parents[2] / "deploy/scan.asl.json"
_ROLE = "arn:aws:iam::123456789012:role/states"


class Functions:
    """Lambda as the state machine sees it: moto's API and its errors, but the code runs here and not in Docker."""

    def __init__(self) -> None:
        self.events: list[dict[str, Any]] = []
        self.failing: Callable[[dict[str, Any]], bool] = lambda _: False
        self._taking = threading.Lock()

    def invoke(self, body: Any, _headers: Any, response_headers: Any) -> str:
        event = json.loads(body)
        with self._taking:
            self.events.append(event)
        try:
            if self.failing(event):
                raise MemoryError("the function was killed")
            return json.dumps(handler(event, InvocationContext("scanner", 900)))
        except Exception as error:  # noqa: BLE001 - as Lambda answers for every exception
            response_headers["x-amz-function-error"] = "Unhandled"
            return json.dumps({"errorType": type(error).__name__, "errorMessage": str(error)})


@contextmanager
def running_functions(aws: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Functions]:
    """The function `scanner` in moto, and moto set to run state machines."""
    functions = Functions()
    monkeypatch.setattr("moto.awslambda.models.LambdaFunction.invoke", lambda _, *given: functions.invoke(*given))
    monkeypatch.setenv("MOTO_PORT", aws.rpartition(":")[2])
    role = boto3.client("iam").create_role(RoleName="scanner", AssumeRolePolicyDocument="{}")["Role"]["Arn"]
    boto3.client("lambda").create_function(
        FunctionName="scanner", Role=role, PackageType="Image", Code={"ImageUri": "scanner:1"}
    )
    _configured(aws, execute=True)
    yield functions
    _configured(aws, execute=False)


def made_machine(results: str) -> str:
    """The state machine of the deployment, but for the pauses before it tries again. Returns its ARN."""
    definition = _DEFINITION.read_text().replace('"IntervalSeconds": 2', '"IntervalSeconds": 1')
    for placeholder, value in {"Scanner": "scanner", "MaxConcurrency": "4", "Results": results}.items():
        definition = definition.replace(f"${{{placeholder}}}", value)
    made = boto3.client("stepfunctions").create_state_machine(name="scan", definition=definition, roleArn=_ROLE)
    return str(made["stateMachineArn"])


def _configured(aws: str, *, execute: bool) -> None:
    settings = {"stepfunctions": {"execute_state_machine": execute}}
    request = urllib.request.Request(f"{aws}/moto-api/config", json.dumps(settings).encode(), method="POST")
    request.add_header("Content-Type", "application/json")
    urllib.request.urlopen(request, timeout=60).close()
