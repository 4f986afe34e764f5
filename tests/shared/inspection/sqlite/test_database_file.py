"""The database file as SQLite sees it: a real database is broken in each way, and each break has its own finding."""

from __future__ import annotations

import re
import sqlite3
import struct
from contextlib import closing
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from devtools.damage.deltas import DeltaRecipe, _client, build_delta
from shared.inspection.sqlite import database_file
from shared.inspection.sqlite.database_file import (
    NotUtf8,
    explained,
    foresee_fulltext,
    inspect_fulltext,
    inspect_header,
    inspect_integrity,
    opened,
    what_is_readable,
)
from shared.inspection.sqlite.schema import read_schema
from shared.model.delta import DATABASE
from shared.model.errors import CouldNotCheck
from shared.model.verdict import Finding, Status, status_of
from tests.samples import SAMPLES, Sample
from tests.support.databases import asked, changed, untyped


@pytest.fixture
def head(database: Path) -> bytes:
    return database.read_bytes()[:100]


def integrity_of(delta: Path) -> list[Finding]:
    with opened(delta / DATABASE, 60) as connection:
        return inspect_integrity(connection)


def fulltext_of(delta: Path) -> list[Finding]:
    with opened(delta / DATABASE, 60) as connection:
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
    (56, struct.pack(">I", 4), "sqlite.header_invalid", "text encoding at offset 56 is 4"),
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


# --- pages


@pytest.mark.parametrize(
    "statements",
    [
        (),
        ("VACUUM",),
        ("PRAGMA journal_mode = WAL",),
        ("ANALYZE",),
        ("DROP TABLE acquire_write",),
        ("CREATE TABLE t (x)", "INSERT INTO t SELECT zeroblob(50000)", "DROP TABLE t"),
    ],
    ids=["as it was", "vacuumed", "wal", "analysed", "without a table", "free pages"],
)
def test_a_database_that_chroma_or_sqlite_left_sound_has_no_finding(delta: Path, statements: tuple[str, ...]) -> None:
    changed(delta, *statements)
    assert integrity_of(delta) + fulltext_of(delta) == []


def root_page(delta: Path, table: str) -> int:
    (page,) = asked(delta, f"SELECT rootpage FROM sqlite_schema WHERE name = '{table}'")
    return int(page)


def with_page(delta: Path, page: int, content: bytes) -> Path:
    data = bytearray((delta / DATABASE).read_bytes())
    data[(page - 1) * 4096 : page * 4096] = content
    (delta / DATABASE).write_bytes(data)
    return delta


@pytest.mark.parametrize("table", ["embeddings", "embeddings_queue", "collections", "sqlite_autoindex_embeddings_1"])
@pytest.mark.parametrize("garbage", [bytes(4096), b"\xa5" * 4096], ids=["zeros", "noise"])
def test_a_page_of_garbage_is_malformed_and_told_with_its_offset(delta: Path, table: str, garbage: bytes) -> None:
    page = root_page(delta, table)
    findings = integrity_of(with_page(delta, page, garbage))
    assert codes(findings) == {"sqlite.malformed"}
    assert len(findings) <= 5
    told = [finding.detail for finding in findings if re.search(rf"\b[Pp]age {page}\b", finding.detail)]
    assert told and told[0].endswith(f"(at offset {(page - 1) * 4096})")


def test_the_page_is_told_although_the_check_itself_fails_after_it(delta: Path) -> None:
    """Python's sqlite3 drops a row when the step after it fails, and the page stands in the first row."""
    page = root_page(delta, "sqlite_autoindex_embeddings_1")
    with_page(delta, page, bytes(4096))
    with closing(sqlite3.connect(delta / DATABASE)) as connection, pytest.raises(sqlite3.DatabaseError):
        connection.execute("PRAGMA integrity_check(5)").fetchall()
    assert f"(at offset {(page - 1) * 4096})" in integrity_of(delta)[0].detail


