"""A delta as it lies in a store: its location, its listing and the fingerprint of that. Plain values, no I/O."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import cached_property

from shared.model.errors import TargetError

DATABASE = "chroma.sqlite3"
MANIFEST = "delta.manifest.json"
JOURNALS = ("chroma.sqlite3-journal", "chroma.sqlite3-wal", "chroma.sqlite3-shm")
SEGMENT_FILES = ("data_level0.bin", "header.bin", "index_metadata.pickle", "length.bin", "link_lists.bin")

MAX_FILES = 20_000
"""Objects of its own that a listing of one delta may have; a longer one is not read to its end."""

MAX_OWN_FILES = 5 * 1000 + 5
"""Files of its own that a delta in S3 may have: indexes of 1,000 collections, the database, journals, the manifest."""

MAX_OTHERS = 1000
"""How many objects that are not Chroma's are kept of a listing, for a manifest may name some of them."""

MAX_BELOW = 100
"""How many of the deltas that lie below another one are kept by name."""

MAX_NAME_BYTES = 128
"""Bytes of the longest name that a delta may own; Chroma's own have at most 58."""

_DEEP_SHOWN = 5

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
    """What lies under the prefix of one delta: its own files, and a part of the rest, which belongs to somebody else.

    Args:
        files: The files that the delta owns (see `is_own_file`), sorted by name.
        others: Other objects below the prefix, sorted by name: those that a manifest may name (at most `MAX_OTHERS`),
            and some that lie deeper. They are never moved or deleted.
        more: How many others there are besides.
        crowded: Whether some of those that a manifest may name are only counted.
        below: The prefixes, relative to this delta's, of deltas that lie deeper below it, sorted; at most `MAX_BELOW`.
        unseen: Whether what lies deeper was not looked at to its end, so that more deltas may lie there.
    """

    files: tuple[DeltaFile, ...]
    others: tuple[DeltaFile, ...] = ()
    more: int = 0
    crowded: bool = False
    below: tuple[str, ...] = ()
    unseen: bool = False

    @classmethod
    def of(cls, files: Iterable[DeltaFile]) -> Listing:
        """A listing of the objects below a prefix, in any order, each parted by its name into own and others."""
        gathering = Gathering()
        for file in sorted(files, key=lambda file: file.name):
            gathering.add(file)
        return gathering.listing()

    def owning(self, names: Iterable[str]) -> Listing:
        """This listing with those of the others as own files that a manifest names and that a delta may own.

        The fingerprint stays the same, since Chroma does not read these files.
        """
        named = {name for name in names if may_own(name)}
        added = [file for file in self.others if file.name in named]
        if not added:
            return self
        kept = tuple(file for file in self.others if file.name not in named)
        return replace(self, files=tuple(sorted((*self.files, *added), key=_by_name)), others=kept)

    @cached_property
    def by_name(self) -> dict[str, DeltaFile]:
        """The own files by their names."""
        return {file.name: file for file in self.files}

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


class Gathering:
    """A listing while its objects come in, in any order. However many there are, it keeps a bounded number of them.

    Args:
        apart: A prefix, relative to the delta's, of what is no delta below it: the quarantine, if it lies there.
    """

    def __init__(self, apart: str = "") -> None:
        self.overfull = False
        self._crowded = False
        self._apart = apart
        self._files: list[DeltaFile] = []
        self._named: list[DeltaFile] = []
        self._deep: list[DeltaFile] = []
        self._others = 0
        self._below: set[str] = set()

    def add(self, file: DeltaFile) -> None:
        """Takes in an object by its name below the prefix. More than `MAX_FILES` own ones are not kept: `overfull`."""
        name = file.name
        if is_own_file(name):
            self._files.append(file)
            if len(self._files) > MAX_FILES:
                self.overfull = True
                self._files.clear()
            return
        self._others += 1
        nameable = may_own(name)
        kept, most = (self._named, MAX_OTHERS) if nameable else (self._deep, _DEEP_SHOWN)
        if len(kept) < most:
            kept.append(file)
        elif nameable:
            self._crowded = True
        if len(self._below) < MAX_BELOW and not (self._apart and name.startswith(self._apart)):
            owner = delta_prefix_of(f"./{name}")
            if owner is not None:
                self._below.add(owner.removeprefix("./"))

    def pass_over(self) -> None:
        """Counts an object that can be nobody's file, such as a link in a local folder."""
        self._others += 1

    @property
    def below(self) -> bool:
        """Whether a delta lies below this one, as far as is known."""
        return bool(self._below)

    def listing(self, *, unseen: bool = False) -> Listing:
        """What came in, as a listing; `unseen` when what lies deeper was not looked at to its end."""
        others = tuple(sorted((*self._named, *self._deep), key=_by_name))
        return Listing(
            tuple(sorted(self._files, key=_by_name)),
            others,
            self._others - len(others),
            self._crowded,
            tuple(sorted(self._below)),
            unseen,
        )


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


def _by_name(file: DeltaFile) -> str:
    return file.name


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


def is_index_folder(name: str) -> bool:
    """Whether a folder of a delta is named as the folder of a vector index is."""
    return _UUID.fullmatch(name) is not None


def is_own_file(name: str) -> bool:
    """Whether a delta owns the file `name` below its prefix by its name alone: Chroma's files and the manifest."""
    return name == MANIFEST or is_chroma_file(name)


def may_own(name: str) -> bool:
    """Whether a delta may own the file `name` below its prefix when its manifest lists it.

    Besides Chroma's files these lie directly below the prefix: what lies deeper may be another delta's. A file of an
    index that lies directly below it may be, too: then the prefix is an index folder of the delta above.
    """
    if "/" in name:
        return is_own_file(name)
    usable = name not in ("", ".", "..", *SEGMENT_FILES)
    return usable and len(name.encode("utf-8", "surrogatepass")) <= MAX_NAME_BYTES


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
