"""Which of the deltas that are found are judged: a share of them, as many as some bytes hold, or the newer ones.

The choice depends on the deltas' names alone, so it is the same in every run, and spread evenly over all prefixes.
"""

from __future__ import annotations

import hashlib
import heapq
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from fractions import Fraction
from typing import Protocol, TypeVar

_UNITS = {"": 1, "K": 1024, "M": 1024**2, "G": 1024**3, "T": 1024**4}
_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86_400, "w": 604_800}
_LONGEST_SECONDS = 1e9  # thirty years
_HASHES = 2**64


class Named(Protocol):
    """Something with a name that is the same in every run."""

    @property
    def name(self) -> str:
        """The name."""


_Item = TypeVar("_Item", bound=Named)


@dataclass(frozen=True, slots=True)
class Share:
    """The items whose hash lies in this part of all hashes: `low` up to, but not including, `high`, from 0 to 1."""

    low: Fraction
    high: Fraction

    def of(self, items: Iterable[_Item]) -> Iterator[_Item]:
        """Those of the items that belong to it, in their order."""
        least, beyond = self.low * _HASHES, self.high * _HASHES
        return (item for item in items if least <= _hash(item.name) < beyond)


@dataclass(frozen=True, slots=True)
class Budget:
    """As many items as have this many bytes together, those with the smallest hashes; none that is larger alone."""

    size: int

    def of(self, items: Iterable[_Item], size_of: Callable[[_Item], int]) -> list[_Item]:
        """Those of the items that fit, in their order. No more than these are in memory while the rest goes by."""
        kept: list[tuple[int, int, int, _Item]] = []
        total, limit = 0, _HASHES
        for number, item in enumerate(items):
            if (order := _hash(item.name)) >= limit:
                continue
            if (size := size_of(item)) > self.size:
                continue
            heapq.heappush(kept, (-order, number, size, item))
            total += size
            while total > self.size:
                largest, _, gone, _ = heapq.heappop(kept)
                total, limit = total - gone, -largest
        return [item for _, _, _, item in sorted(kept, key=lambda entry: entry[1])]


Subset = Share | Budget


def subset(text: str) -> Subset:
    """The subset that a user asks for: `2/10` is the second of ten parts, `5%` a share, `2G` a budget in bytes.

    Raises:
        ValueError: It is none of these; the message says what is expected.
    """
    if part := re.fullmatch(r"(\d{1,9})/(\d{1,9})", text):
        number, parts = int(part[1]), int(part[2])
        if not 1 <= number <= parts:
            raise ValueError(f"{text!r}: the part must be between 1 and {parts or 'the number of parts'}")
        return Share(Fraction(number - 1, parts), Fraction(number, parts))
    if share := re.fullmatch(r"(\d{1,3}(?:\.\d{1,9})?)%", text):
        percent = Fraction(share[1])
        if not 0 < percent <= 100:
            raise ValueError(f"{text!r}: must be above 0% and at most 100%")
        return Share(Fraction(0), percent / 100)
    if budget := re.fullmatch(r"(\d{1,15})([KMGT]?)(?:i?B)?", text, re.IGNORECASE):
        size = int(budget[1]) * _UNITS[budget[2].upper()]
        if size:
            return Budget(size)
    raise ValueError(f"{text!r}: must be a part such as 1/10, a share such as 5%, or bytes such as 2G")


def seconds(text: str) -> float:
    """A duration: `90s`, `10m`, `2h`, `7d`, `1w`.

    Raises:
        ValueError: It is none, or not above zero.
    """
    found = re.fullmatch(r"(\d{1,12}(?:\.\d{1,6})?)([smhdw])", text)
    length = float(found[1]) * _SECONDS[found[2]] if found else 0.0
    if not 0 < length <= _LONGEST_SECONDS:
        raise ValueError(f"{text!r}: must be a duration such as 90s, 10m, 2h or 7d")
    return length


def moment(text: str, now: datetime) -> datetime:
    """A moment: an ISO date or time (UTC where it has no time zone), or a duration before `now`.

    Raises:
        ValueError: It is neither.
    """
    try:
        given = datetime.fromisoformat(text)
    except ValueError:
        try:
            return now - timedelta(seconds=seconds(text))
        except ValueError:
            raise ValueError(f"{text!r}: must be a date such as 2026-11-25, or a duration such as 7d") from None
    return given if given.tzinfo else given.replace(tzinfo=UTC)


def _hash(name: str) -> int:
    return int.from_bytes(hashlib.blake2b(name.encode("utf-8", "surrogateescape"), digest_size=8).digest(), "big")
