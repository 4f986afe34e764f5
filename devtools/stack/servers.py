"""S3 servers in processes of their own: moto, and `rclone serve s3`, which was written by others.

rclone's has no tags (it would store them *as the object*), heeds no `If-Match`, and keeps what it stores in a folder.
"""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

_START_SECONDS = 60.0
_ROOT = Path(__file__).resolve().parents[2]
_TETHERED = """
import os, sys
from devtools.stack.child import tether
tether(int(sys.argv[1]))
os.execv(sys.argv[2], sys.argv[2:])
"""


@dataclass(frozen=True, slots=True)
class Server:
    """A server that answers at `url` (to the keys `testing`, `testing`), and its process."""

    url: str
    pid: int


@contextmanager
def rclone(folder: Path) -> Iterator[Server]:
    """`rclone serve s3`; its buckets are the folders in `folder`.

    Raises:
        RuntimeError: It is not installed, or does not start.
    """
    program = shutil.which("rclone", path=str(Path(sys.executable).parent))
    if program is None:
        raise RuntimeError("rclone is not installed: make venv")
    port = _free_port()
    options = ("--auth-key", "testing,testing", "--vfs-cache-mode", "off", "--config", "/dev/null")
    with _served([program, "serve", "s3", "--addr", f"127.0.0.1:{port}", *options, str(folder)], port) as server:
        yield server


@contextmanager
def moto() -> Iterator[Server]:
    """A moto server.

    Raises:
        RuntimeError: It does not start.
    """
    port = _free_port()
    with _served([sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)], port) as server:
        yield server


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


@contextmanager
def _served(command: Sequence[str], port: int) -> Iterator[Server]:
    tethered = [sys.executable, "-c", _TETHERED, str(os.getpid()), *command]
    with subprocess.Popen(  # noqa: S603 - ours
        tethered,
        cwd=_ROOT,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,  # Ctrl-C is the user's word to this process
    ) as process:
        try:
            end = time.monotonic() + _START_SECONDS
            while not _answers(port):
                if process.poll() is not None or time.monotonic() > end:
                    raise RuntimeError(f"{command[0]} does not answer at port {port}")
                time.sleep(0.05)
            yield Server(f"http://127.0.0.1:{port}", process.pid)
        finally:
            process.terminate()


def _answers(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), timeout=1).close()
    except OSError:
        return False
    return True
