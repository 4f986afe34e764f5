"""The database file as SQLite sees it: header and page arithmetic, integrity, and the schema that Chroma needs.

Source: https://www.sqlite.org/fileformat2.html (header), measured chromadb 0.4.24 to 1.5.9 (schema).
"""

from __future__ import annotations

import os
import re
import sqlite3
import struct
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from urllib.parse import quote

from shared.delta import DATABASE, printable
from shared.errors import CouldNotCheck
from shared.verdict import Finding

HEADER_BYTES = 100
_MAGIC = b"SQLite format 3\x00"
_PROBLEMS_SHOWN = 5
_PROGRESS_STEPS = 20_000  # virtual machine steps between two looks at the clock, some milliseconds

_CORRUPT = {sqlite3.SQLITE_CORRUPT: "sqlite.malformed", sqlite3.SQLITE_NOTADB: "sqlite.not_a_database"}
_ENVIRONMENT = {
    sqlite3.SQLITE_CANTOPEN: "check.cannot_open",
    sqlite3.SQLITE_NOMEM: "check.memory",
    sqlite3.SQLITE_FULL: "check.disk_full",
    sqlite3.SQLITE_INTERRUPT: "check.timeout",
}

NEWEST_MIGRATIONS = {"sysdb": 10, "metadb": 6, "embeddings_queue": 2}
"""The newest schema migrations that these rules were measured with (chromadb 1.5.9)."""

# The tables without which Chroma 1.5 cannot give back what was stored, and the columns it reads of them.
_REQUIRED: dict[str, frozenset[str]] = {
    "migrations": frozenset({"dir", "version"}),
    "tenants": frozenset({"id"}),
    "databases": frozenset({"id", "name", "tenant_id"}),
    "collections": frozenset({"id", "name", "dimension"}),
    "segments": frozenset({"id", "type", "scope", "collection"}),
    "collection_metadata": frozenset({"collection_id", "key", "str_value", "int_value", "float_value"}),
    "segment_metadata": frozenset({"segment_id", "key", "str_value", "int_value", "float_value"}),
    "embeddings": frozenset({"id", "segment_id", "embedding_id", "seq_id", "created_at"}),
    "embedding_metadata": frozenset({"id", "key", "string_value", "int_value", "float_value"}),
    "max_seq_id": frozenset({"segment_id", "seq_id"}),
    "embeddings_queue": frozenset({"seq_id", "operation", "topic", "id", "vector", "encoding", "metadata"}),
}
_PLAIN_TABLE_SQL = re.compile(r"create\s+table\b", re.IGNORECASE)
# Tables that came later: needed only where the migration that makes them was applied, since Chroma applies the others.
_REQUIRED_SINCE: dict[str, tuple[str, int]] = {
    "embeddings_queue_config": ("embeddings_queue", 2),
    "embedding_metadata_array": ("metadb", 6),
}
FULLTEXT = "embedding_fulltext_search"
_FULLTEXT_SQL = re.compile(r"create virtual table \W?embedding_fulltext_search\W? using fts5\s*\(\s*string_value\s*,\s*"
                           r"tokenize\s*=\s*'trigram'\s*\)", re.IGNORECASE)  # fmt: skip
_FULLTEXT_QUERY = "SELECT count(*) FROM embedding_fulltext_search WHERE string_value LIKE '%a%'"
_DOCUMENTS_MISSING = """
    SELECT count(*) FROM embedding_metadata AS m
    LEFT JOIN embedding_fulltext_search_content AS f ON f.id = m.id
    WHERE m.key = 'chroma:document' AND f.c0 IS NOT m.string_value
"""


def inspect_header(head: bytes, size: int) -> list[Finding]:
    """What the first 100 bytes of a database of `size` bytes prove.

    The page count of the header is binding only when the change counter equals `version-valid-for`
    (section 1.3.7 of the format); otherwise SQLite goes by the file's size, and so does this check.
    """
    if len(head) < HEADER_BYTES:
        return [Finding("sqlite.truncated", DATABASE, f"{size} bytes, the header alone has {HEADER_BYTES}")]
    if not head.startswith(_MAGIC):
        return [Finding("sqlite.not_a_database", DATABASE, f"begins with {head[:16]!r} instead of {_MAGIC!r}")]
    page_size, _write_version, read_version, _reserved, *fractions = struct.unpack(">HBBBBBB", head[16:24])
    changes, pages = struct.unpack(">II", head[24:32])
    schema_format, encoding = (struct.unpack(">I", head[at : at + 4])[0] for at in (44, 56))
    (valid_for,) = struct.unpack(">I", head[92:96])
    page_size = 65536 if page_size == 1 else page_size
    findings = []
    for field, at, seen, allowed in (
        ("read version", 19, read_version, (1, 2)),
        ("payload fractions", 21, fractions, ([64, 32, 32],)),
        ("schema format", 44, schema_format, (0, 1, 2, 3, 4)),
        ("text encoding", 56, encoding, (0, 1)),
    ):
        if seen not in allowed:
            detail = f"{field} at offset {at} is {seen}, expected {' or '.join(str(value) for value in allowed)}"
            findings.append(Finding("sqlite.header_invalid", DATABASE, detail))
    if page_size < 512 or page_size & (page_size - 1):
        detail = f"page size at offset 16 is {page_size}, expected a power of two from 512 to 65536"
        return [*findings, Finding("sqlite.header_invalid", DATABASE, detail)]
    expected = pages * page_size if pages and changes == valid_for else size - size % page_size
    if size < expected:
        detail = f"{size} bytes, but {pages} pages of {page_size} need {expected}: {expected - size} bytes are lost"
        findings.append(Finding("sqlite.truncated", DATABASE, detail))
    elif size > expected:
        detail = f"{size - expected} bytes after the {expected} of its pages"
        findings.append(Finding("sqlite.trailing_bytes", DATABASE, detail))
    return findings


