"""The database file as SQLite sees it: a real database is broken in each way, and each break has its own finding."""

from __future__ import annotations

import sqlite3
import struct
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.delta import DATABASE
from shared.errors import CouldNotCheck
from shared.inspection import sqlite
from shared.inspection.sqlite import inspect_fulltext, inspect_header, inspect_integrity, inspect_schema, opened
from shared.verdict import Finding, Status, status_of

CopyOf = Callable[[Path], Path]


@pytest.fixture
def database(healthy_delta: Path, copy_of: CopyOf) -> Path:
    """A database of Chroma's that a test may break."""
    return copy_of(healthy_delta) / DATABASE


@pytest.fixture
def head(database: Path) -> bytes:
    return database.read_bytes()[:100]


def changed(database: Path, *statements: str) -> Path:
    with closing(sqlite3.connect(database, isolation_level=None)) as connection:
        for statement in statements:
            connection.execute(statement)
    return database


def inspected(database: Path) -> list[Finding]:
    """All that the content of the database proves."""
    with opened(database, 60) as connection:
        return inspect_integrity(connection) + inspect_schema(connection) + inspect_fulltext(connection)


def fulltext_of(database: Path) -> list[Finding]:
    with opened(database, 60) as connection:
        return inspect_fulltext(connection)


def codes(findings: list[Finding]) -> set[str]:
    return {finding.code for finding in findings}


# --- the first 100 bytes


def test_the_header_of_a_healthy_database_says_nothing(head: bytes, database: Path) -> None:
    assert inspect_header(head, database.stat().st_size) == []


PATCHES = [
    (0, b"SQLite format 4\0", "sqlite.not_a_database", "begins with b'SQLite format 4\\x00'"),
    (0, bytes(16), "sqlite.not_a_database", "instead of b'SQLite format 3\\x00'"),
    (16, struct.pack(">H", 0), "sqlite.header_invalid", "page size at offset 16 is 0,"),
    (16, struct.pack(">H", 999), "sqlite.header_invalid", "page size at offset 16 is 999,"),
    (16, struct.pack(">H", 256), "sqlite.header_invalid", "page size at offset 16 is 256,"),
    (19, b"\x03", "sqlite.header_invalid", "read version at offset 19 is 3, expected 1 or 2"),
    (21, b"\x41", "sqlite.header_invalid", "payload fractions at offset 21 is [65, 32, 32]"),
    (44, struct.pack(">I", 9), "sqlite.header_invalid", "schema format at offset 44 is 9"),
    (56, struct.pack(">I", 2), "sqlite.header_invalid", "text encoding at offset 56 is 2"),
]


@pytest.mark.parametrize(("at", "new", "code", "words"), PATCHES)
def test_a_field_of_the_header_that_no_database_has_is_told(
    head: bytes, database: Path, at: int, new: bytes, code: str, words: str
) -> None:
    findings = inspect_header(head[:at] + new + head[at + len(new) :], database.stat().st_size)
    assert [finding.code for finding in findings] == [code]
    assert words in findings[0].detail


@pytest.mark.parametrize("lost", [1, 4096, 100_000])
def test_bytes_that_the_header_counts_and_the_file_lacks_are_told(head: bytes, database: Path, lost: int) -> None:
    size = database.stat().st_size
    (finding,) = inspect_header(head, size - lost)
    assert finding.code == "sqlite.truncated"
    assert finding.detail == (
        f"{size - lost} bytes, but {size // 4096} pages of 4096 need {size}: {lost} bytes are lost"
    )


def test_a_file_shorter_than_the_header_is_truncated(head: bytes) -> None:
    detail = "99 bytes, the header alone has 100"
    assert inspect_header(head[:99], 99) == [Finding("sqlite.truncated", DATABASE, detail)]


def test_bytes_after_the_last_page_are_worth_a_note(head: bytes, database: Path) -> None:
    size = database.stat().st_size
    (finding,) = inspect_header(head, size + 7)
    assert (finding.code, finding.detail) == ("sqlite.trailing_bytes", f"7 bytes after the {size} of its pages")
    assert status_of([finding]) is Status.HEALTHY


