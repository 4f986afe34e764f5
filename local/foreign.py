"""A second S3 server, written by others: `rclone serve s3`. It has no tags and heeds no condition on a request."""

from __future__ import annotations

import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_START_SECONDS = 60.0


@contextmanager
def rclone(folder: Path) -> Iterator[str]:
    """The URL of a server whose buckets are the folders in `folder`. Its keys are `testing` and `testing`."""
    program = shutil.which("rclone", path=str(Path(sys.executable).parent))
    if program is None:
        raise RuntimeError("rclone is not installed: make venv")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = "{}:{}".format(*free.getsockname())
    options = ["--auth-key", "testing,testing", "--addr", address, "--vfs-cache-mode", "off", "--config", "/dev/null"]
    command = [program, "serve", "s3", *options, str(folder)]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:  # noqa: S603 - ours
        try:
            _wait_for(address, process)
            yield f"http://{address}"
        finally:
            process.terminate()


def _wait_for(address: str, process: subprocess.Popen[bytes]) -> None:
    host, _, port = address.partition(":")
    end = time.monotonic() + _START_SECONDS
    while True:
        try:
            socket.create_connection((host, int(port)), timeout=1).close()
            return
        except OSError:
            if process.poll() is not None or time.monotonic() > end:
                raise RuntimeError(f"rclone does not answer at {address}") from None
            time.sleep(0.05)
