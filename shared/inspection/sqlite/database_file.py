"""The database file as SQLite sees it: header and page arithmetic, integrity, and whether its texts can be searched.

Source: https://www.sqlite.org/fileformat2.html.
"""

from __future__ import annotations

import os
import re
import sqlite3
import struct
import time
from collections.abc import Iterable, Iterator
from contextlib import closing, contextmanager, suppress
from functools import partial
from pathlib import Path
from urllib.parse import quote

from shared.inspection.limits import NO_LIMITS, Limits
from shared.model.delta import DATABASE, printable
from shared.model.errors import CouldNotCheck, faults_explained
from shared.model.verdict import Finding

HEADER_BYTES = 100
_MAGIC = b"SQLite format 3\x00"
_PROBLEMS_SHOWN = 5
_LONGEST_SHOWN = 300
_LONGEST_NUMBER = 30  # of a row, which a damaged schema lets be any text
_NOT_DECODED = "Could not decode to UTF-8"  # Python's own words, with no code of SQLite's
_UNSAFE = "unsafe use of"
# Bytes of one row, text or blob that are read at most: these, and this share of the file. The longest of Chroma's is a
# document, which is in the queue, in its row, in an index of these, and in the full-text table with thrice as much of
# terms: it has a sixth to a fifth of the file (measured). A text takes up to six times its length while it is decoded.
_LONGEST_VALUE, _LONGEST_SHARE = 20 * 1024 * 1024, 6
_INT_MAX = 2**31 - 1
_CACHED_KIB = 512  # of pages: nearly all are looked at once, and memory that is used again is faster than new memory
_PROGRESS_STEPS = 20_000  # virtual machine steps between two looks at the clock, some milliseconds

_CORRUPT = {sqlite3.SQLITE_CORRUPT: "sqlite.malformed", sqlite3.SQLITE_NOTADB: "sqlite.not_a_database"}
ENVIRONMENT = {
    sqlite3.SQLITE_CANTOPEN: "check.cannot_open",
    sqlite3.SQLITE_NOMEM: "check.memory",
    sqlite3.SQLITE_FULL: "check.disk_full",
    sqlite3.SQLITE_INTERRUPT: "check.timeout",
    sqlite3.SQLITE_TOOBIG: "check.size_cap",
}

_FULLTEXT_QUERY = "SELECT 1 FROM embedding_fulltext_search WHERE string_value LIKE '%a%' LIMIT 1"
# A text without an embedding is left behind (0.4.24). The last column counts what the migration of 0.4.6 puts there: it
# takes the number of a metadata row for that of an embedding.
_DOCUMENTS_MISSING = """
    SELECT count(*), sum(f.id IS NULL), min(m.id), sum(
        f.id IS NOT NULL AND f.c0 IS (SELECT o.string_value FROM embedding_metadata AS o WHERE o.rowid = m.id)
    ) FROM embedding_metadata AS m
    LEFT JOIN embedding_fulltext_search_content AS f ON f.id = m.id
    WHERE m.key = 'chroma:document' AND f.c0 IS NOT m.string_value
    AND EXISTS (SELECT 1 FROM embeddings AS e WHERE e.id = m.id)
"""
# The same before an upgrade: which documents it will not put under their own number.
_DOCUMENTS_SHIFTED = """
    SELECT count(*), min(m.id) FROM embedding_metadata AS m WHERE m.key = 'chroma:document'
    AND (SELECT o.string_value FROM embedding_metadata AS o WHERE o.rowid = m.id) IS NOT m.string_value
    AND EXISTS (SELECT 1 FROM embeddings AS e WHERE e.id = m.id)
"""
_TABLES_OF_ROWS = "SELECT name FROM sqlite_schema WHERE type = 'table' AND rootpage > 0"
_CHECKS_VIRTUAL_SINCE = (3, 44)
_SAID_BY_LATER = re.compile(
    r"fts\d: |(malformed|unable to validate the) inverted index for FTS|In R-?Tree |(NUMERIC|TEXT|non-\w+) value in ",
    re.IGNORECASE,
)
_PAGE = re.compile(r"\bpage (\d+)", re.IGNORECASE)


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
        ("text encoding", 56, encoding, (0, 1, 2, 3)),
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


class NotUtf8(Exception):
    """A text that was read is not UTF-8. What was read so far counts for nothing: open it with `lenient` instead."""


