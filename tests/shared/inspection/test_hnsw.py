"""A flushed index, broken byte by byte: each break has its finding, with the numbers; none makes the reader fail."""

from __future__ import annotations

import math
import pickle
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from local.deltas import DeltaRecipe, build_delta
from shared.inspection.hnsw import Index, inspect_header, inspect_index
from shared.verdict import Finding

SEGMENT = "0a1b2c3d-0000-4000-8000-0123456789ab"
DIMENSION = 16
COUNT = 100
RECORD = 204  # 4 + 4 * 32 neighbours + 4 * 16 numbers + 8
VECTOR, LABEL = 132, 196
HEADER, LEVEL0, LENGTHS, LINKS, PICKLE = (
    "header.bin", "data_level0.bin", "length.bin", "link_lists.bin", "index_metadata.pickle"
)  # fmt: skip
FIELDS = {
    "version": (0, "<i"), "offset_level0": (4, "<Q"), "max_elements": (12, "<Q"), "count": (20, "<Q"),
    "record_size": (28, "<Q"), "label_offset": (36, "<Q"), "data_offset": (44, "<Q"), "max_level": (52, "<i"),
    "entry_point": (56, "<I"), "max_links": (60, "<Q"), "max_links_level0": (68, "<Q"), "links": (76, "<Q"),
    "level_factor": (84, "<d"), "ef_construction": (92, "<Q"),
}  # fmt: skip

Files = dict[str, bytes]


def read_index(delta: Path) -> Files:
    folder = next(delta.rglob("index_metadata.pickle")).parent
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture(scope="session")
def intact(flushed_delta: Path) -> Files:
    return read_index(flushed_delta)


@pytest.fixture
def files(intact: Files) -> Files:
    """The files of an index that a test may break: 100 vectors of 16 numbers."""
    return dict(intact)


def inspected(files: Files, dimension: int | None = DIMENSION) -> Index:
    return inspect_index(SEGMENT, {name: np.frombuffer(data, np.uint8) for name, data in files.items()}, dimension)


def codes(index: Index) -> set[str]:
    return {finding.code for finding in index.findings}


def patch(files: Files, name: str, at: int, new: bytes) -> None:
    files[name] = files[name][:at] + new + files[name][at + len(new) :]


def field(files: Files, name: str) -> Any:
    at, form = FIELDS[name]
    return struct.unpack_from(form, files[HEADER], at)[0]


def set_field(files: Files, name: str, value: object) -> None:
    at, form = FIELDS[name]
    patch(files, HEADER, at, struct.pack(form, value))


def test_the_index_of_these_tests_is_the_one_they_count_with(files: Files) -> None:
    assert (field(files, "count"), field(files, "record_size")) == (COUNT, RECORD)
    assert (field(files, "data_offset"), field(files, "label_offset")) == (VECTOR, LABEL)


@pytest.mark.parametrize("dimension", [DIMENSION, None])
def test_an_intact_index_has_no_finding_and_tells_its_ids(files: Files, dimension: int | None) -> None:
    index = inspected(files, dimension)
    assert index.findings == []
    assert index.ids is not None and len(index.ids.labels) == COUNT


def test_an_index_with_room_for_more_is_healthy(files: Files) -> None:
    set_field(files, "max_elements", COUNT + 7)
    files[LEVEL0] += b"\xa5" * 7 * RECORD
    files[LENGTHS] += b"\xa5" * 7 * 4
    assert inspected(files).findings == []


def test_records_marked_as_deleted_need_no_id(files: Files) -> None:
    ids = pickle.loads(files[PICKLE])
    name, label = next(iter(ids["id_to_label"].items()))
    del ids["id_to_label"][name], ids["label_to_id"][label]
    files[PICKLE] = pickle.dumps(ids, protocol=3)
    patch(files, LEVEL0, record_of(files, label) * RECORD + 2, b"\x01")
    assert inspected(files).findings == []


