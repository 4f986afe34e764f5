"""What is held in quarantine, and the ways out of it: back to its place, or gone for good.

Both may be killed at any request and done again, and keep away from each other and from a move
(`shared.quarantine.claims`). `restore` puts the manifest back first, which lists what is still missing, and the
database last, so a half is never taken for a whole; the copies in quarantine stay. `purge` deletes the record last, so
that what is left of an interrupted purge is still found and purged by the next.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any

from shared.check.judgement import judge_stored
from shared.model.delta import DeltaLocation, Listing, may_own, printable
from shared.model.errors import StorageError, TargetError
from shared.model.settings import Settings
from shared.model.verdict import Depth, Finding, Verdict
from shared.quarantine.claims import Work, claim, claimed, claims_on, folder_of
from shared.quarantine.move import move
from shared.quarantine.put_back import is_back, order_back, proven_copy, put_back
from shared.quarantine.record import (
    FINGERPRINT,
    HISTORY,
    LONG_KEYS,
    RECORD,
    HistoryEntry,
    QuarantineRecord,
    held_name,
    read_history,
    read_record,
    write_history,
)
from shared.storage.store import Store

_JOBS = 8
_RECORD_KEY = re.compile(rf"(?P<place>.*/{FINGERPRINT.pattern}/)({re.escape(RECORD)}|{re.escape(HISTORY)})", re.DOTALL)
_NAMES_SHOWN = 3


@dataclass(frozen=True, slots=True)
class Held:
    """One quarantined delta.

    Args:
        place: Where it lies.
        root: The prefix of the quarantine, ending with `/`.
        record: Its record.
        history: What happened to it since.
    """

    place: DeltaLocation
    root: str
    record: QuarantineRecord
    history: tuple[HistoryEntry, ...]

    @property
    def origin(self) -> DeltaLocation:
        """The place that it was taken from."""
        return self.record.origin

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
            return Held(place, root, read_record(store, place, settings), history)
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
        if record.bucket == bucket and record.prefix.startswith(prefix):
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
        overwrite: Whether other objects that lie in its place are moved into quarantine first, as a delta of their own.
            Objects that are those of the record already are kept: an earlier restore was cut short.

    Returns:
        The verdict on what lies in the place now, of depth `structure`.

    Raises:
        TargetError: Other objects lie in the place, and `overwrite` was not asked for; nothing was changed.
        StorageError: A copy is missing or damaged (nothing was changed), others are at work on this place in
            quarantine, or a request failed: it may be done again.
    """
    origin, record = held.origin, held.record
    store.conditional_deletes(*settings.quarantine_of(origin.bucket))
    _in_place(store, held, overwrite=overwrite)  # refused before anything is written
    with claimed(store, held.place, held.root, Work.RESTORE):
        if read_record(store, held.place, settings) != record:
            detail = f"{held.place.uri}{RECORD} was replaced by another record; nothing was restored"
            raise StorageError("check.changed", detail, "RecordChanged")
        copies = {file.name: proven_copy(store, held.place, file, "nothing was restored") for file in record.files}
        listing, back = _in_place(store, held, overwrite=overwrite)
        others = tuple(file.name for file in listing.files if file.name not in back)
        entry = HistoryEntry(event="restored", at=datetime.now(UTC), replaced=others)
        write_history(store, held.place, (*read_history(store, held.place).entries, entry))
        if others:
            _set_aside(store, origin, listing, settings)
            back = set()
        for file in sorted(record.files, key=order_back):
            if file.name not in back:
                put_back(store, held.place, origin, file, copies[file.name])
    whole = replace(settings, settle_seconds=0, arrival_seconds=0, manifest_required=False)  # no more is on its way
    verdict = judge_stored(store, origin, Depth.STRUCTURE, whole).verdict
    codes = tuple(dict.fromkeys(finding.code for finding in verdict.findings))
    judged = entry.model_copy(update={"status": verdict.status, "codes": codes})
    # Read anew: the validator may have come and quarantined it again in the meantime.
    write_history(
        store, held.place, tuple(judged if e == entry else e for e in read_history(store, held.place).entries)
    )
    return verdict


