"""Frozen specimens: directory, recipe and Chroma's answer in one small file, so that no old release need run again."""

from __future__ import annotations

import json
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path

from devtools.zoo.history import History
from devtools.zoo.packing import blank, pack, unpack
from devtools.zoo.specimens import Specimen
from devtools.zoo.truth import Answer, Truth

SUFFIX = ".tar.xz"


def freeze(made: Specimen, folder: Path) -> Path:
    """Writes a specimen of which the truth is complete to `<kind>-<seed>.tar.xz` in a folder.

    Raises:
        ValueError: The truth is not complete, so nobody can say what is right.
    """
    name = f"{made.history['kind']}-{made.history['seed']}"
    if made.truth.outcome != "complete":
        raise ValueError(f"{name}: Chroma's answer is {made.truth.outcome}: {made.truth.why}")
    with tempfile.TemporaryDirectory(prefix="zoo-") as scratch:
        content = Path(scratch)
        shutil.copytree(made.folder, content / "delta")
        blank(content / "delta")
        (content / "history.json").write_text(json.dumps(made.history))
        (content / "answer.json").write_text(json.dumps(made.truth.answer))
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

    def thaw(self, folder: Path) -> Specimen:
        """Lays it out in an empty folder."""
        unpack(self.file, folder)
        history: History = json.loads((folder / "history.json").read_text())
        answer: Answer = json.loads((folder / "answer.json").read_text())
        return Specimen(history, folder / "delta", Truth("complete", "", answer), ())
