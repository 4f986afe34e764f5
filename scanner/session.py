"""`check`, `scan` and `estimate`: from the targets and options of a command line to its exit code."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

import click

from scanner.checkpoint import Checkpoint
from scanner.judge import Judge
from scanner.pace import Pace
from scanner.report import Output
from scanner.run import Handling, Run
from scanner.scan import default_jobs, require_witness
from scanner.selection import moment, seconds, subset
from scanner.supply import Root, Supply, Task, Wanted
from scanner.targets import StoredRoot, delta_named, require_bucket, require_objects, root_named
from shared.delta import DeltaLocation
from shared.errors import CouldNotCheck, TargetError
from shared.settings import Settings
from shared.verdict import RULES, Depth


@dataclass(frozen=True, slots=True)
class Options:
    """What the user asked for.

    Args:
        depth: How far to go.
        format: One of `scanner.report.REPORTS`.
        output: Where the results go; None means stdout.
        jobs: How many deltas are judged at once; None leaves it to the depth and the CPUs.
        no_cache: Whether tags with an earlier verdict are not believed.
        quarantine: Whether corrupt deltas are moved into quarantine.
        dry_run: Whether they are only said to be.
        yes: Whether they are moved even where they are a great part of what was judged.
        resume: The checkpoint to go on from and to write; None for none.
        subset: Which part of the deltas, as `scanner.selection.subset` reads it; None for all.
        max_duration: After which time no more are begun, as `scanner.selection.seconds` reads it; None for no limit.
        newer_than: Only deltas modified since, as `scanner.selection.moment` reads it; None for all.
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


def _prepare_quarantine(options: Options) -> None:
    """Sees to it that deltas can be moved, and keeps the logs of that apart from the results: nothing else logs."""
    if options.quarantine:
        require_witness()
        from shared.telemetry import use_stderr  # noqa: PLC0415 - a run that moves nothing needs none of it

        use_stderr()


def check(targets: Sequence[str], options: Options) -> int:
    """Judges exactly these targets.

    Returns:
        The exit code of `scanner.scan.Tally`.

    Raises:
        SettingsError: A setting has an impossible value, or deltas are to be moved without chromadb.
        TargetError: A target or the output cannot be; nothing was checked.
        CouldNotCheck: No S3 client can be made, or the results cannot be written.
    """
    _prepare_quarantine(options)
    judge = options.judge()
    deltas = list(dict.fromkeys(delta_named(target) for target in targets))
    _require_movable(deltas, options)
    stored = [delta for delta in deltas if isinstance(delta, DeltaLocation)]
    if stored:
        store = judge.store
        with ThreadPoolExecutor(options.threads) as pool:
            list(pool.map(lambda location: require_objects(store, location), stored))
    # Whoever names each delta has looked at it: no share of them is too great.
    options = replace(options, yes=True)
    with Output(options.output) as output:
        run = Run(options.handling(judge), output, len(deltas))
        return run.of(Task(delta, None) for delta in deltas).exit_code()


def scan(targets: Sequence[str], options: Options) -> int:
    """Finds the deltas at and below these targets and judges them.

    Returns:
        The exit code of `scanner.scan.Tally`.

    Raises:
        SettingsError: A setting has an impossible value, or deltas are to be moved without chromadb.
        TargetError: A target, the checkpoint or the output cannot be; nothing was checked.
        CouldNotCheck: A bucket cannot be listed, no S3 client can be made, or the results cannot be written.
    """
    _prepare_quarantine(options)
    judge = options.judge()
    roots = required_roots(targets, judge)
    _require_movable(roots, options)
    with ExitStack() as stack:
        checkpoint, now = None, datetime.now(UTC)
        if options.resume is not None:
            began = now.isoformat(timespec="seconds")
            checkpoint = stack.enter_context(Checkpoint(options.resume, _identity(roots, options), began))
            now = datetime.fromisoformat(checkpoint.started)
        output = stack.enter_context(Output(options.output))
        run = Run(options.handling(judge, checkpoint), output, None)

        def supply(pace: Pace, failed: Callable[[str], None]) -> Supply:
            return Supply(roots, lambda: judge.store, judge.settings, options.wanted(now), pace, checkpoint, failed)

        def count(ended: threading.Event) -> int | None:
            number = 0
            for _ in supply(run.pace, lambda _: None).tasks():
                number += 1
                if ended.is_set():
                    return None
            return number

        # At depth `listing` a count of its own would take as long as the scan.
        tasks = supply(run.pace, run.listing_failed).tasks()
        tally = run.of(tasks, None if options.depth is Depth.LISTING else count)
    code = tally.exit_code()
    if not tally.total and not code:
        narrowed = options.subset is not None or options.newer_than is not None
        click.echo("no deltas found" + " that are wanted" * narrowed, err=True)
    return code


def estimate(targets: Sequence[str], options: Options) -> int:
    """Tells what a scan of these targets would ask of S3 and cost, from their listing alone. Returns 0.

    Raises:
        SettingsError: A setting has an impossible value.
        TargetError: A target or the output cannot be.
        CouldNotCheck: A place cannot be listed, or the estimate cannot be written.
    """
    from scanner.estimate import CountedWalk, Estimate  # noqa: PLC0415 - needs the inspection, which `check` loads later

    judge = options.judge()
    roots = required_roots(targets, judge)
    made = Estimate(options.depth, asks_tags=not options.no_cache)
    now = datetime.now(UTC)

    def fail(reason: str) -> None:
        raise CouldNotCheck("check.storage", reason)

    supply = Supply(
        roots, lambda: CountedWalk(judge.store, made), judge.settings, options.wanted(now), Pace(1), failed=fail
    )
    for delta in supply.found():
        made.add(delta)
    jobs, cpus = options.threads, os.cpu_count() or 1
    with Output(options.output) as output:
        as_json = options.format == "json"
        output.write(json.dumps(made.as_json(jobs, cpus)) + "\n" if as_json else made.as_text(jobs, cpus))
    return 0


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


def _identity(roots: Sequence[Root], options: Options) -> dict[str, object]:
    """What makes two scans the same one, so that the second can go on where the first stopped."""
    return {
        # A folder as it is written, too: that is how its deltas are named.
        "targets": [
            f"s3://{root.bucket}/{root.prefix}" if isinstance(root, StoredRoot) else [str(root), str(root.absolute())]
            for root in roots
        ],
        "depth": options.depth.value,
        "subset": options.subset,
        "newer-than": options.newer_than,
        "quarantine": options.quarantine,
        "dry-run": options.dry_run,
        "rules": RULES,
    }


def _require_movable(places: Sequence[object], options: Options) -> None:
    local = next((place for place in places if isinstance(place, Path)), None)
    if options.quarantine and local is not None:
        raise TargetError(f"{local}: --quarantine moves deltas in S3, not local folders")
