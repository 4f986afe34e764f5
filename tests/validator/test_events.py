"""From an event to the deltas it is about, whatever the envelope, and never to a crash of the whole batch."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from shared.model.delta import DeltaLocation
from validator.events import EventError, Message, Receipt, read_event

SEGMENT = "0a1b2c3d-0000-4000-8000-0123456789ab"
D1, D2 = DeltaLocation("deltas", "tenant/d1/"), DeltaLocation("deltas", "tenant/d2/")
TEST_EVENT = {"Service": "Amazon S3", "Event": "s3:TestEvent", "Bucket": "deltas"}


def s3(*keys: str, name: str = "ObjectCreated:Put", bucket: str = "deltas") -> dict[str, Any]:
    """S3's own event, its keys as they stand in it."""
    return {
        "Records": [
            {
                "eventSource": "aws:s3",
                "eventName": name,
                "s3": {"bucket": {"name": bucket}, "object": {"key": key, "size": 1, "sequencer": "0A"}},
            }
            for key in keys
        ]
    }


def eventbridge(key: str, kind: str = "Object Created") -> dict[str, Any]:
    return {
        "version": "0",
        "source": "aws.s3",
        "detail-type": kind,
        "detail": {"bucket": {"name": "deltas"}, "object": {"key": key, "size": 1}},
    }


def sns(event: object) -> dict[str, Any]:
    return {"Type": "Notification", "MessageId": "n1", "Message": json.dumps(event)}


def sqs(*bodies: object) -> dict[str, Any]:
    """An SQS event; a body that is a string stands there as it is."""
    return {
        "Records": [
            {
                "messageId": f"m{number}",
                "eventSource": "aws:sqs",
                "body": body if isinstance(body, str) else json.dumps(body),
            }
            for number, body in enumerate(bodies, start=1)
        ]
    }


@pytest.mark.parametrize(
    ("event", "id_"),
    [
        (s3("tenant/d1/chroma.sqlite3"), None),
        (sqs(s3("tenant/d1/chroma.sqlite3")), "m1"),
        (sqs(sns(s3("tenant/d1/chroma.sqlite3"))), "m1"),
        (eventbridge("tenant/d1/chroma.sqlite3"), None),
        (sqs(eventbridge("tenant/d1/chroma.sqlite3")), "m1"),
        (sqs(sns(eventbridge("tenant/d1/chroma.sqlite3"))), "m1"),
    ],
    ids=["S3", "S3 in SQS", "S3 in SNS in SQS", "EventBridge", "EventBridge in SQS", "EventBridge in SNS in SQS"],
)
def test_each_envelope_leads_to_the_same_delta(event: dict[str, Any], id_: str | None) -> None:
    assert read_event(event) == [Message(id_, (D1,))]


@pytest.mark.parametrize(
    "name", ["ObjectCreated:Put", "ObjectCreated:CompleteMultipartUpload", "s3:ObjectCreated:Copy"]
)
def test_every_way_to_create_an_object_counts(name: str) -> None:
    assert read_event(s3("tenant/d1/chroma.sqlite3", name=name)) == [Message(None, (D1,))]


def test_every_record_of_an_event_counts_and_every_message_keeps_its_own_deltas() -> None:
    event = sqs(s3("tenant/d1/chroma.sqlite3", "tenant/d2/delta.manifest.json"), s3("tenant/d2/chroma.sqlite3"))
    assert read_event(event) == [Message("m1", (D1, D2)), Message("m2", (D2,))]


def test_the_files_of_one_delta_are_one_delta_in_the_order_of_their_coming() -> None:
    keys = [f"tenant/d2/{SEGMENT}/header.bin", "tenant/d1/chroma.sqlite3", "tenant/d2/chroma.sqlite3"]
    assert read_event(s3(*keys)) == [Message(None, (D2, D1))]


def test_deltas_of_the_same_name_in_two_buckets_are_two() -> None:
    one, two = (s3("d/chroma.sqlite3", bucket=bucket)["Records"][0] for bucket in ("one", "two"))
    (message,) = read_event({"Records": [one, two]})
    assert [delta.uri for delta in message.deltas] == ["s3://one/d/", "s3://two/d/"]


