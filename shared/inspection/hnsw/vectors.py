"""The vectors of a flushed index, and of the queue, bit for bit as Chroma gives them back."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from shared.inspection.hnsw.header import IndexHeader
from shared.model.errors import CouldNotCheck, faults_explained

_BLOCK_BYTES = 1024 * 1024
_DELETED = 1 << 16
_TINY = np.float32(1e-30)


class IndexVectors:
    """Reads vectors out of `data_level0.bin` by their labels, and nothing else of it into memory.

    `labels` are those of all records that are not marked as deleted, sorted.

    Args:
        folder: The index's folder.
        header: Its header.
        cosine: Whether the index keeps unit vectors, and their lengths in `length.bin`.

    Raises:
        CouldNotCheck: The files cannot be read, or are shorter than the header says.
    """

    def __init__(self, folder: Path, header: IndexHeader, *, cosine: bool) -> None:
        self._header = header
        self._data = folder / "data_level0.bin"
        self._lengths = read_part(folder / "length.bin", 0, 4 * header.count).view("<f4") if cosine else None
        labels, slots = self._labels()
        order = np.argsort(labels)
        self.labels, self._slots = labels[order], slots[order]

    def take(self, labels: NDArray[np.int64]) -> NDArray[np.float32]:
        """The vectors with these labels, which must all be there: one row for each, in the same order."""
        header = self._header
        slots = self._slots[np.searchsorted(self.labels, labels)]
        order = np.argsort(slots)
        vectors = np.empty((len(labels), header.dimension), np.float32)
        ordered = slots[order]
        ends = np.flatnonzero(np.diff(ordered) != 1) + 1  # records that lie one behind the other are read at once
        for run in np.split(order, ends):
            if run.size:
                start = int(slots[run[0]]) * header.record_size
                part = read_part(self._data, start, len(run) * header.record_size).view("<u4").reshape(len(run), -1)
                vectors[run] = part[:, header.data_offset // 4 : header.label_offset // 4].view("<f4")
        if self._lengths is not None:
            with np.errstate(invalid="ignore", over="ignore"):
                vectors *= self._lengths[slots][:, None]
        return vectors

    def _labels(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """The labels of all records that are not marked as deleted, and the place of each."""
        header = self._header
        step = max(1, _BLOCK_BYTES // header.record_size)
        labels, slots = [np.empty(0, np.int64)], [np.empty(0, np.int64)]
        for start in range(0, header.count, step):
            rows = min(step, header.count - start)
            block = read_part(self._data, start * header.record_size, rows * header.record_size)
            words = block.view("<u4").reshape(rows, -1)
            live = np.flatnonzero(words[:, 0] & _DELETED == 0)
            labels.append(words[live, header.label_offset // 4 :].copy().view("<i8")[:, 0])
            slots.append(start + live)
        return np.concatenate(labels), np.concatenate(slots)


def through_cosine(vectors: NDArray[np.float32]) -> NDArray[np.float32]:
    """What a cosine index gives back of the vectors that were put into it.

    It keeps each divided by its length, and multiplies again: about a quarter of the numbers come back one unit in the
    last place away. Squares are summed one after the other, as hnswlib's loop does on x86-64; measured, chromadb 1.5.9.
    """
    with np.errstate(all="ignore"):
        squares = np.add.accumulate(vectors * vectors, axis=1, dtype=np.float32)[:, -1:]
        lengths = np.sqrt(squares)
        return np.asarray(vectors * (np.float32(1) / (lengths + _TINY)) * lengths, np.float32)


def read_part(path: Path, start: int, length: int) -> NDArray[np.uint8]:
    """Some bytes of an index file.

    Raises:
        CouldNotCheck: They cannot be read, or are not there.
    """
    with faults_explained(f"reading {path.name} of an index"):
        part = np.fromfile(path, dtype=np.uint8, count=length, offset=start)
    if len(part) != length:
        raise CouldNotCheck("check.changed", f"{path.name} of an index is shorter than its header says")
    return part
