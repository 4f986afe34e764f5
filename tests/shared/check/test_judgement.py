"""From a delta's place to its verdict: what is asked, what is fetched, and when a delta counts as all there."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import boto3
import pytest
from botocore.exceptions import ReadTimeoutError

from devtools.damage.catalogue import apply_damage
from shared.check.judgement import judge_folder, judge_stored
from shared.model.delta import DATABASE, MANIFEST, SEGMENT_FILES, DeltaLocation, Listing
from shared.model.errors import TargetError
from shared.model.settings import Settings
from shared.model.verdict import Depth, Status, Verdict
from shared.storage.store import Store
from shared.upload import upload_delta
from tests.conftest import CopyOf, PutDelta
from tests.support import faults
from tests.support.databases import changed

KEY = "words/delta/one"


def codes(verdict: Verdict) -> list[str]:
    return [finding.code for finding in verdict.findings]


@pytest.fixture
def uploaded(bucket: str, flushed_delta: Path) -> DeltaLocation:
    """A delta with a manifest."""
    upload_delta(flushed_delta, bucket, KEY, batch_id="batch-1")
    return DeltaLocation(bucket, f"{KEY}/")


def overwrite(location: DeltaLocation, name: str, change: Any) -> None:
    client = boto3.client("s3")
    body = client.get_object(Bucket=location.bucket, Key=location.key(name))["Body"].read()
    client.put_object(Bucket=location.bucket, Key=location.key(name), Body=change(body))


def flip(data: bytes) -> bytes:
    """One bit of the last byte: a change that no structure shows."""
    return data[:-1] + bytes([data[-1] ^ 1])


@pytest.mark.parametrize("depth", list(Depth)[:3])
def test_a_healthy_delta_is_healthy_at_every_depth(
    store: Store, flushed_delta: Path, put_delta: PutDelta, settled: Settings, depth: Depth
) -> None:
    stored = judge_stored(store, put_delta(flushed_delta, KEY), depth, settled).verdict
    local = judge_folder(flushed_delta, depth, settled).verdict
    assert stored.status is local.status is Status.HEALTHY
    assert stored.collections == local.collections
    assert stored.size == local.size > 0


def test_a_verdict_says_when_the_newest_file_was_uploaded(
    healthy_delta: Path, put_delta: PutDelta, store: Store, settled: Settings
) -> None:
    location = put_delta(healthy_delta, "d/1")
    newest = max(file.modified for _, file in store.walk(location.bucket, location.prefix))
    stored = judge_stored(store, location, Depth.LISTING, settled).verdict.uploaded
    assert stored == newest
    assert stored is not None and stored.tzinfo is UTC
    local = judge_folder(healthy_delta, Depth.LISTING, settled).verdict.uploaded
    assert local == datetime.fromtimestamp(max(f.stat().st_mtime for f in healthy_delta.rglob("*.*")), UTC)
    assert judge_stored(store, DeltaLocation("deltas", "d/2/"), Depth.LISTING, settled).verdict.uploaded is None


def test_a_listing_reads_no_object_and_a_header_two(
    flushed_delta: Path, put_delta: PutDelta, settled: Settings
) -> None:
    location = put_delta(flushed_delta, KEY)
    for depth, most in ((Depth.LISTING, 0), (Depth.HEADER, 2)):
        reads: list[str] = []
        store = faults.doing(lambda request, reads=reads: reads.append(request.headers.get("Range", b"")))
        judge_stored(store, location, depth, settled)
        assert len(reads) - 1 <= most, "the first request is the listing"
        assert all(reads[1:])


@pytest.mark.parametrize("depth", list(Depth)[:3])
def test_with_a_manifest_a_changed_bit_is_found_at_every_depth(
    store: Store, uploaded: DeltaLocation, settled: Settings, depth: Depth
) -> None:
    overwrite(uploaded, DATABASE, flip)
    verdict = judge_stored(store, uploaded, depth, settled).verdict
    assert "manifest.checksum_differs" in codes(verdict)


def test_a_store_that_keeps_no_checksums_has_them_computed(
    bucket: str, uploaded: DeltaLocation, settled: Settings
) -> None:
    def forget(request: Any) -> None:
        request.headers.pop("x-amz-checksum-mode", None)

    assert judge_stored(faults.doing(forget), uploaded, Depth.STRUCTURE, settled).checksums_proven
    overwrite(uploaded, DATABASE, flip)
    assert "manifest.checksum_differs" in codes(
        judge_stored(faults.doing(forget), uploaded, Depth.STRUCTURE, settled).verdict
    )


def test_a_file_that_the_manifest_lists_and_is_missing_is_corrupt_once_settled(
    store: Store, bucket: str, uploaded: DeltaLocation, settled: Settings
) -> None:
    boto3.client("s3").delete_object(Bucket=bucket, Key=uploaded.key(DATABASE))
    assert codes(judge_stored(store, uploaded, Depth.LISTING, settled).verdict) == [
        "manifest.file_missing",
        "layout.database_missing",
    ]
    assert judge_stored(store, uploaded, Depth.LISTING, Settings()).verdict.status is Status.INCOMPLETE


def test_counts_that_differ_from_the_manifest_are_corrupt(
    store: Store, uploaded: DeltaLocation, settled: Settings
) -> None:
    overwrite(uploaded, MANIFEST, lambda data: data.replace(b'"count": 123', b'"count": 124'))
    assert codes(judge_stored(store, uploaded, Depth.STRUCTURE, settled).verdict) == ["manifest.content_differs"]


def test_a_manifest_that_cannot_be_read_is_worth_a_note(
    store: Store, uploaded: DeltaLocation, settled: Settings
) -> None:
    overwrite(uploaded, MANIFEST, lambda data: data[:100])
    verdict = judge_stored(store, uploaded, Depth.STRUCTURE, settled).verdict
    assert verdict.status is Status.HEALTHY
    assert [note.code for note in verdict.notes] == ["manifest.unreadable"]


def test_an_unsettled_delta_is_excused_for_what_may_still_arrive_and_for_nothing_else(
    store: Store, bucket: str, flushed_delta: Path, put_delta: PutDelta, copy_of: CopyOf
) -> None:
    whole = put_delta(flushed_delta, "d/whole")
    without_pickle = copy_of(flushed_delta)
    apply_damage("pickle-missing", without_pickle)
    broken = copy_of(flushed_delta)
    apply_damage("sqlite-truncated", broken)
    verdicts = [
        judge_stored(store, location, Depth.STRUCTURE, Settings()).verdict
        for location in (whole, put_delta(without_pickle, "d/arriving"), put_delta(broken, "d/broken"))
    ]
    assert [verdict.status for verdict in verdicts] == [Status.HEALTHY, Status.INCOMPLETE, Status.CORRUPT]
    assert set(codes(verdicts[1])) == {"arrival.file_awaited", "arrival.settling"}
    assert "hnsw.pickle_missing" in verdicts[1].reason


def test_what_has_not_arrived_yet_is_not_called_lost(
    store: Store, flushed_delta: Path, put_delta: PutDelta, copy_of: CopyOf, settled: Settings
) -> None:
    without_pickle = copy_of(flushed_delta)
    apply_damage("pickle-missing", without_pickle)
    location = put_delta(without_pickle, KEY)
    arriving, arrived = (
        judge_stored(store, location, Depth.STRUCTURE, given).verdict for given in (Settings(), settled)
    )
    assert [note.code for note in arriving.notes] == []
    assert [note.code for note in arrived.notes] == ["records.recoverable"]


def test_what_is_lost_for_certain_is_told_although_more_may_arrive(
    store: Store, flushed_delta: Path, put_delta: PutDelta, copy_of: CopyOf
) -> None:
    broken = copy_of(flushed_delta)
    apply_damage("pickle-missing", broken)
    apply_damage("queue-encoding-unknown", broken)
    verdict = judge_stored(store, put_delta(broken, KEY), Depth.STRUCTURE, Settings()).verdict
    assert verdict.status is Status.CORRUPT
    assert [note.code for note in verdict.notes] == ["records.recoverable"]


def test_a_delta_without_its_manifest_is_awaited_where_manifests_are_required(
    store: Store, flushed_delta: Path, put_delta: PutDelta
) -> None:
    location = put_delta(flushed_delta, KEY)
    required = Settings(settle_seconds=0, arrival_seconds=0, manifest_required=True)
    verdict = judge_stored(store, location, Depth.STRUCTURE, required, await_arrival=True).verdict
    assert (verdict.status, codes(verdict)) == (Status.INCOMPLETE, ["arrival.manifest_awaited"])


def test_a_delta_of_many_defects_has_a_short_verdict(flushed_delta: Path, copy_of: CopyOf, settled: Settings) -> None:
    folder = changed(copy_of(flushed_delta), "UPDATE embeddings_queue SET operation = 9")
    verdict = judge_folder(folder, Depth.STRUCTURE, settled).verdict
    told = [finding for finding in verdict.findings if finding.code == "records.operation_unknown"]
    assert len(told) == 21
    assert told[-1].detail == "and 24 more of these"


def test_a_delta_overwritten_below_its_old_manifest_is_awaited(
    store: Store, uploaded: DeltaLocation, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An upload over an older delta writes its manifest last, too: newer files than the manifest mean more to come."""
    an_hour_ago = datetime.now(UTC) - timedelta(hours=1)
    files = store.list_delta(uploaded).files
    aged = Listing.of(replace(file, modified=an_hour_ago) if file.name == MANIFEST else file for file in files)
    monkeypatch.setattr(store, "list_delta", lambda *_, **__: aged)
    verdict = judge_stored(store, uploaded, Depth.LISTING, Settings(), await_arrival=True).verdict
    assert (verdict.status, codes(verdict)) == (Status.INCOMPLETE, ["arrival.settling"])


