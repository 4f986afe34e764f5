"""The role of each function, as deploy/roles.json has it: `shared.aws.policies` with the names of the template."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any

from compaction import bucket_keys
from scanner.fleet.steps import RESULTS
from shared.aws import policies
from shared.aws.policies import Policy, Scope

_HERE = "arn:${{AWS::Partition}}:{}:${{AWS::Region}}:${{AWS::AccountId}}:"
_BUS = _HERE.format("events") + "event-bus/default"
_RESUBMIT_QUEUE = "${ResubmitQueue.Arn}"
_BUCKETS = {
    "Deltas": {"Fn::If": ["OwnDeltas", {"Ref": "DeltasBucket"}, {"Ref": "ExistingDeltasBucket"}]},
    "Quarantine": {"Fn::If": ["OwnQuarantine", {"Ref": "QuarantineBucket"}, {"Ref": "ExistingQuarantineBucket"}]},
}
"""The buckets by the names that stand for them, new ones or given ones."""


def _scope(*prefixes: str) -> Scope:
    return Scope("${Deltas}", prefixes, "${Quarantine}", partition="${AWS::Partition}")


def roles() -> str:
    """deploy/roles.json: one role for each function, for the state machine that scans and for its schedule."""
    resources = {
        f"{name.capitalize()}Role": _of_function(name, statements) for name, statements in _functions().items()
    }
    resources |= {
        "ScanMachineRole": _role("scan-machine", "states.amazonaws.com", _scan_machine()["Statement"]),
        "ScanScheduleRole": _role("scan-schedule", "events.amazonaws.com", _scan_schedule()["Statement"])
        | {"Condition": "ScansBySchedule"},
    }
    return json.dumps({"Resources": resources}, indent=2) + "\n"


def _functions() -> Mapping[str, list[Policy]]:
    """The statements of each function, beside those for its logs and traces."""
    watched = _scope("${WatchedPrefix}")
    validator = policies.validator(
        watched, events_queue="${DeltasQueue.Arn}", resubmit_queue=_RESUBMIT_QUEUE, event_bus=_BUS
    )
    telling = policies.validator(watched, resubmit_queue=_RESUBMIT_QUEUE, event_bus=_BUS)
    compaction = policies.compaction(
        watched,
        intermediate_prefix=f"{bucket_keys.INTERMEDIATES}/",
        snapshot_prefix=f"{bucket_keys.SNAPSHOTS}/",
        event_bus=_BUS,
    )
    return {
        "validator": validator["Statement"],
        "scanner": _scanner(_scope(""), _named(telling, "SendMessages", "Tell")),
        "compaction": compaction["Statement"],
        "resubmission": _resubmission(watched),
    }


def _scanner(scope: Scope, telling: list[Policy]) -> list[Policy]:
    """Reading always; moving the corrupt, and telling of it, only where the deployment allows it."""
    reading = policies.scanner(scope)["Statement"]
    known = {statement["Sid"] for statement in reading}
    moving = [s for s in policies.scanner(scope, quarantine=True)["Statement"] if s["Sid"] not in known]
    results = _results()
    listing = {**results.listing(held=False)[0], "Sid": "ListResults"}
    actions = ["s3:PutObject", "s3:GetObject"]
    keeping = {"Sid": "KeepResults", "Effect": "Allow", "Action": actions, "Resource": results.deltas()}
    return [*reading, listing, keeping, *_where("ScannerQuarantines", [*moving, *telling])]


def _results() -> Scope:
    """Where the scanner keeps what it found, and a fleet scan its work."""
    return Scope("${Quarantine}", (RESULTS,), partition="${AWS::Partition}")


_STATES = _HERE.format("states")
_SCAN = "deltaguard-${sls:stage}-scan"


def _scan_machine() -> Policy:
    return policies.scan_machine(
        function="${ScannerLambdaFunction.Arn}",
        state_machine=f"{_STATES}stateMachine:{_SCAN}",
        executions=f"{_STATES}execution:{_SCAN}:*",
        results=_results(),
    )


def _scan_schedule() -> Policy:
    return policies.scan_schedule(state_machine="${ScanMachine}")


def _resubmission(scope: Scope) -> list[Policy]:
    plain = policies.resubmit(scope, queue=_RESUBMIT_QUEUE, event_bus=_BUS)
    target = _HERE.format("sqs") + "${ResubmitQueueName}"
    whole = policies.resubmit(
        scope, queue=_RESUBMIT_QUEUE, target_queue=target, state_machine="${ResubmitStateMachine}", event_bus=_BUS
    )
    return [
        *plain["Statement"],
        *_where("ResubmitsByQueue", _named(whole, "SendMessages")),
        *_where("ResubmitsByStateMachine", _named(whole, "Start")),
    ]


def _named(policy: Policy, *sids: str) -> list[Policy]:
    found = [statement for statement in policy["Statement"] if statement["Sid"] in sids]
    if len(found) != len(sids):
        raise LookupError(f"a policy without one of the statements {', '.join(sids)}")
    return found


def _where(condition: str, statements: Iterable[Policy]) -> list[Policy]:
    """Statements that count only where a condition of the template holds."""
    return [{"Fn::If": [condition, statement, {"Ref": "AWS::NoValue"}]} for statement in statements]


def _of_function(name: str, statements: list[Policy]) -> Policy:
    logs = _HERE.format("logs") + f"log-group:/aws/lambda/deltaguard-${{sls:stage}}-{name}:*"
    own = [
        {"Sid": "Log", "Effect": "Allow", "Action": ["logs:CreateLogStream", "logs:PutLogEvents"], "Resource": [logs]},
        # X-Ray knows no resources: https://docs.aws.amazon.com/service-authorization/latest/reference/list_awsx-ray.html
        {
            "Sid": "Trace",
            "Effect": "Allow",
            "Action": ["xray:PutTraceSegments", "xray:PutTelemetryRecords"],
            "Resource": ["*"],
        },
    ]
    return _role(name, "lambda.amazonaws.com", [*own, *statements])


def _role(name: str, service: str, statements: list[Policy]) -> Policy:
    assumed = {"Effect": "Allow", "Principal": {"Service": service}, "Action": "sts:AssumeRole"}
    document = _filled_in(_document(statements))
    return {
        "Type": "AWS::IAM::Role",
        "Properties": {
            "AssumeRolePolicyDocument": _document([assumed]),
            "Policies": [{"PolicyName": name, "PolicyDocument": document}],
        },
    }


def _document(statements: list[Policy]) -> Policy:
    return {"Version": "2012-10-17", "Statement": statements}


def _filled_in(value: Any) -> Any:
    """The same with every text that has placeholders replaced by what has CloudFormation fill them in."""
    if isinstance(value, Mapping):
        return {name: _filled_in(part) for name, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [_filled_in(part) for part in value]
    if not isinstance(value, str) or "${" not in value:
        return value
    buckets = {name: bucket for name, bucket in _BUCKETS.items() if f"${{{name}}}" in value}
    return {"Fn::Sub": [value, buckets] if buckets else value}
