"""`validator.handler.handler`: the Lambda entry point. Takes an event apart, has each delta judged, and answers."""

from __future__ import annotations

import random
from collections.abc import Collection
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from shared.aws.messaging import Messaging, current_messaging
from shared.aws.telemetry import logger, traced
from shared.check.judgement import Judgement, judge_stored, known_answer
from shared.model.deadline import UNLIMITED, Deadline, side_by_side
from shared.model.delta import DeltaLocation
from shared.model.errors import CouldNotCheck, DeltaguardError, StorageError
from shared.model.settings import Settings
from shared.quarantine.record import is_quarantined
from shared.storage.scratch import sweep_scratch
from shared.storage.store import Store, current_store
from validator.events import Message, read_event
from validator.redelivery import next_look, put_off, seconds_until
from validator.response import respond

_RESERVE_SECONDS = 10.0
_LEAST_SECONDS = 1.0
_FEW = 8  # deltas that are asked for their tags one after another
_AT_ONCE = datetime.min.replace(tzinfo=UTC)


@dataclass(frozen=True, slots=True)
class _Again:
    """A delta must be looked at again.

    Args:
        at: At this moment, by the store's clock; None: after a pause.
        newest: When its newest file arrived, where another one is awaited: then it is looked at earlier, too.
    """

    at: datetime | None = None
    newest: datetime | None = None

    @classmethod
    def after(cls, judgement: Judgement) -> _Again:
        awaited = any(finding.code == "arrival.file_awaited" for finding in judgement.verdict.observed)
        return cls(judgement.settles_at, judgement.listing.newest if awaited else None)

    def moment(self, receives: int, now: datetime, chance: float) -> datetime | None:
        if self.at is None or self.newest is None:
            return self.at
        return next_look(self.newest, self.at, receives, now, chance)


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
    deadline = _deadline(context)
    deltas = dict.fromkeys(location for message in messages for location in message.deltas)
    waiting = [location for location in deltas if not is_quarantined(location, settings)]
    if len(waiting) > _FEW:
        answered = _answered(store, messaging, waiting, settings, deadline)
        waiting = [location for location in waiting if location not in answered]
    # What takes all the time must not always be the first, and the rest never be begun.
    random.Random(getattr(context, "aws_request_id", None)).shuffle(waiting)  # noqa: S311 -- nobody gains from guessing it
    whole = deadline.left
    unsettled: dict[DeltaLocation, _Again] = {}
    for location in waiting:
        again = _settle(store, messaging, location, settings, deadline, late=deadline.left < whole / 2)
        if again is not None:
            unsettled[location] = again
    failed = [message for message in messages if message.problem or not unsettled.keys().isdisjoint(message.deltas)]
    if any(message.id is None for message in failed):
        names = ", ".join(location.uri for location in unsettled)
        raise CouldNotCheck("check.storage", f"not settled, to be delivered again: {names}")
    for message in failed:
        _return(messaging, message, unsettled, _time_of(store))
    return {"batchItemFailures": [{"itemIdentifier": str(message.id)} for message in failed]}


def _answered(
    store: Store, messaging: Messaging, deltas: Collection[DeltaLocation], settings: Settings, deadline: Deadline
) -> set[DeltaLocation]:
    """Those of many deltas that earlier rounds have settled: a few requests each, made for several deltas at once.

    A message is done when all of its deltas are settled in one round. So what was finished must not take the time that
    the rest needs, at most half of it.
    """
    enough = deadline.within(deadline.left / 2)
    answered: set[DeltaLocation] = set()

    def ask(location: DeltaLocation) -> None:
        if enough.passed:
            return
        try:
            judgement = known_answer(store, location, settings.depth)
            if judgement is not None and respond(store, messaging, location, judgement, settings):
                answered.add(location)
        except Exception as error:  # noqa: BLE001 -- it is looked at below, and a bug that stays is met there
            logger.warning("Delta not settled by its tag", extra={"delta": location.uri, "reason": str(error)})

    with suppress(CouldNotCheck):  # the time for it is over; what was not answered is looked at
        side_by_side(ask, deltas, enough, "asking for tags")
    return set(answered)


def _settle(
    store: Store, messaging: Messaging, location: DeltaLocation, settings: Settings, deadline: Deadline, *, late: bool
) -> _Again | None:
    """Judges one delta and acts on it. Returns when it must be looked at again, or None when it is settled.

    One that is begun late and not finished in time comes back at once, and nobody is told: it only had bad luck.
    """
    if deadline.left < _LEAST_SECONDS:
        logger.warning("No time left for this delta", extra={"delta": location.uri})
        return _Again(_AT_ONCE)
    logger.info("Validating uploaded delta...", extra={"delta": location.uri, "depth": settings.depth.value})
    try:
        with traced("validate", delta_id=location.delta_id) as annotate:
            judgement = judge_stored(
                store,
                location,
                settings.depth,
                settings,
                await_arrival=True,
                trust_tags=True,
                step=traced,
                deadline=deadline,
                confirm=True,
            )
            annotate("status", judgement.verdict.status.value)
            if late and deadline.passed and {found.code for found in judgement.verdict.findings} == {"check.timeout"}:
                logger.warning("Too little time was left for this delta", extra={"delta": location.uri})
                return _Again(_AT_ONCE)
            done = respond(store, messaging, location, judgement, settings)
    except DeltaguardError as error:
        logger.error("Delta not finished, it will be", extra={"delta": location.uri, "reason": str(error)})
        return _Again()
    except Exception:  # noqa: BLE001 -- a bug met by one delta must not hold up the others of its batch
        logger.exception("Delta not finished: a bug", extra={"delta": location.uri})
        return _Again()
    return None if done else _Again.after(judgement)


def _return(messaging: Messaging, message: Message, unsettled: dict[DeltaLocation, _Again], now: datetime) -> None:
    """Says why a message comes back, and when. One that cannot be read may go to the dead-letter queue soon."""
    if message.problem:
        logger.error("Message cannot be read", extra={"reason": message.problem})
    elif message.receipt is not None:
        receives = message.receipt.receives
        chance = random.random()  # noqa: S311 -- nobody gains from guessing it
        again = [unsettled[location] for location in message.deltas if location in unsettled]
        moments = [each.moment(receives, now, chance) for each in again]
        put_off(messaging, message.receipt, seconds_until(moments, receives, now, chance))


def _time_of(store: Store) -> datetime:
    """The store's time. Where it has told none, no delta can have been given a moment by it either."""
    try:
        return store.now()
    except StorageError:
        return _AT_ONCE


def _deadline(context: Any) -> Deadline:
    remaining = getattr(context, "get_remaining_time_in_millis", None)
    return UNLIMITED if remaining is None else Deadline.after(remaining() / 1000 - _RESERVE_SECONDS)
