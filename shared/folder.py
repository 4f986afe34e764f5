"""A delta in a local folder: its listing and its bytes. The folder is only read, links are never followed."""

from __future__ import annotations

import os
import stat
from datetime import UTC, datetime
from pathlib import Path

from awscrt.checksums import crc64nvme

from shared.delta import MAX_FILES, DeltaFile, Listing
from shared.errors import CouldNotCheck, TargetError, faults_explained
from shared.manifest import encode_checksum

_CHUNK = 4 * 1024 * 1024


class FolderContent:
    """The bytes of a delta in a local folder, where others may write; a `shared.inspection.Content`.

    Args:
        path: The folder.
        listing: Its listing, as `list_folder` gives it.
        max_bytes: A larger delta is not read whole.
    """

    def __init__(self, path: Path, listing: Listing, max_bytes: int) -> None:
        self._path = path
        self._listing = listing
        self._max_bytes = max_bytes

    def head(self, name: str, length: int) -> bytes:
        """The first `length` bytes of a file."""
        with faults_explained(f"reading {self._path / name}"), (self._path / name).open("rb") as file:
            return file.read(length)

    def folder(self) -> Path:
        """The folder itself.

        Raises:
            CouldNotCheck: It is larger than may be read.
        """
        check_size(self._listing, self._max_bytes)
        return self._path


def list_folder(path: Path) -> Listing:
    """The files below a folder; the modification time in nanoseconds stands in for the ETag.

    Raises:
        TargetError: There is no such folder.
        CouldNotCheck: It cannot be read, has too many files, or holds a link or a special file.
    """
    if not path.is_dir():
        raise TargetError(f"{path}: no such folder")
    files: list[DeltaFile] = []
    with faults_explained(f"listing {path}"):
        for entry in _entries(path):
            name = os.path.relpath(entry.path, path)
            status = entry.stat(follow_symlinks=False)
            if not stat.S_ISREG(status.st_mode):
                raise CouldNotCheck("check.local_io", f"{entry.path} is a link or a special file; it was not followed")
            modified = datetime.fromtimestamp(status.st_mtime, UTC)
            files.append(DeltaFile(name, status.st_size, str(status.st_mtime_ns), modified))
            if len(files) > MAX_FILES:
                raise CouldNotCheck("check.size_cap", f"{path}: more than {MAX_FILES} files")
    return Listing.of(files)


def _entries(path: Path) -> list[os.DirEntry[str]]:
    found: list[os.DirEntry[str]] = []
    waiting = [os.fspath(path)]
    while waiting:
        with os.scandir(waiting.pop()) as entries:
            for entry in entries:
                if entry.is_dir(follow_symlinks=False):
                    waiting.append(entry.path)
                else:
                    found.append(entry)
        if len(found) + len(waiting) > 2 * MAX_FILES:
            raise CouldNotCheck("check.size_cap", f"{path}: more than {2 * MAX_FILES} files and folders")
    return found


def check_size(listing: Listing, max_bytes: int) -> None:
    """Raises `CouldNotCheck` when a delta has more bytes than may be read."""
    if listing.size > max_bytes:
        detail = f"{listing.size} bytes, at most {max_bytes} are checked (DELTAGUARD_MAX_DELTA_BYTES)"
        raise CouldNotCheck("check.size_cap", detail)


def checksum_of(path: Path) -> str:
    """CRC-64/NVME of a file, as a manifest and S3 write it.

    Raises:
        CouldNotCheck: The file cannot be read.
    """
    checksum = 0
    with faults_explained(f"reading {path}"), path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            checksum = crc64nvme(chunk, checksum)
    return encode_checksum(checksum)
