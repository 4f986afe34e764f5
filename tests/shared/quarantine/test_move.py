"""The quarantine protocol: nothing is lost, whatever happens, and nothing healthy is ever moved."""

from __future__ import annotations

import hashlib
import itertools
import os
import time
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path
from typing import Any

import boto3
import pytest
from botocore.exceptions import ConnectionClosedError, ReadTimeoutError

from devtools.damage.catalogue import apply_damage
from devtools.damage.deltas import DeltaRecipe, build_delta
from shared.check.judgement import Judgement
from shared.model.delta import DATABASE, MANIFEST, DeltaLocation
from shared.model.errors import DeltaguardError, StorageError
from shared.model.manifest import Manifest, ManifestFile, encode_checksum
from shared.model.settings import Settings
from shared.model.verdict import Status
from shared.quarantine.move import Quarantined, quarantine
from shared.quarantine.record import HISTORY, RECORD, held_name, latest_record, place_of, read_history, read_record
from shared.storage.client import s3_client
from shared.storage.store import Store
from shared.upload import upload_delta
from tests.conftest import CopyOf, PutDelta
from tests.support import faults, sweep
from tests.support.crash import Moment, killed_at
from tests.support.verdicts import confirmed

KEY = "words/delta/broken"
BESIDE = "chroma.sqlite3-shm"  # a file of Chroma's that changes no verdict


def s3() -> Any:
    """A client of the present server; to make one takes longer than a request."""
    return _client(os.environ["AWS_ENDPOINT_URL"])


@cache
def _client(_endpoint: str) -> Any:
    return boto3.client("s3")


def judged(store: Store, location: DeltaLocation, settings: Settings) -> Judgement:
    return confirmed(store, location, settings)


def objects(bucket: str, prefix: str) -> dict[str, str]:
    """sha256 of every object below a prefix, by its name there."""
    client = s3()
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
    s3().put_object(Bucket=bucket, Key=location.key(DATABASE), Body=b"overwritten")
    record = quarantine(store, location, judged(store, location, settled), settled).record
    assert (record.batch_id, record.attempt) == ("batch-40", 1)


def test_a_bucket_of_its_own_can_hold_the_quarantine(store: Store, broken: DeltaLocation) -> None:
    s3().create_bucket(Bucket="held-deltas")
    settings = Settings(
        quarantine_bucket="held-deltas", quarantine_prefix="corrupt", settle_seconds=0, arrival_seconds=0
    )
    done = quarantine(store, broken, judged(store, broken, settings), settings)
    assert (done.place.bucket, done.place.prefix.split("/")[0]) == ("held-deltas", "corrupt")
    assert RECORD in objects("held-deltas", done.place.prefix)


def test_two_buckets_that_share_a_quarantine_are_not_mixed_up(
    store: Store, broken: DeltaLocation, put_delta: PutDelta
) -> None:
    client = s3()
    for name in ("held-deltas", "other-deltas"):
        client.create_bucket(Bucket=name)
    settings = Settings(quarantine_bucket="held-deltas", settle_seconds=0, arrival_seconds=0)
    twin = DeltaLocation("other-deltas", broken.prefix)
    for file in store.list_delta(broken).files:
        client.copy({"Bucket": broken.bucket, "Key": broken.key(file.name)}, twin.bucket, twin.key(file.name))
    before = objects(twin.bucket, "")
    quarantine(store, broken, judged(store, broken, settings), settings)
    assert latest_record(store, twin, settings) is None
    with pytest.raises(StorageError, match=r"holds the same delta of s3://deltas/.*: nothing of .* was deleted"):
        quarantine(store, twin, judged(store, twin, settings), settings)
    assert objects(twin.bucket, "") == before


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
    before = objects(broken.bucket, broken.prefix)
    newer = b"a newer upload"

    def overwrite(request: Any) -> None:
        if request.method == "PUT" and RECORD in request.url:
            s3().put_object(Bucket=broken.bucket, Key=broken.key(DATABASE), Body=newer)

    done = quarantine(faults.doing(overwrite), broken, judgement, settled)
    assert done.left == (DATABASE,)
    after = objects(broken.bucket, broken.prefix)
    assert after == {**before, DATABASE: hashlib.sha256(newer).hexdigest()}, "what is newer is judged whole, for itself"


