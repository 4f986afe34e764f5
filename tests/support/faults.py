"""Faults injected into real requests to AWS, through botocore's own hooks."""

from __future__ import annotations

import io
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from typing import Any

from botocore.awsrequest import AWSResponse
from botocore.httpsession import URLLib3Session
from botocore.response import StreamingBody

from shared.aws.messaging import Messaging
from shared.storage.client import s3_client
from shared.storage.store import Store

Answer = Callable[[Any], AWSResponse | None]
"""Given a request before it is sent: the answer in place of the service's, or None to let it through."""

_BODY = "<Error><Code>{code}</Code><Message>injected</Message></Error>"


class _Raw:
    """The raw part of a response that botocore reads: a body of some bytes."""

    def __init__(self, body: bytes) -> None:
        self._body = body

    def stream(self, *_: object) -> Any:
        yield self._body

    def read(self, amount: int | None = None, **_: object) -> bytes:
        part = self._body[:amount]
        self._body = self._body[len(part) :]
        return part

    def close(self) -> None:
        pass


def refusal(code: str, status: int) -> Answer:
    """An error as S3 answers with it."""

    def answer(request: Any) -> AWSResponse:
        body = b"" if request.method == "HEAD" else _BODY.format(code=code).encode()
        return AWSResponse(request.url, status, {"Content-Length": str(len(body))}, _Raw(body))

    return answer


def failure(error: Exception) -> Answer:
    """A request that does not get through."""

    def answer(request: Any) -> AWSResponse:
        raise error

    return answer


def cut_short(request: Any) -> AWSResponse:
    """The service's own answer, whose connection breaks in the middle of its body."""
    whole = URLLib3Session().send(request)
    body = whole.content
    return AWSResponse(request.url, whole.status_code, whole.headers, _Raw(body[: len(body) // 2]))


def answered(request: Any, body: bytes) -> AWSResponse:
    """An answer without a fault, with this body."""
    return AWSResponse(request.url, 200, {"Content-Type": "application/xml"}, _Raw(body))


def flipped(request: Any, bit: int | None = None) -> AWSResponse:
    """The service's own answer, of whose body one bit is another one: by default one in its middle."""
    whole = URLLib3Session().send(request)
    body = bytearray(whole.content)
    at = len(body) // 2 * 8 if bit is None else bit % max(8 * len(body), 1)
    if body:
        body[at // 8] ^= 1 << at % 8
    return AWSResponse(request.url, whole.status_code, whole.headers, _Raw(bytes(body)))


def changed_on_the_way(request: Any) -> AWSResponse | None:
    """The service's own answer to a read of a whole object, one bit of whose body is another one."""
    if request.method != "GET" or "?" in request.url or "Range" in request.headers:
        return None
    return flipped(request)


def answering(code: str, status: int, when: Callable[[Any], bool] = lambda _: True) -> Store:
    """A store whose requests are answered with an error of S3's, where `when` says so of the request."""
    refuse = refusal(code, status)
    client = s3_client()
    _hook(client, lambda request: refuse(request) if when(request) else None)
    client.meta.events.register_first("needs-retry.s3", lambda **_: None)
    return Store(client)


def failing(error: Exception, when: Callable[[Any], bool] = lambda _: True) -> Store:
    """A store whose requests do not get through, where `when` says so of the request."""
    fail = failure(error)
    client = s3_client()
    _hook(client, lambda request: fail(request) if when(request) else None)
    return Store(client)


def doing(client_hook: Callable[[Any], None]) -> Store:
    """A store that calls `client_hook` with each request before it is sent: another party acting in between."""
    client = s3_client()
    _hook(client, client_hook)
    return Store(client)


def dated(date: Callable[[datetime], str | None]) -> Store:
    """A store whose answers have another `Date`.

    Args:
        date: Given the present, what the header says; None for an answer without one.
    """
    client = s3_client()

    def change(parsed: dict[str, Any], **_: Any) -> None:
        told, headers = date(datetime.now(UTC)), parsed["ResponseMetadata"]["HTTPHeaders"]
        headers.pop("date", None)
        if told is not None:
            headers["date"] = told

    client.meta.events.register("after-call.s3", change)
    return Store(client)


def later(seconds: float) -> Store:
    """A store whose clock is later by so many seconds than the times of its objects tell."""
    return dated(lambda now: format_datetime(now + timedelta(seconds=seconds), usegmt=True))


def hooked(answer: Answer) -> tuple[Store, Messaging]:
    """A store and the messaging services whose requests are given to `answer`, and never repeated by botocore."""
    client, messaging = s3_client(), Messaging()
    for each in (client, messaging.sqs, messaging.events, messaging.states):
        _hook(each, answer)
        service = each.meta.service_model.service_id.hyphenize()
        each.meta.events.unregister(f"needs-retry.{service}", unique_id=f"retry-config-{service}")
    return Store(client), messaging


class Crash(BaseException):
    """The process is killed; nothing may catch it."""


class CrashAt:
    """An answer that lets requests through until the `number`-th, at which the process is killed; 0 never."""

    def __init__(self, number: int) -> None:
        self.left = number

    def __call__(self, _: Any) -> None:
        self.left -= 1
        if self.left == 0:
            raise Crash


def _hook(client: Any, answer: Callable[[Any], Any]) -> None:
    client.meta.events.register_first("before-send", lambda request, **_: answer(request))


def from_the(number: int) -> Callable[[Any], bool]:
    """A condition for the others: true of the `number`-th request, counted from 1, and of all that follow."""
    seen = 0

    def due(_: Any) -> bool:
        nonlocal seen
        seen += 1
        return seen >= number

    return due


def truncating(number: int = 1) -> Store:
    """A store of whose bodies only half arrives, from the `number`-th on."""
    client = s3_client()
    due = from_the(number)

    def cut(parsed: dict[str, Any], **_: Any) -> None:
        if due(None):
            data = parsed["Body"].read()
            parsed["Body"] = StreamingBody(io.BytesIO(data[: len(data) // 2]), len(data))

    client.meta.events.register("after-call.s3.GetObject", cut)
    return Store(client)
