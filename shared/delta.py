"""A delta as it lies in a store: its location, its listing and the fingerprint of that. Plain values, no I/O."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property

from shared.errors import TargetError

DATABASE = "chroma.sqlite3"
MANIFEST = "delta.manifest.json"
JOURNALS = ("chroma.sqlite3-journal", "chroma.sqlite3-wal", "chroma.sqlite3-shm")
SEGMENT_FILES = ("data_level0.bin", "header.bin", "index_metadata.pickle", "length.bin", "link_lists.bin")

MAX_FILES = 20_000
"""A delta has five files a collection and one database; a listing longer than this is not read to its end."""

MAX_NAME_BYTES = 128
"""Bytes of the longest name that a delta may own; Chroma's own have at most 58."""

_UUID = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}")
BUCKET_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{1,61}[a-z0-9]")


@dataclass(frozen=True, slots=True)
class DeltaFile:
    """One file of a delta.

    Args:
        name: Path below the delta's prefix, `/` between its parts.
        size: Bytes.
        etag: The ETag without quotes; for a local file, its modification time in nanoseconds.
        modified: Last modification, with a time zone.
    """

    name: str
    size: int
    etag: str
    modified: datetime


@dataclass(frozen=True, slots=True)
class StoredObject:
    """What the store says of one object. `crc64nvme` is None where it keeps none for the object as a whole."""

    size: int
    etag: str
    version: str | None
    crc64nvme: str | None


@dataclass(frozen=True)
class Listing:
    """What lies under the prefix of one delta: its own files, and the others, which belong to somebody else.

    Args:
        files: The files that the delta owns (see `is_own_file`), sorted by name.
        others: All other objects below the prefix, sorted by name. They are never read, moved or deleted.
    """

    files: tuple[DeltaFile, ...]
    others: tuple[DeltaFile, ...] = ()

    @classmethod
    def of(cls, files: Iterable[DeltaFile]) -> Listing:
        """A listing of the objects below a prefix, in any order, each parted by its name into own and others."""
        ordered = sorted(files, key=lambda file: file.name)
        own = tuple(file for file in ordered if is_own_file(file.name))
        return cls(own, tuple(file for file in ordered if not is_own_file(file.name)))

    def owning(self, names: Iterable[str]) -> Listing:
        """This listing with those of the others as own files that a manifest names and that a delta may own.

        The fingerprint stays the same, since Chroma does not read these files.
        """
        named = {name for name in names if may_own(name)}
        added = [file for file in self.others if file.name in named]
        if not added:
            return self
        kept = tuple(file for file in self.others if file.name not in named)
        return Listing(tuple(sorted((*self.files, *added), key=lambda file: file.name)), kept)

    @cached_property
    def by_name(self) -> dict[str, DeltaFile]:
        """The own files by their names."""
        return {file.name: file for file in self.files}

    @cached_property
    def below(self) -> frozenset[str]:
        """The prefixes, relative to this delta's, of the deltas that lie deeper below it."""
        owners = (delta_prefix_of(f"./{file.name}") for file in self.others)
        return frozenset(owner.removeprefix("./") for owner in owners if owner is not None)

    @cached_property
    def fingerprint(self) -> str:
        """sha256 (hex) over `name NUL size NUL etag LF` of every file of Chroma's and the manifest, sorted by name."""
        digest = hashlib.sha256()
        for file in self.files:
            if is_own_file(file.name):
                digest.update(f"{file.name}\0{file.size}\0{file.etag}\n".encode("utf-8", "surrogateescape"))
        return digest.hexdigest()

    @property
    def size(self) -> int:
        """Bytes of all own files together."""
        return sum(file.size for file in self.files)

    @property
    def newest(self) -> datetime | None:
        """When the last own file arrived, in UTC, or None where there is none."""
        return max((file.modified.astimezone(UTC) for file in self.files), default=None)


@dataclass(frozen=True, slots=True)
class DeltaLocation:
    """Where a delta lies in S3. `prefix` ends with `/` and is never empty; `a//` and `a/` are two prefixes."""

    bucket: str
    prefix: str

    @classmethod
    def parse(cls, uri: str) -> DeltaLocation:
        """The location that `s3://bucket/prefix` names.

        Raises:
            TargetError: It is not such a URI, or names a bucket without a prefix.
        """
        bucket, prefix = parse_s3_uri(uri)
        if not prefix.strip("/"):
            raise TargetError(f"{printable(uri)}: a delta lies under a prefix; give s3://{bucket}/PREFIX")
        return cls(bucket, prefix if prefix.endswith("/") else prefix + "/")

    @property
    def uri(self) -> str:
        """The location as `s3://bucket/prefix/`."""
        return f"s3://{self.bucket}/{self.prefix}"

    @property
    def delta_id(self) -> str:
        """The last part of the prefix."""
        return self.prefix.rstrip("/").rpartition("/")[2]

    def key(self, name: str) -> str:
        """The object key of the file `name`."""
        return self.prefix + name


def parse_s3_uri(uri: str) -> tuple[str, str]:
    """Bucket and prefix (maybe empty) of an `s3://` URI.

    Raises:
        TargetError: It does not begin with `s3://` or its bucket name cannot be one.
    """
    scheme, separator, rest = uri.partition("://")
    bucket, _, prefix = rest.partition("/")
    if scheme != "s3" or not separator or not BUCKET_NAME.fullmatch(bucket):
        raise TargetError(f"{printable(uri)}: not an s3://bucket/prefix")
    return bucket, prefix


def segment_of(name: str) -> str | None:
    """The segment id when `name` is a file of a vector index (`<uuid>/header.bin`, ...), else None."""
    folder, _, base = name.rpartition("/")
    return folder if base in SEGMENT_FILES and _UUID.fullmatch(folder) else None


def is_own_file(name: str) -> bool:
    """Whether a delta owns the file `name` below its prefix by its name alone: Chroma's files and the manifest."""
    return name == MANIFEST or is_chroma_file(name)


def may_own(name: str) -> bool:
    """Whether a delta may own the file `name` when its manifest lists it: directly below it, or in an index folder."""
    folder, slash, base = name.rpartition("/")
    if not base or base in (".", "..") or len(name.encode("utf-8", "surrogatepass")) > MAX_NAME_BYTES:
        return False
    return (
        is_own_file(name)
        or not slash
        or (bool(_UUID.fullmatch(folder)) and base not in (DATABASE, MANIFEST, *JOURNALS))
    )


def is_chroma_file(name: str) -> bool:
    """Whether Chroma reads the file `name` of a delta. Such names are safe to create below a folder."""
    return name == DATABASE or name in JOURNALS or segment_of(name) is not None


def delta_prefix_of(key: str) -> str | None:
    """The prefix of the delta that an object key belongs to, or None when the key cannot be a delta's file.

    `a/b/chroma.sqlite3` and `a/b/<uuid>/header.bin` both belong to `a/b/`.
    """
    parts = key.split("/")
    base = parts[-1]
    if base in (DATABASE, MANIFEST, *JOURNALS):
        prefix = parts[:-1]
    elif len(parts) >= 2 and segment_of("/".join(parts[-2:])) is not None:
        prefix = parts[:-2]
    else:
        return None
    return "/".join(prefix) + "/" if prefix and any(prefix) else None


def printable(text: str, most: int = 120) -> str:
    """`text` made safe to show: control characters escaped, at most `most` characters."""
    shown = "".join(c if c.isprintable() else f"\\u{ord(c):04x}" for c in text[: most + 1])
    return shown if len(shown) <= most else shown[: most - 1] + "…"
