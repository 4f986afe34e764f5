"""An S3 for measurements: moto in a process of its own, which takes no time of the process that is measured."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from devtools.stack.servers import moto
from shared.storage.client import s3_client
from shared.storage.store import Store

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

BUCKET = "deltas"
_ENVIRONMENT = {
    "AWS_ACCESS_KEY_ID": "local",
    "AWS_SECRET_ACCESS_KEY": "local",  # moto accepts any
    "AWS_DEFAULT_REGION": "us-east-1",
    "AWS_XRAY_SDK_ENABLED": "false",
    "CHROMADB_BUCKET": BUCKET,
    "DELTAGUARD_SETTLE_SECONDS": "0",
    "DELTAGUARD_ARRIVAL_SECONDS": "0",
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
    before = dict(os.environ)
    with moto() as server:
        try:
            os.environ.update(_ENVIRONMENT, AWS_ENDPOINT_URL=server.url)
            s3_client().create_bucket(Bucket=BUCKET)
            yield
        finally:
            os.environ.clear()
            os.environ.update(before)