def without_cells(delta: Path, index: str, lost: int) -> Path:
    """The delta whose index (of one page) has lost its last entries."""
    page = root_page(delta, index)
    data = bytearray((delta / DATABASE).read_bytes())
    (cells,) = struct.unpack_from(">H", data, (page - 1) * 4096 + 3)
    struct.pack_into(">H", data, (page - 1) * 4096 + 3, cells - lost)
    (delta / DATABASE).write_bytes(data)
    return delta


def test_an_index_that_lacks_a_row_of_its_table_is_malformed(delta: Path) -> None:
    findings = integrity_of(without_cells(delta, "sqlite_autoindex_embeddings_1", 1))
    assert codes(findings) == {"sqlite.malformed"}
    assert any("missing from index sqlite_autoindex_embeddings_1" in finding.detail for finding in findings)


def test_of_many_problems_the_first_five_are_told(delta: Path) -> None:
    assert len(integrity_of(without_cells(delta, "sqlite_autoindex_embeddings_1", 30))) == 5


def test_a_schema_is_malformed_also_when_sqlite_quotes_a_name_that_is_not_utf_8(delta: Path) -> None:
    changed(
        delta,
        "PRAGMA writable_schema = ON",
        "UPDATE sqlite_schema SET name = CAST(X'80FF' AS TEXT), sql = 'CREATE TABLE x(' WHERE name = 'embeddings'",
    )
    assert codes(integrity_of(delta)) == {"sqlite.malformed"}


def readable(delta: Path, *tables: str) -> str:
    with opened(delta / DATABASE, 60) as connection:
        return what_is_readable(connection, tables)


def test_the_rows_that_can_still_be_read_are_counted_up_to_the_damage(delta: Path) -> None:
    assert readable(delta, "collections", "embeddings") == "collections: all 1 rows, embeddings: all 50 rows"
    with_page(delta, root_page(delta, "embeddings"), bytes(4096))
    assert readable(delta, "collections", "embeddings") == "collections: all 1 rows, embeddings: 0 rows, then damage"


def test_a_table_of_several_pages_is_counted_up_to_the_broken_one(delta: Path) -> None:
    data = (delta / DATABASE).read_bytes()
    root = root_page(delta, "embeddings_queue")
    assert data[(root - 1) * 4096] == 5, "an interior page"
    (right,) = struct.unpack_from(">I", data, (root - 1) * 4096 + 8)
    with_page(delta, right, bytes(4096))
    rows = re.fullmatch(r"embeddings_queue: (\d+) rows, then damage", readable(delta, "embeddings_queue"))
    assert rows is not None and 0 < int(rows[1]) < 50


def test_a_table_that_takes_too_long_to_read_is_told_as_such(delta: Path) -> None:
    with opened(delta / DATABASE, 60) as connection:
        connection.set_progress_handler(lambda: True, 1)
        assert what_is_readable(connection, ["embeddings"]) == "embeddings: reading embeddings: interrupted"


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
def test_a_full_text_table_that_cannot_answer_is_unusable(delta: Path, statement: str) -> None:
    # Defensive mode is off in Python's sqlite3, so the shadow tables can be written.
    (finding,) = fulltext_of(changed(delta, statement))
    assert finding.code == "sqlite.fulltext_unusable"


def test_a_row_number_that_is_a_long_text_does_not_fill_the_report(delta: Path) -> None:
    untyped(delta, "embedding_metadata")
    untyped(delta, "embeddings")
    changed(delta, "UPDATE embedding_metadata SET id = hex(zeroblob(100000)) WHERE key = 'chroma:document'")
    changed(delta, "UPDATE embeddings SET id = hex(zeroblob(100000)) WHERE id = 1")
    (finding,) = fulltext_of(delta)
    assert finding.code == "sqlite.fulltext_unusable"
    assert len(finding.detail) < 200


