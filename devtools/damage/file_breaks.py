"""Breaks of files, and of the fields and records of an index, in place.

Most functions make a `Break`: it is given the delta and a source of randomness, and says in one line what it did.
"""
# ruff: noqa: ARG001, ARG005 -- every break takes the same arguments

from __future__ import annotations

import pickle
import random
import shutil
import sqlite3
import struct
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

from shared.model.delta import DATABASE, JOURNALS, SEGMENT_FILES

Break = Callable[[Path, random.Random], str]

JOURNAL, WAL = JOURNALS[:2]
LEVEL0, HEADER, PICKLE, LENGTHS, LINKS = SEGMENT_FILES
MARKER = "pickle-was-run"
"""The file that the malicious pickle creates in the working directory of whoever loads it."""

# Name: offset and struct format, in header.bin.
HEADER_FIELDS = {
    "version": (0, "<i"),
    "max_elements": (12, "<Q"),
    "cur_count": (20, "<Q"),
    "rec_size": (28, "<Q"),
    "label_offset": (36, "<Q"),
    "offset_data": (44, "<Q"),
    "maxlevel": (52, "<i"),
    "entrypoint": (56, "<I"),
}
PAGE = 4096
"""Bytes of a database page, and of a disk block."""
_TWO = 2


class DoesNotApply(ValueError):
    """A delta has nothing that a damage could break: no such file, table, row or record."""


def connected(directory: Path) -> closing[sqlite3.Connection]:
    """The database, in autocommit; close it by leaving the block."""
    return closing(sqlite3.connect(directory / DATABASE, isolation_level=None))


def file(directory: Path, name: str) -> Path:
    """The database or a journal, which need not exist, or that file of the first index; a flushed one if there is any.

    Raises:
        DoesNotApply: There is no index, or it has no such file.
    """
    if name in (DATABASE, *JOURNALS):
        return directory / name
    path = folders(directory)[0] / name
    if not path.exists():
        raise DoesNotApply(f"{path}: the index has no such file")
    return path


def filled(directory: Path, name: str) -> Path:
    """The same, of a file that is not empty.

    Raises:
        DoesNotApply: It is, or there is none.
    """
    path = file(directory, name)
    if not path.stat().st_size:
        raise DoesNotApply(f"{path}: it is empty")
    return path


def folders(directory: Path) -> list[Path]:
    """Index folders of the delta, flushed ones first.

    Raises:
        DoesNotApply: There is none.
    """
    with connected(directory) as database:
        segments = database.execute("SELECT id FROM segments WHERE scope = 'VECTOR' ORDER BY id").fetchall()
    folders = [directory / segment for (segment,) in segments if (directory / segment).is_dir()]
    if not folders:
        raise DoesNotApply(f"{directory}: no collection of this delta has an index folder")
    return sorted(folders, key=lambda folder: not (folder / PICKLE).exists())


def removed(name: str) -> Break:
    """Remove a file."""

    def break_(directory: Path, rng: random.Random) -> str:
        file(directory, name).unlink()
        return f"{name} removed"

    return break_


def truncated(name: str, size: Callable[[int, random.Random], int]) -> Break:
    """Cut a file; `size` is given its bytes."""

    def break_(directory: Path, rng: random.Random) -> str:
        path = file(directory, name)
        before = path.stat().st_size
        after = size(before, rng)
        path.write_bytes(path.read_bytes()[:after])
        return f"{name} cut from {before} to {after} bytes"

    return break_


def anywhere(size: int, rng: random.Random) -> int:
    """Keep some bytes, at least two."""
    return rng.randrange(2, size)


def half(size: int, rng: random.Random) -> int:
    """Keep the first half."""
    return size // 2


def replaced(name: str, content: Callable[[int, random.Random], bytes]) -> Break:
    """Give a file, which need not exist, other content; `content` is given its bytes."""

    def break_(directory: Path, rng: random.Random) -> str:
        path = file(directory, name)
        before = path.stat().st_size if path.exists() else 0
        path.write_bytes(content(before, rng))
        return f"{name}: its {before} bytes replaced by {path.stat().st_size} others"

    return break_


def appended(name: str) -> Break:
    """Add up to a page of noise to the end of a file."""

    def break_(directory: Path, rng: random.Random) -> str:
        extra = rng.randbytes(rng.randrange(1, 4096))
        path = file(directory, name)
        path.write_bytes(path.read_bytes() + extra)
        return f"{name}: {len(extra)} bytes added"

    return break_


def noise(size: int, rng: random.Random) -> bytes:
    """As many random bytes."""
    return rng.randbytes(size)


def patch(path: Path, offset: int, data: bytes) -> str:
    """Overwrite bytes in place."""
    content = bytearray(path.read_bytes())
    old, content[offset : offset + len(data)] = bytes(content[offset : offset + len(data)]), data
    path.write_bytes(content)
    return f"{path.name} at {offset}: {old[:8].hex()} became {data[:8].hex()} ({len(data)} bytes)"


def overwritten(name: str, offset: int, data: bytes) -> Break:
    """Overwrite bytes of a file at a fixed offset."""
    return lambda directory, rng: patch(file(directory, name), offset, data)


def header_field(name: str, change: Callable[[int], int]) -> Break:
    """Overwrite a field of `header.bin`; `change` is given its value."""
    at, form = HEADER_FIELDS[name]

    def break_(directory: Path, rng: random.Random) -> str:
        path = file(directory, HEADER)
        (old,) = struct.unpack_from(form, path.read_bytes(), at)
        if not struct.unpack_from("<Q", path.read_bytes(), HEADER_FIELDS["cur_count"][0])[0]:
            raise DoesNotApply(f"{path}: the index holds nothing")
        return f"{name} from {old} to {change(old)}; " + patch(path, at, struct.pack(form, change(old)))

    return break_


