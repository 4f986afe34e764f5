"""`validator.handler.handler`: the Lambda entry point. Takes an event apart, has each delta judged, and answers."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from shared.delta import DeltaLocation
from shared.errors import CouldNotCheck, StorageError
from shared.judgement import judge_stored
from shared.quarantine import is_quarantined
from shared.scratch import sweep_scratch
from shared.settings import Settings
from shared.storage import Store, current_store
from shared.telemetry import logger, traced
from validator.events import Message, read_event
from validator.response import respond

_RESERVE_SECONDS = 10.0
_PROBES = 2  # a probe that fails is repeated once, and the second may take as long as the first


def handler(event: object, context: Any) -> dict[str, list[dict[str, str]]]:
    """Judges every delta that an event is about.

    Args:
        event: S3 events in SQS, directly, or by EventBridge.
        context: Lambda's; its remaining time bounds the work. None counts as unbounded.

    Returns:
        A partial batch response: the SQS messages that must come back, because a delta of theirs is still arriving or
        could not be checked.

    Raises:
        CouldNotCheck: The same for an event that came without a queue; Lambda then delivers it again.
        EventError: The event is none of these kinds.
        SettingsError: A setting is wrong.
    """
    settings = Settings.from_environment()
    sweep_scratch()
    messages = read_event(event)
    for message in messages:
        if message.problem:
            logger.error("Message cannot be read", extra={"reason": message.problem})
    store = current_store()
    settled = {location: _settle(store, location, settings, context) for location in _locations(messages)}
    unsettled = [m for m in messages if m.problem or not all(settled[location] for location in m.deltas)]
    if any(message.id is None for message in unsettled):
        names = ", ".join(location.uri for location, done in settled.items() if not done)
        raise CouldNotCheck("check.storage", f"not settled, to be delivered again: {names}")
    return {"batchItemFailures": [{"itemIdentifier": str(message.id)} for message in unsettled]}


def _locations(messages: list[Message]) -> list[DeltaLocation]:
    """Each delta once, however many messages and records are about it."""
    return list(dict.fromkeys(location for message in messages for location in message.deltas))


def _settle(store: Store, location: DeltaLocation, settings: Settings, context: Any) -> bool:
    """Judges one delta and acts on it. Returns False when it must be looked at again."""
    if is_quarantined(location, settings):
        return True
    seconds = _seconds_left(context)
    if seconds < 1:
        logger.warning("No time left for this delta", extra={"delta": location.uri})
        return False
    limited = replace(settings, probe_timeout_seconds=min(settings.probe_timeout_seconds, seconds / _PROBES))
    logger.info("Validating uploaded delta...", extra={"delta": location.uri, "depth": settings.depth.value})
    try:
        with traced("validate", delta_id=location.delta_id):
            judgement = judge_stored(store, location, settings.depth, limited, await_arrival=True, trust_tags=True)
        if judgement.gone or judgement.by_tag:  # a late or repeated event: what it tells of was dealt with
            return True
        return respond(store, location, judgement, settings)
    except StorageError as error:
        logger.error("Quarantine not finished, it will be", extra={"delta": location.uri, "reason": str(error)})
        return False


def _seconds_left(context: Any) -> float:
    remaining = getattr(context, "get_remaining_time_in_millis", None)
    return float("inf") if remaining is None else remaining() / 1000 - _RESERVE_SECONDS
