"""Deltas made, read back and torn by the real Chroma. It is imported late: it costs half a second and 80 MB."""

from __future__ import annotations

import os
import select
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from shared.inspection.probe.program import opened
from shared.model.delta import DATABASE, JOURNALS

Metadata = Mapping[str, Any]

_WORDS = ("amber", "birch", "cedar", "delta", "ember", "fjord", "grove", "haven", "inlet", "jetty", "knoll", "ledge")
_WRITER_CODE = "import sys; from devtools.damage.deltas import write_until_killed; write_until_killed(*sys.argv[1:])"
_WRITER_ROWS = 2_000
_WRITER_DIMENSION = 256
_WRITER_BATCHES = 200  # about 600 MB: a writer that nobody kills cannot fill a disk
_WRITER_START_SECONDS = 60.0
_COPY_SECONDS = 10.0


@dataclass(frozen=True, eq=False)
class CollectionContent:
    """Everything one collection stores. Two are equal when they hold the same, their vectors bit for bit.

    Args:
        name: Name of the collection.
        dimension: Length of a vector; 0 for an empty collection, since Chroma learns it from the first vector.
        ids: The ids, sorted.
        vectors: One row for each id, in the same order.
        documents: The text of each id, or None.
        metadatas: The metadata of each id, or None.
    """

    name: str
    dimension: int
    ids: tuple[str, ...]
    vectors: NDArray[np.float32]
    documents: tuple[str | None, ...]
    metadatas: tuple[Metadata | None, ...]

    def __eq__(self, other: object) -> bool:
        return (
            isinstance(other, CollectionContent)
            and (self.name, self.dimension, self.ids) == (other.name, other.dimension, other.ids)
            and (self.documents, self.metadatas) == (other.documents, other.metadatas)
            and self.vectors.tobytes() == other.vectors.tobytes()
        )

    __hash__ = None  # type: ignore[assignment]


@dataclass(frozen=True)
class DeltaContent:
    """Everything a delta stores, its collections sorted by name."""

    collections: tuple[CollectionContent, ...]

    @property
    def count(self) -> int:
        """Embeddings of all collections together."""
        return sum(len(collection.ids) for collection in self.collections)


@dataclass(frozen=True)
class DeltaRecipe:
    """What to put into a delta; the same recipe always gives the same content.

    Args:
        embeddings: Embeddings added to each collection, before deletes.
        dimension: Length of the vectors.
        collections: How many collections: `words`, `words-1`, ...; 0 gives a database without any.
        updates: How many embeddings of each collection get a new vector, document and metadata.
        deletes: How many others of each collection are deleted again.
        documents: Whether embeddings have a text.
        space: Distance of the index.
        sync_threshold: Operations after which Chroma flushes vectors to index files; None leaves its default, 1000.
        batch: Rows in one `add` call.
        seed: Changes ids, vectors, texts and metadata.
        collection_name: Name of the first collection, and how the others begin.
    """

    embeddings: int = 50
    dimension: int = 32
    collections: int = 1
    updates: int = 0
    deletes: int = 0
    documents: bool = True
    space: Literal["l2", "cosine", "ip"] = "l2"
    sync_threshold: int | None = None
    batch: int = 100
    seed: int = 0
    collection_name: str = "words"

    def __post_init__(self) -> None:
        if self.updates + self.deletes > self.embeddings:
            raise ValueError(f"{self.updates} updates and {self.deletes} deletes need as many of {self.embeddings}")


@dataclass(frozen=True)
class _Rows:
    """Rows as Chroma's client takes them, all of one length."""

    ids: list[str]
    vectors: NDArray[np.float32]
    documents: list[str | None]
    metadatas: list[Metadata | None]

    def taken(self, positions: NDArray[np.intp]) -> _Rows:
        """The rows at these positions, in their order."""
        return _Rows(
            [self.ids[i] for i in positions],
            self.vectors[positions],
            [self.documents[i] for i in positions],
            [self.metadatas[i] for i in positions],
        )


def build_delta(directory: Path, recipe: DeltaRecipe = DeltaRecipe()) -> DeltaContent:
    """Make a delta with Chroma, close it and return what it stores.

    The vectors returned are those that the client was given. Chroma gives them back bit for bit for `l2` and `ip`.
    A `cosine` index keeps unit vectors and their lengths apart, and multiplies on `get`, flushed or not: there
    about a quarter of the values come back one unit in the last place away (1.2e-7 relative).

    Args:
        directory: Where to; it is created, and may not hold a database yet.

    Raises:
        FileExistsError: There is a database already.
    """
    if (directory / DATABASE).exists():
        raise FileExistsError(f"{directory / DATABASE}: a delta is there already")
    names = [recipe.collection_name, *(f"{recipe.collection_name}-{i}" for i in range(1, recipe.collections))]
    with _client(directory) as client:
        contents = [_fill(client, name, recipe, number) for number, name in enumerate(names[: recipe.collections])]
    return DeltaContent(tuple(sorted(contents, key=lambda content: content.name)))


