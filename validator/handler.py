"""`validator.handler.handler`: the Lambda entry point. Takes an event apart, has each delta judged, and answers."""

from __future__ import annotations

import random
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any

from shared.delta import DeltaLocation
from shared.errors import CouldNotCheck, DeltaguardError
from shared.judgement import clock, judge_stored
from shared.messaging import Messaging, current_messaging
from shared.quarantine import is_quarantined
from shared.scratch import sweep_scratch
from shared.settings import Settings
from shared.storage import Store, current_store
from shared.telemetry import logger, traced
from validator.events import Message, read_event
from validator.redelivery import put_off, seconds_until
from validator.response import respond

_RESERVE_SECONDS = 10.0
_PROBES = 2  # a probe that fails is repeated once, and the second may take as long as the first


@dataclass(frozen=True, slots=True)
class _Again:
    """A delta must be looked at again: at this moment, or after a pause."""

    at: datetime | None = None


def handler(event: object, context: Any) -> dict[str, list[dict[str, str]]]:
    """Judges every delta that an event is about.

    Args:
        event: S3 events in SQS, directly, or by EventBridge.
        context: Lambda's; its remaining time bounds the work. None counts as unbounded.

    Returns:
        A partial batch response: the SQS messages that must come back, because a delta of theirs is still arriving,
        could not be checked, or could not be told of. Each is hidden until that makes sense.

    Raises:
        CouldNotCheck: The same for an event that came without a queue; Lambda then delivers it again.
        EventError: The event is none of these kinds.
        SettingsError: A setting is wrong.
    """
    settings = Settings.from_environment()
    sweep_scratch()
    messages = read_event(event)
    store, messaging = current_store(), current_messaging()
    unsettled: dict[DeltaLocation, _Again] = {}
    for location in dict.fromkeys(location for message in messages for location in message.deltas):
        again = _settle(store, messaging, location, settings, context)
        if again is not None:
            unsettled[location] = again
    failed = [message for message in messages if message.problem or not unsettled.keys().isdisjoint(message.deltas)]
    if any(message.id is None for message in failed):
        names = ", ".join(location.uri for location in unsettled)
        raise CouldNotCheck("check.storage", f"not settled, to be delivered again: {names}")
    for message in failed:
        _return(messaging, message, unsettled)
    return {"batchItemFailures": [{"itemIdentifier": str(message.id)} for message in failed]}


def _settle(
    store: Store, messaging: Messaging, location: DeltaLocation, settings: Settings, context: Any
) -> _Again | None:
    """Judges one delta and acts on it. Returns when it must be looked at again, or None when it is settled."""
    if is_quarantined(location, settings):
        return None
    seconds = _seconds_left(context)
    if seconds < 1:
        logger.warning("No time left for this delta", extra={"delta": location.uri})
        return _Again(clock())
    limited = replace(settings, probe_timeout_seconds=min(settings.probe_timeout_seconds, seconds / _PROBES))
    logger.info("Validating uploaded delta...", extra={"delta": location.uri, "depth": settings.depth.value})
    try:
        with traced("validate", delta_id=location.delta_id) as annotate:
            judgement = judge_stored(
                store, location, settings.depth, limited, await_arrival=True, trust_tags=True, step=traced
            )
            annotate("status", judgement.verdict.status.value)
            done = respond(store, messaging, location, judgement, settings)
    except DeltaguardError as error:
        logger.error("Delta not finished, it will be", extra={"delta": location.uri, "reason": str(error)})
        return _Again()
    except Exception:  # noqa: BLE001 -- a bug met by one delta must not hold up the others of its batch
        logger.exception("Delta not finished: a bug", extra={"delta": location.uri})
        return _Again()
    return None if done else _Again(judgement.settles_at)


def _return(messaging: Messaging, message: Message, unsettled: dict[DeltaLocation, _Again]) -> None:
    """Says why a message comes back, and when. One that cannot be read may go to the dead-letter queue soon."""
    if message.problem:
        logger.error("Message cannot be read", extra={"reason": message.problem})
    elif message.receipt is not None:
        moments = [unsettled[location].at for location in message.deltas if location in unsettled]
        chance = random.random()  # noqa: S311 -- nobody gains from guessing it
        put_off(messaging, message.receipt, seconds_until(moments, message.receipt.receives, clock(), chance))


def _seconds_left(context: Any) -> float:
    remaining = getattr(context, "get_remaining_time_in_millis", None)
    return float("inf") if remaining is None else remaining() / 1000 - _RESERVE_SECONDS
