"""The suites of compaction, tiny: that they measure what they say. What they measure is for `python -m bench`."""

from __future__ import annotations

from pathlib import Path

import pytest

from bench.cost import merging, stock


@pytest.fixture(autouse=True)
def small_stock(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = str(tmp_path_factory.getbasetemp() / "stock")
    Path(folder).mkdir(exist_ok=True)
    monkeypatch.setattr(stock.tempfile, "gettempdir", lambda: folder)
    monkeypatch.setattr(stock, "DIMENSION", 8)


@pytest.mark.slow
def test_a_healthy_chunk_is_measured_whole_and_by_its_gate() -> None:
    figures = {figure.name: figure for figure in merging.whole(deltas=2, embeddings=5, rounds=1)}
    assert figures.keys() == {"merge/old-way", "merge/gate-tagged", "merge/gate", "merge/gate-and-download"}
    assert all(figure.theirs > 0 for figure in figures.values())


@pytest.mark.slow
def test_a_refusal_is_measured_by_time_bytes_and_work_thrown_away() -> None:
    figures = {figure.name: figure for figure in merging.refusal(deltas=3, embeddings=5, rounds=1)}
    assert figures["refusal/thrown-away"].ours == 0
    assert figures["refusal/thrown-away"].theirs == 10
    assert figures["refusal/bytes-tagged"].ours < figures["refusal/bytes"].ours
    assert figures["refusal/bytes"].theirs > 0


@pytest.mark.slow
@pytest.mark.sweep
def test_the_peak_of_a_merge_is_that_of_a_process_of_its_own() -> None:
    figures = {figure.name: figure for figure in merging.memory(deltas=2, few=5, many=50)}
    assert figures["merge-memory/total"].ours > 10
