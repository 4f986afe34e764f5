"""An upload that is killed, disturbed or joined by another at each of its requests: whole, or not finished."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import boto3
import pytest
import stamina
from boto3.s3.transfer import TransferConfig

from devtools.damage.deltas import DeltaRecipe, build_delta
from shared.model.delta import MANIFEST
from shared.model.errors import DeltaguardError, ObjectChanged, TargetError, UploadFailed
from shared.model.manifest import Manifest
from shared.model.settings import Settings
from shared.storage.client import s3_client
from shared.storage.folder import checksum_of
from shared.storage.store import Store
from shared.upload import upload_delta
from tests.support import faults, races, sweep
from tests.support.uploads import files_of, stored

KEY = "words/delta/one"
SETTINGS = Settings(settle_seconds=0)


@pytest.fixture(autouse=True)
def no_pauses(fast_retries: None) -> Iterator[None]:
    stamina.set_testing(True, attempts=2, cap=True)
    yield
    stamina.set_testing(False)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two deltas of different content."""
    home = tmp_path_factory.mktemp("deltas")
    for seed in (1, 2):
        build_delta(home / f"d{seed}", DeltaRecipe(embeddings=3, dimension=4, seed=seed))
    return sorted(home.iterdir())


@pytest.fixture(params=["plain", pytest.param("versions", marks=pytest.mark.slow)])
def emptied(request: pytest.FixtureRequest, bucket: str) -> Callable[[], str]:
    """Gives the name of a new, empty bucket, with or without versions."""
    made = iter(range(10_000))

    def make() -> str:
        name = f"case-{next(made)}"
        client = boto3.client("s3")
        client.create_bucket(Bucket=name)
        if request.param == "versions":
            client.put_bucket_versioning(Bucket=name, VersioningConfiguration={"Status": "Enabled"})
        return name

    return make


def upload(folder: Path, bucket: str, store: Store | None = None) -> str:
    return upload_delta(folder, bucket, KEY, store=store or Store(s3_client()), settings=SETTINGS, attempts=2)


def uploading(folder: Path, bucket: str) -> races.Work:
    return lambda store: upload(folder, bucket, store)


def assert_whole(bucket: str, folder: Path) -> None:
    found = {key.removeprefix(f"{KEY}/"): data for key, data in stored(bucket, KEY).items()}
    listed = Manifest.parse(found.pop(MANIFEST, b""))
    assert found == files_of(folder), f"there are {sorted(found)}"
    assert {file.name for file in listed.files} == found.keys()


def assert_whole_or_not_finished(bucket: str, folder: Path) -> None:
    if f"{KEY}/{MANIFEST}" in stored(bucket, KEY):
        assert_whole(bucket, folder)


def each_request(folder: Path, emptied: Callable[[], str], sample: int) -> list[int]:
    return sweep.numbers(races.counted(uploading(folder, emptied())), sample)


def test_two_producers_of_the_same_delta_both_find_it_whole(folders: list[Path], emptied: Callable[[], str]) -> None:
    tally = races.Tally("upload, the same delta in front of each request")
    for number in each_request(folders[0], emptied, 4):
        bucket = emptied()
        ran = races.run_in_front_of(number, uploading(folders[0], bucket), lambda b=bucket: upload(folders[0], b))
        tally.ended(ran)
        with tally.case(number):
            assert ran.reached
            assert ran.error is None
            assert_whole(bucket, folders[0])
    tally.check()


def test_of_two_deltas_under_one_key_one_is_there_whole_and_the_other_is_refused(
    folders: list[Path], emptied: Callable[[], str]
) -> None:
    tally = races.Tally("upload, another delta in front of each request")
    mine, other = folders
    for number in each_request(mine, emptied, 4):
        bucket = emptied()
        theirs: list[object] = []

        def act(bucket: str = bucket, theirs: list[object] = theirs) -> None:
            try:
                theirs.append(upload(other, bucket))
            except TargetError as error:
                theirs.append(error)

        ran = races.run_in_front_of(number, uploading(mine, bucket), act)
        tally.ended(ran)
        with tally.case(number):
            assert ran.reached
            ours_returned, theirs_returned = ran.error is None, isinstance(theirs[0], str)
            assert ours_returned or isinstance(ran.error, TargetError), ran.error
            assert ours_returned != theirs_returned, theirs
            assert_whole(bucket, mine if ours_returned else other)
    tally.check()


