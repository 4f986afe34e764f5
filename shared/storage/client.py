"""The S3 client of the environment, and what its errors mean: none leaves `shared.storage.store` as a botocore error.

Retries are botocore's own (standard mode, five attempts), so nothing above repeats a request.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, Any

import boto3
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError
from botocore.parsers import ResponseParserError
from botocore.session import get_session
from botocore.utils import parse_timestamp

from shared.model.errors import CouldNotCheck, ObjectChanged, ObjectGone, StorageError

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

_GONE = {"NoSuchKey", "NoSuchBucket", "NotFound", "404", "NoSuchVersion"}
_CHANGED = {"PreconditionFailed", "412", "ConditionalRequestConflict"}
_DENIED = {"AccessDenied", "403", "Forbidden", "InvalidAccessKeyId", "SignatureDoesNotMatch", "ExpiredToken"}
_THROTTLED = {"SlowDown", "503", "Throttling", "ThrottlingException", "RequestLimitExceeded", "TooManyRequests"}

CONDITION_UNKNOWN = frozenset({"NotImplemented", "501", "InvalidArgument"})
"""What stores answer to a condition that they do not know."""

_SERVER_FAULT = 500
_VARIABLES = (
    "AWS_ENDPOINT_URL",
    "AWS_ENDPOINT_URL_S3",
    "AWS_REGION",
    "AWS_DEFAULT_REGION",
    "AWS_PROFILE",
    "AWS_CONFIG_FILE",
    "AWS_SHARED_CREDENTIALS_FILE",
    "AWS_ACCESS_KEY_ID",
    "AWS_SECRET_ACCESS_KEY",
    "AWS_SESSION_TOKEN",
)


def client_variables() -> tuple[str | None, ...]:
    """The values of the environment variables that decide which client `s3_client` makes."""
    return tuple(os.environ.get(name) for name in _VARIABLES)


def s3_client() -> S3Client:
    """An S3 client for the current environment, with the retries and checksum rules that `Store` counts on.

    Raises:
        StorageError: The environment does not say enough to make one (no region, a broken profile, ...).
    """
    try:
        core = get_session()
        core.get_component("response_parser_factory").set_parser_defaults(timestamp_parser=_moment)
        config = Config(
            # S3's access logs show who it was. Made once: botocore would put its own together twice a request.
            user_agent=f"deltaguard {core.user_agent()}",
            retries={"mode": "standard", "total_max_attempts": 5},
            connect_timeout=5,
            read_timeout=60,
            max_pool_connections=64,
            # A range read may carry the whole object's checksum, which botocore would compare with the part's.
            response_checksum_validation="when_required",
        )
        return boto3.Session(botocore_session=core).client("s3", config=config)
    except (BotoCoreError, ValueError) as error:
        raise StorageError("check.storage", f"making an S3 client: {error}", type(error).__name__) from error


def _moment(text: str) -> datetime:
    """A time in an answer. A listing has one for each object, and botocore's own parser takes half of its cost."""
    try:
        if text.endswith(" GMT"):
            return parsedate_to_datetime(text)
        if "T" in text:
            return datetime.fromisoformat(text)
    except (AttributeError, TypeError, ValueError):
        pass
    return parse_timestamp(text)


class StoreClock:
    """The time of a store, by the `Date` of its latest answer and the seconds that passed here since.

    Stored objects are dated by the store, so their age is only known by its clock. The local one may be minutes ahead,
    and an upload that is still arriving would then count as over. `Date` has whole seconds, rounded down, so this is at
    most as late as the store's own clock (RFC 9110, 6.6.1).
    """

    def __init__(self) -> None:
        self._latest: tuple[str, float] | None = None

    def note(self, answer: Mapping[str, Any]) -> None:
        """Takes the time of an answer, as botocore returns it."""
        date = answer.get("ResponseMetadata", {}).get("HTTPHeaders", {}).get("date")
        if date is not None:
            self._latest = date, time.monotonic()

    def now(self) -> datetime:
        """The store's time, in UTC.

        Raises:
            StorageError: No answer had a `Date` that can be read. The local clock does not stand in for it.
        """
        date, received = self._latest or ("", 0.0)
        try:
            told = parsedate_to_datetime(date)
        except ValueError as error:
            detail = f"the time of the store is not known: the Date of its latest answer is {date!r}"
            raise StorageError("check.storage", detail, "NoDate") from error
        # "-0000" gives a time without a zone, which is UTC all the same.
        since = timedelta(seconds=time.monotonic() - received)
        return (told if told.tzinfo else told.replace(tzinfo=UTC)).astimezone(UTC) + since


def translated(doing: str, what: str, action: Callable[[], Any]) -> Any:
    """What the action returns; its failure as one of `shared.model.errors`.

    Args:
        doing: What is being tried, the beginning of the message.
        what: On which object.
        action: Makes one or more requests.

    Raises:
        ObjectGone: There is no such object or bucket.
        ObjectChanged: A condition did not hold.
        StorageError: Any other failure.
    """
    try:
        return action()
    except ClientError as error:
        raise _storage_error(doing, what, error) from error
    except CouldNotCheck:
        raise
    except (BotoCoreError, OSError, ResponseParserError, ValueError) as error:  # the last two: an answer that is none
        raise StorageError("check.storage", f"{doing} {what}: {error}", type(error).__name__) from error


def _storage_error(doing: str, what: str, error: ClientError) -> StorageError:
    answer = error.response.get("Error", {})
    code, message = answer.get("Code", "Unknown"), answer.get("Message", "")
    detail = f"{doing} {what}: {code}: {message}".rstrip(": ")
    if code in _GONE:
        return ObjectGone("check.gone", detail, code)
    if code in _CHANGED:
        return ObjectChanged("check.changed", detail, code)
    if code in _DENIED:
        return StorageError("check.access_denied", detail, code)
    return StorageError("check.throttled" if code in _THROTTLED else "check.storage", detail, code)


def may_have_been_done(error: StorageError) -> bool:
    """Whether the store may have done what failed so, for its answer may have been lost.

    True where no answer came or one of a fault of the server's, and where botocore repeated the request: the answer to
    a repeat (such as 412) may be about what the first try did.

    Args:
        error: As `translated` raised it.
    """
    cause = error.__cause__
    if not isinstance(cause, ClientError):
        return True
    answer = cause.response.get("ResponseMetadata", {})
    return answer.get("HTTPStatusCode", 0) >= _SERVER_FAULT or answer.get("RetryAttempts", 0) > 0
