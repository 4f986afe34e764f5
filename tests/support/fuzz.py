"""Mutation fuzzing of everything that reads a delta's bytes: `python -m tests.support.fuzz [--inputs N] [--seed S]`.

The seeds are what real Chromas wrote (`tests/samples`) and what Deltaguard and AWS write; every mutator knows the
format it mutates. Input I of a target is made from the seed, the target's name and I alone, so `--seed S --only TARGET
--first I --inputs 1` makes it again. A parser may raise what it documents and nothing else, may not take long, and
whatever it says must be short and printable.
"""

from __future__ import annotations

import argparse
import base64
import copy
import json
import os
import pickletools
import random
import sqlite3
import struct
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Iterable, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass, field
from io import StringIO
from itertools import pairwise
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
from numpy.typing import NDArray
from pydantic import ValidationError
from rich.console import Console

from scanner.picture.anatomy import take_apart
from scanner.picture.svg import plate
from scanner.picture.text import drawing
from shared.inspection.chroma import metadata
from shared.inspection.examination import examine
from shared.inspection.hnsw import header, id_map, vector_index
from shared.inspection.sqlite import database_file, pages
from shared.model.delta import DATABASE, delta_prefix_of, is_chroma_file, printable, segment_of
from shared.model.manifest import Manifest
from shared.model.settings import Settings
from shared.model.verdict import Depth, Finding
from shared.quarantine.record import QuarantineRecord
from shared.storage.folder import FolderContent, list_folder
from tests.samples import SAMPLES
from validator.events import EventError, read_event

CPU_SECONDS = 2.0
"""Processor time that no input may cost; wall time says more about the machine than about the parser."""
_WALL_SECONDS = 60.0
_DETAIL = 1000
_FINDINGS = 1000

Input = Any
Random = random.Random


class Violation(Exception):
    """A promise that an input broke; not an exception of the parser's."""


@dataclass
class Target:
    """One parser: how its inputs are made, what it may raise, and which share of the inputs it gets."""

    name: str
    make: Callable[[Random], Input]
    run: Callable[[Input], None]
    allowed: tuple[type[Exception], ...] = ()
    share: int = 1


@dataclass
class Failure:
    """An input that broke a promise."""

    target: str
    seed: int
    number: int
    problem: str
    input: Input

    def __str__(self) -> str:
        shown = self.input if isinstance(self.input, bytes) else repr(self.input).encode("utf-8", "surrogatepass")
        again = f"python -m tests.support.fuzz --seed {self.seed} --only {self.target} --first {self.number} --inputs 1"
        data = base64.b64encode(shown[:4096]).decode()
        return (
            f"{self.target}: {self.problem}\nagain: {again}\ninput, base64 of {len(shown)} bytes, at most 4096: {data}"
        )


# --- mutations of bytes
# ruff: noqa: C901 - a mutator is a list of mutations

BOUNDARIES = sorted(
    {0, 1, 2, 3, 4, 7, 8, 15, 16, 99, 100, 101, 255, 256, 1000, 4096}
    | {(1 << bits) + off for bits in (7, 8, 15, 16, 31, 32, 40, 60, 62, 63, 64) for off in (-1, 0, 1)}
)


def boundary(rng: Random, width: int) -> bytes:
    """A number at the edge of something, in either byte order."""
    value = rng.choice(BOUNDARIES) if rng.random() < 0.8 else rng.getrandbits(8 * width)
    return (value & ((1 << 8 * width) - 1)).to_bytes(width, rng.choice(("little", "big")))


def mutated(rng: Random, seed: bytes, tokens: Sequence[bytes] = (), others: Sequence[bytes] = ()) -> bytes:
    """`seed` after a few changes: bits, numbers, cuts, repeats, tokens of the format, pieces of another seed."""
    data = bytearray(seed)
    for _ in range(1 + int(rng.expovariate(0.5))):
        at = rng.randrange(len(data) + 1)
        size = min(len(data) - at, 1 << rng.randrange(8))
        match rng.randrange(9):
            case 0 if data:
                data[at % len(data)] ^= 1 << rng.randrange(8)
            case 1:
                new = boundary(rng, rng.choice((1, 2, 4, 8)))
                data[at : at + len(new)] = new
            case 2:
                del data[at : at + size]
            case 3:
                data[at:at] = data[at : at + size] * rng.choice((1, 2, 50))
            case 4:
                data[at:at] = rng.randbytes(size or 1)
            case 5 if tokens:
                new = rng.choice(tokens)
                data[at : at + rng.choice((0, len(new)))] = new
            case 6 if others:
                other = rng.choice(others)
                start = rng.randrange(len(other) + 1)
                data[at : at + size] = other[start : start + size]
            case 7:
                del data[at:]
            case _:
                data[at : at + size] = bytes([rng.choice((0, 0xFF, 0x7F, 0x80))]) * size
        if not data:
            break
    return bytes(data[: 1 << 20])