@pytest.mark.parametrize(
    "statement", ["DELETE FROM {}_docsize", "DELETE FROM {}_data WHERE id > 10", "DROP TABLE {}_idx"]
)
def test_damaged_terms_are_no_finding_since_chroma_reads_none(delta: Path, statement: str) -> None:
    assert fulltext_of(changed(delta, statement.format("embedding_fulltext_search"))) == []


def test_the_documents_that_the_full_text_table_lacks_or_has_otherwise_are_counted(delta: Path) -> None:
    changed(
        delta,
        "DELETE FROM embedding_fulltext_search WHERE rowid IN (7, 8, 9)",
        "UPDATE embedding_fulltext_search_content SET c0 = 'other' WHERE id IN (3, 5)",
    )
    (finding,) = fulltext_of(delta)
    assert finding.detail == (
        "of the documents in embedding_metadata 3 are missing from the full-text table and 2 differ there, "
        "the first of row 3"
    )


def test_a_full_text_table_without_a_document_to_find_is_healthy(tmp_path: Path) -> None:
    build_delta(tmp_path, DeltaRecipe(embeddings=5, documents=False))
    assert fulltext_of(tmp_path) == []


@pytest.mark.parametrize("sample", [s for s in SAMPLES if s.name.startswith("0.4.3-")], ids=lambda sample: sample.name)
def test_which_documents_an_upgrade_from_0_4_3_makes_unsearchable_is_told_before_it(
    sample: Sample, tmp_path: Path
) -> None:
    folder = sample.unpack(tmp_path)
    with opened(folder / DATABASE, 60) as connection:
        foreseen = foresee_fulltext(connection)
    with _client(folder) as client:
        client.list_collections()
    with opened(folder / DATABASE, 60) as connection:
        found = inspect_fulltext(connection, migrated=True)
    assert codes(foreseen) == codes(found)
    numbers = [[int(number) for number in re.findall(r"\d+", f.detail)] for f in (*foreseen, *found)]
    if numbers:
        (_, unsearchable, *_), (missing, differing, _) = sorted(numbers[0]), numbers[1]
        assert unsearchable == missing + differing


# --- opening


def test_an_opened_database_cannot_be_written(database: Path) -> None:
    before = database.read_bytes()
    with opened(database, 60) as connection, pytest.raises(sqlite3.OperationalError, match="readonly"):
        connection.execute("DELETE FROM embeddings")
    assert database.read_bytes() == before
    assert sorted(path.name for path in database.parent.iterdir() if path.is_file()) == [DATABASE]


@pytest.mark.parametrize("name", ["a b", "a%20b", "a?mode=rwc", "a#b", "ü"])
def test_a_database_is_opened_under_its_own_name_whatever_that_is(delta: Path, name: str) -> None:
    moved = delta.rename(delta.with_name(name))
    assert integrity_of(moved) + fulltext_of(moved) == []


def test_a_file_that_cannot_be_opened_is_a_fault_of_the_environment(tmp_path: Path) -> None:
    with pytest.raises(CouldNotCheck) as fault, opened(tmp_path / "not there", 60):
        pass
    assert fault.value.code == "check.cannot_open"


