"""The settings of Deltaguard: `DELTAGUARD_*` environment variables, read once at start and checked then.

AWS's own variables (`AWS_ENDPOINT_URL`, region, credentials) are boto3's to read.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Self

from shared.model.delta import BUCKET_NAME
from shared.model.errors import SettingsError
from shared.model.verdict import Depth


class Act(StrEnum):
    """What is done with a corrupt delta."""

    QUARANTINE = "quarantine"
    """It is moved into quarantine, its batch requested again, and everybody told."""
    REPORT = "report"
    """It is reported and told of; nothing is moved, nothing requested: how a careful team begins."""


@dataclass(frozen=True, slots=True)
class Settings:
    """Everything that can be set from outside, with its defaults.

    Args:
        quarantine_bucket: Where corrupt deltas go; None means the bucket they were found in.
        quarantine_prefix: Prefix below which they lie there, without `/` at its ends.
        depth: Depth of the validator's check.
        settle_seconds: Without a manifest, how long nothing may have arrived before a delta counts as whole.
        arrival_seconds: How long a missing file may still be on its way: before that it is no proof of a loss.
        manifest_required: Whether a delta without a manifest stays `incomplete`.
        max_delta_bytes: A larger delta is not downloaded: `undetermined`.
        probe_timeout_seconds: How long Chroma may take over one delta.
        act: What is done with a corrupt delta: moved into quarantine, or only reported (`DELTAGUARD_ACT`).
        max_quarantines_per_minute: More deltas than these the validator does not move within a minute; it tells a
            person instead. None: no limit.
        stage: Deployment stage, a dimension of every metric.
        event_bus: Name or ARN of the EventBridge bus that is told; None: nobody is.
        resubmit_queue_url: SQS queue for requests to process the batch of a corrupt delta again; None: none are made.
        resubmit_target: What such a request starts: URL of an SQS queue, or ARN of a state machine.
        max_resubmissions: How often one batch is started again before a person is told instead.
        scan_state_machine: ARN of the state machine that `deltaguard scan --remote` starts.
        quarantine_retention_days: How long quarantined deltas are kept at least, unless a purge says otherwise.
    """

    quarantine_bucket: str | None = None
    quarantine_prefix: str = "quarantine"
    depth: Depth = Depth.OPEN
    settle_seconds: float = 60.0
    arrival_seconds: float = 6 * 3600.0
    manifest_required: bool = False
    max_delta_bytes: int = 2 * 1024**3
    probe_timeout_seconds: float = 60.0
    act: Act = Act.QUARANTINE
    max_quarantines_per_minute: int | None = None
    stage: str = "dev"
    event_bus: str | None = None
    resubmit_queue_url: str | None = None
    resubmit_target: str | None = None
    max_resubmissions: int = 3
    scan_state_machine: str | None = None
    quarantine_retention_days: int = 30

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] | None = None) -> Self:
        """The settings that these environment variables make (default: the process's own).

        A variable that is set but empty counts as not set, as deployment templates produce such.

        Raises:
            SettingsError: A variable has a value that cannot be used; the message names variable and value.
        """
        variables = os.environ if environment is None else environment
        values: dict[str, Any] = {}
        for field, (variable, convert) in _VARIABLES.items():
            text = variables.get(variable, "").strip()
            if not text:
                continue
            try:
                values[field] = convert(text)
            except ValueError as error:
                raise SettingsError(f"{variable}={text!r}: {error}") from error
        return cls(**values)

    def quarantine_of(self, bucket: str) -> tuple[str, str]:
        """Bucket and prefix (ending in `/`) that hold the quarantined deltas of `bucket`."""
        return self.quarantine_bucket or bucket, self.quarantine_prefix + "/"


_MOST_SECONDS = 1e9
_MOST_DAYS = 36_500


def _depth(text: str) -> Depth:
    if text not in set(Depth):
        raise ValueError(f"must be one of {', '.join(Depth)}")
    return Depth(text)


def _bucket(text: str) -> str:
    if not BUCKET_NAME.fullmatch(text):
        raise ValueError("must be the name of a bucket")
    return text


def _prefix(text: str) -> str:
    prefix = text.strip("/")
    if not prefix or any(part in ("", ".", "..") for part in prefix.split("/")):
        raise ValueError("must be a key prefix such as quarantine or held/deltas")
    return prefix


def _manifest_required(text: str) -> bool:
    if text not in ("optional", "required"):
        raise ValueError("must be optional or required")
    return text == "required"


def _seconds(least: float) -> Callable[[str], float]:
    def convert(text: str) -> float:
        try:
            seconds = float(text)
        except ValueError:
            raise ValueError("must be a number of seconds") from None
        if not seconds >= least:  # also for NaN
            raise ValueError(f"must be at least {least:g} seconds")
        if seconds > _MOST_SECONDS:
            raise ValueError(f"must be at most {_MOST_SECONDS:g} seconds")
        return seconds

    return convert


def _bytes(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise ValueError("must be a whole number of bytes, at least 1")
    return int(text)


_BUS = re.compile(r"[A-Za-z0-9/._-]{1,256}|arn:aws[a-z-]*:events:[a-z0-9-]+:\d{12}:event-bus/[A-Za-z0-9/._-]{1,256}")
_QUEUE_URL = re.compile(r"https?://[^\s/]+/\d{12}/[A-Za-z0-9_-]{1,80}(\.fifo)?")
_STATE_MACHINE = re.compile(r"arn:aws[a-z-]*:states:[a-z0-9-]+:\d{12}:stateMachine:[A-Za-z0-9_:-]{1,160}")
_MOST_RESUBMISSIONS = 100


def _bus(text: str) -> str:
    if not _BUS.fullmatch(text):
        raise ValueError("must be the name or the ARN of an event bus")
    return text


def _queue_url(text: str) -> str:
    if not _QUEUE_URL.fullmatch(text):
        raise ValueError("must be the URL of an SQS queue, https://host/account/name")
    return text


def _target(text: str) -> str:
    if not _QUEUE_URL.fullmatch(text) and not _STATE_MACHINE.fullmatch(text):
        raise ValueError("must be the URL of an SQS queue or the ARN of a state machine")
    return text


def _machine(text: str) -> str:
    if not _STATE_MACHINE.fullmatch(text):
        raise ValueError("must be the ARN of a state machine")
    return text


def _resubmissions(text: str) -> int:
    if not re.fullmatch(r"\d{1,3}", text, re.ASCII) or int(text) > _MOST_RESUBMISSIONS:
        raise ValueError(f"must be a whole number from 0 to {_MOST_RESUBMISSIONS}")
    return int(text)


def _act(text: str) -> Act:
    if text not in set(Act):
        raise ValueError(f"must be {' or '.join(Act)}")
    return Act(text)


def _quarantines(text: str) -> int:
    if not re.fullmatch(r"\d{1,6}", text, re.ASCII) or not int(text):
        raise ValueError("must be a whole number from 1 to 999999")
    return int(text)


def _days(text: str) -> int:
    if not text.isdecimal() or int(text) > _MOST_DAYS:
        raise ValueError(f"must be a whole number of days, at most {_MOST_DAYS}")
    return int(text)


_VARIABLES: dict[str, tuple[str, Callable[[str], object]]] = {
    "quarantine_bucket": ("DELTAGUARD_QUARANTINE_BUCKET", _bucket),
    "quarantine_prefix": ("DELTAGUARD_QUARANTINE_PREFIX", _prefix),
    "depth": ("DELTAGUARD_DEPTH", _depth),
    "settle_seconds": ("DELTAGUARD_SETTLE_SECONDS", _seconds(0)),
    "arrival_seconds": ("DELTAGUARD_ARRIVAL_SECONDS", _seconds(0)),
    "manifest_required": ("DELTAGUARD_MANIFEST", _manifest_required),
    "max_delta_bytes": ("DELTAGUARD_MAX_DELTA_BYTES", _bytes),
    "probe_timeout_seconds": ("DELTAGUARD_PROBE_TIMEOUT_SECONDS", _seconds(1)),
    "act": ("DELTAGUARD_ACT", _act),
    "max_quarantines_per_minute": ("DELTAGUARD_MAX_QUARANTINES_PER_MINUTE", _quarantines),
    "stage": ("DELTAGUARD_STAGE", str),
    "event_bus": ("DELTAGUARD_EVENT_BUS", _bus),
    "resubmit_queue_url": ("DELTAGUARD_RESUBMIT_QUEUE_URL", _queue_url),
    "resubmit_target": ("DELTAGUARD_RESUBMIT_TARGET", _target),
    "max_resubmissions": ("DELTAGUARD_MAX_RESUBMISSIONS", _resubmissions),
    "scan_state_machine": ("DELTAGUARD_SCAN_STATE_MACHINE", _machine),
    "quarantine_retention_days": ("DELTAGUARD_QUARANTINE_RETENTION_DAYS", _days),
}

VARIABLES: Mapping[str, str] = {field: variable for field, (variable, _) in _VARIABLES.items()}
"""The environment variable of each setting."""
