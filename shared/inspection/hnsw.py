"""A flushed vector index: header arithmetic, every record, every link, and the labels against the id map.

hnswlib trusts these files: a short read is ignored and an out-of-range neighbour is followed, which ends in wrong
answers or in a dead process. Layout measured on chromadb 0.4.24 to 1.5.9; `maxM0 = 2 M` and the record are hnswlib's.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from shared.inspection.idmap import HostileIdMapError, IdMap, IdMapError, parse
from shared.verdict import Finding

HEADER_BYTES = 100
_HEADER = struct.Struct("<iQQQQQQiIQQQdQ")
_EMPTY_ENTRY_POINT = 0xFFFFFFFF
_MAX_LEVEL = 64  # a level is -ln(uniform) * mult; 64 would need more elements than a u32 can number
_BLOCK_BYTES = 4 * 1024 * 1024
_DELETED = 1
_MOST_BYTES = 1 << 40  # hnswlib allocates the room for all elements at once; no machine has this much


@dataclass(frozen=True, slots=True)
class IndexHeader:
    """`header.bin`: sizes in bytes, counts in elements."""

    version: int
    offset_level0: int
    max_elements: int
    count: int
    record_size: int
    label_offset: int
    data_offset: int
    max_level: int
    entry_point: int
    max_links: int
    max_links_level0: int
    links: int
    level_factor: float
    ef_construction: int

    @property
    def dimension(self) -> int:
        """Vector length that the record size leaves room for."""
        return (self.label_offset - self.data_offset) // 4

    @property
    def level_size(self) -> int:
        """Bytes of one element's links on one level above 0."""
        return 4 * self.max_links + 4


@dataclass(frozen=True, slots=True)
class Index:
    """What an index holds: its id map and its findings. `ids` is None when the id map cannot be read."""

    ids: IdMap | None
    findings: list[Finding]


def inspect_header(segment: str, head: bytes, sizes: Mapping[str, int]) -> tuple[IndexHeader | None, list[Finding]]:
    """What `header.bin` of a flushed index proves, together with the sizes of the files beside it.

    Args:
        segment: The segment's id, the folder's name.
        head: The whole of `header.bin`.
        sizes: Bytes of each index file by base name; a missing one is not this function's to report.

    Returns:
        The header, or None when its numbers cannot be worked with, and the findings.
    """
    name = f"{segment}/header.bin"
    if len(head) != HEADER_BYTES:
        return None, [Finding("hnsw.header_invalid", name, f"{len(head)} bytes, expected {HEADER_BYTES}")]
    header = IndexHeader(*_HEADER.unpack(head))
    wrong = _contradictions(header)
    if wrong:
        return None, [Finding("hnsw.header_invalid", name, detail) for detail in wrong]
    findings = []
    if header.count and not 0 <= header.entry_point < header.count:
        detail = f"entry point {header.entry_point}, the index has {header.count} elements"
        findings.append(Finding("hnsw.entry_point_invalid", name, detail))
    if header.count and not 0 <= header.max_level <= _MAX_LEVEL:
        detail = f"highest level {header.max_level}, expected 0 to {_MAX_LEVEL}"
        findings.append(Finding("hnsw.entry_point_invalid", name, detail))
    return header, findings + _size_findings(segment, header, sizes)


def inspect_index(segment: str, files: Mapping[str, NDArray[np.uint8]], dimension: int | None) -> Index:
    """Everything the bytes of a flushed index prove.

    Args:
        segment: The segment's id, the folder's name.
        files: The bytes of each index file by base name; all five are there.
        dimension: Vector length of the collection, None when it is not known.
    """
    sizes = {base: len(content) for base, content in files.items()}
    ids, findings = _id_map(segment, files["index_metadata.pickle"].tobytes())
    header, found = inspect_header(segment, files["header.bin"].tobytes(), sizes)
    findings += found
    if header is None or any(finding.code == "hnsw.size_mismatch" for finding in found):
        return Index(ids, findings)
    if dimension is not None and header.dimension != dimension:
        detail = f"vectors of {header.dimension}, the collection has dimension {dimension}"
        findings.append(Finding("hnsw.dimension_mismatch", f"{segment}/header.bin", detail))
    records = files["data_level0.bin"][: header.count * header.record_size].reshape(header.count, header.record_size)
    findings += _level0(segment, header, records)
    findings += _upper_levels(segment, header, files["link_lists.bin"])
    if ids is not None:
        findings += _labels(segment, header, records, ids)
    return Index(ids, findings)


