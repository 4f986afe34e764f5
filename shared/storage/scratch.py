"""Scratch folders that go away: at the end of their block, or, when their process was killed, at the next start.

And how a file of a delta gets into one.

They lie in one folder, `deltaguard-scratch-<user id>` in the system's temporary folder, which must be a real folder of
this user that no other user can enter (else each process makes one of its own). Each has a lock file beside it,
`<name>.lock`, that says by its content whose it is. It is locked before it says so, and stays locked as long as its
process lives: a lock file with that content which nobody holds is what a killed process left. Nothing else is ever
swept, whatever its name or age.
"""

from __future__ import annotations

import errno
import fcntl
import os
import secrets
import shutil
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from shared.model.errors import faults_explained

_PIECE_BYTES = 1024 * 1024
_LOCK_SUFFIX = ".lock"
_MARK = "A scratch folder of Deltaguard's, in use as long as this file is locked: {}\n"


@contextmanager
def scratch_folder() -> Iterator[Path]:
    """An empty folder that only this user can enter. It is removed at the end, whatever happens in the block.

    Raises:
        CouldNotCheck: The folder could not be made (disk full, no descriptors, ...).
    """
    with faults_explained(f"making a scratch folder in {tempfile.gettempdir()}"):
        home, lock, folder = _made()
    try:
        yield folder
    finally:
        _remove(folder)
        os.close(lock)
        with suppress(OSError):  # others are in use
            home.rmdir()


def sweep_scratch() -> int:
    """Removes the scratch folders of processes that were killed, and returns how many there were.

    A living owner holds the lock, so this works across containers that share the disk.
    """
    home = _home()
    if not _is_private(home):
        return 0
    removed = 0
    for lock in home.glob(f"*{_LOCK_SUFFIX}"):
        with suppress(OSError):  # it was removed just now
            removed += _sweep(lock)
    if removed:
        with suppress(OSError):  # others are in use
            home.rmdir()
    return removed


def _home() -> Path:
    return Path(tempfile.gettempdir()) / f"deltaguard-scratch-{os.geteuid()}"


def _is_private(home: Path) -> bool:
    """Whether this is a folder, not a link to one, that belongs to this user alone."""
    try:
        status = home.lstat()
    except FileNotFoundError:
        return False
    return stat.S_ISDIR(status.st_mode) and status.st_uid == os.geteuid() and not status.st_mode & 0o077


def _made() -> tuple[Path, int, Path]:
    """The folder of all scratch folders, and a new one in it with its lock, which is held."""
    while True:
        home = _home()
        with suppress(FileExistsError):
            home.mkdir(0o700)
        if not _is_private(home):  # somebody else's, or on a disk that knows no owners: nothing is ever swept there
            home = Path(tempfile.mkdtemp(prefix=f"{home.name}-"))
        folder = home / secrets.token_hex(8)
        with suppress(FileNotFoundError):  # whoever was the last to leave it has removed the home just now
            return home, _locked(folder), folder


def _locked(folder: Path) -> int:
    """Makes the folder with its lock. The lock says whose it is only once it is held."""
    path = _lock_of(folder)
    lock = os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        os.write(lock, _mark_of(folder))
        folder.mkdir(0o700)
    except BaseException:
        path.unlink(missing_ok=True)
        os.close(lock)
        raise
    return lock


def _lock_of(folder: Path) -> Path:
    return folder.with_name(folder.name + _LOCK_SUFFIX)


def _mark_of(folder: Path) -> bytes:
    return _MARK.format(folder.name).encode()


def _remove(folder: Path) -> bool:
    """Removes a scratch folder whose lock is held. What cannot be removed now is left to the next sweep."""
    shutil.rmtree(folder, ignore_errors=True)
    if os.path.lexists(folder):
        return False
    _lock_of(folder).unlink(missing_ok=True)
    return True


def _sweep(lock: Path) -> bool:
    """Removes the folder of this lock file if it is one of ours that nobody holds. Returns whether it was."""
    folder = lock.with_name(lock.name.removesuffix(_LOCK_SUFFIX))
    descriptor = os.open(lock, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        mark = _mark_of(folder)
        there = os.fstat(descriptor).st_nlink > 0  # otherwise another sweep was faster
        return there and os.pread(descriptor, len(mark) + 1, 0) == mark and _remove(folder)
    finally:
        os.close(descriptor)


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
