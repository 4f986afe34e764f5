"""The truth on a delta: real Chroma is asked for everything that was stored, twice, in disposable children.

The process that calls this must have imported chromadb and may never have opened a client: its children then start in
milliseconds, and each is as fresh as a new process.
"""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from bench.score.children import Emit, Ended, forked, in_folder
from devtools.damage.deltas import CollectionContent, DeltaContent
from shared.inspection.probe.program import opened

_OPENS = 2
_NEAREST = 10
FEW = 0.5  # an index that finds less than this share of its vectors has come apart
TOGETHER = 50  # texts in one search
_DIGITS = 1e-9
_COSINE_DIGITS = 1e-6
WORDS = ("amber", "cedar delta", "number 3", "no such words")


@dataclass(frozen=True, slots=True)
class Truth:
    """What Chroma makes of a delta.

    Args:
        harm: What is wrong, in a few words; empty when all that was stored comes back, twice.
        sort: Of harm: `fails`, `dies`, `loss` (ids, counts or answers differ) or `values` (every id is there, and
            only the numbers of vectors, texts or metadata are others).
        seed_passes: Whether open, list and count, the check this project began with, see nothing.
    """

    harm: str
    sort: str
    seed_passes: bool

    def as_json(self) -> dict[str, Any]:
        """The fields by name."""
        return asdict(self)


class Expected(Protocol):
    """What should come back of a delta."""

    def differences(self, folder: Path, emit: Emit, *, count_first: bool) -> tuple[list[str], list[str]]:
        """What Chroma gives back otherwise: what is lost, and which values are others.

        Args:
            folder: The delta, which may be written to.
            emit: Is told what is asked; `open`, `list` and `count` come before all else.
            count_first: Whether every collection is counted before anything else is asked.

        Raises:
            BaseException: Whatever Chroma raises.
        """


@dataclass(frozen=True, slots=True)
class Stored:
    """What was stored in the default database.

    Args:
        content: What was stored.
        cosine: Whether its indexes measure by cosine; their vectors come back with a rounding error.
    """

    content: DeltaContent
    cosine: bool

    def differences(self, folder: Path, emit: Emit, *, count_first: bool) -> tuple[list[str], list[str]]:
        """As `Expected` says."""
        return _differences(folder, self.content, self.cosine, emit, count_first=count_first)


def ask_chroma(delta: Path, expected: Expected, scratch: Path) -> Truth:
    """Compares what Chroma reads from a delta with what should come back.

    Args:
        delta: The delta. Only copies of it are opened.
        expected: What should come back.
        scratch: An empty folder for the copies.
    """
    seed_passes = True
    for attempt in range(2):
        copy = scratch / f"copy-{attempt}"
        shutil.copytree(delta, copy)
        try:
            ended = _opened_twice(copy, expected)
        finally:
            shutil.rmtree(copy)
        seed_passes = ended.seed_passes if attempt == 0 else seed_passes and ended.seed_passes
        if ended.sort != "dies":  # a crash is looked at again: it may be the machine's
            return Truth(ended.harm, ended.sort, seed_passes)
    return Truth(ended.harm, ended.sort, seed_passes)


def _opened_twice(copy: Path, expected: Expected) -> Truth:
    seed_passes = True
    for opening in range(_OPENS):

        def read(emit: Emit, first: bool = opening == 0) -> Any:
            return expected.differences(copy, emit, count_first=first)

        ended = forked(in_folder(copy.parent, read))
        if opening == 0:
            seed_passes = _passed_count(ended)
        harm, sort = _judged(ended)
        if harm:
            return Truth(f"second open: {harm}" if opening else harm, sort, seed_passes)
    return Truth("", "", seed_passes)


def _passed_count(ended: Ended) -> bool:
    return ended.value is not None or ended.stage not in ("start", "open", "list", "count")


