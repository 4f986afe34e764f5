"""Faults injected into real S3 requests, through botocore's own hooks."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any

from botocore.awsrequest import AWSResponse
from botocore.response import StreamingBody

from shared.storage import Store, s3_client

_BODY = "<Error><Code>{code}</Code><Message>injected</Message></Error>"


class _Raw:
    """The raw part of a response that botocore reads: a body of some bytes."""

    def __init__(self, body: bytes) -> None:
        self._body = body

    def stream(self, *_: object) -> Any:
        yield self._body


def answering(code: str, status: int, when: Callable[[Any], bool] = lambda _: True) -> Store:
    """A store whose requests are answered with an error of S3's, where `when` says so of the request."""
    client = s3_client()

    def answer(request: Any, **_: Any) -> AWSResponse | None:
        if not when(request):
            return None
        body = b"" if request.method == "HEAD" else _BODY.format(code=code).encode()
        return AWSResponse(request.url, status, {"Content-Length": str(len(body))}, _Raw(body))

    client.meta.events.register_first("before-send.s3", answer)
    client.meta.events.register_first("needs-retry.s3", lambda **_: None)
    return Store(client)


def failing(error: Exception, when: Callable[[Any], bool] = lambda _: True) -> Store:
    """A store whose requests do not get through, where `when` says so of the request."""
    client = s3_client()

    def fail(request: Any, **_: Any) -> None:
        if when(request):
            raise error

    client.meta.events.register_first("before-send.s3", fail)
    return Store(client)


def doing(client_hook: Callable[[Any], None]) -> Store:
    """A store that calls `client_hook` with each request before it is sent: another party acting in between."""
    client = s3_client()
    client.meta.events.register_first("before-send.s3", lambda request, **_: client_hook(request))
    return Store(client)


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
