"""`header.bin` of a flushed vector index: its fourteen numbers against each other and against the files beside it.

hnswlib trusts it: it allocates what it says, and ignores a file that is too short. Layout measured on chromadb 0.4.24
to 1.5.9; `maxM0 = 2 M` and the record are hnswlib's.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Mapping
from dataclasses import dataclass

from shared.model.verdict import Finding

HEADER_BYTES = 100
MAX_LEVEL = 64
"""A level is -ln(uniform) * mult; 64 would need more elements than a u32 can number."""

_HEADER = struct.Struct("<iQQQQQQiIQQQdQ")
# Offsets in bytes of the fields that a finding may be about.
_AT = {
    "version": 0, "offset of level 0": 4, "room": 12, "count": 20, "offset of the label": 36,
    "offset of the vector": 44, "highest level": 52, "entry point": 56, "links": 60, "level-0 links": 68,
    "links of an element": 76, "level factor": 84,
}  # fmt: skip
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


def inspect_header(
    segment: str, head: bytes, sizes: Mapping[str, int], *, cosine: bool = True
) -> tuple[IndexHeader | None, list[Finding]]:
    """What `header.bin` of a flushed index proves, together with the sizes of the files beside it.

    Args:
        segment: The segment's id, the folder's name.
        head: The whole of `header.bin`.
        sizes: Bytes of each index file by base name; a missing one is not this function's to report.
        cosine: Whether the index may be one of cosine distances, of which alone `length.bin` is ever looked into.

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
        detail = f"{_field('entry point')} is {header.entry_point}, the index has {header.count} elements"
        findings.append(Finding("hnsw.entry_point_invalid", name, detail))
    if header.count and not 0 <= header.max_level <= MAX_LEVEL:
        detail = f"{_field('highest level')} is {header.max_level}, expected 0 to {MAX_LEVEL}"
        findings.append(Finding("hnsw.entry_point_invalid", name, detail))
    return header, findings + _size_findings(segment, header, sizes, cosine=cosine)


def _field(name: str) -> str:
    return f"{name} at offset {_AT[name]}"


def _contradictions(header: IndexHeader) -> list[str]:
    expected: list[tuple[str, object, object]] = [
        ("version", header.version, 1),
        ("offset of level 0", header.offset_level0, 0),
        ("level-0 links", header.max_links_level0, 2 * header.max_links),
        ("links of an element", header.links, header.max_links),
        ("offset of the vector", header.data_offset, 4 * header.max_links_level0 + 4),
        ("offset of the label", header.label_offset, header.record_size - 8),
    ]
    wrong = [f"{_field(name)} is {seen}, expected {right}" for name, seen, right in expected if seen != right]
    if not 1 <= header.max_links <= 100_000:
        wrong.append(f"{_field('links')} is {header.max_links}, expected 1 to 100000")
    elif header.links > 1 and not math.isclose(header.level_factor, 1 / math.log(header.links), rel_tol=1e-9):
        wrong.append(f"{_field('level factor')} is {header.level_factor!r}, expected 1/ln {header.links}")
    vector = header.label_offset - header.data_offset
    if vector < 4 or vector % 4:
        wrong.append(f"{vector} bytes between links and label, expected a multiple of 4 from 4")
    size = header.max_elements * header.record_size
    if size > _MOST_BYTES:
        wrong.append(f"{_field('room')} is for {header.max_elements} elements, which would need {size} bytes")
    if header.count > header.max_elements:
        wrong.append(f"{_field('count')} is {header.count}, room for {header.max_elements}")
    return wrong


def _size_findings(segment: str, header: IndexHeader, sizes: Mapping[str, int], *, cosine: bool) -> list[Finding]:
    """Files that are too short for what the header counts.

    How long they are beyond that says nothing: hnswlib writes into files that are there and never shortens them, so an
    index that was made anew over an older one's files (of another capacity, or with records of another size) leaves
    the end of these behind. It reads no more than the header says.
    """
    count = header.count
    needed = {"data_level0.bin": count * header.record_size, "link_lists.bin": 4 * count}
    if cosine:
        needed["length.bin"] = 4 * count
    return [
        Finding(
            "hnsw.size_mismatch", f"{segment}/{base}", f"{sizes[base]} bytes, expected {least} for {count} embeddings"
        )
        for base, least in needed.items()
        if sizes.get(base, least) < least
    ]
