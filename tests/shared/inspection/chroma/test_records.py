"""The master invariant of a collection: index and queue hold every id that has a row; and what is left when not."""

from __future__ import annotations

import math
import random
import struct
from collections.abc import Set
from pathlib import Path

import numpy as np
import pytest

from devtools.damage.deltas import DeltaRecipe, build_delta
from shared.inspection.chroma.records import Contents, inspect_collection, recoverable
from shared.inspection.chroma.sysdb import read_collections
from shared.inspection.hnsw.id_map import IdMap, parse
from shared.inspection.sqlite.database_file import opened
from shared.inspection.sqlite.schema import inspect_schema, read_schema
from shared.model.delta import DATABASE
from shared.model.verdict import CollectionCount, Finding
from tests.conftest import CopyOf
from tests.support.databases import asked, changed, queued, untyped

Inspected = tuple[list[Contents], list[Finding]]


def inspected(delta: Path, index: IdMap | None = None, *, readable: bool = True) -> Inspected:
    with opened(delta / DATABASE, 60) as connection:
        schema, _ = read_schema(connection)
        inspect_schema(connection, schema)
        collections, findings = read_collections(connection, schema)
        contents = []
        for collection in collections:
            content, found = inspect_collection(connection, schema, collection, index, index_readable=readable)
            contents.append(content)
            findings += found
    return contents, findings


def test_a_healthy_delta_tells_its_ids_and_has_no_finding(delta: Path) -> None:
    contents, findings = inspected(delta)
    ids = set(asked(delta, "SELECT embedding_id FROM embeddings"))
    assert findings == []
    assert contents == [Contents(CollectionCount("words", 32, 50), ids)]
    assert len(ids) == 50


def test_the_digest_is_of_the_ids_and_not_of_their_order() -> None:
    def digest(*ids: str) -> str:
        return Contents(CollectionCount("words", 2, len(ids)), set(ids)).digest

    assert digest("b", "a") == digest("a", "b") != digest("ab") != digest("a", "b\n")
    assert digest() == "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855", "of nothing"
    assert len(digest("\udcff")) == 64


def test_each_collection_is_counted_by_itself(tmp_path: Path) -> None:
    build_delta(tmp_path, DeltaRecipe(embeddings=10, dimension=4, collections=2))
    contents, findings = inspected(tmp_path)
    assert findings == []
    counts = [content.count for content in contents]
    assert counts == [CollectionCount("words", 4, 10), CollectionCount("words-1", 4, 10)]


# --- index and queue together


@pytest.fixture
def index(flushed: Path) -> IdMap:
    """The id map of `flushed`."""
    return parse(next(flushed.rglob("index_metadata.pickle")).read_bytes())


def test_an_index_and_the_queue_after_it_hold_every_id_together(flushed: Path, index: IdMap) -> None:
    contents, findings = inspected(flushed, index)
    assert findings == []
    assert contents[0].count == CollectionCount("words", 16, 123)


def test_an_index_that_lost_an_id_is_told(flushed: Path, index: IdMap) -> None:
    # One that no later operation in the queue deletes.
    kept = set(asked(flushed, "SELECT embedding_id FROM embeddings")) & index.labels.keys()
    del index.labels[min(kept)]
    detail = f"1 of 123 embeddings of 'words' have no vector: '{min(kept)}'"
    assert inspected(flushed, index)[1] == [Finding("records.vector_missing", DATABASE, detail)]


def test_an_index_that_holds_an_id_too_many_is_told(flushed: Path, index: IdMap) -> None:
    index.labels["stranger"] = 1000
    detail = "1 vectors of 'words' have no row in embeddings: 'stranger'"
    assert inspected(flushed, index)[1] == [Finding("records.id_missing", DATABASE, detail)]


