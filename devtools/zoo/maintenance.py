"""What users and other tools do to a closed directory, in SQL of our own. Nothing of it loses a record."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Mapping
from contextlib import closing
from pathlib import Path

from shared.delta import DATABASE

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
    """Makes every table of Chroma anew from its rows, as `.dump` into a new file does; row ids of tables go with it."""
    script = "\n".join(database.iterdump())
    with closing(sqlite3.connect(":memory:", isolation_level=None)) as copy:
        copy.executescript(script)
        copy.backup(database)


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
        "CREATE TRIGGER IF NOT EXISTS my_trigger AFTER INSERT ON my_notes BEGIN SELECT 1; END",
    ),
    "purged": _purged,
    "full-text-rebuilt": _full_text("trigram"),
    "full-text-unicode61": _full_text("unicode61"),
    "full-text-optimized": _statements(f"INSERT INTO {_FULL_TEXT}({_FULL_TEXT}) VALUES ('optimize')"),
    "dumped": _dumped,
    "user-version": _statements("PRAGMA user_version = 7", "PRAGMA application_id = 99"),
    "secure-delete": _statements("PRAGMA secure_delete = ON", "DELETE FROM embeddings_queue WHERE 0", "VACUUM"),
}
"""What may be done, by name."""