@contextmanager
def opened(
    path: Path, seconds: float, *, lenient: bool = True, limits: Limits = NO_LIMITS
) -> Iterator[sqlite3.Connection]:
    """The database opened so that it can neither be written nor run anything of its schema.

    `immutable` keeps SQLite from looking for locks and journals, so a folder is left exactly as it was.

    Args:
        path: The database file.
        seconds: Time after which any statement is interrupted.
        lenient: Whether bytes that are not UTF-8 come in as lone surrogates. Otherwise `explained` raises `NotUtf8`,
            which is a third faster for all other text.
        limits: What the look at it may cost: a statement is interrupted when its processor time is over, too.

    Raises:
        CouldNotCheck: SQLite could not open the file for a reason outside it.
    """
    try:
        connection = sqlite3.connect(_read_only_uri(path), uri=True, isolation_level=None, check_same_thread=False)
    except sqlite3.Error as error:
        raise CouldNotCheck("check.cannot_open", f"opening {path.name}: {error}") from error
    deadline = time.monotonic() + seconds
    with closing(connection):
        connection.set_progress_handler(lambda: time.monotonic() > deadline or limits.over, _PROGRESS_STEPS)
        if lenient:
            connection.text_factory = partial(str, encoding="utf-8", errors="surrogateescape")
        with faults_explained(f"opening {path.name}"):
            longest = _LONGEST_VALUE + path.stat().st_size // _LONGEST_SHARE
        connection.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, min(longest, _INT_MAX))
        connection.execute("PRAGMA trusted_schema=OFF")
        # A mapped file that another process truncates would end this one, and to map it is no faster than to read it.
        connection.execute("PRAGMA mmap_size=0")
        connection.execute("PRAGMA cell_size_check=ON")
        with suppress(sqlite3.Error, UnicodeDecodeError):  # it reads the schema; the checks will tell what is wrong
            connection.execute(f"PRAGMA cache_size=-{_CACHED_KIB}")
        yield connection


@contextmanager
def explained(doing: str) -> Iterator[list[Finding]]:
    """Turns an SQLite error inside the block into what it proves: a finding, or that the check was impossible.

    Yields:
        A list that holds the finding afterwards, if the error was one about the bytes.

    Raises:
        NotUtf8: A text could not be decoded, and the database was not opened leniently.
        CouldNotCheck: The error says nothing about the bytes (code 14, out of memory, time over, ...).
    """
    findings: list[Finding] = []
    try:
        yield findings
    except sqlite3.Error as error:
        if _NOT_DECODED in str(error) and not hasattr(error, "sqlite_errorcode"):
            raise NotUtf8 from error
        primary = getattr(error, "sqlite_errorcode", sqlite3.SQLITE_ERROR) & 0xFF
        detail = printable(f"{doing}: {error}", _LONGEST_SHOWN)  # SQLite quotes names of the delta
        if _UNSAFE in str(error):  # which `trusted_schema=OFF` forbids, and Chroma does not
            raise CouldNotCheck("check.foreign_expression", detail) from error
        if primary in _CORRUPT:
            findings.append(Finding(_CORRUPT[primary], DATABASE, detail))
        elif primary in ENVIRONMENT:
            raise CouldNotCheck(ENVIRONMENT[primary], detail) from error
        else:
            raise CouldNotCheck("check.local_io", f"{detail} (SQLite code {primary})") from error
    except UnicodeDecodeError:
        # Python's sqlite3 cannot tell an error in which SQLite quotes a name of the delta that is not UTF-8.
        findings.append(Finding("sqlite.malformed", DATABASE, f"{doing}: an error about a name that is not UTF-8"))


def inspect_integrity(connection: sqlite3.Connection) -> list[Finding]:
    """What `PRAGMA integrity_check` finds: pages, freelist, order of rows, and every index against its table.

    The verdict is the same with every SQLite from 3.34 on. Later ones also look into virtual tables (3.44; their terms
    are read by nobody, and Chroma itself writes some that do not match) and at types of values (which are looked at
    where Chroma reads them). What only these find is left out.
    """
    problems: list[str] = []
    aside = False
    try:
        with explained("integrity check") as findings:
            problems, aside = _problems(connection, f"{_PROBLEMS_SHOWN}")
    except CouldNotCheck as fault:
        # No table of rows answers with a plain SQL error; what a virtual one needs may be missing.
        if getattr(fault.__cause__, "sqlite_errorcode", 0) & 0xFF != sqlite3.SQLITE_ERROR:
            raise
        aside, findings = True, []
    if findings:
        # Python's sqlite3 drops a row when the next step fails, and the first row names the page. Enough is proven.
        with suppress(CouldNotCheck), explained("integrity check"):
            problems, _ = _problems(connection, "1")
        aside = not problems and sqlite3.sqlite_version_info >= _CHECKS_VIRTUAL_SINCE
    if aside:
        problems += _problems_of_tables(connection)
        findings = []
    if not problems:
        return findings
    return [
        Finding("sqlite.malformed", DATABASE, printable(problem, _LONGEST_SHOWN))
        for problem in problems[:_PROBLEMS_SHOWN]
    ]


