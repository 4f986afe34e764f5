"""header.bin of a flushed index, field by field: each that cannot be is told with its offset and what was expected."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.inspection.hnsw.header import HEADER_BYTES, IndexHeader, inspect_header
from shared.model.verdict import Finding
from tests.support.indexes import (
    COUNT,
    DIMENSION,
    FIELDS,
    HEADER,
    LABEL,
    LENGTHS,
    LEVEL0,
    LINKS,
    RECORD,
    SEGMENT,
    VECTOR,
    Files,
    field,
    resize,
    set_field,
)


def inspected(files: Files) -> tuple[IndexHeader | None, list[Finding]]:
    return inspect_header(SEGMENT, files[HEADER], {name: len(data) for name, data in files.items()})


def test_the_layout_is_the_one_these_tests_count_on(files: Files) -> None:
    assert (field(files, "count"), field(files, "record_size")) == (COUNT, RECORD)
    assert (field(files, "data_offset"), field(files, "label_offset")) == (VECTOR, LABEL)
    assert sum({"i": 4, "I": 4, "Q": 8, "d": 8}[form[1]] for _, form in FIELDS.values()) == HEADER_BYTES


def test_an_intact_header_says_nothing_and_tells_the_shape_of_the_index(files: Files) -> None:
    header, findings = inspected(files)
    assert findings == []
    assert header is not None
    assert (header.count, header.record_size, header.dimension, header.level_size) == (COUNT, RECORD, DIMENSION, 68)


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("version", 2, "version at offset 0 is 2, expected 1"),
        ("offset_level0", 8, "offset of level 0 at offset 4 is 8, expected 0"),
        ("max_elements", COUNT - 1, f"count at offset 20 is {COUNT}, room for {COUNT - 1}"),
        ("max_elements", 2**45, f"room at offset 12 is for {2**45} elements, which would need {2**45 * RECORD} bytes"),
        ("count", 2**63, f"count at offset 20 is {2**63}, room for"),
        ("record_size", RECORD + 4, f"offset of the label at offset 36 is {LABEL}, expected {RECORD + 4 - 8}"),
        ("label_offset", LABEL + 4, f"offset of the label at offset 36 is {LABEL + 4}, expected {LABEL}"),
        ("data_offset", VECTOR + 4, f"offset of the vector at offset 44 is {VECTOR + 4}, expected {VECTOR}"),
        ("max_links", 0, "links at offset 60 is 0, expected 1 to 100000"),
        ("max_links", 15, "level-0 links at offset 68 is 32, expected 30"),
        ("max_links_level0", 31, "level-0 links at offset 68 is 31, expected 32"),
        ("links", 8, "links of an element at offset 76 is 8, expected 16"),
        ("level_factor", 0.5, "level factor at offset 84 is 0.5, expected 1/ln 16"),
        ("level_factor", math.nan, "level factor at offset 84 is nan, expected 1/ln 16"),
    ],
)
def test_a_header_that_contradicts_itself_is_invalid(files: Files, name: str, value: float, words: str) -> None:
    set_field(files, name, value)
    header, findings = inspected(files)
    assert header is None
    assert {(finding.code, finding.file) for finding in findings} == {("hnsw.header_invalid", f"{SEGMENT}/{HEADER}")}
    assert any(finding.detail.startswith(words) for finding in findings)


def test_a_record_without_room_for_a_vector_is_invalid(files: Files) -> None:
    for name, value in (("record_size", VECTOR + 8), ("label_offset", VECTOR)):
        set_field(files, name, value)
    (finding,) = inspected(files)[1]
    assert finding.detail == "0 bytes between links and label, expected a multiple of 4 from 4"


@pytest.mark.parametrize("size", [0, 1, 99, 101])
def test_a_header_of_another_length_is_invalid(files: Files, size: int) -> None:
    files[HEADER] = files[HEADER].ljust(size, b"\0")[:size]
    detail = f"{size} bytes, expected 100"
    assert inspected(files) == (None, [Finding("hnsw.header_invalid", f"{SEGMENT}/{HEADER}", detail)])


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("entry_point", COUNT, f"entry point at offset 56 is {COUNT}, the index has {COUNT} elements"),
        ("entry_point", 0xFFFFFFFF, f"entry point at offset 56 is {0xFFFFFFFF}, the index has"),
        ("max_level", -1, "highest level at offset 52 is -1, expected 0 to 64"),
        ("max_level", 65, "highest level at offset 52 is 65, expected 0 to 64"),
    ],
)
def test_an_entry_point_or_a_level_that_cannot_be_is_told(files: Files, name: str, value: int, words: str) -> None:
    set_field(files, name, value)
    header, findings = inspected(files)
    assert header is not None
    assert "hnsw.entry_point_invalid" in {finding.code for finding in findings}
    assert any(finding.detail.startswith(words) for finding in findings)


@pytest.mark.parametrize(
    ("name", "change", "words"),
    [
        (LEVEL0, -1, f"{COUNT * RECORD - 1} bytes, expected {COUNT * RECORD} for {COUNT} embeddings"),
        (LEVEL0, -RECORD, f"{(COUNT - 1) * RECORD} bytes, expected {COUNT * RECORD} for {COUNT} embeddings"),
        (LEVEL0, -COUNT * RECORD, f"0 bytes, expected {COUNT * RECORD} for {COUNT} embeddings"),
        (LENGTHS, -4, f"{COUNT * 4 - 4} bytes, expected {COUNT * 4} for {COUNT} embeddings"),
    ],
)
def test_an_index_file_that_is_shorter_than_what_the_header_counts_is_told(
    files: Files, name: str, change: int, words: str
) -> None:
    resize(files, name, change)
    header, (finding,) = inspected(files)
    assert header is not None
    assert finding == Finding("hnsw.size_mismatch", f"{SEGMENT}/{name}", words)


def test_links_that_are_shorter_than_one_number_for_each_embedding_are_told(files: Files) -> None:
    resize(files, LINKS, COUNT * 4 - 1 - len(files[LINKS]))
    _, (finding,) = inspected(files)
    detail = f"{COUNT * 4 - 1} bytes, expected {COUNT * 4} for {COUNT} embeddings"
    assert finding == Finding("hnsw.size_mismatch", f"{SEGMENT}/{LINKS}", detail)


@pytest.mark.parametrize("name", [LEVEL0, LENGTHS, LINKS])
@pytest.mark.parametrize("change", [1, 4, 68, RECORD, 10_000 * RECORD])
def test_what_an_older_index_left_at_the_end_of_a_file_is_healthy(files: Files, name: str, change: int) -> None:
    """hnswlib never shortens a file; how many records count says `header.bin` alone."""
    resize(files, name, change)
    assert inspected(files)[1] == []


def test_lengths_are_looked_into_in_a_cosine_index_alone(files: Files) -> None:
    resize(files, LENGTHS, -COUNT * 4)
    sizes = {name: len(data) for name, data in files.items()}
    assert inspect_header(SEGMENT, files[HEADER], sizes, cosine=False)[1] == []
    assert [finding.code for finding in inspect_header(SEGMENT, files[HEADER], sizes)[1]] == ["hnsw.size_mismatch"]


def test_a_count_that_is_too_high_is_told_by_the_files_beside_it(files: Files) -> None:
    set_field(files, "max_elements", COUNT + 1)
    set_field(files, "count", COUNT + 1)
    assert {finding.code for finding in inspected(files)[1]} == {"hnsw.size_mismatch"}


def test_an_index_with_room_for_more_is_healthy(files: Files) -> None:
    set_field(files, "max_elements", COUNT + 7)
    resize(files, LEVEL0, 7 * RECORD)
    resize(files, LENGTHS, 7 * 4)
    assert inspected(files)[1] == []


@pytest.mark.parametrize("sizes", [{}, {LEVEL0: COUNT * RECORD}, {LENGTHS: COUNT * 4}])
def test_a_file_that_is_missing_is_not_the_header_s_to_report(files: Files, sizes: dict[str, int]) -> None:
    header, findings = inspect_header(SEGMENT, files[HEADER], sizes)
    assert header is not None and findings == []


@given(st.binary(min_size=HEADER_BYTES, max_size=HEADER_BYTES), st.integers(0, 2**64))
def test_no_header_makes_the_inspection_fail(head: bytes, size: int) -> None:
    _, findings = inspect_header(SEGMENT, head, dict.fromkeys((LEVEL0, LENGTHS, LINKS), size))
    assert all(finding.detail.isprintable() for finding in findings)
