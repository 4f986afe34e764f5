"""AWS on this machine: a moto server with a bucket whose events go to a queue, and the delivery to a handler.

Everything goes through public APIs over HTTP, on the same path as in production: S3 puts an event in the queue, a
poller receives it, calls the handler with an SQS event, and deletes what the answer does not name as failed.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import boto3
from moto.server import ThreadedMotoServer

from shared.delta import DATABASE, MANIFEST

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client
    from mypy_boto3_sqs import SQSClient

Handler = Callable[[object, Any], dict[str, list[dict[str, str]]]]

_MAX_RECEIVES = 20
_BATCH = 10
_ENVIRONMENT = {
    "AWS_ACCESS_KEY_ID": "local",
    "AWS_SECRET_ACCESS_KEY": "local",  # moto accepts any
    "AWS_DEFAULT_REGION": "us-east-1",
    "AWS_XRAY_SDK_ENABLED": "false",
}
_HIDDEN = ("AWS_PROFILE", "AWS_SESSION_TOKEN", "AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL_SQS", "AWS_REGION")


class InvocationContext:
    """The part of Lambda's context that a handler asks: how much time is left."""

    function_name = "deltaguard-validator"
    memory_limit_in_mb = 1024
    invoked_function_arn = "arn:aws:lambda:us-east-1:123456789012:function:deltaguard-validator"
    aws_request_id = "local"

    def get_remaining_time_in_millis(self) -> int:
        """Milliseconds until Lambda would end the invocation."""
        return 300_000


@dataclass(frozen=True, slots=True)
class Delivery:
    """One batch that a handler was given: how many messages, and how many of them must come back."""

    messages: int
    failed: int


class LocalStack:
    """A running moto server with a bucket, a queue for its events, and a dead-letter queue behind that."""

    def __init__(self, endpoint: str, bucket: str) -> None:
        self.endpoint = endpoint
        self.bucket = bucket
        self.s3: S3Client = boto3.client("s3", endpoint_url=endpoint)
        self._sqs: SQSClient = boto3.client("sqs", endpoint_url=endpoint)
        self._queue = ""
        self._dead_letters = ""

    def create(self, prefix: str, visibility_seconds: int) -> None:
        """Makes the bucket and the queues; uploads of manifests and databases below `prefix` become events."""
        self.s3.create_bucket(Bucket=self.bucket)
        self._dead_letters = self._sqs.create_queue(QueueName="deltas-dead")["QueueUrl"]
        redrive = {"deadLetterTargetArn": self._arn(self._dead_letters), "maxReceiveCount": str(_MAX_RECEIVES)}
        self._queue = self._sqs.create_queue(
            QueueName="deltas",
            Attributes={"VisibilityTimeout": str(visibility_seconds), "RedrivePolicy": json.dumps(redrive)},
        )["QueueUrl"]
        rules = [self._rule(prefix, name) for name in (MANIFEST, DATABASE)]
        self.s3.put_bucket_notification_configuration(
            Bucket=self.bucket, NotificationConfiguration={"QueueConfigurations": rules}
        )

    def _rule(self, prefix: str, suffix: str) -> Any:
        names = [{"Name": "prefix", "Value": prefix}, {"Name": "suffix", "Value": suffix}]
        return {
            "QueueArn": self._arn(self._queue),
            "Events": ["s3:ObjectCreated:*"],
            "Filter": {"Key": {"FilterRules": names}},
        }

    def deliver(self, handler: Handler) -> Delivery | None:
        """Gives the handler one batch of messages. Returns None when the queue has none to give now."""
        received = self._sqs.receive_message(
            QueueUrl=self._queue, MaxNumberOfMessages=_BATCH, WaitTimeSeconds=0, AttributeNames=["All"]
        ).get("Messages", [])
        if not received:
            return None
        event = {"Records": [_sqs_record(message, self._arn(self._queue)) for message in received]}
        answer = handler(event, InvocationContext())
        failed = {failure["itemIdentifier"] for failure in answer["batchItemFailures"]}
        for message in received:
            if message["MessageId"] not in failed:
                self._sqs.delete_message(QueueUrl=self._queue, ReceiptHandle=message["ReceiptHandle"])
        return Delivery(len(received), len(failed))

    def waiting(self) -> tuple[int, int]:
        """How many messages are in the queue, hidden ones included, and how many in the dead-letter queue."""
        return self._depth(self._queue), self._depth(self._dead_letters)

    def _depth(self, queue: str) -> int:
        names = ["ApproximateNumberOfMessages", "ApproximateNumberOfMessagesNotVisible"]
        answer = self._sqs.get_queue_attributes(QueueUrl=queue, AttributeNames=names)  # type: ignore[arg-type]
        return sum(int(value) for value in answer["Attributes"].values())

    def _arn(self, queue: str) -> str:
        return self._sqs.get_queue_attributes(QueueUrl=queue, AttributeNames=["QueueArn"])["Attributes"]["QueueArn"]


@contextmanager
def running_stack(bucket: str, **settings: str) -> Iterator[LocalStack]:
    """A stack on a free port of the loopback interface, and an environment that leads boto3 and Deltaguard to it.

    Args:
        bucket: Name of its bucket.
        settings: More environment variables, such as `DELTAGUARD_SETTLE_SECONDS`.
    """
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    _, port = server.get_host_and_port()
    endpoint = f"http://127.0.0.1:{port}"
    try:
        with _environment({**_ENVIRONMENT, "AWS_ENDPOINT_URL": endpoint, **settings}):
            yield LocalStack(endpoint, bucket)
    finally:
        server.stop()


@contextmanager
def _environment(variables: Mapping[str, str]) -> Iterator[None]:
    before = dict(os.environ)
    for name in _HIDDEN:
        os.environ.pop(name, None)
    os.environ.update(variables)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


def _sqs_record(message: Mapping[str, Any], arn: str) -> dict[str, Any]:
    """A received message as Lambda's event source mapping writes it."""
    return {
        "messageId": message["MessageId"],
        "receiptHandle": message["ReceiptHandle"],
        "body": message["Body"],
        "attributes": message.get("Attributes", {}),
        "messageAttributes": {},
        "eventSource": "aws:sqs",
        "eventSourceARN": arn,
        "awsRegion": "us-east-1",
    }
