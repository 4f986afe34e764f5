"""What an intermediate was made of, kept beside it, so that a repeated call knows its own finished work again."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from shared.delta import DeltaLocation
from shared.errors import ObjectGone
from shared.storage import Store
from shared.telemetry import logger

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
        fingerprint: Of what came out, as it lay in the store when it had been validated.
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
    return f"{destination.prefix.rstrip('/')}.receipt.json"


def read_receipt(store: Store, destination: DeltaLocation) -> Receipt | None:
    """The receipt of what lies there; None where there is none, or one that cannot be read.

    Raises:
        StorageError: The request failed.
    """
    key = receipt_key(destination)
    try:
        return Receipt.model_validate_json(store.read(destination.bucket, key, _MAX_BYTES))
    except ObjectGone:
        return None
    except ValidationError as error:
        facts = {"key": key, "errors": error.error_count()}
        logger.warning("Receipt cannot be read, the merge is done again", extra=facts)
        return None


def write_receipt(store: Store, destination: DeltaLocation, receipt: Receipt) -> None:
    """Writes the receipt of a finished merge.

    Raises:
        StorageError: The request failed.
    """
    store.put(destination.bucket, receipt_key(destination), receipt.model_dump_json(indent=1).encode() + b"\n")
