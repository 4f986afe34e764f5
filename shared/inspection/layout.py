"""Depth `listing`: what the names and sizes of a delta alone can prove."""

from __future__ import annotations

from shared.model.delta import DATABASE, JOURNALS, Listing, printable, segment_of
from shared.model.verdict import Finding

_LOGS = tuple(name for name in JOURNALS if not name.endswith("-shm"))  # shared memory holds nothing
_JOURNAL_MAGIC = bytes.fromhex("d9d505f920a163d7")
_LOG_MAGIC = (bytes.fromhex("377f0682"), bytes.fromhex("377f0683"))
_LOG_HEADER = 32
JOURNAL_HEAD = 56
"""Bytes of a journal or log that tell whether SQLite will use it: the header of a log, and that of its first frame."""
PICKLE = "index_metadata.pickle"
INDEX_FILES = ("header.bin", "data_level0.bin", "length.bin", "link_lists.bin")
"""The files of a vector index besides its id map. All are there once an index was flushed."""

_SMALLEST_DATABASE = 512  # one page of the smallest size, https://www.sqlite.org/fileformat2.html
_FOREIGN_SHOWN = 5


def inspect_names(listing: Listing) -> list[Finding]:
    """What is wrong with the database's files and the foreign ones, before any byte is read."""
    findings = [*_database(listing), *_journals(listing)]
    foreign = [file.name for file in listing.others]
    for name in foreign[:_FOREIGN_SHOWN]:
        hostile = name.startswith("/") or ".." in name.split("/") or "\\" in name or not name.isprintable()
        code = "layout.file_name_hostile" if hostile else "layout.foreign_file"
        findings.append(Finding(code, printable(name), "not a file of Chroma's"))
    if len(foreign) > _FOREIGN_SHOWN:
        detail = f"and {len(foreign) - _FOREIGN_SHOWN} more files that are not Chroma's"
        findings.append(Finding("layout.foreign_file", "", detail))
    return findings


def segments_in(listing: Listing) -> dict[str, dict[str, int]]:
    """Sizes in bytes of the index files, by segment id and base name."""
    segments: dict[str, dict[str, int]] = {}
    for file in listing.files:
        segment = segment_of(file.name)
        if segment is not None:
            segments.setdefault(segment, {})[file.name.rpartition("/")[2]] = file.size
    return segments


def _database(listing: Listing) -> list[Finding]:
    database = listing.by_name.get(DATABASE)
    if database is None:
        count = len(listing.files) + len(listing.others)
        others = f"among {count} files" if count else "and nothing else either"
        hint = f"; {len(listing.below)} deltas lie below: scan finds them" if listing.below else ""
        return [Finding("layout.database_missing", DATABASE, f"not there, {others}{hint}")]
    if database.size <= 1:
        return [Finding("sqlite.empty", DATABASE, f"{database.size} bytes; Chroma would open it as an empty delta")]
    if database.size < _SMALLEST_DATABASE:
        return [Finding("sqlite.truncated", DATABASE, f"{database.size} bytes, a database has at least 512")]
    return []


def journals_in(listing: Listing) -> list[str]:
    """Names of the journals and write-ahead logs that hold something, so that their heads must be read."""
    return [name for name in _LOGS if name in listing.by_name and listing.by_name[name].size]


def inspect_journal(name: str, size: int, head: bytes, *, in_place: bool) -> list[Finding]:
    """What a journal or write-ahead log beside the database means.

    SQLite takes a journal back, or takes a log in, if it begins as one (sections 3 and 4.1 of the file format, and
    `hasHotJournal` of its pager); any other is stale, and left alone. A writer that was killed leaves one, and whoever
    opens the database where it lies settles it. A copy that has one was taken during a write, and nobody knows whether
    its database and its journal are of the same moment.

    Args:
        name: Name of the journal or log.
        size: Its size in bytes.
        head: Its first `JOURNAL_HEAD` bytes.
        in_place: Whether the files are where Chroma wrote them, and no copy.
    """
    if not _is_hot(name, size, head):
        return [Finding("layout.journal_stale", name, f"{size} bytes, which SQLite does not take for a journal in use")]
    if in_place:
        detail = f"{size} bytes beside the database: a writer was killed; to open it with Chroma once settles it"
        return [Finding("layout.journal_unsettled", name, detail)]
    detail = f"{size} bytes beside the database: the copy was taken during a write"
    return [Finding("layout.journal_present", name, detail)]


def _is_hot(name: str, size: int, head: bytes) -> bool:
    if name.endswith("-journal"):
        return head.startswith(_JOURNAL_MAGIC)
    salts, of_frame = head[16:24], head[_LOG_HEADER + 8 : _LOG_HEADER + 16]
    return size > _LOG_HEADER and head[:4] in _LOG_MAGIC and salts == of_frame


def _journals(listing: Listing) -> list[Finding]:
    return [
        Finding("layout.empty_journal", name, "0 bytes, left by a clean close")
        for name in _LOGS
        if name in listing.by_name and not listing.by_name[name].size
    ]


def suspect_segments(listing: Listing) -> list[Finding]:
    """Index files that are missing. Suspicions only: nobody may refer to that index, which only the database tells."""
    return [
        Finding(
            "layout.segment_file_missing", f"{segment}/{base}", "not there, although the id map says it was flushed"
        )
        for segment, files in segments_in(listing).items()
        if PICKLE in files
        for base in INDEX_FILES
        if base not in files
    ]
