"""Names and places: what is a delta's file, which delta an object belongs to, and when a listing is another one."""

from __future__ import annotations

import os
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from shared.model.delta import (
    DATABASE,
    DeltaFile,
    DeltaLocation,
    Listing,
    delta_prefix_of,
    is_chroma_file,
    is_own_file,
    parse_s3_uri,
    printable,
    segment_of,
)
from shared.model.errors import TargetError

SEGMENT = "0a1b2c3d-0000-4000-8000-0123456789ab"
NOW = datetime(2026, 1, 1, tzinfo=UTC)
ANY_NAME = st.text(max_size=200) | st.binary(max_size=200).map(os.fsdecode)
"""A local file may have a name that is not UTF-8."""


def listing(*files: tuple[str, int, str], modified: datetime = NOW) -> Listing:
    return Listing.of(DeltaFile(name, size, etag, modified) for name, size, etag in files)


@pytest.mark.parametrize(
    ("uri", "bucket", "prefix"),
    [
        ("s3://deltas/tenant/d1/", "deltas", "tenant/d1/"),
        ("s3://deltas/tenant/d1", "deltas", "tenant/d1"),
        ("s3://deltas/", "deltas", ""),
        ("s3://deltas", "deltas", ""),
        ("s3://a.b-c.d/ü b/+%2F?#", "a.b-c.d", "ü b/+%2F?#"),
    ],
)
def test_an_s3_uri_is_a_bucket_and_a_prefix_taken_literally(uri: str, bucket: str, prefix: str) -> None:
    assert parse_s3_uri(uri) == (bucket, prefix)


@pytest.mark.parametrize(
    "uri",
    [
        "", "deltas/tenant/d1", "/tmp/delta", "s3:/deltas/d1", "s3://", "s3:///d1", "S3://deltas/d1", "http://deltas/d1",
        "s3://De_ltas/d1", "s3://a/d1", "s3://-deltas/d1", "s3://deltas-/d1", "s3://del tas/d1", f"s3://{'a' * 64}/d1",
        "s3://deltas\n/d1",
    ],
)  # fmt: skip
def test_what_is_not_an_s3_uri_is_refused_with_one_line_that_shows_it(uri: str) -> None:
    for parse in (parse_s3_uri, DeltaLocation.parse):
        with pytest.raises(TargetError, match="not an s3://bucket/prefix") as refused:
            parse(uri)
        assert printable(uri) in str(refused.value)
        assert str(refused.value).isprintable()


@pytest.mark.parametrize("uri", ["s3://deltas", "s3://deltas/", "s3://deltas///"])
def test_a_whole_bucket_is_not_a_delta(uri: str) -> None:
    with pytest.raises(TargetError, match="s3://deltas/PREFIX"):
        DeltaLocation.parse(uri)


def test_a_prefix_that_ends_in_two_slashes_is_another_one() -> None:
    assert DeltaLocation.parse("s3://deltas/tenant/d1//") == DeltaLocation("deltas", "tenant/d1//")


@pytest.mark.parametrize("uri", ["s3://deltas/tenant/d1", "s3://deltas/tenant/d1/"])
def test_a_location_is_the_same_with_and_without_a_slash_at_its_end(uri: str) -> None:
    location = DeltaLocation.parse(uri)
    assert location == DeltaLocation("deltas", "tenant/d1/")
    assert (location.uri, location.delta_id) == ("s3://deltas/tenant/d1/", "d1")
    assert location.key(DATABASE) == "tenant/d1/chroma.sqlite3"


@pytest.mark.parametrize(
    ("key", "prefix"),
    [
        ("d1/chroma.sqlite3", "d1/"),
        ("d1/chroma.sqlite3-journal", "d1/"),
        ("d1/chroma.sqlite3-wal", "d1/"),
        ("d1/delta.manifest.json", "d1/"),
        (f"d1/{SEGMENT}/header.bin", "d1/"),
        (f"d1/{SEGMENT}/index_metadata.pickle", "d1/"),
        ("a/b/c/d/e/f/chroma.sqlite3", "a/b/c/d/e/f/"),
        ("x/" * 300 + DATABASE, "x/" * 300),
        ("ü b/d+1/chroma.sqlite3", "ü b/d+1/"),
        (f"{SEGMENT}/chroma.sqlite3", f"{SEGMENT}/"),
        (f"{SEGMENT}/{SEGMENT}/length.bin", f"{SEGMENT}/"),
        ("/d1/chroma.sqlite3", "/d1/"),
        ("../chroma.sqlite3", "../"),
        ("a/../b/chroma.sqlite3", "a/../b/"),
        ("chroma.sqlite3/chroma.sqlite3", "chroma.sqlite3/"),
    ],
)
def test_the_delta_of_a_key_is_everything_before_the_delta_s_own_names(key: str, prefix: str) -> None:
    assert delta_prefix_of(key) == prefix


@pytest.mark.parametrize(
    "key",
    [
        "", "/", "d1/", DATABASE, "delta.manifest.json", f"{SEGMENT}/header.bin", "/chroma.sqlite3", "//chroma.sqlite3",
        f"/{SEGMENT}/header.bin", "d1/readme.txt", "d1/header.bin", "d1/chroma.sqlite3.bak", "d1/Chroma.sqlite3",
        "d1/chroma.sqlite3/", "d1/chroma.sqlite3\n", f"d1/{SEGMENT}/other.bin", f"d1/{SEGMENT.upper()}/header.bin",
        f"d1/{SEGMENT}x/header.bin", f"d1/x{SEGMENT}/header.bin", f"d1/{SEGMENT}\n/header.bin",
        f"d1/{SEGMENT.replace('-', '')}/header.bin", f"d1/{SEGMENT.replace('b', 'g')}/header.bin",
        f"d1/{SEGMENT}/deeper/header.bin", f"d1\\{SEGMENT}\\header.bin",
    ],
)  # fmt: skip
def test_a_key_that_is_no_delta_s_file_or_lies_at_the_root_belongs_to_no_delta(key: str) -> None:
    assert delta_prefix_of(key) is None