def test_a_queue_said_to_be_flushed_without_an_index_has_lost_its_vectors(delta: Path) -> None:
    changed(delta, "INSERT INTO max_seq_id SELECT id, 1000 FROM segments WHERE scope = 'VECTOR'")
    (finding,) = inspected(delta)[1]
    assert finding.code == "records.vector_missing"
    assert finding.detail.startswith("50 of 50 embeddings")


def test_ids_are_not_compared_with_an_index_whose_id_map_cannot_be_read(flushed: Path) -> None:
    contents, findings = inspected(flushed, readable=False)
    assert findings == []
    assert contents[0].count.count == 123


def test_a_flushed_operation_is_known_from_the_id_map_where_the_database_does_not_say(
    flushed: Path, index: IdMap
) -> None:
    """chromadb 0.4 keeps `max_seq_id` in the pickle and never purges the queue."""
    vectors = "segment_id IN (SELECT id FROM segments WHERE scope = 'VECTOR')"
    (number,) = asked(flushed, f"SELECT seq_id FROM max_seq_id WHERE {vectors}")
    changed(flushed, f"DELETE FROM max_seq_id WHERE {vectors}")
    assert inspected(flushed, IdMap(index.labels, number, len(index.labels)))[1] == []


@pytest.mark.parametrize("number", [0, 1, 2**32, 2**63 - 1])
def test_no_number_in_an_id_map_makes_the_inspection_fail(flushed: Path, index: IdMap, number: int) -> None:
    changed(flushed, "DELETE FROM max_seq_id")
    assert isinstance(inspected(flushed, IdMap(index.labels, number, len(index.labels)))[1], list)


@pytest.mark.parametrize(
    "value",
    ["X'FFFFFFFFFFFFFFFF'", "X'8000000000000000'", "9223372036854775807", "-5", "'text'", "1.5", "X'00'", "NULL"],
)
def test_no_number_in_the_database_makes_the_inspection_fail(delta: Path, value: str) -> None:
    changed(untyped(delta, "max_seq_id"), f"UPDATE max_seq_id SET seq_id = {value}")
    assert isinstance(inspected(delta)[1], list)


@pytest.mark.parametrize("value", ["CAST(X'FF' AS TEXT)", "X'00'"])
def test_a_stored_id_that_is_not_text_is_told(delta: Path, value: str) -> None:
    findings = inspected(changed(delta, f"UPDATE embeddings SET embedding_id = {value} WHERE id = 1"))[1]
    detail = "1 rows of embeddings in 'words' have an id that is no text, or no number"
    assert findings[0] == Finding("records.row_unreadable", DATABASE, detail)
    assert [finding.code for finding in findings[1:]] == ["records.id_missing"]


@pytest.mark.parametrize("value", ["'x'", "X'00'", "NULL", "1.5"])
def test_row_numbers_of_mixed_types_are_told_and_not_compared_with_each_other(
    flushed: Path, index: IdMap, value: str
) -> None:
    changed(untyped(flushed, "embeddings"), f"UPDATE embeddings SET id = {value} WHERE id % 2")
    findings = inspected(flushed, index)[1]
    (rows,) = asked(flushed, "SELECT count(*) FROM embeddings WHERE typeof(id) != 'integer'")
    detail = f"{rows} rows of embeddings in 'words' have an id that is no text, or no number"
    assert findings[0] == Finding("records.row_unreadable", DATABASE, detail)


