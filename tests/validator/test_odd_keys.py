"""A delta is handled alike whatever its prefix is: from the event to quarantine and back, and out for good."""

from __future__ import annotations

import json
from typing import Any

import boto3
import pytest
from click.testing import CliRunner, Result

from devtools.stack.stack import InvocationContext
from scanner.cli import cli
from shared.model.delta import DATABASE, MANIFEST, DeltaLocation
from shared.model.settings import Settings
from shared.quarantine.move import place_of
from shared.storage.store import Store
from tests.support.uploads import in_queue, put, s3_event, stored
from validator.handler import handler

HEX = "f" * 64
UUID = "0a1b2c3d-0000-4000-8000-0123456789ab"
ODD = {
    "one slash more at the end": "words/a//",
    "a slash at the start": "/words/",
    "empty parts": "//words///a/",
    "dots": "words/../a/./",
    "a dot alone": "./",
    "space, plus and percent": "words/a b+c%20%/",
    "an encoded slash": "words/a%2Fb/",
    "a query and a fragment": "words/a?b=c#d/",
    "markup": "words/<&>\"'/",
    "composed": "words/\u00e9/",
    "decomposed": "words/e\u0301/",
    "an emoji": "words/\U0001f600/",
    "invisible characters": "words/\u2028\ufeff\u202e/",
    "control characters": "words/\t\x01\x7f/",
    "a backslash": "words\\a/",
    "a uuid": f"words/{UUID}/",
    "a uuid in a uuid": f"{UUID}/{UUID}/",
    "the name of a fingerprint": f"words/{HEX}/",
    "the name of a record": f"words/{HEX}/quarantine.json/",
    "the name of a database": f"{DATABASE}/{MANIFEST}/",
    "the name of the place for long keys": f".long-keys/{HEX}/",
    "the longest prefix that is held under its own name": "x" * 814 + "/",
    "a prefix that would be too long in quarantine": "x" * 815 + "/",
    "a prefix of many parts": "x/" * 450,
    "the longest key there is": "\u00e9" * 502 + "x/",
}
LONG = ("a prefix that would be too long in quarantine", "a prefix of many parts", "the longest key there is")
BESIDE = f"{DATABASE}-shm"


@pytest.fixture(autouse=True)
def settings(monkeypatch: pytest.MonkeyPatch) -> Settings:
    monkeypatch.setenv("DELTAGUARD_SETTLE_SECONDS", "0")
    monkeypatch.setenv("DELTAGUARD_DEPTH", "structure")
    return Settings.from_environment()


def run(*arguments: str) -> Result:
    return CliRunner().invoke(cli, arguments, catch_exceptions=False)


def lines(*arguments: str) -> list[dict[str, Any]]:
    """What a command says in ndjson, but for the summary."""
    result = run(*arguments, "--format", "ndjson")
    return [json.loads(line) for line in result.stdout.splitlines()][:-1]


def put_broken(bucket: str, prefix: str) -> dict[str, bytes]:
    """A delta of two files whose database is none. Returns its objects by their keys."""
    files = {DATABASE: b"no database: " + prefix.encode(), BESIDE: b"beside"}
    put(bucket, prefix[:-1], files)
    return {prefix + name: data for name, data in files.items()}


def tell(bucket: str, *keys: str) -> None:
    event = in_queue(s3_event(bucket, *keys))
    assert handler(event, InvocationContext()) == {"batchItemFailures": []}


@pytest.mark.parametrize("kind", ODD)
def test_it_goes_to_quarantine_and_back_and_out_for_good(bucket: str, settings: Settings, kind: str) -> None:
    prefix = ODD[kind]
    uri = f"s3://{bucket}/{prefix}"
    objects = put_broken(bucket, prefix)
    (judged,) = lines("check", uri)
    assert (judged["delta"], judged["status"]) == (uri, "corrupt")
    assert [found["delta"] for found in lines("scan", uri)] == [uri]

    tell(bucket, prefix + DATABASE)
    held = stored(bucket)
    assert not objects.keys() & held.keys()
    assert sorted(objects.values()) == sorted(data for key, data in held.items() if key.endswith((DATABASE, BESIDE)))
    assert any("/.long-keys/" in key for key in held) is (kind in LONG or ODD[kind].startswith(".long-keys"))

    (listed,) = lines("quarantine", "list", uri)
    assert listed["delta"] == uri
    assert lines("quarantine", "list", f"s3://{bucket}") == [listed]
    assert lines("quarantine", "list", f"s3://{bucket}/elsewhere/") == []
    (shown,) = lines("quarantine", "show", uri)
    assert shown["missing"] == []

    (restored,) = lines("quarantine", "restore", uri)
    assert restored["restored"] and stored(bucket, prefix) == objects
    tell(bucket, prefix + DATABASE)
    assert not objects.keys() & stored(bucket).keys()
    (purged,) = lines("quarantine", "purge", uri, "--older-than", "0m", "--yes")
    assert purged["purged"]
    assert not any(key.endswith((DATABASE, BESIDE, "quarantine.json")) for key in stored(bucket))


