"""One delta to its verdict, wherever it lies: what the scanner does for each target."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import TYPE_CHECKING

from scanner.find.discovery import FoundDelta, FoundFolder
from shared.check.judgement import Judgement, judge_folder, judge_stored
from shared.model.delta import DATABASE, DeltaLocation, Listing
from shared.model.errors import ObjectGone, StorageError, TargetError
from shared.model.settings import Settings
from shared.model.verdict import Depth, Finding, Status, Verdict

if TYPE_CHECKING:
    from shared.storage.store import Store

Delta = DeltaLocation | FoundDelta | FoundFolder | Path
"""What can be judged: a place in S3 or on disk, as the user named it or with what its discovery brought to light."""

_STALE = ("check.changed", "check.gone")  # the delta is not the one that was listed when it was found


class Judge:
    """Judges deltas of both kinds, in any number of threads.

    Args:
        depth: How far to go.
        settings: Caps, time limits and settle time.
        trust_tags: Whether a `healthy` tag that belongs to exactly the objects that lie there is an answer. It is asked
            for where the check would read whole objects: up to depth `header`, asking costs as much as looking.
    """

    def __init__(self, depth: Depth, settings: Settings, *, trust_tags: bool = False) -> None:
        self.depth = depth
        self.settings = settings
        self._trust_tags = trust_tags and depth.includes(Depth.STRUCTURE)
        self._tagging: dict[str, bool] = {}
        self._asking = threading.Lock()

    @property
    def store(self) -> Store:
        """S3, a client made when it is first needed.

        Raises:
            StorageError: The environment does not say enough to make a client.
        """
        from shared.storage.store import current_store  # noqa: PLC0415 - boto3 takes 0.2 s, and a local folder needs none

        return current_store()

    def __call__(self, delta: Delta) -> Verdict:
        """The verdict on a delta that was there a moment ago. One that is gone is `undetermined`, not corrupt."""
        return self.judgement(delta).verdict

    def judgement(self, delta: Delta) -> Judgement:
        """The same with what it stands on."""
        if isinstance(delta, FoundFolder):
            delta = delta.path
        if isinstance(delta, Path):
            try:
                return judge_folder(delta, self.depth, self.settings)
            except TargetError as error:
                return self._gone(str(delta), str(error))
        location, listing = (delta.location, delta.listing) if isinstance(delta, FoundDelta) else (delta, None)
        judgement = self._judge(location, listing)
        if listing is not None and any(finding.code in _STALE for finding in judgement.verdict.findings):
            judgement = self._judge(location, None)
        rest = listing is None and (
            judgement.listing.others or judgement.listing.more
        )  # where the user named the place
        if judgement.listing.files or rest or judgement.verdict.status is Status.UNDETERMINED:
            return judgement
        return self._gone(location.uri, f"{location.uri}: nothing lies there any more")

    def confirmed(self, location: DeltaLocation) -> Judgement:
        """Judges a delta in S3 as whoever acts on the verdict has to: by its bytes, whatever a tag says."""
        return judge_stored(self.store, location, self.depth, self.settings, confirm=True)

    def _judge(self, location: DeltaLocation, listing: Listing | None) -> Judgement:
        trust = self._trust_tags and self._keeps_tags(location)
        return judge_stored(self.store, location, self.depth, self.settings, trust_tags=trust, listing=listing)

    def _keeps_tags(self, location: DeltaLocation) -> bool:
        """Whether tags can be read in this bucket, asked once: some stores have none, and take long to say so."""
        if location.bucket in self._tagging:
            return self._tagging[location.bucket]
        with self._asking:
            if location.bucket not in self._tagging:
                try:
                    self.store.tags(location.bucket, location.key(DATABASE))
                except ObjectGone:
                    return True  # a delta without a database says nothing about tags
                except StorageError as error:
                    if error.code == "check.throttled":
                        return True
                    self._tagging[location.bucket] = False
                else:
                    self._tagging[location.bucket] = True
        return self._tagging[location.bucket]

    def _gone(self, delta: str, detail: str) -> Judgement:
        verdict = Verdict(delta, self.depth, (Finding("check.gone", "", detail),))
        return Judgement(verdict, Listing(()), None, checksums_proven=False, by_tag=False)
