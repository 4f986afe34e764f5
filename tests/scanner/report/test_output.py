"""What people and programs read: the formats, and that a hostile name stays a name."""

from __future__ import annotations

import json
from importlib.util import find_spec
from pathlib import Path

import pytest

from scanner.report.output import REPORTS, Output
from scanner.run.workers import Tally
from shared.model.errors import CouldNotCheck, TargetError
from shared.model.verdict import CollectionCount, Depth, Finding, Verdict

WORDS = (CollectionCount("words", 32, 1200),)
HEALTHY = Verdict("s3://bucket/deltas/good/", Depth.STRUCTURE, (), WORDS, 246_200, "f" * 64, 12.3456)
NOTED = Verdict("s3://bucket/deltas/noted/", Depth.LISTING, (Finding("layout.foreign_file", ".DS_Store", "foreign"),))
CORRUPT = Verdict(
    "s3://bucket/deltas/bad/",
    Depth.STRUCTURE,
    (
        Finding("sqlite.truncated", "chroma.sqlite3", "100 bytes are lost"),
        Finding("hnsw.size_mismatch", "0b3c/header.bin", "99 bytes, expected 100"),
    ),
    (*WORDS, CollectionCount("more", 32, 34)),
)
UNDETERMINED = Verdict("s3://bucket/deltas/unknown/", Depth.STRUCTURE, (Finding("check.throttled", "", "slow down"),))
INCOMPLETE = Verdict("s3://bucket/deltas/new/", Depth.STRUCTURE, (Finding("arrival.settling", "", "3 s ago"),))
FORMATS = [name for name in REPORTS if name != "html" or find_spec("scanner.report.html")]
HOSTILE = "s3://bucket/[red]\x1b]0;title\x07\x1b[2J\u202egnp\n/"


def report(name: str, path: Path, *verdicts: Verdict, tally: Tally | None = None) -> str:
    """What the report of these verdicts says, with a tally of them."""
    tally = tally or Tally()
    with Output(path) as output:
        made = REPORTS[name](output)
        for verdict in verdicts:
            tally.add(verdict)
            made.add(verdict)
        made.finish(tally)
    return path.read_text()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "report"


def test_ndjson_has_a_line_a_delta_and_the_summary_last(path: Path) -> None:
    good, bad, summary = map(json.loads, report("ndjson", path, HEALTHY, CORRUPT).splitlines())
    promised = {"delta", "status", "findings", "depth", "collections", "bytes", "fingerprint", "duration_ms"}
    assert promised <= good.keys()
    assert (good["delta"], good["status"], good["bytes"]) == ("s3://bucket/deltas/good/", "healthy", 246_200)
    assert good["collections"] == [{"name": "words", "dimension": 32, "count": 1200}]
    assert bad["findings"][0] == {"code": "sqlite.truncated", "file": "chroma.sqlite3", "detail": "100 bytes are lost"}
    assert summary["summary"].keys() == {
        "healthy", "corrupt", "incomplete", "undetermined", "total", "bytes", "duration_ms",
    }  # fmt: skip
    assert summary["summary"]["total"] == 2


def test_an_ndjson_line_can_be_read_as_soon_as_its_verdict_is_there(path: Path) -> None:
    with Output(path) as output:
        REPORTS["ndjson"](output).add(HEALTHY)
        assert json.loads(path.read_text())["status"] == "healthy"


@pytest.mark.parametrize("verdicts", [(), (HEALTHY,), (HEALTHY, CORRUPT, UNDETERMINED)])
def test_json_is_one_document(path: Path, verdicts: tuple[Verdict, ...]) -> None:
    document = json.loads(report("json", path, *verdicts))
    assert document["verdicts"] == [verdict.as_json() for verdict in verdicts]
    assert document["summary"]["total"] == len(verdicts)


def test_the_table_has_the_worst_first(path: Path) -> None:
    lines = report("table", path, HEALTHY, UNDETERMINED, INCOMPLETE, CORRUPT).splitlines()
    rows = [line.split()[0] for line in lines[1 : lines.index("")] if not line.startswith(" ")]
    assert rows == ["corrupt", "incomplete", "undetermined", "healthy"]


