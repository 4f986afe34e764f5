"""Specimens: directories that histories made, with the truth about each, kept in the cache."""

from __future__ import annotations

import ast
import hashlib
import json
import os
import pickle
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path

from devtools.zoo.history import History
from devtools.zoo.model import TooUncertain
from devtools.zoo.programs import NotDone
from devtools.zoo.releases import cache_folder
from devtools.zoo.runner import Writers, perform
from devtools.zoo.truth import Reader, Truth, compare

_PROGRAMS = ("writer.py", "reader.py", "programs.py", "runner.py", "model.py", "truth.py", "maintenance.py")


@dataclass(frozen=True, slots=True)
class Specimen:
    """One directory.

    Args:
        history: How it was made.
        folder: The directory, not to be written to.
        truth: What the newest Chroma says of it; `unknown` where the history could not be done.
        refused: What Chroma refused on the way.
    """

    history: History
    folder: Path
    truth: Truth
    refused: tuple[str, ...]


def specimen(history: History, writers: Writers, reader: Reader) -> Specimen:
    """The directory of a history: from the cache, or made now."""
    text = json.dumps(history, sort_keys=True)
    folder = cache_folder() / "directories" / hashlib.sha256(f"{_generation()} {text}".encode()).hexdigest()[:24]
    known = folder / "specimen.pickle"
    if not known.exists():
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".making-") as scratch:
            made = Path(scratch) / "made"
            truth, refused = make(history, made / "delta", writers, reader)
            (made / "history.json").write_text(text)
            (made / known.name).write_bytes(pickle.dumps((truth, refused)))
            shutil.rmtree(folder, ignore_errors=True)
            os.replace(made, folder)  # noqa: PTH105 -- atomic, so that whoever is killed leaves no half of one
    truth, refused = pickle.loads(known.read_bytes())  # noqa: S301 -- ours
    return Specimen(history, folder / "delta", truth, refused)


def make(history: History, folder: Path, writers: Writers, reader: Reader) -> tuple[Truth, tuple[str, ...]]:
    """Makes the directory of a history in a new folder.

    Returns:
        The truth about it, and what Chroma refused on the way.
    """
    try:
        model, refused = perform(history, folder, writers)
    except (NotDone, TooUncertain) as error:
        return Truth("unknown", f"{type(error).__name__}: {error}", {"collections": []}), ()
    if not (folder / "chroma.sqlite3").exists():
        return Truth("unknown", "no release opened it", {"collections": []}), tuple(refused)
    return compare(model, reader.ask(folder)), tuple(refused)


def _generation() -> str:
    """A number of the programs that make and read directories: what others made is not used."""
    here = Path(__file__).parent
    trees = [ast.dump(ast.parse((here / name).read_text())) for name in _PROGRAMS]  # comments change nothing
    return hashlib.sha256("".join(trees).encode()).hexdigest()