def test_a_page_count_that_an_old_writer_left_behind_is_not_believed(head: bytes, database: Path) -> None:
    """Section 1.3.7 of the format: it counts only while the change counter equals version-valid-for."""
    stale = head[:28] + struct.pack(">I", 10**6) + head[32:92] + struct.pack(">I", 0) + head[96:]
    assert inspect_header(stale, database.stat().st_size) == []


@given(
    st.binary(max_size=120) | st.binary(min_size=84, max_size=84).map(lambda b: b"SQLite format 3\0" + b),
    st.integers(0),
)
def test_no_header_makes_the_inspection_fail(head: bytes, size: int) -> None:
    assert isinstance(inspect_header(head, size), list)


# --- pages, tables, columns


@pytest.mark.parametrize(
    "statements", [(), ("VACUUM",), ("PRAGMA journal_mode = WAL",), ("ANALYZE",), ("DROP TABLE acquire_write",)]
)
def test_a_database_that_chroma_or_sqlite_left_sound_has_no_finding(
    database: Path, statements: tuple[str, ...]
) -> None:
    assert inspected(changed(database, *statements)) == []


def test_free_pages_are_no_finding(database: Path) -> None:
    statements = "CREATE TABLE t (x)", "INSERT INTO t SELECT zeroblob(50000)", "DROP TABLE t"
    assert inspected(changed(database, *statements)) == []


def root_page(database: Path, table: str) -> int:
    with closing(sqlite3.connect(database)) as connection:
        ((page,),) = connection.execute("SELECT rootpage FROM sqlite_schema WHERE name = ?", (table,))
    return int(page)


@pytest.mark.parametrize("table", ["embeddings", "embeddings_queue", "collections", "sqlite_autoindex_embeddings_1"])
@pytest.mark.parametrize("garbage", [bytes(4096), b"\xa5" * 4096], ids=["zeros", "noise"])
def test_a_page_of_garbage_is_malformed(database: Path, table: str, garbage: bytes) -> None:
    page = root_page(database, table)
    data = bytearray(database.read_bytes())
    data[(page - 1) * 4096 : page * 4096] = garbage
    database.write_bytes(data)
    with opened(database, 60) as connection:
        findings = inspect_integrity(connection)
    assert codes(findings) == {"sqlite.malformed"}
    assert len(findings) <= 5
    assert any(str(page) in finding.detail or "malformed" in finding.detail for finding in findings)


def test_an_index_that_lacks_a_row_of_its_table_is_malformed(database: Path) -> None:
    page = root_page(database, "sqlite_autoindex_embeddings_1")
    data = bytearray(database.read_bytes())
    (cells,) = struct.unpack_from(">H", data, (page - 1) * 4096 + 3)
    struct.pack_into(">H", data, (page - 1) * 4096 + 3, cells - 1)
    database.write_bytes(data)
    with opened(database, 60) as connection:
        assert "sqlite.malformed" in codes(inspect_integrity(connection))


def test_a_schema_is_malformed_also_when_sqlite_quotes_a_name_that_is_not_utf_8(database: Path) -> None:
    changed(
        database,
        "PRAGMA writable_schema = ON",
        "UPDATE sqlite_schema SET name = CAST(X'80FF' AS TEXT), sql = 'CREATE TABLE x(' WHERE name = 'embeddings'",
    )
    with opened(database, 60) as connection:
        assert codes(inspect_integrity(connection)) == {"sqlite.malformed"}


TABLES = [
    "migrations", "tenants", "databases", "collections", "segments", "collection_metadata", "segment_metadata",
    "embeddings", "embedding_metadata", "max_seq_id", "embeddings_queue", "embeddings_queue_config",
    "embedding_metadata_array",
]  # fmt: skip


@pytest.mark.parametrize("table", [*TABLES[1:], "embedding_fulltext_search"])
def test_a_table_that_chroma_needs_and_that_is_missing_is_told(database: Path, table: str) -> None:
    findings = inspect_schema_of(changed(database, f"DROP TABLE {table}"))
    assert codes(findings) == {"sqlite.table_missing"}
    assert table in findings[0].detail


def test_a_database_without_migrations_lacks_that_table(database: Path) -> None:
    assert "sqlite.table_missing" in codes(inspect_schema_of(changed(database, "DROP TABLE migrations")))


