"""The gate in front of compaction: a chunk goes in when all of its deltas are healthy, or not at all."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

from shared.delta import DeltaLocation
from shared.errors import DeltaguardError, StorageError, TargetError
from shared.judgement import judge_stored
from shared.quarantine import latest_record
from shared.settings import Settings
from shared.storage import Store, current_store
from shared.telemetry import count, logger
from shared.verdict import Depth, Finding, Status, Verdict

_COMPONENT = "gate"
_JOBS = 8


class ChunkRejected(DeltaguardError):
    """At least one delta of a chunk is not proven healthy, so none may be merged.

    Args:
        rejected: The verdicts of *every* such delta, in the order of the chunk.
        total: How many deltas the chunk has.
    """

    def __init__(self, rejected: tuple[Verdict, ...], total: int) -> None:
        lines = [f"chunk rejected before any merge: {len(rejected)} of {total} deltas are not healthy"]
        lines += [f"  {verdict.delta} is {verdict.status}: {verdict.reason}" for verdict in rejected]
        super().__init__("\n".join(lines))
        self.rejected = rejected
        self.total = total


def precheck(
    bucket: str,
    deltas: Iterable[str | Mapping[str, Any]],
    *,
    depth: Depth = Depth.STRUCTURE,
    store: Store | None = None,
    settings: Settings | None = None,
) -> tuple[Verdict, ...]:
    """Judges all deltas of a chunk in parallel, and lets it pass only when every one is healthy.

    A delta that carries a `healthy` tag for exactly its present objects is not read again.

    Args:
        bucket: Where the deltas lie.
        deltas: Their keys, or mappings with a `delta_key`.
        depth: How far to go where no tag answers.
        store: By default the environment's.
        settings: By default the environment's.

    Returns:
        The verdicts, all healthy, in the order given.

    Raises:
        TargetError: A delta has no key, or one that cannot be a delta's.
        ChunkRejected: One or more are corrupt, incomplete or could not be checked; it names every one of them.
    """
    settings = settings or Settings.from_environment()
    store = store or current_store()
    locations = [_location(bucket, delta) for delta in deltas]
    with ThreadPoolExecutor(_JOBS) as pool:
        verdicts = tuple(pool.map(lambda location: _judge(store, location, depth, settings), locations))
    rejected = tuple(verdict for verdict in verdicts if verdict.status is not Status.HEALTHY)
    if rejected:
        count(_COMPONENT, settings.stage, "ChunksRejected")
        error = ChunkRejected(rejected, len(verdicts))
        logger.error("Chunk rejected", extra={"rejected": [v.delta for v in rejected], "reason": str(error)})
        raise error
    return verdicts


def _judge(store: Store, location: DeltaLocation, depth: Depth, settings: Settings) -> Verdict:
    judgement = judge_stored(store, location, depth, settings, trust_tags=True)
    verdict = judgement.verdict
    if not judgement.gone:
        return verdict
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


def _location(bucket: str, delta: str | Mapping[str, Any]) -> DeltaLocation:
    key = delta if isinstance(delta, str) else delta.get("delta_key")
    if not isinstance(key, str) or not key:
        raise TargetError(f"a delta of the chunk has no delta_key: {delta!r}"[:200])
    return DeltaLocation.parse(f"s3://{bucket}/{key}")
