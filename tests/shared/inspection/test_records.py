"""Rows against each other: every stored id has its vector, and every vector that waits in the queue can be read."""

from __future__ import annotations

import math
import random
import sqlite3
import struct
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from local.deltas import DeltaRecipe, build_delta
from shared.delta import DATABASE
from shared.inspection.idmap import IdMap, parse
from shared.inspection.records import (
    Collection,
    Contents,
    digest_of,
    flushed,
    inspect_collection,
    read_collections,
)
from shared.inspection.sqlite import opened
from shared.verdict import CollectionCount, Finding

CopyOf = Callable[[Path], Path]
FIRST = "SELECT min(seq_id) FROM embeddings_queue"


@pytest.fixture
def delta(healthy_delta: Path, copy_of: CopyOf) -> Path:
    """50 embeddings of 32 numbers in the queue of the collection `words`."""
    return copy_of(healthy_delta)


def changed(delta: Path, *statements: str, **values: Any) -> Path:
    with closing(sqlite3.connect(delta / DATABASE, isolation_level=None)) as connection:
        for statement in statements:
            connection.execute(statement, values)
    return delta


def asked(delta: Path, query: str) -> list[Any]:
    with closing(sqlite3.connect(delta / DATABASE)) as connection:
        return [row[0] for row in connection.execute(query)]


def inspected(delta: Path, index: IdMap | None = None) -> tuple[list[Contents], list[Finding]]:
    with opened(delta / DATABASE, 60) as connection:
        collections, findings = read_collections(connection)
        contents = []
        for collection in collections:
            content, found = inspect_collection(connection, collection, index, index_readable=True)
            contents.append(content)
            findings += found
    return contents, findings


def findings_of(delta: Path, *statements: str, **values: Any) -> list[Finding]:
    return inspected(changed(delta, *statements, **values))[1]


def test_a_healthy_delta_tells_its_ids_and_has_no_finding(delta: Path) -> None:
    contents, findings = inspected(delta)
    ids = set(asked(delta, "SELECT embedding_id FROM embeddings"))
    assert findings == []
    assert contents == [Contents(CollectionCount("words", 32, 50), digest_of(ids))]
    assert len(ids) == 50


def test_the_digest_is_of_the_ids_and_not_of_their_order() -> None:
    assert digest_of({"b", "a"}) == digest_of({"a", "b"}) != digest_of({"ab"}) != digest_of({"a", "b\n"})


# --- the master invariant


def test_an_id_whose_vector_is_nowhere_is_told(delta: Path) -> None:
    (lost,) = asked(delta, f"SELECT id FROM embeddings_queue WHERE seq_id = ({FIRST})")
    (finding,) = findings_of(delta, f"DELETE FROM embeddings_queue WHERE seq_id = ({FIRST})")
    detail = f"1 of 50 embeddings of 'words' have no vector: '{lost}'"
    assert finding == Finding("records.vector_missing", DATABASE, detail)


def test_many_lost_vectors_are_counted_and_a_few_are_named(delta: Path) -> None:
    (finding,) = findings_of(delta, "DELETE FROM embeddings_queue")
    assert finding.code == "records.vector_missing"
    assert finding.detail.startswith("50 of 50 embeddings of 'words' have no vector: 'item-0-0', 'item-0-1', ")
    assert finding.detail.endswith(", …") and len(finding.detail) < 150


def test_a_vector_whose_id_has_no_row_is_told(delta: Path) -> None:
    (finding,) = findings_of(delta, "DELETE FROM embeddings WHERE embedding_id = 'item-0-7'")
    detail = "1 vectors of 'words' have no row in embeddings: 'item-0-7'"
    assert finding == Finding("records.id_missing", DATABASE, detail)


def test_an_id_that_differs_between_row_and_queue_is_told_on_both_sides(delta: Path) -> None:
    findings = findings_of(delta, "UPDATE embeddings_queue SET id = 'other' WHERE id = 'item-0-7'")
    assert [finding.code for finding in findings] == ["records.vector_missing", "records.id_missing"]


