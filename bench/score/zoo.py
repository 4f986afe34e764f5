"""The zoo's directories as bases of damage: what clients of 14 releases wrote, frozen.

What may be done to one is seen by looking at it: whether all its vectors are in the queue, how many indexes it has on
disk, and whether a damage finds what it would break.
"""

from __future__ import annotations

import random
import sqlite3
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import closing
from functools import cache
from pathlib import Path

from bench.score.bases import BASES
from bench.score.generic import GENERIC, break_delta
from devtools.damage.catalogue import DAMAGES, Needs
from devtools.damage.file_breaks import PICKLE, DoesNotApply
from devtools.zoo.frozen import FOLDER, SUFFIX, Frozen, all_frozen
from devtools.zoo.opinion import opinion
from devtools.zoo.specimens import Specimen
from shared.model.delta import DATABASE
from shared.model.verdict import Depth

_TORN = "torn-copy"  # replaces a delta by another one


def thawed(name: str, folder: Path) -> Specimen:
    """A base, laid out in a folder that is empty."""
    return Frozen(FOLDER / f"{name}{SUFFIX}").thaw(folder)


@cache
def zoo_bases() -> dict[str, frozenset[Needs]]:
    """By name, what damages find in each: those that Chroma gives back in full, and that no writer left unsettled."""
    found = {}
    for one in all_frozen():
        with one.thawed() as made:
            if made.truth.outcome == "complete" and not opinion(made.folder, None, [Depth.LISTING]).unsettled:
                found[one.name] = frozenset(_met(made.folder))
    return found


def _met(delta: Path) -> Iterator[Needs]:
    yield "any"
    with closing(sqlite3.connect(delta / DATABASE)) as database:
        segments = [id_ for (id_,) in database.execute("SELECT id FROM segments WHERE scope = 'VECTOR'")]
        ((queued,),) = database.execute("SELECT count(vector) FROM embeddings_queue")
    flushed = sum((delta / id_ / PICKLE).exists() for id_ in segments)
    if flushed:
        yield "flushed"
    elif queued:
        yield "queued"
    if flushed > 1:
        yield "two flushed"


def zoo_damages(half: int, seed: int, every: int = 1) -> Iterator[tuple[str, str, int]]:
    """Kind, base and seed of half of the catalogue and of all chance damage twice, each with a base that it applies to.

    Args:
        half: Which half of the catalogue, 0 or 1.
        seed: Of chance.
        every: 10 for a tenth.
    """
    needs: list[tuple[str, Needs]] = [(damage.kind, damage.needs) for damage in DAMAGES[half::2]]
    needs += [(one.kind, _needs(one.bases)) for one in GENERIC if not one.kind.startswith(_TORN) for _ in range(2)]
    for number, (kind, need) in list(enumerate(needs))[::every]:
        of_case = 1000 * seed + number
        bases = [name for name, met in zoo_bases().items() if need in met]
        random.Random(f"{kind} {of_case}").shuffle(bases)  # noqa: S311 -- repeatable, not secret
        yield kind, next(name for name in bases if _applies(kind, name, of_case)), of_case


def _needs(ours: Sequence[str]) -> Needs:
    """What the damage of our own bases has in common."""
    flushed = {BASES[name].sync_threshold is not None for name in ours}
    return "any" if len(flushed) > 1 else "flushed" if True in flushed else "queued"


def _applies(kind: str, name: str, seed: int) -> bool:
    """Whether a damage can be done to a base, and changes anything."""
    with tempfile.TemporaryDirectory(prefix="zoo-") as scratch:
        delta = thawed(name, Path(scratch)).folder
        before = _bytes(delta)
        try:
            break_delta(kind, name, seed, delta)
        except DoesNotApply:
            return False
        return _bytes(delta) != before


def _bytes(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
