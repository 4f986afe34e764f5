"""What the names and sizes of a delta prove, and what they do not."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.inspection.layout import inspect_journal, inspect_names, journals_in, segments_in, suspect_segments
from shared.model.delta import DATABASE, DeltaFile, Listing
from shared.model.verdict import Finding, Status, status_of
from shared.storage.folder import list_folder

NOW = datetime(2026, 1, 1, tzinfo=UTC)
SEGMENT = "0a1b2c3d-0000-4000-8000-0123456789ab"


def with_files(folder: Path, **sizes: int | None) -> Listing:
    """The listing of a real delta with some files (by name) of another size, added, or (None) not there."""
    files = {file.name: file.size for file in list_folder(folder).files} | sizes
    return Listing.of(DeltaFile(name, size, "etag", NOW) for name, size in files.items() if size is not None)


@pytest.mark.parametrize("delta", ["healthy_delta", "flushed_delta"])
def test_the_names_of_a_healthy_delta_say_nothing(delta: str, request: pytest.FixtureRequest) -> None:
    listing = list_folder(request.getfixturevalue(delta))
    assert inspect_names(listing) == suspect_segments(listing) == []


@pytest.mark.parametrize(
    ("size", "code", "detail"),
    [
        (0, "sqlite.empty", "0 bytes; Chroma would open it as an empty delta"),
        (1, "sqlite.empty", "1 bytes; Chroma would open it as an empty delta"),
        (2, "sqlite.truncated", "2 bytes, a database has at least 512"),
        (511, "sqlite.truncated", "511 bytes, a database has at least 512"),
    ],
)
def test_a_database_of_a_few_bytes_is_none(healthy_delta: Path, size: int, code: str, detail: str) -> None:
    listing = with_files(healthy_delta, **{DATABASE: size})
    assert inspect_names(listing) == [Finding(code, DATABASE, detail)]


def test_the_smallest_database_that_there_can_be_is_left_to_the_deeper_checks(healthy_delta: Path) -> None:
    assert inspect_names(with_files(healthy_delta, **{DATABASE: 512})) == []


def test_a_delta_without_a_database_is_none(healthy_delta: Path) -> None:
    (finding,) = inspect_names(with_files(healthy_delta, **{DATABASE: None}))
    assert finding == Finding("layout.database_missing", DATABASE, "not there, among 4 files")
    (finding,) = inspect_names(Listing(()))
    assert finding == Finding("layout.database_missing", DATABASE, "not there, and nothing else either")


MAGIC = {"chroma.sqlite3-journal": "d9d505f920a163d7", "chroma.sqlite3-wal": "377f0682"}


@pytest.mark.parametrize("journal", MAGIC)
def test_a_journal_in_use_proves_a_copy_in_mid_write(healthy_delta: Path, journal: str) -> None:
    listing = with_files(healthy_delta, **{journal: 512})
    assert (inspect_names(listing), journals_in(listing)) == ([], [journal])
    head = bytes.fromhex(MAGIC[journal]).ljust(56, b"\0")
    detail = "512 bytes beside the database: the copy was taken during a write"
    (finding,) = inspect_journal(journal, 512, head, in_place=False)
    assert finding == Finding("layout.journal_present", journal, detail)
    assert status_of([finding]) is Status.CORRUPT
    (finding,) = inspect_journal(journal, 512, head, in_place=True)
    assert (finding.code, status_of([finding])) == ("layout.journal_unsettled", Status.UNDETERMINED)


def test_a_log_whose_frames_are_of_an_earlier_one_is_stale() -> None:
    """After a checkpoint the log begins anew, with other salts."""
    head = bytes.fromhex(MAGIC["chroma.sqlite3-wal"]).ljust(16, b"\0") + b"new salt".ljust(16, b"\0")
    for salts, code in ((b"new salt", "layout.journal_present"), (b"old salt", "layout.journal_stale")):
        (finding,) = inspect_journal("chroma.sqlite3-wal", 5000, head + bytes(8) + salts + bytes(8), in_place=False)
        assert finding.code == code


@pytest.mark.parametrize("journal", ["chroma.sqlite3-journal", "chroma.sqlite3-wal"])
def test_a_journal_of_no_bytes_is_worth_a_note(healthy_delta: Path, journal: str) -> None:
    (finding,) = inspect_names(with_files(healthy_delta, **{journal: 0}))
    assert (finding.code, finding.file, status_of([finding])) == ("layout.empty_journal", journal, Status.HEALTHY)


def test_shared_memory_beside_the_database_says_nothing(healthy_delta: Path) -> None:
    assert inspect_names(with_files(healthy_delta, **{"chroma.sqlite3-shm": 32768})) == []


@pytest.mark.parametrize("base", ["header.bin", "data_level0.bin", "length.bin", "link_lists.bin"])
def test_an_id_map_beside_which_an_index_file_is_missing_is_suspect(flushed_delta: Path, base: str) -> None:
    (segment,) = segments_in(list_folder(flushed_delta))
    listing = with_files(flushed_delta, **{f"{segment}/{base}": None})
    detail = "not there, although the id map says it was flushed"
    assert suspect_segments(listing) == [Finding("layout.segment_file_missing", f"{segment}/{base}", detail)]


@pytest.mark.parametrize("base", ["header.bin", "data_level0.bin", "length.bin", "link_lists.bin"])
def test_a_skeleton_from_which_a_file_is_missing_is_not(healthy_delta: Path, base: str) -> None:
    (segment,) = segments_in(list_folder(healthy_delta))
    listing = with_files(healthy_delta, **{f"{segment}/{base}": None})
    assert inspect_names(listing) == suspect_segments(listing) == []


@pytest.mark.parametrize("name", [".DS_Store", "notes/readme.txt", "header.bin", f"{SEGMENT.upper()}/header.bin"])
def test_a_file_that_is_not_chroma_s_is_worth_a_note(healthy_delta: Path, name: str) -> None:
    (finding,) = inspect_names(with_files(healthy_delta, **{name: 5}))
    assert (finding.code, finding.file) == ("layout.foreign_file", name)


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("../escape", "../escape"),
        (f"../{SEGMENT}/header.bin", f"../{SEGMENT}/header.bin"),
        ("a/../../b", "a/../../b"),
        ("/etc/passwd", "/etc/passwd"),
        ("..\\escape", "..\\escape"),
        ("a\x1b[2Jb\n", "a\\u001b[2Jb\\u000a"),
        ("\u202egpj.exe", "\\u202egpj.exe"),
    ],
)
def test_a_name_that_could_leave_its_folder_or_move_a_cursor_is_named_hostile(
    healthy_delta: Path, name: str, shown: str
) -> None:
    (finding,) = inspect_names(with_files(healthy_delta, **{name: 5}))
    assert (finding.code, finding.file) == ("layout.file_name_hostile", shown)
    assert status_of([finding]) is Status.HEALTHY


def test_a_thousand_foreign_files_are_a_few_notes_and_a_number(healthy_delta: Path) -> None:
    findings = inspect_names(with_files(healthy_delta, **{f"foreign-{n:04}": 1 for n in range(1000)}))
    assert [finding.file for finding in findings] == [f"foreign-{n:04}" for n in range(5)] + [""]
    assert findings[-1].detail == "and 995 more files that are not Chroma's"


names = st.text(st.characters(codec=None), min_size=1) | st.lists(
    st.sampled_from(["", ".", "..", "a", SEGMENT, "header.bin", DATABASE]), min_size=1
).map("/".join)


@given(st.dictionaries(names, st.integers(0, 2**40), max_size=8))
def test_no_listing_can_make_the_inspection_fail_or_print_a_control_character(files: dict[str, int]) -> None:
    listing = Listing.of(DeltaFile(name, size, "etag", NOW) for name, size in files.items())
    for finding in inspect_names(listing) + suspect_segments(listing):
        assert (finding.file + finding.detail).isprintable()