def test_a_queue_said_to_be_flushed_without_an_index_has_lost_its_vectors(delta: Path) -> None:
    vectors = "SELECT id, 1000 FROM segments WHERE scope = 'VECTOR'"
    (finding,) = findings_of(delta, f"INSERT INTO max_seq_id {vectors}")
    assert finding.detail.startswith("50 of 50 embeddings")


@pytest.fixture
def flushed_copy(flushed_delta: Path, copy_of: CopyOf) -> tuple[Path, IdMap]:
    copy = copy_of(flushed_delta)
    return copy, parse(next(copy.rglob("index_metadata.pickle")).read_bytes())


def test_an_index_and_the_queue_after_it_hold_every_id_together(flushed_copy: tuple[Path, IdMap]) -> None:
    delta, index = flushed_copy
    contents, findings = inspected(delta, index)
    assert findings == []
    assert contents[0].count == CollectionCount("words", 16, 123)


def test_an_index_that_lost_an_id_is_told(flushed_copy: tuple[Path, IdMap]) -> None:
    delta, index = flushed_copy
    # One that no later operation in the queue deletes.
    kept = set(asked(delta, "SELECT embedding_id FROM embeddings")) & index.labels.keys()
    del index.labels[min(kept)]
    (finding,) = inspected(delta, index)[1]
    assert finding.detail == f"1 of 123 embeddings of 'words' have no vector: '{min(kept)}'"


def test_an_index_that_holds_an_id_too_many_is_told(flushed_copy: tuple[Path, IdMap]) -> None:
    delta, index = flushed_copy
    index.labels["stranger"] = 1000
    (finding,) = inspected(delta, index)[1]
    assert (finding.code, finding.detail[-10:]) == ("records.id_missing", "'stranger'")


def test_ids_are_not_compared_with_an_index_whose_id_map_cannot_be_read(flushed_copy: tuple[Path, IdMap]) -> None:
    delta, _ = flushed_copy
    with opened(delta / DATABASE, 60) as connection:
        (collection,), _ = read_collections(connection)
        contents, findings = inspect_collection(connection, collection, None, index_readable=False)
    assert findings == []
    assert contents.count.count == 123


def test_a_flushed_operation_is_known_from_the_id_map_where_the_database_does_not_say(
    flushed_copy: tuple[Path, IdMap],
) -> None:
    """chromadb 0.4 keeps `max_seq_id` in the pickle and never purges the queue."""
    delta, index = flushed_copy
    (number,) = asked(delta, "SELECT seq_id FROM max_seq_id JOIN segments ON segment_id = id WHERE scope = 'VECTOR'")
    changed(delta, "DELETE FROM max_seq_id WHERE segment_id IN (SELECT id FROM segments WHERE scope = 'VECTOR')")
    assert inspected(delta, IdMap(index.labels, number, len(index.labels)))[1] == []


@pytest.mark.parametrize("number", [0, 1, 2**32, 2**63 - 1])
def test_no_number_in_an_id_map_makes_the_inspection_fail(flushed_copy: tuple[Path, IdMap], number: int) -> None:
    delta, index = flushed_copy
    changed(delta, "DELETE FROM max_seq_id")
    assert isinstance(inspected(delta, IdMap(index.labels, number, len(index.labels)))[1], list)


@pytest.mark.parametrize(
    "value",
    ["X'FFFFFFFFFFFFFFFF'", "X'8000000000000000'", "9223372036854775807", "-5", "'text'", "1.5", "X'00'", "NULL"],
)
def test_no_number_in_the_database_makes_the_inspection_fail(delta: Path, value: str) -> None:
    statements = (
        "DELETE FROM max_seq_id", "ALTER TABLE max_seq_id RENAME TO moved",
        "CREATE TABLE max_seq_id (segment_id TEXT, seq_id)", f"INSERT INTO max_seq_id SELECT id, {value} FROM segments",
    )  # fmt: skip
    assert isinstance(findings_of(delta, *statements), list)


