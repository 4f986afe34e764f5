"""What is read wrong once is no damage: a second look that shares nothing with the first one must find the same."""

from __future__ import annotations

import random
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import boto3
import pytest

from devtools.damage.catalogue import apply_damage
from shared.check.judgement import judge_stored
from shared.model.delta import DATABASE, MANIFEST, DeltaLocation
from shared.model.errors import StorageError
from shared.model.settings import Settings
from shared.model.verdict import Depth, Status, Verdict
from shared.storage.store import Store
from shared.upload import upload_delta
from tests.conftest import CopyOf, PutDelta
from tests.support import faults, sweep

KEY = "words/delta/one"
DEPTHS = list(Depth)[:3]
LISTING = "list-type"
HEADERS = 100  # bytes of the headers of a database and of an index
SAMPLES = 6


def codes(verdict: Verdict) -> set[str]:
    return {finding.code for finding in verdict.findings}


def store_that(answer: Callable[[Any], Any], most: int) -> Store:
    """A store that gives this answer to at most so many of its GETs, where it is one at all, and keeps no checksums."""
    left = [most]

    def given(request: Any) -> Any:
        request.headers.pop("x-amz-checksum-mode", None)
        if request.method != "GET" or not left[0]:
            return None
        found = answer(request)
        left[0] -= found is not None
        return found

    return faults.hooked(given)[0]


@pytest.fixture
def location(bucket: str, flushed_delta: Path, put_delta: PutDelta) -> DeltaLocation:
    """A healthy delta with a manifest, of which the store keeps no checksums."""
    location = put_delta(flushed_delta, KEY)
    prefix = upload_delta(flushed_delta, bucket, "whole")
    client = boto3.client("s3")
    manifest = client.get_object(Bucket=bucket, Key=prefix + MANIFEST)["Body"].read()
    client.put_object(Bucket=bucket, Key=location.key(MANIFEST), Body=manifest)
    return location


@pytest.mark.parametrize("depth", DEPTHS)
@pytest.mark.parametrize("name", [LISTING, DATABASE, MANIFEST, "header.bin", "index_metadata.pickle"])
def test_a_bit_that_turned_on_its_way_is_never_corrupt(
    location: DeltaLocation, settled: Settings, name: str, depth: Depth
) -> None:
    size = 4000 if name in (LISTING, MANIFEST) else HEADERS
    bits = random.Random(f"{name} {depth}").sample(range(8 * size), SAMPLES)
    for bit in bits:
        store = store_that(lambda request, bit=bit: faults.flipped(request, bit) if name in request.url else None, 1)
        verdict = judge_stored(store, location, depth, settled).verdict
        assert verdict.status in (Status.HEALTHY, Status.UNDETERMINED, Status.INCOMPLETE), (bit, verdict.reason)


def test_what_only_the_first_look_found_is_told_as_two_reads_that_differ(
    location: DeltaLocation, settled: Settings
) -> None:
    at_magic = store_that(lambda request: faults.flipped(request, 3) if DATABASE in request.url else None, 1)
    verdict = judge_stored(at_magic, location, Depth.STRUCTURE, settled).verdict
    assert (verdict.status, codes(verdict)) == (Status.UNDETERMINED, {"check.reads_differ"})
    assert "sqlite.not_a_database" in verdict.reason


def test_what_both_looks_found_is_corrupt_and_nothing_else_is_told(
    store: Store, flushed_delta: Path, copy_of: CopyOf, put_delta: PutDelta, settled: Settings
) -> None:
    """A delta that is damaged, and a bit that turns besides, whichever of the two looks it meets."""
    folder = copy_of(flushed_delta)
    apply_damage("queue-encoding-unknown", folder)
    location = put_delta(folder, KEY)
    damage = judge_stored(store, location, Depth.STRUCTURE, settled).verdict
    assert damage.status is Status.CORRUPT
    for looks_before in (0, 1):
        seen = [looks_before]

        def answer(request: Any, seen: list[int] = seen) -> Any:
            if "data_level0" not in request.url:
                return None
            seen[0] -= 1
            return faults.flipped(request, 0) if seen[0] == -1 else None

        verdict = judge_stored(store_that(answer, 1), location, Depth.STRUCTURE, settled).verdict
        assert (verdict.status, codes(verdict)) == (damage.status, codes(damage))


