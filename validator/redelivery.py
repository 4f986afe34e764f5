"""When a message comes back that could not be finished: as late as makes sense, so that few of its receives are used.

A queue gives a message up to its dead-letter queue after `maxReceiveCount` receives, whatever they were for. So a delta
that is still arriving comes back when it has settled, and one that could not be checked after a pause that doubles.
One that lacks a file is looked at before its arrival time is over, too: S3 tells of databases and manifests only.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from datetime import datetime, timedelta

from shared.aws.messaging import MOST_HIDDEN_SECONDS, Messaging
from shared.aws.telemetry import logger
from shared.model.errors import MessagingError
from validator.events import Receipt

FIRST_PAUSE_SECONDS = 30.0
MOST_PAUSE_SECONDS = 6 * 3600.0

_MARGIN_SECONDS = 900
"""Lambda's longest run: the 12 hours of SQS count from the receive, not from the end of the work."""


def pause_after(receives: int, chance: float) -> float:
    """Seconds to wait after so many receives (from 1): 30, 60, 120, ... up to 6 hours, of which half is by chance.

    Args:
        receives: How often the message was received.
        chance: A random number from 0 to 1, so that what failed together does not come back together.
    """
    doubled = FIRST_PAUSE_SECONDS * 2.0 ** min(receives - 1, 30)
    return min(doubled, MOST_PAUSE_SECONDS) * (0.5 + 0.5 * chance)


def seconds_until(moments: Iterable[datetime | None], receives: int, now: datetime, chance: float) -> int:
    """How long a message should stay hidden: until the soonest moment that one of its deltas needs.

    Args:
        moments: For each delta that is not finished, when to look again; None where only a pause helps.
        receives: How often the message was received.
        now: The present.
        chance: See `pause_after`.

    Returns:
        Whole seconds, rounded up, from 1 to what SQS allows.
    """
    pause = pause_after(receives, chance)
    soonest = min((pause if moment is None else (moment - now).total_seconds() for moment in moments), default=pause)
    return max(1, min(math.ceil(soonest), MOST_HIDDEN_SECONDS - _MARGIN_SECONDS))


def next_look(newest: datetime, over_at: datetime, receives: int, now: datetime, chance: float) -> datetime:
    """When to look again at a delta that lacks a file: soon, then ever later, and for certain when its time is over.

    An age that triples from look to look reaches hours within a few receives.

    Args:
        newest: When its newest file arrived.
        over_at: When its arrival time is over.
        receives: How often the message was received.
        now: The present. All three are times of the store.
        chance: See `pause_after`.
    """
    pause = timedelta(seconds=pause_after(receives, chance))
    return min(over_at, now + max(pause, 2 * (now - newest)))


def put_off(messaging: Messaging, receipt: Receipt, seconds: int) -> None:
    """Hides a message for so long. Where that fails, it comes back when its queue says, which is only less fitting."""
    if receipt.handle is None:
        return
    facts = {"message_id": receipt.id, "seconds": seconds, "receives": receipt.receives}
    try:
        messaging.hide(receipt.queue, receipt.handle, seconds)
    except MessagingError as error:
        logger.warning("Message could not be put off", extra={**facts, "reason": str(error)})
    else:
        logger.info("Message put off", extra=facts)
