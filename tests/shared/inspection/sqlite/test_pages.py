"""The map of a database's pages: right about real ones, and at an end with whatever is broken."""

from __future__ import annotations

import shutil
import sqlite3
import struct
from contextlib import closing
from pathlib import Path

import pytest

from devtools.damage.catalogue import DAMAGES, apply_damage
from shared.inspection.sqlite.pages import PageKind, PageMap, map_pages
from shared.model.delta import DATABASE
from tests.samples import SAMPLES


def mapped(data: bytes) -> PageMap | str:
    return map_pages(lambda offset, length: data[offset : offset + length], len(data))


def map_of(data: bytes) -> PageMap:
    found = mapped(data)
    assert isinstance(found, PageMap)
    return found


def kind(found: PageMap, number: int) -> PageKind:
    return PageKind(found.kinds[number - 1])


def made(path: Path, *statements: str, page_size: int = 4096) -> bytes:
    """A database made by SQLite itself."""
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.execute(f"PRAGMA page_size={page_size}")
        for statement in statements:
            connection.execute(statement)
    return path.read_bytes()


BIG = "CREATE TABLE big (x)", "INSERT INTO big VALUES (zeroblob(100000))"
ROWS = (
    "CREATE TABLE rows (a, b)",
    "CREATE INDEX of_b ON rows (b)",
    """WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 5000)
    INSERT INTO rows SELECT i, printf('%030d', i) FROM n""",
)


def patched(data: bytes, page: int, at: int, new: bytes) -> bytes:
    start = 4096 * (page - 1) + at
    return data[:start] + new + data[start + len(new) :]


class TestSoundDatabases:
    @pytest.mark.parametrize("sample", SAMPLES, ids=lambda sample: sample.name)
    def test_every_page_of_a_delta_of_any_chroma_has_its_use(self, sample, tmp_path: Path) -> None:
        found = map_of((sample.unpack(tmp_path) / DATABASE).read_bytes())
        assert found.broken == {}
        assert not {PageKind.UNREACHED, PageKind.BROKEN} & found.counts().keys()
        assert sum(found.counts().values()) == len(found.kinds)
        free = found.counts().get(PageKind.FREELIST_TRUNK, 0) + found.counts().get(PageKind.FREELIST_LEAF, 0)
        assert sum(tree.pages for tree in found.trees) + free == len(found.kinds)

    def test_the_trees_are_those_of_the_schema_with_their_pages(self, tmp_path: Path) -> None:
        path = tmp_path / "db"
        found = map_of(made(path, *ROWS, *BIG))
        with closing(sqlite3.connect(path)) as connection:
            roots = dict(connection.execute("SELECT name, rootpage FROM sqlite_schema"))
        assert {tree.name: tree.root for tree in found.trees} == {"sqlite_schema": 1, **roots}
        assert kind(found, roots["rows"]) is PageKind.TABLE_INTERIOR
        assert kind(found, roots["of_b"]) is PageKind.INDEX_INTERIOR
        assert kind(found, roots["big"]) is PageKind.TABLE_LEAF

    def test_a_large_value_fills_overflow_pages(self, tmp_path: Path) -> None:
        found = map_of(made(tmp_path / "db", *BIG))
        assert found.counts()[PageKind.OVERFLOW] == 24
        assert found.trees[1].pages == 25

    @pytest.mark.parametrize("page_size", [512, 1024, 65536])
    def test_pages_may_have_any_size(self, tmp_path: Path, page_size: int) -> None:
        found = map_of(made(tmp_path / "db", *ROWS, *BIG, page_size=page_size))
        assert (found.page_size, found.broken) == (page_size, {})
        assert PageKind.UNREACHED not in found.counts()

    def test_free_pages_are_on_the_freelist(self, tmp_path: Path) -> None:
        counts = map_of(made(tmp_path / "db", *BIG, *ROWS, "DROP TABLE big")).counts()
        assert counts[PageKind.FREELIST_TRUNK] + counts[PageKind.FREELIST_LEAF] == 25

    def test_tables_without_rowids_are_walked_too(self, tmp_path: Path) -> None:
        data = made(tmp_path / "db", "CREATE TABLE t (a PRIMARY KEY, b) WITHOUT ROWID", "INSERT INTO t VALUES (1, 2)")
        assert kind(map_of(data), 2) is PageKind.INDEX_LEAF

    def test_pointer_maps_are_told(self, tmp_path: Path) -> None:
        found = map_of(made(tmp_path / "db", "PRAGMA auto_vacuum = 1", *BIG, *ROWS))
        assert kind(found, 2) is PageKind.POINTER_MAP
        assert found.broken == {}
        assert PageKind.UNREACHED not in found.counts()

    def test_bytes_after_the_last_page_are_no_pages(self, tmp_path: Path) -> None:
        data = made(tmp_path / "db", *BIG)
        assert map_of(data + bytes(9000)).counts() == map_of(data).counts()


