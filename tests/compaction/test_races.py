"""A chunk and a final merge that are killed, disturbed or overtaken at each of their requests."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import boto3
import pytest

from compaction import merge
from compaction.chunk import process
from compaction.errors import MergeFailed, MergeOvertaken
from compaction.lock import LockHeld, LockLost
from compaction.snapshot import final_merge
from devtools.damage.deltas import DeltaRecipe, build_delta
from scanner.gate import ChunkRejected
from shared.check.judgement import judge_stored
from shared.model.delta import MANIFEST, DeltaLocation
from shared.model.errors import CouldNotCheck, UploadFailed
from shared.model.settings import Settings
from shared.model.verdict import Depth, Status
from shared.storage.client import s3_client
from shared.storage.store import Store
from shared.upload import upload_delta
from tests.support import races, sweep

SETTINGS = Settings(settle_seconds=0)
CHUNK = "intermediate/b/chunk-0/"
LATEST, LOCK = "snapshots/latest.json", "snapshots/lock.json"
FOREIGN = "00000000-0000-4000-8000-000000000000/header.bin"
RETRYABLE = (ChunkRejected, MergeFailed, UploadFailed, CouldNotCheck, LockHeld, LockLost)

pytestmark = pytest.mark.usefixtures("fast_retries")


@pytest.fixture(autouse=True)
def uncompared(monkeypatch: pytest.MonkeyPatch) -> None:
    """The comparison with Chroma sends no request, so nothing can come between; `test_comparison.py` is about it."""
    monkeypatch.setattr(merge, "_compare", lambda *_: None)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    home = tmp_path_factory.mktemp("deltas")
    for seed in (1, 2):
        build_delta(home / f"d{seed}", DeltaRecipe(embeddings=2, dimension=3, seed=seed))
    return sorted(home.iterdir())


@pytest.fixture(params=["plain", pytest.param("versions", marks=pytest.mark.slow)])
def deltas(request: pytest.FixtureRequest, bucket: str, folders: list[Path]) -> list[dict[str, Any]]:
    """Two deltas in the bucket, which keeps versions or does not."""
    if request.param == "versions":
        boto3.client("s3").put_bucket_versioning(Bucket=bucket, VersioningConfiguration={"Status": "Enabled"})
    for folder in folders:
        upload_delta(folder, bucket, f"words/delta/{folder.name}")
    return [{"delta_key": f"words/delta/{folder.name}"} for folder in folders]


def chunk(deltas: list[dict[str, Any]]) -> races.Work:
    return lambda store: process("b", 0, deltas, {}, store=store, settings=SETTINGS)


def emptied(bucket: str, prefix: str) -> None:
    store = Store(s3_client())
    for key, file in list(store.walk(bucket, prefix)):
        store.delete(bucket, key, file.etag)


def assert_healthy(bucket: str, prefix: str, embeddings: int) -> None:
    """Whole, and with a receipt of exactly what lies there."""
    store, location = Store(s3_client()), DeltaLocation(bucket, prefix)
    judgement = judge_stored(store, location, Depth.STRUCTURE, SETTINGS)
    assert judgement.verdict.status is Status.HEALTHY, judgement.verdict.reason
    assert sum(found.count for found in judgement.verdict.collections) == embeddings
    receipt = json.loads(store.read(bucket, prefix.rstrip("/") + ".receipt.json", 100_000))
    assert receipt["fingerprint"] == judgement.verdict.fingerprint


def assert_whole_or_not_finished(bucket: str, prefix: str) -> None:
    store, location = Store(s3_client()), DeltaLocation(bucket, prefix)
    if MANIFEST in store.list_delta(location).by_name:
        assert judge_stored(store, location, Depth.STRUCTURE, SETTINGS).verdict.status is Status.HEALTHY


# --- a chunk


def test_of_two_attempts_at_a_chunk_each_ends_with_a_whole_intermediate_or_may_be_repeated(
    deltas: list[dict[str, Any]], bucket: str
) -> None:
    tally = races.Tally("chunk, another attempt in front of each request")
    work = chunk(deltas)
    for number in sweep.numbers(races.counted(work), 3):
        emptied(bucket, "intermediate/")
        ran = races.run_in_front_of(number, work, lambda: work(Store(s3_client())))
        tally.ended(ran)
        with tally.case(number):
            assert ran.reached
            assert ran.error is None or isinstance(ran.error, MergeOvertaken), ran.error
            assert_healthy(bucket, CHUNK, 4)
    tally.check()


@pytest.mark.slow
@pytest.mark.parametrize("deltas", ["plain"], indirect=True)
def test_an_attempt_at_a_chunk_that_replaces_old_work_takes_nothing_from_a_newer_one(
    deltas: list[dict[str, Any]], bucket: str
) -> None:
    """What lies there was made of another chunk, so that both attempts have something to remove."""
    tally = races.Tally("chunk over an old one, another attempt in front of each request")
    work, old = chunk(deltas), chunk(deltas[:1])
    old(Store(s3_client()))
    for number in sweep.numbers(races.counted(work), 3):
        emptied(bucket, "intermediate/")
        old(Store(s3_client()))
        ran = races.run_in_front_of(number, work, lambda: work(Store(s3_client())))
        tally.ended(ran)
        with tally.case(number):
            assert ran.reached
            assert ran.error is None or isinstance(ran.error, MergeOvertaken), ran.error
            assert_healthy(bucket, CHUNK, 4)
    tally.check()


@pytest.mark.slow
@pytest.mark.parametrize("deltas", ["plain"], indirect=True)
@pytest.mark.parametrize("moment", ["before", "after"])
def test_a_chunk_that_is_killed_stands_in_nobodys_way(moment: str, deltas: list[dict[str, Any]], bucket: str) -> None:
    tally = races.Tally(f"chunk, killed {moment} each request")
    work = chunk(deltas)
    for number in sweep.numbers(races.counted(work), 3):
        emptied(bucket, "intermediate/")
        ran = races.run_killed(number, work, moment)
        tally.ended(ran)
        with tally.case(number):
            assert ran.reached
            assert_whole_or_not_finished(bucket, CHUNK)
            work(Store(s3_client()))
            assert_healthy(bucket, CHUNK, 4)
    tally.check()


@pytest.mark.parametrize("deltas", ["plain"], indirect=True)
@pytest.mark.parametrize("fault", races.MARKED_FAULTS)
def test_a_chunk_with_a_fault_ends_whole_or_may_be_repeated(
    fault: str, deltas: list[dict[str, Any]], bucket: str
) -> None:
    _with_fault(fault, f"chunk, {fault} at each request", chunk(deltas), bucket, "intermediate/")


# --- a final merge


@pytest.fixture
def merging(deltas: list[dict[str, Any]], bucket: str) -> races.Work:
    """A final merge of a batch of one chunk; the snapshot before it is another batch's."""
    for batch, part in (("a", deltas[:1]), ("b", deltas)):
        process(batch, 0, part, {})
    return lambda store: final_merge("b", [CHUNK], store=store, settings=SETTINGS)


