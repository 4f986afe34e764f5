"""What users and other tools do to a closed directory, in SQL of our own. Nothing of it loses a record."""

from __future__ import annotations

import sqlite3
import subprocess
import sys
from collections.abc import Callable, Mapping
from contextlib import closing
from pathlib import Path

from shared.model.delta import DATABASE

Maintain = Callable[[sqlite3.Connection], None]

_FULL_TEXT = "embedding_fulltext_search"


def maintain(folder: Path, name: str) -> None:
    """Does one of `MAINTENANCE` to a directory that nobody has open.

    Raises:
        sqlite3.Error: The database cannot be worked on.
    """
    with closing(sqlite3.connect(folder / DATABASE, isolation_level=None)) as database:
        tables = {name for (name,) in database.execute("SELECT name FROM sqlite_master")}
        if _FULL_TEXT in tables or not name.startswith("full-text"):  # 0.4.3 has none of this name
            MAINTENANCE[name](database)


def _statements(*statements: str) -> Maintain:
    def run(database: sqlite3.Connection) -> None:
        for statement in statements:
            database.execute(statement).fetchall()

    return run


def _purged(database: sqlite3.Connection) -> None:
    """Takes away the queue's rows that every segment of their collection has seen, as `chops wal clean` does."""
    stored = database.execute("SELECT max(typeof(seq_id) = 'blob') FROM max_seq_id").fetchone()[0]
    if stored:  # 0.x keeps big-endian blobs: left alone
        return
    database.execute(
        "DELETE FROM embeddings_queue WHERE seq_id < (SELECT min(coalesce(m.seq_id, 0)) FROM segments s"
        " LEFT JOIN max_seq_id m ON m.segment_id = s.id WHERE instr(embeddings_queue.topic, s.collection) > 0)"
    )
    database.execute("VACUUM")


def _full_text(tokenizer: str) -> Maintain:
    """Makes the full-text table anew from the documents, as `chops fts rebuild` does."""

    def rebuild(database: sqlite3.Connection) -> None:
        database.execute(f"DROP TABLE {_FULL_TEXT}")
        database.execute(f"CREATE VIRTUAL TABLE {_FULL_TEXT} USING fts5(string_value, tokenize='{tokenizer}')")
        database.execute(
            f"INSERT INTO {_FULL_TEXT} (rowid, string_value) SELECT id, string_value FROM embedding_metadata"
            " WHERE key = 'chroma:document' AND string_value IS NOT NULL"
        )

    return rebuild


def _dumped(database: sqlite3.Connection) -> None:
    """Makes every table anew from its rows, as `.dump` into a new file does. The full-text tables follow their rows."""
    names = [name for (name,) in database.execute("SELECT name FROM sqlite_master WHERE sql LIKE 'CREATE VIRTUAL%'")]
    tables = [(name, *_virtual(database, name)) for name in names]
    for name in names:
        database.execute(f'DROP TABLE "{name}"')
    script = "\n".join(database.iterdump())
    with closing(sqlite3.connect(":memory:", isolation_level=None)) as copy:
        copy.executescript(script)
        for name, sql, column, rows in tables:
            copy.execute(sql)
            copy.executemany(f'INSERT INTO "{name}" (rowid, "{column}") VALUES (?, ?)', rows)
        copy.backup(database)


def _virtual(database: sqlite3.Connection, name: str) -> tuple[str, str, list[tuple[int, str]]]:
    (sql,) = database.execute("SELECT sql FROM sqlite_master WHERE name = ?", (name,)).fetchone()
    column = database.execute(f'PRAGMA table_info("{name}")').fetchone()[1]
    return sql, column, database.execute(f'SELECT rowid, "{column}" FROM "{name}" ORDER BY rowid').fetchall()


def _cold_journal(database: sqlite3.Connection) -> None:
    """Leaves a journal whose header is zero beside the database: it was committed."""
    for statement in ("PRAGMA journal_mode = PERSIST", "CREATE TABLE my_writes (n)", "DROP TABLE my_writes"):
        database.execute(statement).fetchall()


def _hot_journal(database: sqlite3.Connection) -> None:
    """Leaves the database half written and its journal beside it, as a killed process does: the next one rolls back."""
    (folder,) = {Path(file).parent for _, name, file in database.execute("PRAGMA database_list") if name == "main"}
    subprocess.run([sys.executable, "-c", _DIES, folder / DATABASE], check=True)  # noqa: S603 -- ours


_DIES = """
import os, sqlite3, sys
database = sqlite3.connect(sys.argv[1], isolation_level=None)
database.execute("PRAGMA cache_size = 2")
database.execute("BEGIN IMMEDIATE")
database.execute("UPDATE collections SET name = name || 'x'")
numbers = "WITH RECURSIVE n (n) AS (VALUES (1) UNION ALL SELECT n + 1 FROM n LIMIT 5000)"
database.execute(f"CREATE TABLE my_writes AS {numbers} SELECT n, hex(randomblob(20)) FROM n")
os._exit(0)
"""

MAINTENANCE: Mapping[str, Maintain] = {
    "vacuum": _statements("VACUUM"),
    "reindex": _statements("REINDEX", "ANALYZE"),
    "page-size": _statements("PRAGMA page_size = 8192", "VACUUM"),
    "auto-vacuum": _statements("PRAGMA auto_vacuum = FULL", "VACUUM"),
    "wal-mode": _statements(
        "PRAGMA journal_mode = WAL",
        "CREATE TABLE my_writes (n)",
        "DROP TABLE my_writes",
        "PRAGMA wal_checkpoint(TRUNCATE)",
    ),
    "user-index": _statements(
        "CREATE INDEX IF NOT EXISTS my_index ON embedding_metadata (key, string_value)",
        "CREATE INDEX IF NOT EXISTS my_partial ON embeddings (embedding_id) WHERE segment_id IS NOT NULL",
        "CREATE UNIQUE INDEX IF NOT EXISTS my_unique ON embeddings (id, embedding_id)",
    ),
    "user-tables": _statements(
        "CREATE TABLE IF NOT EXISTS my_notes (id INTEGER PRIMARY KEY, note TEXT)",
        "INSERT INTO my_notes (note) VALUES ('kept by a tool')",
        "CREATE VIRTUAL TABLE IF NOT EXISTS my_search USING fts5(note)",
        "INSERT INTO my_search VALUES ('found by a tool')",
        "CREATE VIEW IF NOT EXISTS my_view AS SELECT count(*) AS n FROM embeddings",
    ),
    "user-trigger": _statements(
        "CREATE TABLE IF NOT EXISTS my_log (id INTEGER)",
        "CREATE TRIGGER IF NOT EXISTS my_trigger AFTER INSERT ON my_log BEGIN SELECT 1; END",
    ),
    "purged": _purged,
    "full-text-rebuilt": _full_text("trigram"),
    "full-text-unicode61": _full_text("unicode61"),
    "full-text-optimized": _statements(f"INSERT INTO {_FULL_TEXT}({_FULL_TEXT}) VALUES ('optimize')"),
    "dumped": _dumped,
    "cold-journal": _cold_journal,
    "hot-journal": _hot_journal,
    "user-version": _statements("PRAGMA user_version = 7", "PRAGMA application_id = 99"),
    "secure-delete": _statements("PRAGMA secure_delete = ON", "DELETE FROM embeddings_queue WHERE 0", "VACUUM"),
}
"""What may be done, by name."""
