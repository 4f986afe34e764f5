"""Depth `listing`: what the names and sizes of a delta alone can prove."""

from __future__ import annotations

from shared.delta import DATABASE, JOURNALS, Listing, printable, segment_of
from shared.verdict import Finding

_HARMLESS_SHARED_MEMORY = "chroma.sqlite3-shm"
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


def _journals(listing: Listing) -> list[Finding]:
    findings = []
    for name in JOURNALS:
        journal = listing.by_name.get(name)
        if journal is None or name == _HARMLESS_SHARED_MEMORY:
            continue
        if journal.size:
            detail = f"{journal.size} bytes beside the database: the copy was taken during a write"
            findings.append(Finding("layout.journal_present", name, detail))
        else:
            findings.append(Finding("layout.empty_journal", name, "0 bytes, left by a clean close"))
    return findings


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
