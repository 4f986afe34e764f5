"""The targets on the command line: read, and proven to exist before the first check starts."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from scanner.find.discovery import Bookmark, FoundDelta, Walk, find_stored
from shared.model.delta import DeltaLocation, parse_s3_uri
from shared.model.errors import ObjectGone, StorageError, TargetError
from shared.model.settings import Settings

if TYPE_CHECKING:
    from shared.storage.store import Store


@dataclass(frozen=True, slots=True)
class StoredRoot:
    """Where to look for deltas in S3: `prefix` ends with `/`, or is empty for the whole bucket."""

    bucket: str
    prefix: str


def delta_named(target: str) -> DeltaLocation | Path:
    """The delta that a target is.

    Raises:
        TargetError: It is neither an `s3://bucket/prefix` nor a folder.
    """
    return DeltaLocation.parse(_encodable(target)) if _is_uri(target) else _folder(target)


def root_named(target: str) -> StoredRoot | Path:
    """The place that a target names, below which deltas may lie.

    Raises:
        TargetError: It is neither an `s3://bucket/prefix` nor a folder.
    """
    if not _is_uri(target):
        return _folder(target)
    bucket, prefix = parse_s3_uri(_encodable(target))
    return StoredRoot(bucket, prefix if not prefix or prefix.endswith("/") else prefix + "/")


def require_objects(store: Store, location: DeltaLocation) -> None:
    """Makes sure that something lies at a location. Where that cannot be asked, the check itself will say why.

    Raises:
        TargetError: There is no such bucket, or nothing below the prefix.
    """
    try:
        found = store.holds(location.bucket, location.prefix)
    except ObjectGone as error:
        raise _no_bucket(location.bucket) from error
    except StorageError:
        return
    if not found:
        raise TargetError(f"{location.uri}: nothing lies there")


def require_bucket(store: Store, root: StoredRoot) -> None:
    """Makes sure that a bucket can be listed.

    Raises:
        TargetError: There is no such bucket.
        StorageError: It cannot be listed.
    """
    try:
        store.holds(root.bucket, root.prefix)
    except ObjectGone as error:
        raise _no_bucket(root.bucket) from error


def deltas_below(
    store: Walk, root: StoredRoot, settings: Settings, since: Bookmark | None = None
) -> Iterator[FoundDelta]:
    """The deltas at and below a place in S3, without those in quarantine unless the place lies in it.

    Args:
        store: Where the place is.
        root: The place.
        settings: Where quarantine is.
        since: The bookmark of a delta: only those that come behind it.

    Raises:
        StorageError: The listing failed.
    """
    bucket, quarantine = settings.quarantine_of(root.bucket)
    inside = bucket == root.bucket and not root.prefix.startswith(quarantine)
    return find_stored(store, root.bucket, root.prefix, (quarantine,) if inside else (), since)


def _is_uri(target: str) -> bool:
    return "://" in target


def _folder(target: str) -> Path:
    if not os.path.isdir(target):  # noqa: PTH112 - Path.is_dir raises for a name that is too long
        problem = "a file, not a folder" if os.path.isfile(target) else "no such folder"  # noqa: PTH113 - the same
        raise TargetError(f"{target}: {problem}")
    return Path(target)


def _encodable(target: str) -> str:
    try:
        target.encode()
    except UnicodeEncodeError as error:
        raise TargetError(f"{target}: not UTF-8, as every S3 key is") from error
    return target


def _no_bucket(bucket: str) -> TargetError:
    return TargetError(f"s3://{bucket}: no such bucket")
