"""`deltaguard upload`: whole or not at all, from the command line."""

from __future__ import annotations

import os
from pathlib import Path

import boto3
import pytest
from click.testing import CliRunner, Result

from scanner.cli import cli
from shared.model.delta import DATABASE, MANIFEST
from tests.conftest import CopyOf


@pytest.fixture(autouse=True)
def own_output(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shared.aws.telemetry._output.to_stderr", False)


def upload(*arguments: str | Path) -> Result:
    return CliRunner().invoke(cli, ["upload", *map(str, arguments)], catch_exceptions=False)


def names() -> list[str]:
    return [entry["Key"] for entry in boto3.client("s3").list_objects_v2(Bucket="deltas").get("Contents", [])]


def test_a_healthy_delta_is_there_with_its_manifest_and_its_address_is_printed(
    bucket: str, healthy_delta: Path
) -> None:
    result = upload(healthy_delta, "s3://deltas/words/delta/one", "--batch-id", "b-7")
    assert (result.exit_code, result.stdout) == (0, "s3://deltas/words/delta/one/\n")
    assert {f"words/delta/one/{DATABASE}", f"words/delta/one/{MANIFEST}"} <= set(names())
    manifest = boto3.client("s3").get_object(Bucket=bucket, Key=f"words/delta/one/{MANIFEST}")["Body"].read()
    assert b'"b-7"' in manifest


def test_a_damaged_delta_is_not_uploaded(bucket: str, healthy_delta: Path, copy_of: CopyOf) -> None:
    broken = copy_of(healthy_delta)
    os.truncate(broken / DATABASE, 5000)
    result = upload(broken, "s3://deltas/words/delta/one")
    assert result.exit_code == 1
    assert "not uploaded, it is corrupt" in result.stderr
    assert names() == []


@pytest.mark.parametrize(
    ("target", "said"),
    [
        ("deltas/words", "not an s3://bucket/prefix"),
        ("s3://deltas", "name the delta, too"),
        ("s3://deltas/words/delta/taken", "give a new delta id"),
    ],
)
def test_a_target_that_cannot_be_ends_it_with_2(bucket: str, healthy_delta: Path, target: str, said: str) -> None:
    boto3.client("s3").put_object(Bucket=bucket, Key=f"words/delta/taken/{DATABASE}", Body=b"somebody's")
    result = upload(healthy_delta, target)
    assert (result.exit_code, result.stdout) == (2, "")
    assert said in result.stderr
