"""Healthy deltas of all kinds: recipes, what people do to a closed database, and random histories of a collection."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from devtools.damage.deltas import CollectionContent, DeltaContent, DeltaRecipe, Metadata, _client, build_delta
from devtools.damage.file_breaks import connected

Make = Callable[[Path, int], tuple[DeltaContent, bool]]
"""Makes a healthy delta of a seed in a folder. Returns what it stores, and whether it measures by cosine."""

_SIZES = (0, 1, 2, 5, 20, 50, 99, 100, 101, 350, 999, 1000, 1001, 1200)
_STEMS = ("row", "größe", "a/b", "数")
_WORDS = ("amber", "birch", "cedar delta", "ÄÖÜ", "数据", "🜁", "number 3", "quote ' \" \\", "a\nline", "x" * 40)


def _recipe(recipe: DeltaRecipe) -> Make:
    def make(folder: Path, seed: int) -> tuple[DeltaContent, bool]:
        return build_delta(folder, replace(recipe, seed=seed)), recipe.space == "cosine"

    return make


def _finished(make: Make, finish: Callable[[Path], None]) -> Make:
    def made(folder: Path, seed: int) -> tuple[DeltaContent, bool]:
        content = make(folder, seed)
        finish(folder)
        return content

    return made


def _statements(*statements: str) -> Callable[[Path], None]:
    def finish(folder: Path) -> None:
        with connected(folder) as database:
            for statement in statements:
                database.execute(statement).fetchall()

    return finish


def _collection_deleted(folder: Path) -> None:
    """Add a collection to a delta, fill it beyond a flush, and delete it again."""
    with _client(folder) as client:
        collection = client.create_collection(
            "doomed", embedding_function=None, configuration={"hnsw": {"sync_threshold": 10, "batch_size": 10}}
        )
        for start in (0, 15):
            ids = [f"doomed-{start + i}" for i in range(15)]
            vectors = np.random.default_rng(start).standard_normal((15, 8)).astype(np.float32)
            collection.add(ids=ids, embeddings=vectors, documents=[f"amber text of {id_}" for id_ in ids])
        client.delete_collection("doomed")


def _reopened(folder: Path) -> None:
    """Open and read a delta once more, as a curious producer does: Chroma writes to what it opens."""
    with _client(folder) as client:
        for collection in client.list_collections():
            collection.count()
            collection.get(include=["embeddings"], limit=3)


def history(folder: Path, seed: int) -> tuple[DeltaContent, bool]:
    """A delta with a random past: adds, upserts, updates, deletes, reopened clients and deleted collections."""
    rng = random.Random(seed)  # noqa: S311 -- repeatable, not secret
    space = rng.choice(("l2", "cosine", "ip"))
    stories = [_Story(f"story-{i}", rng, space) for i in range(rng.choice((1, 1, 2, 3)))]
    for _ in range(rng.randrange(1, 4)):
        with _client(folder) as client:
            for story in stories:
                story.open(client)
            for _ in range(rng.randrange(1, 14)):
                rng.choice(stories).act()
            if rng.random() < 0.2 and len(stories) > 1:
                client.delete_collection(stories.pop().name)
    contents = sorted((story.content() for story in stories), key=lambda content: content.name)
    return DeltaContent(tuple(contents)), space == "cosine"


class _Story:
    """One collection, and beside it what it must hold."""

    def __init__(self, name: str, rng: random.Random, space: str) -> None:
        self.name = name
        self._rng = rng
        self._numbers = np.random.default_rng(rng.getrandbits(32))
        self._dimension = rng.choice((1, 2, 3, 17, 64))
        self._hnsw: dict[str, Any] = {"space": space}
        if rng.random() < 0.6:
            threshold = rng.choice((5, 10, 30))
            self._hnsw |= {"sync_threshold": threshold, "batch_size": rng.choice((2, threshold))}
        self._rows: dict[str, tuple[Any, str | None, dict[str, Any] | None]] = {}
        self._made = False
        self._collection: Any = None

    def open(self, client: Any) -> None:
        """Get the collection, or create it the first time."""
        if self._made:
            self._collection = client.get_collection(self.name, embedding_function=None)
        else:
            self._collection = client.create_collection(
                self.name, embedding_function=None, configuration={"hnsw": self._hnsw}, metadata={"about": "a story"}
            )
            self._made = True

    def act(self) -> None:
        """Do something to some rows."""
        known = sorted(self._rows)
        some = self._rng.sample(known, min(len(known), self._rng.randrange(1, 12)))
        fresh = sorted({f"{self._rng.choice(_STEMS)}-{self._rng.randrange(400)}" for _ in some or range(7)})
        action = self._rng.choice(("add", "add", "upsert", "update", "metadata", "delete", "again"))
        if action == "add" or not some:
            self._add([id_ for id_ in fresh if id_ not in self._rows] or ["one more"])
        elif action == "upsert":
            self._upsert(sorted({*some, *fresh}))
        elif action == "update":
            self._update(some)
        elif action == "metadata":
            self._change_metadata(some)
        elif action == "delete":
            self._collection.delete(ids=some)
            for id_ in some:
                del self._rows[id_]
        else:
            self._collection.delete(ids=some)
            for id_ in some:
                del self._rows[id_]
            self._add(some)

    def _new(self) -> tuple[Any, str, dict[str, Any]]:
        vector = self._numbers.standard_normal(self._dimension).astype(np.float32)
        text = " ".join(self._rng.choices(_WORDS, k=self._rng.choice((1, 4, 300))))
        even, number = self._rng.random() < 0.5, self._rng.randrange(-5, 2**40)
        return vector, text, {"even": even, "number": number, "part": 0.25, "word": text[:9]}

    def _add(self, ids: list[str]) -> None:
        ids = [id_ for id_ in ids if id_ not in self._rows]
        if ids:
            self._send(self._collection.add, ids)

    def _upsert(self, ids: list[str]) -> None:
        self._send(self._collection.upsert, ids)

    def _update(self, ids: list[str]) -> None:
        self._send(self._collection.update, ids)

    def _send(self, method: Callable[..., Any], ids: list[str]) -> None:
        rows = [self._new() for _ in ids]
        method(
            ids=ids,
            embeddings=np.array([row[0] for row in rows]),
            documents=[row[1] for row in rows],
            metadatas=[row[2] for row in rows],
        )
        for id_, (vector, text, row) in zip(ids, rows, strict=True):
            before = (self._rows[id_][2] or {}) if id_ in self._rows else {}
            self._rows[id_] = (vector, text, before | row)

    def _change_metadata(self, ids: list[str]) -> None:
        word = self._rng.choice(_WORDS)
        self._collection.update(ids=ids, metadatas=[{"word": word, "extra": 1.5} for _ in ids])
        for id_ in ids:
            vector, text, row = self._rows[id_]
            self._rows[id_] = (vector, text, (row or {}) | {"word": word, "extra": 1.5})

    def content(self) -> CollectionContent:
        """What the collection must hold."""
        ids = tuple(sorted(self._rows))
        rows = [self._rows[id_] for id_ in ids]
        metadatas: tuple[Metadata | None, ...] = tuple(row[2] for row in rows)
        vectors = np.array([row[0] for row in rows], dtype=np.float32) if rows else np.empty((0, 0), np.float32)
        dimension = self._dimension if rows else 0
        return CollectionContent(self.name, dimension, ids, vectors, tuple(row[1] for row in rows), metadatas)


_SMALL = DeltaRecipe(embeddings=40)
_FLUSHED = DeltaRecipe(embeddings=70, sync_threshold=20, batch=20)
_PLACES = {"queued": _recipe(_SMALL), "flushed": _recipe(_FLUSHED)}
_FINISHES: dict[str, Callable[[Path], None]] = {
    "vacuumed": _statements("VACUUM"),
    "wal-checkpointed": _statements("PRAGMA journal_mode = WAL", "DELETE FROM acquire_write"),
    "collection-deleted": _collection_deleted,
    "reopened": _reopened,
    "reindexed": _statements("REINDEX", "ANALYZE"),
    "free-pages": _statements("CREATE TABLE scratch AS SELECT zeroblob(50000) AS x", "DROP TABLE scratch"),
    "page-size-changed": _statements("PRAGMA page_size = 8192", "VACUUM"),
    "auto-vacuum": _statements("PRAGMA auto_vacuum = FULL", "VACUUM"),
}

HEALTHY: dict[str, Make] = {
    **{f"healthy-size-{size}": _recipe(DeltaRecipe(embeddings=size)) for size in _SIZES},
    **{
        f"healthy-{space}-{size}": _recipe(DeltaRecipe(embeddings=size, space=space, sync_threshold=30, batch=15))
        for space in ("l2", "cosine", "ip")
        for size in (20, 30, 75)
    },
    **{
        f"healthy-changed-{space}-{size}": _recipe(
            DeltaRecipe(embeddings=size, space=space, updates=9, deletes=9, sync_threshold=threshold, batch=13)
        )
        for space in ("l2", "cosine")
        for size, threshold in ((40, None), (40, 20), (90, 25), (18, 5))
    },
    "healthy-all-deleted": _recipe(DeltaRecipe(embeddings=30, deletes=30)),
    "healthy-all-deleted-flushed": _recipe(DeltaRecipe(embeddings=30, deletes=30, sync_threshold=10, batch=10)),
    "healthy-no-collection": _recipe(DeltaRecipe(collections=0)),
    "healthy-five-collections": _recipe(DeltaRecipe(embeddings=25, collections=5, sync_threshold=20, batch=10)),
    "healthy-dimension-1": _recipe(DeltaRecipe(embeddings=25, dimension=1, sync_threshold=10, batch=5)),
    "healthy-dimension-1536": _recipe(DeltaRecipe(embeddings=60, dimension=1536, sync_threshold=25, batch=25)),
    "healthy-no-documents": _recipe(DeltaRecipe(embeddings=50, documents=False, sync_threshold=20, batch=10)),
    "healthy-threshold-2": _recipe(DeltaRecipe(embeddings=25, sync_threshold=2, batch=1)),
    **{
        f"healthy-{name}-{place}": _finished(make, finish)
        for place, make in _PLACES.items()
        for name, finish in _FINISHES.items()
    },
    **{f"healthy-history-{i}": history for i in range(30)},
}
"""The healthy deltas by kind."""
