"""Breaks of the database: its pages, its rows, and the journals beside it."""
# ruff: noqa: ARG001, S608 -- every break takes the same arguments; table names are constants of ours

from __future__ import annotations

import random
import sqlite3
import struct
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

from devtools.damage.file_breaks import JOURNAL, PAGE, WAL, Break, DoesNotApply, connected, patch
from shared.model.delta import DATABASE


def sql(*statements: str) -> Break:
    """Run statements; `:pick` in one stands for a random number from 0 to 2^31."""

    def break_(directory: Path, rng: random.Random) -> str:
        pick = rng.randrange(2**31)
        with connected(directory) as database:
            try:
                changed = sum(max(0, database.execute(sql, {"pick": pick}).rowcount) for sql in statements)
            except sqlite3.Error as error:
                raise DoesNotApply(f"{directory}: {'; '.join(statements)}: {error}") from error
        return f"{statements[0]} (pick {pick}): {changed} rows"

    return break_


def pages_of(directory: Path, name: str) -> list[int]:
    """Offsets of the b-tree pages of a table or index: the root first, leaves last.

    Raises:
        DoesNotApply: There is no such table, or pages have another size.
    """
    with connected(directory) as database:
        row = database.execute("SELECT rootpage FROM sqlite_master WHERE name = ?", (name,)).fetchone()
        ((size,),) = database.execute("PRAGMA page_size")
    if row is None or size != PAGE:
        raise DoesNotApply(f"{directory}: no {name}, or pages of {size} bytes")
    data, numbers = (directory / DATABASE).read_bytes(), [row[0]]
    for number in numbers:
        page = data[(number - 1) * PAGE : number * PAGE]
        if page[0] in (2, 5):  # an interior page: its children, of which the header names the last
            cells = struct.unpack_from(f">{struct.unpack_from('>H', page, 3)[0]}H", page, 12)
            numbers += [struct.unpack_from(">I", page, at)[0] for at in (8, *cells)]
    return [(number - 1) * PAGE for number in numbers]


def page(
    names: tuple[str, ...],
    choose: Callable[[list[int], random.Random], int],
    content: Callable[[int, random.Random], bytes],
) -> Break:
    """Overwrite one page of one of these tables or indexes; `choose` is given their offsets, the root first."""

    def break_(directory: Path, rng: random.Random) -> str:
        pages = pages_of(directory, rng.choice(names))
        return patch(directory / DATABASE, choose(pages, rng), content(PAGE, rng))

    return break_


def foreign_database(size: int, rng: random.Random) -> bytes:
    """A valid SQLite database that is not Chroma's."""
    with closing(sqlite3.connect(":memory:")) as database:
        database.execute("CREATE TABLE birds (name TEXT)")
        database.execute("INSERT INTO birds VALUES (?)", (f"wren {rng.random()}",))
        database.commit()
        return database.serialize()


def fulltext_garbled(directory: Path, rng: random.Random) -> str:
    """Turn the terms of the full-text index into noise."""
    with connected(directory) as database:
        # Blocks 1 and 10 are the averages and the structure; the others hold the terms.
        sql = "SELECT id, length(block) FROM embedding_fulltext_search_data WHERE id > 10 ORDER BY id"
        rows = database.execute(sql).fetchall()
        for row, size in rows:
            values = (rng.randbytes(size), row)
            database.execute("UPDATE embedding_fulltext_search_data SET block = ? WHERE id = ?", values)
    return f"embedding_fulltext_search_data: {len(rows)} blocks of terms are noise"


def queue_vector(change: Callable[[bytes, random.Random], bytes]) -> Break:
    """Change the vector of one row of the queue."""

    def break_(directory: Path, rng: random.Random) -> str:
        with connected(directory) as database:
            rows = database.execute("SELECT seq_id, vector FROM embeddings_queue WHERE vector NOT NULL").fetchall()
            if not rows:
                raise DoesNotApply(f"{directory}: no vector is in the queue")
            seq_id, vector = rng.choice(rows)
            changed = change(vector, rng)
            database.execute("UPDATE embeddings_queue SET vector = ? WHERE seq_id = ?", (changed, seq_id))
        return f"embeddings_queue: vector of seq_id {seq_id} changed, {len(vector)} bytes to {len(changed)}"

    return break_


def document_byte_changed(directory: Path, rng: random.Random) -> str:
    """Change a letter of one text in the bytes of its table; its copies in indexes and the queue stay."""
    row, text = _document(directory, rng)
    path, old = directory / DATABASE, text.encode()
    original = path.read_bytes()
    for start in pages_of(directory, "embedding_metadata"):
        at = original.find(old, start, start + PAGE)
        while at >= 0:
            done = patch(path, at, bytes([old[0] ^ 1]))
            with connected(directory) as database:
                sql = "SELECT +string_value FROM embedding_metadata WHERE id = ? AND +key = 'chroma:document'"
                if database.execute(sql, (row,)).fetchone() != (text,):
                    return done
            path.write_bytes(original)  # those bytes were left over by a row that moved
            at = original.find(old, at + 1, start + PAGE)
    raise DoesNotApply(f"{directory}: the text of row {row} does not lie within one page")