class TestBrokenDatabases:
    @pytest.mark.parametrize("damage", [d for d in DAMAGES if d.kind.startswith("sqlite-")], ids=lambda d: d.kind)
    def test_every_known_damage_can_be_looked_at(self, damage, flushed_delta: Path, tmp_path: Path) -> None:
        folder = Path(shutil.copytree(flushed_delta, tmp_path / "delta"))
        apply_damage(damage.kind, folder)
        if (folder / DATABASE).exists():
            found = mapped((folder / DATABASE).read_bytes())
            assert isinstance(found, str) or len(found.kinds) > 0

    @pytest.mark.parametrize("data", [b"", b"x", b"SQLite format 3\0", bytes(4096)])
    def test_what_is_no_database_has_no_map(self, data: bytes) -> None:
        assert mapped(data) == f"the first {min(len(data), 100)} bytes are not the header of a database"

    def test_an_impossible_page_size_is_said(self, tmp_path: Path) -> None:
        data = made(tmp_path / "db", *BIG)
        assert (
            mapped(data[:16] + b"\x03\xe7" + data[18:]) == "the header says pages of 999 bytes, which no database has"
        )

    def test_a_zeroed_page_is_named_with_its_owner(self, tmp_path: Path) -> None:
        data = made(tmp_path / "db", *ROWS)
        found = map_of(patched(data, 5, 0, bytes(4096)))
        assert found.broken[5].startswith("all zeros, where a page of a")
        assert kind(found, 5) is PageKind.BROKEN

    def test_a_truncated_file_lacks_pages(self, tmp_path: Path) -> None:
        data = made(tmp_path / "db", *BIG)
        found = map_of(data[: 10 * 4096 + 7])
        assert found.missing == len(data) // 4096 - 11
        assert found.broken[11] == "7 bytes are left of it"

    def test_a_child_outside_the_file_is_held_against_its_parent(self, tmp_path: Path) -> None:
        data = made(tmp_path / "db", *ROWS)
        found = map_of(patched(data, 2, 8, struct.pack(">I", 2**31)))
        assert found.broken[2] == f"points to page {2**31}, the file has {len(data) // 4096}"

    def test_a_cycle_ends(self, tmp_path: Path) -> None:
        data = made(tmp_path / "db", *ROWS)
        found = map_of(patched(data, 2, 8, struct.pack(">I", 2)))
        assert found.broken[2] == "used twice, the second time by page 2 for rows"

    def test_an_overflow_chain_that_goes_round_ends(self, tmp_path: Path) -> None:
        data = made(tmp_path / "db", *BIG)
        found = map_of(patched(data, 10, 0, struct.pack(">I", 5)))
        assert found.broken[5] == "used twice, the second time by page 10 for big"

    def test_a_freelist_that_goes_round_ends(self, tmp_path: Path) -> None:
        data = made(tmp_path / "db", *BIG, "DROP TABLE big")
        trunk = struct.unpack(">I", data[32:36])[0]
        found = map_of(patched(data, trunk, 0, struct.pack(">I", trunk)))
        assert "for the freelist" in found.broken[trunk]

    def test_hostile_numbers_are_only_numbers(self, tmp_path: Path) -> None:
        data = made(tmp_path / "db", *ROWS)
        for at, new in ((3, b"\xff\xff"), (8, b"\xff" * 4), (12, b"\xff" * 200), (100, b"\xff" * 3000)):
            assert map_of(patched(data, 2, at, new)).broken

    def test_a_header_that_counts_four_billion_pages_makes_no_map_of_them(self, tmp_path: Path) -> None:
        data = made(tmp_path / "db", *BIG)
        found = map_of(data[:28] + b"\xff" * 4 + data[32:])
        assert len(found.kinds) == len(data) // 4096
        assert found.missing == 2**32 - 1 - len(data) // 4096

    def test_names_of_a_delta_are_printable(self, tmp_path: Path) -> None:
        data = made(tmp_path / "db", 'CREATE TABLE "\x1b[2J\u202e" (x)')
        assert map_of(data).trees[1].name == "\\u001b[2J\\u202e"
