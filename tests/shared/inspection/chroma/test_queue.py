"""The queue replayed as Chroma does: what it leaves, which operations cannot be read, and what the rows must hold."""

from __future__ import annotations

import json
import math
import sqlite3
import struct
from collections.abc import Callable, Iterable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, event, example, given, settings
from hypothesis import strategies as st

from devtools.damage.deltas import DeltaRecipe, build_delta
from shared.inspection.chroma import queue
from shared.inspection.chroma.queue import ADD, DELETE, UPDATE, UPSERT, Replay
from shared.inspection.chroma.sysdb import Collection, read_collections
from shared.inspection.sqlite.database_file import opened
from shared.inspection.sqlite.schema import read_schema
from shared.model.delta import DATABASE
from shared.model.verdict import Finding
from tests.support.databases import FIRST, asked, changed, queued, untyped
from tests.support.histories import Chroma


def replayed(
    delta: Path, *statements: str, with_vector: Iterable[str] = (), flushed_to: int = 0, **values: Any
) -> Replay:
    with opened(changed(delta, *statements, **values) / DATABASE, 60) as connection:
        schema, _ = read_schema(connection)
        (collection,), _ = read_collections(connection, schema)
        rows = dict(connection.execute("SELECT embedding_id, id FROM embeddings").fetchall())
        result = Replay(collection, flushed_to, set(with_vector), rows)
        result.run(connection, booleans=True)
    return result


def findings_of(delta: Path, *statements: str, **values: Any) -> list[Finding]:
    result = replayed(delta, *statements, **values)
    return result.findings + result.contradictions()


def codes(findings: Iterable[Finding]) -> set[str]:
    return {finding.code for finding in findings}


def test_the_queue_of_a_healthy_delta_holds_a_vector_for_every_row(delta: Path) -> None:
    result = replayed(delta)
    assert result.findings == result.contradictions() == []
    assert result.with_vector == result.with_row
    assert len(result.with_row) == 50


# --- what operations do


@pytest.mark.parametrize(
    ("statements", "count"),
    [
        ([queued(ADD, "item-0-3", "vector")], 50),
        ([queued(ADD, "new", "vector")], 51),
        ([queued(UPDATE, "item-0-3")], 50),
        ([queued(UPDATE, "item-0-3", "vector")], 50),
        ([queued(UPDATE, "never seen", "vector")], 50),
        ([queued(UPSERT, "item-0-3", "vector")], 50),
        ([queued(UPSERT, "new", "vector")], 51),
        ([queued(DELETE, "item-0-3")], 49),
        ([queued(DELETE, "never seen")], 50),
        ([queued(DELETE, "item-0-3"), queued(ADD, "item-0-3", "vector")], 50),
        ([queued(ADD, "new", "vector"), queued(DELETE, "new")], 50),
    ],
    ids=["add known", "add", "update of metadata", "update", "update unknown", "upsert known", "upsert", "delete",
         "delete unknown", "delete and add", "add and delete"],
)  # fmt: skip
def test_operations_that_wait_are_replayed_as_chroma_does(delta: Path, statements: list[str], count: int) -> None:
    result = replayed(delta, *statements)
    assert result.findings == result.contradictions() == []
    assert len(result.with_vector) == len(result.with_row) == count


def test_operations_that_the_index_has_taken_up_are_not_applied_again(delta: Path) -> None:
    ids = asked(delta, "SELECT embedding_id FROM embeddings")
    delete = queued(DELETE, "item-0-3")
    assert len(replayed(delta, delete, with_vector=ids, flushed_to=50).with_vector) == 49
    assert len(replayed(delta, with_vector=ids, flushed_to=51).with_vector) == 50


def test_rows_of_another_collection_s_queue_do_not_count(delta: Path) -> None:
    result = replayed(delta, "UPDATE embeddings_queue SET topic = replace(topic, substr(topic, -3), 'abc') "
                      "WHERE seq_id = 1")  # fmt: skip
    assert result.with_row - result.with_vector == {"item-0-0"}