@contextmanager
def opened(path: Path, seconds: float) -> Iterator[sqlite3.Connection]:
    """The database opened so that it can neither be written nor run anything of its schema.

    `immutable` keeps SQLite from looking for locks and journals, so a folder is left exactly as it was.

    Args:
        path: The database file.
        seconds: Time after which any statement is interrupted.

    Raises:
        CouldNotCheck: SQLite could not open the file for a reason outside it.
    """
    try:
        connection = sqlite3.connect(_read_only_uri(path), uri=True, isolation_level=None, check_same_thread=False)
    except sqlite3.Error as error:
        raise CouldNotCheck("check.cannot_open", f"opening {path.name}: {error}") from error
    deadline = time.monotonic() + seconds
    with closing(connection):
        connection.set_progress_handler(lambda: time.monotonic() > deadline, _PROGRESS_STEPS)
        connection.text_factory = partial(str, encoding="utf-8", errors="surrogateescape")
        connection.execute("PRAGMA trusted_schema=OFF")
        connection.execute("PRAGMA cell_size_check=ON")
        yield connection


@contextmanager
def explained(doing: str) -> Iterator[list[Finding]]:
    """Turns an SQLite error inside the block into what it proves: a finding, or that the check was impossible.

    Yields:
        A list that holds the finding afterwards, if the error was one about the bytes.

    Raises:
        CouldNotCheck: The error says nothing about the bytes (code 14, out of memory, time over, ...).
    """
    findings: list[Finding] = []
    try:
        yield findings
    except sqlite3.Error as error:
        primary = getattr(error, "sqlite_errorcode", sqlite3.SQLITE_ERROR) & 0xFF
        if primary in _CORRUPT:
            findings.append(Finding(_CORRUPT[primary], DATABASE, f"{doing}: {error}"))
        elif primary in _ENVIRONMENT:
            raise CouldNotCheck(_ENVIRONMENT[primary], f"{doing}: {error}") from error
        else:
            raise CouldNotCheck("check.local_io", f"{doing}: {error} (SQLite code {primary})") from error
    except UnicodeDecodeError:
        # Python's sqlite3 cannot tell an error in which SQLite quotes a name of the delta that is not UTF-8.
        findings.append(Finding("sqlite.malformed", DATABASE, f"{doing}: an error about a name that is not UTF-8"))


def inspect_integrity(connection: sqlite3.Connection) -> list[Finding]:
    """What `PRAGMA integrity_check` finds: pages, freelist, order of rows, and every index against its table."""
    problems: list[str] = []
    with explained("integrity check") as findings:
        rows = connection.execute(f"PRAGMA integrity_check({_PROBLEMS_SHOWN})").fetchall()
        problems = [line for (text,) in rows if text != "ok" for line in text.splitlines() if "***" not in line]
    findings += [Finding("sqlite.malformed", DATABASE, problem) for problem in problems[:_PROBLEMS_SHOWN]]
    return findings


@dataclass(frozen=True, slots=True)
class _Schema:
    """What `sqlite_schema` lists: plain tables with their columns, and everything else by kind and name."""

    plain: dict[str, set[str]]
    others: list[tuple[str, str]]
    fulltext: bool


