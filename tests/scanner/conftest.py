"""The scanner's tests of S3 run against two servers: moto, and `rclone serve s3`, which was written by others.

A module that has `SERVERS = ("moto", "rclone")` has each of its tests of S3 run against both.
"""

from __future__ import annotations

import shutil
import tempfile
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import boto3
import pytest

from devtools.stack.servers import rclone


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    servers = getattr(metafunc.module, "SERVERS", None)
    if servers and "aws" in metafunc.fixturenames:
        only = [marker.args[0] for marker in metafunc.definition.iter_markers("server")]
        metafunc.parametrize("aws", only or servers, indirect=True)


@pytest.fixture(scope="session")
def rclone_server() -> Iterator[tuple[str, Path]]:
    """The URL of the server, and the folder that holds its buckets."""
    with tempfile.TemporaryDirectory() as folder, rclone(Path(folder)) as server:
        yield server.url, Path(folder)


@pytest.fixture
def aws(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """An empty account of the server that the test asks for, or of moto."""
    for name in ("AWS_PROFILE", "AWS_SESSION_TOKEN", "AWS_ENDPOINT_URL_S3", "AWS_REGION"):
        monkeypatch.delenv(name, raising=False)
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "testing")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    monkeypatch.setenv("AWS_XRAY_SDK_ENABLED", "false")
    if getattr(request, "param", "moto") == "rclone":
        url, folder = request.getfixturevalue("rclone_server")
        monkeypatch.setenv("AWS_ENDPOINT_URL", url)
        _empty(boto3.client("s3"), folder)
        return str(url)
    url = request.getfixturevalue("s3_server")
    monkeypatch.setenv("AWS_ENDPOINT_URL", url)
    urllib.request.urlopen(urllib.request.Request(f"{url}/moto-api/reset", method="POST"), timeout=30).close()
    return str(url)


def _empty(client: Any, folder: Path) -> None:
    for bucket in client.list_buckets()["Buckets"]:
        for page in client.get_paginator("list_objects_v2").paginate(Bucket=bucket["Name"]):
            for entry in page.get("Contents", []):
                client.delete_object(Bucket=bucket["Name"], Key=entry["Key"])
        client.delete_bucket(Bucket=bucket["Name"])
    for left in folder.iterdir():
        shutil.rmtree(left)
