"""Every way a delta is known to break, and what Chroma 1.5.9 makes of it.

`harm` is measured, not thought: each kind was done to real deltas with several seeds, and Chroma asked in a child
process, twice, for all that they store and to query it. A damage assumes a delta of some 40 embeddings or more in each
collection, with documents and without updates (what breaks a row that an update replaced breaks nothing).
"""
# ruff: noqa: ARG005, S608 -- every break takes the same arguments; table names are constants of ours

from __future__ import annotations

import math
import random
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from devtools.damage import database_breaks as db
from devtools.damage import file_breaks
from devtools.damage.file_breaks import HEADER, JOURNAL, LENGTHS, LEVEL0, LINKS, PICKLE, Break
from shared.model.delta import DATABASE

Needs = Literal["any", "queued", "flushed", "two flushed"]


@dataclass(frozen=True)
class Damage:
    """One kind of damage.

    Args:
        kind: Its stable name.
        needs: The delta it can be done to: any, one whose vectors are all in the queue, one with an index on disk
            and later rows in the queue, or one with two collections with an index each.
        harm: Whether Chroma 1.5.9 then fails, dies, or gives back other than what was stored.
        break_: Does it, and says in one line what it did.
        value_only: The harm is in values alone, or in rows that left no trace: only a manifest made before can tell.
        refused: Chroma gives everything back, or it is chance what it does, yet the rules refuse the delta: its bytes
            prove a copy in mid-write, or contradict each other where a reader relies on them.
    """

    kind: str
    needs: Needs
    harm: bool
    break_: Break
    value_only: bool = False
    refused: bool = False


def apply_damage(kind: str, directory: Path, seed: int = 0) -> str:
    """Break a closed delta in place, and say how. The same bytes and seed give the same damage.

    Raises:
        ValueError: There is no such kind.
        DoesNotApply: The delta has nothing that this kind could break: no index, no such table, row or record.
    """
    for damage in DAMAGES:
        if damage.kind == kind:
            return damage.break_(directory, random.Random(seed))  # noqa: S311 -- repeatable, not secret
    raise ValueError(f"{kind}: no such damage; there are {', '.join(damage.kind for damage in DAMAGES)}")


def _bad(needs: Needs, kind: str, break_: Break) -> Damage:
    return Damage(kind, needs, harm=True, break_=break_)


def _value(needs: Needs, kind: str, break_: Break) -> Damage:
    return Damage(kind, needs, harm=True, break_=break_, value_only=True)


def _refused(needs: Needs, kind: str, break_: Break) -> Damage:
    return Damage(kind, needs, harm=False, break_=break_, refused=True)


def _fine(needs: Needs, kind: str, break_: Break) -> Damage:
    return Damage(kind, needs, harm=False, break_=break_)


def _dropped(table: str) -> Break:
    return db.sql(f"DROP TABLE {table}")


def _viewed(table: str) -> Break:
    """Put a view with the same rows in the place of a table."""
    rename = f"ALTER TABLE {table} RENAME TO {table}_moved"
    return db.sql(rename, f"CREATE VIEW {table} AS SELECT * FROM {table}_moved")


def _queue(change: str) -> Break:
    """Run an UPDATE or DELETE on one row of the queue."""
    count = "(SELECT count(*) FROM embeddings_queue)"
    row = f"(SELECT seq_id FROM embeddings_queue ORDER BY seq_id LIMIT 1 OFFSET :pick % {count})"
    return db.sql(f"{change} WHERE seq_id = {row}")


def _zeros(size: int, rng: random.Random) -> bytes:  # noqa: ARG001
    return bytes(size)


_A_ROW = "(SELECT id FROM embeddings ORDER BY id LIMIT 1 OFFSET :pick % (SELECT count(*) FROM embeddings))"
_VECTOR_SEGMENTS = "(SELECT id FROM segments WHERE scope = 'VECTOR')"
_FULLTEXT = "embedding_fulltext_search"
_ROWS = (_FULLTEXT, "embeddings_queue", "embedding_metadata", "embeddings", "max_seq_id", "segments", "collections")
_READ = ("embedding_metadata", "sqlite_autoindex_embeddings_1")  # what every `get` reads

