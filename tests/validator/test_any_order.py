"""Whatever comes in whatever order, however often, cut short wherever: the end is the same, and right."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import boto3
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, precondition, rule, run_state_machine_as_test

from devtools.damage.catalogue import apply_damage
from devtools.stack.stack import NOTICES, RESUBMIT, InvocationContext, LocalStack
from shared.model.delta import DATABASE, MANIFEST
from shared.quarantine.record import QuarantineRecord
from tests.samples import SAMPLES
from tests.support import faults, sweep
from tests.support.uploads import files_of, in_queue, manifest_of, put, s3_event, stored
from tests.validator.conftest import Through
from validator.handler import handler

_SETTLE_SECONDS = 3600
_VARIANTS = ("healthy", "healthy and longer", "corrupt", "corrupt and longer")
_numbers = itertools.count()

indexes = st.integers(0, 100)


@dataclass
class Place:
    """One delta's key: what is to come, what was put there last, and everything that ever lay there whole."""

    prefix: str
    to_come: list[tuple[str, bytes]] = field(default_factory=list)
    variant: str = ""
    manifest: bool = False
    files: dict[str, bytes] = field(default_factory=dict)
    whole: dict[str, str] = field(default_factory=dict)


class AnyOrder(RuleBasedStateMachine):
    """Producers, S3's events, and validators that are killed, all at once. The test sets the world they live in."""

    files: dict[str, dict[str, bytes]]
    manifests: dict[str, bytes]
    through: Through
    stack: LocalStack

    def __init__(self) -> None:
        super().__init__()
        self.places = [Place(f"words/{next(_numbers)}/delta") for _ in range(2)]
        self.events: list[dict[str, Any]] = []
        AnyOrder.settled = False

    settled = False

    @classmethod
    def clock(cls) -> datetime:
        """Time stands still while files arrive, and then jumps beyond the settle time."""
        return datetime.now(UTC) + timedelta(seconds=2 * _SETTLE_SECONDS if cls.settled else 0)

    def place(self, index: int) -> Place:
        return self.places[index % len(self.places)]

    @rule(
        index=indexes,
        variant=st.sampled_from(_VARIANTS),
        manifest=st.booleans(),
        order=st.randoms(use_true_random=False),
    )
    def begin_upload(self, index: int, variant: str, manifest: bool, order: Any) -> None:
        """Over whatever lies there; an old manifest goes first, as `upload_delta` removes it first."""
        place = self.place(index)
        if place.to_come:
            return
        boto3.client("s3").delete_object(Bucket="deltas", Key=f"{place.prefix}/{MANIFEST}")
        place.files = dict(self.files[variant])
        if manifest:
            place.files[MANIFEST] = self.manifests[variant]
        place.variant, place.manifest = variant, manifest
        place.to_come = list(place.files.items())
        order.shuffle(place.to_come)
        self.arrive(index, 1)

    @rule(index=indexes, files=st.integers(1, 6))
    def arrive(self, index: int, files: int) -> None:
        """The next files come, and S3 says so of databases and manifests."""
        place = self.place(index)
        AnyOrder.settled = False
        for name, data in place.to_come[:files]:
            put("deltas", place.prefix, {name: data})
            if name in (DATABASE, MANIFEST):
                self.events.append(s3_event("deltas", f"{place.prefix}/{name}"))
        del place.to_come[:files]

    @precondition(lambda self: not any(place.to_come for place in self.places))
    @rule()
    def pass_the_settle_time(self) -> None:
        AnyOrder.settled = True

    @precondition(lambda self: self.events)
    @rule(chosen=st.lists(indexes, min_size=1, max_size=4), again=st.booleans())
    def deliver(self, chosen: Sequence[int], again: bool) -> None:
        """Some events, in any order and maybe twice in a batch; they are done, or come (again) later."""
        self.through(lambda _: None)
        self._run(chosen, keep=again)

    @precondition(lambda self: self.events)
    @rule(chosen=st.lists(indexes, min_size=1, max_size=3), request=st.integers(1, 60))
    def deliver_to_one_that_is_killed(self, chosen: Sequence[int], request: int) -> None:
        self.through(faults.CrashAt(request))
        try:
            self._run(chosen, keep=True)
        except faults.Crash:
            pass
        finally:
            self.through(lambda _: None)

    @precondition(lambda self: self.events)
    @rule(chosen=st.lists(indexes, min_size=1, max_size=2))
    def deliver_to_several_at_once(self, chosen: Sequence[int]) -> None:
        self.through(lambda _: None)
        with ThreadPoolExecutor(3) as pool:
            list(pool.map(lambda _: self._run(chosen, keep=True), range(3)))

    @precondition(lambda self: self.events)
    @rule(chosen=st.lists(indexes, min_size=1, max_size=2), index=indexes, request=st.integers(2, 30))
    def deliver_while_more_arrives(self, chosen: Sequence[int], index: int, request: int) -> None:
        """An upload goes on in the midst of a validation."""
        left = iter(range(request, -1, -1))
        place = self.place(index)

        def go_on(_: Any) -> None:
            if next(left, 1) == 0 and place.to_come:
                self.arrive(index, 1)

        self.through(go_on)
        self._run(chosen, keep=True)

    def _run(self, chosen: Sequence[int], *, keep: bool) -> None:
        events = [self.events[index % len(self.events)] for index in chosen]
        answer = handler(in_queue(*events), InvocationContext())
        failed = {failure["itemIdentifier"] for failure in answer["batchItemFailures"]}
        done = [event for number, event in enumerate(events, 1) if f"message-{number}" not in failed]
        if not keep:
            self.events = [event for event in self.events if event not in done]

    def teardown(self) -> None:
        """All that is on its way arrives; then everything must be in its right place, and told."""
        for index in range(len(self.places)):
            self.arrive(index, len(self.place(index).to_come))
        AnyOrder.settled = True
        self.through(lambda _: None)
        for _ in range(4):
            if self.events:
                self._run(range(len(self.events)), keep=False)
        assert self.events == [], "a message comes back for ever"
        notices, requests = self.stack.taken(NOTICES), self.stack.taken(RESUBMIT)
        for place in self.places:
            if place.variant:
                self._check(place, notices, requests)

    def _check(self, place: Place, notices: list[dict[str, Any]], requests: list[dict[str, Any]]) -> None:
        here = {
            key.removeprefix(f"{place.prefix}/"): data for key, data in stored("deltas", f"{place.prefix}/").items()
        }
        held = dict(self._held(place))
        told = {n["detail"].get("quarantine") for n in notices if n["detail-type"] == "Delta Quarantined"}
        if place.variant.startswith("healthy"):
            assert here == place.files
            tags = boto3.client("s3").get_object_tagging(Bucket="deltas", Key=f"{place.prefix}/{DATABASE}")["TagSet"]
            assert {"Key": "deltaguard:status", "Value": "healthy"} in tags
        else:
            assert here == {}
            assert place.files in held.values()
        healthy = [self.files[variant][DATABASE] for variant in _VARIANTS if variant.startswith("healthy")]
        for uri, files in held.items():
            assert files.get(DATABASE) not in healthy, "a healthy delta is in quarantine"
            assert uri in told
            assert (uri in {request["quarantine"] for request in requests}) == (MANIFEST in files)
        states = [tuple(sorted(files.items())) for files in held.values()]
        assert len(states) == len(set(states)), "one state was quarantined twice"

    @staticmethod
    def _held(place: Place) -> Iterator[tuple[str, dict[str, bytes]]]:
        """The URI and the files of each quarantined state, which must be whole."""
        objects = stored("deltas", f"quarantine/{place.prefix}/")
        for key, data in objects.items():
            folder, _, name = key.rpartition("/")
            if name != "quarantine.json":
                continue
            record = QuarantineRecord.model_validate_json(data)
            assert f"{folder}/told.json" in objects
            files = {file.name: objects[f"{folder}/{file.name}"] for file in record.files}
            assert all(len(files[file.name]) == file.size for file in record.files)
            yield f"s3://deltas/{folder}/", files


