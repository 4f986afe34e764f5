"""Deltas made to harm whoever reads them: there is always a verdict, soon, in bounded memory, and nothing of them runs.

Every delta is judged in a child process of its own, at depth `open`, so that a crash, a hang and the memory used are
this test's to see. Whatever appears or changes outside the delta fails the test.
"""

from __future__ import annotations

import json
import os
import pickle
import sqlite3
import struct
import subprocess
import sys
from collections.abc import Callable, Iterable
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import pytest

from shared.check.judgement import judge_stored
from shared.inspection.hnsw.header import HEADER_BYTES
from shared.model.delta import DATABASE, DeltaLocation
from shared.model.settings import Settings
from shared.model.verdict import Depth, Status
from shared.storage.store import Store

CopyOf = Callable[[Path], Path]
Make = Callable[[Path], object]

pytestmark = pytest.mark.slow  # a process for each case

SECONDS = 10.0
"""Processor time that no verdict may cost; wall time says more about the machine than about the reader."""
WALL_SECONDS = 300.0
MEGABYTES = 150  # of growth beyond the size of the largest file: the libraries are loaded before
SQL_SECONDS = 3.0
NOT_HEALTHY = {"corrupt", "undetermined"}
ANY = {"healthy", *NOT_HEALTHY}
MANY = 10_000
HUGE = 200 * 1024**3
UUID = "01234567-89ab-cdef-0123-456789abcdef"

JUDGE = f"""
import json, os, re, sys
from pathlib import Path
import shared.inspection
from shared.check.judgement import judge_folder
from shared.model.settings import Settings
from shared.model.verdict import Depth

def peak():
    return int(re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1]) // 1024

shared.inspection.examination._SQL_SECONDS = {SQL_SECONDS}
before, started = peak(), sum(os.times()[:4])
verdict = judge_folder(Path(sys.argv[1]), Depth(sys.argv[2]), Settings(probe_timeout_seconds=3)).verdict
print(json.dumps(verdict.as_json() | {{"seconds": sum(os.times()[:4]) - started, "megabytes": peak() - before}}))
"""


def below(folder: Path) -> dict[str, tuple[int, int]]:
    """Everything below a folder, links not followed: size and time of change."""
    found = {}
    for where, folders, files in os.walk(folder):
        for name in (*folders, *files):
            with suppress(OSError):  # a path that is too long
                status = os.lstat(f"{where}/{name}")
                found[f"{where}/{name}"] = (status.st_size, status.st_mtime_ns)
    return found


def largest_on_disk(folder: Path) -> int:
    """Bytes that the largest file below a folder takes on the disk: a hole takes none."""
    sizes = [0]
    for where, _, names in os.walk(folder):
        for name in names:
            with suppress(OSError):  # a path that is too long
                sizes.append(os.lstat(f"{where}/{name}").st_blocks * 512)
    return max(sizes)


def judged(delta: Path, depth: Depth = Depth.OPEN) -> dict[str, Any]:
    """The verdict on a delta, given by a child process, within the limits."""
    scratch = delta.parent / "scratch"
    scratch.mkdir()
    before = below(delta.parent)
    environment = {"PATH": os.defpath, "TMPDIR": str(scratch), "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    child = subprocess.run(
        [sys.executable, "-c", JUDGE, str(delta), depth],
        env=environment,
        capture_output=True,
        timeout=WALL_SECONDS,
        check=False,
    )
    assert child.returncode == 0, child.stderr.decode(errors="replace")[-3000:]
    verdict: dict[str, Any] = json.loads(child.stdout)
    after = below(delta.parent)
    after[str(scratch)] = before[str(scratch)]  # its probe's folder came and went
    assert after == before, "something appeared, vanished or was changed"
    assert verdict["seconds"] < SECONDS, verdict["seconds"]
    assert verdict["megabytes"] < MEGABYTES + largest_on_disk(delta) // 1024**2, verdict["megabytes"]
    shown = [*verdict["findings"], *verdict["notes"], *verdict["collections"]]
    assert len(shown) <= 1000
    for finding in (*verdict["findings"], *verdict["notes"]):
        assert finding["file"].isprintable()
        assert finding["detail"].isprintable()
        assert len(finding["detail"]) < 1000
    return verdict


