"""What has not arrived is not lost: which missing files prove something, when, and by whose clock."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import replace
from datetime import timedelta
from itertools import combinations
from pathlib import Path
from typing import Any

import boto3
import pytest

from shared.check.judgement import Judgement, judge_stored
from shared.model.delta import DATABASE, MANIFEST, SEGMENT_FILES, DeltaLocation, Listing
from shared.model.manifest import Manifest
from shared.model.settings import Settings
from shared.model.verdict import Depth, Status, Verdict
from shared.storage.store import Store
from shared.upload import upload_delta
from tests.support import faults
from tests.support.uploads import files_of, put

KEY = "words/delta/one"
HOURS = 3600.0
SETTLED = 2 * Settings().settle_seconds
"""After so many seconds a delta has settled, and a missing file may still come."""
OVER = 2 * Settings().arrival_seconds


def codes(verdict: Verdict) -> set[str]:
    return {finding.code for finding in verdict.findings}


def judged(location: DeltaLocation, later: float, depth: Depth = Depth.STRUCTURE, **settings: Any) -> Judgement:
    """The judgement when so many seconds have passed by the store's clock."""
    return judge_stored(faults.later(later), location, depth, Settings(**settings))


def subsets(names: list[str], most: int) -> Iterator[tuple[str, ...]]:
    """Parts of an upload: every set of files but the whole, or some of them, always the same."""
    every = [part for number in range(1, len(names)) for part in combinations(names, number)]
    yield from every if len(every) <= most else random.Random(12).sample(every, most)


@pytest.mark.parametrize("depth", [Depth.LISTING, Depth.HEADER, Depth.STRUCTURE])
@pytest.mark.parametrize("manifest", [False, True], ids=["no manifest", "manifest"])
def test_no_part_of_a_healthy_upload_is_corrupt_before_the_arrival_time_is_over(
    bucket: str, flushed_delta: Path, depth: Depth, manifest: bool
) -> None:
    """Whichever files came first and how slowly the others follow; the same upload, whole, is healthy."""
    prefix = upload_delta(flushed_delta, bucket, "whole")
    files = files_of(flushed_delta)
    if manifest:
        files[MANIFEST] = boto3.client("s3").get_object(Bucket=bucket, Key=prefix + MANIFEST)["Body"].read()
    for number, part in enumerate(subsets(list(files), 5)):
        put(bucket, f"{KEY}/{number}", {name: files[name] for name in part})
        judgement = judged(DeltaLocation(bucket, f"{KEY}/{number}/"), SETTLED, depth)
        assert judgement.verdict.status in (Status.HEALTHY, Status.INCOMPLETE), part
        if judgement.verdict.status is Status.INCOMPLETE:
            newest = judgement.listing.newest
            assert newest is not None
            assert judgement.settles_at == newest + timedelta(seconds=Settings().arrival_seconds)
            assert judged(DeltaLocation(bucket, f"{KEY}/{number}/"), OVER, depth).verdict.status is Status.CORRUPT


def test_what_is_there_and_broken_is_proven_once_it_has_settled(bucket: str, flushed_delta: Path) -> None:
    files = files_of(flushed_delta)
    broken = files | {DATABASE: files[DATABASE][:-4096]}
    del broken[next(name for name in broken if name.endswith("link_lists.bin"))]
    put(bucket, KEY, broken)
    verdict = judged(DeltaLocation(bucket, f"{KEY}/"), SETTLED).verdict
    assert verdict.status is Status.CORRUPT
    assert "sqlite.truncated" in codes(verdict)


@pytest.mark.parametrize("ahead", [-3 * HOURS, 3 * HOURS, 300 * HOURS])
def test_the_local_clock_does_not_matter(
    bucket: str, flushed_delta: Path, monkeypatch: pytest.MonkeyPatch, ahead: float
) -> None:
    """Objects dated by a store whose clock is another than the local one: only their age by that clock counts."""
    files = files_of(flushed_delta)
    put(bucket, KEY, {DATABASE: files[DATABASE]})
    location = DeltaLocation(bucket, f"{KEY}/")

    def at_age(seconds: float) -> Verdict:
        store = faults.later(ahead + seconds)
        found = store.list_delta(location)
        shifted = Listing.of(replace(file, modified=file.modified + timedelta(seconds=ahead)) for file in found.files)
        monkeypatch.setattr(store, "list_delta", lambda _, **_options: shifted)
        return judge_stored(store, location, Depth.STRUCTURE, Settings(), await_arrival=True).verdict

    assert codes(at_age(1)) == {"arrival.settling"}
    assert codes(at_age(SETTLED)) == {"arrival.file_awaited"}
    assert "hnsw.pickle_missing" in codes(at_age(OVER))


def test_in_a_store_that_tells_no_time_a_missing_file_proves_nothing(bucket: str, flushed_delta: Path) -> None:
    put(bucket, KEY, {DATABASE: files_of(flushed_delta)[DATABASE]})
    location = DeltaLocation(bucket, f"{KEY}/")
    for await_arrival in (False, True):
        store = faults.dated(lambda _: None)
        verdict = judge_stored(store, location, Depth.STRUCTURE, Settings(), await_arrival=await_arrival).verdict
        assert verdict.status is Status.UNDETERMINED
        assert "time of the store is not known" in verdict.reason


