"""What must be told of a quarantine, and is told at least once, whenever a process is killed.

The quarantine record is the outbox: written before anything is deleted, it says all there is to tell. `told.json`
beside it says what was sent: an event where there is a bus, a request where there is a resubmit queue. What was not
sent, or not surely, is sent (again) by whoever comes next and can.
"""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from shared.aws.events import DeltaQuarantined, NoticedFinding, ResubmitRequest, identity, known_batch, send
from shared.aws.messaging import Messaging
from shared.aws.telemetry import UNKNOWN_COLLECTION, count, logger
from shared.model.delta import DeltaLocation, printable
from shared.model.settings import Settings
from shared.model.verdict import Status
from shared.quarantine.record import TOLD, QuarantineRecord, State, states
from shared.storage.store import Store

_MOST_REASON = 500
_MOST_TOLD_BYTES = 64 * 1024


class Told(BaseModel):
    """`told.json`: what was sent of one quarantine.

    Args:
        format: 2. In format 1, of older versions, all that could be sent had been.
        notice: Id of the event; None where there was no bus.
        batch_id: The batch whose processing was asked for; None where there was no queue, or the batch is not known.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    format: Literal[1, 2] = 2
    notice: str | None = None
    batch_id: str | None = None


def tell_of_quarantine(
    store: Store, messaging: Messaging, location: DeltaLocation, settings: Settings, component: str
) -> int:
    """Tells of every quarantine of this delta what was not told yet: an event, and a request for its batch.

    Args:
        store: Where the quarantine is.
        messaging: Where notices go.
        location: The place that the delta had.
        settings: Bus, resubmit queue, quarantine.
        component: Who tells; a dimension of the metric `DeltasQuarantined`, which counts each quarantine once.

    Returns:
        Of how many it told.

    Raises:
        StorageError: The quarantine could not be read or marked.
        MessagingError: A notice could not be sent, or not surely; the same call may be made again.
    """
    return sum(_tell(store, messaging, state, settings, component) for state in states(store, location, settings))


def quarantine_notice(place: DeltaLocation, record: QuarantineRecord) -> DeltaQuarantined:
    """The event about a quarantined delta: one for each place in quarantine."""
    return DeltaQuarantined(
        id=identity(DeltaQuarantined.detail_type, place.uri),
        delta=record.origin.uri,
        fingerprint=record.fingerprint,
        batch_id=known_batch(record.batch_id),
        quarantine=place.uri,
        quarantined_at=record.quarantined_at,
        findings=NoticedFinding.of(record.verdict["findings"]),
    )


def resubmit_request(place: DeltaLocation, record: QuarantineRecord) -> ResubmitRequest | None:
    """The request to process the batch of a quarantined delta again; None when its batch is not known."""
    batch_id = known_batch(record.batch_id)
    if batch_id is None:
        return None
    reason = "; ".join(f"{finding['code']}: {finding['detail']}" for finding in record.verdict["findings"])
    return ResubmitRequest(
        batch_id=batch_id,
        delta=record.origin.uri,
        reason=printable(reason, _MOST_REASON),
        attempt=record.attempt,
        quarantine=place.uri,
        fingerprint=record.fingerprint,
    )


def _tell(store: Store, messaging: Messaging, state: State, settings: Settings, component: str) -> bool:
    """Sends what was not sent of one quarantine, and can be. Returns whether it was told of for the first time."""
    place, record = state.place, state.record
    if record is None or record.verdict.get("status") != Status.CORRUPT:  # what made room for another is no news
        return False
    notice, request = quarantine_notice(place, record), resubmit_request(place, record)
    before = _told(store, state, notice.id, request)
    told = before
    if told.notice != notice.id and settings.event_bus is not None:
        send(messaging, settings, notice)
        told = told.model_copy(update={"format": 2, "notice": notice.id})
    if request is not None and told.batch_id != request.batch_id and settings.resubmit_queue_url is not None:
        group = identity(request.batch_id)
        messaging.send(settings.resubmit_queue_url, request.model_dump_json(), group, notice.id)
        told = told.model_copy(update={"format": 2, "batch_id": request.batch_id})
    document = told.model_dump_json().encode() + b"\n"
    if TOLD in state.sizes:
        if told != before:
            store.put(place.bucket, place.key(TOLD), document)
        return False
    if not store.put(place.bucket, place.key(TOLD), document, only_if_absent=True):
        return False  # a parallel run told it, too: consumers know the notice by its id
    collections = record.verdict.get("collections") or [{}]
    count(component, settings.stage, "DeltasQuarantined", str(collections[0].get("name") or UNKNOWN_COLLECTION))
    facts = {"delta": notice.delta, "quarantine": notice.quarantine, "batch_id": notice.batch_id}
    logger.error("Delta quarantined", extra=facts)
    return True


def _told(store: Store, state: State, notice: str, request: ResubmitRequest | None) -> Told:
    """What was sent of a quarantine, by the marker beside its record."""
    if TOLD not in state.sizes:
        return Told()
    try:
        told = Told.model_validate_json(store.read(state.place.bucket, state.place.key(TOLD), _MOST_TOLD_BYTES))
    except ValidationError as error:
        facts = {"quarantine": state.place.uri, "reason": f"{error.error_count()} errors"}
        logger.error("What was told of a quarantine is not understood, it is told again", extra=facts)
        return Told(format=1)
    if told.format == 1 and told.notice == notice and request is not None:
        return told.model_copy(update={"batch_id": request.batch_id})
    return told
