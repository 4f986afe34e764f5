"""What to do about a delta follows from its verdict."""

from __future__ import annotations

import pytest

from scanner.advice import Action, advice_on
from shared.model.findings import CATALOGUE, Weight
from shared.model.verdict import Depth, Finding, Verdict


def on(*codes: str, size: int = 100) -> Verdict:
    return Verdict("s3://deltas/d/1/", Depth.STRUCTURE, tuple(Finding(code, "", "seen") for code in codes), size=size)


@pytest.mark.parametrize(
    ("verdict", "action"),
    [
        (on("sqlite.truncated"), Action.QUARANTINE),
        (on("layout.database_missing"), Action.QUARANTINE),
        (on("layout.database_missing", size=0), Action.RESUBMIT),
        (on("quarantine.held", size=0), Action.RESUBMIT),
        (on("arrival.settling"), Action.WAIT),
        (on("chunk.content_differs"), Action.COMPARE),
        (on("check.storage"), Action.CHECK_AGAIN),
    ],
)
def test_each_kind_of_verdict_has_its_action(verdict: Verdict, action: Action) -> None:
    advice = advice_on(verdict)
    assert advice is not None
    assert advice.action is action
    assert advice.as_json() == {"action": action.value, "text": advice.text}


@pytest.mark.parametrize(("code", "word"), [("check.access_denied", "s3:GetObject"), ("check.descriptors", "ulimit")])
def test_what_stopped_a_check_is_to_be_mended_first(code: str, word: str) -> None:
    advice = advice_on(on("check.storage", code))
    assert advice is not None and word in advice.text


@pytest.mark.parametrize(
    ("code", "word"),
    [
        ("verdict.deltas_below", "scan what lies below"),
        ("verdict.disagreement", "look at both findings"),
        ("check.in_use", "close the client"),
    ],
)
def test_a_doubt_says_what_a_person_has_to_look_at(code: str, word: str) -> None:
    advice = advice_on(on("sqlite.malformed", code))
    assert advice is not None and advice.action is Action.CHECK_AGAIN and word in advice.text


def test_there_is_nothing_to_do_about_a_healthy_delta() -> None:
    assert advice_on(on()) is None
    assert advice_on(on("layout.foreign_file")) is None


@pytest.mark.parametrize("code", [code for code, kind in CATALOGUE.items() if kind.weight is not Weight.NOTE])
def test_nothing_but_proof_leads_to_quarantine(code: str) -> None:
    advice = advice_on(on(code))
    assert advice is not None
    if CATALOGUE[code].weight not in (Weight.PROOF, Weight.PENDING):
        assert advice.action not in (Action.QUARANTINE, Action.RESUBMIT)
