"""What a healthy delta holds, read from its bytes: the same ids, vectors, documents and metadata that Chroma returns.

It costs a few statements and no client, so it is many times faster than Chroma, and it never writes. It takes for
granted that the delta was judged healthy at depth `structure`; on any other it raises `Unreadable`.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from shared.inspection.chroma import sysdb
from shared.inspection.chroma.index_settings import IndexSettings
from shared.inspection.chroma.placement import Placement, place
from shared.inspection.chroma.sysdb import Collection
from shared.inspection.hnsw.header import HEADER_BYTES, inspect_header
from shared.inspection.hnsw.vector_index import IndexFiles, read_id_map
from shared.inspection.hnsw.vectors import IndexVectors, read_part, through_cosine
from shared.inspection.layout import JOURNAL_HEAD, PICKLE, inspect_journal
from shared.inspection.sqlite.database_file import NotUtf8, explained, opened
from shared.inspection.sqlite.schema import Schema, inspect_schema, read_schema
from shared.inspection.values import shown, some
from shared.model.delta import DATABASE, JOURNALS, SEGMENT_FILES
from shared.model.errors import DeltaguardError
from shared.model.verdict import Finding, Status, status_of

_DOCUMENT, _URI, _RESERVED = "chroma:document", "chroma:uri", "chroma:"
_SQL_SECONDS = 3600.0  # from opening to closing, so it has room for whoever works with the records meanwhile
_MOST_PARAMETERS = 500
_SPARSE = 4  # more rows than this for each wanted one, and they are looked up one by one
_NO_LIMIT = 2**63 - 1
_QUEUED = "SELECT seq_id, vector FROM embeddings_queue WHERE seq_id"


class Unreadable(DeltaguardError):
    """The bytes contradict each other or are no delta's, so there is no telling what the delta holds."""


@dataclass(frozen=True, slots=True)
class Records:
    """Some embeddings of one collection, in the order in which Chroma gives them back.

    Args:
        ids: Their ids.
        vectors: One row for each, float32.
        documents: The text of each, or None.
        metadatas: The metadata of each, or None, as Chroma's `get` returns them.
        uris: The URI of each, or None.
    """

    ids: list[str]
    vectors: NDArray[np.float32]
    documents: list[str | None]
    metadatas: list[dict[str, Any] | None]
    uris: list[str | None]


@dataclass(frozen=True, slots=True)
class StoredCollection:
    """One collection of a delta.

    Args:
        name: Its name.
        dimension: Length of its vectors, None as long as it has none.
        count: How many embeddings it holds.
        metadata: Its own metadata, None when it has none.
        configuration: `config_json_str` as it is stored, None where there is none; with the settings of the index
            where Chroma takes these from elsewhere.
        schema: `schema_str` as it is stored, None where Chroma finds nothing in it.
        settings: The settings that Chroma takes for its index.
    """

    name: str
    dimension: int | None
    count: int
    metadata: dict[str, Any] | None
    configuration: str | None
    schema: str | None
    settings: IndexSettings

    @property
    def cosine(self) -> bool:
        """Whether its index measures by cosine, and gives vectors back rounded."""
        return self.settings.space == "cosine"

    @property
    def hnsw(self) -> dict[str, Any]:
        """The parameters of its index that are written down, as `configuration={"hnsw": ...}` takes them."""
        return dict(self.settings.given)


