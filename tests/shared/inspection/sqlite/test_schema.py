"""The schema is read before any table: what Chroma needs and lacks, and what would run, is told; nothing of it runs."""

from __future__ import annotations

import hashlib
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from shared.inspection.sqlite.database_file import inspect_fulltext, opened
from shared.inspection.sqlite.schema import NEWEST_MIGRATIONS, Schema, inspect_schema, read_schema
from shared.model.delta import DATABASE
from shared.model.errors import CouldNotCheck
from shared.model.verdict import Finding, Status, status_of
from tests.samples import SAMPLES, Sample
from tests.support.databases import asked, changed, untyped
from tests.support.histories import Chroma

FULLTEXT = "embedding_fulltext_search"


def inspected(delta: Path, seconds: float = 60) -> tuple[Schema, list[Finding]]:
    """As an examination does: what would run ends it before any table is read."""
    with opened(delta / DATABASE, seconds) as connection:
        schema, findings = read_schema(connection)
        if status_of(findings) is Status.HEALTHY:
            findings += inspect_schema(connection, schema)
    return schema, findings


def findings_of(delta: Path, *statements: str, **values: Any) -> list[Finding]:
    return inspected(changed(delta, *statements, **values))[1]


def codes(findings: list[Finding]) -> set[str]:
    return {finding.code for finding in findings}


@pytest.mark.parametrize("name", ["healthy_delta", "flushed_delta"])
def test_the_schema_that_chroma_makes_has_no_finding(name: str, request: pytest.FixtureRequest) -> None:
    schema, findings = inspected(request.getfixturevalue(name))
    assert findings == []
    assert schema.applied == NEWEST_MIGRATIONS
    assert schema.searches_fulltext and schema.fulltext
    assert (schema.triggers, schema.views, schema.replaced, schema.computing) == ([], [], set(), set())


@pytest.mark.parametrize("sample", SAMPLES, ids=lambda sample: sample.name)
def test_the_schema_of_every_chroma_has_no_finding(sample: Sample, tmp_path: Path) -> None:
    assert inspected(sample.unpack(tmp_path))[1] == []


# --- tables and columns


TABLES = [
    "tenants", "databases", "collections", "segments", "collection_metadata", "segment_metadata", "embeddings",
    "embedding_metadata", "max_seq_id", "embeddings_queue", "embeddings_queue_config", "embedding_metadata_array",
]  # fmt: skip


@pytest.mark.parametrize("table", [*TABLES, "migrations"])
def test_a_table_that_chroma_needs_and_that_is_missing_is_told(delta: Path, table: str) -> None:
    findings = findings_of(delta, f"DROP TABLE {table}")
    assert findings == [Finding("sqlite.table_missing", DATABASE, f"table {table} is not there")]


FTS = f"UPDATE sqlite_schema SET sql = replace(sql, '{{}}', '{{}}') WHERE name = '{FULLTEXT}'"


@pytest.mark.parametrize("statement", [f"DROP TABLE {FULLTEXT}", FTS.format("string_value", "other")])
def test_a_full_text_table_that_chroma_cannot_ask_is_missing(delta: Path, statement: str) -> None:
    findings = findings_of(delta, "PRAGMA writable_schema = ON", statement)
    detail = f"table {FULLTEXT} is not there as Chroma makes it"
    assert findings == [Finding("sqlite.table_missing", DATABASE, detail)]


@pytest.mark.parametrize(
    "statement",
    [
        FTS.format("fts5", "fts4"),
        FTS.format("tokenize", "content=x, tokenize"),
        FTS.format("trigram", "mine"),
        FTS.format("string_value", "string_value, more"),
    ],
)
def test_a_full_text_table_of_a_way_that_is_not_known_is_not_judged(delta: Path, statement: str) -> None:
    findings = findings_of(delta, "PRAGMA writable_schema = ON", statement)
    assert codes(findings) == {"sqlite.fulltext_unknown"}
    assert status_of(findings) is Status.UNDETERMINED