def test_a_queue_of_nothing_but_deletes_is_healthy(tmp_path: Path) -> None:
    build_delta(tmp_path, DeltaRecipe(embeddings=100, deletes=7, dimension=4, sync_threshold=50, batch=50))
    changed(tmp_path, "DELETE FROM embeddings_queue WHERE operation <> 3")
    assert asked(tmp_path, "SELECT count(*) FROM embeddings_queue") == [7]
    ids = [f"item-0-{n}" for n in range(100)]
    result = replayed(tmp_path, with_vector=ids, flushed_to=100)
    assert result.findings == result.contradictions() == []
    assert len(result.with_vector) == 93


# --- what breaks the master invariant


def test_an_id_whose_vector_is_nowhere_is_told(delta: Path) -> None:
    findings = findings_of(delta, f"DELETE FROM embeddings_queue WHERE seq_id = ({FIRST})")
    detail = "1 of 50 embeddings of 'words' have no vector: 'item-0-0'"
    assert findings == [Finding("records.vector_missing", DATABASE, detail)]


def test_many_lost_vectors_are_counted_and_a_few_are_named(delta: Path) -> None:
    (finding,) = findings_of(delta, "DELETE FROM embeddings_queue")
    detail = "50 of 50 embeddings of 'words' have no vector: 'item-0-0', 'item-0-1', 'item-0-10', …"
    assert finding == Finding("records.vector_missing", DATABASE, detail)


def test_a_vector_whose_id_has_no_row_is_told(delta: Path) -> None:
    findings = findings_of(delta, "DELETE FROM embeddings WHERE embedding_id = 'item-0-7'")
    detail = "1 vectors of 'words' have no row in embeddings: 'item-0-7'"
    assert findings == [Finding("records.id_missing", DATABASE, detail)]


def test_an_id_that_differs_between_row_and_queue_is_told_on_both_sides(delta: Path) -> None:
    findings = findings_of(delta, "UPDATE embeddings_queue SET id = 'other' WHERE id = 'item-0-7'")
    assert [finding.code for finding in findings] == ["records.vector_missing", "records.id_missing"]


def test_a_collection_with_vectors_and_no_dimension_is_told(delta: Path) -> None:
    detail = "'words' holds 50 vectors, but its dimension is not set"
    findings = findings_of(delta, "UPDATE collections SET dimension = NULL")
    assert findings == [Finding("records.dimension_missing", DATABASE, detail)]


def test_an_empty_collection_has_no_dimension_yet(tmp_path: Path) -> None:
    build_delta(tmp_path, DeltaRecipe(embeddings=0))
    assert asked(tmp_path, "SELECT dimension FROM collections") == [None]
    assert findings_of(tmp_path) == []


# --- vectors that wait in the queue


def with_vector(change: Callable[[bytes], bytes | None]) -> Callable[[Path], list[Finding]]:
    def break_(delta: Path) -> list[Finding]:
        (old,) = asked(delta, f"SELECT vector FROM embeddings_queue WHERE seq_id = ({FIRST})")
        update = f"UPDATE embeddings_queue SET vector = :new WHERE seq_id = ({FIRST})"
        return findings_of(delta, update, new=change(old))

    return break_


NAN = struct.pack("<f", math.nan)
NOT_FINITE = "NaN or infinity, expected finite numbers"


@pytest.mark.parametrize(
    ("change", "code", "words"),
    [
        (lambda old: old[:-4], "records.vector_length", "124 bytes, dimension 32 needs 128"),
        (lambda old: old[:-1], "records.vector_length", "127 bytes, dimension 32 needs 128"),
        (lambda old: old + b"abcd", "records.vector_length", "132 bytes, dimension 32 needs 128"),
        (lambda _: b"", "records.vector_length", "0 bytes, dimension 32 needs 128"),
        (lambda _: None, "records.vector_length", "no vector, expected 128 bytes"),
        (lambda _: "text" * 32, "records.vector_length", "no vector, expected 128 bytes"),
        (lambda old: old[4:] + struct.pack("<f", math.nan), "records.vector_not_finite", NOT_FINITE),
        (lambda old: struct.pack("<f", math.inf) + old[4:], "records.vector_not_finite", NOT_FINITE),
        (lambda old: struct.pack("<f", -math.inf) + old[4:], "records.vector_not_finite", NOT_FINITE),
    ],
)
def test_a_vector_that_cannot_be_used_is_told_with_its_row(delta: Path, change: Any, code: str, words: str) -> None:
    findings = {finding.code: finding for finding in with_vector(change)(delta)}
    assert code in findings
    assert findings[code].detail == f"1 queued vectors of 'words', the first in row 1 of embeddings_queue: {words}"