def _judged(ended: Ended) -> tuple[str, str]:
    if ended.trouble:
        return ended.trouble, "dies" if ended.died else "fails"
    losses, values = ended.value
    return "; ".join([*losses, *values])[:300], "loss" if losses else "values"


def _differences(
    folder: Path, content: DeltaContent, cosine: bool, emit: Emit, *, count_first: bool
) -> tuple[list[str], list[str]]:
    """What Chroma gives back otherwise than it was stored: what is lost, and which values are others."""
    emit("open")
    client = opened(str(folder))
    emit("list")
    collections = {collection.name: collection for collection in client.list_collections()}
    if count_first:
        emit("count")
        for collection in collections.values():
            collection.count()
    emit("counted")
    expected = {collection.name: collection for collection in content.collections}
    losses, values = [], []
    renamed = _renamed(collections, expected, cosine, emit)
    values += [f"collection {old!r} is called {new!r}" for old, new in renamed.items()]
    if {*collections} - {*renamed.values()} != {*expected} - {*renamed}:
        losses.append(f"collections {sorted(collections)} instead of {sorted(expected)}"[:200])
    for name in sorted(expected.keys() & collections.keys()):
        lost, changed = _compare(collections[name], expected[name], cosine, emit)
        losses += lost
        values += changed
    emit("close")
    client.close()
    return losses, values


def _renamed(
    collections: Mapping[str, Any], expected: Mapping[str, CollectionContent], cosine: bool, emit: Emit
) -> dict[str, str]:
    """The new name of each collection whose name alone has changed."""
    strange = sorted(collections.keys() - expected.keys())
    renamed = {}
    for name in sorted(expected.keys() - collections.keys()):
        same_content = [new for new in strange if _compare(collections[new], expected[name], cosine, emit) == ([], [])]
        if same_content:
            renamed[name] = same_content[0]
            strange.remove(same_content[0])
    return renamed


def _compare(collection: Any, expected: CollectionContent, cosine: bool, emit: Emit) -> tuple[list[str], list[str]]:
    losses, values = [], []
    emit("get")
    found = collection.get(include=["embeddings", "documents", "metadatas"])
    emit("count again")
    count = collection.count()
    order = sorted(range(len(found["ids"])), key=found["ids"].__getitem__)
    ids = tuple(found["ids"][i] for i in order)
    if count != len(expected.ids):
        losses.append(f"counts {count} of {len(expected.ids)}")
    if ids != expected.ids:
        lost, new = set(expected.ids) - set(ids), set(ids) - set(expected.ids)
        losses.append(f"gets {len(ids)} of {len(expected.ids)} ids ({len(lost)} lost, {len(new)} unknown)")
    else:
        vectors = np.asarray(found["embeddings"], dtype=np.float32)[order]
        if ids and (vectors.shape != expected.vectors.shape or not np.isfinite(vectors).all()):
            losses.append(f"vectors of shape {vectors.shape}, {int((~np.isfinite(vectors)).sum())} numbers not finite")
        elif ids:
            others = _other_vectors(vectors, expected.vectors, cosine)
            values += [f"{others} vectors differ"] if others else []
        texts = sum(found["documents"][i] != text for i, text in zip(order, expected.documents, strict=True))
        values += [f"{texts} documents differ"] if texts else []
        metadatas = [found["metadatas"][i] for i in order]
        others = sum(not same(*pair) for pair in zip(metadatas, expected.metadatas, strict=True))
        values += [f"{others} metadata differ"] if others else []
    losses += _query(collection, expected, emit)
    losses += _lookups(collection, expected, emit, values)
    return losses, values


def _other_vectors(found: Any, stored: Any, cosine: bool) -> int:
    if cosine:
        return int((~np.isclose(found, stored, rtol=_COSINE_DIGITS, atol=0)).any(axis=1).sum())
    return int((found.view(np.uint32) != stored.view(np.uint32)).any(axis=1).sum())