_DATABASE = (
    _bad("any", "sqlite-missing", file_breaks.removed(DATABASE)),
    _bad("any", "sqlite-empty", file_breaks.truncated(DATABASE, lambda size, rng: 0)),
    _bad("any", "sqlite-one-byte", file_breaks.truncated(DATABASE, lambda size, rng: 1)),
    _bad("any", "sqlite-truncated", file_breaks.truncated(DATABASE, lambda size, rng: rng.randrange(2, size - 4096))),
    _bad("any", "sqlite-truncated-page-boundary",
         file_breaks.truncated(DATABASE, lambda size, rng: 4096 * rng.randrange(1, size // 4096))),
    # SQLite fills a page cut short with zeros: it is chance what was on it, and whether Chroma reads that.
    _refused("any", "sqlite-truncated-last-page",
             file_breaks.truncated(DATABASE, lambda size, rng: size - rng.randrange(1, 4096))),
    _bad("any", "sqlite-text-file", file_breaks.replaced(DATABASE, lambda size, rng: b"404 Not Found\n" * 1000)),
    _bad("any", "sqlite-foreign-database", file_breaks.replaced(DATABASE, db.foreign_database)),
    _value("any", "sqlite-empty-chroma", db.sql(*(f"DELETE FROM {table}" for table in _ROWS), "VACUUM")),
    _bad("any", "sqlite-first-page-zeroed", file_breaks.overwritten(DATABASE, 0, bytes(4096))),
    _bad("any", "sqlite-root-page-zeroed", db.page(_READ, lambda pages, rng: pages[0], _zeros)),
    _bad("any", "sqlite-leaf-page-zeroed", db.page(_READ, lambda pages, rng: pages[-1], _zeros)),
    _bad("any", "sqlite-page-garbage", db.page(_READ, lambda pages, rng: rng.choice(pages), file_breaks.noise)),
    # Chroma reads `embeddings` by its index alone, never the table.
    _refused("any", "sqlite-unread-page-zeroed", db.page(("embeddings",), lambda pages, rng: pages[-1], _zeros)),
    _bad("any", "sqlite-magic-overwritten", file_breaks.overwritten(DATABASE, 0, b"SQLite format 4\0")),
    _bad("any", "sqlite-page-size-broken", file_breaks.overwritten(DATABASE, 16, b"\x03\xe7")),
    _bad("any", "sqlite-page-size-halved", file_breaks.overwritten(DATABASE, 16, b"\x08\x00")),
    _bad("any", "sqlite-page-count-inflated", file_breaks.overwritten(DATABASE, 28, struct.pack(">I", 100_000))),
    _bad("any", "sqlite-encoding-changed", file_breaks.overwritten(DATABASE, 56, struct.pack(">I", 2))),
    _bad("any", "sqlite-version-newer", file_breaks.overwritten(DATABASE, 18, b"\x09\x09")),
)  # fmt: skip

_JOURNALS = (
    # SQLite takes the last transaction back, and its rows with it.
    _bad("any", "journal-hot", db.journal(torn=False)),
    _bad("any", "journal-torn", db.journal(torn=True)),
    # SQLite sees that it is none, and removes it.
    _fine("any", "journal-garbage", file_breaks.replaced(JOURNAL, lambda size, rng: rng.randbytes(9000))),
    _refused("any", "wal-whole", db.wal(torn=False)),
    _bad("any", "wal-torn", db.wal(torn=True)),
)

_TABLES = (
    *(_bad("any", f"table-dropped-{table}", _dropped(table)) for table in (
        "collection_metadata", "collections", "databases", "embedding_fulltext_search", "embedding_metadata",
        "embedding_metadata_array", "embeddings", "embeddings_queue", "embeddings_queue_config", "max_seq_id",
        "migrations", "segment_metadata", "segments", "tenants",
    )),
    # Chroma creates the first anew, and does without the second.
    _fine("any", "table-dropped-acquire_write", _dropped("acquire_write")),
    _fine("any", "table-dropped-maintenance_log", _dropped("maintenance_log")),
    # Every open purges the queue, which a view does not allow. The others are only read, until something is added.
    _bad("any", "table-viewed-embeddings_queue", _viewed("embeddings_queue")),
    _refused("any", "table-viewed-embeddings", _viewed("embeddings")),
    _refused("any", "table-viewed-collections", _viewed("collections")),
)  # fmt: skip

_QUEUE = (
    _bad("queued", "queue-row-deleted", _queue("DELETE FROM embeddings_queue")),
    _bad("queued", "queue-emptied", db.sql("DELETE FROM embeddings_queue")),
    _bad("flushed", "queue-last-row-deleted",
         db.sql("DELETE FROM embeddings_queue WHERE seq_id = (SELECT max(seq_id) FROM embeddings_queue)")),
    _bad("queued", "queue-vector-short", db.queue_vector(lambda vector, rng: vector[:-4])),
    _bad("queued", "queue-vector-odd", db.queue_vector(lambda vector, rng: vector[:-1])),
    # Chroma reads as many values as the collection has dimensions, and ignores the rest.
    _refused("queued", "queue-vector-long", db.queue_vector(lambda vector, rng: vector + rng.randbytes(4))),
    _bad("queued", "queue-vector-null", _queue("UPDATE embeddings_queue SET vector = NULL, encoding = NULL")),
    # Old versions take such numbers and all give them back.
    _value("queued", "queue-vector-nan", db.queue_vector(file_breaks.with_float(math.nan))),
    _value("queued", "queue-vector-infinite", db.queue_vector(file_breaks.with_float(math.inf))),
    _bad("queued", "queue-encoding-unknown", _queue("UPDATE embeddings_queue SET encoding = 'FLOAT8'")),
    _bad("queued", "queue-encoding-int32", _queue("UPDATE embeddings_queue SET encoding = 'INT32'")),
    _bad("queued", "queue-operation-unknown", _queue("UPDATE embeddings_queue SET operation = 9")),
    _bad("queued", "queue-operation-delete", _queue("UPDATE embeddings_queue SET operation = 3")),
    _bad("queued", "queue-topic-changed", _queue("UPDATE embeddings_queue SET topic = substr(topic, 1, 70) || 'x'")),
    _bad("queued", "queue-id-changed", _queue("UPDATE embeddings_queue SET id = id || 'x'")),
    _bad("queued", "queue-metadata-garbled", _queue("UPDATE embeddings_queue SET metadata = substr(metadata, 1, 9)")),
)  # fmt: skip

_RECORDS = (
    _bad("any", "embedding-row-removed", db.sql(f"DELETE FROM embeddings WHERE id = {_A_ROW}")),
    _bad("any", "embedding-id-changed",
         db.sql(f"UPDATE embeddings SET embedding_id = embedding_id || 'x' WHERE id = {_A_ROW}")),
    _bad("queued", "metadata-rows-removed", db.sql(f"DELETE FROM embedding_metadata WHERE id = {_A_ROW}")),
    # Once the queue is purged nothing else says which documents and metadata there were.
    _value("flushed", "metadata-rows-removed-flushed",
           db.sql("DELETE FROM embedding_metadata WHERE id = (SELECT min(id) FROM embeddings)")),
    _bad("any", "document-byte-changed", db.document_byte_changed),
    _bad("any", "metadata-segment-removed", db.sql("DELETE FROM segments WHERE scope = 'METADATA'")),
    _bad("any", "vector-segment-removed", db.sql("DELETE FROM segments WHERE scope = 'VECTOR'")),
    _bad("any", "collection-removed", db.sql("DELETE FROM collections")),
    _bad("any", "collection-dimension-changed", db.sql("UPDATE collections SET dimension = dimension + 1")),
    _bad("any", "collection-dimension-null", db.sql("UPDATE collections SET dimension = NULL")),
    _bad("any", "collection-schema-garbled", db.sql("UPDATE collections SET schema_str = substr(schema_str, 1, 9)")),
    # The first open still reads all from the queue, then purges it up to that number: the second has lost it.
    _bad("queued", "max-seq-id-added",
         db.sql("INSERT INTO max_seq_id SELECT id, (SELECT max(seq_id) FROM embeddings_queue) FROM segments"
                " WHERE scope = 'VECTOR'")),
    _bad("flushed", "max-seq-id-raised",
         db.sql(f"UPDATE max_seq_id SET seq_id = seq_id + 1000 WHERE segment_id IN {_VECTOR_SEGMENTS}")),
    # Chroma then applies the whole queue, and what the index holds already stays as it is.
    _fine("flushed", "max-seq-id-removed", db.sql(f"DELETE FROM max_seq_id WHERE segment_id IN {_VECTOR_SEGMENTS}")),
    # Chroma 1.5 answers from the texts in the full-text table and never reads its index, but opens the table.
    _fine("any", "fulltext-terms-deleted", db.sql(f"DELETE FROM {_FULLTEXT}_data WHERE id > 10")),
    _fine("any", "fulltext-terms-garbled", db.fulltext_garbled),
    _fine("any", "fulltext-index-emptied", db.sql(f"DELETE FROM {_FULLTEXT}_idx")),
    _bad("any", "fulltext-data-emptied", db.sql(f"DELETE FROM {_FULLTEXT}_data")),
    _bad("any", "fulltext-content-emptied", db.sql(f"DELETE FROM {_FULLTEXT}_content")),
    _bad("any", "fulltext-config-emptied", db.sql(f"DELETE FROM {_FULLTEXT}_config")),
    _bad("any", "fulltext-rows-deleted", db.sql(f"DELETE FROM {_FULLTEXT}")),
)  # fmt: skip

_ID_MAP = (
    _bad("flushed", "pickle-missing", file_breaks.removed(PICKLE)),
    _bad("flushed", "pickle-empty", file_breaks.truncated(PICKLE, lambda size, rng: 0)),
    _bad("flushed", "pickle-truncated", file_breaks.truncated(PICKLE, file_breaks.anywhere)),
    _bad("flushed", "pickle-garbage", file_breaks.replaced(PICKLE, file_breaks.noise)),
    _bad("flushed", "pickle-malicious", file_breaks.replaced(PICKLE, file_breaks.malicious_pickle)),
    _bad("flushed", "pickle-id-removed", file_breaks.id_map(file_breaks.id_forgotten)),
    _value("flushed", "pickle-labels-swapped", file_breaks.id_map(file_breaks.labels_swapped)),
    # New vectors take the labels, and so the places, of old ones.
    _bad("flushed", "pickle-total-lowered", file_breaks.id_map(lambda ids, rng: ids.update(total_elements_added=1))),
    # Chroma 1.5 reads these from the database.
    _fine("flushed", "pickle-max-seq-id-raised", file_breaks.id_map(lambda ids, rng: ids.update(max_seq_id=10**6))),
    _fine("flushed", "pickle-dimension-changed", file_breaks.id_map(lambda ids, rng: ids.update(dimensionality=7))),
    _fine("flushed", "pickle-dimension-none", file_breaks.id_map(lambda ids, rng: ids.update(dimensionality=None))),
)

_INDEX = (
    _bad("flushed", "header-missing", file_breaks.removed(HEADER)),
    _bad("flushed", "header-empty", file_breaks.truncated(HEADER, lambda size, rng: 0)),
    # SIGSEGV when rows of the queue are added to the index; without, it survived.
    _bad("flushed", "header-truncated", file_breaks.truncated(HEADER, file_breaks.half)),
    _bad("flushed", "header-garbage", file_breaks.replaced(HEADER, file_breaks.noise)),
    _bad("flushed", "header-version", file_breaks.header_field("version", lambda old: 2)),
    # Measured with 600 embeddings (SIGSEGV, an error); an index of 60 survives.
    _bad("flushed", "header-max-elements-low", file_breaks.header_field("max_elements", lambda old: 3)),
    _bad("flushed", "header-max-elements-high", file_breaks.header_field("max_elements", lambda old: 2**45)),
    _bad("flushed", "header-cur-count-low", file_breaks.header_field("cur_count", lambda old: old - 1)),
    # One record more than there are, which nothing links to.
    _refused("flushed", "header-cur-count-high", file_breaks.header_field("cur_count", lambda old: old + 1)),
    _bad("flushed", "header-cur-count-zero", file_breaks.header_field("cur_count", lambda old: 0)),
    _bad("flushed", "header-record-size", file_breaks.header_field("rec_size", lambda old: old + 4)),
    _bad("flushed", "header-label-offset", file_breaks.header_field("label_offset", lambda old: old - 4)),
    _bad("flushed", "header-data-offset", file_breaks.header_field("offset_data", lambda old: old + 4)),
    _bad("flushed", "header-entry-point", file_breaks.header_field("entrypoint", lambda old: 2**31)),
    _bad("flushed", "header-entry-point-moved", file_breaks.header_field("entrypoint", lambda old: old ^ 1)),
    _bad("flushed", "header-level-high", file_breaks.header_field("maxlevel", lambda old: 40)),
    # Later vectors are then not linked with the others; harmless without rows in the queue.
    _bad("flushed", "header-level-negative", file_breaks.header_field("maxlevel", lambda old: -1)),
    _bad("flushed", "data-missing", file_breaks.removed(LEVEL0)),
    _bad("flushed", "data-empty", file_breaks.truncated(LEVEL0, lambda size, rng: 0)),
    _bad("flushed", "data-truncated", file_breaks.truncated(LEVEL0, file_breaks.half)),
    _bad("flushed", "data-garbage", file_breaks.replaced(LEVEL0, file_breaks.noise)),
    _bad("flushed", "data-block-zeroed", file_breaks.block_zeroed),
    _bad("flushed", "data-neighbour-outside", file_breaks.record("neighbour", lambda old, rng: b"\xff\xff\xff\x7f")),
    _bad("flushed", "data-link-count-high", file_breaks.record("links", lambda old, rng: b"\xff\xff")),
    _bad("flushed", "data-delete-mark", file_breaks.record("mark", lambda old, rng: b"\x01")),
    _value("flushed", "data-vector-nan", file_breaks.record("vector", file_breaks.with_float(math.nan))),
    _value("flushed", "data-vector-infinite", file_breaks.record("vector", file_breaks.with_float(math.inf))),
    _bad("flushed", "data-label-changed", file_breaks.record("label", lambda old, rng: struct.pack("<Q", 10**6))),
    _bad("flushed", "links-missing", file_breaks.removed(LINKS)),
    # Measured with 60 and 600 embeddings. hnswlib ignores short reads, so that this works seems to be chance.
    _refused("flushed", "links-empty", file_breaks.truncated(LINKS, lambda size, rng: 0)),
    _refused("flushed", "links-truncated", file_breaks.truncated(LINKS, file_breaks.half)),
    _refused("flushed", "links-garbage", file_breaks.replaced(LINKS, file_breaks.noise)),
    _bad("flushed", "lengths-missing", file_breaks.removed(LENGTHS)),
    # Only a cosine index reads lengths, to give vectors back; the others lose nothing.
    _value("flushed", "lengths-empty", file_breaks.truncated(LENGTHS, lambda size, rng: 0)),
    _value("flushed", "lengths-truncated", file_breaks.truncated(LENGTHS, file_breaks.half)),
    _value("flushed", "lengths-garbage", file_breaks.replaced(LENGTHS, file_breaks.noise)),
    _bad("flushed", "segment-missing", file_breaks.segment_removed),
    _bad("two flushed", "segments-swapped-ids", file_breaks.segments_swapped(PICKLE)),
    _value("two flushed", "segments-swapped-data", file_breaks.segments_swapped(LEVEL0)),
    _value("flushed", "value-index-bit", file_breaks.record("vector", file_breaks.with_flipped_bit)),
    _value("queued", "value-queue-bit", db.queue_vector(file_breaks.with_flipped_bit)),
    _value("any", "value-document-letter", db.document_changed),
)

_HARMLESS = (
    _fine("any", "harmless-foreign-file", file_breaks.foreign_file),
    _fine("any", "harmless-empty-journal", file_breaks.replaced(JOURNAL, lambda size, rng: b"")),
    _fine("any", "harmless-trailing-bytes", file_breaks.appended(DATABASE)),
    _fine("any", "harmless-vacuumed", db.sql("VACUUM")),
    _fine("any", "harmless-free-pages",
          db.sql("CREATE TABLE scratch AS SELECT zeroblob(50000) AS x", "DROP TABLE scratch")),
    # The last connection to close moves the log into the database and removes it.
    _fine("any", "harmless-wal-checkpointed", db.sql("PRAGMA journal_mode = WAL", "DELETE FROM acquire_write")),
    _fine("any", "harmless-segment-unreferenced", file_breaks.segment_unreferenced),
    _fine("queued", "harmless-skeleton-header", file_breaks.replaced(HEADER, file_breaks.noise)),
    _fine("queued", "harmless-skeleton-data", file_breaks.replaced(LEVEL0, file_breaks.noise)),
    _fine("queued", "harmless-skeleton-links", file_breaks.replaced(LINKS, lambda size, rng: rng.randbytes(500))),
    _fine("queued", "harmless-skeleton-file-missing", file_breaks.removed(LEVEL0)),
    _fine("queued", "harmless-skeleton-removed", file_breaks.segment_removed),
)  # fmt: skip

DAMAGES: tuple[Damage, ...] = (
    *_DATABASE, *_JOURNALS, *_TABLES, *_QUEUE, *_RECORDS, *_ID_MAP, *_INDEX, *_HARMLESS,
)  # fmt: skip
"""The catalogue, in a stable order."""
