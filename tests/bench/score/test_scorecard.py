"""The scorecard: its scoring is pure; a tenth of it runs to its end; it leaves nothing behind, interrupted or not."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

from bench.score import scorecard
from bench.score.checkers import OURS, RIVALS
from bench.score.children import forked
from bench.score.figures import Outcome, Result, tally
from bench.score.generic import GENERIC, break_delta
from bench.score.plan import SEEDS, UNDAMAGED, Case, cases
from bench.score.scorecard import judged
from bench.score.truth import same
from bench.score.zoo import thawed, zoo_bases
from devtools.damage.catalogue import DAMAGES
from devtools.damage.file_breaks import DoesNotApply
from tests import ROOT
from tests.support.processes import living_in

_ALL = (*OURS, *RIVALS)


def _result(
    status: str,
    harm: str = "",
    sort: str = "",
    codes: tuple[str, ...] = (),
    source: Any = "generic",
    moved: bool | None = None,
    **flags: bool,
) -> Result:
    said = {"status": status, "codes": list(codes), "reason": ""}
    case = Case("tuned", source, "some-kind", "queued", 1, **flags)
    witness = None if moved is None else {"moved": moved, "why": ""}
    return Result(case, "done", harm, sort, dict.fromkeys(_ALL, said), witness)


@pytest.mark.parametrize(
    ("result", "outcome"),
    [
        (_result("corrupt", "SIGSEGV at count", "dies"), Outcome.HELD),
        (_result("healthy", "SIGSEGV at count", "dies"), Outcome.MISSED),
        (_result("undetermined", "fails", "fails"), Outcome.HELD),
        (_result("healthy", "1 vectors differ", "values"), Outcome.VALUE_MISSED),
        (_result("corrupt", "1 vectors differ", "values"), Outcome.VALUE_HELD),
        (_result("healthy"), Outcome.PASSED),
        (_result("undetermined"), Outcome.PASSED),
        (_result("corrupt", codes=("sqlite.malformed",)), Outcome.REFUSED),
        (_result("corrupt", codes=("records.vector_missing",)), Outcome.FALSE_ALARM),
    ],
)
def test_what_a_word_on_chance_damage_is_worth(result: Result, outcome: Outcome) -> None:
    assert result.outcome("structure") is outcome


def test_values_that_the_catalogue_does_not_excuse_count_as_missed() -> None:
    planned = _result("healthy", "1 documents differ", "values", source="catalogue")
    excused = _result("healthy", "1 documents differ", "values", source="catalogue", value_only=True)
    assert planned.outcome("structure") is Outcome.MISSED
    assert excused.outcome("structure") is Outcome.VALUE_MISSED


def test_values_that_contradict_the_format_count_as_missed() -> None:
    assert _result("healthy", "60 vectors differ", "values", telling=True).outcome("structure") is Outcome.MISSED


def test_nothing_excuses_an_alarm_on_a_healthy_delta() -> None:
    for codes in (("sqlite.malformed",), ("manifest.checksum_differs",), ()):
        assert _result("corrupt", codes=codes, source="healthy").outcome("structure") is Outcome.FALSE_ALARM


def test_only_a_manifest_may_object_to_what_the_catalogue_calls_harmless() -> None:
    by_manifest = _result("corrupt", codes=("manifest.size_differs",), source="catalogue", harmless=True)
    by_structure = _result(
        "corrupt", codes=("manifest.size_differs", "sqlite.malformed"), source="catalogue", harmless=True
    )
    assert by_manifest.outcome("structure+manifest") is Outcome.REFUSED
    assert by_structure.outcome("structure+manifest") is Outcome.FALSE_ALARM


def test_shares_leave_out_what_no_structure_can_show() -> None:
    found, missed = _result("corrupt", "fails", "fails"), _result("healthy", "fails", "fails")
    value, healthy = _result("healthy", "differs", "values"), _result("healthy", source="healthy")
    sums = tally([found, found, found, missed, value, healthy, _result("healthy")], _ALL)
    assert (sums.cases, sums.harmful, sums.value_only, sums.healthy, sums.harmless) == (7, 4, 1, 1, 1)
    assert sums.share("structure") == 75.0
    assert sums.share("structure", values=True) == 60.0
    assert tally([], _ALL).share("structure") == 100.0


def test_what_is_held_and_what_is_destroyed_are_counted_apart() -> None:
    harmed = {"harm": "fails", "sort": "fails"}
    results = [
        _result("corrupt", **harmed, moved=True),
        _result("corrupt", **harmed, moved=False),
        _result("corrupt", **harmed),  # its second witness was not asked
        _result("undetermined", **harmed),
        _result("corrupt", codes=("sqlite.malformed",), moved=False),
        _result("corrupt", codes=("sqlite.malformed",), moved=True),
        _result("corrupt", codes=("manifest.checksum_differs",)),
    ]
    sums = tally(results, _ALL)
    assert sums.count("structure", Outcome.HELD) == 4
    assert (sums.destroyed["structure"], sums.asked["structure"]) == (1, 2)
    assert sums.destroyed_complete["structure"] == 1, "a manifest is a proof of its own"


def test_a_delta_that_would_be_destroyed_although_it_is_complete_fails_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    def line(moved: bool) -> dict[str, Any]:
        said = {"status": "corrupt", "codes": ["sqlite.malformed"], "reason": ""}
        truth = {"harm": "", "sort": "", "seed_passes": True}
        case = asdict(next(case for case in cases("tuned", quick=True) if case.source == "generic"))
        return {"case": case, "done": "", "truth": truth, "checkers": dict.fromkeys(_ALL, said)} | {
            "witness": {"moved": moved, "why": ""}
        }

    for moved, code in ((False, 0), (True, 1)):
        monkeypatch.setattr(scorecard, "judged", lambda *_, moved=moved: [line(moved)])
        assert scorecard.main(["--seeds", "tuned", "--quick"]) == code


def test_a_plan_is_the_same_each_time() -> None:
    for group in SEEDS:
        assert cases(group, quick=True) == cases(group, quick=True)
    assert not set(SEEDS["tuned"]) & set(SEEDS["held-back"])


@pytest.mark.slow
def test_a_plan_names_each_case_once_and_both_have_each_directory_of_the_zoo_and_each_damage() -> None:
    plans = {group: cases(group) for group in SEEDS}
    for group, plan in plans.items():
        tenth = cases(group, quick=True)
        assert len(set(plan)) == len(plan)
        assert set(tenth) <= set(plan)
        assert len(plan) / 10 <= len(tenth) <= len(plan) / 10 + 3
    of_zoo = [case for plan in plans.values() for case in plan if case.source == "zoo"]
    assert sorted(case.base for case in of_zoo if case.healthy) == sorted(zoo_bases())
    planned = {damage.kind for damage in DAMAGES}
    assert sorted(case.kind for case in of_zoo if case.kind in planned) == sorted(planned)
    by_chance = {generic.kind for generic in GENERIC if not generic.kind.startswith("torn-copy")}
    assert {case.kind for case in of_zoo if not case.healthy} == planned | by_chance
    assert not planned & by_chance


def test_what_a_directory_of_the_zoo_can_take_is_seen_in_it(tmp_path: Path) -> None:
    for number, (name, needs) in enumerate([*zoo_bases().items()][::9]):
        made = thawed(name, tmp_path / str(number))
        flushed = len([*made.folder.glob("*/index_metadata.pickle")])  # also of collections that were deleted
        assert made.truth.outcome == "complete"
        assert flushed or "flushed" not in needs
        assert flushed > 1 or "two flushed" not in needs
        assert "any" in needs
        assert not {"queued", "flushed"} <= needs


def test_what_a_damage_does_not_find_it_does_not_break(tmp_path: Path) -> None:
    queued = next(name for name, needs in zoo_bases().items() if "queued" in needs)
    delta = thawed(queued, tmp_path).folder
    for kind in ("pickle-missing", "segments-swapped-ids", "bit-flip-index_metadata.pickle", "data-delete-mark"):
        with pytest.raises(DoesNotApply):
            break_delta(kind, queued, 1, delta)


def test_the_truth_about_a_directory_of_the_zoo_is_what_chroma_gave_back() -> None:
    """Of another tenant, with NaN, with indexes that are off, and of what a low `ef` does not find; then some damages.

    Workers ask Chroma: this process may have opened clients, which their forks would not survive.
    """
    undamaged = ("tenants-dropped-65", "nonfinite-14", "schema-20", "tuned-7")
    harms = {
        "collection-removed": "loss",
        "value-document-letter": "values",
        "fulltext-rows-deleted": "loss",
        "table-dropped-embeddings": "fails",
        "harmless-vacuumed": "",
    }
    plan = [Case("tuned", "zoo", UNDAMAGED, name, 1) for name in undamaged]
    plan += [Case("tuned", "zoo", kind, "maintained-secure-delete-181", 1) for kind in harms]
    results = {(result.case.kind, result.case.base): result for result in map(Result.of, judged(plan))}
    for name in undamaged:
        result = results[UNDAMAGED, name]
        assert (result.harm, result.outcome("structure+manifest")) == ("", Outcome.PASSED), result
    found = {kind: results[kind, "maintained-secure-delete-181"].sort for kind in harms}
    assert found == harms


def test_damage_to_the_zoo_is_scored_by_what_it_did_and_an_alarm_on_what_is_undamaged_is_false() -> None:
    values = {"harm": "1 vectors differ", "sort": "values"}
    assert _result("healthy", **values, source="zoo").outcome("structure") is Outcome.VALUE_MISSED
    assert _result("healthy", "fails", "fails", source="zoo").outcome("structure") is Outcome.MISSED
    assert _result("healthy", "lost", "loss", source="zoo", value_only=True).value_only
    alarm = _result("corrupt", codes=("sqlite.malformed",), source="zoo")
    assert alarm.outcome("structure") is Outcome.REFUSED
    undamaged = replace(alarm, case=replace(alarm.case, kind=UNDAMAGED))
    assert undamaged.outcome("structure") is Outcome.FALSE_ALARM
    assert tally([alarm, replace(undamaged, said=_result("healthy").said)], _ALL).healthy == 1


def test_metadata_is_compared_with_a_tolerance_for_the_last_digits_only() -> None:
    assert same({"a": 0.1, "b": [1, 2]}, {"a": 0.1 + 1e-12, "b": [1, 2]})
    assert not same({"a": 0.1}, {"a": 0.1001})
    assert not same({"a": 1}, {"a": True})
    assert not same({"a": 1}, {"a": 1, "b": 2})
    assert not same(None, {"a": 1})


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # Python 3.12 warns of forks beside threads
def test_a_child_reports_how_it_ended() -> None:
    def hangs(emit: Any) -> None:
        emit("count")
        time.sleep(60)

    def fails(emit: Any) -> None:
        emit("get")
        raise ValueError("no such thing")

    assert forked(lambda _: [1, 2]).value == [1, 2]
    assert forked(fails).trouble == "ValueError: no such thing at get"
    crashed = forked(lambda _: os.kill(os.getpid(), signal.SIGKILL))
    assert (crashed.trouble, crashed.died) == ("SIGKILL at start", True)
    hung = forked(hangs, seconds=0.3)
    assert (hung.trouble, hung.died) == ("hangs at count", True)


def _start(tmp_path: Path, *arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "bench.score.scorecard", *arguments],
        cwd=ROOT,
        env={**os.environ, "TMPDIR": str(tmp_path)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.mark.slow
def test_a_tenth_of_it_raises_no_false_alarm_and_leaves_nothing(tmp_path: Path) -> None:
    process = _start(tmp_path, "--quick", "--seeds", "tuned", "--list-misses")
    output, errors = process.communicate(timeout=300)
    assert process.returncode == 0, output + errors
    assert "== False alarms: 0 ==" in output
    assert "structure+manifest" in output
    assert list(tmp_path.iterdir()) == []
    assert living_in(tmp_path) == []


@pytest.mark.slow
def test_an_interrupt_leaves_no_process_and_no_folder(tmp_path: Path) -> None:
    process = _start(tmp_path, "--seeds", "tuned")
    end = time.monotonic() + 60
    while not list(tmp_path.glob("*/*/worker-1/case/*")) and time.monotonic() < end:
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130, errors
    assert list(tmp_path.iterdir()) == []
    assert living_in(tmp_path) == []