# --- mutations of JSON

ODD_VALUES: tuple[Any, ...] = (
    None, True, False, 0, -1, 1, 2**31, 2**63, 2**64, -(2**63) - 1, 10**400, 0.5, -0.0, 1e308, float("inf"),
    float("nan"), "", "x", "\0", "\x1b[2J", "\ud800", "..", "/", "../../etc/passwd", "%00", "%ff", "+", "a" * 2000,
    "雪" * 500, "1", "null", [], {}, [[]], [None], {"": None}, {"a": {"b": []}},
)  # fmt: skip


def nested(depth: int, kind: str) -> str:
    """JSON nested this deep."""
    return "[" * depth + "]" * depth if kind == "[" else '{"a":' * depth + "1" + "}" * depth


def places(value: Any, at: tuple[Any, ...] = ()) -> Iterable[tuple[Any, ...]]:
    """The way to every value inside a JSON value."""
    yield at
    children = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, child in children:
        yield from places(child, (*at, key))


def mutated_json(rng: Random, seed: Any) -> Any:
    """`seed` with values replaced, removed, repeated, renamed or swapped."""
    value = copy.deepcopy(seed)
    for _ in range(1 + int(rng.expovariate(0.7))):
        *way, last = rng.choice(list(places(value))[1:] or [(None,)])
        if last is None:
            return rng.choice(ODD_VALUES)
        holder = value
        for key in way:
            holder = holder[key]
        match rng.randrange(7):
            case 0:
                del holder[last]
            case 1 if isinstance(holder, list):
                holder.insert(0, copy.deepcopy(holder[last]))
            case 2 if isinstance(holder, dict):
                holder[str(rng.choice(ODD_VALUES))[:2000]] = holder.pop(last)
            case 3 if isinstance(holder[last], str) and holder[last]:
                text = holder[last]
                at = rng.randrange(len(text))
                holder[last] = text[:at] + str(rng.choice(ODD_VALUES))[:300] + text[at + rng.randrange(3) :]
            case 4:
                holder[last] = [holder[last]]
            case _:
                holder[last] = copy.deepcopy(rng.choice(ODD_VALUES))
    return value


def mutated_text(rng: Random, seed: Any, tokens: Sequence[bytes] = ()) -> bytes:
    """JSON text of a mutated value; now and then mutated as bytes too, or nested far too deep."""
    text = json.dumps(mutated_json(rng, seed)).encode("utf-8", "surrogatepass")
    chance = rng.random()
    if chance < 0.3:
        return mutated(rng, text, tokens)
    if chance < 0.31:
        deep = nested(rng.choice((900, 1100, 20_000)), rng.choice("[{")).encode()
        return text.replace(b"null", deep, 1) if b"null" in text else deep
    return text


# --- what is promised of every answer


def check_findings(findings: Iterable[Finding]) -> None:
    found_all = list(findings)
    for found in found_all:
        for part, text, most in (("file", found.file, 1024), ("detail", found.detail, _DETAIL)):
            if not text.isprintable() or len(text) >= most:
                raise Violation(f"{part} of {found.code}, {len(text)} characters: {text[:300]!r}")
    if len(found_all) > _FINDINGS:
        raise Violation(f"{len(found_all)} findings")


def check_message(error: Exception) -> None:
    text = str(error)
    if not text.isprintable() or len(text) >= _DETAIL:
        raise Violation(f"message of {len(text)} characters: {text[:300]!r}")


# --- the samples as seeds


@dataclass
class Corpus:
    """The files of the samples, and below `folder` the samples themselves."""

    folder: Path
    deltas: list[Path] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.deltas = [sample.unpack(self.folder) for sample in SAMPLES]

    def files(self, name: str) -> list[bytes]:
        return [path.read_bytes() for delta in self.deltas for path in sorted(delta.rglob(name))]

    def indexes(self) -> list[tuple[dict[str, bytes], int]]:
        """The flushed indexes, each with its collection's dimension."""
        folders = [path.parent for delta in self.deltas for path in sorted(delta.rglob("index_metadata.pickle"))]
        return [({path.name: path.read_bytes() for path in sorted(folder.iterdir())}, 8) for folder in folders]

    def queue_metadata(self) -> list[Any]:
        texts: set[str] = set()
        for delta in self.deltas:
            with closing(sqlite3.connect(f"file:{delta / DATABASE}?mode=ro&immutable=1", uri=True)) as connection:
                texts |= {text for (text,) in connection.execute("SELECT metadata FROM embeddings_queue") if text}
        return [json.loads(text) for text in sorted(texts)]


