"""The schema of a database: what Chroma needs of it, each table since its migration, and nothing that would run.

The whole schema is read before any table, and a table before it is known to be a plain one is never read: SQLite
evaluates the expressions of a schema (indexes, generated columns, checks) when it looks through a table, views when
they are read. Source: measured, chromadb 0.4.3 to 1.5.9.
"""

from __future__ import annotations

import hashlib
import re
import sqlite3
from collections.abc import Iterator
from dataclasses import dataclass, field

from shared.inspection.sqlite.database_file import explained
from shared.inspection.values import is_text
from shared.model.delta import DATABASE, printable
from shared.model.verdict import Finding

NEWEST_MIGRATIONS = {"sysdb": 10, "metadb": 6, "embeddings_queue": 2}
"""The newest schema migrations that these rules were measured with (chromadb 1.5.9)."""

FULLTEXT = "embedding_fulltext_search"
_FULLTEXT_SINCE = ("metadb", 3)
_FIRST = 1
# Table, migration since which it has these columns, and the columns that Chroma 1.5 reads. What a migration brings that
# was not applied is not missed, since Chroma applies the others when it opens a delta. It recreates tables not named.
_REQUIRED: tuple[tuple[str, tuple[str, int], str], ...] = (
    ("migrations", ("sysdb", _FIRST), "dir version filename sql hash"),
    ("tenants", ("sysdb", 4), "id"),
    ("databases", ("sysdb", 4), "id name tenant_id"),
    ("collections", ("sysdb", _FIRST), "id name"),
    ("collections", ("sysdb", 3), "dimension"),
    ("collections", ("sysdb", 4), "database_id"),
    ("collections", ("sysdb", 7), "config_json_str"),
    ("collections", ("sysdb", 10), "schema_str"),
    ("segments", ("sysdb", 2), "id type scope collection"),
    ("collection_metadata", ("sysdb", _FIRST), "collection_id key str_value int_value float_value"),
    ("collection_metadata", ("sysdb", 6), "bool_value"),
    ("segment_metadata", ("sysdb", 2), "segment_id key str_value int_value float_value"),
    ("segment_metadata", ("sysdb", 6), "bool_value"),
    ("embeddings", ("metadb", _FIRST), "id segment_id embedding_id seq_id created_at"),
    ("embedding_metadata", ("metadb", _FIRST), "id key string_value int_value float_value"),
    ("embedding_metadata", ("metadb", 2), "bool_value"),
    ("max_seq_id", ("metadb", _FIRST), "segment_id seq_id"),
    ("embedding_metadata_array", ("metadb", 6), "id key string_value int_value float_value bool_value"),
    ("embeddings_queue", ("embeddings_queue", _FIRST), "seq_id created_at operation topic id vector encoding metadata"),
    ("embeddings_queue_config", ("embeddings_queue", 2), "id config_json_str"),
)
_SHADOWS = tuple(f"{FULLTEXT}_{part}" for part in ("data", "idx", "content", "docsize", "config"))
_CHROMAS = {table for table, _, _ in _REQUIRED} | set(_SHADOWS)
_WRITTEN = _CHROMAS | {"acquire_write", "maintenance_log"}
_IDENTIFIER = r'(?:"(?:[^"]|"")*"|`[^`]*`|\[[^]]*\]|\w+)'
_PLAIN_TABLE = re.compile(r"create\s+table\b", re.IGNORECASE)
_CHECK = re.compile(r"\bcheck\s*\(", re.IGNORECASE)
_INDEX = re.compile(
    rf"create\s+(?:unique\s+)?index\s+(?:if\s+not\s+exists\s+)?{_IDENTIFIER}\s+on\s+{_IDENTIFIER}\s*(?=\()",
    re.IGNORECASE,
)
_TOKEN = re.compile(r"""'(?:[^']|'')*'|"(?:[^"]|"")*"|`[^`]*`|\[[^]]*\]|\w+|[(),.+*/<>=!&|~-]|\s+""")
# What an index may compute: what takes time and memory by the length of the row alone. No pattern is matched.
_CHEAP = {
    "abs", "coalesce", "ifnull", "iif", "instr", "length", "lower", "ltrim",
    "max", "min", "nullif", "round", "rtrim", "substr", "substring", "trim", "typeof", "unicode", "upper",
}  # fmt: skip
_BEFORE_BRACKET = {"and", "or", "not", "in", "where", "is", "between", "when", "then", "else", "cast", "on"}
_COLLATIONS = {"binary", "nocase", "rtrim"}
_COSTLY = {"like", "glob", "regexp", "match", "select", "raise", "exists"}
_FULLTEXT_SQL = re.compile(
    rf"create\s+virtual\s+table\s+(?:if\s+not\s+exists\s+)?\W?{FULLTEXT}\W?\s+using\s+fts5\s*\((.*)\)",
    re.IGNORECASE | re.DOTALL,
)
_FULLTEXT_PART = re.compile(
    r"""\s*(?:(?P<column>\W?string_value\W?)
    |tokenize\s*=\s*(?P<quote>['"]?)\s*(?P<tokenizer>\w+)(?:[\s\w'-]*?)(?P=quote)
    |(?:prefix|detail|columnsize)\s*=\s*['"]?[\w\s]*['"]?)\s*""",
    re.IGNORECASE | re.VERBOSE,
)
_NOT_PARSED = re.compile(r"malformed database schema \((.*)\) - (?:near .*: syntax error|unknown table option: .*)")
_TOKENIZERS = {"unicode61", "ascii", "porter", "trigram"}  # those that SQLite brings
_MIGRATIONS = "SELECT dir, version, filename, sql, hash FROM migrations ORDER BY rowid"
_HARMLESS_AGAIN = {("metadb", 6)}
"""Migrations that Chroma may apply to what they have made: `CREATE ... IF NOT EXISTS` and nothing else."""
_COMPUTED_COLUMN = (2, 3)  # table_xinfo's word for generated columns, virtual and stored


