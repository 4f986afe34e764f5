"""Whether more of a delta may still arrive. What has not arrived is not lost, and only the store's own clock tells.

Two times pass after the newest file: the *settle time* (a minute), before which nothing that is there is looked at, and
the *arrival time* (hours), before which nothing that is missing proves a loss. A file that is being uploaded in parts
is not listed before its last part is there, and S3 dates the upload by its beginning; so each of its parts counts as
an arrival (https://docs.aws.amazon.com/AmazonS3/latest/userguide/mpuoverview.html).
"""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import TYPE_CHECKING

from shared.model.delta import MANIFEST, DeltaLocation, Listing, is_own_file
from shared.model.errors import StorageError
from shared.model.findings import Weight
from shared.model.manifest import Manifest
from shared.model.settings import Settings
from shared.model.verdict import Finding, Status, status_of

if TYPE_CHECKING:  # a local check needs no boto3
    from shared.storage.store import Store

_MOST_UPLOADS = 100
"""Unfinished uploads of one delta that are looked at; of more, one is taken to be under way."""


def settling(
    listing: Listing, manifest: Manifest | None, settings: Settings, now: datetime
) -> tuple[list[Finding], datetime | None]:
    """Why it is too early to look at a delta, and when it has settled; empty where it has.

    With a manifest a delta is whole once everything listed is there and nothing is newer than the manifest (an upload
    over an older delta writes its manifest last, too). Otherwise it is whole once nothing arrived for the settle time.

    Args:
        listing: The delta's files.
        manifest: The manifest among them, if it can be read.
        settings: The settle time, and whether a manifest is required.
        now: The time of the store.
    """
    if settings.manifest_required and manifest is None:
        return [Finding("arrival.manifest_awaited", MANIFEST, "not there, and DELTAGUARD_MANIFEST is required")], None
    newest = listing.newest
    if newest is None or _whole(listing, manifest):
        return [], None
    settled_at = newest + timedelta(seconds=settings.settle_seconds)
    if now >= settled_at:
        return [], None
    age = (now - newest).total_seconds()
    detail = f"the last file arrived {age:.0f} s ago, a delta settles for {settings.settle_seconds:g} s"
    return [Finding("arrival.settling", "", detail)], settled_at


def without_awaited(
    store: Store,
    location: DeltaLocation,
    listing: Listing,
    manifest: Manifest | None,
    observed: list[Finding],
    settings: Settings,
) -> tuple[list[Finding], datetime | None]:
    """The findings of an examination without those that a file still to come would cure, as long as one may.

    Unfinished uploads are asked for only when the arrival time is over and nothing but a missing file speaks against
    the delta. Where the store refuses to list them nobody knows, so the verdict is `undetermined`.

    Returns:
        The findings, and when the arrival time will be over; None where nothing is awaited.
    """
    pending = [finding for finding in observed if finding.weight is Weight.PENDING]
    kept = [finding for finding in observed if finding.weight is not Weight.PENDING]
    if not pending or not listing.files:
        return observed, None
    if _whole(listing, manifest):
        return observed, None
    try:
        why, over_at = _under_way(
            store, location, listing, manifest, settings, ask=status_of(kept) is not Status.CORRUPT
        )
    except StorageError as fault:
        detail = f"{fault.detail}; so what is missing may still be on its way"
        why, over_at = [Finding(fault.code, "", detail)], None
    if not why:
        return observed, None
    if status_of(kept) is not Status.CORRUPT:  # what has not arrived is not lost
        kept = [finding for finding in kept if finding.code != "records.recoverable"]
    awaited = [Finding("arrival.file_awaited", f.file, f"{f.code}: {f.detail}") for f in pending]
    return [*kept, *awaited, *why], over_at


def _under_way(
    store: Store,
    location: DeltaLocation,
    listing: Listing,
    manifest: Manifest | None,
    settings: Settings,
    *,
    ask: bool,
) -> tuple[list[Finding], datetime | None]:
    """Why a missing file may still arrive, and when that will be over; empty where it cannot.

    Args:
        store: Where the delta lies.
        location: Its bucket and prefix.
        listing: Its files, of which there is one at least.
        manifest: The manifest among them, if it can be read.
        settings: Settle time and arrival time.
        ask: Whether to ask for unfinished uploads when the arrival time is over.

    Raises:
        StorageError: The store does not tell.
    """
    now, newest = store.now(), listing.newest or store.now()
    why, _ = settling(listing, manifest, settings, now)
    over_at = newest + timedelta(seconds=max(settings.arrival_seconds, settings.settle_seconds))
    if why:
        return why, over_at
    arrival = timedelta(seconds=settings.arrival_seconds)
    if now < over_at:
        detail = f"the last file arrived {(now - newest).total_seconds():.0f} s ago"
        detail += f", one may be on its way for {settings.arrival_seconds:g} s (DELTAGUARD_ARRIVAL_SECONDS)"
        return [Finding("arrival.file_awaited", "", detail)], over_at
    latest = _latest_part(store, location, manifest, now - arrival) if ask and arrival else None
    if latest is None:
        return [], None
    detail = f"an upload in parts that is not finished had its last part {(now - latest).total_seconds():.0f} s ago"
    return [Finding("arrival.file_awaited", "", detail)], latest + arrival


def _whole(listing: Listing, manifest: Manifest | None) -> bool:
    """Whether everything is there that the producer closed: all its manifest lists, and nothing newer than that."""
    newest = listing.newest
    if manifest is None or newest is None or any(file.name not in listing.by_name for file in manifest.files):
        return False
    return newest <= listing.by_name[MANIFEST].modified


def _latest_part(store: Store, location: DeltaLocation, manifest: Manifest | None, since: datetime) -> datetime | None:
    """When a part of an unfinished upload of this delta's files arrived that is newer than `since`; None: no such part.

    Raises:
        StorageError: The store does not tell.
    """
    own = {file.name for file in manifest.files} if manifest is not None else set()
    looked_at = 0
    try:
        for upload in store.unfinished_uploads(location.bucket, location.prefix):
            name = upload.key.removeprefix(location.prefix)
            if name not in own and not is_own_file(name):
                continue
            looked_at += 1
            try:
                latest = store.latest_part(location.bucket, upload, since)
            except StorageError as fault:
                if fault.s3_code != "NoSuchUpload":
                    raise
                latest = store.now()  # finished or given up in this moment
            if looked_at > _MOST_UPLOADS:
                return store.now()
            if latest > since:
                return latest
    except StorageError as fault:
        if fault.s3_code in ("NotImplemented", "501"):
            return None  # a store without such listings: the arrival time alone has to do
        raise
    return None
