"""The pages that are made from the code are what the code says."""

from __future__ import annotations

from local import reference
from shared.findings import CATALOGUE


def test_every_page_is_up_to_date() -> None:
    assert list(reference.stale()) == [], "run `make docs`"


def test_every_finding_code_is_explained_once() -> None:
    page = reference.findings()
    assert {code: page.count(f"| `{code}` |") for code in CATALOGUE} == dict.fromkeys(CATALOGUE, 1)
