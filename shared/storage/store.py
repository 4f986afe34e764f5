"""The only module that talks to S3. Failures leave here as errors of `shared.model.errors`, never as botocore's.

Some stores that speak S3's protocol ignore conditions (`If-Match`) without a word. So the ETag that came with the bytes
is compared again here, and a delete looks before it acts where a trial has shown that its condition counts for nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast
from urllib.parse import urlencode

from awscrt.checksums import crc64nvme
from boto3.s3.transfer import TransferConfig

from shared.model.deadline import UNLIMITED, Deadline
from shared.model.delta import DeltaFile, DeltaLocation, StoredObject
from shared.model.errors import ObjectChanged, ObjectGone, StorageError, faults_explained
from shared.model.manifest import encode_checksum
from shared.storage.client import CONDITION_UNKNOWN, client_variables, may_have_been_done, s3_client, translated
from shared.storage.deletion import CONDITION_TRIAL, TRIAL_TEXT, Deletion
from shared.storage.listing import Enumeration, ObjectVersion
from shared.storage.transfer import upload_file

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

_CHUNK = 1024 * 1024
_SINGLE_COPY_BYTES = 5 * 1024**3  # https://docs.aws.amazon.com/AmazonS3/latest/API/API_CopyObject.html
_OF_OBJECTS = frozenset({"etag", "last-modified"})  # headers that come with an object and not with its tags
_TRANSFER = TransferConfig(
    multipart_threshold=64 * 1024 * 1024, multipart_chunksize=16 * 1024 * 1024, use_threads=False
)


class Store(Enumeration):
    """S3, or a store that speaks its protocol.

    Args:
        client: A client made by `s3_client`, or one with the same retry and checksum settings.
    """

    def __init__(self, client: S3Client) -> None:
        super().__init__(client)
        self._deletion = Deletion(client, self.head)
        self._keeping_tags: set[str] = set()  # buckets

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
            body = self._body("reading", what, request)
        except StorageError as error:
            if error.s3_code == "InvalidRange":  # an empty object has no first byte
                return b""
            raise
        with body:
            return cast(bytes, translated("reading", what, lambda: body.read(length)))

    def read_whole(self, bucket: str, key: str, size: int, etag: str) -> bytes:
        """A small object, at most one byte more than `size`. Where the store keeps its checksum, botocore compares it.

        Raises:
            ObjectGone: It is not there.
            ObjectChanged: Its ETag is not `etag`.
            StorageError: The request failed, or other bytes came than are stored.
        """
        what = f"s3://{bucket}/{key}"
        body = self._body("reading", what, {"Bucket": bucket, "Key": key, "IfMatch": etag, "ChecksumMode": "ENABLED"})
        with body:
            data = cast(bytes, translated("reading", what, lambda: body.read(size + 1)))
            # The comparison is made at the end of the body.
            return data + cast(bytes, translated("reading", what, lambda: body.read(1)))

    def checksum(self, bucket: str, key: str, etag: str, deadline: Deadline = UNLIMITED) -> str:
        """CRC-64/NVME of an object (base64), computed from its bytes, for a store that keeps none.

        Raises:
            ObjectGone: It is not there.
            ObjectChanged: Its ETag is not `etag`.
            StorageError: The request failed.
            CouldNotCheck: The deadline passed (`check.timeout`).
        """
        what = f"s3://{bucket}/{key}"
        request = {"Bucket": bucket, "Key": key, "IfMatch": etag}
        body = self._body("reading", what, request)
        checksum = 0
        with body:
            while chunk := translated("reading", what, lambda: body.read(_CHUNK)):
                deadline.check(f"reading {what}")
                checksum = crc64nvme(chunk, checksum)
        return encode_checksum(checksum)

    def proven_checksum(self, bucket: str, key: str, stored: StoredObject) -> str:
        """CRC-64/NVME of an object (base64): as S3 keeps it, else computed from its bytes.

        A store that ignores conditions may keep what it was told or what it copied, so its word alone proves nothing.

        Raises:
            ObjectGone: It is not there.
            ObjectChanged: It is no longer the one that `head` told of.
            StorageError: The request failed.
        """
        kept = stored.crc64nvme if self._deletion.heeds_conditions is not False else None
        return kept or self.checksum(bucket, key, stored.etag)

    def download(self, location: DeltaLocation, file: DeltaFile, target: Path, deadline: Deadline = UNLIMITED) -> None:
        """Writes one file of a delta to `target`, which must not exist. The object must still be the one listed.

        Where the store keeps a checksum of the object, botocore compares it with what came.

        Raises:
            ObjectGone: It is not there any more.
            ObjectChanged: It was overwritten since it was listed.
            StorageError: The request failed, or other bytes came, fewer or more, than are stored.
            CouldNotCheck: The local disk refused, or the deadline passed (`check.timeout`).
        """
        key = location.key(file.name)
        what = f"s3://{location.bucket}/{key}"
        request = {"Bucket": location.bucket, "Key": key, "IfMatch": file.etag, "ChecksumMode": "ENABLED"}
        body = self._body("downloading", what, request)
        written = 0
        with body, faults_explained(f"writing {what} to the scratch folder"), target.open("xb") as output:
            while chunk := translated("downloading", what, lambda: body.read(_CHUNK)):
                deadline.check(f"downloading {what}")
                written += len(chunk)
                if written > file.size:
                    break
                output.write(chunk)
        if written != file.size:
            detail = f"downloading {what}: {written} bytes came, {file.size} were listed"
            raise StorageError("check.storage", detail, "IncompleteBody")

    def upload(self, bucket: str, key: str, source: Path | bytes, *, only_if_absent: bool = False) -> StoredObject:
        """Uploads a file, or bytes, with the CRC-64/NVME, which S3 verifies and keeps, as one object or in parts.

        Args:
            bucket: Where to.
            key: Under which key.
            source: The file, or all of its bytes.
            only_if_absent: Whether nothing may lie there. A store that does not know the condition is asked before.

        Returns:
            What was written, as the store answered.

        Raises:
            ObjectChanged: Something lies there, perhaps from an earlier try whose answer was lost.
            StorageError: A request failed; nothing is left of an upload in parts.
            CouldNotCheck: The file cannot be read.
        """
        condition = {"IfNoneMatch": "*"} if only_if_absent and self._deletion.heeds_conditions is not False else {}
        place = {"Bucket": bucket, "Key": key}
        if only_if_absent and not condition:
            self._must_be_absent(bucket, key)
        try:
            return upload_file(self._client, place, source, _TRANSFER, condition)
        except StorageError as error:
            if not condition or error.s3_code not in CONDITION_UNKNOWN:
                raise
            self._must_be_absent(bucket, key)
            return upload_file(self._client, place, source, _TRANSFER, {})

    def _must_be_absent(self, bucket: str, key: str) -> None:
        if self._deletion.look(bucket, key) is not None:
            raise ObjectChanged("check.changed", f"writing s3://{bucket}/{key}: it is there already", "IfNoneMatch")

    def put(self, bucket: str, key: str, data: bytes, *, only_if_absent: bool = False) -> bool:
        """Writes a small object. Returns False when `only_if_absent` and another one is there already.

        A write that took effect although its answer was lost counts as written: what lies there is compared. Whoever
        must know which of two writers it was gives them different bytes.

        Raises:
            StorageError: The request failed.
        """
        request = _small_object(bucket, key, data)
        condition = {"IfNoneMatch": "*"} if only_if_absent else {}
        try:
            self._call("writing", f"s3://{bucket}/{key}", self._client.put_object, request | condition)
        except StorageError as error:
            if only_if_absent and error.s3_code in CONDITION_UNKNOWN:
                return self._deletion.look(bucket, key) is None and self.put(bucket, key, data)
            return self._was_written(bucket, key, data, error)
        return True

    def replace(self, bucket: str, key: str, data: bytes, etag: str) -> bool:
        """Overwrites a small object provided that it is still the one with this ETag. Returns whether it was.

        As with `put`, what lies there is compared where an answer may have been lost.

        Raises:
            StorageError: The request failed.
        """
        request = _small_object(bucket, key, data) | {"IfMatch": etag}
        try:
            self._call("replacing", f"s3://{bucket}/{key}", self._client.put_object, request)
        except StorageError as error:
            return self._was_written(bucket, key, data, error)
        return True

    def _was_written(self, bucket: str, key: str, data: bytes, error: StorageError) -> bool:
        """Whether a write that failed so was done nevertheless. False where its condition did not hold.

        Raises:
            StorageError: That error: the write failed for another reason, or it cannot be told.
        """
        try:
            if may_have_been_done(error) and self.read(bucket, key, len(data) + 1) == data:
                return True
        except ObjectGone:
            pass
        except StorageError:
            raise error from error.__cause__
        if isinstance(error, (ObjectChanged, ObjectGone)):
            return False
        raise error

    def copy(
        self,
        bucket: str,
        key: str,
        etag: str,
        to_bucket: str,
        to_key: str,
        size: int,
        *,
        tags: Mapping[str, str] | None = None,
        only_if_absent: bool = False,
    ) -> None:
        """Copies one object inside the store, provided that it is still the one with this ETag.

        Args:
            bucket: Where it lies.
            key: Its key.
            etag: Its ETag.
            to_bucket: Where the copy goes.
            to_key: The copy's key.
            size: Its bytes: those of more than 5 GiB are copied in parts.
            tags: The copy's tags; None keeps the object's own.
            only_if_absent: Whether nothing may lie under the copy's key.

        Raises:
            ObjectGone: It is not there.
            ObjectChanged: It is another one now, or something lies under the copy's key.
            StorageError: A request failed.
        """
        what = f"s3://{bucket}/{key} to s3://{to_bucket}/{to_key}"
        conditions_count = self._deletion.heeds_conditions is not False
        if only_if_absent and not conditions_count:
            self._must_be_absent(to_bucket, to_key)
        source = {"Bucket": bucket, "Key": key}
        extra: dict[str, Any] = {"CopySourceIfMatch": etag, "ChecksumAlgorithm": "CRC64NVME"}
        if only_if_absent and conditions_count:
            extra["IfNoneMatch"] = "*"
        if tags is not None:
            extra |= {"TaggingDirective": "REPLACE", "Tagging": urlencode(tags)}
        try:
            if size <= _SINGLE_COPY_BYTES:
                request = {
                    "Bucket": to_bucket,
                    "Key": to_key,
                    "CopySource": source,
                    "TaggingDirective": "COPY",
                    **extra,
                }
                self._call("copying", what, self._client.copy_object, request)
                return
            copying: dict[str, Any] = {"ExtraArgs": extra, "Config": _TRANSFER}
            translated("copying", what, lambda: self._client.copy(cast(Any, source), to_bucket, to_key, **copying))
        except StorageError as error:
            if not (only_if_absent and may_have_been_done(error) and self._is_copy(source, etag, to_bucket, to_key)):
                raise

    def _is_copy(self, source: Mapping[str, str], etag: str, to_bucket: str, to_key: str) -> bool:
        """Whether an object has the bytes of another one. False where that cannot be told."""
        try:
            original, copy = self.head(source["Bucket"], source["Key"]), self.head(to_bucket, to_key)
            if (original.etag, original.size) != (etag, copy.size):
                return False
            expected = self.proven_checksum(source["Bucket"], source["Key"], original)
            return expected == self.proven_checksum(to_bucket, to_key, copy)
        except StorageError:
            return False

    def conditional_deletes(self, bucket: str, prefix: str) -> bool:
        """Whether this store heeds the condition of a delete; tried once, on an object of our own that stays there.

        Args:
            bucket: Where to try.
            prefix: Below which the object lies.

        Raises:
            StorageError: It could not be tried.
        """
        if self._deletion.heeds_conditions is None:
            self.put(bucket, prefix + CONDITION_TRIAL, TRIAL_TEXT, only_if_absent=True)
            self._deletion.try_condition(bucket, prefix + CONDITION_TRIAL)
        return bool(self._deletion.heeds_conditions)

    def delete(self, bucket: str, key: str, etag: str) -> None:
        """Deletes an object provided that it is still the one with this ETag. One that is gone is no error.

        Raises:
            ObjectChanged: Another one lies there now; it was not deleted.
            StorageError: The request failed.
        """
        self._deletion.delete(bucket, key, etag)

    def delete_version(self, bucket: str, version: ObjectVersion) -> None:
        """Deletes one version of an object, or a delete marker, for good.

        Raises:
            StorageError: The request failed; `check.access_denied` where a retention or a legal hold forbids it.
        """
        what = f"version {version.version} of s3://{bucket}/{version.key}"
        request = {"Bucket": bucket, "Key": version.key, "VersionId": version.version}
        self._call("deleting", what, self._client.delete_object, request)

    def tags(self, bucket: str, key: str, version: str | None = None) -> dict[str, str]:
        """The tags of an object, or of this version of it.

        Raises:
            ObjectGone: It is not there.
            StorageError: The request failed, or this store keeps no tags (`NotImplemented`).
        """
        request = _version_of(bucket, key, version)
        what = f"s3://{bucket}/{key}"
        answer = self._call("reading the tags of", what, self._client.get_object_tagging, request)
        # A store without tags overlooks the question for them and answers with the object, which may look like tags.
        if "TagSet" not in answer or _OF_OBJECTS & answer["ResponseMetadata"]["HTTPHeaders"].keys():
            detail = f"reading the tags of {what}: this store keeps no tags, it answered with the object"
            raise StorageError("check.storage", detail, "NotImplemented")
        self._keeping_tags.add(bucket)
        return {tag["Key"]: tag["Value"] for tag in answer["TagSet"]}

    def set_tags(self, bucket: str, key: str, tags: Mapping[str, str], version: str | None = None) -> None:
        """Replaces the tags of an object, or of this version of it, by these.

        A store that keeps none would take them for the object and overwrite it. So nothing is sent before this bucket
        has answered with tags.

        Raises:
            ObjectGone: It is not there.
            StorageError: The request failed, or this store keeps no tags (`NotImplemented`).
        """
        if bucket not in self._keeping_tags:
            self.tags(bucket, key)
        tagging = {"TagSet": [{"Key": name, "Value": value} for name, value in tags.items()]}
        request = _version_of(bucket, key, version) | {"Tagging": tagging}
        self._call("tagging", f"s3://{bucket}/{key}", self._client.put_object_tagging, request)

    def _body(self, doing: str, what: str, request: Mapping[str, Any]) -> Any:
        """The body of an object, which must have the ETag that the request names, if it names one."""
        answer = self._call(doing, what, self._client.get_object, request)
        if answer["ETag"].strip('"') != request.get("IfMatch", answer["ETag"]).strip('"'):
            answer["Body"].close()
            raise ObjectChanged("check.changed", f"{doing} {what}: it has another ETag than when it was listed", "ETag")
        return answer["Body"]


def _version_of(bucket: str, key: str, version: str | None) -> dict[str, Any]:
    return {"Bucket": bucket, "Key": key} | ({} if version is None else {"VersionId": version})


def _small_object(bucket: str, key: str, data: bytes) -> dict[str, Any]:
    types = {"ContentType": "application/json", "ChecksumAlgorithm": "CRC64NVME"}
    return {"Bucket": bucket, "Key": key, "Body": data, **types}


def current_store() -> Store:
    """The store of the current environment; the same one as long as endpoint, region and credentials stay the same.

    Raises:
        StorageError: The environment does not say enough to reach one.
    """
    return _store_for(client_variables())


@lru_cache(maxsize=4)
def _store_for(_environment: tuple[str | None, ...]) -> Store:
    return Store(s3_client())
