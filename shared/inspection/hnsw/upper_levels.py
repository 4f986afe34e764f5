"""`link_lists.bin` of a flushed vector index: the links above level 0."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from shared.inspection.hnsw.header import MAX_LEVEL, IndexHeader
from shared.inspection.limits import Limits
from shared.model.verdict import Finding

_WINDOW = 256 * 1024  # words that are looked at together
_LOOK = 1000  # elements between two looks at the time

Read = Callable[[int, int], NDArray[np.uint8]]
"""Reads a part of a file: offset, length."""


class Broken:
    """Counts broken records and remembers the first."""

    def __init__(self) -> None:
        self.count = 0
        self.first = 0

    def add(self, start: int, broken: NDArray[np.bool_]) -> None:
        """Takes in which records of a block, which begins with record `start`, are broken."""
        places = np.flatnonzero(broken)
        if places.size and not self.count:
            self.first = start + int(places[0])
        self.count += places.size


class _Occupied:
    """The words that are not 0, found a window at a time: a file may go on for gigabytes after all that counts."""

    def __init__(self, read: Read, count: int) -> None:
        self._read = read
        self._count = count
        self._found: NDArray[np.int64] = np.empty(0, np.int64)
        self._values: NDArray[np.uint32] = np.empty(0, np.uint32)
        self._cursor = self._end = 0

    def first(self, at: int, until: int) -> tuple[int, int]:
        """Number and value of the first such word from `at` on, which never goes back.

        Where there is none before, it is `until`, or the end, and 0.
        """
        until = min(until, self._count)
        while True:
            self._cursor += int(np.searchsorted(self._found[self._cursor :], at))
            if self._cursor < self._found.size:
                place = int(self._found[self._cursor])
                return (place, int(self._values[self._cursor])) if place < until else (until, 0)
            start = max(at, self._end)
            if start >= until:
                return until, 0
            self._end = min(start + _WINDOW, self._count)
            words = self._read(4 * start, 4 * (self._end - start)).view("<u4")
            places = np.flatnonzero(words)
            self._found, self._values = start + places, words[places]
            self._cursor = 0


def inspect_levels(segment: str, header: IndexHeader, size: int, read: Read, limits: Limits) -> list[Finding]:
    """What is wrong with the links above level 0: for each element a u32 size, then that many bytes of levels.

    A neighbour must itself reach the level it is linked on, else hnswlib reads past its links. What follows
    the last element was left there by an older index, and is not read.

    Args:
        segment: The segment's id.
        header: Its sound header.
        size: Bytes of the file.
        read: The bytes of the file: offset, length.
        limits: What it may cost.

    Raises:
        CouldNotCheck: It takes more memory or processor time than it may.
    """
    name = f"{segment}/link_lists.bin"
    length = size // 4
    levels = np.zeros(header.count, dtype=np.int64)
    starts = np.zeros(header.count, dtype=np.int64)
    element = at = seen = 0
    # Almost all sizes are 0 (one element in M has a second level), so the walk goes from one non-zero word to the next.
    occupied = _Occupied(read, length)
    while element < header.count:
        position, links = occupied.first(at, at + header.count - element)
        element += position - at
        at = position
        if not links:
            break
        count, rest = divmod(links, header.level_size)
        if rest:
            detail = f"{links} bytes of links at offset {4 * position}, expected a multiple of {header.level_size}"
            return [Finding("hnsw.link_invalid", name, detail)]
        if position + 1 + links // 4 > length:
            left = size - 4 * position - 4
            detail = f"{links} bytes of links at offset {4 * position}, the file ends {left} later"
            return [Finding("hnsw.link_invalid", name, detail)]
        levels[element], starts[element] = count, position + 1
        at = position + 1 + links // 4
        element += 1
        seen += 1
        if seen % _LOOK == 0:
            limits.check(f"reading {name}")
    if element < header.count:
        detail = f"{size} bytes; the links of {element} of {header.count} elements end at offset {4 * at}"
        return [Finding("hnsw.size_mismatch", name, detail)]
    limits.keep(4 * at)
    return _links(name, header, read(0, 4 * at).view("<u4"), levels, starts, limits)


def _links(
    name: str,
    header: IndexHeader,
    words: NDArray[np.uint32],
    levels: NDArray[np.int64],
    starts: NDArray[np.int64],
    limits: Limits,
) -> list[Finding]:
    findings = []
    highest = int(levels.max(initial=0))
    if header.count and (highest != header.max_level or levels[min(header.entry_point, header.count - 1)] != highest):
        entry = min(header.entry_point, header.count - 1)
        detail = (
            f"header: level {header.max_level} from element {header.entry_point}; links: highest level {highest}, "
            f"that element reaches {int(levels[entry])}"
        )
        findings.append(Finding("hnsw.entry_point_invalid", name.replace("link_lists", "header"), detail))
    width = header.level_size // 4
    step = max(1, _WINDOW // width)
    for level in range(1, min(highest, MAX_LEVEL) + 1):
        rows = starts[levels >= level] + (level - 1) * width
        broken = Broken()
        for start in range(0, rows.size, step):
            limits.check(f"reading {name}")
            part = rows[start : start + step]
            counts = words[part] & 0xFFFF
            links = words[part[:, None] + 1 + np.arange(header.max_links)]
            used = np.arange(header.max_links) < counts[:, None]
            inside = links < header.count
            # Only ids inside the index may be looked up; the others are wrong already.
            lower = levels[np.where(inside, links, 0)] < level
            broken.add(start, (counts > header.max_links) | (used & (~inside | lower)).any(axis=1))
        if broken.count:
            detail = (
                f"{broken.count} elements on level {level}, the first at offset {4 * int(rows[broken.first])}: more "
                f"than {header.max_links} links, or one to an element that is not on this level"
            )
            return [*findings, Finding("hnsw.link_invalid", name, detail)]
    return findings
