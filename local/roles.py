"""The role of each function, as deploy/roles.json has it: what it may do and nothing else."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

Statement = dict[str, Any]

_DELTAS, _QUARANTINE = "${Deltas}", "${Quarantine}"
_BUCKETS = {
    "Deltas": {"Fn::If": ["OwnDeltas", {"Ref": "DeltasBucket"}, {"Ref": "ExistingDeltasBucket"}]},
    "Quarantine": {"Fn::If": ["OwnQuarantine", {"Ref": "QuarantineBucket"}, {"Ref": "ExistingQuarantineBucket"}]},
}
"""The buckets by the names that stand for them below, new ones or given ones."""


def _substituted(statement: Statement) -> Statement:
    if "Resource" not in statement:
        return statement
    return {**statement, "Resource": [_resolved(resource) for resource in statement["Resource"]]}


def _resolved(resource: str) -> Any:
    """A resource whose placeholders CloudFormation fills in."""
    used = {name: value for name, value in _BUCKETS.items() if f"${{{name}}}" in resource}
    if used:
        return {"Fn::Sub": [resource, used]}
    return {"Fn::Sub": resource} if "${" in resource else resource


def _allow(sid: str, actions: list[str], *resources: str) -> Statement:
    return {"Sid": sid, "Effect": "Allow", "Action": actions, "Resource": list(resources)}


def _bucket(name: str) -> str:
    return f"arn:${{AWS::Partition}}:s3:::{name}"


def _listing(*buckets: str) -> Statement:
    return _allow("List", ["s3:ListBucket"], *map(_bucket, buckets))


_READ_RECORDS = _allow("ReadRecords", ["s3:GetObject"], f"{_bucket(_QUARANTINE)}/quarantine/*")
_READ_DELTAS = _allow("ReadDeltas", ["s3:GetObject", "s3:GetObjectTagging"], f"{_bucket(_DELTAS)}/*")
_HERE = "${{AWS::Partition}}:{}:${{AWS::Region}}:${{AWS::AccountId}}"
_TELL = _allow("Tell", ["events:PutEvents"], f"arn:{_HERE.format('events')}:event-bus/default")


def _where(condition: str, statement: Statement) -> Statement:
    """A statement that counts only where a condition of the template holds."""
    return {"Fn::If": [condition, _substituted(statement), {"Ref": "AWS::NoValue"}]}


def _receiving(queue: str) -> Statement:
    actions = ["sqs:ReceiveMessage", "sqs:DeleteMessage", "sqs:GetQueueAttributes", "sqs:ChangeMessageVisibility"]
    return _allow("Receive", actions, f"${{{queue}.Arn}}")


_CONSEQUENCES = (
    _allow(
        "JudgeAndQuarantine",
        ["s3:GetObject", "s3:GetObjectTagging", "s3:PutObjectTagging", "s3:DeleteObject"],
        f"{_bucket(_DELTAS)}/*",
    ),
    _allow("Keep", ["s3:GetObject", "s3:PutObject", "s3:PutObjectTagging"], f"{_bucket(_QUARANTINE)}/quarantine/*"),
    _allow("Resubmit", ["sqs:SendMessage"], "${ResubmitQueue.Arn}"),
    _TELL,
)

FUNCTIONS: Mapping[str, list[Statement]] = {
    "validator": [
        _receiving("DeltasQueue"),
        _listing(_DELTAS, _QUARANTINE),
        *_CONSEQUENCES,
    ],
    "scanner": [
        _listing(_DELTAS, _QUARANTINE),
        _READ_DELTAS,
        _allow("WriteResults", ["s3:PutObject"], f"{_bucket(_QUARANTINE)}/results/*"),
        *(_where("ScannerQuarantines", statement) for statement in _CONSEQUENCES),
    ],
    "compaction": [
        _listing(_DELTAS, _QUARANTINE),
        _READ_DELTAS,
        _READ_RECORDS,
        _allow("WriteChunks", ["s3:PutObject", "s3:DeleteObject"], f"{_bucket(_DELTAS)}/*"),
        _TELL,
    ],
    "resubmission": [
        _receiving("ResubmitQueue"),
        _where(
            "ResubmitsByQueue",
            _allow("StartByQueue", ["sqs:SendMessage"], f"arn:{_HERE.format('sqs')}:${{ResubmitQueueName}}"),
        ),
        _where("ResubmitsByStateMachine", _allow("Start", ["states:StartExecution"], "${ResubmitStateMachine}")),
        _listing(_QUARANTINE),
        _allow("Remember", ["s3:GetObject", "s3:PutObject"], f"{_bucket(_QUARANTINE)}/quarantine/resubmissions/*"),
        _TELL,
    ],
}
"""What each function does in AWS, beside its logs and traces."""


def roles() -> str:
    """deploy/roles.json: one role for each function."""
    resources = {f"{name.capitalize()}Role": _role(name, statements) for name, statements in FUNCTIONS.items()}
    return json.dumps({"Resources": resources}, indent=2) + "\n"


def _role(name: str, statements: list[Statement]) -> dict[str, Any]:
    group = f"arn:{_HERE.format('logs')}:log-group:/aws/lambda/deltaguard-${{sls:stage}}-{name}"
    own = [
        _allow("Log", ["logs:CreateLogStream", "logs:PutLogEvents"], f"{group}:*"),
        # X-Ray knows no resources: https://docs.aws.amazon.com/service-authorization/latest/reference/list_awsx-ray.html
        _allow("Trace", ["xray:PutTraceSegments", "xray:PutTelemetryRecords"], "*"),
    ]
    return {
        "Type": "AWS::IAM::Role",
        "Properties": {
            "AssumeRolePolicyDocument": _document(
                [{"Effect": "Allow", "Principal": {"Service": "lambda.amazonaws.com"}, "Action": "sts:AssumeRole"}]
            ),
            "Policies": [
                {"PolicyName": name, "PolicyDocument": _document([_substituted(s) for s in [*own, *statements]])}
            ],
        },
    }


def _document(statements: list[Statement]) -> dict[str, Any]:
    return {"Version": "2012-10-17", "Statement": statements}