# --- targets

_OPCODES = [bytes([code]) for code in b"\x80\x95\x8cX\x8dKMJ\x8aN})(us\x94qrhj\x93c\x81bRio\x92.0eat]G"]
_PICKLE_TOKENS = [
    *_OPCODES,
    b"id_to_label", b"label_to_id", b"max_seq_id", b"total_elements_added", b"cos\nsystem\n", b"(K\x01K\x02u", b"h\x00",
    b"j\xff\xff\xff\xff", b"X\xff\xff\xff\x7f", b"\x8d" + b"\xff" * 8, b"\x8a\xff" + b"\xff" * 255, b"\xed\xa0\x80",
    b"}(K\x01h\x00K\x02h\x00uq\x01", b"}q\x00", b"\x93",
]  # fmt: skip


def instructions(data: bytes) -> list[bytes]:
    """The instructions of a pickle, each with its argument."""
    starts = [position or 0 for _, _, position in pickletools.genops(data)]
    return [data[start:end] for start, end in pairwise([*starts, len(data)])]


def idmap_target(corpus: Corpus) -> Target:
    seeds = corpus.files("index_metadata.pickle")
    programs = [instructions(seed) for seed in seeds]

    def make(rng: Random) -> bytes:
        if rng.random() < 0.3:
            return mutated(rng, rng.choice(seeds), _PICKLE_TOKENS, seeds)
        program = list(rng.choice(programs))
        for _ in range(1 + int(rng.expovariate(0.7))):  # whole instructions, so that the machine runs on
            at, other = rng.randrange(len(program)), rng.randrange(len(program))
            match rng.randrange(5):
                case 0:
                    program[at : at + 1] = []
                case 1:
                    program[at], program[other] = program[other], program[at]
                case 2:
                    program.insert(at, program[other])
                case 3:
                    program.insert(at, rng.choice(_PICKLE_TOKENS))
                case _:
                    code = rng.choice((b"K", b"M", b"J", b"\x8a\x08"))
                    program[at] = code + boundary(rng, {b"K": 1, b"M": 2, b"J": 4}.get(code, 8))
            if not program:
                break
        return b"".join(program)

    def run(data: bytes) -> None:
        try:
            ids = id_map.parse(data)
        except id_map.IdMapError as error:
            check_message(error)
            return
        if not all(type(id_) is str and type(label) is int for id_, label in ids.labels.items()):
            raise Violation("an id map of something else than texts and numbers")

    return Target("idmap", make, run)


_HEADER_FIELDS = [
    (0, 4), (4, 8), (12, 8), (20, 8), (28, 8), (36, 8), (44, 8), (52, 4), (56, 4), (60, 8), (68, 8), (76, 8), (84, 8),
    (92, 8),
]  # fmt: skip


def mutated_index_header(rng: Random, seed: bytes) -> bytes:
    """`header.bin` with fields at their edges, sometimes made to fit each other again."""
    if len(seed) != header.HEADER_BYTES:
        return mutated(rng, seed)
    data = bytearray(seed)
    for _ in range(rng.randrange(1, 4)):
        at, width = rng.choice(_HEADER_FIELDS)
        data[at : at + width] = boundary(rng, width)
    if rng.random() < 0.5:
        record, links = rng.choice(BOUNDARIES[:40]) & ~3, rng.choice((1, 2, 16, 100_000))
        record = record if rng.random() < 0.5 else 8 * links + 12 + 4 * rng.choice((1, 8, 2**28, 2**60))
        struct.pack_into("<QQQ", data, 28, record & (2**64 - 1), (record - 8) & (2**64 - 1), 8 * links + 4)
        factor = 1 / np.log(links) if links > 1 else 1.0
        struct.pack_into("<QQQd", data, 60, links, 2 * links, links, factor)
    return bytes(data) if rng.random() < 0.9 else mutated(rng, bytes(data))