def inspect_schema_of(database: Path) -> list[Finding]:
    with opened(database, 60) as connection:
        return inspect_schema(connection)


def test_a_table_that_came_later_is_not_missed_in_an_older_delta(database: Path) -> None:
    statements = "DROP TABLE embedding_metadata_array", "DELETE FROM migrations WHERE dir = 'metadb' AND version = 6"
    assert inspect_schema_of(changed(database, *statements)) == []


def test_a_valid_database_that_is_not_chroma_s_is_told(database: Path) -> None:
    database.unlink()
    (finding,) = inspect_schema_of(changed(database, "CREATE TABLE birds (name TEXT)"))
    assert finding == Finding("sqlite.table_missing", DATABASE, "1 tables, none of them Chroma's")


@pytest.mark.parametrize(
    ("table", "column"),
    [
        ("collections", "dimension"),
        ("segments", "scope"),
        ("embeddings", "embedding_id"),
        ("embeddings_queue", "vector"),
    ],
)
def test_a_column_that_chroma_reads_and_that_is_missing_is_told(database: Path, table: str, column: str) -> None:
    changed(database, f"ALTER TABLE {table} RENAME COLUMN {column} TO other")
    (finding,) = inspect_schema_of(database)
    assert finding == Finding("sqlite.column_missing", DATABASE, f"table {table} has no column {column}")


def test_a_trigger_is_refused(database: Path) -> None:
    changed(database, "CREATE TRIGGER surprise AFTER INSERT ON acquire_write BEGIN DELETE FROM embeddings; END")
    (finding,) = inspect_schema_of(database)
    assert finding.code == "sqlite.unexpected_trigger" and "surprise" in finding.detail


def test_a_view_that_nobody_reads_is_worth_a_note(database: Path) -> None:
    (finding,) = inspect_schema_of(changed(database, "CREATE VIEW extra AS SELECT 1"))
    assert finding.code == "sqlite.unexpected_view" and "extra" in finding.detail
    assert status_of([finding]) is Status.HEALTHY


@pytest.mark.parametrize("table", ["embeddings", "collections", "max_seq_id"])
def test_a_view_in_the_place_of_a_table_is_never_read_nor_judged(database: Path, table: str) -> None:
    changed(database, f"ALTER TABLE {table} RENAME TO moved", f"CREATE VIEW {table} AS SELECT * FROM moved")
    assert codes(inspect_schema_of(database)) == {"sqlite.table_replaced"}


def test_a_view_that_never_ends_is_not_read(database: Path) -> None:
    endless = "WITH RECURSIVE n(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM n) SELECT x AS dir, x AS version FROM n"
    changed(database, "ALTER TABLE migrations RENAME TO moved", f"CREATE VIEW migrations AS {endless}")
    with opened(database, 0.5) as connection:
        assert "sqlite.table_replaced" in codes(inspect_schema(connection))


@pytest.mark.parametrize(
    ("migration", "words"),
    [
        (("sysdb", 11), "sysdb 11"),
        (("metadb", 99), "metadb 99"),
        (("vectordb", 1), "vectordb 1"),
        (("sysdb", "x"), "'x'"),
    ],
)
def test_a_migration_that_is_not_known_leaves_a_delta_undetermined(
    database: Path, migration: tuple[str, object], words: str
) -> None:
    with closing(sqlite3.connect(database, isolation_level=None)) as connection:
        connection.execute("INSERT INTO migrations VALUES (?, ?, 'name', 'sql', 'hash')", migration)
    (finding,) = inspect_schema_of(database)
    assert finding.code == "sqlite.schema_newer" and words in finding.detail
    assert status_of([finding]) is Status.UNDETERMINED


