"""What lies below a prefix of a bucket: objects, versions, or whether there is anything at all. Part of `storage`."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any

from shared.client import translated
from shared.delta import MAX_FILES, DeltaFile, DeltaLocation, Listing
from shared.errors import StorageError

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client


@dataclass(frozen=True, slots=True)
class ObjectVersion:
    """One version of an object; a delete marker is one that has no bytes."""

    key: str
    version: str
    modified: datetime


class Enumeration:
    """The listings of a store.

    Args:
        client: A client made by `s3_client`.
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

    def walk(self, bucket: str, prefix: str, after: str = "") -> Iterator[tuple[str, DeltaFile]]:
        """Every object below a prefix in the order of its keys, two pages of 1,000 in memory at a time.

        Args:
            bucket: Where to look.
            prefix: What the keys begin with.
            after: The keys up to this one are left out, and cost no request.

        Yields:
            Key, and a `DeltaFile` whose name is that key.

        Raises:
            StorageError: A request failed.
        """
        request = {"Bucket": bucket, "Prefix": prefix}

        def fetch(token: dict[str, str]) -> Any:
            return self._call("listing", f"s3://{bucket}/{prefix}", self._client.list_objects_v2, request | token)

        page = fetch({"StartAfter": after} if after else {})
        if not page.get("IsTruncated"):
            yield from _entries(page)
            return
        # The next page is on its way while this one is worked on.
        ahead = ThreadPoolExecutor(1, thread_name_prefix="list")
        try:
            while page.get("IsTruncated"):
                following = ahead.submit(fetch, {"ContinuationToken": page["NextContinuationToken"]})
                yield from _entries(page)
                page = following.result()
            yield from _entries(page)
        finally:
            ahead.shutdown(wait=False, cancel_futures=True)

    def holds(self, bucket: str, prefix: str) -> bool:
        """Whether there is any object below a prefix.

        Raises:
            ObjectGone: There is no such bucket.
            StorageError: The request failed.
        """
        request = {"Bucket": bucket, "Prefix": prefix, "MaxKeys": 1}
        page = self._call("listing", f"s3://{bucket}/{prefix}", self._client.list_objects_v2, request)
        return bool(page.get("Contents"))

    def walk_versions(self, bucket: str, prefix: str) -> Iterator[ObjectVersion]:
        """Every version and delete marker of the objects below a prefix, in a bucket that keeps versions.

        Raises:
            StorageError: A request failed.
        """
        token: dict[str, str] = {}
        while True:
            request = {"Bucket": bucket, "Prefix": prefix, **token}
            what = f"s3://{bucket}/{prefix}"
            page = self._call("listing the versions of", what, self._client.list_object_versions, request)
            for entry in (*page.get("DeleteMarkers", []), *page.get("Versions", [])):
                yield ObjectVersion(entry["Key"], entry["VersionId"], entry["LastModified"])
            if not page.get("IsTruncated"):
                return
            token = {"KeyMarker": page["NextKeyMarker"], "VersionIdMarker": page["NextVersionIdMarker"]}

    @staticmethod
    def _call(doing: str, what: str, operation: Callable[..., Any], request: Mapping[str, Any]) -> Any:
        return translated(doing, what, lambda: operation(**request))


def _entries(page: Mapping[str, Any]) -> Iterator[tuple[str, DeltaFile]]:
    for entry in page.get("Contents", []):
        key = entry["Key"]
        yield key, DeltaFile(key, entry["Size"], entry["ETag"].strip('"'), entry["LastModified"])