@dataclass(slots=True)
class Schema:
    """What `sqlite_schema` lists, and which migrations were applied.

    Args:
        tables: Columns of each plain table, by its name.
        replaced: Tables whose name stands for a view or virtual table; they are never read.
        triggers: Names of those that something which Chroma does may fire.
        foreign_triggers: Names of the others.
        views: Names.
        fulltext: Whether the full-text table is declared so that Chroma can search it, by whatever tokenizer.
        fulltext_unknown: Whether there is a table of its name that is declared in another way.
        applied: Highest version applied, by directory of migrations.
        fulltext_migrated: Whether the full-text table was made by an upgrade, of rows that were there before (0.4.3 to
            0.4.5); the order in which migrations were recorded tells.
        computing: Tables with a column, check or index that holds an expression; a look through them would run it.
    """

    tables: dict[str, set[str]] = field(default_factory=dict)
    replaced: set[str] = field(default_factory=set)
    triggers: list[str] = field(default_factory=list)
    foreign_triggers: list[str] = field(default_factory=list)
    views: list[str] = field(default_factory=list)
    fulltext: bool = False
    fulltext_unknown: bool = False
    applied: dict[str, int] = field(default_factory=dict)
    fulltext_migrated: bool = False
    computing: set[str] = field(default_factory=set)

    def has(self, table: str, column: str) -> bool:
        """Whether a plain table has a column."""
        return column in self.tables.get(table, ())

    def reached(self, migration: tuple[str, int]) -> bool:
        """Whether a migration (directory, version) was applied."""
        return self.applied.get(migration[0], 0) >= migration[1]

    @property
    def searches_fulltext(self) -> bool:
        """Whether the delta has come to the full-text table that Chroma searches today (not in early 0.4)."""
        return self.reached(_FULLTEXT_SINCE)


def read_schema(connection: sqlite3.Connection) -> tuple[Schema, list[Finding]]:
    """The schema, and what in it would be evaluated by a look through its tables. Nothing of it is.

    Raises:
        CouldNotCheck: It could not be read for a reason outside the bytes.
    """
    schema = Schema()
    computing: list[tuple[str, str]] = []
    with explained("reading the schema") as findings:
        rows = connection.execute("SELECT type, name, tbl_name, rootpage, coalesce(sql, '') FROM sqlite_schema")
        for kind, name, table, root, sql in rows.fetchall():
            if not all(isinstance(text, str) for text in (name, table, sql)):
                continue  # SQLite writes text; what is described otherwise is not there for Chroma
            if kind == "table" and root and _PLAIN_TABLE.match(sql):
                quoted = name.replace('"', '""')
                columns = connection.execute(f'PRAGMA table_xinfo("{quoted}")').fetchall()
                schema.tables[name] = {column[1] for column in columns}
                if _CHECK.search(sql) or any(column[6] in _COMPUTED_COLUMN for column in columns):
                    computing.append((name, f"table {printable(name)} checks or computes columns"))
            elif kind == "index":
                if sql and not _is_cheap_index(sql):
                    computing.append((table, f"index {printable(name)} holds an expression"))
            else:
                _note_other(schema, kind, name, table, sql)
    findings[:] = [_of_newer_sqlite(finding) for finding in findings]
    for table, detail in computing:
        schema.computing.add(table)
        code = "sqlite.unexpected_expression" if table in _CHROMAS else "check.foreign_expression"
        findings.append(Finding(code, DATABASE, f"{detail}, which no Chroma writes and no check may run"))
    return schema, findings