def record_of(files: Files, label: int) -> int:
    """The number of the record with this label."""
    starts = range(LABEL, COUNT * RECORD, RECORD)
    return [struct.unpack_from("<Q", files[LEVEL0], at)[0] for at in starts].index(label)


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("version", 2, "version is 2, expected 1"),
        ("offset_level0", 8, "offset of level 0 is 8, expected 0"),
        ("max_elements", COUNT - 1, f"{COUNT} elements, room for {COUNT - 1}"),
        ("max_elements", 2**45, f"room for {2**45} elements would need {2**45 * RECORD} bytes"),
        ("count", 2**63, f"{2**63} elements, room for"),
        ("record_size", RECORD + 4, f"offset of the label is {LABEL}, expected {RECORD + 4 - 8}"),
        ("label_offset", LABEL + 4, f"offset of the label is {LABEL + 4}, expected {LABEL}"),
        ("data_offset", VECTOR + 4, f"offset of the vector is {VECTOR + 4}, expected {VECTOR}"),
        ("max_links", 0, "links is 0, expected 1 to 100000"),
        ("max_links", 15, "level-0 links is 32, expected 30"),
        ("max_links_level0", 31, "level-0 links is 31, expected 32"),
        ("links", 8, "links is 8, expected 16"),
        ("level_factor", 0.5, "level factor is 0.5, expected 1/ln 16"),
        ("level_factor", math.nan, "level factor is nan, expected 1/ln 16"),
    ],
)
def test_a_header_that_contradicts_itself_is_invalid(files: Files, name: str, value: float, words: str) -> None:
    set_field(files, name, value)
    index = inspected(files)
    assert codes(index) == {"hnsw.header_invalid"}
    assert any(words in finding.detail for finding in index.findings)
    assert {finding.file for finding in index.findings} == {f"{SEGMENT}/header.bin"}


@pytest.mark.parametrize("size", [0, 1, 99, 101])
def test_a_header_of_another_length_is_invalid(files: Files, size: int) -> None:
    files[HEADER] = files[HEADER].ljust(size, b"\0")[:size]
    assert inspected(files).findings == [
        Finding("hnsw.header_invalid", f"{SEGMENT}/header.bin", f"{size} bytes, expected 100")
    ]


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("entry_point", COUNT, f"entry point {COUNT}, the index has {COUNT} elements"),
        ("entry_point", 0xFFFFFFFF, f"entry point {0xFFFFFFFF}, the index has"),
        ("max_level", -1, "highest level -1, expected 0 to 64"),
        ("max_level", 65, "highest level 65, expected 0 to 64"),
        ("max_level", 9, "header: level 9 from element"),
    ],
)
def test_an_entry_point_or_a_level_that_cannot_be_is_told(files: Files, name: str, value: int, words: str) -> None:
    set_field(files, name, value)
    index = inspected(files)
    assert "hnsw.entry_point_invalid" in codes(index)
    assert any(words in finding.detail for finding in index.findings)


def test_an_entry_point_that_does_not_reach_the_highest_level_is_told(files: Files) -> None:
    low = next(e for e in range(COUNT) if level_of(files, e) == 0)
    set_field(files, "entry_point", low)
    assert codes(inspected(files)) == {"hnsw.entry_point_invalid"}


def link_starts(files: Files) -> list[int]:
    """Where the size of each element's upper links stands in link_lists.bin."""
    starts, at = [], 0
    for _ in range(COUNT):
        starts.append(at)
        at += 4 + struct.unpack_from("<I", files[LINKS], at)[0]
    return starts


def level_of(files: Files, element: int) -> int:
    return int(struct.unpack_from("<I", files[LINKS], link_starts(files)[element])[0]) // 68


