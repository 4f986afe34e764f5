"""Discovery finds exactly the deltas that were planted, in S3 and in folders."""

from __future__ import annotations

import itertools
import sys
import tempfile
import tracemalloc
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, cast

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from scanner.find.discovery import _deltas, find_folders, find_stored
from shared.model.delta import MAX_BELOW, MAX_OTHERS, DeltaFile, DeltaLocation
from shared.model.errors import CouldNotCheck, ObjectGone
from shared.storage.store import Store
from tests.support import sweep

SERVERS = ("moto", "rclone")

SEGMENT = "0b3c9f4e-1111-4222-8333-444455556666"
OTHER_SEGMENT = "f0000000-1111-4222-8333-444455556666"

# Every non-empty choice of these is a delta, even one that lost its database.
MARKS = ("chroma.sqlite3", "chroma.sqlite3-journal", "delta.manifest.json", f"{SEGMENT}/header.bin")
# None of these makes a delta of the folder they lie in.
NOISE = ("readme.txt", "chroma.sqlite3.bak", "header.bin", f"{SEGMENT}/notes.txt", "chroma.sqlite3/inside.txt")
# Names before and after those of a delta's own files, and delta ids that look like the folder of an index.
PARTS = ("a", "b", "a.b", "0", "z", "chroma", "with space", OTHER_SEGMENT, SEGMENT)

places = st.lists(st.sampled_from(PARTS), min_size=1, max_size=3).map("/".join)
layouts = st.dictionaries(places, st.sets(st.sampled_from(MARKS), min_size=1), max_size=6)
noises = st.sets(st.tuples(places, st.sampled_from(NOISE[:4])), max_size=4)


def keys_of(layout: dict[str, set[str]], noise: set[tuple[str, str]]) -> set[str]:
    planted = {f"{place}/{name}" for place, names in layout.items() for name in names}
    # `header.bin` in a folder that is named like an index is no noise: it is an index.
    ignored = {f"{place}/{name}" for place, name in noise if name != "header.bin" or len(place.split("/")[-1]) < 36}
    return planted | ignored


def write(root: Path, *keys: str) -> None:
    for key in keys:
        (root / key).parent.mkdir(parents=True, exist_ok=True)
        (root / key).write_bytes(b"x")


def put(store: Store, bucket: str, *keys: str) -> None:
    for key in keys:
        store.put(bucket, key, b"x")


def prefixes(store: Store, bucket: str, prefix: str = "", skip: tuple[str, ...] = ()) -> list[str]:
    return [found.location.prefix for found in find_stored(store, bucket, prefix, skip)]


def folders(root: Path) -> list[Path]:
    return [found.path for found in find_folders(root)]


@given(layouts, noises)
@settings(max_examples=60, deadline=None)
def test_folders_found_are_exactly_those_planted(layout: dict[str, set[str]], noise: set[tuple[str, str]]) -> None:
    with tempfile.TemporaryDirectory() as scratch:
        root = Path(scratch)
        write(root, *keys_of(layout, noise))
        assert sorted(folders(root)) == sorted(root / place for place in layout)


@given(layouts, noises)
@settings(max_examples=60, deadline=None)
def test_from_every_bookmark_the_search_goes_on_with_the_next_delta(
    layout: dict[str, set[str]], noise: set[tuple[str, str]]
) -> None:
    keys = sorted(f"root/{key}" for key in keys_of(layout, noise))

    class Canned:
        def walk(self, bucket: str, prefix: str, after: str = "") -> Iterator[tuple[str, DeltaFile]]:  # noqa: ARG002
            return ((key, DeltaFile(key, 1, "e", datetime.now(UTC))) for key in keys if key > after)

    found = list(find_stored(Canned(), "bucket", "root/"))
    assert len(found) == len(layout)
    for number, delta in enumerate(found, 1):
        rest = [other.name for other in find_stored(Canned(), "bucket", "root/", since=delta.bookmark)]
        assert rest == [other.name for other in found[number:]]