@pytest.mark.parametrize("sync_threshold", [1000, 20])
@pytest.mark.parametrize("seed", range(4))
def test_any_history_of_operations_that_chroma_wrote_counts_as_chroma_counts(
    tmp_path: Path, seed: int, sync_threshold: int
) -> None:
    import chromadb

    rng = random.Random(seed)
    vectors = np.random.default_rng(seed).standard_normal((10, 3)).astype(np.float32)
    with chromadb.PersistentClient(tmp_path / "delta") as client:
        hnsw = {"hnsw": {"sync_threshold": sync_threshold, "batch_size": 10}}
        collection = client.create_collection("words", embedding_function=None, configuration=hnsw)
        for _ in range(25):
            ids = rng.sample([f"id-{n}" for n in range(30)], rng.randint(1, 6))
            kind = rng.choice(["add", "add", "upsert", "update", "metadata", "delete"])
            if kind == "delete":
                collection.delete(ids=ids)
            elif kind == "metadata":
                collection.update(ids=ids, metadatas=[{"n": 1}] * len(ids))
            else:
                getattr(collection, kind)(ids=ids, embeddings=vectors[: len(ids)], documents=["some text"] * len(ids))
        counted, ids = collection.count(), set(collection.get()["ids"])
    pickles = list(tmp_path.rglob("index_metadata.pickle"))
    assert bool(pickles) == (sync_threshold == 20)
    contents, findings = inspected(tmp_path / "delta", parse(pickles[0].read_bytes()) if pickles else None)
    assert findings == []
    assert contents == [Contents(CollectionCount("words", 3, counted), ids)]


# --- what can be recovered


def left(delta: Path, *statements: str, indexed: Set[str] = frozenset(), **values: object) -> str:
    with opened(changed(delta, *statements, **values) / DATABASE, 60) as connection:
        schema, _ = read_schema(connection)
        (collection,), _ = read_collections(connection, schema)
        return recoverable(connection, collection, indexed)


def words(head: str, queued: int, indexed: int, without_vector: int, without_row: int) -> str:
    return (
        f"{head} embeddings of 'words' can be recovered: vectors of {queued} are in the queue, of {indexed} in sound "
        f"records of the index; {without_vector} have no sound vector, {without_row} no row"
    )


NAN = struct.pack("<f", math.nan)


@pytest.mark.parametrize(
    ("statements", "expected"),
    [
        ([], words("all 50", 50, 0, 0, 0)),
        (["DELETE FROM embeddings_queue WHERE seq_id < 4"], words("47 of 50", 47, 0, 3, 0)),
        (["DELETE FROM embeddings_queue"], words("0 of 50", 0, 0, 50, 0)),
        (["DELETE FROM embeddings"], words("all 50", 50, 0, 0, 0)),
        (["UPDATE embeddings_queue SET encoding = 'FLOAT8' WHERE seq_id < 4"], words("47 of 50", 47, 0, 3, 0)),
        (["UPDATE embeddings_queue SET vector = zeroblob(127) WHERE seq_id < 4"], words("47 of 50", 47, 0, 3, 0)),
        (["UPDATE embeddings_queue SET vector = zeroblob(120) WHERE seq_id < 4"], words("47 of 50", 47, 0, 3, 0)),
        (["UPDATE embeddings_queue SET vector = NULL WHERE seq_id < 4"], words("47 of 50", 47, 0, 3, 0)),
        (["UPDATE embeddings_queue SET operation = 9 WHERE seq_id < 4"], words("47 of 50", 47, 0, 3, 0)),
        ([queued(1, "item-0-3", "zeroblob(120)")], words("49 of 50", 49, 0, 1, 0)),
        ([queued(1, "item-0-3", "zeroblob(128)")], words("all 50", 50, 0, 0, 0)),
        ([queued(1, "item-0-3")], words("all 50", 50, 0, 0, 0)),
        ([queued(0, "item-0-3", "zeroblob(120)")], words("all 50", 50, 0, 0, 0)),
        ([queued(2, "new", "zeroblob(128)")], words("all 51", 51, 0, 0, 0)),
        ([queued(1, "never seen", "zeroblob(128)")], words("all 50", 50, 0, 0, 0)),
        (["DELETE FROM embeddings WHERE id = 4", queued(3, "item-0-3")], words("all 49", 49, 0, 0, 0)),
    ],
    ids=["all", "rows of the queue lost", "queue lost", "rows lost", "encoding", "odd length", "length", "no vector",
         "operation", "updated badly", "updated", "metadata updated", "added again", "new", "unknown", "deleted"],
)  # fmt: skip
def test_an_embedding_can_be_recovered_when_its_last_vector_can_be_read(
    delta: Path, statements: list[str], expected: str
) -> None:
    assert left(delta, *statements) == expected


