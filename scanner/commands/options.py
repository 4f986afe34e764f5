"""The options that `check`, `scan` and `estimate` share, and what they demand before anything is checked."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from scanner.find.selection import moment, seconds, subset
from scanner.find.targets import StoredRoot, require_bucket, root_named
from scanner.find.tasks import Root, Wanted
from scanner.run.checker import Judge
from scanner.run.checkpoint import Checkpoint
from scanner.run.engine import Handling
from scanner.run.workers import default_jobs, require_witness
from shared.model.errors import TargetError
from shared.model.settings import Settings
from shared.model.verdict import Depth


@dataclass(frozen=True, slots=True)
class Options:
    """What the user asked for.

    Args:
        depth: How far to go.
        format: One of `scanner.report.output.REPORTS`.
        output: Where the results go; None means stdout.
        jobs: How many deltas are judged at once; None leaves it to the depth and the CPUs.
        no_cache: Whether tags with an earlier verdict are not believed.
        quarantine: Whether corrupt deltas are moved into quarantine.
        dry_run: Whether they are only said to be.
        yes: Whether they are moved even where they are a great part of what was judged.
        resume: The checkpoint to go on from and to write; None for none.
        subset: Which part of the deltas, as `scanner.find.selection.subset` reads it; None for all.
        max_duration: After which time no more are begun, as `scanner.find.selection.seconds` reads it; None
            for no limit.
        newer_than: Only deltas modified since, as `scanner.find.selection.moment` reads it; None for all.
    """

    depth: Depth
    format: str = "table"
    output: Path | None = None
    jobs: int | None = None
    no_cache: bool = False
    quarantine: bool = False
    dry_run: bool = False
    yes: bool = False
    resume: Path | None = None
    subset: str | None = None
    max_duration: str | None = None
    newer_than: str | None = None

    @property
    def threads(self) -> int:
        """How many deltas are judged at once."""
        return self.jobs or default_jobs(self.depth, os.cpu_count() or 1)

    def judge(self) -> Judge:
        """Judges with these options in this environment.

        Raises:
            SettingsError: A setting has an impossible value.
        """
        return Judge(self.depth, Settings.from_environment(), trust_tags=not self.no_cache)

    def handling(self, judge: Judge, checkpoint: Checkpoint | None = None) -> Handling:
        """What a run has to know of them."""
        limit = None if self.max_duration is None else seconds(self.max_duration)
        return Handling(judge, self.threads, self.format, checkpoint, self.quarantine, self.dry_run, self.yes, limit)

    def wanted(self, now: datetime) -> Wanted:
        """Which deltas are wanted, `now` being when their scan began."""
        return Wanted(
            None if self.subset is None else subset(self.subset),
            None if self.newer_than is None else moment(self.newer_than, now),
        )


def prepare_quarantine(options: Options) -> None:
    """Sees to it that deltas can be moved, and keeps the logs of that apart from the results: nothing else logs.

    Raises:
        SettingsError: chromadb is not installed.
    """
    if options.quarantine:
        require_witness()
        from shared.aws.telemetry import use_stderr  # noqa: PLC0415 - a run that moves nothing needs none of it

        use_stderr()


def required_roots(targets: Sequence[str], judge: Judge) -> list[Root]:
    """The places that targets name, each proven to be there.

    Raises:
        TargetError: A target cannot be, or its bucket is not there.
        StorageError: A bucket cannot be listed.
    """
    roots = list(dict.fromkeys(root_named(target) for target in targets))
    for root in roots:
        if isinstance(root, StoredRoot):
            require_bucket(judge.store, root)
    return roots


def require_movable(places: Sequence[object], options: Options) -> None:
    """Refuses to move local folders.

    Raises:
        TargetError: One of the places is a local folder, and deltas are to be moved.
    """
    local = next((place for place in places if isinstance(place, Path)), None)
    if options.quarantine and local is not None:
        raise TargetError(f"{local}: --quarantine moves deltas in S3, not local folders")