def _of_newer_sqlite(finding: Finding) -> Finding:
    """What a declaration that SQLite cannot parse means: one that is not of Chroma may be too new for it."""
    name = _NOT_PARSED.search(finding.detail)
    if name is None or any(name[1].lower().removeprefix("sqlite_autoindex_").startswith(ours) for ours in _CHROMAS):
        return finding
    return Finding("sqlite.schema_newer", finding.file, f"{finding.detail}, which a later SQLite than this may know")


def inspect_schema(connection: sqlite3.Connection, schema: Schema) -> list[Finding]:
    """Whether the tables that Chroma needs are there as plain tables, and nothing is there that would run.

    Fills in `schema.applied` from the table of migrations.

    Raises:
        CouldNotCheck: That table could not be read for a reason outside the bytes.
    """
    if not schema.tables.keys() & (_CHROMAS - set(_SHADOWS)):
        return [Finding("sqlite.table_missing", DATABASE, f"{len(schema.tables)} tables, none of them Chroma's")]
    findings: list[Finding] = []
    if all(schema.has("migrations", column) for column in ("dir", "version", "filename", "sql", "hash")):
        with explained("reading the migrations") as unread:
            findings = _inspect_migrations(connection, schema)
        findings += unread
        if any(finding.code == "sqlite.schema_newer" for finding in findings):
            return findings  # what is missing, a newer Chroma may have given up
    findings += _missing(schema)
    for name in schema.triggers:
        detail = f"trigger {printable(name)} would run when Chroma opens the delta"
        findings.append(Finding("sqlite.unexpected_trigger", DATABASE, detail))
    for name in schema.foreign_triggers:
        detail = f"trigger {printable(name)} of a table that Chroma never writes"
        findings.append(Finding("sqlite.foreign_trigger", DATABASE, detail))
    findings += [Finding("sqlite.unexpected_view", DATABASE, f"view {printable(name)}") for name in schema.views]
    return findings


def _note_other(schema: Schema, kind: str, name: str, table: str, sql: str) -> None:
    if kind == "trigger":
        (schema.triggers if table.lower() in _WRITTEN else schema.foreign_triggers).append(name)
    elif (kind, name) == ("table", FULLTEXT):
        schema.fulltext = _is_fulltext(sql)
        schema.fulltext_unknown = not schema.fulltext and "string_value" in sql.lower()  # else no query can be answered
    elif name in _CHROMAS:
        schema.replaced.add(name)
    elif kind == "view":
        schema.views.append(name)


def _is_cheap_index(sql: str) -> bool:
    """Whether a look at an index evaluates at most what is cheap: columns, comparisons, and a few functions."""
    head = _INDEX.match(sql.strip())
    if head is None:
        return False
    tokens: list[str] = []
    at, body = 0, sql.strip()[head.end() :]
    while at < len(body):
        part = _TOKEN.match(body, at)
        if part is None:
            return False
        at = part.end()
        if not part[0].isspace():
            tokens.append(part[0].lower())
    for before, word in zip(["", *tokens], tokens, strict=False):
        if word in _COSTLY or (before == "collate" and word.strip("\"'`[]") not in _COLLATIONS):
            return False
        is_call = word == "(" and (before[:1].isalnum() or before[:1] in ("_", '"', "`", "["))
        if is_call and before not in _CHEAP and before not in _BEFORE_BRACKET:
            return False
    return True


def _is_fulltext(sql: str) -> bool:
    """Whether a table is one of full texts with the one column that Chroma searches, and keeps its texts itself."""
    declared = _FULLTEXT_SQL.fullmatch(sql.strip())
    parts = [_FULLTEXT_PART.fullmatch(part) for part in declared[1].split(",")] if declared else [None]
    columns = [part for part in parts if part and part["column"]]
    tokenizers = {part["tokenizer"].lower() for part in parts if part and part["tokenizer"]}
    return None not in parts and len(columns) == 1 and tokenizers <= _TOKENIZERS


