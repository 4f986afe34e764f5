"""What the bytes of a damaged delta hold, as far as each part can be read by itself, and whatever is wrong beside it.

It is what Chroma's answer is measured by before a delta is moved, so nothing counts as held that a healthy delta may
have and Chroma rightly not give back: what collections, databases or queues have left behind, what was deleted later,
or what a transaction that never ended had written. And of a vector any that the bytes show for its id may come back,
whichever of them our rules would expect. Where a queued one cannot be read, any at all: the index then may show an
older one than Chroma has.
"""

from __future__ import annotations

import json
import math
import sqlite3
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from shared.inspection.chroma.contents import Records
from shared.inspection.chroma.queue import ADD, DELETE, ENCODING, UPSERT, WIDTH
from shared.inspection.hnsw.header import HEADER_BYTES, inspect_header
from shared.inspection.hnsw.vector_index import IndexFiles, read_id_map
from shared.inspection.hnsw.vectors import IndexVectors, read_part, through_cosine
from shared.inspection.probe.agreement import same_vectors
from shared.inspection.sqlite.database_file import ENVIRONMENT, opened
from shared.inspection.values import is_text
from shared.model.delta import DATABASE, JOURNALS, SEGMENT_FILES
from shared.model.errors import CouldNotCheck, faults_explained
from shared.storage.scratch import copy_file, scratch_folder

_SQL_SECONDS = 600.0
_TABLES = ("collections", "segments", "embeddings", "embeddings_queue", "migrations")
_DOCUMENT, _URI, _RESERVED = "chroma:document", "chroma:uri", "chroma:"
_MOST_PARAMETERS = 500
_LARGEST_INTEGER = 2**63
_NUMBER_DIGITS = 1e-9


@dataclass(frozen=True, slots=True)
class _Index:
    """The vectors of one index: labels by id, and its readers, as they are and times their lengths."""

    labels: Mapping[str, int]
    readers: tuple[IndexVectors, ...]

    def candidates(self, ids: Sequence[str]) -> Iterator[tuple[str, NDArray[np.float32]]]:
        """The vectors of these ids."""
        for reader in self.readers:
            asked = np.array([self.labels.get(id_, -1) for id_ in ids], np.int64)
            known = [id_ for id_, there in zip(ids, np.isin(asked, reader.labels), strict=True) if there]
            yield from zip(known, reader.take(np.array([self.labels[id_] for id_ in known], np.int64)), strict=True)


@dataclass(slots=True)
class Holding:
    """What the bytes hold of one collection.

    Args:
        id: Its UUID.
        name: Its name.
        rows: The last operation that the row of each id names; None where it cannot be read.
        operations: Number and kind of the queued operations on each id, in order.
    """

    id: str
    name: str
    rows: dict[str, int | None] = field(default_factory=dict)
    operations: dict[str, list[tuple[int, int]]] = field(default_factory=lambda: defaultdict(list))
    _index: _Index | None = None

    @property
    def ids(self) -> set[str]:
        """The ids that have a row, or whose last operation in the queue put them in."""
        held = {id_ for id_, touched in self.rows.items() if not self._deleted_since(id_, touched)}
        for id_, operations in self.operations.items():
            kinds = [kind for _, kind in operations]
            if DELETE in kinds:
                kinds = kinds[len(kinds) - kinds[::-1].index(DELETE) :]
            if ADD in kinds or UPSERT in kinds:
                held.add(id_)
        return held

    def last(self, id_: str) -> int:
        """The number of the last queued operation on an id that there is one on."""
        return self.operations[id_][-1][0]

    def in_index(self, ids: Sequence[str]) -> Iterator[tuple[str, NDArray[np.float32]]]:
        """The vectors of these ids that the index shows, in each way that it may be meant."""
        return self._index.candidates(ids) if self._index else iter(())

    @property
    def indexed(self) -> set[str]:
        """The ids that its index knows and that no queued operation concerns."""
        return {id_ for id_ in self._index.labels if id_ not in self.operations} if self._index else set()

    def _deleted_since(self, id_: str, touched: int | None) -> bool:
        operations = self.operations.get(id_, ())
        return any(kind == DELETE and (touched is None or seq_id > touched) for seq_id, kind in operations)