def inspect_schema(connection: sqlite3.Connection) -> list[Finding]:
    """Whether the tables that Chroma needs are there as plain tables, and nothing is there that would run.

    Views and virtual tables are never read here, whatever their name: what they return is up to the delta.
    """
    schema = _Schema({}, [], fulltext=False)
    applied: dict[str, int] = {}
    with explained("reading the schema") as findings:
        schema = _read_schema(connection)
        if _REQUIRED["migrations"] <= schema.plain.get("migrations", set()):
            applied = dict(connection.execute("SELECT dir, max(version) FROM migrations GROUP BY dir").fetchall())
    if findings:
        return findings
    findings += _newer(applied)
    if findings:
        return findings
    if not schema.plain.keys() & _REQUIRED.keys():
        return [Finding("sqlite.table_missing", DATABASE, f"{len(schema.plain)} tables, none of them Chroma's")]
    findings += _missing(schema, applied)
    for kind, name in schema.others:
        if kind == "trigger":
            detail = f"trigger {printable(name)} would run when Chroma opens the delta"
            findings.append(Finding("sqlite.unexpected_trigger", DATABASE, detail))
        elif kind == "view" and name not in _REQUIRED:
            findings.append(Finding("sqlite.unexpected_view", DATABASE, f"view {printable(name)}"))
    return findings


def _newer(applied: dict[str, int]) -> list[Finding]:
    """Whether the schema is newer than these rules, which then cannot hold anything against it."""
    return [
        Finding(
            "sqlite.schema_newer",
            DATABASE,
            printable(f"migration {folder} {version!r}, known up to {NEWEST_MIGRATIONS.get(folder, 0)}", 200)
            + ": upgrade Deltaguard",
        )
        for folder, version in applied.items()
        if not isinstance(version, int) or version > NEWEST_MIGRATIONS.get(folder, 0)
    ]


def _read_schema(connection: sqlite3.Connection) -> _Schema:
    plain: dict[str, set[str]] = {}
    others: list[tuple[str, str]] = []
    fulltext = False
    rows = connection.execute("SELECT type, name, rootpage, coalesce(sql, '') FROM sqlite_schema").fetchall()
    for kind, name, root, sql in rows:
        if not (isinstance(name, str) and isinstance(sql, str)):
            continue  # SQLite writes text; a table described otherwise is not there for Chroma
        if kind == "table" and root and _PLAIN_TABLE_SQL.match(sql):
            quoted = name.replace('"', '""')
            plain[name] = {row[1] for row in connection.execute(f'PRAGMA table_info("{quoted}")')}
        elif (kind, name) == ("table", FULLTEXT):
            fulltext = _FULLTEXT_SQL.fullmatch(sql.strip()) is not None
        elif kind != "index":
            others.append((kind, name))
    return _Schema(plain, others, fulltext)


def _missing(schema: _Schema, applied: dict[str, int]) -> list[Finding]:
    later = [t for t, (folder, version) in _REQUIRED_SINCE.items() if (applied.get(folder) or 0) >= version]
    replaced = {name for kind, name in schema.others if kind in ("view", "table")}
    findings = []
    for table in (*_REQUIRED, *later):
        if table in replaced:
            detail = f"{table} is a view or a virtual table, which is not read"
            findings.append(Finding("sqlite.table_replaced", DATABASE, detail))
        elif table not in schema.plain:
            findings.append(Finding("sqlite.table_missing", DATABASE, f"table {table} is not there"))
        elif lacking := _REQUIRED.get(table, frozenset()) - schema.plain[table]:
            detail = f"table {table} has no column {', '.join(sorted(lacking))}"
            findings.append(Finding("sqlite.column_missing", DATABASE, detail))
    if not schema.fulltext:
        findings.append(Finding("sqlite.table_missing", DATABASE, f"table {FULLTEXT} is not there as Chroma makes it"))
    return findings


def inspect_fulltext(connection: sqlite3.Connection) -> list[Finding]:
    """Whether the full-text table can answer Chroma's queries, and whether it holds every document.

    Chroma 1.5 reads its texts and never its terms, so the terms are not looked at: damage there loses nothing.
    """
    missing = 0
    try:
        with explained("reading the full-text table") as findings:
            # Its schema is exactly Chroma's (see inspect_schema). Too short a pattern for the terms: texts are read.
            connection.execute(_FULLTEXT_QUERY).fetchone()
            ((missing,),) = connection.execute(_DOCUMENTS_MISSING)
    except CouldNotCheck as fault:
        # The statements are constant, so a plain SQL error says that the tables are not fit for them.
        if getattr(fault.__cause__, "sqlite_errorcode", 0) & 0xFF != sqlite3.SQLITE_ERROR:
            raise
        findings.append(Finding("sqlite.fulltext_unusable", DATABASE, fault.detail))
    if findings:
        return [Finding("sqlite.fulltext_unusable", DATABASE, finding.detail) for finding in findings]
    if missing:
        detail = f"{missing} documents are missing from the full-text table or differ there"
        return [Finding("sqlite.fulltext_unusable", DATABASE, detail)]
    return []


def _read_only_uri(path: Path) -> str:
    return f"file:{quote(os.fsencode(path.absolute()))}?mode=ro&immutable=1"