def same(found: Any, stored: Any) -> bool:
    """Whether two values of metadata are the same, apart from the last digits of numbers."""
    if isinstance(stored, Mapping) and isinstance(found, Mapping):
        return found.keys() == stored.keys() and all(same(found[key], value) for key, value in stored.items())
    if isinstance(stored, float) and isinstance(found, float):
        return math.isclose(found, stored, rel_tol=_DIGITS) or found == stored
    if isinstance(stored, list | tuple) and isinstance(found, list | tuple):
        return len(found) == len(stored) and all(map(same, found, stored))
    return type(found) is type(stored) and bool(found == stored)


def _query(collection: Any, expected: CollectionContent, emit: Emit) -> list[str]:
    """Queries must work and know no other ids. Which they find varies on healthy deltas, but never by half."""
    if not expected.ids:
        return []
    emit("query")
    known, losses = set(expected.ids), []
    queries = [expected.vectors[0], -expected.vectors[-1], np.ones(expected.dimension, dtype=np.float32)]
    nearest = collection.query(
        query_embeddings=queries, n_results=min(_NEAREST, len(known)), include=["distances", "documents"]
    )
    unknown = {id_ for row in nearest["ids"] for id_ in row} - known
    if unknown:
        losses.append(f"a query finds {len(unknown)} unknown ids")
    emit("query for all")
    found = collection.query(query_embeddings=[queries[0]], n_results=len(known), include=[])["ids"][0]
    if set(found) - known:
        losses.append(f"a query for all finds {len(set(found) - known)} unknown ids")
    if len(set(found)) < FEW * len(known):
        losses.append(f"a query for all finds {len(set(found))} of {len(known)}")
    return losses


def _lookups(collection: Any, expected: CollectionContent, emit: Emit, values: list[str]) -> list[str]:
    """Searches of text and metadata against the documents and metadata that were stored."""
    losses = []
    emit("text search")
    for word in WORDS:
        found = set(collection.get(where_document={"$contains": word}, include=[])["ids"])
        pairs = zip(expected.ids, expected.documents, strict=True)
        if found != {id_ for id_, text in pairs if text is not None and word in text} and not values:
            losses.append(f"search for {json.dumps(word)} finds {len(found)} others")
    texts = [(id_, text) for id_, text in zip(expected.ids, expected.documents, strict=True) if text and len(text) > 2]
    for start in range(0, len(texts), TOGETHER):
        some = texts[start : start + TOGETHER]
        wanted = [{"$contains": text} for _, text in some]
        found = set(collection.get(where_document={"$or": wanted} if len(wanted) > 1 else wanted[0], include=[])["ids"])
        missed = sum(id_ not in found for id_, _ in some)
        if missed and not values:
            losses.append(f"search for their own texts misses {missed} of {len(some)}")
    if expected.ids:
        emit("text query")
        collection.query(
            query_embeddings=[expected.vectors[0]], n_results=1, where_document={"$contains": WORDS[0]}, include=[]
        )
    for key, value in one_of_each_type(expected.metadatas):
        emit(f"where {key} is a {type(value).__name__}")
        matching = set(collection.get(where={key: value}, include=[])["ids"])
        rows = zip(expected.ids, expected.metadatas, strict=True)
        ids = {id_ for id_, row in rows if row and same(row.get(key), value)}
        if matching != ids and not values and not isinstance(value, float):  # whose last digit may be another
            losses.append(
                f"search for a {type(value).__name__} in metadata finds {len(matching)} instead of {len(ids)}"
            )
    return losses


def one_of_each_type(metadatas: Iterable[Mapping[str, Any] | None]) -> list[tuple[str, Any]]:
    """A key and a value of each type that a filter takes: each type has a column and an index of its own."""
    found: dict[type, tuple[str, Any]] = {bool: ("even", True)}
    for row in metadatas:
        for key, value in (row or {}).items():
            if type(value) in (str, int, float):
                found.setdefault(type(value), (key, value))
    return list(found.values())
