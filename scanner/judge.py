"""One delta to its verdict, wherever it lies: what the scanner does for each target."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from scanner.discovery import FoundDelta
from shared.delta import DeltaLocation
from shared.errors import TargetError
from shared.judgement import judge_folder, judge_stored
from shared.settings import Settings
from shared.verdict import Depth, Finding, Status, Verdict

if TYPE_CHECKING:
    from shared.storage import Store


_STALE = ("check.changed", "check.gone")  # the delta is not the one that was listed when it was found


class Judge:
    """Judges deltas of both kinds, in any number of threads.

    Args:
        depth: How far to go.
        settings: Caps, time limits and settle time.
    """

    def __init__(self, depth: Depth, settings: Settings) -> None:
        self.depth = depth
        self.settings = settings

    @property
    def store(self) -> Store:
        """S3, a client made when it is first needed.

        Raises:
            StorageError: The environment does not say enough to make a client.
        """
        from shared.storage import current_store  # noqa: PLC0415 - boto3 takes 0.2 s, and a local folder needs none

        return current_store()

    def __call__(self, delta: DeltaLocation | FoundDelta | Path) -> Verdict:
        """The verdict on a delta that was there a moment ago. One that is gone is `undetermined`, not corrupt."""
        if isinstance(delta, Path):
            try:
                return judge_folder(delta, self.depth, self.settings).verdict
            except TargetError as error:
                return self._gone(str(delta), str(error))
        location, listing = (delta.location, delta.listing) if isinstance(delta, FoundDelta) else (delta, None)
        judgement = judge_stored(self.store, location, self.depth, self.settings, listing=listing)
        if listing is not None and any(finding.code in _STALE for finding in judgement.verdict.findings):
            judgement = judge_stored(self.store, location, self.depth, self.settings)
        if judgement.listing.files or judgement.verdict.status is Status.UNDETERMINED:
            return judgement.verdict
        return self._gone(location.uri, f"{location.uri}: nothing lies there any more")

    def _gone(self, delta: str, detail: str) -> Verdict:
        return Verdict(delta, self.depth, (Finding("check.gone", "", detail),))