def test_a_newer_upload_in_the_middle_of_the_deletes_ends_them(
    store: Store, broken: DeltaLocation, settled: Settings
) -> None:
    judgement = judged(store, broken, settled)
    second = min(name for name in judgement.listing.by_name if name != DATABASE)

    def overwrite(request: Any) -> None:
        if request.method == "DELETE" and DATABASE in request.url:
            s3().put_object(Bucket=broken.bucket, Key=broken.key(second), Body=b"newer")

    done = quarantine(faults.doing(overwrite), broken, judgement, settled)
    assert done.left == (second,)
    assert objects(broken.bucket, broken.prefix).keys() == judgement.listing.by_name.keys() - {DATABASE}
    held = objects(done.place.bucket, done.place.prefix)
    assert judgement.listing.by_name.keys() <= held.keys()


@pytest.mark.slow
def test_a_newer_upload_of_the_same_bytes_survives_too(store: Store, broken: DeltaLocation, settled: Settings) -> None:
    """A producer repeats an upload of which one file was damaged: the sound ones have the same ETags as before."""
    judgement = judged(store, broken, settled)
    name = next(file.name for file in judgement.listing.files if file.name != DATABASE)
    body = s3().get_object(Bucket=broken.bucket, Key=broken.key(name))["Body"].read()
    time.sleep(1.1)  # S3 tells the time of an upload in whole seconds
    s3().put_object(Bucket=broken.bucket, Key=broken.key(name), Body=body)
    before = objects(broken.bucket, broken.prefix)
    assert quarantine(store, broken, judgement, settled).left == (name,)
    assert objects(broken.bucket, broken.prefix) == before


def test_an_upload_between_verdict_and_copy_stops_the_move(
    store: Store, broken: DeltaLocation, settled: Settings
) -> None:
    judgement = judged(store, broken, settled)
    s3().put_object(Bucket=broken.bucket, Key=broken.key(DATABASE), Body=b"newer")
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
            s3().put_object(Bucket=broken.bucket, Key=key, Body=b"\0" * size)

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


FAULTS = {
    "throttled": lambda number: faults.answering("SlowDown", 503, faults.from_the(number)),
    "forbidden": lambda number: faults.answering("AccessDenied", 403, faults.from_the(number)),
    "key disabled": lambda number: faults.answering("KMS.DisabledException", 400, faults.from_the(number)),
    "server error": lambda number: faults.answering("InternalError", 500, faults.from_the(number)),
    "timed out": lambda number: faults.failing(ReadTimeoutError(endpoint_url="http://s3"), faults.from_the(number)),
    "reset": lambda number: faults.failing(ConnectionClosedError(endpoint_url="http://s3"), faults.from_the(number)),
    "truncated": faults.truncating,
}


@pytest.mark.slow
@pytest.mark.parametrize("fault", FAULTS)
def test_an_outage_from_any_request_on_loses_nothing_and_the_next_run_finishes(
    store: Store, bucket: str, settled: Settings, fault: str, fast_retries: None
) -> None:
    client = s3()
    for number in itertools.count(1) if fault == "truncated" else sweep.stepping(4):
        location = DeltaLocation(bucket, f"words/delta/{number}/")
        client.put_object(Bucket=bucket, Key=location.key(DATABASE), Body=b"SQLite format 3, almost")
        client.put_object(Bucket=bucket, Key=location.key(BESIDE), Body=b"of somebody")
        before = objects(bucket, location.prefix)
        judgement = judged(store, location, settled)
        try:
            quarantine(FAULTS[fault](number), location, judgement, settled)
            break
        except StorageError:
            held = objects(bucket, place_of(location, settled).key(judgement.listing.fingerprint + "/"))
            assert before.items() <= (objects(bucket, location.prefix) | held).items()
        rest = judged(store, location, settled)
        assert rest.verdict.status is Status.CORRUPT or not rest.listing.files
        if rest.listing.files:
            quarantine(store, location, rest, settled)
        assert objects(bucket, location.prefix) == {}
    assert number > (1 if fault == "truncated" else 10), "no request was made to fail"


