"""Deltas, databases and indexes that a test may break, and Chroma as a second opinion."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from shared.model.delta import DATABASE
from tests.conftest import CopyOf
from tests.support.histories import PROGRAM, Chroma
from tests.support.indexes import Files, read_index


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


@pytest.fixture(scope="module")
def chroma() -> Iterator[Chroma]:
    command = [sys.executable, "-c", PROGRAM]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as child:
        yield Chroma(child)
        child.stdin.close()
