"""Could not check never deletes: whatever fails, wherever, the delta stays as it is and its message comes back.

Requests and local files are not hand-picked: each one that a check makes is made to fail in turn.
"""

from __future__ import annotations

import errno
import hashlib
import itertools
import json
import os
import sqlite3
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import boto3
import pytest
from botocore.exceptions import (
    ConnectTimeoutError,
    EndpointConnectionError,
    NoCredentialsError,
    ReadTimeoutError,
)

from devtools.damage.catalogue import apply_damage
from devtools.stack.stack import InvocationContext, LocalStack
from shared.model.delta import DATABASE, MANIFEST
from tests.samples import SAMPLES
from tests.support import faults, limits
from tests.support.uploads import files_of, in_queue, manifest_of, put, s3_event, stored
from tests.validator.conftest import Through
from validator.handler import handler

KEY, WARM = "words/delta/one", "words/delta/warm"
EVENT = in_queue(s3_event("deltas", f"{KEY}/{DATABASE}"))
WARM_EVENT = in_queue(s3_event("deltas", f"{WARM}/{DATABASE}"))
COMES_BACK = {"batchItemFailures": [{"itemIdentifier": "message-1"}]}
FLUSHED = next(sample for sample in SAMPLES if sample.name == "1.5.9-flushed")

REQUEST_FAULTS: dict[str, faults.Answer] = {
    "throttled": faults.refusal("SlowDown", 503),
    "access denied": faults.refusal("AccessDenied", 403),
    "token expired": faults.refusal("ExpiredToken", 400),
    "KMS key disabled": faults.refusal("KMS.DisabledException", 400),
    "KMS key gone": faults.refusal("KMS.NotFoundException", 400),
    "server error": faults.refusal("InternalError", 500),
    "read times out": faults.failure(ReadTimeoutError(endpoint_url="http://s3")),
    "connect times out": faults.failure(ConnectTimeoutError(endpoint_url="http://s3")),
    "no connection": faults.failure(EndpointConnectionError(endpoint_url="http://s3")),
    "connection reset": faults.failure(ConnectionResetError(errno.ECONNRESET, "reset by peer")),
    "no credentials": faults.failure(NoCredentialsError()),
    "cut short": faults.cut_short,
}
LOCAL_FAULTS = {
    "disk full": (errno.ENOSPC, "check.disk_full"),
    "quota used up": (errno.EDQUOT, "check.disk_full"),
    "no descriptors": (errno.EMFILE, "check.descriptors"),
    "no descriptors in the system": (errno.ENFILE, "check.descriptors"),
    "no memory": (errno.ENOMEM, "check.memory"),
    "i/o error": (errno.EIO, "check.local_io"),
    "read-only": (errno.EROFS, "check.local_io"),
    "not permitted": (errno.EACCES, "check.local_io"),
}


