"""The producer's side: a closed delta goes up, manifest last, is validated, and is removed again if it failed."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from datetime import UTC, datetime
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import stamina
from awscrt.checksums import crc64nvme

from shared.aws.telemetry import UNKNOWN_COLLECTION, count_verdict, logger
from shared.check.judgement import Judgement, judge_folder, judge_stored
from shared.model.delta import DATABASE, MANIFEST, DeltaFile, DeltaLocation, Listing, StoredObject, is_chroma_file
from shared.model.errors import CouldNotCheck, ObjectChanged, ObjectGone, StorageError, TargetError, UploadFailed
from shared.model.manifest import MAX_MANIFEST_BYTES, Manifest, ManifestCollection, ManifestFile, encode_checksum
from shared.model.settings import Settings
from shared.model.verdict import Depth, Status
from shared.storage.folder import checksum_of
from shared.storage.store import Store, current_store

ATTEMPTS = 3
_READS = 2  # of bytes that seem to be others: a read may go wrong
_COMPONENT = "upload"


class _NotArrived(Exception):
    """This attempt failed in a way that another may not."""


def upload_delta(
    client_or_directory: Any,
    bucket: str,
    delta_key: str,
    *,
    batch_id: str | None = None,
    store: Store | None = None,
    settings: Settings | None = None,
    attempts: int = ATTEMPTS,
) -> str:
    """Uploads a delta so that it is either there whole, or not there at all.

    The client is closed, the delta is checked locally, and every file goes up with its checksum: those of indexes, the
    database, and last the manifest, which says that all is there. What arrived is then validated against it. A failed
    attempt is repeated after a pause.

    Nothing that another wrote is ever overwritten or removed. What lies there with the same bytes is taken as it is,
    be it the rest of an upload that was killed or the work of another producer of the same delta.

    Args:
        client_or_directory: A `chromadb.PersistentClient`, which is closed here, or the directory of a closed one.
        bucket: Where to.
        delta_key: Prefix of the delta, `<prefix>/<delta_id>`: a new one, or one that holds (a part of) this very delta.
        batch_id: The batch that the delta came from, kept in the manifest for re-processing.
        store: The store to use; by default the environment's.
        settings: By default the environment's.
        attempts: How often to try.

    Returns:
        The delta key, ending in `/`.

    Raises:
        TargetError: The directory does not exist, or something else than this delta lies under the key.
        UploadFailed: The local delta is not healthy, or no attempt arrived whole. What this call wrote is removed,
            unless another producer may count on it. A delta that is there with its manifest, and could only not be
            validated, stays as well; the message says so.
    """
    location = DeltaLocation.parse(f"s3://{bucket}/{delta_key}")
    place_delta(client_or_directory, location, batch_id=batch_id, store=store, settings=settings, attempts=attempts)
    return location.prefix


def place_delta(
    client_or_directory: Any,
    location: DeltaLocation,
    *,
    batch_id: str | None = None,
    store: Store | None = None,
    settings: Settings | None = None,
    attempts: int = ATTEMPTS,
) -> str:
    """`upload_delta`, for whoever must know which objects it came to.

    Returns:
        The fingerprint of the objects that were written, or found with the same bytes: not of whatever lies there.

    Raises:
        TargetError, UploadFailed: As `upload_delta` does.
    """
    settings = settings or Settings.from_environment()
    directory = close_client(client_or_directory)
    local = _judge_locally(directory, settings)
    work = _Upload(store or current_store(), location, directory, local, batch_id, settings)
    try:
        for attempt in stamina.retry_context(on=_NotArrived, attempts=attempts, timeout=None, wait_initial=0.2):
            with attempt:
                work.attempt(attempt.num)
    except _NotArrived as error:
        if work.stands:
            detail = f"uploaded whole and left in its place, but not validated after {attempts} attempts"
        else:
            work.withdraw(error)
            detail = f"not uploaded after {attempts} attempts"
        raise UploadFailed(f"{location.uri}: {detail}, the last: {error}") from error
    except BaseException as error:
        if not work.stands:
            work.withdraw(error)
        raise
    return work.fingerprint


def close_client(client_or_directory: Any) -> Path:
    """Closes a Chroma client and returns its directory; a directory is returned as it is.

    Raises:
        TargetError: It is neither, or a client that keeps nothing on disk.
    """
    if isinstance(client_or_directory, (str, os.PathLike)):
        return Path(client_or_directory)
    settings = getattr(client_or_directory, "get_settings", lambda: None)()
    directory = getattr(settings, "persist_directory", None)
    if not directory or not getattr(settings, "is_persistent", False):
        raise TargetError(f"a {type(client_or_directory).__name__} is neither a directory nor a persistent client")
    close: Callable[[], None] | None = getattr(client_or_directory, "close", None)
    if close is None:
        raise TargetError("this chromadb cannot close a client: install chromadb 1.5.2 or newer, or give the directory")
    close()
    return Path(directory)


def _judge_locally(directory: Path, settings: Settings) -> Judgement:
    local = judge_folder(directory, Depth.STRUCTURE, settings)
    if local.verdict.status is not Status.HEALTHY:
        raise UploadFailed(f"{directory}: not uploaded, it is {local.verdict.status}: {local.verdict.reason}")
    return local


class _Upload:
    """One delta on its way: what is uploaded, and what of it lies in the store."""

    def __init__(
        self,
        store: Store,
        location: DeltaLocation,
        directory: Path,
        local: Judgement,
        batch_id: str | None,
        settings: Settings,
    ) -> None:
        self._store = store
        self._location = location
        self._directory = directory
        self._settings = settings
        self._collection = next((c.name for c in local.verdict.collections), UNKNOWN_COLLECTION)
        self._manifest = _manifest_of(directory, local, batch_id)
        self._there: dict[str, StoredObject] = {}  # by name: what lies there with the bytes that are wanted
        self._own: dict[str, str] = {}  # by name: the ETags of what this call wrote
        self._refuted = False

    @property
    def stands(self) -> bool:
        """Whether all of it is there, and nothing speaks against it. Others may have seen it, and count on it."""
        return MANIFEST in self._there and not self._refuted

    @property
    def fingerprint(self) -> str:
        """The fingerprint of the objects with the bytes of this delta, as the answers to their writers had them."""
        unknown = datetime.min.replace(tzinfo=UTC)  # when they arrived, which a fingerprint does not contain
        files = (DeltaFile(name, found.size, found.etag, unknown) for name, found in self._there.items())
        return Listing.of(files).fingerprint

    def attempt(self, number: int) -> None:
        """Uploads and validates once. What arrived stays for the next attempt, unless it proves to be damaged.

        Raises:
            _NotArrived: It did not arrive whole, or that could not be seen.
            TargetError: Something else lies under the key.
        """
        started = time.perf_counter()
        try:
            self._place(number)
            if not self._own:
                return  # it was there
            self._validate(number)
        except (CouldNotCheck, _NotArrived) as error:
            logger.warning(
                "Delta upload attempt failed",
                extra={"delta": self._location.uri, "attempt": number, "reason": str(error)},
            )
            if self._refuted:
                self.withdraw(error)
            raise _NotArrived(str(error)) from error
        seconds = time.perf_counter() - started
        logger.info(
            "Delta uploaded",
            extra={"delta": self._location.uri, "attempt": number, "seconds": round(seconds, 3)},
        )

    def _place(self, number: int) -> None:
        """Writes what is not there: indexes, then the database, by which a delta is known, then the manifest."""
        if self._refuted:
            self._there.clear()
            self._refuted = False
        found = self._store.list_delta(self._location).by_name
        expected = {file.name: file for file in self._manifest.files}
        for name in found.keys() - expected.keys() - {MANIFEST}:
            raise self._taken(name)
        if MANIFEST in found:
            self._find_manifest()
        for file in sorted(self._manifest.files, key=lambda file: (file.name == DATABASE, file.name)):
            if file.name not in found or not self._find(file):
                self._write(file.name, self._directory / file.name, partial(self._find, file))
        if MANIFEST not in self._there:
            manifest = self._manifest.model_copy(update={"attempt": number})
            self._write(MANIFEST, manifest.as_bytes(), self._find_manifest)

    def _write(self, name: str, source: Path | bytes, find: Callable[[], bool]) -> None:
        try:
            stored = self._store.upload(self._location.bucket, self._location.key(name), source, only_if_absent=True)
        except StorageError:
            # Another producer was faster, or this was written nevertheless and only the answer lost. It cannot be told
            # which, so it does not count as this call's own.
            if not find():
                raise
        else:
            self._there[name], self._own[name] = stored, stored.etag

    def _find(self, file: ManifestFile) -> bool:
        """Whether exactly this file lies there; False where nothing does.

        Raises:
            TargetError: Something else does; it may be somebody's data, so it is left alone.
            StorageError: It cannot be told.
        """
        bucket, key = self._location.bucket, self._location.key(file.name)
        try:
            stored = self._store.head(bucket, key)
            for _ in range(_READS):
                checksum = self._store.proven_checksum(bucket, key, stored)
                if (stored.size, checksum) == (file.size, file.crc64nvme):
                    self._there[file.name] = stored
                    return True
        except ObjectGone:
            return False
        if self._own.get(file.name) == stored.etag:  # damaged on its way to a store that did not notice
            self._remove(file.name)
            return False
        self._refuted = True
        raise self._taken(file.name)

    def _find_manifest(self) -> bool:
        """The same of the manifest, whatever attempt it is of."""
        bucket, key = self._location.bucket, self._location.key(MANIFEST)
        try:
            stored = self._store.head(bucket, key)
            data = self._store.read(bucket, key, MAX_MANIFEST_BYTES + 1, stored.etag)
        except ObjectGone:
            return False
        if stored.crc64nvme not in (None, encode_checksum(crc64nvme(data))):
            raise StorageError("check.storage", f"reading s3://{bucket}/{key}: other bytes came", "IncompleteBody")
        try:
            there = Manifest.parse(data)
        except ValueError as error:
            raise TargetError(f"{self._location.uri}{MANIFEST} is there already, unreadable: {error}") from error
        if there.model_copy(update={"attempt": 1}) != self._manifest:
            raise TargetError(f"{self._location.uri}: a finished delta is there already: give a new delta id")
        self._there[MANIFEST] = stored
        return True

    def _taken(self, name: str) -> TargetError:
        return TargetError(f"{self._location.uri}{name} is there already and differs: give a new delta id")

    def _validate(self, number: int) -> None:
        logger.info("Validating uploaded delta...", extra={"delta": self._location.uri, "attempt": number})
        # Checksums that the store verified and kept prove every byte of a delta that was judged here; without them
        # the delta is fetched and judged again.
        judgement = judge_stored(self._store, self._location, Depth.HEADER, self._settings)
        if judgement.verdict.status is Status.HEALTHY and not judgement.checksums_proven:
            judgement = judge_stored(self._store, self._location, Depth.STRUCTURE, self._settings)
        verdict = judgement.verdict
        count_verdict(_COMPONENT, self._settings.stage, verdict, self._collection)
        if verdict.status is not Status.HEALTHY:
            self._refuted = verdict.status is not Status.UNDETERMINED
            raise _NotArrived(f"validation: {verdict.status}: {verdict.reason}")
        logger.info(
            "Delta validation successful",
            extra={"delta": self._location.uri, "attempt": number, "fingerprint": verdict.fingerprint},
        )

    def withdraw(self, cause: BaseException) -> None:
        """Removes what this call wrote, the manifest first, but nothing that another producer may count on.

        Args:
            cause: Why.

        Raises:
            UploadFailed: That failed.
        """
        if not self._own:
            return
        try:
            self._remove(MANIFEST)
            needed = self._needed_by_others()
            removed = [name for name in tuple(self._own) if name not in needed and self._remove(name)]
            # Another may have begun meanwhile, and have found what was removed since.
            for name in self._needed_by_others().intersection(removed):
                self._put_back(name)
        except StorageError as error:
            raise UploadFailed(
                f"{self._location.uri}: the upload failed ({cause}) and could not be removed ({error}); "
                "delete this prefix by hand"
            ) from error

    def _needed_by_others(self) -> set[str]:
        """Names of files that others may count on: those of their manifest, or all as long as they have none."""
        found = self._store.list_delta(self._location).by_name
        if all(self._own.get(file.name) == file.etag for file in found.values()):
            return set()
        files = {file.name for file in self._manifest.files}
        if MANIFEST not in found:
            return files
        try:
            key = self._location.key(MANIFEST)
            theirs = Manifest.parse(self._store.read(self._location.bucket, key, MAX_MANIFEST_BYTES + 1))
        except (ObjectGone, ValueError):
            return files
        return {file.name for file in theirs.files if file in self._manifest.files}

    def _remove(self, name: str) -> bool:
        """Removes what this call wrote under a name. False where nothing is left of that."""
        etag = self._own.get(name)
        if etag is None:
            return False
        try:
            self._store.delete(self._location.bucket, self._location.key(name), etag)
        except ObjectChanged:
            return False
        finally:
            del self._own[name]
        return True

    def _put_back(self, name: str) -> None:
        try:
            key = self._location.key(name)
            self._store.upload(self._location.bucket, key, self._directory / name, only_if_absent=True)
        except ObjectChanged:
            return


def _manifest_of(directory: Path, local: Judgement, batch_id: str | None) -> Manifest:
    files = _files_of(local.listing)
    collections = [
        ManifestCollection(name=found.name, dimension=found.dimension, count=found.count)
        for found in local.verdict.collections
    ]
    return Manifest(
        batch_id=batch_id,
        chromadb=_chromadb_version(),
        collections=tuple(collections),
        files=tuple(
            ManifestFile(name=name, size=size, crc64nvme=checksum_of(directory / name)) for name, size in files
        ),
    )


def _files_of(listing: Listing) -> list[tuple[str, int]]:
    """Name and size of what is uploaded: Chroma's own files, without journals, which are empty by now."""
    return [(f.name, f.size) for f in listing.files if is_chroma_file(f.name) and "chroma.sqlite3-" not in f.name]


def _chromadb_version() -> str:
    try:
        return version("chromadb")
    except PackageNotFoundError:
        return "unknown"
