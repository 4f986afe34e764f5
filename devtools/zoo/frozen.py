"""Frozen specimens: directory, recipe and Chroma's answer in one small file, so that no old release need run again.

`python -m devtools.zoo --freeze FOLDER` adds to a folder of them; `python -m devtools.zoo.frozen thin FOLDER` leaves
a choice, and `... again FOLDER` makes each anew by its recipe.
"""

from __future__ import annotations

import argparse
import json
import shutil
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from devtools.zoo.history import History
from devtools.zoo.packing import blank, pack, unpack
from devtools.zoo.runner import Writers
from devtools.zoo.specimens import Specimen, make
from devtools.zoo.truth import Reader, Truth

SUFFIX = ".tar.xz"
FOLDER = Path(__file__).parents[2] / "tests" / "zoo" / "frozen"
"""Where the project keeps its own."""
OUTCOMES = ("complete", "unsearchable", "fails")
"""The truths about which Deltaguard must be right. What Chroma itself changed (`differs`) is not frozen."""

_EACH_KIND, _EACH_RELEASE, _LARGEST_BYTES = 3, 10, 130_000


def freeze(made: Specimen, folder: Path) -> Path:
    """Writes a specimen to `<kind>-<seed>.tar.xz` in a folder.

    Raises:
        ValueError: Nobody can say what is right about it.
    """
    name = f"{made.history['kind']}-{made.history['seed']}"
    truth = made.truth
    if truth.outcome not in OUTCOMES:
        raise ValueError(f"{name}: Chroma's answer is {truth.outcome}: {truth.why}")
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="zoo-") as scratch:
        content = Path(scratch)
        shutil.copytree(made.folder, content / "delta")
        blank(content / "delta")
        (content / "history.json").write_text(json.dumps(made.history))
        (content / "truth.json").write_text(json.dumps([truth.outcome, truth.why, truth.answer]))
        pack(content, folder / f"{name}{SUFFIX}")
    return folder / f"{name}{SUFFIX}"


@dataclass(frozen=True, slots=True)
class Frozen:
    """A frozen specimen.

    Args:
        file: Where it is.
    """

    file: Path

    @property
    def name(self) -> str:
        """Its kind and seed."""
        return self.file.name.removesuffix(SUFFIX)

    @property
    def kind(self) -> str:
        """The name of its kind."""
        return self.name.rpartition("-")[0]

    def thaw(self, folder: Path) -> Specimen:
        """Lays it out in an empty folder: `delta` in there is the directory."""
        unpack(self.file, folder)
        history: History = json.loads((folder / "history.json").read_text())
        outcome, why, answer = json.loads((folder / "truth.json").read_text())
        return Specimen(history, folder / "delta", Truth(outcome, why, answer), ())

    @contextmanager
    def thawed(self) -> Iterator[Specimen]:
        """The specimen, in a folder that is gone afterwards."""
        with tempfile.TemporaryDirectory(prefix="zoo-") as scratch:
            yield self.thaw(Path(scratch))


def all_frozen(folder: Path = FOLDER) -> list[Frozen]:
    """Every frozen specimen, sorted by name."""
    return [Frozen(file) for file in sorted(folder.glob(f"*{SUFFIX}"))]


def releases(history: Mapping[str, Any]) -> frozenset[str]:
    """The releases that a history lets write."""
    return frozenset(step["version"] for step in history["steps"] if "version" in step)


def thin(frozen: Iterable[Frozen], kept: Iterable[str] = ()) -> list[Frozen]:
    """Chooses the smallest ones that have every kind and release several times.

    Args:
        frozen: Those to choose from.
        kept: Names of some that are chosen however large they are.

    Returns:
        Those that are not chosen.
    """
    kinds, versions, left, names = Counter[str](), Counter[str](), list[Frozen](), {*kept}
    for one in sorted(frozen, key=lambda one: (one.name not in names, one.file.stat().st_size)):
        with one.thawed() as made:
            written_by = releases(made.history)
        small = one.file.stat().st_size <= _LARGEST_BYTES or not kinds[one.kind]
        lacking = kinds[one.kind] < _EACH_KIND or any(versions[version] < _EACH_RELEASE for version in written_by)
        if one.name in names or (small and lacking):
            kinds[one.kind] += 1
            versions.update(written_by)
        else:
            left.append(one)
    return left


def again(frozen: Iterable[Frozen], folder: Path) -> Iterator[str]:
    """Makes specimens anew, by their recipes, and freezes them in a folder. Yields why one could not be."""
    writers, reader = Writers(), Reader()
    try:
        for one in frozen:
            with tempfile.TemporaryDirectory(prefix="zoo-") as scratch, one.thawed() as old:
                target = Path(scratch) / "delta"
                made = Specimen(old.history, target, *make(old.history, target, writers, reader))
                try:
                    freeze(made, folder)
                except ValueError as error:
                    yield str(error)
    finally:
        writers.close()
        reader.close()


def main(arguments: Sequence[str] | None = None) -> None:
    """Thins a folder, or makes it anew."""
    parser = argparse.ArgumentParser(prog="python -m devtools.zoo.frozen", description=__doc__)
    parser.add_argument("what", choices=("thin", "again"))
    parser.add_argument("folder", type=Path)
    parser.add_argument("--keep", nargs="*", default=[], metavar="NAME", help="for `thin`: what is kept in any case")
    options = parser.parse_args(arguments)
    if options.what == "thin":
        for one in thin(all_frozen(options.folder), options.keep):
            one.file.unlink()
    else:
        for why in again(all_frozen(options.folder), options.folder):
            print(why)  # noqa: T201


if __name__ == "__main__":
    main()