@pytest.mark.slow
@pytest.mark.parametrize("versions", ["Suspended", "Enabled"])
@pytest.mark.parametrize("moment", ["before", "after"])
def test_killed_at_any_request_every_object_is_whole_somewhere_and_a_later_run_finishes(
    store: Store, bucket: str, put_delta: PutDelta, tmp_path: Path, settled: Settings, moment: Moment, versions: Any
) -> None:
    s3().put_bucket_versioning(Bucket=bucket, VersioningConfiguration={"Status": versions})
    folder = tmp_path / "delta"
    build_delta(folder, DeltaRecipe(embeddings=5, dimension=4))
    apply_damage("queue-row-deleted", folder)
    for name in ("data_level0.bin", "length.bin"):  # of an empty skeleton: fewer requests to be killed at
        next(folder.rglob(name)).unlink()
    for request in sweep.stepping(5):
        location = put_delta(folder, f"words/delta/{request}")
        before = objects(bucket, location.prefix)
        killed = killed_at(request, "quarantine", bucket, location.prefix.rstrip("/"), moment=moment)
        home = place_of(location, settled).prefix
        held = {name.partition("/")[2]: digest for name, digest in objects(bucket, home).items()}
        assert before.items() <= (objects(bucket, location.prefix) | held).items()
        rest = judged(store, location, settled)
        assert rest.verdict.status is Status.CORRUPT
        if rest.listing.files:
            quarantine(store, location, rest, settled)
        assert objects(bucket, location.prefix) == {}
        held = objects(bucket, home)
        assert len({name.partition("/")[0] for name in held}) == 1, "the rest was quarantined as a delta of its own"
        assert before.items() <= {name.partition("/")[2]: digest for name, digest in held.items()}.items()
        found = latest_record(store, location, settled)
        assert found is not None
        assert {file.name for file in found[1].files} == before.keys()
        assert HISTORY not in {name.partition("/")[2] for name in held}, "a move that was finished is no return"
        if not killed:
            break
    assert request > 18


def test_a_move_that_stopped_between_its_copies_uses_them_and_copies_only_the_rest(
    store: Store, broken: DeltaLocation, settled: Settings
) -> None:
    copied: list[str] = []
    judgement = judged(store, broken, settled)
    done_before, *rest = [file.name for file in judgement.listing.files]
    stopping = faults.answering("AccessDenied", 403, lambda r: _is_copy(r) and not r.url.endswith(f"/{done_before}"))
    with pytest.raises(StorageError):
        quarantine(stopping, broken, judgement, settled)
    done = quarantine(faults.doing(lambda r: copied.append(r.url) if _is_copy(r) else None), broken, judgement, settled)
    assert [url.partition(done.record.fingerprint + "/")[2] for url in copied] == rest


def _is_copy(request: Any) -> bool:
    return request.method == "PUT" and "x-amz-copy-source" in request.headers


