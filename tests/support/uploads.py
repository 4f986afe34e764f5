"""What producers put into S3, and how S3's events reach the validator, piece by piece."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import quote_plus

import boto3

from shared.check.judgement import judge_folder
from shared.model.delta import is_chroma_file
from shared.model.manifest import Manifest, ManifestCollection, ManifestFile
from shared.model.settings import Settings
from shared.model.verdict import Depth
from shared.storage.folder import checksum_of


def files_of(folder: Path) -> dict[str, bytes]:
    """The files of a delta by their names."""
    found = {path.relative_to(folder).as_posix(): path for path in sorted(folder.rglob("*")) if path.is_file()}
    return {name: path.read_bytes() for name, path in found.items() if is_chroma_file(name)}


def manifest_of(folder: Path, batch_id: str | None = None, more: Iterable[str] = ()) -> bytes:
    """The manifest that the producer of this delta writes, with these files of its own besides Chroma's."""
    collections = judge_folder(folder, Depth.STRUCTURE, Settings()).verdict.collections
    return Manifest(
        batch_id=batch_id,
        chromadb="1.5.9",
        collections=tuple(ManifestCollection(name=c.name, dimension=c.dimension, count=c.count) for c in collections),
        files=tuple(
            ManifestFile(name=name, size=(folder / name).stat().st_size, crc64nvme=checksum_of(folder / name))
            for name in (*files_of(folder), *more)
        ),
    ).as_bytes()


def put(bucket: str, prefix: str, files: Mapping[str, bytes]) -> None:
    """Uploads these files in their order, with the checksums that a producer has S3 keep."""
    client = boto3.client("s3")
    for name, data in files.items():
        client.put_object(Bucket=bucket, Key=f"{prefix}/{name}", Body=data, ChecksumAlgorithm="CRC64NVME")


def stored(bucket: str, prefix: str = "") -> dict[str, bytes]:
    """Every object below a prefix, by its key."""
    client = boto3.client("s3")
    pages = client.get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=prefix)
    keys = [entry["Key"] for page in pages for entry in page.get("Contents", [])]
    return {key: client.get_object(Bucket=bucket, Key=key)["Body"].read() for key in keys}


def s3_event(bucket: str, *keys: str, name: str = "ObjectCreated:Put") -> dict[str, Any]:
    """An event of S3's about these keys."""
    records = [
        {
            "eventSource": "aws:s3",
            "eventName": name,
            "s3": {"bucket": {"name": bucket}, "object": {"key": quote_plus(key, safe="/")}},
        }
        for key in keys
    ]
    return {"Records": records}


def in_queue(*bodies: dict[str, Any], receives: int = 1) -> dict[str, Any]:
    """The event of a batch of SQS messages with these bodies."""
    records = [
        {
            "messageId": f"message-{number}",
            "receiptHandle": f"handle-{number}",
            "attributes": {"ApproximateReceiveCount": str(receives)},
            "eventSource": "aws:sqs",
            "eventSourceARN": "arn:aws:sqs:us-east-1:123456789012:deltas",
            "body": json.dumps(body),
        }
        for number, body in enumerate(bodies, 1)
    ]
    return {"Records": records}