def rows_not_finite(matrix: NDArray[np.float32]) -> NDArray[np.bool_]:
    """Which rows of a matrix (rows x dimension) hold NaN or infinity: times zero, both are NaN, and all else is 0."""
    with np.errstate(invalid="ignore"):
        return np.isnan(matrix @ np.zeros(matrix.shape[1], dtype=np.float32))


def _contradictions(header: IndexHeader) -> list[str]:
    expected: list[tuple[str, object, object]] = [
        ("version", header.version, 1),
        ("offset of level 0", header.offset_level0, 0),
        ("level-0 links", header.max_links_level0, 2 * header.max_links),
        ("links", header.links, header.max_links),
        ("offset of the vector", header.data_offset, 4 * header.max_links_level0 + 4),
        ("offset of the label", header.label_offset, header.record_size - 8),
    ]
    wrong = [f"{field} is {seen}, expected {right}" for field, seen, right in expected if seen != right]
    if not 1 <= header.max_links <= 100_000:
        wrong.append(f"links is {header.max_links}, expected 1 to 100000")
    elif header.links > 1 and not math.isclose(header.level_factor, 1 / math.log(header.links), rel_tol=1e-9):
        wrong.append(f"level factor is {header.level_factor!r}, expected 1/ln {header.links}")
    vector = header.label_offset - header.data_offset
    if vector < 4 or vector % 4:
        wrong.append(f"{vector} bytes between links and label, expected a multiple of 4 from 4")
    if header.max_elements * header.record_size > _MOST_BYTES:
        wrong.append(
            f"room for {header.max_elements} elements would need {header.max_elements * header.record_size} bytes"
        )
    if header.count > header.max_elements:
        wrong.append(f"{header.count} elements, room for {header.max_elements}")
    return wrong


def _size_findings(segment: str, header: IndexHeader, sizes: Mapping[str, int]) -> list[Finding]:
    findings = []

    def mismatch(base: str, detail: str) -> None:
        findings.append(Finding("hnsw.size_mismatch", f"{segment}/{base}", f"{sizes[base]} bytes, {detail}"))

    slots = None
    if "data_level0.bin" in sizes:
        slots, rest = divmod(sizes["data_level0.bin"], header.record_size)
        if rest or not header.count <= slots <= header.max_elements:
            low, high = header.count * header.record_size, header.max_elements * header.record_size
            shape = f"{low} to {high} in steps of {header.record_size}"
            mismatch("data_level0.bin", f"expected {shape} for {header.count} embeddings")
            slots = None
    if slots is not None and sizes.get("length.bin", 4 * slots) != 4 * slots:
        mismatch("length.bin", f"expected {4 * slots}: 4 for each of {slots} records")
    if "link_lists.bin" in sizes:
        rest = sizes["link_lists.bin"] - 4 * header.count
        if rest < 0 or rest % header.level_size:
            shape = f"{4 * header.count} and a multiple of {header.level_size}"
            mismatch("link_lists.bin", f"expected {shape} for {header.count} embeddings")
    return findings


def _id_map(segment: str, data: bytes) -> tuple[IdMap | None, list[Finding]]:
    name = f"{segment}/index_metadata.pickle"
    try:
        return parse(data), []
    except HostileIdMapError as error:
        return None, [Finding("hnsw.pickle_hostile", name, str(error))]
    except IdMapError as error:
        return None, [Finding("hnsw.pickle_unreadable", name, f"{len(data)} bytes: {error}")]


