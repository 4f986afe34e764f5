"""One run of `check` or `scan`: targets in, report out, exit code back."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

import click
from rich.console import Console
from rich.progress import MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from scanner.discovery import FoundDelta, find_folders
from scanner.interruption import interruptible
from scanner.judge import Judge
from scanner.report import REPORTS, Output
from scanner.scan import Tally, default_jobs, judge_all
from scanner.targets import StoredRoot, delta_named, deltas_below, require_bucket, require_objects, root_named
from shared.delta import DeltaLocation, printable
from shared.errors import CouldNotCheck
from shared.scratch import sweep_scratch
from shared.settings import Settings
from shared.verdict import Depth, Status


@dataclass(frozen=True, slots=True)
class Options:
    """What the user asked for.

    Args:
        depth: How far to go.
        format: One of `scanner.report.REPORTS`.
        output: Where the results go; None means stdout.
        jobs: How many deltas are judged at once; None leaves it to the depth and the CPUs.
    """

    depth: Depth
    format: str
    output: Path | None
    jobs: int | None

    @property
    def threads(self) -> int:
        """How many deltas are judged at once."""
        return self.jobs or default_jobs(self.depth, os.cpu_count() or 1)


def check(targets: Sequence[str], options: Options) -> int:
    """Judges exactly these targets.

    Returns:
        The exit code of `scanner.scan.Tally`.

    Raises:
        SettingsError: A setting has an impossible value.
        TargetError: A target or the output cannot be; nothing was checked.
        CouldNotCheck: No S3 client can be made, or the results cannot be written.
    """
    judge = Judge(options.depth, Settings.from_environment())
    deltas = list(dict.fromkeys(delta_named(target) for target in targets))
    stored = [delta for delta in deltas if isinstance(delta, DeltaLocation)]
    if stored:
        store = judge.store
        with ThreadPoolExecutor(options.threads) as pool:
            list(pool.map(lambda location: require_objects(store, location), stored))
    return _judge_and_report(deltas, len(deltas), judge, options, Tally())


def scan(targets: Sequence[str], options: Options) -> int:
    """Finds the deltas at and below these targets and judges them.

    Returns:
        The exit code of `scanner.scan.Tally`.

    Raises:
        SettingsError: A setting has an impossible value.
        TargetError: A target or the output cannot be; nothing was checked.
        CouldNotCheck: A bucket cannot be listed, no S3 client can be made, or the results cannot be written.
    """
    judge = Judge(options.depth, Settings.from_environment())
    roots = list(dict.fromkeys(root_named(target) for target in targets))
    for root in roots:
        if isinstance(root, StoredRoot):
            require_bucket(judge.store, root)
    tally = Tally()
    code = _judge_and_report(_found(roots, judge, tally), None, judge, options, tally)
    if not tally.total and not code:
        click.echo("no deltas found", err=True)
    return code


def _found(roots: Iterable[StoredRoot | Path], judge: Judge, tally: Tally) -> Iterator[FoundDelta | Path]:
    """The deltas of all roots. A root that fails half-way is told and noted; what was found is judged all the same."""
    for root in roots:
        try:
            if isinstance(root, StoredRoot):
                yield from deltas_below(judge.store, root, judge.settings)
            else:
                yield from find_folders(root)
        except CouldNotCheck as fault:
            tally.unfinished = True
            click.echo(f"Error: {printable(fault.detail, 1000)}", err=True)


def _judge_and_report(
    deltas: Iterable[DeltaLocation | FoundDelta | Path], total: int | None, judge: Judge, options: Options, tally: Tally
) -> int:
    sweep_scratch()
    with Output(options.output) as output:
        report = REPORTS[options.format](output)
        streamed_to_terminal = options.format != "table" and output.stream.isatty()
        try:
            with (
                interruptible() as interruption,
                _progress(total, quiet=streamed_to_terminal) as progress,
                closing(judge_all(deltas, judge, options.threads)) as verdicts,
            ):
                for verdict in verdicts:
                    with interruption.step():  # what is reported is counted, and the other way round
                        tally.add(verdict)
                        report.add(verdict)
                        progress(tally)
        except KeyboardInterrupt:
            tally.interrupted = True
            click.echo("interrupted; checks that still run end first (Ctrl-C again: at once)", err=True)
        report.finish(tally)
    return tally.exit_code()


@contextmanager
def _progress(total: int | None, *, quiet: bool) -> Iterator[Callable[[Tally], None]]:
    """A line on stderr that says how far the run is, when that is a terminal that nothing else is written to."""
    columns = (SpinnerColumn(), MofNCompleteColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
    console = Console(stderr=True)
    hidden = quiet or not sys.stderr.isatty()
    with Progress(*columns, console=console, transient=True, disable=hidden) as progress:
        task = progress.add_task("checked", total=total)

        def show(tally: Tally) -> None:
            bad = ", ".join(f"{n} {status}" for status, n in tally.counts.items() if n and status != Status.HEALTHY)
            progress.update(task, completed=tally.total, description=f"checked {bad}")

        yield show
