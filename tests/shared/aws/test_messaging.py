"""SQS, EventBridge and Step Functions as Deltaguard uses them, on a real server."""

from __future__ import annotations

import json

import boto3
import pytest
from botocore.exceptions import EndpointConnectionError

from devtools.stack.stack import BATCHES, NOTICES, LocalStack
from shared.aws.messaging import Messaging, current_messaging
from shared.model.errors import MessagingError
from tests.support import faults

ARN = "arn:aws:sqs:us-east-1:123456789012:batches"
ROLE = "arn:aws:iam::123456789012:role/states"
PASS = json.dumps({"StartAt": "Pass", "States": {"Pass": {"Type": "Pass", "End": True}}})


@pytest.fixture
def messaging(stack: LocalStack) -> Messaging:
    return current_messaging()


def test_an_event_reaches_the_bus_with_source_kind_and_detail(stack: LocalStack, messaging: Messaging) -> None:
    messaging.publish("deltaguard", "Delta Quarantined", json.dumps({"delta": "s3://deltas/d/1/ é"}))
    (event,) = stack.taken(NOTICES)
    assert (event["source"], event["detail-type"]) == ("deltaguard", "Delta Quarantined")
    assert event["detail"] == {"delta": "s3://deltas/d/1/ é"}


def test_an_event_that_eventbridge_refuses_is_an_error_although_the_request_succeeded(messaging: Messaging) -> None:
    with pytest.raises(MessagingError, match="publishing 'Delta Validated' on bus deltaguard: ") as refused:
        messaging.publish("deltaguard", "Delta Validated", "not json")
    assert refused.value.aws_code == "MalformedDetail"


def test_a_hidden_message_is_not_received_again_before_its_time(stack: LocalStack, messaging: Messaging) -> None:
    sqs = boto3.client("sqs")
    url = sqs.get_queue_url(QueueName=BATCHES)["QueueUrl"]
    messaging.send(url, "hello", "group", "key")
    (message,) = sqs.receive_message(QueueUrl=url, VisibilityTimeout=0)["Messages"]
    messaging.hide(ARN, message["ReceiptHandle"], 3600)
    assert "Messages" not in sqs.receive_message(QueueUrl=url)
    messaging.hide(ARN, message["ReceiptHandle"], 0)
    assert sqs.receive_message(QueueUrl=url)["Messages"][0]["Body"] == "hello"


@pytest.mark.parametrize("arn", ["", "deltas", "arn:aws:sns:us-east-1:123456789012:deltas"])
def test_what_is_no_queue_cannot_hide_a_message(messaging: Messaging, arn: str) -> None:
    with pytest.raises(MessagingError, match="is not the ARN of a queue"):
        messaging.hide(arn, "handle", 1)


def test_in_a_fifo_queue_a_repeat_with_the_same_key_is_dropped(messaging: Messaging) -> None:
    sqs = boto3.client("sqs")
    url = sqs.create_queue(QueueName="batches.fifo", Attributes={"FifoQueue": "true"})["QueueUrl"]
    for _ in range(2):
        messaging.send(url, "process batch 40", "batch-40", "attempt-1")
    assert len(sqs.receive_message(QueueUrl=url, MaxNumberOfMessages=10)["Messages"]) == 1


def test_an_execution_that_was_started_before_is_not_started_again_and_is_no_error(messaging: Messaging) -> None:
    states = boto3.client("stepfunctions")
    machine = states.create_state_machine(name="batches", definition=PASS, roleArn=ROLE)["stateMachineArn"]
    messaging.start(machine, "batch-40-1", '{"attempt": 1}')
    messaging.start(machine, "batch-40-1", '{"attempt": 2}')
    (execution,) = states.list_executions(stateMachineArn=machine)["executions"]
    assert states.describe_execution(executionArn=execution["executionArn"])["input"] == '{"attempt": 1}'


@pytest.mark.parametrize(
    ("act", "code"),
    [
        (lambda m: m.publish("nowhere", "Delta Validated", "{}"), "ResourceNotFoundException"),
        (lambda m: m.send("http://nowhere/123456789012/none", "x", "g", "k"), "NonExistentQueue"),
        (lambda m: m.start("arn:aws:states:us-east-1:123456789012:stateMachine:none", "n", "{}"), "StateMachineDoesNo"),
        (lambda m: m.hide(ARN, "no such handle", 1), "ReceiptHandleIsInvalid"),
    ],
    ids=["no bus", "no queue", "no state machine", "no handle"],
)
def test_an_error_of_a_service_says_what_was_tried_and_keeps_its_code(
    messaging: Messaging, act: object, code: str
) -> None:
    with pytest.raises(MessagingError) as failed:
        act(messaging)  # type: ignore[operator]
    assert code in failed.value.aws_code
    assert failed.value.aws_code in str(failed.value)


def test_a_network_that_fails_is_a_messaging_error(stack: LocalStack) -> None:
    _, messaging = faults.hooked(faults.failure(EndpointConnectionError(endpoint_url="http://nowhere")))
    with pytest.raises(MessagingError, match=r"sending to .*batches: Could not connect"):
        messaging.send(f"{stack.endpoint}/123456789012/{BATCHES}", "x", "g", "k")


def test_without_a_region_there_is_one_clear_error(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AWS_DEFAULT_REGION", "AWS_REGION"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_CONFIG_FILE", "/nonexistent")
    with pytest.raises(MessagingError, match="making a client of sqs: You must specify a region"):
        Messaging().send("https://host/123456789012/q", "x", "g", "k")


def test_the_clients_are_made_once_for_one_environment(aws: str, monkeypatch: pytest.MonkeyPatch) -> None:
    first = current_messaging()
    assert current_messaging() is first
    monkeypatch.setenv("AWS_DEFAULT_REGION", "eu-central-1")
    assert current_messaging() is not first