@pytest.mark.parametrize(
    ("store_of", "code"),
    [
        (lambda: faults.answering("AccessDenied", 403), "check.access_denied"),
        (lambda: faults.answering("SlowDown", 503), "check.throttled"),
        (lambda: faults.answering("KMS.DisabledException", 400), "check.storage"),
        (lambda: faults.failing(ReadTimeoutError(endpoint_url="http://nowhere")), "check.storage"),
        (lambda: faults.failing(ConnectionResetError(104, "reset by peer")), "check.storage"),
    ],
)
def test_a_fault_of_the_store_is_undetermined_at_every_request(
    bucket: str, uploaded: DeltaLocation, settled: Settings, store_of: Any, code: str, fast_retries: None
) -> None:
    verdict = judge_stored(store_of(), uploaded, Depth.STRUCTURE, settled).verdict
    assert (verdict.status, codes(verdict)) == (Status.UNDETERMINED, [code])


def test_bytes_that_changed_on_their_way_are_undetermined_where_the_store_keeps_checksums(
    uploaded: DeltaLocation, settled: Settings
) -> None:
    store, _ = faults.hooked(faults.changed_on_the_way)
    verdict = judge_stored(store, uploaded, Depth.STRUCTURE, settled).verdict
    assert (verdict.status, codes(verdict)) == (Status.UNDETERMINED, ["check.storage"])