class Holdings:
    """What the bytes hold. Made by `read_holdings`.

    Args:
        connection: The database; None where there is none that SQLite can open.
        folder: The delta.
    """

    def __init__(self, connection: sqlite3.Connection | None, folder: Path) -> None:
        self._connection = connection
        self._tables = {
            name for (name,) in self._rows("SELECT name FROM sqlite_master WHERE type = 'table' AND rootpage > 0")
        }
        self.collections: dict[str, Holding] = {}
        self._read_collections(folder)

    @property
    def is_chroma(self) -> bool:
        """Whether the database has any of Chroma's tables."""
        return not self._tables.isdisjoint(_TABLES)

    @property
    def bare(self) -> int:
        """How many numbers of rows have metadata and no row in `embeddings`: a delete leaves none of these behind."""
        if not {"embeddings", "embedding_metadata"} <= self._tables:
            return 0
        sql = "SELECT count(DISTINCT id) FROM embedding_metadata WHERE id NOT IN (SELECT id FROM embeddings)"
        return sum(count for (count,) in self._rows(sql))

    def others(self, holding: Holding, page: Records) -> dict[str, list[str]]:
        """The ids of a page whose vector, document or metadata is other than the bytes have them, by which it is."""
        candidates: dict[str, list[NDArray[np.float32]]] = defaultdict(list)
        differing: dict[str, list[str]] = defaultdict(list)
        width = page.vectors.shape[1]
        place = {id_: at for at, id_ in enumerate(page.ids)}
        unread = set()  # nobody knows what Chroma makes of their vector, and an older one in the index may be replaced
        for seq_id, id_, vector, encoding, text in self._queued(holding, page.ids):
            if isinstance(vector, bytes) and len(vector) == WIDTH * width and encoding == ENCODING:
                queued = np.frombuffer(vector, "<f4")
                candidates[id_] += [queued, through_cosine(queued[None])[0]]
            elif vector is not None:
                unread.add(id_)
            if holding.rows.get(id_) == seq_id == holding.last(id_) and not _as_queued(page, place[id_], text):
                differing["document or metadata"].append(id_)
        for id_, vector in holding.in_index(page.ids) if "embeddings_queue" in self._tables else ():
            if len(vector) == width:
                candidates[id_].append(vector)
        for id_, vectors in candidates.items():
            if id_ in unread:
                continue
            given = np.broadcast_to(page.vectors[place[id_]], (len(vectors), width))
            if not same_vectors(given, np.stack(vectors), cosine=True).any():
                differing["vector"].append(id_)
        return differing

    def _queued(self, holding: Holding, ids: Sequence[str]) -> Iterator[tuple[int, str, object, object, object]]:
        """Number, id, vector, its encoding and metadata of the queued operations on these ids."""
        known = set(ids)
        wanted = sorted(seq_id for id_ in known for seq_id, _ in holding.operations.get(id_, ()))
        for start in range(0, len(wanted), _MOST_PARAMETERS):
            part = wanted[start : start + _MOST_PARAMETERS]
            sql = f"""
                SELECT seq_id, id, vector, encoding, metadata FROM embeddings_queue
                WHERE seq_id IN ({", ".join("?" * len(part))})
            """  # noqa: S608 - nothing but question marks
            yield from (row for row in self._rows(sql, part) if row[1] in known)

    def _rows(self, sql: str, parameters: Sequence[object] = ()) -> Iterator[tuple[Any, ...]]:
        """The rows of a statement up to the damage.

        Raises:
            CouldNotCheck: The environment kept them from being read.
        """
        if self._connection is None:
            return
        try:
            yield from self._connection.execute(sql, parameters)
        except sqlite3.Error as error:
            code = ENVIRONMENT.get(getattr(error, "sqlite_errorcode", 0) & 0xFF)
            if code is not None:
                raise CouldNotCheck(code, f"reading what {DATABASE} holds: {error}") from error

    def _read_collections(self, folder: Path) -> None:
        if not {"collections", "segments"} <= self._tables:
            return
        # A database that was deleted may leave its collections behind; the oldest versions know no databases.
        listed = "WHERE database_id IN (SELECT id FROM databases)" if "databases" in self._tables else ""
        for id_, name in self._rows(f"SELECT id, name FROM collections {listed}"):  # noqa: S608 - of ours
            if isinstance(id_, str) and isinstance(name, str):
                self.collections[id_.lower()] = Holding(id_.lower(), name)
        for id_, owner, scope in self._rows("SELECT id, collection, scope FROM segments"):
            holding = self.collections.get(str(owner).lower())
            if holding is not None and scope == "METADATA" and "embeddings" in self._tables:
                sql = "SELECT embedding_id, seq_id FROM embeddings WHERE segment_id = ?"
                holding.rows.update((i, _number(seq)) for i, seq in self._rows(sql, (id_,)) if _is_id(i))
            if holding is not None and scope == "VECTOR":
                holding._index = _index(folder / str(id_)) if _is_folder(id_) else None
        if "embeddings_queue" in self._tables:
            sql = "SELECT substr(topic, -36), seq_id, operation, id FROM embeddings_queue ORDER BY seq_id"
            for owner, seq_id, kind, id_ in self._rows(sql):
                holding = self.collections.get(str(owner).lower())
                if holding is not None and _is_id(id_):
                    holding.operations[id_].append((seq_id, kind))


