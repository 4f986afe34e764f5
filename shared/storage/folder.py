"""A delta in a local folder: its listing and its bytes. The folder is only read, links are never followed."""

from __future__ import annotations

import os
import stat
from collections import deque
from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext
from datetime import UTC, datetime
from pathlib import Path

from awscrt.checksums import crc64nvme

from shared.model.delta import MAX_FILES, MAX_OWN_FILES, DeltaFile, Gathering, Listing, is_index_folder, is_own_file
from shared.model.errors import CouldNotCheck, TargetError, faults_explained
from shared.model.manifest import encode_checksum

_CHUNK = 4 * 1024 * 1024
_NEVER = datetime.fromtimestamp(0, UTC)  # of what is only known by its name


class FolderContent:
    """The bytes of a delta in a local folder, where others may write; a `shared.inspection.examination.Content`.

    Args:
        path: The folder.
        listing: Its listing, as `list_folder` gives it.
        max_bytes: A larger delta is not read whole.
        in_place: Whether Chroma wrote it there, so that it is no copy.
    """

    def __init__(self, path: Path, listing: Listing, max_bytes: int, *, in_place: bool = False) -> None:
        self.in_place = in_place
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

    Only the delta's own files must be plain files that can be looked at. Links and special files beside them are
    counted as others, and so is what lies deeper, as far as it can be listed.

    Raises:
        TargetError: There is no such folder.
        CouldNotCheck: It cannot be read, has too many files, or a link or special file has the name of a file or an
            index folder of Chroma's.
    """
    if not path.is_dir():
        raise TargetError(f"{path}: no such folder")
    gathering = Gathering()
    waiting = deque([""])  # the delta's own folders come before all that lies deeper
    deeper = 0
    while waiting and deeper <= MAX_FILES:
        folder = waiting.popleft()
        own = not folder or is_index_folder(folder[:-1])
        with faults_explained(f"listing {path / folder}"), _opened(path / folder, required=own) as entries:
            for entry in entries:
                name = folder + entry.name
                deeper += not own
                if deeper > MAX_FILES:
                    break
                if entry.is_dir(follow_symlinks=False):
                    if is_index_folder(name) or len(waiting) < MAX_FILES:
                        waiting.append(f"{name}/")
                elif own:
                    _gather(gathering, name, entry)
                else:
                    gathering.add(DeltaFile(name, 0, "", _NEVER))
    if gathering.overfull:
        raise CouldNotCheck("check.size_cap", f"{path}: more than {MAX_FILES} files of Chroma's")
    return gathering.listing()


def _opened(folder: Path, *, required: bool) -> AbstractContextManager[Iterable[os.DirEntry[str]]]:
    """What lies in a folder; nothing where it is none of the delta's own and cannot be listed."""
    try:
        return os.scandir(folder)
    except OSError:
        if required:
            raise
        return nullcontext(())


def _gather(gathering: Gathering, name: str, entry: os.DirEntry[str]) -> None:
    status = entry.stat(follow_symlinks=False)
    if stat.S_ISREG(status.st_mode):
        modified = datetime.fromtimestamp(status.st_mtime, UTC)
        gathering.add(DeltaFile(name, status.st_size, str(status.st_mtime_ns), modified))
    elif is_own_file(name) or is_index_folder(name):
        raise _not_followed(entry.path)
    else:
        gathering.pass_over()


def require_regular(path: Path, names: Iterable[str]) -> None:
    """Makes sure that none of these files of a manifest, which no listing has, is there as something else.

    Raises:
        CouldNotCheck: One is a link or a special file.
    """
    for name in names:
        if os.path.lexists(path / name) and not os.path.isdir(path / name):  # noqa: PTH112 - Path's follow and raise
            raise _not_followed(path / name)


def _not_followed(path: Path | str) -> CouldNotCheck:
    return CouldNotCheck("check.local_io", f"{path} is a link or a special file; it was not followed")


def check_count(listing: Listing) -> None:
    """Raises `CouldNotCheck` when a delta has more files of its own than may be asked for one by one."""
    if len(listing.files) > MAX_OWN_FILES:
        detail = f"{len(listing.files)} files of its own, at most {MAX_OWN_FILES} are checked"
        raise CouldNotCheck("check.size_cap", detail)


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