class OpenDelta:
    """The contents of one delta. Made by `opened_delta`.

    Args:
        folder: Where it is.
        connection: Its database.
        schema: The schema of that, which is sound.
        collections: Those of every database.
    """

    def __init__(
        self, folder: Path, connection: sqlite3.Connection, schema: Schema, collections: Sequence[Collection]
    ) -> None:
        self._folder = folder
        self._connection = connection
        self._schema = schema
        self._collections = [collection for collection in collections if collection.is_default]
        self._elsewhere = [collection for collection in collections if not collection.is_default]

    @cached_property
    def collections(self) -> list[StoredCollection]:
        """Its collections, sorted by name: those of the default database, which Chroma lists.

        Raises:
            Unreadable, CouldNotCheck: They cannot be read.
        """
        with reading("its collections"):
            return [self._described(collection) for collection in self._collections]

    @cached_property
    def elsewhere(self) -> list[StoredCollection]:
        """Those of other databases, whose embeddings `records` does not read. Raises as `collections` does."""
        with reading("the collections of other databases"):
            return [self._described(collection) for collection in self._elsewhere]

    def records(self, name: str, most: int = 1000, *, as_given: bool = False) -> Iterator[Records]:
        """The embeddings of a collection, at most so many at a time, so that memory stays flat.

        Args:
            name: The collection's name.
            most: How many at a time.
            as_given: Whether vectors of a cosine collection that are still in the queue come as they were put in, and
                not with the rounding that its index will give them. Written to another delta, they then come back from
                that as they would have from this one.

        Raises:
            KeyError: There is no collection of this name.
            Unreadable: An embedding has no vector, or the bytes contradict each other.
            CouldNotCheck: They could not be read for a reason outside them.
        """
        collection = next((c for c in self._collections if c.name == name), None)
        if collection is None:
            raise KeyError(name)
        doing = f"the embeddings of {shown(name)}"
        with reading(doing):
            labels, flushed_to, vectors = self._index(collection)
            placement = place(self._connection, collection, labels, flushed_to)
        del labels
        lost = placement.without_vector()
        if lost:
            raise Unreadable(f"{len(lost)} embeddings of {shown(name)} have no vector: {some({*lost})}")
        reader = RecordReader(self._connection, self._schema, collection, placement, vectors, as_given=as_given)
        for start in range(0, len(placement.ids), most):
            with reading(doing):
                records = reader.read(start, min(start + most, len(placement.ids)))
            yield records

    def _index(self, collection: Collection) -> tuple[Mapping[str, int], int, IndexVectors | None]:
        """Label of each id in the index of a collection, the last operation in it, and its vectors."""
        folder = self._folder / str(collection.vector_segment)
        sizes = {base: (folder / base).stat().st_size for base in SEGMENT_FILES if (folder / base).is_file()}
        if PICKLE not in sizes:
            if collection.flushed_to is not None and sysdb.purges(self._connection, self._schema):
                raise Unreadable(f"the index of {shown(collection.name)} has no {PICKLE}")
            return {}, 0, None
        files = IndexFiles(sizes, lambda base, start, length: read_part(folder / base, start, length))
        ids, unread = read_id_map(folder.name, files, None)
        _proven(unread)
        if ids is None or not ids.labels:  # then Chroma makes the index anew
            return {}, 0, None
        missing = [base for base in SEGMENT_FILES if base not in sizes]
        if missing:
            raise Unreadable(f"the index of {shown(collection.name)} has no {', '.join(missing)}")
        head = files.read("header.bin", 0, min(HEADER_BYTES + 1, sizes["header.bin"])).tobytes()
        header, findings = inspect_header(folder.name, head, sizes, cosine=collection.cosine)
        _proven(findings)
        assert header is not None  # otherwise there is a finding
        return ids.labels, collection.flushed_to or 0, IndexVectors(folder, header, cosine=collection.cosine)

    def _described(self, collection: Collection) -> StoredCollection:
        count = len(place(self._connection, collection, {}, _NO_LIMIT).ids)
        boolean = "bool_value" if self._schema.has("collection_metadata", "bool_value") else "NULL"
        metadata = {
            key: _value(*values)
            for key, *values in self._connection.execute(
                f"SELECT key, str_value, int_value, float_value, {boolean} "  # noqa: S608 - a name of ours
                "FROM collection_metadata WHERE collection_id = ?",
                (collection.id,),
            )
        }
        configuration, schema = (
            self._connection.execute(f"SELECT {column} FROM collections WHERE id = ?", (collection.id,)).fetchone()[0]  # noqa: S608
            if self._schema.has("collections", column)
            else None
            for column in ("config_json_str", "schema_str")
        )
        settings = collection.settings
        assert settings is not None  # otherwise there is a finding
        if settings.legacy:
            configuration, schema = json.dumps({"vector_index": {"hnsw": dict(settings.given)}}), None
        if not (schema or "").strip():
            schema = None
        return StoredCollection(
            collection.name, collection.dimension, count, metadata or None, configuration, schema, settings
        )


