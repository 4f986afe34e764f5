"""Damage without a plan: flipped bits, lost blocks, wild numbers in every field, schema edits, torn copies.

`devtools.damage.catalogue` has one kind for each way a delta is known to break. Here chance does it, so that the
scorecard does not only ask what somebody has thought of.
"""
# ruff: noqa: S608 -- table names come from the schemas of our own deltas

from __future__ import annotations

import random
import shutil
import sqlite3
import struct
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from devtools.damage import database_breaks as db
from devtools.damage import file_breaks
from devtools.damage.catalogue import apply_damage
from devtools.damage.deltas import copy_across_commit, copy_while_writing
from devtools.damage.file_breaks import HEADER, JOURNAL, LENGTHS, LEVEL0, LINKS, PAGE, PICKLE, WAL, Break
from shared.model.delta import DATABASE

_SECTOR = 512
# Name, offset and struct format of every field of header.bin.
_FIELDS = (
    ("version", 0, "<i"), ("offset_level0", 4, "<Q"), ("max_elements", 12, "<Q"), ("cur_count", 20, "<Q"),
    ("rec_size", 28, "<Q"), ("label_offset", 36, "<Q"), ("offset_data", 44, "<Q"), ("maxlevel", 52, "<i"),
    ("entrypoint", 56, "<I"), ("max_m", 60, "<Q"), ("max_m0", 68, "<Q"), ("m", 76, "<Q"), ("mult", 84, "<Q"),
    ("ef_construction", 92, "<Q"),
)  # fmt: skip
_TABLES = (
    "migrations", "acquire_write", "collection_metadata", "segment_metadata", "tenants", "databases", "collections",
    "maintenance_log", "segments", "embeddings", "embedding_metadata", "max_seq_id", "embedding_fulltext_search_data",
    "embedding_fulltext_search_idx", "embedding_fulltext_search_content", "embedding_fulltext_search_docsize",
    "embedding_fulltext_search_config", "embedding_metadata_array", "embeddings_queue", "embeddings_queue_config",
)  # fmt: skip
_TREES = (
    *_TABLES, "sqlite_autoindex_migrations_1", "sqlite_autoindex_collections_1", "sqlite_autoindex_collections_2",
    "sqlite_autoindex_segments_1", "sqlite_autoindex_embeddings_1", "sqlite_autoindex_embedding_metadata_1",
    "sqlite_autoindex_max_seq_id_1", "embedding_metadata_int_value", "embedding_metadata_float_value",
    "embedding_metadata_string_value", "sqlite_autoindex_databases_1", "sqlite_autoindex_tenants_1",
)  # fmt: skip
_COLUMNS = (
    ("collections", "name"), ("collections", "dimension"), ("collections", "database_id"),
    ("collections", "config_json_str"), ("collections", "schema_str"), ("segments", "type"), ("segments", "scope"),
    ("segments", "collection"), ("embeddings", "embedding_id"), ("embeddings", "seq_id"), ("embeddings", "created_at"),
    ("embedding_metadata", "string_value"), ("embedding_metadata", "int_value"), ("embedding_metadata", "float_value"),
    ("embedding_metadata", "bool_value"), ("max_seq_id", "seq_id"), ("embeddings_queue", "vector"),
    ("embeddings_queue", "encoding"), ("embeddings_queue", "metadata"), ("embeddings_queue", "topic"),
    ("embeddings_queue", "created_at"), ("embeddings_queue", "operation"), ("databases", "name"),
    ("databases", "tenant_id"), ("collection_metadata", "str_value"), ("collection_metadata", "bool_value"),
    ("segment_metadata", "str_value"), ("embeddings_queue_config", "config_json_str"), ("migrations", "hash"),
    ("migrations", "sql"), ("migrations", "filename"),
)  # fmt: skip
_KEYS = {"embedding_fulltext_search_idx": "segid", "embedding_fulltext_search_config": "k"}  # no rowid
_WRONG_VALUES = ("NULL", "-1", "0", "''", "'noise'", "X'00FF'", "1e308", "9223372036854775807")


@dataclass(frozen=True, slots=True)
class Generic:
    """One sort of unplanned damage: done to each of these bases so many times in each group of seeds.

    `telling` when the values that it leaves contradict the format, so that structure has no excuse for missing them.
    """

    kind: str
    bases: tuple[str, ...]
    times: int
    break_: Break
    telling: bool = False


