"""What Deltaguard says of a directory: at every depth, and what it reads from the bytes."""

from __future__ import annotations

import math
from collections.abc import Container, Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from devtools.zoo.history import DEFAULT
from devtools.zoo.truth import Answer
from shared.check.judgement import judge_folder
from shared.inspection.chroma.contents import OpenDelta, Records, opened_delta
from shared.model.errors import DeltaguardError
from shared.model.settings import Settings
from shared.model.verdict import Depth, Status

_PROBE_SECONDS = 900.0
_ROUNDED = 2.0**-22  # of a vector's length


@dataclass(frozen=True, slots=True)
class Opinion:
    """What Deltaguard says.

    Args:
        statuses: The status, by depth.
        findings: What it found that is more than a note, each as `depth code: detail`.
        content: How the contents it reads differ from Chroma's answer; empty where they do not.
    """

    statuses: dict[str, str]
    findings: tuple[str, ...]
    content: str

    @property
    def healthy(self) -> bool:
        """Whether it says so at every depth."""
        return set(self.statuses.values()) == {Status.HEALTHY.value}

    @property
    def unsettled(self) -> bool:
        """Whether all that it finds is the journal of a writer that was killed where it lies."""
        return self.codes == ("layout.journal_unsettled",) and Status.CORRUPT not in self.statuses.values()

    @property
    def codes(self) -> tuple[str, ...]:
        """The codes of what it found, sorted."""
        return tuple(sorted({finding.split(" ", 1)[1].split(":", 1)[0] for finding in self.findings}))


def opinion(folder: Path, answer: Answer | None, depths: Iterable[Depth] = tuple(Depth)) -> Opinion:
    """Judges a directory, and reads it.

    Args:
        folder: The directory. It is not written to.
        answer: What Chroma gave back of it, None where that is not to be compared.
        depths: At which depths.
    """
    settings = replace(Settings(), probe_timeout_seconds=_PROBE_SECONDS)
    statuses, findings = dict[str, str](), list[str]()
    for depth in depths:
        verdict = judge_folder(folder, depth, settings).verdict
        statuses[depth.value] = verdict.status.value
        if verdict.status is not Status.HEALTHY:
            findings += [f"{depth.value} {found.code}: {found.detail}" for found in verdict.findings]
    return Opinion(statuses, tuple(findings), "" if answer is None else content_difference(folder, answer))


def content_difference(folder: Path, answer: Answer) -> str:
    """How the contents read from the bytes differ from Chroma's answer about the default database; empty if not."""
    wanted = {part["name"]: part for part in answer["collections"] if tuple(part["at"]) == DEFAULT}
    try:
        with opened_delta(folder) as delta:
            names = [collection.name for collection in delta.collections]
            if sorted(names) != sorted(wanted):
                return f"collections {sorted(names)}, Chroma has {sorted(wanted)}"
            for collection in delta.collections:
                if collection.metadata != wanted[collection.name]["metadata"]:
                    found, want = collection.metadata, wanted[collection.name]["metadata"]
                    return f"{collection.name}: collection metadata {found}, Chroma has {want}"
                why = _records_difference(delta, collection.name, wanted[collection.name])
                if why:
                    return f"{collection.name}: {why}"
    except DeltaguardError as error:
        return f"{type(error).__name__}: {error}"
    return ""


def _records_difference(delta: OpenDelta, name: str, part: dict[str, Any]) -> str:
    order: list[str] = []
    for records in delta.records(name):
        order += records.ids
        if why := _page_difference(records, part):
            return why
    if sorted(order) != sorted(part["ids"]):
        return f"{len(order)} ids, Chroma has {len(part['ids'])}"
    return ""


def _page_difference(records: Records, part: dict[str, Any], tolerance: float = 0) -> str:
    place = {id_: number for number, id_ in enumerate(part["ids"])}
    for number, id_ in enumerate(records.ids):
        if id_ not in place:
            return f"id {id_!r}, which Chroma has not"
        at = place[id_]
        vector = np.array(part["vectors"][at], np.float32)
        if not _near(records.vectors[number], vector, tolerance):
            return f"id {id_!r}: vector {records.vectors[number][:4].tolist()}, Chroma has {vector[:4].tolist()}"
        for what, found, want in (
            ("document", records.documents[number], part["documents"][at]),
            ("metadata", records.metadatas[number], part["metadatas"][at]),
            ("URI", records.uris[number], part["uris"][at]),
        ):
            if not _equal(found, want):
                return f"id {id_!r}: {what} {str(found)[:200]!r}, Chroma has {str(want)[:200]!r}"
    return ""


def answers_difference(found: Answer, wanted: Answer, *, cosine: Container[str] = ()) -> str:
    """How one answer of Chroma's differs from another in embeddings; empty if not.

    Args:
        found: One.
        wanted: The other.
        cosine: Names of collections whose vectors may differ in their last digits: a cosine index rounds what is put
            into it, also what was in another one before.
    """
    parts = [{(*part["at"], part["name"]): part for part in answer["collections"]} for answer in (found, wanted)]
    if parts[0].keys() != parts[1].keys():
        return f"collections {sorted(parts[0])} instead of {sorted(parts[1])}"
    for place, part in parts[1].items():
        other = parts[0][place]
        if len(other["ids"]) != len(part["ids"]):
            return f"{place}: {len(other['ids'])} ids instead of {len(part['ids'])}"
        records = Records(
            other["ids"],
            np.array(other["vectors"], np.float32),
            other["documents"],
            other["metadatas"],
            other["uris"],
        )
        if why := _page_difference(records, part, _ROUNDED if part["name"] in cosine else 0):
            return f"{place}: {why}"
    return ""


def _near(found: NDArray[np.float32], want: NDArray[np.float32], tolerance: float) -> bool:
    with np.errstate(all="ignore"):
        apart = np.abs(found.astype(np.float64) - want).max(initial=0)
        return np.array_equal(found, want, equal_nan=True) or bool(apart <= tolerance * np.linalg.norm(want))


def _equal(found: Any, want: Any) -> bool:
    if isinstance(found, dict) and isinstance(want, dict):
        return found.keys() == want.keys() and all(_equal(found[key], want[key]) for key in want)
    if isinstance(found, list) and isinstance(want, list):
        return len(found) == len(want) and all(map(_equal, found, want))
    if isinstance(found, float) and isinstance(want, float) and math.isnan(want):
        return math.isnan(found)
    return type(found) is type(want) and bool(found == want)
