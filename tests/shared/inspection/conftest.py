"""Chroma as a second opinion."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator

import pytest

from tests.histories import PROGRAM, Chroma


@pytest.fixture(scope="module")
def chroma() -> Iterator[Chroma]:
    command = [sys.executable, "-c", PROGRAM]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as child:
        yield Chroma(child)
        child.stdin.close()
