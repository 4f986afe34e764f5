"""The bytes of a delta in S3 for an examination: heads by range reads, a copy in a scratch folder when it is needed."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

from shared.inspection.layout import PICKLE
from shared.model.deadline import UNLIMITED, Deadline, side_by_side
from shared.model.delta import DeltaFile, DeltaLocation, Listing, is_chroma_file, segment_of
from shared.model.errors import StorageError, faults_explained
from shared.storage.folder import check_size
from shared.storage.scratch import scratch_folder

if TYPE_CHECKING:  # a local check needs no boto3
    from shared.storage.store import Store

Step = Callable[[str], AbstractContextManager[Any]]
"""Opens a block around one step (`list`, `download`, `inspect`, `probe`), such as a trace of it."""


def files_needed(listing: Listing) -> tuple[DeltaFile, ...]:
    """The files of a delta that are ever read: Chroma's own, without those of an index that has no id map.

    Such an index was never flushed; nobody reads it, and Chroma writes it anew.
    """

    def needed(name: str) -> bool:
        segment = segment_of(name)
        return is_chroma_file(name) and (segment is None or f"{segment}/{PICKLE}" in listing.by_name)

    return tuple(file for file in listing.files if needed(file.name))


class RemoteContent:
    """A delta in S3; a `shared.inspection.examination.Content`.

    Args:
        store: Where it lies.
        location: Its bucket and prefix.
        listing: Its objects. Each must still be the one that was listed when it is read.
        max_bytes: A larger delta is not downloaded.
        scratch: Where its scratch folder is given back.
        step: Put around each download (`download`).
        whole: Whether the folder must have all of Chroma's files, not only those that are ever read.
        in_full: Whether the folder will be asked for anyway, so that the head of a file is better read from there.
        deadline: After it, nothing is downloaded.
    """

    in_place = False

    def __init__(
        self,
        store: Store,
        location: DeltaLocation,
        listing: Listing,
        max_bytes: int,
        scratch: ExitStack,
        step: Step,
        *,
        whole: bool,
        in_full: bool,
        deadline: Deadline = UNLIMITED,
    ) -> None:
        self._store = store
        self._location = location
        self._listing = listing
        self._max_bytes = max_bytes
        self._scratch = scratch
        self._step = step
        self._deadline = deadline
        all_files = tuple(file for file in listing.files if is_chroma_file(file.name))
        self._needed = all_files if whole else files_needed(listing)
        self._in_full = in_full and listing.size <= max_bytes
        self._folder: Path | None = None
        self._here: set[str] = set()

    def head(self, name: str, length: int) -> bytes:
        """The first bytes of a file.

        Raises:
            StorageError: A request failed, or the object is another one by now.
            CouldNotCheck: The local disk refused, or no time is left.
        """
        file = self._listing.by_name[name]
        self._deadline.check(f"reading {name}")
        if not self._in_full:
            return read_head(self._store, self._location, file, length)
        self._fetch([file])
        with faults_explained(f"reading {name}"), (self._place() / name).open("rb") as local:
            return local.read(length)

    def folder(self) -> Path:
        """A folder with the files that are needed.

        Raises:
            StorageError: A request failed, or an object is another one by now.
            CouldNotCheck: The local disk refused, the delta is larger than may be read, or no time is left.
        """
        check_size(self._listing, self._max_bytes)
        self._fetch(self._needed)  # other names are never written, so none can leave the folder
        return self._place()

    def _place(self) -> Path:
        if self._folder is None:
            self._folder = self._scratch.enter_context(scratch_folder())
        return self._folder

    def _fetch(self, files: Iterable[DeltaFile]) -> None:
        """Downloads those of these files that are not in the folder yet, some at once."""
        missing = [file for file in files if file.name not in self._here]
        folder = self._place()
        with faults_explained("making a scratch folder for an index"):
            for file in missing:
                (folder / file.name).parent.mkdir(exist_ok=True)
                if not file.size:
                    (folder / file.name).touch()

        def download(file: DeltaFile) -> None:
            self._store.download(self._location, file, folder / file.name, self._deadline)

        filled = [file for file in missing if file.size]
        if filled:
            with self._step("download"):
                side_by_side(download, filled, self._deadline, f"downloading {self._location.uri}")
        self._here.update(file.name for file in missing)


def read_head(store: Store, location: DeltaLocation, file: DeltaFile, length: int) -> bytes:
    """The first bytes of a listed file. A connection that breaks in their midst looks like an end of the object.

    Raises:
        StorageError: The request failed, fewer bytes came, or the object is another one by now.
    """
    if not file.size:
        return b""
    data = store.read(location.bucket, location.key(file.name), length, file.etag)
    expected = min(length, file.size)
    if len(data) != expected:
        detail = f"reading {location.uri}{file.name}: {len(data)} of {expected} bytes came"
        raise StorageError("check.storage", detail, "IncompleteBody")
    return data


def read_whole(store: Store, location: DeltaLocation, file: DeltaFile) -> bytes:
    """All bytes of a listed file, compared with the checksum of the object where the store keeps one.

    Raises:
        StorageError: The request failed, other bytes came, or the object is another one by now.
    """
    if not file.size:
        return b""
    data = store.read_whole(location.bucket, location.key(file.name), file.size, file.etag)
    if len(data) != file.size:
        detail = f"reading {location.uri}{file.name}: {len(data)} of {file.size} bytes came"
        raise StorageError("check.storage", detail, "IncompleteBody")
    return data