def test_a_delta_overwritten_while_it_is_read_is_undetermined(
    bucket: str, flushed_delta: Path, put_delta: PutDelta, settled: Settings
) -> None:
    location = put_delta(flushed_delta, KEY)

    def meddle(request: Any) -> None:
        if "data_level0" in request.url:
            boto3.client("s3").put_object(Bucket=bucket, Key=location.key(DATABASE), Body=b"another")

    verdict = judge_stored(faults.doing(meddle), location, Depth.STRUCTURE, settled).verdict
    # Whichever file is read first: the database is either refused by its ETag or was read whole before.
    assert verdict.status in (Status.UNDETERMINED, Status.HEALTHY)


def test_a_delta_above_the_cap_is_not_downloaded(flushed_delta: Path, put_delta: PutDelta) -> None:
    location = put_delta(flushed_delta, KEY)
    reads: list[str] = []
    settings = Settings(settle_seconds=0, arrival_seconds=0, max_delta_bytes=10_000)
    store = faults.doing(
        lambda request: reads.append(request.url) if b"Range" not in str(request.headers).encode() else None
    )
    verdict = judge_stored(store, location, Depth.STRUCTURE, settings).verdict
    assert (verdict.status, codes(verdict)) == (Status.UNDETERMINED, ["check.size_cap"])
    assert "DELTAGUARD_MAX_DELTA_BYTES" in verdict.reason
    assert len(reads) == 1, "the listing"
    assert judge_folder(flushed_delta, Depth.STRUCTURE, settings).verdict.status is Status.UNDETERMINED


