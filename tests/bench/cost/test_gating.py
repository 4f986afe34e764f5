"""The suite `gate`, tiny: both sides really refuse, and what is not meant is an error and no figure."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from bench.cost import gating
from bench.cost.targets import unmeasured


@pytest.fixture
def _stock(monkeypatch: pytest.MonkeyPatch, healthy_delta: Path) -> None:
    monkeypatch.setattr(gating, "stocked", lambda *_, **__: healthy_delta)


@pytest.mark.slow
@pytest.mark.usefixtures("_stock")
def test_the_gate_and_the_merge_refuse_the_same_chunk() -> None:
    before = dict(os.environ)
    figures = gating.figures(deltas=3, embeddings=50, rounds=1)
    assert [figure.name for figure in figures] == ["gate/tagged", "gate/untagged"]
    assert unmeasured("gate", figures) == set()
    assert all(figure.ours > 0 and figure.theirs > 0 for figure in figures)
    assert dict(os.environ) == before


@pytest.mark.slow
@pytest.mark.usefixtures("_stock")
def test_a_chunk_that_passes_or_merges_is_no_figure(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gating, "apply_damage", lambda *_: "left as it is")
    with pytest.raises(RuntimeError, match="let a corrupt delta pass"):
        gating.figures(deltas=2, embeddings=50, rounds=1)
