"""`delta.manifest.json`: what the producer closed and uploaded, written last so that its presence means *all here*."""

from __future__ import annotations

import base64
from collections.abc import Iterable
from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from shared.model.delta import MANIFEST, Listing, may_own, printable
from shared.model.verdict import CollectionCount, Finding

MAX_MANIFEST_BYTES = 4 * 1024 * 1024
"""A manifest lists a few files for each collection; anything larger is not one."""


class ManifestFile(BaseModel):
    """One file of the delta. `crc64nvme` is base64 of the big-endian CRC-64/NVME, as S3 returns it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: Annotated[str, Field(min_length=1, max_length=1024)]
    size: Annotated[int, Field(ge=0)]
    crc64nvme: Annotated[str, Field(pattern=r"^[A-Za-z0-9+/]{11}=$")]


class ManifestCollection(BaseModel):
    """One collection: its name, vector length (None when it never held a vector) and number of embeddings."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    dimension: Annotated[int, Field(ge=1)] | None
    count: Annotated[int, Field(ge=0)]


class Manifest(BaseModel):
    """The manifest of a delta. `attempt` counts from 1 the uploads that were needed."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    format: Literal[1] = 1
    batch_id: str | None = None
    attempt: Annotated[int, Field(ge=1)] = 1
    chromadb: str
    collections: tuple[ManifestCollection, ...]
    files: Annotated[tuple[ManifestFile, ...], Field(max_length=20_000)]

    def as_bytes(self) -> bytes:
        """The manifest as it is stored: indented JSON, UTF-8."""
        return self.model_dump_json(indent=2).encode() + b"\n"

    @classmethod
    def parse(cls, data: bytes) -> Self:
        """The manifest in `data`.

        Raises:
            ValueError: It is too large, not JSON, or not of this format; the message is one line.
        """
        if len(data) > MAX_MANIFEST_BYTES:
            raise ValueError(f"{len(data)} bytes, at most {MAX_MANIFEST_BYTES} expected")
        try:
            manifest = cls.model_validate_json(data)
        except ValidationError as error:
            first = error.errors(include_url=False, include_input=False)[0]
            where = ".".join(str(part) for part in first["loc"]) or "document"
            raise ValueError(printable(f"{where}: {first['msg']}", 300)) from error
        strange = next((file.name for file in manifest.files if not may_own(file.name)), None)
        if strange is not None:
            raise ValueError(f"it lists {printable(strange)!r}, which cannot be a file of this delta")
        return manifest


def encode_checksum(crc64nvme: int) -> str:
    """A CRC-64/NVME as S3 writes it: base64 of its eight big-endian bytes."""
    return base64.b64encode(crc64nvme.to_bytes(8, "big")).decode()


def compare_listing(manifest: Manifest, listing: Listing) -> list[Finding]:
    """What the names and sizes of a listing contradict in its manifest."""
    findings = []
    for file in manifest.files:
        stored = listing.by_name.get(file.name)
        if stored is None:
            findings.append(
                Finding("manifest.file_missing", printable(file.name), f"listed with {file.size} bytes, not there")
            )
        elif stored.size != file.size:
            detail = f"{stored.size} bytes, {file.size} when it was closed"
            findings.append(Finding("manifest.size_differs", printable(file.name), detail))
    listed = {file.name for file in manifest.files} | {MANIFEST}
    unlisted = sorted(listing.by_name.keys() - listed)
    return findings + [Finding("manifest.file_unlisted", printable(name), "not in the manifest") for name in unlisted]


def compare_checksums(manifest: Manifest, checksums: dict[str, str]) -> list[Finding]:
    """What the CRC-64/NVME checksums (base64, by file name) contradict in the manifest."""
    return [
        Finding(
            "manifest.checksum_differs",
            printable(file.name),
            f"CRC64NVME {checksums[file.name]}, {file.crc64nvme} when it was closed",
        )
        for file in manifest.files
        if checksums.get(file.name, file.crc64nvme) != file.crc64nvme
    ]


def compare_collections(manifest: Manifest, collections: tuple[CollectionCount, ...]) -> list[Finding]:
    """What the counted collections contradict in the manifest. Several databases may have collections of one name."""
    promised, seen = _held_by_name(manifest.collections), _held_by_name(collections)
    findings = []
    for name, expected in promised.items():
        found = seen.get(name)
        if found is None:
            detail = (
                f"collection {printable(name)!r} with {sum(count for _, count in expected)} embeddings is not there"
            )
        elif sorted(found, key=repr) != sorted(expected, key=repr):
            now = " and ".join(f"{count} embeddings of dimension {dimension}" for dimension, count in found)
            then = " and ".join(f"{count} of dimension {dimension}" for dimension, count in expected)
            detail = f"collection {printable(name)!r} has {now}, {then} were uploaded"
        else:
            continue
        findings.append(Finding("manifest.content_differs", "", detail))
    for name in seen.keys() - promised.keys():
        detail = f"collection {printable(name)!r} is there, but was not uploaded"
        findings.append(Finding("manifest.content_differs", "", detail))
    return findings


def _held_by_name(
    collections: Iterable[CollectionCount | ManifestCollection],
) -> dict[str, list[tuple[int | None, int]]]:
    """Dimension and count of the collections of each name."""
    held: dict[str, list[tuple[int | None, int]]] = {}
    for collection in collections:
        held.setdefault(collection.name, []).append((collection.dimension, collection.count))
    return held
