"""The deltas that get damaged.

They hold the same in every run, and lie nearly the same: ids and times are made constant, but the order of what Chroma
keeps in hash maps (metadata of a row, the id map of an index) is its own chance.
"""

from __future__ import annotations

import uuid
from pathlib import Path

from devtools.damage.deltas import DeltaContent, DeltaRecipe, build_delta
from devtools.damage.file_breaks import connected

_FLUSHED = DeltaRecipe(embeddings=70, sync_threshold=20, batch=20)
_COSINE = DeltaRecipe(embeddings=70, sync_threshold=20, batch=20, space="cosine")
_IDS = """
    SELECT id FROM (
        SELECT s.id, c.name, s.scope FROM segments AS s JOIN collections AS c ON c.id = s.collection
        UNION ALL SELECT id, name, '' FROM collections
    ) ORDER BY name, scope
"""
_MOMENT = "2026-01-01 00:00:00"

BASES: dict[str, DeltaRecipe] = {
    "queued": DeltaRecipe(embeddings=40),
    "queued-cosine": DeltaRecipe(embeddings=40, space="cosine"),
    "queued-changed": DeltaRecipe(embeddings=60, updates=8, deletes=8),
    "flushed": _FLUSHED,
    "flushed-cosine": _COSINE,
    "flushed-changed": DeltaRecipe(embeddings=90, sync_threshold=20, batch=20, updates=8, deletes=8),
    "flushed-exactly": DeltaRecipe(embeddings=60, sync_threshold=20, batch=20),
    "two-flushed": DeltaRecipe(embeddings=70, sync_threshold=20, batch=20, collections=2),
    "two-flushed-cosine": DeltaRecipe(embeddings=70, sync_threshold=20, batch=20, collections=2, space="cosine"),
    "large": DeltaRecipe(embeddings=620, sync_threshold=100, batch=100),
    "large-cosine": DeltaRecipe(embeddings=620, sync_threshold=100, batch=100, space="cosine"),
}
"""Their recipes by name."""

SUITABLE: dict[str, tuple[str, ...]] = {
    "any": ("queued", "flushed", "flushed-changed", "two-flushed", "queued-cosine", "flushed-exactly"),
    "queued": ("queued", "queued-cosine", "queued-changed"),
    "flushed": ("flushed", "flushed-cosine", "large", "flushed-changed", "two-flushed", "flushed-exactly"),
    "two flushed": ("two-flushed", "two-flushed-cosine"),
}
"""For each need of a damage (`devtools.damage.catalogue.Needs`), the bases that it can be done to."""


def build_base(name: str, folder: Path) -> DeltaContent:
    """Build a base in a folder and return what it stores."""
    content = build_delta(folder, BASES[name])
    _without_chance(folder)
    return content


def is_cosine(name: str) -> bool:
    """Whether the indexes of a base measure by cosine."""
    return BASES[name].space == "cosine"


def _without_chance(folder: Path) -> None:
    """Replace the random ids and the times in a delta by constant ones of the same length."""
    with connected(folder) as database:
        rows = database.execute(_IDS).fetchall()
        tables = [name for (name,) in database.execute("SELECT name FROM sqlite_schema WHERE type = 'table'")]
        columns = [
            (table, column)
            for table in tables
            if not table.startswith("embedding_fulltext")
            for _, column, kind, *_ in database.execute(f"PRAGMA table_info({table})").fetchall()
            if kind.upper().startswith(("TEXT", "TIMESTAMP"))
        ]
        database.execute("BEGIN")
        for number, (old,) in enumerate(rows):
            new = str(uuid.UUID(int=(0x5C0 << 116) + number, version=4))
            for table, column in columns:
                database.execute(
                    f"UPDATE {table} SET {column} = replace({column}, ?, ?) WHERE instr({column}, ?)",  # noqa: S608
                    (old, new, old),
                )
            if (folder / old).is_dir():
                (folder / old).rename(folder / new)
        for table in ("embeddings", "embeddings_queue"):
            database.execute(f"UPDATE {table} SET created_at = ?", (_MOMENT,))  # noqa: S608
        database.execute("COMMIT")
