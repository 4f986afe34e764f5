"""The quarantine protocol: copy, verify the copy, write the record, and only then delete, conditionally.

Killed before or after any request and run again, every object is whole in its place or whole in quarantine:

- Copies go under a name made of the listing's fingerprint. What an earlier or a parallel run copied is proven again by
  its checksum and never overwritten, so no run can spoil the copies of another.
- The record is written once all copies are proven. From then on the delta is in quarantine; deleting is only tidying.
- Right before the deletes the delta is listed again. If an object is newer than the one that was judged, even one with
  the same bytes, then somebody uploads a new delta here: nothing of it is deleted, and it is judged for itself.
- Each delete is conditional on the ETag that was judged (`shared.deletion` has what that means where a bucket keeps
  versions, and where a store knows no conditions).
- A run that finds only a rest of a recorded delta finishes those deletes instead of quarantining the rest anew.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Annotated, Any, Literal
from weakref import WeakSet

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from shared.delta import DATABASE, MANIFEST, MAX_NAME_BYTES, DeltaFile, DeltaLocation, Listing, printable
from shared.errors import DeltaguardError, ObjectChanged, ObjectGone, StorageError
from shared.judgement import Judgement
from shared.settings import Settings
from shared.storage import Store
from shared.telemetry import logger
from shared.verdict import Status

RECORD = "quarantine.json"
HISTORY = "history.json"
FINGERPRINT = re.compile(r"[0-9a-f]{64}")
LONG_KEYS = ".long-keys"
"""Name, below the quarantine prefix, of the place for deltas whose keys would become longer than S3 takes."""

_MAX_KEY_BYTES = 1024
_FINGERPRINT_BYTES = 65  # with the slash behind it

_MAX_RECORD_BYTES = 16 * 1024 * 1024
# What lies beside the files of a delta: a file of the delta that has such a name is kept under another.
_OURS = re.compile(r"(quarantine|history|told)\.json(\.file)*")
_ORDER = {DATABASE: 0, MANIFEST: 2}  # the others in between
_unconditional: WeakSet[Store] = WeakSet()


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


class HistoryEntry(BaseModel):
    """What happened to a delta after it was quarantined.

    Args:
        event: `restored` to its place, or `quarantined_again` after it was uploaded or restored there as it was.
        at: When it began.
        status: What the restored delta was found to be; None when the restoration was cut short.
        codes: The codes of the findings that led to that status.
        replaced: Names of the objects that lay in the place and were removed for it.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    event: Literal["restored", "quarantined_again"]
    at: datetime
    status: Status | None = None
    codes: tuple[str, ...] = ()
    replaced: tuple[str, ...] = ()


