"""What Chroma gives back of some embeddings of a healthy delta, asked in a child process on a disposable copy."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from shared.inspection.probe.answers import Answer, pages
from shared.inspection.probe.chroma import ask_twice
from shared.model.errors import DeltaguardError, faults_explained
from shared.model.verdict import Finding
from shared.storage.scratch import scratch_folder


class ChromaRefused(DeltaguardError):
    """Chroma could not read a delta, twice in fresh processes."""


@dataclass(frozen=True, slots=True)
class Embedding:
    """One embedding as Chroma gives it back.

    Args:
        vector: Float32.
        document: Its text, or None.
        metadata: Its metadata, empty where there is none.
        uri: Its URI, or None.
        distance: Of its vector from `sampler.question`, by the distance of the index; None where a query did not find
            it, as may happen where many vectors are equal.
    """

    vector: NDArray[np.float32]
    document: str | None
    metadata: Mapping[str, Any]
    uri: str | None
    distance: float | None = None


@dataclass(frozen=True, slots=True)
class Sample:
    """What Chroma gives back of one collection.

    Args:
        count: How many embeddings it counts.
        embeddings: Those that were asked for and are there, by id.
    """

    count: int
    embeddings: Mapping[str, Embedding]


def read_sample(folder: Path, ids: Mapping[str, Sequence[str]], seconds: float) -> dict[str, Sample]:
    """Has Chroma read some embeddings of a healthy delta.

    Operations on other embeddings are removed from the queue of the copy first, as far as they are in the rows
    already. So Chroma builds no index of them, which may take minutes, and gives back the same of what is asked for.

    Args:
        folder: The delta. It is copied and never opened itself.
        ids: Of each collection of the default database that is asked for, the ids of the embeddings.
        seconds: Time limit of one process.

    Returns:
        What it gave back, by the name of the collection.

    Raises:
        ChromaRefused: Chroma fails or dies of it, twice.
        CouldNotCheck: It could not be asked.
    """
    found: dict[str, Sample] = {}

    def look(answer: Answer, records: Path) -> list[Finding]:
        found.update(_samples(answer, records))
        return []

    with scratch_folder() as scratch:
        asked = scratch / "asked"
        with faults_explained("writing what a probe is asked for"):
            asked.write_text(json.dumps({name: list(some) for name, some in ids.items()}))
        outcome = ask_twice(folder, seconds, look, len(ids), asked=asked)
    if outcome.findings:
        raise ChromaRefused(outcome.findings[0].detail)
    return found


def _samples(answer: Answer, records: Path) -> dict[str, Sample]:
    names = {seen.id: seen.name for seen in answer.collections}
    embeddings: dict[str, dict[str, Embedding]] = {name: {} for name in names.values()}
    found = pages(records)
    for (id_, page), (_, distances) in zip(found, found, strict=True):  # they come in pairs
        of_collection = embeddings[names[id_]]
        of_collection.update(
            (key, Embedding(vector, text, metadata or {}, uri))
            for key, vector, text, metadata, uri in zip(
                page.ids, page.vectors, page.documents, page.metadatas, page.uris, strict=True
            )
        )
        for key, distance in zip(distances.ids, distances.vectors[:, 0].tolist(), strict=True):
            of_collection[key] = replace(of_collection[key], distance=distance)
    return {seen.name: Sample(seen.count, embeddings[seen.name]) for seen in answer.collections}