TOKENIZERS = [
    "string_value", "string_value, tokenize='unicode61'", "string_value, tokenize = \"unicode61 remove_diacritics 2\"",
    "string_value, tokenize='porter unicode61'", "string_value, tokenize='ascii', prefix='2 3'",
    "\"string_value\", tokenize='trigram', detail=none", "string_value, tokenize=trigram, columnsize=0",
]  # fmt: skip


@pytest.mark.parametrize("declared", TOKENIZERS)
def test_a_full_text_table_that_was_made_anew_with_another_tokenizer_answers_as_well(
    delta: Path, chroma: Chroma, declared: str
) -> None:
    """`chops fts rebuild --tokenizer`: Chroma reads the texts and never the terms."""
    changed(
        delta,
        f"DROP TABLE {FULLTEXT}",
        f"CREATE VIRTUAL TABLE {FULLTEXT} USING fts5({declared})",
        f"INSERT INTO {FULLTEXT} (rowid, string_value) SELECT id, string_value FROM embedding_metadata "
        "WHERE key = 'chroma:document'",
    )
    assert findings_of(delta) == []
    with opened(delta / DATABASE, 60) as connection:
        assert inspect_fulltext(connection) == []
    assert chroma.read(delta)["words"]["count"] == 50


def test_a_valid_database_that_is_not_chroma_s_is_told(database: Path, delta: Path) -> None:
    database.unlink()
    (finding,) = findings_of(delta, "CREATE TABLE birds (name TEXT)")
    assert finding == Finding("sqlite.table_missing", DATABASE, "1 tables, none of them Chroma's")


@pytest.mark.parametrize(
    ("table", "column"),
    [
        ("collections", "dimension"),
        ("collections", "schema_str"),
        ("segments", "scope"),
        ("embeddings", "embedding_id"),
        ("embeddings_queue", "vector"),
        ("embedding_metadata", "bool_value"),
    ],
)
def test_a_column_that_chroma_reads_and_that_is_missing_is_told(delta: Path, table: str, column: str) -> None:
    (finding,) = findings_of(delta, f"ALTER TABLE {table} RENAME COLUMN {column} TO other")
    assert finding == Finding("sqlite.column_missing", DATABASE, f"table {table} has no column {column}")


def test_columns_and_tables_of_others_are_no_finding(delta: Path) -> None:
    statements = (
        "ALTER TABLE collections ADD COLUMN note",
        "CREATE TABLE notes (note)",
        "CREATE INDEX n ON notes (note)",
    )
    assert findings_of(delta, *statements) == []


# --- what would run


def test_a_trigger_is_refused(delta: Path) -> None:
    statement = "CREATE TRIGGER surprise AFTER INSERT ON acquire_write BEGIN DELETE FROM embeddings; END"
    detail = "trigger surprise would run when Chroma opens the delta"
    findings = findings_of(delta, statement)
    assert findings == [Finding("sqlite.unexpected_trigger", DATABASE, detail)]
    assert status_of(findings) is Status.UNDETERMINED


def test_a_trigger_of_a_table_that_chroma_never_writes_is_a_note(delta: Path) -> None:
    trigger = "CREATE TRIGGER mine AFTER INSERT ON notes BEGIN DELETE FROM embeddings; END"
    (finding,) = findings_of(delta, "CREATE TABLE notes (note)", trigger)
    detail = "trigger mine of a table that Chroma never writes"
    assert finding == Finding("sqlite.foreign_trigger", DATABASE, detail)
    assert status_of([finding]) is Status.HEALTHY


def test_a_view_that_nobody_reads_is_worth_a_note(delta: Path) -> None:
    (finding,) = findings_of(delta, "CREATE VIEW extra AS SELECT 1")
    assert finding == Finding("sqlite.unexpected_view", DATABASE, "view extra")
    assert status_of([finding]) is Status.HEALTHY