class History(BaseModel):
    """`history.json` beside the record, which is never changed: what happened since, in order."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    format: Literal[1] = 1
    entries: tuple[HistoryEntry, ...] = ()


@dataclass(frozen=True, slots=True)
class Quarantined:
    """What was done: where the delta lies now, its record, and files that were left because they are newer.

    If there are such files, a new delta lies or arrives in the place, and must be judged.
    """

    place: DeltaLocation
    record: QuarantineRecord
    left: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class _State:
    """One place in quarantine: what lies there by name and size, and its record, if the copying came to its end."""

    place: DeltaLocation
    sizes: dict[str, int]
    record: QuarantineRecord | None


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
    if judgement.verdict.status is not Status.CORRUPT:
        raise DeltaguardError(f"{location.uri}: only a corrupt delta is quarantined, not {judgement.verdict.status}")
    if not judgement.listing.files:
        raise DeltaguardError(f"{location.uri}: no file of a delta lies there, so there is nothing to move")
    if judgement.listing.below or judgement.listing.unseen:
        raise DeltaguardError(f"{location.uri}: other deltas lie below it, or may, so it is not moved")
    if is_quarantined(location, settings):
        raise DeltaguardError(f"{location.uri} lies in quarantine already")
    listing = judgement.listing
    _try_conditions(store, location, settings)
    state = _state_for(store, location, listing, settings)
    try:
        files = tuple(_secure(store, location, state, file) for file in listing.files)
    except (ObjectGone, ObjectChanged):
        state = _state_for(store, location, listing, settings)
        if state.record is None:
            raise
        # A parallel run recorded the delta and deletes it; its record stands for all that this one wanted to copy.
        # Something newer may lie there already: it is left alone below.
        files = state.record.files
    record = state.record or _write_record(store, location, state.place, judgement, files)
    if state.record is not None:
        _note_return(store, location, state.place, state.record, listing)
    return Quarantined(state.place, record, _delete(store, location, listing, record))


def place_of(location: DeltaLocation, settings: Settings) -> DeltaLocation:
    """Where every quarantined state of this delta lies, each below its own fingerprint.

    That is the delta's own prefix below the quarantine prefix, or, where its keys would be longer there than S3 takes
    (https://docs.aws.amazon.com/AmazonS3/latest/userguide/object-keys.html), one made of the sha256 of its URI. That is
    also the place of a delta that lies where those places are, below the quarantine prefix.
    """
    bucket, prefix = settings.quarantine_of(location.bucket)
    key = prefix + location.prefix
    longest = len(key.encode("utf-8", "surrogatepass")) + _FINGERPRINT_BYTES + MAX_NAME_BYTES + len(".file")
    if longest > _MAX_KEY_BYTES or location.prefix.startswith(f"{LONG_KEYS}/"):
        digest = hashlib.sha256(location.uri.encode("utf-8", "surrogatepass")).hexdigest()
        key = f"{prefix}{LONG_KEYS}/{digest}/"
    return DeltaLocation(bucket, key)


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
    states = _states(store, location, settings)
    held = [(state.place, state.record) for state in states if state.record is not None]
    return max(held, key=lambda found: found[1].quarantined_at, default=None)


def read_record(store: Store, place: DeltaLocation) -> QuarantineRecord:
    """The record of one quarantined delta.

    Raises:
        ObjectGone: There is none.
        StorageError: The request failed, or what lies there is no record.
    """
    data = store.read(place.bucket, place.key(RECORD), _MAX_RECORD_BYTES)
    try:
        record = QuarantineRecord.model_validate_json(data)
    except ValidationError as error:
        detail = f"reading {place.uri}{RECORD}: not a quarantine record ({error.error_count()} errors)"
        raise StorageError("check.storage", detail, "InvalidRecord") from error
    origin = hashlib.sha256(f"s3://{record.bucket}/{record.prefix}".encode("utf-8", "surrogatepass")).hexdigest()
    if not place.prefix.endswith((f"/{record.prefix}{record.fingerprint}/", f"/{origin}/{record.fingerprint}/")):
        detail = f"reading {place.uri}{RECORD}: it is the record of another place, {printable(record.prefix)}"
        raise StorageError("check.storage", detail, "InvalidRecord")
    return record


def read_history(store: Store, place: DeltaLocation) -> History:
    """What happened to a quarantined delta since; an empty history where nothing did.

    Raises:
        StorageError: The request failed, or what lies there is no history.
    """
    try:
        data = store.read(place.bucket, place.key(HISTORY), _MAX_RECORD_BYTES)
        return History.model_validate_json(data)
    except ObjectGone:
        return History()
    except ValidationError as error:
        detail = f"reading {place.uri}{HISTORY}: not the history of a quarantine ({error.error_count()} errors)"
        raise StorageError("check.storage", detail, "InvalidRecord") from error


def write_history(store: Store, place: DeltaLocation, entries: tuple[HistoryEntry, ...]) -> None:
    """Writes the whole history of a quarantined delta.

    Raises:
        StorageError: The request failed.
    """
    data = History(entries=entries).model_dump_json(indent=2).encode() + b"\n"
    store.put(place.bucket, place.key(HISTORY), data)


def held_name(name: str) -> str:
    """The name under which quarantine keeps the file `name` of a delta: its own, unless the record has that one."""
    return name + ".file" if _OURS.fullmatch(name) else name


def _states(store: Store, location: DeltaLocation, settings: Settings) -> list[_State]:
    """What lies in quarantine of this delta, by place; what is held of an equal prefix in another bucket does not."""
    home = place_of(location, settings)
    sizes: dict[str, dict[str, int]] = {}
    for key, file in store.walk(home.bucket, home.prefix):
        fingerprint, _, name = key.removeprefix(home.prefix).partition("/")
        if FINGERPRINT.fullmatch(fingerprint):
            sizes.setdefault(fingerprint, {})[name] = file.size
    states = []
    for fingerprint, found in sizes.items():
        place = DeltaLocation(home.bucket, f"{home.prefix}{fingerprint}/")
        record = read_record(store, place) if RECORD in found else None
        if record is None or record.bucket == location.bucket:
            states.append(_State(place, found, record))
    return states


def _state_for(store: Store, location: DeltaLocation, listing: Listing, settings: Settings) -> _State:
    """Where these objects are held, or are to be held.

    That is the place of a record that has them all, when they are the rest of a move that was cut short or the same
    delta once more; else the place that has their fingerprint in its name.
    """
    states = _states(store, location, settings)
    objects = {(file.name, file.etag) for file in listing.files}
    for state in states:
        if state.record is not None and objects <= {(file.name, file.etag) for file in state.record.files}:
            return state
    home = place_of(location, settings)
    place = DeltaLocation(home.bucket, f"{home.prefix}{listing.fingerprint}/")
    return next((state for state in states if state.place == place), _State(place, {}, None))


def _note_return(
    store: Store, location: DeltaLocation, place: DeltaLocation, record: QuarantineRecord, listing: Listing
) -> None:
    """Leaves a trace when a recorded delta was put in its place again, rather than that its move was cut short."""
    newest = listing.newest
    if newest is None or newest <= record.quarantined_at:
        return
    entries = read_history(store, place).entries
    if not any(entry.event == "quarantined_again" and entry.at > newest for entry in entries):
        write_history(store, place, (*entries, HistoryEntry(event="quarantined_again", at=datetime.now(UTC))))
    facts = {"delta": location.uri, "quarantine": place.uri, "restored": any(e.event == "restored" for e in entries)}
    logger.warning("Delta came back as it was quarantined before, and is again", extra=facts)


def _try_conditions(store: Store, location: DeltaLocation, settings: Settings) -> None:
    if not store.conditional_deletes(*settings.quarantine_of(location.bucket)) and store not in _unconditional:
        _unconditional.add(store)
        detail = "This store ignores the condition of a delete; each object is looked at again right before its delete"
        logger.warning(detail, extra={"bucket": location.bucket})


def _secure(store: Store, location: DeltaLocation, state: _State, file: DeltaFile) -> QuarantinedFile:
    """Copies one file, unless that was done, and proves the copy: same size, and the same checksum over all its bytes.

    A store may overlook `CopySourceIfMatch`, so it is the copy that is compared with what was judged.
    """
    key, copy_key = location.key(file.name), state.place.key(held_name(file.name))
    original = store.head(location.bucket, key)
    if original.etag != file.etag:
        detail = f"s3://{location.bucket}/{key} was overwritten since it was judged"
        raise ObjectChanged("check.changed", detail, "ETag")

    expected = store.proven_checksum(location.bucket, key, original)
    proven = False
    if state.sizes.get(held_name(file.name)) == file.size:
        earlier = store.head(state.place.bucket, copy_key)
        arrived = store.proven_checksum(state.place.bucket, copy_key, earlier)
        proven = (earlier.size, arrived) == (file.size, expected)
    if not proven:
        store.copy(location.bucket, key, file.etag, state.place.bucket, copy_key, file.size)
        copy = store.head(state.place.bucket, copy_key)
        arrived = store.proven_checksum(state.place.bucket, copy_key, copy)
        if (copy.size, arrived) != (file.size, expected):
            detail = (
                f"copying s3://{location.bucket}/{key} to s3://{state.place.bucket}/{copy_key}: the copy has "
                f"{copy.size} bytes and CRC64NVME {arrived}, expected {file.size} and {expected}; nothing was deleted"
            )
            raise StorageError("check.storage", detail, "CopyDiffers")
    return QuarantinedFile(name=file.name, size=file.size, etag=file.etag, version=original.version, crc64nvme=expected)


def _write_record(
    store: Store,
    location: DeltaLocation,
    place: DeltaLocation,
    judgement: Judgement,
    files: tuple[QuarantinedFile, ...],
) -> QuarantineRecord:
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
    if store.put(place.bucket, place.key(RECORD), data, only_if_absent=True):
        return record
    record = read_record(store, place)  # a parallel run got here first; its record stands
    if record.bucket != location.bucket:
        detail = (
            f"{place.uri} holds the same delta of s3://{record.bucket}: nothing of {location.uri} was deleted; give "
            "each bucket a quarantine prefix of its own (DELTAGUARD_QUARANTINE_PREFIX)"
        )
        raise StorageError("check.storage", detail, "PlaceTaken")
    return record


def _delete(store: Store, location: DeltaLocation, listing: Listing, record: QuarantineRecord) -> tuple[str, ...]:
    """Deletes what is recorded, the database first and the manifest last.

    What a crash leaves is then corrupt to every reader, never half of a delta, and never one that waits for a manifest.

    Returns:
        Names of the objects that are newer than the judged ones. As soon as there is one, no more is deleted.
    """
    there = store.list_delta(location).owning(listing.by_name)
    newer = [file.name for file in there.files if listing.by_name.get(file.name) != file]
    if newer:
        return tuple(newer)
    recorded = {(file.name, file.etag) for file in record.files}
    for file in sorted(listing.files, key=lambda file: (_ORDER.get(file.name, 1), file.name)):
        try:
            if (file.name, file.etag) in recorded:
                store.delete(location.bucket, location.key(file.name), file.etag)
        except ObjectChanged:
            return (file.name,)
    return ()
