"""From a verdict to what is done about it: tag the healthy, quarantine the corrupt, leave the rest alone."""

from __future__ import annotations

from datetime import UTC, datetime

from shared.delta import DATABASE, DeltaLocation
from shared.errors import StorageError
from shared.judgement import Judgement
from shared.quarantine import quarantine
from shared.settings import Settings
from shared.storage import Store
from shared.tags import healthy_depth, with_verdict
from shared.telemetry import UNKNOWN_COLLECTION, count, count_verdict, logger, traced
from shared.verdict import Status

COMPONENT = "validator"


def respond(store: Store, location: DeltaLocation, judgement: Judgement, settings: Settings) -> bool:
    """Acts on a verdict and tells of it.

    Returns:
        Whether the delta is settled. An `incomplete` or `undetermined` one is not: it must be looked at again.

    Raises:
        StorageError: The quarantine could not be carried to its end; nothing is lost, and it may be tried again.
    """
    verdict = judgement.verdict
    facts = {
        "delta": location.uri,
        "status": verdict.status.value,
        "depth": verdict.depth.value,
        "fingerprint": verdict.fingerprint,
        "duration_ms": round(verdict.duration_ms, 3),
        "findings": [finding.as_json() for finding in verdict.findings],
    }
    if verdict.status is Status.INCOMPLETE:
        logger.info("Delta incomplete, waiting for the rest", extra=facts)
        return False
    count_verdict(COMPONENT, settings.stage, verdict, collection_of(judgement))
    if verdict.status is Status.UNDETERMINED:
        logger.warning("Delta could not be checked, it stays untouched", extra=facts)
        return False
    if verdict.status is Status.CORRUPT:
        logger.error("Delta validation failed: corrupt", extra=facts)
        _quarantine(store, location, judgement, settings)
        return True
    logger.info("Delta validation successful", extra=facts)
    _tag(store, location, judgement)
    return True


def collection_of(judgement: Judgement) -> str:
    """The collection that the metrics of a delta are counted under: its first one, as counted or as promised."""
    if judgement.verdict.collections:
        return judgement.verdict.collections[0].name
    if judgement.manifest is not None and judgement.manifest.collections:
        return judgement.manifest.collections[0].name
    return UNKNOWN_COLLECTION


def _quarantine(store: Store, location: DeltaLocation, judgement: Judgement, settings: Settings) -> None:
    with traced("quarantine", delta_id=location.delta_id):
        done = quarantine(store, location, judgement, settings)
    count(COMPONENT, settings.stage, "DeltasQuarantined", collection_of(judgement))
    facts = {"delta": location.uri, "quarantine": done.place.uri, "batch_id": done.record.batch_id}
    logger.error("Delta quarantined", extra=facts)
    if done.left:
        logger.warning("Newer files were left in place", extra={**facts, "left": list(done.left)})


def _tag(store: Store, location: DeltaLocation, judgement: Judgement) -> None:
    """Tags are a convenience: a store without them, or a role without the right, changes no verdict."""
    key = location.key(DATABASE)
    try:
        tags = store.tags(location.bucket, key)
        known = healthy_depth(tags, judgement.listing)
        if known is None or not known.includes(judgement.verdict.depth):
            store.set_tags(location.bucket, key, with_verdict(tags, judgement.verdict, datetime.now(UTC)))
    except StorageError as error:
        logger.warning("Healthy delta could not be tagged", extra={"delta": location.uri, "reason": str(error)})