class RecordReader:
    """Reads embeddings whose places are known.

    Args:
        connection: The database.
        schema: Its schema.
        collection: The collection.
        placement: Where its embeddings are.
        index: The vectors of its index, if there is one.
        as_given: See `OpenDelta.records`.
    """

    def __init__(
        self,
        connection: sqlite3.Connection,
        schema: Schema,
        collection: Collection,
        placement: Placement,
        index: IndexVectors | None,
        *,
        as_given: bool,
    ) -> None:
        self._connection = connection
        self._placement = placement
        self._index = index
        self._dimension = collection.dimension or 0
        self._round = collection.cosine and not as_given
        boolean = "bool_value" if schema.has("embedding_metadata", "bool_value") else "NULL"
        values = f"SELECT id, key, string_value, int_value, float_value, {boolean}"
        self._values = f"{values} FROM embedding_metadata WHERE id"
        self._lists = ""
        if "embedding_metadata_array" in schema.tables:
            ((some_lists,),) = connection.execute("SELECT EXISTS (SELECT 1 FROM embedding_metadata_array)")
            if some_lists:
                self._lists = f"{values} FROM embedding_metadata_array WHERE id"

    def read(self, start: int, end: int) -> Records:
        """The embeddings at these places of the placement.

        Raises:
            sqlite3.Error, CouldNotCheck: They cannot be read.
            Unreadable: A vector has not the length that the collection says.
        """
        placement = self._placement
        metadatas = self.metadatas(start, end)
        documents = [metadata.pop(_DOCUMENT, None) for metadata in metadatas]
        return Records(
            placement.ids[start:end],
            self._vectors(placement.queued[start:end], placement.labels[start:end]),
            documents,
            # A URI is told apart later than a document, so a row that has one has metadata, be they empty.
            [_public(metadata) if metadata else None for metadata in metadatas],
            [metadata.get(_URI) for metadata in metadatas],
        )

    def metadatas(self, start: int, end: int) -> list[dict[str, Any]]:
        """Their metadata, with the keys that Chroma keeps for itself (`chroma:document`, ...).

        Raises:
            sqlite3.Error: They cannot be read.
        """
        placement = self._placement
        metadatas = self._metadatas(placement.rows[start:end].tolist())
        for id_, metadata in zip(placement.ids[start:end], metadatas, strict=True):
            for key, value in placement.late.get(id_, {}).items() if placement.late else ():
                if value is None:
                    metadata.pop(key, None)
                else:
                    metadata[key] = value
        return metadatas

    def _vectors(self, queued: NDArray[np.int64], labels: NDArray[np.int64]) -> NDArray[np.float32]:
        vectors = np.empty((len(queued), self._dimension), np.float32)
        waiting = np.flatnonzero(queued)
        if waiting.size:
            places = dict(zip(queued[waiting].tolist(), waiting.tolist(), strict=True))
            width = vectors.itemsize * self._dimension
            for seq_id, vector in self._rows(_QUEUED, sorted(places)):
                if seq_id in places:
                    if not isinstance(vector, bytes) or len(vector) != width:
                        raise Unreadable(f"row {seq_id} of embeddings_queue holds no vector of {self._dimension}")
                    vectors[places[seq_id]] = np.frombuffer(vector, "<f4")
            if self._round:
                vectors[waiting] = through_cosine(vectors[waiting])
        indexed = np.flatnonzero(labels >= 0)
        if indexed.size and self._index is not None:
            vectors[indexed] = self._index.take(labels[indexed])
        return vectors

    def _metadatas(self, rows: list[int]) -> list[dict[str, Any]]:
        metadatas: list[dict[str, Any]] = [{} for _ in rows]
        of_row = dict(zip(rows, metadatas, strict=True))  # those without a row share 0, which no row has
        wanted = sorted(row for row in of_row if row)
        for row, key, *values in self._rows(self._values, wanted):
            if row in of_row:
                of_row[row][key] = _value(*values)
        if self._lists:
            for row, key, *values in self._rows(self._lists, wanted, " ORDER BY rowid"):
                if row in of_row:
                    of_row[row].setdefault(key, []).append(_value(*values))
        return metadatas

    def _rows(self, sql: str, keys: list[int], order: str = "") -> Iterator[tuple[Any, ...]]:
        """The rows of a statement that ends with the name of a whole number, for these numbers and perhaps others."""
        if keys and keys[-1] - keys[0] < _SPARSE * len(keys):
            yield from self._connection.execute(f"{sql} BETWEEN ? AND ?{order}", (keys[0], keys[-1]))
            return
        for start in range(0, len(keys), _MOST_PARAMETERS):
            part = keys[start : start + _MOST_PARAMETERS]
            yield from self._connection.execute(f"{sql} IN ({', '.join('?' * len(part))}){order}", part)


