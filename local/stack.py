"""AWS on this machine: a moto server with a bucket, queues and an event bus, and the delivery to handlers.

Everything goes through public APIs over HTTP, on the same path as in production: S3 puts an event in the queue, a
poller receives it, calls the handler with an SQS event, and deletes what the answer does not name as failed. A rule of
the bus puts Deltaguard's own events in a queue, too, from which they can be read.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import boto3
from moto.server import ThreadedMotoServer

from shared.delta import DATABASE, MANIFEST
from shared.messaging import SOURCE

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client
    from mypy_boto3_sqs import SQSClient

Handler = Callable[[object, Any], dict[str, list[dict[str, str]]]]

_ACCOUNT = "123456789012"  # moto's
_MAX_RECEIVES = 20
_BATCH = 10
_BUS = "deltaguard"
DELTAS, RESUBMIT, BATCHES, NOTICES = "deltas", "resubmit", "batches", "notices"
"""Names of the queues: of S3's events, of requests to resubmit, of what these start, and of Deltaguard's own events."""
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
    """A running moto server with a bucket, a bus, and queues with a dead-letter queue behind each that is worked on."""

    def __init__(self, endpoint: str, bucket: str) -> None:
        self.endpoint = endpoint
        self.bucket = bucket
        self.s3: S3Client = boto3.client("s3", endpoint_url=endpoint)
        self._sqs: SQSClient = boto3.client("sqs", endpoint_url=endpoint)

    def create(self, prefix: str, visibility_seconds: int, max_receives: int = _MAX_RECEIVES) -> None:
        """Makes bucket, queues and bus; uploads of manifests and databases below `prefix` become events."""
        self.s3.create_bucket(Bucket=self.bucket)
        for queue in (BATCHES, NOTICES):
            self._sqs.create_queue(QueueName=queue)
        for queue in (DELTAS, RESUBMIT):
            self._sqs.create_queue(QueueName=f"{queue}-dead")
            redrive = {"deadLetterTargetArn": _arn(f"{queue}-dead"), "maxReceiveCount": str(max_receives)}
            attributes: Any = {"VisibilityTimeout": str(visibility_seconds), "RedrivePolicy": json.dumps(redrive)}
            self._sqs.create_queue(QueueName=queue, Attributes=attributes)
        rules = [_rule(prefix, name) for name in (MANIFEST, DATABASE)]
        self.s3.put_bucket_notification_configuration(
            Bucket=self.bucket, NotificationConfiguration={"QueueConfigurations": rules}
        )
        events = boto3.client("events", endpoint_url=self.endpoint)
        events.create_event_bus(Name=_BUS)
        events.put_rule(Name=NOTICES, EventBusName=_BUS, EventPattern=json.dumps({"source": [SOURCE]}))
        events.put_targets(Rule=NOTICES, EventBusName=_BUS, Targets=[{"Id": NOTICES, "Arn": _arn(NOTICES)}])

    def send(self, bodies: Iterable[Any], queue: str = DELTAS) -> None:
        """Puts messages with these bodies in a queue, as S3 puts its events there."""
        waiting = [json.dumps(body) for body in bodies]
        for start in range(0, len(waiting), _BATCH):
            entries: list[Any] = [
                {"Id": str(number), "MessageBody": body} for number, body in enumerate(waiting[start : start + _BATCH])
            ]
            self._sqs.send_message_batch(QueueUrl=self._url(queue), Entries=entries)

    def deliver(self, handler: Handler, queue: str = DELTAS) -> Delivery | None:
        """Gives the handler one batch of a queue's messages. Returns None when the queue has none to give now."""
        received = self._receive(queue)
        if not received:
            return None
        answer = handler({"Records": [_sqs_record(message, _arn(queue)) for message in received]}, InvocationContext())
        failed = {failure["itemIdentifier"] for failure in answer["batchItemFailures"]}
        self._delete(queue, [message for message in received if message["MessageId"] not in failed])
        return Delivery(len(received), len(failed))

    def taken(self, queue: str) -> list[dict[str, Any]]:
        """Takes all messages out of a queue and returns their bodies: events in `NOTICES`, batches in `BATCHES`."""
        bodies: list[dict[str, Any]] = []
        while received := self._receive(queue):
            bodies += [json.loads(message["Body"]) for message in received]
            self._delete(queue, received)
        return bodies

    def waiting(self, queue: str = DELTAS) -> tuple[int, int]:
        """How many messages are in a queue, hidden ones included, and how many in its dead-letter queue."""
        return self._depth(queue), self._depth(f"{queue}-dead")

    def _receive(self, queue: str) -> list[Any]:
        answer = self._sqs.receive_message(
            QueueUrl=self._url(queue), MaxNumberOfMessages=_BATCH, WaitTimeSeconds=0, AttributeNames=["All"]
        )
        return list(answer.get("Messages", []))

    def _delete(self, queue: str, messages: list[Any]) -> None:
        for message in messages:
            self._sqs.delete_message(QueueUrl=self._url(queue), ReceiptHandle=message["ReceiptHandle"])

    def _depth(self, queue: str) -> int:
        names = ["ApproximateNumberOfMessages", "ApproximateNumberOfMessagesNotVisible"]
        answer = self._sqs.get_queue_attributes(QueueUrl=self._url(queue), AttributeNames=names)  # type: ignore[arg-type]
        return sum(int(value) for value in answer["Attributes"].values())

    def _url(self, queue: str) -> str:
        return _queue_url(self.endpoint, queue)


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
        with addressed(endpoint, **settings):
            yield LocalStack(endpoint, bucket)
    finally:
        server.stop()


def addresses(endpoint: str) -> dict[str, str]:
    """The environment variables that lead boto3 and Deltaguard to a stack at this endpoint."""
    return {
        "AWS_ENDPOINT_URL": endpoint,
        "DELTAGUARD_EVENT_BUS": _BUS,
        "DELTAGUARD_RESUBMIT_QUEUE_URL": _queue_url(endpoint, RESUBMIT),
        "DELTAGUARD_RESUBMIT_TARGET": _queue_url(endpoint, BATCHES),
    }


def _queue_url(endpoint: str, queue: str) -> str:
    return f"{endpoint}/{_ACCOUNT}/{queue}"


def _arn(queue: str) -> str:
    return f"arn:aws:sqs:{_ENVIRONMENT['AWS_DEFAULT_REGION']}:{_ACCOUNT}:{queue}"


def _rule(prefix: str, suffix: str) -> Any:
    names = [{"Name": "prefix", "Value": prefix}, {"Name": "suffix", "Value": suffix}]
    return {
        "QueueArn": _arn(DELTAS),
        "Events": ["s3:ObjectCreated:*"],
        "Filter": {"Key": {"FilterRules": names}},
    }


@contextmanager
def addressed(endpoint: str, **settings: str) -> Iterator[None]:
    """An environment that leads boto3 and Deltaguard to a stack at this endpoint, with these variables besides."""
    before = dict(os.environ)
    for name in _HIDDEN:
        os.environ.pop(name, None)
    os.environ.update({**_ENVIRONMENT, **addresses(endpoint), **settings})
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
