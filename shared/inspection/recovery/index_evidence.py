"""What the index of a damaged delta still proves: which vector belongs to which id.

The vectors are believed when nothing contradicts the file that holds them: every record's links, label, numbers and
norm are looked at, and what the queue kept of flushed vectors is compared bit for bit. A damaged `header.bin` is
worked out anew from the size of the records, a lost id map from the order in which Chroma 1.x gives out labels. The
links above level 0 hold no vector; neither does `length.bin`, unless the index is one of cosine distances.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Collection as Names
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from shared.inspection.chroma.placement import DELETE
from shared.inspection.chroma.sysdb import Collection
from shared.inspection.hnsw.header import HEADER_BYTES, IndexHeader, inspect_header
from shared.inspection.hnsw.id_map import IdMap
from shared.inspection.hnsw.vector_index import IndexFiles, IndexRecords, read_id_map
from shared.inspection.hnsw.vectors import IndexVectors, read_part, through_cosine
from shared.inspection.layout import PICKLE
from shared.model.delta import SEGMENT_FILES

_DEFAULT_LINKS = 16
_HEADER, _DATA, _LENGTHS = "header.bin", "data_level0.bin", "length.bin"
_DELETED = 1 << 16
_TAIL_DELETES = "SELECT count(*) FROM embeddings_queue WHERE substr(topic, -36) = ? AND seq_id > ? AND operation = ?"
_OLD_ROWS = "SELECT count(*) FROM embeddings WHERE segment_id = ? AND typeof(seq_id) != 'integer'"
# Operations that the index holds and the queue has kept, and that were the last on their ids.
_KEPT = """
    SELECT q.id, q.vector FROM embeddings_queue AS q
    JOIN embeddings AS e ON e.segment_id = ? AND e.embedding_id = q.id
    WHERE substr(q.topic, -36) = ? AND q.seq_id <= ? AND q.vector IS NOT NULL
    AND CASE typeof(e.seq_id) WHEN 'blob' THEN hex(e.seq_id) = printf('%016X', q.seq_id) ELSE e.seq_id = q.seq_id END
