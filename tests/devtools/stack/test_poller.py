"""The poller does with a queue what Lambda does: partial answers, failed batches, dead letters."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any

import boto3
import pytest

from devtools.stack.poller import InvocationFailed, Poller, Queue, deliver, failed_messages, invoke_over_http


@pytest.fixture
def queue(aws: str) -> Queue:
    """A queue whose messages come back at once, and are given up after two receives."""
    sqs = boto3.client("sqs")
    sqs.create_queue(QueueName="dead")
    dead = "arn:aws:sqs:us-east-1:123456789012:dead"
    redrive = json.dumps({"deadLetterTargetArn": dead, "maxReceiveCount": "2"})
    url = sqs.create_queue(QueueName="alive", Attributes={"VisibilityTimeout": "0", "RedrivePolicy": redrive})[
        "QueueUrl"
    ]
    return Queue(url, "arn:aws:sqs:us-east-1:123456789012:alive", 10)


def send(queue: Queue, *bodies: str) -> None:
    for body in bodies:
        boto3.client("sqs").send_message(QueueUrl=queue.url, MessageBody=body)


def bodies(name: str) -> list[str]:
    sqs = boto3.client("sqs")
    url = sqs.get_queue_url(QueueName=name)["QueueUrl"]
    return [
        message["Body"] for message in sqs.receive_message(QueueUrl=url, MaxNumberOfMessages=10).get("Messages", [])
    ]


def failing(*names: str) -> Any:
    """A function that answers that the messages with these bodies failed."""

    def invoke(event: Any) -> Any:
        failed = [record["messageId"] for record in event["Records"] if record["body"] in names]
        return {"batchItemFailures": [{"itemIdentifier": id_} for id_ in failed]}

    return invoke


def test_only_the_messages_that_the_answer_names_stay(queue: Queue) -> None:
    send(queue, "good", "bad")
    delivery = deliver(boto3.client("sqs"), queue, failing("bad"))
    assert delivery is not None
    assert (delivery.messages, delivery.failed) == (2, 1)
    assert bodies("alive") == ["bad"]


def test_after_a_failed_invocation_all_messages_stay(queue: Queue) -> None:
    def invoke(event: Any) -> Any:
        raise InvocationFailed("it died")

    send(queue, "one", "two")
    with pytest.raises(InvocationFailed):
        deliver(boto3.client("sqs"), queue, invoke)
    assert sorted(bodies("alive")) == ["one", "two"]


def test_a_message_that_fails_too_often_goes_to_the_dead_letter_queue(queue: Queue) -> None:
    send(queue, "bad")
    for _ in range(3):
        deliver(boto3.client("sqs"), queue, failing("bad"))
    assert (bodies("alive"), bodies("dead")) == ([], ["bad"])


def test_an_empty_queue_invokes_nothing(queue: Queue) -> None:
    assert deliver(boto3.client("sqs"), queue, lambda _: pytest.fail("invoked")) is None


@pytest.mark.parametrize(
    ("answer", "failed"),
    [
        (None, set()),
        ({}, set()),
        ({"batchItemFailures": None}, set()),
        ({"batchItemFailures": [{"itemIdentifier": "a"}]}, {"a"}),
        ({"batchItemFailures": [{"itemIdentifier": ""}]}, {"a", "b"}),
        ({"batchItemFailures": [{"itemIdentifier": None}]}, {"a", "b"}),
        ({"batchItemFailures": [{"id": "a"}]}, {"a", "b"}),
        ({"batchItemFailures": [{"itemIdentifier": "another"}]}, {"a", "b"}),
        ("text", {"a", "b"}),
    ],
)
def test_an_answer_means_what_it_means_to_lambda(answer: Any, failed: set[str]) -> None:
    assert failed_messages(answer, {"a", "b"}) == failed


@pytest.fixture
def lambda_api() -> Iterator[str]:
    """An HTTP server that answers as the last part of the function's name says."""

    class Answer(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            function = self.path.split("/")[3]
            self.rfile.read(int(self.headers["Content-Length"]))
            self.send_response(404 if function == "missing" else 200)
            self.end_headers()
            error = json.dumps({"errorType": "KeyError", "errorMessage": "x"}).encode()
            self.wfile.write({"raising": error, "garbled": b"{"}.get(function, b'{"batchItemFailures": []}'))

        def log_message(self, *_: Any) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Answer)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


def test_a_function_is_invoked_by_lambdas_api(lambda_api: str) -> None:
    assert invoke_over_http(lambda_api, "one", 5)({"Records": []}) == {"batchItemFailures": []}


@pytest.mark.parametrize("function", ["missing", "raising", "garbled"])
def test_a_function_that_is_missing_raises_or_garbles_is_a_failed_invocation(lambda_api: str, function: str) -> None:
    with pytest.raises(InvocationFailed, match=function):
        invoke_over_http(lambda_api, function, 5)({"Records": []})


def test_a_poller_tells_of_failures_goes_on_and_stops_when_told(queue: Queue) -> None:
    told: list[str] = []
    done = threading.Event()

    def invoke(event: Any) -> Any:
        if not told:
            raise InvocationFailed("it died")
        done.set()
        return None

    send(queue, "one")
    poller = Poller(boto3.client("sqs"), queue, invoke, told.append)
    poller.start()
    assert done.wait(60)
    poller.stop()
    poller.join(60)
    assert not poller.is_alive()
    assert told == ["it died; its messages come back"]
    assert bodies("alive") == []
