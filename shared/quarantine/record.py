"""What lies in quarantine: the place of a delta there, its record, its history; believed or refused here.

A record is believed only in the one place that follows from what it says: the place of its delta (`place_of`) and its
fingerprint. So whoever may write elsewhere in the bucket can forge none.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from shared.aws.telemetry import logger
from shared.model.delta import BUCKET_NAME, MAX_NAME_BYTES, DeltaLocation, Listing, printable
from shared.model.errors import ObjectGone, StorageError
from shared.model.settings import Settings
from shared.model.verdict import Status
from shared.storage.store import Store

RECORD = "quarantine.json"
HISTORY = "history.json"
TOLD = "told.json"
"""The marker beside a record: who was told of the quarantine (`shared.quarantine.outbox`)."""

FINGERPRINT = re.compile(r"[0-9a-f]{64}")
LONG_KEYS = ".long-keys"
"""Name, below the quarantine prefix, of the place for deltas whose keys would become longer than S3 takes."""

_MAX_KEY_BYTES = 1024
_FINGERPRINT_BYTES = 65  # with the slash behind it
_MAX_RECORD_BYTES = 16 * 1024 * 1024
# What lies beside the files of a delta: a file of the delta that has such a name is kept under another.
_OURS = re.compile(r"(quarantine|history|told)\.json(\.file)*")


def _readable(verdict: dict[str, Any]) -> dict[str, Any]:
    """The verdict of a record, of which others read the findings, by these three fields, and the collections."""
    findings = verdict.get("findings")
    if not isinstance(findings, list) or not all(
        isinstance(finding, Mapping) and all(isinstance(finding.get(k), str) for k in ("code", "file", "detail"))
        for finding in findings
    ):
        raise ValueError("a verdict has findings, each with a code, a file and a detail")
    collections = verdict.get("collections", [])
    if not isinstance(collections, list) or not all(isinstance(each, Mapping) for each in collections):
        raise ValueError("a verdict has a list of collections")
    return verdict


class InvalidRecord(StorageError):
    """What lies in the place of a record or a history is none, or not the one of this place."""

    def __init__(self, detail: str) -> None:
        super().__init__("check.storage", detail, "InvalidRecord")


class QuarantinedFile(BaseModel):
    """One file of a quarantined delta, as it was in its place.

    Args:
        name: Path below the delta's prefix.
        size: Bytes.
        etag: Of the object in its place.
        version: Of the same; None where its bucket keeps none.
        crc64nvme: CRC-64/NVME over all bytes, base64.
        modified: When it arrived in its place, by the store's clock; None in records of older versions.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    size: Annotated[int, Field(ge=0)]
    etag: str
    version: str | None
    crc64nvme: str
    modified: datetime | None = None


class QuarantineRecord(BaseModel):
    """`quarantine.json`: why a delta was taken away, the evidence, and all that is needed to put it back."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    format: Literal[1] = 1
    bucket: Annotated[str, Field(pattern=rf"^{BUCKET_NAME.pattern}$")]
    prefix: Annotated[str, Field(pattern=r"[^/]/+$")]
    fingerprint: Annotated[str, Field(pattern=rf"^{FINGERPRINT.pattern}$")]
    batch_id: str | None
    attempt: Annotated[int, Field(ge=1)] | None
    quarantined_at: datetime
    verdict: Annotated[dict[str, Any], AfterValidator(_readable)]
    files: tuple[QuarantinedFile, ...]

    @property
    def origin(self) -> DeltaLocation:
        """The place that the delta was taken from."""
        return DeltaLocation(self.bucket, self.prefix)

    def holds(self, listing: Listing) -> bool:
        """Whether these objects are, byte for byte, files of this record: all of them, or the rest of a move."""
        return {(f.name, f.etag) for f in listing.files} <= {(f.name, f.etag) for f in self.files}

    def was_judged_with(self, listing: Listing) -> bool:
        """Whether these very objects were recorded, and none of them came later, be it with the same bytes."""
        known = {(f.name, f.etag): f.modified for f in self.files}
        return all(known.get((f.name, f.etag), f) in (None, f.modified) for f in listing.files)


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
class State:
    """One place in quarantine.

    Args:
        place: Where.
        sizes: What lies there: bytes by name.
        record: The record of this delta there, if the copying came to its end.
        problem: Why there is no record although an object of that name lies there.
    """

    place: DeltaLocation
    sizes: Mapping[str, int]
    record: QuarantineRecord | None = None
    problem: StorageError | None = None


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
    held = [(state.place, state.record) for state in states(store, location, settings) if state.record is not None]
    return max(held, key=lambda found: found[1].quarantined_at, default=None)


def states(store: Store, location: DeltaLocation, settings: Settings) -> list[State]:
    """What lies in quarantine of this delta, by place. What a place holds of another delta is left out.

    A record that cannot be understood is logged and hides no other.

    Raises:
        StorageError: A request failed.
    """
    home = place_of(location, settings)
    sizes: dict[str, dict[str, int]] = {}
    for key, file in store.walk(home.bucket, home.prefix):
        fingerprint, _, name = key.removeprefix(home.prefix).partition("/")
        if FINGERPRINT.fullmatch(fingerprint):
            sizes.setdefault(fingerprint, {})[name] = file.size
    found = []
    for fingerprint, names in sizes.items():
        place = DeltaLocation(home.bucket, f"{home.prefix}{fingerprint}/")
        record, problem = None, None
        try:
            record = read_record(store, place, settings) if RECORD in names else None
        except InvalidRecord as error:
            problem = error
            logger.error("A quarantine record is not understood", extra={"quarantine": place.uri, "reason": str(error)})
        if record is None or record.origin == location:
            found.append(State(place, names, record, problem))
    return found


def read_record(store: Store, place: DeltaLocation, settings: Settings) -> QuarantineRecord:
    """The record of one quarantined delta.

    Raises:
        ObjectGone: There is none.
        InvalidRecord: What lies there is no record, or not the one of this place.
        StorageError: The request failed.
    """
    data = store.read(place.bucket, place.key(RECORD), _MAX_RECORD_BYTES)
    try:
        record = QuarantineRecord.model_validate_json(data)
    except ValidationError as error:
        raise InvalidRecord(
            f"reading {place.uri}{RECORD}: not a quarantine record ({error.error_count()} errors)"
        ) from error
    home = place_of(record.origin, settings)
    if place != DeltaLocation(home.bucket, f"{home.prefix}{record.fingerprint}/"):
        raise InvalidRecord(
            f"reading {place.uri}{RECORD}: it is the record of another place, {printable(record.origin.uri)}"
        )
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
        raise InvalidRecord(detail) from error


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
