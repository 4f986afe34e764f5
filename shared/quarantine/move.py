"""The quarantine protocol: copy, verify the copy, write the record, and only then delete, conditionally.

Killed before or after any request and run again, every object is whole in its place or whole in quarantine, and an
upload that comes at any moment ends whole in its place:

- Copies go under a name made of the listing's fingerprint. What an earlier or a parallel run copied is proven again by
  its checksum and never overwritten, so no run can spoil the copies of another.
- The record is written once all copies are proven. From then on the delta is in quarantine; deleting is only tidying.
- Right before the deletes a claim keeps purges away (`shared.quarantine.claims`), the record is read back and the
  copies are looked at again, and so is the delta. If an object is newer than the one that was judged, even one with the
  same bytes, then somebody uploads a new delta here: nothing of it is deleted, and it is judged for itself.
- Each delete is conditional on the ETag that was judged (`shared.storage.deletion` has what that means where a bucket
  keeps versions, and where a store knows no conditions). A file of a new upload with the same bytes has the same ETag.
  So the delta is listed again after its database and at the end, and what a newer upload lacks then is put back. Where
  the process is killed before, the next one that judges the upload does it (`shared.quarantine.put_back`).
- A run that finds only a rest of a recorded delta finishes those deletes instead of quarantining the rest anew.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from weakref import WeakSet

from shared.aws.telemetry import logger
from shared.check.download import read_head
from shared.check.judgement import Judgement
from shared.model.delta import DATABASE, MANIFEST, DeltaFile, DeltaLocation, Listing
from shared.model.errors import DeltaguardError, ObjectChanged, ObjectGone, StorageError
from shared.model.manifest import MAX_MANIFEST_BYTES, Manifest
from shared.model.settings import Settings
from shared.model.verdict import Status
from shared.quarantine.claims import Work, claim
from shared.quarantine.put_back import proven_copy, put_back_swallowed, return_swallowed, swallowed
from shared.quarantine.record import (
    RECORD,
    HistoryEntry,
    QuarantinedFile,
    QuarantineRecord,
    State,
    held_name,
    is_quarantined,
    place_of,
    read_history,
    read_record,
    states,
    write_history,
)
from shared.storage.store import Store

_ORDER = {DATABASE: 0, MANIFEST: 2}  # the others in between
_unconditional: WeakSet[Store] = WeakSet()


@dataclass(frozen=True, slots=True)
class Quarantined:
    """What was done: where the delta lies now, its record, and files that were left, or put back, for they are newer.

    If there are such files, a new delta lies or arrives in the place, and must be judged.
    """

    place: DeltaLocation
    record: QuarantineRecord
    left: tuple[str, ...]


def quarantine(store: Store, location: DeltaLocation, judgement: Judgement, settings: Settings) -> Quarantined:
    """Moves a corrupt delta into quarantine, or finishes an earlier move that was cut short.

    Args:
        store: Where the delta lies.
        location: Its bucket and prefix.
        judgement: The confirmed verdict `corrupt` on it, with the listing that was judged.
        settings: Where quarantine is.

    Raises:
        DeltaguardError: The verdict is not `corrupt`, or not confirmed, or the delta lies in quarantine already.
        StorageError: A request failed. Nothing is lost; the same call may be made again.
    """
    if judgement.verdict.status is not Status.CORRUPT:
        raise DeltaguardError(f"{location.uri}: only a corrupt delta is quarantined, not {judgement.verdict.status}")
    if not judgement.confirmed:
        raise DeltaguardError(f"{location.uri}: only the bytes say corrupt, and no second witness was asked")
    if not judgement.listing.files:
        raise DeltaguardError(f"{location.uri}: no file of a delta lies there, so there is nothing to move")
    if judgement.listing.below or judgement.listing.unseen:
        raise DeltaguardError(f"{location.uri}: other deltas lie below it, or may, so it is not moved")
    if is_quarantined(location, settings):
        raise DeltaguardError(f"{location.uri} lies in quarantine already")
    _try_conditions(store, location, settings)
    if returned := return_swallowed(store, location, judgement, settings):
        return Quarantined(*returned)
    return move(store, location, judgement, settings)


def move(store: Store, location: DeltaLocation, judgement: Judgement, settings: Settings) -> Quarantined:
    """Moves what was judged into quarantine, whatever the verdict; `quarantine` asks first whether it may.

    Raises:
        StorageError: A request failed. Nothing is lost; the same call may be made again.
    """
    listing = judgement.listing
    state = _state_for(store, location, listing, settings)
    copies: dict[str, str] = {}
    try:
        files = tuple(_secure(store, location, state, file, copies) for file in listing.files)
    except (ObjectGone, ObjectChanged):
        state = _state_for(store, location, listing, settings)
        if state.record is None:
            raise
        # A parallel run recorded the delta and deletes it; its record stands for all that this one wanted to copy.
        # Something newer may lie there already: it is left alone below.
        files = state.record.files
    record = state.record or _write_record(store, location, state.place, judgement, files, settings)
    if state.record is not None:
        _note_return(store, location, state.place, state.record, listing)
    own = claim(store, state.place, settings.quarantine_of(location.bucket)[1], Work.MOVE)
    try:
        going = _still_held(store, state.place, record, listing, copies, settings)
    except StorageError:
        own.end()
        raise
    left = _delete(store, location, judgement, state.place, record, going)
    own.end()  # not where a request failed: whoever judges a newer upload then looks whether it lacks something
    return Quarantined(state.place, record, left)


def _state_for(store: Store, location: DeltaLocation, listing: Listing, settings: Settings) -> State:
    """Where these objects are held, or are to be held.

    That is the place of a record that has them all, when they are the rest of a move that was cut short or the same
    delta once more; else the place that has their fingerprint in its name.
    """
    found = states(store, location, settings)
    for state in found:
        if state.record is not None and state.record.holds(listing):
            return state
    home = place_of(location, settings)
    place = DeltaLocation(home.bucket, f"{home.prefix}{listing.fingerprint}/")
    state = next((state for state in found if state.place == place), State(place, {}))
    if state.problem is not None:
        raise state.problem
    return state


def _note_return(
    store: Store, location: DeltaLocation, place: DeltaLocation, record: QuarantineRecord, listing: Listing
) -> None:
    """Leaves a trace when a recorded delta was put in its place again, rather than that its move was cut short."""
    newest = listing.newest
    if newest is None or record.was_judged_with(listing):
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


def _secure(
    store: Store, location: DeltaLocation, state: State, file: DeltaFile, copies: dict[str, str]
) -> QuarantinedFile:
    """Copies one file, unless that was done, and proves the copy: same size, and the same checksum over all its bytes.

    A store may overlook `CopySourceIfMatch`, so it is the copy that is compared with what was judged. Its ETag goes
    into `copies`.
    """
    key, copy_key = location.key(file.name), state.place.key(held_name(file.name))
    original = store.head(location.bucket, key)
    if original.etag != file.etag:
        detail = f"s3://{location.bucket}/{key} was overwritten since it was judged"
        raise ObjectChanged("check.changed", detail, "ETag")

    expected = store.proven_checksum(location.bucket, key, original)
    copy, proven = None, False
    if state.sizes.get(held_name(file.name)) == file.size:
        copy = store.head(state.place.bucket, copy_key)
        arrived = store.proven_checksum(state.place.bucket, copy_key, copy)
        proven = (copy.size, arrived) == (file.size, expected)
    if copy is None or not proven:
        store.copy(location.bucket, key, file.etag, state.place.bucket, copy_key, file.size)
        copy = store.head(state.place.bucket, copy_key)
        arrived = store.proven_checksum(state.place.bucket, copy_key, copy)
        if (copy.size, arrived) != (file.size, expected):
            detail = (
                f"copying s3://{location.bucket}/{key} to s3://{state.place.bucket}/{copy_key}: the copy has "
                f"{copy.size} bytes and CRC64NVME {arrived}, expected {file.size} and {expected}; nothing was deleted"
            )
            raise StorageError("check.storage", detail, "CopyDiffers")
    copies[file.name] = copy.etag
    return QuarantinedFile(
        name=file.name,
        size=file.size,
        etag=file.etag,
        version=original.version,
        crc64nvme=expected,
        modified=file.modified,
    )


def _write_record(
    store: Store,
    location: DeltaLocation,
    place: DeltaLocation,
    judgement: Judgement,
    files: tuple[QuarantinedFile, ...],
    settings: Settings,
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
    record = read_record(store, place, settings)  # a parallel run got here first; its record stands
    if record.origin != location:
        detail = (
            f"{place.uri} holds the same delta of {record.origin.uri}: nothing of {location.uri} was deleted; give "
            "each bucket a quarantine prefix of its own (DELTAGUARD_QUARANTINE_PREFIX)"
        )
        raise StorageError("check.storage", detail, "PlaceTaken")
    return record


def _still_held(
    store: Store,
    place: DeltaLocation,
    record: QuarantineRecord,
    listing: Listing,
    copies: dict[str, str],
    settings: Settings,
) -> list[DeltaFile]:
    """The files that may be deleted, in the order for it: the record lies there, and with it a proven copy of each.

    The database is the first and the manifest the last. What a crash leaves is then corrupt to every reader, never half
    of a delta, and never one that waits for a manifest.

    Args:
        store: Where they are.
        place: In quarantine.
        record: As it was written.
        listing: What was judged.
        copies: ETags of the copies that were proven a moment ago, by name: of these it is enough that they are there.
        settings: Where quarantine is.

    Raises:
        StorageError: Something of it is not there any more, or another one.
    """
    if read_record(store, place, settings) != record:
        detail = f"{place.uri}{RECORD} was replaced by another record; nothing was deleted"
        raise StorageError("check.changed", detail, "RecordChanged")
    there = {key.removeprefix(place.prefix): file.etag for key, file in store.walk(place.bucket, place.prefix)}
    recorded = {(file.name, file.etag): file for file in record.files}
    going = [file for file in listing.files if (file.name, file.etag) in recorded]
    for file in going:
        if file.name not in copies or there.get(held_name(file.name)) != copies[file.name]:
            proven_copy(store, place, recorded[file.name, file.etag], "nothing was deleted")
    return sorted(going, key=lambda file: (_ORDER.get(file.name, 1), file.name))


def _delete(
    store: Store,
    location: DeltaLocation,
    judgement: Judgement,
    place: DeltaLocation,
    record: QuarantineRecord,
    going: list[DeltaFile],
) -> tuple[str, ...]:
    """Deletes what is recorded, and puts back what an upload lost by it that came meanwhile.

    Returns:
        Names of the objects that are newer than the judged ones. As soon as there is one, no more is deleted.
    """
    if newer := _newer(store, location, judgement.listing):
        return newer
    deleted: set[str] = set()
    changed: tuple[str, ...] = ()
    for file in going:
        try:
            store.delete(location.bucket, location.key(file.name), file.etag)
        except ObjectChanged:
            changed = (file.name,)
            break
        deleted.add(file.name)
        if file.name == DATABASE and _newer(store, location, judgement.listing):
            break
    newer = _newer(store, location, judgement.listing)
    if newer:
        _put_back(store, location, judgement, place, record, deleted)
    return newer or changed


def _newer(store: Store, location: DeltaLocation, judged: Listing) -> tuple[str, ...]:
    """Names of the objects that lie there and were not judged."""
    there = store.list_delta(location).owning(judged.by_name)
    return tuple(file.name for file in there.files if judged.by_name.get(file.name) != file)


def _put_back(
    store: Store,
    location: DeltaLocation,
    judgement: Judgement,
    place: DeltaLocation,
    record: QuarantineRecord,
    deleted: set[str],
) -> None:
    """Puts back what a newer upload lost. Without a manifest its database may still be arriving and is waited for."""
    listing = store.list_delta(location).owning(judgement.listing.by_name)
    manifest = None
    if MANIFEST in listing.by_name:
        try:
            manifest = Manifest.parse(read_head(store, location, listing.by_name[MANIFEST], MAX_MANIFEST_BYTES + 1))
        except ValueError:
            return  # it proves nothing; what is missing is put back when the upload is judged to lack it
        listing = listing.owning(file.name for file in manifest.files)
    files = swallowed(store, place, record, listing, manifest, guess=True, database=False, taken=deleted)
    put_back_swallowed(store, place, record, files)
