"""JUnit XML that CI systems take: well-formed whatever a delta is called, with the attributes of the common schema."""

from __future__ import annotations

from pathlib import Path
from xml.etree import ElementTree

import pytest

from scanner.report import junit
from scanner.report.junit import JunitReport
from scanner.report.output import Output
from scanner.run.workers import Tally
from shared.model.verdict import Depth, Finding, Verdict
from tests.scanner.report.test_output import CORRUPT, HEALTHY, HOSTILE, INCOMPLETE, UNDETERMINED

# https://github.com/windyroad/JUnit-Schema/blob/master/JUnit.xsd: what must be there, and in which order.
SUITE = ["id", "package", "name", "timestamp", "hostname", "tests", "failures", "errors", "time"]
CHILDREN = ["properties", "testcase", "system-out", "system-err"]


def suite_of(path: Path, *verdicts: Verdict, tally: Tally | None = None) -> ElementTree.Element:
    tally = tally or Tally()
    with Output(path) as output:
        report = JunitReport(output)
        for verdict in verdicts:
            tally.add(verdict)
            report.add(verdict)
        report.finish(tally)
    root = ElementTree.parse(path).getroot()
    assert (root.tag, len(root), root.attrib) == ("testsuites", 1, {})
    return root[0]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "report.xml"


def test_a_case_a_delta_with_failures_and_errors(path: Path) -> None:
    suite = suite_of(path, HEALTHY, CORRUPT, INCOMPLETE, UNDETERMINED)
    assert [suite.attrib[name] for name in ("tests", "failures", "errors")] == ["4", "2", "1"]
    cases = {case.attrib["name"]: [child.tag for child in case] for case in suite.iter("testcase")}
    assert cases == {
        HEALTHY.delta: [],
        CORRUPT.delta: ["failure"],
        INCOMPLETE.delta: ["failure"],
        UNDETERMINED.delta: ["error"],
    }


def test_a_failure_says_what_was_found(path: Path) -> None:
    (failure,) = suite_of(path, CORRUPT).iter("failure")
    assert failure.attrib == {"type": "corrupt", "message": "corrupt: sqlite.truncated, hnsw.size_mismatch"}
    assert failure.text == (
        "sqlite.truncated chroma.sqlite3: 100 bytes are lost\n"
        "hnsw.size_mismatch 0b3c/header.bin: 99 bytes, expected 100"
    )


@pytest.mark.parametrize("verdicts", [(), (HEALTHY, CORRUPT)])
def test_it_has_all_that_the_schema_requires(path: Path, verdicts: tuple[Verdict, ...]) -> None:
    suite = suite_of(path, *verdicts)
    assert list(suite.attrib) == SUITE
    assert list(dict.fromkeys(child.tag for child in suite)) == [
        tag for tag in CHILDREN if verdicts or tag != "testcase"
    ]
    assert all(set(case.attrib) == {"classname", "name", "time"} for case in suite.iter("testcase"))
    assert float(suite.attrib["time"]) >= 0
    assert len(suite.attrib["timestamp"]) == len("2026-11-25T12:00:00"), "the schema has no time zone here"


def test_no_character_breaks_it(path: Path) -> None:
    every = "".join(map(chr, range(0x300))) + "\ud800\ufffe\uffff<&>\"']]>"
    found = Finding("sqlite.malformed", every, every)
    suite = suite_of(path, Verdict(every, Depth.OPEN, (found,)), Verdict(HOSTILE, Depth.OPEN))
    name = next(suite.iter("testcase")).attrib["name"]
    assert name.startswith("\\u0000\\u0001")
    assert name.endswith("\\ud800\\ufffe\\uffff<&>\"']]>")


def test_so_many_that_they_do_not_fit_in_memory_arrive_all(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(junit, "_IN_MEMORY", 1000)
    assert len(list(suite_of(path, *([HEALTHY, CORRUPT] * 500)).iter("testcase"))) == 1000


def test_what_the_numbers_do_not_tell_stands_at_the_end(path: Path) -> None:
    suite = suite_of(path, HEALTHY, tally=Tally(interrupted=True))
    assert suite[-1].text == "interrupted\n"
