"""The pages that are made from the code are what the code says."""

from __future__ import annotations

from devtools.reference import files
from shared.model.findings import CATALOGUE
from shared.model.settings import VARIABLES


def test_every_page_is_up_to_date() -> None:
    assert list(files.stale()) == [], "run `make docs`"


def test_every_finding_code_is_explained_once() -> None:
    page = files.findings()
    assert {code: page.count(f"| `{code}` |") for code in CATALOGUE} == dict.fromkeys(CATALOGUE, 1)


def test_every_setting_is_explained_once_in_a_sentence() -> None:
    rows = [line for line in files.settings().splitlines() if line.startswith("| `DELTAGUARD_")]
    assert [row.split("`")[1] for row in rows] == list(VARIABLES.values())
    assert all(row.rstrip(" |").endswith(".") for row in rows)
