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
from typing import TYPE_CHECKING, Any

import boto3
from moto.server import ThreadedMotoServer

from local.poller import Delivery, Queue, deliver
from local.shim import InvocationContext
from shared.delta import DATABASE, MANIFEST

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client
    from mypy_boto3_sqs import SQSClient

Handler = Callable[[object, Any], dict[str, list[dict[str, str]]]]

_MAX_RECEIVES = 20
_BATCH = 10
REACHED = {
    "AWS_ACCESS_KEY_ID": "local",
    "AWS_SECRET_ACCESS_KEY": "local",  # moto accepts any
    "AWS_DEFAULT_REGION": "us-east-1",
    "AWS_XRAY_SDK_ENABLED": "false",
}
"""The environment in which boto3 reaches a local server, but for its URL."""
_HIDDEN = ("AWS_PROFILE", "AWS_SESSION_TOKEN", "AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL_SQS", "AWS_REGION")


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
        queue = Queue(self._queue, self._arn(self._queue), _BATCH)
        return deliver(self._sqs, queue, lambda event: handler(event, InvocationContext()))

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
    with moto_server() as endpoint, environment({**REACHED, "AWS_ENDPOINT_URL": endpoint, **settings}):
        yield LocalStack(endpoint, bucket)


@contextmanager
def moto_server(port: int = 0) -> Iterator[str]:
    """A moto server on the loopback interface; 0 is any free port. Yields its URL."""
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=port, verbose=False)
    server.start()
    try:
        _, port = server.get_host_and_port()
        yield f"http://127.0.0.1:{port}"
    finally:
        server.stop()


@contextmanager
def environment(variables: Mapping[str, str]) -> Iterator[None]:
    """Sets environment variables, and hides those that would lead boto3 elsewhere, inside the block."""
    before = dict(os.environ)
    for name in _HIDDEN:
        os.environ.pop(name, None)
    os.environ.update(variables)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)
