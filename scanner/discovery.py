"""Where deltas lie: from a prefix of a bucket, or a local folder, to the deltas at and below it.

A delta is found by its files' names alone, so one whose database is missing is found as well. Memory stays constant:
a page of a listing, and the names of the folders on the way to the current one.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from shared.delta import DeltaLocation, delta_prefix_of
from shared.errors import faults_explained

if TYPE_CHECKING:
    from shared.storage import Store


def find_stored(store: Store, bucket: str, prefix: str, skip: tuple[str, ...] = ()) -> Iterator[DeltaLocation]:
    """The deltas at and below a prefix, each once, from one listing.

    Args:
        store: Where they lie.
        bucket: Their bucket.
        prefix: Ends with `/`, or is empty for the whole bucket.
        skip: Prefixes (ending with `/`) below which nothing counts: those of quarantined deltas.

    Raises:
        StorageError: A request failed; `ObjectGone` when there is no such bucket.
    """
    keys = (key for key, _ in store.walk(bucket, prefix) if not key.startswith(skip))
    for found in _delta_prefixes(keys):
        if found.startswith(prefix):  # `prefix` may be the folder of an index, whose delta lies above it
            yield DeltaLocation(bucket, found)


def find_folders(path: Path) -> Iterator[Path]:
    """The folders at and below `path` that are deltas, each once, in the order of their names. Links are not followed.

    Raises:
        CouldNotCheck: A folder cannot be listed.
    """
    for found in _delta_prefixes(_keys_below(path)):
        yield path / found


def _keys_below(path: Path) -> Iterator[str]:
    """The files below a folder in the order of a listing, as keys that begin with `./`, so that none is without prefix.

    A folder may be deeper than Python may recurse.
    """
    waiting = ["./"]
    while waiting:
        key = waiting.pop()
        if not key.endswith("/"):
            yield key
            continue
        waiting += (key + name for name in sorted(_names_in(path / key), reverse=True))


def _names_in(folder: Path) -> list[str]:
    """The names in a folder, those of folders with a `/` at the end; none when it was removed since it was seen."""
    with faults_explained(f"listing {folder}"):
        try:
            with os.scandir(folder) as entries:
                return [entry.name + "/" * entry.is_dir(follow_symlinks=False) for entry in entries]
        except FileNotFoundError:
            return []


def _delta_prefixes(keys: Iterable[str]) -> Iterator[str]:
    """The prefix of every delta that these keys belong to, each once, when all keys below a prefix come in one run.

    The run of a delta may be interrupted by the runs of deltas below it: `a/0b3c.../header.bin`, `a/b/chroma.sqlite3`,
    `a/chroma.sqlite3`. So every prefix around the current key is remembered, and no other can come again.
    """
    around: list[str] = []
    for key in keys:
        around = [prefix for prefix in around if key.startswith(prefix)]
        found = delta_prefix_of(key)
        if found is not None and found not in around:
            around.append(found)
            yield found
