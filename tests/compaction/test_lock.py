"""The lock: one holder at a time, expiry, and a holder that was overtaken knows it."""

from __future__ import annotations

import json
import threading
import time
from datetime import UTC, datetime, timedelta
from typing import Any

import boto3
import pytest

from compaction.lock import LockHeld, LockLost, held_lock
from shared.storage.store import Store
from tests.support import faults, races

KEY = "snapshots/lock.json"


def content(bucket: str) -> dict[str, Any]:
    return json.loads(boto3.client("s3").get_object(Bucket=bucket, Key=KEY)["Body"].read())


def put(bucket: str, seconds: float, holder: str = "another") -> None:
    expires_at = datetime.now(UTC) + timedelta(seconds=seconds)
    lock = {"format": 1, "holder": holder, "purpose": "a test", "expires_at": expires_at.isoformat()}
    boto3.client("s3").put_object(Bucket=bucket, Key=KEY, Body=json.dumps(lock).encode())


def is_there(store: Store, bucket: str) -> bool:
    return any(store.walk(bucket, KEY))


def test_a_lock_says_who_holds_it_and_goes_away_at_the_end(store: Store, bucket: str) -> None:
    with held_lock(store, bucket, KEY, "a test") as lock:
        lock.check()
        assert (content(bucket)["holder"], content(bucket)["purpose"]) == (lock.holder, "a test")
    assert not is_there(store, bucket)


def test_it_goes_away_when_the_block_fails(store: Store, bucket: str) -> None:
    with pytest.raises(ZeroDivisionError), held_lock(store, bucket, KEY, "a test"):
        raise ZeroDivisionError
    assert not is_there(store, bucket)


def test_a_second_holder_is_told_who_has_it_and_until_when(store: Store, bucket: str) -> None:
    with held_lock(store, bucket, KEY, "the first") as lock:
        with pytest.raises(LockHeld, match=rf"held by {lock.holder} \(the first\) until 20"):
            held_lock(store, bucket, KEY, "the second").__enter__()
        lock.check()


def test_an_expired_lock_is_taken_over(store: Store, bucket: str) -> None:
    put(bucket, seconds=-1)
    with held_lock(store, bucket, KEY, "the next") as lock:
        assert content(bucket)["holder"] == lock.holder


def test_a_lock_that_cannot_be_read_counts_as_expired(store: Store, bucket: str) -> None:
    boto3.client("s3").put_object(Bucket=bucket, Key=KEY, Body=b"not a lock")
    with held_lock(store, bucket, KEY, "the next") as lock:
        assert content(bucket)["holder"] == lock.holder


def test_of_two_that_take_over_at_once_only_one_gets_it(bucket: str, store: Store) -> None:
    put(bucket, seconds=-1)

    def overtake(request: Any) -> None:
        if request.method == "PUT" and "If-Match" in request.headers:
            put(bucket, seconds=60, holder="the faster")

    with pytest.raises(LockHeld, match="another process has just taken it"):
        held_lock(faults.doing(overtake), bucket, KEY, "the slower").__enter__()
    assert content(bucket)["holder"] == "the faster"


def test_a_holder_that_was_overtaken_knows_it_and_leaves_the_new_lock_alone(store: Store, bucket: str) -> None:
    with held_lock(store, bucket, KEY, "the slow") as lock:
        put(bucket, seconds=60, holder="the next")
        with pytest.raises(LockLost, match="is lost to the next"):
            lock.check()
    assert content(bucket)["holder"] == "the next"


def test_a_lock_that_expired_is_lost_even_if_nobody_wants_it(store: Store, bucket: str) -> None:
    with held_lock(store, bucket, KEY, "the slow", seconds=0) as lock, pytest.raises(LockLost, match="expired at"):
        lock.check()


def test_a_lock_that_somebody_removed_is_lost(store: Store, bucket: str) -> None:
    with held_lock(store, bucket, KEY, "the slow") as lock:
        boto3.client("s3").delete_object(Bucket=bucket, Key=KEY)
        with pytest.raises(LockLost, match="lost to nobody"):
            lock.check()


@pytest.mark.usefixtures("fast_retries")
def test_a_store_that_does_not_answer_at_the_end_leaves_it_to_expire(bucket: str, store: Store) -> None:
    silent = faults.answering("InternalError", 500, lambda request: request.method == "HEAD")
    with held_lock(silent, bucket, KEY, "a test"):
        pass
    assert is_there(store, bucket)


def test_it_is_renewed_while_it_is_held(store: Store, bucket: str) -> None:
    with held_lock(store, bucket, KEY, "a long one", seconds=0.5) as lock:
        first = content(bucket)["expires_at"]
        renewed = threading.Event()
        while not renewed.wait(0.02):
            if content(bucket)["expires_at"] > first:
                renewed.set()
        assert content(bucket)["holder"] == lock.holder


def test_renewing_gives_it_its_whole_time_again(store: Store, bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with held_lock(store, bucket, KEY, "a long one", seconds=60) as lock:
        real = time.monotonic
        for passed in (50, 100, 150):
            monkeypatch.setattr("compaction.lock.time.monotonic", lambda passed=passed: real() + passed)
            lock.renew()
            lock.check()
        monkeypatch.setattr("compaction.lock.time.monotonic", lambda: real() + 210)
        with pytest.raises(LockLost, match="expired at"):
            lock.check_if_due()


def test_one_that_is_lost_is_not_renewed(store: Store, bucket: str) -> None:
    with held_lock(store, bucket, KEY, "the slow") as lock:
        put(bucket, seconds=60, holder="the next")
        with pytest.raises(LockLost, match="is lost to the next"):
            lock.renew()
    assert content(bucket)["holder"] == "the next"


@pytest.mark.parametrize("hours", [-5, 5])
def test_the_clock_of_this_machine_decides_nothing(
    hours: int, store: Store, bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Wrong(datetime):
        @classmethod
        def now(cls, tz: Any = None) -> datetime:
            return datetime.now(tz) + timedelta(hours=hours)

    monkeypatch.setattr("shared.storage.client.datetime", Wrong)
    put(bucket, seconds=60)
    with pytest.raises(LockHeld):
        held_lock(store, bucket, KEY, "the second").__enter__()
    put(bucket, seconds=-60)
    with held_lock(store, bucket, KEY, "the second") as lock:
        lock.check()


@pytest.mark.usefixtures("fast_retries")
@pytest.mark.parametrize("taking_over", [False, True])
@pytest.mark.parametrize("fault", ["reset after", "500 after"])
@pytest.mark.parametrize("repeats", [True, False])
def test_a_lock_whose_answer_was_lost_is_known_as_ones_own(
    fault: str, taking_over: bool, repeats: bool, bucket: str, store: Store
) -> None:
    if taking_over:
        put(bucket, seconds=-60)

    def hold(store: Store) -> None:
        with held_lock(store, bucket, KEY, "a test") as lock:
            lock.check()

    write = 5 if taking_over else 2  # after the listing, the exclusive write, and a look at what lies there
    ran = races.disturbed(write, hold, races.FAULTS[fault], repeats=repeats)
    assert (ran.reached, ran.error) == (True, None)
    assert not is_there(store, bucket)
