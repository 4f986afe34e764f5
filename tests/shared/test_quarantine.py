"""The quarantine protocol: nothing is lost, whatever happens, and nothing healthy is ever moved."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import boto3
import pytest

from local.damage import apply_damage
from local.deltas import DeltaRecipe, build_delta
from shared.delta import DATABASE, DeltaLocation
from shared.errors import DeltaguardError, StorageError
from shared.judgement import Judgement, judge_stored
from shared.quarantine import RECORD, latest_record, place_of, quarantine
from shared.settings import Settings
from shared.storage import Store
from shared.upload import upload_delta
from shared.verdict import Depth, Status
from tests import faults
from tests.conftest import CopyOf, PutDelta
from tests.crash import killed_at

KEY = "words/delta/broken"


def judged(store: Store, location: DeltaLocation, settings: Settings) -> Judgement:
    return judge_stored(store, location, Depth.STRUCTURE, settings)


def objects(bucket: str, prefix: str) -> dict[str, str]:
    """sha256 of every object below a prefix, by its name there."""
    client = boto3.client("s3")
    found = client.list_objects_v2(Bucket=bucket, Prefix=prefix).get("Contents", [])
    bodies = ((o["Key"], client.get_object(Bucket=bucket, Key=o["Key"])["Body"].read()) for o in found)
    return {key.removeprefix(prefix): hashlib.sha256(body).hexdigest() for key, body in bodies}


@pytest.fixture
def broken(healthy_delta: Path, copy_of: CopyOf, put_delta: PutDelta) -> DeltaLocation:
    folder = copy_of(healthy_delta)
    apply_damage("queue-row-deleted", folder)
    return put_delta(folder, KEY)


def test_a_corrupt_delta_moves_whole_with_a_record_that_could_put_it_back(
    store: Store, broken: DeltaLocation, settled: Settings
) -> None:
    before = objects(broken.bucket, broken.prefix)
    judgement = judged(store, broken, settled)
    done = quarantine(store, broken, judgement, settled)
    assert objects(broken.bucket, broken.prefix) == {}
    held = objects(done.place.bucket, done.place.prefix)
    assert {name: digest for name, digest in held.items() if name != RECORD} == before
    assert done.place.prefix == f"quarantine/{KEY}/{judgement.listing.fingerprint}/"
    record = done.record
    assert (record.bucket, record.prefix) == (broken.bucket, broken.prefix)
    assert record.verdict["findings"][0]["code"] == "records.vector_missing"
    assert {(f.name, f.size, f.etag) for f in record.files} == {
        (f.name, f.size, f.etag) for f in judgement.listing.files
    }
    assert latest_record(store, broken, settled) == (done.place, record)


def test_the_record_names_batch_and_attempt_of_the_manifest(
    store: Store, bucket: str, healthy_delta: Path, settled: Settings
) -> None:
    location = DeltaLocation(bucket, f"{KEY}/")
    upload_delta(healthy_delta, bucket, KEY, batch_id="batch-40", settings=settled)
    boto3.client("s3").put_object(Bucket=bucket, Key=location.key(DATABASE), Body=b"overwritten")
    record = quarantine(store, location, judged(store, location, settled), settled).record
    assert (record.batch_id, record.attempt) == ("batch-40", 1)


def test_a_bucket_of_its_own_can_hold_the_quarantine(store: Store, broken: DeltaLocation) -> None:
    boto3.client("s3").create_bucket(Bucket="held-deltas")
    settings = Settings(quarantine_bucket="held-deltas", quarantine_prefix="corrupt", settle_seconds=0)
    done = quarantine(store, broken, judged(store, broken, settings), settings)
    assert (done.place.bucket, done.place.prefix.split("/")[0]) == ("held-deltas", "corrupt")
    assert RECORD in objects("held-deltas", done.place.prefix)


def test_versions_of_a_versioned_bucket_are_recorded(
    store: Store, bucket: str, healthy_delta: Path, copy_of: CopyOf, put_delta: PutDelta, settled: Settings
) -> None:
    boto3.client("s3").put_bucket_versioning(Bucket=bucket, VersioningConfiguration={"Status": "Enabled"})
    folder = copy_of(healthy_delta)
    apply_damage("queue-row-deleted", folder)
    location = put_delta(folder, KEY)
    record = quarantine(store, location, judged(store, location, settled), settled).record
    versions = boto3.client("s3").list_object_versions(Bucket=bucket, Prefix=location.prefix)["Versions"]
    assert {(f.name, f.version) for f in record.files} == {
        (v["Key"].removeprefix(location.prefix), v["VersionId"]) for v in versions
    }


def test_only_a_corrupt_delta_may_be_quarantined(
    store: Store, healthy_delta: Path, put_delta: PutDelta, settled: Settings
) -> None:
    location = put_delta(healthy_delta, "words/delta/fine")
    before = objects(location.bucket, "")
    with pytest.raises(DeltaguardError, match="only a corrupt delta is quarantined, not healthy"):
        quarantine(store, location, judged(store, location, settled), settled)
    assert objects(location.bucket, "") == before


def test_what_lies_in_quarantine_is_never_quarantined_again(
    store: Store, broken: DeltaLocation, settled: Settings
) -> None:
    place = quarantine(store, broken, judged(store, broken, settled), settled).place
    with pytest.raises(DeltaguardError, match="lies in quarantine already"):
        quarantine(store, place, judged(store, place, settled), settled)


def test_a_newer_upload_survives_although_it_came_between_verdict_and_delete(
    store: Store, broken: DeltaLocation, settled: Settings
) -> None:
    judgement = judged(store, broken, settled)
    newer = b"a newer upload"

    def overwrite(request: Any) -> None:
        if request.method == "PUT" and RECORD in request.url:
            boto3.client("s3").put_object(Bucket=broken.bucket, Key=broken.key(DATABASE), Body=newer)

    done = quarantine(faults.doing(overwrite), broken, judgement, settled)
    assert done.left == (DATABASE,)
    assert objects(broken.bucket, broken.prefix) == {DATABASE: hashlib.sha256(newer).hexdigest()}


def test_an_upload_between_verdict_and_copy_stops_the_move(
    store: Store, broken: DeltaLocation, settled: Settings
) -> None:
    judgement = judged(store, broken, settled)
    boto3.client("s3").put_object(Bucket=broken.bucket, Key=broken.key(DATABASE), Body=b"newer")
    before = objects(broken.bucket, broken.prefix)
    with pytest.raises(StorageError, match="overwritten since it was judged"):
        quarantine(store, broken, judgement, settled)
    assert objects(broken.bucket, broken.prefix) == before


def test_a_copy_that_differs_stops_before_anything_is_deleted(
    store: Store, broken: DeltaLocation, settled: Settings
) -> None:
    judgement = judged(store, broken, settled)

    def spoil(request: Any) -> None:
        if request.method == "HEAD" and "/quarantine/" in request.url and DATABASE in request.url:
            key = place_of(broken, settled).key(f"{judgement.listing.fingerprint}/{DATABASE}")
            size = judgement.listing.by_name[DATABASE].size
            boto3.client("s3").put_object(Bucket=broken.bucket, Key=key, Body=b"\0" * size)

    with pytest.raises(StorageError, match=r"the copy has .* nothing was deleted"):
        quarantine(faults.doing(spoil), broken, judgement, settled)
    assert objects(broken.bucket, broken.prefix).keys() == judgement.listing.by_name.keys()


@pytest.mark.parametrize(("code", "status"), [("SlowDown", 503), ("AccessDenied", 403), ("InternalError", 500)])
@pytest.mark.parametrize("method", ["PUT", "HEAD", "DELETE"])
def test_a_refused_request_loses_nothing_and_the_next_run_finishes(
    broken: DeltaLocation, store: Store, settled: Settings, code: str, status: int, method: str, fast_retries: None
) -> None:
    before = objects(broken.bucket, broken.prefix)
    refusing = faults.answering(code, status, lambda request: request.method == method)
    with pytest.raises(StorageError):
        quarantine(refusing, broken, judged(store, broken, settled), settled)
    held = objects(broken.bucket, "quarantine/").values()
    assert set(before.values()) <= {*objects(broken.bucket, broken.prefix).values(), *held}
    quarantine(store, broken, judged(store, broken, settled), settled)
    assert objects(broken.bucket, broken.prefix) == {}


@pytest.mark.slow
def test_killed_before_any_request_every_object_is_whole_somewhere_and_a_later_run_finishes(
    store: Store, bucket: str, put_delta: PutDelta, tmp_path: Path, settled: Settings
) -> None:
    folder = tmp_path / "delta"
    build_delta(folder, DeltaRecipe(embeddings=5, dimension=4))
    apply_damage("queue-row-deleted", folder)
    request = 0
    while True:
        request += 1
        location = put_delta(folder, f"words/delta/{request}")
        before = objects(bucket, location.prefix)
        killed = killed_at(request, "quarantine", bucket, location.prefix.rstrip("/"))
        home = place_of(location, settled).prefix
        held = {name.partition("/")[2]: digest for name, digest in objects(bucket, home).items()}
        assert before.items() <= (objects(bucket, location.prefix) | held).items()
        assert judged(store, location, settled).verdict.status is Status.CORRUPT
        killed_at(0, "quarantine", bucket, location.prefix.rstrip("/"))
        assert objects(bucket, location.prefix) == {}
        held = objects(bucket, home)
        assert len({name.partition("/")[0] for name in held}) == 1, "the rest was quarantined as a delta of its own"
        assert before.items() <= {name.partition("/")[2]: digest for name, digest in held.items()}.items()
        if not killed:
            break
    assert request > 20