ENCODED = [
    ("a+b/chroma.sqlite3", "a b/", "a+b/"),
    ("a%2Bb/chroma.sqlite3", "a+b/", "a%2Bb/"),
    ("a%2Fb/chroma.sqlite3", "a/b/", "a%2Fb/"),
    ("a%252Fb/chroma.sqlite3", "a%2Fb/", "a%252Fb/"),
    ("%C3%BC%F0%9F%A6%86/chroma.sqlite3", "ü🦆/", "%C3%BC%F0%9F%A6%86/"),
    ("a%3Db%26c/chroma.sqlite3", "a=b&c/", "a%3Db%26c/"),
]


@pytest.mark.parametrize("wrap", [lambda e: e, sqs, lambda e: sqs(sns(e))], ids=["plain", "SQS", "SNS in SQS"])
@pytest.mark.parametrize(("key", "decoded", "literal"), ENCODED)
def test_keys_are_decoded_once_in_s3_s_own_events_and_never_in_eventbridge_s(
    wrap: Any, key: str, decoded: str, literal: str
) -> None:
    assert read_event(wrap(s3(key)))[0].deltas == (DeltaLocation("deltas", decoded),)
    assert read_event(wrap(eventbridge(key)))[0].deltas == (DeltaLocation("deltas", literal),)


@pytest.mark.parametrize(
    "event",
    [
        TEST_EVENT,
        s3("tenant/d1/chroma.sqlite3", name="ObjectRemoved:Delete"),
        s3("tenant/d1/chroma.sqlite3", name="s3:ObjectRemoved:DeleteMarkerCreated"),
        s3("tenant/d1/chroma.sqlite3", name="ObjectTagging:Put"),
        eventbridge("tenant/d1/chroma.sqlite3", kind="Object Deleted"),
        s3("tenant/readme.txt", "chroma.sqlite3", "tenant/d1/", "index/header.bin"),
        eventbridge("tenant/readme.txt"),
        {"Records": []},
    ],
    ids=["test", "removal", "marker", "tagging", "EventBridge removal", "other keys", "EventBridge other", "none"],
)
def test_an_event_that_is_normal_but_about_no_delta_is_a_message_without_deltas(event: dict[str, Any]) -> None:
    assert read_event(event) == [Message(None, ())]
    assert read_event(sqs(event)) == [Message("m1", ())]
    assert read_event(sqs(sns(event))) == [Message("m1", ())]


UNREADABLE = {
    "no JSON": "not json",
    "empty": "",
    "list": "[]",
    "number": "5",
    "null": "null",
    "other object": json.dumps({"hello": "world"}),
    "record without s3": json.dumps({"Records": [{"eventName": "ObjectCreated:Put"}]}),
    "record without a name": json.dumps({"Records": [{"s3": {}}]}),
    "record that is none": json.dumps({"Records": ["x"]}),
    "key that is a number": json.dumps(s3(5)),  # type: ignore[arg-type]
    "key that is null": json.dumps(eventbridge(None)),  # type: ignore[arg-type]
    "bucket that is a number": json.dumps(s3("d/chroma.sqlite3", bucket=5)),  # type: ignore[arg-type]
    "bucket that is a list": json.dumps(s3("d/chroma.sqlite3", bucket=["x"])),  # type: ignore[arg-type]
    "EventBridge without detail": json.dumps({"detail-type": "Object Created"}),
    "SNS with no JSON": json.dumps({"Type": "Notification", "Message": "hello"}),
    "SNS with a list": json.dumps(sns([])),
    "SNS with a number": json.dumps(sns(5)),
    "SNS with an object": json.dumps({"Type": "Notification", "Message": {}}),
    "nested without end": "[" * 100_000,
}


@pytest.mark.parametrize("body", UNREADABLE.values(), ids=UNREADABLE)
def test_a_message_that_cannot_be_read_has_a_problem_and_does_not_touch_its_neighbours(body: str) -> None:
    before, broken, after = read_event(sqs(s3("tenant/d1/chroma.sqlite3"), body, s3("tenant/d2/chroma.sqlite3")))
    assert (before, after) == (Message("m1", (D1,)), Message("m3", (D2,)))
    assert (broken.id, broken.deltas) == ("m2", ())
    assert broken.problem is not None and broken.problem.startswith("message m2 holds no S3 event: ")


