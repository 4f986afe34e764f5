"""What can be said of any number of verdicts in bounded memory: by upload time, by prefix, by finding."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

from shared.model.verdict import Status, Verdict

_ORIGIN = datetime(1970, 1, 5, tzinfo=UTC)  # a Monday, so that weeks begin as people expect
_MINUTE, _DAY = 60, 86_400
_WIDTHS: tuple[tuple[int, str], ...] = (  # each divides the next, so that bins can be merged
    (_MINUTE, "minute"),
    (10 * _MINUTE, "10 minutes"),
    (60 * _MINUTE, "hour"),
    (360 * _MINUTE, "6 hours"),
    (_DAY, "day"),
    (7 * _DAY, "week"),
    (28 * _DAY, "4 weeks"),
    (364 * _DAY, "52 weeks"),
)
_MOST_BINS = 2_000

_DEEPEST = 8
_MOST_CHILDREN = 64
_MOST_PREFIXES = 4_096
MORE = "…"
"""Name of the prefix that stands for all those beyond the first many beside it."""


@dataclass(frozen=True, slots=True)
class Bin:
    """The deltas that were uploaded in one span of time, and how many of them are corrupt."""

    start: datetime
    total: int
    corrupt: int

    @property
    def rate(self) -> float:
        """The corrupt share, 0 to 1."""
        return self.corrupt / self.total if self.total else 0.0


class Timeline:
    """Deltas by the time of their upload, in bins that become coarser as the time that they span grows."""

    def __init__(self) -> None:
        self._level = 0
        self._bins: dict[int, tuple[int, int]] = {}

    def add(self, uploaded: datetime, *, corrupt: bool) -> None:
        """Counts one delta."""
        seconds = (uploaded - _ORIGIN) // timedelta(seconds=1)
        self._count(seconds // _WIDTHS[self._level][0], 1, int(corrupt))
        while len(self._bins) > _MOST_BINS and self._level + 1 < len(_WIDTHS):
            self._coarsen()

    def bins(self, most: int) -> tuple[list[Bin], str]:
        """The newest bins, at most so many, empty ones between them included, and the width of each in words."""
        if not self._bins:
            return [], ""
        while max(self._bins) - min(self._bins) >= most and self._level + 1 < len(_WIDTHS):
            self._coarsen()
        width, words = _WIDTHS[self._level]
        last = max(self._bins)
        first = max(min(self._bins), last - most + 1)
        numbers = range(first, last + 1)
        bins = [Bin(_ORIGIN + timedelta(seconds=n * width), *self._bins.get(n, (0, 0))) for n in numbers]
        return bins, words

    def _count(self, number: int, total: int, corrupt: int) -> None:
        before = self._bins.get(number, (0, 0))
        self._bins[number] = (before[0] + total, before[1] + corrupt)

    def _coarsen(self) -> None:
        bins, self._bins = self._bins, {}
        factor = _WIDTHS[self._level + 1][0] // _WIDTHS[self._level][0]
        self._level += 1
        for number, counts in bins.items():
            self._count(number // factor, *counts)


@dataclass(slots=True)
class Prefix:
    """One prefix with all that lies below it.

    Args:
        name: Its last part, or several where there is nothing to choose between them: `words/delta`.
        counts: Deltas at and below it, by status.
        children: The prefixes below it, by their first part.
    """

    name: str
    counts: dict[Status, int] = field(default_factory=lambda: dict.fromkeys(Status, 0))
    children: dict[str, Prefix] = field(default_factory=dict)

    @property
    def total(self) -> int:
        """How many deltas there are at and below it."""
        return sum(self.counts.values())

    @property
    def corrupt(self) -> int:
        """How many of them are corrupt."""
        return self.counts[Status.CORRUPT]

    @property
    def rate(self) -> float:
        """The corrupt share, 0 to 1."""
        return self.corrupt / self.total if self.total else 0.0


class PrefixTree:
    """Deltas by the prefixes that they lie under. Beyond some thousands, prefixes are put together as `MORE`."""

    def __init__(self) -> None:
        self._root = Prefix("")
        self._size = 0

    def add(self, delta: str, status: Status) -> None:
        """Counts one delta, named as verdicts name it."""
        place = self._root
        place.counts[status] += 1
        for part in _prefixes_of(delta)[:_DEEPEST]:
            place = self._child(place, part)
            place.counts[status] += 1
            if place.name == MORE:
                return

    def root(self) -> Prefix:
        """The prefix of all deltas, every chain of prefixes without a choice drawn together into one."""
        return _joined(self._root)

    def _child(self, place: Prefix, part: str) -> Prefix:
        known = place.children.get(part)
        if known is not None:
            return known
        if len(place.children) >= _MOST_CHILDREN or self._size >= _MOST_PREFIXES:
            part = MORE
        else:
            self._size += 1
        return place.children.setdefault(part, Prefix(part))


def worst(root: Prefix, most: int) -> list[tuple[str, Prefix]]:
    """The prefixes without another below them that hold most corrupt deltas, each with its whole name."""
    leaves = [(name, prefix) for name, prefix in _leaves(root, "") if prefix.corrupt]
    return sorted(leaves, key=lambda leaf: (-leaf[1].corrupt, leaf[0]))[:most]


def _leaves(prefix: Prefix, above: str) -> Iterator[tuple[str, Prefix]]:
    name = _under(above, prefix.name)
    if not prefix.children:
        yield name, prefix
    for child in prefix.children.values():
        yield from _leaves(child, name)


def _joined(prefix: Prefix) -> Prefix:
    name = prefix.name
    while len(prefix.children) == 1:
        (child,) = prefix.children.values()
        if child.total != prefix.total or child.name == MORE:
            break
        prefix, name = child, _under(name, child.name)
    return Prefix(name, prefix.counts, {key: _joined(child) for key, child in prefix.children.items()})


def _under(above: str, name: str) -> str:
    return f"{above.removesuffix('/')}/{name}" if above and name else above or name


def _prefixes_of(delta: str) -> list[str]:
    """The parts of a delta's place, without its own name: `s3://bucket`, `words`, `delta`; or the folders of a path."""
    scheme, separator, rest = delta.rpartition("://")
    parts = [part for part in rest.split("/") if part][:-1]
    if separator:
        first = rest.partition("/")[0]
        return [f"{scheme}://{first}", *parts[1:]]
    return ["/" + parts[0], *parts[1:]] if rest.startswith("/") and parts else parts or ["."]


class Overview:
    """Everything that a report says of all deltas together; the healthy are counted and forgotten.

    Args:
        kept: How many verdicts of each status other than healthy are kept for a closer look.
    """

    def __init__(self, kept: dict[Status, int]) -> None:
        self.timeline = Timeline()
        self.prefixes = PrefixTree()
        self.codes: dict[str, int] = {}
        self.kept: dict[Status, list[Verdict]] = {status: [] for status in kept}
        self.versions: dict[str, str] = {}
        self.depths: set[str] = set()
        self._most = kept

    def add(self, verdict: Verdict) -> None:
        """Takes in one verdict."""
        status = verdict.status
        if verdict.uploaded is not None:
            self.timeline.add(verdict.uploaded, corrupt=status is Status.CORRUPT)
        self.prefixes.add(verdict.delta, status)
        for code in {finding.code for finding in verdict.observed}:
            self.codes[code] = self.codes.get(code, 0) + 1
        self.versions |= verdict.versions
        self.depths.add(verdict.depth.value)
        if status in self.kept and len(self.kept[status]) < self._most[status]:
            self.kept[status].append(verdict)
