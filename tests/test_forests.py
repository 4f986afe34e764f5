"""Whatever forest of deltas, stray files and odd names lies in a bucket: nothing is touched but what is proven corrupt.

Each example plants a forest and lets the program loose on it: the validator with the events of all its objects, `scan`
and `check` with `--quarantine`, and the scanner's Lambda. No object of a healthy delta may move or change, nor any that
nobody judged; what moved is whole in quarantine, is found from its place, and comes back exactly as it was.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import boto3
import pytest
from click.testing import CliRunner
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import scanner.handler
import validator.handler
from devtools.stack.stack import InvocationContext, environment
from scanner.cli import cli
from shared.model.delta import DATABASE, MANIFEST, DeltaLocation
from shared.model.errors import StorageError
from shared.model.settings import Settings
from shared.quarantine.move import held_name
from shared.quarantine.restore import held_below
from shared.storage.store import current_store
from tests.support.uploads import files_of, in_queue, manifest_of, s3_event

Files = dict[str, bytes]
Path_ = tuple[str, ...]

UUID = "0a1b2c3d-0000-4000-8000-0123456789ab"
INDEX = "%index%"  # stands for the folder of the index of the flushed delta
PARTS = (
    "a", "b", "", ".", "..", "a b+%2F", "e\u0301", UUID, INDEX, "f" * 64,
    "quarantine", "quarantine.json", ".long-keys", DATABASE,
)  # fmt: skip
HEALTHY = ("queued", "flushed", "uploaded", "without its skeleton")
CORRUPT = ("no database", "truncated", "other bytes than its manifest says")
WAITING = ("an index alone", "a manifest alone", "a manifest of nothing", "a journal alone")
"""Deltas that lack a file, which may still be on its way."""
FOREIGN = ("notes", "an index file alone", "a record")

places: st.SearchStrategy[Path_] = st.lists(st.sampled_from(PARTS), max_size=3).map(tuple)
forests = st.dictionaries(
    places, st.sampled_from((*HEALTHY, *HEALTHY, *CORRUPT, *CORRUPT, *WAITING, *FOREIGN)), min_size=1, max_size=6
)
ACTORS = ("events", "scan", "check", "lambda")
QUARANTINES = ("quarantine", "in another bucket", "below the deltas")

_case = itertools.count()


class Kinds(dict[str, Files]):
    """The files of each kind of place, with a name that is short enough for a report."""

    def __repr__(self) -> str:
        return "kinds"


@pytest.fixture(scope="module")
def kinds(healthy_delta: Path, flushed_delta: Path, tmp_path_factory: pytest.TempPathFactory) -> Kinds:
    """The files of each kind of delta, and of what is none."""
    uploaded = Path(shutil.copytree(healthy_delta, tmp_path_factory.mktemp("forests") / "uploaded"))
    (uploaded / "notes.txt").write_bytes(b"of the producer's own")
    queued, flushed = files_of(healthy_delta), files_of(flushed_delta)
    listed = {**files_of(uploaded), "notes.txt": b"of the producer's own"}
    manifest = manifest_of(uploaded, "batch-1", more=("notes.txt",))
    index = {name: data for name, data in flushed.items() if "/" in name}
    return Kinds({
        "queued": queued,
        "flushed": flushed,
        "uploaded": {**listed, MANIFEST: manifest},
        "without its skeleton": {DATABASE: queued[DATABASE]},
        "no database": {DATABASE: b"no database, whatever its name says"},
        "truncated": {**queued, DATABASE: queued[DATABASE][:-4096]},
        "other bytes than its manifest says": {
            **listed, DATABASE: queued[DATABASE][:-1] + b"\x01", MANIFEST: manifest,
        },
        "an index alone": index,
        "a manifest alone": {MANIFEST: manifest},
        "a manifest of nothing": {MANIFEST: b"{}"},
        "a journal alone": {f"{DATABASE}-journal": b"x" * 1000},
        "notes": {"notes.txt": b"of somebody", f"{UUID}/notes.txt": b"of somebody else"},
        "an index file alone": {"header.bin": b"x" * 100},
        "a record": {"quarantine.json": b"{}", "told.json": b"{}"},
    })  # fmt: skip


@dataclass(frozen=True)
class Planted:
    """One place of a forest, with its objects by key."""

    prefix: str
    kind: str
    objects: Files


@dataclass(frozen=True)
class Forest:
    """A forest that was planted in a bucket below `root`."""

    bucket: str
    root: str
    planted: tuple[Planted, ...]

    @property
    def objects(self) -> Files:
        return {key: data for place in self.planted for key, data in place.objects.items()}

    def movable(self, quarantine: str) -> list[Planted]:
        """The places whose objects are to be in quarantine in the end: corrupt, and no other delta stays below."""

        def stays(place: Planted) -> bool:
            return place.kind in (*HEALTHY, *WAITING) and not place.prefix.startswith(quarantine)

        return [
            place
            for place in self.planted
            if place.kind in CORRUPT
            and not place.prefix.startswith(quarantine)
            and not any(stays(other) and other.prefix.startswith(place.prefix) for other in self.planted)
        ]


def plant(bucket: str, shape: dict[Path_, str], kinds: Kinds) -> Forest:
    """Uploads a forest. Where two deltas would have one and the same object, the second is left out."""
    root = "words/"
    index = next(name for name in kinds["flushed"] if "/" in name).partition("/")[0]
    planted: list[Planted] = []
    client = boto3.client("s3")
    for parts, kind in shape.items():
        prefix = root + "".join(f"{index if part == INDEX else part}/" for part in parts)
        objects = {prefix + name: data for name, data in kinds[kind].items()}
        if any(objects.keys() & other.objects.keys() for other in planted):
            continue
        planted.append(Planted(prefix, kind, objects))
        for key, data in objects.items():
            client.put_object(Bucket=bucket, Key=key, Body=data, ChecksumAlgorithm="CRC64NVME")
    return Forest(bucket, root, tuple(planted))


def snapshot(*buckets: str) -> dict[tuple[str, str, str], tuple[str, datetime]]:
    """Every object, with its version where the bucket keeps some."""
    client, found = boto3.client("s3"), {}
    for bucket in dict.fromkeys(buckets):
        for page in client.get_paginator("list_object_versions").paginate(Bucket=bucket):
            for entry in page.get("Versions", []):
                if entry["IsLatest"]:
                    found[bucket, entry["Key"], entry["VersionId"]] = (entry["ETag"], entry["LastModified"])
    return found


def etags(bucket: str) -> dict[str, str]:
    """MD5 of every object of a bucket by its key: moto's ETag."""
    return {key: etag.strip('"') for (_, key, _), (etag, _) in snapshot(bucket).items()}


