"""`make offline` from the first upload to Ctrl-C: real functions, real queues, and nothing left behind."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import boto3
import pytest
from boto3.s3.transfer import TransferConfig

from devtools.damage.catalogue import apply_damage
from devtools.damage.deltas import DeltaRecipe, build_delta
from devtools.stack.raw_copy import copy
from devtools.stack.stack import REACHED, messages_in
from shared.model.delta import DATABASE
from shared.upload import upload_delta
from tests.conftest import CopyOf
from tests.deploy.conftest import ROOT, require_node

pytestmark = pytest.mark.slow

_START_SECONDS = 180.0
_SECONDS = 120.0
BUCKET, QUARANTINE = "deltaguard-local-deltas-123456789012", "deltaguard-local-quarantine-123456789012"


@dataclass
class Running:
    """`make offline` in a process of its own."""

    process: subprocess.Popen[str]
    output: Path
    scratch: Path

    def said(self) -> str:
        return self.output.read_text()

    def until(self, condition: Callable[[], bool]) -> None:
        end = time.monotonic() + _SECONDS
        while not condition():
            assert time.monotonic() < end, self.said()
            assert self.process.poll() is None, self.said()
            time.sleep(0.1)


def end(running: Running) -> int:
    running.process.send_signal(signal.SIGINT)
    return running.process.wait(timeout=_SECONDS)


@pytest.fixture
def offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Running]:
    """The stack, ready, with short times; boto3 finds it."""
    require_node()
    scratch, output = tmp_path / "scratch", tmp_path / "output.txt"
    scratch.mkdir()
    arguments = ["--port", "0", "--hidden-seconds", "1", "--settle-seconds", "2"]
    with output.open("w") as file:
        process = subprocess.Popen(
            [sys.executable, "-m", "devtools.stack.offline", *arguments],
            cwd=ROOT,
            env={**os.environ, "TMPDIR": str(scratch), "PYTHONUNBUFFERED": "1"},
            stdout=file,
            stderr=subprocess.STDOUT,
            text=True,
        )
    running = Running(process, output, scratch)
    try:
        limit = time.monotonic() + _START_SECONDS
        while "Ready." not in running.said():
            assert process.poll() is None, running.said()
            assert time.monotonic() < limit, running.said()
            time.sleep(0.1)
        found = re.search(r"S3 and SQS are at (\S+)\.", running.said())
        assert found
        for name, value in {**REACHED, "AWS_ENDPOINT_URL": found[1]}.items():
            monkeypatch.setenv(name, value)
        yield running
    finally:
        if process.poll() is None:
            end(running)


def keys(bucket: str, prefix: str) -> list[str]:
    answer = boto3.client("s3").list_objects_v2(Bucket=bucket, Prefix=prefix)
    return [entry["Key"] for entry in answer.get("Contents", [])]


def status(prefix: str) -> str | None:
    tags = boto3.client("s3").get_object_tagging(Bucket=BUCKET, Key=f"{prefix}/{DATABASE}")["TagSet"]
    return next((tag["Value"] for tag in tags if tag["Key"] == "deltaguard:status"), None)


def waiting(queue: str) -> int:
    sqs = boto3.client("sqs")
    return messages_in(sqs, sqs.get_queue_url(QueueName=queue)["QueueUrl"])


def living_below(folder: Path) -> list[str]:
    """Processes that work with this folder, as their environment says."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if str(folder).encode() in (process / "environ").read_bytes() and (process / "cmdline").read_bytes():
                found.append((process / "cmdline").read_bytes().replace(b"\0", b" ").decode())
        except OSError:
            continue
    return found


def test_uploads_have_their_consequences_and_ctrl_c_leaves_nothing(
    offline: Running, tmp_path: Path, healthy_delta: Path, copy_of: CopyOf
) -> None:
    broken, large = copy_of(healthy_delta), tmp_path / "large"
    apply_damage("queue-row-deleted", broken)
    build_delta(large, DeltaRecipe(embeddings=700, dimension=1536))

    upload_delta(healthy_delta, BUCKET, "words/delta/with-manifest", batch_id="b-1")
    copy(healthy_delta, f"s3://{BUCKET}/words/delta/without/")
    copy(broken, f"s3://{BUCKET}/words/delta/broken/")
    _upload_in_parts(large, "words/delta/in-parts")
    upload_delta(healthy_delta, BUCKET, "words/delta/hurt", batch_id="b-2")
    database = (healthy_delta / DATABASE).read_bytes()
    boto3.client("s3").put_object(Bucket=BUCKET, Key=f"words/delta/hurt/{DATABASE}", Body=database[:-4096])

    healthy = ("with-manifest", "without", "in-parts")
    offline.until(lambda: all(status(f"words/delta/{name}") == "healthy" for name in healthy))
    offline.until(lambda: not keys(BUCKET, "words/delta/broken/") and not keys(BUCKET, "words/delta/hurt/"))
    for name in ("broken", "hurt"):
        (record,) = (key for key in keys(QUARANTINE, f"quarantine/words/delta/{name}/") if "quarantine.json" in key)
        held = json.loads(boto3.client("s3").get_object(Bucket=QUARANTINE, Key=record)["Body"].read())
        assert held["verdict"]["status"] == "corrupt"
    offline.until(lambda: waiting("batches") == 1)  # the batch of the one with a manifest is started again
    offline.until(lambda: waiting("deltaguard-local-deltas") == waiting("deltaguard-local-resubmit") == 0)
    assert waiting("deltaguard-local-deltas-dead") == waiting("deltaguard-local-resubmit-dead") == 0
    assert "Delta quarantined" in offline.said()

    assert end(offline) == 0, offline.said()
    assert "nothing is left" in offline.said()
    assert living_below(offline.scratch) == []
    assert list(offline.scratch.iterdir()) == []


def _upload_in_parts(folder: Path, prefix: str) -> None:
    parts = TransferConfig(multipart_threshold=1024 * 1024, multipart_chunksize=5 * 1024 * 1024)
    sizes = []
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        key = f"{prefix}/{path.relative_to(folder).as_posix()}"
        boto3.client("s3").upload_file(str(path), BUCKET, key, Config=parts)
        sizes.append(path.stat().st_size)
    etag = boto3.client("s3").head_object(Bucket=BUCKET, Key=f"{prefix}/{DATABASE}")["ETag"]
    assert etag.strip('"').endswith("-2"), sizes  # it did go up in parts


def test_a_message_that_cannot_be_read_ends_in_the_dead_letter_queue_and_holds_up_nothing(
    offline: Running, healthy_delta: Path
) -> None:
    sqs = boto3.client("sqs")
    queue = sqs.get_queue_url(QueueName="deltaguard-local-deltas")["QueueUrl"]
    sqs.send_message(QueueUrl=queue, MessageBody="{not json")
    upload_delta(healthy_delta, BUCKET, "words/delta/one")
    offline.until(lambda: status("words/delta/one") == "healthy")
    offline.until(lambda: waiting("deltaguard-local-deltas-dead") == 1)
    offline.until(lambda: waiting("deltaguard-local-deltas") == 0)


def test_without_serverless_it_says_what_to_do() -> None:
    program = "import devtools.stack.offline as o; o._PROGRAM = o.Path('/nowhere'); raise SystemExit(o.main([]))"
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "run `make offline`" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_port_in_use_is_one_clear_line() -> None:
    require_node()
    with socket.create_server(("127.0.0.1", 0)) as taken:
        command = [sys.executable, "-m", "devtools.stack.offline", "--port", str(taken.getsockname()[1])]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "--port takes another one" in done.stderr
    assert "Traceback" not in done.stderr
