"""Quarantine records as the validator writes them, for what reads nothing else of a quarantine."""

from __future__ import annotations

from datetime import UTC, datetime

import boto3

from shared.aws.events import ResubmitRequest, identity
from shared.model.delta import DeltaLocation
from shared.model.settings import Settings
from shared.model.verdict import Depth, Finding, Verdict
from shared.quarantine.outbox import resubmit_request
from shared.quarantine.record import RECORD, QuarantinedFile, QuarantineRecord, place_of


def record_of(location: DeltaLocation, batch_id: str | None = "batch-40") -> QuarantineRecord:
    """The record of a delta that was quarantined for its database."""
    fingerprint = identity(location.uri)
    why = Finding("sqlite.truncated", "chroma.sqlite3", "100 bytes are lost")
    return QuarantineRecord(
        bucket=location.bucket,
        prefix=location.prefix,
        fingerprint=fingerprint,
        batch_id=batch_id,
        attempt=1,
        quarantined_at=datetime(2026, 1, 2, tzinfo=UTC),
        verdict=Verdict(location.uri, Depth.OPEN, (why,), fingerprint=fingerprint).as_json(),
        files=(QuarantinedFile(name="chroma.sqlite3", size=1, etag="aa", version=None, crc64nvme="AAAAAAAAAAA="),),
    )


def place_for(record: QuarantineRecord, settings: Settings | None = None) -> DeltaLocation:
    """Where a record belongs."""
    home = place_of(record.origin, settings or Settings())
    return DeltaLocation(home.bucket, f"{home.prefix}{record.fingerprint}/")


def plant(record: QuarantineRecord, place: DeltaLocation | None = None) -> DeltaLocation:
    """Stores a record where it belongs, or elsewhere. Returns where."""
    place = place or place_for(record)
    body = record.model_dump_json().encode()
    boto3.client("s3").put_object(Bucket=place.bucket, Key=place.key(RECORD), Body=body)
    return place


def quarantined(uri: str, batch_id: str = "batch-40") -> ResubmitRequest:
    """The request to start a batch again that is made of a delta which was quarantined."""
    record = record_of(DeltaLocation.parse(uri), batch_id)
    request = resubmit_request(plant(record), record)
    assert request is not None
    return request