def md5(files: Files) -> dict[str, str]:
    return {key: hashlib.md5(data, usedforsecurity=False).hexdigest() for key, data in files.items()}


def act(actor: str, forest: Forest, order: int) -> None:
    """Lets the program loose on a forest."""
    there = etags(forest.bucket)
    target = f"s3://{forest.bucket}/{forest.root}"
    if actor == "events":
        keys = [key for key in forest.objects if key in there and key.endswith((DATABASE, MANIFEST))]
        turned = keys[order % (len(keys) + 1) :] + keys[: order % (len(keys) + 1)]
        event = in_queue(*(s3_event(forest.bucket, key) for key in (*turned, *turned[:1])))
        for record in event["Records"]:
            del record["receiptHandle"]  # there is no queue
        validator.handler.handler(event, InvocationContext())
    elif actor == "scan":
        run("scan", target, "--quarantine", "--yes")
    elif actor == "lambda":
        scanner.handler.handler({"targets": [target], "quarantine": True, "yes": True}, InvocationContext())
    else:
        prefixes = {key[: found + 1] for key in there for found in range(len(key)) if key[found] == "/"}
        named = sorted(prefix for prefix in prefixes if prefix.startswith(forest.root))
        if named:
            run("check", *(f"s3://{forest.bucket}/{prefix}" for prefix in named), "--quarantine")


def run(*arguments: str) -> list[dict[str, Any]]:
    result = CliRunner().invoke(cli, [*arguments, "--format", "ndjson"], catch_exceptions=False)
    assert result.exit_code in (0, 1, 3), result.stderr
    return [json.loads(line) for line in result.stdout.splitlines()][:-1]


@contextmanager
def bucket_of(quarantine: str, *, versions: bool) -> Iterator[tuple[str, str, str]]:
    """A new bucket with its quarantine: its name, and bucket and prefix of the quarantine."""
    number = next(_case)
    bucket, held = f"forest-{number}", f"held-{number}"
    client = boto3.client("s3")
    for name in (bucket, held):
        client.create_bucket(Bucket=name)
        if versions:
            client.put_bucket_versioning(Bucket=name, VersioningConfiguration={"Status": "Enabled"})
    variables = {
        "DELTAGUARD_SETTLE_SECONDS": "0",
        "DELTAGUARD_DEPTH": "structure",
        "DELTAGUARD_QUARANTINE_BUCKET": held if quarantine == "in another bucket" else "",
        "DELTAGUARD_QUARANTINE_PREFIX": "words/quarantine" if quarantine == "below the deltas" else "quarantine",
    }
    with environment(variables):
        home, prefix = Settings.from_environment().quarantine_of(bucket)
        yield bucket, home, prefix