def test_an_upload_between_the_two_looks_makes_no_verdict(
    flushed_delta: Path, copy_of: CopyOf, put_delta: PutDelta, settled: Settings
) -> None:
    folder = copy_of(flushed_delta)
    apply_damage("sqlite-truncated", folder)
    location = put_delta(folder, KEY)
    listings = [0]

    def upload(request: Any) -> None:
        listings[0] += LISTING in request.url
        if LISTING in request.url and listings[0] == 2:
            put_delta(flushed_delta, KEY)

    verdict = judge_stored(faults.doing(upload), location, Depth.STRUCTURE, settled).verdict
    assert (verdict.status, codes(verdict)) == (Status.UNDETERMINED, {"check.changed"})
    assert judge_stored(faults.doing(upload), location, Depth.STRUCTURE, settled).verdict.status is Status.HEALTHY


@pytest.mark.parametrize("code", ["SlowDown", "AccessDenied"])
def test_a_second_look_that_is_refused_makes_no_proof(
    flushed_delta: Path, copy_of: CopyOf, put_delta: PutDelta, settled: Settings, code: str
) -> None:
    folder = copy_of(flushed_delta)
    apply_damage("sqlite-truncated", folder)
    location = put_delta(folder, KEY)
    for request_refused in (3, 4):  # the listing of the second look, and its first read
        due = faults.from_the(request_refused)
        store = store_that(lambda request, due=due: faults.refusal(code, 403)(request) if due(request) else None, 99)
        judgement = judge_stored(store, location, Depth.HEADER, settled)
        assert judgement.verdict.status is Status.UNDETERMINED
        assert not judgement.gone
        assert judgement.listing.files


def test_a_manifest_is_compared_with_the_checksum_that_the_store_keeps(
    bucket: str, flushed_delta: Path, settled: Settings
) -> None:
    upload_delta(flushed_delta, bucket, KEY)
    store, _ = faults.hooked(lambda request: faults.changed_on_the_way(request) if MANIFEST in request.url else None)
    verdict = judge_stored(store, DeltaLocation(bucket, f"{KEY}/"), Depth.LISTING, settled).verdict
    assert (verdict.status, codes(verdict)) == (Status.UNDETERMINED, {"check.storage"})


def test_a_healthy_delta_is_looked_at_once(location: DeltaLocation, settled: Settings) -> None:
    requests: list[str] = []
    store = faults.doing(lambda request: requests.append(request.url))
    assert judge_stored(store, location, Depth.STRUCTURE, settled).verdict.status is Status.HEALTHY
    assert sum(LISTING in url for url in requests) == 1
    assert sum(DATABASE in url and "HEAD" not in url for url in requests) <= 2, "a HEAD and a GET"


def test_an_answer_that_cannot_be_parsed_is_a_fault_of_the_store(
    location: DeltaLocation, settled: Settings, fast_retries: None
) -> None:
    """Whichever bit of a listing turned: markup, a number, a time, a name."""
    whole = []
    faults.hooked(lambda request: whole.append(faults.flipped(request, 0)))[0].list_delta(location)
    body = bytearray(whole[0].content)
    body[0] ^= 1
    for bit in random.Random(1).sample(range(8 * len(body)), sweep.few(40, 300)):
        wrong = bytearray(body)
        wrong[bit // 8] ^= 1 << bit % 8
        store, _ = faults.hooked(lambda request, wrong=bytes(wrong): faults.answered(request, wrong))
        with suppress(StorageError):
            store.list_delta(location)
