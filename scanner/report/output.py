"""Verdicts as text: a table for people, ndjson and JSON for programs, and where to find the other formats.

Names inside a delta are whatever its writer chose. JSON escapes all but ASCII, and the table shows nothing but
printable characters, so none of them reaches a terminal as a control sequence or is read as markup.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterable
from importlib import import_module
from io import StringIO
from pathlib import Path
from typing import IO, Protocol, Self

import click
from rich.console import Console
from rich.filesize import decimal
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from scanner.run.workers import Tally
from shared.model.delta import printable
from shared.model.errors import CouldNotCheck, TargetError
from shared.model.verdict import Finding, Status, Verdict

_WORST_FIRST = (Status.CORRUPT, Status.INCOMPLETE, Status.UNDETERMINED, Status.HEALTHY)
_STYLES = {
    Status.CORRUPT: "bold red",
    Status.INCOMPLETE: "yellow",
    Status.UNDETERMINED: "magenta",
    Status.HEALTHY: "green",
}
_SHOWN_OF_A_STATUS = 1000
_LONGEST = 8192  # an S3 key of 1,024 characters, each of them escaped, is still shown whole


class Output:
    """Where results go: a file, or stdout. Every write arrives before it returns, so a reader can follow.

    Args:
        path: The file, overwritten if there is one; None or `-` means stdout.

    Raises:
        TargetError: The file cannot be written, or stdout is closed.
    """

    def __init__(self, path: Path | None) -> None:
        self._name = str(path or "stdout")
        if path is None and sys.stdout is None:
            raise TargetError("stdout is closed; use --output FILE")
        try:
            # A name that is no Unicode, as a local file may have, is shown with escapes.
            self.stream: IO[str] = click.open_file(str(path or "-"), "w", "utf-8", "backslashreplace")
        except OSError as error:
            raise TargetError(f"--output {path}: {error.strerror}") from error

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stream.__exit__(None, None, None)  # closes a file, and leaves stdout open

    def write(self, text: str) -> None:
        """Writes and flushes.

        Raises:
            BrokenPipeError: The reader went away.
            CouldNotCheck: The text could not be written.
        """
        try:
            self.stream.write(text)
            self.stream.flush()
        except OSError as error:
            # Python flushes what is left once more at its end, and would complain again.
            with open(os.devnull, "wb") as nowhere:  # noqa: PTH123 - a device, not a path
                os.dup2(nowhere.fileno(), self.stream.fileno())
            if isinstance(error, BrokenPipeError):
                raise
            raise CouldNotCheck("check.local_io", f"writing the results to {self._name}: {error.strerror}") from error


class Report(Protocol):
    """A format: takes verdicts one by one, then their tally."""

    def add(self, verdict: Verdict) -> None:
        """Takes one verdict, in the order of completion."""

    def finish(self, tally: Tally) -> None:
        """Ends the report, also one that was interrupted."""


class NdjsonReport:
    """One JSON object a line for each verdict as it completes, and the summary as the last line."""

    def __init__(self, output: Output) -> None:
        self._output = output

    def add(self, verdict: Verdict) -> None:
        """Writes the line of one verdict."""
        self._output.write(json.dumps(verdict.as_json()) + "\n")

    def finish(self, tally: Tally) -> None:
        """Writes the summary."""
        self._output.write(json.dumps({"summary": tally.as_json()}) + "\n")


class JsonReport:
    """One JSON document, `{"verdicts": [...], "summary": {...}}`, written as verdicts complete."""

    def __init__(self, output: Output) -> None:
        self._output = output
        self._before = '{"verdicts": [\n'

    def add(self, verdict: Verdict) -> None:
        """Writes one element of `verdicts`."""
        self._output.write(self._before + json.dumps(verdict.as_json()))
        self._before = ",\n"

    def finish(self, tally: Tally) -> None:
        """Closes the list and writes the summary."""
        opening = self._before if tally.total == 0 else "\n"
        self._output.write(f'{opening}], "summary": {json.dumps(tally.as_json())}}}\n')


class TableReport:
    """A table, worst first, then every defect in full and a summary. It needs all verdicts before it can begin.

    Of each status no more than the first 1,000 verdicts are kept and shown: nobody reads more of them, and a scan of
    millions would fill the memory.
    """

    def __init__(self, output: Output) -> None:
        self._output = output
        self._verdicts: dict[Status, list[Verdict]] = {status: [] for status in _WORST_FIRST}
        self._noted = 0

    def add(self, verdict: Verdict) -> None:
        """Keeps one verdict until the end."""
        self._noted += bool(verdict.notes)
        kept = self._verdicts[verdict.status]
        if len(kept) < _SHOWN_OF_A_STATUS:
            kept.append(verdict)

    def finish(self, tally: Tally) -> None:
        """Writes the table, the defects and the summary."""
        ordered = [v for kept in self._verdicts.values() for v in sorted(kept, key=lambda v: v.delta)]
        page = StringIO()
        terminal = self._output.stream.isatty()
        console = Console(file=page, force_terminal=terminal, highlight=False, markup=False, emoji=False)
        if ordered:
            console.print(_table(ordered))
        for verdict in ordered:
            if verdict.findings:
                _print_defects(console, verdict)
        told = [verdict for verdict in ordered if verdict.findings and verdict.notes]  # printed with their defects
        if notes := tally.notes - sum(len(verdict.notes) for verdict in told):
            noted = f"{_counted(notes, 'note')} on {_counted(self._noted - len(told), 'delta')}"
            console.print(Text(f"\n{noted}; ndjson and json have them", "dim"))
        for status, kept in self._verdicts.items():
            if more := tally.counts[status] - len(kept):
                console.print(Text(f"\n{more:,} more {status} are not shown; ndjson and json have them", "dim"))
        console.print(_summary(tally))
        self._output.write("".join(line.rstrip() + "\n" for line in page.getvalue().splitlines()))


def _later(target: str) -> Callable[[Output], Report]:
    """A format of another module, `module:class`, imported when it is used and not before."""

    def make(output: Output) -> Report:
        module, _, name = target.partition(":")
        report: Report = getattr(import_module(module), name)(output)
        return report

    return make


REPORTS: dict[str, Callable[[Output], Report]] = {
    "table": TableReport,
    "ndjson": NdjsonReport,
    "json": JsonReport,
    "junit": _later("scanner.report.junit:JunitReport"),
    "html": _later("scanner.report.html:HtmlReport"),
}
"""The formats by their names."""


def _table(verdicts: list[Verdict]) -> Table:
    table = Table(box=None, header_style="bold", pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column("status", no_wrap=True)
    table.add_column("delta", overflow="fold", min_width=20)
    table.add_column("size", justify="right", no_wrap=True)
    table.add_column("holds" if all(not verdict.findings for verdict in verdicts) else "reason, holds", overflow="fold")
    for verdict in verdicts:
        reason, holdings = _reason(verdict.findings), _holdings(verdict)
        table.add_row(
            Text(verdict.status.value, _STYLES[verdict.status]),
            _shown(verdict.delta),
            decimal(verdict.size),
            Text("\n").join(Text(line, overflow="fold") for line in (reason, holdings) if line),
        )
    return table


def _holdings(verdict: Verdict) -> str:
    """What a delta holds, in a few words; empty when it was not counted."""
    count = sum(collection.count for collection in verdict.collections)
    if len(verdict.collections) == 1:
        return f"{count:,} in {printable(verdict.collections[0].name, 40)}"
    return f"{count:,} in {len(verdict.collections)} collections" if verdict.collections else ""


def _reason(findings: tuple[Finding, ...]) -> str:
    """The code that came first, and how many more there are; the details follow below the table."""
    if not findings:
        return ""
    return findings[0].code if len(findings) == 1 else f"{findings[0].code} +{len(findings) - 1}"


def _print_defects(console: Console, verdict: Verdict) -> None:
    # Not wrapped: a path must stay whole for the mouse and for grep.
    head = Text.assemble("\n", (verdict.status.value, _STYLES[verdict.status]), " ", _shown(verdict.delta))
    console.print(head, soft_wrap=True)
    for finding in (*verdict.findings, *verdict.notes):
        style = "bold" if finding in verdict.findings else "dim"
        console.print(Text.assemble("  ", (finding.code, style), "  ", _shown(finding.file)), soft_wrap=True)
        console.print(Padding(_shown(finding.detail), (0, 0, 0, 4)))


def _summary(tally: Tally) -> Text:
    parts: Iterable[Text] = (
        Text(f"{tally.counts[status]:,} {status.value}", _STYLES[status] if tally.counts[status] else "dim")
        for status in reversed(_WORST_FIRST)
    )
    head = f"\n{_counted(tally.total, 'delta')}, {decimal(tally.size)}, {tally.seconds:.1f} s: "
    return Text.assemble(head, Text(", ").join(parts), *(f"; {reservation}" for reservation in tally.reservations))


def _counted(number: int, noun: str) -> str:
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"


def _shown(text: str) -> Text:
    return Text(printable(text, _LONGEST), overflow="fold")
