"""Out of quarantine to where it was, file by file: each copy proven before, never over what lies there, proven after.

It serves a restore, and an upload that came while its place was being cleared. S3 compares ETags when it deletes on a
condition, so a file of the new upload that is, byte for byte, one of the old delta's is deleted, too. What was deleted
so lies in quarantine, and `return_swallowed` puts it back:

- With a manifest, the files that it lists, with exactly these checksums.
- Without one, what the upload's own files do not contradict: the remaining files of an index, and the database. Never
  a journal, which would be applied to the new database, nor an id map where the index is another one. At worst, an old
  index that nobody refers to lies there again, as it would if it had never been moved.
"""

from __future__ import annotations

from collections.abc import Collection

from shared.aws.telemetry import logger
from shared.check.judgement import Judgement
from shared.model.delta import DATABASE, MANIFEST, DeltaLocation, Listing, StoredObject, segment_of
from shared.model.errors import ObjectChanged, ObjectGone, StorageError
from shared.model.findings import Weight
from shared.model.manifest import MAX_MANIFEST_BYTES, Manifest
from shared.model.settings import Settings
from shared.model.tags import without_verdict
from shared.model.verdict import Status
from shared.quarantine.claims import Work, claims_on
from shared.quarantine.record import QuarantinedFile, QuarantineRecord, held_name, states
from shared.storage.store import Store

_HEADER, _ID_MAP = "header.bin", "index_metadata.pickle"


def order_back(file: QuarantinedFile) -> tuple[int, str]:
    """A sort key: the manifest goes back first and the database last, so that a half never looks whole."""
    return {MANIFEST: 0, DATABASE: 2}.get(file.name, 1), file.name


def proven_copy(store: Store, place: DeltaLocation, file: QuarantinedFile, undone: str) -> StoredObject:
    """The copy of a file in quarantine, after its size and checksum were compared with the record.

    Args:
        store: Where it is.
        place: In quarantine.
        file: As it is recorded.
        undone: Ends the message of an error: what was not done.

    Raises:
        StorageError: It is gone (`check.gone`) or another (`CopyDiffers`), or a request failed.
    """
    key = place.key(held_name(file.name))
    try:
        copy = store.head(place.bucket, key)
        checksum = store.proven_checksum(place.bucket, key, copy)
    except ObjectGone as error:
        detail = f"s3://{place.bucket}/{key} is gone, perhaps by a purge; {undone}"
        raise StorageError("check.gone", detail, error.s3_code) from error
    if (copy.size, checksum) != (file.size, file.crc64nvme):
        detail = (
            f"s3://{place.bucket}/{key} has {copy.size} bytes and CRC64NVME {checksum}, the record says {file.size} "
            f"and {file.crc64nvme}; {undone}"
        )
        raise StorageError("check.storage", detail, "CopyDiffers")
    return copy


def is_back(store: Store, origin: DeltaLocation, file: QuarantinedFile) -> bool:
    """Whether exactly this file lies in its place.

    Raises:
        StorageError: A request failed.
    """
    return _lies_there(store, origin, file.name, file.size, file.crc64nvme)


def put_back(
    store: Store, place: DeltaLocation, origin: DeltaLocation, file: QuarantinedFile, copy: StoredObject
) -> None:
    """Copies one file to its place, where nothing lies, without tags of ours.

    Args:
        store: Where both are.
        place: In quarantine.
        origin: Where the delta was.
        file: As it is recorded.
        copy: As `proven_copy` found it.

    Raises:
        ObjectChanged: Something else lies there by now; it was not touched.
        StorageError: Other bytes arrived, or a request failed.
    """
    key, target = place.key(held_name(file.name)), origin.key(file.name)
    tags = _tags_of_others(store, place.bucket, key) if file.name == DATABASE else None
    try:
        store.copy(place.bucket, key, copy.etag, origin.bucket, target, file.size, tags=tags, only_if_absent=True)
    except ObjectChanged as error:
        # An earlier try of this very request may have been done, and only its answer lost.
        if not is_back(store, origin, file):
            detail = f"putting back {origin.uri}{file.name}: something else was uploaded there meanwhile; stopped"
            raise ObjectChanged("check.changed", detail, error.s3_code) from error
    if not is_back(store, origin, file):
        detail = f"putting back {origin.uri}{file.name}: what arrived is not what the record says; stopped"
        raise StorageError("check.storage", detail, "CopyDiffers")


def return_swallowed(
    store: Store, location: DeltaLocation, judgement: Judgement, settings: Settings
) -> tuple[DeltaLocation, QuarantineRecord, tuple[str, ...]] | None:
    """Puts back what a move into quarantine, which may have been killed, took from an upload that came during it.

    With a manifest that is whatever the manifest lists and the delta lacks. Without one, the upload must have begun to
    arrive before `arrival_seconds` were over since the move, and either lack a file, as its verdict says, or the move
    never told its end.

    Args:
        store: Where both are.
        location: The delta's place.
        judgement: Of what lies there.
        settings: Quarantine and arrival time.

    Returns:
        From where, by which record, and the names of what was put back; None when there was nothing to put back.

    Raises:
        StorageError: A copy is gone or another one, or a request failed. It may be done again.
    """
    listing = judgement.listing
    for state in states(store, location, settings) if listing.files else ():
        record = state.record
        if record is None or record.was_judged_with(listing) or not _absent(record, listing):
            continue
        guess = _is_of_a_move(store, state.place, record, judgement, settings)
        files = swallowed(store, state.place, record, listing, judgement.manifest, guess=guess, database=True)
        if names := put_back_swallowed(store, state.place, record, files):
            return state.place, record, names
    return None


