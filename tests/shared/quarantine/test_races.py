"""Quarantine, restore and purge with another actor in front of each of their requests: nothing is lost between them."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import boto3
import pytest

from shared.model.delta import DATABASE, DeltaLocation
from shared.model.errors import DeltaguardError, StorageError
from shared.model.settings import Settings
from shared.model.verdict import Status
from shared.quarantine.move import quarantine
from shared.quarantine.put_back import return_swallowed
from shared.quarantine.record import held_name
from shared.quarantine.restore import Held, held_below, purge, restore
from shared.storage.client import s3_client
from shared.storage.store import Store
from tests.support import races, sweep
from tests.support.uploads import files_of, put, stored
from tests.support.verdicts import confirmed

KEY = "words/delta/one"
SETTINGS = Settings(settle_seconds=0, arrival_seconds=0)
Files = dict[str, bytes]


class Case:
    """A bucket with a corrupt delta, whose index files are those of the healthy delta that is uploaded in its place."""

    def __init__(self, bucket: str, healthy: Files, *, versions: bool) -> None:
        client = boto3.client("s3")
        client.create_bucket(Bucket=bucket)
        if versions:
            client.put_bucket_versioning(Bucket=bucket, VersioningConfiguration={"Status": "Enabled"})
        self.location = DeltaLocation(bucket, f"{KEY}/")
        self.healthy = healthy
        self.broken = healthy | {DATABASE: healthy[DATABASE][:-4096]}
        self.uploaded = self.purged = False
        put(bucket, KEY, self.broken)

    def held(self) -> list[Held]:
        def fail(error: StorageError) -> None:
            raise error

        return held_below(Store(s3_client()), self.location.bucket, self.location.prefix, SETTINGS, fail)

    def upload(self, _: Store | None = None) -> None:
        files = dict(self.healthy)
        database = files.pop(DATABASE)
        put(self.location.bucket, KEY, files)
        put(self.location.bucket, KEY, {DATABASE: database})
        self.uploaded = True

    def move(self, store: Store) -> None:
        """What a validator does."""
        judgement = confirmed(Store(s3_client()), self.location, SETTINGS)
        if judgement.verdict.status is Status.CORRUPT and judgement.listing.files:
            quarantine(store, self.location, judgement, SETTINGS)
        else:
            return_swallowed(store, self.location, judgement, SETTINGS)

    def restore(self, store: Store) -> None:
        for held in self.held():
            restore(store, held, SETTINGS, overwrite=True)

    def purge(self, store: Store) -> None:
        for held in self.held():
            purge(store, held)
            self.purged = True

    def assert_nothing_lost(self) -> None:
        places = [{key.removeprefix(f"{KEY}/"): data for key, data in stored(self.location.bucket, f"{KEY}/").items()}]
        for held in self.held():
            copies = stored(held.place.bucket, held.place.prefix)
            names = {file.name: held.place.key(held_name(file.name)) for file in held.record.files}
            places.append({name: copies[key] for name, key in names.items() if key in copies})
        for what, files in (("uploaded", self.healthy), ("corrupt", self.broken)):
            # An upload that comes before the move overwrites the corrupt one, as its producer wants.
            wanted = self.uploaded if what == "uploaded" else not self.purged and not self.uploaded
            found = [sorted(place) for place in places]
            assert not wanted or any(files.items() <= place.items() for place in places), f"the {what} one of {found}"


WORKS = ("move", "restore", "purge")
ACTORS = ("upload", "move", "restore", "purge")


@pytest.fixture
def healthy(flushed_delta: Path) -> Files:
    return files_of(flushed_delta)


@pytest.fixture
def case(aws: str, healthy: Files, request: pytest.FixtureRequest) -> Callable[[str], Case]:
    made = iter(range(10_000))

    def make(work: str) -> Case:
        case = Case(f"case-{next(made)}", healthy, versions=request.param == "versions")
        if work != "move":
            case.move(Store(s3_client()))
        return case

    return make


@pytest.mark.slow
@pytest.mark.usefixtures("fast_retries")
@pytest.mark.parametrize("actor", ACTORS)
@pytest.mark.parametrize("work", WORKS)
@pytest.mark.parametrize("case", ["plain", pytest.param("versions", marks=pytest.mark.sweep)], indirect=True)
def test_with_another_actor_in_front_of_any_request_nothing_is_lost(
    case: Callable[[str], Case], work: str, actor: str
) -> None:
    tally = races.Tally(f"{work}, {actor} in front of each request")
    for number in sweep.numbers(races.counted(getattr(case(work), work)), 2):
        one = case(work)

        def act(one: Case = one) -> Any:
            with suppress(DeltaguardError):  # one of the two gives way
                getattr(one, actor)(Store(s3_client()))

        ran = races.run_in_front_of(number, getattr(one, work), act)
        tally.ended(ran)
        with tally.case(number):
            assert ran.error is None or isinstance(ran.error, DeltaguardError), ran.error
            one.move(Store(s3_client()))  # the validator comes for the event of the upload, or once more
            one.assert_nothing_lost()
    tally.check()


@pytest.mark.slow
@pytest.mark.usefixtures("fast_retries")
@pytest.mark.parametrize("fault", sweep.some([*races.FAULTS], 2))
@pytest.mark.parametrize("work", WORKS)
@pytest.mark.parametrize("case", ["plain"], indirect=True)
def test_with_a_fault_at_any_request_nothing_is_lost(case: Callable[[str], Case], work: str, fault: str) -> None:
    tally = races.Tally(f"{work}, {fault} at each request")
    for number in sweep.numbers(races.counted(getattr(case(work), work)), 2):
        one = case(work)
        ran = races.disturbed(number, getattr(one, work), races.FAULTS[fault])
        tally.ended(ran)
        one.purged |= work == "purge"
        with tally.case(number):
            assert ran.error is None or isinstance(ran.error, DeltaguardError), ran.error
            with suppress(DeltaguardError):
                one.move(Store(s3_client()))
            one.assert_nothing_lost()
    tally.check()