@contextmanager
def opened_delta(folder: Path) -> Iterator[OpenDelta]:
    """Opens a delta that was judged healthy, to read what it holds. Nothing in the folder is written.

    Args:
        folder: The delta.

    Raises:
        Unreadable: It is no sound delta.
        CouldNotCheck: It could not be opened for a reason outside the bytes.
    """
    for name in JOURNALS:
        journal = folder / name
        if journal.is_file() and (size := journal.stat().st_size):
            head = read_part(journal, 0, min(size, JOURNAL_HEAD)).tobytes()
            _proven(inspect_journal(name, size, head, in_place=True))
    with opened(folder / DATABASE, _SQL_SECONDS, lenient=False) as connection:
        with reading("the schema"):
            schema, findings = read_schema(connection)
            _proven(findings)
            _proven(inspect_schema(connection, schema))
            collections, findings = sysdb.read_collections(connection, schema)
            _proven(findings)
        yield OpenDelta(folder, connection, schema, collections)


def read_records(folder: Path, collection: str, most: int = 1000) -> Iterator[Records]:
    """The embeddings of one collection of a healthy delta; see `opened_delta` and `OpenDelta.records`."""
    with opened_delta(folder) as delta:
        yield from delta.records(collection, most)


@contextmanager
def reading(what: str) -> Iterator[None]:
    """Turns what goes wrong in the block into `Unreadable`, where the bytes are the reason.

    Raises:
        Unreadable: The bytes are not what they should be.
        CouldNotCheck: The reason lies outside them.
    """
    try:
        with explained(f"reading {what}") as findings:
            yield
    except NotUtf8 as error:
        raise Unreadable(f"reading {what}: a text is not UTF-8") from error
    except ValueError as error:
        raise Unreadable(f"reading {what}: {error}") from error
    _proven(findings)


def _proven(findings: list[Finding]) -> None:
    if status_of(findings) is not Status.HEALTHY:
        raise Unreadable("; ".join(f"{finding.code}: {finding.detail}" for finding in findings[:3]))


def _value(text: str | None, whole: int | None, real: float | None, truth: int | None) -> str | int | float | bool:
    if text is not None:
        return text
    if whole is not None:
        return whole
    if real is not None:
        return real
    return bool(truth)


def _public(metadata: dict[str, Any]) -> dict[str, Any]:
    """The metadata without the keys that Chroma keeps for itself."""
    return {key: value for key, value in metadata.items() if not key.startswith(_RESERVED)}
