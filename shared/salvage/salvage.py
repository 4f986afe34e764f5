"""Salvage: a healthy delta built anew from what a corrupt one still proves. The corrupt one is never touched."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from itertools import zip_longest
from pathlib import Path
from typing import Any

import numpy as np

from shared.check.judgement import Judgement, judge_folder
from shared.inspection.chroma.contents import Records, StoredCollection, opened_delta
from shared.inspection.hnsw.vectors import through_cosine
from shared.inspection.recovery.evidence import Evidence, NothingProven, gathered
from shared.model.delta import DATABASE, JOURNALS, MANIFEST, DeltaLocation, is_chroma_file
from shared.model.errors import CouldNotCheck, faults_explained
from shared.model.settings import Settings
from shared.model.verdict import Depth, Status
from shared.salvage.rebuild import rebuild
from shared.storage.folder import check_size, list_folder
from shared.storage.scratch import copy_file, scratch_folder
from shared.storage.store import Store

_BATCH = 500
_MANIFEST_PROOFS = ("manifest.checksum_differs", "manifest.size_differs", "manifest.file_missing")


@dataclass(frozen=True, slots=True)
class SalvagedCollection:
    """What was used of one collection, and what of it is lost.

    Args:
        name: Its name.
        count: Embeddings that are proven.
        from_queue: How many of their vectors come from the queue.
        from_index: How many from the index.
        rows_from: `rows` or `queue`: where documents and metadata come from.
        remarks: What had to be worked out anew.
        lost: Ids that are known, of which the rest is not proven.
        why: Why something is lost; empty when nothing is.
    """

    name: str
    count: int
    from_queue: int
    from_index: int
    rows_from: str
    remarks: tuple[str, ...]
    lost: tuple[str, ...]
    why: str


@dataclass(frozen=True, slots=True)
class Salvage:
    """How a salvage ended.

    Args:
        delta: The corrupt delta.
        verdict: Its status, and why.
        outcome: `whole`, `partial`, `refused`, or `healthy` when there was nothing to salvage.
        reason: Why it was refused, or not whole.
        collections: What is proven of each collection.
        chromadb: The version that wrote the new delta; empty when none was written.
        batch_id: The batch that it came from, if its manifest says so.
    """

    delta: str
    verdict: str
    outcome: str
    reason: str = ""
    collections: tuple[SalvagedCollection, ...] = ()
    chromadb: str = ""
    batch_id: str | None = None

    @property
    def written(self) -> bool:
        """Whether there is a new delta."""
        return self.outcome in ("whole", "partial")

    def as_json(self) -> dict[str, Any]:
        """The fields by name."""
        return asdict(self)


def salvage_folder(source: Path, target: Path, settings: Settings, *, partial: bool = False) -> Salvage:
    """Builds a healthy delta in a new folder from what another one proves, if that is all of it.

    The new delta is proven before this returns: by the same inspection, by Chroma (depth `open`), and its content by
    comparison with what was read.

    Args:
        source: The corrupt delta. It is copied first and then left alone.
        target: The new folder, which may not exist.
        settings: Caps and time limits.
        partial: Whether to write what is proven even when something is lost.

    Raises:
        CouldNotCheck: It could not be done for a reason outside the bytes. There is no target then.
    """
    with scratch_folder() as scratch:
        copy = scratch / "delta"
        _copy(source, copy, settings)
        return salvage_copy(copy, str(source), target, settings, partial=partial)


def salvage_stored(
    store: Store, location: DeltaLocation, target: Path, settings: Settings, *, partial: bool = False
) -> Salvage:
    """The same for a delta in S3; see `salvage_folder`."""
    with scratch_folder() as scratch:
        copy = scratch / "delta"
        copy.mkdir()
        listing = store.list_delta(location)
        check_size(listing, settings.max_delta_bytes)
        for file in listing.files:
            if is_chroma_file(file.name) or file.name == MANIFEST:
                (copy / file.name).parent.mkdir(exist_ok=True)
                store.download(location, file, copy / file.name)
        return salvage_copy(copy, location.uri, target, settings, partial=partial)


def salvage_copy(copy: Path, name: str, target: Path, settings: Settings, *, partial: bool) -> Salvage:
    """The same for a copy that nobody else knows, which may be changed.

    Args:
        copy: The copy.
        name: What the delta is called in the report.
        target: The new folder, which may not exist.
        settings: Caps and time limits.
        partial: Whether to write what is proven even when something is lost.
    """
    judgement = judge_folder(copy, Depth.STRUCTURE, settings, in_place=False)
    verdict = f"{judgement.verdict.status}: {judgement.verdict.reason}"
    if judgement.verdict.status is Status.HEALTHY:
        return Salvage(name, "healthy", "healthy", "nothing is wrong with it, so there is nothing to salvage")
    if judgement.verdict.status is not Status.CORRUPT:
        finding = judgement.verdict.findings[0]
        raise CouldNotCheck(finding.code, f"{name}: {finding.detail}")
    try:
        damaged = _without_foreign_journals(copy, judgement)
        with gathered(copy, damaged) as evidence:
            used = tuple(map(_used, evidence))
            reason = "; ".join(f"{part.name}: {part.why}" for part in used if part.why)
            if not reason:
                _require_promised(judgement, used)
            if reason and not (partial and any(part.count for part in used)):
                return Salvage(name, verdict, "refused", reason, used)
            with _appearing(target) as folder:
                version = rebuild(folder, [part.stored for part in evidence], _batches(evidence))
                _prove(folder, evidence, settings)
            batch_id = judgement.manifest.batch_id if judgement.manifest else None
            return Salvage(name, verdict, "partial" if reason else "whole", reason, used, version, batch_id)
    except NothingProven as error:
        return Salvage(name, verdict, "refused", str(error))


def _without_foreign_journals(copy: Path, judgement: Judgement) -> frozenset[str]:
    """Removes journals that do not belong to the database, and returns which files are not what they were.

    A journal says that the copy was taken during a write. Only a manifest can tell that it was not: when the database
    is, bit for bit, the one that was closed.

    Raises:
        NothingProven: There is a journal, and no such proof.
    """
    observed = judgement.verdict.observed
    damaged = frozenset(finding.file for finding in observed if finding.code in _MANIFEST_PROOFS)
    beside = [finding.file for finding in observed if finding.code == "layout.journal_present"]
    listed = judgement.manifest is not None and DATABASE in {file.name for file in judgement.manifest.files}
    if DATABASE not in judgement.listing.by_name:
        raise NothingProven(f"{DATABASE} is not there")
    if beside and not (listed and judgement.checksums_proven and DATABASE not in damaged):
        raise NothingProven(f"{', '.join(beside)} lies beside the database, and no manifest proves that it is foreign")
    for name in JOURNALS:
        (copy / name).unlink(missing_ok=True)
    return damaged


def _require_promised(judgement: Judgement, used: Sequence[SalvagedCollection]) -> None:
    """Raises when a manifest promises other collections or counts than are proven."""
    if judgement.manifest is None:
        return
    promised = {collection.name: collection.count for collection in judgement.manifest.collections}
    proven = {part.name: part.count for part in used}
    if promised != proven:
        raise NothingProven(f"the manifest promises {promised}, but {proven} are proven")


def _used(evidence: Evidence) -> SalvagedCollection:
    placement = evidence.placement
    return SalvagedCollection(
        evidence.stored.name,
        evidence.stored.count,
        int(np.count_nonzero(placement.queued)),
        int(np.count_nonzero(placement.labels >= 0)),
        evidence.rows_from,
        evidence.remarks,
        evidence.lost,
        evidence.why,
    )


def _batches(evidence: Sequence[Evidence]) -> Iterator[tuple[str, Records]]:
    for part in evidence:
        for records in part.records(_BATCH):
            yield part.stored.name, records


def _prove(folder: Path, evidence: Sequence[Evidence], settings: Settings) -> None:
    """Raises `CouldNotCheck` unless the new delta is healthy, to Chroma too, and holds exactly what was read."""
    verdict = judge_folder(folder, Depth.OPEN, settings).verdict
    if verdict.status is not Status.HEALTHY:
        raise CouldNotCheck("check.probe_failed", f"the new delta is {verdict.status}: {verdict.reason}")
    with opened_delta(folder) as delta:
        # Chroma completes the texts of the settings on its own, so what they say is compared.
        written = {collection.name: _settings(collection) for collection in delta.collections}
        expected = {part.stored.name: _settings(part.stored) for part in evidence}
        if written != expected:
            raise _differs(f"collections {written} instead of {expected}")
        for part in evidence:
            for read, back in zip_longest(part.records(_BATCH), delta.records(part.stored.name, _BATCH)):
                if read is None or back is None or not _same(read, back, cosine=part.stored.cosine):
                    raise _differs(f"the embeddings of {part.stored.name!r}")


def _same(read: Records, back: Records, *, cosine: bool) -> bool:
    """Whether the new delta gives back what was put into it."""
    vectors = through_cosine(read.vectors) if cosine else read.vectors
    return back.vectors.tobytes() == vectors.tobytes() and all(
        getattr(back, field) == getattr(read, field) for field in ("ids", "documents", "metadatas", "uris")
    )


def _settings(collection: StoredCollection) -> tuple[object, ...]:
    return collection.dimension, collection.count, collection.metadata, collection.hnsw, collection.cosine


def _differs(what: str) -> CouldNotCheck:
    return CouldNotCheck("check.probe_failed", f"the new delta holds something else than was read: {what}")


def _copy(source: Path, copy: Path, settings: Settings) -> None:
    listing = list_folder(source)
    check_size(listing, settings.max_delta_bytes)
    copy.mkdir()
    with faults_explained(f"copying {source}"):
        for file in listing.files:
            if is_chroma_file(file.name) or file.name == MANIFEST:
                (copy / file.name).parent.mkdir(exist_ok=True)
                copy_file(source / file.name, copy / file.name)


@contextmanager
def _appearing(target: Path) -> Iterator[Path]:
    """An empty folder that becomes the target when the block ends well, and vanishes otherwise."""
    folder = target.with_name(f".{target.name}.salvaging")
    with ExitStack() as cleanup:
        with faults_explained(f"making {folder}"):
            folder.mkdir(parents=True)
        cleanup.callback(shutil.rmtree, folder, ignore_errors=True)
        yield folder
        with faults_explained(f"making {target}"):
            folder.rename(target)
        cleanup.pop_all()  # what has that name from now on is another salvage's
