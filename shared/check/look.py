"""One look at a delta: list, ask whether it is all there, fetch what the depth needs, examine."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

from shared.check.arrival import settling, without_awaited
from shared.check.download import RemoteContent, Step, read_head, read_whole
from shared.inspection.examination import Content, Examination, examine
from shared.model import tags as verdict_tags
from shared.model.deadline import UNLIMITED, Deadline, side_by_side
from shared.model.delta import (
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
from shared.model.errors import CouldNotCheck, ObjectChanged, StorageError
from shared.model.findings import Weight
from shared.model.manifest import MAX_MANIFEST_BYTES, Manifest, compare_checksums, compare_collections, compare_listing
from shared.model.settings import Settings
from shared.model.verdict import Depth, Finding, Status, status_of
from shared.storage.folder import FolderContent, check_count, check_size, checksum_of, list_folder, require_regular

if TYPE_CHECKING:  # a local check needs no boto3
    from shared.storage.store import Store

_BELOW_SHOWN = 3


@dataclass(frozen=True, slots=True)
class Looking:
    """How a stored delta is looked at.

    Args:
        settings: Settle time, caps and time limits.
        step: Put around each step.
        deadline: What is not done then is given up.
        whole: Whether all of Chroma's files are fetched, not only those that are ever read.
    """

    settings: Settings
    step: Step
    deadline: Deadline
    whole: bool = False


@dataclass(slots=True)
class Look:
    """What one look at a delta brought to light."""

    delta: str
    depth: Depth
    listing: Listing = field(default_factory=lambda: Listing(()))
    manifest: Manifest | None = None
    checksums: dict[str, str] = field(default_factory=dict)
    observed: list[Finding] = field(default_factory=list)
    examination: Examination = field(default_factory=Examination)
    by_tag: bool = False
    settles_at: datetime | None = None
    content: Content | None = None

    @property
    def status(self) -> Status:
        """What the findings lead to."""
        return status_of(self.observed)

    @property
    def checksums_proven(self) -> bool:
        """Whether every file of a manifest was compared by its checksum."""
        return self.manifest is not None and all(file.name in self.checksums for file in self.manifest.files)

    def read_manifest(self, read: Callable[[int], bytes]) -> None:
        """Reads the manifest, if there is one; `read` gives its first bytes.

        Raises:
            CouldNotCheck: It could not be read, or reads differently each time.
        """
        if MANIFEST not in self.listing.by_name:
            return
        data = read(MAX_MANIFEST_BYTES + 1)
        try:
            self.manifest = Manifest.parse(data)
        except ValueError as error:
            # Where the store keeps no checksum of it, one wrong bit on its way may have made it unreadable.
            again = read(MAX_MANIFEST_BYTES + 1)
            if again != data:
                detail = "two reads of the manifest gave different bytes"
                raise CouldNotCheck("check.reads_differ", detail) from error
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
        """Compares the delta with its manifest and examines its bytes.

        Raises:
            CouldNotCheck: Something could not be read.
        """
        self.content = content
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

    def weigh(self) -> None:
        """Adds what speaks against a proof: deltas below, and bytes that read healthy where only Chroma complains."""
        if self.status is not Status.CORRUPT:
            return
        self.observed += _deltas_below(self.listing)
        by_chroma = [f for f in self.observed if f.weight is Weight.PROOF and f.code.startswith("chroma.")]
        others = [finding for finding in self.observed if finding not in by_chroma]
        if by_chroma and status_of(others) is not Status.CORRUPT:
            said = "; ".join(finding.detail for finding in by_chroma)
            self.observed.append(Finding("verdict.disagreement", "", f"the bytes read healthy, but: {said}"))


def look_at_stored(
    store: Store,
    location: DeltaLocation,
    depth: Depth,
    looking: Looking,
    scratch: ExitStack,
    *,
    await_arrival: bool = False,
    trust_tags: bool = False,
    listing: Listing | None = None,
) -> Look:
    """Looks at a delta in S3. Whatever cannot be checked is among the findings; nothing is raised for it.

    Args:
        store: Where it lies.
        location: Its bucket and prefix.
        depth: How far to go.
        looking: How.
        scratch: Where its scratch folder is given back.
        await_arrival: See `shared.check.judgement.judge_stored`.
        trust_tags: See there.
        listing: See there.
    """
    look = Look(location.uri, depth)
    settings, step, deadline = looking.settings, looking.step, looking.deadline
    try:
        with step("list"):
            deadline.check(f"listing {location.uri}")
            look.listing = listing or store.list_delta(location, apart=_quarantine_beside(location, settings))
        if trust_tags and tagged_healthy(store, location, look.listing, depth):
            look.by_tag = True
            return look
        look.read_manifest(lambda length: _read_manifest(store, location, look.listing.by_name[MANIFEST], length))
        check_count(look.listing)
        if await_arrival:
            awaited, look.settles_at = settling(look.listing, look.manifest, settings, store.now())
            if awaited:
                look.observed += awaited
                return look
        if look.manifest is not None:
            most = settings.max_delta_bytes
            look.checksums = _stored_checksums(store, location, look.listing, look.manifest, most, deadline)
        content = RemoteContent(
            store,
            location,
            look.listing,
            settings.max_delta_bytes,
            scratch,
            step,
            # A checksum that the store does not keep is computed here, of every file.
            whole=looking.whole or (look.manifest is not None and not look.checksums_proven),
            in_full=depth.includes(Depth.STRUCTURE),
            deadline=deadline,
        )
        with step("inspect"):
            look.examine(content, settings.probe_timeout_seconds, step, deadline)
    except CouldNotCheck as fault:
        look.observed.append(Finding(fault.code, "", fault.detail))
    found = without_awaited(store, location, look.listing, look.manifest, look.observed, settings)
    look.observed, look.settles_at = found
    look.weigh()
    return look


def look_at_folder(path: Path, depth: Depth, settings: Settings, *, in_place: bool) -> Look:
    """Looks at a delta in a local folder.

    Args:
        path: The folder.
        depth: How far to go.
        settings: Caps and time limits.
        in_place: Whether Chroma wrote it there, so that it is no copy.

    Raises:
        TargetError: There is no such folder.
    """
    look = Look(str(path), depth)
    try:
        look.listing = list_folder(path)
        content = FolderContent(path, look.listing, settings.max_delta_bytes, in_place=in_place)
        look.read_manifest(lambda length: content.head(MANIFEST, length))
        if look.manifest is not None:
            check_size(look.listing, settings.max_delta_bytes)
            listed = [file.name for file in look.manifest.files if file.name in look.listing.by_name]
            require_regular(path, {file.name for file in look.manifest.files} - set(listed))
            look.checksums = {name: checksum_of(path / name) for name in listed}
        look.examine(content, settings.probe_timeout_seconds)
    except CouldNotCheck as fault:
        look.observed.append(Finding(fault.code, "", fault.detail))
    look.weigh()
    return look


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


def tagged_healthy(store: Store, location: DeltaLocation, listing: Listing, depth: Depth) -> bool:
    """Whether a tag says that exactly these objects are healthy, by a check of this depth at least."""
    if DATABASE not in listing.by_name:
        return False
    try:
        known = verdict_tags.healthy_depth(store.tags(location.bucket, location.key(DATABASE)), listing)
    except StorageError:
        return False  # a store without tags, or no right to read them: the check itself will answer
    return known is not None and known.includes(depth)


def _read_manifest(store: Store, location: DeltaLocation, file: DeltaFile, length: int) -> bytes:
    """A manifest, whole where it can be one, so that what came is compared with the checksum that the store keeps."""
    if file.size >= length:
        return read_head(store, location, file, length)
    return read_whole(store, location, file)


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
