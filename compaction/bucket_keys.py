"""Where compaction keeps things in its bucket: keys as functions of batch, chunk and group. No I/O."""

from __future__ import annotations

import os
import re

from shared.model.delta import BUCKET_NAME, DeltaLocation, printable
from shared.model.errors import SettingsError, TargetError

BUCKET_VARIABLE = "CHROMADB_BUCKET"
INTERMEDIATES, SNAPSHOTS = "intermediate", "snapshots"
"""The prefixes below which intermediates and snapshots lie, without a `/`."""
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,199}")


def bucket() -> str:
    """The bucket of the compaction.

    Raises:
        SettingsError: `CHROMADB_BUCKET` is not set, or cannot be a bucket's name.
    """
    name = os.environ.get(BUCKET_VARIABLE, "").strip()
    if not name:
        raise SettingsError(f"{BUCKET_VARIABLE} is not set: it names the bucket that holds deltas and intermediates")
    if not BUCKET_NAME.fullmatch(name):
        raise SettingsError(f"{BUCKET_VARIABLE}={name!r}: must be the name of a bucket")
    return name


def batch_name(batch_id: object) -> str:
    """The batch id, which becomes a part of keys.

    Raises:
        TargetError: It cannot be one.
    """
    if not isinstance(batch_id, str) or not _NAME.fullmatch(batch_id):
        raise TargetError(f"batch_id {printable(repr(batch_id))} must be of letters, digits, `.`, `_` and `-`")
    return batch_id


def index(value: object, name: str) -> int:
    """A number of a chunk or a group.

    Raises:
        TargetError: It is none.
    """
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise TargetError(f"{name} {printable(repr(value))} must be a whole number from 0")
    return value


def chunk(of_bucket: str, batch_id: str, chunk_index: int) -> DeltaLocation:
    """Where the intermediate of a chunk goes."""
    return DeltaLocation(of_bucket, f"{INTERMEDIATES}/{batch_id}/chunk-{chunk_index}/")


def group(of_bucket: str, batch_id: str, group_index: int) -> DeltaLocation:
    """Where the intermediate of a group of chunks goes."""
    return DeltaLocation(of_bucket, f"{INTERMEDIATES}/{batch_id}/group-{group_index}/")


def snapshot(of_bucket: str, batch_id: str, digest: str, holder: str) -> DeltaLocation:
    """Where a snapshot goes, and nobody else writes.

    Args:
        of_bucket: The bucket.
        batch_id: The batch.
        digest: Of what it is made of.
        holder: Who makes it: a part of the holder of the lock.
    """
    return DeltaLocation(of_bucket, f"{versions(batch_id, digest)}-{holder}/")


def versions(batch_id: str, digest: str) -> str:
    """What the keys of all snapshots begin with that were made of the same."""
    return f"{SNAPSHOTS}/{batch_id}/{digest}"


def latest() -> str:
    """The key of the pointer to the newest snapshot."""
    return f"{SNAPSHOTS}/latest.json"


def lock() -> str:
    """The key of the lock that whoever moves that pointer holds."""
    return f"{SNAPSHOTS}/lock.json"
