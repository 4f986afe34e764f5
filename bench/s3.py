"""An S3 for measurements: moto in a process of its own, which takes no time of the process that is measured."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from shared.client import s3_client
from shared.storage import Store

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

BUCKET = "deltas"
_ROOT = Path(__file__).resolve().parent.parent
_SERVER = """
import logging, sys, threading
from bench.tether import tether
from moto.server import ThreadedMotoServer
tether(int(sys.argv[1]))
logging.getLogger("werkzeug").setLevel(logging.ERROR)
server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
server.start()
print(server.get_host_and_port()[1], flush=True)
threading.Event().wait()
"""
_ENVIRONMENT = {
    "AWS_ACCESS_KEY_ID": "local",
    "AWS_SECRET_ACCESS_KEY": "local",  # moto accepts any
    "AWS_DEFAULT_REGION": "us-east-1",
    "AWS_XRAY_SDK_ENABLED": "false",
    "CHROMADB_BUCKET": BUCKET,
    "DELTAGUARD_SETTLE_SECONDS": "0",
}


@dataclass(slots=True)
class Meter:
    """A client that adds up the bytes of the objects that it downloads."""

    client: S3Client
    downloaded: int = 0

    @property
    def store(self) -> Store:
        """A store on this client."""
        return Store(self.client)


def metered() -> Meter:
    """A client for the environment, with a meter."""
    meter = Meter(s3_client())

    def add(parsed: Mapping[str, Any], **_: Any) -> None:
        meter.downloaded += parsed.get("ContentLength", 0)

    meter.client.meta.events.register("after-call.s3.GetObject", add)
    return meter


@contextmanager
def running_s3() -> Iterator[None]:
    """A server with an empty bucket, and an environment that leads boto3 and Deltaguard to it."""
    command = [sys.executable, "-c", _SERVER, str(os.getpid())]
    with subprocess.Popen(command, cwd=_ROOT, stdout=subprocess.PIPE, text=True) as server:  # noqa: S603 -- ours
        before = dict(os.environ)
        try:
            assert server.stdout is not None
            os.environ.update(_ENVIRONMENT, AWS_ENDPOINT_URL=f"http://127.0.0.1:{int(server.stdout.readline())}")
            s3_client().create_bucket(Bucket=BUCKET)
            yield
        finally:
            os.environ.clear()
            os.environ.update(before)
            server.kill()