@given(st.lists(st.sampled_from(["", "..", ".", "a", SEGMENT, DATABASE, "header.bin", "delta.manifest.json"])))
def test_a_key_is_its_delta_s_prefix_and_the_name_of_one_of_its_files(parts: list[str]) -> None:
    key = "/".join(parts)
    prefix = delta_prefix_of(key)
    if prefix is not None:
        assert prefix.endswith("/") and prefix.strip("/") and key.startswith(prefix)
        name = key.removeprefix(prefix)
        assert is_chroma_file(name) or name == "delta.manifest.json"


@pytest.mark.parametrize(
    "base", ["data_level0.bin", "header.bin", "index_metadata.pickle", "length.bin", "link_lists.bin"]
)
def test_a_file_of_an_index_tells_its_segment(base: str) -> None:
    assert segment_of(f"{SEGMENT}/{base}") == SEGMENT


@pytest.mark.parametrize(
    "name",
    ["header.bin", "/header.bin", f"{SEGMENT}/", f"/{SEGMENT}/header.bin", f"../{SEGMENT}/header.bin",
     f"a/{SEGMENT}/header.bin", f"{SEGMENT}/x.bin", f"{SEGMENT}/header.bin/", f"{SEGMENT.upper()}/header.bin"],
)  # fmt: skip
def test_any_other_name_is_of_no_segment(name: str) -> None:
    assert segment_of(name) is None


@given(
    ANY_NAME | st.lists(st.sampled_from(["", "..", ".", "~", "a", SEGMENT, DATABASE, "header.bin", "C:"])).map("/".join)
)
@example(f"../{SEGMENT}/header.bin")
@example(f"/{DATABASE}")
@example(f"{SEGMENT}/../{DATABASE}")
def test_a_name_that_could_leave_its_folder_is_never_chroma_s(name: str) -> None:
    if name.startswith("/") or ".." in name or "\\" in name or name.count("/") > 1:
        assert not is_chroma_file(name)


FILES = (("chroma.sqlite3", 4096, "aa"), (f"{SEGMENT}/header.bin", 100, "bb"), (f"{SEGMENT}/length.bin", 40, "cc"))


@given(st.permutations(FILES))
def test_a_fingerprint_does_not_depend_on_the_order_of_the_listing(files: list[tuple[str, int, str]]) -> None:
    assert listing(*files).fingerprint == listing(*FILES).fingerprint
    assert listing(*files).files == listing(*FILES).files


def test_a_fingerprint_does_not_depend_on_when_the_files_arrived() -> None:
    assert listing(*FILES, modified=NOW + timedelta(days=1)).fingerprint == listing(*FILES).fingerprint


@pytest.mark.parametrize(
    "changed",
    [
        ("chroma.sqlite4", 4096, "aa"),
        ("chroma.sqlite3", 4097, "aa"),
        ("chroma.sqlite3", 4096, "ab"),
        ("chroma.sqlite3", 409, "6aa"),
    ],
)
def test_a_fingerprint_changes_with_a_name_a_size_or_an_etag(changed: tuple[str, int, str]) -> None:
    assert listing(changed, *FILES[1:]).fingerprint != listing(*FILES).fingerprint


def test_a_fingerprint_changes_when_a_file_comes_or_goes() -> None:
    assert len({listing(*FILES[:n]).fingerprint for n in range(len(FILES) + 1)}) == len(FILES) + 1


@given(ANY_NAME)
@example("not UTF-8: \udcff")
def test_what_somebody_else_puts_beside_a_delta_changes_no_fingerprint(name: str) -> None:
    assert (listing(*FILES, (name, 1, "x")).fingerprint == listing(*FILES).fingerprint) is (not is_own_file(name))


def test_a_listing_knows_its_size_and_its_newest_file() -> None:
    later, latest = NOW + timedelta(seconds=9), NOW + timedelta(seconds=10)
    files = [DeltaFile(DATABASE, 3, "x", NOW), DeltaFile("delta.manifest.json", 4, "y", later)]
    files += [DeltaFile("of somebody else", 5, "z", latest)]
    assert (Listing.of(files).size, Listing.of(files).newest) == (7, later)
    assert (Listing(()).size, Listing(()).newest) == (0, None)


@given(st.text(st.characters(codec=None)), st.integers(min_value=2, max_value=150))
@example("\x1b[2J\r\n\t\x00\x9b31m\u202e\ufeff\udcff", 120)
def test_no_control_character_of_a_name_reaches_a_terminal(text: str, most: int) -> None:
    shown = printable(text, most)
    assert shown.isprintable()
    assert len(shown) <= most


def test_what_is_printable_and_short_is_shown_as_it_is() -> None:
    assert printable("tenant/ü 1") == "tenant/ü 1"
    assert printable("a\nb\x1b") == "a\\u000ab\\u001b"
    assert printable("x" * 200, 10) == "xxxxxxxxx…"
