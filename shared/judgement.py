"""From a delta's place to its verdict: list, ask whether it is all there, fetch what the depth needs, examine."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

from shared import tags as verdict_tags
from shared.arrival import settling, without_awaited
from shared.deadline import UNLIMITED, Deadline, side_by_side
from shared.delta import (
    DATABASE,
    MANIFEST,
    MAX_BELOW,
    DeltaFile,
    DeltaLocation,
    Listing,
    is_chroma_file,
    is_own_file,
    printable,
)
from shared.errors import CouldNotCheck, ObjectChanged, StorageError
from shared.folder import FolderContent, check_count, check_size, checksum_of, list_folder, require_regular
from shared.inspection import Content, Examination, examine
from shared.manifest import MAX_MANIFEST_BYTES, Manifest, compare_checksums, compare_collections, compare_listing
from shared.remote import RemoteContent, Step, read_head
from shared.settings import Settings
from shared.verdict import Depth, Finding, Status, Verdict, abridged, status_of

if TYPE_CHECKING:  # a local check needs no boto3
    from shared.storage import Store

_BELOW_SHOWN = 3


@dataclass(frozen=True, slots=True)
class Judgement:
    """A verdict with what it stands on.

    Args:
        verdict: The verdict.
        listing: The objects that were judged.
        manifest: The manifest among them, if there is one that can be read.
        checksums_proven: Whether every file of the manifest was compared by its checksum.
        by_tag: Whether a tag gave the answer, and nothing was read.
        settles_at: When it makes sense to look at an `incomplete` delta again; None when time alone settles nothing.
    """

    verdict: Verdict
    listing: Listing
    manifest: Manifest | None
    checksums_proven: bool
    by_tag: bool
    settles_at: datetime | None = None

    @property
    def gone(self) -> bool:
        """Whether no file of a delta lies under the prefix (any more), whatever lies deeper below it."""
        listed = bool(self.listing.below) or self.verdict.status is not Status.UNDETERMINED
        return listed and not self.listing.files


def judge_stored(
    store: Store,
    location: DeltaLocation,
    depth: Depth,
    settings: Settings,
    *,
    await_arrival: bool = False,
    trust_tags: bool = False,
    listing: Listing | None = None,
    step: Step = nullcontext,
    deadline: Deadline = UNLIMITED,
) -> Judgement:
    """Judges a delta in S3. Whatever cannot be checked is part of the verdict; nothing is raised for it.

    Args:
        store: Where it lies.
        location: Its bucket and prefix.
        depth: How far to go.
        settings: Settle time, caps and time limits.
        await_arrival: Whether a delta that may still be arriving is `incomplete` without a look at it. Otherwise it is
            judged now, and only what a file still to come would cure counts as awaited instead of corrupt.
        trust_tags: Whether a `healthy` tag that belongs to exactly these objects and to this depth is an answer.
        listing: Its objects where they were listed a moment ago, which saves the request.
        step: Put around each step; by default nothing is.
        deadline: What is not done then is given up: `undetermined`, `check.timeout`.
    """
    work = _Work(location.uri, depth)
    try:
        with step("list"):
            deadline.check(f"listing {location.uri}")
            work.listing = listing or store.list_delta(location, apart=_quarantine_beside(location, settings))
        if trust_tags and _tagged_healthy(store, location, work.listing, depth):
            work.by_tag = True
            return work.judgement()
        work.read_manifest(lambda length: read_head(store, location, work.listing.by_name[MANIFEST], length))
        check_count(work.listing)
        if await_arrival:
            awaited, settles_at = settling(work.listing, work.manifest, settings, store.now())
            if awaited:
                work.observed += awaited
                work.settles_at = settles_at
                return work.judgement()
        if work.manifest is not None:
            most = settings.max_delta_bytes
            work.checksums = _stored_checksums(store, location, work.listing, work.manifest, most, deadline)
        with ExitStack() as scratch:
            content = RemoteContent(
                store,
                location,
                work.listing,
                settings.max_delta_bytes,
                scratch,
                step,
                # A checksum that the store does not keep is computed here, of every file.
                whole=work.manifest is not None and not work.checksums_proven,
                in_full=depth.includes(Depth.STRUCTURE),
                deadline=deadline,
            )
            with step("inspect"):
                work.examine(content, settings.probe_timeout_seconds, step, deadline)
    except CouldNotCheck as fault:
        work.observed.append(Finding(fault.code, "", fault.detail))
    found = without_awaited(store, location, work.listing, work.manifest, work.observed, settings)
    work.observed, work.settles_at = found
    return work.judgement()


def known_answer(store: Store, location: DeltaLocation, depth: Depth) -> Judgement | None:
    """The answer that needs no look at a delta: nothing lies there, or a tag says that it is healthy; None otherwise.

    Args:
        store: Where it lies.
        location: Its bucket and prefix.
        depth: How deep the check must have gone that the tag tells of.
    """
    work = _Work(location.uri, depth)
    try:
        work.listing = store.list_delta(location)
    except StorageError:
        return None  # the look itself will tell
    work.by_tag = _tagged_healthy(store, location, work.listing, depth)
    return work.judgement() if work.by_tag or not work.listing.files else None


def judge_folder(path: Path, depth: Depth, settings: Settings) -> Judgement:
    """Judges a delta in a local folder, which is taken to be all there.

    Raises:
        TargetError: There is no such folder.
    """
    work = _Work(str(path), depth)
    try:
        work.listing = list_folder(path)
        content = FolderContent(path, work.listing, settings.max_delta_bytes)
        work.read_manifest(lambda length: content.head(MANIFEST, length))
        if work.manifest is not None:
            check_size(work.listing, settings.max_delta_bytes)
            listed = [file.name for file in work.manifest.files if file.name in work.listing.by_name]
            require_regular(path, {file.name for file in work.manifest.files} - set(listed))
            work.checksums = {name: checksum_of(path / name) for name in listed}
        work.examine(content, settings.probe_timeout_seconds)
    except CouldNotCheck as fault:
        work.observed.append(Finding(fault.code, "", fault.detail))
    return work.judgement()


@dataclass(slots=True)
class _Work:
    """One judgement while it is made."""

    delta: str
    depth: Depth
    listing: Listing = field(default_factory=lambda: Listing(()))
    manifest: Manifest | None = None
    checksums: dict[str, str] = field(default_factory=dict)
    observed: list[Finding] = field(default_factory=list)
    examination: Examination = field(default_factory=Examination)
    by_tag: bool = False
    settles_at: datetime | None = None
    started: float = field(default_factory=time.perf_counter)

    @property
    def checksums_proven(self) -> bool:
        """Whether every file of a manifest was compared by its checksum."""
        return self.manifest is not None and all(file.name in self.checksums for file in self.manifest.files)

    def read_manifest(self, read: Callable[[int], bytes]) -> None:
        if MANIFEST not in self.listing.by_name:
            return
        try:
            self.manifest = Manifest.parse(read(MAX_MANIFEST_BYTES + 1))
        except ValueError as error:
            self.observed.append(Finding("manifest.unreadable", MANIFEST, str(error)))
            return
        self.listing = self.listing.owning(file.name for file in self.manifest.files)
        missing = [file.name for file in self.manifest.files if file.name not in self.listing.by_name]
        unseen = next((name for name in missing if not is_own_file(name)), None) if self.listing.crowded else None
        if unseen is not None:
            detail = f"{printable(unseen)} of the manifest may be one of too many files that are not Chroma's"
            raise CouldNotCheck("check.size_cap", detail)

    def examine(
        self, content: Content, probe_seconds: float, step: Step = nullcontext, deadline: Deadline = UNLIMITED
    ) -> None:
        if self.manifest is not None:
            self.observed += compare_listing(self.manifest, self.listing)
            self.observed += compare_checksums(self.manifest, self.checksums)
        # What the manifest proves needs no second opinion from Chroma, but the structure tells where the damage sits.
        proven = status_of(self.observed) is Status.CORRUPT
        depth = Depth.STRUCTURE if proven and self.depth is Depth.OPEN else self.depth
        proven_bytes = self.checksums_proven
        self.examination = examine(
            self.listing, content, depth, probe_seconds, step, proven=proven_bytes, deadline=deadline
        )
        self.observed += self.examination.observed
        if self.manifest is not None and self.depth.includes(Depth.STRUCTURE):
            self._compare_contents(self.manifest, content)

    def _compare_contents(self, manifest: Manifest, content: Content) -> None:
        """What only the downloaded bytes can be asked: counts, and checksums that the store does not keep."""
        if status_of(self.examination.observed) is not Status.HEALTHY:
            return
        self.observed += compare_collections(manifest, self.examination.collections)
        folder = content.folder()
        unknown = [f.name for f in manifest.files if f.name not in self.checksums and is_chroma_file(f.name)]
        present = [name for name in unknown if name in self.listing.by_name]
        computed = {name: checksum_of(folder / name) for name in present}
        self.observed += compare_checksums(manifest, computed)
        self.checksums |= computed

    def judgement(self) -> Judgement:
        if status_of(self.observed) is Status.CORRUPT:
            self.observed += _deltas_below(self.listing)
        verdict = Verdict(
            self.delta,
            self.depth,
            tuple(abridged(self.observed)),
            self.examination.collections,
            self.listing.size,
            self.listing.fingerprint,
            (time.perf_counter() - self.started) * 1000,
            self.examination.versions,
            self.listing.newest,
        )
        return Judgement(verdict, self.listing, self.manifest, self.checksums_proven, self.by_tag, self.settles_at)


def _quarantine_beside(location: DeltaLocation, settings: Settings) -> str:
    """The prefix of the quarantine where it is in the same bucket: what is held there is no delta below another one."""
    bucket, prefix = settings.quarantine_of(location.bucket)
    return prefix if bucket == location.bucket else ""


def _deltas_below(listing: Listing) -> list[Finding]:
    """The doubt about a proof against a delta that others lie below: one of its files may lie one level too high."""
    if not listing.below and not listing.unseen:
        return []
    number = len(listing.below)
    if not number:
        detail = "more objects lie below it than were looked at; where they are deltas, scan finds and judges them"
    else:
        some = ", ".join(printable(prefix, 80) for prefix in listing.below[:_BELOW_SHOWN])
        at_least = "at least " * (listing.unseen or number == MAX_BELOW)
        lie = "1 delta lies" if number == 1 else f"{number} deltas lie"
        detail = f"{at_least}{lie} below it, such as {some}: scan finds and judges what lies below"
    return [Finding("verdict.deltas_below", "", detail)]


def _tagged_healthy(store: Store, location: DeltaLocation, listing: Listing, depth: Depth) -> bool:
    if DATABASE not in listing.by_name:
        return False
    try:
        known = verdict_tags.healthy_depth(store.tags(location.bucket, location.key(DATABASE)), listing)
    except StorageError:
        return False  # a store without tags, or no right to read them: the check itself will answer
    return known is not None and known.includes(depth)


def _stored_checksums(
    store: Store, location: DeltaLocation, listing: Listing, manifest: Manifest, max_bytes: int, deadline: Deadline
) -> dict[str, str]:
    """The checksums of the files in the manifest, by name, as the store keeps them: no byte of them is read.

    In a store that keeps them (the manifest's own tells), a file without one was put there by somebody else than the
    producer. Its checksum is computed from its bytes.
    """
    deadline.check(f"asking for the checksums of {location.uri}")
    kept = store.head(location.bucket, location.key(MANIFEST)).crc64nvme is not None

    def checksum(file: DeltaFile) -> str | None:
        key = location.key(file.name)
        stored = store.head(location.bucket, key)
        if stored.etag != file.etag:
            detail = f"{location.uri}{file.name} was overwritten while it was being checked"
            raise ObjectChanged("check.changed", detail, "ETag")
        if stored.crc64nvme is None and kept:
            check_size(listing, max_bytes)
            return store.checksum(location.bucket, key, file.etag, deadline)
        return stored.crc64nvme

    listed = [listing.by_name[file.name] for file in manifest.files if file.name in listing.by_name]
    found = side_by_side(checksum, listed, deadline, f"asking for the checksums of {location.uri}")
    return {file.name: known for file, known in zip(listed, found, strict=True) if known is not None}