def changed(delta: Path, *statements: str, values: tuple[Any, ...] = ()) -> None:
    """Runs SQL on the database, the schema included; `values` go to the last statement."""
    with closing(sqlite3.connect(delta / DATABASE, isolation_level=None)) as connection:
        connection.execute("PRAGMA writable_schema=ON")
        connection.execute("BEGIN")
        for statement in statements[:-1]:
            connection.execute(statement)
        connection.execute(statements[-1], values)
        connection.execute("COMMIT")


def tables(delta: Path) -> list[str]:
    with closing(sqlite3.connect(delta / DATABASE)) as connection:
        query = "SELECT name FROM sqlite_schema WHERE type = 'table' AND rootpage > 0 AND name NOT LIKE 'sqlite_%'"
        return [name for (name,) in connection.execute(query)]


def index_file(delta: Path, name: str) -> Path:
    return next(delta.rglob(name))


# --- pickles


def text(value: str) -> bytes:
    return b"X" + struct.pack("<I", len(value)) + value.encode()


def laughs(levels: int = 15, width: int = 30) -> bytes:
    """A dict that holds the same dict many times, which holds ...: 30^15 when it is written out."""
    data = b"}(K\x00" + text("ha" * 50) + b"uq\x00"
    for level in range(1, levels):
        items = b"".join(b"K" + bytes([i]) + b"h" + bytes([level - 1]) for i in range(width))
        data += b"}(" + items + b"uq" + bytes([level])
    return data


def many_equal_hashes(count: int = 300_000) -> bytes:
    prime = 2**61 - 1  # of which every multiple has the hash 0
    keys = (b"\x8a\x0a" + (i * prime).to_bytes(10, "little") + b"N" for i in range(count))
    return b"}(" + b"".join(keys) + b"u."


class Attack:
    def __init__(self, marker: Path) -> None:
        self.marker = str(marker)

    def __reduce__(self) -> Any:
        return os.mkdir, (self.marker,)


BOMBS = {
    "billion laughs as a module": laughs() + b"K\x01\x93.",
    "billion laughs as a name": text("os") + laughs() + b"\x93.",
    "billion laughs as the id map": b"}(" + text("id_to_label") + laughs() + text("label_to_id") + b"h\x0eu.",
    "billion laughs as a number": b"}(" + text("max_seq_id") + laughs() + b"u.",
    "billion laughs as what is built": laughs() + b"}b.",
    "keys of one hash": many_equal_hashes(),
    "a text of 2^60 bytes": b"\x8d" + struct.pack("<Q", 2**60) + b".",
    "a frame of 2^60 bytes": b"\x95" + struct.pack("<Q", 2**60) + b".",
    "a text of 2^32 bytes": b"X\xff\xff\xff\xff.",
    "a number of 2^31 bytes": b"\x8b\xff\xff\xff\x7f.",
    "a million marks": b"(" * 1_000_000 + b".",
    "a million tuples": b")" + b"\x85" * 1_000_000 + b".",
    "a million dicts": b"}" * 1_000_000 + b".",
    "dicts in dicts": b"}" + b"K\x01}" * 100_000 + b"s" * 100_000 + b".",
    "a dict inside itself": b"}q\x00K\x01h\x00s" + b"K\x01\x93.",
    "memo index 2^32": b"}r\xff\xff\xff\xffj\xff\xff\xff\xff.",
    "a memo of a million": b"}" + b"".join(b"r" + struct.pack("<I", i * 4096) for i in range(1_000_000)) + b".",
    "a label of 2^60": b"}(" + text("id_to_label") + b"}" + text("a") + b"\x8a\x08" + struct.pack("<Q", 2**60) + b"s"
    + text("label_to_id") + b"}\x8a\x08" + struct.pack("<Q", 2**60) + text("a") + b"s"
    + text("total_elements_added") + b"\x8a\x08" + struct.pack("<Q", 2**60) + b"u.",
}  # fmt: skip


