"""The deltas of a merge on disk: exactly the objects that the gate judged, downloaded once for gate and merge."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

from shared.check.download import files_needed
from shared.model.deadline import UNLIMITED, Deadline
from shared.model.delta import DeltaFile, DeltaLocation
from shared.model.errors import ObjectChanged, faults_explained
from shared.storage.store import Store


class Checkout(Store):
    """A store that keeps what is downloaded through it, so that the merge reads the very bytes that were judged.

    A kept file is a second name (a hard link) of the downloaded one: it costs neither time nor space, and is never
    written to.

    Args:
        store: The store behind it.
        folder: Where to keep the files; on the disk of the scratch folders.
    """

    def __init__(self, store: Store, folder: Path) -> None:
        super().__init__(store._client)
        self._folder = folder

    def download(self, location: DeltaLocation, file: DeltaFile, target: Path, deadline: Deadline = UNLIMITED) -> None:
        """Downloads as any store does, and keeps the file."""
        super().download(location, file, target, deadline)
        kept = self._kept(location, file)
        with faults_explained(f"keeping {file.name} of {location.uri}"):
            kept.parent.mkdir(parents=True, exist_ok=True)
            kept.unlink(missing_ok=True)
            os.link(target, kept)

    def checked_out(self, location: DeltaLocation, fingerprint: str) -> Path:
        """A folder with the files of a delta that are ever read. What was kept is not downloaded again.

        Args:
            location: The delta.
            fingerprint: Of the listing that was judged.

        Raises:
            ObjectChanged: The delta is not the one that was judged any more.
            StorageError: A request failed.
            CouldNotCheck: The local disk refused.
        """
        listing = self.list_delta(location)
        if listing.fingerprint != fingerprint:
            raise ObjectChanged("check.changed", "it was changed after the gate had judged it", "Fingerprint")
        folder = self._of(location) / "delta"
        for file in files_needed(listing):
            kept, target = self._kept(location, file), folder / file.name
            with faults_explained(f"making a folder for {location.uri}"):
                target.parent.mkdir(parents=True, exist_ok=True)
            if not kept.exists():
                super().download(location, file, target)
                continue
            with faults_explained(f"placing {file.name} of {location.uri}"):
                os.link(kept, target)
        return folder

    def _kept(self, location: DeltaLocation, file: DeltaFile) -> Path:
        """Where this very object is kept: its ETag is part of the name."""
        name = f"{file.name}\0{file.etag}".encode("utf-8", "surrogateescape")
        return self._of(location) / "kept" / hashlib.sha256(name).hexdigest()

    def _of(self, location: DeltaLocation) -> Path:
        return self._folder / hashlib.sha256(location.uri.encode("utf-8", "surrogateescape")).hexdigest()[:32]
