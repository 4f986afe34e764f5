"""From a delta's place to its verdict: a look, a second one before `corrupt`, and Chroma's own word before an act.

One wrong bit on its way from the store looks like a damaged delta. So what a look proves must be found by another one,
too, that shares nothing with it: a listing of its own, and bytes that were fetched anew.
"""

from __future__ import annotations

import time
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

from shared.check.download import Step
from shared.check.look import Look, Looking, look_at_folder, look_at_stored, tagged_healthy
from shared.inspection.probe import chroma
from shared.inspection.probe.witness import second_witness
from shared.model.deadline import UNLIMITED, Deadline
from shared.model.delta import DeltaLocation, Listing
from shared.model.errors import CouldNotCheck, StorageError
from shared.model.findings import Weight
from shared.model.manifest import Manifest
from shared.model.settings import Settings
from shared.model.verdict import Depth, Finding, Status, Verdict, abridged

if TYPE_CHECKING:  # a local check needs no boto3
    from shared.storage.store import Store

MANIFEST_PROOFS = frozenset({"manifest.checksum_differs", "manifest.size_differs", "manifest.file_missing"})
"""What needs no second witness: the producer wrote down what its files were when it closed them."""


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
        confirmed: Whether a `corrupt` verdict may have consequences: a manifest proves it, or Chroma says so, too.
    """

    verdict: Verdict
    listing: Listing
    manifest: Manifest | None
    checksums_proven: bool
    by_tag: bool
    settles_at: datetime | None = None
    confirmed: bool = False

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
    confirm: bool = False,
) -> Judgement:
    """Judges a delta in S3. Whatever cannot be checked is part of the verdict; nothing is raised for it.

    Args:
        store: Where it lies.
        location: Its bucket and prefix.
        depth: How far to go.
        settings: Settle time, arrival time, caps and time limits.
        await_arrival: Whether a delta that may still be arriving is `incomplete` without a look at it. Otherwise it is
            judged now, and only what a file still to come would cure counts as awaited instead of corrupt.
        trust_tags: Whether a `healthy` tag that belongs to exactly these objects and to this depth is an answer.
        listing: Its objects where they were listed a moment ago, which saves the request.
        step: Put around each step; by default nothing is.
        deadline: What is not done then is given up: `undetermined`, `check.timeout`.
        confirm: Whether the verdict is to have consequences. Then `corrupt` needs a manifest's proof or Chroma as a
            second witness, at any depth; where they disagree the verdict is `undetermined`.
    """
    started = time.perf_counter()
    with ExitStack() as scratch:
        looking = Looking(settings, step, deadline)
        first = look_at_stored(
            store,
            location,
            depth,
            looking,
            scratch,
            await_arrival=await_arrival,
            trust_tags=trust_tags,
            listing=listing,
        )
    if first.status is not Status.CORRUPT or not first.listing.files:
        return _judgement(first, started)
    with ExitStack() as scratch:
        second = look_at_stored(store, location, depth, Looking(settings, step, deadline, whole=confirm), scratch)
        _agree(first, second)
        confirmed = confirm and second.status is Status.CORRUPT and _confirm(second, settings, step, deadline)
    return _judgement(second, started, confirmed=confirmed)


def known_answer(store: Store, location: DeltaLocation, depth: Depth) -> Judgement | None:
    """The answer that needs no look at a delta: nothing lies there, or a tag says that it is healthy; None otherwise.

    Args:
        store: Where it lies.
        location: Its bucket and prefix.
        depth: How deep the check must have gone that the tag tells of.
    """
    look = Look(location.uri, depth)
    try:
        look.listing = store.list_delta(location)
    except StorageError:
        return None  # the look itself will tell
    look.by_tag = tagged_healthy(store, location, look.listing, depth)
    return _judgement(look, time.perf_counter()) if look.by_tag or not look.listing.files else None


def judge_folder(
    path: Path, depth: Depth, settings: Settings, *, in_place: bool = True, confirm: bool = False
) -> Judgement:
    """Judges a delta in a local folder, which is taken to be all there.

    Args:
        path: The folder.
        depth: How far to go.
        settings: Caps and time limits.
        in_place: Whether Chroma wrote it there, so that it is no copy.
        confirm: As for `judge_stored`.

    Raises:
        TargetError: There is no such folder.
    """
    started = time.perf_counter()
    look = look_at_folder(path, depth, settings, in_place=in_place)
    confirmed = confirm and look.status is Status.CORRUPT and _confirm(look, settings, nullcontext, UNLIMITED)
    return _judgement(look, started, confirmed=confirmed)


def _agree(first: Look, second: Look) -> None:
    """Leaves of two looks at a delta that seemed corrupt what both of them found; the second one holds it then."""
    if not second.listing.files:
        if second.status is Status.UNDETERMINED:
            second.listing = first.listing  # it could not be listed again
        return
    if second.listing.fingerprint != first.listing.fingerprint:
        second.observed = [Finding("check.changed", "", "other objects lay there when it was looked at a second time")]
        return
    proven = {(finding.code, finding.file) for finding in first.observed if _proves(finding)}
    found = [finding for finding in second.observed if _proves(finding)]
    agreed = [finding for finding in found if (finding.code, finding.file) in proven]
    if first.manifest != second.manifest:
        agreed = []
    second.observed = [finding for finding in second.observed if not _proves(finding) or finding in agreed]
    if second.status is Status.HEALTHY:
        codes = [", ".join(sorted({f.code for f in each})) or "nothing" for each in (_proofs(first), found)]
        detail = f"the first look found {codes[0]}, the second, at the same objects, {codes[1]}"
        second.observed.append(Finding("check.reads_differ", "", detail))


def _confirm(look: Look, settings: Settings, step: Step, deadline: Deadline) -> bool:
    """Asks for what a corrupt delta must have against it before anything is done with it, and notes the answer."""
    if any(finding.code in MANIFEST_PROOFS for finding in look.observed):
        return True
    try:
        if look.content is None:
            raise CouldNotCheck("check.storage", "its bytes are not at hand")
        deadline.check("asking Chroma")
        seconds = min(settings.probe_timeout_seconds, deadline.left / chroma.ATTEMPTS)
        folder = look.content.folder()
        with step("probe"):
            witness = second_witness(folder, look.listing, look.observed, seconds)
    except CouldNotCheck as fault:
        detail = f"nothing is done without Chroma's word, and it could not be asked: {fault.detail}"
        look.observed += [Finding(fault.code, "", fault.detail), Finding("verdict.unconfirmed", "", detail)]
        return False
    if witness.version:
        look.examination.versions["chromadb"] = witness.version
    if witness.agrees:
        look.observed.append(Finding("verdict.confirmed", "", witness.detail))
        return True
    codes = ", ".join(dict.fromkeys(finding.code for finding in _proofs(look)))
    look.observed.append(Finding("verdict.disagreement", "", f"the bytes say {codes}, but: {witness.detail}"))
    return False


def _proves(finding: Finding) -> bool:
    return finding.weight in (Weight.PROOF, Weight.PENDING)


def _proofs(look: Look) -> list[Finding]:
    return [finding for finding in look.observed if _proves(finding)]


def _judgement(look: Look, started: float, *, confirmed: bool = False) -> Judgement:
    verdict = Verdict(
        look.delta,
        look.depth,
        tuple(abridged(look.observed)),
        look.examination.collections,
        look.listing.size,
        look.listing.fingerprint,
        (time.perf_counter() - started) * 1000,
        look.examination.versions,
        look.listing.newest,
    )
    return Judgement(
        verdict, look.listing, look.manifest, look.checksums_proven, look.by_tag, look.settles_at, confirmed
    )