@pytest.fixture
def anew(bucket: str, merging: races.Work) -> Callable[[], None]:
    """Brings the snapshots back to how they were before the final merge."""
    client = boto3.client("s3")
    final_merge("a", ["intermediate/a/chunk-0/"])
    kept = {
        entry["Key"]: client.get_object(Bucket=bucket, Key=entry["Key"])["Body"].read()
        for entry in client.list_objects_v2(Bucket=bucket, Prefix="snapshots/")["Contents"]
    }

    def restore() -> None:
        for entry in client.list_objects_v2(Bucket=bucket, Prefix="snapshots/")["Contents"]:
            if entry["Key"] not in kept or entry["Key"] == LATEST:
                client.delete_object(Bucket=bucket, Key=entry["Key"])
        client.put_object(Bucket=bucket, Key=LATEST, Body=kept[LATEST])

    return restore


def read_as_a_reader(bucket: str) -> str:
    """Follows the pointer; what it names must be whole. Returns the batch."""
    pointer = json.loads(boto3.client("s3").get_object(Bucket=bucket, Key=LATEST)["Body"].read())
    location = DeltaLocation(bucket, pointer["snapshot_key"])
    judgement = judge_stored(Store(s3_client()), location, Depth.STRUCTURE, SETTINGS)
    assert judgement.verdict.status is Status.HEALTHY, judgement.verdict.reason
    assert judgement.verdict.fingerprint == pointer["fingerprint"]
    return str(pointer["batch_id"])


def expire_lock(bucket: str) -> None:
    """As if the holder had been stopped for longer than its lock lasts."""
    client = boto3.client("s3")
    found = client.list_objects_v2(Bucket=bucket, Prefix=LOCK).get("Contents", [])
    for entry in found:
        lock = json.loads(client.get_object(Bucket=bucket, Key=entry["Key"])["Body"].read())
        lock["expires_at"] = "2020-01-01T00:00:00Z"
        client.put_object(Bucket=bucket, Key=entry["Key"], Body=json.dumps(lock).encode())


def test_an_old_holder_that_wakes_up_takes_nothing_from_the_new_one(
    merging: races.Work, anew: Callable[[], None], bucket: str
) -> None:
    tally = races.Tally("final merge, stopped in front of each request until another one is done")
    anew()
    requests = races.counted(merging)
    for number in sweep.numbers(requests, 4):
        anew()

        def overtake() -> None:
            expire_lock(bucket)
            merging(Store(s3_client()))
            assert read_as_a_reader(bucket) == "b"

        ran = races.run_in_front_of(number, merging, overtake)
        tally.ended(ran)
        with tally.case(number):
            assert ran.reached
            assert ran.error is None or isinstance(ran.error, (LockHeld, LockLost)), ran.error
            assert read_as_a_reader(bucket) == "b"
            merging(Store(s3_client()))
    tally.check()