@pytest.mark.parametrize("name", BOMBS)
def test_a_pickle_bomb_does_not_go_off(name: str, flushed_delta: Path, copy_of: CopyOf) -> None:
    delta = copy_of(flushed_delta)
    index_file(delta, "index_metadata.pickle").write_bytes(b"\x80\x04" + BOMBS[name])
    assert judged(delta)["status"] in NOT_HEALTHY


@pytest.mark.parametrize("protocol", range(6))
def test_the_code_in_a_pickle_does_not_run(protocol: int, flushed_delta: Path, copy_of: CopyOf) -> None:
    delta = copy_of(flushed_delta)
    marker = delta.parent / "marker"
    index_file(delta, "index_metadata.pickle").write_bytes(pickle.dumps(Attack(marker), protocol))
    assert judged(delta)["status"] == "corrupt"
    assert not marker.exists()


# --- sizes


@pytest.mark.parametrize(
    "name", ["link_lists.bin", "data_level0.bin", "length.bin", "header.bin", "index_metadata.pickle", DATABASE]
)
def test_a_sparse_file_of_200_gib_is_not_read(name: str, flushed_delta: Path, copy_of: CopyOf) -> None:
    delta = copy_of(flushed_delta)
    os.truncate(index_file(delta, name), HUGE)
    assert judged(delta)["status"] in NOT_HEALTHY


@pytest.mark.parametrize("name", ["chroma.sqlite3-journal", "chroma.sqlite3-wal", "delta.manifest.json", "movie.mp4"])
def test_a_sparse_file_of_200_gib_beside_the_database_is_not_read(
    name: str, healthy_delta: Path, copy_of: CopyOf
) -> None:
    delta = copy_of(healthy_delta)
    (delta / name).touch()
    os.truncate(delta / name, HUGE)
    assert judged(delta)["status"] in ({"healthy"} if name == "movie.mp4" else NOT_HEALTHY)  # which is not Chroma's


@pytest.mark.parametrize(
    ("name", "expected"),
    [  # what follows in an index file after all that its header counts was left there by an older index
        ("link_lists.bin", {"healthy"}),
        ("data_level0.bin", {"healthy"}),
        ("length.bin", {"healthy"}),
        ("header.bin", NOT_HEALTHY),
        ("index_metadata.pickle", NOT_HEALTHY),
        (DATABASE, ANY),
    ],
)
def test_a_sparse_file_just_below_the_size_cap_does_not_fill_the_memory(
    name: str, expected: set[str], flushed_delta: Path, copy_of: CopyOf
) -> None:
    delta = copy_of(flushed_delta)
    os.truncate(index_file(delta, name), 2 * 1024**3 - 16 * 1024**2)
    assert judged(delta)["status"] in expected


HEADER_FIELDS = {
    "version": (0, 4), "offset_level0": (4, 8), "max_elements": (12, 8), "count": (20, 8), "record_size": (28, 8),
    "label_offset": (36, 8), "data_offset": (44, 8), "max_level": (52, 4), "entry_point": (56, 4), "max_links": (60, 8),
    "max_links_level0": (68, 8), "links": (76, 8), "level_factor": (84, 8), "ef_construction": (92, 8),
}  # fmt: skip


@pytest.mark.parametrize("value", [2**60, 2**64 - 1])
@pytest.mark.parametrize("name", HEADER_FIELDS)
def test_a_count_of_two_to_the_60_in_an_index_header_allocates_nothing(
    name: str, value: int, flushed_delta: Path, copy_of: CopyOf
) -> None:
    delta = copy_of(flushed_delta)
    header = index_file(delta, "header.bin")
    content = bytearray(header.read_bytes())
    at, width = HEADER_FIELDS[name]
    content[at : at + width] = (value & ((1 << 8 * width) - 1)).to_bytes(width, "little")
    assert len(content) == HEADER_BYTES
    header.write_bytes(content)
    # ef_construction and, in 32 bits, 2^60 = 0 are values that lose nothing.
    assert judged(delta)["status"] in (ANY if name == "ef_construction" or value == 2**60 else {"corrupt"})


