"""The edge to S3: conditions hold, errors leave as this project's own, and nothing is retried twice over."""

from __future__ import annotations

import base64
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import boto3
import pytest
from awscrt.checksums import crc64nvme
from botocore.utils import parse_timestamp

from shared.model.delta import DATABASE, MAX_FILES, DeltaFile, DeltaLocation
from shared.model.errors import ObjectChanged, ObjectGone, StorageError
from shared.model.manifest import encode_checksum
from shared.storage import listing as enumeration
from shared.storage.client import _moment
from shared.storage.store import Store, current_store
from tests.support import faults, races


@pytest.fixture
def put(bucket: str) -> Any:
    return lambda key, body=b"content": (
        boto3.client("s3").put_object(Bucket=bucket, Key=key, Body=body)["ETag"].strip('"')
    )


def test_walking_follows_every_page_in_the_order_of_keys(store: Store, bucket: str, put: Any) -> None:
    for number in range(1005):
        put(f"many/{number:04d}", b"")
    keys = [key for key, _ in store.walk(bucket, "many/")]
    assert keys == [f"many/{number:04d}" for number in range(1005)]


class TestListingDeltasTogether:
    """One listing for deltas side by side tells of each what its own would."""

    NAMES = ("1", "10", "2", "a b", "é", "\U0001f600")

    @pytest.fixture
    def places(self, bucket: str) -> list[DeltaLocation]:
        client = boto3.client("s3")
        others = ("d/0/x", "d/1", "d/1.txt", "d/10/", "d/1/", "d/15/x/y", "d/zzz/x", "e/1/x")
        for key in (*others, *(f"d/{name}/{file}" for name in self.NAMES for file in ("a", "b/c"))):
            client.put_object(Bucket=bucket, Key=key, Body=b"x")
        return [DeltaLocation(bucket, f"d/{name}/") for name in reversed(self.NAMES)]

    def test_each_listing_is_that_of_the_delta_alone(self, places: list[DeltaLocation]) -> None:
        requests: list[str] = []
        store = faults.doing(lambda request: requests.append(request.url))
        gone = DeltaLocation(places[0].bucket, "d/3/")
        found = store.list_deltas([*places, gone])
        assert len(requests) == 1
        assert found == {place: store.list_delta(place) for place in places}

    def test_a_store_that_does_not_sort_its_keys_tells_nothing_of_deltas_together(
        self, places: list[DeltaLocation], store: Store, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Or a delta whose last file comes late would look as if it had lost it."""
        entries = list(store.walk(places[0].bucket, "d/"))
        for late in range(len(entries) - 1):
            unsorted = [*entries[:late], *entries[late + 1 :], entries[late]]
            monkeypatch.setattr(store, "walk", lambda *_, found=unsorted, **__: (entry for entry in found))
            assert store.list_deltas(places) == {}

    def test_few_are_not_worth_it(self, places: list[DeltaLocation], store: Store) -> None:
        assert store.list_deltas(places[:3]) == {}

    def test_deltas_at_the_top_of_a_bucket_are_not_listed_with_all_of_it(self, store: Store, bucket: str) -> None:
        assert store.list_deltas([DeltaLocation(bucket, f"{name}/") for name in range(4)]) == {}

    @pytest.mark.parametrize("most", range(16))
    def test_behind_too_many_other_objects_it_gives_up(
        self, places: list[DeltaLocation], store: Store, monkeypatch: pytest.MonkeyPatch, most: int
    ) -> None:
        monkeypatch.setattr(enumeration, "_PAGE_KEYS", most)
        found = store.list_deltas(places)
        assert found == {place: store.list_delta(place) for place in places if place in found}
        assert (len(found) == len(places)) == (most >= 15)


def test_a_listing_has_names_below_the_prefix_and_no_folder_marker(store: Store, bucket: str, put: Any) -> None:
    put("d/1/")
    put("d/1/a b+c")
    put("d/10/other")
    assert [file.name for file in store.list_delta(DeltaLocation(bucket, "d/1/")).others] == ["a b+c"]


SEGMENT = "0a1b2c3d-0000-4000-8000-0123456789ab"
OWN = (DATABASE, f"{SEGMENT}/header.bin", f"{SEGMENT}/length.bin", "delta.manifest.json")


class TestManyObjectsBelow:
    """However many objects lie deeper, the files of a delta itself are all found, by few requests."""

    PLACE = DeltaLocation("deltas", "d/")

    @pytest.fixture(autouse=True)
    def few(self, monkeypatch: pytest.MonkeyPatch) -> None:
        assert MAX_FILES > 10_000
        monkeypatch.setattr("shared.storage.listing.MAX_FILES", 5)

    @pytest.mark.parametrize(
        ("name", "below"),
        [("0/{}/chroma.sqlite3", ("0/0/", "0/1/", "0/2/", "0/3/", "0/4/")), ("0/{}/x", ()), ("/{}", ())],
    )
    def test_its_own_files_are_listed_level_by_level(
        self, store: Store, put: Any, name: str, below: tuple[str, ...]
    ) -> None:
        for key in (*OWN, "notes.txt"):
            put(self.PLACE.key(key))
        alone = store.list_delta(self.PLACE)
        for number in range(9):
            put(self.PLACE.key(name.format(number)), b"")
        listing = store.list_delta(self.PLACE)
        assert listing.files == alone.files
        assert (listing.fingerprint, listing.others) == (alone.fingerprint, alone.others)
        assert (listing.below, listing.unseen, alone.unseen) == (below, True, False)

    def test_own_files_beyond_the_limit_are_too_many(
        self, store: Store, put: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("shared.model.delta.MAX_FILES", 5)
        for number in range(6):
            put(self.PLACE.key(f"0a1b2c3d-0000-4000-8000-00000000000{number}/header.bin"))
        with pytest.raises(StorageError, match="too many objects") as raised:
            store.list_delta(self.PLACE)
        assert raised.value.code == "check.size_cap"

    @pytest.mark.parametrize(("limit", "name"), [("_MOST_ENTRIES", "{}.txt"), ("_MOST_INDEXES", SEGMENT[:-1] + "{}/x")])
    @pytest.mark.parametrize(("more", "code"), [("x", "check.size_cap"), (DATABASE, "verdict.deltas_below")])
    def test_where_too_much_lies_on_its_own_level_it_is_not_told_apart(
        self, store: Store, put: Any, monkeypatch: pytest.MonkeyPatch, limit: str, name: str, more: str, code: str
    ) -> None:
        monkeypatch.setattr(enumeration, limit, 4)
        put(self.PLACE.key(f"!/{more}"))
        for number in range(9):
            put(self.PLACE.key(name.format(number)))
        with pytest.raises(StorageError) as raised:
            store.list_delta(self.PLACE)
        assert raised.value.code == code


def test_an_upload_keeps_the_checksum_of_the_whole_object(store: Store, bucket: str, tmp_path: Path) -> None:
    data = bytes(range(256)) * 100
    (tmp_path / "file").write_bytes(data)
    store.upload(bucket, "one", tmp_path / "file")
    stored = store.head(bucket, "one")
    assert stored.crc64nvme == encode_checksum(crc64nvme(data))
    assert store.checksum(bucket, "one", stored.etag) == stored.crc64nvme
    assert base64.b64decode(str(stored.crc64nvme)) == crc64nvme(data).to_bytes(8, "big")


def test_a_range_of_an_empty_object_is_empty(store: Store, bucket: str, put: Any) -> None:
    put("empty", b"")
    assert store.read(bucket, "empty", 100) == b""
    put("short", b"abc")
    assert store.read(bucket, "short", 100) == b"abc"
    assert store.read(bucket, "short", 2) == b"ab"


def test_a_download_takes_only_the_object_that_was_listed(store: Store, bucket: str, put: Any, tmp_path: Path) -> None:
    put(f"d/1/{DATABASE}", b"old")
    (file,) = store.list_delta(DeltaLocation(bucket, "d/1/")).files
    put(f"d/1/{DATABASE}", b"new")
    with pytest.raises(ObjectChanged):
        store.download(DeltaLocation(bucket, "d/1/"), file, tmp_path / "file")


def test_a_download_that_ends_early_or_late_is_an_error(store: Store, bucket: str, put: Any, tmp_path: Path) -> None:
    etag = put(f"d/1/{DATABASE}", b"12345")
    for size in (4, 6):
        file = DeltaFile(DATABASE, size, etag, store.list_delta(DeltaLocation(bucket, "d/1/")).files[0].modified)
        with pytest.raises(StorageError, match=f"{size} were listed"):
            store.download(DeltaLocation(bucket, "d/1/"), file, tmp_path / f"file-{size}")


def test_a_download_whose_bytes_changed_on_their_way_is_an_error(bucket: str, tmp_path: Path) -> None:
    store, _ = faults.hooked(faults.changed_on_the_way)
    store.put(bucket, f"d/1/{DATABASE}", b"as it was stored" * 1000)
    (file,) = store.list_delta(DeltaLocation(bucket, "d/1/")).files
    with pytest.raises(StorageError, match="checksum") as raised:
        store.download(DeltaLocation(bucket, "d/1/"), file, tmp_path / "file")
    assert (raised.value.code, raised.value.s3_code) == ("check.storage", "FlexibleChecksumError")


def test_a_store_without_tags_is_not_sent_any_for_it_would_overwrite_the_object(foreign_store: Store) -> None:
    for content in (b"SQLite format 3", b"<Tagging><TagSet></TagSet></Tagging>", b""):
        foreign_store.put("deltas", "d/1/chroma.sqlite3", content)
        with pytest.raises(StorageError):
            foreign_store.set_tags("deltas", "d/1/chroma.sqlite3", {"deltaguard:status": "healthy"})
        assert foreign_store.read("deltas", "d/1/chroma.sqlite3", 100) == content


def test_a_delete_takes_only_the_object_that_was_judged(store: Store, bucket: str, put: Any) -> None:
    etag = put("one")
    put("one", b"newer")
    with pytest.raises(ObjectChanged):
        store.delete(bucket, "one", etag)
    assert store.head(bucket, "one").size == 5
    store.delete(bucket, "one", store.head(bucket, "one").etag)
    with pytest.raises(ObjectGone):
        store.head(bucket, "one")


def test_deleting_what_is_gone_is_no_error(store: Store, bucket: str) -> None:
    store.delete(bucket, "never", "0" * 32)


def test_only_the_first_of_two_exclusive_writes_counts(store: Store, bucket: str) -> None:
    assert store.put(bucket, "one", b"first", only_if_absent=True)
    assert not store.put(bucket, "one", b"second", only_if_absent=True)
    assert store.read(bucket, "one", 10) == b"first"


@pytest.mark.parametrize(
    ("code", "status", "finding"),
    [
        ("AccessDenied", 403, "check.access_denied"),
        ("SlowDown", 503, "check.throttled"),
        ("InternalError", 500, "check.storage"),
        ("NoSuchBucket", 404, "check.gone"),
    ],
)
def test_errors_say_what_was_tried_on_which_object(
    bucket: str, fast_retries: None, code: str, status: int, finding: str
) -> None:
    store = faults.answering(code, status)
    with pytest.raises(StorageError, match=rf"reading s3://{bucket}/some/key: {code}: injected") as raised:
        store.read(bucket, "some/key", 10)
    assert (raised.value.code, raised.value.s3_code) == (finding, code)


def test_a_throttled_request_is_made_five_times_and_not_more(bucket: str, fast_retries: None) -> None:
    seen: list[str] = []

    def throttle(request: Any) -> bool:
        seen.append(request.url)
        return True

    with pytest.raises(StorageError):
        faults.answering("SlowDown", 503, throttle).read(bucket, "key", 1)
    assert len(seen) == 5


def test_the_store_of_an_environment_is_made_once_and_follows_it(aws: str, monkeypatch: pytest.MonkeyPatch) -> None:
    first = current_store()
    assert current_store() is first
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "rotated")
    assert current_store() is not first


@pytest.mark.parametrize(
    "text",
    ["2026-11-25T01:34:54.000Z", "2026-11-25T01:34:54Z", "Wed, 25 Nov 2026 01:34:54 GMT", "2026-11-25 01:34:54", "0"],
)
def test_times_are_read_as_botocore_reads_them(text: str) -> None:
    assert _moment(text) == parse_timestamp(text)


def test_a_walk_goes_on_behind_a_key(store: Store, bucket: str) -> None:
    for name in "abc":
        store.put(bucket, f"d/{name}", b"")
    assert [key for key, _ in store.walk(bucket, "d/", "d/a")] == ["d/b", "d/c"]
    assert (store.holds(bucket, "d/"), store.holds(bucket, "e/")) == (True, False)


@pytest.mark.parametrize("seconds", [-86_400, 0, 400_000])
def test_the_time_of_a_store_is_that_of_its_answers_and_not_of_the_local_clock(bucket: str, seconds: int) -> None:
    store = faults.later(seconds)
    store.holds(bucket, "")
    expected = datetime.now(UTC) + timedelta(seconds=seconds)
    assert expected - timedelta(seconds=60) < store.now() <= datetime.now(UTC) + timedelta(seconds=seconds)
    assert store.now() > store.now() - timedelta(seconds=1)


def test_the_time_of_a_store_goes_on_between_its_answers(
    store: Store, bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.holds(bucket, "")
    before, monotonic = store.now(), time.monotonic
    monkeypatch.setattr("shared.storage.client.time.monotonic", lambda: monotonic() + 3600)
    assert store.now() - before >= timedelta(hours=1)


@pytest.mark.parametrize("date", [None, "", "yesterday", "Thu, 01 Jan 1970"])
def test_a_store_that_tells_no_time_is_not_believed_to_have_the_local_one(bucket: str, date: str | None) -> None:
    store = faults.dated(lambda _: date)
    store.holds(bucket, "")
    with pytest.raises(StorageError, match="time of the store is not known"):
        store.now()


@pytest.mark.usefixtures("fast_retries")
class TestLostAnswers:
    """The store has done what it was asked for, and nobody hears of it: botocore asks again, and meets its own work."""

    @pytest.fixture(params=["reset after", "500 after"])
    def once(self, request: pytest.FixtureRequest) -> Callable[..., races.Ran]:
        """Does some work whose first write is answered so."""

        def run(work: races.Work, *, repeats: bool) -> races.Ran:
            return races.disturbed(1, work, races.FAULTS[request.param], repeats=repeats)

        return run

    @pytest.mark.parametrize("repeats", [True, False], ids=["repeated", "final"])
    def test_an_exclusive_write_that_was_done_counts(self, once: Any, repeats: bool, bucket: str) -> None:
        ran = once(lambda store: store.put(bucket, "one", b"mine", only_if_absent=True), repeats=repeats)
        assert (ran.result, ran.error) == (True, None)

    @pytest.mark.parametrize("repeats", [True, False], ids=["repeated", "final"])
    def test_a_replacement_that_was_done_counts(self, once: Any, repeats: bool, store: Store, bucket: str) -> None:
        store.put(bucket, "one", b"first")
        etag = store.head(bucket, "one").etag
        ran = once(lambda store: store.replace(bucket, "one", b"mine", etag), repeats=repeats)
        assert (ran.result, ran.error) == (True, None)

    @pytest.mark.parametrize("repeats", [True, False], ids=["repeated", "final"])
    def test_a_copy_that_was_done_counts(self, once: Any, repeats: bool, store: Store, bucket: str) -> None:
        store.put(bucket, "one", b"mine")
        etag = store.head(bucket, "one").etag
        copy = lambda store: store.copy(bucket, "one", etag, bucket, "two", 4, only_if_absent=True)  # noqa: E731
        ran = once(copy, repeats=repeats)
        assert ran.error is None
        assert store.read(bucket, "two", 10) == b"mine"

    def test_what_another_wrote_is_not_taken_for_it(self, store: Store, bucket: str) -> None:
        store.put(bucket, "one", b"theirs")
        mine = lambda store: store.put(bucket, "one", b"mine", only_if_absent=True)  # noqa: E731
        for fault in ("reset before", "reset after"):
            assert races.disturbed(1, mine, races.FAULTS[fault]).result is False
        assert isinstance(races.disturbed(1, mine, races.FAULTS["reset before"], repeats=False).error, StorageError)