def test_a_producer_that_fails_takes_nothing_from_one_that_succeeds(
    folders: list[Path], emptied: Callable[[], str]
) -> None:
    """The first one's manifest is refused, so it removes what it wrote, while the second counts on that."""

    def failing(bucket: str) -> races.Work:
        def work(store: Store) -> str:
            refuse = faults.refusal("AccessDenied", 403)
            store._client.meta.events.register(
                "before-send.s3",
                lambda request, **_: refuse(request) if request.method == "PUT" and MANIFEST in request.url else None,
            )
            return upload(folders[0], bucket, store)

        return work

    tally = races.Tally("upload that fails, the same delta in front of each request")
    bucket = emptied()
    requests = races.disturbed(0, failing(bucket), lambda _: None).requests
    assert stored(bucket) == {}
    for number in sweep.numbers(requests, 7):
        bucket = emptied()
        ran = races.run_in_front_of(number, failing(bucket), lambda b=bucket: upload(folders[0], b))
        tally.ended(ran)
        with tally.case(number):
            assert ran.reached
            assert_whole(bucket, folders[0])
    tally.check()


@pytest.mark.parametrize("moment", ["before", "after"])
def test_killed_at_any_request_nothing_looks_finished_that_is_not_and_the_next_call_completes_it(
    moment: str, folders: list[Path], emptied: Callable[[], str]
) -> None:
    tally = races.Tally(f"upload, killed {moment} each request")
    for number in each_request(folders[0], emptied, 4):
        bucket = emptied()
        ran = races.run_killed(number, uploading(folders[0], bucket), moment)
        tally.ended(ran)
        with tally.case(number):
            assert isinstance(ran.error, races.Killed)
            assert_whole_or_not_finished(bucket, folders[0])
            upload(folders[0], bucket)
            assert_whole(bucket, folders[0])
    tally.check()


@pytest.mark.parametrize("fault", races.MARKED_FAULTS)
def test_one_fault_at_any_request_is_got_over_and_a_final_one_leaves_nothing_that_looks_finished(
    fault: str, folders: list[Path], emptied: Callable[[], str]
) -> None:
    tally = races.Tally(f"upload, {fault} at each request")
    for number in each_request(folders[0], emptied, 2):
        for repeats in (True, False):
            bucket = emptied()
            work = uploading(folders[0], bucket)
            ran = races.disturbed(number, work, races.FAULTS[fault], repeats=repeats)
            tally.ended(ran)
            with tally.case(number, "repeated" if repeats else "final"):
                assert ran.error is None or isinstance(ran.error, UploadFailed), ran.error
                assert ran.error is None or not repeats, ran.error
                assert_whole_or_not_finished(bucket, folders[0])
                if ran.error is None:
                    assert_whole(bucket, folders[0])
    tally.check()


def test_a_store_that_refuses_conditions_is_looked_into_first(folders: list[Path], bucket: str) -> None:
    unknowing = faults.answering("NotImplemented", 501, lambda request: "If-None-Match" in request.headers)
    upload(folders[0], bucket, unknowing)
    assert_whole(bucket, folders[0])
    with pytest.raises(DeltaguardError, match="give a new delta id"):
        upload(folders[1], bucket, unknowing)
    assert_whole(bucket, folders[0])


def test_an_upload_in_parts_overwrites_nothing_and_leaves_no_parts(
    bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    parts = TransferConfig(multipart_threshold=5 * 1024**2, multipart_chunksize=5 * 1024**2)
    monkeypatch.setattr("shared.storage.store._TRANSFER", parts)
    (tmp_path / "large").write_bytes(b"mine" * 1536 * 1024)

    def put_first(request: Any) -> None:
        if request.method == "POST" and "uploadId" in request.url:
            boto3.client("s3").put_object(Bucket=bucket, Key="one", Body=b"theirs")

    with pytest.raises(ObjectChanged):
        faults.doing(put_first).upload(bucket, "one", tmp_path / "large", only_if_absent=True)
    assert stored(bucket) == {"one": b"theirs"}
    assert "Uploads" not in boto3.client("s3").list_multipart_uploads(Bucket=bucket)
    written = Store(s3_client()).upload(bucket, "two", tmp_path / "large", only_if_absent=True)
    head = boto3.client("s3").head_object(Bucket=bucket, Key="two", ChecksumMode="ENABLED")
    assert (written.size, f'"{written.etag}"') == (head["ContentLength"], head["ETag"])
    assert head["ChecksumCRC64NVME"] == checksum_of(tmp_path / "large")
