"""What a verdict is measured against: Chroma in a new process, Chroma in a warm one, the bare bytes."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

from bench import ROOT
from bench.cost.timing import Measure, timed
from shared.model.delta import DATABASE

_READER = [sys.executable, "-m", "bench.cost.reader"]
_SECONDS = 120


@contextmanager
def copied(folder: Path, scratch: Path) -> Iterator[Path]:
    """A copy of a delta for as long as the block lasts: Chroma writes to whatever it opens."""
    copy = scratch / f"copy-{time.monotonic_ns()}"  # a path of its own: Chroma remembers the paths it has opened
    shutil.copytree(folder, copy)
    try:
        yield copy
    finally:
        shutil.rmtree(copy)


def child_answer(folder: Path, expected: int) -> dict[str, Any]:
    """What `bench.cost.reader` says of a copy of a delta in a process of its own.

    Raises:
        RuntimeError: It failed, or counted something else than `expected`.
    """
    command = [*_READER, str(os.getpid()), str(folder)]
    done = subprocess.run(  # noqa: S603 -- ours
        command, cwd=ROOT, capture_output=True, text=True, timeout=_SECONDS, check=False
    )
    return _answer(done.stdout, expected, done.stderr)


def chroma_in_child(folder: Path, scratch: Path, expected: int) -> Measure:
    """A child process that imports chromadb, opens, lists and counts, from its start to its end, which is abrupt.

    Copying is free.
    """

    def measure() -> float:
        with copied(folder, scratch) as copy:
            return timed(lambda: child_answer(copy, expected))()

    return measure


@contextmanager
def warm_chroma(scratch: Path) -> Iterator[Callable[[Path, int], Measure]]:
    """A process that has imported chromadb already; the block gets what makes a measure of a delta and its count.

    The measure is the time that this process needs to open, list and count. Copying, asking and closing are free.
    """
    with subprocess.Popen(  # noqa: S603 -- ours
        [*_READER, str(os.getpid())],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,  # Ctrl-C is ours to handle; it ends when its standard input does
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        asking, answering = process.stdin, process.stdout

        def of(folder: Path, expected: int) -> Measure:
            def measure() -> float:
                with copied(folder, scratch) as copy:
                    asking.write(f"{copy}\n")
                    asking.flush()
                    return float(_answer(answering.readline(), expected, "see above")["milliseconds"])

            return measure

        try:
            yield of
        finally:
            process.kill()


def bytes_and_integrity(folder: Path) -> Measure:
    """Every byte read once for its sha256, and SQLite's own check of the database: the least that a full check reads.

    Raises:
        RuntimeError: SQLite finds fault with the database.
    """
    files = sorted(path for path in folder.rglob("*") if path.is_file())

    def read() -> None:
        for path in files:
            with path.open("rb") as file:
                hashlib.file_digest(file, "sha256")
        # Neither locked nor changed, as our own check does it.
        uri = f"{(folder / DATABASE).as_uri()}?mode=ro&immutable=1"
        with closing(sqlite3.connect(uri, uri=True)) as connection:
            said = connection.execute("PRAGMA integrity_check").fetchall()
        if said != [("ok",)]:
            raise RuntimeError(f"{folder}: integrity_check says {said[:3]}")

    return timed(read)


def _answer(line: str, expected: int, errors: str) -> dict[str, Any]:
    if not line:
        raise RuntimeError(f"Chroma's child gave no answer: {errors.strip()[-500:]}")
    answer: dict[str, Any] = json.loads(line)
    if answer["count"] != expected:
        raise RuntimeError(f"Chroma's child counts {answer['count']} embeddings of {expected}")
    return answer