def with_float(value: float) -> Callable[[bytes, random.Random], bytes]:
    """Put this value at some place of a vector."""

    def change(vector: bytes, rng: random.Random) -> bytes:
        at = 4 * rng.randrange(len(vector) // 4)
        return vector[:at] + struct.pack("<f", value) + vector[at + 4 :]

    return change


def with_flipped_bit(vector: bytes, rng: random.Random) -> bytes:
    """The vector with a high mantissa bit of one value flipped."""
    at = 4 * rng.randrange(len(vector) // 4) + 2
    return vector[:at] + bytes([vector[at] ^ 0x40]) + vector[at + 1 :]


def record(part: str, change: Callable[[bytes, random.Random], bytes]) -> Break:
    """Overwrite one part of one record of the index: `links`, `mark`, `neighbour`, `vector` or `label`."""

    def break_(directory: Path, rng: random.Random) -> str:
        header, path = file(directory, HEADER).read_bytes(), file(directory, LEVEL0)
        count, size, label, vector = (
            struct.unpack_from("<Q", header, HEADER_FIELDS[name][0])[0]
            for name in ("cur_count", "rec_size", "label_offset", "offset_data")
        )
        begin, end = {
            "links": (0, 2),
            "mark": (2, 3),
            "neighbour": (4, 8),
            "vector": (vector, label),
            "label": (label, size),
        }[part]
        if not count:
            raise DoesNotApply(f"{path}: no record is in use")
        number = rng.randrange(count)
        at = number * size + begin
        old = path.read_bytes()[at : number * size + end]
        return f"record {number}, {part}; " + patch(path, at, change(old, rng))

    return break_


def block_zeroed(directory: Path, rng: random.Random) -> str:
    """Zero 4 KiB of the records in use, as a lost write of a disk does."""
    header, path = file(directory, HEADER).read_bytes(), file(directory, LEVEL0)
    count, size = (struct.unpack_from("<Q", header, HEADER_FIELDS[name][0])[0] for name in ("cur_count", "rec_size"))
    if count * size < PAGE:
        raise DoesNotApply(f"{path}: {count * size} bytes are in use")
    return patch(path, PAGE * rng.randrange(count * size // PAGE), bytes(PAGE))


def id_map(change: Callable[[dict[str, Any], random.Random], object]) -> Break:
    """Change the dictionary in the pickle of the index, and write it as Chroma does."""

    def break_(directory: Path, rng: random.Random) -> str:
        path = file(directory, PICKLE)
        with path.open("rb") as stream:
            content = _PlainUnpickler(stream).load()
        if len(content["id_to_label"]) < _TWO:
            raise DoesNotApply(f"{path}: it has no two ids")
        change(content, rng)
        path.write_bytes(pickle.dumps(content, protocol=3))
        return f"{PICKLE}: ids {len(content['id_to_label'])}, labels {len(content['label_to_id'])}"

    return break_


class _PlainUnpickler(pickle.Unpickler):
    """Reads values of built-in types, as in the id maps of 1.x, and refuses all else."""

    def find_class(self, module: str, name: str) -> Any:
        raise DoesNotApply(f"{module}.{name} in an id map")


def id_forgotten(content: dict[str, Any], rng: random.Random) -> None:
    """Take one id out of the map, both ways."""
    name = rng.choice(sorted(content["id_to_label"]))
    del content["label_to_id"][content["id_to_label"].pop(name)]
    content["id_to_seq_id"].pop(name, None)


def labels_swapped(content: dict[str, Any], rng: random.Random) -> None:
    """Let two ids have each other's label, both ways."""
    one, two = rng.sample(sorted(content["id_to_label"]), 2)
    labels = content["id_to_label"]
    labels[one], labels[two] = labels[two], labels[one]
    content["label_to_id"] |= {labels[one]: one, labels[two]: two}


def malicious_pickle(size: int, rng: random.Random) -> bytes:
    """A pickle that runs a command when it is loaded: it creates the file `MARKER` in the working directory."""
    return b"cos\nsystem\n(S'touch " + MARKER.encode() + b"'\ntR."


def segment_removed(directory: Path, rng: random.Random) -> str:
    """Remove the folder of an index."""
    folder = folders(directory)[0]
    shutil.rmtree(folder)
    return f"{folder.name} removed"


def segments_swapped(name: str) -> Break:
    """Swap one file of the first two indexes."""

    def break_(directory: Path, rng: random.Random) -> str:
        present = [folder / name for folder in folders(directory) if (folder / name).exists()]
        if len(present) < _TWO:
            raise DoesNotApply(f"{directory}: no two indexes have a {name}")
        one, two = present[:_TWO]
        content = one.read_bytes()
        one.write_bytes(two.read_bytes())
        two.write_bytes(content)
        return f"{name} of {one.parent.name} and {two.parent.name} swapped"

    return break_


def segment_unreferenced(directory: Path, rng: random.Random) -> str:
    """Add an index folder of noise that no collection refers to."""
    digits = f"{rng.getrandbits(128):032x}"
    folder = directory / "-".join(digits[a:b] for a, b in ((0, 8), (8, 12), (12, 16), (16, 20), (20, 32)))
    folder.mkdir()
    for name in SEGMENT_FILES:
        (folder / name).write_bytes(rng.randbytes(200))
    return f"{folder.name} added"


def foreign_file(directory: Path, rng: random.Random) -> str:
    """Add a file of the Finder's."""
    (directory / ".DS_Store").write_bytes(b"\0\0\0\1Bud1" + rng.randbytes(24))
    return ".DS_Store added"