class TestTogether:
    """Several runs quarantine the same delta at once."""

    @pytest.mark.slow
    def test_in_threads_the_delta_is_moved_once(self, store: Store, broken: DeltaLocation, settled: Settings) -> None:
        before = objects(broken.bucket, broken.prefix)
        judgement = judged(store, broken, settled)
        with ThreadPoolExecutor(6) as pool:
            runs = [pool.submit(quarantine, Store(s3_client()), broken, judgement, settled) for _ in range(6)]
            done = [run.result() for run in runs]
        assert len({run.place for run in done}) == 1
        assert len({run.record.model_dump_json() for run in done}) == 1, "the record of the first stands for all"
        held = objects(broken.bucket, done[0].place.prefix)
        assert {name: digest for name, digest in held.items() if name != RECORD} == before
        assert objects(broken.bucket, broken.prefix) == {}

    def test_one_that_comes_too_late_to_copy_takes_the_record_of_the_other(
        self, store: Store, broken: DeltaLocation, settled: Settings
    ) -> None:
        judgement = judged(store, broken, settled)
        others: list[Any] = []

        def meanwhile(request: Any) -> None:
            if request.method == "HEAD" and not others:
                others.append(None)
                others.append(quarantine(store, broken, judgement, settled))

        done = quarantine(faults.doing(meanwhile), broken, judgement, settled)
        assert (done.place, done.record, done.left) == (others[1].place, others[1].record, ())

    def test_a_late_copy_never_spoils_a_copy_that_the_other_made(
        self, store: Store, broken: DeltaLocation, settled: Settings
    ) -> None:
        """The other run is done, and a newer upload lies in the place, when this one comes to copy."""
        judgement = judged(store, broken, settled)
        before = objects(broken.bucket, broken.prefix)
        done = quarantine(store, broken, judgement, settled)
        s3().put_object(Bucket=broken.bucket, Key=broken.key(DATABASE), Body=b"newer")
        assert quarantine(store, broken, judgement, settled).left == (DATABASE,)
        assert objects(broken.bucket, broken.prefix).keys() == {DATABASE}
        assert before.items() <= objects(done.place.bucket, done.place.prefix).items()


class TestVersions:
    """In a bucket that keeps versions."""

    @pytest.fixture
    def versioned(self, bucket: str, healthy_delta: Path, copy_of: CopyOf, put_delta: PutDelta) -> DeltaLocation:
        """A corrupt delta that was uploaded over an older, healthy one."""
        client = s3()
        client.put_bucket_versioning(Bucket=bucket, VersioningConfiguration={"Status": "Enabled"})
        put_delta(healthy_delta, KEY)
        folder = copy_of(healthy_delta)
        apply_damage("queue-row-deleted", folder)
        return put_delta(folder, KEY)

    def test_the_corrupt_version_is_hidden_and_kept_and_no_older_one_comes_back(
        self, store: Store, versioned: DeltaLocation, settled: Settings
    ) -> None:
        before = versions(versioned)
        quarantine(store, versioned, judged(store, versioned, settled), settled)
        assert objects(versioned.bucket, versioned.prefix) == {}
        assert versions(versioned) == before, "nothing that was stored is lost"

    def test_versions_are_recorded(self, store: Store, versioned: DeltaLocation, settled: Settings) -> None:
        current = {
            (entry["Key"].removeprefix(versioned.prefix), entry["VersionId"])
            for entry in s3().list_object_versions(Bucket="deltas", Prefix=versioned.prefix)["Versions"]
            if entry["IsLatest"]
        }
        record = quarantine(store, versioned, judged(store, versioned, settled), settled).record
        assert {(file.name, file.version) for file in record.files} == current

    def test_a_newer_upload_is_not_hidden(self, store: Store, versioned: DeltaLocation, settled: Settings) -> None:
        judgement = judged(store, versioned, settled)

        def overwrite(request: Any) -> None:
            if request.method == "DELETE" and DATABASE in request.url:
                s3().put_object(Bucket="deltas", Key=versioned.key(DATABASE), Body=b"newer")

        assert quarantine(faults.doing(overwrite), versioned, judgement, settled).left == (DATABASE,)
        assert s3().get_object(Bucket="deltas", Key=versioned.key(DATABASE))["Body"].read() == b"newer"

    def test_a_quarantine_under_a_retention_can_be_filled(self, store: Store, versioned: DeltaLocation) -> None:
        client = s3()
        client.create_bucket(Bucket="locked-deltas", ObjectLockEnabledForBucket=True)
        rule = {"DefaultRetention": {"Mode": "COMPLIANCE", "Days": 1}}
        lock = {"ObjectLockEnabled": "Enabled", "Rule": rule}
        client.put_object_lock_configuration(Bucket="locked-deltas", ObjectLockConfiguration=lock)

        def as_moto_wants(request: Any) -> None:
            # It asks of a copy, which has no body, what S3 asks of uploads only.
            request.headers.setdefault("x-amz-sdk-checksum-algorithm", "CRC64NVME")

        settings = Settings(quarantine_bucket="locked-deltas", settle_seconds=0, arrival_seconds=0)
        before = objects(versioned.bucket, versioned.prefix)
        judgement = judged(store, versioned, settings)
        locking = faults.doing(lambda r: as_moto_wants(r) if r.method == "PUT" else None)
        place = quarantine(locking, versioned, judgement, settings).place
        assert before.items() <= objects("locked-deltas", place.prefix).items()
        assert objects(versioned.bucket, versioned.prefix) == {}