@given(layouts, noises)
@settings(max_examples=40, deadline=None)
def test_so_it_is_in_folders(layout: dict[str, set[str]], noise: set[tuple[str, str]]) -> None:
    with tempfile.TemporaryDirectory() as scratch:
        root = Path(scratch)
        write(root, *keys_of(layout, noise))
        found = list(find_folders(root))
        for number, delta in enumerate(found, 1):
            rest = [other.path for other in find_folders(root, since=delta.bookmark)]
            assert rest == [other.path for other in found[number:]]


_case = itertools.count()


@given(layouts, noises)
@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_prefixes_found_are_exactly_those_planted(
    store: Store, bucket: str, layout: dict[str, set[str]], noise: set[tuple[str, str]]
) -> None:
    root = f"case-{next(_case)}/"
    put(store, bucket, *(root + key for key in keys_of(layout, noise)))
    found = {delta.location.prefix: delta.listing for delta in find_stored(store, bucket, root)}
    assert found.keys() == {f"{root}{place}/" for place in layout}
    for prefix, listing in found.items():
        assert listing == store.list_delta(DeltaLocation(bucket, prefix))
        assert listing is not None
        below = {place.removeprefix(prefix) for place in found if place.startswith(prefix) and place != prefix}
        assert set(listing.below) == below


def test_a_delta_inside_a_delta_is_another_one_and_interrupts_no_other(store: Store, bucket: str) -> None:
    put(store, bucket, f"a/{SEGMENT}/header.bin", "a/b/chroma.sqlite3", "a/chroma.sqlite3", "a/z/chroma.sqlite3")
    assert prefixes(store, bucket) == ["a/b/", "a/z/", "a/"]


def test_a_delta_comes_with_its_objects_as_a_listing_of_its_own_has_them(store: Store, bucket: str) -> None:
    put(store, bucket, "a/.notes", f"a/{SEGMENT}/header.bin", "a/b/chroma.sqlite3", "a/chroma.sqlite3", "a/z.txt")
    found = list(find_stored(store, bucket, ""))
    assert [(f.location.prefix, f.listing) for f in found] == [
        (prefix, store.list_delta(DeltaLocation(bucket, prefix))) for prefix in ("a/b/", "a/")
    ]


class _Pages:
    """A client that answers with a million keys, a thousand at a time, as `list_objects_v2` does."""

    def __init__(self, keys: int) -> None:
        self._pages = keys // 1000
        self._modified = datetime.now(UTC)

    def list_objects_v2(self, *, ContinuationToken: str = "0", **_: str) -> dict[str, Any]:  # noqa: N803 - S3's name
        page = int(ContinuationToken)
        keys = (
            f"words/delta/{page * 200 + number:06}/{name}"
            for number in range(200)
            for name in ("chroma.sqlite3", "notes.txt", "z/a", "z/b", "z/c")
        )
        objects = [{"Key": key, "Size": 1, "ETag": '"e"', "LastModified": self._modified} for key in keys]
        more = page + 1 < self._pages
        return {"Contents": objects, "IsTruncated": more, "NextContinuationToken": str(page + 1)}