@pytest.mark.parametrize("table", ["embeddings", "collections", "max_seq_id", f"{FULLTEXT}_content"])
def test_a_view_in_the_place_of_a_table_is_never_read_nor_judged(delta: Path, table: str) -> None:
    changed(delta, f"CREATE TABLE moved AS SELECT * FROM {table}", "PRAGMA writable_schema = ON",
            f"DELETE FROM sqlite_schema WHERE tbl_name = '{table}'")  # fmt: skip
    findings = findings_of(delta, f"CREATE VIEW {table} AS SELECT * FROM moved")
    detail = f"{table} is a view or a virtual table, which is not read"
    assert findings == [Finding("sqlite.table_replaced", DATABASE, detail)]


def test_a_virtual_table_in_the_place_of_a_table_is_never_read_nor_judged(delta: Path) -> None:
    findings = findings_of(delta, "DROP TABLE collections", "CREATE VIRTUAL TABLE collections USING fts5(id, name)")
    assert Finding(
        "sqlite.table_replaced", DATABASE, "collections is a view or a virtual table, which is not read"
    ) in (findings)


def test_a_view_that_never_ends_is_not_read(delta: Path) -> None:
    endless = "WITH RECURSIVE n(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM n) SELECT x AS dir, x AS version FROM n"
    changed(delta, "ALTER TABLE migrations RENAME TO moved", f"CREATE VIEW migrations AS {endless}")
    assert "sqlite.table_replaced" in codes(inspected(delta)[1])


COMPUTING = [
    ("CREATE INDEX computed ON {0} (zeroblob({1}))", "index computed holds an expression"),
    ('CREATE INDEX computed ON {0} ("zeroblob"({1}))', "index computed holds an expression"),
    ("CREATE INDEX computed ON {0} (hex({1}))", "index computed holds an expression"),
    ("CREATE INDEX computed ON {0} (printf('%1000000d', {1}))", "index computed holds an expression"),
    ("CREATE INDEX computed ON {0} (replace({1}, 'a', 'bb'))", "index computed holds an expression"),
    ("CREATE INDEX computed ON {0} ({1}) WHERE {1} LIKE '%a%b%c%'", "index computed holds an expression"),
    ("CREATE INDEX computed ON {0} (lower({1})) WHERE upper({1}) GLOB '*a*'", "index computed holds an expression"),
    ("ALTER TABLE {0} ADD COLUMN computed AS ({1} || 'x')", "table {0} checks or computes columns"),
    ("ALTER TABLE {0} ADD COLUMN computed CHECK (computed > 1)", "table {0} checks or computes columns"),
]


@pytest.mark.parametrize(("statement", "words"), COMPUTING)
def test_a_table_of_chroma_s_that_computes_something_is_not_looked_through(
    delta: Path, statement: str, words: str
) -> None:
    schema, findings = inspected(changed(delta, statement.format("embeddings", "seq_id")))
    detail = f"{words.format('embeddings')}, which no Chroma writes and no check may run"
    assert findings == [Finding("sqlite.unexpected_expression", DATABASE, detail)]
    assert status_of(findings) is Status.UNDETERMINED, "Chroma may well read it"
    assert schema.computing == {"embeddings"}


@pytest.mark.parametrize(("statement", "words"), COMPUTING)
def test_a_table_of_others_that_computes_something_is_not_looked_through(
    delta: Path, statement: str, words: str
) -> None:
    """An integrity check would run it, so the delta cannot be checked; that says nothing about its bytes."""
    findings = findings_of(delta, "CREATE TABLE notes (id, note)", statement.format("notes", "note"))
    detail = f"{words.format('notes')}, which no Chroma writes and no check may run"
    assert findings == [Finding("check.foreign_expression", DATABASE, detail)]
    assert status_of(findings) is Status.UNDETERMINED