def document_changed(directory: Path, rng: random.Random) -> str:
    """Change a letter of one text wherever it is stored, as an update would."""
    row, text = _document(directory, rng)
    other = chr(ord(text[0]) ^ 1) + text[1:]
    with connected(directory) as database:
        sql = "UPDATE embedding_metadata SET string_value = ? WHERE id = ? AND key = 'chroma:document'"
        database.execute(sql, (other, row))
        database.execute("UPDATE embedding_fulltext_search SET string_value = ? WHERE rowid = ?", (other, row))
        sql = "UPDATE embeddings_queue SET metadata = replace(metadata, ?, ?) WHERE instr(metadata, ?)"
        database.execute(sql, (text, other, text))
    return f"text of row {row}: {text[:12]!r} became {other[:12]!r}"


def _document(directory: Path, rng: random.Random) -> tuple[int, str]:
    """Row id and text of some document that is long enough to be told from other bytes."""
    with connected(directory) as database:
        sql = (
            "SELECT id, string_value FROM embedding_metadata WHERE key = 'chroma:document' AND length(string_value) > 9"
        )
        rows = database.execute(f"{sql} ORDER BY id").fetchall()
    if not rows:
        raise DoesNotApply(f"{directory}: no document of ten characters")
    row, text = rng.choice(rows)
    return int(row), str(text)


def _before_and_after(directory: Path) -> tuple[bytes, bytes]:
    """The database as it was ahead of its last write, and as it is: equally long."""
    after = (directory / DATABASE).read_bytes()
    with closing(sqlite3.connect(":memory:", isolation_level=None)) as database:
        try:
            database.deserialize(after)
            for table in ("embeddings_queue", "embeddings"):
                database.execute(f"DELETE FROM {table} WHERE rowid > (SELECT max(rowid) FROM {table}) - 3")
        except sqlite3.Error as error:  # WAL mode, or a trigger or tokenizer of a user's
            raise DoesNotApply(f"{directory}: {error}") from error
        before = database.serialize()
    if len(before) != len(after) or int.from_bytes(after[16:18]) != PAGE:
        raise DoesNotApply(f"{directory}: it shortens itself, or has pages of another size")
    return before, after


def _differing(content: bytes, other: bytes) -> dict[int, bytes]:
    """Number and bytes of the pages of `content` that differ from those of `other`."""
    starts = [at for at in range(0, len(content), PAGE) if content[at : at + PAGE] != other[at : at + PAGE]]
    return {at // PAGE + 1: content[at : at + PAGE] for at in starts}


def journal(torn: bool) -> Break:
    """Put a hot rollback journal beside the database: what a copy inside the last write transaction would hold.

    Torn, the copy caught the index of ids ahead of that write and the rest behind it, and of the journal the head.
    """

    def break_(directory: Path, rng: random.Random) -> str:
        before, after = _before_and_after(directory)
        nonce, pages = rng.randrange(2**31), _differing(before, after)
        fields = struct.pack(">5I", len(pages), nonce, len(before) // PAGE, 512, PAGE)
        content = (b"\xd9\xd5\x05\xf9\x20\xa1\x63\xd7" + fields).ljust(512, b"\0")
        if torn:
            mixed = bytearray(after)
            for start in pages_of(directory, "sqlite_autoindex_embeddings_1"):
                mixed[start : start + PAGE] = before[start : start + PAGE]
            (directory / DATABASE).write_bytes(mixed)
        else:
            for number, page in pages.items():
                checksum = (nonce + sum(page[PAGE - 200 : 0 : -200])) % 2**32
                content += struct.pack(">I", number) + page + struct.pack(">I", checksum)
        (directory / JOURNAL).write_bytes(content)
        return f"{JOURNAL} of {len(content)} bytes, for a write of {len(pages)} pages"

    return break_


def wal(torn: bool) -> Break:
    """Put a write-ahead log beside a database that lacks what it holds; a torn one lost its commit record."""

    def break_(directory: Path, rng: random.Random) -> str:
        before, after = (content[:18] + b"\2\2" + content[20:] for content in _before_and_after(directory))
        pages, salt = _differing(after, before), rng.randbytes(8)
        header = struct.pack(">4I", 0x377F0683, 3007000, PAGE, 0) + salt
        sums = _wal_sums(header, (0, 0))
        log = header + struct.pack(">2I", *sums)
        for position, (number, page) in enumerate(pages.items(), start=1):
            frame = struct.pack(">2I", number, len(after) // PAGE if position == len(pages) else 0)
            sums = _wal_sums(frame + page, sums)
            log += frame + salt + struct.pack(">2I", *sums) + page
        (directory / DATABASE).write_bytes(before)
        (directory / WAL).write_bytes(log[: -PAGE // 2] if torn else log)
        return f"{WAL} with {len(pages)} pages{', the last cut' if torn else ''}"

    return break_


def _wal_sums(data: bytes, sums: tuple[int, int]) -> tuple[int, int]:
    """SQLite's running checksum of a write-ahead log."""
    first, second = sums
    for one, two in struct.iter_unpack(">2I", data):
        first = (first + one + second) % 2**32
        second = (second + two + first) % 2**32
    return first, second
