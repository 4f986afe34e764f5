"""The traces of a validation, as X-Ray's daemon receives them: one document for each UDP packet."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from devtools.damage.catalogue import apply_damage
from shared.model.delta import DATABASE, DeltaLocation
from tests.conftest import CopyOf, PutDelta

pytestmark = pytest.mark.slow

PROGRAM = """
import json, sys
from validator.handler import handler
handler(json.loads(sys.argv[1]), None)
"""


def traced(location: DeltaLocation, depth: str) -> list[dict[str, Any]]:
    """Has the validator judge a delta in a process like Lambda's, and returns every subsegment that it sends."""
    daemon = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    daemon.bind(("127.0.0.1", 0))
    daemon.setblocking(False)
    environment = {
        **os.environ,
        "DELTAGUARD_DEPTH": depth,
        "DELTAGUARD_SETTLE_SECONDS": "0",
        "DELTAGUARD_ARRIVAL_SECONDS": "0",
        "LAMBDA_TASK_ROOT": "/var/task",
        "_X_AMZN_TRACE_ID": "Root=1-5759e988-bd862e3fe1be46a994272793;Parent=53995c3f42cd8ad8;Sampled=1",
        "AWS_XRAY_DAEMON_ADDRESS": f"127.0.0.1:{daemon.getsockname()[1]}",
    }
    environment.pop("AWS_XRAY_SDK_ENABLED", None)
    key = location.key(DATABASE)
    event = {
        "Records": [
            {"eventName": "ObjectCreated:Put", "s3": {"bucket": {"name": location.bucket}, "object": {"key": key}}}
        ]
    }
    subprocess.run([sys.executable, "-c", PROGRAM, json.dumps(event)], env=environment, check=True, timeout=300)
    with daemon:
        return [segment for document in _received(daemon) for segment in _with_those_inside(document)]


def _received(daemon: socket.socket) -> Iterator[dict[str, Any]]:
    while True:
        try:
            packet = daemon.recvfrom(65536)[0].decode()
        except BlockingIOError:
            return
        yield json.loads(packet.partition("\n")[2])


def _with_those_inside(segment: dict[str, Any]) -> Iterator[dict[str, Any]]:
    yield segment
    for inner in segment.get("subsegments", []):
        yield from _with_those_inside(inner)


def named(segments: list[dict[str, Any]], name: str) -> dict[str, Any]:
    (found,) = (segment for segment in segments if segment["name"] == f"## {name}")
    return found


def test_a_healthy_delta_is_listed_downloaded_inspected_and_probed(put_delta: PutDelta, healthy_delta: Path) -> None:
    segments = traced(put_delta(healthy_delta, "words/delta/one"), "open")
    names = {segment["name"].removeprefix("## ") for segment in segments}
    assert {"validate", "list", "download", "inspect", "probe"} <= names
    assert "quarantine" not in names
    annotations = named(segments, "validate")["annotations"]
    assert (annotations["delta_id"], annotations["status"]) == ("one", "healthy")


def test_a_corrupt_delta_is_quarantined_and_its_steps_take_their_time(
    put_delta: PutDelta, healthy_delta: Path, copy_of: CopyOf
) -> None:
    broken = copy_of(healthy_delta)
    apply_damage("queue-row-deleted", broken)
    segments = traced(put_delta(broken, "words/delta/two"), "structure")
    assert named(segments, "validate")["annotations"]["status"] == "corrupt"
    assert named(segments, "quarantine")["annotations"]["delta_id"] == "two"
    assert all(segment["end_time"] >= segment["start_time"] for segment in segments)
