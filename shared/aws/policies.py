"""Who may do what, as AWS's policy documents: pure functions from names to JSON, with nothing allowed that is not used.

A document that these functions return goes as it is into `put_bucket_policy`, `put_role_policy` or a template. Sources:
https://docs.aws.amazon.com/AmazonS3/latest/userguide/tagging-and-policies.html (tags in conditions),
https://docs.aws.amazon.com/service-authorization/latest/reference/list_amazons3.html (what each action covers),
https://docs.aws.amazon.com/AmazonS3/latest/userguide/conditional-deletes.html (`If-Match` needs `s3:GetObject`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from shared.model.delta import DATABASE

Policy = dict[str, Any]
"""A policy document."""

_STATUS_TAG = "deltaguard:status"
_OUR_TAGS = "deltaguard:*"
_RECORD = "quarantine.json"
_TRIAL = ".deltaguard/conditional-delete"
_RESUBMISSIONS = "resubmissions/"


@dataclass(frozen=True, slots=True)
class Scope:
    """The part of S3 that a policy is about.

    Args:
        bucket: Where the deltas lie.
        prefixes: Prefixes of the deltas, each ending with `/`; an empty one stands for the whole bucket.
        quarantine_bucket: Where quarantine is; None means the same bucket.
        quarantine_prefix: Prefix of the quarantine, ending with `/`.
        partition: `aws`, `aws-cn` or `aws-us-gov`.
    """

    bucket: str
    prefixes: tuple[str, ...] = ("",)
    quarantine_bucket: str | None = None
    quarantine_prefix: str = "quarantine/"
    partition: str = "aws"

    def deltas(self, name: str = "") -> list[str]:
        """The objects of the deltas, or those of them whose key ends with this name."""
        return [self._arn(self.bucket, f"{prefix}*{name}") for prefix in self.prefixes]

    def held(self, name: str = "*") -> list[str]:
        """Objects in quarantine."""
        return [self._arn(self.quarantine_bucket or self.bucket, self.quarantine_prefix + name)]

    def listing(self, *, deltas: bool = True, held: bool = True, versions: bool = False) -> list[Policy]:
        """The right to list these parts.

        `IfExists`, because a GET or HEAD of an object that is gone is answered with 404 only to who may list, and it
        names no prefix. Without, "gone" would look like "forbidden".
        """
        wanted: dict[str, list[str]] = {}
        if deltas:
            wanted.setdefault(self.bucket, []).extend(f"{prefix}*" for prefix in self.prefixes)
        if held:
            wanted.setdefault(self.quarantine_bucket or self.bucket, []).append(f"{self.quarantine_prefix}*")
        names = {self.quarantine_bucket: "ListQuarantine", self.bucket: "List"}
        actions = ["s3:ListBucket", "s3:ListBucketVersions"] if versions else ["s3:ListBucket"]
        return [
            _allow(names[bucket], actions, [self._arn(bucket)], {"StringLikeIfExists": {"s3:prefix": prefixes}})
            for bucket, prefixes in wanted.items()
        ]

    def arriving(self) -> list[Policy]:
        """The right to see which files of the deltas are being uploaded in parts.

        No condition on a prefix can be set for that listing
        (https://docs.aws.amazon.com/service-authorization/latest/reference/list_amazons3.html).
        """
        return [
            _allow("FindUploads", ["s3:ListBucketMultipartUploads"], [self._arn(self.bucket)]),
            _allow("FindParts", ["s3:ListMultipartUploadParts"], self.deltas()),
        ]

    def _arn(self, bucket: str, key: str | None = None) -> str:
        return f"arn:{self.partition}:s3:::{bucket}" + ("" if key is None else f"/{key}")


def read_denial(
    scope: Scope,
    *,
    validators: Sequence[str],
    producers: Sequence[str] = (),
    compactions: Sequence[str] = (),
    operators: Sequence[str] = (),
) -> Policy:
    """The bucket policy that keeps everybody from a delta until it is validated.

    - `chroma.sqlite3` cannot be read unless it carries the tag `deltaguard:status` = `healthy`. Without its database a
      delta is nothing, and an overwritten object has lost its tags. Exempt are those who must look before: validators,
      producers (who validate what they uploaded) and operators.
    - Nobody but validators can set a tag whose name begins with `deltaguard:`, by itself or with an upload.
    - Quarantine can be read by validators and operators, and by compactions, whose gate reads the records there (their
      role policy allows them nothing more).

    It denies and allows nothing, so the rights of a role stand in the role's own policy. When quarantine is a bucket of
    its own, `quarantine_denial` goes there.

    Args:
        scope: Deltas and quarantine.
        validators: ARNs of their roles; `*` may stand in them.
        producers: Of those who upload deltas.
        compactions: Of those who merge them.
        operators: Of those who restore, purge and look.
    """
    databases = scope.deltas(f"/{DATABASE}")
    looking = [*validators, *producers, *operators]
    statements = [
        _deny(
            "DatabaseUntilValidated",
            ["s3:GetObject", "s3:GetObjectVersion"],
            databases,
            looking,
            {"StringNotEquals": {f"s3:ExistingObjectTag/{_STATUS_TAG}": "healthy"}},
        ),
        _deny(
            "VerdictsOfOthers",
            ["s3:PutObjectTagging", "s3:PutObjectVersionTagging"],
            scope.deltas(),
            validators,
            {"ForAnyValue:StringLike": {"s3:RequestObjectTagKeys": [_OUR_TAGS]}},
        ),
    ]
    if scope.quarantine_bucket in (None, scope.bucket):
        statements += _quarantine_denial(scope, [*validators, *compactions, *operators])
    return _policy(statements)


def quarantine_denial(
    scope: Scope, *, validators: Sequence[str], compactions: Sequence[str] = (), operators: Sequence[str] = ()
) -> Policy:
    """The bucket policy of a quarantine that is a bucket of its own; the same as `read_denial` has otherwise."""
    return _policy(_quarantine_denial(scope, [*validators, *compactions, *operators]))


def validator(
    scope: Scope,
    *,
    events_queue: str | None = None,
    resubmit_queue: str | None = None,
    event_bus: str | None = None,
) -> Policy:
    """The role of the validator: it reads deltas, tags the healthy, moves the corrupt, and tells.

    Args:
        scope: Deltas and quarantine.
        events_queue: ARN of the queue that S3's events come from.
        resubmit_queue: ARN of the queue for re-processing requests.
        event_bus: ARN of the event bus.
    """
    tagging = _allow("TagHealthy", ["s3:PutObjectTagging"], scope.deltas(f"/{DATABASE}"))
    messages = [*_consume(events_queue, hide=True), *_send(resubmit_queue), *_publish(event_bus)]
    return _policy([*_quarantining(scope), tagging, *messages])


def scanner(scope: Scope, *, quarantine: bool = False) -> Policy:
    """The role of the scanner: it reads deltas, and with `quarantine` moves the corrupt."""
    if quarantine:
        return _policy(_quarantining(scope))
    reading = _allow("ReadDeltas", ["s3:GetObject"], scope.deltas())
    return _policy([*scope.listing(held=False), *scope.arriving(), reading])


def compaction(
    scope: Scope,
    *,
    intermediate_prefix: str = "intermediate/",
    snapshot_prefix: str = "snapshots/",
    event_bus: str | None = None,
) -> Policy:
    """The role of compaction: its gate reads deltas, tags and quarantine records, and tells of a chunk that it refuses;
    its results are uploaded as deltas, and those of chunks are read as such.

    Args:
        scope: Deltas and quarantine.
        intermediate_prefix: Where the results of chunks and groups go, ending with `/`.
        snapshot_prefix: Where snapshots go, their lock, and the pointer to the newest, ending with `/`.
        event_bus: ARN of the event bus.
    """
    merged = _with(scope, *scope.prefixes, intermediate_prefix)
    return _policy(
        [
            *_with(scope, *merged.prefixes, snapshot_prefix).listing(),
            *merged.arriving(),
            _allow("ReadDeltas", ["s3:GetObject"], merged.deltas()),
            _allow("ReadVerdicts", ["s3:GetObjectTagging"], merged.deltas(f"/{DATABASE}")),
            _allow("ReadRecords", ["s3:GetObject"], scope.held(f"*/{_RECORD}")),
            _uploading("WriteResults", _with(scope, intermediate_prefix, snapshot_prefix)),
            *_publish(event_bus),
        ]
    )


def _with(scope: Scope, *prefixes: str) -> Scope:
    return replace(scope, prefixes=tuple(dict.fromkeys(prefixes)))


def producer(scope: Scope) -> Policy:
    """The role of a producer: it uploads deltas, looks at what arrived, and removes what did not arrive whole."""
    return _policy([*scope.listing(held=False), _uploading("WriteDeltas", scope)])


def operator(scope: Scope) -> Policy:
    """The role of a person who looks into quarantine, restores and purges."""
    deltas = ["s3:GetObject", "s3:PutObject", "s3:PutObjectTagging", "s3:DeleteObject"]
    held = ["s3:GetObject", "s3:GetObjectTagging", "s3:PutObject", "s3:DeleteObject", "s3:DeleteObjectVersion"]
    return _policy(
        [
            *scope.listing(versions=True),
            _allow("RestoreDeltas", deltas, scope.deltas()),
            _allow("KeepQuarantine", held, scope.held()),
        ]
    )


def resubmit(
    scope: Scope,
    *,
    queue: str,
    target_queue: str | None = None,
    state_machine: str | None = None,
    event_bus: str | None = None,
) -> Policy:
    """The role of resubmission: it takes requests, counts the starts of each batch in S3, and starts the target.

    Args:
        scope: Quarantine, below which the starts are counted.
        queue: ARN of the queue of requests.
        target_queue: ARN of the queue that starts a batch.
        state_machine: ARN of the state machine that processes one.
        event_bus: ARN of the event bus for the alarm to a person.
    """
    start = [_allow("Start", ["states:StartExecution"], [state_machine])] if state_machine else []
    return _policy(
        [
            *scope.listing(deltas=False),
            _allow("ReadRecords", ["s3:GetObject"], scope.held(f"*/{_RECORD}")),
            _allow("CountStarts", ["s3:GetObject", "s3:PutObject"], scope.held(f"{_RESUBMISSIONS}*")),
            *_consume(queue, hide=True),
            *_send(target_queue),
            *start,
            *_publish(event_bus),
        ]
    )


def _quarantining(scope: Scope) -> list[Policy]:
    """Reading deltas and moving the corrupt. A copy takes the tags of its object with it."""
    return [
        *scope.listing(),
        *scope.arriving(),
        _allow("MoveDeltas", ["s3:GetObject", "s3:GetObjectTagging", "s3:DeleteObject"], scope.deltas()),
        _allow("FillQuarantine", ["s3:GetObject", "s3:PutObject", "s3:PutObjectTagging"], scope.held()),
        _allow("TryConditionalDelete", ["s3:DeleteObject"], scope.held(_TRIAL)),
    ]


def _uploading(sid: str, scope: Scope) -> Policy:
    actions = ["s3:GetObject", "s3:PutObject", "s3:AbortMultipartUpload", "s3:DeleteObject"]
    return _allow(sid, actions, scope.deltas())


def _quarantine_denial(scope: Scope, readers: Sequence[str]) -> list[Policy]:
    return [_deny("QuarantineOfOthers", ["s3:GetObject", "s3:GetObjectVersion"], scope.held(), readers)]


def scan_machine(*, function: str, state_machine: str, executions: str, results: Scope) -> Policy:
    """The role of the state machine that scans: it invokes the scanner, reads work lists and starts a map's children.

    See https://docs.aws.amazon.com/step-functions/latest/dg/iam-policies-eg-dist-map.html.

    Args:
        function: ARN of the scanner's function.
        state_machine: ARN of the state machine itself, whose executions the children are.
        executions: ARN of its executions.
        results: Where the work lists lie, and what the map writes.
    """
    written = ["s3:PutObject", "s3:GetObject", "s3:ListMultipartUploadParts", "s3:AbortMultipartUpload"]
    maps = Scope(results.bucket, tuple(f"{prefix}maps/" for prefix in results.prefixes), partition=results.partition)
    return _policy(
        [
            _allow("Invoke", ["lambda:InvokeFunction"], [function]),
            _allow("ReadWorkLists", ["s3:GetObject"], results.deltas("/worklist-*.json")),
            _allow("WriteMaps", written, maps.deltas()),
            _allow("StartChildren", ["states:StartExecution"], [state_machine]),
            _allow("FollowChildren", ["states:DescribeExecution", "states:StopExecution"], [executions]),
        ]
    )


def scan_schedule(*, state_machine: str) -> Policy:
    """The role of the schedule: it starts the state machine that scans."""
    return _policy([_allow("StartScan", ["states:StartExecution"], [state_machine])])


def _consume(queue: str | None, *, hide: bool = False) -> list[Policy]:
    """What Lambda does with a queue in the name of the function, and hiding a message until a delta has settled."""
    actions = ["sqs:ReceiveMessage", "sqs:DeleteMessage", "sqs:GetQueueAttributes"]
    return [_allow("TakeMessages", actions + ["sqs:ChangeMessageVisibility"] * hide, [queue])] if queue else []


def _send(queue: str | None) -> list[Policy]:
    return [_allow("SendMessages", ["sqs:SendMessage"], [queue])] if queue else []


def _publish(event_bus: str | None) -> list[Policy]:
    return [_allow("Tell", ["events:PutEvents"], [event_bus])] if event_bus else []


def _allow(sid: str, actions: list[str], resources: list[str], condition: Policy | None = None) -> Policy:
    statement: Policy = {"Sid": sid, "Effect": "Allow", "Action": actions, "Resource": resources}
    return statement | ({"Condition": condition} if condition else {})


def _deny(
    sid: str, actions: list[str], resources: list[str], exempt: Sequence[str], condition: Policy | None = None
) -> Policy:
    # For a session of a role, aws:PrincipalArn is the ARN of the role.
    others: Policy = {"ArnNotLike": {"aws:PrincipalArn": list(dict.fromkeys(exempt))}}
    return {
        "Sid": sid,
        "Effect": "Deny",
        "Principal": "*",
        "Action": actions,
        "Resource": resources,
        "Condition": others | (condition or {}),
    }


def _policy(statements: list[Policy]) -> Policy:
    return {"Version": "2012-10-17", "Statement": statements}
