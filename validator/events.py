"""From an event to the deltas it is about. Pure functions; every envelope in which S3's events come is taken apart.

Keys in S3's own events are URL-encoded, also inside SQS and SNS; keys in EventBridge's events are not
(https://docs.aws.amazon.com/AmazonS3/latest/userguide/notification-content-structure.html, ev-events.html).
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import unquote_plus

from shared.model.delta import DeltaLocation, delta_prefix_of
from shared.model.errors import DeltaguardError

_CREATED = "ObjectCreated"
_CREATED_DETAIL = "Object Created"


class EventError(DeltaguardError):
    """An event or message is none that this function can be given; the message says what was expected."""


@dataclass(frozen=True, slots=True)
class Receipt:
    """One receive of a message from an SQS queue.

    Args:
        id: The message's id, which a partial batch response names.
        queue: ARN of the queue.
        handle: What its visibility is changed with; None where the event has none.
        receives: How often the message was received, this time included.
    """

    id: str
    queue: str = ""
    handle: str | None = None
    receives: int = 1


@dataclass(frozen=True, slots=True)
class Message:
    """One message: its id in the queue (None for an event that came without one), and the deltas it is about.

    `problem` says why it could not be read; such a message has no deltas and belongs in the dead-letter queue.
    Two messages are equal when they say the same, whenever they were received.
    """

    id: str | None
    deltas: tuple[DeltaLocation, ...]
    problem: str | None = None
    receipt: Receipt | None = field(default=None, compare=False)


def read_event(event: object) -> list[Message]:
    """The messages of an event: SQS with S3, SNS or EventBridge inside, or S3 or EventBridge directly.

    Events that are normal but about no delta (`s3:TestEvent`, other objects, removals) give a message without deltas.

    Raises:
        EventError: The event is none of these.
    """
    if not isinstance(event, Mapping):
        raise EventError(f"expected an event object, got a {type(event).__name__}")
    records = event.get("Records")
    if isinstance(records, list) and any(_source(record) == "aws:sqs" for record in records):
        return [_read_message(record) for record in records]
    return [Message(None, _deltas(event))]


def receipt_of(record: object) -> Receipt:
    """The receipt in one record of an SQS event.

    Raises:
        EventError: The record has no `messageId`, so nothing could be answered about it.
    """
    fields = record if isinstance(record, Mapping) else {}
    id_ = str(fields.get("messageId", ""))
    if not id_:
        raise EventError("an SQS record without a messageId")
    attributes = fields.get("attributes")
    received = str(attributes.get("ApproximateReceiveCount", "1")) if isinstance(attributes, Mapping) else "1"
    handle = fields.get("receiptHandle")
    return Receipt(
        id_,
        str(fields.get("eventSourceARN", "")),
        str(handle) if handle else None,
        max(1, int(received[:9])) if received.isascii() and received.isdecimal() else 1,
    )


def _read_message(record: Any) -> Message:
    receipt = receipt_of(record)
    try:
        body = json.loads(record["body"])
        if not isinstance(body, Mapping):
            raise EventError(f"its body is a {type(body).__name__}")
        if body.get("Type") == "Notification" and "Message" in body:
            body = json.loads(body["Message"])
            if not isinstance(body, Mapping):
                raise EventError(f"its SNS message is a {type(body).__name__}")
        return Message(receipt.id, _deltas(body), receipt=receipt)
    except (EventError, ValueError, KeyError, TypeError, RecursionError) as error:
        return Message(receipt.id, (), f"message {receipt.id} holds no S3 event: {error}", receipt)


def _deltas(event: Mapping[str, Any]) -> tuple[DeltaLocation, ...]:
    """The deltas of one S3 or EventBridge event, each once, in the order they come."""
    found: dict[DeltaLocation, None] = {}
    encoded = "detail-type" not in event
    for bucket, key in _objects(event):
        if not isinstance(bucket, str) or not isinstance(key, str):
            raise EventError("an S3 event whose bucket or key is no text")
        prefix = delta_prefix_of(unquote_plus(key) if encoded else key)
        if prefix is not None:
            found[DeltaLocation(bucket, prefix)] = None
    return tuple(found)


def _objects(event: Mapping[str, Any]) -> Iterator[tuple[object, object]]:
    """Bucket and key of each object that an event says was created, as they stand there."""
    if event.get("Event") == "s3:TestEvent":
        return
    try:
        if "detail-type" in event:
            if event["detail-type"] == _CREATED_DETAIL:
                yield event["detail"]["bucket"]["name"], event["detail"]["object"]["key"]
            return
        if not isinstance(event.get("Records"), list):
            raise EventError(
                f"neither S3's nor EventBridge's: it has the fields {', '.join(sorted(map(str, event))[:8])}"
            )
        for record in event["Records"]:
            if str(record["eventName"]).removeprefix("s3:").startswith(_CREATED):
                yield record["s3"]["bucket"]["name"], record["s3"]["object"]["key"]
    except (KeyError, TypeError, AttributeError) as error:
        raise EventError(f"an S3 event without {error}") from error


def _source(record: object) -> str:
    return str(record.get("eventSource", "")) if isinstance(record, Mapping) else ""