@contextmanager
def read_holdings(folder: Path) -> Iterator[Holdings]:
    """What the bytes of a delta hold, to be asked for as long as the block lasts. Nothing in the folder is written.

    Raises:
        CouldNotCheck: The environment kept it from being read.
    """
    if not any((folder / name).is_file() and (folder / name).stat().st_size for name in JOURNALS[:2]):
        with _opened(folder / DATABASE) as connection:
            yield Holdings(connection, folder)
        return
    # What a transaction wrote that never ended is not held: SQLite takes it back, as it does for Chroma.
    with scratch_folder() as scratch:
        with faults_explained("copying the database with its journal"):
            for name in (DATABASE, *JOURNALS[:2]):
                if (folder / name).is_file():
                    copy_file(folder / name, scratch / name)
        with suppress(sqlite3.Error), closing(sqlite3.connect(scratch / DATABASE)) as connection:
            connection.execute("PRAGMA trusted_schema=OFF")
            connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
            connection.execute("SELECT count(*) FROM sqlite_master").fetchall()
        with _opened(scratch / DATABASE) as recovered:
            yield Holdings(recovered, folder)


@contextmanager
def _opened(database: Path) -> Iterator[sqlite3.Connection | None]:
    if not database.is_file():
        yield None
        return
    with opened(database, _SQL_SECONDS) as connection:
        yield connection


def _is_id(value: object) -> bool:
    return isinstance(value, str) and is_text(value)


def _is_folder(segment: object) -> bool:
    return isinstance(segment, str) and "/" not in segment and segment not in ("", ".", "..")


def _number(seq_id: object) -> int | None:
    """A sequence number, which 0.x writes as eight bytes, the highest first."""
    if isinstance(seq_id, bytes):
        return int.from_bytes(seq_id[:8], "big")
    return seq_id if isinstance(seq_id, int) else None


def _index(folder: Path) -> _Index | None:
    """The vectors of an index that can be read by its header and its id map; None where there are none."""
    sizes = {base: (folder / base).stat().st_size for base in SEGMENT_FILES if (folder / base).is_file()}
    if not {"header.bin", "data_level0.bin", "index_metadata.pickle"} <= sizes.keys():
        return None
    files = IndexFiles(dict.fromkeys(SEGMENT_FILES, 0) | sizes, lambda b, start, n: read_part(folder / b, start, n))
    head = files.read("header.bin", 0, min(HEADER_BYTES, sizes["header.bin"])).tobytes()
    header, _ = inspect_header(folder.name, head, sizes)
    ids, _ = read_id_map(folder.name, files, header)
    if ids is None:
        return None
    readers = []
    if header is not None and header.count * header.record_size <= sizes["data_level0.bin"]:
        readers.append(IndexVectors(folder, header, cosine=False))
        if sizes.get("length.bin", 0) >= 4 * header.count:
            readers.append(IndexVectors(folder, header, cosine=True))
    return _Index(ids.labels, tuple(readers))


def _as_queued(page: Records, at: int, text: object) -> bool:
    """Whether an embedding has what the last operation on it put in: each key, as far as it is told apart for sure."""
    try:
        queued = json.loads(text) if isinstance(text, str) else {}
    except (ValueError, RecursionError):
        return True
    if not isinstance(queued, dict):
        return True
    given = dict(page.metadatas[at] or {})
    given |= {_DOCUMENT: page.documents[at], _URI: page.uris[at]}
    return all(
        _same(given.get(key), value)
        for key, value in queued.items()
        if key in (_DOCUMENT, _URI) or not key.startswith(_RESERVED)
    )


def _same(given: Any, queued: Any) -> bool:
    if isinstance(queued, str):
        # What follows a NUL may be lost, and an empty text may come back as none.
        return not queued or "\0" in queued or not is_text(queued) or given == queued
    if isinstance(queued, float) and not math.isfinite(queued):
        return True  # SQLite keeps no NaN
    if isinstance(queued, int | float) and abs(queued) < _LARGEST_INTEGER:
        return isinstance(given, int | float) and math.isclose(given, queued, rel_tol=_NUMBER_DIGITS)
    return queued is not None or given is None