@pytest.mark.parametrize("deltas", ["plain"], indirect=True)
def test_a_second_final_merge_waits_and_a_reader_always_finds_a_whole_snapshot(
    merging: races.Work, anew: Callable[[], None], bucket: str
) -> None:
    tally = races.Tally("final merge, a reader and a second one in front of each request")
    anew()
    for number in sweep.numbers(races.counted(merging), 3):
        anew()

        def second() -> None:
            read_as_a_reader(bucket)
            with suppress(LockHeld):
                merging(Store(s3_client()))
            read_as_a_reader(bucket)

        ran = races.run_in_front_of(number, merging, second)
        tally.ended(ran)
        with tally.case(number):
            assert ran.reached
            assert ran.error is None or isinstance(ran.error, LockHeld), ran.error
            assert read_as_a_reader(bucket) == "b"
            assert not list(Store(s3_client()).walk(bucket, LOCK))
    tally.check()


@pytest.mark.slow
@pytest.mark.parametrize("deltas", ["plain"], indirect=True)
@pytest.mark.parametrize("moment", ["before", "after"])
def test_a_final_merge_that_is_killed_leaves_the_old_snapshot_or_the_new_one(
    moment: str, merging: races.Work, anew: Callable[[], None], bucket: str
) -> None:
    tally = races.Tally(f"final merge, killed {moment} each request")
    anew()
    for number in sweep.numbers(races.counted(merging), 3):
        anew()
        ran = races.run_killed(number, merging, moment)
        tally.ended(ran)
        with tally.case(number):
            assert ran.reached
            assert read_as_a_reader(bucket) in ("a", "b")
            expire_lock(bucket)
            merging(Store(s3_client()))
            assert read_as_a_reader(bucket) == "b"
    tally.check()


@pytest.mark.parametrize("deltas", ["plain"], indirect=True)
@pytest.mark.parametrize("fault", races.MARKED_FAULTS)
def test_a_final_merge_with_a_fault_publishes_a_whole_snapshot_or_may_be_repeated(
    fault: str, merging: races.Work, anew: Callable[[], None], bucket: str
) -> None:
    anew()
    _with_fault(fault, f"final merge, {fault} at each request", merging, bucket, "", anew)
    assert read_as_a_reader(bucket) == "b"


def _with_fault(
    fault: str, name: str, work: races.Work, bucket: str, prefix: str, anew: Callable[[], None] | None = None
) -> None:
    tally = races.Tally(name)
    for number in sweep.numbers(races.counted(work), 2):
        for repeats in (True, False):
            if anew is not None:
                anew()
            else:
                emptied(bucket, prefix)
            ran = races.disturbed(number, work, races.FAULTS[fault], repeats=repeats)
            tally.ended(ran)
            with tally.case(number, "repeated" if repeats else "final"):
                assert ran.error is None or isinstance(ran.error, RETRYABLE), repr(ran.error)
                assert "corrupt" not in str(ran.error)
                assert_whole_or_not_finished(bucket, CHUNK)
                expire_lock(bucket)
                work(Store(s3_client()))
    tally.check()


# --- what is published


@pytest.mark.parametrize("deltas", ["plain"], indirect=True)
@pytest.mark.parametrize("change", ["a foreign object", "no receipt", "a receipt of another"])
def test_a_published_snapshot_is_never_removed_whatever_a_repeated_call_finds(
    change: str, merging: races.Work, bucket: str
) -> None:
    first = merging(Store(s3_client()))["snapshot_key"]
    client, receipt = boto3.client("s3"), first.rstrip("/") + ".receipt.json"
    if change == "a foreign object":
        client.put_object(Bucket=bucket, Key=f"{first}{FOREIGN}", Body=b"somebody's")
    elif change == "no receipt":
        client.delete_object(Bucket=bucket, Key=receipt)
    else:
        client.put_object(Bucket=bucket, Key=receipt, Body=b"{}")
    before = {key: file.etag for key, file in Store(s3_client()).walk(bucket, first)}
    again = merging(Store(s3_client()))["snapshot_key"]
    assert again != first
    assert {key: file.etag for key, file in Store(s3_client()).walk(bucket, first)} == before
    assert read_as_a_reader(bucket) == "b"


@pytest.mark.parametrize("deltas", ["plain"], indirect=True)
def test_a_receipt_is_of_what_the_merge_wrote_and_not_of_whatever_lies_there(
    deltas: list[dict[str, Any]], bucket: str
) -> None:
    """Another party adds an object in front of the receipt: the next call does not take both for finished work."""

    def add() -> None:
        boto3.client("s3").put_object(Bucket=bucket, Key=f"{CHUNK}{FOREIGN}", Body=b"somebody's")

    work = chunk(deltas)
    requests = races.counted(work)
    emptied(bucket, "intermediate/")
    assert races.run_in_front_of(requests, work, add).error is None
    receipt = json.loads(Store(s3_client()).read(bucket, CHUNK.rstrip("/") + ".receipt.json", 100_000))
    assert receipt["fingerprint"] != Store(s3_client()).list_delta(DeltaLocation(bucket, CHUNK)).fingerprint