def header_target(corpus: Corpus) -> Target:
    seeds = [({name: len(data) for name, data in files.items()}, files["header.bin"]) for files, _ in corpus.indexes()]
    segment = "0" * 8 + "-0000-0000-0000-" + "0" * 12

    def make(rng: Random) -> tuple[bytes, dict[str, int]]:
        sizes, head = rng.choice(seeds)
        sizes = {name: size if rng.random() < 0.7 else rng.choice(BOUNDARIES) for name, size in sizes.items()}
        return mutated_index_header(rng, head), sizes

    def run(made: tuple[bytes, dict[str, int]]) -> None:
        check_findings(header.inspect_header(segment, *made)[1])

    return Target("hnsw.header", make, run)


def small_index() -> tuple[dict[str, bytes], int]:
    """An index of dimension 4 with two upper levels, as hnswlib lays it out."""
    count, dimension, links = 6, 4, 2
    data_offset = 8 * links + 4
    record = data_offset + 4 * dimension + 8
    level_size = 4 * links + 4
    level0 = b"".join(
        struct.pack("<HBB4I", 2, 0, 0, (i + 1) % count, (i + 2) % count, 0, 0) + struct.pack("<4fQ", i, 1, 2, 3, i + 1)
        for i in range(count)
    )
    upper = [struct.pack("<I", 0)] * count
    upper[0] = struct.pack("<I", 2 * level_size) + struct.pack("<HHII", 1, 0, 3, 0) + struct.pack("<HHII", 0, 0, 0, 0)
    upper[3] = struct.pack("<I", level_size) + struct.pack("<HHII", 1, 0, 0, 0)
    sizes = (record, record - 8, data_offset)
    head = struct.pack("<iQQQQQQiIQQQdQ", 1, 0, 8, count, *sizes, 2, 0, links, 2 * links, links, 1 / np.log(links), 100)
    labels = b"".join(b"X\x02\0\0\0i%dK%c" % (i, i + 1) for i in range(count))
    ids = b"".join(b"K%cX\x02\0\0\0i%d" % (i + 1, i) for i in range(count))
    pickled = (
        b"\x80\x03}q\x00(X\x14\0\0\0total_elements_addedK\x06X\x0b\0\0\0id_to_label}("
        + labels + b"uX\x0b\0\0\0label_to_id}(" + ids + b"uX\x0a\0\0\0max_seq_idNu."
    )  # fmt: skip
    files = {
        "header.bin": head,
        "data_level0.bin": level0,
        "length.bin": bytes(4 * count),
        "link_lists.bin": b"".join(upper),
        "index_metadata.pickle": pickled,
    }
    return files, dimension