def test_sequence_numbers_of_chroma_0_x_are_eight_bytes(flushed_copy: tuple[Path, IdMap]) -> None:
    delta, index = flushed_copy
    with closing(sqlite3.connect(delta / DATABASE, isolation_level=None)) as connection:
        rows = connection.execute("SELECT segment_id, seq_id FROM max_seq_id").fetchall()
        # The column of 1.x would turn eight bytes into no number; 0.x declares it BLOB.
        connection.execute("DROP TABLE max_seq_id")
        connection.execute("CREATE TABLE max_seq_id (segment_id TEXT PRIMARY KEY, seq_id BLOB NOT NULL)")
        connection.executemany("INSERT INTO max_seq_id VALUES (?, ?)", [(s, n.to_bytes(8, "big")) for s, n in rows])
        seen = connection.execute("SELECT id, seq_id FROM embeddings").fetchall()
        connection.executemany(
            "UPDATE embeddings SET seq_id = ? WHERE id = ?", [(n.to_bytes(8, "big"), id_) for id_, n in seen]
        )
    contents, findings = inspected(delta, index)
    assert findings == []
    assert contents[0].count.count == 123


# --- operations that wait in the queue


def with_vector(change: Callable[[bytes], bytes | None]) -> Callable[[Path], list[Finding]]:
    def break_(delta: Path) -> list[Finding]:
        (old,) = asked(delta, f"SELECT vector FROM embeddings_queue WHERE seq_id = ({FIRST})")
        update = f"UPDATE embeddings_queue SET vector = :new WHERE seq_id = ({FIRST})"
        return findings_of(delta, update, new=change(old))

    return break_


@pytest.mark.parametrize(
    ("change", "code", "words"),
    [
        (lambda old: old[:-4], "records.vector_length", "124 bytes, dimension 32 needs 128"),
        (lambda old: old[:-1], "records.vector_length", "127 bytes, dimension 32 needs 128"),
        (lambda old: old + b"abcd", "records.vector_length", "132 bytes, dimension 32 needs 128"),
        (lambda _: b"", "records.vector_length", "0 bytes, dimension 32 needs 128"),
        (lambda _: None, "records.vector_length", "no vector"),
        (lambda old: old[4:] + struct.pack("<f", math.nan), "records.vector_not_finite", "NaN or infinity"),
        (lambda old: struct.pack("<f", math.inf) + old[4:], "records.vector_not_finite", "NaN or infinity"),
        (lambda old: struct.pack("<f", -math.inf) + old[4:], "records.vector_not_finite", "NaN or infinity"),
    ],
)  # fmt: skip
def test_a_vector_that_cannot_be_used_is_told_with_its_row(delta: Path, change: Any, code: str, words: str) -> None:
    findings = {finding.code: finding for finding in with_vector(change)(delta)}
    assert code in findings
    assert findings[code].detail == f"1 queued vectors of 'words', the first in row 1 of embeddings_queue: {words}"


@pytest.mark.parametrize("encoding", ["FLOAT8", "INT32", "float32", "", None, 5])
def test_an_encoding_that_chroma_does_not_write_is_told(delta: Path, encoding: object) -> None:
    findings = findings_of(delta, "UPDATE embeddings_queue SET encoding = :new WHERE seq_id = 1", new=encoding)
    assert "records.vector_encoding" in {finding.code for finding in findings}


@pytest.mark.parametrize("operation", [4, 9, -1, "add", None])
def test_an_operation_that_chroma_does_not_know_is_told(delta: Path, operation: object) -> None:
    rebuilt = (
        "CREATE TABLE queue AS SELECT * FROM embeddings_queue", "DROP TABLE embeddings_queue",
        "ALTER TABLE queue RENAME TO embeddings_queue", "UPDATE embeddings_queue SET operation = :new WHERE seq_id = 1",
    )  # fmt: skip
    changed(delta, *rebuilt[:3])
    findings = findings_of(delta, rebuilt[3], new=operation)
    assert findings[0].code == "records.operation_unknown"
    assert findings[0].detail == f"row 1 of embeddings_queue: operation {operation!r} on 'item-0-0'"