def test_hostile_keys_are_noted_and_never_become_paths(
    store: Store, bucket: str, flushed_delta: Path, put_delta: PutDelta, settled: Settings, tmp_path: Path
) -> None:
    location = put_delta(flushed_delta, KEY)
    for name in ("../../escaped", "/etc/passwd", "a\\b", "\x1b[31mred"):
        boto3.client("s3").put_object(Bucket=bucket, Key=location.key(name), Body=b"x")
    verdict = judge_stored(store, location, Depth.STRUCTURE, settled).verdict
    assert verdict.status is Status.HEALTHY
    assert [note.code for note in verdict.notes] == ["layout.file_name_hostile"] * 4
    assert all(note.file.isprintable() for note in verdict.notes)


def test_nothing_is_left_on_the_disk_whatever_the_verdict(
    store: Store,
    flushed_delta: Path,
    put_delta: PutDelta,
    settled: Settings,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    location = put_delta(flushed_delta, KEY)
    for given in (store, faults.answering("AccessDenied", 403, lambda request: "link_lists" in request.url)):
        judge_stored(given, location, Depth.STRUCTURE, settled)
        assert list(tmp_path.glob("deltaguard-*")) == []


def test_a_local_delta_is_left_exactly_as_it_was(flushed_delta: Path, copy_of: CopyOf, settled: Settings) -> None:
    folder = copy_of(flushed_delta)
    before = {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in folder.rglob("*") if path.is_file()}
    judge_folder(folder, Depth.STRUCTURE, settled)
    after = {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in folder.rglob("*") if path.is_file()}
    assert after == before


def test_links_are_not_followed(healthy_delta: Path, tmp_path: Path, settled: Settings) -> None:
    folder = tmp_path / "linked"
    folder.mkdir()
    (folder / DATABASE).symlink_to("/etc/passwd")
    verdict = judge_folder(folder, Depth.STRUCTURE, settled).verdict
    assert (verdict.status, codes(verdict)) == (Status.UNDETERMINED, ["check.local_io"])
    assert "root:" not in verdict.reason


def test_a_pipe_among_the_files_does_not_block(tmp_path: Path, settled: Settings) -> None:
    os.mkfifo(tmp_path / DATABASE)
    assert judge_folder(tmp_path, Depth.STRUCTURE, settled).verdict.status is Status.UNDETERMINED


def test_no_folder_is_a_target_error(tmp_path: Path, settled: Settings) -> None:
    with pytest.raises(TargetError, match="no such folder"):
        judge_folder(tmp_path / "nowhere", Depth.LISTING, settled)


def test_a_manifest_is_believed_in_a_local_folder_too(
    bucket: str, uploaded: DeltaLocation, flushed_delta: Path, copy_of: CopyOf, settled: Settings
) -> None:
    folder = copy_of(flushed_delta)
    boto3.client("s3").download_file(bucket, uploaded.key(MANIFEST), str(folder / MANIFEST))
    assert judge_folder(folder, Depth.LISTING, settled).checksums_proven
    (folder / DATABASE).write_bytes(flip((folder / DATABASE).read_bytes()))
    assert codes(judge_folder(folder, Depth.LISTING, settled).verdict) == ["manifest.checksum_differs"]


@pytest.mark.slow
def test_each_step_of_a_check_can_be_traced(
    store: Store, healthy_delta: Path, put_delta: PutDelta, settled: Settings
) -> None:
    steps: list[str] = []

    @contextmanager
    def step(name: str) -> Iterator[None]:
        steps.append(f"{name} begins")
        yield
        steps.append(f"{name} ends")

    location = put_delta(healthy_delta, KEY)
    judge_stored(store, location, Depth.OPEN, settled, step=step)
    assert steps == [
        "list begins",
        "list ends",
        "inspect begins",
        "download begins",
        "download ends",
        "probe begins",
        "probe ends",
        "inspect ends",
    ]


def test_a_settling_delta_says_when_it_will_have_settled(
    store: Store, flushed_delta: Path, put_delta: PutDelta
) -> None:
    location = put_delta(flushed_delta, KEY)
    newest = store.list_delta(location).newest
    assert newest is not None
    for settings, moment in (
        (Settings(settle_seconds=500), newest + timedelta(seconds=500)),
        (Settings(settle_seconds=500, manifest_required=True), None),
        (Settings(settle_seconds=0, arrival_seconds=0, manifest_required=True), None),
    ):
        judgement = judge_stored(store, location, Depth.LISTING, settings, await_arrival=True)
        assert judgement.verdict.status is Status.INCOMPLETE
        assert judgement.settles_at == moment


def test_an_index_that_was_never_flushed_is_not_downloaded(
    healthy_delta: Path, flushed_delta: Path, put_delta: PutDelta, settled: Settings
) -> None:
    def downloaded(folder: Path, key: str, depth: Depth) -> set[str]:
        seen: set[str] = set()
        store = faults.doing(lambda request: seen.add(request.url.rpartition("/")[2]))
        location = put_delta(folder, key)
        assert judge_stored(store, location, depth, settled).verdict.status is Status.HEALTHY
        return {name for name in seen if "list-type" not in name}

    assert downloaded(healthy_delta, "d/1", Depth.STRUCTURE) == {DATABASE}
    assert downloaded(healthy_delta, "d/2", Depth.OPEN) == {DATABASE}
    assert downloaded(flushed_delta, "d/3", Depth.STRUCTURE) == {DATABASE, *SEGMENT_FILES}


def test_without_stored_checksums_every_file_of_the_manifest_is_downloaded_and_compared(
    healthy_delta: Path, bucket: str, put_delta: PutDelta, store: Store, settled: Settings
) -> None:
    """Also those of an index that was never flushed, which nobody else reads."""
    uploaded = upload_delta(healthy_delta, bucket, "d/1", settings=settled)
    manifest = store.read(bucket, uploaded + MANIFEST, 100_000)
    location = put_delta(healthy_delta, "d/2")
    boto3.client("s3").put_object(Bucket=bucket, Key=location.key(MANIFEST), Body=manifest)
    seen: set[str] = set()
    watched = faults.doing(lambda request: seen.add(f"{request.method} {request.url.rpartition('/')[2]}"))
    judgement = judge_stored(watched, location, Depth.STRUCTURE, settled)
    assert judgement.verdict.status is Status.HEALTHY
    assert judgement.checksums_proven
    assert "GET length.bin" in seen


class TestDeltasBelow:
    """A file of a delta that lies one level too high makes no delta of what lies below."""

    PARENT = DeltaLocation("deltas", "words/delta/")

    @pytest.mark.parametrize(
        "stray", [DATABASE, f"{DATABASE}-journal", "0a1b2c3d-0000-4000-8000-0123456789ab/header.bin"]
    )
    def test_what_is_proven_of_it_is_a_doubt_that_names_them(
        self, store: Store, healthy_delta: Path, put_delta: PutDelta, settled: Settings, stray: str
    ) -> None:
        below = [put_delta(healthy_delta, f"words/delta/{number}") for number in (1, 2)]
        store.put("deltas", self.PARENT.key(stray), b"SQLite format 3, almost")
        verdict = judge_stored(store, self.PARENT, Depth.STRUCTURE, settled).verdict
        assert verdict.status is Status.UNDETERMINED
        (doubt,) = [finding for finding in verdict.findings if finding.code == "verdict.deltas_below"]
        assert "2 deltas lie below it, such as 1/, 2/" in doubt.detail
        for location in below:
            assert judge_stored(store, location, Depth.STRUCTURE, settled).verdict.status is Status.HEALTHY

    def test_a_healthy_delta_above_others_is_as_healthy_as_any(
        self, store: Store, healthy_delta: Path, put_delta: PutDelta, settled: Settings
    ) -> None:
        put_delta(healthy_delta, "words/delta")
        alone = judge_stored(store, self.PARENT, Depth.STRUCTURE, settled).verdict
        put_delta(healthy_delta, "words/delta/1")
        verdict = judge_stored(store, self.PARENT, Depth.STRUCTURE, settled).verdict
        assert (verdict.status, verdict.fingerprint, verdict.size) == (Status.HEALTHY, alone.fingerprint, alone.size)

    def test_what_is_held_in_quarantine_below_it_is_no_delta_of_its_own(
        self, store: Store, healthy_delta: Path, put_delta: PutDelta
    ) -> None:
        settings = Settings(quarantine_prefix="words/delta/held", settle_seconds=0, arrival_seconds=0)
        put_delta(healthy_delta, f"words/delta/held/words/delta/1/{'0' * 64}")
        store.put("deltas", self.PARENT.key(DATABASE), b"SQLite format 3, almost")
        assert judge_stored(store, self.PARENT, Depth.STRUCTURE, settings).verdict.status is Status.CORRUPT
        put_delta(healthy_delta, "words/delta/1")
        assert judge_stored(store, self.PARENT, Depth.STRUCTURE, settings).verdict.status is Status.UNDETERMINED

    def test_where_not_all_that_lies_below_was_looked_at_it_is_in_doubt_as_well(
        self, store: Store, bucket: str, settled: Settings, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("shared.storage.listing.MAX_FILES", 3)
        for number in range(4):
            store.put(bucket, self.PARENT.key(f"a/{number}"), b"")
        store.put(bucket, self.PARENT.key(DATABASE), b"SQLite format 3, almost")
        judgement = judge_stored(store, self.PARENT, Depth.STRUCTURE, settled)
        assert "verdict.deltas_below" in codes(judgement.verdict)
        assert (judgement.verdict.status, judgement.gone) == (Status.UNDETERMINED, False)

    def test_a_place_with_nothing_but_deltas_below_is_empty_itself_and_says_where_they_are(
        self, store: Store, healthy_delta: Path, put_delta: PutDelta, settled: Settings
    ) -> None:
        put_delta(healthy_delta, "words/delta/1")
        judgement = judge_stored(store, self.PARENT, Depth.STRUCTURE, settled)
        assert (judgement.verdict.status, judgement.gone) == (Status.UNDETERMINED, True)
        assert "1 delta lies below it, such as 1/: scan finds" in judgement.verdict.reason


def test_a_file_of_a_manifest_that_may_be_one_of_too_many_others_is_not_called_lost(
    store: Store, uploaded: DeltaLocation, settled: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shared.model.delta.MAX_OTHERS", 1)
    entry = b'"files": [{"name": "z.txt", "size": 1, "crc64nvme": "AAAAAAAAAAA="},'
    overwrite(uploaded, MANIFEST, lambda data: data.replace(b'"files": [', entry))
    assert "manifest.file_missing" in codes(judge_stored(store, uploaded, Depth.LISTING, settled).verdict)
    for name in ("a.txt", "z.txt"):
        store.put(uploaded.bucket, uploaded.key(name), b"x")
    assert codes(judge_stored(store, uploaded, Depth.LISTING, settled).verdict) == ["check.size_cap"]
