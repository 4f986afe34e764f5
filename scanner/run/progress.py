"""A line on stderr that says how far a run is, while it is a terminal that nothing else is written to."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import click
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    SpinnerColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.progress import Task as RichTask
from rich.text import Text

from scanner.run.throttle import Throttle
from scanner.run.workers import Tally
from shared.model.delta import printable
from shared.model.verdict import Status

_SPEED_SECONDS = 30.0
_LONGEST = 2000
_STYLES = {Status.CORRUPT: "red", Status.INCOMPLETE: "yellow", Status.UNDETERMINED: "magenta", Status.HEALTHY: "green"}


class Display:
    """Shows the tally of a run, and lines that belong to people, such as where a delta went.

    Args:
        throttle: Of the run; that it was slowed down is shown.
        progress: The line, or None when there is none.
        total: How many deltas there are, None when that is not known.
        earlier: How many of them earlier runs have checked.
    """

    def __init__(self, throttle: Throttle, progress: Progress | None, total: int | None, earlier: int) -> None:
        self._throttle = throttle
        self._progress = progress
        self._earlier = earlier
        if progress is not None:
            self._task = progress.add_task("", total=total, counts="")

    @property
    def live(self) -> bool:
        """Whether there is a line that people see."""
        return self._progress is not None

    def show(self, tally: Tally) -> None:
        """Brings the line up to date."""
        if self._progress is not None:
            counts = [f"[{_STYLES[status]}]{n:,} {status}[/]" for status, n in tally.counts.items() if n]
            if self._throttle.slowed:
                counts.append(f"[yellow]throttled: {self._throttle.allowed} at once[/]")
            completed = tally.total - self._earlier
            self._progress.update(self._task, completed=completed, counts=", ".join(counts))

    def expect(self, total: int) -> None:
        """Takes note of how many deltas there are in this run, from any thread."""
        if self._progress is not None:
            self._progress.update(self._task, total=total)

    def say(self, text: str) -> None:
        """Writes a line, from any thread, without disturbing the progress."""
        line = printable(text, _LONGEST)
        if self._progress is not None:
            self._progress.console.print(Text(line), soft_wrap=True)
        else:
            click.echo(line, err=True)


@contextmanager
def display(throttle: Throttle, *, total: int | None, earlier: int, quiet: bool) -> Iterator[Display]:
    """The display of one run.

    Args:
        throttle: Of the run.
        total: How many deltas this run will judge, None when that is not known.
        earlier: How many earlier runs have judged.
        quiet: Whether there is to be no line in any case: results go to the same terminal.
    """
    if quiet or not sys.stderr.isatty():
        yield Display(throttle, None, total, earlier)
        return
    columns: tuple[ProgressColumn, ...] = (
        SpinnerColumn(),
        BarColumn(20),
        MofNCompleteColumn(),
        _Rate(),
        TextColumn("{task.fields[counts]}"),
        TimeElapsedColumn(),
        _Remaining(),
    )
    console = Console(stderr=True)
    with Progress(*columns, console=console, transient=True, speed_estimate_period=_SPEED_SECONDS) as progress:
        yield Display(throttle, progress, total, earlier)


@contextmanager
def counted_ahead(count: Callable[[threading.Event], int | None], shown: Display) -> Iterator[None]:
    """Counts in the background, during the block, how many deltas there are: without it there is no time left to tell.

    Args:
        count: Counts; it looks at the event now and then, and gives up with None once that is set.
        shown: Learns of the result.
    """
    ended = threading.Event()

    def work() -> None:
        total = count(ended)
        if total is not None:
            shown.expect(total)

    thread = threading.Thread(target=work, name="count", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()


class _Rate(ProgressColumn):
    """Deltas a second."""

    def render(self, task: RichTask) -> Text:
        speed = task.speed
        return Text("" if speed is None else f"{speed:,.0f}/s" if speed >= 10 else f"{speed:.1f}/s")


class _Remaining(TimeRemainingColumn):
    """The time left, and nothing as long as it cannot be told."""

    def render(self, task: RichTask) -> Text:
        return Text("") if task.total is None else Text.assemble(super().render(task), " left")