@pytest.mark.parametrize("encoding", ["FLOAT8", "INT32", "float32", "", None, 5])
def test_an_encoding_that_chroma_does_not_write_is_told(delta: Path, encoding: object) -> None:
    findings = findings_of(delta, "UPDATE embeddings_queue SET encoding = :new WHERE seq_id = 1", new=encoding)
    assert "records.vector_encoding" in codes(findings)


def test_a_wrong_vector_that_a_later_operation_replaced_does_no_harm(delta: Path) -> None:
    nan = "UPDATE embeddings_queue SET vector = :new WHERE seq_id = 4"
    assert codes(findings_of(delta, nan, new=bytes(124) + NAN)) == {"records.vector_not_finite"}
    assert findings_of(delta, queued(UPSERT, "item-0-3", "vector")) == []


def test_a_wrong_vector_of_an_id_that_was_deleted_does_no_harm(delta: Path) -> None:
    nan = "UPDATE embeddings_queue SET vector = :new WHERE seq_id = 4"
    assert findings_of(delta, nan, queued(DELETE, "item-0-3"), new=bytes(124) + NAN) == []


def test_a_vector_that_stops_chroma_s_reader_does_harm_wherever_it_stands(delta: Path) -> None:
    odd = "UPDATE embeddings_queue SET vector = :new WHERE seq_id = 4"
    findings = findings_of(delta, odd, queued(UPSERT, "item-0-3", "vector"), new=bytes(127))
    assert codes(findings) == {"records.vector_length"}


def test_the_rows_of_each_kind_of_problem_are_counted(delta: Path) -> None:
    findings = findings_of(
        delta,
        "UPDATE embeddings_queue SET encoding = 'FLOAT8' WHERE seq_id IN (7, 8, 9)",
        "UPDATE embeddings_queue SET vector = zeroblob(120) WHERE seq_id IN (5, 3)",
    )
    told = {finding.code: finding.detail for finding in findings}
    assert told["records.vector_encoding"].startswith("3 queued vectors of 'words', the first in row 7 of ")
    assert told["records.vector_length"].startswith("2 queued vectors of 'words', the first in row 3 of ")


# --- operations that cannot be read


@pytest.mark.parametrize("operation", [4, 9, -1, "add", None, 1.5])
def test_an_operation_that_chroma_does_not_know_is_told(delta: Path, operation: object) -> None:
    untyped(delta, "embeddings_queue")
    findings = findings_of(delta, "UPDATE embeddings_queue SET operation = :new WHERE seq_id = 1", new=operation)
    assert findings[0] == Finding(
        "records.operation_unknown",
        DATABASE,
        f"row 1 of embeddings_queue: operation {operation!r} on 'item-0-0', expected 0 to 3 (add, update, upsert, "
        "delete) on a text",
    )


@pytest.mark.parametrize("id_", ["CAST(X'FF' AS TEXT)", "X'6974656D'", "CAST(X'EDA080' AS TEXT)"])
def test_an_id_in_the_queue_that_is_not_text_is_told(delta: Path, id_: str) -> None:
    findings = findings_of(delta, f"UPDATE embeddings_queue SET id = {id_} WHERE seq_id = 1")
    assert codes(findings) == {"records.operation_unknown", "records.vector_missing"}


@pytest.mark.parametrize("text", ["'{\"a\": '", "'[]'", "X'7B7D'", "'{\"a\": NaN}'"])
def test_metadata_in_the_queue_that_is_not_json_is_told(delta: Path, text: str) -> None:
    (finding,) = findings_of(delta, f"UPDATE embeddings_queue SET metadata = {text} WHERE seq_id = 1")
    assert finding.code == "records.row_unreadable"
    assert finding.detail.startswith("row 1 of embeddings_queue: the metadata of 'item-0-0' is not readable: ")


