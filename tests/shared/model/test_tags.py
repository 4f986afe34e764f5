"""A verdict is kept as tags on the database object, and counts only for exactly the objects it was given for."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from shared.model.delta import DeltaFile, Listing
from shared.model.tags import healthy_depth, with_verdict, without_verdict
from shared.model.verdict import RULES, Depth, Finding, Verdict

NOW = datetime(2026, 3, 4, 5, 6, 7, 890, tzinfo=UTC)
LISTING = Listing.of([DeltaFile("chroma.sqlite3", 4096, "aa", NOW)])
OTHERS = {"team": "search", "deltaguard-like": "x"}


def tagged(depth: Depth = Depth.STRUCTURE, *findings: Finding) -> dict[str, str]:
    tags = with_verdict(OTHERS, Verdict("d1", depth, findings, fingerprint=LISTING.fingerprint), NOW)
    assert tags is not None
    return tags


def test_a_verdict_is_five_tags_beside_those_of_others() -> None:
    assert tagged() == {
        **OTHERS,
        "deltaguard:status": "healthy",
        "deltaguard:fingerprint": LISTING.fingerprint,
        "deltaguard:depth": "structure",
        "deltaguard:checked-at": "2026-03-04T05:06:07Z",
        "deltaguard:rules": RULES,
    }


def test_a_new_verdict_replaces_the_old_one() -> None:
    old = tagged(Depth.LISTING, Finding("sqlite.truncated", "chroma.sqlite3", "4000 bytes"))
    assert with_verdict(old, Verdict("d1", Depth.STRUCTURE, fingerprint=LISTING.fingerprint), NOW) == tagged()


def test_the_tags_of_others_are_known_from_ours() -> None:
    assert without_verdict(tagged()) == OTHERS


@pytest.mark.parametrize("depth", Depth)
def test_a_healthy_tag_tells_the_depth_that_was_checked(depth: Depth) -> None:
    assert healthy_depth(tagged(depth), LISTING) is depth


def test_a_note_does_not_weaken_a_tag() -> None:
    assert healthy_depth(tagged(Depth.OPEN, Finding("layout.foreign_file", "x", "not Chroma's")), LISTING) is Depth.OPEN


@pytest.mark.parametrize(
    "other",
    [
        DeltaFile("chroma.sqlite3", 4096, "ab", NOW),
        DeltaFile("chroma.sqlite3", 4097, "aa", NOW),
        DeltaFile("chroma.sqlite3-wal", 4096, "aa", NOW),
    ],
)
def test_a_tag_loses_its_force_when_a_file_is_another_one(other: DeltaFile) -> None:
    assert healthy_depth(tagged(), Listing.of([other])) is None
    assert healthy_depth(tagged(), Listing.of([*LISTING.files, DeltaFile("chroma.sqlite3-wal", 1, "x", NOW)])) is None
    assert healthy_depth(tagged(), Listing(())) is None


@pytest.mark.parametrize(
    ("tag", "value"),
    [
        ("deltaguard:status", "corrupt"),
        ("deltaguard:status", "undetermined"),
        ("deltaguard:status", "Healthy"),
        ("deltaguard:fingerprint", "0" * 64),
        ("deltaguard:rules", RULES + ".1"),
        ("deltaguard:depth", "bottomless"),
        ("deltaguard:depth", ""),
    ],
)
def test_a_tag_has_no_force_with_another_status_fingerprint_or_rules_or_an_unknown_depth(tag: str, value: str) -> None:
    assert healthy_depth({**tagged(), tag: value}, LISTING) is None


@pytest.mark.parametrize("tag", ["status", "fingerprint", "rules", "depth"])
def test_a_tag_has_no_force_when_a_part_is_missing(tag: str) -> None:
    tags = tagged()
    del tags[f"deltaguard:{tag}"]
    assert healthy_depth(tags, LISTING) is None


def test_a_corrupt_verdict_is_never_read_as_a_healthy_one() -> None:
    corrupt = tagged(Depth.OPEN, Finding("sqlite.truncated", "chroma.sqlite3", "4000 bytes"))
    assert corrupt["deltaguard:status"] == "corrupt"
    assert healthy_depth(corrupt, LISTING) is None
