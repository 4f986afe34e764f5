"""Out of quarantine: back to its place whole and proven, or gone for good, and nothing in between."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from functools import cache
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import boto3
import pytest

from devtools.damage.catalogue import apply_damage
from shared.model.delta import DATABASE, MANIFEST, DeltaLocation
from shared.model.errors import StorageError, TargetError
from shared.model.settings import Settings
from shared.model.verdict import Finding, Status, Verdict
from shared.quarantine.claims import CLAIMS
from shared.quarantine.move import quarantine
from shared.quarantine.record import HISTORY, RECORD, HistoryEntry, read_history, write_history
from shared.quarantine.restore import Held, held_below, missing_copies, purge, restore
from shared.storage.store import Store
from shared.upload import upload_delta
from tests.conftest import CopyOf, PutDelta
from tests.support import faults, sweep
from tests.support.crash import Moment, killed_at
from tests.support.verdicts import confirmed

KEY = "words/delta/broken"
BESIDE = "chroma.sqlite3-shm"  # a file of Chroma's that changes no verdict
Hold = Callable[[str], Held]


def s3() -> Any:
    """A client of the present server; to make one takes longer than a request."""
    return _client(os.environ["AWS_ENDPOINT_URL"])


@cache
def _client(_endpoint: str) -> Any:
    return boto3.client("s3")


def objects(prefix: str, bucket: str = "deltas") -> dict[str, str]:
    """sha256 of every object below a prefix, by its name there."""
    found = s3().list_objects_v2(Bucket=bucket, Prefix=prefix).get("Contents", [])
    bodies = ((o["Key"], s3().get_object(Bucket=bucket, Key=o["Key"])["Body"].read()) for o in found)
    return {key.removeprefix(prefix): hashlib.sha256(body).hexdigest() for key, body in bodies}


def all_held(store: Store, prefix: str = "", bucket: str = "deltas", settings: Settings | None = None) -> list[Held]:
    def fail(error: StorageError) -> None:
        raise error

    return held_below(store, bucket, prefix, settings or Settings(settle_seconds=0, arrival_seconds=0), fail)


@pytest.fixture
def hold(store: Store, bucket: str, settled: Settings) -> Hold:
    """Quarantines a small delta, and gives what is held of it."""

    def quarantined(key: str) -> Held:
        location = DeltaLocation(bucket, f"{key}/")
        s3().put_object(Bucket=bucket, Key=location.key(DATABASE), Body=b"SQLite format 3, almost")
        s3().put_object(Bucket=bucket, Key=location.key(BESIDE), Body=b"of somebody")
        quarantine(store, location, confirmed(store, location, settled), settled)
        (held,) = all_held(store, location.prefix)
        return held

    return quarantined


@pytest.fixture
def false_alarm(store: Store, bucket: str, healthy_delta: Path, settled: Settings) -> Held:
    """A healthy delta with a manifest that was quarantined for a finding that rules of today do not have."""
    location = DeltaLocation(bucket, f"{KEY}/")
    upload_delta(healthy_delta, bucket, KEY, batch_id="batch-40", settings=settled)
    judgement = confirmed(store, location, settled)
    wrong = replace(judgement.verdict, observed=(Finding("sqlite.malformed", DATABASE, "was thought to be so"),))
    tags = {"TagSet": [{"Key": "owner", "Value": "words"}, {"Key": "deltaguard:status", "Value": "healthy"}]}
    s3().put_object_tagging(Bucket=bucket, Key=location.key(DATABASE), Tagging=tags)
    quarantine(store, location, replace(judgement, verdict=wrong), settled)
    (held,) = all_held(store)
    return held


class TestHeld:
    def test_what_lay_at_and_below_a_place_is_found(self, store: Store, hold: Hold) -> None:
        for key in ("words/delta/2", "words/delta/1", "words/delta/10", "other/delta/1"):
            hold(key)
        assert [h.record.prefix for h in all_held(store, "words/")] == [
            "words/delta/1/",
            "words/delta/10/",
            "words/delta/2/",
        ]
        assert [h.record.prefix for h in all_held(store, "words/delta/1/")] == ["words/delta/1/"]
        assert len(all_held(store)) == 4
        assert all_held(store, "nothing/") == []

    def test_a_record_that_cannot_be_read_hides_no_other(self, store: Store, hold: Hold, settled: Settings) -> None:
        spoilt, sound = hold("words/delta/1"), hold("words/delta/2")
        s3().put_object(Bucket="deltas", Key=spoilt.place.key(RECORD), Body=b"{}")
        told: list[StorageError] = []
        assert held_below(store, "deltas", "", settled, told.append) == [sound]
        assert "not a quarantine record" in str(told[0])

    def test_a_file_of_a_delta_is_no_record_whatever_it_says(self, store: Store, settled: Settings, hold: Hold) -> None:
        example = hold("words/delta/1").record
        prefix = f"words/delta/hostile/{'a' * 64}/"
        name = f"x/{'b' * 64}/{RECORD}"
        lie = example.model_copy(update={"prefix": f"{prefix}x/", "fingerprint": "b" * 64})
        location = DeltaLocation("deltas", prefix)
        s3().put_object(Bucket="deltas", Key=location.key(name), Body=lie.model_dump_json().encode())
        s3().put_object(Bucket="deltas", Key=location.key(DATABASE), Body=b"broken")
        place = quarantine(store, location, confirmed(store, location, settled), settled).place
        assert [held.place for held in all_held(store, "words/delta/hostile/")] == [place]

    def test_the_list_says_what_and_why_and_how_much(self, false_alarm: Held) -> None:
        told = false_alarm.as_json()
        assert told["delta"] == f"s3://deltas/{KEY}/"
        assert (told["codes"], told["batch_id"], told["attempt"]) == (["sqlite.malformed"], "batch-40", 1)
        assert (told["files"], told["restored_at"]) == (len(false_alarm.record.files), None)

    def test_a_copy_that_is_gone_is_named(self, store: Store, hold: Hold) -> None:
        held = hold(KEY)
        assert missing_copies(store, held) == ()
        s3().delete_object(Bucket="deltas", Key=held.place.key(BESIDE))
        assert missing_copies(store, held) == (BESIDE,)


class TestRestore:
    def test_a_false_alarm_comes_back_whole_and_healthy_and_not_validated(
        self, store: Store, false_alarm: Held, settled: Settings
    ) -> None:
        held = objects(false_alarm.place.prefix)
        assert restore(store, false_alarm, settled).status is Status.HEALTHY
        back = objects(f"{KEY}/")
        assert back == {name: held[name] for name in held.keys() - {RECORD}}
        assert store.tags("deltas", f"{KEY}/{DATABASE}") == {"owner": "words"}, "a verdict is not restored"
        assert held.items() <= objects(false_alarm.place.prefix).items(), "the copies stay"

    def test_a_corrupt_delta_comes_back_too_and_is_said_to_be_corrupt(
        self, store: Store, healthy_delta: Path, copy_of: CopyOf, put_delta: PutDelta, settled: Settings
    ) -> None:
        folder = copy_of(healthy_delta)
        apply_damage("queue-row-deleted", folder)
        location = put_delta(folder, KEY)
        before = objects(location.prefix)
        quarantine(store, location, confirmed(store, location, settled), settled)
        (held,) = all_held(store)
        verdict = restore(store, held, Settings())  # the settle time does not count: nothing more is on its way
        assert (verdict.status, verdict.findings[0].code) == (Status.CORRUPT, "records.vector_missing")
        assert objects(location.prefix) == before

    def test_the_history_tells_when_and_with_what_result(self, store: Store, hold: Hold, settled: Settings) -> None:
        held = hold(KEY)
        restore(store, held, settled)
        (entry,) = read_history(store, held.place).entries
        assert (entry.event, entry.status, entry.replaced) == ("restored", Status.CORRUPT, ())
        assert entry.codes == held.codes != ()
        (now,) = all_held(store)
        assert now.since == entry.at > held.since

    def test_the_manifest_comes_first_and_the_database_last(self, false_alarm: Held, settled: Settings) -> None:
        written: list[str] = []

        def note(request: Any) -> None:
            if request.method == "PUT" and f"/deltas/{KEY}/" in request.url:
                written.append(unquote(request.url).partition(f"/deltas/{KEY}/")[2])

        restore(faults.doing(note), false_alarm, settled)
        assert (written[0], written[-1]) == (MANIFEST, DATABASE), "what is missing is listed by what is there"
        assert len(written) == len(false_alarm.record.files)

    def test_what_lies_in_its_place_is_not_touched(self, store: Store, hold: Hold, settled: Settings) -> None:
        held = hold(KEY)
        s3().put_object(Bucket="deltas", Key=f"{KEY}/{DATABASE}", Body=b"a newer upload")
        before = objects("")
        with pytest.raises(TargetError, match=r"nothing was restored: chroma.sqlite3 would be lost; --overwrite"):
            restore(store, held, settled)
        assert objects("") == before, "and the history has no word of it"

    def test_when_asked_to_it_replaces_the_delta_that_lies_there_and_nothing_else(
        self, store: Store, hold: Hold, settled: Settings
    ) -> None:
        held = hold(KEY)
        copies = objects(held.place.prefix)
        for name in (DATABASE, "another.txt", BESIDE, MANIFEST):
            s3().put_object(Bucket="deltas", Key=f"{KEY}/{name}", Body=b"newer")
        restore(store, held, settled, overwrite=True)
        there = objects(f"{KEY}/")
        assert there.pop("another.txt"), "what is not the delta's stays"
        assert there == {name: copies[name] for name in (DATABASE, BESIDE)}
        aside = next(h for h in all_held(store) if h.place != held.place)
        assert {file.name for file in aside.record.files} == {DATABASE, BESIDE, MANIFEST}, "it can be restored in turn"
        assert objects(aside.place.prefix)[DATABASE] == hashlib.sha256(b"newer").hexdigest()
        assert "quarantine.set_aside" in {found["code"] for found in aside.record.verdict["notes"]}
        assert read_history(store, held.place).entries[0].replaced == (DATABASE, BESIDE, MANIFEST)

    def test_an_upload_that_comes_meanwhile_is_not_overwritten(self, hold: Hold, settled: Settings) -> None:
        held = hold(KEY)

        def upload(request: Any) -> bool:
            if not _writes(f"{KEY}/{DATABASE}")(request):
                return False
            s3().put_object(Bucket="deltas", Key=f"{KEY}/{DATABASE}", Body=b"newer")
            return bool(request.headers["If-None-Match"] == b"*")  # which moto does not know of a copy

        with pytest.raises(StorageError, match="something else was uploaded there meanwhile"):
            restore(faults.answering("PreconditionFailed", 412, upload), held, settled)
        assert s3().get_object(Bucket="deltas", Key=f"{KEY}/{DATABASE}")["Body"].read() == b"newer"

    @pytest.mark.parametrize("damage", ["missing", "other bytes"])
    def test_a_copy_that_is_not_what_the_record_says_stops_before_anything_is_written(
        self, store: Store, hold: Hold, settled: Settings, damage: str
    ) -> None:
        held = hold(KEY)
        copy = {"Bucket": "deltas", "Key": held.place.key(DATABASE)}
        if damage == "missing":
            s3().delete_object(**copy)
        else:
            s3().put_object(**copy, Body=b"SQLite format 3, closely")
        with pytest.raises(StorageError, match="nothing was restored"):
            restore(store, held, settled)
        assert objects(f"{KEY}/") == {}

    def test_a_foreign_store_can_restore_as_well(self, foreign_store: Store, settled: Settings) -> None:
        location = DeltaLocation("deltas", f"{KEY}/")
        for name in (DATABASE, BESIDE):
            s3().put_object(Bucket="deltas", Key=location.key(name), Body=b"bytes of " + name.encode())
        before = objects(location.prefix)
        judgement = confirmed(foreign_store, location, settled)
        quarantine(foreign_store, location, judgement, settled)
        (held,) = all_held(foreign_store)
        assert restore(foreign_store, held, settled).status is Status.CORRUPT
        assert objects(location.prefix) == before
        purge(foreign_store, all_held(foreign_store)[0])
        assert objects(held.place.prefix) == {}

    @pytest.mark.slow
    @pytest.mark.parametrize("overwrite", [False, True])
    @pytest.mark.parametrize("moment", ["before", "after"])
    def test_killed_at_any_request_no_half_looks_whole_and_a_later_run_finishes(
        self, store: Store, hold: Hold, settled: Settings, moment: Moment, overwrite: bool
    ) -> None:
        for request in sweep.stepping(5):
            key = f"words/delta/{request}"
            held = hold(key)
            copies = objects(held.place.prefix)
            whole = {name: digest for name, digest in copies.items() if name != RECORD}
            if overwrite:
                s3().put_object(Bucket="deltas", Key=f"{key}/{DATABASE}", Body=b"newer")
            options = ["overwrite"] if overwrite else []
            killed = killed_at(request, "restore", "deltas", key, *options, moment=moment)
            assert copies.items() <= objects(held.place.prefix).items(), "whole in quarantine, at every instant"
            there = objects(f"{key}/")
            assert DATABASE not in there or there[DATABASE] != whole[DATABASE] or there == whole
            (again,) = (found for found in all_held(store, f"{key}/") if found.place == held.place)
            restore(store, again, settled, overwrite=overwrite)
            assert objects(f"{key}/") == whole
            if not killed:
                break
        assert request > 15

    def test_a_rest_of_a_restore_is_finished_without_being_asked_to_overwrite(
        self, store: Store, hold: Hold, settled: Settings
    ) -> None:
        held = hold(KEY)
        with pytest.raises(StorageError):
            restore(faults.answering("AccessDenied", 403, _writes(f"{KEY}/{DATABASE}")), held, settled)
        assert objects(f"{KEY}/").keys() == {BESIDE}
        restore(store, held, settled)
        assert objects(f"{KEY}/").keys() == {BESIDE, DATABASE}
        first, second = read_history(store, held.place).entries
        assert (first.status, second.status) == (None, Status.CORRUPT)

    @pytest.mark.slow
    @pytest.mark.usefixtures("fast_retries")
    @pytest.mark.parametrize("code", ["SlowDown", "AccessDenied", "KMS.DisabledException"])
    def test_an_outage_from_any_request_on_loses_nothing(
        self, store: Store, hold: Hold, settled: Settings, code: str
    ) -> None:
        status = {"SlowDown": 503, "AccessDenied": 403}.get(code, 400)
        for number in sweep.stepping(4):
            held = hold(f"words/delta/{number}")
            copies = objects(held.place.prefix)
            verdict: Verdict | None = None
            try:
                verdict = restore(faults.answering(code, status, faults.from_the(number)), held, settled)
                break
            except StorageError:
                assert copies.items() <= objects(held.place.prefix).items()
            restore(store, held, settled)
        assert verdict is not None and number > 10


def _writes(key: str) -> Callable[[Any], bool]:
    return lambda request: request.method == "PUT" and request.url.endswith(f"/deltas/{key}")


class TestPurge:
    def test_nothing_is_left_and_others_are_not_touched(self, store: Store, hold: Hold) -> None:
        held, other = hold("words/delta/1"), hold("words/delta/10")
        restore(store, held, Settings(settle_seconds=0, arrival_seconds=0))
        (held,) = all_held(store, "words/delta/1/")
        purge(store, held)
        assert objects(held.place.prefix) == {}
        assert all_held(store) == [other]
        assert objects("words/delta/1/").keys() == {DATABASE, BESIDE}, "what was restored stays"

    def test_the_record_goes_last(self, hold: Hold) -> None:
        held = hold(KEY)
        deleted: list[str] = []
        purge(faults.doing(lambda r: deleted.append(r.url) if r.method == "DELETE" else None), held)
        assert [url.endswith(RECORD) for url in deleted if CLAIMS not in url] == [False, False, True]
        assert objects(f"quarantine/{CLAIMS}/") == {}, "and the claims with it"

    def test_what_was_restored_a_moment_ago_is_kept(self, store: Store, hold: Hold) -> None:
        held = hold(KEY)
        write_history(store, held.place, (HistoryEntry(event="quarantined_again", at=datetime.now(UTC)),))
        before = objects(held.place.prefix)
        with pytest.raises(StorageError, match="nothing was purged"):
            purge(store, held)
        assert objects(held.place.prefix) == before

    @pytest.mark.slow
    @pytest.mark.parametrize("versions", ["Suspended", "Enabled"])
    @pytest.mark.parametrize("moment", ["before", "after"])
    def test_killed_at_any_request_it_is_still_found_and_a_later_run_finishes(
        self, store: Store, bucket: str, hold: Hold, moment: Moment, versions: Any
    ) -> None:
        s3().put_bucket_versioning(Bucket=bucket, VersioningConfiguration={"Status": versions})
        for request in sweep.stepping(5):
            key = f"words/delta/{request}"
            place = hold(key).place
            killed = killed_at(request, "purge", bucket, key, moment=moment)
            rest = objects(place.prefix)
            found = all_held(store, f"{key}/")
            assert bool(rest) == bool(found), "as long as anything is left, its record is"
            for held in found:
                purge(store, held)
            assert objects(place.prefix) == {}
            if not killed:
                break
        assert request > 6

    def test_versions_go_with_it(self, store: Store, bucket: str, hold: Hold) -> None:
        s3().put_bucket_versioning(Bucket=bucket, VersioningConfiguration={"Status": "Enabled"})
        held = hold(KEY)
        restore(
            store, held, Settings(settle_seconds=0, arrival_seconds=0)
        )  # writes its history twice: there are two versions
        purge(store, all_held(store)[0])
        left = s3().list_object_versions(Bucket=bucket, Prefix=held.place.prefix)
        assert not left.get("Versions") and not left.get("DeleteMarkers")

    @pytest.mark.usefixtures("bucket")
    def test_a_retention_that_still_holds_refuses_before_anything_is_lost(self, store: Store) -> None:
        s3().create_bucket(Bucket="locked-deltas", ObjectLockEnabledForBucket=True)
        settings = Settings(quarantine_bucket="locked-deltas", settle_seconds=0, arrival_seconds=0)
        location = DeltaLocation("deltas", "words/delta/kept/")
        s3().put_object(Bucket="deltas", Key=location.key(DATABASE), Body=b"broken")
        s3().put_object(Bucket="deltas", Key=location.key(BESIDE), Body=b"of somebody")
        quarantine(store, location, confirmed(store, location, settings), settings)
        (held,) = all_held(store, settings=settings)
        until = {"Mode": "COMPLIANCE", "RetainUntilDate": datetime.now(UTC) + timedelta(days=1)}
        for file in held.record.files:
            key = held.place.key(file.name)
            s3().put_object_retention(Bucket="locked-deltas", Key=key, Retention=until)
        before = objects(held.place.prefix, "locked-deltas")
        with pytest.raises(StorageError, match="AccessDenied") as refused:
            purge(store, held)
        assert refused.value.code == "check.access_denied"
        assert objects(held.place.prefix, "locked-deltas") == before
        assert HISTORY not in before