# --- schemas

FOREVER = "instr(hex(zeroblob(a * 2000000)), hex(zeroblob(a * 1000000)) || 1)"
"""A single instruction that takes hours: no time limit of SQLite's can interrupt it."""
ENDLESS = "WITH RECURSIVE c(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM c) SELECT"


def with_schema(delta: Path, name: str, sql: str) -> None:
    """A table `x(a, b)` with one row and an index, of which one got another definition than it was made with."""
    make = ("CREATE TABLE x(a, b)", "INSERT INTO x VALUES (1, 2)", "CREATE INDEX i ON x(b)")
    changed(delta, *make, "UPDATE sqlite_schema SET sql = ? WHERE name = ?", values=(sql, name))


def view_for(delta: Path, table: str, body: str) -> None:
    changed(
        delta,
        f"DELETE FROM sqlite_schema WHERE name = '{table}' OR tbl_name = '{table}'",
        "INSERT INTO sqlite_schema VALUES ('view', ?, ?, 0, ?)",
        values=(table, table, f"CREATE VIEW {table} AS {body}"),
    )


def columns(delta: Path, table: str) -> list[str]:
    with closing(sqlite3.connect(delta / DATABASE)) as connection:
        return [row[1] for row in connection.execute(f"PRAGMA table_info({table})")]


def triggers(delta: Path) -> None:
    for number, table in enumerate(tables(delta)):
        for event in ("INSERT", "UPDATE", "DELETE"):
            name = f"t{number}{event}"
            body = f"DELETE FROM embeddings; INSERT INTO x {ENDLESS} i FROM c;"
            sql = f"CREATE TRIGGER {name} BEFORE {event} ON {table} BEGIN {body} END"
            changed(delta, "INSERT INTO sqlite_schema VALUES ('trigger', ?, ?, 0, ?)", values=(name, table, sql))


def endless_views(delta: Path) -> None:
    for table in ("collections", "segments", "embeddings", "embeddings_queue", "max_seq_id", "migrations"):
        view_for(delta, table, f"{ENDLESS} {', '.join(f'i AS {c}' for c in columns(delta, table))} FROM c")


def virtual_tables(delta: Path) -> None:
    for table in ("collections", "segments", "max_seq_id"):
        names = [name for name in columns(delta, table) if name not in ("rowid", "rank")]
        changed(delta, f"DROP TABLE {table}", f"CREATE VIRTUAL TABLE {table} USING fts5({', '.join(names)})")


def fulltext_view(part: str) -> Make:
    def make(delta: Path) -> None:
        names = columns(delta, f"embedding_fulltext_search_{part}")
        body = f"SELECT {', '.join(f'{FOREVER} AS {c}' for c in names)} FROM (SELECT 1 AS a)"
        view_for(delta, f"embedding_fulltext_search_{part}", body)

    return make


def endless_fulltext_view(delta: Path) -> None:
    view_for(delta, "embedding_fulltext_search_content", f"{ENDLESS} i AS id, 'x' AS c0 FROM c")


def many_tables(delta: Path) -> None:
    changed(delta, *(f"CREATE TABLE t{number} (a, b)" for number in range(MANY)))


def many_triggers(delta: Path) -> None:
    changed(delta, *(f"CREATE TRIGGER t{n} AFTER INSERT ON embeddings BEGIN SELECT 1; END" for n in range(MANY)))


def many_views(delta: Path) -> None:
    changed(delta, *(f"CREATE VIEW v{number} AS SELECT 1" for number in range(MANY)))


def odd_names(delta: Path) -> None:
    for name in ("\x1b[2Jred", "a\nb", "y" * 100_000, "../../etc/passwd", "\u202egnp.exe", "'; DROP TABLE x; --"):
        quoted = name.replace('"', '""')
        changed(delta, f'CREATE TABLE "{quoted}" (a UNIQUE, b)', f'INSERT INTO "{quoted}" VALUES (1, 2)')
        changed(delta, f'CREATE VIEW "v{quoted}" AS SELECT 1', f'CREATE TRIGGER "t{quoted}" AFTER INSERT ON embeddings '
                "BEGIN SELECT 1; END")  # fmt: skip


