"""The compaction of before: what the new one is measured against, and what the incident is shown with.

A client for each delta, `get` in thousands, `upsert` into the target, and no look at anything before or after.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

_ROWS = 1000


class OldMerge:
    """One merge in the old way.

    Args:
        s3: A client.
        bucket: Where deltas and intermediates lie.
        collection: The one collection that everything goes into.

    Attributes:
        merged: How many embeddings were written so far, which are lost when it fails.
    """

    def __init__(self, s3: S3Client, bucket: str, collection: str = "words") -> None:
        self._s3 = s3
        self._bucket = bucket
        self._collection = collection
        self.merged = 0

    def run(self, keys: Sequence[str], to_key: str) -> None:
        """Merges the deltas under these keys, one after the other, and uploads the result.

        Raises:
            Exception: Whatever Chroma or S3 raise; the merge is over then, however far it had come.
        """
        with tempfile.TemporaryDirectory(prefix="old-merge-") as scratch:
            directory = Path(scratch) / "merged"
            with self.begun(directory) as merge:
                for key in keys:
                    merge(key)
            for path in sorted(directory.rglob("*")):
                if path.is_file():
                    name = path.relative_to(directory).as_posix()
                    self._s3.upload_file(str(path), self._bucket, f"{to_key}/{name}")

    @contextmanager
    def begun(self, directory: Path) -> Iterator[Callable[[str], None]]:
        """Opens the directory that everything goes into. The block gets what merges the delta under one more key."""
        with _client(directory) as client:
            target = client.get_or_create_collection(self._collection, embedding_function=None)
            yield lambda key: self._merge(key, target, directory.parent)

    def _merge(self, key: str, target: Any, scratch: Path) -> None:
        folder = Path(tempfile.mkdtemp(dir=scratch))
        prefix = f"{key}/"
        for entry in self._s3.list_objects_v2(Bucket=self._bucket, Prefix=prefix)["Contents"]:
            path = folder / entry["Key"].removeprefix(prefix)
            path.parent.mkdir(exist_ok=True)
            self._s3.download_file(self._bucket, entry["Key"], str(path))
        with _client(folder) as client:
            source = client.get_collection(self._collection, embedding_function=None)
            for offset in range(0, source.count(), _ROWS):
                page = source.get(limit=_ROWS, offset=offset, include=["embeddings", "documents", "metadatas"])
                target.upsert(
                    ids=page["ids"],
                    embeddings=page["embeddings"],
                    documents=page["documents"],
                    metadatas=page["metadatas"],
                )
                self.merged += len(page["ids"])
        shutil.rmtree(folder)


def _client(directory: Path) -> Any:
    import chromadb  # noqa: PLC0415 -- half a second, for those who merge only
    from chromadb.config import Settings  # noqa: PLC0415

    return chromadb.PersistentClient(path=directory, settings=Settings(anonymized_telemetry=False))
