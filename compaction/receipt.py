"""What an intermediate was made of, kept beside it, so that a repeated call knows its own finished work again.

The same object settles which of several attempts at one merge may write: before it writes, each puts a claim there, on
the condition that the object is still as it was when no finished work was found. The newest claim counts, so an attempt
that was killed stands in nobody's way; and one that was overtaken cannot write its receipt, and so never answers.
"""

from __future__ import annotations

import uuid
from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from compaction.errors import MergeOvertaken
from shared.aws.telemetry import logger
from shared.model.delta import DeltaLocation
from shared.model.errors import ObjectGone, StorageError
from shared.storage.store import Store

RECEIPT = ".receipt.json"
"""How the key of a receipt ends."""

_MAX_BYTES = 16 * 1024 * 1024


class SourceRecord(BaseModel):
    """One delta that went in: where it lay, the fingerprint of its objects, and which collections were taken."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    delta: str
    fingerprint: str
    collections: tuple[str, ...] | None


class Receipt(BaseModel):
    """What one merge did.

    Args:
        sources: What went in, in order.
        orders: For the collections with an order of their own, that order of deltas.
        fingerprint: Of the objects that the merge wrote, as the answers to its writes had them.
        embeddings: How many embeddings were read.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    format: Literal[1] = 1
    sources: tuple[SourceRecord, ...]
    orders: dict[str, tuple[str, ...]]
    fingerprint: str = ""
    embeddings: Annotated[int, Field(ge=0)] = 0


def receipt_key(destination: DeltaLocation) -> str:
    """The key of the receipt: beside the intermediate, for everything inside belongs to Chroma."""
    return destination.prefix.rstrip("/") + RECEIPT


@dataclass(frozen=True, slots=True)
class Found:
    """What lies under the key of a receipt: the receipt, unless it is a claim or cannot be read, and the ETag."""

    receipt: Receipt | None
    etag: str | None


def read_receipt(store: Store, destination: DeltaLocation) -> Found:
    """The receipt of what lies there, if there is one.

    Raises:
        StorageError: A request failed.
    """
    etag, data = _read(store, destination)
    if not data or _claim_in(data) is not None:
        return Found(None, etag)
    try:
        return Found(Receipt.model_validate_json(data), etag)
    except ValidationError as error:
        facts = {"key": receipt_key(destination), "errors": error.error_count()}
        logger.warning("Receipt cannot be read, the merge is done again", extra=facts)
        return Found(None, etag)


class Claim:
    """The right to write at a destination, as long as no newer attempt has claimed it.

    Args:
        store: Where it lies.
        destination: Of the merge.
        found: What lay under the key of the receipt when no finished work was found.

    Raises:
        MergeOvertaken: That has changed.
        StorageError: A request failed.
    """

    def __init__(self, store: Store, destination: DeltaLocation, found: Found) -> None:
        self._store = store
        self._destination = destination
        self._id = uuid.uuid4().hex
        bucket, key = destination.bucket, receipt_key(destination)
        data = _Claim(claim=self._id).model_dump_json().encode() + b"\n"
        if found.etag is None:
            claimed = store.put(bucket, key, data, only_if_absent=True)
        else:
            claimed = store.replace(bucket, key, data, found.etag)
        if not claimed:
            raise self._overtaken()

    def check(self) -> None:
        """Returns while this is the newest claim.

        Raises:
            MergeOvertaken: It is not.
            StorageError: A request failed.
        """
        self._etag()

    def settle(self, receipt: Receipt) -> None:
        """Writes the receipt of the finished merge in place of the claim.

        Raises:
            MergeOvertaken: A newer attempt is at work.
            StorageError: A request failed.
        """
        data = receipt.model_dump_json(indent=1).encode() + b"\n"
        if not self._store.replace(self._destination.bucket, receipt_key(self._destination), data, self._etag()):
            raise self._overtaken()

    def withdraw(self) -> None:
        """Removes the claim of an attempt that failed. A store that refuses is no error: it is in nobody's way."""
        try:
            self._store.delete(self._destination.bucket, receipt_key(self._destination), self._etag())
        except (MergeOvertaken, StorageError) as error:
            logger.info("Claim left behind", extra={"destination": self._destination.uri, "reason": str(error)})

    def _etag(self) -> str:
        etag, data = _read(self._store, self._destination)
        if etag is None or _claim_in(data) != self._id:
            raise self._overtaken()
        return etag

    def _overtaken(self) -> MergeOvertaken:
        return MergeOvertaken(self._destination.uri, "another attempt at it has begun to write; run this one again")


class _Claim(BaseModel):
    """What the object says during an attempt."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    format: Literal[1] = 1
    claim: str


def _claim_in(data: bytes) -> str | None:
    try:
        return _Claim.model_validate_json(data).claim
    except ValidationError:
        return None


def _read(store: Store, destination: DeltaLocation) -> tuple[str | None, bytes]:
    """ETag and bytes of what lies under the key of a receipt; None where nothing does."""
    key = receipt_key(destination)
    try:
        etag = store.head(destination.bucket, key).etag
        return etag, store.read(destination.bucket, key, _MAX_BYTES, etag)
    except ObjectGone:
        return None, b""