def swallowed(
    store: Store,
    place: DeltaLocation,
    record: QuarantineRecord,
    listing: Listing,
    manifest: Manifest | None,
    *,
    guess: bool,
    database: bool,
    taken: Collection[str] | None = None,
) -> tuple[QuarantinedFile, ...]:
    """The recorded files that an upload lacks because they were deleted from under it.

    Args:
        store: Where both are.
        place: In quarantine.
        record: Of what lay there before.
        listing: What lies there now, with something newer in it.
        manifest: The manifest among that.
        guess: Whether, without a manifest, what the upload does not contradict counts as its own.
        database: Whether that goes for the database, too, which otherwise may still be arriving.
        taken: Only these may be among them; None stands for all.

    Raises:
        StorageError: A request failed.
    """
    absent = [file for file in _absent(record, listing) if taken is None or file.name in taken]
    if MANIFEST not in listing.by_name and any(file.name == MANIFEST for file in absent):
        manifest = _fitting_manifest(store, place, record, listing)
    if manifest is not None:
        listed = {(file.name, file.size, file.crc64nvme) for file in manifest.files}
        return tuple(f for f in absent if f.name == MANIFEST or (f.name, f.size, f.crc64nvme) in listed)
    if not guess:
        return ()
    return tuple(file for file in absent if _may_belong(file, record, listing, database))


def put_back_swallowed(
    store: Store, place: DeltaLocation, record: QuarantineRecord, files: Collection[QuarantinedFile]
) -> tuple[str, ...]:
    """Puts these files back, but for those that arrived by themselves meanwhile. Returns the names of the others.

    Raises:
        StorageError: A copy is gone or another one, or a request failed.
    """
    names = []
    for file in sorted(files, key=order_back):
        copy = proven_copy(store, place, file, "it was not put back")
        try:
            put_back(store, place, record.origin, file, copy)
            names.append(file.name)
        except ObjectChanged as error:
            logger.info("A file arrived before it was put back", extra={"reason": str(error)})
    if names:
        facts = {"delta": record.origin.uri, "quarantine": place.uri, "files": names}
        logger.warning("Files that a newer upload lost to a move into quarantine were put back", extra=facts)
    return tuple(names)


def lacks_files(judgement: Judgement) -> bool:
    """Whether the verdict names something that a file still to come would cure."""
    observed = judgement.verdict.observed
    return any(finding.weight is Weight.PENDING or finding.code == "arrival.file_awaited" for finding in observed)


def _is_of_a_move(
    store: Store, place: DeltaLocation, record: QuarantineRecord, judgement: Judgement, settings: Settings
) -> bool:
    """Whether what lies there began to arrive during a move to this place, or so soon after that this may be so."""
    _, root = settings.quarantine_of(record.bucket)
    known = {(file.name, file.etag, file.modified) for file in record.files}
    newer = [f.modified for f in judgement.listing.files if (f.name, f.etag, f.modified) not in known]
    moves = [claim for claim in claims_on(store, place, root) if claim.work is Work.MOVE]
    near = [move for move in moves if (min(newer) - move.over_by).total_seconds() <= settings.arrival_seconds]
    if any(move.ended is None for move in near):
        return True
    # What made room for a restored delta is not guessed to belong to that.
    return bool(near) and record.verdict.get("status") == Status.CORRUPT and lacks_files(judgement)


def _absent(record: QuarantineRecord, listing: Listing) -> list[QuarantinedFile]:
    return [file for file in record.files if file.name not in listing.by_name]


def _may_belong(file: QuarantinedFile, record: QuarantineRecord, listing: Listing, database: bool) -> bool:
    if file.name == DATABASE:
        return database
    segment = segment_of(file.name)
    if segment is None:  # a journal would be applied to the new database
        return False
    if not file.name.endswith(f"/{_ID_MAP}"):
        return True
    header = listing.by_name.get(f"{segment}/{_HEADER}")
    return header is None or any((f.name, f.etag) == (header.name, header.etag) for f in record.files)


def _fitting_manifest(
    store: Store, place: DeltaLocation, record: QuarantineRecord, listing: Listing
) -> Manifest | None:
    """The recorded manifest, if all that it lists is in the place or was deleted from there: a repaired delta's own."""
    held = {file.name: (file.size, file.crc64nvme) for file in record.files}
    copy = proven_copy(store, place, next(f for f in record.files if f.name == MANIFEST), "it was not put back")
    data = store.read(place.bucket, place.key(MANIFEST), MAX_MANIFEST_BYTES + 1, copy.etag)
    try:
        manifest = Manifest.parse(data)
    except ValueError:
        return None  # one that nobody can read proves nothing; it stays in quarantine
    for file in manifest.files:
        if file.name in listing.by_name:
            fits = _lies_there(store, record.origin, file.name, file.size, file.crc64nvme)
        else:
            fits = held.get(file.name) == (file.size, file.crc64nvme)
        if not fits:
            return None
    return manifest


def _lies_there(store: Store, origin: DeltaLocation, name: str, size: int, crc64nvme: str) -> bool:
    try:
        stored = store.head(origin.bucket, origin.key(name))
        return (stored.size, store.proven_checksum(origin.bucket, origin.key(name), stored)) == (size, crc64nvme)
    except (ObjectGone, ObjectChanged):
        return False


def _tags_of_others(store: Store, bucket: str, key: str) -> dict[str, str]:
    """A store without tags, or a role without the right to them, keeps nothing from its place."""
    try:
        return without_verdict(store.tags(bucket, key))
    except StorageError as error:
        logger.warning("The tags of a quarantined database are not put back", extra={"reason": str(error)})
        return {}
