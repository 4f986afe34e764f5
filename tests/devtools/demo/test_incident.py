"""`deltaguard reproduce`: every claim of the incident holds, and a user's delta is only read."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import boto3
import pytest
from click.testing import CliRunner

from devtools.damage.catalogue import apply_damage
from devtools.demo.incident import reproduce
from tests.conftest import CopyOf


@pytest.mark.slow
def test_every_claim_of_the_incident_holds() -> None:
    done = CliRunner().invoke(reproduce, ["--test-fix"])
    assert done.exit_code == 0, done.output
    assert "✗" not in done.output
    assert done.output.count("✓") == 9
    assert "Every claim above was checked." in done.output


@pytest.mark.slow
@pytest.mark.parametrize(("damage", "exit_code", "said"), [("sqlite-truncated", 1, "corrupt"), (None, 0, "healthy")])
def test_a_delta_of_the_users_is_looked_at_and_only_read(
    damage: str | None,
    exit_code: int,
    said: str,
    healthy_delta: Path,
    copy_of: CopyOf,
    aws: str,
) -> None:
    folder = copy_of(healthy_delta)
    if damage is not None:
        apply_damage(damage, folder, 1)
    client = boto3.client("s3")
    client.create_bucket(Bucket="theirs")
    for path in folder.rglob("*"):
        if path.is_file():
            client.upload_file(str(path), "theirs", f"words/mine/{path.relative_to(folder).as_posix()}")
    before = _objects()
    done = CliRunner().invoke(reproduce, ["--test-fix", "--delta", "s3://theirs/words/mine"])
    assert done.exit_code == exit_code, done.output
    assert said in done.output
    assert "it does what the verdict says" in done.output
    assert _objects() == before


@pytest.mark.parametrize(
    ("target", "message"), [("words/delta", "not an s3://bucket/prefix"), ("s3://deltas/gone", "nothing lies there")]
)
def test_a_target_that_cannot_be_looked_at_is_a_usage_error(target: str, message: str, bucket: str) -> None:
    command = [sys.executable, "-m", "compaction.reproduce", "--delta", target]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 2
    assert done.stderr.startswith("Error: ")
    assert done.stderr.count("\n") == 1
    assert message in done.stderr


def _objects() -> list[tuple[str, str]]:
    found = boto3.client("s3").list_objects_v2(Bucket="theirs")["Contents"]
    return [(entry["Key"], entry["ETag"]) for entry in found]