def _level0(segment: str, header: IndexHeader, records: NDArray[np.uint8]) -> list[Finding]:
    """Link counts, neighbours and vectors of every record, a block at a time so that memory stays flat."""
    name = f"{segment}/data_level0.bin"
    findings: list[Finding] = []
    step = max(1, _BLOCK_BYTES // header.record_size)
    words = records.view("<u4")  # a record is a multiple of four bytes, so every field is a column of these
    vector = slice(header.data_offset // 4, header.label_offset // 4)
    positions = np.arange(header.max_links_level0, dtype=np.uint32)
    links_bad = links_first = vectors_bad = vectors_first = 0
    for start in range(0, header.count, step):
        block = words[start : start + step]
        counts = block[:, 0] & 0xFFFF
        neighbours = block[:, 1 : 1 + header.max_links_level0]
        outside = (neighbours >= header.count) & (positions < counts[:, None])
        broken = np.flatnonzero(outside.any(axis=1) | (counts > header.max_links_level0))
        if broken.size and not links_bad:
            links_first = start + int(broken[0])
        links_bad += broken.size
        broken = np.flatnonzero(rows_not_finite(block[:, vector].view("<f4")))
        if broken.size and not vectors_bad:
            vectors_first = start + int(broken[0])
        vectors_bad += broken.size
    if links_bad:
        at = links_first * header.record_size
        detail = (
            f"{links_bad} records, the first at offset {at}: more than {header.max_links_level0} links, "
            f"or one to an element past {header.count - 1}"
        )
        findings.append(Finding("hnsw.link_invalid", name, detail))
    if vectors_bad:
        at = vectors_first * header.record_size + header.data_offset
        detail = f"{vectors_bad} of {header.count} vectors, the first at offset {at}: NaN or infinity"
        findings.append(Finding("hnsw.vector_not_finite", name, detail))
    return findings


def _upper_levels(segment: str, header: IndexHeader, content: NDArray[np.uint8]) -> list[Finding]:
    """The links above level 0: for each element a u32 size, then that many bytes of levels.

    A neighbour must itself reach the level it is linked on, else hnswlib reads past that neighbour's links.
    """
    name = f"{segment}/link_lists.bin"
    words = content.view("<u4")
    levels = np.zeros(header.count, dtype=np.int64)
    starts = np.zeros(header.count, dtype=np.int64)
    element = at = 0
    # Almost all sizes are 0 (one element in M has a second level), so the walk goes from one non-zero word to the next.
    occupied = np.flatnonzero(words)
    cursor = 0
    while element < header.count:
        cursor += int(np.searchsorted(occupied[cursor:], at))
        position = int(occupied[cursor]) if cursor < occupied.size else len(words)
        skipped = position - at
        if skipped >= header.count - element or position == len(words):
            at += min(header.count - element, skipped)
            element += skipped
            break
        element += skipped
        size = int(words[position])
        count, rest = divmod(size, header.level_size)
        if rest or position + 1 + size // 4 > len(words):
            detail = f"{size} bytes of links at offset {4 * position}, expected a multiple of {header.level_size}"
            return [Finding("hnsw.link_invalid", name, detail)]
        levels[element], starts[element] = count, position + 1
        at = position + 1 + size // 4
        element += 1
    if element < header.count or at != len(words):
        reached = min(element, header.count)
        detail = f"{len(content)} bytes; the links of {reached} of {header.count} elements end at offset {4 * at}"
        return [Finding("hnsw.size_mismatch", name, detail)]
    return _upper_links(name, header, words, levels, starts)


def _upper_links(
    name: str, header: IndexHeader, words: NDArray[np.uint32], levels: NDArray[np.int64], starts: NDArray[np.int64]
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
    for level in range(1, min(highest, _MAX_LEVEL) + 1):
        reaching = np.flatnonzero(levels >= level)
        rows = starts[reaching] + (level - 1) * width
        counts = words[rows] & 0xFFFF
        links = words[rows[:, None] + 1 + np.arange(header.max_links)]
        used = np.arange(header.max_links) < counts[:, None]
        inside = links < header.count
        # Only ids inside the index may be looked up; the others are wrong already.
        lower = levels[np.where(inside, links, 0)] < level
        broken = np.flatnonzero((counts > header.max_links) | (used & (~inside | lower)).any(axis=1))
        if broken.size:
            detail = (
                f"{broken.size} elements on level {level}, the first at offset {4 * int(rows[broken[0]])}: more than "
                f"{header.max_links} links, or one to an element that is not on this level"
            )
            return [*findings, Finding("hnsw.link_invalid", name, detail)]
    return findings


def _labels(segment: str, header: IndexHeader, records: NDArray[np.uint8], ids: IdMap) -> list[Finding]:
    """Each id must have one record that is not marked as deleted, or Chroma cannot find its vector."""
    stored = records[:, header.label_offset :].copy().view("<u8")[:, 0]
    live = stored[(records[:, 2] & _DELETED) == 0]
    mapped = np.fromiter((label & 0xFFFFFFFFFFFFFFFF for label in ids.labels.values()), np.uint64, len(ids.labels))
    if ids.labels and ids.added < max(ids.labels.values()):
        detail = f"{ids.added} labels were given out, but the highest is {max(ids.labels.values())}"
        return [Finding("hnsw.label_mismatch", f"{segment}/index_metadata.pickle", detail)]
    lost = np.setdiff1d(mapped, live)
    unknown = np.setdiff1d(live, mapped)
    twice = live.size - np.unique(live).size
    if not (lost.size or unknown.size or twice):
        return []
    parts = []
    if lost.size:
        parts.append(f"{lost.size} labels of the id map have no record, the first {int(lost[0])}")
    if unknown.size:
        parts.append(f"{unknown.size} records have a label that the id map lacks, the first {int(unknown[0])}")
    if twice:
        parts.append(f"{twice} labels stand in more than one record")
    return [Finding("hnsw.label_mismatch", f"{segment}/data_level0.bin", "; ".join(parts))]