@pytest.fixture(autouse=True)
def environment(stack: LocalStack, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DELTAGUARD_SETTLE_SECONDS", "0")
    monkeypatch.setenv("DELTAGUARD_ARRIVAL_SECONDS", "0")
    monkeypatch.setenv("DELTAGUARD_DEPTH", "structure")


@pytest.fixture
def healthy(tmp_path: Path) -> dict[str, bytes]:
    folder = FLUSHED.unpack(tmp_path)
    return {**files_of(folder), MANIFEST: manifest_of(folder, "batch-40")}


@pytest.fixture
def broken(healthy: dict[str, bytes], tmp_path: Path) -> dict[str, bytes]:
    """Broken in a way that only its bytes show: there is no manifest."""
    folder = tmp_path / FLUSHED.name
    apply_damage("data-label-changed", folder)
    return files_of(folder)


def verdicts(capsys: pytest.CaptureFixture[str]) -> list[tuple[str, list[str]]]:
    """Status and codes of each verdict in the log since the last call."""
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    return [(line["status"], [f["code"] for f in line["findings"]]) for line in lines if "findings" in line]


def untouched(key: str, files: dict[str, bytes]) -> bool:
    """Whether the delta lies there byte for byte (by ETag), not even tagged, and nothing of it in quarantine."""
    client = boto3.client("s3")
    tags = client.get_object_tagging(Bucket="deltas", Key=f"{key}/{DATABASE}")["TagSet"]
    listed = client.list_objects_v2(Bucket="deltas").get("Contents", [])
    etags = {entry["Key"]: entry["ETag"].strip('"') for entry in listed if f"{key}/" in entry["Key"]}
    return not tags and etags == {f"{key}/{name}": hashlib.md5(data).hexdigest() for name, data in files.items()}


def faults_in(codes: list[str]) -> set[str]:
    """The codes of the environment. Where the second witness met the fault, what the bytes prove is named, too."""
    found = {code for code in codes if code.startswith("check.")}
    assert found == set(codes) or "verdict.unconfirmed" in codes, codes
    return found


class FaultAt:
    """Lets requests through but for the `number`-th, which meets the fault. `met` is that request."""

    def __init__(self, number: int, fault: faults.Answer) -> None:
        self.left = number
        self.fault = fault
        self.met = ""

    def __call__(self, request: Any) -> Any:
        self.left -= 1
        if self.left:
            return None
        self.met = f"{request.method} {request.url}"
        return self.fault(request)


def is_of_the_check(request: str) -> bool:
    """Whether a request lists or reads the delta. Its tags are a convenience, and the rest comes after the verdict."""
    return request.startswith(("GET", "HEAD")) and "?tagging" not in request and "quarantine" not in request


def is_harmless(fault: str, request: str) -> bool:
    """Whether nothing is lost by the fault: there is no body to cut, or botocore mends it.

    Where a HEAD is refused with 400, botocore asks for the region of the bucket and tries again.
    """
    if fault == "cut short":
        return request.startswith("HEAD")
    return request.startswith("HEAD") and fault in {"token expired", "KMS key disabled", "KMS key gone"}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("fault", "damaged"), [*((fault, False) for fault in REQUEST_FAULTS), ("access denied", True), ("cut short", True)]
)
def test_a_fault_at_any_request_of_a_check_is_undetermined_and_touches_nothing(
    healthy: dict[str, bytes],
    broken: dict[str, bytes],
    fault: str,
    damaged: bool,
    through: Through,
    capsys: pytest.CaptureFixture[str],
) -> None:
    files = broken if damaged else healthy
    checking, key = 0, ""
    for number in itertools.count(1):
        if not key:
            key = f"words/delta/{number}"
            put("deltas", key, files)
        at = FaultAt(number, REQUEST_FAULTS[fault])
        through(at)
        answer = handler(in_queue(s3_event("deltas", f"{key}/{DATABASE}")), InvocationContext())
        told = verdicts(capsys)
        if "quarantine" in at.met:  # after the verdict
            break
        ((status, codes),) = told
        if is_harmless(fault, at.met):
            assert status == ("corrupt" if damaged else "healthy"), at.met
            key = ""
        elif is_of_the_check(at.met):
            checking += 1
            assert (answer, status) == (COMES_BACK, "undetermined"), at.met
            assert all(code.startswith("check.") for code in codes)
            assert untouched(key, files), at.met
        elif not at.met:
            break
        else:
            assert status == ("corrupt" if damaged else "healthy"), at.met
            key = ""
    listing, manifest, downloads = 1, int(not damaged), 5
    assert checking >= listing + manifest + downloads


@pytest.mark.slow
@pytest.mark.parametrize(
    ("fault", "damaged"), [*((fault, False) for fault in LOCAL_FAULTS), ("disk full", True), ("i/o error", True)]
)
def test_a_fault_at_any_local_file_of_a_check_is_undetermined_and_touches_nothing(
    healthy: dict[str, bytes],
    broken: dict[str, bytes],
    fault: str,
    damaged: bool,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "scratch").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "scratch"))
    files = broken if damaged else healthy
    number, code = LOCAL_FAULTS[fault]
    put("deltas", WARM, healthy)
    handler(WARM_EVENT, InvocationContext())  # so that no module is imported below
    verdicts(capsys)
    met = 0
    while True:
        put("deltas", KEY, files)
        with local_fault(met, number) as hit:
            answer = handler(EVENT, InvocationContext())
        told = verdicts(capsys)
        assert len(told) == 1, hit
        ((status, codes),) = told
        if not hit:
            assert status == ("corrupt" if damaged else "healthy")
            break
        assert (answer, status) == (COMES_BACK, "undetermined"), hit
        assert faults_in(codes) == {"check.cannot_open" if hit[0].startswith("sqlite3") else code}, hit
        assert untouched(KEY, files), hit
        met += 1
    assert met >= 1 + 1 + 6 + 1, "a folder, its lock, the files, and the database at last"


