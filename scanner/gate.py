"""The gate in front of compaction: a chunk goes in when all of its deltas are healthy, or not at all."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from typing import Any

from scanner.advice import advice_on
from shared.aws import events
from shared.aws.messaging import current_messaging
from shared.aws.telemetry import count, logger
from shared.check.judgement import judge_stored
from shared.model.chunk import Chunk, ChunkDelta
from shared.model.delta import DeltaLocation, Listing, printable
from shared.model.errors import DeltaguardError, MessagingError, StorageError
from shared.model.settings import Settings
from shared.model.verdict import Depth, Finding, Status, Verdict
from shared.quarantine.record import latest_record
from shared.storage.store import Store, current_store

JOBS = 16
"""Deltas judged at once, when nobody says otherwise: with tags, a chunk of 100 then takes 13 round trips in a row."""

_COMPONENT = "gate"


class ChunkRejected(DeltaguardError):
    """At least one delta of a chunk is not proven healthy, so none may be merged.

    The message names every such delta, why it is refused and what to do about it. `as_json` has the same for programs.

    Args:
        rejected: The verdicts of *every* such delta, in the order of the chunk.
        total: How many deltas the chunk has.
    """

    def __init__(self, rejected: tuple[Verdict, ...], total: int) -> None:
        self.rejected = rejected
        self.advice = tuple(advice_on(verdict) for verdict in rejected)
        self.total = total
        lines = [f"chunk rejected before any merge: {len(rejected)} of {total} deltas are not healthy"]
        for verdict, advice in zip(rejected, self.advice, strict=True):
            lines.append(f"  {printable(verdict.delta, 1200)} is {verdict.status}: {verdict.reason}")
            lines += [f"    {advice.action}: {advice.text}"] if advice else []
        super().__init__("\n".join(lines))

    def as_json(self) -> dict[str, Any]:
        """The refusal as programs read it: each rejected delta as in ndjson, with its `advice`."""
        deltas = [
            {**verdict.as_json(), "advice": advice and advice.as_json()}
            for verdict, advice in zip(self.rejected, self.advice, strict=True)
        ]
        return {"rejected": deltas, "total": self.total}


def precheck(
    bucket: str,
    deltas: Iterable[str | Mapping[str, Any]] | Chunk,
    *,
    depth: Depth = Depth.STRUCTURE,
    store: Store | None = None,
    settings: Settings | None = None,
    jobs: int = JOBS,
) -> tuple[Verdict, ...]:
    """Judges all deltas of a chunk in parallel, and lets it pass only when every one is healthy.

    A delta that carries a `healthy` tag for exactly its present objects is not read again: two requests tell, or hardly
    more than one where many lie side by side. One that is read must hold the collection and the number of embeddings
    that the chunk says (see `chunk.content_differs`).

    Args:
        bucket: Where the deltas lie.
        deltas: A chunk, or its deltas: mappings as `shared.model.chunk.ChunkDelta` has them, or keys alone.
        depth: How far to go where no tag answers.
        store: By default the environment's.
        settings: By default the environment's.
        jobs: How many deltas are judged at once.

    Returns:
        The verdicts, all healthy, in the order given.

    Raises:
        TargetError: This is not a chunk: a key that cannot be a delta's, a delta twice, a field that there is not.
        ChunkRejected: One or more are corrupt, incomplete or could not be checked; it names every one of them.
        SettingsError: A setting has an impossible value.
        StorageError: The environment does not say enough to reach S3.
    """
    settings = settings or Settings.from_environment()
    chunk = _chunk(deltas)
    verdicts = judge_chunk(bucket, chunk, depth=depth, store=store, settings=settings, jobs=jobs)
    rejected = tuple(verdict for verdict in verdicts if verdict.status is not Status.HEALTHY)
    if rejected:
        error = ChunkRejected(rejected, len(verdicts))
        _tell(error, chunk, settings)
        raise error
    return verdicts


def judge_chunk(
    bucket: str,
    chunk: Chunk,
    *,
    depth: Depth = Depth.STRUCTURE,
    store: Store | None = None,
    settings: Settings,
    jobs: int = JOBS,
) -> tuple[Verdict, ...]:
    """The verdicts that `precheck` goes by, on every delta of a chunk in its order; nobody is told of them.

    Raises:
        TargetError: The bucket's name cannot be one.
        StorageError: The environment does not say enough to reach S3.
    """
    store = store or current_store()
    places = chunk.locations(bucket)
    listings: Mapping[DeltaLocation, Listing] = {}
    with suppress(StorageError):  # the listing of each by itself will tell
        listings = store.list_deltas(places)

    def judge(place: DeltaLocation, said: ChunkDelta) -> Verdict:
        return _judge(store, place, listings.get(place), said, depth, settings)

    with ThreadPoolExecutor(jobs, thread_name_prefix="gate") as pool:
        return tuple(pool.map(judge, places, chunk.deltas))


def _tell(error: ChunkRejected, chunk: Chunk, settings: Settings) -> None:
    """Whoever wants to know of a refused chunk is told here, and nowhere else. The refusal stands without, too."""
    count(_COMPONENT, settings.stage, "ChunksRejected")
    logger.error("Chunk rejected", extra={"reason": str(error), **error.as_json()})
    notice = events.ChunkRejected.of(error.rejected, error.total, chunk.batch_id, chunk.chunk_index)
    try:
        events.send(current_messaging(), settings, notice)
    except MessagingError as fault:
        logger.warning("Nobody was told of the rejected chunk", extra={"reason": str(fault)})


def _judge(
    store: Store, location: DeltaLocation, listing: Listing | None, said: ChunkDelta, depth: Depth, settings: Settings
) -> Verdict:
    judgement = judge_stored(store, location, depth, settings, trust_tags=True, listing=listing)
    verdict = judgement.verdict
    if judgement.gone:
        return _held(store, location, verdict, settings)
    # By its tag, or without a look at its rows, nobody knows how much a delta holds.
    if verdict.status is Status.HEALTHY and depth.includes(Depth.STRUCTURE) and not judgement.by_tag:
        differs = tuple(Finding("chunk.content_differs", "", text) for text in _differences(said, verdict))
        return replace(verdict, observed=verdict.observed + differs)
    return verdict


def _differences(said: ChunkDelta, verdict: Verdict) -> list[str]:
    """What the chunk says of a delta and its rows do not, in words."""
    held = {collection.name: collection.count for collection in verdict.collections}
    holds = ", ".join(f"{count} in {printable(name, 60)!r}" for name, count in list(held.items())[:5]) or "nothing"
    if said.collection is None:
        counted, where = sum(held.values()), "in all"
    else:
        counted, where = held.get(said.collection, 0), f"in {printable(said.collection, 60)!r}"
        if said.collection not in held and said.embedding_count != 0:
            return [f"the chunk says collection {printable(said.collection, 60)!r}, the delta holds {holds}"]
    if said.embedding_count not in (None, counted):
        return [f"the chunk says {said.embedding_count} embeddings {where}, the delta holds {holds}"]
    return []


def _held(store: Store, location: DeltaLocation, verdict: Verdict, settings: Settings) -> Verdict:
    """The verdict on a delta that is not there, with where it is when it was quarantined."""
    try:
        held = latest_record(store, location, settings)
    except StorageError as error:
        logger.warning("Quarantine cannot be read", extra={"delta": location.uri, "reason": str(error)})
        return verdict
    if held is None:
        return verdict
    place, record = held
    codes = ", ".join(dict.fromkeys(finding["code"] for finding in record.verdict["findings"]))
    detail = f"quarantined at {record.quarantined_at:%Y-%m-%dT%H:%M:%SZ} in {place.uri} for {codes}"
    return replace(verdict, observed=(Finding("quarantine.held", "", detail),))


def _chunk(deltas: Iterable[str | Mapping[str, Any]] | Chunk) -> Chunk:
    if isinstance(deltas, Chunk):
        return deltas
    return Chunk.of(
        [{"delta_key": d} if isinstance(d, str) else dict(d) if isinstance(d, Mapping) else d for d in deltas]
    )
