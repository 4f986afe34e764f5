"""The cases of a scorecard: which delta, which damage, which seed. The same seeds give the same cases in order."""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

from bench.score.bases import SUITABLE
from bench.score.generic import GENERIC
from bench.score.healthy import HEALTHY
from bench.score.zoo import zoo_bases, zoo_damages
from devtools.damage.catalogue import DAMAGES

Group = Literal["tuned", "held-back"]

SEEDS: Mapping[Group, tuple[int, ...]] = {"tuned": (11, 12, 13), "held-back": (50_021, 50_022, 50_023)}
"""Rules may be tuned on what the first show. The others say how they do on what nobody looked at."""

UNDAMAGED = "undamaged"
"""The kind of a directory of the zoo to which nothing was done."""

_QUICK = 10
_SHARE = 16


@dataclass(frozen=True, slots=True)
class Case:
    """One delta to be judged.

    Args:
        group: Of seeds.
        source: `catalogue`, `generic`, `zoo` for both damages of what real clients wrote, or `healthy`.
        kind: The damage, or the sort of healthy delta; `UNDAMAGED` for what real clients wrote.
        base: What is damaged, or not; empty for a healthy delta that is made anew.
        seed: Of its chance.
        value_only: Whether the catalogue says that structure cannot show it.
        refused: Whether the catalogue says that the rules refuse it, whatever Chroma makes of it.
        harmless: Whether the catalogue says that it breaks nothing.
        telling: Whether values alone that are others contradict the format (see `bench.score.generic.Generic`).
    """

    group: Group
    source: Literal["catalogue", "generic", "zoo", "healthy"]
    kind: str
    base: str
    seed: int
    value_only: bool = False
    refused: bool = False
    harmless: bool = False
    telling: bool = False

    @property
    def healthy(self) -> bool:
        """Whether nothing was done to it."""
        return self.source == "healthy" or self.kind == UNDAMAGED

    @property
    def sampled(self) -> bool:
        """Whether it is one of those, an even share, that are asked what takes long."""
        return zlib.crc32(f"{self.kind} {self.base} {self.seed}".encode()) % _SHARE == 0


def cases(group: Group, *, quick: bool = False) -> list[Case]:
    """All cases of a group, or a tenth of them."""
    every = _QUICK if quick else 1
    ours = [*_catalogue(group), *_generic(group), *_healthy(group)]
    return [*ours[::every], *_zoo(group, every)]


def _catalogue(group: Group) -> Iterator[Case]:
    for number, damage in enumerate(DAMAGES):
        bases = SUITABLE[damage.needs]
        for turn, seed in enumerate(SEEDS[group]):
            base = bases[(number + seed + turn) % len(bases)] if turn else bases[0]
            harmless = not damage.harm and not damage.refused
            yield Case(group, "catalogue", damage.kind, base, seed, damage.value_only, damage.refused, harmless)


def _generic(group: Group) -> Iterator[Case]:
    for generic in GENERIC:
        for base in generic.bases:
            for time in range(generic.times):
                seed = 100 * SEEDS[group][0] + time
                yield Case(group, "generic", generic.kind, base, seed, telling=generic.telling)


def _healthy(group: Group) -> Iterator[Case]:
    for number, kind in enumerate(HEALTHY):
        yield Case(group, "healthy", kind, "", SEEDS[group][0] * 1000 + number)


def _zoo(group: Group, every: int) -> Iterator[Case]:
    known = {damage.kind: damage for damage in DAMAGES}
    telling = {generic.kind for generic in GENERIC if generic.telling}
    half = [*SEEDS].index(group)  # of kinds and of bases: both groups together have each once
    for kind, base, seed in zoo_damages(half, SEEDS[group][0], every):
        if damage := known.get(kind):
            harmless = not damage.harm and not damage.refused
            yield Case(group, "zoo", kind, base, seed, damage.value_only, damage.refused, harmless)
        else:
            yield Case(group, "zoo", kind, base, seed, telling=kind in telling)
    for base in [*zoo_bases()][half :: 2 * every]:
        yield Case(group, "zoo", UNDAMAGED, base, SEEDS[group][0])
