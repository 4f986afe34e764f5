"""A verdict follows from its findings alone, and leaves as one line of the ndjson contract."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from itertools import permutations

import pytest

from shared.model.findings import CATALOGUE, Weight
from shared.model.verdict import CollectionCount, Depth, Finding, Status, Verdict, abridged, status_of

EXAMPLES = {
    Weight.DOUBT: Finding("verdict.deltas_below", "", "3 deltas lie below it"),
    Weight.PROOF: Finding("sqlite.truncated", "chroma.sqlite3", "4000 bytes"),
    Weight.PENDING: Finding("layout.database_missing", "chroma.sqlite3", "not there"),
    Weight.UNCHECKED: Finding("check.timeout", "", "60 s"),
    Weight.AWAITED: Finding("arrival.settling", "", "3 s ago"),
    Weight.NOTE: Finding("layout.foreign_file", ".DS_Store", "not a file of Chroma's"),
}
STRONGEST_FIRST = (
    (Weight.DOUBT, Status.UNDETERMINED),
    (Weight.PROOF, Status.CORRUPT),
    (Weight.PENDING, Status.CORRUPT),
    (Weight.UNCHECKED, Status.UNDETERMINED),
    (Weight.AWAITED, Status.INCOMPLETE),
    (Weight.NOTE, Status.HEALTHY),
)


def test_no_finding_is_healthy() -> None:
    assert status_of([]) is Status.HEALTHY


@pytest.mark.parametrize(("weight", "status"), STRONGEST_FIRST)
def test_each_weight_alone_leads_to_its_status(weight: Weight, status: Status) -> None:
    assert EXAMPLES[weight].weight is weight
    assert status_of([EXAMPLES[weight]]) is status


@pytest.mark.parametrize("strongest", range(len(STRONGEST_FIRST)))
def test_the_strongest_finding_decides_in_any_order(strongest: int) -> None:
    findings = [EXAMPLES[weight] for weight, _ in STRONGEST_FIRST[strongest:]]
    assert {status_of(order) for order in permutations(findings)} == {STRONGEST_FIRST[strongest][1]}


@pytest.mark.parametrize("code", [code for code in CATALOGUE if code.startswith("check.")])
def test_no_environment_fault_is_ever_a_proof(code: str) -> None:
    assert status_of([Finding(code, "", "seen")]) is Status.UNDETERMINED


@pytest.mark.parametrize("code", ["", "sqlite", "sqlite.nonsense", "SQLITE.TRUNCATED"])
def test_a_code_outside_the_catalogue_cannot_be_reported(code: str) -> None:
    with pytest.raises(KeyError, match=repr(code)):
        Finding(code, "", "seen")


@pytest.mark.parametrize("code", CATALOGUE)
def test_every_code_has_a_meaning_in_one_sentence(code: str) -> None:
    meaning = CATALOGUE[code].meaning
    assert meaning[0].isupper() and meaning.endswith(".") and len(meaning) < 100


@pytest.mark.parametrize(
    ("depth", "included"),
    [
        (Depth.LISTING, {"listing"}),
        (Depth.HEADER, {"listing", "header"}),
        (Depth.STRUCTURE, {"listing", "header", "structure"}),
        (Depth.OPEN, {"listing", "header", "structure", "open"}),
    ],
)
def test_a_depth_includes_itself_and_the_shallower_ones(depth: Depth, included: set[str]) -> None:
    assert {other.value for other in Depth if depth.includes(other)} == included


@pytest.fixture
def verdict() -> Verdict:
    return Verdict(
        "s3://deltas/d1/",
        Depth.STRUCTURE,
        tuple(EXAMPLES[weight] for weight in (Weight.NOTE, Weight.PROOF, Weight.UNCHECKED)),
        (CollectionCount("words", 384, 50), CollectionCount("empty", None, 0)),
        size=4096,
        fingerprint="f" * 64,
        duration_ms=12.345678,
        versions={"rules": "1"},
        uploaded=datetime(2026, 1, 2, 3, 4, 5, 678, UTC),
    )


def test_the_ndjson_line_has_the_shape_of_the_contract(verdict: Verdict) -> None:
    assert json.loads(json.dumps(verdict.as_json())) == {
        "delta": "s3://deltas/d1/",
        "status": "corrupt",
        "findings": [
            {"code": "sqlite.truncated", "file": "chroma.sqlite3", "detail": "4000 bytes"},
            {"code": "check.timeout", "file": "", "detail": "60 s"},
        ],
        "depth": "structure",
        "collections": [
            {"name": "words", "dimension": 384, "count": 50},
            {"name": "empty", "dimension": None, "count": 0},
        ],
        "bytes": 4096,
        "fingerprint": "f" * 64,
        "duration_ms": 12.346,
        # Besides the contract:
        "notes": [{"code": "layout.foreign_file", "file": ".DS_Store", "detail": "not a file of Chroma's"}],
        "versions": {"rules": "1"},
        "uploaded_at": "2026-01-02T03:04:05Z",
    }


def test_a_note_is_kept_apart_from_what_decided(verdict: Verdict) -> None:
    assert [finding.code for finding in verdict.findings] == ["sqlite.truncated", "check.timeout"]
    assert [finding.code for finding in verdict.notes] == ["layout.foreign_file"]
    assert verdict.reason == "sqlite.truncated: 4000 bytes; check.timeout: 60 s"


def test_a_healthy_verdict_has_notes_and_no_findings() -> None:
    verdict = Verdict("d1", Depth.OPEN, (EXAMPLES[Weight.NOTE],))
    assert (verdict.status, verdict.findings, verdict.reason) == (Status.HEALTHY, (), "")
    assert verdict.as_json()["findings"] == []
    assert verdict.as_json()["uploaded_at"] is None


def many(code: str, count: int) -> list[Finding]:
    return [Finding(code, "chroma.sqlite3", f"number {number}") for number in range(count)]


@pytest.mark.parametrize("count", [0, 1, 20])
def test_a_few_findings_are_all_kept(count: int) -> None:
    assert abridged(many("sqlite.malformed", count)) == many("sqlite.malformed", count)


def test_of_many_findings_the_first_twenty_of_each_code_are_kept_and_the_others_counted() -> None:
    findings = many("sqlite.malformed", 21) + many("records.row_unreadable", 1_000_000) + many("sqlite.empty", 2)
    assert abridged(findings) == [
        *many("sqlite.malformed", 20),
        *many("records.row_unreadable", 20),
        *many("sqlite.empty", 2),
        Finding("sqlite.malformed", "", "and 1 more of these"),
        Finding("records.row_unreadable", "", "and 999980 more of these"),
    ]


def test_abridging_changes_no_status() -> None:
    for code in CATALOGUE:
        findings = many(code, 100)
        assert status_of(abridged(findings)) is status_of(findings)
