"""The producer's side of a quarantine: the batch of a corrupt delta is started again, a few times, and never in a loop.

A request is carried out only if the quarantine that it names is one: its record lies in the very place that follows
from the delta, and says the same. What was started is remembered in S3, in objects that are written once and never
changed, below `<quarantine prefix>/resubmissions/<sha256 of bucket, parent prefix of the delta, and batch id>/`. So the
starts of a batch are used up only by deltas that lie beside each other, where its producer may write.

- `<n>.json` claims the n-th start of the batch for one quarantine. It is written only if it is absent, after all lower
  ones were read, so two consumers cannot count one start, and no quarantine can claim two.
- `<n>.started.json` says that the n-th start was made. Between the two a killed process is made good by the next one.
- `exhausted.json` says that a person was told.
"""

from __future__ import annotations

from datetime import UTC, datetime
from enum import StrEnum
from typing import Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from shared.aws.events import Resubmission, ResubmissionExhausted, ResubmitRequest, identity, send
from shared.aws.messaging import Messaging
from shared.aws.telemetry import count, logger
from shared.model.delta import DeltaLocation, printable
from shared.model.errors import ObjectGone, SettingsError, StorageError, TargetError
from shared.model.settings import Settings
from shared.quarantine.record import FINGERPRINT, RECORD, InvalidRecord, place_of, read_record
from shared.storage.store import Store

_COMPONENT = "resubmission"
_MAX_CLAIM_BYTES = 64 * 1024