def _inspect_migrations(connection: sqlite3.Connection, schema: Schema) -> list[Finding]:
    """Chroma compares these rows with its own and opens nothing when they differ. Each carries its own checksum."""
    versions: dict[object, list[object]] = {}
    findings = []
    order = []
    for folder, version, *texts in connection.execute(_MIGRATIONS):
        order.append((folder, version))
        versions.setdefault(folder, []).append(version)
        if not all(is_text(text) for text in texts) or not _is_checksum(*texts[1:]):
            detail = f"the row of migration {folder} {version!r} does not agree with its own checksum"
            findings.append(Finding("sqlite.migration_mismatch", DATABASE, printable(detail, 200)))
    until = order.index(_FULLTEXT_SINCE) if _FULLTEXT_SINCE in order else 0
    schema.fulltext_migrated = until > 0 and order[until - 1] != (_FULLTEXT_SINCE[0], _FULLTEXT_SINCE[1] - 1)
    schema.fulltext_migrated |= until > 1 and order[until - 2] != (_FULLTEXT_SINCE[0], _FULLTEXT_SINCE[1] - 2)
    newer = [
        f"migration {folder} {version!r}, known up to {NEWEST_MIGRATIONS.get(str(folder), 0)}"
        for folder, seen in versions.items()
        for version in seen
        if not isinstance(version, int) or version > NEWEST_MIGRATIONS.get(str(folder), 0)
    ]
    if newer:
        return [
            Finding("sqlite.schema_newer", DATABASE, f"{printable(detail, 200)}: upgrade Deltaguard")
            for detail in newer[:3]
        ]
    for folder in NEWEST_MIGRATIONS:
        applied = sorted(version for version in versions.get(folder, []) if isinstance(version, int))
        schema.applied[folder] = len(applied)
        if not applied or applied != list(range(1, len(applied) + 1)):
            detail = f"migrations of {folder} are {applied}, expected all from 1 on: Chroma refuses to open it"
            findings.append(Finding("sqlite.migration_mismatch", DATABASE, detail))
    if not findings:
        findings += [
            Finding("sqlite.migration_mismatch", DATABASE, f"{what}, but its migration is not recorded")
            for what in _ahead(schema)
        ]
    return findings


def _is_checksum(sql: str, checksum: str) -> bool:
    """Whether the checksum of a migration is that of its text: MD5, or SHA-256 where Chroma was set to it."""
    data = sql.encode("utf-8", "surrogateescape")
    if len(checksum) == 2 * hashlib.sha256().digest_size:
        return checksum == hashlib.sha256(data).hexdigest()
    return checksum == hashlib.md5(data, usedforsecurity=False).hexdigest()


def _ahead(schema: Schema) -> Iterator[str]:
    """What is there before its migration: Chroma would apply that again, and fail."""
    for table, since, columns in _REQUIRED:
        if not schema.reached(since) and since not in _HARMLESS_AGAIN:
            for column in columns.split():
                if schema.has(table, column):
                    yield f"{table} has the column {column} of {since[0]} {since[1]}"


def _missing(schema: Schema) -> list[Finding]:
    findings = []
    absent = set()
    for table in (*dict.fromkeys(table for table, _, _ in _REQUIRED), *_SHADOWS):
        if table in schema.replaced:
            detail = f"{table} is a view or a virtual table, which is not read"
            findings.append(Finding("sqlite.table_replaced", DATABASE, detail))
            absent.add(table)
    for table, since, columns in _REQUIRED:
        if table in absent or not (schema.reached(since) or since[1] == _FIRST):
            continue
        if table not in schema.tables:
            findings.append(Finding("sqlite.table_missing", DATABASE, f"table {table} is not there"))
            absent.add(table)
        elif lacking := set(columns.split()) - schema.tables[table]:
            detail = f"table {table} has no column {', '.join(sorted(lacking))}"
            findings.append(Finding("sqlite.column_missing", DATABASE, detail))
    if schema.searches_fulltext and not schema.fulltext:
        if schema.fulltext_unknown or schema.has(FULLTEXT, "string_value"):
            detail = f"table {FULLTEXT} is declared in a way that is not known here, so it was not read"
            findings.append(Finding("sqlite.fulltext_unknown", DATABASE, detail))
        else:
            findings.append(
                Finding("sqlite.table_missing", DATABASE, f"table {FULLTEXT} is not there as Chroma makes it")
            )
    return findings