def test_a_table_that_a_newer_chroma_gave_up_is_not_held_against_its_delta(database: Path) -> None:
    changed(
        database, "INSERT INTO migrations VALUES ('sysdb', 11, 'name', 'sql', 'hash')", "DROP TABLE segment_metadata"
    )
    assert status_of(inspect_schema_of(database)) is Status.UNDETERMINED


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE sqlite_schema SET sql = CAST(sql AS BLOB) WHERE name = 'embeddings'",
        "UPDATE sqlite_schema SET name = CAST(name AS BLOB) WHERE name = 'embeddings'",
        "UPDATE sqlite_schema SET sql = CAST(sql AS BLOB) WHERE name = 'embedding_fulltext_search'",
        "UPDATE sqlite_schema SET type = CAST(type AS BLOB)",
        "UPDATE sqlite_schema SET sql = NULL WHERE name = 'embeddings'",
        "UPDATE sqlite_schema SET rootpage = 'x' WHERE name = 'embeddings'",
        "UPDATE sqlite_schema SET sql = replace(sql, 'CREATE TABLE', 'CREATE/**/TABLE')",
        "UPDATE sqlite_schema SET sql = 'CREATE TABLE embeddings(' WHERE name = 'embeddings'",
    ],
)
def test_a_schema_of_other_types_than_sqlite_writes_is_judged_without_a_crash(database: Path, statement: str) -> None:
    changed(database, "PRAGMA writable_schema = ON", statement)
    with opened(database, 60) as connection:
        findings = inspect_integrity(connection)
        findings = findings or inspect_schema(connection)
    assert all(isinstance(finding, Finding) for finding in findings)


# --- full text

BROKEN_FULLTEXT = [
    "DELETE FROM embedding_fulltext_search_data",
    "DELETE FROM embedding_fulltext_search_content",
    "DELETE FROM embedding_fulltext_search_config",
    "DELETE FROM embedding_fulltext_search",
    "DELETE FROM embedding_fulltext_search_content WHERE id = 1",
    "UPDATE embedding_fulltext_search_content SET c0 = 'other' WHERE id = 1",
    "UPDATE embedding_fulltext_search_config SET v = 9 WHERE k = 'version'",
]


@pytest.mark.parametrize("statement", BROKEN_FULLTEXT)
def test_a_full_text_table_that_cannot_answer_is_unusable(database: Path, statement: str) -> None:
    # Defensive mode is off in Python's sqlite3, so the shadow tables can be written.
    (finding,) = fulltext_of(changed(database, statement))
    assert finding.code == "sqlite.fulltext_unusable"


@pytest.mark.parametrize(
    "statement", ["DELETE FROM {}_docsize", "DELETE FROM {}_data WHERE id > 10", "DROP TABLE {}_idx"]
)
def test_damaged_terms_are_no_finding_since_chroma_reads_none(database: Path, statement: str) -> None:
    assert fulltext_of(changed(database, statement.format("embedding_fulltext_search"))) == []


def test_the_documents_that_the_full_text_table_lacks_are_counted(database: Path) -> None:
    changed(database, "DELETE FROM embedding_fulltext_search WHERE rowid IN (1, 2, 3)")
    (finding,) = fulltext_of(database)
    assert finding.detail == "3 documents are missing from the full-text table or differ there"


# --- opening


def test_an_opened_database_cannot_be_written(database: Path) -> None:
    before = database.read_bytes()
    with opened(database, 60) as connection, pytest.raises(sqlite3.OperationalError, match="readonly"):
        connection.execute("DELETE FROM embeddings")
    assert database.read_bytes() == before
    assert sorted(path.name for path in database.parent.iterdir() if path.is_file()) == [DATABASE]


@pytest.mark.parametrize("name", ["a b", "a%20b", "a?mode=rwc", "a#b", "ü"])
def test_a_database_is_opened_under_its_own_name_whatever_that_is(database: Path, name: str) -> None:
    moved = database.parent.rename(database.parent.with_name(name)) / DATABASE
    assert inspected(moved) == []


def test_a_file_that_cannot_be_opened_is_a_fault_of_the_environment(tmp_path: Path) -> None:
    with pytest.raises(CouldNotCheck) as fault, opened(tmp_path / "not there", 60):
        pass
    assert fault.value.code == "check.cannot_open"


def test_a_statement_that_takes_too_long_is_a_fault_of_the_environment(
    database: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sqlite, "_PROGRESS_STEPS", 10)
    started = time.monotonic()
    with opened(database, 0) as connection, pytest.raises(CouldNotCheck) as fault:
        inspect_integrity(connection)
    assert fault.value.code == "check.timeout"
    with opened(database, 0) as connection, pytest.raises(CouldNotCheck) as fault:
        inspect_fulltext(connection)
    assert fault.value.code == "check.timeout"
    assert time.monotonic() - started < 30
