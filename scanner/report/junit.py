"""Verdicts as JUnit XML, which every CI system shows: a test case a delta.

The elements and attributes are those of the common schema (https://github.com/windyroad/JUnit-Schema), which Jenkins'
own schema accepts as well. A corrupt or incomplete delta is a failure, one that could not be checked an error.
"""

from __future__ import annotations

import socket
import tempfile
from datetime import UTC, datetime
from xml.sax.saxutils import escape, quoteattr

from scanner.report.output import Output
from scanner.run.workers import Tally
from shared.model.delta import printable
from shared.model.verdict import Status, Verdict

_IN_MEMORY = 8 * 1024 * 1024
_LONGEST = 8192
_ELEMENTS = {Status.CORRUPT: "failure", Status.INCOMPLETE: "failure", Status.UNDETERMINED: "error"}


class JunitReport:
    """One test suite. Its head has the totals, so the cases wait for them: in memory, or in a file if they are many."""

    def __init__(self, output: Output) -> None:
        self._output = output
        self._cases = tempfile.SpooledTemporaryFile(_IN_MEMORY, "w+", encoding="utf-8")  # noqa: SIM115 - till `finish`
        self._started = datetime.now(UTC)

    def add(self, verdict: Verdict) -> None:
        """Takes one test case."""
        seconds, name = verdict.duration_ms / 1000, _attribute(verdict.delta)
        case = f"    <testcase classname={_attribute('deltaguard.' + verdict.depth)} name={name} time={_time(seconds)}"
        if element := _ELEMENTS.get(verdict.status):
            codes = ", ".join(dict.fromkeys(finding.code for finding in verdict.findings))
            said = "\n".join(_text(f"{f.code} {f.file}: {f.detail}") for f in verdict.findings)
            message = _attribute(f"{verdict.status}: {codes}")
            inside = f"      <{element} type={_attribute(verdict.status)} message={message}>{said}</{element}>\n"
            self._cases.write(f"{case}>\n{inside}    </testcase>\n")
        else:
            self._cases.write(f"{case}/>\n")

    def finish(self, tally: Tally) -> None:
        """Writes the suite."""
        counts = tally.counts
        attributes = {
            "id": "0",
            "package": "deltaguard",
            "name": "deltaguard",
            "timestamp": self._started.strftime("%Y-%m-%dT%H:%M:%S"),
            "hostname": socket.gethostname(),
            "tests": str(tally.total),
            "failures": str(counts[Status.CORRUPT] + counts[Status.INCOMPLETE]),
            "errors": str(counts[Status.UNDETERMINED]),
        }
        head = " ".join(f"{name}={_attribute(value)}" for name, value in attributes.items())
        self._output.write(
            f'<?xml version="1.0" encoding="UTF-8"?>\n<testsuites>\n  <testsuite {head} time={_time(tally.seconds)}>\n'
            "    <properties/>\n"
        )
        self._cases.seek(0)
        while part := self._cases.read(1024 * 1024):
            self._output.write(part)
        self._cases.close()
        said = "".join(f"{_text(line)}\n" for line in tally.reservations)
        self._output.write(f"    <system-out/>\n    <system-err>{said}</system-err>\n  </testsuite>\n</testsuites>\n")


def _time(seconds: float) -> str:
    return f'"{seconds:.3f}"'


def _attribute(text: str) -> str:
    return quoteattr(printable(text, _LONGEST))


def _text(text: str) -> str:
    # XML 1.0 has no way to write most control characters, not even escaped.
    return escape(printable(text, _LONGEST))
