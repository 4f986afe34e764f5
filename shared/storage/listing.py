"""What lies below a prefix of a bucket: objects, versions, or whether there is anything at all. Part of `storage`."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from shared.model.delta import MAX_FILES, DeltaFile, DeltaLocation, Gathering, Listing, is_index_folder
from shared.model.errors import StorageError
from shared.storage.client import StoreClock, translated

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client


_PAGE_KEYS = 1000  # of ListObjectsV2
_MOST_ENTRIES = 100_000  # objects and folders on the levels of one delta: 100 requests or some more
_MOST_INDEXES = 1000  # folders that are named as an index is, each a request
_DELTAS_A_PAGE = 4  # so a listing of several costs at most a quarter of one each, and is given up then


@dataclass(frozen=True, slots=True)
class ObjectVersion:
    """One version of an object; a delete marker is one that has no bytes."""

    key: str
    version: str
    modified: datetime


@dataclass(frozen=True, slots=True)
class UnfinishedUpload:
    """An upload in parts that was begun and neither finished nor given up; `begun` is all that S3 dates it by."""

    key: str
    id: str
    begun: datetime


class Enumeration:
    """The listings of a store.

    Args:
        client: A client made by `s3_client`.
    """

    def __init__(self, client: S3Client) -> None:
        self._client = client
        self._clock = StoreClock()

    def now(self) -> datetime:
        """The store's time, in UTC: that of its latest answer to this object, and the seconds that passed since.

        Whatever compares a time that the store gave, such as that of an object's last modification, takes this one.

        Raises:
            StorageError: No request was answered yet, or this store tells no time (`Date`).
        """
        return self._clock.now()

    def list_delta(self, location: DeltaLocation, apart: str = "") -> Listing:
        """The objects of a delta, and what lies below it besides; an empty listing where nothing does.

        Where very many objects lie deeper (the file of a delta one level too high, above all the others), these are not
        read to their end: then only the levels are listed where a delta's own files lie.

        Args:
            location: Where it lies.
            apart: A prefix of the bucket below which no delta counts: that of the quarantine.

        Raises:
            StorageError: A request failed; the delta has more than `MAX_FILES` files of its own, or they cannot be told
                from what else lies there (`check.size_cap`, or `verdict.deltas_below` where other deltas do).
        """
        inside = apart and apart.startswith(location.prefix)
        gathering = Gathering(apart[len(location.prefix) :] if inside else "")
        with closing(self.walk(location.bucket, location.prefix)) as objects:
            for number, (key, file) in enumerate(objects):
                if number == MAX_FILES:
                    return self._listed_by_level(location, gathering)
                _gather(gathering, location, key, file)
        return gathering.listing()

    def _listed_by_level(self, location: DeltaLocation, seen: Gathering) -> Listing:
        """The listing of a delta with more objects below than are read: of its own level, and of its index folders."""
        gathering = Gathering()
        indexes: list[str] = []
        entries = 0

        def gather(prefix: str) -> None:
            nonlocal entries
            for key, file in self._level(location.bucket, prefix):
                entries += 1
                if entries > _MOST_ENTRIES or len(indexes) > _MOST_INDEXES:
                    raise _too_many(location, seen)
                if file is not None:
                    _gather(gathering, location, key, file)
                elif prefix == location.prefix and is_index_folder(key[len(prefix) : -1]):
                    indexes.append(key)

        gather(location.prefix)
        for index in indexes:
            gather(index)
        if gathering.overfull:
            raise _too_many(location, seen)
        return replace(gathering.listing(), below=seen.listing().below, unseen=True)

    def _level(self, bucket: str, prefix: str) -> Iterator[tuple[str, DeltaFile | None]]:
        """The objects directly below a prefix, and the prefixes (with None) of what lies deeper."""
        token: dict[str, str] = {}
        while True:
            request = {"Bucket": bucket, "Prefix": prefix, "Delimiter": "/", **token}
            page = self._call("listing", f"s3://{bucket}/{prefix}", self._client.list_objects_v2, request)
            yield from _entries(page)
            yield from ((entry["Prefix"], None) for entry in page.get("CommonPrefixes", []))
            if not page.get("IsTruncated"):
                return
            token = {"ContinuationToken": page["NextContinuationToken"]}

    def list_deltas(self, locations: Iterable[DeltaLocation]) -> dict[DeltaLocation, Listing]:
        """The objects of deltas, of those that lie side by side by one listing of the keys from the first to the last.

        It saves requests and must not be relied on: what it does not hold is listed by itself. Left out is a delta
        without objects or with too many, one that has few beside it, and one behind so many other keys that a listing
        of its own is cheaper.

        Raises:
            StorageError: A request failed.
        """
        side_by_side: dict[tuple[str, str], list[DeltaLocation]] = {}
        for location in locations:
            parent = location.prefix[: location.prefix.rstrip("/").rfind("/") + 1]
            side_by_side.setdefault((location.bucket, parent), []).append(location)
        listings: dict[DeltaLocation, Listing] = {}
        for (bucket, parent), group in side_by_side.items():
            pages = len(group) // _DELTAS_A_PAGE
            if parent and pages:
                ordered = sorted(group, key=lambda location: location.prefix)
                with closing(self.walk(bucket, parent, after=ordered[0].prefix)) as entries:
                    listings |= _parted(ordered, entries, pages * _PAGE_KEYS)
        return listings

    def walk(self, bucket: str, prefix: str, after: str = "") -> Generator[tuple[str, DeltaFile], None, None]:
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

    def unfinished_uploads(self, bucket: str, prefix: str) -> Iterator[UnfinishedUpload]:
        """The uploads in parts below a prefix that are not finished, in the order of their keys.

        Raises:
            StorageError: A request failed.
        """
        token: dict[str, str] = {}
        what = f"s3://{bucket}/{prefix}"
        while True:
            request = {"Bucket": bucket, "Prefix": prefix, **token}
            page = self._call("listing unfinished uploads below", what, self._client.list_multipart_uploads, request)
            for entry in page.get("Uploads", []):
                yield UnfinishedUpload(entry["Key"], entry["UploadId"], entry["Initiated"].astimezone(UTC))
            if not page.get("IsTruncated"):
                return
            token = {"KeyMarker": page["NextKeyMarker"], "UploadIdMarker": page["NextUploadIdMarker"]}

    def latest_part(self, bucket: str, upload: UnfinishedUpload, since: datetime) -> datetime:
        """When the latest part of an unfinished upload arrived, in UTC; when it was begun where there is none.

        Args:
            bucket: Where it is.
            upload: The upload.
            since: A part that is newer than this is taken for the latest, and no further parts are asked for.

        Raises:
            StorageError: A request failed; `NoSuchUpload` where it was finished or given up meanwhile.
        """
        latest = upload.begun
        token: dict[str, int] = {}
        what = f"s3://{bucket}/{upload.key}"
        while True:
            request = {"Bucket": bucket, "Key": upload.key, "UploadId": upload.id, **token}
            page = self._call("listing the parts of an upload to", what, self._client.list_parts, request)
            arrived: list[datetime] = [part["LastModified"].astimezone(UTC) for part in page.get("Parts", [])]
            latest = max([latest, *arrived])
            if latest > since or not page.get("IsTruncated"):
                return latest
            token = {"PartNumberMarker": page["NextPartNumberMarker"]}

    def _call(self, doing: str, what: str, operation: Callable[..., Any], request: Mapping[str, Any]) -> Any:
        answer = translated(doing, what, lambda: operation(**request))
        self._clock.note(answer)
        return answer


def _parted(
    ordered: Sequence[DeltaLocation], entries: Iterable[tuple[str, DeltaFile]], most: int
) -> dict[DeltaLocation, Listing]:
    """The listings of these deltas, as far as the first objects tell; deltas and objects are sorted by their keys.

    Nothing, where the objects turn out not to be: S3 does not sort those of a directory bucket.
    """
    listings: dict[DeltaLocation, Listing] = {}
    waiting = list(reversed(ordered))
    gathering = Gathering()
    found = False
    last = ""

    def end() -> None:
        nonlocal gathering, found
        location = waiting.pop()
        if found and not gathering.overfull:
            listings[location] = gathering.listing()
        gathering, found = Gathering(), False

    for seen, (key, file) in enumerate(entries):
        if key < last:
            return {}
        last = key
        while waiting and key > waiting[-1].prefix and not key.startswith(waiting[-1].prefix):
            end()
        if not waiting or seen == most:
            return listings
        if key.startswith(waiting[-1].prefix):
            found = _gather(gathering, waiting[-1], key, file) or found
    while waiting:
        end()
    return listings


def _gather(gathering: Gathering, location: DeltaLocation, key: str, file: DeltaFile) -> bool:
    """Takes an object into the listing of a delta, unless it is a folder marker, whose key is the prefix itself."""
    name = key.removeprefix(location.prefix)
    if name:
        gathering.add(DeltaFile(name, file.size, file.etag, file.modified))
    return bool(name)


def _too_many(location: DeltaLocation, seen: Gathering) -> StorageError:
    if seen.below:
        detail = f"{location.uri}: deltas lie below it, too many to tell its own files from theirs: scan judges each"
        return StorageError("verdict.deltas_below", detail, "TooManyObjects")
    detail = f"{location.uri}: too many objects to find those of one delta among them"
    return StorageError("check.size_cap", detail, "TooManyObjects")


def _entries(page: Mapping[str, Any]) -> Iterator[tuple[str, DeltaFile]]:
    for entry in page.get("Contents", []):
        key = entry["Key"]
        yield key, DeltaFile(key, entry["Size"], entry["ETag"].strip('"'), entry["LastModified"])
