"""The catalogue of finding codes: what each means, and what it does to a verdict.

A code is stable: logs, metrics and tools match on it. Its `Weight` decides the verdict, so a code that is not
in this catalogue cannot be reported at all.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Weight(StrEnum):
    """What a finding does to the verdict, strongest first."""

    DOUBT = "doubt"
    """Something speaks against acting on a proof, or on its absence: `undetermined`, whatever else was found."""
    PROOF = "proof"
    """The bytes prove that something stored is lost, wrong or unreadable: `corrupt`."""
    PENDING = "pending"
    """A proof only once the upload is over, since a file still to arrive would cure it."""
    UNCHECKED = "unchecked"
    """The environment stopped the check: `undetermined`."""
    AWAITED = "awaited"
    """The upload is not over: `incomplete`."""
    NOTE = "note"
    """Worth saying, loses nothing: the verdict stays what it is."""


@dataclass(frozen=True, slots=True)
class FindingKind:
    """One entry of the catalogue: the weight of a code and its meaning in one sentence."""

    weight: Weight
    meaning: str


_D = Weight.DOUBT
_P, _A, _U, _W, _N = Weight.PROOF, Weight.PENDING, Weight.UNCHECKED, Weight.AWAITED, Weight.NOTE

CATALOGUE: dict[str, FindingKind] = {
    # names and sizes
    "layout.database_missing": FindingKind(_A, "There is no chroma.sqlite3; Chroma would create an empty one."),
    "layout.journal_present": FindingKind(_P, "A journal or write-ahead log holds data: copied during a write."),
    "layout.journal_unsettled": FindingKind(_D, "A writer was killed and left a journal; opening settles it."),
    "layout.journal_stale": FindingKind(_N, "A journal or write-ahead log that SQLite does not use."),
    "layout.segment_file_missing": FindingKind(_A, "A file of a vector index that holds vectors is missing."),
    "layout.file_name_hostile": FindingKind(_N, "A file name that could leave its folder; it was never followed."),
    "layout.foreign_file": FindingKind(_N, "A file that is not Chroma's; it is ignored."),
    "layout.empty_journal": FindingKind(_N, "A journal of 0 bytes, left by a clean close."),
    "layout.segment_unreferenced": FindingKind(_N, "An index folder that no collection refers to."),
    # SQLite
    "sqlite.empty": FindingKind(_P, "The database has no bytes (or one); Chroma would see an empty delta."),
    "sqlite.not_a_database": FindingKind(_P, "The file does not begin as an SQLite database does."),
    "sqlite.header_invalid": FindingKind(_P, "A field of the database header has a value that no database has."),
    "sqlite.truncated": FindingKind(_P, "The file is shorter than the pages its header counts."),
    "sqlite.trailing_bytes": FindingKind(_N, "Bytes follow the last page; SQLite does not read them."),
    "sqlite.malformed": FindingKind(_P, "SQLite itself finds pages, rows or indexes broken."),
    "sqlite.fulltext_outdated": FindingKind(_N, "Texts are under other ids, as an upgrade from 0.4.3 leaves them."),
    "sqlite.fulltext_unknown": FindingKind(_U, "The full-text table is declared in an unknown way; it was not read."),
    "sqlite.readable": FindingKind(_N, "What can still be read of a damaged database."),
    "sqlite.table_missing": FindingKind(_P, "A table that Chroma needs is missing."),
    "sqlite.column_missing": FindingKind(_P, "A table lacks a column that Chroma reads."),
    "sqlite.unexpected_trigger": FindingKind(_U, "A trigger that no Chroma writes would run in the reader."),
    "sqlite.foreign_trigger": FindingKind(_N, "A trigger of a table that Chroma never writes, so it never runs."),
    "sqlite.unexpected_view": FindingKind(_N, "A view that no Chroma writes; it is never read."),
    "sqlite.table_replaced": FindingKind(_P, "A view or virtual table stands in a table's place: not Chroma's."),
    "sqlite.unexpected_expression": FindingKind(_U, "A table of Chroma's computes values that no Chroma writes."),
    "sqlite.migration_mismatch": FindingKind(_P, "The record of migrations is not one that Chroma opens."),
    "sqlite.schema_newer": FindingKind(_U, "Written by a newer Chroma or SQLite than any known: it cannot be judged."),
    "sqlite.fulltext_unusable": FindingKind(_P, "The full-text index does not answer right, or blocks the queue."),
    # vector index
    "hnsw.header_invalid": FindingKind(_P, "A field of header.bin contradicts the format or the other fields."),
    "hnsw.size_mismatch": FindingKind(_P, "An index file is shorter than what its header counts."),
    "hnsw.link_invalid": FindingKind(_P, "A neighbour list is longer than allowed or points outside the index."),
    "hnsw.entry_point_invalid": FindingKind(_P, "The entry point or the level of the index cannot be."),
    "hnsw.vector_not_finite": FindingKind(_N, "A stored vector holds NaN or infinity, which old Chromas take."),
    "hnsw.vector_not_normal": FindingKind(_P, "A vector of a cosine index has not length 1, or no true length."),
    "hnsw.label_mismatch": FindingKind(_P, "Labels of the index and of its id map do not agree."),
    "hnsw.pickle_unreadable": FindingKind(_P, "The id map cannot be parsed, or is not one of Chroma's."),
    "hnsw.pickle_hostile": FindingKind(_P, "The id map asks for code to be run; nothing was run."),
    "hnsw.pickle_missing": FindingKind(_A, "The database says that vectors were flushed, but their id map is missing."),
    "hnsw.index_missing": FindingKind(_N, "A flushed index is missing; the queue was kept and makes it anew."),
    "hnsw.dimension_mismatch": FindingKind(_P, "The index and the collection disagree on the dimension."),
    # records
    "records.vector_missing": FindingKind(_A, "An id is stored whose vector is in neither the index nor the queue."),
    "records.id_missing": FindingKind(_A, "A vector is stored whose id has no row."),
    "records.vector_length": FindingKind(_P, "A queued vector has not the length of its collection."),
    "records.vector_encoding": FindingKind(_P, "A queued vector has an unknown encoding."),
    "records.vector_not_finite": FindingKind(_N, "A queued vector holds NaN or infinity, which old Chromas take."),
    "records.operation_unknown": FindingKind(_P, "A queued operation is none of add, update, upsert, delete."),
    "records.row_unreadable": FindingKind(_P, "A row holds a value of a type that Chroma cannot read."),
    "records.metadata_missing": FindingKind(_P, "A document or metadata value of the queue is missing from the rows."),
    "records.segment_missing": FindingKind(_P, "A collection has no vector or no metadata segment."),
    "records.database_missing": FindingKind(_P, "A collection's database or tenant has no row, or a wrong one."),
    "records.collection_missing": FindingKind(_P, "Segments belong to a collection that has no row."),
    "records.leftover": FindingKind(_N, "Rows of what was deleted: Chroma leaves them behind and never reads them."),
    "records.dimension_missing": FindingKind(_P, "A collection holds vectors, but its dimension is not set."),
    "records.recoverable": FindingKind(_N, "Whether what a damaged collection holds can be recovered, and from where."),
    # manifest
    "manifest.unreadable": FindingKind(_N, "The manifest is not one that can be read; it was not used."),
    "manifest.file_missing": FindingKind(_A, "The manifest lists a file that is not there."),
    "manifest.file_unlisted": FindingKind(_N, "A file is there that the manifest does not list."),
    "manifest.size_differs": FindingKind(_P, "A file has not the size it had when it was closed."),
    "manifest.checksum_differs": FindingKind(_P, "A file has not the bytes it had when it was closed."),
    "manifest.content_differs": FindingKind(_P, "Collection, dimension or count are not those that were uploaded."),
    # Chroma's own word
    "chroma.failed": FindingKind(_P, "Chroma cannot read the delta, twice, in fresh processes."),
    "chroma.crashed": FindingKind(_P, "Reading the delta kills the process, twice, in fresh processes."),
    "chroma.content_differs": FindingKind(_P, "Chroma returns other content than the delta's bytes hold."),
    # what speaks against acting on a verdict
    "verdict.deltas_below": FindingKind(_D, "Other deltas lie below this one's prefix, so it is never moved."),
    "verdict.disagreement": FindingKind(_D, "The bytes and Chroma contradict each other: a person must look."),
    "verdict.unconfirmed": FindingKind(_D, "The bytes say corrupt, and Chroma could not be asked: nothing is moved."),
    "verdict.confirmed": FindingKind(_N, "Chroma, asked as a second witness, fails or gives back less as well."),
    "check.in_use": FindingKind(_D, "A client has the directory open or writes to it: close it and check again."),
    # found in quarantine
    "quarantine.held": FindingKind(_P, "The delta was found corrupt earlier and lies in quarantine."),
    "quarantine.set_aside": FindingKind(_N, "It was moved to make room for a delta that was restored."),
    # found by the gate
    "chunk.content_differs": FindingKind(_U, "A healthy delta holds other than its chunk says."),
    # could not check
    "check.storage": FindingKind(_U, "A request to the object store failed."),
    "check.access_denied": FindingKind(_U, "The object store refused access."),
    "check.throttled": FindingKind(_U, "The object store asked to slow down."),
    "check.changed": FindingKind(_U, "The delta changed while it was being checked."),
    "check.reads_differ": FindingKind(_U, "Two reads of the same objects gave different bytes."),
    "check.gone": FindingKind(_U, "The delta disappeared while it was being checked."),
    "check.local_io": FindingKind(_U, "A local file could not be read or written."),
    "check.disk_full": FindingKind(_U, "The scratch disk is full."),
    "check.descriptors": FindingKind(_U, "The process ran out of file descriptors."),
    "check.memory": FindingKind(_U, "The process ran out of memory."),
    "check.timeout": FindingKind(_U, "The check took longer than it may."),
    "check.batch_failed": FindingKind(_U, "The batch of a fleet scan that the delta was in failed."),
    "check.cannot_open": FindingKind(_U, "SQLite could not open the file (code 14): an environment fault."),
    "check.probe_failed": FindingKind(_U, "The Chroma probe could not be run to an answer."),
    "check.foreign_expression": FindingKind(_U, "A table that is not Chroma's computes values: no check may run it."),
    "check.size_cap": FindingKind(_U, "The delta is larger, or has more parts, than may be checked."),
    # still arriving
    "arrival.settling": FindingKind(_W, "Files arrived a moment ago; more may follow."),
    "arrival.manifest_awaited": FindingKind(_W, "Manifests are required and this one has not arrived."),
    "arrival.file_awaited": FindingKind(_W, "A file that is needed has not arrived yet."),
}  # fmt: skip