def _in_place(store: Store, held: Held, *, overwrite: bool) -> tuple[Listing, set[str]]:
    """What lies in the place of a held delta, and the names of those that are files of its record, byte for byte.

    Raises:
        TargetError: There are others, and they may not be replaced.
        StorageError: A request failed.
    """
    origin, files = held.origin, held.record.files
    listing = store.list_delta(origin).owning(file.name for file in files)
    back = {file.name for file in files if file.name in listing.by_name and is_back(store, origin, file)}
    others = tuple(file.name for file in listing.files if file.name not in back)
    if others and not overwrite:
        raise TargetError(f"{origin.uri}: nothing was restored: {_some(others)} would be lost; --overwrite replaces it")
    return listing, back


def _set_aside(store: Store, origin: DeltaLocation, listing: Listing, settings: Settings) -> None:
    """Moves what lies in a place into quarantine, whatever it is: a delete alone could take a part of a new upload."""
    judgement = judge_stored(store, origin, Depth.LISTING, settings, listing=listing)
    why = Finding("quarantine.set_aside", "", "it lay in the place of a delta that was restored")
    verdict = replace(judgement.verdict, observed=(*judgement.verdict.observed, why))
    done = move(store, origin, replace(judgement, verdict=verdict), settings)
    if done.left:
        detail = f"restoring {origin.uri}: {_some(done.left)} arrived there meanwhile; stopped"
        raise StorageError("check.changed", detail, "NewerUpload")


def purge(store: Store, held: Held) -> None:
    """Deletes what is held of one delta for good, all its versions included, the record last.

    The newest object goes first: where a retention of the bucket (S3 Object Lock) still holds for it, it is refused
    before anything is lost. Nothing is deleted when something happened to the delta since it was looked at, or while it
    is moved or restored.

    Raises:
        StorageError: A request was refused or failed. What is left is purged when this is done again.
    """
    place = held.place
    own = claim(store, place, held.root, Work.PURGE)
    try:
        if read_history(store, place).entries != held.history:
            detail = f"{place.uri}: restored or quarantined again in this moment; nothing was purged"
            raise StorageError("check.changed", detail, "HistoryChanged")
        known = {held_name(file.name) for file in held.record.files}
        _erase(store, place, lambda name: name in known or may_own(name), last=RECORD)
    except StorageError:
        own.end()
        raise
    over = {name for each in claims_on(store, place, held.root) if each.is_over(store.now()) for name in each.names}
    _erase(store, folder_of(place, held.root), {own.name, *over}.__contains__, last=own.name)


def _erase(store: Store, place: DeltaLocation, mine: Callable[[str], bool], last: str) -> None:
    """Deletes all versions of what lies in a place under names of ours: other deltas may be held further below."""
    keeps_versions = store.head(place.bucket, place.key(last)).version is not None
    if keeps_versions:
        versions = [
            v for v in store.walk_versions(place.bucket, place.prefix) if mine(v.key.removeprefix(place.prefix))
        ]
        for version in sorted(versions, key=lambda v: (v.key != place.key(last), v.modified), reverse=True):
            store.delete_version(place.bucket, version)
        return
    objects = [file for key, file in store.walk(place.bucket, place.prefix) if mine(key.removeprefix(place.prefix))]
    for file in sorted(objects, key=lambda f: (f.name != place.key(last), f.modified), reverse=True):
        store.delete(place.bucket, file.name, file.etag)


def _some(names: tuple[str, ...]) -> str:
    shown = ", ".join(printable(name) for name in names[:_NAMES_SHOWN])
    return shown if len(names) <= _NAMES_SHOWN else f"{shown} and {len(names) - _NAMES_SHOWN} more"