@pytest.mark.parametrize(
    ("name", "change", "words"),
    [
        (LEVEL0, -1, f"{COUNT * RECORD - 1} bytes, expected {COUNT * RECORD} to "),
        (LEVEL0, -RECORD, f"{(COUNT - 1) * RECORD} bytes, expected {COUNT * RECORD} to "),
        (LEVEL0, -COUNT * RECORD, "0 bytes, expected"),
        (LEVEL0, 1, f"in steps of {RECORD} for {COUNT} embeddings"),
        (LENGTHS, -4, f"{COUNT * 4 - 4} bytes, expected {COUNT * 4}: 4 for each of {COUNT} records"),
        (LENGTHS, 4, f"{COUNT * 4 + 4} bytes, expected {COUNT * 4}"),
        (LINKS, -1, f"expected {COUNT * 4} and a multiple of 68 for {COUNT} embeddings"),
        (LINKS, 4, f"expected {COUNT * 4} and a multiple of 68 for {COUNT} embeddings"),
        (LINKS, 68, "bytes; the links of 100 of 100 elements end at offset"),
    ],
)
def test_an_index_file_that_is_not_as_long_as_the_header_says_is_told(
    files: Files, name: str, change: int, words: str
) -> None:
    size = len(files[name]) + change
    files[name] = files[name].ljust(size, b"\0")[:size]
    index = inspected(files)
    assert codes(index) == {"hnsw.size_mismatch"}
    assert index.findings[0].file == f"{SEGMENT}/{name}"
    assert words in index.findings[0].detail


def test_a_count_that_is_too_high_is_told_without_a_look_at_the_records(files: Files) -> None:
    set_field(files, "max_elements", COUNT + 1)
    set_field(files, "count", COUNT + 1)
    assert codes(inspected(files)) == {"hnsw.size_mismatch"}


@pytest.mark.parametrize("sizes", [{}, {"data_level0.bin": COUNT * RECORD}, {"length.bin": 7}])
def test_a_file_that_is_missing_is_not_the_header_s_to_report(files: Files, sizes: dict[str, int]) -> None:
    header, findings = inspect_header(SEGMENT, files[HEADER], sizes)
    assert header is not None and findings == []


@pytest.mark.parametrize(
    ("at", "new"),
    [(0, b"\xff\xff"), (0, struct.pack("<H", 33)), (4, struct.pack("<I", COUNT)), (4, b"\xff\xff\xff\x7f")],
    ids=["links without end", "one link too many", "just outside", "far outside"],
)
def test_a_neighbour_list_that_is_too_long_or_points_outside_is_told(files: Files, at: int, new: bytes) -> None:
    patch(files, LEVEL0, 7 * RECORD + at, new)
    (finding,) = inspected(files).findings
    assert (finding.code, finding.file) == ("hnsw.link_invalid", f"{SEGMENT}/data_level0.bin")
    assert finding.detail.startswith(f"1 records, the first at offset {7 * RECORD}: more than 32 links")


def test_what_stands_after_the_last_neighbour_does_not_count(files: Files) -> None:
    for record in range(COUNT):
        (used,) = struct.unpack_from("<H", files[LEVEL0], record * RECORD)
        patch(files, LEVEL0, record * RECORD + 4 + 4 * used, b"\xff" * 4 * (32 - used))
    assert inspected(files).findings == []


def upper(files: Files) -> int:
    """Where the links of the first element with an upper level begin in link_lists.bin."""
    return next(start for start in link_starts(files) if struct.unpack_from("<I", files[LINKS], start)[0]) + 4


@pytest.mark.parametrize(
    ("offset", "new", "words"),
    [
        (0, b"\xff\xff", "1 elements on level 1"),
        (4, b"\xff\xff\xff\x7f", "1 elements on level 1"),
        (-4, struct.pack("<I", 70), "70 bytes of links at offset"),
        (-4, struct.pack("<I", 68 * 10**6), f"{68 * 10**6} bytes of links at offset"),
    ],
    ids=["too many", "outside", "no whole level", "past the end"],
)
def test_a_link_above_level_0_that_cannot_be_followed_is_told(
    files: Files, offset: int, new: bytes, words: str
) -> None:
    patch(files, LINKS, upper(files) + offset, new)
    index = inspected(files)
    assert "hnsw.link_invalid" in codes(index)
    assert any(words in finding.detail and finding.file.endswith(LINKS) for finding in index.findings)


