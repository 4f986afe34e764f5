"""A delete that never takes a newer upload, also in a store that ignores conditions."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from shared.model.delta import StoredObject
from shared.model.errors import ObjectChanged, ObjectGone, StorageError
from shared.storage.client import CONDITION_UNKNOWN, translated

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

CONDITION_TRIAL = ".deltaguard/conditional-delete"
"""Name, below the quarantine prefix, of the object on which the condition of a delete is tried."""

TRIAL_TEXT = b"Deltaguard tries here whether this store heeds the condition of a delete. Leave it.\n"
_ETAG_OF_NOTHING = "0" * 32


class Deletion:
    """Deletes of one store.

    Args:
        client: Its client.
        head: Asks for an object, as `shared.storage.store.Store.head` does.
    """

    def __init__(self, client: S3Client, head: Callable[[str, str], StoredObject]) -> None:
        self._client = client
        self._head = head
        self.heeds_conditions: bool | None = None
        """Whether the store heeds the condition of a delete; None as long as it was not tried."""

    def try_condition(self, bucket: str, key: str) -> None:
        """Tries to delete an object of our own on a condition that never holds, and learns from the answer.

        S3 refuses. A store that deletes it nevertheless would as well delete a newer upload in the place of the one
        that was judged.

        Raises:
            StorageError: It could not be tried.
        """
        try:
            self._delete("trying the condition of a delete on", bucket, key, IfMatch=_ETAG_OF_NOTHING)
            self.heeds_conditions = False
        except (ObjectChanged, ObjectGone):  # gone: removed by somebody; a store that ignores the condition is content
            self.heeds_conditions = True
        except StorageError as error:
            self._learn_from(error)

    def delete(self, bucket: str, key: str, etag: str) -> None:
        """Deletes an object provided that it is still the one with this ETag. One that is gone is no error.

        In a bucket with versions this leaves a delete marker, on purpose. S3 compares the ETag with the *current*
        version and writes the marker in one step (https://docs.aws.amazon.com/AmazonS3/latest/userguide/
        conditional-deletes.html), so the marker never hides a newer upload; the version below it is kept, and no older
        one becomes current again, as it would if the version itself were deleted.

        A store that ignores the condition is asked for the ETag right before. There the exact version is deleted where
        it has versions: between the look and the delete an upload may come, which a marker would hide.

        Raises:
            ObjectChanged: Another one lies there now; it was not deleted.
            StorageError: The request failed.
        """
        if self.heeds_conditions is not False:
            try:
                self._delete("deleting", bucket, key, IfMatch=etag)
                return
            except ObjectGone:
                return
            except ObjectChanged as error:
                # S3 also answers so when a delete marker lies there, as an earlier try of this very request leaves it,
                # and when another request came between.
                if self.look(bucket, key, etag) is None:
                    return
                raise StorageError("check.storage", f"{error}; nothing changed, try again", error.s3_code) from error
            except StorageError as error:
                self._learn_from(error)
        stored = self.look(bucket, key, etag)
        if stored is None:
            return
        if stored.version in (None, "null"):
            self._delete("deleting", bucket, key)
        else:
            self._delete("deleting", bucket, key, VersionId=stored.version)

    def look(self, bucket: str, key: str, etag: str | None = None) -> StoredObject | None:
        """What lies there; None where nothing does.

        Raises:
            ObjectChanged: It has another ETag than this one.
            StorageError: The request failed.
        """
        try:
            stored = self._head(bucket, key)
        except ObjectGone:
            return None
        if etag not in (None, stored.etag):
            raise ObjectChanged("check.changed", f"s3://{bucket}/{key}: another object lies there now", "ETag")
        return stored

    def _learn_from(self, error: StorageError) -> None:
        if error.s3_code not in CONDITION_UNKNOWN:
            raise error
        self.heeds_conditions = False

    def _delete(self, doing: str, bucket: str, key: str, **condition: str) -> None:
        what = f"s3://{bucket}/{key}"
        translated(doing, what, lambda: self._client.delete_object(Bucket=bucket, Key=key, **condition))  # type: ignore[arg-type]