def read_delta(directory: Path) -> DeltaContent:
    """What Chroma itself reads from a delta. It opens a copy, for Chroma writes to whatever it opens."""
    with tempfile.TemporaryDirectory(prefix="delta-read-") as scratch:
        copy = Path(scratch) / "delta"
        shutil.copytree(directory, copy)
        with opened(str(copy)) as client:
            contents = [_read(collection) for collection in client.list_collections()]
    return DeltaContent(tuple(sorted(contents, key=lambda content: content.name)))


@contextmanager
def writing_client(directory: Path, seed: int = 0) -> Iterator[subprocess.Popen[bytes]]:
    """A child process that adds embeddings to a delta without pause, in large transactions, until the block ends.

    The block begins once the first of them is committed. The child is killed and waited for however it ends.

    Raises:
        RuntimeError: The child died, or wrote nothing within a minute.
    """
    command = [sys.executable, "-c", _WRITER_CODE, str(directory.resolve()), str(seed), str(os.getpid())]
    root = Path(__file__).resolve().parents[2]
    with tempfile.TemporaryFile() as errors:
        process = subprocess.Popen(command, cwd=root, stdout=subprocess.PIPE, stderr=errors)  # noqa: S603 -- ours
        try:
            assert process.stdout is not None
            ready, _, _ = select.select([process.stdout], [], [], _WRITER_START_SECONDS)
            if not ready or not process.stdout.readline():
                process.kill()
                process.wait()
                errors.seek(0)
                raise RuntimeError(f"the writer did not start: {errors.read().decode(errors='replace')[-500:]}")
            yield process
        finally:
            process.kill()
            process.wait()
            if process.stdout is not None:
                process.stdout.close()


def write_until_killed(directory: str, seed: str, parent: str) -> None:
    """The child of `writing_client`: adds batches until it is killed, its parent is gone, or 600 MB are written."""
    rng = np.random.default_rng(int(seed))
    # One block of vectors for all batches, and no flush: nearly all the time is then spent inside transactions.
    vectors = rng.standard_normal((_WRITER_ROWS, _WRITER_DIMENSION)).astype(np.float32)
    with _client(Path(directory)) as client:
        collection = client.create_collection(
            "words", embedding_function=None, configuration={"hnsw": {"sync_threshold": 10_000_000}}
        )
        for batch in range(_WRITER_BATCHES):
            ids = [f"item-{seed}-{batch * _WRITER_ROWS + i}" for i in range(_WRITER_ROWS)]
            collection.add(ids=ids, embeddings=vectors, documents=[f"the text of {name}" for name in ids])
            if os.getppid() != int(parent):
                break
            if batch == 0:
                sys.stdout.write("ready\n")
                sys.stdout.flush()


def copy_while_writing(target: Path, seed: int = 0) -> None:
    """Make a torn copy of a delta in `target`: taken inside a write transaction, with a journal that is not empty.

    A writer of its own runs in a child process. Each try waits for the journal to hold something, copies it, then
    the database and the rest, as a careless upload would. What the copy holds differs from run to run.

    Args:
        target: Where to; it may not exist yet.
        seed: Of the writer's content.

    Raises:
        RuntimeError: No copy caught a journal within ten seconds of writing, or the writer failed.
    """
    tries = 0
    with tempfile.TemporaryDirectory(prefix="delta-torn-") as scratch:
        source = Path(scratch) / "delta"
        with writing_client(source, seed) as writer:
            deadline = time.monotonic() + _COPY_SECONDS
            while time.monotonic() < deadline and writer.poll() is None:
                journal = _bytes_now(source / JOURNALS[0])
                if not journal:
                    continue
                tries += 1
                target.mkdir(parents=True, exist_ok=True)
                (target / DATABASE).write_bytes((source / DATABASE).read_bytes())
                # A journal of zeros was committed already: SQLite empties it before it removes it.
                if any(journal):
                    (target / JOURNALS[0]).write_bytes(journal)
                    return
    raise RuntimeError(f"{tries} copies in {_COPY_SECONDS:.0f} s, and none caught a journal that holds something")