def malformed_name(delta: Path) -> None:
    name = "\x1b[2J" + "y" * 5000
    changed(delta, "INSERT INTO sqlite_schema VALUES ('index', ?, 'x', 3, 'CREATE INDEX')", values=(name,))


def many_columns(delta: Path) -> None:
    changed(delta, f"CREATE TABLE wide ({', '.join(f'c{n} DEFAULT 1' for n in range(2000))})")
    changed(delta, "INSERT INTO wide DEFAULT VALUES")


def deep_expression(delta: Path) -> None:
    sql = f"CREATE VIEW deep AS SELECT {'(' * 100_000}1{')' * 100_000}"
    changed(delta, "INSERT INTO sqlite_schema VALUES ('view', 'deep', 'deep', 0, ?)", values=(sql,))


SCHEMAS: dict[str, tuple[Make, set[str]]] = {
    "triggers on every table": (triggers, {"undetermined"}),
    "endless views as tables": (endless_views, {"corrupt"}),
    "virtual tables as tables": (virtual_tables, {"corrupt"}),
    "an index on an expression": (lambda d: with_schema(d, "i", f"CREATE INDEX i ON x(a + {FOREVER})"), NOT_HEALTHY),
    "an index on a part": (lambda d: with_schema(d, "i", f"CREATE INDEX i ON x(b) WHERE {FOREVER}"), NOT_HEALTHY),
    "an index on a huge value": (
        lambda d: with_schema(d, "i", "CREATE INDEX i ON x(length(hex(zeroblob(400000000 * a))))"), NOT_HEALTHY,
    ),
    "a generated column": (lambda d: with_schema(d, "x", f"CREATE TABLE x(a, b AS ({FOREVER}))"), NOT_HEALTHY),
    "a stored generated column": (
        lambda d: with_schema(d, "x", f"CREATE TABLE x(a, b AS ({FOREVER}) STORED)"), ANY,
    ),
    "a check": (lambda d: with_schema(d, "x", f"CREATE TABLE x(a, b, CHECK ({FOREVER} >= 0))"), ANY),
    "a check of a column": (lambda d: with_schema(d, "x", f"CREATE TABLE x(a, b CHECK ({FOREVER} >= 0))"), ANY),
    "a default": (lambda d: with_schema(d, "x", f"CREATE TABLE x(a, b DEFAULT ({FOREVER.replace('a *', '')}))"), ANY),
    **{
        f"a view as full-text {part}": (fulltext_view(part), NOT_HEALTHY if part == "content" else ANY)
        for part in ("content", "data", "idx", "docsize", "config")
    },
    "an endless view as full-text content": (endless_fulltext_view, NOT_HEALTHY),
    "10,000 tables": (many_tables, {"healthy"}),
    "10,000 views": (many_views, {"healthy"}),
    "10,000 triggers": (many_triggers, {"undetermined"}),
    "odd names": (odd_names, {"undetermined"}),
    "a malformed name": (malformed_name, {"corrupt"}),
    "2,000 columns": (many_columns, ANY),
    "a deep expression": (deep_expression, ANY),
}  # fmt: skip


@pytest.mark.parametrize("name", SCHEMAS)
def test_nothing_of_a_schema_runs(name: str, healthy_delta: Path, copy_of: CopyOf) -> None:
    make, expected = SCHEMAS[name]
    delta = copy_of(healthy_delta)
    make(delta)
    assert judged(delta)["status"] in expected


# --- rows

QUEUE = "embeddings_queue (created_at, operation, topic, id, vector, encoding, metadata)"
COUNTED = "WITH RECURSIVE c(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM c WHERE i < {})"


def queue_rows(
    count: int, vector: str, metadata: str = "'{}'", operation: str = "0", id_: str = "'more-' || i"
) -> Make:
    def make(delta: Path) -> None:
        changed(
            delta,
            f"INSERT INTO {QUEUE} {COUNTED.format(count)} SELECT 'now', {operation}, "
            f"(SELECT topic FROM embeddings_queue), {id_}, {vector}, 'FLOAT32', {metadata} FROM c",
        )

    return make