@pytest.mark.slow
def test_the_end_is_the_same_and_right(
    stack: LocalStack, through: Through, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DELTAGUARD_SETTLE_SECONDS", str(_SETTLE_SECONDS))
    monkeypatch.setenv("DELTAGUARD_ARRIVAL_SECONDS", "0")
    monkeypatch.setenv("DELTAGUARD_DEPTH", "structure")
    folder = next(sample for sample in SAMPLES if sample.name == "1.5.9-queued").unpack(tmp_path)
    AnyOrder.files, AnyOrder.manifests = {"healthy": files_of(folder)}, {}
    AnyOrder.manifests["healthy"] = AnyOrder.manifests["corrupt"] = manifest_of(folder, "batch-40")
    apply_damage("harmless-trailing-bytes", folder)
    AnyOrder.files["healthy and longer"] = files_of(folder)
    AnyOrder.manifests["healthy and longer"] = manifest_of(folder, "batch-41")
    AnyOrder.manifests["corrupt and longer"] = AnyOrder.manifests["healthy and longer"]
    apply_damage("queue-row-deleted", folder)
    AnyOrder.files["corrupt and longer"] = files_of(folder)
    (tmp_path / "short").mkdir()
    short = next(sample for sample in SAMPLES if sample.name == "1.5.9-queued").unpack(tmp_path / "short")
    apply_damage("queue-row-deleted", short)
    AnyOrder.files["corrupt"] = files_of(short)
    AnyOrder.through, AnyOrder.stack = staticmethod(through), stack
    monkeypatch.setattr("shared.storage.store.Store.now", lambda _: AnyOrder.clock())
    run_state_machine_as_test(
        AnyOrder,
        settings=settings(
            max_examples=sweep.few(10, 40),
            stateful_step_count=14,
            derandomize=True,
            deadline=None,
            database=None,
            suppress_health_check=list(HealthCheck),
        ),
    )