@pytest.mark.parametrize(
    "statement",
    [
        "CREATE INDEX plain ON embeddings (seq_id)",
        "CREATE INDEX cheap ON embeddings (abs(seq_id))",
        "CREATE INDEX cheap ON embeddings (embedding_id || 'x', lower(embedding_id) DESC)",
        "CREATE INDEX cheap ON embeddings (embedding_id COLLATE NOCASE) WHERE seq_id > 1 AND segment_id IN ('a', 'b')",
        "CREATE INDEX cheap ON embedding_metadata (string_value) WHERE key = 'chroma:document' AND length(key) < 9",
        "CREATE INDEX cheap ON embedding_metadata (CAST(int_value AS REAL), ifnull(key, 'a, b'))",
        "CREATE UNIQUE INDEX plain ON embeddings (id, seq_id DESC)",
        'CREATE INDEX IF NOT EXISTS "pl""ain" ON "embeddings" ("seq_id" ASC)',
        "CREATE INDEX plain ON embedding_metadata (key, int_value) WHERE int_value IS NOT NULL",
        "CREATE TABLE checked (note TEXT, checksum TEXT)",
    ],
)
def test_an_index_of_plain_columns_computes_nothing(delta: Path, statement: str) -> None:
    assert findings_of(delta, statement) == []


def test_a_function_that_only_a_trusted_schema_may_use_says_nothing_about_the_bytes(delta: Path) -> None:
    """SQLite calls the schema malformed, because of a setting of ours."""
    changed(delta, "CREATE INDEX computed ON embedding_metadata (json_quote(string_value))")
    try:
        found = inspected(delta)[1]
    except CouldNotCheck as fault:
        assert fault.code == "check.foreign_expression"
    else:  # an SQLite that calls the function harmless
        assert {finding.code for finding in found} == {"sqlite.unexpected_expression"}


# --- migrations


@pytest.mark.parametrize(
    ("migration", "words"),
    [
        (("sysdb", 11), "migration sysdb 11, known up to 10"),
        (("metadb", 99), "migration metadb 99, known up to 6"),
        (("vectordb", 1), "migration vectordb 1, known up to 0"),
        (("sysdb", "x"), "migration sysdb 'x', known up to 10"),
    ],
)
def test_a_migration_that_is_not_known_leaves_a_delta_undetermined(
    delta: Path, migration: tuple[str, object], words: str
) -> None:
    with closing(sqlite3.connect(delta / DATABASE, isolation_level=None)) as connection:
        connection.execute("INSERT INTO migrations VALUES (?, ?, 'name', 'sql', 'hash')", migration)
    findings = findings_of(delta)
    assert findings == [Finding("sqlite.schema_newer", DATABASE, f"{words}: upgrade Deltaguard")]
    assert status_of(findings) is Status.UNDETERMINED


def test_a_table_that_a_newer_chroma_gave_up_is_not_held_against_its_delta(delta: Path) -> None:
    findings = findings_of(
        delta, "INSERT INTO migrations VALUES ('sysdb', 11, 'name', 'sql', 'hash')", "DROP TABLE segment_metadata"
    )
    assert status_of(findings) is Status.UNDETERMINED


@pytest.mark.parametrize(
    ("statement", "words"),
    [
        (
            "DELETE FROM migrations WHERE dir = 'sysdb' AND version = 4",
            "migrations of sysdb are [1, 2, 3, 5, 6, 7, 8, 9, 10]",
        ),
        ("DELETE FROM migrations WHERE dir = 'metadb'", "migrations of metadb are []"),
        ("DELETE FROM migrations WHERE version = 1", "migrations of sysdb are [2, 3, 4, 5, 6, 7, 8, 9, 10]"),
    ],
)
def test_a_migration_that_is_missing_makes_chroma_refuse_the_delta(delta: Path, statement: str, words: str) -> None:
    findings = findings_of(delta, statement)
    assert codes(findings) == {"sqlite.migration_mismatch"}
    assert findings[0].detail == f"{words}, expected all from 1 on: Chroma refuses to open it"


