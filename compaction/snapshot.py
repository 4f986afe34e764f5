"""The end of a batch: its intermediates become one snapshot, and a pointer moves to it, atomically.

A snapshot is never overwritten by another: its key is made of what it was made of. Readers follow
`snapshots/latest.json`, which is replaced on the condition that it is still the one that was read under the lock.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Annotated, Any, Literal

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, ValidationError

from compaction import places
from compaction.chunk import intermediates
from compaction.lock import LockLost, held_lock
from compaction.merge import Merged, Plan, merge
from shared.errors import ObjectGone, StorageError
from shared.scratch import sweep_scratch
from shared.settings import Settings
from shared.storage import Store, current_store
from shared.telemetry import logger

_MAX_BYTES = 64 * 1024


class Pointer(BaseModel):
    """`snapshots/latest.json`.

    Args:
        snapshot_key: Prefix of the newest snapshot, a Chroma directory, ending in `/`.
        batch_id: The batch that it was made of.
        fingerprint: Of its objects.
        embeddings: How many were read from the intermediates.
        published_at: When the pointer moved.
        previous: The key before this one.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    format: Literal[1] = 1
    snapshot_key: str
    batch_id: str
    fingerprint: str
    embeddings: Annotated[int, Field(ge=0)]
    published_at: AwareDatetime
    previous: str | None


def final_merge(
    batch_id: str,
    intermediate_keys: Sequence[str],
    *,
    store: Store | None = None,
    settings: Settings | None = None,
) -> dict[str, Any]:
    """Merges the intermediates of a batch into a snapshot, and makes it the newest.

    Args:
        batch_id: The batch.
        intermediate_keys: Their prefixes, in order: the later ones win.
        store: By default the environment's.
        settings: By default the environment's.

    Returns:
        `snapshot_key`, `embeddings_processed`, `processing_time` in seconds, and `latest_key`, the key of the pointer.

    Raises:
        TargetError: A key is not that of an intermediate of this batch, or there is none.
        LockHeld: Another final merge is at work.
        LockLost: This one took longer than its lock lasts and was overtaken; the pointer did not move.
        ChunkRejected, MergeFailed, UploadFailed, StorageError: As for a chunk; the pointer did not move.
    """
    started = time.perf_counter()
    settings = settings or Settings.from_environment()
    sweep_scratch()
    store = store or current_store()
    bucket, batch_id = places.bucket(), places.batch_name(batch_id)
    sources = intermediates(intermediate_keys, bucket, batch_id)
    plan = Plan(sources, batch_id, None, {"batch_id": batch_id}, indexed=True)
    with held_lock(store, bucket, places.lock(), f"final merge of batch {batch_id}") as lock:
        before = _latest(store, bucket)
        version = _version(store, plan)
        merged = merge(store, plan, places.snapshot(bucket, batch_id, version), settings)
        lock.check()
        _publish(store, bucket, batch_id, merged, before)
    return {
        "snapshot_key": merged.location.prefix,
        "embeddings_processed": merged.embeddings,
        "processing_time": round(time.perf_counter() - started, 3),
        "latest_key": places.latest(),
    }


@dataclass(frozen=True, slots=True)
class _Found:
    """The pointer as it was found."""

    pointer: Pointer
    etag: str


def _version(store: Store, plan: Plan) -> str:
    """A name for what these intermediates make, as they are now."""
    digest = hashlib.sha256()
    for source in plan.sources:
        fingerprint = store.list_delta(source.location).fingerprint
        digest.update(f"{source.location.uri}\0{fingerprint}\n".encode())
    return digest.hexdigest()[:16]


def _latest(store: Store, bucket: str) -> _Found | None:
    """The pointer; None when nothing was ever published.

    Raises:
        StorageError: It cannot be read.
    """
    key = places.latest()
    try:
        etag = store.head(bucket, key).etag
        return _Found(Pointer.model_validate_json(store.read(bucket, key, _MAX_BYTES, etag)), etag)
    except ObjectGone:
        return None
    except ValidationError as error:
        detail = f"reading s3://{bucket}/{key}: not a pointer to a snapshot ({error.error_count()} errors)"
        raise StorageError("check.storage", detail, "InvalidPointer") from error


def _publish(store: Store, bucket: str, batch_id: str, merged: Merged, before: _Found | None) -> None:
    """Moves the pointer, provided that nobody else has moved it since it was read."""
    key = places.latest()
    if before is not None and before.pointer.snapshot_key == merged.location.prefix:
        return  # a repeated call: it points there already
    pointer = Pointer(
        snapshot_key=merged.location.prefix,
        batch_id=batch_id,
        fingerprint=merged.fingerprint,
        embeddings=merged.embeddings,
        published_at=datetime.now(UTC),
        previous=before.pointer.snapshot_key if before else None,
    )
    data = pointer.model_dump_json(indent=1).encode() + b"\n"
    if before is None:
        moved = store.put(bucket, key, data, only_if_absent=True)
    else:
        moved = store.replace(bucket, key, data, before.etag)
    if not moved:
        raise LockLost(f"s3://{bucket}/{key} was moved by another process meanwhile; it was left alone")
    logger.info("Snapshot published", extra={"snapshot": merged.location.uri, "embeddings": merged.embeddings})
