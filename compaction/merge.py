"""One merge, all or nothing: gate, check out, settle, write, compare, upload. Chunks, groups and snapshots alike."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from compaction.comparison import Choice, Comparison
from compaction.compatibility import SettledCollection, Settlement
from compaction.download import Checkout
from compaction.errors import MergeOvertaken, failing_as
from compaction.guarded_store import GuardedStore
from compaction.receipt import Claim, Found, Receipt, SourceRecord, read_receipt
from compaction.writer import CollectionPlan, opened_target
from scanner.gate import ChunkRejected, precheck
from shared.aws.telemetry import count, logger, traced
from shared.inspection.chroma.contents import opened_delta
from shared.inspection.probe import chroma
from shared.model.chunk import Chunk, ChunkDelta
from shared.model.delta import MANIFEST, DeltaLocation
from shared.model.errors import ObjectChanged, TargetError
from shared.model.settings import Settings
from shared.model.verdict import Verdict
from shared.storage.scratch import scratch_folder
from shared.storage.store import Store
from shared.upload import place_delta

COMPONENT = "compaction"
_ROWS = 250  # in one upsert; Chroma turns every number of them into an object of Python, 12 MB for these
_DOWNLOADS = 4


@dataclass(frozen=True, slots=True)
class Source:
    """One delta that goes in.

    Args:
        location: Where it lies.
        said: What its caller says of it to the gate: of one collection, where several are in it.
        collections: All collections that its caller says it holds; None where the caller does not say.
    """

    location: DeltaLocation
    said: ChunkDelta
    collections: tuple[str, ...] | None = None


@dataclass(frozen=True, slots=True)
class Plan:
    """What is to be merged.

    Args:
        sources: The deltas, all in one bucket, in order: later ones win.
        batch_id: The batch they belong to.
        chunk_index: The chunk that they are, in that batch; None when they are intermediates.
        metadata: What is written into the metadata of each collection.
        orders: Another order for the collections named here.
        indexed: Whether the index is built (see `compaction.writer`).
    """

    sources: tuple[Source, ...]
    batch_id: str
    chunk_index: int | None
    metadata: Mapping[str, Any]
    orders: Mapping[str, tuple[DeltaLocation, ...]] = field(default_factory=dict)
    indexed: bool = False

    @property
    def chunk(self) -> Chunk:
        """The same as the gate is told it."""
        deltas = tuple(source.said for source in self.sources)
        return Chunk(batch_id=self.batch_id, chunk_index=self.chunk_index, deltas=deltas)

    def order_of(self, collection: str) -> tuple[DeltaLocation, ...]:
        """The deltas in the order in which they go into a collection."""
        return self.orders.get(collection) or tuple(source.location for source in self.sources)


@dataclass(frozen=True, slots=True)
class Merged:
    """What a merge came to: where it lies, the fingerprint of its objects, and how many embeddings were read."""

    location: DeltaLocation
    fingerprint: str
    embeddings: int


def merge(
    store: Store,
    plan: Plan,
    destination: DeltaLocation,
    settings: Settings,
    *,
    earlier: Sequence[DeltaLocation] = (),
    check: Callable[[], None] = lambda: None,
) -> Merged:
    """Merges deltas into one, which is at `destination` afterwards, or else nothing is that looks finished.

    A merge that finished earlier is recognized by its receipt and not done again. The rest of one that did not finish,
    or what was made of other deltas, is replaced once the new one is complete on this disk. Of several attempts at the
    same time, one finishes, and the others fail or find its result.

    Args:
        store: Where everything lies.
        plan: What to merge.
        destination: Where to.
        settings: Caps and time limits.
        earlier: Other places where the same merge may have been finished.
        check: Called before each write; it raises when nothing may be written any more.

    Returns:
        Where it lies: at `destination`, or at one of `earlier`.

    Raises:
        ChunkRejected: Not every delta is healthy; nothing was read of the others' content.
        MergeFailed: A delta could not be merged.
        MergeOvertaken: Another attempt at the same writes there, too, or was faster.
        UploadFailed, StorageError, CouldNotCheck: What was merged did not arrive.
    """
    try:
        with traced("merge", batch_id=plan.batch_id), scratch_folder() as scratch:
            return _merge(store, plan, (destination, *earlier), settings, scratch, check)
    except ChunkRejected:
        raise  # the gate has counted it, and told
    except BaseException as error:
        count(COMPONENT, settings.stage, "MergesFailed")
        logger.error(
            "Merge failed", extra={"destination": destination.uri, "reason": f"{type(error).__name__}: {error}"}
        )
        raise


def _merge(
    store: Store,
    plan: Plan,
    places: Sequence[DeltaLocation],
    settings: Settings,
    scratch: Path,
    check: Callable[[], None],
) -> Merged:
    destination = places[0]
    checkout = Checkout(store, scratch / "deltas")
    with traced("gate"):
        verdicts = precheck(destination.bucket, plan.chunk, store=checkout, settings=settings)
    receipt = _receipt(plan, verdicts)
    for place in places:
        finished = _finished(store, place, read_receipt(store, place), receipt)
        if finished is not None:
            logger.info("Merged already, nothing to do", extra={"destination": place.uri})
            return finished
    folders = _checked_out(checkout, plan.sources, verdicts)
    collections = _settled(plan, folders)
    directory = scratch / "merged"
    chroma.warm_up()
    with traced("write"), failing_as(destination.uri):
        choice = _written(plan, folders, collections, directory)
    with traced("compare"):
        _compare(plan, folders, collections, choice, directory, settings)
    found = read_receipt(store, destination)
    finished = _finished(store, destination, found, receipt)
    if finished is not None:
        logger.info("Merged by another attempt meanwhile", extra={"destination": destination.uri})
        return finished
    check()
    claim = Claim(store, destination, found)
    try:
        _make_room(store, destination, claim)
        fingerprint = _uploaded(GuardedStore(store, check, claim.check), plan, destination, directory, settings)
        check()
        made = {"fingerprint": fingerprint, "embeddings": choice.read}
        claim.settle(receipt.model_copy(update=made))
    except BaseException:
        claim.withdraw()
        raise
    logger.info(
        "Merged", extra={"destination": destination.uri, "deltas": len(plan.sources), "embeddings": choice.read}
    )
    return Merged(destination, fingerprint, choice.read)


def _uploaded(store: Store, plan: Plan, destination: DeltaLocation, directory: Path, settings: Settings) -> str:
    """Uploads what was merged. Returns the fingerprint of exactly that, whatever else may lie there."""
    try:
        return place_delta(directory, destination, batch_id=plan.batch_id, store=store, settings=settings)
    except TargetError as error:
        reason = f"another attempt at it writes there, too; run this one again ({error})"
        raise MergeOvertaken(destination.uri, reason) from error


def _receipt(plan: Plan, verdicts: Sequence[Verdict]) -> Receipt:
    """What goes in; what comes out is not known yet."""
    sources = tuple(
        SourceRecord(delta=source.location.uri, fingerprint=verdict.fingerprint, collections=source.collections)
        for source, verdict in zip(plan.sources, verdicts, strict=True)
    )
    orders = {name: tuple(location.uri for location in order) for name, order in plan.orders.items()}
    return Receipt(sources=sources, orders=orders)


def _finished(store: Store, destination: DeltaLocation, found: Found, wanted: Receipt) -> Merged | None:
    """What an earlier call made of exactly these deltas, if it is still there as it was."""
    receipt = found.receipt
    if receipt is None or (receipt.sources, receipt.orders) != (wanted.sources, wanted.orders):
        return None
    if store.list_delta(destination).fingerprint != receipt.fingerprint:
        return None
    return Merged(destination, receipt.fingerprint, receipt.embeddings)


def _checked_out(
    checkout: Checkout, sources: Sequence[Source], verdicts: Sequence[Verdict]
) -> dict[DeltaLocation, Path]:
    def check_out(source: Source, verdict: Verdict) -> Path:
        with failing_as(source.location.uri):
            return checkout.checked_out(source.location, verdict.fingerprint)

    with ThreadPoolExecutor(_DOWNLOADS) as pool:
        waiting = [pool.submit(check_out, *pair) for pair in zip(sources, verdicts, strict=True)]
        try:
            folders = [folder.result() for folder in waiting]
        finally:
            pool.shutdown(cancel_futures=True)
    return {source.location: folder for source, folder in zip(sources, folders, strict=True)}


def _settled(plan: Plan, folders: Mapping[DeltaLocation, Path]) -> list[SettledCollection]:
    """The collections of the result, settled before anything is written: each delta must fit the ones before."""
    settlement = Settlement()
    for source in plan.sources:
        with failing_as(source.location.uri), opened_delta(folders[source.location]) as delta:
            settlement.add(source.location.uri, delta.collections, source.collections, delta.elsewhere)
    return settlement.collections


def _written(
    plan: Plan, folders: Mapping[DeltaLocation, Path], collections: Sequence[SettledCollection], directory: Path
) -> Choice:
    """Writes all embeddings into a new Chroma directory, which is closed afterwards. Returns which to compare."""
    choice = Choice(sum(len(collection.deltas) for collection in collections))
    plans = [CollectionPlan(found.name, found.hnsw, {**found.metadata, **plan.metadata}) for found in collections]
    with opened_target(directory, plans, indexed=plan.indexed) as target:
        for collection in collections:
            for location in _order(plan, collection):
                with failing_as(location.uri), opened_delta(folders[location]) as delta:
                    for records in delta.records(collection.name, _ROWS, as_given=True):
                        target.upsert(collection.name, records)
                        choice.see(location, collection.name, records.ids)
    return choice


def _order(plan: Plan, collection: SettledCollection) -> list[DeltaLocation]:
    """The deltas that hold a collection, in the order in which they go into it."""
    return [location for location in plan.order_of(collection.name) if location.uri in collection.deltas]


def _compare(
    plan: Plan,
    folders: Mapping[DeltaLocation, Path],
    collections: Sequence[SettledCollection],
    choice: Choice,
    directory: Path,
    settings: Settings,
) -> None:
    """Has Chroma read what was written, and what it was written from, and compares the two."""
    orders = {collection.name: _order(plan, collection) for collection in collections}
    cosine = {collection.name for collection in collections if collection.hnsw.get("space") == "cosine"}
    Comparison(folders, orders, cosine, choice, settings.probe_timeout_seconds).require_same(directory)


def _make_room(store: Store, destination: DeltaLocation, claim: Claim) -> None:
    """Removes what an earlier attempt left, its manifest first, so that nothing looks finished meanwhile.

    The claim is looked at after the listing: what was listed is then of attempts that can no longer finish.

    Raises:
        MergeOvertaken: Another attempt is writing there.
        StorageError: A request failed.
    """
    listing = store.list_delta(destination)
    if not listing.files:
        return
    claim.check()
    logger.info("Replacing what an earlier attempt left", extra={"destination": destination.uri})
    for file in sorted(listing.files, key=lambda file: file.name != MANIFEST):
        try:
            store.delete(destination.bucket, destination.key(file.name), file.etag)
        except ObjectChanged as error:
            raise MergeOvertaken(destination.uri, "another attempt is writing to it right now; run it again") from error
