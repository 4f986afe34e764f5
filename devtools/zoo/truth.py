"""What the newest Chroma says a directory holds, and whether that is what was acknowledged."""

from __future__ import annotations

import math
import pickle
import shutil
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from devtools.zoo.model import Model, Row, State
from devtools.zoo.programs import NotDone, Program

_READER_SECONDS = 900.0
_COSINE_ROUNDING = 1e-5

Answer = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Truth:
    """What became of what was acknowledged.

    Args:
        outcome: `complete`; `unsearchable`, where everything comes back but `$contains` does not find it; `differs` or
            `fails`.
        why: In words, where it is not complete.
        answer: What Chroma gave back, as `reader.py` says.
    """

    outcome: str
    why: str
    answer: Answer


class Reader:
    """The newest Chroma, in a process forked for each directory."""

    def __init__(self) -> None:
        self._program = self._start()

    def _start(self) -> Program:
        return Program([sys.executable, "-m", "devtools.zoo.reader"], Path(__file__).parents[2])

    def ask(self, folder: Path) -> Answer:
        """Everything that it gives back of a copy of a directory."""
        with tempfile.TemporaryDirectory(prefix="zoo-") as scratch:
            copy, file = shutil.copytree(folder, Path(scratch) / "copy"), Path(scratch) / "answer"
            try:
                status = self._program.ask({"folder": str(copy), "answer": str(file), "seconds": _READER_SECONDS})
            except NotDone as error:
                self._program.finish()
                self._program = self._start()
                return {"collections": [], "stage": "any", "error": str(error)}
            if not file.exists():
                return {"collections": [], "stage": "any", "error": f"ended with wait status {status}"}
            answer: Answer = pickle.loads(file.read_bytes())  # noqa: S301 -- ours
            return answer

    def close(self) -> None:
        """Ends it."""
        self._program.finish()


def compare(model: Model, answer: Answer) -> Truth:
    """Compares what came back with every state that may be there."""
    if answer.get("error"):
        return Truth("fails", f"{answer['stage']}: {answer['error']}", answer)
    whys = [_difference(state, answer) for state in model.alternatives]
    if None in whys and answer["search"]:
        return Truth("unsearchable", answer["search"][0], answer)
    if None in whys:
        return Truth("complete", "", answer)
    return Truth("differs", str(min(whys, key=lambda why: len(why or ""))), answer)


def _difference(state: State, answer: Answer) -> str | None:
    wanted = {(at, name): rows for at, collections in state.items() for name, rows in collections.items()}
    found = {(tuple(part["at"]), part["name"]): part for part in answer["collections"]}
    if wanted.keys() != found.keys():
        return f"collections {sorted(found)} where {sorted(wanted)} were made"
    for place, rows in wanted.items():
        why = _rows_difference(rows, found[place])
        if why is not None:
            return f"{place[1]}: {why}"
    return None


def _rows_difference(rows: dict[str, Row], part: dict[str, Any]) -> str | None:
    missing, more = sorted(rows.keys() - set(part["ids"])), sorted(set(part["ids"]) - rows.keys())
    if missing or more or len(set(part["ids"])) != len(part["ids"]):
        return f"of {len(rows)} ids {len(missing)} are missing {missing[:3]}, {len(more)} are too many {more[:3]}"
    for place, id_ in enumerate(part["ids"]):
        row = rows[id_]
        if not _same_vector(row.vector, part["vectors"][place]):
            return f"id {id_!r} has vector {part['vectors'][place][:4]}, was given {row.vector[:4]}"
        if part["documents"][place] != row.document:
            return (
                f"id {id_!r} has document {str(part['documents'][place])[:50]!r}, was given {str(row.document)[:50]!r}"
            )
        if not _same_metadata(part["metadatas"][place] or {}, row.metadata):
            return f"id {id_!r} has metadata {part['metadatas'][place]}, was given {row.metadata}"
        if part["uris"][place] != row.uri:
            return f"id {id_!r} has URI {part['uris'][place]!r}, was given {row.uri!r}"
    return None


def _same_vector(given: list[float], found: list[float]) -> bool:
    """Bit for bit but for NaN, or as a cosine index rounds."""
    wanted, got = np.array(given, np.float32), np.array(found, np.float32)
    if wanted.shape != got.shape:
        return False
    with np.errstate(all="ignore"):
        size = float(np.abs(wanted.astype(np.float64)).max(initial=0))
        close = np.allclose(wanted, got, rtol=0, atol=_COSINE_ROUNDING * size, equal_nan=True)
    return np.array_equal(wanted, got, equal_nan=True) or bool(math.isfinite(size) and close)


def _same_metadata(found: dict[str, Any], given: dict[str, Any]) -> bool:
    return found.keys() == given.keys() and all(_same_value(found[key], given[key]) for key in given)


def _same_value(found: Any, given: Any) -> bool:
    if isinstance(given, list) and isinstance(found, list):
        return len(found) == len(given) and all(map(_same_value, found, given))
    if isinstance(given, float) and isinstance(found, float):
        return math.isclose(found, given, rel_tol=1e-15) or (math.isnan(found) and math.isnan(given))
    return type(found) is type(given) and bool(found == given)