def test_a_message_without_a_body_has_a_problem() -> None:
    (message,) = read_event({"Records": [{"eventSource": "aws:sqs", "messageId": "m1"}]})
    assert (message.id, message.deltas) == ("m1", ()) and "body" in str(message.problem)


WRONG = [
    None, 5, "text", [], {}, {"hello": "world"}, {"Records": "x"}, {"Records": ["x"]},
    {"Records": [{"eventSource": "aws:sqs", "body": "{}"}]},
    {"Records": [{"eventSource": "aws:sqs", "messageId": "", "body": "{}"}]},
    {"detail-type": "Object Created"}, eventbridge(None), s3(5), s3("d/chroma.sqlite3", bucket=["x"]),
]  # type: ignore[arg-type]  # fmt: skip


@pytest.mark.parametrize("event", WRONG, ids=lambda event: repr(event)[:40])
def test_an_event_of_another_kind_is_one_clear_error(event: object) -> None:
    with pytest.raises(EventError) as wrong:
        read_event(event)
    assert str(wrong.value) and "\n" not in str(wrong.value)


def replaced(value: Any, path: list[int], new: Any) -> Any:
    """`value` with another value at one place inside it."""
    if not path or not isinstance(value, dict | list) or not value:
        return new
    if isinstance(value, list):
        at = path[0] % len(value)
        return [replaced(item, path[1:], new) if i == at else item for i, item in enumerate(value)]
    chosen = sorted(value)[path[0] % len(value)]
    return {key: replaced(item, path[1:], new) if key == chosen else item for key, item in value.items()}


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=8,
)
almost_events = st.builds(
    replaced,
    st.sampled_from([s3("d/chroma.sqlite3"), eventbridge("d/chroma.sqlite3"), sns(s3("d/chroma.sqlite3")), TEST_EVENT]),
    st.lists(st.integers(0, 9), min_size=1, max_size=6),
    json_values,
)


@given(json_values | almost_events | json_values.map(sns))
@example({"detail-type": "Object Created", "detail": {"bucket": {"name": "b"}, "object": {"key": 5}}})
def test_no_json_body_breaks_the_batch(body: Any) -> None:
    messages = read_event(sqs(body, s3("tenant/d1/chroma.sqlite3")))
    assert [message.id for message in messages] == ["m1", "m2"]
    assert messages[1].deltas == (D1,)
    if messages[0].problem is not None:
        assert messages[0].deltas == ()
    for delta in messages[0].deltas:
        assert isinstance(delta.bucket, str) and delta.prefix.endswith("/")


@given(json_values | almost_events)
def test_no_json_event_raises_anything_but_an_event_error(event: Any) -> None:
    try:
        messages = read_event(event)
    except EventError:
        return
    for message in messages:
        assert not (message.deltas and message.problem)


@pytest.mark.parametrize(
    ("attributes", "receives"),
    [
        ({"ApproximateReceiveCount": "7"}, 7),
        ({"ApproximateReceiveCount": "0"}, 1),
        ({"ApproximateReceiveCount": "many"}, 1),
        ({"ApproximateReceiveCount": "-3"}, 1),
        ({"ApproximateReceiveCount": "9" * 5000}, 999_999_999),
        ({}, 1),
        (None, 1),
    ],
)
def test_a_message_keeps_how_it_was_received(attributes: Any, receives: int) -> None:
    event = sqs(s3("tenant/d1/chroma.sqlite3"))
    event["Records"][0] |= {"receiptHandle": "handle", "eventSourceARN": "arn", "attributes": attributes}
    (message,) = read_event(event)
    assert message.receipt == Receipt("m1", "arn", "handle", receives)


def test_an_event_without_a_queue_has_no_receipt_and_one_of_a_queue_may_have_no_handle() -> None:
    (direct,), (queued,) = read_event(s3("tenant/d1/chroma.sqlite3")), read_event(sqs(s3("tenant/d1/chroma.sqlite3")))
    assert direct.receipt is None
    assert queued.receipt is not None and queued.receipt.handle is None
