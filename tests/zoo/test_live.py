"""Histories that the newest Chroma writes now, of every kind: what it gives back in full, Deltaguard calls healthy."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from devtools.zoo.history import make_history
from devtools.zoo.kinds import KINDS, Kind
from devtools.zoo.outcomes import judged
from devtools.zoo.releases import NEWEST
from devtools.zoo.runner import Writers
from devtools.zoo.specimens import Specimen, make
from devtools.zoo.truth import Reader
from tests.support import sweep

pytestmark = pytest.mark.slow

_LIVE = sweep.some([kind for kind in KINDS if kind.takes(NEWEST)], 12)


@pytest.fixture(scope="module")
def writers() -> Iterator[Writers]:
    started = Writers({NEWEST: Path(sys.executable)})
    yield started
    started.close()


@pytest.fixture(scope="module")
def reader() -> Iterator[Reader]:
    started = Reader()
    yield started
    started.close()


@pytest.mark.parametrize("kind", _LIVE, ids=lambda kind: kind.name)
def test_what_chroma_gives_back_in_full_is_healthy(
    kind: Kind, writers: Writers, reader: Reader, tmp_path: Path
) -> None:
    history, folder = make_history(0, [NEWEST], [kind]), tmp_path / "delta"
    outcome = judged(Specimen(history, folder, *make(history, folder, writers, reader)))
    assert not outcome.disagreement, (outcome.why, outcome.opinion)
