"""The only module that talks to S3. Every failure leaves here as one of `shared.errors`, never as a botocore error.

Retries are botocore's own (standard mode, five attempts), so nothing above this module repeats a request.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, cast

import boto3
from awscrt.checksums import crc64nvme
from boto3.s3.transfer import TransferConfig
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError

from shared.delta import MAX_FILES, DeltaFile, DeltaLocation, Listing
from shared.errors import CouldNotCheck, ObjectChanged, ObjectGone, StorageError, faults_explained
from shared.manifest import encode_checksum

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

_CHUNK = 1024 * 1024
_TRANSFER = TransferConfig(
    multipart_threshold=64 * 1024 * 1024, multipart_chunksize=64 * 1024 * 1024, use_threads=False
)
_GONE = {"NoSuchKey", "NoSuchBucket", "NotFound", "404", "NoSuchVersion"}
_CHANGED = {"PreconditionFailed", "412", "ConditionalRequestConflict"}
_DENIED = {"AccessDenied", "403", "Forbidden", "InvalidAccessKeyId", "SignatureDoesNotMatch", "ExpiredToken"}
_THROTTLED = {"SlowDown", "503", "Throttling", "ThrottlingException", "RequestLimitExceeded", "TooManyRequests"}


@dataclass(frozen=True, slots=True)
class StoredObject:
    """What the store says of one object. `crc64nvme` is None where it keeps none for the object as a whole."""

    size: int
    etag: str
    version: str | None
    crc64nvme: str | None


class Store:
    """S3, or a store that speaks its protocol.

    Args:
        client: A client made by `s3_client`, or one with the same retry and checksum settings.
    """

    def __init__(self, client: S3Client) -> None:
        self._client = client

    def list_delta(self, location: DeltaLocation) -> Listing:
        """The objects of a delta; an empty listing where there are none.

        Raises:
            StorageError: The listing failed, or is longer than `MAX_FILES` (`check.size_cap`).
        """
        files: list[DeltaFile] = []
        for key, file in self.walk(location.bucket, location.prefix):
            name = key.removeprefix(location.prefix)
            if name:  # a folder marker has the prefix itself as its key
                files.append(DeltaFile(name, file.size, file.etag, file.modified))
            if len(files) > MAX_FILES:
                detail = f"{location.uri}: more than {MAX_FILES} objects"
                raise StorageError("check.size_cap", detail, "TooManyObjects")
        return Listing.of(files)

    def walk(self, bucket: str, prefix: str) -> Iterator[tuple[str, DeltaFile]]:
        """Every object below a prefix in the order of its keys, a page of 1,000 in memory at a time.

        Yields:
            Key, and a `DeltaFile` whose name is that key.

        Raises:
            StorageError: A request failed.
        """
        token: dict[str, str] = {}
        while True:
            request = {"Bucket": bucket, "Prefix": prefix, **token}
            page = self._call("listing", f"s3://{bucket}/{prefix}", self._client.list_objects_v2, request)
            for entry in page.get("Contents", []):
                key = entry["Key"]
                yield key, DeltaFile(key, entry["Size"], entry["ETag"].strip('"'), entry["LastModified"])
            if not page.get("IsTruncated"):
                return
            token = {"ContinuationToken": page["NextContinuationToken"]}

    def head(self, bucket: str, key: str) -> StoredObject:
        """Size, ETag, version and stored checksum of an object.

        Raises:
            ObjectGone: It is not there.
            StorageError: The request failed.
        """
        request = {"Bucket": bucket, "Key": key, "ChecksumMode": "ENABLED"}
        answer = self._call("asking for", f"s3://{bucket}/{key}", self._client.head_object, request)
        # A composite checksum (multipart, older algorithms) is one of checksums, comparable to nothing.
        whole = answer.get("ChecksumType", "FULL_OBJECT") == "FULL_OBJECT"
        return StoredObject(
            answer["ContentLength"],
            answer["ETag"].strip('"'),
            answer.get("VersionId"),
            answer.get("ChecksumCRC64NVME") if whole else None,
        )

    def read(self, bucket: str, key: str, length: int, etag: str | None = None) -> bytes:
        """The first `length` bytes of an object (fewer where it is shorter).

        Raises:
            ObjectGone: It is not there.
            ObjectChanged: Its ETag is not `etag`.
            StorageError: The request failed.
        """
        request: dict[str, Any] = {"Bucket": bucket, "Key": key, "Range": f"bytes=0-{length - 1}"}
        if etag is not None:
            request["IfMatch"] = etag
        what = f"s3://{bucket}/{key}"
        try:
            body = self._call("reading", what, self._client.get_object, request)["Body"]
        except StorageError as error:
            if error.s3_code == "InvalidRange":  # an empty object has no first byte
                return b""
            raise
        with body:
            return cast(bytes, self._translated("reading", what, lambda: body.read(length)))

    def checksum(self, bucket: str, key: str, etag: str) -> str:
        """CRC-64/NVME of an object (base64), computed from its bytes, for a store that keeps none.

        Raises:
            ObjectGone: It is not there.
            ObjectChanged: Its ETag is not `etag`.
            StorageError: The request failed.
        """
        what = f"s3://{bucket}/{key}"
        request = {"Bucket": bucket, "Key": key, "IfMatch": etag}
        body = self._call("reading", what, self._client.get_object, request)["Body"]
        checksum = 0
        with body:
            while chunk := self._translated("reading", what, lambda: body.read(_CHUNK)):
                checksum = crc64nvme(chunk, checksum)
        return encode_checksum(checksum)

    def download(self, location: DeltaLocation, file: DeltaFile, target: Path) -> None:
        """Writes one file of a delta to `target`, which must not exist. The object must still be the one listed.

        Raises:
            ObjectGone: It is not there any more.
            ObjectChanged: It was overwritten since it was listed.
            StorageError: The request failed, or fewer or more bytes came than were listed.
            CouldNotCheck: The local disk refused.
        """
        key = location.key(file.name)
        what = f"s3://{location.bucket}/{key}"
        request = {"Bucket": location.bucket, "Key": key, "IfMatch": file.etag}
        body = self._call("downloading", what, self._client.get_object, request)["Body"]
        written = 0
        with body, faults_explained(f"writing {what} to the scratch folder"), target.open("xb") as output:
            while chunk := self._translated("downloading", what, lambda: body.read(_CHUNK)):
                written += len(chunk)
                if written > file.size:
                    break
                output.write(chunk)
        if written != file.size:
            detail = f"downloading {what}: {written} bytes came, {file.size} were listed"
            raise StorageError("check.storage", detail, "IncompleteBody")

    def upload(self, bucket: str, key: str, path: Path) -> None:
        """Uploads a file with its CRC-64/NVME, which S3 verifies and keeps, as one object or in parts.

        Raises:
            StorageError: A request failed; nothing is left of an upload in parts.
        """
        what = f"s3://{bucket}/{key}"
        extra = {"ChecksumAlgorithm": "CRC64NVME"}
        with faults_explained(f"reading {path.name} for upload"), path.open("rb") as source:
            stream: BinaryIO = source
            self._translated(
                "uploading",
                what,
                lambda: self._client.upload_fileobj(stream, bucket, key, ExtraArgs=extra, Config=_TRANSFER),
            )

    def put(self, bucket: str, key: str, data: bytes, *, only_if_absent: bool = False) -> bool:
        """Writes a small object. Returns False when `only_if_absent` and it is there already.

        Raises:
            StorageError: The request failed.
        """
        request: dict[str, Any] = {
            "Bucket": bucket,
            "Key": key,
            "Body": data,
            "ContentType": "application/json",
            "ChecksumAlgorithm": "CRC64NVME",
        }
        if only_if_absent:
            request["IfNoneMatch"] = "*"
        try:
            self._call("writing", f"s3://{bucket}/{key}", self._client.put_object, request)
        except ObjectChanged:
            return False
        return True

    def replace(self, bucket: str, key: str, data: bytes, etag: str) -> bool:
        """Overwrites a small object provided that it is still the one with this ETag. Returns whether it was.

        Raises:
            StorageError: The request failed.
        """
        request = {
            "Bucket": bucket,
            "Key": key,
            "Body": data,
            "ContentType": "application/json",
            "ChecksumAlgorithm": "CRC64NVME",
            "IfMatch": etag,
        }
        try:
            self._call("replacing", f"s3://{bucket}/{key}", self._client.put_object, request)
        except (ObjectChanged, ObjectGone):
            return False
        return True

    def copy(self, bucket: str, key: str, etag: str, to_bucket: str, to_key: str, size: int) -> None:
        """Copies one object inside the store, provided that it is still the one with this ETag.

        Raises:
            ObjectGone: It is not there.
            ObjectChanged: It is another one now.
            StorageError: A request failed.
        """
        what = f"s3://{bucket}/{key} to s3://{to_bucket}/{to_key}"
        source = {"Bucket": bucket, "Key": key}
        if size <= _SINGLE_COPY_BYTES:
            request = {
                "Bucket": to_bucket,
                "Key": to_key,
                "CopySource": source,
                "CopySourceIfMatch": etag,
                "ChecksumAlgorithm": "CRC64NVME",
                "TaggingDirective": "COPY",
            }
            self._call("copying", what, self._client.copy_object, request)
            return
        extra = {"CopySourceIfMatch": etag, "ChecksumAlgorithm": "CRC64NVME"}
        self._translated(
            "copying",
            what,
            lambda: self._client.copy(cast(Any, source), to_bucket, to_key, ExtraArgs=extra, Config=_TRANSFER),
        )

    def delete(self, bucket: str, key: str, etag: str) -> None:
        """Deletes an object provided that it is still the one with this ETag. One that is gone is no error.

        Raises:
            ObjectChanged: Another one lies there now; it was not deleted.
            StorageError: The request failed.
        """
        request = {"Bucket": bucket, "Key": key, "IfMatch": etag}
        try:
            self._call("deleting", f"s3://{bucket}/{key}", self._client.delete_object, request)
        except ObjectGone:
            return

    def tags(self, bucket: str, key: str) -> dict[str, str]:
        """The tags of an object.

        Raises:
            ObjectGone: It is not there.
            StorageError: The request failed.
        """
        request = {"Bucket": bucket, "Key": key}
        answer = self._call("reading the tags of", f"s3://{bucket}/{key}", self._client.get_object_tagging, request)
        return {tag["Key"]: tag["Value"] for tag in answer["TagSet"]}

    def set_tags(self, bucket: str, key: str, tags: Mapping[str, str]) -> None:
        """Replaces the tags of an object by these.

        Raises:
            ObjectGone: It is not there.
            StorageError: The request failed.
        """
        tagging = {"TagSet": [{"Key": name, "Value": value} for name, value in tags.items()]}
        request = {"Bucket": bucket, "Key": key, "Tagging": tagging}
        self._call("tagging", f"s3://{bucket}/{key}", self._client.put_object_tagging, request)

    def _call(self, doing: str, what: str, operation: Callable[..., Any], request: Mapping[str, Any]) -> Any:
        return self._translated(doing, what, lambda: operation(**request))

    @staticmethod
    def _translated(doing: str, what: str, action: Callable[[], Any]) -> Any:
        try:
            return action()
        except ClientError as error:
            raise _storage_error(doing, what, error) from error
        except CouldNotCheck:
            raise
        except (BotoCoreError, OSError) as error:
            raise StorageError("check.storage", f"{doing} {what}: {error}", type(error).__name__) from error


_SINGLE_COPY_BYTES = (
    5 * 1024**3
)  # CopyObject's limit, https://docs.aws.amazon.com/AmazonS3/latest/API/API_CopyObject.html


def current_store() -> Store:
    """The store of the current environment; the same one as long as endpoint, region and credentials stay the same.

    Raises:
        StorageError: The environment does not say enough to reach one.
    """
    return _store_for(tuple(os.environ.get(name) for name in _CLIENT_VARIABLES))


@lru_cache(maxsize=4)
def _store_for(_environment: tuple[str | None, ...]) -> Store:
    return Store(s3_client())


_CLIENT_VARIABLES = (
    "AWS_ENDPOINT_URL",
    "AWS_ENDPOINT_URL_S3",
    "AWS_REGION",
    "AWS_DEFAULT_REGION",
    "AWS_PROFILE",
    "AWS_CONFIG_FILE",
    "AWS_SHARED_CREDENTIALS_FILE",
    "AWS_ACCESS_KEY_ID",
    "AWS_SECRET_ACCESS_KEY",
    "AWS_SESSION_TOKEN",
)


def s3_client() -> S3Client:
    """An S3 client for the current environment, with the retries and checksum rules that `Store` counts on.

    Raises:
        StorageError: The environment does not say enough to make one (no region, a broken profile, ...).
    """
    config = Config(
        retries={"mode": "standard", "total_max_attempts": 5},
        connect_timeout=5,
        read_timeout=60,
        max_pool_connections=64,
        # A range read may carry the whole object's checksum, which botocore would compare with the part's.
        response_checksum_validation="when_required",
    )
    try:
        return boto3.Session().client("s3", config=config)
    except (BotoCoreError, ValueError) as error:
        raise StorageError("check.storage", f"making an S3 client: {error}", type(error).__name__) from error


def _storage_error(doing: str, what: str, error: ClientError) -> StorageError:
    answer = error.response.get("Error", {})
    code, message = answer.get("Code", "Unknown"), answer.get("Message", "")
    detail = f"{doing} {what}: {code}: {message}".rstrip(": ")
    if code in _GONE:
        return ObjectGone("check.gone", detail, code)
    if code in _CHANGED:
        return ObjectChanged("check.changed", detail, code)
    if code in _DENIED:
        return StorageError("check.access_denied", detail, code)
    return StorageError("check.throttled" if code in _THROTTLED else "check.storage", detail, code)