def test_a_queued_vector_that_holds_nan_is_not_counted_as_recoverable(delta: Path) -> None:
    update = "UPDATE embeddings_queue SET vector = :new WHERE seq_id < 4"
    assert left(delta, update, new=bytes(124) + NAN) == words("47 of 50", 47, 0, 3, 0)


@pytest.mark.parametrize("dimension", ["NULL", "33", "1"])
def test_vectors_that_agree_with_each_other_are_recoverable_whatever_the_dimension_says(
    delta: Path, dimension: str
) -> None:
    assert left(delta, f"UPDATE collections SET dimension = {dimension}") == words("all 50", 50, 0, 0, 0)


def test_vectors_that_disagree_with_each_other_are_measured_by_the_dimension(delta: Path) -> None:
    statement = "UPDATE embeddings_queue SET vector = zeroblob(120) WHERE seq_id > 3"
    assert left(delta, statement) == words("3 of 50", 3, 0, 47, 0)


def test_what_was_flushed_is_in_the_index(flushed: Path) -> None:
    rows = set(asked(flushed, "SELECT embedding_id FROM embeddings"))
    waiting = set(asked(flushed, "SELECT id FROM embeddings_queue WHERE operation < 3"))
    both = len(rows & waiting)
    assert left(flushed, indexed=rows - waiting) == words("all 123", both, 123 - both, 0, 0)
    assert left(flushed) == words(f"{both} of 123", both, 0, 123 - both, 0)
    assert left(flushed, indexed={"stranger", *(rows - waiting)}) == words("123 of 124", both, 124 - both, 0, 1)


def test_an_id_that_the_queue_deletes_is_not_missed_in_the_rows(flushed: Path) -> None:
    (deleted, *_) = asked(flushed, "SELECT id FROM embeddings_queue WHERE operation = 3")
    assert left(flushed, indexed={deleted}) == left(flushed)


def test_an_old_vector_in_the_index_is_no_replacement_for_a_broken_new_one(flushed: Path) -> None:
    (updated, *_) = asked(flushed, "SELECT id FROM embeddings_queue WHERE operation = 1 AND vector IS NOT NULL")
    before = left(flushed, indexed={updated})
    after = left(flushed, f"UPDATE embeddings_queue SET encoding = 'FLOAT8' WHERE id = '{updated}'", indexed={updated})
    assert (int(before.split()[0]), int(after.split()[0])) == (35, 34)


def test_without_a_metadata_segment_nobody_knows_whose_the_rows_are(delta: Path) -> None:
    told = left(delta, "DELETE FROM segments WHERE scope = 'METADATA'")
    where = "vectors of 50 are in the queue, of 0 in sound records of the index"
    assert told == f"which rows are those of 'words' is not told; {where}"


def test_where_not_even_the_ids_can_be_read_that_is_said(delta: Path) -> None:
    (page,) = asked(delta, "SELECT rootpage FROM sqlite_schema WHERE name = 'sqlite_autoindex_embeddings_1'")
    data = bytearray((delta / DATABASE).read_bytes())
    data[(page - 1) * 4096 : page * 4096] = bytes(4096)
    (delta / DATABASE).write_bytes(data)
    assert left(delta) == "of 'words' not even the ids can be read"


def test_what_is_left_of_another_collection_does_not_count(tmp_path: Path, copy_of: CopyOf) -> None:
    build_delta(tmp_path / "two", DeltaRecipe(embeddings=10, dimension=4, collections=2))
    with opened(tmp_path / "two" / DATABASE, 60) as connection:
        schema, _ = read_schema(connection)
        collections, _ = read_collections(connection, schema)
        told = [recoverable(connection, collection, set()) for collection in collections]
    heads = [text.split(" can ")[0] for text in told]
    assert heads == ["all 10 embeddings of 'words'", "all 10 embeddings of 'words-1'"]
