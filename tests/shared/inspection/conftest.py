"""Deltas, databases and indexes that a test may break."""

from __future__ import annotations

from pathlib import Path

import pytest

from shared.delta import DATABASE
from tests.conftest import CopyOf
from tests.shared.inspection.indexes import Files, read_index


@pytest.fixture
def delta(healthy_delta: Path, copy_of: CopyOf) -> Path:
    """50 embeddings of 32 numbers in the queue of the collection `words`."""
    return copy_of(healthy_delta)


@pytest.fixture
def flushed(flushed_delta: Path, copy_of: CopyOf) -> Path:
    """123 embeddings of 16 numbers, 100 vectors of them in an index."""
    return copy_of(flushed_delta)


@pytest.fixture
def database(delta: Path) -> Path:
    """The database of `delta`."""
    return delta / DATABASE


@pytest.fixture(scope="session")
def intact(flushed_delta: Path) -> Files:
    return read_index(flushed_delta)


@pytest.fixture
def files(intact: Files) -> Files:
    """The files of an index."""
    return dict(intact)
