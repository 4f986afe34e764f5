"""The end of a batch: its intermediates become one snapshot, and a pointer moves to it, atomically.

Each call writes its snapshot where nobody else writes, and nothing ever removes one that was finished. Readers follow
`snapshots/latest.json`, which is replaced on the condition that it is still the one that was read under the lock.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, ValidationError

from compaction import bucket_keys
from compaction.chunk import intermediates
from compaction.lock import LockLost, held_lock
from compaction.merge import Merged, Plan, merge
from compaction.receipt import RECEIPT
from shared.aws.telemetry import logger
from shared.model.delta import DeltaLocation
from shared.model.errors import ObjectGone, StorageError
from shared.model.settings import Settings
from shared.storage.scratch import sweep_scratch
from shared.storage.store import Store, current_store

_MAX_BYTES = 64 * 1024
_HOLDER = 16  # characters of a holder's id in a key


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
        LockLost: This one could not renew its lock in time, or was overtaken; the pointer did not move.
        ChunkRejected, MergeFailed, UploadFailed, StorageError: As for a chunk; the pointer did not move.
    """
    started = time.perf_counter()
    settings = settings or Settings.from_environment()
    sweep_scratch()
    store = store or current_store()
    bucket, batch_id = bucket_keys.bucket(), bucket_keys.batch_name(batch_id)
    sources = intermediates(intermediate_keys, bucket, batch_id)
    plan = Plan(sources, batch_id, None, {"batch_id": batch_id}, indexed=True)
    with held_lock(store, bucket, bucket_keys.lock(), f"final merge of batch {batch_id}") as lock:
        before = _latest(store, bucket)
        digest = _digest(store, plan)
        destination = bucket_keys.snapshot(bucket, batch_id, digest, lock.holder[:_HOLDER])
        earlier = _finished_snapshots(store, bucket, bucket_keys.versions(batch_id, digest), before)
        merged = merge(store, plan, destination, settings, earlier=earlier, check=lock.check_if_due)
        lock.check()
        _publish(store, bucket, batch_id, merged, before)
    return {
        "snapshot_key": merged.location.prefix,
        "embeddings_processed": merged.embeddings,
        "processing_time": round(time.perf_counter() - started, 3),
        "latest_key": bucket_keys.latest(),
    }


@dataclass(frozen=True, slots=True)
class _Found:
    """The pointer as it was found."""

    pointer: Pointer
    etag: str


def _finished_snapshots(store: Store, bucket: str, start: str, latest: _Found | None) -> list[DeltaLocation]:
    """The snapshots with a receipt whose keys begin so, the newest published one first, if it is among them."""
    keys = [key for key, _ in store.walk(bucket, start)]
    found = [DeltaLocation(bucket, key.removesuffix(RECEIPT) + "/") for key in keys if key.endswith(RECEIPT)]
    published = latest.pointer.snapshot_key if latest else None
    return sorted(found, key=lambda location: location.prefix != published)


def _digest(store: Store, plan: Plan) -> str:
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
    key = bucket_keys.latest()
    try:
        etag = store.head(bucket, key).etag
        return _Found(Pointer.model_validate_json(store.read(bucket, key, _MAX_BYTES, etag)), etag)
    except ObjectGone:
        return None
    except ValidationError as error:
        detail = f"reading s3://{bucket}/{key}: not a pointer to a snapshot ({error.error_count()} errors)"
        raise StorageError("check.storage", detail, "InvalidPointer") from error


def _is_latest(store: Store, bucket: str, pointer: Pointer) -> bool:
    """Whether the pointer is this one: it was written, and only the answer lost."""
    found = _latest(store, bucket)
    return found is not None and found.pointer == pointer


def _publish(store: Store, bucket: str, batch_id: str, merged: Merged, before: _Found | None) -> None:
    """Moves the pointer, provided that nobody else has moved it since it was read."""
    key = bucket_keys.latest()
    if before is not None and before.pointer.snapshot_key == merged.location.prefix:
        return  # a repeated call: it points there already
    pointer = Pointer(
        snapshot_key=merged.location.prefix,
        batch_id=batch_id,
        fingerprint=merged.fingerprint,
        embeddings=merged.embeddings,
        published_at=store.now(),
        previous=before.pointer.snapshot_key if before else None,
    )
    data = pointer.model_dump_json(indent=1).encode() + b"\n"
    if before is None:
        moved = store.put(bucket, key, data, only_if_absent=True)
    else:
        moved = store.replace(bucket, key, data, before.etag)
    if not moved and not _is_latest(store, bucket, pointer):
        raise LockLost(f"s3://{bucket}/{key} was moved by another process meanwhile; it was left alone")
    logger.info("Snapshot published", extra={"snapshot": merged.location.uri, "embeddings": merged.embeddings})
