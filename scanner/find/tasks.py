"""What a scan judges, in order: the deltas below its roots, as far as they are wanted and not done yet."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from scanner.find.discovery import Bookmark, FoundDelta, FoundFolder, Walk, find_folders
from scanner.find.selection import Budget, Subset
from scanner.find.targets import StoredRoot, deltas_below
from scanner.run.checker import Delta
from scanner.run.checkpoint import Checkpoint, Place
from scanner.run.throttle import Throttle
from shared.model.delta import DeltaLocation, Listing
from shared.model.errors import CouldNotCheck, TargetError
from shared.model.settings import Settings
from shared.storage.folder import list_folder

Found = FoundDelta | FoundFolder
Root = StoredRoot | Path


@dataclass(frozen=True, slots=True)
class Task:
    """A delta to judge. `place` is None where a scan that goes on needs no bookmark for it."""

    delta: Delta
    place: Place | None


@dataclass(frozen=True, slots=True)
class Wanted:
    """Which of the deltas found are wanted.

    Args:
        subset: A share of them, or as many as some bytes hold; None for all.
        newer_than: Only those with a file that was modified after this moment; None for all.
    """

    subset: Subset | None = None
    newer_than: datetime | None = None

    def of(self, found: Iterable[Found]) -> Iterable[Found]:
        """Those that are wanted, in their order. One that cannot be listed here is: its check will say why."""
        if self.newer_than is not None:
            found = (delta for delta in found if _is_newer(delta, self.newer_than))
        if isinstance(self.subset, Budget):
            return self.subset.of(found, lambda delta: listing.size if (listing := listing_of(delta)) else 0)
        return found if self.subset is None else self.subset.of(found)


class Supply:
    """The deltas below some roots. A root that cannot be listed to its end does not hide the others.

    Args:
        roots: Where to look, in this order.
        store: Makes the store when it is first needed.
        settings: Where quarantine is.
        wanted: Which of them.
        throttle: Told when the store throttles the listing, which then goes on where it was.
        checkpoint: What earlier runs have done.
        failed: Told why a root could not be listed to its end.
    """

    def __init__(
        self,
        roots: Sequence[Root],
        store: Callable[[], Walk],
        settings: Settings,
        wanted: Wanted,
        throttle: Throttle,
        checkpoint: Checkpoint | None = None,
        failed: Callable[[str], None] = lambda _: None,
    ) -> None:
        self._roots = roots
        self._store = store
        self._settings = settings
        self._wanted = wanted
        self._throttle = throttle
        self._failed = failed
        self._again = tuple(checkpoint.again) if checkpoint else ()
        self._done = checkpoint.done | checkpoint.again.keys() if checkpoint else frozenset[str]()
        # What fits into a budget shows only when all of it was seen, so there is nothing to go on from.
        self._whole = isinstance(wanted.subset, Budget)
        self._since = {
            number: checkpoint.bookmark(number) if checkpoint and not self._whole else None
            for number in range(len(roots))
        }

    def tasks(self) -> Iterator[Task]:
        """What to judge: first what earlier runs could not."""
        for name in self._again:
            yield Task(DeltaLocation.parse(name) if "://" in name else Path(name), None)
        for root, found in self._wanted_by_root():
            for number, delta in enumerate(filter(self._is_new, found)):
                yield Task(delta, None if root is None else Place(root, number, delta.bookmark))

    def found(self) -> Iterator[Found]:
        """The deltas that are wanted, those that are done already not among them."""
        for _, found in self._wanted_by_root():
            yield from filter(self._is_new, found)

    def _wanted_by_root(self) -> Iterator[tuple[int | None, Iterable[Found]]]:
        """The wanted deltas with the number of their root; with None those of all together."""
        if self._whole:
            anywhere = (delta for root in self._roots for delta in self._found(root, None))
            yield None, self._wanted.of(anywhere)
            return
        for number, root in enumerate(self._roots):
            yield number, self._wanted.of(self._found(root, self._since[number]))

    def _is_new(self, delta: Found) -> bool:
        return delta.name not in self._done

    def _found(self, root: Root, since: Bookmark | None) -> Iterator[Found]:
        attempt = 0
        while True:
            try:
                for delta in self._listed(root, since):
                    since, attempt = delta.bookmark, 0
                    yield delta
                return
            except CouldNotCheck as fault:
                if fault.code == "check.throttled":
                    self._throttle.slow_down()
                    if self._throttle.pause(attempt):
                        attempt += 1
                        continue
                self._failed(fault.detail)
                return

    def _listed(self, root: Root, since: Bookmark | None) -> Iterator[Found]:
        if isinstance(root, Path):
            return find_folders(root, since)
        return deltas_below(self._store(), root, self._settings, since)


def until(tasks: Iterator[Task], end: float, late: Callable[[], None]) -> Iterator[Task]:
    """The tasks up to a moment of `time.monotonic()`; `late` is called when it has come before their end."""
    for task in tasks:
        if time.monotonic() >= end:
            late()
            return
        yield task


def listing_of(delta: Found) -> Listing | None:
    """The files of a delta; None where they cannot be listed, or are too many."""
    if isinstance(delta, FoundDelta):
        return delta.listing
    try:
        return list_folder(delta.path)
    except (CouldNotCheck, TargetError):
        return None


def _is_newer(delta: Found, moment: datetime) -> bool:
    newest = listing.newest if (listing := listing_of(delta)) else None
    return newest is None or newest > moment