@pytest.mark.parametrize(
    "time",
    ["'2026-11-25T10:00:00Z'", "'2026-11-25 10:00'", "'2026-11-25'", "'2026-11-25 10:00:00.5+02:00'", "2460000.5", "5"],
)
def test_any_time_that_sqlite_can_read_is_one(delta: Path, chroma: Chroma, time: str) -> None:
    untyped(delta, "embeddings_queue")
    assert findings_of(delta, f"UPDATE embeddings_queue SET created_at = {time} WHERE seq_id = 1") == []
    assert len(chroma.read(delta)["words"]["embeddings"]) == 50


@pytest.mark.parametrize(
    "time", ["NULL", "X'00'", "'yesterday'", "'2026-13-01 00:00:00'", "''", "'2262-04-12 00:00:00'", "99999999"]
)
def test_an_operation_whose_time_chroma_cannot_read_is_one_that_it_passes_over(delta: Path, time: str) -> None:
    untyped(delta, "embeddings_queue")
    findings = findings_of(delta, f"UPDATE embeddings_queue SET created_at = {time} WHERE seq_id = 1")
    detail = "row 1 of embeddings_queue: the time at which 'item-0-0' was queued is none"
    assert findings[0] == Finding("records.row_unreadable", DATABASE, detail)
    assert codes(findings) == {"records.row_unreadable", "records.vector_missing"}


@pytest.mark.parametrize("number", ["'a'", "X'ff'", "9e999", "60.5"])
def test_an_operation_without_a_number_is_told(delta: Path, number: str) -> None:
    untyped(delta, "embeddings_queue")
    findings = findings_of(delta, f"UPDATE embeddings_queue SET seq_id = {number} WHERE seq_id = 1")
    assert codes(findings) == {"records.row_unreadable", "records.vector_missing"}
    assert findings[0].detail.endswith("of embeddings_queue: its number is none")


# --- what the rows must hold


@pytest.mark.parametrize(
    ("statement", "values", "embeddings", "key", "id_", "row"),
    [
        ("DELETE FROM embedding_metadata WHERE id = 3", 6, 1, "", "item-0-2", 3),
        ("DELETE FROM embedding_metadata WHERE key = 'score' AND id < 7", 6, 6, "'score'", "item-0-0", 1),
        ("UPDATE embedding_metadata SET int_value = 77 WHERE int_value = 2", 1, 1, "'position'", "item-0-2", 3),
    ],
)  # fmt: skip
def test_values_that_the_rows_have_not_as_the_queue_has_are_told_with_the_first(
    delta: Path, statement: str, values: int, embeddings: int, key: str, id_: str, row: int
) -> None:
    (finding,) = findings_of(delta, statement)
    assert finding.code == "records.metadata_missing"
    start = f"{values} values of {embeddings} embeddings of 'words' are not as the queue has them, the first "
    assert finding.detail.startswith(start)
    assert finding.detail.endswith(f" of '{id_}' in row {row} of embeddings")
    assert key in finding.detail


def test_a_detail_never_holds_a_document_or_a_value(delta: Path) -> None:
    (finding,) = findings_of(delta, "UPDATE embedding_metadata SET string_value = 'secret' WHERE key = 'first'")
    texts = asked(delta, "SELECT string_value FROM embedding_metadata WHERE string_value IS NOT NULL")
    assert not any(text in finding.detail for text in texts)


def test_what_a_later_operation_changed_is_what_the_rows_must_hold(tmp_path: Path) -> None:
    build_delta(tmp_path, DeltaRecipe(embeddings=20, dimension=4, updates=9, deletes=5))
    assert findings_of(tmp_path) == []
    (last,) = asked(tmp_path, "SELECT id FROM embeddings_queue WHERE operation = 1 ORDER BY seq_id DESC LIMIT 1")
    (finding,) = findings_of(
        tmp_path,
        "UPDATE embedding_metadata SET int_value = 0 WHERE key = 'revision' "
        f"AND id = (SELECT id FROM embeddings WHERE embedding_id = '{last}')",
    )
    assert f"the first 'revision' of '{last}'" in finding.detail