class Claim(BaseModel):
    """What each of these objects holds: which start of which batch, for which quarantine, since when."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    format: Literal[1] = 1
    batch_id: str
    attempt: int
    quarantine: str
    claimed_at: datetime


class Outcome(StrEnum):
    """What became of a request."""

    STARTED = "started"
    REPEATED = "repeated"
    """It was started for this quarantine before; nothing was done."""
    EXHAUSTED = "exhausted"


def resubmit(store: Store, messaging: Messaging, request: ResubmitRequest, settings: Settings) -> Outcome:
    """Has a batch processed again, unless that was done for this quarantine, or `max_resubmissions` times already.

    Args:
        store: Where the starts of a batch are remembered: the quarantine of the delta's bucket.
        messaging: Where the target and the event bus are.
        request: Which batch, and for which quarantine.
        settings: The target, and how often.

    Raises:
        SettingsError: There is no `DELTAGUARD_RESUBMIT_TARGET`.
        TargetError: The request names no delta in S3, or no quarantine of it that says the same; nothing was written.
        StorageError: What was started could not be read or written; the same call may be made again.
        MessagingError: The target or the bus could not be reached, or not surely; the same call may be made again.
    """
    if settings.resubmit_target is None:
        raise SettingsError("DELTAGUARD_RESUBMIT_TARGET is not set: give the queue or the state machine to start")
    location = _confirmed(store, request, settings)
    memory = _Memory(store, request, location, settings)
    attempt = memory.claim(settings.max_resubmissions)
    facts = {"batch_id": request.batch_id, "delta": request.delta, "attempt": attempt}
    if attempt is None:
        return _exhausted(memory, messaging, request, settings)
    if memory.has(f"{attempt}.started"):
        logger.info("Batch was resubmitted before", extra=facts)
        return Outcome.REPEATED
    _start(messaging, request, attempt, settings.resubmit_target)
    if memory.mark(f"{attempt}.started", attempt):
        count(_COMPONENT, settings.stage, "BatchesResubmitted")
        logger.warning("Batch resubmitted", extra={**facts, "reason": request.reason})
    return Outcome.STARTED


def _confirmed(store: Store, request: ResubmitRequest, settings: Settings) -> DeltaLocation:
    """The place of the delta, if it is quarantined as the request says: the message itself proves nothing."""
    location = DeltaLocation.parse(request.delta)
    home = place_of(location, settings)
    place = DeltaLocation(home.bucket, f"{home.prefix}{request.fingerprint}/")
    what = f"the request for batch {printable(request.batch_id)!r}"
    if not FINGERPRINT.fullmatch(request.fingerprint) or request.quarantine != place.uri:
        raise TargetError(f"{what}: {printable(request.quarantine)} is not where {location.uri} is quarantined")
    try:
        record = read_record(store, place, settings)
    except (ObjectGone, InvalidRecord) as error:
        raise TargetError(f"{what}: no record of a quarantine: {error}") from error
    if record.origin != location or record.batch_id != request.batch_id:
        raise TargetError(f"{what}: {place.uri}{RECORD} tells of another delta or batch")
    return location


def _start(messaging: Messaging, request: ResubmitRequest, attempt: int, target: str) -> None:
    resubmission = Resubmission(
        id=identity("resubmission", request.batch_id, request.quarantine),
        batch_id=request.batch_id,
        attempt=attempt,
        delta=request.delta,
        reason=request.reason,
        quarantine=request.quarantine,
        fingerprint=request.fingerprint,
    )
    document = resubmission.model_dump_json()
    if target.startswith("arn:"):
        messaging.start(target, f"deltaguard-{resubmission.id}", document)
    else:
        messaging.send(target, document, group=identity(request.batch_id), key=resubmission.id)


def _exhausted(memory: _Memory, messaging: Messaging, request: ResubmitRequest, settings: Settings) -> Outcome:
    facts = {"batch_id": request.batch_id, "delta": request.delta, "attempts": settings.max_resubmissions}
    if not memory.has("exhausted"):
        notice = ResubmissionExhausted(
            id=identity(ResubmissionExhausted.detail_type, memory.scope),
            batch_id=request.batch_id,
            attempts=settings.max_resubmissions,
            delta=request.delta,
            fingerprint=request.fingerprint,
            quarantine=request.quarantine,
            reason=request.reason,
        )
        send(messaging, settings, notice)
        if memory.mark("exhausted", settings.max_resubmissions):
            count(_COMPONENT, settings.stage, "ResubmissionsExhausted")
    logger.error("Batch keeps giving corrupt deltas and is not started again: look at it", extra=facts)
    return Outcome.EXHAUSTED


class _Memory:
    """What is remembered of one batch."""

    def __init__(self, store: Store, request: ResubmitRequest, location: DeltaLocation, settings: Settings) -> None:
        self._store = store
        self._request = request
        self._bucket, prefix = settings.quarantine_of(location.bucket)
        parent = location.prefix.rstrip("/").rpartition("/")[0]
        self.scope = identity(location.bucket, parent, request.batch_id)
        """Of the batch among those of all producers; a digest, since the id itself could be any text."""
        self._folder = f"{prefix}resubmissions/{self.scope}/"

    def claim(self, most: int) -> int | None:
        """The number of the start that belongs to this quarantine; None when all starts belong to others."""
        attempt = 1
        while True:
            claim = self._read(attempt)
            if claim is None:
                if attempt > most:
                    return None
                if self._write(f"{attempt}", attempt):
                    return attempt
                claim = self._read(attempt)  # another consumer was faster
                if claim is None:
                    detail = f"s3://{self._bucket}/{self._folder}{attempt}.json came and went: ask again"
                    raise StorageError("check.changed", detail, "ClaimGone")
            if claim.quarantine == self._request.quarantine:
                return attempt
            attempt += 1

    def has(self, name: str) -> bool:
        """Whether this was marked."""
        try:
            self._store.head(self._bucket, self._key(name))
        except ObjectGone:
            return False
        return True

    def mark(self, name: str, attempt: int) -> bool:
        """Marks it; returns False when another did before."""
        return self._write(name, attempt)

    def _read(self, attempt: int) -> Claim | None:
        key = self._key(f"{attempt}")
        try:
            return Claim.model_validate_json(self._store.read(self._bucket, key, _MAX_CLAIM_BYTES))
        except ObjectGone:
            return None
        except ValidationError as error:
            detail = f"reading s3://{self._bucket}/{key}: not a start of a batch ({error.error_count()} errors)"
            raise StorageError("check.storage", detail, "InvalidClaim") from error

    def _write(self, name: str, attempt: int) -> bool:
        claim = Claim(
            batch_id=self._request.batch_id,
            attempt=attempt,
            quarantine=self._request.quarantine,
            claimed_at=datetime.now(UTC),
        )
        data = claim.model_dump_json().encode() + b"\n"
        return self._store.put(self._bucket, self._key(name), data, only_if_absent=True)

    def _key(self, name: str) -> str:
        return f"{self._folder}{name}.json"