def versions(location: DeltaLocation) -> set[tuple[str, str]]:
    """Key and version of everything stored below a prefix, what is hidden included."""
    answer = s3().list_object_versions(Bucket=location.bucket, Prefix=location.prefix)
    return {(entry["Key"], entry["VersionId"]) for entry in answer["Versions"]}


class TestForeignStore:
    """In a store that ignores conditions without a word."""

    @pytest.fixture
    def delta(self, foreign_store: Store) -> DeltaLocation:  # noqa: ARG002 - it is what boto3 finds
        location = DeltaLocation("deltas", KEY + "/")
        client = s3()
        client.put_object(Bucket="deltas", Key=location.key(DATABASE), Body=b"SQLite format 3, almost")
        client.put_object(Bucket="deltas", Key=location.key(BESIDE), Body=b"of somebody")
        return location

    def test_a_delta_is_moved_and_the_log_says_once_what_the_store_cannot_do(
        self, foreign_store: Store, delta: DeltaLocation, settled: Settings, capsys: pytest.CaptureFixture[str]
    ) -> None:
        before = objects("deltas", delta.prefix)
        for _ in range(2):
            place = quarantine(foreign_store, delta, judged(foreign_store, delta, settled), settled).place
            s3().put_object(Bucket="deltas", Key=delta.key(DATABASE), Body=b"another")
        assert set(before.values()) <= set(objects("deltas", place_of(delta, settled).prefix).values())
        assert objects("deltas", delta.prefix).keys() == {DATABASE}
        assert objects("deltas", place.prefix).keys() == {DATABASE, RECORD}
        assert capsys.readouterr().out.count("ignores the condition of a delete") == 1

    def test_a_newer_upload_right_before_a_delete_is_seen(
        self, foreign_store: Store, delta: DeltaLocation, settled: Settings
    ) -> None:
        judgement = judged(foreign_store, delta, settled)
        heads: list[str] = []

        def overwrite(request: Any) -> None:
            if request.method == "PUT" and RECORD in request.url:
                heads.append("the record is written")
            if heads and request.method == "HEAD" and DATABASE in request.url:
                s3().put_object(Bucket="deltas", Key=delta.key(DATABASE), Body=b"newer")

        done = quarantine(faults.doing(overwrite), delta, judgement, settled)
        assert done.left == (DATABASE,)
        assert s3().get_object(Bucket="deltas", Key=delta.key(DATABASE))["Body"].read() == b"newer"

    def test_an_overwrite_between_look_and_copy_is_seen_in_the_copy(
        self, foreign_store: Store, delta: DeltaLocation, settled: Settings
    ) -> None:
        judgement = judged(foreign_store, delta, settled)
        same_size = b"another file of the size"[: judgement.listing.by_name[DATABASE].size]

        def overwrite(request: Any) -> None:
            if _is_copy(request) and DATABASE in request.url:
                s3().put_object(Bucket="deltas", Key=delta.key(DATABASE), Body=same_size)

        with pytest.raises(StorageError, match="nothing was deleted"):
            quarantine(faults.doing(overwrite), delta, judgement, settled)
        assert s3().get_object(Bucket="deltas", Key=delta.key(DATABASE))["Body"].read() == same_size


