"""What becomes of a corrupt delta where the user asked for it: moved into quarantine, or told where it would go."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Protocol

from shared.delta import DeltaLocation
from shared.errors import CouldNotCheck, DeltaguardError, ObjectChanged, TargetError
from shared.judgement import Judgement
from shared.quarantine import is_quarantined, place_of, quarantine
from shared.settings import Settings
from shared.storage import Store

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
        self._conditional: dict[str, bool] = {}
        self._asking = threading.Lock()

    def __call__(self, store: Store, location: DeltaLocation, judgement: Judgement, /) -> bool:
        """Moves this delta, unless something newer lies there or the store cannot tell."""
        try:
            self._require_conditions(store, location, judgement)
            done = quarantine(store, location, judgement, self._settings)
        except CouldNotCheck as fault:
            self._say(f"not moved: {location.uri}: {fault.detail}")
            return False
        except DeltaguardError as error:
            self._say(f"not moved: {error}")
            return False
        left = f"; left there, since they are newer: {', '.join(done.left)}" if done.left else ""
        self._say(f"moved {location.uri} to {done.place.uri}{left}")
        return True

    def _require_conditions(self, store: Store, location: DeltaLocation, judgement: Judgement) -> None:
        """Makes sure that the store heeds `If-Match`: otherwise a delete might hit an upload newer than the verdict."""
        with self._asking:
            if location.bucket not in self._conditional:
                file = max(judgement.listing.files, key=lambda file: file.size)
                try:
                    store.read(location.bucket, location.key(file.name), 1, "0" * 32)
                    self._conditional[location.bucket] = False
                except ObjectChanged:
                    self._conditional[location.bucket] = True
        if not self._conditional[location.bucket]:
            raise TargetError(
                f"{location.uri}: this store does not heed If-Match, so a newer upload could be deleted unseen; "
                "move the delta by hand"
            )
