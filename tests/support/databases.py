"""Databases of real deltas changed by SQL, and asked about what is in them."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

from shared.model.delta import DATABASE

FIRST = "SELECT min(seq_id) FROM embeddings_queue"


def changed(delta: Path, *statements: str, **values: Any) -> Path:
    """The delta after these statements, in each of which `:name` stands for one of the values."""
    with closing(sqlite3.connect(delta / DATABASE, isolation_level=None)) as connection:
        for statement in statements:
            connection.execute(statement, values)
    return delta


def asked(delta: Path, query: str) -> list[Any]:
    """The first column of the answer."""
    with closing(sqlite3.connect(delta / DATABASE)) as connection:
        return [row[0] for row in connection.execute(query)]


def untyped(delta: Path, table: str) -> Path:
    """The delta with a table in which any value may stand anywhere."""
    columns = ", ".join(asked(delta, f"SELECT name FROM pragma_table_info('{table}')"))
    return changed(
        delta,
        f"CREATE TABLE untyped ({columns})",
        f"INSERT INTO untyped SELECT * FROM {table}",
        f"DROP TABLE {table}",
        f"ALTER TABLE untyped RENAME TO {table}",
    )


def queued(operation: int, id_: str, vector: str = "NULL", metadata: str = "'{}'") -> str:
    """One more operation in the queue, which neither the index nor the rows have taken up."""
    return (
        "INSERT INTO embeddings_queue (operation, topic, id, vector, encoding, metadata) "
        f"SELECT {operation}, topic, '{id_}', {vector}, encoding, {metadata} FROM embeddings_queue WHERE seq_id = 1"
    )