class TestHostileNames:
    """The names in a delta are whatever its writer chose."""

    def test_a_file_with_the_name_of_the_record_does_not_pass_for_it(
        self, store: Store, broken: DeltaLocation, settled: Settings
    ) -> None:
        client = s3()
        names = ("quarantine.json", "quarantine.json.file", "history.json", "told.json")
        for name in names:
            client.put_object(Bucket=broken.bucket, Key=broken.key(name), Body=name.encode())
        put_manifest(store, broken, names)
        before = objects(broken.bucket, broken.prefix)
        done = quarantine(store, broken, judged(store, broken, settled), settled)
        assert {file.name for file in done.record.files} == before.keys()
        assert latest_record(store, broken, settled) == (done.place, done.record)
        held = objects(done.place.bucket, done.place.prefix)
        assert {name: held[held_name(name)] for name in before} == before
        assert len({held_name(name) for name in before}) == len(before)

    def test_what_no_manifest_names_stays_where_it_is(
        self, store: Store, broken: DeltaLocation, settled: Settings
    ) -> None:
        s3().put_object(Bucket=broken.bucket, Key=broken.key("quarantine.json"), Body=b"of somebody")
        quarantine(store, broken, judged(store, broken, settled), settled)
        assert objects(broken.bucket, broken.prefix).keys() == {"quarantine.json"}

    def test_a_record_that_speaks_of_another_place_is_not_believed(
        self, store: Store, broken: DeltaLocation, settled: Settings
    ) -> None:
        done = quarantine(store, broken, judged(store, broken, settled), settled)
        moved = done.record.model_copy(update={"prefix": "words/delta/other/"})
        store.put(done.place.bucket, done.place.key(RECORD), moved.model_dump_json().encode())
        with pytest.raises(StorageError, match="the record of another place"):
            read_record(store, done.place, settled)
        assert latest_record(store, broken, settled) is None


def put_manifest(store: Store, location: DeltaLocation, more: Iterable[str]) -> None:
    """A manifest of all the files of a delta and of these others."""
    listing = store.list_delta(location).owning(more)
    files = (ManifestFile(name=file.name, size=file.size, crc64nvme=encode_checksum(0)) for file in listing.files)
    manifest = Manifest(chromadb="1.5.9", collections=(), files=tuple(files))
    store.put(location.bucket, location.key(MANIFEST), manifest.as_bytes())


class TestAgain:
    """A delta that was quarantined lies in its place again, byte for byte."""

    def test_it_is_held_under_the_same_record_and_the_history_tells(
        self, store: Store, broken: DeltaLocation, settled: Settings
    ) -> None:
        first = quarantine(store, broken, judged(store, broken, settled), settled)
        assert read_history(store, first.place).entries == ()
        put_back(first)
        again = quarantine(store, broken, judged(store, broken, settled), settled)
        assert (again.place, again.record) == (first.place, first.record)
        assert [entry.event for entry in read_history(store, first.place).entries] == ["quarantined_again"]
        assert objects(broken.bucket, broken.prefix) == {}

    def test_nothing_is_deleted_on_the_word_of_a_record_whose_copies_are_gone(
        self, store: Store, broken: DeltaLocation, settled: Settings
    ) -> None:
        before = objects(broken.bucket, broken.prefix)
        first = quarantine(store, broken, judged(store, broken, settled), settled)
        put_back(first)
        s3().delete_object(Bucket=broken.bucket, Key=first.place.key(DATABASE))  # a purge, cut short
        quarantine(store, broken, judged(store, broken, settled), settled)
        assert before.items() <= objects(first.place.bucket, first.place.prefix).items()


def put_back(done: Quarantined) -> None:
    """Copies a quarantined delta to its place by hand; a moment later by the clock than it was quarantined."""
    time.sleep(1.1)  # S3 tells the time of an upload in whole seconds
    for file in done.record.files:
        source = {"Bucket": done.place.bucket, "Key": done.place.key(file.name)}
        s3().copy_object(Bucket=done.record.bucket, Key=done.record.prefix + file.name, CopySource=source)
