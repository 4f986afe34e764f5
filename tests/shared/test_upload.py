"""The producer's upload: whole and proven, or not there at all."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import boto3
import chromadb
import pytest
import stamina
from awscrt.checksums import crc64nvme
from botocore.exceptions import EndpointConnectionError

from devtools.damage.catalogue import apply_damage
from devtools.damage.deltas import DeltaRecipe, build_delta
from shared.check.judgement import judge_stored
from shared.model.delta import DATABASE, MANIFEST, DeltaLocation
from shared.model.errors import TargetError, UploadFailed
from shared.model.manifest import encode_checksum
from shared.model.settings import Settings
from shared.model.verdict import Depth, Status
from shared.storage.store import Store
from shared.upload import upload_delta
from tests.conftest import CopyOf
from tests.support import faults
from tests.support.crash import killed_at
from tests.support.uploads import files_of, stored

KEY = "words/delta/one"


def names(store: Store, bucket: str, key: str = KEY) -> set[str]:
    return {file.name for file in store.list_delta(DeltaLocation(bucket, f"{key}/")).files}


def damaging(times: int) -> Store:
    """A store to which the database comes with another last byte, so many times; it keeps a checksum of that."""
    left = times

    def damage(request: Any) -> None:
        nonlocal left
        if request.method == "PUT" and request.url.endswith(DATABASE) and left:
            left -= 1
            data = bytearray(request.body.read())
            data[-1] ^= 1
            request.body = bytes(data)
            request.headers["x-amz-checksum-crc64nvme"] = encode_checksum(crc64nvme(request.body))

    return faults.doing(damage)


@pytest.fixture(autouse=True)
def no_pauses() -> Iterator[None]:
    stamina.set_testing(True, attempts=3, cap=True)
    yield
    stamina.set_testing(False)


def test_a_closed_directory_arrives_whole_with_a_manifest_of_all_its_files(
    store: Store, bucket: str, flushed_delta: Path
) -> None:
    assert upload_delta(flushed_delta, bucket, KEY, batch_id="batch-7") == f"{KEY}/"
    judgement = judge_stored(store, DeltaLocation(bucket, f"{KEY}/"), Depth.STRUCTURE, Settings())
    assert judgement.verdict.status is Status.HEALTHY
    assert judgement.checksums_proven
    assert judgement.manifest is not None
    assert judgement.manifest.batch_id == "batch-7"
    assert judgement.manifest.attempt == 1
    assert {file.name for file in judgement.manifest.files} | {MANIFEST} == names(store, bucket)


def test_an_open_client_is_closed_before_the_upload(store: Store, bucket: str, tmp_path: Path) -> None:
    client = chromadb.PersistentClient(str(tmp_path / "open"))
    collection = client.create_collection("words", embedding_function=None)
    collection.add(ids=["a", "b"], embeddings=[[1.0, 2.0], [3.0, 4.0]])
    upload_delta(client, bucket, KEY)
    assert not hasattr(client._server, "bindings"), "the client is still open"
    verdict = judge_stored(store, DeltaLocation(bucket, f"{KEY}/"), Depth.STRUCTURE, Settings()).verdict
    assert [(c.name, c.dimension, c.count) for c in verdict.collections] == [("words", 2, 2)]


@pytest.mark.parametrize("source", [chromadb.EphemeralClient, object])
def test_what_is_neither_directory_nor_persistent_client_is_refused(bucket: str, source: type) -> None:
    with pytest.raises(TargetError, match="neither a directory nor a persistent client"):
        upload_delta(source(), bucket, KEY)


def test_files_go_up_before_the_manifest(bucket: str, healthy_delta: Path) -> None:
    put: list[str] = []
    store = faults.doing(lambda request: put.append(request.url) if request.method == "PUT" else None)
    upload_delta(healthy_delta, bucket, KEY, store=store)
    assert [url.endswith(MANIFEST) for url in put] == [False] * (len(put) - 1) + [True]


def test_foreign_files_and_empty_journals_stay_behind(
    store: Store, bucket: str, healthy_delta: Path, copy_of: CopyOf
) -> None:
    folder = copy_of(healthy_delta)
    (folder / ".DS_Store").write_bytes(b"x")
    (folder / "chroma.sqlite3-journal").touch()
    upload_delta(folder, bucket, KEY)
    assert not {".DS_Store", "chroma.sqlite3-journal"} & names(store, bucket)


def test_a_delta_whose_writer_was_killed_is_not_uploaded(
    store: Store, bucket: str, healthy_delta: Path, copy_of: CopyOf
) -> None:
    folder = copy_of(healthy_delta)
    apply_damage("journal-hot", folder)
    with pytest.raises(UploadFailed, match=r"layout\.journal_unsettled"):
        upload_delta(folder, bucket, KEY)
    assert names(store, bucket) == set()


def test_damage_on_the_way_is_seen_removed_and_repeated(store: Store, bucket: str, healthy_delta: Path) -> None:
    """The store took one other byte for the database, and did not notice: the second attempt stands."""
    upload_delta(healthy_delta, bucket, KEY, store=damaging(times=1))
    judgement = judge_stored(store, DeltaLocation(bucket, f"{KEY}/"), Depth.STRUCTURE, Settings())
    assert judgement.verdict.status is Status.HEALTHY
    assert judgement.manifest is not None
    assert judgement.manifest.attempt == 2


def test_after_three_failed_attempts_nothing_is_left(
    store: Store, bucket: str, healthy_delta: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(UploadFailed, match=r"not uploaded after 3 attempts.*manifest.checksum_differs"):
        upload_delta(healthy_delta, bucket, KEY, store=damaging(times=3))
    assert names(store, bucket) == set()
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [line["message"] for line in lines if line.get("level")].count("Validating uploaded delta...") == 3
    assert sum(line["DeltaValidationFailures"][0] for line in lines if "_aws" in line) == 3


def test_what_another_party_put_in_its_place_is_left_alone_and_nothing_looks_finished(
    store: Store, bucket: str, healthy_delta: Path
) -> None:
    def overwrite(request: Any) -> None:
        if request.method == "PUT" and request.url.endswith(MANIFEST):
            boto3.client("s3").put_object(Bucket=bucket, Key=f"{KEY}/{DATABASE}", Body=b"somebody's")

    with pytest.raises(TargetError, match=r"chroma\.sqlite3 is there already and differs"):
        upload_delta(healthy_delta, bucket, KEY, store=faults.doing(overwrite))
    assert MANIFEST not in names(store, bucket)
    assert stored(bucket, KEY)[f"{KEY}/{DATABASE}"] == b"somebody's"


def test_the_database_goes_up_after_the_files_of_its_indexes(bucket: str, flushed_delta: Path) -> None:
    """Whoever waits for a delta takes its database for a sign that the rest is there."""
    put: list[str] = []
    store = faults.doing(lambda request: put.append(request.url) if request.method == "PUT" else None)
    upload_delta(flushed_delta, bucket, KEY, store=store)
    assert len(put) > 4
    assert [url.rpartition("/")[2] for url in put[-2:]] == [DATABASE, MANIFEST]


def test_one_that_cannot_be_read_back_stays_for_it_was_published(
    store: Store, bucket: str, healthy_delta: Path
) -> None:
    """Others may have seen it by now, and count on it."""
    silent = faults.answering("AccessDenied", 403, lambda request: request.method == "HEAD")
    with pytest.raises(UploadFailed, match="uploaded whole and left in its place, but not validated after 2 attempts"):
        upload_delta(healthy_delta, bucket, KEY, store=silent, attempts=2)
    assert names(store, bucket) == {MANIFEST, *files_of(healthy_delta)}


def test_in_a_store_without_checksums_and_conditions_a_killed_upload_is_completed(
    foreign_store: Store, healthy_delta: Path
) -> None:
    files = files_of(healthy_delta)
    some = dict(list(files.items())[1:3])
    for name, data in some.items():
        foreign_store.put("deltas", f"{KEY}/{name}", data)
    upload_delta(healthy_delta, "deltas", KEY, store=foreign_store)
    assert {name.removeprefix(f"{KEY}/") for name in stored("deltas", KEY)} == {MANIFEST, *files}


def test_an_unreachable_store_fails_clearly(bucket: str, healthy_delta: Path) -> None:
    store = faults.failing(EndpointConnectionError(endpoint_url="http://nowhere"))
    with pytest.raises(UploadFailed, match=r"words/delta/one.*Could not connect"):
        upload_delta(healthy_delta, bucket, KEY, store=store)


def test_somebody_elses_delta_under_the_key_is_left_alone(
    store: Store, bucket: str, healthy_delta: Path, flushed_delta: Path
) -> None:
    upload_delta(healthy_delta, bucket, KEY)
    before = store.list_delta(DeltaLocation(bucket, f"{KEY}/")).fingerprint
    with pytest.raises(TargetError, match="is there already"):
        upload_delta(flushed_delta, bucket, KEY)
    assert store.list_delta(DeltaLocation(bucket, f"{KEY}/")).fingerprint == before


def test_a_delta_uploaded_the_old_way_is_not_overwritten(
    store: Store, bucket: str, put_delta: Any, healthy_delta: Path, flushed_delta: Path
) -> None:
    location = put_delta(flushed_delta, KEY)
    before = store.list_delta(location).fingerprint
    with pytest.raises(TargetError, match="differs: give a new delta id"):
        upload_delta(healthy_delta, bucket, KEY)
    assert store.list_delta(location).fingerprint == before


def test_uploading_the_same_delta_again_changes_nothing(store: Store, bucket: str, healthy_delta: Path) -> None:
    upload_delta(healthy_delta, bucket, KEY)
    written: list[str] = []
    again = faults.doing(
        lambda request: written.append(request.method) if request.method in ("PUT", "DELETE") else None
    )
    assert upload_delta(healthy_delta, bucket, KEY, store=again) == f"{KEY}/"
    assert written == []


@pytest.mark.slow
def test_killed_before_any_request_nothing_looks_finished_and_a_second_run_completes_it(
    store: Store, bucket: str, tmp_path: Path
) -> None:
    folder = tmp_path / "delta"
    build_delta(folder, DeltaRecipe(embeddings=5, dimension=4))
    request = 0
    while killed_at(request := request + 1, "upload", str(folder), bucket, KEY):
        judgement = judge_stored(store, DeltaLocation(bucket, f"{KEY}/"), Depth.STRUCTURE, Settings())
        assert MANIFEST not in names(store, bucket) or judgement.verdict.status is Status.HEALTHY
    assert request > 8
    assert (
        judge_stored(store, DeltaLocation(bucket, f"{KEY}/"), Depth.OPEN, Settings()).verdict.status is Status.HEALTHY
    )