def flipped_bits(name: str, most: int = 1) -> Break:
    """Flip up to so many bits somewhere in a file."""

    def break_(directory: Path, rng: random.Random) -> str:
        path = file_breaks.filled(directory, name)
        content = bytearray(path.read_bytes())
        done = []
        for _ in range(rng.randrange(1, most + 1)):
            at, bit = rng.randrange(len(content)), rng.randrange(8)
            content[at] ^= 1 << bit
            done.append(f"{at}.{bit}")
        path.write_bytes(content)
        return f"{name}: bits flipped at {', '.join(done)}; {_owner(directory, name, int(done[0].split('.')[0]))}"

    return break_


def lost_block(name: str, size: int, *, zeros: bool) -> Break:
    """Zero or garble a block of a file, at a multiple of its size."""

    def break_(directory: Path, rng: random.Random) -> str:
        path = file_breaks.file(directory, name)
        at = size * rng.randrange(max(1, path.stat().st_size // size))
        owner = _owner(directory, name, at)
        content = path.read_bytes()
        block = bytes(size) if zeros else rng.randbytes(size)
        path.write_bytes((content[:at] + block + content[at + size :])[: len(content)])
        return f"{name}: {size} bytes at {at} {'zeroed' if zeros else 'garbled'}; {owner}"

    return break_


def _owner(directory: Path, name: str, at: int) -> str:
    """Which table or index of the database owns the page at this offset; for other files, nothing."""
    if name != DATABASE:
        return ""
    for tree in _TREES:
        try:
            if at - at % PAGE in db.pages_of(directory, tree):
                return f"page {at // PAGE + 1} of {tree}"
        except Exception:  # noqa: BLE001, S112 -- it is damaged: then nobody knows
            continue
    return f"page {at // PAGE + 1}"


def lost_tree_page(*, size: int, zeros: bool) -> Break:
    """Zero or garble a page, or a sector of it, of some table or index: each is as likely, however small."""

    def break_(directory: Path, rng: random.Random) -> str:
        tree = rng.choice(_TREES)
        page = rng.choice(db.pages_of(directory, tree))
        at = page + size * rng.randrange(PAGE // size)
        content = bytes(size) if zeros else rng.randbytes(size)
        done = file_breaks.patch(directory / DATABASE, at, content)
        return f"{tree}, page {page // PAGE + 1}, {size} bytes {'zeroed' if zeros else 'garbled'} at {at}; {done[:80]}"

    return break_


def tree_bytes_changed(directory: Path, rng: random.Random) -> str:
    """Overwrite one to four bytes in the used part of a page of some table or index."""
    tree = rng.choice(_TREES)
    page = rng.choice(db.pages_of(directory, tree))
    content = (directory / DATABASE).read_bytes()[page : page + PAGE]
    used = [at for at in range(PAGE) if content[at]] or [0]
    done = file_breaks.patch(directory / DATABASE, page + rng.choice(used), rng.randbytes(rng.randrange(1, 5)))
    return f"{tree}, page {page // PAGE + 1}: {done}"


def header_extreme(directory: Path, rng: random.Random) -> str:
    """Put an extreme value into some field of header.bin."""
    name, at, form = rng.choice(_FIELDS)
    path = file_breaks.file(directory, HEADER)
    content = bytearray(path.read_bytes())
    width = struct.calcsize(form)
    old = int.from_bytes(content[at : at + width], "little")
    extremes = (0, 1, -1, old + 1, old - 1, 2 * old, old // 2, old + 1000, old ^ 1 << 16, 2**31 - 1, 2**31, 2**62)
    new = rng.choice([value % 256**width for value in extremes if value % 256**width != old])
    content[at : at + width] = new.to_bytes(width, "little")
    path.write_bytes(content)
    return f"header.bin: {name} from {old} to {new}"


def words_overwritten(name: str) -> Break:
    """Overwrite one word of a file with a number that is often wrong and sometimes plausible."""

    def break_(directory: Path, rng: random.Random) -> str:
        path = file_breaks.filled(directory, name)
        content = bytearray(path.read_bytes())
        at = 4 * rng.randrange(len(content) // 4)
        word = rng.choice((0, 1, 2, 7, 16, 17, 59, 60, 68, 136, 2**16, 2**31, 2**32 - 1, rng.getrandbits(32)))
        old = int.from_bytes(content[at : at + 4], "little")
        content[at : at + 4] = word.to_bytes(4, "little")
        path.write_bytes(content)
        return f"{name}: word at {at} from {old} to {word}"

    return break_


def bytes_overwritten(name: str) -> Break:
    """Overwrite one byte of a file."""

    def break_(directory: Path, rng: random.Random) -> str:
        path = file_breaks.filled(directory, name)
        content = bytearray(path.read_bytes())
        at = rng.randrange(len(content))
        old, content[at] = content[at], rng.choice((0, 1, 46, 75, 104, 255, rng.randrange(256)))
        path.write_bytes(content)
        return f"{name}: byte at {at} from {old} to {content[at]}, before it {bytes(content[max(0, at - 6) : at])!r}"

    return break_


def blob_resized(directory: Path, rng: random.Random) -> str:
    """Give a vector of the queue another length."""
    length = rng.choice((0, 1, 3, 4, 64, 124, 127, 129, 132, 256, 4096, 70_000))

    def resized(vector: bytes, _: random.Random) -> bytes:
        return (vector * (length // len(vector) + 1))[:length]

    return db.queue_vector(resized)(directory, rng)


def schema_edited(directory: Path, rng: random.Random) -> str:
    """Drop or rename a table or a column, add a column, a trigger, a view or a table, or remove a row of the schema."""
    table = rng.choice(_TABLES)
    owner, column = rng.choice(_COLUMNS)
    statements = rng.choice((
        (f"DROP TABLE {table}",), (f"ALTER TABLE {table} RENAME TO {table}_old",),
        (f"ALTER TABLE {owner} RENAME COLUMN {column} TO {column}_old",),
        (f"ALTER TABLE {owner} DROP COLUMN {column}",), (f"ALTER TABLE {owner} ADD COLUMN surplus TEXT",),
        (f"CREATE TRIGGER surprise AFTER INSERT ON {table} BEGIN DELETE FROM embeddings; END",),
        (f"CREATE VIEW surplus AS SELECT * FROM {table}",), ("CREATE TABLE surplus (x)",),
        (f"ALTER TABLE {table} RENAME TO moved", f"CREATE VIEW {table} AS SELECT * FROM moved"),
        (f"CREATE INDEX surplus ON {owner} ({column})",),
        ("PRAGMA writable_schema = ON", f"DELETE FROM sqlite_schema WHERE name = '{table}'"),
        ("PRAGMA writable_schema = ON", f"UPDATE sqlite_schema SET sql = NULL WHERE name = '{table}'"),
        ("PRAGMA writable_schema = ON", f"UPDATE sqlite_schema SET rootpage = 3 WHERE name = '{table}'"),
    ))  # fmt: skip
    with file_breaks.connected(directory) as database:
        for statement in statements:
            try:
                database.execute(statement)
            except sqlite3.Error as error:
                return f"{statement} was not done: {error}"
    return "; ".join(statements)


def value_edited(directory: Path, rng: random.Random) -> str:
    """Give one column of one row, or of all rows, a value of a wrong type or size."""
    owner, column = rng.choice(_COLUMNS)
    value = rng.choice(_WRONG_VALUES)
    pick = rng.randrange(2**31)
    row = f" WHERE rowid = (SELECT rowid FROM {owner} LIMIT 1 OFFSET {pick} % (SELECT max(1, count(*)) FROM {owner}))"
    statement = f"UPDATE OR IGNORE {owner} SET {column} = {value}{row if rng.random() < 0.7 else ''}"
    with file_breaks.connected(directory) as database:
        try:
            changed = database.execute(statement).rowcount
        except sqlite3.Error as error:
            return f"{statement} was not done: {error}"
    return f"{statement}: {changed} rows"


def row_lost(directory: Path, rng: random.Random) -> str:
    """Delete one row of some table, its indexes with it."""
    table, pick = rng.choice(_TABLES), rng.randrange(2**31)
    with file_breaks.connected(directory) as database:
        ((count,),) = database.execute(f"SELECT count(*) FROM {table}")
        if not count:
            return f"{table} has no row to lose"
        key = _KEYS.get(table, "rowid")
        statement = f"DELETE FROM {table} WHERE {key} = (SELECT {key} FROM {table} LIMIT 1 OFFSET {pick % count})"
        return f"{statement}: {database.execute(statement).rowcount} rows of {count}"


def stray_journal(directory: Path, rng: random.Random) -> str:
    """Put some journal, a log or shared memory beside the database."""
    name = rng.choice((JOURNAL, WAL, "chroma.sqlite3-shm"))
    begun = b"\xd9\xd5\x05\xf9\x20\xa1\x63\xd7" + rng.randbytes(600)
    content = rng.choice((b"", bytes(512), begun, rng.randbytes(9000)))
    (directory / name).write_bytes(content)
    return f"{name} of {len(content)} bytes that begin with {content[:8].hex() or 'nothing'}"


def torn(copy: Callable[[Path, int], None]) -> Break:
    """Replace the delta by a copy of another one that was torn while it was written."""

    def break_(directory: Path, rng: random.Random) -> str:
        shutil.rmtree(directory)
        copy(directory, rng.randrange(1000))
        return f"torn copy: {', '.join(f'{path.name} {path.stat().st_size}' for path in sorted(directory.iterdir()))}"

    return break_


_FLUSHED = ("flushed", "flushed-cosine", "flushed-changed", "large")
_INDEXED = (LEVEL0, HEADER, PICKLE, LENGTHS, LINKS)
_EVERYWHERE = ("queued", "flushed", "flushed-changed", "two-flushed", "large")

GENERIC: tuple[Generic, ...] = (
    Generic("bit-flip-database", _EVERYWHERE, 14, flipped_bits(DATABASE)),
    Generic("bit-flips-database", _EVERYWHERE, 8, flipped_bits(DATABASE, 40)),
    *(Generic(f"bit-flip-{name}", _FLUSHED, 4, flipped_bits(name)) for name in _INDEXED),
    *(Generic(f"skeleton-bit-flip-{name}", ("queued",), 1, flipped_bits(name)) for name in (LEVEL0, HEADER, LENGTHS)),
    *(
        Generic(f"block-{'zeroed' if zeros else 'garbled'}-{size}-database", _EVERYWHERE, 3,
                lost_block(DATABASE, size, zeros=zeros))
        for zeros in (True, False) for size in (_SECTOR, PAGE)
    ),
    *(
        Generic(f"block-{'zeroed' if zeros else 'garbled'}-{name}", _FLUSHED, 2,
                lost_block(name, _SECTOR, zeros=zeros), telling=name == LENGTHS)
        for zeros in (True, False) for name in (LEVEL0, PICKLE, LENGTHS)
    ),
    *(
        Generic(f"tree-page-{'zeroed' if zeros else 'garbled'}-{size}", ("queued", "flushed-changed", "large"), 6,
                lost_tree_page(size=size, zeros=zeros))
        for zeros in (True, False) for size in (_SECTOR, PAGE)
    ),
    Generic("tree-bytes-changed", ("queued", "flushed", "flushed-changed", "large"), 16, tree_bytes_changed),
    Generic("header-extreme", _FLUSHED, 14, header_extreme),
    Generic("links-word", ("large", "large-cosine"), 8, words_overwritten(LINKS)),
    Generic("links-word-small", ("flushed", "flushed-cosine"), 3, words_overwritten(LINKS)),
    Generic("data-word", _FLUSHED, 4, words_overwritten(LEVEL0)),
    Generic("pickle-byte", _FLUSHED, 10, bytes_overwritten(PICKLE)),
    Generic("queue-blob-length", ("queued", "queued-changed", "flushed"), 5, blob_resized),
    Generic("schema-edit", ("queued", "flushed-changed"), 28, schema_edited),
    Generic("value-edit", ("queued", "flushed-changed", "two-flushed"), 20, value_edited),
    Generic("row-lost", ("queued", "flushed-changed", "two-flushed"), 9, row_lost),
    Generic("stray-journal", ("queued", "flushed"), 5, stray_journal),
    Generic("torn-copy-in-transaction", ("queued",), 2, torn(copy_while_writing)),
    Generic("torn-copy-across-commit", ("queued",), 2, torn(copy_across_commit)),
)  # fmt: skip
"""All of it, in a stable order."""


def break_delta(kind: str, base: str, seed: int, directory: Path) -> str:
    """Break a closed delta in place by either generator, and say how.

    Args:
        kind: Of damage: of `devtools.damage.catalogue`, or of those here.
        base: Name of the delta; chance depends on it.
        seed: Of chance.
        directory: The delta.

    Raises:
        DoesNotApply: The delta has nothing that this could break.
    """
    for generic in GENERIC:
        if generic.kind == kind:
            return generic.break_(directory, random.Random(f"{kind} {base} {seed}"))  # noqa: S311 -- repeatable
    return apply_damage(kind, directory, seed)