def test_a_statement_that_takes_too_long_is_a_fault_of_the_environment(
    database: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(database_file, "_PROGRESS_STEPS", 10)
    with opened(database, 0) as connection, pytest.raises(CouldNotCheck) as fault:
        inspect_integrity(connection)
    assert fault.value.code == "check.timeout"
    with opened(database, 0) as connection, pytest.raises(CouldNotCheck) as fault:
        inspect_fulltext(connection)
    assert fault.value.code == "check.timeout"


# --- texts that are not UTF-8


def test_bytes_that_are_not_utf_8_come_in_as_surrogates_when_read_leniently(delta: Path) -> None:
    changed(delta, "UPDATE collections SET name = CAST(X'61FF62' AS TEXT)")
    with opened(delta / DATABASE, 60, lenient=True) as connection:
        assert connection.execute("SELECT name FROM collections").fetchall() == [("a\udcffb",)]


def test_read_strictly_they_say_that_they_must_be_read_leniently(delta: Path) -> None:
    changed(delta, "UPDATE collections SET name = CAST(X'61FF62' AS TEXT)")
    with opened(delta / DATABASE, 60, lenient=False) as connection, pytest.raises(NotUtf8), explained("reading"):
        connection.execute("SELECT name FROM collections").fetchall()


def test_read_strictly_all_other_text_is_as_it_was(delta: Path) -> None:
    changed(delta, "UPDATE collections SET name = 'größe 雪'")
    with opened(delta / DATABASE, 60, lenient=False) as connection, explained("reading") as findings:
        assert connection.execute("SELECT name FROM collections").fetchall() == [("größe 雪",)]
    assert findings == []


# --- errors of SQLite's


def failing(name: str, message: str = "as it says") -> sqlite3.OperationalError:
    error = sqlite3.OperationalError(message)
    error.sqlite_errorcode = getattr(sqlite3, name)
    return error


@pytest.mark.parametrize(
    ("name", "code"),
    [
        ("SQLITE_CORRUPT", "sqlite.malformed"),
        ("SQLITE_CORRUPT_INDEX", "sqlite.malformed"),
        ("SQLITE_CORRUPT_VTAB", "sqlite.malformed"),
        ("SQLITE_NOTADB", "sqlite.not_a_database"),
    ],
)
def test_what_sqlite_says_about_the_bytes_is_a_finding(name: str, code: str) -> None:
    with explained("reading x") as findings:
        raise failing(name)
    assert findings == [Finding(code, DATABASE, "reading x: as it says")]


@pytest.mark.parametrize(
    ("name", "code"),
    [
        ("SQLITE_CANTOPEN", "check.cannot_open"),
        ("SQLITE_CANTOPEN_ISDIR", "check.cannot_open"),
        ("SQLITE_NOMEM", "check.memory"),
        ("SQLITE_FULL", "check.disk_full"),
        ("SQLITE_INTERRUPT", "check.timeout"),
        ("SQLITE_TOOBIG", "check.size_cap"),
        ("SQLITE_IOERR", "check.local_io"),
        ("SQLITE_IOERR_READ", "check.local_io"),
        ("SQLITE_BUSY", "check.local_io"),
        ("SQLITE_PERM", "check.local_io"),
        ("SQLITE_ERROR", "check.local_io"),
    ],
)
def test_whatever_else_sqlite_says_is_a_fault_of_the_environment(name: str, code: str) -> None:
    with pytest.raises(CouldNotCheck, match="reading x: as it says") as fault, explained("reading x"):
        raise failing(name)
    assert fault.value.code == code


def test_an_error_that_quotes_a_name_of_the_delta_is_shown_short_and_escaped() -> None:
    with explained("reading x") as findings:
        raise failing("SQLITE_CORRUPT", "\x1b[2J" * 1000)
    assert findings[0].detail.isprintable() and len(findings[0].detail) <= 300


# --- a file that others may change


def test_a_database_is_never_mapped_into_memory(database: Path) -> None:
    """A mapped file that another process truncates would end this process with SIGBUS."""
    with opened(database, 60) as connection:
        connection.execute("SELECT count(*) FROM embeddings_queue").fetchall()
        assert connection.execute("PRAGMA mmap_size").fetchall() == [(0,)]
        assert str(database) not in Path("/proc/self/maps").read_text()


def test_a_file_that_becomes_shorter_while_it_is_read_is_an_error_and_not_the_end(database: Path) -> None:
    with opened(database, 60) as connection, explained("reading") as findings:
        connection.execute("SELECT count(*) FROM sqlite_schema").fetchall()
        with database.open("r+b") as file:
            file.truncate(8192)
        connection.execute("SELECT * FROM embeddings_queue").fetchall()
    assert codes(findings) == {"sqlite.malformed"}


# --- the same verdict with every SQLite


def test_a_document_with_a_nul_in_it_is_healthy_with_every_sqlite(tmp_path: Path) -> None:
    """Chroma writes it (issue 7388), and from 3.44 on the integrity check objects to its terms."""
    import chromadb

    with chromadb.PersistentClient(tmp_path) as client:
        collection = client.create_collection("words", embedding_function=None)
        collection.add(ids=["a", "b"], embeddings=[[1, 2], [3, 4]], documents=["before\0after it", "plain text"])
    assert integrity_of(tmp_path) == fulltext_of(tmp_path) == []


class Later(sqlite3.Connection):
    """A connection whose first integrity check also says what a later SQLite would."""

    said: str | sqlite3.Error = ""

    def execute(self, sql: str, *parameters: object) -> sqlite3.Cursor:
        if sql.startswith("PRAGMA integrity_check(5)"):
            if isinstance(self.said, sqlite3.Error):
                raise self.said
            return super().execute("SELECT ? UNION ALL SELECT * FROM pragma_integrity_check(5)", (self.said,))
        return super().execute(sql, *parameters)


def sql_error(words: str) -> sqlite3.OperationalError:
    error = sqlite3.OperationalError(words)
    error.sqlite_errorcode = sqlite3.SQLITE_ERROR
    return error


SAID = [
    "malformed inverted index for FTS5 table main.embedding_fulltext_search",
    "unable to validate the inverted index for FTS4 table main.notes: database disk image is malformed",
    'fts5: corruption found reading blob 2473901162497 from table "embedding_fulltext_search"',
    "In RTree main.places:\nMapping (1 -> 1) missing from %_rowid table\nEntries 1 do not match",
    "NUMERIC value in embedding_metadata.string_value",
    sql_error("invalid fts5 file format (found 0, expected 4 or 5) - run 'rebuild'"),
]


@pytest.mark.parametrize("said", SAID, ids=str)
@pytest.mark.parametrize("damaged", [False, True])
def test_what_only_a_later_sqlite_finds_neither_counts_nor_hides_anything(
    delta: Path, said: str | sqlite3.Error, damaged: bool
) -> None:
    if damaged:
        changed(
            delta,
            "PRAGMA writable_schema = ON",
            "CREATE INDEX wrong ON embeddings (created_at)",
            "UPDATE sqlite_schema SET sql = 'CREATE INDEX wrong ON embeddings (embedding_id)' WHERE name = 'wrong'",
        )
    with closing(sqlite3.connect(delta / DATABASE, factory=Later)) as connection:
        connection.said = said
        findings = inspect_integrity(connection)
    assert codes(findings) == ({"sqlite.malformed"} if damaged else set())


def test_a_declaration_of_others_that_this_sqlite_cannot_parse_says_nothing_about_the_bytes(delta: Path) -> None:
    """As a STRICT table to an SQLite before 3.37, or whatever comes after this one."""
    changed(
        delta,
        "CREATE TABLE notes (note)",
        "PRAGMA writable_schema = ON",
        "UPDATE sqlite_schema SET sql = 'CREATE TABLE notes (note) LATER' WHERE name = 'notes'",
    )
    with opened(delta / DATABASE, 60) as connection:
        (finding,) = read_schema(connection)[1]
    assert finding.code == "sqlite.schema_newer"


def test_a_declaration_of_chroma_s_that_cannot_be_parsed_is_damage(delta: Path) -> None:
    changed(
        delta, "PRAGMA writable_schema = ON", "UPDATE sqlite_schema SET sql = sql || ' x' WHERE name = 'embeddings'"
    )
    with opened(delta / DATABASE, 60) as connection:
        (finding,) = read_schema(connection)[1]
    assert finding.code == "sqlite.malformed"
