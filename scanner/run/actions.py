"""What becomes of the corrupt deltas of a scan where the user asked for it: the command line and the Lambda alike.

Nothing is moved before everything is judged. Then each corrupt delta is judged once more, this time with a second
witness, and moved if it is still corrupt. A scan that finds a great part of what it judged corrupt moves nothing: that
is more likely a fault of ours, or of the environment, than of the deltas.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from contextlib import closing
from dataclasses import dataclass
from typing import Protocol

from scanner.run.workers import judge_all
from shared.aws.messaging import current_messaging
from shared.check.judgement import Judgement
from shared.model.delta import DeltaLocation
from shared.model.errors import CouldNotCheck, DeltaguardError, MessagingError
from shared.model.settings import VARIABLES, Act, Settings
from shared.model.verdict import Status
from shared.quarantine.action import remove
from shared.quarantine.outbox import tell_of_quarantine
from shared.quarantine.record import is_quarantined, place_of
from shared.storage.store import Store

MOST_UNASKED = 5
"""So many deltas are moved whatever their share is."""

MOST_SHARE = 0.2
"""The greatest share of the judged deltas that is moved without `--yes`."""

COMPONENT = "scanner"

Say = Callable[[str], None]


class Action(Protocol):
    """What is done with one corrupt delta."""

    def __call__(self, store: Store, location: DeltaLocation, judgement: Judgement, /) -> bool:
        """Does it. Returns whether it came about; why it did not is said."""


class Rehearsal:
    """Says what would be moved, and touches nothing.

    Args:
        settings: Where quarantine is.
        say: Shows a line to the user.
    """

    def __init__(self, settings: Settings, say: Say) -> None:
        self._settings = settings
        self._say = say

    def __call__(self, _: Store, location: DeltaLocation, judgement: Judgement, /) -> bool:
        """Tells where this delta would go."""
        if is_quarantined(location, self._settings):
            self._say(f"not moved: {location.uri} lies in quarantine already")
            return False
        place = place_of(location, self._settings)
        size = f"{len(judgement.listing.files)} files, {judgement.listing.size:,} bytes"
        self._say(f"would move {location.uri} to {place.uri}{judgement.listing.fingerprint}/ ({size})")
        return True


class Quarantine:
    """Moves corrupt deltas into quarantine, says where each one went, and tells whom the settings name.

    Args:
        settings: Where quarantine is.
        say: Shows a line to the user.
    """

    def __init__(self, settings: Settings, say: Say) -> None:
        self._settings = settings
        self._say = say

    def __call__(self, store: Store, location: DeltaLocation, judgement: Judgement, /) -> bool:
        """Moves this delta, unless something newer lies there."""
        try:
            removal = remove(store, location, judgement, self._settings)
        except DeltaguardError as error:
            self._say(f"not moved: {location.uri}: {error}")
            return False
        if removal.place is None:
            self._say(f"not moved: {location.uri}: {removal.kept}")
            return False
        left = f"; left there, since they are newer: {', '.join(removal.left)}" if removal.left else ""
        self._say(f"moved {location.uri} to {removal.place.uri}{left}")
        if self._settings.event_bus or self._settings.resubmit_queue_url:
            self._tell(store, location)
        return True

    def _tell(self, store: Store, location: DeltaLocation) -> None:
        """Tells of the quarantine as the validator does. What fails here is told at the delta's next event."""
        try:
            tell_of_quarantine(store, current_messaging(), location, self._settings, COMPONENT)
        except (CouldNotCheck, MessagingError) as error:
            self._say(f"moved, but not everybody was told of {location.uri}: {error}")


@dataclass(frozen=True, slots=True)
class Brake:
    """Holds back a scan that would move a great part of what it judged.

    Args:
        judged: How many deltas were judged.
        corrupt: How many of them are corrupt.
        yes: Whether the user said that they may be moved, however many there are.
    """

    judged: int
    corrupt: int
    yes: bool

    @property
    def holds(self) -> bool:
        """Whether nothing may be moved."""
        return not self.yes and self.corrupt > MOST_UNASKED and self.corrupt > MOST_SHARE * self.judged

    @property
    def reason(self) -> str:
        """Why nothing is moved, and what to do."""
        share = f"{self.corrupt:,} of {self.judged:,} deltas are corrupt, more than {MOST_SHARE:.0%}"
        return f"nothing was moved: {share}; look at the report, then repeat with --yes to move them"


def action_of(settings: Settings, say: Say, *, dry_run: bool) -> Action:
    """What is done with each corrupt delta."""
    if dry_run or settings.act is Act.REPORT:
        if not dry_run:
            say(f"nothing is moved: {VARIABLES['act']}={Act.REPORT}")
        return Rehearsal(settings, say)
    return Quarantine(settings, say)


def remove_all(
    store: Store,
    corrupt: Collection[DeltaLocation],
    confirm: Callable[[DeltaLocation], Judgement],
    action: Action,
    say: Say,
    jobs: int,
) -> int:
    """Judges deltas that were found corrupt once more, with a second witness, and acts on those that still are.

    Args:
        store: Where they lie.
        corrupt: Those deltas.
        confirm: Judges one of them again.
        action: What is done with it.
        say: Shows a line to the user.
        jobs: How many at once.

    Returns:
        With how many it came about.
    """

    def work(location: DeltaLocation) -> bool:
        try:
            judgement = confirm(location)
        except CouldNotCheck as fault:
            say(f"not moved: {location.uri}: {fault.detail}")
            return False
        if judgement.gone:  # moved by an earlier run, or by the validator
            return False
        if judgement.verdict.status is not Status.CORRUPT:
            say(f"not moved: {location.uri} is {judgement.verdict.status} now: {judgement.verdict.reason}")
            return False
        return action(store, location, judgement)

    with closing(judge_all(corrupt, work, jobs)) as done:
        return sum(done)