class TestUnfinishedUploads:
    """A file that is uploaded in parts is not listed before it is whole. moto dates each upload by 2010."""

    @pytest.fixture
    def location(self, bucket: str, flushed_delta: Path) -> DeltaLocation:
        """A delta without the largest file of its index."""
        files = files_of(flushed_delta)
        put(bucket, KEY, {name: data for name, data in files.items() if not name.endswith(SEGMENT_FILES[0])})
        return DeltaLocation(bucket, f"{KEY}/")

    @pytest.fixture
    def missing(self, flushed_delta: Path) -> str:
        return next(name for name in files_of(flushed_delta) if name.endswith(SEGMENT_FILES[0]))

    @staticmethod
    def begin(location: DeltaLocation, name: str, *, parts: int = 1) -> str:
        client = boto3.client("s3")
        key = location.key(name)
        upload = client.create_multipart_upload(Bucket=location.bucket, Key=key)["UploadId"]
        for number in range(1, parts + 1):
            client.upload_part(Bucket=location.bucket, Key=key, UploadId=upload, PartNumber=number, Body=b"part")
        return upload

    @staticmethod
    def over(location: DeltaLocation, since_last_part: float = 0) -> tuple[Judgement, list[str]]:
        """Long after the files that are there arrived, and so many seconds after the last part, with the requests."""
        requests: list[str] = []
        store = faults.later(since_last_part)
        found = store.list_delta(location).files
        aged = Listing.of(replace(file, modified=file.modified - timedelta(seconds=OVER)) for file in found)
        store.list_delta = lambda _, **_options: aged  # type: ignore[method-assign]
        watch = lambda request, **_: requests.append(f"{request.method} {request.url.partition('/deltas')[2]}")  # noqa: E731
        store._client.meta.events.register_first("before-send", watch)
        return judge_stored(store, location, Depth.STRUCTURE, Settings()), requests

    def test_an_upload_with_a_recent_part_is_a_file_that_is_arriving(
        self, location: DeltaLocation, missing: str
    ) -> None:
        self.begin(location, missing)
        judgement, _ = self.over(location)
        assert judgement.verdict.status is Status.INCOMPLETE
        assert "upload in parts" in judgement.verdict.reason
        assert judgement.settles_at is not None

    @pytest.mark.parametrize("parts", [0, 1])
    def test_an_upload_without_one_is_abandoned(self, location: DeltaLocation, missing: str, parts: int) -> None:
        self.begin(location, missing, parts=parts)
        assert self.over(location, OVER)[0].verdict.status is Status.CORRUPT

    def test_an_upload_below_that_is_none_of_this_delta_does_not_count(self, location: DeltaLocation) -> None:
        for name in (f"deeper/{DATABASE}", "notes.txt"):
            self.begin(location, name)
        assert self.over(location)[0].verdict.status is Status.CORRUPT

    def test_an_upload_of_a_file_that_the_manifest_lists_counts(
        self, bucket: str, location: DeltaLocation, flushed_delta: Path
    ) -> None:
        prefix = upload_delta(flushed_delta, bucket, "whole")
        whole = Manifest.parse(boto3.client("s3").get_object(Bucket=bucket, Key=prefix + MANIFEST)["Body"].read())
        listed = whole.files[0].model_copy(update={"name": "notes.txt"})
        put(bucket, KEY, {MANIFEST: whole.model_copy(update={"files": (*whole.files, listed)}).as_bytes()})
        self.begin(location, "notes.txt")
        assert self.over(location)[0].verdict.status is Status.INCOMPLETE

    def test_an_upload_that_is_finished_in_this_moment_is_no_loss(
        self, location: DeltaLocation, missing: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        upload = self.begin(location, missing)
        latest_part = Store.latest_part

        def finish(store: Store, *given: Any) -> Any:
            boto3.client("s3").abort_multipart_upload(
                Bucket=location.bucket, Key=location.key(missing), UploadId=upload
            )
            return latest_part(store, *given)

        monkeypatch.setattr(Store, "latest_part", finish)
        assert self.over(location)[0].verdict.status is Status.INCOMPLETE

    @pytest.mark.parametrize(
        ("code", "status", "expected"),
        [("AccessDenied", 403, Status.UNDETERMINED), ("NotImplemented", 501, Status.CORRUPT)],
    )
    def test_where_they_cannot_be_listed_nobody_knows_and_where_there_are_none_time_alone_tells(
        self, location: DeltaLocation, monkeypatch: pytest.MonkeyPatch, code: str, status: int, expected: Status
    ) -> None:
        refused = faults.answering(code, status)
        monkeypatch.setattr(
            Store, "unfinished_uploads", lambda _, *given: type(refused).__mro__[1].unfinished_uploads(refused, *given)
        )
        assert self.over(location)[0].verdict.status is expected

    def test_they_are_asked_for_only_where_a_file_is_missing_too_long(
        self, location: DeltaLocation, missing: str, flushed_delta: Path
    ) -> None:
        assert any("uploads" in request for request in self.over(location)[1])
        put(location.bucket, KEY, {missing: files_of(flushed_delta)[missing]})
        judgement, requests = self.over(location)
        assert judgement.verdict.status is Status.HEALTHY
        assert not any("uploads" in request for request in requests)