def queue_without_types(value: str) -> Make:
    """The queue as a table in which any value may stand anywhere."""

    def make(delta: Path) -> None:
        changed(
            delta,
            "CREATE TABLE q AS SELECT * FROM embeddings_queue",
            "DROP TABLE embeddings_queue",
            "ALTER TABLE q RENAME TO embeddings_queue",
            f"UPDATE embeddings_queue SET seq_id = {value}",
        )

    return make


def many_of(insert: str) -> Make:
    return lambda delta: changed(delta, f"INSERT INTO {insert.format(COUNTED.format(100_000))}")


def one_value(update: str, value: object) -> Make:
    return lambda delta: changed(delta, f"UPDATE {update}", values=(value,))


def slow_integrity(delta: Path) -> None:
    names = [f"c{number}" for number in range(24)]
    rows = ", ".join(f"(i * {7919 + number}) % 65537" for number in range(24))
    changed(
        delta,
        f"CREATE TABLE slow ({', '.join(names)})",
        f"INSERT INTO slow {COUNTED.format(150_000)} SELECT {rows} FROM c",
        *(f"CREATE INDEX i{name} ON slow ({name})" for name in names),
    )


VECTOR = "zeroblob(4 * (SELECT dimension FROM collections))"
DEEP_JSON = '{"position":' * 100_000 + "1" + "}" * 100_000
BIG_NUMBER = '{"position": 1' + "0" * 400 + ', "score": -1' + "0" * 400 + "}"

