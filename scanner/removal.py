"""What becomes of a corrupt delta where the user asked for it: moved into quarantine, or told where it would go."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from shared.delta import DeltaLocation
from shared.errors import CouldNotCheck, DeltaguardError, MessagingError
from shared.judgement import Judgement
from shared.messaging import current_messaging
from shared.outbox import tell_of_quarantine
from shared.quarantine import is_quarantined, place_of, quarantine
from shared.settings import Settings
from shared.storage import Store

_COMPONENT = "scanner"
Say = Callable[[str], None]


class Removal(Protocol):
    """What is done with a corrupt delta."""

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
    """Moves corrupt deltas into quarantine, each as soon as it is judged, and says where it went.

    Args:
        settings: Where quarantine is.
        say: Shows a line to the user.
    """

    def __init__(self, settings: Settings, say: Say) -> None:
        self._settings = settings
        self._say = say

    def __call__(self, store: Store, location: DeltaLocation, judgement: Judgement, /) -> bool:
        """Moves this delta, unless something newer lies there, and tells whom the settings name."""
        try:
            done = quarantine(store, location, judgement, self._settings)
        except CouldNotCheck as fault:
            self._say(f"not moved: {location.uri}: {fault.detail}")
            return False
        except DeltaguardError as error:
            self._say(f"not moved: {error}")
            return False
        left = f"; left there, since they are newer: {', '.join(done.left)}" if done.left else ""
        self._say(f"moved {location.uri} to {done.place.uri}{left}")
        if self._settings.event_bus or self._settings.resubmit_queue_url:
            self._tell(store, location)
        return True

    def _tell(self, store: Store, location: DeltaLocation) -> None:
        """Tells of the quarantine as the validator does. What fails here is told at the delta's next event."""
        try:
            tell_of_quarantine(store, current_messaging(), location, self._settings, _COMPONENT)
        except (CouldNotCheck, MessagingError) as error:
            self._say(f"moved, but not everybody was told of {location.uri}: {error}")
