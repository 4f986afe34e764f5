"""The only module that talks to SQS, EventBridge and Step Functions. Every failure leaves here as a `MessagingError`.

Retries are botocore's own, as in `shared.storage.store`; what still fails is repeated by the queue that the work came
from.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import cached_property, lru_cache, partial
from typing import TYPE_CHECKING, Any, cast

import boto3
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError

from shared.model.errors import MessagingError

if TYPE_CHECKING:
    from mypy_boto3_events import EventBridgeClient
    from mypy_boto3_sqs import SQSClient

SOURCE = "deltaguard"
"""The `source` of every event, for the patterns of EventBridge's rules."""

MOST_HIDDEN_SECONDS = 43_200
"""The longest visibility timeout of SQS: 12 hours."""

_CONFIG = Config(retries={"mode": "standard", "total_max_attempts": 5}, connect_timeout=5, read_timeout=30)


class Messaging:
    """The three services in the account and region of the environment. A client is made when it is first needed."""

    @cached_property
    def sqs(self) -> SQSClient:
        """The client of SQS."""
        return cast("SQSClient", _client("sqs"))

    @cached_property
    def events(self) -> EventBridgeClient:
        """The client of EventBridge."""
        return cast("EventBridgeClient", _client("events"))

    @cached_property
    def states(self) -> Any:
        """The client of Step Functions."""
        return _client("stepfunctions")

    def hide(self, queue_arn: str, receipt_handle: str, seconds: int) -> None:
        """Keeps a received message from being received again for so many seconds from now (at most 12 hours).

        The queue may belong to another account. Its URL follows from its ARN, so no right to ask for it is needed.

        Raises:
            MessagingError: The request failed, or that is no queue's ARN.
        """
        parts = queue_arn.split(":")
        if len(parts) != 6 or parts[2] != "sqs":
            raise MessagingError(f"hiding a message: {queue_arn!r} is not the ARN of a queue", "InvalidArn")
        url = f"{self.sqs.meta.endpoint_url}/{parts[4]}/{parts[5]}"
        request: Any = {"QueueUrl": url, "ReceiptHandle": receipt_handle, "VisibilityTimeout": seconds}
        self._call("hiding a message", queue_arn, lambda: self.sqs.change_message_visibility(**request))

    def send(self, queue_url: str, body: str, group: str, key: str) -> None:
        """Puts a message in a queue.

        Args:
            queue_url: The queue.
            body: The message.
            group: In a FIFO queue, messages of one group keep their order (at most 128 characters).
            key: In a FIFO queue, a repeat with the same key within 5 minutes is dropped (at most 128 characters).

        Raises:
            MessagingError: The request failed; the message may be in the queue nevertheless.
        """
        request: dict[str, Any] = {"QueueUrl": queue_url, "MessageBody": body}
        if queue_url.endswith(".fifo"):
            request |= {"MessageGroupId": group, "MessageDeduplicationId": key}
        self._call("sending to", queue_url, lambda: self.sqs.send_message(**request))

    def publish(self, bus: str, detail_type: str, detail: str) -> None:
        """Puts an event on a bus.

        Args:
            bus: Name or ARN.
            detail_type: The kind of the event.
            detail: Its content, a JSON object.

        Raises:
            MessagingError: The request failed, or EventBridge refused the event.
        """
        entry: Any = {"EventBusName": bus, "Source": SOURCE, "DetailType": detail_type, "Detail": detail}
        what = f"{detail_type!r} on bus {bus}"
        answer = self._call("publishing", what, lambda: self.events.put_events(Entries=[entry]))
        if answer.get("FailedEntryCount"):
            refused = answer["Entries"][0]
            code = refused.get("ErrorCode", "Unknown")
            raise MessagingError(f"publishing {what}: {code}: {refused.get('ErrorMessage', '')}", code)

    def start(self, state_machine: str, name: str, document: str) -> None:
        """Starts an execution of a state machine. One of this name that was started before is no error.

        Args:
            state_machine: Its ARN.
            name: The execution's name, which Step Functions keeps for 90 days (at most 80 characters).
            document: Its input, JSON.

        Raises:
            MessagingError: The request failed; the execution may have started nevertheless.
        """
        request = {"stateMachineArn": state_machine, "name": name, "input": document}
        try:
            self._call("starting", state_machine, lambda: self.states.start_execution(**request))
        except MessagingError as error:
            if error.aws_code != "ExecutionAlreadyExists":
                raise

    def execution(self, arn: str) -> dict[str, Any]:
        """An execution as DescribeExecution tells of it: `status`, and `output`, or `error` and `cause`.

        Raises:
            MessagingError: The request failed.
        """
        answer: dict[str, Any] = self._call("asking for", arn, lambda: self.states.describe_execution(executionArn=arn))
        return answer

    def mapped(self, arn: str) -> tuple[int, int]:
        """How many items the distributed maps of an execution are done with, whatever came of them, of how many.

        Raises:
            MessagingError: A request failed.
        """
        runs = self._call("asking for the maps of", arn, lambda: self.states.list_map_runs(executionArn=arn))
        done = total = 0
        for run in runs["mapRuns"]:
            describe = partial(self.states.describe_map_run, mapRunArn=run["mapRunArn"])
            told = self._call("asking for a map of", arn, describe)
            counts = told["itemCounts"]
            total += counts["total"]
            done += counts["succeeded"] + counts["failed"] + counts["timedOut"] + counts["aborted"]
        return done, total

    def stop(self, arn: str, why: str) -> None:
        """Ends an execution.

        Raises:
            MessagingError: The request failed.
        """
        self._call("stopping", arn, lambda: self.states.stop_execution(executionArn=arn, cause=why))

    @staticmethod
    def _call(doing: str, what: str, action: Callable[[], Any]) -> Any:
        try:
            return action()
        except ClientError as error:
            answer = error.response.get("Error", {})
            code = answer.get("Code", "Unknown")
            raise MessagingError(f"{doing} {what}: {code}: {answer.get('Message', '')}".rstrip(": "), code) from error
        except (BotoCoreError, OSError) as error:
            raise MessagingError(f"{doing} {what}: {error}", type(error).__name__) from error


def _client(service: str) -> Any:
    try:
        return boto3.Session().client(service, config=_CONFIG)  # type: ignore[call-overload]
    except (BotoCoreError, ValueError) as error:
        raise MessagingError(f"making a client of {service}: {error}", type(error).__name__) from error


def current_messaging() -> Messaging:
    """The services of the current environment; the same clients as long as AWS's own variables stay the same."""
    return _messaging_for(tuple(sorted((n, v) for n, v in os.environ.items() if n.startswith("AWS_"))))


@lru_cache(maxsize=4)
def _messaging_for(_environment: tuple[tuple[str, str], ...]) -> Messaging:
    return Messaging()
