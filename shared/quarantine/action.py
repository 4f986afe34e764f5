"""The one way into quarantine, for whoever acts on a verdict: whether a corrupt delta may be moved, and the move.

The validator can be held back: beyond `max_quarantines_per_minute` it moves nothing more, since a flood of corrupt
deltas is more likely a fault of ours than of the deltas. What was moved within a minute is counted in S3, in objects
below `<quarantine prefix>/.moves/<minute>/`, so that functions that run side by side count together.
"""

from __future__ import annotations

import uuid
from dataclasses import dataclass

from shared.check.judgement import Judgement
from shared.model.delta import DeltaLocation
from shared.model.settings import Act, Settings
from shared.quarantine.move import quarantine
from shared.quarantine.record import is_quarantined
from shared.storage.store import Store

MOVES = ".moves"
"""Name, below the quarantine prefix, of the place where moves are counted."""


@dataclass(frozen=True, slots=True)
class Removal:
    """What became of a corrupt delta.

    Args:
        place: Where it lies now; None where it was not moved.
        left: Names of files that were left in its place, since they are newer: they must be judged.
        kept: Why it was not moved; empty where it was.
    """

    place: DeltaLocation | None
    left: tuple[str, ...] = ()
    kept: str = ""


def remove(
    store: Store, location: DeltaLocation, judgement: Judgement, settings: Settings, *, limited: bool = False
) -> Removal:
    """Moves a corrupt delta into quarantine, where it may be moved.

    Args:
        store: Where it lies.
        location: Its bucket and prefix.
        judgement: The verdict `corrupt` on it.
        settings: Where quarantine is, what is done, and how much within a minute.
        limited: Whether `max_quarantines_per_minute` counts.

    Raises:
        DeltaguardError: It cannot be moved: see `shared.quarantine.move.quarantine`.
        StorageError: A request failed. Nothing is lost; the same call may be made again.
    """
    if is_quarantined(location, settings):
        return Removal(None, kept="it lies in quarantine already")
    if settings.act is Act.REPORT:
        return Removal(None, kept="DELTAGUARD_ACT=report moves nothing")
    most = settings.max_quarantines_per_minute
    if limited and most is not None and _moves_of_this_minute(store, location, settings) > most:
        return Removal(
            None, kept=f"{most} deltas were moved within this minute, and no more may be: look at them first"
        )
    done = quarantine(store, location, judgement, settings)
    return Removal(done.place, done.left)


def _moves_of_this_minute(store: Store, location: DeltaLocation, settings: Settings) -> int:
    """Counts one more move, and returns how many there are; two at the same time both count the other."""
    bucket, prefix = settings.quarantine_of(location.bucket)
    minute = f"{prefix}{MOVES}/{store.now():%Y-%m-%dT%H:%M}/"
    store.put(bucket, minute + uuid.uuid4().hex, b"", only_if_absent=True)
    return sum(1 for _ in store.walk(bucket, minute))