@contextmanager
def local_fault(at: int, number: int) -> Iterator[list[str]]:
    """The `at`-th time (from 0) that this thread makes or opens something in the temporary folder, it is refused.

    Yields:
        What was refused: one name, or none if it did not come to that.
    """
    hit: list[str] = []
    count = itertools.count()
    here, below = threading.get_ident(), f"{tempfile.gettempdir()}/deltaguard-"

    def refuse(event: str, arguments: tuple[Any, ...]) -> None:
        path = os.fsdecode(arguments[0]) if arguments and isinstance(arguments[0], (str, bytes, os.PathLike)) else ""
        if event not in ("open", "os.mkdir", "sqlite3.connect") or below not in path.removeprefix("file://"):
            return
        if Path(path).is_dir():
            return  # it is there already, or being removed
        if threading.get_ident() == here and next(count) == at:
            hit.append(f"{event} {path}")
            if event == "sqlite3.connect":
                error = sqlite3.OperationalError("unable to open database file")
                error.sqlite_errorcode = sqlite3.SQLITE_CANTOPEN
                raise error
            raise OSError(number, os.strerror(number), path)

    _hooks.append(refuse)
    try:
        yield hit
    finally:
        _hooks.remove(refuse)


_hooks: list[Callable[[str, tuple[Any, ...]], None]] = []


def _audited(event: str, arguments: tuple[Any, ...]) -> None:
    for hook in _hooks:
        hook(event, arguments)


sys.addaudithook(_audited)  # it cannot be removed, but has nothing to do unless a test says so


@pytest.mark.slow
@pytest.mark.parametrize("damaged", [False, True], ids=["healthy", "corrupt"])
@pytest.mark.parametrize("fault", ["descriptors", "disk"])
def test_in_a_machine_that_runs_short_a_delta_is_judged_rightly_or_not_at_all(
    healthy: dict[str, bytes], broken: dict[str, bytes], fault: str, damaged: bool
) -> None:
    """At depth `open`, so that the probe runs short, too. A corrupt one may be found out by less than all of it."""
    files = broken if damaged else healthy
    put("deltas", WARM, healthy)
    put("deltas", KEY, files)
    outcomes = limits.under(fault, WARM_EVENT, EVENT, DELTAGUARD_DEPTH="open", DELTAGUARD_EVENT_BUS="")
    statuses = [outcome["status"] for outcome in outcomes]
    assert "undetermined" in statuses
    assert set(statuses) <= {"undetermined", "corrupt" if damaged else "healthy", None}
    for outcome in outcomes:
        if outcome["status"] == "undetermined":
            assert outcome["answer"] == COMES_BACK
            assert faults_in(outcome["codes"]) <= {
                "check.descriptors",
                "check.disk_full",
                "check.local_io",
                "check.storage",
            }
    if not damaged:
        there = stored("deltas", f"{KEY}/")
        assert there == {f"{KEY}/{name}": data for name, data in files.items()}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("fault", "codes"),
    [
        ("killed", {"check.memory", "check.probe_failed"}),
        ("stopped", {"check.timeout", "check.probe_failed"}),
        ("missing", {"check.probe_failed"}),
    ],
)
def test_a_probe_that_the_machine_stops_is_undetermined_and_touches_nothing(
    healthy: dict[str, bytes], fault: str, codes: set[str]
) -> None:
    put("deltas", KEY, healthy)
    (outcome,) = limits.under(fault, in_queue(), EVENT, DELTAGUARD_DEPTH="open", DELTAGUARD_PROBE_TIMEOUT_SECONDS="3")
    assert (outcome["answer"], outcome["status"]) == (COMES_BACK, "undetermined")
    assert set(outcome["codes"]) <= codes
    assert untouched(KEY, healthy)