def judge(
    kinds: Kinds, shape: dict[Path_, str], actors: Iterable[str], quarantine: str, versions: bool, order: int
) -> None:
    """One example: plant, act until nothing more happens, and look."""
    with bucket_of(quarantine, versions=versions) as (bucket, home, prefix):
        forest = plant(bucket, shape, kinds)
        planted = snapshot(bucket)
        movable = forest.movable(prefix if home == bucket else "no prefix at all")
        gone = {key for place in movable for key in place.objects}
        before, now = None, planted
        for _ in range(2 + len(movable)):  # what has corrupt deltas below it is moved after them
            for actor in actors:
                act(actor, forest, order)
                there = snapshot(bucket)
                stayed = {found: told for found, told in planted.items() if found[1] not in gone}
                assert stayed.items() <= there.items(), "moved or changed, though not proven corrupt"
            before, now = now, snapshot(bucket, home)
            if before == now:
                break
        assert before == now, "it never comes to rest"
        assert not gone & etags(bucket).keys(), "proven corrupt, and left there"
        whole_in_quarantine(forest, movable)
        restored(forest, movable)


def whole_in_quarantine(forest: Forest, movable: list[Planted]) -> None:
    def fail(error: StorageError) -> None:
        raise error

    for place in movable:
        held = held_below(current_store(), forest.bucket, place.prefix, Settings.from_environment(), fail)
        (own,) = [one for one in held if one.origin == DeltaLocation(forest.bucket, place.prefix)]
        copies = etags(own.place.bucket)
        names = {key.removeprefix(place.prefix): md5({"": data})[""] for key, data in place.objects.items()}
        assert {file.name: copies[own.place.key(held_name(file.name))] for file in own.record.files} == names


def restored(forest: Forest, movable: list[Planted]) -> None:
    target = f"s3://{forest.bucket}/{forest.root}"
    listed = {line["delta"] for line in run("quarantine", "list", target)}
    assert listed == {f"s3://{forest.bucket}/{place.prefix}" for place in movable}
    if movable:
        assert all(line["restored"] for line in run("quarantine", "restore", target, "--yes"))
    assert md5(forest.objects).items() <= etags(forest.bucket).items()


STRAY_ABOVE: dict[Path_, str] = {(): "no database", ("a",): "queued", ("b",): "truncated", ("", "a"): "flushed"}
NESTED_CORRUPT: dict[Path_, str] = {("a",): "truncated", ("a", ""): "no database", ("a", "", "b"): "truncated"}
IN_ITS_INDEX: dict[Path_, str] = {("a",): "flushed", ("a", INDEX): "no database", ("a", INDEX, INDEX): "uploaded"}
INDEX_ABOVE: dict[Path_, str] = {(): "an index alone", ("f" * 64,): "other bytes than its manifest says"}

given_forests = given(
    shape=forests,
    actors=st.lists(st.sampled_from(ACTORS), min_size=1, max_size=2),
    quarantine=st.sampled_from(QUARANTINES),
    versions=st.booleans(),
    order=st.integers(0, 20),
)
bounded = {"deadline": None, "suppress_health_check": [HealthCheck.function_scoped_fixture]}


@pytest.mark.usefixtures("aws")
@pytest.mark.parametrize(
    ("shape", "actor"),
    [
        *((STRAY_ABOVE, actor) for actor in ACTORS),
        (NESTED_CORRUPT, "events"),
        (NESTED_CORRUPT, "check"),
        (IN_ITS_INDEX, "scan"),
        (INDEX_ABOVE, "lambda"),
    ],
)
def test_nothing_but_what_is_proven_corrupt_moves(kinds: Kinds, shape: dict[Path_, str], actor: str) -> None:
    judge(kinds, shape, [actor], "quarantine", versions=False, order=0)


@pytest.mark.usefixtures("aws")
@given_forests
@settings(max_examples=4, **bounded)
def test_nothing_but_what_is_proven_corrupt_moves_in_any_forest(
    kinds: Kinds, shape: dict[Path_, str], actors: list[str], quarantine: str, versions: bool, order: int
) -> None:
    judge(kinds, shape, actors, quarantine, versions, order)


@pytest.mark.slow
@pytest.mark.sweep
@pytest.mark.usefixtures("aws")
@given_forests
@settings(max_examples=300, **bounded)
def test_nothing_but_what_is_proven_corrupt_moves_in_very_many_forests(
    kinds: Kinds, shape: dict[Path_, str], actors: list[str], quarantine: str, versions: bool, order: int
) -> None:
    judge(kinds, shape, actors, quarantine, versions, order)
