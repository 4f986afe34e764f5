"""The producer's side: a closed delta goes up whole, manifest last, is validated, and is removed again if it failed."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import stamina

from shared.delta import MANIFEST, DeltaLocation, Listing, is_chroma_file
from shared.errors import CouldNotCheck, ObjectChanged, StorageError, TargetError, UploadFailed
from shared.folder import checksum_of
from shared.judgement import Judgement, judge_folder, judge_stored
from shared.manifest import MAX_MANIFEST_BYTES, Manifest, ManifestCollection, ManifestFile
from shared.settings import Settings
from shared.storage import Store, current_store
from shared.telemetry import UNKNOWN_COLLECTION, count_verdict, logger
from shared.verdict import Depth, Status

ATTEMPTS = 3
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
    """Uploads a delta so that it is either there whole, and proven to be, or not there at all.

    The client is closed, the delta is checked locally, and every file goes up with its checksum; the manifest, which
    says that all is there, goes last. What arrived is then validated against it. A failed attempt is removed and
    repeated after a pause.

    Args:
        client_or_directory: A `chromadb.PersistentClient`, which is closed here, or the directory of a closed one.
        bucket: Where to.
        delta_key: Prefix of the delta, `<prefix>/<delta_id>`. It must be new, or hold the rest of an upload of this
            very delta; nothing else is ever overwritten.
        batch_id: The batch that the delta came from, kept in the manifest for re-processing.
        store: The store to use; by default the environment's.
        settings: By default the environment's.
        attempts: How often to try.

    Returns:
        The delta key, ending in `/`.

    Raises:
        TargetError: The directory does not exist, or something else than this delta lies under the key.
        UploadFailed: The local delta is not healthy, or no attempt arrived whole. Nothing is left under the key.
    """
    settings = settings or Settings.from_environment()
    location = DeltaLocation.parse(f"s3://{bucket}/{delta_key}")
    directory = close_client(client_or_directory)
    local = _judge_locally(directory, settings)
    work = _Upload(store or current_store(), location, directory, local, batch_id, settings)
    if work.already_there():
        return location.prefix
    try:
        for attempt in stamina.retry_context(on=_NotArrived, attempts=attempts, timeout=None, wait_initial=0.2):
            with attempt:
                work.attempt(attempt.num)
    except _NotArrived as error:
        raise UploadFailed(f"{location.uri}: not uploaded after {attempts} attempts, the last: {error}") from error
    return location.prefix


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

    def already_there(self) -> bool:
        """Whether exactly this delta is there already, finished.

        Raises:
            TargetError: Something else lies under the key; it may be somebody's data, so it is left alone.
            UploadFailed: It cannot be told.
        """
        expected = {file.name: (file.size, file.crc64nvme) for file in self._manifest.files}
        try:
            listing = self._store.list_delta(self._location)
            for file in listing.files:
                if file.name == MANIFEST:
                    continue
                stored = self._store.head(self._location.bucket, self._location.key(file.name))
                if expected.get(file.name) != (stored.size, stored.crc64nvme):
                    detail = f"{self._location.uri}{file.name} is there already and differs: give a new delta id"
                    raise TargetError(detail)
            if MANIFEST not in listing.by_name:
                return False  # nothing, or the rest of an upload of this very delta that was killed
            data = self._store.read(self._location.bucket, self._location.key(MANIFEST), MAX_MANIFEST_BYTES)
            there = Manifest.parse(data)
        except StorageError as error:
            raise UploadFailed(f"{self._location.uri}: not uploaded: {error}") from error
        except ValueError as error:
            raise TargetError(f"{self._location.uri}{MANIFEST} is there already, unreadable: {error}") from error
        if there.model_copy(update={"attempt": 1}) != self._manifest:
            raise TargetError(f"{self._location.uri}: a finished delta is there already: give a new delta id")
        return True

    def attempt(self, number: int) -> None:
        """Uploads and validates once.

        Raises:
            _NotArrived: It did not arrive whole; what had arrived is removed.
        """
        started = time.perf_counter()
        try:
            self._remove()
            for file in self._manifest.files:
                key = self._location.key(file.name)
                self._store.upload(self._location.bucket, key, self._directory / file.name)
            manifest = self._manifest.model_copy(update={"attempt": number})
            self._store.put(self._location.bucket, self._location.key(MANIFEST), manifest.as_bytes())
            self._validate(number)
        except (CouldNotCheck, _NotArrived) as error:
            logger.warning(
                "Delta upload attempt failed",
                extra={"delta": self._location.uri, "attempt": number, "reason": str(error)},
            )
            self._remove_failed(error)
            raise _NotArrived(str(error)) from error
        except BaseException:
            # An interrupt or a bug: still nothing may stay that looks finished.
            self._remove()
            raise
        seconds = time.perf_counter() - started
        logger.info(
            "Delta uploaded",
            extra={"delta": self._location.uri, "attempt": number, "seconds": round(seconds, 3)},
        )

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
            raise _NotArrived(f"validation: {verdict.status}: {verdict.reason}")
        logger.info(
            "Delta validation successful",
            extra={"delta": self._location.uri, "attempt": number, "fingerprint": verdict.fingerprint},
        )

    def _remove_failed(self, cause: Exception) -> None:
        try:
            self._remove()
        except StorageError as error:
            raise UploadFailed(
                f"{self._location.uri}: the upload failed ({cause}) and could not be removed ({error}); "
                "delete this prefix by hand"
            ) from error

    def _remove(self) -> None:
        """Removes what lies under the key, the manifest first so that nothing looks finished meanwhile."""
        listing = self._store.list_delta(self._location)
        for file in sorted(listing.files, key=lambda file: file.name != MANIFEST):
            try:
                self._store.delete(self._location.bucket, self._location.key(file.name), file.etag)
            except ObjectChanged as error:
                detail = f"{self._location.uri}{file.name}: another producer writes to the same delta"
                raise UploadFailed(detail) from error


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
