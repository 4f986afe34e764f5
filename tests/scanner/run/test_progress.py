"""People see how far a run is; pipes and logs do not."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import struct
import subprocess
import sys
import termios
import threading
from pathlib import Path

from rich.console import Console
from rich.progress import Progress

from scanner.run.progress import Display, counted_ahead
from scanner.run.throttle import Throttle
from scanner.run.workers import Tally
from shared.model.delta import DATABASE
from shared.model.verdict import Depth, Finding, Verdict
from tests import ROOT


def shown_by(display: Display, console: Console) -> str:
    with console.capture() as capture:
        display._progress.refresh()  # type: ignore[union-attr]
    return capture.get()


def test_the_counts_and_the_pace_are_shown() -> None:
    console = Console(force_terminal=True, width=200)
    with Progress("{task.completed:.0f} of {task.total} {task.fields[counts]}", console=console) as progress:
        throttle = Throttle(8)
        display = Display(throttle, progress, 10, earlier=2)
        tally = Tally()
        for observed in ((), (), (), (Finding("sqlite.empty", DATABASE, "0 bytes"),)):
            tally.add(Verdict("delta", Depth.LISTING, observed))
        display.show(tally)
        assert progress.tasks[0].completed == 2, "what earlier runs have done is not this one's speed"
        assert progress.tasks[0].fields["counts"] == "[green]3 healthy[/], [red]1 corrupt[/]"
        throttle.slow_down()
        display.show(tally)
        assert progress.tasks[0].fields["counts"].endswith("[yellow]throttled: 4 at once[/]")


def test_the_total_comes_when_it_was_counted() -> None:
    with Progress(console=Console(quiet=True)) as progress:
        display = Display(Throttle(1), progress, None, earlier=0)
        counted = threading.Event()

        def count(_: threading.Event) -> int:
            counted.set()
            return 42

        with counted_ahead(count, display):
            assert counted.wait(30)
        for thread in threading.enumerate():
            if thread.name == "count":
                thread.join(30)
        assert progress.tasks[0].total == 42


def test_a_count_is_ended_with_the_run() -> None:
    with Progress(console=Console(quiet=True)) as progress:
        display = Display(Throttle(1), progress, None, earlier=0)
        given_up = threading.Event()

        def count(ended: threading.Event) -> None:
            assert ended.wait(30)
            given_up.set()

        with counted_ahead(count, display):
            pass
        assert given_up.wait(30)
        assert progress.tasks[0].total is None


def test_a_terminal_gets_a_line_and_the_results_stay_clean(tmp_path: Path) -> None:
    for number in range(40):
        (tmp_path / "deltas" / str(number)).mkdir(parents=True)
        (tmp_path / "deltas" / str(number) / DATABASE).write_bytes(b"")
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 200, 0, 0))
    with subprocess.Popen(
        [sys.executable, "-m", "scanner", "scan", str(tmp_path / "deltas"), "--format", "ndjson"],
        env={**os.environ, "PYTHONPATH": str(ROOT), "TERM": "xterm-256color"},
        stdout=subprocess.PIPE,
        stderr=theirs,
        text=True,
    ) as program:
        os.close(theirs)
        assert program.stdout is not None
        lines = program.stdout.read().splitlines()
        seen = b""
        try:
            while part := os.read(ours, 65536):
                seen += part
        except OSError:
            pass  # the other end was closed
        assert program.wait(60) == 1
    os.close(ours)
    assert len(lines) == 41
    assert all(line.startswith("{") for line in lines)
    text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", seen.decode())
    assert re.search(r"/40\b|/\?", text)
    assert "corrupt" in text
