"""What one look at a delta may cost: memory for what it keeps, and processor time.

A delta is untrusted: a file of 32 MB can describe a value of gigabytes, and a query of hours. Healthy deltas need a
fraction of these limits (measured, 200,000 embeddings of 8 numbers: 100 MB beside a database of 170 MB, 4 s).
"""

from __future__ import annotations

import re
import sqlite3
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from shared.model.deadline import UNLIMITED, Deadline
from shared.model.errors import CouldNotCheck

_MEMORY_BYTES = 112 * 1024 * 1024  # besides as much as the largest file has
_SECONDS = 4.0
_SECONDS_A_RECORD, _SECONDS_AN_EMBEDDING = 10e-6, 30e-6  # measured: 3, and 10
_INTEGRITY_SECONDS, _INTEGRITY_BYTES_A_SECOND = 4.0, 40 * 1024 * 1024  # measured: 84 MB a second
_ROW_BYTES = 700  # a row as a tuple, with a number or a short text for each column, what is made of it, and a finding
_LONGEST_SETTING = 2 * 1024 * 1024  # bytes of a row; SQLite and Python take up to 30 times as much for its JSON
_WIDEST = 4  # bytes of a character in memory
_MANY_VALUES = 1000
# In JSON nothing but this key begins so, and it ends with its text: the marks in a document are no values.
_QUEUED_DOCUMENT = re.compile(r'"chroma:document":\s*"[^"\\]*+(?:\\.[^"\\]*+)*+"', re.DOTALL)

ROW, ID, COLLECTION = 320, 120, 2000
"""Bytes that an id with its number takes in a dict and two sets, that a dict takes for each id, and a collection."""

_OPERATION_BYTES, _JSON_VALUE_BYTES = 450, 72  # of an operation of the queue; of each value, list or dict of its JSON


class Limits:
    """The limits of one look, which one thread takes.

    Args:
        memory: Bytes that may be kept at once.
        seconds: Processor time, to which each sound embedding adds (see `earn`).
        deadline: When the look must be over.
    """

    def __init__(self, memory: float, seconds: float, deadline: Deadline = UNLIMITED) -> None:
        self._memory = self._left = memory
        self._until = time.thread_time() + seconds
        self._deadline = deadline

    @classmethod
    def of(cls, largest: int, deadline: Deadline) -> Limits:
        """The limits of a look at a delta whose largest file has so many bytes."""
        return cls(_MEMORY_BYTES + largest, _SECONDS, deadline)

    def keep(self, size: int) -> None:
        """Takes note that so many bytes more are kept.

        Raises:
            CouldNotCheck: They would be more than may be (`check.size_cap`).
        """
        self._left -= size
        if self._left < 0:
            most = f"{self._memory / 1024**2:.0f} MB"
            raise CouldNotCheck("check.size_cap", f"to check all that it holds would take more than {most} of memory")

    def drop(self, size: float) -> None:
        """Takes note that so many bytes are no longer kept."""
        self._left += size

    @property
    def left(self) -> float:
        """Bytes that may still be kept."""
        return self._left

    def earn(self, embeddings: int, *, indexed: bool = False) -> None:
        """Gives time for so many embeddings that were found sound: what is large and healthy may take longer.

        Args:
            embeddings: How many.
            indexed: Whether they are records of an index, and not rows of a queue.
        """
        self._until += embeddings * (_SECONDS_A_RECORD if indexed else _SECONDS_AN_EMBEDDING)

    @property
    def over(self) -> bool:
        """Whether the time is over."""
        return time.thread_time() > self._until or self._deadline.passed

    def check(self, doing: str) -> None:
        """Raises `CouldNotCheck` (`check.timeout`) when the time is over."""
        self._deadline.check(doing)
        if self.over:
            raise CouldNotCheck("check.timeout", f"{doing}: it takes more processor time than its embeddings need")


NO_LIMITS = Limits(float("inf"), float("inf"))
"""For a delta that is known to be sound."""


def integrity_seconds(size: int) -> float:
    """Processor time that SQLite's integrity check of a database of so many bytes may take."""
    return _INTEGRITY_SECONDS + size / _INTEGRITY_BYTES_A_SECOND


@contextmanager
def counted(connection: sqlite3.Connection, limits: Limits) -> Iterator[None]:
    """Counts every row that the block reads as one that is kept; a row longer than settings ever are is not read."""

    def count(_: sqlite3.Cursor, row: tuple[Any, ...]) -> tuple[Any, ...]:
        limits.keep(_ROW_BYTES + sum(memory_of(value) for value in row))
        return row

    connection.row_factory = count
    longest = connection.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, _LONGEST_SETTING)
    try:
        yield
    finally:
        connection.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, longest)
        connection.row_factory = None


def memory_of_operation(metadata: object) -> int:
    """Bytes, at most, that an operation of the queue with this metadata (JSON) takes once that is parsed."""
    if not isinstance(metadata, str):
        return _OPERATION_BYTES
    values = _json_values(metadata, 0, len(metadata))
    if values > _MANY_VALUES and (document := _QUEUED_DOCUMENT.search(metadata)):
        values -= _json_values(metadata, *document.span())
    text = _WIDEST * len(metadata) if "\\u" in metadata else memory_of(metadata)
    return _OPERATION_BYTES + text + _JSON_VALUE_BYTES * values


def _json_values(text: str, start: int, end: int) -> int:
    """How many values, lists and dicts there are at most in a part of some JSON."""
    return sum(text.count(mark, start, end) for mark in ",[{")


def memory_of(value: object) -> int:
    """Bytes, at most, that the content of a text or blob takes in memory; 0 for any other value."""
    if isinstance(value, str):
        return len(value) if value.isascii() else _WIDEST * len(value)
    return len(value) if isinstance(value, bytes) else 0