@pytest.mark.slow
def test_a_million_keys_need_no_more_memory_than_a_few() -> None:
    keys = sweep.few(200_000, 1_000_000)
    store = Store(cast(Any, _Pages(keys)))
    tracemalloc.start()
    found = files = 0
    for delta in find_stored(store, "bucket", ""):
        assert delta.listing is not None
        found, files = found + 1, files + len(delta.listing.files)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert (found, files) == (keys // 5, keys // 5)
    assert peak < 4_000_000


@pytest.mark.parametrize(
    "stray", ["words/chroma.sqlite3", "words/delta.manifest.json", "words/delta/chroma.sqlite3-journal"]
)
def test_a_stray_file_above_a_hundred_thousand_keys_needs_no_more_memory(stray: str) -> None:
    pages = _Pages(100_000)

    class WithStray:
        def walk(self, bucket: str, prefix: str, after: str = "") -> Iterator[tuple[str, DeltaFile]]:
            yield from Store(cast(Any, pages)).walk(bucket, prefix, after)
            yield stray, DeltaFile(stray, 1, "e", datetime.now(UTC))

    tracemalloc.start()
    last = None
    for last in find_stored(WithStray(), "bucket", ""):  # noqa: B007 - the last one is asked for
        pass
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert last is not None and last.listing is not None
    assert last.location.prefix == stray[: stray.rfind("/") + 1]
    assert [file.name for file in last.listing.files] == [stray.rpartition("/")[2]]
    assert (last.listing.more + len(last.listing.others), len(last.listing.below)) == (100_000, MAX_BELOW)
    assert peak < 4_000_000


def test_a_delta_found_late_among_many_objects_has_all_its_own() -> None:
    keys = [f"a/{number:05}.txt" for number in range(MAX_OTHERS + 1)] + ["a/chroma.sqlite3"]
    ((folder, _),) = _deltas(((key, DeltaFile(key, 1, "e", datetime.now(UTC))) for key in keys), "")
    listing = folder.listing()
    assert listing is not None and [file.name for file in listing.files] == ["chroma.sqlite3"]
    assert (len(listing.others), listing.more, listing.crowded) == (MAX_OTHERS, 1, True)


def test_a_delta_with_too_many_files_of_its_own_has_no_listing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shared.model.delta.MAX_FILES", 3)
    keys = [f"a/{number:08}-1111-4222-8333-444455556666/header.bin" for number in range(4)]
    ((folder, _),) = _deltas(((key, DeltaFile(key, 1, "e", datetime.now(UTC))) for key in keys), "")
    assert (folder.prefix, folder.listing()) == ("a/", None)


def test_quarantine_is_skipped(store: Store, bucket: str) -> None:
    put(
        store,
        bucket,
        "deltas/x/chroma.sqlite3",
        "quarantine/deltas/y/f1/chroma.sqlite3",
        "quarantine-not/chroma.sqlite3",
    )
    assert prefixes(store, bucket, skip=("quarantine/",)) == ["deltas/x/", "quarantine-not/"]


def test_a_delta_above_the_prefix_is_not_below_it(store: Store, bucket: str) -> None:
    put(store, bucket, f"a/{SEGMENT}/header.bin")
    assert prefixes(store, bucket, f"a/{SEGMENT}/") == []
    assert prefixes(store, bucket, "a/") == ["a/"]


def test_a_database_at_the_top_of_a_bucket_is_no_delta(store: Store, bucket: str) -> None:
    put(store, bucket, "chroma.sqlite3")
    assert prefixes(store, bucket) == []


def test_a_missing_bucket_is_told_apart(store: Store) -> None:
    with pytest.raises(ObjectGone):
        list(find_stored(store, "no-such-bucket", ""))


def test_a_folder_can_be_the_delta_itself(tmp_path: Path) -> None:
    write(tmp_path, "chroma.sqlite3", "below/chroma.sqlite3")
    assert folders(tmp_path) == [tmp_path / "below", tmp_path]


def test_links_are_not_followed(tmp_path: Path) -> None:
    write(tmp_path, "outside/x/chroma.sqlite3", "inside/y/chroma.sqlite3")
    (tmp_path / "inside" / "link").symlink_to(tmp_path / "outside")
    (tmp_path / "inside" / "loop").symlink_to(tmp_path / "inside")
    assert folders(tmp_path / "inside") == [tmp_path / "inside" / "y"]


def test_a_folder_that_cannot_be_listed_is_told(tmp_path: Path) -> None:
    write(tmp_path, "a/chroma.sqlite3")
    file = tmp_path / "a" / "chroma.sqlite3"
    with pytest.raises(CouldNotCheck, match="Not a directory"):
        list(find_folders(file))


def test_folders_may_be_deeper_than_python_recurses(tmp_path: Path) -> None:
    made = [tmp_path]
    try:
        for _ in range(sys.getrecursionlimit() + 100):
            made.append(made[-1] / "d")
            made[-1].mkdir()
        write(made[-1], "chroma.sqlite3")
        assert folders(tmp_path) == [made[-1]]
    finally:  # pytest cannot remove them: shutil.rmtree recurses
        (made[-1] / "chroma.sqlite3").unlink()
        for folder in reversed(made[1:]):
            folder.rmdir()
