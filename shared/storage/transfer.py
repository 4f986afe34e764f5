"""Uploads of files that heed a condition, which boto3's own transfers do not pass on. Part of `storage`."""

from __future__ import annotations

import io
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from awscrt.checksums import crc64nvme
from boto3.s3.transfer import TransferConfig

from shared.model.delta import StoredObject
from shared.model.errors import StorageError, faults_explained
from shared.model.manifest import encode_checksum
from shared.storage.client import translated

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

_MOST_PARTS = 10_000  # https://docs.aws.amazon.com/AmazonS3/latest/userguide/qfacts.html
_CHECKSUM: Mapping[str, Any] = {"ChecksumAlgorithm": "CRC64NVME"}


def upload_file(
    client: S3Client,
    place: Mapping[str, str],
    source: Path | bytes,
    config: TransferConfig,
    condition: Mapping[str, str],
) -> StoredObject:
    """Uploads a file, or bytes, with the CRC-64/NVME, as one object or in parts.

    Args:
        client: A client made by `s3_client`.
        place: `Bucket` and `Key`.
        source: The file, or all of its bytes.
        config: From which size on, and in parts of which size, of which one is in memory at a time.
        condition: `IfNoneMatch` or `IfMatch`; S3 looks at it when the object comes into being.

    Returns:
        What was written, as the store answered.

    Raises:
        ObjectChanged: The condition did not hold.
        StorageError: A request failed.
        CouldNotCheck: The file cannot be read.
    """
    what = f"s3://{place['Bucket']}/{place['Key']}"
    name = source.name if isinstance(source, Path) else "bytes"
    with faults_explained(f"reading {name} for upload"):
        size = source.stat().st_size if isinstance(source, Path) else len(source)
        part_bytes = max(config.multipart_chunksize, -(-size // _MOST_PARTS))
        with source.open("rb") if isinstance(source, Path) else io.BytesIO(source) as body:
            if size >= config.multipart_threshold:
                answer = _in_parts(client, what, place, body, part_bytes, condition)
            else:
                request: dict[str, Any] = {**place, "Body": body, **_CHECKSUM, **condition}
                answer = translated("uploading", what, lambda: client.put_object(**request))
    return StoredObject(size, answer["ETag"].strip('"'), answer.get("VersionId"), answer.get("ChecksumCRC64NVME"))


def _in_parts(
    client: S3Client, what: str, place: Mapping[str, str], body: BinaryIO, part_bytes: int, condition: Mapping[str, str]
) -> Any:
    """S3 verifies the checksum of each part, and that of the whole object at the end. A failure leaves no parts."""

    def made(operation: Any, **request: Any) -> Any:
        return translated("uploading", what, lambda: operation(**place, **request))

    upload = {"UploadId": made(client.create_multipart_upload, **_CHECKSUM)["UploadId"]}
    try:
        parts: list[dict[str, Any]] = []
        whole = 0
        while data := body.read(part_bytes):
            number, whole = len(parts) + 1, crc64nvme(data, whole)
            answer = made(client.upload_part, **upload, **_CHECKSUM, PartNumber=number, Body=data)
            checksum = encode_checksum(crc64nvme(data))
            parts.append({"PartNumber": number, "ETag": answer["ETag"], "ChecksumCRC64NVME": checksum})
        end = {"MultipartUpload": {"Parts": parts}, "ChecksumCRC64NVME": encode_checksum(whole), **condition}
        return made(client.complete_multipart_upload, **upload, **end)
    except BaseException as failure:
        try:
            made(client.abort_multipart_upload, **upload)
        except StorageError as error:
            failure.add_note(f"The parts of {what} are left: {error}")
        raise
