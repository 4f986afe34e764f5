"""What must be told of a quarantine, and is told at least once, whenever a process is killed.

The quarantine record is the outbox: written before anything is deleted, it says all there is to tell. `told.json`
beside it is written once everything was sent. A record without it was not told of, or not surely, and is told (again).
"""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict

from shared.delta import DeltaLocation, printable
from shared.messaging import Messaging
from shared.notices import DeltaQuarantined, NoticedFinding, ResubmitRequest, identity, known_batch, send
from shared.quarantine import RECORD, QuarantineRecord, place_of, read_record
from shared.settings import Settings
from shared.storage import Store
from shared.telemetry import UNKNOWN_COLLECTION, count, logger

TOLD = "told.json"
"""The marker beside a quarantine record, and beside the files of the delta: everybody was told."""

_MOST_REASON = 500


class Told(BaseModel):
    """`told.json`: the notice that was sent, and the batch whose processing was asked for, if any."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    format: Literal[1] = 1
    notice: str
    batch_id: str | None


def tell_of_quarantine(
    store: Store, messaging: Messaging, location: DeltaLocation, settings: Settings, component: str
) -> int:
    """Tells of every quarantine of this delta that nobody was told of yet: an event, and a request for its batch.

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
    home = place_of(location, settings)
    marks: dict[DeltaLocation, set[str]] = {}
    for key, _ in store.walk(home.bucket, home.prefix):
        folder, _, name = key.rpartition("/")
        if name in (RECORD, TOLD) and "/" not in folder.removeprefix(home.prefix):
            marks.setdefault(DeltaLocation(home.bucket, folder + "/"), set()).add(name)
    untold = [place for place, names in marks.items() if names == {RECORD}]
    for place in untold:
        _tell(store, messaging, place, settings, component)
    return len(untold)


def quarantine_notice(place: DeltaLocation, record: QuarantineRecord) -> DeltaQuarantined:
    """The event about a quarantined delta: one for each place in quarantine."""
    return DeltaQuarantined(
        id=identity(DeltaQuarantined.detail_type, place.uri),
        delta=_origin(record).uri,
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
        delta=_origin(record).uri,
        reason=printable(reason, _MOST_REASON),
        attempt=record.attempt,
        quarantine=place.uri,
        fingerprint=record.fingerprint,
    )


def _tell(store: Store, messaging: Messaging, place: DeltaLocation, settings: Settings, component: str) -> None:
    record = read_record(store, place)
    notice, request = quarantine_notice(place, record), resubmit_request(place, record)
    send(messaging, settings, notice)
    if request is not None and settings.resubmit_queue_url is not None:
        group = identity(request.batch_id)
        messaging.send(settings.resubmit_queue_url, request.model_dump_json(), group, notice.id)
    told = Told(notice=notice.id, batch_id=request.batch_id if request else None)
    if not store.put(place.bucket, place.key(TOLD), told.model_dump_json().encode() + b"\n", only_if_absent=True):
        return  # a parallel run told it, too: consumers know the notice by its id
    collections = record.verdict.get("collections") or [{}]
    count(component, settings.stage, "DeltasQuarantined", str(collections[0].get("name") or UNKNOWN_COLLECTION))
    facts = {"delta": notice.delta, "quarantine": notice.quarantine, "batch_id": notice.batch_id}
    logger.error("Delta quarantined", extra=facts)


def _origin(record: QuarantineRecord) -> DeltaLocation:
    return DeltaLocation(record.bucket, record.prefix)
