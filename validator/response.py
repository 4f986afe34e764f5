"""From a verdict to what is done about it: tag the healthy, quarantine the corrupt, leave the rest alone, and tell.

Everything here may be cut short and done again: what was told is marked only afterwards, by the tag on a healthy delta
and by `told.json` in quarantine, so that nothing is left untold and little is told twice.
"""

from __future__ import annotations

from typing import Any

from shared.aws.events import DeltaCorrupt, DeltaUndetermined, DeltaValidated, send
from shared.aws.messaging import Messaging
from shared.aws.telemetry import UNKNOWN_COLLECTION, count_verdict, logger, traced
from shared.check.judgement import Judgement
from shared.model.delta import DeltaLocation
from shared.model.errors import MessagingError
from shared.model.findings import Weight
from shared.model.settings import Settings
from shared.model.verdict import Status, Verdict
from shared.quarantine.action import remove
from shared.quarantine.outbox import tell_of_quarantine
from shared.quarantine.put_back import return_swallowed
from shared.storage.store import Store
from validator.tagging import keep_verdict, untag_unjudged

COMPONENT = "validator"

_MOVED = {"check.changed", "check.gone"}  # by an upload, or by a parallel run: no fault that somebody must mend


def respond(
    store: Store, messaging: Messaging, location: DeltaLocation, judgement: Judgement, settings: Settings
) -> bool:
    """Acts on a verdict and tells of it, and of what an earlier run did and had no time to tell.

    Returns:
        Whether the delta is settled. An `incomplete` or `undetermined` one is not: it must be looked at again, unless
        that would find the same in the same bytes (`verdict.*`), and a person was told.

    Raises:
        StorageError: The quarantine could not be carried to its end; nothing is lost, and it may be tried again.
        MessagingError: A notice could not be sent; it is sent when the same is tried again.
    """
    # A late or repeated event finds nothing, or a tag: what it tells of was dealt with.
    settled = judgement.gone or judgement.by_tag or _act(store, messaging, location, judgement, settings)
    tell_of_quarantine(store, messaging, location, settings, COMPONENT)
    return settled


def _act(store: Store, messaging: Messaging, location: DeltaLocation, judgement: Judgement, settings: Settings) -> bool:
    verdict = judgement.verdict
    facts = {
        "delta": location.uri,
        "status": verdict.status.value,
        "depth": verdict.depth.value,
        "fingerprint": verdict.fingerprint,
        "duration_ms": round(verdict.duration_ms, 3),
        "findings": [finding.as_json() for finding in verdict.findings],
    }
    if verdict.findings and {finding.code for finding in verdict.findings} <= _MOVED:
        logger.info("Delta changed while it was looked at, it will be looked at again", extra=facts)
        return False
    if verdict.status is not Status.HEALTHY:
        untag_unjudged(store, location, judgement)
    if _looked_into(judgement) and return_swallowed(store, location, judgement, settings):
        return False
    if verdict.status is Status.INCOMPLETE:
        logger.info("Delta incomplete, waiting for the rest", extra=facts)
        return False
    count_verdict(COMPONENT, settings.stage, verdict, collection_of(judgement))
    if verdict.status is Status.UNDETERMINED:
        if doubtful := _stays_in_doubt(verdict):
            logger.error("Delta in doubt: a person must look at it, it stays untouched", extra=facts)
        else:
            logger.warning("Delta could not be checked, it stays untouched", extra=facts)
        return _tell_undetermined(messaging, judgement, settings) and doubtful
    if verdict.status is Status.CORRUPT:
        logger.error("Delta validation failed: corrupt", extra=facts)
        return _quarantine(store, messaging, location, judgement, settings)
    logger.info("Delta validation successful", extra=facts)
    notice = DeltaValidated.of(verdict, _batch_of(judgement))
    return keep_verdict(store, location, judgement, settings, notice, lambda told: send(messaging, settings, told))


def _looked_into(judgement: Judgement) -> bool:
    """Whether the delta has settled and was examined, so that what it lacks is known."""
    observed = judgement.verdict.observed
    return not any(finding.weight is Weight.UNCHECKED or finding.code == "arrival.settling" for finding in observed)


def collection_of(judgement: Judgement) -> str:
    """The collection that the metrics of a delta are counted under: its first one, as counted or as promised."""
    if judgement.verdict.collections:
        return judgement.verdict.collections[0].name
    if judgement.manifest is not None and judgement.manifest.collections:
        return judgement.manifest.collections[0].name
    return UNKNOWN_COLLECTION


def _batch_of(judgement: Judgement) -> str | None:
    return judgement.manifest.batch_id if judgement.manifest is not None else None


def _quarantine(
    store: Store, messaging: Messaging, location: DeltaLocation, judgement: Judgement, settings: Settings
) -> bool:
    """Returns False when something newer lies there now: it must be looked at, too."""
    with traced("quarantine", delta_id=location.delta_id):
        removal = remove(store, location, judgement, settings, limited=True)
    facts: dict[str, Any] = {"delta": location.uri, "quarantine": removal.place and removal.place.uri}
    if removal.place is None:
        logger.error("Corrupt delta was not moved", extra={**facts, "reason": removal.kept})
        send(messaging, settings, DeltaCorrupt.of(judgement.verdict, _batch_of(judgement), removal.kept))
    if removal.left:
        logger.warning("Newer files were left in place", extra={**facts, "left": list(removal.left)})
    return not removal.left


def _stays_in_doubt(verdict: Verdict) -> bool:
    """Whether the same bytes would lead to the same doubt: no part of the check was stopped by the environment."""
    codes = {finding.code for finding in verdict.findings}
    return any(code.startswith("verdict.") for code in codes) and not any(code.startswith("check.") for code in codes)


def _tell_undetermined(messaging: Messaging, judgement: Judgement, settings: Settings) -> bool:
    """Whether the notice was sent. Where not, the delta comes back, and with it this notice; so that stops nothing."""
    notice = DeltaUndetermined.of(judgement.verdict, _batch_of(judgement))
    try:
        send(messaging, settings, notice)
    except MessagingError as error:
        logger.warning("Nobody was told", extra={"delta": notice.delta, "reason": str(error)})
        return False
    return True
