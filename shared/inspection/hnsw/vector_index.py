"""A flushed vector index: every record, every link, every vector, and the labels against the id map.

hnswlib trusts these files: an out-of-range neighbour is followed, which ends in wrong answers or in a dead process.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Set
from dataclasses import dataclass, field
from functools import partial

import numpy as np
from numpy.typing import NDArray

from shared.inspection.hnsw.header import HEADER_BYTES, IndexHeader, inspect_header
from shared.inspection.hnsw.id_map import HostileIdMapError, IdMap, IdMapError, parse
from shared.inspection.hnsw.upper_levels import Broken, inspect_levels
from shared.inspection.limits import NO_LIMITS, Limits
from shared.inspection.values import shown
from shared.model.errors import CouldNotCheck
from shared.model.verdict import Finding

_BLOCK_BYTES = 1024 * 1024  # small enough for the allocator to give the same memory again
_DELETED = 1
_ID_MAP_BYTES, _ID_BYTES = 64 * 1024 * 1024, 1024  # more than any id map of Chroma's: at least, and for each element
_ELEMENT_BYTES = 100  # that are kept of an element at most, while labels and levels are compared
_NORM_TOLERANCE = 1e-3  # measured: 2e-7
_ROUNDING = 2.0**-23  # of each of the float32 sums of squares, hnswlib's and ours, for every number of a vector
_UNUSUAL_LENGTH = 1e15


@dataclass(frozen=True, slots=True)
class IndexFiles:
    """The files of one index, read a part at a time.

    Args:
        sizes: Bytes of each file by base name.
        read: The bytes of a file: base name, offset, length.
    """

    sizes: Mapping[str, int]
    read: Callable[[str, int, int], NDArray[np.uint8]]

    def whole(self, base: str) -> NDArray[np.uint8]:
        """All bytes of a file."""
        return self.read(base, 0, self.sizes[base])


@dataclass(frozen=True, slots=True)
class Index:
    """What an index holds.

    Args:
        ids: Its id map, None when that cannot be read.
        findings: What is wrong with it.
        ahead: The highest label of a record that is beyond all that the id map counts, 0 when none is. A writer that is
            killed between the records and the id map leaves such records; whoever replays the queue gives the same
            labels again.
    """

    ids: IdMap | None
    findings: list[Finding]
    ahead: int = 0
    _records: IndexRecords | None = field(default=None, repr=False)

    def recoverable(self) -> Set[str]:
        """The ids whose vector can still be read, whatever else of the index is damaged."""
        if self.ids is None or self._records is None:
            return set()
        labels = np.fromiter(self.ids.labels.values(), np.int64, len(self.ids.labels)).view(np.uint64)
        sound = np.isin(labels, self._records.sound_labels())
        return {id_ for id_, is_sound in zip(self.ids.labels, sound, strict=True) if is_sound}


def inspect_index(
    segment: str, files: IndexFiles, dimension: int | None, *, cosine: bool, limits: Limits = NO_LIMITS
) -> Index:
    """Everything the bytes of a flushed index prove.

    Args:
        segment: The segment's id, the folder's name.
        files: Its five files, all of them there.
        dimension: Vector length of the collection, None when it is not known.
        cosine: Whether the index keeps vectors of length 1, and their true lengths apart.
        limits: What it may cost.

    Raises:
        CouldNotCheck: It would take more memory or processor time than it may.
    """
    head = files.read("header.bin", 0, min(HEADER_BYTES + 1, files.sizes["header.bin"]))
    header, findings = inspect_header(segment, head.tobytes(), files.sizes, cosine=cosine)
    ids, found = read_id_map(segment, files, header, limits)
    mismatched = {finding.file.rpartition("/")[2] for finding in findings if finding.code == "hnsw.size_mismatch"}
    findings = found + findings
    if header is None or "data_level0.bin" in mismatched:
        return Index(ids, findings)
    if dimension is not None and header.dimension != dimension:
        detail = f"vectors of {header.dimension}, the collection has dimension {dimension}"
        findings.append(Finding("hnsw.dimension_mismatch", f"{segment}/header.bin", detail))
    limits.keep(header.record_size + _ELEMENT_BYTES * header.count)
    records = IndexRecords(segment, header, files, cosine=cosine, lengths="length.bin" not in mismatched)
    records.look(limits)
    findings += records.findings()
    if "link_lists.bin" not in mismatched:
        size, read = files.sizes["link_lists.bin"], partial(files.read, "link_lists.bin")
        findings += inspect_levels(segment, header, size, read, limits)
    ahead = 0
    if ids is not None:
        beyond = records.labels[records.labels > max(ids.added, *ids.labels.values(), 0)]
        ahead = int(beyond.max(initial=0))
        findings += _labels(segment, records, ids, beyond)
    return Index(ids, findings, ahead, records)


def rows_not_finite(matrix: NDArray[np.float32]) -> NDArray[np.bool_]:
    """Which rows of a matrix (rows x dimension) hold NaN or infinity."""
    with np.errstate(over="ignore", invalid="ignore"):
        if np.isfinite(np.add.reduce(matrix, axis=None)):  # what is not finite makes no finite sum
            return np.zeros(len(matrix), np.bool_)
    # A product with zeros would be as good, but its threads wait for each other where processors are few.
    return np.asarray(~np.isfinite(matrix).all(axis=1))


def read_id_map(
    segment: str, files: IndexFiles, header: IndexHeader | None, limits: Limits = NO_LIMITS
) -> tuple[IdMap | None, list[Finding]]:
    """The id map of an index, or what is wrong with it.

    Raises:
        CouldNotCheck: It is larger than may be read.
    """
    name = f"{segment}/index_metadata.pickle"
    size = files.sizes["index_metadata.pickle"]
    most = _ID_MAP_BYTES + _ID_BYTES * (header.count if header else 0)
    if size > most:
        raise CouldNotCheck("check.size_cap", f"{name} has {size} bytes, more than {most} are not read")
    limits.keep(2 * size)
    try:
        return parse(files.whole("index_metadata.pickle").tobytes(), limits), []
    except HostileIdMapError as error:
        return None, [Finding("hnsw.pickle_hostile", name, str(error))]
    except IdMapError as error:
        return None, [Finding("hnsw.pickle_unreadable", name, f"{size} bytes: {error}")]
    finally:
        limits.drop(2 * size)


class IndexRecords:
    """Link counts, neighbours, vectors and labels of every level-0 record, a block at a time so that memory stays flat.

    Args:
        segment: The segment's id.
        header: Its sound header.
        files: Its files.
        cosine: Whether vectors must have length 1.
        lengths: Whether the true lengths of such vectors can be read.
    """

    def __init__(self, segment: str, header: IndexHeader, files: IndexFiles, *, cosine: bool, lengths: bool) -> None:
        self._segment = segment
        self._header = header
        self._files = files
        self._cosine = cosine
        self._readable = lengths or not cosine
        self._links, self._vectors, self._lengths = Broken(), Broken(), Broken()
        self._doubtful: list[NDArray[np.int64]] = []
        self._live: list[NDArray[np.bool_]] = []
        self.labels: NDArray[np.uint64] = np.empty(0, np.uint64)

    @property
    def places(self) -> NDArray[np.int64]:
        """The numbers of the records that `labels` are of."""
        return np.flatnonzero(np.concatenate(self._live)) if self._live else np.empty(0, np.int64)

    def sound_labels(self) -> NDArray[np.uint64]:
        """Labels that stand in one record alone, with nothing wrong about that record."""
        if not self._readable:
            return np.empty(0, np.uint64)
        doubtful = np.concatenate([np.empty(0, np.int64), *self._doubtful])
        labels, counts = np.unique(self.labels, return_counts=True)
        return np.setdiff1d(labels[counts == 1], self.labels[np.isin(self.places, doubtful)])

    def look(self, limits: Limits = NO_LIMITS) -> None:
        """Reads every record; `labels` are then those of the records that are not marked as deleted.

        Raises:
            CouldNotCheck: It takes more processor time than it may.
        """
        header = self._header
        step = max(1, _BLOCK_BYTES // header.record_size)
        positions = np.arange(header.max_links_level0, dtype=np.uint32)
        labels = []
        for start in range(0, header.count, step):
            limits.check(f"reading data_level0.bin of {self._segment}")
            rows = min(step, header.count - start)
            block = self._files.read("data_level0.bin", start * header.record_size, rows * header.record_size)
            # A record is a multiple of four bytes, so every field is a column of words.
            words = block.view("<u4").reshape(rows, -1)
            counts = words[:, 0] & 0xFFFF
            neighbours = words[:, 1 : 1 + header.max_links_level0]
            outside = (neighbours >= header.count) & (positions < counts[:, None])
            links = outside.any(axis=1) | (counts > header.max_links_level0)
            vectors = words[:, header.data_offset // 4 : header.label_offset // 4].view("<f4")
            values = rows_not_finite(vectors)
            self._links.add(start, links)
            self._vectors.add(start, values)
            # Nothing but the only element has no neighbour: such a record was overwritten with zeros.
            doubtful = links | values | ((counts == 0) & (header.count > 1))
            if self._cosine and self._readable:
                lengths = self._files.read("length.bin", 4 * start, 4 * rows).view("<f4")
                not_normal = _rows_not_normal(vectors, lengths)
                self._lengths.add(start, not_normal)
                doubtful |= not_normal
            if doubtful.any():
                self._doubtful.append(start + np.flatnonzero(doubtful))
            limits.earn(rows - int(np.count_nonzero(doubtful)), indexed=True)
            live = words[:, 0] & (_DELETED << 16) == 0
            self._live.append(live)
            labels.append(words[live, header.label_offset // 4 :].copy().view("<u8")[:, 0])
        if labels:
            self.labels = np.concatenate(labels)

    def offset_of(self, label: np.uint64) -> str:
        """Where the first record with a label has it."""
        record = int(self.places[np.flatnonzero(self.labels == label)[0]])
        return f"offset {record * self._header.record_size + self._header.label_offset}"

    def findings(self) -> list[Finding]:
        """What is wrong with them: one finding of a kind, with the number of records and the first of them."""
        header, name = self._header, f"{self._segment}/data_level0.bin"
        findings = []
        if self._links.count:
            at = self._links.first * header.record_size
            words = self._files.read("data_level0.bin", at, header.data_offset).view("<u4")
            count = int(words[0] & 0xFFFF)
            highest = int(words[1 : 1 + count].max(initial=0))
            detail = (
                f"{self._links.count} of {header.count} records, the first at offset {at}: {count} links, the highest "
                f"to element {highest}; expected at most {header.max_links_level0} and {header.count - 1}"
            )
            findings.append(Finding("hnsw.link_invalid", name, detail))
        if self._vectors.count:
            at = self._vectors.first * header.record_size + header.data_offset
            detail = (
                f"{self._vectors.count} of {header.count} vectors, the first at offset {at}: NaN or infinity, "
                f"expected {header.dimension} finite numbers"
            )
            findings.append(Finding("hnsw.vector_not_finite", name, detail))
        if self._lengths.count:
            first = self._lengths.first
            at = first * header.record_size + header.data_offset
            vector = self._files.read("data_level0.bin", at, header.label_offset - header.data_offset).view("<f4")
            with np.errstate(all="ignore"):  # whatever stands there
                norm = math.sqrt(float(np.square(vector, dtype=np.float64).sum()))
            length = float(self._files.read("length.bin", 4 * first, 4).view("<f4")[0])
            detail = (
                f"{self._lengths.count} of {header.count} vectors of a cosine index, the first at offset {at}: its "
                f"length is {norm:.6g}, expected 1; the true one at offset {4 * first} of length.bin is {length:.6g}"
            )
            findings.append(Finding("hnsw.vector_not_normal", name, detail))
        return findings


def _rows_not_normal(vectors: NDArray[np.float32], lengths: NDArray[np.float32]) -> NDArray[np.bool_]:
    """Which vectors of a cosine index contradict their stored length.

    A vector is divided by its length unless that is 0, and very small or large ones lose their length to rounding.
    """
    with np.errstate(invalid="ignore", over="ignore"):
        norms = np.sqrt(np.einsum("ij,ij->i", vectors, vectors))
        normal = np.abs(norms - 1) < _NORM_TOLERANCE + _ROUNDING * vectors.shape[1]
        usual = (lengths > 1 / _UNUSUAL_LENGTH) & (lengths < _UNUSUAL_LENGTH)
        possible = (lengths > 0) & np.isfinite(lengths)
    return np.asarray((usual & ~normal) | (normal & ~possible))


def _labels(segment: str, records: IndexRecords, ids: IdMap, beyond: NDArray[np.uint64]) -> list[Finding]:
    """Each id must have one record that is not marked as deleted, or Chroma cannot find its vector."""
    live = records.labels
    mapped = np.array(list(ids.labels.values()), np.int64).view(np.uint64)
    lost = np.setdiff1d(mapped, live)
    unknown = np.setdiff1d(live, mapped if lost.size else np.concatenate([mapped, beyond]))
    twice = live.size - np.unique(live).size
    if not (lost.size or unknown.size or twice):
        return []
    parts = []
    if lost.size:
        id_ = next(id_ for id_, label in ids.labels.items() if label == int(lost[0].astype(np.int64)))
        parts.append(f"{lost.size} labels of the id map have no record, the first {int(lost[0])} of {shown(id_)}")
    if unknown.size:
        at = records.offset_of(unknown[0])
        parts.append(f"{unknown.size} records have a label that the id map lacks, the first {int(unknown[0])} at {at}")
    if twice:
        labels, counts = np.unique(live, return_counts=True)
        at = records.offset_of(labels[counts > 1][0])
        parts.append(f"{twice} labels stand in more than one record, the first {int(labels[counts > 1][0])} at {at}")
    return [Finding("hnsw.label_mismatch", f"{segment}/data_level0.bin", "; ".join(parts))]
