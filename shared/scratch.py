"""Scratch folders that go away: at the end of their block, or, when their process was killed, at the next start.

And how a file of a delta gets into one.
"""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from shared.errors import faults_explained

_PREFIX = "deltaguard-"
_LOCK = ".lock"
_PIECE_BYTES = 1024 * 1024
_GRACE_SECONDS = 60.0  # between the creation of a folder and the lock inside it


@contextmanager
def scratch_folder() -> Iterator[Path]:
    """An empty folder that only this user can read. It is removed at the end, whatever happens in the block.

    Raises:
        CouldNotCheck: The folder could not be made (disk full, no descriptors, ...).
    """
    with faults_explained(f"making a scratch folder in {tempfile.gettempdir()}"):
        folder = Path(tempfile.mkdtemp(prefix=_PREFIX))
    try:
        with faults_explained(f"locking the scratch folder {folder}"):
            lock = os.open(folder / _LOCK, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX)
            content = folder / "content"
            with faults_explained(f"making a scratch folder in {folder}"):
                content.mkdir()
            yield content
        finally:
            os.close(lock)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def sweep_scratch() -> int:
    """Removes the scratch folders of processes that were killed, and returns how many there were.

    A living owner holds a lock inside its folder, so this works across containers that share the disk.
    """
    removed = 0
    for folder in Path(tempfile.gettempdir()).glob(f"{_PREFIX}*"):
        with suppress(OSError):  # it is another user's, or was removed just now
            if time.time() - folder.stat().st_mtime < _GRACE_SECONDS or not _abandoned(folder / _LOCK):
                continue
            shutil.rmtree(folder, ignore_errors=True)
            removed += 1
    return removed


def copy_file(source: Path, target: Path) -> int:
    """Copies a file with its holes: one of 2 GiB of which a page is there takes a page of the scratch disk too.

    Returns:
        Its size in bytes.

    Raises:
        OSError: It could not be read or written, or there is a target already.
    """
    with source.open("rb") as reading, target.open("xb") as writing:
        size = os.fstat(reading.fileno()).st_size
        for start, end in _extents(reading.fileno(), size):
            reading.seek(start)
            writing.seek(start)
            for at in range(start, end, _PIECE_BYTES):
                writing.write(reading.read(min(_PIECE_BYTES, end - at)))
        writing.truncate(size)
    return size


def _extents(descriptor: int, size: int) -> Iterator[tuple[int, int]]:
    """Where the data of an open file of `size` bytes begin and end (lseek(2); all of it where no holes are known)."""
    end = 0
    while end < size:
        try:
            start = os.lseek(descriptor, end, os.SEEK_DATA)
        except OSError as error:
            if error.errno == errno.ENXIO:  # nothing but a hole up to the end
                return
            raise
        end = os.lseek(descriptor, start, os.SEEK_HOLE)
        yield start, min(end, size)


def _abandoned(lock: Path) -> bool:
    try:
        descriptor = os.open(lock, os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:
        return True  # its process was killed before it could lock it
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    finally:
        os.close(descriptor)
    return True
