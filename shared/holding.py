"""What is held in quarantine, and the ways out of it: back to its place, or gone for good.

Both may be killed at any request and done again. `restore` puts the manifest back last and the database before it, so a
half is never taken for a whole; the copies in quarantine stay. `purge` deletes the record last, so that what is left of
an interrupted purge is still found and purged by the next.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any

from shared.delta import DATABASE, MANIFEST, DeltaLocation, StoredObject, may_own, printable
from shared.errors import ObjectChanged, ObjectGone, StorageError, TargetError
from shared.judgement import judge_stored
from shared.quarantine import (
    FINGERPRINT,
    HISTORY,
    LONG_KEYS,
    RECORD,
    HistoryEntry,
    QuarantinedFile,
    QuarantineRecord,
    held_name,
    place_of,
    read_history,
    read_record,
    write_history,
)
from shared.settings import Settings
from shared.storage import Store
from shared.tags import without_verdict
from shared.telemetry import logger
from shared.verdict import Depth, Verdict

_JOBS = 8
_RECORD_KEY = re.compile(rf"(?P<place>.*/{FINGERPRINT.pattern}/)({re.escape(RECORD)}|{re.escape(HISTORY)})", re.DOTALL)
_PUT_BACK_LAST = {DATABASE: 1, MANIFEST: 2}
_REMOVED_FIRST = {MANIFEST: 0, DATABASE: 1}
_NAMES_SHOWN = 3


@dataclass(frozen=True, slots=True)
class Held:
    """One quarantined delta: where it lies, its record, and what happened to it since."""

    place: DeltaLocation
    record: QuarantineRecord
    history: tuple[HistoryEntry, ...]

    @property
    def origin(self) -> DeltaLocation:
        """The place that it was taken from."""
        return DeltaLocation(self.record.bucket, self.record.prefix)

    @property
    def since(self) -> datetime:
        """When something happened to it last: its retention counts from here."""
        return max([self.record.quarantined_at, *(entry.at for entry in self.history)])

    @property
    def codes(self) -> tuple[str, ...]:
        """The codes of the findings that it was quarantined for, each once."""
        return tuple(dict.fromkeys(str(finding.get("code")) for finding in self.record.verdict.get("findings", ())))

    def as_json(self) -> dict[str, Any]:
        """What a list of held deltas says of this one."""
        restored = [entry.at for entry in self.history if entry.event == "restored"]
        return {
            "delta": self.origin.uri,
            "quarantine": self.place.uri,
            "fingerprint": self.record.fingerprint,
            "quarantined_at": self.record.quarantined_at.isoformat(),
            "restored_at": restored[-1].isoformat() if restored else None,
            "codes": list(self.codes),
            "batch_id": self.record.batch_id,
            "attempt": self.record.attempt,
            "files": len(self.record.files),
            "bytes": sum(file.size for file in self.record.files),
        }


def held_below(
    store: Store, bucket: str, prefix: str, settings: Settings, unreadable: Callable[[StorageError], None]
) -> list[Held]:
    """What is held of the deltas that lay at and below a place, by that place and the time of their quarantine.

    Args:
        store: Where the quarantine is.
        bucket: The bucket that they lay in.
        prefix: Ends with `/`, or is empty for the whole bucket.
        settings: Where the quarantine is.
        unreadable: Is told of each record that cannot be read; the others are found all the same.

    Raises:
        StorageError: The quarantine cannot be listed.
    """
    home, root = settings.quarantine_of(bucket)
    marks: dict[str, set[str]] = {}
    for walked in (root + prefix, f"{root}{LONG_KEYS}/"):  # where the prefix is in the record only
        for key, _ in store.walk(home, walked):
            if match := _RECORD_KEY.fullmatch(key):
                marks.setdefault(match["place"], set()).add(match[2])

    def read(place: DeltaLocation, names: set[str]) -> Held | StorageError:
        try:
            history = read_history(store, place).entries if HISTORY in names else ()
            return Held(place, read_record(store, place), history)
        except StorageError as error:
            return error

    places = [(DeltaLocation(home, place), names) for place, names in marks.items() if RECORD in names]
    with ThreadPoolExecutor(_JOBS) as pool:
        answers = list(pool.map(lambda found: read(*found), places))
    files = {
        held.place.prefix: {held_name(file.name) for file in held.record.files}
        for held in answers
        if isinstance(held, Held)
    }
    found = []
    for (place, _), answer in zip(places, answers, strict=True):
        if _is_part(place, files):
            continue
        if isinstance(answer, StorageError):
            unreadable(answer)
            continue
        record = answer.record
        state = place_of(answer.origin, settings).key(f"{record.fingerprint}/")
        if (record.bucket, place.prefix) == (bucket, state) and record.prefix.startswith(prefix):
            found.append(answer)
    return sorted(found, key=lambda held: (held.record.prefix, held.record.quarantined_at))


def _is_part(place: DeltaLocation, files: dict[str, set[str]]) -> bool:
    """Whether a record is only a file of a delta that is held: its names are whatever its writer chose."""
    ends = (found.end() for found in re.finditer("/", place.prefix))
    return any(place.key(RECORD)[end:] in files.get(place.prefix[:end], ()) for end in ends)


def missing_copies(store: Store, held: Held) -> tuple[str, ...]:
    """Names of the files whose copy is not there, or not of the size that it was proven to have.

    Raises:
        StorageError: The request failed.
    """
    names = {file.name: held_name(file.name) for file in held.record.files}
    sizes = {file.name: file.size for file in store.list_delta(held.place).owning(names.values()).files}
    return tuple(file.name for file in held.record.files if sizes.get(names[file.name]) != file.size)


def restore(store: Store, held: Held, settings: Settings, *, overwrite: bool = False) -> Verdict:
    """Puts a delta back in its place and judges it there. The copies in quarantine stay until they are purged.

    The history beside the record tells of it before the first object is written. What is put back has no tag of ours:
    it counts as not validated. If it is still corrupt the validator quarantines it once more, under the same record.

    Args:
        store: Where it is held.
        held: The quarantined delta.
        settings: Caps and time limits for judging it.
        overwrite: Whether other objects that lie in its place are deleted, all of them and for good where the bucket
            keeps no versions. Objects that are those of the record already are kept: an earlier restore was cut short.

    Returns:
        The verdict on what lies in the place now, of depth `structure`.

    Raises:
        TargetError: Other objects lie in the place, and `overwrite` was not asked for; nothing was changed.
        StorageError: A copy is missing or damaged (nothing was changed), or a request failed: it may be done again.
    """
    place, origin, record = held.place, held.origin, held.record
    store.conditional_deletes(*settings.quarantine_of(origin.bucket))
    copies = {file.name: _proven_copy(store, place, file) for file in record.files}
    listing = store.list_delta(origin).owning(file.name for file in record.files)
    back = {file.name for file in record.files if file.name in listing.by_name and _is_back(store, origin, file)}
    others = tuple(file.name for file in listing.files if file.name not in back)
    if others and not overwrite:
        raise TargetError(f"{origin.uri}: nothing was restored: {_some(others)} would be lost; --overwrite replaces it")
    entry = HistoryEntry(event="restored", at=datetime.now(UTC), replaced=others)
    write_history(store, place, (*read_history(store, place).entries, entry))
    if others:
        back = set()
        for found in sorted(listing.files, key=lambda found: _REMOVED_FIRST.get(found.name, 2)):
            store.delete(origin.bucket, origin.key(found.name), found.etag)
    for file in sorted(record.files, key=lambda file: _PUT_BACK_LAST.get(file.name, 0)):
        if file.name not in back:
            _put_back(store, held, file, copies[file.name])
    whole = replace(
        settings, settle_seconds=0, arrival_seconds=0, manifest_required=False
    )  # nothing more is on its way
    verdict = judge_stored(store, origin, Depth.STRUCTURE, whole).verdict
    codes = tuple(dict.fromkeys(finding.code for finding in verdict.findings))
    judged = entry.model_copy(update={"status": verdict.status, "codes": codes})
    # Read anew: the validator may have come and quarantined it again in the meantime.
    write_history(store, place, tuple(judged if e == entry else e for e in read_history(store, place).entries))
    return verdict


def _proven_copy(store: Store, place: DeltaLocation, file: QuarantinedFile) -> StoredObject:
    key = place.key(held_name(file.name))
    try:
        copy = store.head(place.bucket, key)
        checksum = store.proven_checksum(place.bucket, key, copy)
    except ObjectGone as error:
        detail = f"s3://{place.bucket}/{key} is gone, perhaps by a purge that was cut short; nothing was restored"
        raise StorageError("check.gone", detail, error.s3_code) from error
    if (copy.size, checksum) != (file.size, file.crc64nvme):
        detail = (
            f"s3://{place.bucket}/{key} has {copy.size} bytes and CRC64NVME {checksum}, the record says {file.size} "
            f"and {file.crc64nvme}; nothing was restored"
        )
        raise StorageError("check.storage", detail, "CopyDiffers")
    return copy


def _is_back(store: Store, origin: DeltaLocation, file: QuarantinedFile) -> bool:
    """Whether exactly this file lies in its place."""
    try:
        stored = store.head(origin.bucket, origin.key(file.name))
        checksum = store.proven_checksum(origin.bucket, origin.key(file.name), stored)
    except (ObjectGone, ObjectChanged):
        return False
    return (stored.size, checksum) == (file.size, file.crc64nvme)


def _put_back(store: Store, held: Held, file: QuarantinedFile, copy: StoredObject) -> None:
    key, target = held.place.key(held_name(file.name)), held.origin.key(file.name)
    tags = _tags_of_others(store, held.place.bucket, key) if file.name == DATABASE else None
    try:
        store.copy(
            held.place.bucket, key, copy.etag, held.origin.bucket, target, file.size, tags=tags, only_if_absent=True
        )
    except ObjectChanged as error:
        # An earlier try of this very request may have been done, and only its answer lost.
        if not _is_back(store, held.origin, file):
            detail = f"restoring {held.origin.uri}{file.name}: something else was uploaded there meanwhile; stopped"
            raise StorageError("check.changed", detail, error.s3_code) from error
    if not _is_back(store, held.origin, file):
        detail = f"restoring {held.origin.uri}{file.name}: what arrived is not what the record says; stopped"
        raise StorageError("check.storage", detail, "CopyDiffers")


def _tags_of_others(store: Store, bucket: str, key: str) -> dict[str, str]:
    """A store without tags, or a role without the right to them, keeps nothing from its place."""
    try:
        return without_verdict(store.tags(bucket, key))
    except StorageError as error:
        logger.warning("The tags of a quarantined database are not restored", extra={"reason": str(error)})
        return {}


def purge(store: Store, held: Held) -> None:
    """Deletes what is held of one delta for good, all its versions included, the record last.

    The newest object goes first: where a retention of the bucket (S3 Object Lock) still holds for it, it is refused
    before anything is lost. Nothing is deleted when something happened to the delta since it was looked at.

    Raises:
        StorageError: A request was refused or failed. What is left is purged when this is done again.
    """
    place = held.place
    if read_history(store, place).entries != held.history:
        detail = f"{place.uri}: restored or quarantined again in this moment; nothing was purged"
        raise StorageError("check.changed", detail, "HistoryChanged")
    record = place.key(RECORD)
    names = {held_name(file.name) for file in held.record.files}

    def belongs(key: str) -> bool:  # another delta that is named as a fingerprint is may be held below
        name = key.removeprefix(place.prefix)
        return name in names or may_own(name)

    if store.head(place.bucket, record).version is None:
        objects = [file for key, file in store.walk(place.bucket, place.prefix) if belongs(key)]
        for file in sorted(objects, key=lambda file: (file.name != record, file.modified), reverse=True):
            store.delete(place.bucket, file.name, file.etag)
    else:
        versions = [found for found in store.walk_versions(place.bucket, place.prefix) if belongs(found.key)]
        for version in sorted(versions, key=lambda version: (version.key != record, version.modified), reverse=True):
            store.delete_version(place.bucket, version)


def _some(names: tuple[str, ...]) -> str:
    shown = ", ".join(printable(name) for name in names[:_NAMES_SHOWN])
    return shown if len(names) <= _NAMES_SHOWN else f"{shown} and {len(names) - _NAMES_SHOWN} more"
