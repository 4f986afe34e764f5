"""A store that looks, before it writes, whether it still may."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from shared.model.delta import StoredObject
from shared.storage.store import Store


class GuardedStore(Store):
    """A store whose writes come after a check. Deletes do not: they are conditional on what was written, and undo it.

    Args:
        store: The store behind it.
        checks: Each raises when nothing may be written any more.
    """

    def __init__(self, store: Store, *checks: Callable[[], None]) -> None:
        super().__init__(store._client)
        self._checks = checks

    def upload(self, bucket: str, key: str, source: Path | bytes, *, only_if_absent: bool = False) -> StoredObject:
        """Uploads as any store does."""
        self._check()
        return super().upload(bucket, key, source, only_if_absent=only_if_absent)

    def put(self, bucket: str, key: str, data: bytes, *, only_if_absent: bool = False) -> bool:
        """Writes as any store does."""
        self._check()
        return super().put(bucket, key, data, only_if_absent=only_if_absent)

    def replace(self, bucket: str, key: str, data: bytes, etag: str) -> bool:
        """Replaces as any store does."""
        self._check()
        return super().replace(bucket, key, data, etag)

    def _check(self) -> None:
        for check in self._checks:
            check()