def test_the_table_tells_every_defect_in_full_below(path: Path) -> None:
    text = report("table", path, CORRUPT, HEALTHY)
    assert "sqlite.truncated +1" in text
    assert "1,234 in 2 collections" in text
    assert (
        "\ncorrupt s3://bucket/deltas/bad/\n"
        "  sqlite.truncated  chroma.sqlite3\n"
        "    100 bytes are lost\n"
        "  hnsw.size_mismatch  0b3c/header.bin\n"
        "    99 bytes, expected 100\n"
    ) in text


@pytest.mark.slow
def test_the_table_of_very_many_shows_the_first_of_each_status(path: Path) -> None:
    verdicts = [Verdict(f"s3://bucket/{number:04}/", Depth.LISTING, CORRUPT.observed) for number in range(1003)]
    text = report("table", path, *verdicts, HEALTHY)
    assert text.count("  sqlite.truncated  chroma.sqlite3") == 1000
    assert "\n3 more corrupt are not shown; ndjson and json have them\n" in text
    assert "1,003 corrupt" in " ".join(text.split())


def test_the_table_ends_with_a_summary(path: Path) -> None:
    text = report("table", path, HEALTHY, NOTED, CORRUPT)
    assert "1 note on 1 delta;" in text
    assert text.splitlines()[-1].startswith("3 deltas, 246.2 kB, 0.0 s: 2 healthy, 0 undetermined,")
    assert text.endswith("1 corrupt\n")


def test_the_table_of_nothing_is_a_summary(path: Path) -> None:
    assert report("table", path).strip().startswith("0 deltas, 0 bytes")


def test_the_summary_says_what_is_missing_from_it(path: Path) -> None:
    text = report("table", path, HEALTHY, tally=Tally(interrupted=True, unfinished=True))
    assert " ".join(text.split()).endswith("interrupted; not everything could be listed")


def test_a_long_path_is_folded_and_not_cut_at_80_columns(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    long = "s3://bucket/" + "/".join(f"part-{n:02}" for n in range(15)) + "/"
    text = report("table", path, Verdict(long, Depth.STRUCTURE, CORRUPT.observed, WORDS, 246_200))
    table, _, defects = text.partition("\n\n")
    assert max(map(len, table.splitlines())) <= 80
    assert "".join(line[9:].split("  ")[0].strip() for line in table.splitlines()[1:]) == long
    assert f"corrupt {long}\n" in defects


@pytest.mark.parametrize("name", FORMATS)
def test_no_name_of_a_hostile_delta_controls_the_terminal(path: Path, name: str) -> None:
    finding = Finding("layout.foreign_file", HOSTILE, HOSTILE), Finding("sqlite.malformed", HOSTILE, HOSTILE)
    text = report(name, path, Verdict(HOSTILE, Depth.OPEN, finding, (CollectionCount(HOSTILE, 1, 1),)))
    assert all(character.isprintable() or character == "\n" for character in text)


def test_markup_in_a_name_is_shown_as_it_is(path: Path) -> None:
    assert "corrupt s3://bucket/[red]\\u001b]0;title\\u0007" in report(
        "table", path, Verdict(HOSTILE, Depth.OPEN, CORRUPT.observed)
    )


def test_a_name_that_is_no_unicode_can_be_written(path: Path) -> None:
    assert "\\udcff" in report("table", path, Verdict("folder-\udcff", Depth.OPEN, CORRUPT.observed))


def test_an_output_that_cannot_be_opened_is_a_usage_error(tmp_path: Path) -> None:
    with pytest.raises(TargetError, match="No such file or directory"):
        Output(tmp_path / "no" / "report")


def test_a_full_disk_is_told() -> None:
    with Output(Path("/dev/full")) as output, pytest.raises(CouldNotCheck, match="No space left"):
        output.write("text")
