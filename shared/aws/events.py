"""What others are told: the details of Deltaguard's EventBridge events, and the messages about a batch.

Notices are sent at least once. `id` is the same whenever the same thing is told again, so that a consumer can drop
what it knows. docs/events.md is made from these models.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from datetime import datetime
from itertools import islice
from typing import Annotated, ClassVar, Self

from pydantic import BaseModel, ConfigDict, Field

from shared.aws.messaging import Messaging
from shared.model.delta import printable
from shared.model.settings import Settings
from shared.model.verdict import Depth, Status, Verdict

_MOST_FINDINGS = 20
_MOST_DETAIL = 500  # characters; EventBridge and SQS take 256 kB, of which a character may need six bytes
_MOST_REJECTED_BYTES = 200_000
_MOST_BATCH_ID = 1024

Id = Annotated[str, Field(pattern="^[0-9a-f]{64}$", description="The same whenever the same thing is told again.")]
Uri = Annotated[str, Field(description="`s3://bucket/prefix/`.")]
BatchId = Annotated[str, Field(min_length=1, max_length=_MOST_BATCH_ID, description="From the manifest.")]
OptionalBatchId = Annotated[BatchId | None, Field(description="From the manifest; null without one.")]
Fingerprint = Annotated[str, Field(description="sha256 over sorted name, size and ETag: which bytes this is about.")]
Reason = Annotated[str, Field(description="The decisive findings in one line, `code: detail`, cut when very long.")]


class _Model(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class NoticedFinding(_Model):
    """One finding; the codes are those of docs/findings.md."""

    code: str
    file: str
    detail: str

    @classmethod
    def of(cls, findings: Iterable[Mapping[str, str]]) -> tuple[Self, ...]:
        """The first of these findings (as a verdict's JSON has them), with details cut to what an event can hold."""
        kept = islice(findings, _MOST_FINDINGS)
        return tuple(
            cls(code=f["code"], file=printable(f["file"], _MOST_DETAIL), detail=printable(f["detail"], _MOST_DETAIL))
            for f in kept
        )


class NoticedCollection(_Model):
    """What one collection holds; `dimension` is null when it never held a vector."""

    name: str
    dimension: int | None
    count: int


class Notice(_Model):
    """The detail of an event; `detail_type` is its kind."""

    detail_type: ClassVar[str]

    id: Id


class DeltaValidated(Notice):
    """A delta is healthy, by a check of its bytes and not by an earlier verdict."""

    detail_type: ClassVar[str] = "Delta Validated"

    delta: Uri
    fingerprint: Fingerprint
    batch_id: OptionalBatchId
    depth: Depth
    collections: tuple[NoticedCollection, ...]
    bytes: int

    @classmethod
    def of(cls, verdict: Verdict, batch_id: str | None) -> Self:
        """The notice of a healthy verdict."""
        collections = tuple(
            NoticedCollection(name=printable(c.name, _MOST_DETAIL), dimension=c.dimension, count=c.count)
            for c in verdict.collections[:_MOST_FINDINGS]
        )
        return cls(
            id=identity(cls.detail_type, verdict.delta, verdict.fingerprint),
            delta=verdict.delta,
            fingerprint=verdict.fingerprint,
            batch_id=known_batch(batch_id),
            depth=verdict.depth,
            collections=collections,
            bytes=verdict.size,
        )


class DeltaUndetermined(Notice):
    """A delta could not be checked and was not touched. It will be looked at again; this is told each time."""

    detail_type: ClassVar[str] = "Delta Undetermined"

    delta: Uri
    fingerprint: Fingerprint
    batch_id: OptionalBatchId
    depth: Depth
    findings: tuple[NoticedFinding, ...]

    @classmethod
    def of(cls, verdict: Verdict, batch_id: str | None) -> Self:
        """The notice of an undetermined verdict. The same faults of the same bytes are the same notice."""
        codes = sorted({finding.code for finding in verdict.findings})
        return cls(
            id=identity(cls.detail_type, verdict.delta, verdict.fingerprint, *codes),
            delta=verdict.delta,
            fingerprint=verdict.fingerprint,
            batch_id=known_batch(batch_id),
            depth=verdict.depth,
            findings=NoticedFinding.of(finding.as_json() for finding in verdict.findings),
        )


class DeltaCorrupt(Notice):
    """A corrupt delta was found and *not* moved: only reports are wanted, or too many were moved already."""

    detail_type: ClassVar[str] = "Delta Corrupt"

    delta: Uri
    fingerprint: Fingerprint
    batch_id: OptionalBatchId
    depth: Depth
    findings: tuple[NoticedFinding, ...]
    kept: Annotated[str, Field(description="Why it was not moved.")]

    @classmethod
    def of(cls, verdict: Verdict, batch_id: str | None, kept: str) -> Self:
        """The notice of a corrupt verdict that has no consequences; the same bytes, the same notice."""
        return cls(
            id=identity(cls.detail_type, verdict.delta, verdict.fingerprint),
            delta=verdict.delta,
            fingerprint=verdict.fingerprint,
            batch_id=known_batch(batch_id),
            depth=verdict.depth,
            findings=NoticedFinding.of(finding.as_json() for finding in verdict.findings),
            kept=kept,
        )


class DeltaQuarantined(Notice):
    """A corrupt delta was moved: it lies whole in quarantine, and is no longer to be used where it was."""

    detail_type: ClassVar[str] = "Delta Quarantined"

    delta: Uri
    fingerprint: Fingerprint
    batch_id: OptionalBatchId
    quarantine: Annotated[str, Field(description="`s3://bucket/prefix/` of its files and of `quarantine.json`.")]
    quarantined_at: datetime
    findings: tuple[NoticedFinding, ...]


class RejectedDelta(_Model):
    """One delta that kept a chunk from being merged."""

    delta: Uri
    status: Status
    reason: Reason


class ChunkRejected(Notice):
    """The gate refused a chunk: not one of its deltas may be merged."""

    detail_type: ClassVar[str] = "Chunk Rejected"

    batch_id: OptionalBatchId
    chunk_index: int | None
    total: Annotated[int, Field(description="Deltas in the chunk.")]
    refused: Annotated[int, Field(description="How many of them are not healthy.")]
    deltas: Annotated[tuple[RejectedDelta, ...], Field(description="Those; the first ones where not all find room.")]

    @classmethod
    def of(cls, rejected: tuple[Verdict, ...], total: int, batch_id: str | None, chunk_index: int | None) -> Self:
        """The notice of a refused chunk, from the verdicts that are not healthy; the same refusal, the same notice."""
        states = sorted(f"{v.delta}\0{v.fingerprint}\0{v.status}" for v in rejected)
        deltas, room = [], _MOST_REJECTED_BYTES
        for verdict in rejected:
            reason = printable(verdict.reason, _MOST_DETAIL)
            deltas.append(RejectedDelta(delta=verdict.delta, status=verdict.status, reason=reason))
            room -= len(deltas[-1].model_dump_json().encode())
            if room < 0:
                break
        return cls(
            id=identity(cls.detail_type, batch_id or "", str(chunk_index), *states),
            batch_id=known_batch(batch_id),
            chunk_index=chunk_index,
            total=total,
            refused=len(rejected),
            deltas=tuple(deltas),
        )


class ResubmissionExhausted(Notice):
    """A batch keeps giving corrupt deltas. It is not started again; a person must look."""

    detail_type: ClassVar[str] = "Resubmission Exhausted"

    batch_id: BatchId
    attempts: Annotated[int, Field(description="How often the batch was started again.")]
    delta: Uri
    fingerprint: Fingerprint
    quarantine: Annotated[str, Field(description="Where the last corrupt delta of the batch lies.")]
    reason: Reason


class ResubmitRequest(_Model):
    """A message in the resubmit queue: the batch of a quarantined delta should be processed again."""

    batch_id: BatchId
    delta: Uri
    reason: Reason
    attempt: Annotated[
        int | None, Field(description="Uploads that the producer needed, from the manifest. Not what is counted.")
    ]
    quarantine: Annotated[str, Field(description="Where the delta lies now; a quarantine counts once.")]
    fingerprint: Fingerprint


class Resubmission(_Model):
    """What the target is given, as a message or as the input of an execution: process this batch again."""

    id: Id
    batch_id: BatchId
    attempt: Annotated[int, Field(ge=1, description="Which start of this batch this is, counted from stored state.")]
    delta: Uri
    reason: Reason
    quarantine: Annotated[str, Field(description="Where the corrupt delta lies.")]
    fingerprint: Fingerprint


NOTICES: tuple[type[Notice], ...] = (
    DeltaValidated,
    DeltaQuarantined,
    DeltaCorrupt,
    DeltaUndetermined,
    ChunkRejected,
    ResubmissionExhausted,
)
"""Every event of Deltaguard."""


def identity(*parts: str) -> str:
    """The id of what these parts name: sha256 (hex) over them, NUL between them."""
    return hashlib.sha256("\0".join(parts).encode("utf-8", "surrogatepass")).hexdigest()


def known_batch(batch_id: str | None) -> str | None:
    """The batch id if it is one that a message can hold; the manifest comes from outside."""
    return batch_id if batch_id and len(batch_id) <= _MOST_BATCH_ID else None


def send(messaging: Messaging, settings: Settings, notice: Notice) -> None:
    """Puts a notice on the event bus; without `DELTAGUARD_EVENT_BUS` nobody is told.

    Raises:
        MessagingError: It could not be sent, or not surely.
    """
    if settings.event_bus is not None:
        messaging.publish(settings.event_bus, notice.detail_type, notice.model_dump_json())
