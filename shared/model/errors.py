"""The errors of Deltaguard: one small hierarchy, each message saying what was tried, on what, and what to do."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager


class DeltaguardError(Exception):
    """Base of every error that Deltaguard raises on purpose."""


class SettingsError(DeltaguardError):
    """An environment variable or option has a value that cannot be used; the message names it."""


class TargetError(DeltaguardError):
    """A target given by the caller does not exist or cannot be a delta (a usage error, exit 2)."""


class CouldNotCheck(DeltaguardError):
    """The environment, not the delta, stopped the check; the delta stays untouched and may be tried again.

    Args:
        code: The `check.*` finding that says why (see `shared.model.findings`).
        detail: What was tried, on which object, and what came back.
    """

    def __init__(self, code: str, detail: str) -> None:
        super().__init__(detail)
        self.code = code
        self.detail = detail


class StorageError(CouldNotCheck):
    """A request to S3 failed. `s3_code` is the service's error code, or the exception's name."""

    def __init__(self, code: str, detail: str, s3_code: str) -> None:
        super().__init__(code, detail)
        self.s3_code = s3_code


class ObjectGone(StorageError):
    """The object or bucket is not there (any more)."""


class ObjectChanged(StorageError):
    """The object is no longer the one that was listed: its ETag differs (HTTP 412)."""


class MessagingError(DeltaguardError):
    """A request to SQS, EventBridge or Step Functions failed.

    Args:
        detail: What was tried, where, and what came back.
        aws_code: The service's error code, or the exception's name.
    """

    def __init__(self, detail: str, aws_code: str) -> None:
        super().__init__(detail)
        self.aws_code = aws_code


class UploadFailed(DeltaguardError):
    """A delta did not arrive whole after all attempts; what had been uploaded was removed again."""


_FAULTS = {
    errno.ENOSPC: "check.disk_full",
    errno.EDQUOT: "check.disk_full",
    errno.EMFILE: "check.descriptors",
    errno.ENFILE: "check.descriptors",
    errno.ENOMEM: "check.memory",
}


@contextmanager
def faults_explained(doing: str) -> Iterator[None]:
    """Turns an operating system's refusal inside the block into `CouldNotCheck`.

    Args:
        doing: What is being tried, on which file: the beginning of the message.

    Raises:
        CouldNotCheck: The disk is full, descriptors or memory ran out, or a file cannot be read or written.
    """
    try:
        yield
    except MemoryError as error:
        raise CouldNotCheck("check.memory", f"{doing}: out of memory") from error
    except OSError as error:
        code = _FAULTS.get(error.errno or 0, "check.local_io")
        raise CouldNotCheck(code, f"{doing}: {error.strerror or error}") from error
