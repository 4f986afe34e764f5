"""What Chroma gives back of a healthy delta, compared with our reading of its bytes: ids, and value by value."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from shared.inspection.chroma.contents import Records, StoredCollection, Unreadable, opened_delta
from shared.inspection.chroma.records import Contents
from shared.inspection.probe.answers import Answer, Seen, pages
from shared.inspection.values import shown, some
from shared.model.verdict import Finding

DEFAULT_PLACE = ("default_database", "default_tenant")
COSINE_DIGITS = 1e-5
"""Relative to a vector's length: a cosine index keeps unit vectors and lengths apart, and multiplies again."""
_NUMBER_DIGITS = 1e-9
_PARTS = ("vectors", "documents", "metadata", "URIs")


def differences(
    answer: Answer, found: Path, expected: Sequence[Contents], folder: Path, *, searchable: bool = True
) -> list[Finding]:
    """What Chroma gives back otherwise than the bytes hold it; empty where it gives back all.

    Args:
        answer: What it answered, to its end.
        found: The file with what it gave back.
        expected: What the records of the delta say it holds.
        folder: The delta, whose structure is sound.
        searchable: Whether a full-text query must find what is there.

    Raises:
        CouldNotCheck: One of the two could not be read for a reason outside the bytes.
    """
    missing = [*_ids(answer.collections, expected), *unanswered(answer, searchable=searchable)]
    details = missing or [*_values(answer, found, folder)]
    return [Finding("chroma.content_differs", "", detail) for detail in details]


def unanswered(answer: Answer, *, searchable: bool = True) -> Iterator[str]:
    """In words, which questions Chroma answered with nothing although the answer is there."""
    for seen in answer.collections:
        for question in seen.unanswered:
            if question.startswith("full-text") and not searchable:
                continue
            yield f"a {question} of {shown(seen.name)} finds nothing, or too little, of its {seen.ids} embeddings"


def same(one: Any, other: Any) -> bool:
    """Whether two values of metadata are the same, apart from the last digits of numbers, of which Chroma loses one."""
    if isinstance(one, float) and isinstance(other, float):
        both_nan = math.isnan(one) and math.isnan(other)
        return one == other or both_nan or math.isclose(one, other, rel_tol=_NUMBER_DIGITS)
    if isinstance(one, Mapping) and isinstance(other, Mapping):
        return one.keys() == other.keys() and all(same(value, other[key]) for key, value in one.items())
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(map(same, one, other))
    return type(one) is type(other) and bool(one == other)


def same_vectors(ones: NDArray[np.float32], others: NDArray[np.float32], *, cosine: bool) -> NDArray[np.bool_]:
    """Which rows of two matrices are the same, number for number; NaN is the same as NaN."""
    with np.errstate(all="ignore"):
        equal = (ones == others) | (np.isnan(ones) & np.isnan(others))
        if cosine:
            lengths = np.sqrt(np.square(others, dtype=np.float64).sum(axis=1, keepdims=True))
            equal |= np.abs(ones - others) <= COSINE_DIGITS * lengths
    return np.asarray(equal.all(axis=1))


def _ids(seen: Iterable[Seen], expected: Iterable[Contents]) -> Iterator[str]:
    """Collections are matched by name, and those of one name in several databases by what they hold."""
    by_name: dict[str, list[Seen]] = defaultdict(list)
    for collection in seen:
        by_name[collection.name].append(collection)
    unmatched = []
    for contents in expected:
        stored = (contents.count.count, contents.count.count, contents.digest)
        namesakes = by_name[contents.count.name]
        match = next((c for c in namesakes if (c.count, c.ids, c.digest) == stored), None)
        if match is None:
            unmatched.append(contents)
        else:
            namesakes.remove(match)
    for contents in unmatched:
        name, stored_count = contents.count.name, contents.count.count
        if not by_name[name]:
            yield f"Chroma lists no collection {name!r}; the bytes hold {stored_count} embeddings of it"
            continue
        other = by_name[name].pop()
        if (other.count, other.ids) != (stored_count, stored_count):
            yield f"Chroma counts {other.count} and returns {other.ids} of the {stored_count} embeddings of {name!r}"
        else:
            yield f"Chroma returns other ids for {name!r} than the bytes hold"


def _values(answer: Answer, found: Path, folder: Path) -> Iterator[str]:
    """Compares what our reader can read: the collections of the default database."""
    names = {c.id: c.name for c in answer.collections if c.ids and (c.database, c.tenant) == DEFAULT_PLACE}
    if not names:
        return
    theirs = pages(found)
    try:
        with opened_delta(folder) as delta:
            stored = {collection.name: collection for collection in delta.collections}
            current = None
            for id_, page in theirs:
                if id_ not in names or names[id_] not in stored:
                    continue
                if current is None or current.id != id_:
                    if current is not None:
                        yield from current.details()
                    collection = stored[names[id_]]
                    current = _Comparison(id_, collection, delta.records(collection.name))
                current.take(page)
            if current is not None:
                yield from current.details()
    except Unreadable:
        return  # our reading cannot tell, and Chroma gave back every id


class _Comparison:
    """One collection, read from both sides at once. Usually both give the embeddings in the same order."""

    def __init__(self, id_: str, collection: StoredCollection, ours: Iterator[Records]) -> None:
        self.id = id_
        self._collection = collection
        self._ours = ours
        self._ahead: dict[str, tuple[Records, int]] = {}
        self._other: dict[str, set[str]] = {part: set() for part in _PARTS}

    def take(self, page: Records) -> None:
        """Compares one page of Chroma's."""
        wanted = [id_ for id_ in page.ids if id_ not in self._ahead]
        while wanted:
            records = next(self._ours, None)
            if records is None:
                break
            self._ahead.update((id_, (records, at)) for at, id_ in enumerate(records.ids))
            wanted = [id_ for id_ in wanted if id_ not in self._ahead]
        found = [(at, *self._ahead.pop(id_)) for at, id_ in enumerate(page.ids) if id_ in self._ahead]
        if found:
            self._compare(page, found)

    def _compare(self, page: Records, found: list[tuple[int, Records, int]]) -> None:
        ours = np.stack([records.vectors[at] for _, records, at in found])
        theirs = page.vectors[[at for at, _, _ in found]]
        cosine = self._collection.cosine
        equal = same_vectors(theirs, ours, cosine=cosine) if theirs.shape == ours.shape else np.zeros(len(ours), bool)
        for (at, records, place), same_vector in zip(found, equal.tolist(), strict=True):
            checks = (
                same_vector,
                page.documents[at] == records.documents[place],
                same(page.metadatas[at], records.metadatas[place]),
                page.uris[at] == records.uris[place],
            )
            for part, is_same in zip(_PARTS, checks, strict=True):
                if not is_same:
                    self._other[part].add(page.ids[at])

    def details(self) -> Iterator[str]:
        """What differs, in words."""
        for part, ids in self._other.items():
            if ids:
                name = shown(self._collection.name)
                yield f"Chroma gives back other {part} of {len(ids)} embeddings of {name} than the bytes: {some(ids)}"
