"""What a scan would ask of S3, and what that costs: told from names and sizes alone, before anything is read.

The numbers are those of a scan in which no tag answers and nothing is corrupt: a tag saves the requests for the objects
of its delta, and what is proven early is not looked into further.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from rich.filesize import decimal

from scanner.find.discovery import FoundDelta, Walk
from scanner.find.tasks import Found, listing_of
from shared.check.download import files_needed
from shared.inspection.layout import PICKLE, segments_in
from shared.inspection.sqlite.database_file import HEADER_BYTES
from shared.model.delta import DATABASE, MANIFEST, DeltaFile, Listing
from shared.model.verdict import Depth

PAGE = 1000
"""Keys in one answer to ListObjectsV2."""

PRICE_SOURCE = "https://aws.amazon.com/s3/pricing/, us-east-1, S3 Standard, November 2025"
LIST_DOLLARS = 0.005 / 1000
GET_DOLLARS = 0.0004 / 1000
"""For GET, HEAD and reading tags alike."""
INTERNET_DOLLARS = 0.09 / 1e9
"""For a byte that leaves AWS, in the first tier. Within the region none is paid for."""

REQUEST_SECONDS = 0.1
STREAM_BYTES_A_SECOND = 85e6
"""Of one request: 100 ms to its first byte and 85 MB/s from then on, the cautious ends of what AWS promises:
https://docs.aws.amazon.com/AmazonS3/latest/userguide/optimizing-performance-design-patterns.html
"""
_CPU_SECONDS = {Depth.LISTING: 0.0003, Depth.HEADER: 0.003, Depth.STRUCTURE: 0.015, Depth.OPEN: 0.3}
_CPU_BYTES_A_SECOND = 50e6
"""What checking takes of one CPU, for each delta and for each byte that is read, as `python -m bench` finds it."""


@dataclass(slots=True)
class Estimate:
    """What a scan at one depth needs, added up delta by delta.

    Args:
        depth: How far it goes.
        asks_tags: Whether it asks for the tag of each delta first.
        deltas: How many are judged.
        objects: How many files they have.
        stored: How many bytes these have.
        requests: To S3, by kind.
        transferred: Bytes that are read, from S3 or from disk.
        sent: How many of them S3 sends.
    """

    depth: Depth
    asks_tags: bool
    deltas: int = 0
    objects: int = 0
    stored: int = 0
    requests: Counter[str] = field(default_factory=Counter)
    transferred: int = 0
    sent: int = 0

    def listed(self, keys: int) -> None:
        """Takes in the listing of this many keys below one place in S3, and the look whether that is there."""
        self.requests["LIST"] += 1 + max(1, -(-keys // PAGE))

    def add(self, delta: Found) -> None:
        """Takes in one delta. One with more files than are kept counts as listed once more, and no further."""
        self.deltas += 1
        listing = listing_of(delta)
        if listing is None:
            self.requests["LIST"] += 1
            return
        self.objects += len(listing.files)
        self.stored += listing.size
        asked, read = needs(listing, self.depth)
        self.transferred += read
        if isinstance(delta, FoundDelta):
            self.sent += read
            self.requests += asked
            self.requests["GET tags"] += self.asks_tags and self.depth.includes(Depth.STRUCTURE)

    @property
    def dollars(self) -> float:
        """The price of all requests. Data costs nothing within the region."""
        listed = self.requests["LIST"]
        return listed * LIST_DOLLARS + (self.requests.total() - listed) * GET_DOLLARS

    @property
    def internet_dollars(self) -> float:
        """What the bytes cost on top, where the scan does not run within AWS."""
        return self.sent * INTERNET_DOLLARS

    def seconds(self, jobs: int, cpus: int) -> float:
        """How long it takes with this many checks at once, as a cautious guess: S3 or the CPUs, whichever is slower."""
        listed = self.requests["LIST"]
        asking = (self.requests.total() - listed) * REQUEST_SECONDS + self.sent / STREAM_BYTES_A_SECOND
        checking = self.deltas * _CPU_SECONDS[self.depth] + self.transferred / _CPU_BYTES_A_SECOND
        return max(listed * REQUEST_SECONDS, asking / jobs, checking / cpus)

    def as_json(self, jobs: int, cpus: int) -> dict[str, Any]:
        """The estimate as one JSON object."""
        return {
            "depth": self.depth.value,
            "deltas": self.deltas,
            "objects": self.objects,
            "bytes": self.stored,
            "requests": {kind: number for kind, number in sorted(self.requests.items()) if number},
            "requests_total": self.requests.total(),
            "bytes_read": self.transferred,
            "dollars": round(self.dollars, 6),
            "dollars_outside_aws": round(self.dollars + self.internet_dollars, 6),
            "prices": PRICE_SOURCE,
            "jobs": jobs,
            "seconds": round(self.seconds(jobs, cpus), 1),
        }

    def as_text(self, jobs: int, cpus: int) -> str:
        """The estimate for people."""
        kinds = ", ".join(f"{number:,} {kind}" for kind, number in sorted(self.requests.items()) if number)
        outside = self.dollars + self.internet_dollars
        lines = (
            ("depth", self.depth.value),
            ("deltas", f"{self.deltas:,} with {self.objects:,} files, {decimal(self.stored)}"),
            ("requests", f"{self.requests.total():,}" + (f" ({kinds})" if kinds else "")),
            ("bytes read", decimal(self.transferred)),
            ("price", f"{_dollars(self.dollars)} within the region, {_dollars(outside)} from outside AWS"),
            ("", f"({PRICE_SOURCE})"),
            ("time", f"at most about {_duration(self.seconds(jobs, cpus))}, {jobs} at once on {cpus} CPUs"),
        )
        return "".join(f"{name:<12}{value}\n" for name, value in lines)


class CountedWalk:
    """Lists like a store, and adds it to an estimate.

    Args:
        store: Lists.
        estimate: What it is added to.
    """

    def __init__(self, store: Walk, estimate: Estimate) -> None:
        self._store = store
        self._estimate = estimate

    def walk(self, bucket: str, prefix: str, after: str = "") -> Iterator[tuple[str, DeltaFile]]:
        """As `shared.storage.store.Store.walk`."""
        keys = 0
        for keys, entry in enumerate(self._store.walk(bucket, prefix, after), 1):  # noqa: B007 - used below
            yield entry
        self._estimate.listed(keys)


def needs(listing: Listing, depth: Depth) -> tuple[Counter[str], int]:
    """The requests by kind, and the bytes read, that a healthy delta with this listing takes at a depth."""
    asked: Counter[str] = Counter()
    read = 0
    if MANIFEST in listing.by_name:
        asked["GET"] += 1
        asked["HEAD"] += len(listing.files)
        read += listing.by_name[MANIFEST].size
    if depth is Depth.HEADER and DATABASE in listing.by_name:
        asked["GET range"] += 1
        read += HEADER_BYTES
        if MANIFEST not in listing.by_name and any(PICKLE in sizes for sizes in segments_in(listing).values()):
            asked["GET range"] += 1
            read += HEADER_BYTES
    if depth.includes(Depth.STRUCTURE):
        files = files_needed(listing)
        asked["GET"] += sum(file.size > 0 for file in files)
        read += sum(file.size for file in files)
    return asked, read


def _dollars(amount: float) -> str:
    return f"${amount:,.2f}" if amount >= 0.01 else "less than $0.01"


def _duration(length: float) -> str:
    if length < 100:
        return f"{max(1, round(length))} s"
    return f"{length / 60:,.0f} min" if length < 6000 else f"{length / 3600:,.1f} h"
