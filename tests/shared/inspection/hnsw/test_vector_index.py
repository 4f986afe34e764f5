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
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray

from devtools.damage.deltas import DeltaRecipe, build_delta
from shared.inspection.hnsw import vector_index
from shared.inspection.hnsw.vector_index import Index, rows_not_finite
from shared.model.errors import CouldNotCheck
from shared.model.verdict import Finding
from tests.support.indexes import (
    COUNT,
    DIMENSION,
    HEADER,
    LABEL,
    LENGTHS,
    LEVEL0,
    LINKS,
    PICKLE,
    RECORD,
    SEGMENT,
    VECTOR,
    Files,
    index_files,
    inspected,
    patch,
    read_index,
    resize,
    set_field,
)


def codes(index: Index) -> set[str]:
    return {finding.code for finding in index.findings}


@pytest.mark.parametrize("dimension", [DIMENSION, None])
def test_an_intact_index_has_no_finding_and_tells_its_ids(files: Files, dimension: int | None) -> None:
    index = inspected(files, dimension)
    assert index.findings == []
    assert index.ids is not None and len(index.ids.labels) == COUNT


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
    ("at", "new"),
    [(0, b"\xff\xff"), (0, struct.pack("<H", 33)), (4, struct.pack("<I", COUNT)), (4, b"\xff\xff\xff\x7f")],
    ids=["links without end", "one link too many", "just outside", "far outside"],
)
def test_a_neighbour_list_that_is_too_long_or_points_outside_is_told(files: Files, at: int, new: bytes) -> None:
    patch(files, LEVEL0, 7 * RECORD + at, new)
    (finding,) = inspected(files).findings
    assert (finding.code, finding.file) == ("hnsw.link_invalid", f"{SEGMENT}/data_level0.bin")
    assert finding.detail.startswith(f"1 of {COUNT} records, the first at offset {7 * RECORD}: ")
    assert finding.detail.endswith(f"; expected at most 32 and {COUNT - 1}")


def test_the_links_of_the_first_broken_record_are_told_as_they_were_seen(files: Files) -> None:
    for record in (7, 9):
        patch(files, LEVEL0, record * RECORD, struct.pack("<HHII", 2, 0, 5, 4321))
    (finding,) = inspected(files).findings
    assert finding.detail == (
        f"2 of {COUNT} records, the first at offset {7 * RECORD}: 2 links, the highest to element 4321; "
        f"expected at most 32 and {COUNT - 1}"
    )


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
    detail = f"2 of {COUNT} vectors, the first at offset {place}: NaN or infinity, expected {DIMENSION} finite numbers"
    assert finding == Finding("hnsw.vector_not_finite", f"{SEGMENT}/data_level0.bin", detail)


@pytest.mark.parametrize("value", [3.4e38, -3.4e38, 1e-45, 0.0, -0.0])
def test_the_largest_and_the_smallest_numbers_are_finite(files: Files, value: float) -> None:
    patch(files, LEVEL0, VECTOR, struct.pack("<f", value))
    assert inspected(files).findings == []


def test_a_label_on_one_side_only_is_told_with_its_id_and_its_place(files: Files) -> None:
    (label,) = struct.unpack_from("<Q", files[LEVEL0], 4 * RECORD + LABEL)
    id_ = pickle.loads(files[PICKLE])["label_to_id"][label]
    patch(files, LEVEL0, 4 * RECORD + LABEL, struct.pack("<Q", 10**6))
    detail = (
        f"1 labels of the id map have no record, the first {label} of '{id_}'; "
        f"1 records have a label that the id map lacks, the first 1000000 at offset {4 * RECORD + LABEL}"
    )
    assert inspected(files).findings == [Finding("hnsw.label_mismatch", f"{SEGMENT}/{LEVEL0}", detail)]


def test_an_id_whose_record_is_marked_as_deleted_has_none(files: Files) -> None:
    patch(files, LEVEL0, 4 * RECORD + 2, b"\x01")
    (finding,) = inspected(files).findings
    assert finding.code == "hnsw.label_mismatch"
    assert finding.detail.startswith("1 labels of the id map have no record")


