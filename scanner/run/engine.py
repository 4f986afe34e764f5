"""The middle of `check` and `scan`: tasks in; verdicts counted, written down and reported as they come."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import ExitStack, closing
from dataclasses import dataclass

import click

from scanner.find.tasks import Task, until
from scanner.report.output import REPORTS, Output, Report
from scanner.run.checker import Judge
from scanner.run.checkpoint import Checkpoint
from scanner.run.interruption import interruptible
from scanner.run.progress import Display, counted_ahead, display
from scanner.run.throttle import RetriedCheck, Throttle
from scanner.run.workers import Tally, judge_all
from shared.model.delta import DeltaLocation, printable
from shared.model.settings import Act
from shared.model.verdict import Status, Verdict
from shared.storage.scratch import sweep_scratch

_LONGEST = 2000

Count = Callable[[threading.Event], int | None]


@dataclass(frozen=True, slots=True)
class Handling:
    """How the verdicts of a run are reached and what is done about them.

    Args:
        judge: Judges each delta.
        jobs: How many at once.
        format: One of `scanner.report.output.REPORTS`.
        checkpoint: Where each verdict is taken down; None for nowhere.
        quarantine: Whether corrupt deltas are moved into quarantine, once all are judged.
        dry_run: Whether they are only said to be.
        yes: Whether they are moved even where they are a great part of what was judged.
        seconds: After which time no more are begun; None for no limit.
    """

    judge: Judge
    jobs: int
    format: str
    checkpoint: Checkpoint | None = None
    quarantine: bool = False
    dry_run: bool = False
    yes: bool = False
    seconds: float | None = None


class Run:
    """One run.

    Args:
        handling: How it is done.
        output: Where the results go.
        total: How many deltas there are; None when that is not known.
    """

    def __init__(self, handling: Handling, output: Output, total: int | None) -> None:
        self.throttle = Throttle(handling.jobs)
        self.tally = Tally()
        self._handling = handling
        self._output = output
        self._total = total
        self._display: Display | None = None
        self._corrupt: dict[DeltaLocation, None] = {}

    def of(self, tasks: Iterator[Task], count: Count | None = None) -> Tally:
        """Judges the tasks and reports on them, until they end, the time is over or the user wants no more.

        Args:
            tasks: What to judge.
            count: Counts the tasks by itself, where their number is not known; it is used when somebody looks.
        """
        sweep_scratch()
        handling, tally = self._handling, self.tally
        report = REPORTS[handling.format](self._output)
        try:
            with ExitStack() as stack:
                interruption = stack.enter_context(interruptible())
                self._replay(report)
                streamed_to_terminal = handling.format != "table" and self._output.stream.isatty()
                shown = stack.enter_context(
                    display(self.throttle, total=self._total, earlier=tally.earlier, quiet=streamed_to_terminal)
                )
                self._display = shown
                if shown.live and count is not None:
                    stack.enter_context(counted_ahead(count, shown))
                stack.callback(self.throttle.end)
                for outcome in stack.enter_context(closing(self._outcomes(tasks))):
                    with interruption.step():  # what is reported is counted, and the other way round
                        self._take(outcome, report)
                        shown.show(tally)
                if handling.quarantine:
                    self._remove()
        except KeyboardInterrupt:
            tally.interrupted = True
            click.echo("interrupted; checks that still run end first (Ctrl-C again: at once)", err=True)
        finally:
            self._display = None
        report.finish(tally)
        return tally

    def say(self, text: str) -> None:
        """Tells the user something on stderr, from any thread."""
        if self._display is not None:
            self._display.say(text)
        else:
            click.echo(printable(text, _LONGEST), err=True)

    def listing_failed(self, reason: str) -> None:
        """Tells that a place could not be listed to its end, and takes note of it."""
        self.tally.unfinished = True
        self.say(f"Error: {reason}")

    def _replay(self, report: Report) -> None:
        """Reports what earlier runs found, so that the report is that of the whole scan."""
        if self._handling.checkpoint is not None:
            for verdict in self._handling.checkpoint.verdicts():
                self.tally.add(verdict)
                self._note(verdict)
                report.add(verdict)
            self.tally.earlier = self.tally.total

    def _outcomes(self, tasks: Iterator[Task]) -> Generator[_Outcome, None, None]:
        handling = self._handling
        if handling.seconds is not None:
            tasks = until(tasks, time.monotonic() + handling.seconds, self._late)

        def work(task: Task) -> _Outcome:
            return _Outcome(task, handling.judge(task.delta))

        return judge_all(tasks, RetriedCheck(work, self.throttle, _is_throttled), handling.jobs)

    def _remove(self) -> None:
        """Moves what is corrupt into quarantine, or says that it would be moved."""
        from scanner.run.actions import Brake, action_of, remove_all  # noqa: PLC0415 - boto3, which a local check lacks

        handling, tally = self._handling, self.tally
        moved = 0
        brake = Brake(tally.total, len(self._corrupt), handling.yes)
        if brake.holds:
            self.say(brake.reason)
        elif self._corrupt:
            action = action_of(handling.judge.settings, self.say, dry_run=handling.dry_run)
            judge = handling.judge
            moved = remove_all(judge.store, self._corrupt, judge.confirmed, action, self.say, handling.jobs)
        if handling.dry_run:
            tally.movable = moved
        else:
            tally.quarantined = moved if handling.judge.settings.act is Act.QUARANTINE else 0

    def _note(self, verdict: Verdict) -> None:
        """Remembers what is corrupt, where that has consequences."""
        if self._handling.quarantine and verdict.status is Status.CORRUPT:
            self._corrupt[DeltaLocation.parse(verdict.delta)] = None

    def _take(self, outcome: _Outcome, report: Report) -> None:
        if self._handling.checkpoint is not None:
            self._handling.checkpoint.add(outcome.verdict, outcome.task.place)
        self.tally.add(outcome.verdict)
        self._note(outcome.verdict)
        report.add(outcome.verdict)

    def _late(self) -> None:
        self.tally.out_of_time = True


@dataclass(frozen=True, slots=True)
class _Outcome:
    """What became of one task."""

    task: Task
    verdict: Verdict


def _is_throttled(outcome: _Outcome) -> bool:
    verdict = outcome.verdict
    return verdict.status is Status.UNDETERMINED and any(f.code == "check.throttled" for f in verdict.findings)
