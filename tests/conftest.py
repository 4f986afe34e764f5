"""Real parts for every test: a moto server over HTTP, and deltas made by chromadb itself."""

from __future__ import annotations

import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from devtools.damage.deltas import DeltaRecipe, build_delta
from devtools.stack.stack import LocalStack, addresses
from shared.aws import telemetry
from shared.inspection.probe import chroma
from shared.inspection.probe.chroma import Outcome
from shared.model.delta import DeltaLocation
from shared.model.settings import Settings
from shared.model.verdict import Finding
from shared.storage.client import s3_client
from shared.storage.store import Store, current_store
from tests.support import sweep

PutDelta = Callable[[Path, str], DeltaLocation]
CopyOf = Callable[[Path], Path]


def pytest_configure() -> None:
    """Lets what tests start hear Ctrl-C: all that a shell starts in the background is born deaf to it."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leaves out what is marked `sweep`, unless everything is to run."""
    left_out = [] if sweep.ALL else [item for item in items if item.get_closest_marker("sweep")]
    config.hook.pytest_deselected(items=left_out)
    items[:] = [item for item in items if item not in left_out]


@pytest.fixture(scope="session")
def s3_server() -> Iterator[str]:
    """The URL of a moto server, so that child processes and other clients see the same S3."""
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture
def aws(s3_server: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """An empty AWS account that boto3 finds through the environment."""
    for name in ("AWS_PROFILE", "AWS_SESSION_TOKEN", "AWS_ENDPOINT_URL_S3", "AWS_REGION"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_ENDPOINT_URL", s3_server)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "testing")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "testing")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    monkeypatch.setenv("AWS_XRAY_SDK_ENABLED", "false")
    request = urllib.request.Request(f"{s3_server}/moto-api/reset", method="POST")
    urllib.request.urlopen(request, timeout=10).close()
    return s3_server


@pytest.fixture
def store(aws: str) -> Store:
    return current_store()


@pytest.fixture
def bucket(aws: str) -> str:
    import boto3

    boto3.client("s3").create_bucket(Bucket="deltas")
    return "deltas"


@pytest.fixture(scope="session")
def foreign_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The URL of an S3 server that is neither Amazon's nor moto: rclone's, which ignores every condition."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{probe.getsockname()[1]}"
    program = Path(sys.executable).parent / "rclone"
    root = tmp_path_factory.mktemp("rclone")
    command = [program, "serve", "s3", "--config", root / "none", "--addr", address, "--auth-key", "testing,testing"]
    (root / "objects").mkdir()
    server = subprocess.Popen([*command, root / "objects"], stderr=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            try:
                socket.create_connection((address.partition(":")[0], int(address.partition(":")[2])), 1).close()
                break
            except OSError:
                time.sleep(0.05)
        yield f"http://{address}"
    finally:
        server.terminate()
        server.wait()


@pytest.fixture
def foreign_store(aws: str, foreign_server: str, monkeypatch: pytest.MonkeyPatch) -> Store:
    """A store that ignores conditions, with an empty bucket `deltas`, in place of the one that does not."""
    import boto3

    monkeypatch.setenv("AWS_ENDPOINT_URL", foreign_server)
    client = boto3.client("s3")
    if not client.list_buckets()["Buckets"]:
        client.create_bucket(Bucket="deltas")
    for found in client.list_objects_v2(Bucket="deltas").get("Contents", []):
        client.delete_object(Bucket="deltas", Key=found["Key"])
    return Store(s3_client())


@pytest.fixture
def stack(aws: str, monkeypatch: pytest.MonkeyPatch) -> LocalStack:
    """The bucket `deltas` with its queue of events, the resubmit queue and the event bus, all in the environment."""
    for name, value in addresses(aws).items():
        monkeypatch.setenv(name, value)
    stack = LocalStack(aws, "deltas")
    stack.create(prefix="words/", visibility_seconds=1000, max_receives=3)
    return stack


@pytest.fixture
def chroma_dies(monkeypatch: pytest.MonkeyPatch) -> None:
    """A fault to order: Chroma dies of whatever delta it is asked about, each time."""
    crashed = Outcome((Finding("chroma.crashed", "", "Chroma was killed by SIGSEGV"),))
    monkeypatch.setattr(chroma, "ask_twice", lambda *_, **__: crashed)


@pytest.fixture
def put_delta(bucket: str) -> PutDelta:
    """Uploads a folder as a delta the old way: file by file, no manifest."""
    import boto3

    client = boto3.client("s3")

    def put(folder: Path, prefix: str) -> DeltaLocation:
        location = DeltaLocation.parse(f"s3://{bucket}/{prefix}")
        for path in sorted(folder.rglob("*")):
            if path.is_file():
                client.upload_file(str(path), bucket, location.key(path.relative_to(folder).as_posix()))
        return location

    return put


@pytest.fixture
def settled() -> Settings:
    """Settings under which a delta without a manifest counts as whole at once."""
    return Settings(settle_seconds=0, arrival_seconds=0)


@pytest.fixture(scope="session")
def healthy_delta(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A queue-only delta, the normal case: 50 embeddings. Copy it to break it."""
    folder = tmp_path_factory.mktemp("deltas") / "healthy"
    build_delta(folder, DeltaRecipe(embeddings=50, dimension=32))
    return folder


@pytest.fixture(scope="session")
def flushed_delta(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A delta whose vectors were flushed into an index, with some still in the queue. Copy it to break it."""
    folder = tmp_path_factory.mktemp("deltas") / "flushed"
    build_delta(folder, DeltaRecipe(embeddings=130, dimension=16, sync_threshold=50, batch=25, deletes=7, updates=7))
    return folder


@pytest.fixture
def copy_of(tmp_path: Path) -> CopyOf:
    """A copy of a delta that a test may break."""

    def copy(folder: Path) -> Path:
        return Path(shutil.copytree(folder, tmp_path / f"copy-{len(list(tmp_path.iterdir()))}"))

    return copy


@pytest.fixture
def fast_retries(monkeypatch: pytest.MonkeyPatch) -> None:
    """botocore's retries without their pauses."""
    monkeypatch.setattr("botocore.retries.standard.ExponentialBackoff.delay_amount", lambda *_: 0)


@pytest.fixture(autouse=True)
def logs_on_standard_output(monkeypatch: pytest.MonkeyPatch) -> None:
    """A command that a test ran in this process may have sent the logs elsewhere, for good."""
    monkeypatch.setattr(telemetry._output, "to_stderr", False)