@pytest.mark.parametrize("id_", ["CAST(X'FF' AS TEXT)", "X'6974656D'", "CAST(X'EDA080' AS TEXT)"])
def test_an_id_in_the_queue_that_is_not_text_is_told(delta: Path, id_: str) -> None:
    findings = findings_of(delta, f"UPDATE embeddings_queue SET id = {id_} WHERE seq_id = 1")
    assert "records.operation_unknown" in {finding.code for finding in findings}


def test_metadata_in_the_queue_that_is_not_json_is_told(delta: Path) -> None:
    (finding,) = findings_of(delta, "UPDATE embeddings_queue SET metadata = '{\"a\": ' WHERE seq_id = 1")
    assert finding.code == "records.row_unreadable" and "row 1 of embeddings_queue" in finding.detail


@pytest.mark.parametrize("value", ["CAST(X'FF' AS TEXT)", "X'00'"])
def test_a_stored_id_that_is_not_text_is_told(delta: Path, value: str) -> None:
    findings = findings_of(delta, f"UPDATE embeddings SET embedding_id = {value} WHERE id = 1")
    assert findings[0] == Finding(
        "records.row_unreadable", DATABASE, "1 rows of embeddings in 'words' have an id or seq_id of a wrong type"
    )


@pytest.mark.parametrize(
    ("statement", "words"),
    [
        ("UPDATE collections SET dimension = 'x'", "dimension ('x')"),
        ("UPDATE collections SET dimension = 0", "dimension (0)"),
        ("UPDATE collections SET dimension = -3", "dimension (-3)"),
        ("UPDATE collections SET name = X'00'", "a name"),
        ("UPDATE collections SET name = CAST(X'FF' AS TEXT)", "a name"),
        ("UPDATE collections SET config_json_str = '{'", "config_json_str of collection 'words' is not JSON"),
        ("UPDATE collections SET schema_str = '{'", "schema_str of collection 'words' is not JSON"),
    ],
)
def test_a_collection_that_chroma_cannot_read_is_told(delta: Path, statement: str, words: str) -> None:
    findings = findings_of(delta, statement)
    assert "records.row_unreadable" in {finding.code for finding in findings}
    assert words in findings[0].detail


@pytest.mark.parametrize("scope", ["VECTOR", "METADATA"])
def test_a_collection_without_one_of_its_segments_is_told(delta: Path, scope: str) -> None:
    findings = findings_of(delta, f"DELETE FROM segments WHERE scope = '{scope}'")
    detail = f"collection 'words' has no {scope.lower()} segment"
    assert findings[0] == Finding("records.segment_missing", DATABASE, detail)


def test_a_collection_that_is_gone_while_its_segments_stayed_is_told(delta: Path) -> None:
    (finding,) = findings_of(delta, "DELETE FROM collections")
    assert finding.code == "records.collection_missing" and finding.detail.startswith("1 collections have segments")


def test_a_collection_with_vectors_and_no_dimension_is_told(delta: Path) -> None:
    (finding,) = findings_of(delta, "UPDATE collections SET dimension = NULL")
    detail = "'words' holds 50 vectors, but its dimension is not set"
    assert finding == Finding("records.dimension_missing", DATABASE, detail)


def test_no_id_name_or_value_is_shown_unescaped(delta: Path) -> None:
    evil = "\x1b[2J\n\u202e"
    findings = findings_of(
        delta,
        "UPDATE collections SET name = :evil",
        "UPDATE embeddings_queue SET id = :evil, encoding = :evil WHERE seq_id = 1",
        "UPDATE embeddings SET embedding_id = :evil || 'x' WHERE id = 2",
        evil=evil,
    )
    assert len(findings) >= 3
    assert all(finding.detail.isprintable() for finding in findings)


