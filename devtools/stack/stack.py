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
from typing import TYPE_CHECKING, Any

import boto3
from moto.server import ThreadedMotoServer

from devtools.stack.poller import Delivery, Queue, deliver
from devtools.stack.shim import InvocationContext
from shared.aws.messaging import SOURCE
from shared.model.delta import DATABASE, MANIFEST

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
REACHED = {
    "AWS_ACCESS_KEY_ID": "local",
    "AWS_SECRET_ACCESS_KEY": "local",  # moto accepts any
    "AWS_DEFAULT_REGION": "us-east-1",
    "AWS_XRAY_SDK_ENABLED": "false",
}
"""The environment in which boto3 reaches a local server, but for its URL."""
_HIDDEN = ("AWS_PROFILE", "AWS_SESSION_TOKEN", "AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL_SQS", "AWS_REGION")


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
        given = Queue(self._url(queue), _arn(queue), _BATCH)
        return deliver(self._sqs, given, lambda event: handler(event, InvocationContext()))

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
        return messages_in(self._sqs, self._url(queue))

    def _url(self, queue: str) -> str:
        return _queue_url(self.endpoint, queue)


def messages_in(sqs: SQSClient, url: str) -> int:
    """How many messages are in a queue, hidden ones included."""
    names: Any = ["ApproximateNumberOfMessages", "ApproximateNumberOfMessagesNotVisible"]
    answers = [sqs.get_queue_attributes(QueueUrl=url, AttributeNames=names)["Attributes"] for _ in range(2)]
    # A message that comes into view between the two counts of one answer is in neither of them. Not twice running.
    return max(sum(map(int, answer.values())) for answer in answers)


@contextmanager
def running_stack(bucket: str, **settings: str) -> Iterator[LocalStack]:
    """A stack on a free port of the loopback interface, and an environment that leads boto3 and Deltaguard to it.

    Args:
        bucket: Name of its bucket.
        settings: More environment variables, such as `DELTAGUARD_SETTLE_SECONDS`.
    """
    with moto_server() as endpoint, addressed(endpoint, **settings):
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
    return f"arn:aws:sqs:{REACHED['AWS_DEFAULT_REGION']}:{_ACCOUNT}:{queue}"


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
    with environment({**REACHED, **addresses(endpoint), **settings}):
        yield


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
