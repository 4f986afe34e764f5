"""Deletes: what was judged goes, what is newer stays, and the store's word on conditions is tried, not believed."""

from __future__ import annotations

from typing import Any

import boto3
import pytest

from shared.model.errors import ObjectChanged, ObjectGone, StorageError
from shared.storage.deletion import CONDITION_TRIAL
from shared.storage.store import Store
from tests.support import faults


def put(body: bytes, key: str = "one") -> str:
    return str(boto3.client("s3").put_object(Bucket="deltas", Key=key, Body=body)["ETag"]).strip('"')


def _conditional(request: Any) -> bool:
    return request.method == "DELETE" and "If-Match" in request.headers


@pytest.mark.usefixtures("bucket")
class TestTrial:
    def test_a_store_that_heeds_conditions_is_known_after_one_try(self) -> None:
        urls: list[str] = []
        store = faults.doing(lambda request: urls.append(request.url))
        assert store.conditional_deletes("deltas", "quarantine/")
        assert store.conditional_deletes("deltas", "quarantine/")
        assert [url.partition("/deltas/")[2] for url in urls] == [f"quarantine/{CONDITION_TRIAL}"] * 2

    def test_one_that_deletes_nevertheless_is_found_out(self, foreign_store: Store) -> None:
        assert not foreign_store.conditional_deletes("deltas", "quarantine/")

    @pytest.mark.parametrize(("code", "status"), [("NotImplemented", 501), ("InvalidArgument", 400)])
    def test_one_that_refuses_the_condition_is_found_out(self, code: str, status: int) -> None:
        assert not faults.answering(code, status, _conditional).conditional_deletes("deltas", "quarantine/")

    @pytest.mark.usefixtures("fast_retries")
    @pytest.mark.parametrize(("code", "status"), [("SlowDown", 503), ("AccessDenied", 403)])
    def test_a_try_that_cannot_be_made_says_nothing_of_the_store(self, code: str, status: int) -> None:
        store = faults.answering(code, status, _conditional)
        with pytest.raises(StorageError, match=code):
            store.conditional_deletes("deltas", "quarantine/")


@pytest.fixture(params=["heeds", "refuses", "ignores"])
def any_store(request: pytest.FixtureRequest) -> Store:
    """A store that heeds conditions, one that says it does not know them, and one that ignores them."""
    if request.param == "ignores":
        store: Store = request.getfixturevalue("foreign_store")
        store.conditional_deletes("deltas", "")
        return store
    request.getfixturevalue("bucket")
    return faults.answering("NotImplemented", 501, _conditional) if request.param == "refuses" else Store(s3())


def s3() -> Any:
    from shared.storage.client import s3_client

    return s3_client()


class TestDelete:
    def test_what_was_judged_is_deleted(self, any_store: Store) -> None:
        any_store.delete("deltas", "one", put(b"judged"))
        with pytest.raises(ObjectGone):
            any_store.head("deltas", "one")

    def test_what_is_newer_is_not(self, any_store: Store) -> None:
        judged = put(b"judged")
        newer = put(b"newer")
        with pytest.raises(ObjectChanged):
            any_store.delete("deltas", "one", judged)
        assert any_store.head("deltas", "one").etag == newer

    def test_what_is_gone_is_no_error(self, any_store: Store) -> None:
        any_store.delete("deltas", "never", "0" * 32)

    @pytest.mark.usefixtures("bucket")
    def test_a_marker_that_an_earlier_try_left_is_no_error(self) -> None:
        """S3 answers 412 where a delete marker is the current version."""
        judged = put(b"judged")
        boto3.client("s3").delete_object(Bucket="deltas", Key="one")
        faults.answering("PreconditionFailed", 412, _conditional).delete("deltas", "one", judged)

    @pytest.mark.usefixtures("bucket")
    def test_a_refusal_although_nothing_changed_is_not_taken_for_a_change(self) -> None:
        """S3 answers 409 where another request came between."""
        judged = put(b"judged")
        with pytest.raises(StorageError, match="nothing changed, try again") as raised:
            faults.answering("ConditionalRequestConflict", 409, _conditional).delete("deltas", "one", judged)
        assert not isinstance(raised.value, ObjectChanged)

    @pytest.mark.usefixtures("bucket")
    def test_with_versions_but_without_conditions_exactly_the_judged_version_goes(self) -> None:
        client = boto3.client("s3")
        client.put_bucket_versioning(Bucket="deltas", VersioningConfiguration={"Status": "Enabled"})
        judged = put(b"judged")
        newer: list[str] = []

        def refuse_and_overwrite(request: Any) -> bool:
            if request.method == "DELETE" and "versionId" in request.url:
                newer.append(put(b"newer"))
            return _conditional(request)

        faults.answering("NotImplemented", 501, refuse_and_overwrite).delete("deltas", "one", judged)
        assert client.head_object(Bucket="deltas", Key="one")["ETag"].strip('"') == newer[0]


@pytest.mark.usefixtures("bucket")
def test_an_exclusive_write_in_a_store_that_refuses_the_condition_looks_first() -> None:
    store = faults.answering("NotImplemented", 501, lambda request: "If-None-Match" in request.headers)
    assert store.put("deltas", "one", b"first", only_if_absent=True)
    assert not store.put("deltas", "one", b"second", only_if_absent=True)
    assert store.read("deltas", "one", 10) == b"first"


def test_bytes_of_another_object_are_not_taken_from_a_store_that_ignores_conditions(foreign_store: Store) -> None:
    judged = put(b"judged")
    put(b"newer!")
    for read in (
        lambda: foreign_store.read("deltas", "one", 6, judged),
        lambda: foreign_store.checksum("deltas", "one", judged),
    ):
        with pytest.raises(ObjectChanged, match="another ETag"):
            read()
