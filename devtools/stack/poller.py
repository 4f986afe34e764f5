"""What Lambda's event source mapping does: from a queue to a function and, for what succeeded, out of the queue."""

from __future__ import annotations

import json
import threading
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from botocore.exceptions import BotoCoreError, ClientError

if TYPE_CHECKING:
    from mypy_boto3_sqs import SQSClient

Invoke = Callable[[Mapping[str, Any]], Any]
"""Gives a function an event and returns its answer; raises `InvocationFailed`."""

_WAIT_SECONDS = 1
_PAUSE_SECONDS = 0.5


class InvocationFailed(Exception):
    """The function raised, timed out, died or cannot be reached: every message of the batch comes back."""


@dataclass(frozen=True, slots=True)
class Queue:
    """A queue and how many of its messages are given to a function at once."""

    url: str
    arn: str
    batch: int


@dataclass(frozen=True, slots=True)
class Delivery:
    """One batch that a function was given: how many messages, and how many of them must come back."""

    messages: int
    failed: int


def deliver(sqs: SQSClient, queue: Queue, invoke: Invoke, wait_seconds: int = 0) -> Delivery | None:
    """Gives a function one batch of messages. Returns None when the queue has none to give now.

    Messages that the answer names as failed stay in the queue and are seen again after its visibility timeout; those
    that were received too often go to the dead-letter queue, which is the queue's own doing.

    Raises:
        InvocationFailed: There is no answer; all messages stay in the queue.
    """
    received = sqs.receive_message(
        QueueUrl=queue.url,
        MaxNumberOfMessages=queue.batch,
        WaitTimeSeconds=wait_seconds,
        AttributeNames=["All"],
        MessageAttributeNames=["All"],
    ).get("Messages", [])
    if not received:
        return None
    answer = invoke({"Records": [_record(message, queue.arn) for message in received]})
    failed = failed_messages(answer, {message["MessageId"] for message in received})
    done: list[Any] = [
        {"Id": str(number), "ReceiptHandle": message["ReceiptHandle"]}
        for number, message in enumerate(received)
        if message["MessageId"] not in failed
    ]
    if done:
        sqs.delete_message_batch(QueueUrl=queue.url, Entries=done)
    return Delivery(len(received), len(failed))


def failed_messages(answer: Any, messages: set[str]) -> set[str]:
    """The messages that come back: those that the answer names, or all of them when it names one that was not given.

    See https://docs.aws.amazon.com/lambda/latest/dg/services-sqs-errorhandling.html.
    """
    if not isinstance(answer, Mapping):
        return set() if answer is None else messages
    named = {failure.get("itemIdentifier") for failure in answer.get("batchItemFailures") or []}
    return messages if named - messages else named


def invoke_over_http(endpoint: str, function: str, timeout: float) -> Invoke:
    """Invokes a function by Lambda's API, as serverless offline offers it.

    Args:
        endpoint: URL of the API.
        function: Name of the function.
        timeout: Its time limit in seconds.
    """

    def invoke(event: Mapping[str, Any]) -> Any:
        url = f"{endpoint}/2015-03-31/functions/{function}/invocations"
        request = urllib.request.Request(url, json.dumps(event).encode(), method="POST")  # noqa: S310 - our own http
        try:
            with urllib.request.urlopen(request, timeout=timeout + 10) as response:  # noqa: S310 - the same
                answer = json.load(response)
        except (OSError, ValueError) as error:
            raise InvocationFailed(f"{function}: {error}") from error
        if isinstance(answer, dict) and "errorMessage" in answer:
            raise InvocationFailed(f"{function}: {answer.get('errorType')}: {answer['errorMessage']}")
        return answer

    return invoke


class Poller(threading.Thread):
    """Delivers one queue to one function until it is told to stop.

    Args:
        sqs: The queue's client.
        queue: The queue.
        invoke: The function.
        tell: Is given a line for each invocation that failed.
    """

    def __init__(self, sqs: SQSClient, queue: Queue, invoke: Invoke, tell: Callable[[str], None]) -> None:
        super().__init__(name=f"poller of {queue.url}", daemon=True)
        self._sqs, self._queue, self._invoke, self._tell = sqs, queue, invoke, tell
        self._stopping = threading.Event()

    def run(self) -> None:
        """Polls."""
        while not self._stopping.is_set():
            try:
                deliver(self._sqs, self._queue, self._invoke, _WAIT_SECONDS)
            except (InvocationFailed, BotoCoreError, ClientError) as error:
                if not self._stopping.is_set():
                    self._tell(f"{error}; its messages come back")
                self._stopping.wait(_PAUSE_SECONDS)

    def stop(self) -> None:
        """Takes nothing more from the queue."""
        self._stopping.set()


def _record(message: Mapping[str, Any], arn: str) -> dict[str, Any]:
    """A received message as Lambda's event source mapping writes it."""
    return {
        "messageId": message["MessageId"],
        "receiptHandle": message["ReceiptHandle"],
        "body": message["Body"],
        "attributes": message.get("Attributes", {}),
        "messageAttributes": message.get("MessageAttributes", {}),
        "eventSource": "aws:sqs",
        "eventSourceARN": arn,
        "awsRegion": "us-east-1",
    }
