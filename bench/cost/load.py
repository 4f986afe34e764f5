"""Suite `load`: thousands of events through queue and handler, against a moto server in another process.

Ten events of S3 for each delta, in any order, and a tenth of the deltas corrupt. Nothing may be lost, each corrupt
delta is quarantined once, and everybody is told of each. What a delta costs is held against the least that anybody must
do to look at its bytes: one listing, and one GET for each of its files.
"""

from __future__ import annotations

import os
import random
import shutil
import time
from contextlib import redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest.mock import patch

import boto3

from bench.cost.figures import Figure
from bench.cost.targets import held
from devtools.damage.catalogue import apply_damage
from devtools.damage.deltas import DeltaRecipe, build_delta
from devtools.stack.servers import moto
from devtools.stack.stack import NOTICES, LocalStack, addressed
from shared.model.delta import DATABASE
from shared.quarantine.record import RECORD, TOLD
from shared.storage.client import s3_client
from shared.storage.scratch import scratch_folder
from shared.storage.store import Store
from validator.handler import handler

_BUCKET, _PREFIX = "deltas", "words/delta"
_SEED = 40
_CORRUPT_EVERY = 10
_BACKLOG = 100  # the server's queues take time for each message that waits, which those of SQS do not


@dataclass(frozen=True, slots=True)
class Cost:
    """What all deltas together cost: seconds, and requests to S3."""

    seconds: float
    requests: int


def figures(deltas: int = 500, events: int = 5000) -> list[Figure]:
    """Time and requests for each delta, with all of its events.

    Raises:
        RuntimeError: Something was lost, told of twice, or never told of.
    """
    with scratch_folder() as scratch, moto() as server, addressed(server.url, **_SETTINGS):
        stack = LocalStack(server.url, _BUCKET)
        stack.create(prefix="not-watched/", visibility_seconds=600)  # the events are made below
        sizes = _upload(stack, scratch, deltas)
        theirs = _bare(deltas)
        ours = _validated(stack, _events(deltas, events))
        _check(stack, sizes, deltas)
    what = f"{deltas} deltas, {events} events, {deltas / ours.seconds:.0f} deltas a second"
    bare = "one bare listing and GETs of each"
    return [
        held("load/time", what, ours.seconds / deltas * 1000, bare, theirs.seconds / deltas * 1000, "ms"),
        held("load/requests", "requests for each delta", ours.requests / deltas, bare, theirs.requests / deltas, ""),
    ]


_SETTINGS = {"DELTAGUARD_DEPTH": "structure", "DELTAGUARD_SETTLE_SECONDS": "0", "DELTAGUARD_ARRIVAL_SECONDS": "0"}


def _key(number: int) -> str:
    return f"{_PREFIX}/{number:05d}"


def _is_corrupt(number: int) -> bool:
    return number % _CORRUPT_EVERY == 0


def _upload(stack: LocalStack, scratch: Path, deltas: int) -> dict[str, int]:
    """Uploads copies of a healthy and a broken delta. Returns the size of each object by its key."""
    healthy, broken = scratch / "healthy", scratch / "broken"
    build_delta(healthy, DeltaRecipe(embeddings=20, dimension=8))
    shutil.copytree(healthy, broken)
    apply_damage("queue-row-deleted", broken)
    sizes = {}
    for number in range(deltas):
        folder = broken if _is_corrupt(number) else healthy
        for path in sorted(folder.rglob("*")):
            if path.is_file():
                key = f"{_key(number)}/{path.relative_to(folder).as_posix()}"
                data = path.read_bytes()
                stack.s3.put_object(Bucket=_BUCKET, Key=key, Body=data, ChecksumAlgorithm="CRC64NVME")
                sizes[key] = len(data)
    return sizes


def _events(deltas: int, events: int) -> list[dict[str, Any]]:
    """Every delta's event at least once, the rest repeats, in an order that is the same in each run."""
    source = random.Random(_SEED)  # noqa: S311 -- an order, not a secret
    numbers = [*range(deltas), *(source.randrange(deltas) for _ in range(events - deltas))]
    source.shuffle(numbers)
    return [_event(number) for number in numbers]


def _event(number: int) -> dict[str, Any]:
    s3 = {"bucket": {"name": _BUCKET}, "object": {"key": f"{_key(number)}/{DATABASE}"}}
    return {"Records": [{"eventSource": "aws:s3", "eventName": "ObjectCreated:Put", "s3": s3}]}


def _bare(deltas: int) -> Cost:
    client = boto3.client("s3")
    started, requests = time.perf_counter(), 0
    for number in range(deltas):
        listed = client.list_objects_v2(Bucket=_BUCKET, Prefix=f"{_key(number)}/")["Contents"]
        for entry in listed:
            client.get_object(Bucket=_BUCKET, Key=entry["Key"])["Body"].read()
        requests += 1 + len(listed)
    return Cost(time.perf_counter() - started, requests)


def _validated(stack: LocalStack, events: list[dict[str, Any]]) -> Cost:
    client, requests = s3_client(), 0

    def count(**_: Any) -> None:
        nonlocal requests
        requests += 1

    client.meta.events.register("before-send", count)
    store = Store(client)
    started = time.perf_counter()
    with patch("validator.handler.current_store", lambda: store), Path(os.devnull).open("w") as nowhere:
        for start in range(0, len(events), _BACKLOG):
            stack.send(events[start : start + _BACKLOG])
            with redirect_stdout(nowhere):
                while stack.deliver(handler) or stack.waiting()[0]:
                    pass
    return Cost(time.perf_counter() - started, requests)


def _check(stack: LocalStack, sizes: dict[str, int], deltas: int) -> None:
    """Holds the end against what must be.

    Raises:
        RuntimeError: It is not so.
    """
    pages = stack.s3.get_paginator("list_objects_v2").paginate(Bucket=_BUCKET)
    found = {entry["Key"]: entry["Size"] for page in pages for entry in page.get("Contents", [])}
    corrupt = [number for number in range(deltas) if _is_corrupt(number)]
    marks = [key for key in found if key.rpartition("/")[2] in (RECORD, TOLD)]
    for number in corrupt:
        key = _key(number)
        held_here = [mark for mark in marks if mark.startswith(f"quarantine/{key}/")]
        _must(len(held_here) == len((RECORD, TOLD)), f"{key} has {held_here} in quarantine")
        place = held_here[0].rpartition("/")[0]
        moved = {f"{place}/{name.removeprefix(f'{key}/')}": size for name, size in sizes.items() if f"{key}/" in name}
        _must(moved.items() <= found.items(), f"{key} is not whole in quarantine")
    here = {key: size for key, size in sizes.items() if not _is_corrupt(int(key.split("/")[2]))}
    _must({key: size for key, size in found.items() if key.startswith(_PREFIX)} == here, "not the healthy are left")
    _must(len(marks) == 2 * len(corrupt), "a healthy delta is in quarantine")
    told = {(notice["detail-type"], notice["detail"]["delta"]) for notice in stack.taken(NOTICES)}
    kinds = {number: "Delta Quarantined" if _is_corrupt(number) else "Delta Validated" for number in range(deltas)}
    _must(told == {(kind, f"s3://{_BUCKET}/{_key(n)}/") for n, kind in kinds.items()}, "not everything was told of")
    _must(stack.waiting() == (0, 0), f"messages were left: {stack.waiting()}")


def _must(so: bool, otherwise: str) -> None:
    if not so:
        raise RuntimeError(f"load: {otherwise}")