ROWS: dict[str, tuple[Make, set[str]]] = {
    "100,000 tiny vectors": (queue_rows(100_000, "X'00000000'"), NOT_HEALTHY),
    "10,000 vectors": (queue_rows(10_000, VECTOR), ANY),
    "100,000 operations that are none": (queue_rows(100_000, VECTOR, operation="77"), NOT_HEALTHY),
    "100,000 broken metadata": (queue_rows(100_000, VECTOR, "'{'"), NOT_HEALTHY),
    "100,000 binary ids": (queue_rows(100_000, VECTOR, id_="X'ff'"), NOT_HEALTHY),
    "a vector of 50 MB": (queue_rows(1, "zeroblob(50000000)"), NOT_HEALTHY),
    "an id of 50 MB": (queue_rows(1, VECTOR, id_="hex(zeroblob(25000000))"), ANY),
    "metadata of 50 MB": (
        queue_rows(1, VECTOR, "'{\"a\":\"' || hex(zeroblob(25000000)) || '\"}'"), ANY,
    ),
    "metadata nested 100,000 deep": (one_value("embeddings_queue SET metadata = ?", DEEP_JSON), NOT_HEALTHY),
    "lists nested 100,000 deep": (
        one_value("embeddings_queue SET metadata = ?", '{"a":' + "[" * 100_000 + "]" * 100_000 + "}"), NOT_HEALTHY,
    ),
    "numbers of 400 digits": (one_value("embeddings_queue SET metadata = ?", BIG_NUMBER), ANY),
    "numbers of 100,000 digits": (
        one_value("embeddings_queue SET metadata = ?", '{"position": ' + "1" * 100_000 + "}"), ANY,
    ),
    "settings nested 100,000 deep": (one_value("collections SET config_json_str = ?", DEEP_JSON), ANY),
    "a name of 1 MB": (one_value("collections SET name = ?", "\x1b[2J" + "n" * 1_000_000), ANY),
    "a sequence number that is text": (queue_without_types("'a'"), NOT_HEALTHY),
    "a sequence number that is a blob": (queue_without_types("X'ff'"), NOT_HEALTHY),
    "a sequence number that is infinite": (queue_without_types("9e999"), ANY),
    "100,000 migrations": (
        many_of("migrations (dir, version, filename, sql, hash) {} SELECT 'd' || i, 1, 'f', 's', 'h' FROM c"), ANY,
    ),
    "100,000 sequence numbers": (
        many_of("max_seq_id (segment_id, seq_id) {} SELECT 's' || i, 'x' FROM c"), ANY,
    ),
    "100,000 collections": (
        many_of("collections (id, name, dimension, database_id) {} SELECT 'c' || i, 'n' || i, 'x', i FROM c"), ANY,
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", ROWS)
def test_no_row_exhausts_or_stops_the_reader(name: str, healthy_delta: Path, copy_of: CopyOf) -> None:
    make, expected = ROWS[name]
    delta = copy_of(healthy_delta)
    make(delta)
    assert judged(delta)["status"] in expected


def test_an_integrity_check_that_takes_long_is_cut_short(healthy_delta: Path, copy_of: CopyOf) -> None:
    delta = copy_of(healthy_delta)
    slow_integrity(delta)
    assert judged(delta)["status"] in {"healthy", "undetermined"}


def test_many_collections_with_a_long_queue_end_in_a_verdict(healthy_delta: Path, copy_of: CopyOf) -> None:
    delta = copy_of(healthy_delta)
    queue_rows(50_000, "NULL")(delta)
    numbers = f"{COUNTED.format(2000)} SELECT 'c' || i, 'n' || i, 4, (SELECT database_id FROM collections) FROM c"
    changed(delta, f"INSERT INTO collections (id, name, dimension, database_id) {numbers}")
    assert judged(delta)["status"] in NOT_HEALTHY


# --- names, links and special files


def outside(delta: Path) -> Path:
    """A folder beside the delta, with a database that nobody may open."""
    folder = delta.parent / "outside"
    folder.mkdir()
    (folder / DATABASE).write_bytes((delta / DATABASE).read_bytes())
    return folder


def linked_database(delta: Path) -> None:
    target = outside(delta) / DATABASE
    (delta / DATABASE).unlink()
    (delta / DATABASE).symlink_to(target)


def fifo_database(delta: Path) -> None:
    (delta / DATABASE).unlink()
    os.mkfifo(delta / DATABASE)


def folder_database(delta: Path) -> None:
    (delta / DATABASE).unlink()
    (delta / DATABASE).mkdir()
    (delta / DATABASE / "header.bin").write_bytes(b"x")


def device_link(delta: Path) -> None:
    (delta / DATABASE).unlink()
    (delta / DATABASE).symlink_to("/dev/zero")


def index_folders(delta: Path) -> None:
    for name in ("header.bin", "data_level0.bin", "length.bin", "link_lists.bin", "index_metadata.pickle"):
        path = index_file(delta, name)
        path.unlink()
        path.mkdir()


def fifo_index(delta: Path) -> None:
    path = index_file(delta, "header.bin")
    path.unlink()
    os.mkfifo(path)


def linked_segment(delta: Path) -> None:
    segment = index_file(delta, "header.bin").parent
    segment.rename(outside(delta) / segment.name)
    segment.symlink_to(delta.parent / "outside" / segment.name)


def link_to_itself(delta: Path) -> None:
    (delta / UUID).symlink_to(delta)


def dangling_journal(delta: Path) -> None:
    (delta / "chroma.sqlite3-journal").symlink_to(delta.parent / "nowhere")


def fifo_manifest(delta: Path) -> None:
    os.mkfifo(delta / "delta.manifest.json")


def odd_files(delta: Path) -> None:
    for name in (b"\x1b[2J", b"a\nb", b"\xff\xfe", b"n" * 255, b"..hidden", b"\\..\\up", "\u202egnp.exe".encode()):
        Path(os.fsdecode(os.fsencode(delta) + b"/" + name)).write_bytes(b"x")


def many_files(delta: Path) -> None:
    for number in range(MANY):
        (delta / f"foreign-{number}").touch()


def many_segments(delta: Path) -> None:
    for number in range(2000):
        folder = delta / f"{number:08x}-0000-0000-0000-000000000000"
        folder.mkdir()
        (folder / "header.bin").write_bytes(b"\xff" * HEADER_BYTES)
        (folder / "index_metadata.pickle").write_bytes(BOMBS["a dict inside itself"])


def deep_folders(delta: Path) -> None:
    name = "deep" * 50
    here = os.open(delta, os.O_RDONLY)
    for _ in range(25):  # longer than any path may be
        os.mkdir(name, dir_fd=here)
        new = os.open(name, os.O_RDONLY, dir_fd=here)
        os.close(here)
        here = new
    os.close(here)


FILES: dict[str, tuple[Make, set[str]]] = {
    "the database is a link to outside": (linked_database, NOT_HEALTHY),
    "the database is a link to a device": (device_link, NOT_HEALTHY),
    "the database is a fifo": (fifo_database, NOT_HEALTHY),
    "the database is a folder": (folder_database, NOT_HEALTHY),
    "index files are folders": (index_folders, NOT_HEALTHY),
    "an index file is a fifo": (fifo_index, NOT_HEALTHY),
    "a segment is a link to outside": (linked_segment, NOT_HEALTHY),
    "a segment is a link to the delta": (link_to_itself, ANY),
    "a journal is a dangling link": (dangling_journal, NOT_HEALTHY),
    "the manifest is a fifo": (fifo_manifest, NOT_HEALTHY),
    "odd names": (odd_files, {"healthy"}),
    "10,000 foreign files": (many_files, {"healthy"}),
    "2,000 foreign segments": (many_segments, ANY),
    "a path longer than any may be": (deep_folders, ANY),
}


@pytest.mark.parametrize("name", FILES)
def test_no_name_or_link_leads_out_of_a_delta(name: str, flushed_delta: Path, copy_of: CopyOf) -> None:
    make, expected = FILES[name]
    delta = copy_of(flushed_delta)
    make(delta)
    assert judged(delta)["status"] in expected


@pytest.fixture
def scratch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder in which this process makes its scratch folders."""
    folder = tmp_path / "scratch"
    folder.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(folder))
    return folder


ODD_KEYS = [
    "../escape", "../../chroma.sqlite3", f"../{UUID}/header.bin", "/etc/passwd", "//chroma.sqlite3", ".lock",
    f"/{UUID}/header.bin", "chroma.sqlite3/", f"{UUID}/", f"{UUID}/header.bin/x",
    f"{UUID}/../../header.bin", f"{UUID}/../chroma.sqlite3", f"{UUID}/./header.bin", f"{UUID}//header.bin", "..\\up",
    "\x1b[2Jred", "line\nfeed", "\u202egnp.exe", "n" * 900,
]  # fmt: skip


def put_past_http(location: DeltaLocation, names: Iterable[str]) -> None:
    """Objects under names that no client could send; the server runs in this process."""
    from moto.core import DEFAULT_ACCOUNT_ID
    from moto.s3.models import s3_backends

    backend = s3_backends[DEFAULT_ACCOUNT_ID]["aws"]
    for name in names:
        backend.put_object(location.bucket, location.prefix + name, b"escaped")


def test_no_object_key_leads_out_of_the_scratch_folder(
    healthy_delta: Path, put_delta: Any, store: Store, scratch: Path, tmp_path: Path, settled: Settings
) -> None:
    location: DeltaLocation = put_delta(healthy_delta, "deltas/hostile")
    put_past_http(location, ODD_KEYS)
    before = below(tmp_path)
    verdict = judge_stored(store, location, Depth.OPEN, settled).verdict
    assert verdict.status is Status.HEALTHY, verdict.observed
    assert below(tmp_path).keys() == before.keys()
    assert all(found.file.isprintable() and found.detail.isprintable() for found in verdict.observed)


def test_ten_thousand_foreign_objects_are_ignored(
    healthy_delta: Path, put_delta: Any, store: Store, scratch: Path, settled: Settings
) -> None:
    location: DeltaLocation = put_delta(healthy_delta, "deltas/hostile")
    put_past_http(location, (f"foreign-{number}" for number in range(MANY)))
    verdict = judge_stored(store, location, Depth.STRUCTURE, settled).verdict
    assert (verdict.status, len(verdict.observed) < 10) == (Status.HEALTHY, True)