@pytest.mark.parametrize(
    "change",
    [
        "hash = replace(hash, substr(hash, 1, 1), 'x')",
        "sql = sql || ' '",
        "sql = NULL",
        "hash = X'00'",
        "filename = 7",
    ],
)
def test_a_migration_that_does_not_agree_with_its_own_checksum_is_told(delta: Path, change: str) -> None:
    untyped(delta, "migrations")
    findings = findings_of(delta, f"UPDATE migrations SET {change} WHERE dir = 'metadb' AND version = 3")
    detail = "the row of migration metadb 3 does not agree with its own checksum"
    assert findings == [Finding("sqlite.migration_mismatch", DATABASE, detail)]


def test_a_migration_may_carry_a_sha256_instead(delta: Path) -> None:
    with closing(sqlite3.connect(delta / DATABASE, isolation_level=None)) as connection:
        connection.create_function("sha256", 1, lambda text: hashlib.sha256(text.encode()).hexdigest())
        connection.execute("UPDATE migrations SET hash = sha256(sql)")
    assert findings_of(delta) == []


def test_a_table_that_came_later_is_not_missed_in_an_older_delta(delta: Path) -> None:
    statements = "DROP TABLE embedding_metadata_array", "DELETE FROM migrations WHERE dir = 'metadb' AND version = 6"
    assert findings_of(delta, *statements) == []


@pytest.mark.parametrize(
    ("migration", "words"),
    [
        (("sysdb", 7), "collections has the column config_json_str of sysdb 7"),
        (("sysdb", 10), "collections has the column schema_str of sysdb 10"),
    ],
)
def test_what_is_there_before_its_migration_makes_that_fail(
    delta: Path, migration: tuple[str, int], words: str
) -> None:
    """Chroma would apply the migration again, and the table or column is there already."""
    folder, version = migration
    findings = findings_of(delta, f"DELETE FROM migrations WHERE dir = '{folder}' AND version >= {version}")
    assert codes(findings) == {"sqlite.migration_mismatch"}
    assert findings[0].detail == f"{words}, but its migration is not recorded"


def test_a_migration_that_may_be_applied_again_need_not_be_recorded(delta: Path, chroma: Chroma) -> None:
    """It creates what does not exist, and nothing else."""
    assert findings_of(delta, "DELETE FROM migrations WHERE dir = 'metadb' AND version = 6") == []
    assert chroma.read(delta)["words"]["count"] == 50


# --- schemas that nobody writes


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
def test_a_schema_of_other_types_than_sqlite_writes_is_not_healthy_and_no_error(delta: Path, statement: str) -> None:
    findings = findings_of(delta, "PRAGMA writable_schema = ON", statement)
    assert status_of(findings) is Status.CORRUPT


def test_no_name_of_a_schema_is_shown_unescaped(delta: Path) -> None:
    evil = "\x1b[2J\u202e" + "y" * 5000
    findings = findings_of(
        delta,
        f'CREATE VIEW "v{evil}" AS SELECT 1',
        f'CREATE TRIGGER "t{evil}" AFTER INSERT ON embeddings BEGIN SELECT 1; END',
        "INSERT INTO migrations VALUES (:evil, 0, 'f', 's', 'h')",
        evil=evil,
    )
    assert findings
    assert all(finding.detail.isprintable() and len(finding.detail) < 500 for finding in findings)


def test_the_columns_of_a_table_with_an_odd_name_are_read(delta: Path) -> None:
    schema, findings = inspected(changed(delta, 'CREATE TABLE "od""d; --" (a, "b c")'))
    assert findings == []
    assert schema.tables['od"d; --'] == {"a", "b c"}
    assert asked(delta, "SELECT count(*) FROM collections") == [1]