def test_a_label_that_stands_twice_is_told(files: Files) -> None:
    patch(files, LEVEL0, 4 * RECORD + LABEL, files[LEVEL0][5 * RECORD + LABEL : 6 * RECORD])
    (label,) = struct.unpack_from("<Q", files[LEVEL0], 5 * RECORD + LABEL)
    (finding,) = inspected(files).findings
    assert finding.code == "hnsw.label_mismatch"
    words = f"1 labels stand in more than one record, the first {label} at offset {4 * RECORD + LABEL}"
    assert finding.detail.endswith(words)


def test_records_that_the_id_map_does_not_count_yet_are_no_finding(files: Files) -> None:
    """A writer that is killed between the two leaves them so; the queue has their operations still."""
    ids = pickle.loads(files[PICKLE])
    for label in (COUNT - 1, COUNT):
        del ids["id_to_label"][ids["label_to_id"].pop(label)]
    files[PICKLE] = pickle.dumps({**ids, "total_elements_added": COUNT - 2}, protocol=3)
    index = inspected(files)
    assert (index.findings, index.ahead) == ([], COUNT)


@pytest.mark.parametrize("label", [-1, 2**31 - 1, -(2**31)])
def test_a_label_that_no_index_gives_is_told_and_not_an_error(files: Files, label: int) -> None:
    ids = pickle.loads(files[PICKLE])
    name, old = next(iter(ids["id_to_label"].items()))
    del ids["label_to_id"][old]
    ids["id_to_label"][name], ids["label_to_id"][label] = label, name
    files[PICKLE] = pickle.dumps({**ids, "total_elements_added": 2**31}, protocol=3)
    index = inspected(files)
    assert codes(index) == {"hnsw.label_mismatch"}
    assert index.recoverable() == ids["id_to_label"].keys() - {name}


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
    (finding,) = inspected(files, 17).findings
    detail = "vectors of 16, the collection has dimension 17"
    assert finding == Finding("hnsw.dimension_mismatch", f"{SEGMENT}/header.bin", detail)


def test_a_dimension_that_only_the_id_map_says_is_not_believed(files: Files) -> None:
    files[PICKLE] = pickle.dumps({**pickle.loads(files[PICKLE]), "dimensionality": 7}, protocol=3)
    assert inspected(files).findings == []


def test_an_id_map_larger_than_any_of_chroma_s_is_not_read(files: Files) -> None:
    large = index_files(files)
    size = 64 * 1024 * 1024 + 1024 * COUNT + 1
    sizes = {**large.sizes, PICKLE: size}
    with pytest.raises(CouldNotCheck, match=f"{PICKLE} has {size} bytes, more than {size - 1} are not read") as fault:
        vector_index.inspect_index(SEGMENT, vector_index.IndexFiles(sizes, large.read), DIMENSION, cosine=False)
    assert fault.value.code == "check.size_cap"


@pytest.mark.parametrize("records", [1, 3, 99, 100, 101])
def test_records_are_looked_at_block_by_block_and_told_by_their_own_place(
    files: Files, monkeypatch: pytest.MonkeyPatch, records: int
) -> None:
    monkeypatch.setattr(vector_index, "_BLOCK_BYTES", records * RECORD)
    assert inspected(files).findings == []
    for record in (70, 99):
        patch(files, LEVEL0, record * RECORD + VECTOR, struct.pack("<f", math.nan))
    (finding,) = inspected(files).findings
    assert finding.detail.startswith(f"2 of {COUNT} vectors, the first at offset {70 * RECORD + VECTOR}: ")
    assert len(inspected(files).recoverable()) == COUNT - 2


@pytest.mark.parametrize(("name", "change"), [(LEVEL0, -RECORD), (LINKS, -68)])
def test_a_file_that_is_too_short_is_told_once(files: Files, name: str, change: int) -> None:
    resize(files, name, change)
    (finding,) = inspected(files).findings
    assert finding.code in ("hnsw.size_mismatch", "hnsw.link_invalid")
    assert finding.file == f"{SEGMENT}/{name}"


@pytest.mark.parametrize("name", [LEVEL0, LENGTHS, LINKS])
def test_whatever_follows_the_last_record_is_not_looked_at(files: Files, name: str) -> None:
    files[name] += bytes(range(1, 255)) * 9
    assert inspected(files).findings == []