def copy_across_commit(target: Path, seed: int = 0) -> None:
    """Make a broken copy of a delta in `target`, as a slow upload of an open one does: half of the database is read
    before a transaction of the writer and half after it, and nobody copies the journal.

    Chroma opens the copy and fails at `count()`; the pages of the two halves contradict each other.

    Args:
        target: Where to; it may not exist yet.
        seed: Of the writer's content.

    Raises:
        RuntimeError: The writer committed nothing within ten seconds.
    """
    with tempfile.TemporaryDirectory(prefix="delta-torn-") as scratch:
        database = Path(scratch) / "delta" / DATABASE
        with writing_client(database.parent, seed), database.open("rb") as file:
            before = file.read(database.stat().st_size // 2)
            deadline = time.monotonic() + _COPY_SECONDS
            while _change_counter(database) == before[_CHANGE_COUNTER]:
                if time.monotonic() > deadline:
                    raise RuntimeError(f"the writer committed nothing in {_COPY_SECONDS:.0f} s")
                time.sleep(0.001)
            after = file.read()
        target.mkdir(parents=True)
        (target / DATABASE).write_bytes(before + after)


_CHANGE_COUNTER = slice(24, 28)  # of the database header: it grows with each transaction


def _change_counter(database: Path) -> bytes:
    with database.open("rb") as file:
        return file.read(28)[_CHANGE_COUNTER]


def _client(directory: Path) -> Any:
    """A Chroma client of this directory that reports to nobody; use it in a `with`, which closes it."""
    import chromadb  # noqa: PLC0415 -- half a second, for those who make deltas only
    from chromadb.config import Settings  # noqa: PLC0415

    directory.mkdir(parents=True, exist_ok=True)
    return chromadb.PersistentClient(path=directory, settings=Settings(anonymized_telemetry=False))


def _fill(client: Any, name: str, recipe: DeltaRecipe, number: int) -> CollectionContent:
    """Create the collection of this number and add, update and delete as the recipe says."""
    rng = np.random.default_rng([recipe.seed, number])
    hnsw: dict[str, Any] = {"space": recipe.space}
    if recipe.sync_threshold is not None:
        hnsw |= {"sync_threshold": recipe.sync_threshold, "batch_size": min(100, recipe.sync_threshold)}
    collection = client.create_collection(name, embedding_function=None, configuration={"hnsw": hnsw})

    rows = _rows(recipe, number, rng)
    for batch in _batches(np.arange(recipe.embeddings), recipe.batch):
        _send(collection.add, rows.taken(batch))
    chosen = rng.permutation(recipe.embeddings)
    updated, deleted = np.split(chosen[: recipe.updates + recipe.deletes], [recipe.updates])
    fresh = _rows(recipe, number, rng, revision=1)
    for batch in _batches(updated, recipe.batch):
        _send(collection.update, fresh.taken(batch))
    for batch in _batches(deleted, recipe.batch):
        collection.delete(ids=rows.taken(batch).ids)

    now, new = set(range(recipe.embeddings)) - set(deleted.tolist()), set(updated.tolist())
    order = sorted(now, key=rows.ids.__getitem__)
    vectors = rows.vectors.copy()
    vectors[updated] = fresh.vectors[updated]
    return CollectionContent(
        name,
        recipe.dimension if order else 0,
        tuple(rows.ids[i] for i in order),
        vectors[order] if order else np.empty((0, 0), np.float32),
        tuple((fresh if i in new else rows).documents[i] for i in order),
        tuple((fresh if i in new else rows).metadatas[i] for i in order),
    )


def _rows(recipe: DeltaRecipe, number: int, rng: np.random.Generator, revision: int = 0) -> _Rows:
    """Rows of the collection of this number; those of a higher revision have the same ids and other content."""
    count = recipe.embeddings
    vectors = rng.standard_normal((count, recipe.dimension)).astype(np.float32)
    words, scores = rng.integers(0, len(_WORDS), (count, 8)), rng.random(count)
    texts = [" ".join(_WORDS[w] for w in row) + f" number {i}" for i, row in enumerate(words)]
    # Every seventh row has no metadata until it is updated. An update merges keys, so all rows have the same ones.
    # Chroma 1.5 parses numbers of 16 digits one unit in the last place off; short ones come back exactly.
    metadatas: list[Metadata | None] = [
        {
            "position": i,
            "revision": revision,
            "even": i % 2 == 0,
            "score": round(float(scores[i]), 3),
            "first": texts[i][:5],
        }
        if revision or i % 7 != 6
        else None
        for i in range(count)
    ]
    series = f"{recipe.seed}.{number}" if number else str(recipe.seed)
    ids = [f"item-{series}-{i}" for i in range(count)]
    return _Rows(ids, vectors, [text if recipe.documents else None for text in texts], metadatas)


def _batches(positions: NDArray[np.intp], size: int) -> list[NDArray[np.intp]]:
    """The positions cut into runs of at most `size`."""
    return [positions[start : start + size] for start in range(0, len(positions), size)]


def _send(method: Any, rows: _Rows) -> None:
    """Call `collection.add` or `.update`; a list of nothing but None may not be given for documents or metadata."""
    documents = rows.documents if any(text is not None for text in rows.documents) else None
    metadatas = rows.metadatas if any(metadata is not None for metadata in rows.metadatas) else None
    method(ids=rows.ids, embeddings=rows.vectors, documents=documents, metadatas=metadatas)


def _read(collection: Any) -> CollectionContent:
    """All that Chroma gives back of a collection."""
    found = collection.get(include=["embeddings", "documents", "metadatas"])
    order = sorted(range(len(found["ids"])), key=found["ids"].__getitem__)
    vectors = np.asarray(found["embeddings"], dtype=np.float32)[order] if order else np.empty((0, 0), np.float32)
    return CollectionContent(
        collection.name,
        vectors.shape[1],
        tuple(found["ids"][i] for i in order),
        vectors,
        tuple(found["documents"][i] for i in order),
        tuple(found["metadatas"][i] for i in order),
    )


def _bytes_now(path: Path) -> bytes:
    """The bytes of a file that may vanish at any moment; none when it has."""
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return b""