"""


class NotProven(Exception):
    """The index does not prove its vectors; the message says why."""


@dataclass(frozen=True, slots=True)
class IndexEvidence:
    """A proven index.

    Args:
        labels: Label of each id.
        vectors: The vectors.
        flushed_to: The last operation that is in it.
        remarks: What had to be worked out anew.
    """

    labels: Mapping[str, int]
    vectors: IndexVectors
    flushed_to: int
    remarks: tuple[str, ...]


def prove_index(
    connection: sqlite3.Connection,
    collection: Collection,
    rows: Mapping[str, int],
    folder: Path,
    damaged: Names[str],
    links: int | None,
    *,
    alone: bool,
) -> IndexEvidence:
    """What the index of a collection proves.

    Args:
        connection: The database, which nothing is wrong with.
        collection: The collection.
        rows: Number of the row of each id, in the order of these numbers.
        folder: The index's folder.
        damaged: Names of its files that a manifest says are not what they were.
        links: `max_neighbors` of the collection's settings.
        alone: Whether the delta has no other index, so that this one can be no other's.

    Raises:
        NotProven: It proves nothing; the message says why.
        CouldNotCheck: It could not be read for a reason outside the bytes.
    """
    sizes = {
        base: path.stat().st_size
        for base in SEGMENT_FILES
        if base not in damaged and (path := folder / base).is_file() and not path.is_symlink()
    }
    needed = (_DATA, _LENGTHS) if collection.cosine else (_DATA,)
    missing = [base for base in needed if base not in sizes]
    if missing:
        raise NotProven(f"{', '.join(missing)} is missing or damaged")
    if collection.dimension is None:
        raise NotProven("the collection's dimension is not set")
    files = IndexFiles(sizes, lambda base, start, length: read_part(folder / base, start, length))
    remarks: list[str] = []
    ids = read_id_map(folder.name, files, None)[0] if PICKLE in sizes else None
    if ids is not None and ids.labels and rows.keys().isdisjoint(ids.labels):
        ids = None  # it is another index's
    header, sound = _header(folder, files, collection.dimension, links or _DEFAULT_LINKS, ids)
    if not sound:
        remarks.append(f"{_HEADER} worked out from the records")
    live = _proven_labels(folder.name, header, files, cosine=collection.cosine)
    flushed_to = collection.flushed_to if collection.flushed_to is not None else ids.max_seq_id if ids else None
    if flushed_to is None:
        raise NotProven("nothing says up to which operation it was flushed")
    vectors = IndexVectors(folder, header, cosine=collection.cosine)
    labels = ids.labels if ids is not None else {}
    ordered = np.sort(np.fromiter(labels.values(), np.int64, len(labels)))
    rebuilt = ids is None or not np.array_equal(ordered, live)
    if rebuilt:
        if np.setdiff1d(ordered, live).size:
            raise NotProven(f"{_DATA} or {PICKLE} is damaged: their labels contradict each other")
        labels = _labels_by_order(connection, collection, rows, live.tolist(), flushed_to, labels)
        remarks.append(f"{PICKLE} rebuilt from the order of rows and labels")
    compared = _compare_kept(connection, collection, labels, vectors, flushed_to)
    if rebuilt and not compared and not alone:
        raise NotProven(f"{PICKLE} is lost, and the queue has kept no vector that tells this index from the others")
    return IndexEvidence(labels, vectors, flushed_to, tuple(remarks))


def _header(folder: Path, files: IndexFiles, dimension: int, links: int, ids: IdMap | None) -> tuple[IndexHeader, bool]:
    """The header that agrees with the id map, and whether it is the stored one.

    Raises:
        NotProven: There is none.
    """
    stored = _sound_header(folder.name, files, dimension)
    if stored is not None:
        mapped = np.sort(np.fromiter(ids.labels.values(), np.int64, len(ids.labels))) if ids else None
        if mapped is None or np.array_equal(mapped, IndexVectors(folder, stored, cosine=False).labels):
            return stored, True
        links = stored.max_links
    try:
        return _derived_header(files, dimension, links, ids), False
    except NotProven:
        if stored is None:
            raise
        return stored, True


def _sound_header(segment: str, files: IndexFiles, dimension: int) -> IndexHeader | None:
    """The header, if nothing contradicts it but files that are longer than they need be."""
    if _HEADER not in files.sizes:
        return None
    sizes = {base: size for base, size in files.sizes.items() if base not in (_DATA, _LENGTHS, "link_lists.bin")}
    head = files.read(_HEADER, 0, min(HEADER_BYTES + 1, files.sizes[_HEADER])).tobytes()
    header, findings = inspect_header(segment, head, sizes)
    if findings or header is None or header.dimension != dimension:
        return None
    return header if files.sizes[_DATA] >= header.count * header.record_size else None


def _proven_labels(segment: str, header: IndexHeader, files: IndexFiles, *, cosine: bool) -> NDArray[np.int64]:
    """The labels of all records, sorted, if nothing is wrong with any record."""
    records = IndexRecords(segment, header, files, cosine=cosine, lengths=True)
    if cosine and files.sizes[_LENGTHS] < 4 * header.count:
        raise NotProven(f"{_LENGTHS} holds the lengths of {files.sizes[_LENGTHS] // 4} of {header.count} vectors")
    records.look()
    findings = records.findings()
    if findings:
        raise NotProven(f"{_DATA} is damaged: {findings[0].detail}")
    live = np.sort(records.labels).astype(np.int64)
    if np.unique(live).size != live.size:
        raise NotProven(f"{_DATA} is damaged: labels stand in more than one record")
    return live


def _derived_header(files: IndexFiles, dimension: int, links: int, ids: IdMap | None) -> IndexHeader:
    """The header that fits the records: their size follows from the dimension, their number from the id map."""
    if ids is None:
        raise NotProven(f"both {_HEADER} and {PICKLE} are damaged")
    data_offset = 8 * links + 4
    label_offset = data_offset + 4 * dimension
    size = label_offset + 8
    slots, rest = divmod(files.sizes[_DATA], size)
    if rest or slots < len(ids.labels):
        raise NotProven(f"{_HEADER} is damaged, and {_DATA} does not consist of records of {size} bytes")
    words = np.empty((slots, 3), np.uint32)
    for slot in range(slots):
        part = files.read(_DATA, slot * size, size).view("<u4")
        words[slot] = part[0], part[-2], part[-1]
    found = words[:, 1:].copy().view("<i8")[:, 0]
    mapped = np.fromiter(ids.labels.values(), np.int64, len(ids.labels))
    live = words[:, 0] & _DELETED == 0
    places = np.flatnonzero(live & np.isin(found, mapped))
    count = int(places[-1]) + 1 if places.size else 0
    # Behind the last record lies whatever was in the memory of the writer.
    if places.size != len(mapped) or np.unique(found[places]).size != places.size or live[:count].sum() != places.size:
        raise NotProven(f"{_HEADER} is damaged, and the labels do not tell how many records there are")
    return IndexHeader(1, 0, slots, count, size, label_offset, data_offset, 0, 0, links, 2 * links, links, 0.0, 0)


def _labels_by_order(
    connection: sqlite3.Connection,
    collection: Collection,
    rows: Mapping[str, int],
    live: list[int],
    flushed_to: int,
    known: Mapping[str, int],
) -> dict[str, int]:
    """The id map that there must have been: Chroma 1.x gives rows and labels their numbers in the same order.

    Raises:
        NotProven: Another version wrote rows, ids were deleted since, or what is left of the id map contradicts it.
    """
    ((old,),) = connection.execute(_OLD_ROWS, (collection.metadata_segment,))
    ((deletes,),) = connection.execute(_TAIL_DELETES, (collection.id, flushed_to, DELETE))
    if old or deletes or len(live) > len(rows):
        raise NotProven(f"{PICKLE} is lost, and the order of the rows does not tell the labels")
    labels = dict(zip(rows, live, strict=False))
    if any(labels.get(id_, label) != label for id_, label in known.items()):
        raise NotProven(f"{PICKLE} contradicts the order of rows and labels")
    return labels


def _compare_kept(
    connection: sqlite3.Connection,
    collection: Collection,
    labels: Mapping[str, int],
    vectors: IndexVectors,
    flushed_to: int,
) -> int:
    """Compares the vectors that the queue has kept of those that are in the index, and returns how many there are.

    Raises:
        NotProven: One is another.
    """
    width = 4 * (collection.dimension or 0)
    compared = 0
    kept = connection.execute(_KEPT, (collection.metadata_segment, collection.id, flushed_to))
    while batch := [(id_, vector) for id_, vector in kept.fetchmany(500) if id_ in labels]:
        if any(not isinstance(vector, bytes) or len(vector) != width for _, vector in batch):
            raise NotProven("a vector that the queue has kept has another length")
        queued = np.frombuffer(b"".join(vector for _, vector in batch), "<f4").reshape(len(batch), -1)
        if collection.cosine:
            queued = through_cosine(queued)
        indexed = vectors.take(np.array([labels[id_] for id_, _ in batch], np.int64))
        if queued.tobytes() != indexed.tobytes():
            raise NotProven("it holds other vectors than the queue has kept of it")
        compared += len(batch)
    return compared