def test_lengths_are_not_looked_at_unless_the_index_is_one_of_cosine_distances(files: Files) -> None:
    files[LENGTHS] = b"\xff"
    assert inspected(files).findings == []
    assert codes(inspected(files, cosine=True)) == {"hnsw.size_mismatch"}


def test_a_count_that_is_too_low_leaves_ids_without_a_record(files: Files) -> None:
    set_field(files, "count", COUNT - 1)
    assert "hnsw.label_mismatch" in codes(inspected(files))


# --- vectors of a cosine index


@pytest.fixture(scope="session")
def cosine_intact(tmp_path_factory: pytest.TempPathFactory) -> Files:
    folder = tmp_path_factory.mktemp("cosine")
    build_delta(folder, DeltaRecipe(embeddings=100, dimension=DIMENSION, space="cosine", sync_threshold=50, batch=50))
    return read_index(folder)


@pytest.fixture
def cosine(cosine_intact: Files) -> Files:
    """An index of cosine distances: unit vectors, and their true lengths in length.bin."""
    return dict(cosine_intact)


def scaled(files: Files, record: int, factor: float) -> None:
    at = record * RECORD + VECTOR
    vector = np.frombuffer(files[LEVEL0], "<f4", DIMENSION, at) * np.float32(factor)
    patch(files, LEVEL0, at, vector.astype("<f4").tobytes())


def test_an_intact_cosine_index_has_no_finding(cosine: Files) -> None:
    assert inspected(cosine, cosine=True).findings == []


@pytest.mark.parametrize("factor", [0.0, 0.5, 0.99, 1.01, 2.0, -3.0])
def test_a_vector_of_a_cosine_index_that_has_not_length_1_is_told(cosine: Files, factor: float) -> None:
    for record in (6, 8):
        scaled(cosine, record, factor)
    (length,) = struct.unpack_from("<f", cosine[LENGTHS], 4 * 6)
    (finding,) = inspected(cosine, cosine=True).findings
    assert (finding.code, finding.file) == ("hnsw.vector_not_normal", f"{SEGMENT}/{LEVEL0}")
    assert finding.detail == (
        f"2 of {COUNT} vectors of a cosine index, the first at offset {6 * RECORD + VECTOR}: its length is "
        f"{abs(factor):g}, expected 1; the true one at offset 24 of length.bin is {length:.6g}"
    )


@pytest.mark.parametrize("length", [0.0, -1.0, math.nan, math.inf])
def test_a_vector_of_length_1_without_a_true_length_is_told(cosine: Files, length: float) -> None:
    patch(cosine, LENGTHS, 4 * 6, struct.pack("<f", length))
    (finding,) = inspected(cosine, cosine=True).findings
    assert finding.code == "hnsw.vector_not_normal"
    assert finding.detail.endswith(f"at offset 24 of length.bin is {length:g}")


def test_lengths_mean_nothing_in_other_indexes(files: Files) -> None:
    scaled(files, 6, 2)
    patch(files, LENGTHS, 0, b"\xff" * 4 * COUNT)
    assert inspected(files).findings == []


def test_rounding_is_no_damage(cosine: Files) -> None:
    for record in range(COUNT):
        scaled(cosine, record, 1 + 1e-5 * (-1) ** record)
    assert inspected(cosine, cosine=True).findings == []


def test_vectors_that_lose_their_length_to_rounding_in_chroma_itself_are_healthy(tmp_path: Path) -> None:
    import chromadb

    exponents = [-45, -38, -30, -25, -20, -18, -16, -15, -14, -12, -8, 0, 8, 12, 14, 15, 16, 17, 18]
    directions = np.random.default_rng(0).standard_normal((50, 4))
    vectors = np.array([directions[n] * 10.0 ** exponents[n % len(exponents)] for n in range(50)]).astype(np.float32)
    vectors[49] = 0
    with chromadb.PersistentClient(tmp_path) as client:
        hnsw_settings = {"hnsw": {"space": "cosine", "sync_threshold": 50, "batch_size": 50}}
        collection = client.create_collection("words", embedding_function=None, configuration=hnsw_settings)
        collection.add(ids=[str(n) for n in range(50)], embeddings=vectors)
    assert inspected(read_index(tmp_path), 4, cosine=True).findings == []


