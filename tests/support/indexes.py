"""The files of a real flushed index: 100 vectors of 16 numbers, and the places of all their fields."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from shared.inspection.hnsw.vector_index import Index, IndexFiles, inspect_index

SEGMENT = "0a1b2c3d-0000-4000-8000-0123456789ab"
DIMENSION = 16
COUNT = 100
RECORD = 204  # 4 + 4 * 32 neighbours + 4 * 16 numbers + 8
VECTOR, LABEL = 132, 196
HEADER, LEVEL0, LENGTHS, LINKS, PICKLE = (
    "header.bin", "data_level0.bin", "length.bin", "link_lists.bin", "index_metadata.pickle"
)  # fmt: skip
FIELDS = {
    "version": (0, "<i"), "offset_level0": (4, "<Q"), "max_elements": (12, "<Q"), "count": (20, "<Q"),
    "record_size": (28, "<Q"), "label_offset": (36, "<Q"), "data_offset": (44, "<Q"), "max_level": (52, "<i"),
    "entry_point": (56, "<I"), "max_links": (60, "<Q"), "max_links_level0": (68, "<Q"), "links": (76, "<Q"),
    "level_factor": (84, "<d"), "ef_construction": (92, "<Q"),
}  # fmt: skip

Files = dict[str, bytes]


def read_index(delta: Path) -> Files:
    """The files of the only flushed index of a delta."""
    folder = next(delta.rglob(PICKLE)).parent
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def index_files(files: Files) -> IndexFiles:
    """The files as an inspection reads them."""

    def read(base: str, start: int, length: int) -> NDArray[np.uint8]:
        return np.array(memoryview(files[base])[start : start + length], dtype=np.uint8)

    return IndexFiles({name: len(data) for name, data in files.items()}, read)


def inspected(files: Files, dimension: int | None = DIMENSION, *, cosine: bool = False) -> Index:
    return inspect_index(SEGMENT, index_files(files), dimension, cosine=cosine)


def patch(files: Files, name: str, at: int, new: bytes) -> None:
    files[name] = files[name][:at] + new + files[name][at + len(new) :]


def field(files: Files, name: str) -> Any:
    at, form = FIELDS[name]
    return struct.unpack_from(form, files[HEADER], at)[0]


def set_field(files: Files, name: str, value: object) -> None:
    at, form = FIELDS[name]
    patch(files, HEADER, at, struct.pack(form, value))


def resize(files: Files, name: str, change: int) -> None:
    """Adds zeros to the end of a file, or cuts it."""
    size = len(files[name]) + change
    files[name] = files[name].ljust(size, b"\0")[:size]
