"""Whatever a delta holds, a look at it takes bounded memory and processor time: every kind of thing, many times over.

Each delta is judged in a child process, as in `test_hostile`, beside what is as large and healthy.
"""

from __future__ import annotations

import math
import random
import struct
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import chromadb
import numpy as np
import pytest

from shared.inspection.limits import Limits, counted, memory_of, memory_of_operation
from shared.inspection.sqlite.database_file import opened
from shared.inspection.sqlite.pages import schema_bytes
from shared.model.deadline import UNLIMITED, Deadline
from shared.model.delta import DATABASE
from shared.model.errors import CouldNotCheck
from shared.model.verdict import Depth
from tests.conftest import CopyOf
from tests.shared.inspection.test_hostile import ANY, COUNTED, NOT_HEALTHY, changed, columns, index_file, judged

Make = Callable[[Path], object]
BYTES = 16 * 1024**2
LONG = 14 * 1024**2


def test_what_is_kept_is_counted_and_what_is_dropped_no_longer() -> None:
    limits = Limits(100, 1)
    limits.keep(90)
    limits.drop(50)
    limits.keep(60)
    with pytest.raises(CouldNotCheck, match="of memory") as fault:
        limits.keep(1)
    assert fault.value.code == "check.size_cap"


def test_time_is_that_of_the_processor_and_sound_embeddings_add_to_it(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    monkeypatch.setattr("shared.inspection.limits.time", SimpleNamespace(thread_time=lambda: now))
    limits = Limits(0, 4, UNLIMITED)
    now = 4.5
    with pytest.raises(CouldNotCheck, match="reading: ") as fault:
        limits.check("reading")
    assert (fault.value.code, limits.over) == ("check.timeout", True)
    limits.earn(1_000_000)
    limits.check("reading")
    assert not limits.over
    assert Limits(0, 4, Deadline(0.0)).over


def test_every_row_that_is_read_counts(healthy_delta: Path) -> None:
    with opened(healthy_delta / DATABASE, 60) as connection:
        limits = Limits(10_000, 60)
        with counted(connection, limits), pytest.raises(CouldNotCheck):
            connection.execute("SELECT * FROM embeddings").fetchall()
        assert len(connection.execute("SELECT * FROM embeddings").fetchall()) == 50


@pytest.mark.parametrize("value", ["", "a" * 1000, "\u00e9" * 1000, "\u4e2d" * 1000, "\U0001f600" * 1000, b"a" * 1000])
def test_the_memory_of_a_text_is_never_taken_for_less(value: str | bytes) -> None:
    assert memory_of(value) >= value.__sizeof__() - 100


def test_the_memory_of_json_is_never_taken_for_much_less() -> None:
    assert memory_of_operation("[" + "[]," * 1000 + "1]") > 1000 * 64


def test_what_an_escape_may_stand_for_is_counted_as_the_widest_character() -> None:
    text = '{"a":"' + "x" * 1000 + '\\ud83d\\ude00"}'
    assert memory_of_operation(text) > memory_of_operation(text.replace("\\u", "--")) + 3 * 1000


@pytest.mark.parametrize("space", ["", " "])
def test_marks_in_a_document_are_no_values(space: str) -> None:
    marks = '[{,\\"' * 10_000
    inside = memory_of_operation(f'{{"a":[1,2],"chroma:document":{space}"{marks}","b":[{{}},3]}}')
    assert inside < len(marks) + 2000
    for outside in (f'{{"chroma:document":"","b":"{marks}"}}', f'{{"chroma:document":"{marks}', f'{{"a":"{marks}"}}'):
        assert memory_of_operation(outside) > 30_000 * 64


LONG_DOCUMENTS = {"words": ("a word and ", 40), "a table": ("1,2,3,[],{},", 17), "lines": ('he said "no"\n', 17)}


@pytest.mark.slow
@pytest.mark.parametrize("text", LONG_DOCUMENTS)
def test_a_delta_with_a_long_document_is_healthy(text: str, tmp_path: Path) -> None:
    delta = tmp_path / "delta"
    letters, megabytes = LONG_DOCUMENTS[text]
    part = "".join(random.Random(0).choices(letters, k=1000))
    with chromadb.PersistentClient(delta) as client:
        collection = client.create_collection("words", embedding_function=None)
        collection.add(ids=["a", "b"], embeddings=[[1, 2], [3, 4]], documents=[part * megabytes * 1000, "short"])
    verdict = judged(delta, Depth.STRUCTURE)
    assert verdict["status"] == "healthy", verdict["findings"]


@pytest.mark.slow
@pytest.mark.parametrize("value", ["wide text", "wide escapes", "lists"])
def test_a_value_as_long_as_a_large_file_may_have_does_not_exhaust_the_reader(
    value: str, healthy_delta: Path, copy_of: CopyOf
) -> None:
    delta = copy_of(healthy_delta)
    changed(
        delta, "CREATE TABLE filler (a)", f"INSERT INTO filler {COUNTED.format(20)} SELECT zeroblob(10000000) FROM c"
    )
    length = 50_000_000
    texts = {
        "wide text": '{"a":"' + "x" * length + '\U0001f600"}',
        "wide escapes": '{"a":"' + "x" * length + '\\ud83d\\ude00"}',
        "lists": '{"a":[' + "[]," * (length // 3) + "1]}",
    }
    only = "seq_id = (SELECT min(seq_id) FROM embeddings_queue)"
    changed(delta, f"UPDATE embeddings_queue SET metadata = ? WHERE {only}", values=(texts[value],))
    assert judged(delta)["status"] in NOT_HEALTHY


def test_the_size_of_a_schema_is_known_before_sqlite_reads_it(healthy_delta: Path, copy_of: CopyOf) -> None:
    def size(folder: Path) -> int:
        data = (folder / DATABASE).read_bytes()
        return schema_bytes(lambda at, length: data[at : at + length], 2**40)

    delta = copy_of(healthy_delta)
    before = size(delta)
    changed(delta, *(f"CREATE TABLE t{number} (a, b)" for number in range(500)))
    assert 1000 < before < 50_000
    assert 500 * 30 < size(delta) - before < 500 * 150


@pytest.mark.parametrize("data", [b"", b"\0" * 100, b"\xff" * 9000, b"\5" * 9000, b"\r" * 9000])
def test_the_size_of_what_is_no_schema_is_counted_to_an_end(data: bytes) -> None:
    assert schema_bytes(lambda at, length: data[at : at + length], 2**20) >= 0


def repeated(body: bytes, before: bytes = b"") -> Make:
    def make(delta: Path) -> None:
        pickle = b"\x80\x04" + before + body * (BYTES // len(body)) + b"."
        index_file(delta, "index_metadata.pickle").write_bytes(pickle)

    return make


PICKLES = {
    "memoize": repeated(b"\x94", b"}"), "put": repeated(b"q\0", b"}"), "none": repeated(b"N"), "byte": repeated(b"K\1"),
    "short": repeated(b"M\1\2"), "int": repeated(b"J\1\2\3\4"), "long": repeated(b"\x8a\x08" + b"\1" * 8),
    "no text": repeated(b"X\0\0\0\0"), "text": repeated(b"X\2\0\0\0ab"), "short text": repeated(b"\x8c\2ab"),
    "wide text": repeated(b"X\4\0\0\0" + "\U0001f600".encode()), "tuple": repeated(b")"), "mark": repeated(b"("),
    "get": repeated(b"h\0", b"}q\0"), "protocol": repeated(b"\x80\4"), "frame": repeated(b"\x95" + bytes(8)),
    "item": repeated(b"K\1Ns", b"}"), "items": repeated(b"(u", b"}"),
    "places far apart": lambda d: index_file(d, "index_metadata.pickle").write_bytes(
        b"\x80\4}" + b"".join(b"r" + struct.pack("<I", 1024 * i) for i in range(BYTES // 5)) + b"."
    ),
    "one wide text": lambda d: index_file(d, "index_metadata.pickle").write_bytes(
        b"\x80\4X" + struct.pack("<I", LONG) + "\U0001f600".encode() + b"x" * (LONG - 4) + b"."
    ),
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("name", PICKLES)
def test_no_instruction_of_a_pickle_exhausts_the_reader(name: str, flushed_delta: Path, copy_of: CopyOf) -> None:
    delta = copy_of(flushed_delta)
    PICKLES[name](delta)
    assert judged(delta)["status"] in NOT_HEALTHY


TABLES = [
    "tenants", "databases", "segments", "max_seq_id", "collections", "migrations", "embeddings", "embeddings_queue",
    "embedding_metadata", "collection_metadata", "segment_metadata", "embedding_metadata_array",
    "embeddings_queue_config", "embedding_fulltext_search_content", "embedding_fulltext_search_docsize",
]  # fmt: skip
REFERENCES = {
    "segment_id": "(SELECT id FROM segments WHERE scope = 'METADATA')", "embedding_id": "i || ''",
    "topic": "(SELECT max(topic) FROM embeddings_queue)", "operation": "i % 4", "created_at": "'2024-01-01 00:00:00'",
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("filled", [False, True], ids=["bare", "filled"])
@pytest.mark.parametrize("table", TABLES)
def test_no_table_of_many_rows_exhausts_the_reader(
    table: str, filled: bool, flushed_delta: Path, copy_of: CopyOf
) -> None:
    """The table without its indexes and conditions; its rows as short as they can be, or such that they are read."""
    delta = copy_of(flushed_delta)
    names = columns(delta, table)
    values = [(REFERENCES.get(name, "i") if filled else "NULL") for name in names]
    rows = BYTES // (110 if filled and set(names) & {"topic", "segment_id"} else 10 + 3 * len(names))
    changed(
        delta,
        f"CREATE TABLE plain AS SELECT * FROM {table}",
        f"DROP TABLE {table}" if "fulltext" not in table else "SELECT 1",
        f"ALTER TABLE plain RENAME TO {table}" if "fulltext" not in table else "SELECT 1",
        f"INSERT INTO {'plain' if 'fulltext' in table else table} {COUNTED.format(rows)} "
        f"SELECT {', '.join(values)} FROM c",
    )
    assert judged(delta)["status"] in ANY


VALUES = {
    "text": "x" * LONG, "wide text": "\U0001f600" + "x" * (LONG - 4), "lists": '{"a":[' + "[]," * (LONG // 3) + "1]}",
    "dicts": '{"a":[' + "{}," * (LONG // 3) + "1]}", "numbers": '{"a":[' + "1.5," * (LONG // 4) + "1]}",
    "keys": "{" + ",".join(f'"{i:x}":0' for i in range(LONG // 10)) + "}", "digits": '{"a":' + "1" * LONG + "}",
    "bytes": b"x" * LONG,
}  # fmt: skip
PLACES = [
    "embeddings_queue SET metadata = ?", "embeddings_queue SET id = ?", "embeddings_queue SET vector = ?",
    "collections SET config_json_str = ?", "collections SET schema_str = ?", "collections SET name = ?",
    "segments SET type = ?", "migrations SET sql = ?", "embeddings SET embedding_id = ?",
]  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("value", VALUES)
def test_no_long_value_exhausts_the_reader(value: str, place: str, healthy_delta: Path, copy_of: CopyOf) -> None:
    delta = copy_of(healthy_delta)
    table = place.partition(" ")[0]
    only = f"rowid = (SELECT min(rowid) FROM {table})"
    changed(delta, f"UPDATE {place} WHERE {only}", values=(VALUES[value],))
    assert judged(delta)["status"] in ANY


def test_the_widest_tables_of_a_schema_are_over_the_cap(healthy_delta: Path, copy_of: CopyOf) -> None:
    delta = copy_of(healthy_delta)
    names = ", ".join(f"c{number}" for number in range(1900))
    changed(delta, *(f"CREATE TABLE w{number} ({names})" for number in range(250)))
    verdict = judged(delta)
    assert (verdict["status"], verdict["findings"][0]["code"]) == ("undetermined", "check.size_cap")


HEADER = struct.Struct("<iQQQQQQiIQQQdQ")


@pytest.mark.slow
@pytest.mark.parametrize(("links", "levels"), [(1, 1), (2, 0), (2, 1), (2, 30), (2000, 1)])
def test_no_number_of_records_or_levels_exhausts_the_reader(
    links: int, levels: int, flushed_delta: Path, copy_of: CopyOf
) -> None:
    """The smallest records there can be, each with links above level 0, in files that agree with each other."""
    delta = copy_of(flushed_delta)
    offset = 8 * links + 4
    size, level = offset + 12, 4 * links + 4
    count = BYTES // (size + 8 + levels * level)
    factor = 1 / math.log(links) if links > 1 else 0.0
    fields = (1, 0, count, count, size, size - 8, offset, levels, 0, links, 2 * links, links, factor, 100)
    index_file(delta, "header.bin").write_bytes(HEADER.pack(*fields))
    records = np.zeros((count, size), np.uint8)
    records[:, 0] = 1
    records[:, size - 8 :] = np.arange(count, dtype="<u8").view(np.uint8).reshape(count, 8)
    index_file(delta, "data_level0.bin").write_bytes(records.tobytes())
    index_file(delta, "length.bin").write_bytes(bytes(4 * count))
    element = struct.pack("<I", levels * level) + bytes(levels * level)
    index_file(delta, "link_lists.bin").write_bytes(element * count)
    changed(delta, "UPDATE collections SET dimension = 1")
    assert judged(delta)["status"] in NOT_HEALTHY