# --- what can be recovered


def ids_of(files: Files) -> dict[str, int]:
    return dict(pickle.loads(files[PICKLE])["id_to_label"])


def test_every_vector_of_an_intact_index_can_be_recovered(files: Files) -> None:
    assert inspected(files).recoverable() == ids_of(files).keys()


@pytest.mark.parametrize(
    ("at", "new"),
    [
        (0, b"\xff\xff"),
        (VECTOR, struct.pack("<f", math.nan)),
        (LABEL, struct.pack("<Q", 10**6)),
        (2, b"\x01"),
        (0, bytes(VECTOR + 8)),
    ],
    ids=["links", "vector", "label", "marked as deleted", "zeros over links and half of the vector"],
)
def test_of_an_index_with_one_broken_record_all_others_can_be_recovered(files: Files, at: int, new: bytes) -> None:
    (label,) = struct.unpack_from("<Q", files[LEVEL0], 4 * RECORD + LABEL)
    broken = {id_ for id_, its in ids_of(files).items() if its == label}
    patch(files, LEVEL0, 4 * RECORD + at, new)
    assert inspected(files).recoverable() == ids_of(files).keys() - broken


def test_neither_of_two_records_with_one_label_can_be_recovered(files: Files) -> None:
    patch(files, LEVEL0, 4 * RECORD + LABEL, files[LEVEL0][5 * RECORD + LABEL : 6 * RECORD])
    assert len(inspected(files).recoverable()) == COUNT - 2


@pytest.mark.parametrize(
    ("name", "change", "left"),
    [(LINKS, -68, COUNT), (LENGTHS, -4, COUNT), (LEVEL0, -1, 0), (HEADER, -1, 0), (PICKLE, -1, 0)],
)
def test_a_cut_file_loses_the_vectors_that_depend_on_it_and_no_others(
    files: Files, name: str, change: int, left: int
) -> None:
    resize(files, name, change)
    assert len(inspected(files).recoverable()) == left


def test_without_its_lengths_no_vector_of_a_cosine_index_can_be_recovered(cosine: Files) -> None:
    resize(cosine, LENGTHS, -4)
    index = inspected(cosine, cosine=True)
    assert codes(index) == {"hnsw.size_mismatch"}
    assert index.recoverable() == set()


@given(arrays(np.float32, st.tuples(st.integers(0, 5), st.integers(1, 5)), elements=st.floats(width=32)))
def test_a_row_is_finite_when_all_its_numbers_are(matrix: NDArray[np.float32]) -> None:
    assert rows_not_finite(matrix).tolist() == (~np.isfinite(matrix).all(axis=1)).tolist()


# --- healthy whatever is in it


@pytest.mark.parametrize(("space", "embeddings"), [("l2", 50), ("cosine", 50), ("ip", 50), ("cosine", 1200)])
def test_every_index_that_chroma_flushes_is_healthy(tmp_path: Path, space: Any, embeddings: int) -> None:
    build_delta(tmp_path, DeltaRecipe(embeddings=embeddings, dimension=4, space=space, sync_threshold=50, batch=50))
    index = inspected(read_index(tmp_path), 4, cosine=space == "cosine")
    assert index.findings == []
    assert len(index.recoverable()) == embeddings


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
@given(mutations, st.sampled_from([DIMENSION, None]), st.booleans())
def test_no_mutation_makes_the_inspection_fail(
    intact: Files, changes: list[tuple[str, int, bytes, str]], dimension: int | None, cosine: bool
) -> None:
    files = dict(intact)
    for name, place, new, how in changes:
        at = place % (len(files[name]) + 1)
        if how == "patch":
            patch(files, name, at, new)
        else:
            files[name] = files[name][:at] + (new + files[name][at:] if how == "insert" else b"")
    index = inspected(files, dimension, cosine=cosine)
    assert len(index.findings) < 50
    assert index.recoverable() <= (index.ids.labels.keys() if index.ids else set())
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