def index_target(corpus: Corpus) -> Target:
    seeds = [*corpus.indexes(), *[small_index()] * 8]
    segment = "0" * 8 + "-0000-0000-0000-" + "0" * 12

    def make(rng: Random) -> tuple[dict[str, bytes], int | None, bool]:
        files, dimension = rng.choice(seeds)
        files = dict(files)
        for _ in range(rng.randrange(1, 3)):
            name = rng.choice(list(files))
            data = files[name]
            if name == "header.bin":
                files[name] = mutated_index_header(rng, data)
            elif name == "index_metadata.pickle":
                files[name] = mutated(rng, data, _PICKLE_TOKENS)
            else:  # numbers inside the file, so that its length stays right and the deeper checks are reached
                changed = bytearray(data)
                for _ in range(rng.randrange(1, 4)):
                    width = rng.choice((1, 2, 4, 8))
                    at = rng.randrange(max(1, len(changed) // 4)) * 4
                    changed[at : at + width] = boundary(rng, width)
                files[name] = bytes(changed[: len(data)]) if rng.random() < 0.9 else mutated(rng, data)
        return files, rng.choice((dimension, dimension, None, 1, 2**31)), rng.random() < 0.5

    def run(made: tuple[dict[str, bytes], int | None, bool]) -> None:
        files, dimension, cosine = made

        def read(base: str, start: int, length: int) -> NDArray[np.uint8]:
            part = files[base][start : start + length]
            if len(part) != length:
                raise Violation(f"{length} bytes asked for at {start} of {base}, which has {len(files[base])}")
            return np.array(memoryview(part), dtype=np.uint8)

        sizes = {name: len(data) for name, data in files.items()}
        index = vector_index.inspect_index(segment, vector_index.IndexFiles(sizes, read), dimension, cosine=cosine)
        check_findings(index.findings)
        if not index.recoverable() <= (index.ids.labels.keys() if index.ids else set()):
            raise Violation("vectors of ids that the id map has not")

    return Target("hnsw.index", make, run)


def sqlite_header_target(corpus: Corpus) -> Target:
    seeds = [(data[:100], len(data)) for data in corpus.files(DATABASE)]

    def make(rng: Random) -> tuple[bytes, int]:
        head, size = rng.choice(seeds)
        if rng.random() < 0.7:
            changed = bytearray(head)
            for _ in range(rng.randrange(1, 4)):
                at, width = rng.choice(
                    ((16, 2), (18, 1), (19, 1), (21, 1), (24, 4), (28, 4), (44, 4), (56, 4), (92, 4))
                )
                changed[at : at + width] = boundary(rng, width)
            head = bytes(changed)
        else:
            head = mutated(rng, head)[:100]
        return head, size if rng.random() < 0.5 else rng.choice(BOUNDARIES)

    def run(made: tuple[bytes, int]) -> None:
        check_findings(database_file.inspect_header(*made))

    return Target("sqlite.header", make, run)


def metadata_target(corpus: Corpus) -> Target:
    seeds = corpus.queue_metadata()

    def make(rng: Random) -> object:
        if rng.random() < 0.01:
            return rng.choice((None, b"{}", 1, 1.5))
        return mutated_text(rng, rng.choice(seeds), (b"NaN", b"1e999", b"-Infinity", b'"\\ud800"')).decode(
            "utf-8", "surrogateescape"
        )

    def run(text: object) -> None:
        try:
            if not isinstance(metadata.parse(text), dict):
                raise Violation("metadata that is no dict")
        except ValueError:
            pass  # its text is cut and escaped by its only caller

    return Target("metadata", make, run)


def manifest_target(corpus: Corpus) -> Target:
    listings = [list_folder(delta).files for delta in corpus.deltas]
    seeds = [
        {
            "format": 1, "batch_id": "batch-1", "attempt": 1, "chromadb": "1.5.9",
            "collections": [
                {"name": "words", "dimension": 8, "count": 20}, {"name": "e", "dimension": None, "count": 0},
            ],
            "files": [{"name": file.name, "size": file.size, "crc64nvme": "AAAAAAAAAAA="} for file in files],
        }
        for files in listings
    ]  # fmt: skip

    def make(rng: Random) -> bytes:
        return mutated_text(rng, rng.choice(seeds))

    def run(data: bytes) -> None:
        try:
            manifest = Manifest.parse(data)
        except ValueError as error:
            check_message(error)
            return
        if Manifest.parse(manifest.as_bytes()) != manifest:
            raise Violation("a manifest that does not survive being written and read")

    return Target("manifest", make, run)


def event_target(_: Corpus) -> Target:
    record = {
        "eventVersion": "2.1", "eventSource": "aws:s3", "eventName": "ObjectCreated:Put",
        "s3": {"bucket": {"name": "deltas"}, "object": {"key": "a/b%2Bc+d/chroma.sqlite3", "size": 1, "eTag": "e"}},
    }  # fmt: skip
    s3 = {"Records": [record, {**record, "eventName": "ObjectRemoved:Delete"}]}
    bridge = {
        "detail-type": "Object Created", "source": "aws.s3",
        "detail": {"bucket": {"name": "deltas"}, "object": {"key": "a/b/delta.manifest.json"}},
    }  # fmt: skip
    sns = {"Type": "Notification", "Message": json.dumps(s3)}
    test = {"Service": "Amazon S3", "Event": "s3:TestEvent", "Bucket": "deltas"}
    bodies = [s3, bridge, sns, test]

    def make(rng: Random) -> Any:
        body: Any = rng.choice(bodies)
        form = rng.randrange(4)
        if form == 0:
            return mutated_json(rng, body)
        if form == 1:
            body = {"Type": "Notification", "Message": mutated_text(rng, s3).decode("utf-8", "replace")}
            text = json.dumps(body)
        else:
            text = mutated_text(rng, body).decode("utf-8", "replace")
        event = {"Records": [{"messageId": "m-1", "eventSource": "aws:sqs", "body": text}]}
        return mutated_json(rng, event) if form == 2 else event

    def run(event: Any) -> None:
        try:
            messages = read_event(event)
        except EventError as error:
            str(error)
            return
        for message in messages:
            if any(not delta.prefix.endswith("/") or not delta.prefix.strip("/") for delta in message.deltas):
                raise Violation(f"a delta without a prefix: {message}")

    return Target("events", make, run)


def names_target(corpus: Corpus) -> Target:
    names = [file.name for delta in corpus.deltas for file in list_folder(delta).files]
    seeds = [
        *names,
        *(f"a/b/{name}" for name in names),
        "delta.manifest.json",
        "/chroma.sqlite3",
        "a//b/chroma.sqlite3",
    ]
    tokens = [
        b"..",
        b"/",
        b"//",
        b"../",
        b"\\",
        b"\0",
        b"\x1b[",
        b"\n",
        b"\xed\xa0\x80",
        b"chroma.sqlite3",
        b"header.bin",
    ]

    def make(rng: Random) -> str:
        return mutated(rng, rng.choice(seeds).encode(), tokens).decode("utf-8", "surrogateescape")

    def run(name: str) -> None:
        prefix = delta_prefix_of(name)
        if prefix is not None and not (name.startswith(prefix) and prefix.endswith("/") and prefix.strip("/")):
            raise Violation(f"prefix {prefix!r}")
        if is_chroma_file(name) and (".." in name or name.startswith("/") or name.count("/") > 1 or "\0" in name):
            raise Violation("a name that may be written, but leaves its folder")
        if segment_of(name) is not None and not name.startswith(f"{segment_of(name)}/"):
            raise Violation(f"segment {segment_of(name)!r}")
        if not printable(name).isprintable() or len(printable(name)) > 120:
            raise Violation(f"printable gives {printable(name)!r}")

    return Target("names", make, run)


def record_target(corpus: Corpus) -> Target:
    files = [{"name": f.name, "size": f.size, "etag": "e", "version": None, "crc64nvme": "AAAAAAAAAAA="}
             for f in list_folder(corpus.deltas[0]).files]  # fmt: skip
    seed = {
        "format": 1, "bucket": "deltas", "prefix": "a/b/", "fingerprint": "0" * 64, "batch_id": None, "attempt": 1,
        "quarantined_at": "2026-11-24T03:00:00Z", "files": files,
        "verdict": {"status": "corrupt", "findings": [{"code": "sqlite.empty", "file": "", "detail": ""}]},
    }  # fmt: skip

    def make(rng: Random) -> bytes:
        return mutated_text(rng, seed)

    def run(data: bytes) -> None:
        record = QuarantineRecord.model_validate_json(data)
        QuarantineRecord.model_validate_json(record.model_dump_json(indent=2))

    return Target("quarantine", make, run, (ValidationError,))


_ODD_SQL = [
    "NULL", "X'00FF'", "CAST(X'FF' AS TEXT)", "'text'", "''", "9223372036854775807", "-1", "1.5", "9e999",
    "zeroblob(8)", "zeroblob(32)", "char(0)", "char(27) || '[2J'", "'NaN'", "'[]'",
    "replace(hex(zeroblob(2000)), '00', '[')",
    "'{\"text\": 1' || hex(zeroblob(200)) || ', \"whole\": 1' || hex(zeroblob(200)) || '}'",
]  # fmt: skip


_READ = ("collections", "segments", "embeddings", "embeddings_queue", "embedding_metadata", "max_seq_id")


def mutated_rows(rng: Random, data: bytes) -> bytes:
    """The database after SQL put a value of another kind into some column, or changed what a table is."""
    with closing(sqlite3.connect(":memory:", isolation_level=None)) as connection:
        connection.deserialize(data)
        connection.execute("PRAGMA writable_schema=ON")
        query = (
            "SELECT t.name, c.name FROM sqlite_schema t, pragma_table_info(t.name) c "
            "WHERE t.rootpage > 0 AND t.type = 'table' AND t.sql NOT LIKE '%WITHOUT ROWID'"
        )
        columns = sorted(connection.execute(query).fetchall())
        for _ in range(rng.randrange(1, 4)):
            told = rng.random() < 0.7  # a column that is looked at, rather than any
            table, column = rng.choice([place for place in columns if place[0] in _READ] if told else columns)
            value = rng.choice(_ODD_SQL)
            name = json.dumps(rng.choice(("x", "\x1b[2J", "y" * 3000, "embedding_fulltext_search_content", table)))
            plain = rng.random() < 0.6
            statements = rng.choice(
                ([f'UPDATE "{table}" SET "{column}" = {value} WHERE rowid % {rng.randrange(1, 4)} = 0'],)
                if plain
                else (
                    [f'UPDATE "{table}" SET "{column}" = {value} WHERE rowid % {rng.randrange(1, 4)} = 0'],
                    [f'UPDATE "{table}" SET "{column}" = {value}'],
                    [f'DELETE FROM "{table}"'],
                    [f'INSERT INTO "{table}" SELECT * FROM "{table}" LIMIT 1'],
                    [f'ALTER TABLE "{table}" RENAME COLUMN "{column}" TO {name}'],
                    # A table without types or keys: any value may then stand anywhere.
                    [f'CREATE TABLE tmp AS SELECT * FROM "{table}"', f'DROP TABLE "{table}"',
                     f'ALTER TABLE tmp RENAME TO "{table}"',
                     f'UPDATE "{table}" SET "{column}" = {value} WHERE rowid % 2'],
                    [f"UPDATE sqlite_schema SET name = {name.replace(chr(34), chr(39))} WHERE name = '{table}'"],
                    [f"UPDATE sqlite_schema SET sql = replace(sql, '{column}', {value}) WHERE name = '{table}'"],
                    [f"UPDATE sqlite_schema SET sql = {value} WHERE name = '{table}'"],
                    [f"CREATE VIEW {name} AS SELECT 1 AS id"],
                    [f'CREATE TRIGGER {name} AFTER INSERT ON "{table}" BEGIN SELECT 1; END'],
                    [f"CREATE INDEX {name} ON \"{table}\" ('{column}' || 1)"],
                )
            )  # fmt: skip
            for statement in statements:
                with suppress(sqlite3.Error):
                    connection.execute(statement)
        return connection.serialize()


def mutated_pages(rng: Random, data: bytes, others: Sequence[bytes]) -> bytes:
    """The database with a page's own numbers changed: its kind, its cells, where they are; or bytes anywhere."""
    changed = bytearray(data)
    page_size = 4096
    for _ in range(rng.randrange(1, 5)):
        start = rng.randrange(len(data) // page_size) * page_size
        offset = start + (100 if start == 0 else 0)
        match rng.randrange(6):
            case 0:
                at, width = offset + rng.choice((0, 1, 3, 5, 7, 8)), rng.choice((1, 2, 4))
                changed[at : at + width] = boundary(rng, width)
            case 1:
                at = offset + 8 + 2 * rng.randrange(40)
                changed[at : at + 2] = boundary(rng, 2)
            case 2:  # where the cells begin: sizes, row ids and the types of the values
                at = start + min(
                    page_size - 2, max(8, struct.unpack_from(">H", data, offset + 5)[0] + rng.randrange(64))
                )
                changed[at : at + 1] = boundary(rng, 1)
            case 3:
                other = rng.choice(others)
                source = rng.randrange(len(other) // page_size) * page_size
                changed[start : start + page_size] = other[source : source + page_size]
            case 4:
                at = rng.randrange(len(changed))
                new = rng.randbytes(rng.choice((1, 4, 64)))
                changed[at : at + len(new)] = new
            case _:
                at = rng.randrange(100)
                changed[at : at + 1] = boundary(rng, 1)
    changed = changed[: len(data)]
    return bytes(changed if rng.random() < 0.95 else changed[: rng.randrange(len(changed))])


def examine_target(corpus: Corpus) -> Target:
    seeds = [(delta, (delta / DATABASE).read_bytes()) for delta in corpus.deltas]
    databases = [data for _, data in seeds]

    def make(rng: Random) -> tuple[Path, bytes]:
        delta, data = rng.choice(seeds)
        chance = rng.random()
        if chance < 0.75:
            data = mutated_rows(rng, data)
        return delta, mutated_pages(rng, data, databases) if chance > 0.7 else data

    def run(made: tuple[Path, bytes]) -> None:
        delta, data = made
        database = delta / DATABASE
        intact = database.read_bytes()
        database.write_bytes(data)
        try:
            before = state_of(corpus.folder)
            listing = list_folder(delta)
            found = examine(listing, FolderContent(delta, listing, 2**31), Depth.STRUCTURE, 60)
            check_findings(found.observed)
            if state_of(corpus.folder) != before or database.read_bytes() != data:
                raise Violation("the folder is not as it was")
        finally:
            database.write_bytes(intact)

    return Target("examine", make, run, share=20)


def pages_target(corpus: Corpus) -> Target:
    databases = corpus.files(DATABASE)

    def make(rng: Random) -> bytes:
        data = rng.choice(databases)
        if rng.random() < 0.1:
            return mutated(rng, data[: rng.choice((200, 4096, 40_000))])
        return mutated_pages(rng, data, databases)

    def run(data: bytes) -> None:
        found = pages.map_pages(lambda offset, length: data[offset : offset + length], len(data))
        if isinstance(found, str):
            check_message(ValueError(found))
            return
        if sum(found.counts().values()) != len(found.kinds):
            raise Violation("a page of no kind")
        if not found.broken.keys() <= set(range(1, len(found.kinds) + 1)):
            raise Violation(f"broken pages outside of the file's {len(found.kinds)}: {max(found.broken)}")
        for text in (*found.broken.values(), *(tree.name for tree in found.trees)):
            check_message(ValueError(text))

    return Target("pages", make, run)


def inspect_target(corpus: Corpus) -> Target:
    """The whole of `deltaguard inspect`: a drawing is wanted most of what is broken."""
    examined = examine_target(corpus)

    def run(made: tuple[Path, bytes]) -> None:
        delta, data = made
        database = delta / DATABASE
        intact = database.read_bytes()
        database.write_bytes(data)
        try:
            anatomy = take_apart(delta, Depth.STRUCTURE, Settings(), None)
        finally:
            database.write_bytes(intact)
        page = StringIO()
        Console(file=page, width=80, highlight=False, markup=False, emoji=False).print(drawing(anatomy))
        if not page.getvalue().replace("\n", "").isprintable():
            raise Violation("a drawing that controls the terminal")
        ElementTree.fromstring(plate(anatomy))

    return Target("inspect", examined.make, run, share=40)


def state_of(folder: Path) -> dict[str, tuple[int, int]]:
    return {
        os.path.join(where, name): (status.st_size, status.st_mtime_ns)  # noqa: PTH118 - ten times as fast
        for where, _, names in os.walk(folder)
        for name in names
        for status in (os.lstat(f"{where}/{name}"),)
    }


TARGETS: tuple[Callable[[Corpus], Target], ...] = (
    idmap_target, header_target, index_target, sqlite_header_target, metadata_target, manifest_target, event_target,
    names_target, record_target, examine_target, pages_target, inspect_target,
)  # fmt: skip


# --- the loop


class _Watchdog(threading.Thread):
    """Ends the process, saying which input it was, when one input takes longer than any may."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.current: tuple[float, Failure] | None = None

    def run(self) -> None:
        while True:
            time.sleep(1)
            current = self.current
            if current is not None and time.monotonic() - current[0] > _WALL_SECONDS:
                sys.stdout.write(f"FAILED {current[1]}\n")
                sys.stdout.flush()
                os._exit(1)


def fuzz(target: Target, inputs: int, seed: int, first: int = 0, watchdog: _Watchdog | None = None) -> list[Failure]:
    """Runs a target. Returns the inputs that broke a promise, one for each place in the code."""
    failures: dict[str, Failure] = {}
    for number in range(first, first + inputs):
        made = target.make(random.Random(f"{seed} {target.name} {number}"))
        failure = Failure(target.name, seed, number, f"no answer in {_WALL_SECONDS:g} s", made)
        if watchdog is not None:
            watchdog.current = (time.monotonic(), failure)
        started = time.process_time()
        try:
            target.run(made)
        except target.allowed:
            pass
        except Exception as error:  # noqa: BLE001 - whatever it is, it is what this looks for
            failure.problem = "".join(traceback.format_exception(error)).rstrip()
            frame = traceback.extract_tb(error.__traceback__)[-1]
            words = str(error).split(",")[0] if isinstance(error, Violation) else ""
            failures.setdefault(f"{frame.filename}:{frame.lineno} {words}", failure)
        used = time.process_time() - started
        if used > CPU_SECONDS:
            failure.problem = f"{used:.1f} s of processor time"
            failures.setdefault("slow", failure)
    if watchdog is not None:
        watchdog.current = None
    return list(failures.values())


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m tests.support.fuzz", description="Fuzz what reads a delta's bytes."
    )
    parser.add_argument("--inputs", type=int, default=100_000, help="inputs per parser (whole examinations: a 20th)")
    parser.add_argument("--seed", type=int, default=0, help="another seed, other inputs")
    parser.add_argument("--only", help="name of one target")
    parser.add_argument("--first", type=int, default=0, help="number of the first input")
    options = parser.parse_args(arguments)
    watchdog = _Watchdog()
    watchdog.start()
    failed = 0
    with tempfile.TemporaryDirectory(prefix="fuzz-corpus-") as folder:
        corpus = Corpus(Path(folder))
        for target in (make(corpus) for make in TARGETS):
            if options.only not in (None, target.name):
                continue
            inputs = options.inputs if options.only else max(1, options.inputs // target.share)
            started = time.perf_counter()
            failures = fuzz(target, inputs, options.seed, options.first, watchdog)
            seconds = time.perf_counter() - started
            sys.stdout.write(f"{target.name:14} {inputs:9} inputs {seconds:8.1f} s {inputs / seconds:9.0f} /s\n")
            for failure in failures:
                sys.stdout.write(f"FAILED {failure}\n\n")
            sys.stdout.flush()
            failed += len(failures)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
