"""The quarantine protocol: copy, verify the copy, write the record, and only then delete, conditionally.

Killed anywhere and run again, every object is whole in its place or whole in quarantine:

- Copies go under a name made of the listing's fingerprint, so a second run overwrites its own copies with the same.
- The record is written once all copies are proven. From then on the delta is in quarantine; deleting is only tidying.
- Deletes are conditional on the ETag that was judged, so a newer upload under the same key survives.
- A run that finds only a rest of a recorded delta finishes those deletes instead of quarantining the rest anew.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from shared.delta import DATABASE, MANIFEST, DeltaFile, DeltaLocation, Listing
from shared.errors import DeltaguardError, ObjectChanged, StorageError
from shared.judgement import Judgement
from shared.settings import Settings
from shared.storage import Store
from shared.verdict import Status

RECORD = "quarantine.json"
_MAX_RECORD_BYTES = 16 * 1024 * 1024


class QuarantinedFile(BaseModel):
    """One file of a quarantined delta, as it was in its place. `version` is None where a bucket keeps none."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    size: int
    etag: str
    version: str | None
    crc64nvme: str


class QuarantineRecord(BaseModel):
    """`quarantine.json`: why a delta was taken away, the evidence, and all that is needed to put it back."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    format: Literal[1] = 1
    bucket: str
    prefix: str
    fingerprint: str
    batch_id: str | None
    attempt: Annotated[int, Field(ge=1)] | None
    quarantined_at: datetime
    verdict: dict[str, Any]
    files: tuple[QuarantinedFile, ...]


@dataclass(frozen=True, slots=True)
class Quarantined:
    """What was done: where the delta lies now, its record, and files that were left because they are newer."""

    place: DeltaLocation
    record: QuarantineRecord
    left: tuple[str, ...]


def quarantine(store: Store, location: DeltaLocation, judgement: Judgement, settings: Settings) -> Quarantined:
    """Moves a corrupt delta into quarantine, or finishes an earlier move that was cut short.

    Args:
        store: Where the delta lies.
        location: Its bucket and prefix.
        judgement: The verdict `corrupt` on it, with the listing that was judged.
        settings: Where quarantine is.

    Raises:
        DeltaguardError: The verdict is not `corrupt`, or the delta lies in quarantine already.
        StorageError: A request failed. Nothing is lost; the same call may be made again.
    """
    if judgement.verdict.status is not Status.CORRUPT or not judgement.listing.files:
        raise DeltaguardError(f"{location.uri}: only a corrupt delta is quarantined, not {judgement.verdict.status}")
    home = place_of(location, settings)
    if is_quarantined(location, settings):
        raise DeltaguardError(f"{location.uri} lies in quarantine already")
    earlier = _unfinished(store, home, judgement.listing)
    if earlier is not None:
        record = earlier
    else:
        record = _copy(store, location, _below(home, judgement.listing.fingerprint), judgement)
    left = _delete(store, location, judgement.listing, record)
    return Quarantined(_below(home, record.fingerprint), record, left)


def place_of(location: DeltaLocation, settings: Settings) -> DeltaLocation:
    """Where every quarantined state of this delta lies, each below its own fingerprint."""
    bucket, prefix = settings.quarantine_of(location.bucket)
    return DeltaLocation(bucket, prefix + location.prefix.rstrip("/") + "/")


def is_quarantined(location: DeltaLocation, settings: Settings) -> bool:
    """Whether this location is inside the quarantine."""
    bucket, prefix = settings.quarantine_of(location.bucket)
    return location.bucket == bucket and location.prefix.startswith(prefix)


def latest_record(
    store: Store, location: DeltaLocation, settings: Settings
) -> tuple[DeltaLocation, QuarantineRecord] | None:
    """Where the delta that last lay here was quarantined, and its record; None when that never happened.

    Raises:
        StorageError: A request failed.
    """
    records = list(_records(store, place_of(location, settings)))
    return max(records, key=lambda found: found[1].quarantined_at, default=None)


def read_record(store: Store, place: DeltaLocation) -> QuarantineRecord:
    """The record of one quarantined delta.

    Raises:
        ObjectGone: There is none.
        StorageError: The request failed, or what lies there is no record.
    """
    data = store.read(place.bucket, place.key(RECORD), _MAX_RECORD_BYTES)
    try:
        return QuarantineRecord.model_validate_json(data)
    except ValidationError as error:
        detail = f"reading {place.uri}{RECORD}: not a quarantine record ({error.error_count()} errors)"
        raise StorageError("check.storage", detail, "InvalidRecord") from error


def _below(home: DeltaLocation, fingerprint: str) -> DeltaLocation:
    return DeltaLocation(home.bucket, f"{home.prefix}{fingerprint}/")


def _unfinished(store: Store, home: DeltaLocation, listing: Listing) -> QuarantineRecord | None:
    """The record of a move that was cut short, when all that is left in place are files of it."""
    rest = {(file.name, file.etag) for file in listing.files}
    for _, record in _records(store, home):
        if rest <= {(file.name, file.etag) for file in record.files}:
            return record
    return None


def _records(store: Store, home: DeltaLocation) -> Iterator[tuple[DeltaLocation, QuarantineRecord]]:
    for key, _ in store.walk(home.bucket, home.prefix):
        folder, _, name = key.rpartition("/")
        if name == RECORD and "/" not in folder.removeprefix(home.prefix):
            place = DeltaLocation(home.bucket, folder + "/")
            yield place, read_record(store, place)


def _copy(store: Store, location: DeltaLocation, place: DeltaLocation, judgement: Judgement) -> QuarantineRecord:
    files = tuple(_copy_file(store, location, place, file) for file in judgement.listing.files)
    manifest = judgement.manifest
    record = QuarantineRecord(
        bucket=location.bucket,
        prefix=location.prefix,
        fingerprint=judgement.listing.fingerprint,
        batch_id=manifest.batch_id if manifest else None,
        attempt=manifest.attempt if manifest else None,
        quarantined_at=datetime.now(UTC),
        verdict=judgement.verdict.as_json(),
        files=files,
    )
    data = record.model_dump_json(indent=2).encode() + b"\n"
    if not store.put(place.bucket, place.key(RECORD), data, only_if_absent=True):
        return read_record(store, place)  # an earlier or a parallel run got here first; its record stands
    return record


def _copy_file(store: Store, location: DeltaLocation, place: DeltaLocation, file: DeltaFile) -> QuarantinedFile:
    """Copies one file and proves the copy: same size, and the same checksum over all its bytes."""
    key, copy_key = location.key(file.name), place.key(file.name)
    original = store.head(location.bucket, key)
    if original.etag != file.etag:
        detail = f"s3://{location.bucket}/{key} was overwritten since it was judged"
        raise ObjectChanged("check.changed", detail, "ETag")
    store.copy(location.bucket, key, file.etag, place.bucket, copy_key, file.size)
    copy = store.head(place.bucket, copy_key)
    expected = original.crc64nvme or store.checksum(location.bucket, key, file.etag)
    arrived = copy.crc64nvme or store.checksum(place.bucket, copy_key, copy.etag)
    if (copy.size, arrived) != (file.size, expected):
        detail = (
            f"copying s3://{location.bucket}/{key} to s3://{place.bucket}/{copy_key}: the copy has {copy.size} bytes "
            f"and CRC64NVME {arrived}, expected {file.size} and {expected}; nothing was deleted"
        )
        raise StorageError("check.storage", detail, "CopyDiffers")
    return QuarantinedFile(name=file.name, size=file.size, etag=file.etag, version=original.version, crc64nvme=expected)


def _delete(store: Store, location: DeltaLocation, listing: Listing, record: QuarantineRecord) -> tuple[str, ...]:
    """Deletes what is recorded, the database first: what a crash leaves is then corrupt to every reader, never half."""
    recorded = {(file.name, file.etag) for file in record.files}
    order = {DATABASE: 0, MANIFEST: 1}
    left = []
    for file in sorted(listing.files, key=lambda file: (order.get(file.name, 2), file.name)):
        try:
            if (file.name, file.etag) in recorded:
                store.delete(location.bucket, location.key(file.name), file.etag)
        except ObjectChanged:
            left.append(file.name)
    return tuple(left)