def test_a_link_to_an_element_that_is_not_on_that_level_is_told(files: Files) -> None:
    low = next(e for e in range(COUNT) if level_of(files, e) == 0)
    patch(files, LINKS, upper(files), struct.pack("<HHI", 1, 0, low))
    assert codes(inspected(files)) == {"hnsw.link_invalid"}


def test_levels_without_end_are_told_in_a_few_words(files: Files) -> None:
    """One element with 20,000 levels of too many links; hnswlib itself never makes more than a handful."""
    element = 3
    start = link_starts(files)[element]
    levels = (struct.pack("<H", 0xFFFF) + bytes(66)) * 20_000
    (size,) = struct.unpack_from("<I", files[LINKS], start)
    files[LINKS] = files[LINKS][:start] + struct.pack("<I", len(levels)) + levels + files[LINKS][start + 4 + size :]
    index = inspected(files)
    assert codes(index) & {"hnsw.link_invalid", "hnsw.entry_point_invalid", "hnsw.size_mismatch"}
    assert len(index.findings) < 20


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_vector_that_is_not_finite_is_told_with_its_place(files: Files, value: float) -> None:
    for record in (5, 9):
        patch(files, LEVEL0, record * RECORD + VECTOR + 8, struct.pack("<f", value))
    (finding,) = inspected(files).findings
    place = 5 * RECORD + VECTOR
    detail = f"2 of {COUNT} vectors, the first at offset {place}: NaN or infinity"
    assert finding == Finding("hnsw.vector_not_finite", f"{SEGMENT}/data_level0.bin", detail)


@pytest.mark.parametrize("value", [3.4e38, -3.4e38, 1e-45, 0.0, -0.0])
def test_the_largest_and_the_smallest_numbers_are_finite(files: Files, value: float) -> None:
    patch(files, LEVEL0, VECTOR, struct.pack("<f", value))
    assert inspected(files).findings == []


@pytest.mark.parametrize(
    ("at", "new", "words"),
    [
        (LABEL, struct.pack("<Q", 10**6), "1 labels of the id map have no record"),
        (LABEL, struct.pack("<Q", 10**6), "1 records have a label that the id map lacks, the first 1000000"),
        (2, b"\x01", "1 labels of the id map have no record"),
    ],
    ids=["lost", "unknown", "marked as deleted"],
)
def test_a_label_on_one_side_only_is_told(files: Files, at: int, new: bytes, words: str) -> None:
    patch(files, LEVEL0, 4 * RECORD + at, new)
    (finding,) = inspected(files).findings
    assert finding.code == "hnsw.label_mismatch"
    assert words in finding.detail


def test_a_label_that_stands_twice_is_told(files: Files) -> None:
    patch(files, LEVEL0, 4 * RECORD + LABEL, files[LEVEL0][5 * RECORD + LABEL : 6 * RECORD])
    (finding,) = inspected(files).findings
    assert finding.code == "hnsw.label_mismatch"
    assert "1 labels stand in more than one record" in finding.detail


@pytest.mark.parametrize("data", [b"", b"\x80", b"garbage " * 9, pickle.dumps([1, 2])])
def test_an_id_map_that_is_none_is_unreadable_and_the_index_is_still_looked_at(files: Files, data: bytes) -> None:
    files[PICKLE] = data
    patch(files, LEVEL0, VECTOR, struct.pack("<f", math.nan))
    index = inspected(files)
    assert index.ids is None
    assert codes(index) == {"hnsw.pickle_unreadable", "hnsw.vector_not_finite"}
    assert index.findings[0].file == f"{SEGMENT}/index_metadata.pickle"
    assert index.findings[0].detail.startswith(f"{len(data)} bytes: ")