def _problems(connection: sqlite3.Connection, argument: str) -> tuple[list[str], bool]:
    """What the integrity check says, with the offset of each page that it names, and whether something was left out."""
    problems: list[str] = []
    aside = False
    for (text,) in connection.execute(f"PRAGMA integrity_check({argument})"):
        if _SAID_BY_LATER.match(text):
            aside = True
        else:
            problems += [line for line in text.splitlines() if line != "ok" and "***" not in line]
    if not problems:
        return [], aside
    ((page_size,),) = connection.execute("PRAGMA page_size")
    pages = [_PAGE.search(problem) for problem in problems]
    return [
        problem if page is None else f"{problem} (at offset {(int(page[1]) - 1) * page_size})"
        for problem, page in zip(problems, pages, strict=True)
    ], aside


def _problems_of_tables(connection: sqlite3.Connection) -> list[str]:
    """The same of each table of rows alone, which leaves virtual ones aside."""
    names: list[str] = []
    with explained("integrity check") as findings:
        names = [name for (name,) in connection.execute(_TABLES_OF_ROWS)]
    problems = [finding.detail for finding in findings]
    for name in names:
        quoted = name.replace("'", "''")
        with explained(f"integrity check of {name}") as findings:
            problems += _problems(connection, f"'{quoted}'")[0]
        problems += [finding.detail for finding in findings]
    return list(dict.fromkeys(problems))


def what_is_readable(connection: sqlite3.Connection, tables: Iterable[str]) -> str:
    """How many rows of these plain tables can still be read, in words."""
    return ", ".join(_readable_rows(connection, table) for table in tables)


def _readable_rows(connection: sqlite3.Connection, table: str) -> str:
    rows = 0
    try:
        with explained(f"reading {table}") as broken:
            for _ in connection.execute(f"SELECT * FROM {table}"):  # noqa: S608 - the caller's own names
                rows += 1
    except CouldNotCheck as fault:
        return f"{table}: {fault.detail}"
    return f"{table}: {rows} rows, then damage" if broken else f"{table}: all {rows} rows"


def inspect_fulltext(connection: sqlite3.Connection, *, migrated: bool = False) -> list[Finding]:
    """Whether the full-text table can answer Chroma's queries, and whether it holds every document.

    Chroma 1.5 reads its texts and never its terms, so the terms are not looked at: damage there loses nothing.

    Args:
        connection: A database with a full-text table that may be read.
        migrated: Whether the table was made by a migration of rows that were there before.
    """
    wrong, missing, first, shifted = 0, 0, None, 0
    try:
        with explained("reading the full-text table") as findings:
            # Its schema is one that `schema` knows. Too short a pattern for the terms: texts are read.
            connection.execute(_FULLTEXT_QUERY).fetchone()
            ((wrong, missing, first, shifted),) = connection.execute(_DOCUMENTS_MISSING)
    except CouldNotCheck as fault:
        # The statements are constant, so a plain SQL error says that the tables are not fit for them, unless it is
        # about a tokenizer or an option of it that this SQLite is too old to know.
        if (
            "tokenizer" in fault.detail
            or getattr(fault.__cause__, "sqlite_errorcode", 0) & 0xFF != sqlite3.SQLITE_ERROR
        ):
            raise
        findings.append(Finding("sqlite.fulltext_unusable", DATABASE, fault.detail))
    if findings:
        return [Finding("sqlite.fulltext_unusable", DATABASE, finding.detail) for finding in findings]
    if not wrong:
        return []
    detail = (
        f"of the documents in embedding_metadata {missing} are missing from the full-text table and "
        f"{wrong - missing} differ there, the first of row {printable(str(first), _LONGEST_NUMBER)}"
    )
    outdated = migrated or (shifted == wrong - missing > 0)
    return [Finding("sqlite.fulltext_outdated" if outdated else "sqlite.fulltext_unusable", DATABASE, detail)]


def foresee_fulltext(connection: sqlite3.Connection) -> list[Finding]:
    """Which documents of 0.4.3 to 0.4.5 a later Chroma will not find: it makes the full-text table when it opens them.

    Args:
        connection: A database that has not come to the full-text table of today.
    """
    shifted, first = 0, None
    with explained("reading the documents") as findings:
        ((shifted, first),) = connection.execute(_DOCUMENTS_SHIFTED)
    if not shifted:
        return findings
    detail = (
        f"an upgrade will not make {shifted} of the documents in embedding_metadata searchable, the first of row "
        f"{printable(str(first), _LONGEST_NUMBER)}"
    )
    return [Finding("sqlite.fulltext_outdated", DATABASE, detail)]


def _read_only_uri(path: Path) -> str:
    return f"file:{quote(os.fsencode(path.absolute()))}?mode=ro&immutable=1"