def test_two_prefixes_that_differ_by_a_slash_are_two_deltas(bucket: str) -> None:
    """Each has its own events, verdict and place in quarantine; nothing of the one is done to the other."""
    inner, outer = put_broken(bucket, "words/a//"), put_broken(bucket, "words/a/")
    assert {found["delta"] for found in lines("scan", f"s3://{bucket}/words")} == {
        f"s3://{bucket}/words/a/",
        f"s3://{bucket}/words/a//",
    }
    tell(bucket, f"words/a/{DATABASE}")
    assert (outer | inner).items() <= stored(bucket).items(), "what has a delta below it is not moved"
    tell(bucket, f"words/a//{DATABASE}")
    assert stored(bucket, "words/") == outer
    tell(bucket, f"words/a/{DATABASE}")
    assert stored(bucket, "words/") == {}
    assert [held["delta"] for held in lines("quarantine", "list", f"s3://{bucket}/words/a//")] == [
        f"s3://{bucket}/words/a//"
    ]
    assert len(lines("quarantine", "list", f"s3://{bucket}/words/a/")) == 2
    lines("quarantine", "restore", f"s3://{bucket}/words/a//")
    assert stored(bucket, "words/") == inner
    lines("quarantine", "purge", f"s3://{bucket}/words/a//", "--older-than", "0m", "--yes")
    assert [held["delta"] for held in lines("quarantine", "list", f"s3://{bucket}")] == [f"s3://{bucket}/words/a/"]
    lines("quarantine", "restore", f"s3://{bucket}/words/a/")
    assert stored(bucket, "words/") == inner | outer


def test_a_delta_that_is_named_as_the_place_of_another_one_is_not_mixed_up_with_it(bucket: str, store: Store) -> None:
    """A purge of the one takes nothing of the other, whose place lies below."""
    outer = DeltaLocation(bucket, "words/")
    put_broken(bucket, outer.prefix)
    inner = f"words/{store.list_delta(outer).fingerprint}/"
    tell(bucket, outer.key(DATABASE))
    put_broken(bucket, inner)
    tell(bucket, f"{inner}{DATABASE}")
    assert stored(bucket, "words/") == {}
    (purged,) = [
        line
        for line in lines("quarantine", "purge", f"s3://{bucket}/words", "--older-than", "0m", "--dry-run")
        if line["delta"] == outer.uri
    ]
    lines("quarantine", "purge", outer.uri, "--fingerprint", purged["fingerprint"], "--older-than", "0m", "--yes")
    (left,) = lines("quarantine", "show", f"s3://{bucket}")
    assert (left["delta"], left["missing"]) == (f"s3://{bucket}/{inner}", [])


@pytest.mark.parametrize("where", ["the quarantine prefix of another bucket", "a quarantine within what is watched"])
def test_what_looks_like_quarantine_is_not_what_is_quarantine(
    bucket: str, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    boto3.client("s3").create_bucket(Bucket="held-deltas")
    if where.startswith("the"):
        monkeypatch.setenv("DELTAGUARD_QUARANTINE_BUCKET", "held-deltas")
    else:
        monkeypatch.setenv("DELTAGUARD_QUARANTINE_PREFIX", "words/quarantine")
    for prefix in ("quarantine/words/a/", "words/a/"):
        objects = put_broken(bucket, prefix)
        tell(bucket, f"{prefix}{DATABASE}")
        assert stored(bucket, prefix) == {}
        assert [held["delta"] for held in lines("quarantine", "list", f"s3://{bucket}/{prefix}")] == [
            f"s3://{bucket}/{prefix}"
        ]
        lines("quarantine", "restore", f"s3://{bucket}/{prefix}")
        assert stored(bucket, prefix) == objects
    stray = put_broken(bucket, "words/")
    tell(bucket, f"words/a/{DATABASE}")
    tell(bucket, f"words/{DATABASE}")
    assert not stray.keys() & stored(bucket).keys(), "what is held below it is no delta below it"


@pytest.mark.parametrize("prefix", ["a\nb/", "a\r\nb/", "\x00/"])
def test_a_line_break_in_a_prefix_changes_nothing_about_its_place(prefix: str) -> None:
    """moto cannot serve such keys."""
    assert place_of(DeltaLocation("deltas", prefix), Settings()).prefix == f"quarantine/{prefix}"