def test_an_id_map_that_runs_code_is_hostile(files: Files) -> None:
    files[PICKLE] = b"cos\nmkdir\n(Vhere\ntR."
    index = inspected(files)
    assert codes(index) == {"hnsw.pickle_hostile"}
    assert "asks for os.mkdir at offset" in index.findings[0].detail


def test_vectors_of_another_length_than_the_collection_s_are_told(files: Files) -> None:
    (finding,) = inspected(files, dimension=17).findings
    detail = "vectors of 16, the collection has dimension 17"
    assert finding == Finding("hnsw.dimension_mismatch", f"{SEGMENT}/header.bin", detail)


def test_a_dimension_that_only_the_id_map_says_is_not_believed(files: Files) -> None:
    files[PICKLE] = pickle.dumps({**pickle.loads(files[PICKLE]), "dimensionality": 7}, protocol=3)
    assert inspected(files).findings == []


@pytest.mark.parametrize(("space", "embeddings"), [("l2", 50), ("cosine", 50), ("ip", 50), ("cosine", 1200)])
def test_every_index_that_chroma_flushes_is_healthy(tmp_path: Path, space: Any, embeddings: int) -> None:
    build_delta(tmp_path, DeltaRecipe(embeddings=embeddings, dimension=4, space=space, sync_threshold=50, batch=50))
    assert inspected(read_index(tmp_path), 4).findings == []


mutations = st.lists(
    st.tuples(
        st.sampled_from([HEADER, HEADER, LEVEL0, LENGTHS, LINKS, PICKLE]),
        st.integers(0, 2**20),
        st.binary(min_size=1, max_size=8) | st.sampled_from([b"\xff" * 8, bytes(8), struct.pack("<Q", 2**62)]),
        st.sampled_from(["patch", "patch", "insert", "cut"]),
    ),
    min_size=1,
    max_size=6,
)


@settings(max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(mutations, st.sampled_from([DIMENSION, None]))
def test_no_mutation_makes_the_inspection_fail(
    intact: Files, changes: list[tuple[str, int, bytes, str]], dimension: int | None
) -> None:
    files = dict(intact)
    for name, place, new, how in changes:
        at = place % (len(files[name]) + 1)
        if how == "patch":
            patch(files, name, at, new)
        else:
            files[name] = files[name][:at] + (new + files[name][at:] if how == "insert" else b"")
    index = inspected(files, dimension)
    assert len(index.findings) < 50
    assert all((finding.file + finding.detail).isprintable() for finding in index.findings)


@settings(max_examples=200, deadline=None)
@given(
    st.fixed_dictionaries({name: st.integers(0, 2**32 - 1) | st.integers(0, 300) for name in ("count", "max_links")}),
    st.integers(0, 40),
    st.lists(st.integers(0, 2**32 - 1) | st.integers(0, 100), max_size=200),
)
def test_no_links_under_a_consistent_header_make_the_inspection_fail(
    fields: dict[str, int], dimension: int, words: list[int]
) -> None:
    links, count = fields["max_links"] % 20 + 1, fields["count"] % 40
    data_offset = 8 * links + 4
    record = data_offset + 4 * (dimension + 1) + 8
    factor = 1 / math.log(links) if links > 1 else 1.0
    header = struct.pack(
        "<iQQQQQQiIQQQdQ", 1, 0, count, count, record, record - 8, data_offset, 0, 0, links, 2 * links, links, factor, 9
    )
    content = np.resize(np.array([*words, 0], "<u4"), count * record // 4 + 1).tobytes()[: count * record]
    files: Files = {
        HEADER: header, LEVEL0: content, LENGTHS: bytes(4 * count), PICKLE: pickle.dumps({}, protocol=3),
        LINKS: struct.pack(f"<{len(words)}I", *words),
    }  # fmt: skip
    inspected(files)
