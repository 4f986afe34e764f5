"""What was merged, compared with what Chroma itself gives back of the deltas that went in, before it is uploaded.

Our own reader wrote it. Where that takes the bytes for something else than Chroma does, such as an index for one of
another distance, the result holds wrong values, and our reader finds nothing wrong with it. So Chroma is asked, in
child processes on copies, for a sample of the embeddings: of each delta, and of the result.
"""

from __future__ import annotations

import heapq
import random
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence, Set
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from compaction.errors import MergeDiffers
from shared.inspection.probe.agreement import same, same_vectors
from shared.inspection.probe.sample import ChromaRefused, Embedding, Sample, read_sample
from shared.inspection.values import shown, some
from shared.model.delta import DeltaLocation
from shared.model.errors import CouldNotCheck

_OF_EACH, _IN_ALL = 20, 1000
_DISTANCE_DIGITS = 1e-2  # another distance differs by far more
_VECTOR = "vector"


class Choice:
    """Chooses which embeddings are compared, while they are read: of each collection of each delta some by chance.

    The same deltas give the same ones in every run.

    Args:
        parts: Of how many collections of deltas.
    """

    def __init__(self, parts: int) -> None:
        self._most = max(1, min(_OF_EACH, _IN_ALL // max(1, parts)))
        self._counts: dict[tuple[DeltaLocation, str], int] = defaultdict(int)
        self._chances: dict[tuple[DeltaLocation, str], random.Random] = {}
        self._drawn: dict[tuple[DeltaLocation, str], list[tuple[float, str]]] = defaultdict(list)

    def see(self, delta: DeltaLocation, collection: str, ids: Sequence[str]) -> None:
        """Takes note of embeddings that were read."""
        part = (delta, collection)
        chance = self._chances.setdefault(part, random.Random(f"{delta.uri} {collection}"))  # noqa: S311 - repeatable
        drawn = ((chance.random(), id_) for id_ in ids)
        self._drawn[part] = heapq.nsmallest(self._most, (*self._drawn[part], *drawn))
        self._counts[part] += len(ids)

    @property
    def read(self) -> int:
        """How many embeddings were read in all."""
        return sum(self._counts.values())

    def count(self, delta: DeltaLocation, collection: str) -> int:
        """How many embeddings of a collection were read of a delta."""
        return self._counts[delta, collection]

    def of_delta(self, delta: DeltaLocation, collection: str) -> set[str]:
        """The ids that were chosen of a collection of a delta."""
        return {id_ for _, id_ in self._drawn[delta, collection]}

    def of_all(self, collection: str) -> list[str]:
        """Those of all deltas: a later one may hold what was chosen of an earlier one."""
        return sorted(set().union(*(self.of_delta(*part) for part in [*self._drawn] if part[1] == collection)))


@dataclass(frozen=True, slots=True)
class Comparison:
    """What is compared with what.

    Args:
        folders: The deltas that went in.
        orders: For each collection the deltas that hold it, in the order in which they went in.
        cosine: The collections that were written to measure by cosine, which rounds vectors.
        choice: What was read of the deltas.
        seconds: How long Chroma may take over one delta.
    """

    folders: Mapping[DeltaLocation, Path]
    orders: Mapping[str, Sequence[DeltaLocation]]
    cosine: Set[str]
    choice: Choice
    seconds: float

    def require_same(self, result: Path) -> None:
        """Compares what was written with what Chroma gives back of the deltas.

        Args:
            result: The directory that was written.

        Raises:
            MergeDiffers: Chroma gives back something else of a delta than was written, or cannot read one of the two.
            CouldNotCheck: It could not be asked.
        """
        expected: dict[str, dict[str, _Expected]] = {name: defaultdict(_Expected) for name in self.orders}
        for delta, folder in self.folders.items():
            names = [name for name, order in self.orders.items() if delta in order]
            for name, sample in self._ask(folder, names, delta.uri).items():
                self._require_read(delta, name, sample)
                for id_, embedding in sample.embeddings.items():
                    expected[name][id_].take(self.orders[name].index(delta), delta, embedding)
        written = self._ask(result, [*self.orders], "what was merged")
        for name, embeddings in expected.items():
            self._require_written(name, embeddings, written[name])

    def _ask(self, folder: Path, names: Sequence[str], place: str) -> dict[str, Sample]:
        ids = {name: self.choice.of_all(name) for name in names}
        try:
            return read_sample(folder, ids, self.seconds) if ids else {}
        except ChromaRefused as error:
            raise MergeDiffers(place, f"Chroma cannot read it: {error}") from error
        except CouldNotCheck as fault:
            detail = f"asking Chroma for embeddings of {place}, to compare what was merged: {fault.detail}"
            raise CouldNotCheck(fault.code, detail) from fault

    def _require_read(self, delta: DeltaLocation, name: str, sample: Sample) -> None:
        """What was read of a delta must be what Chroma knows of it."""
        read = self.choice.count(delta, name)
        if sample.count != read:
            reason = f"Chroma counts {sample.count} embeddings in its collection {shown(name)}, and {read} were merged"
            raise MergeDiffers(delta.uri, reason)
        unknown = self.choice.of_delta(delta, name) - sample.embeddings.keys()
        if unknown:
            reason = f"Chroma does not know {len(unknown)} ids in its collection {shown(name)}: {some(unknown)}"
            raise MergeDiffers(delta.uri, reason)

    def _require_written(self, name: str, expected: Mapping[str, _Expected], written: Sample) -> None:
        """What was written must be what Chroma gives back of the deltas. The first that does not is named."""
        others: dict[tuple[str, str], set[str]] = defaultdict(set)
        distances: dict[str, list[bool]] = defaultdict(list)
        for id_, embedding in expected.items():
            found = written.embeddings.get(id_)
            for delta, part in embedding.differences(found, cosine=name in self.cosine):
                others[delta, part].add(id_)
            if found is not None and embedding.distance is not None and found.distance is not None:
                close = np.isclose(found.distance, embedding.distance, _DISTANCE_DIGITS, equal_nan=True)
                distances[embedding.vector_of].append(bool(close))
        for (delta, part), ids in others.items():
            reason = f"Chroma gives back another {part} of {len(ids)} embeddings of its collection {shown(name)}"
            raise MergeDiffers(delta, f"{reason} than was merged: {some(ids)}")
        for delta, near in distances.items():
            if 2 * sum(near) < len(near):  # one may be rounding, or more than a float32 can be
                reason = f"Chroma measures by another distance in its collection {shown(name)} than was merged"
                raise MergeDiffers(delta, reason)


class _Expected:
    """What an embedding must have become by the upserts of all deltas, in whatever order these are taken in.

    `distance` is that of its vector.
    """

    def __init__(self) -> None:
        self._newest: dict[str, tuple[int, str, Any]] = {}
        self.distance: float | None = None

    @property
    def vector_of(self) -> str:
        """The delta that its vector is of."""
        return self._newest[_VECTOR][1]

    def take(self, position: int, delta: DeltaLocation, embedding: Embedding) -> None:
        """Takes in what one delta holds of it: what that does not have is kept of the deltas before."""
        for part, value in _parts(embedding).items():
            if part not in self._newest or self._newest[part][0] < position:
                self._newest[part] = (position, delta.uri, value)
                if part == _VECTOR:
                    self.distance = embedding.distance

    def differences(self, written: Embedding | None, *, cosine: bool) -> Iterator[tuple[str, str]]:
        """Which parts of it are others than was written, and the delta that each is of."""
        parts = _parts(written) if written else {}
        for part, (_, delta, value) in self._newest.items():
            if part not in parts or not _same(value, parts[part], cosine=cosine):
                yield delta, part
        for part in parts.keys() - self._newest.keys():
            yield self.vector_of, part


def _parts(embedding: Embedding) -> dict[str, Any]:
    """What an upsert replaces, each by itself; nothing where it keeps what there was."""
    parts: dict[str, Any] = {f"metadata {shown(key)}": value for key, value in embedding.metadata.items()}
    parts |= {"document": embedding.document, "URI": embedding.uri}
    return {_VECTOR: embedding.vector} | {part: value for part, value in parts.items() if value is not None}


def _same(one: Any, other: Any, *, cosine: bool) -> bool:
    if isinstance(one, np.ndarray):
        return one.shape == other.shape and bool(same_vectors(one[None], other[None], cosine=cosine)[0])
    return same(one, other)