def test_operations_that_the_rows_have_not_taken_up_say_nothing_about_them(delta: Path) -> None:
    assert findings_of(delta, queued(UPDATE, "item-0-3", metadata="""'{"position": 77}'""")) == []


# --- all at once, or one by one

IDS = [f"item-0-{n}" for n in range(4)] + ["new-1", "new-2", "größe"]
GOOD = [struct.pack("<2f", n, 1 / (n + 1)) for n in range(3)]
VECTORS = [*GOOD, struct.pack("<2f", 1, math.nan), b"", b"1234", b"1234567", b"123456789012", None, "12345678", 7]
METADATA = [
    None, "{}", '{"position": 0}', '{"position": 7, "gone": null}', '{"chroma:document": "text"}', '{"even": true}',
    "{", "[]", '{"a": NaN}', b"{}", 5,
]  # fmt: skip
TIMES = ["2026-01-01 00:00:00", "2026-01-01 00:00:00.123", "soon", None]


def mostly(usual: st.SearchStrategy[Any], odd: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return st.integers(0, 19).flatmap(lambda number: odd if number == 0 else usual)


operations = st.tuples(
    mostly(st.sampled_from([ADD, ADD, ADD, UPSERT]), st.sampled_from([UPDATE, DELETE, 9, "add", None])),
    mostly(st.sampled_from(IDS), st.sampled_from([b"item", 5])),
    mostly(st.sampled_from(GOOD), st.sampled_from(VECTORS)),
    mostly(st.just("FLOAT32"), st.sampled_from(["INT32", None])),
    mostly(st.sampled_from(METADATA[:6]), st.sampled_from(METADATA)),
    mostly(st.just(TIMES[0]), st.sampled_from(TIMES)),
)
History = list[tuple[Any, ...]]


def stored(
    kind: Any = ADD,
    id_: Any = "item-0-0",
    vector: Any = GOOD[0],
    encoding: Any = "FLOAT32",
    metadata: Any = "{}",
    time: Any = TIMES[0],
) -> tuple[Any, ...]:
    """An operation that stores a new id, or one that differs from that."""
    return kind, id_, vector, encoding, metadata, time


@pytest.fixture(scope="module")
def bytes_of_a_database(healthy_delta: Path) -> bytes:
    """A real database whose queue is empty and takes any value."""
    with closing(sqlite3.connect(":memory:", isolation_level=None)) as connection:
        connection.deserialize((healthy_delta / DATABASE).read_bytes())
        connection.execute("DROP TABLE embeddings_queue")
        connection.execute(
            "CREATE TABLE embeddings_queue (seq_id, created_at, operation, topic, id, vector, encoding, metadata)"
        )
        return connection.serialize()


def outcome(
    database: bytes, history: History, collection: Collection, flushed_to: int, indexed: set[str]
) -> tuple[object, ...]:
    """Everything a replay leaves, the findings in a stable order."""
    with closing(sqlite3.connect(":memory:", isolation_level=None)) as connection:
        connection.deserialize(database)
        connection.executemany(
            "INSERT INTO embeddings_queue (seq_id, operation, id, vector, encoding, metadata, created_at, topic) "
            f"VALUES (?, ?, ?, ?, ?, ?, ?, 'persistent://default/default/{collection.id}')",
            [(number, *operation) for number, operation in enumerate(history, start=1)],
        )
        rows = dict(connection.execute("SELECT embedding_id, id FROM embeddings").fetchall())
        result = Replay(collection, flushed_to, set(indexed), rows)
        result.run(connection, booleans=True)
        return (
            result.with_vector,
            result.with_row,
            sorted(result.findings, key=repr),
            sorted(result.contradictions(), key=repr),
        )


@pytest.mark.parametrize("batch", [1, 3, 500])
@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(
    history=st.lists(operations, max_size=12),
    dimension=mostly(st.just(2), st.sampled_from([None, 3])),
    flushed_to=st.sampled_from([0, 0, 0, 1, 3, 6, 12]),
    applied_to=st.sampled_from([0, 1, 3, 6, 12, 12, 12]),
    indexed=mostly(st.just(set()), st.sets(st.sampled_from(IDS))),
)
# One for each condition under which operations may be applied all at once.
@example([stored()], 2, 0, 12, set())
@example([stored(kind=UPDATE)], 2, 0, 12, {"item-0-0"})
@example([stored(id_=b"item")], 2, 0, 12, set())
@example([stored(metadata='{"position": 0}'), stored(metadata='{"position": 9}')], 2, 0, 12, set())
@example([stored(metadata='{"position": 9}')], 2, 0, 12, {"item-0-0"})
@example([stored(vector="12345678")], 2, 0, 12, set())
@example([stored(vector=b"1234567")], 2, 0, 12, set())
@example([stored(vector=VECTORS[3])] * 2, 2, 0, 12, set())
@example([stored()], None, 0, 12, set())
@example([stored(encoding="INT32")], 2, 0, 12, set())
@example([stored(metadata="{")], 2, 0, 12, set())
@example([stored(time="soon")], 2, 0, 12, set())
@example([stored(id_=f"item-0-{n}") for n in range(3)], 2, 1, 12, set())
@example([stored(id_=f"item-0-{n}") for n in range(3)], 2, 0, 1, set())
def test_new_ids_stored_all_at_once_leave_the_same_as_one_by_one(
    bytes_of_a_database: bytes,
    batch: int,
    history: History,
    dimension: int | None,
    flushed_to: int,
    applied_to: int,
    indexed: set[str],
) -> None:
    collection = Collection("0" * 36, "words", dimension, None, "v", "m", flushed_to, applied_to)
    at_once: list[bool] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(queue, "_BATCH_ROWS", batch)
        store_all = Replay._store_all

        def recorded(self: Replay, rows: Any) -> bool:
            at_once.append(store_all(self, rows))
            return at_once[-1]

        patch.setattr(Replay, "_store_all", recorded)
        fast = outcome(bytes_of_a_database, history, collection, flushed_to, indexed)
        patch.setattr(Replay, "_store_all", lambda *_: False)
        slow = outcome(bytes_of_a_database, history, collection, flushed_to, indexed)
    event(f"at once: {'some' if any(at_once) else 'none'}")
    assert fast == slow


def test_the_queue_of_a_healthy_delta_is_stored_all_at_once(delta: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else the test above compares one way with itself."""
    monkeypatch.setattr(Replay, "_apply", lambda *_: pytest.fail("one by one"))
    assert len(replayed(delta).with_vector) == 50


@pytest.mark.parametrize("least", [1, 128, 1000, 10**9])
def test_vectors_are_looked_at_in_parts_of_any_size(delta: Path, monkeypatch: pytest.MonkeyPatch, least: int) -> None:
    monkeypatch.setattr(queue, "_BATCH_BYTES", least)
    changed(delta, "UPDATE embeddings_queue SET vector = :new WHERE seq_id IN (4, 5)", new=bytes(124) + NAN)
    findings = findings_of(delta, queued(UPSERT, "item-0-3", "zeroblob(128)"))
    detail = f"1 queued vectors of 'words', the first in row 5 of embeddings_queue: {NOT_FINITE}"
    assert findings == [Finding("records.vector_not_finite", DATABASE, detail)]


def test_no_id_or_value_is_shown_unescaped(delta: Path) -> None:
    findings = findings_of(
        delta,
        "UPDATE collections SET name = :evil",
        "UPDATE embeddings_queue SET id = :evil, encoding = :evil WHERE seq_id = 1",
        "UPDATE embeddings_queue SET metadata = :json WHERE seq_id = 2",
        "UPDATE embeddings_queue SET created_at = :evil WHERE seq_id = 3",
        "UPDATE embeddings SET embedding_id = :evil || 'x' WHERE id = 4",
        evil="\x1b[2J\n\u202e",
        json=json.dumps({"\x1b[2J": "\u202e"}),
    )
    assert len(findings) >= 5
    assert all(finding.detail.isprintable() for finding in findings)
