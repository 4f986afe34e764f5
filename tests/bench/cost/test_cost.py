"""`python -m bench`: its command line, what it makes of figures, and that its measures measure what they say."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import bench.__main__ as program
from bench.cost import rivals, stock
from bench.cost.figures import Figure, Target
from bench.cost.targets import TARGETS, held, unmeasured
from devtools.damage.deltas import DeltaRecipe, build_delta
from tests import ROOT
from tests.support.processes import living_in

_EMBEDDINGS = 12


@pytest.fixture(scope="module")
def delta(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("cost") / "delta"
    build_delta(folder, DeltaRecipe(embeddings=_EMBEDDINGS))
    return folder


def _suites(monkeypatch: pytest.MonkeyPatch, **costs: float) -> list[str]:
    """Suites that measure nothing but note that they ran; each has one figure of this cost beside a cost of 100."""
    ran: list[str] = []

    def suite(name: str, ours: float) -> list[Figure]:
        ran.append(name)
        return [Figure(f"{name}/a", name, ours, "a rival", 100.0, "ms", Target("cheaper", 10))]

    suites = {name: lambda name=name, ours=ours: suite(name, ours) for name, ours in costs.items()}
    monkeypatch.setattr(program, "SUITES", suites)
    monkeypatch.setattr(program.signal, "signal", lambda *_: None)
    return ran


def test_it_prints_every_suite_and_succeeds_when_all_targets_are_met(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    ran = _suites(monkeypatch, first=1.0, second=2.0)
    assert program.main([]) == 0
    output = capsys.readouterr().out
    assert ran == ["first", "second"]
    assert "100 x cheaper" in output
    assert "50.0 x cheaper" in output
    assert "2 of 2 targets met" in output


def test_a_missed_target_is_shown_and_sets_the_exit_status(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    _suites(monkeypatch, first=1.0, second=20.0)
    assert program.main([]) == 1
    output = capsys.readouterr().out
    assert "MISSED" in output
    assert "1 of 2 targets met" in output


def test_only_runs_what_is_named_in_the_order_of_all(monkeypatch: pytest.MonkeyPatch) -> None:
    ran = _suites(monkeypatch, first=1.0, second=1.0, third=1.0)
    assert program.main(["--only", "third", "first"]) == 0
    assert ran == ["first", "third"]


def test_json_holds_the_figures_and_what_they_were_measured_on(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    _suites(monkeypatch, first=20.0)
    program.main(["--json", str(tmp_path / "figures.json")])
    whole = json.loads((tmp_path / "figures.json").read_text())
    assert whole["machine"]["processors"] >= 1
    assert whole["figures"] == [
        {
            "name": "first/a",
            "what": "first",
            "ours": 20.0,
            "against": "a rival",
            "theirs": 100.0,
            "unit": "ms",
            "ratio": 5.0,
            "target": "at least 10 times cheaper",
            "met": False,
            "spoilt": "",
        }
    ]


@pytest.mark.parametrize("arguments", [["--only", "nonsense"], ["--json", "/nowhere/figures.json"]])
def test_a_wrong_command_line_ends_it_before_anything_is_measured(
    arguments: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    ran = _suites(monkeypatch, first=1.0)
    with pytest.raises(SystemExit) as end:
        program.main(arguments)
    assert end.value.code == 2
    assert arguments[1] in capsys.readouterr().err
    assert ran == []


def test_an_interrupt_ends_it_with_130(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted() -> list[Figure]:
        raise KeyboardInterrupt

    _suites(monkeypatch)
    monkeypatch.setattr(program, "SUITES", {"first": interrupted})
    assert program.main([]) == 130


def test_a_suite_that_forgets_a_target_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    _suites(monkeypatch)
    monkeypatch.setattr(program, "SUITES", {"import": list})
    with pytest.raises(RuntimeError, match="import/validator"):
        program.main([])


def test_every_target_belongs_to_a_suite() -> None:
    assert {name.partition("/")[0] for name in TARGETS} == set(program.SUITES)


def test_a_figure_gets_its_target_by_its_name() -> None:
    figure = held("import/validator", "ours", 100.0, "theirs", 500.0, "ms")
    assert figure.target == TARGETS["import/validator"]
    assert held("import/other", "ours", 100.0, "theirs", 500.0, "ms").target is None
    assert unmeasured("import", [figure]) == set()
    assert unmeasured("import", []) == {"import/validator"}


def test_a_delta_in_stock_is_made_once_and_another_recipe_is_another_delta(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(stock.tempfile, "gettempdir", lambda: str(tmp_path))
    built: list[int] = []

    def build(folder: Path, recipe: DeltaRecipe) -> None:
        built.append(recipe.embeddings)
        folder.mkdir()
        (folder / "chroma.sqlite3").touch()

    monkeypatch.setattr(stock, "_build", build)
    first = stock.stocked(3)
    assert stock.stocked(3) == first
    assert stock.stocked(4) != first
    assert built == [3, 4]
    assert {path.parent for path in tmp_path.rglob("chroma.sqlite3")} == {first, stock.stocked(4)}


def test_a_build_that_fails_leaves_nothing_in_stock(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(stock.tempfile, "gettempdir", lambda: str(tmp_path))
    monkeypatch.setattr(stock, "_BUILD", "import sys; sys.exit('no room')")
    with pytest.raises(RuntimeError, match="3 embeddings failed: no room"):
        stock.stocked(3)
    (kept,) = tmp_path.iterdir()
    assert list(kept.iterdir()) == []


def test_the_name_of_a_stocked_delta_tells_recipes_and_versions_apart() -> None:
    recipe = DeltaRecipe(embeddings=5, dimension=7)
    names = {
        stock.key_of(recipe, "1.5.9"),
        stock.key_of(recipe, "1.5.8"),
        stock.key_of(DeltaRecipe(embeddings=5, dimension=7, seed=1), "1.5.9"),
    }
    assert len(names) == 3
    assert all(name.startswith("5x7-") for name in names)


def test_the_bytes_are_not_measured_on_a_database_with_a_fault(tmp_path: Path) -> None:
    (tmp_path / "chroma.sqlite3").write_bytes(b"SQLite format 3\0" + bytes(84))
    with pytest.raises(Exception, match=r"integrity_check says|not a database|malformed"):
        rivals.bytes_and_integrity(tmp_path)()


@pytest.mark.slow
def test_chroma_is_asked_in_copies_that_go_away(delta: Path, tmp_path: Path) -> None:
    before = {path: path.read_bytes() for path in delta.rglob("*") if path.is_file()}
    fresh = rivals.chroma_in_child(delta, tmp_path, _EMBEDDINGS)
    with rivals.warm_chroma(tmp_path) as measured:
        warm = measured(delta, _EMBEDDINGS)
        assert all(milliseconds > 0 for milliseconds in (warm(), warm(), fresh()))
    assert list(tmp_path.iterdir()) == []
    assert {path: path.read_bytes() for path in delta.rglob("*") if path.is_file()} == before


def test_a_child_whose_parent_is_gone_ends_before_it_reads_anything(delta: Path) -> None:
    command = [sys.executable, "-m", "bench.cost.reader", "0", str(delta)]  # nobody's child is of process 0
    done = subprocess.run(command, cwd=ROOT, capture_output=True, timeout=60, check=False)
    assert (done.returncode, done.stdout) == (1, b"")


@pytest.mark.slow
def test_a_rival_that_counts_something_else_is_no_measure(delta: Path, tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match=f"counts {_EMBEDDINGS} embeddings of 999"):
        rivals.chroma_in_child(delta, tmp_path, 999)()
    with rivals.warm_chroma(tmp_path) as measured, pytest.raises(RuntimeError, match="of 999"):
        measured(delta, 999)()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_run_leaves_no_process_and_nothing_but_its_stock(number: signal.Signals, tmp_path: Path) -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "bench", "--only", "structure-500"],
        cwd=ROOT,
        env={**os.environ, "TMPDIR": str(tmp_path)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    end = time.monotonic() + 60
    while not list(tmp_path.glob("deltaguard-*/*/copy-*")) and time.monotonic() < end:
        time.sleep(0.01)
    process.send_signal(number)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == {signal.SIGINT: 130, signal.SIGTERM: 143}[number], errors
    (left,) = tmp_path.iterdir()
    assert left.name.startswith("bench-deltas-")
    assert [path.name.partition("-")[0] for path in left.iterdir()] == ["500x1536"]
    while living_in(tmp_path) and time.monotonic() < end + 60:  # a child that was just starting ends by itself
        time.sleep(0.01)
    assert living_in(tmp_path) == []