# --- what is healthy


def appended(operation: int, id_: str, vector: str = "NULL") -> str:
    """One more operation in the queue, not yet applied by either segment."""
    return (
        "INSERT INTO embeddings_queue (operation, topic, id, vector, encoding, metadata) "
        f"SELECT {operation}, topic, '{id_}', {vector}, encoding, '{{}}' FROM embeddings_queue WHERE seq_id = 1"
    )


@pytest.mark.parametrize(
    ("statements", "count"),
    [
        ([appended(0, "item-0-3", "vector")], 50),
        ([appended(0, "new", "vector")], 51),
        ([appended(1, "item-0-3")], 50),
        ([appended(1, "item-0-3", "vector")], 50),
        ([appended(1, "never seen", "vector")], 50),
        ([appended(2, "item-0-3", "vector")], 50),
        ([appended(2, "new", "vector")], 51),
        ([appended(3, "item-0-3")], 49),
        ([appended(3, "never seen")], 50),
        ([appended(3, "item-0-3"), appended(0, "item-0-3", "vector")], 50),
        ([appended(0, "new", "vector"), appended(3, "new")], 50),
    ],
    ids=["add known", "add", "update of metadata", "update", "update unknown", "upsert known", "upsert", "delete",
         "delete unknown", "delete and add", "add and delete"],
)  # fmt: skip
def test_operations_that_wait_are_replayed_as_chroma_does(delta: Path, statements: list[str], count: int) -> None:
    contents, findings = inspected(changed(delta, *statements))
    assert findings == []
    assert contents[0].count.count == count


def test_a_wrong_vector_that_a_later_operation_replaced_does_no_harm(delta: Path) -> None:
    nan = "UPDATE embeddings_queue SET vector = zeroblob(124) || X'0000C07F' WHERE seq_id = 4"
    assert "records.vector_not_finite" in {finding.code for finding in findings_of(delta, cast_to_blob(nan))}
    assert findings_of(delta, appended(2, "item-0-3", "vector")) == []


def cast_to_blob(statement: str) -> str:
    return statement.replace("zeroblob(124) || X'0000C07F'", "CAST(zeroblob(124) || X'0000C07F' AS BLOB)")


def test_a_queue_of_nothing_but_deletes_is_healthy(tmp_path: Path) -> None:
    build_delta(tmp_path, DeltaRecipe(embeddings=100, deletes=7, dimension=4, sync_threshold=50, batch=50))
    changed(tmp_path, "DELETE FROM embeddings_queue WHERE operation <> 3")
    assert asked(tmp_path, "SELECT count(*) FROM embeddings_queue") == [7]
    contents, findings = inspected(tmp_path, parse(next(tmp_path.rglob("index_metadata.pickle")).read_bytes()))
    assert findings == []
    assert contents[0].count.count == 93


def test_rows_of_another_collection_s_queue_do_not_count(tmp_path: Path) -> None:
    build_delta(tmp_path, DeltaRecipe(embeddings=10, dimension=4, collections=2))
    contents, findings = inspected(tmp_path)
    assert findings == []
    assert [content.count.count for content in contents] == [10, 10]


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
    assert contents == [Contents(CollectionCount("words", 3, counted), digest_of(ids))]


@pytest.mark.parametrize(
    ("flushed_to", "files", "expected"),
    [
        (None, {}, False),
        (None, {"header.bin": 100, "link_lists.bin": 0}, False),
        (None, {"index_metadata.pickle": 9}, True),
        (7, {}, True),
    ],
)
def test_an_index_was_flushed_when_its_id_map_or_the_database_says_so(
    flushed_to: int | None, files: dict[str, int], expected: bool
) -> None:
    collection = Collection("c", "words", 3, "v", "m", flushed_to, 0)
    assert flushed(collection, {"v": files}) is expected
