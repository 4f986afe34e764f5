"""Documents and metadata: what an operation says, whether the rows hold it, and whether Chroma can read the rows."""

from __future__ import annotations

import json
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.check.judgement import judge_folder
from shared.inspection.chroma.metadata import ExpectedMetadata, inspect_values, parse, parse_queued
from shared.inspection.sqlite.database_file import opened
from shared.inspection.sqlite.schema import read_schema
from shared.model.delta import DATABASE
from shared.model.settings import Settings
from shared.model.verdict import Depth, Finding, Status
from tests.conftest import CopyOf
from tests.support.databases import asked, changed, untyped

# --- the metadata of an operation


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (None, {}),
        ("{}", {}),
        (' {"a": 1} \n', {"a": 1}),
        ('{"a": null, "b": [1, "x"], "c": true, "d": 0.5}', {"a": None, "b": [1, "x"], "c": True, "d": 0.5}),
        ('{"chroma:document": "größe 雪 \\ud83d\\ude00"}', {"chroma:document": "größe 雪 😀"}),
        ('{"a": 1, "a": 2}', {"a": 2}),
    ],
)
def test_metadata_is_a_json_object_or_nothing(text: object, expected: dict[str, Any]) -> None:
    assert parse(text) == expected


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (b"{}", "a bytes instead of JSON"),
        (5, "a int instead of JSON"),
        ("", "Expecting value"),
        ("{", "Expecting property name"),
        ("[]", "a list instead of an object"),
        ("null", "a NoneType instead of an object"),
        ('{"a": NaN}', "NaN is not JSON"),
        ('{"a": -Infinity}', "-Infinity is not JSON"),
        ('{"a": 1} x', "something follows after 8 characters"),
        ('{"a": 1}{}', "something follows after 8 characters"),
        ('{"a":' * 100_000, "nested too deeply"),
    ],
    ids=lambda value: repr(value)[:20],
)
def test_anything_else_is_refused_in_words(text: object, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        parse(text)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
)


@pytest.mark.parametrize("document", ["null", "5", "[]", "{}", "true"])
def test_an_operation_whose_document_is_no_text_is_one_that_chroma_dies_of(document: str) -> None:
    """0.x wrote null for an embedding without a document among others with one."""
    assert parse('{"chroma:document": %s}' % document)  # noqa: UP031 -- braces
    with pytest.raises(ValueError, match="its chroma:document is no text, of which Chroma dies"):
        parse_queued('{"a": 1, "chroma:document": %s}' % document)  # noqa: UP031


@given(st.dictionaries(st.text(), json_values))
def test_what_json_writes_reads_back_the_same(metadata: dict[str, Any]) -> None:
    assert parse(json.dumps(metadata)) == metadata


# --- what the rows hold


def missing(delta: Path, stored: dict[str, dict[str, Any]], *, booleans: bool = True) -> list[tuple[str, str]]:
    expected = ExpectedMetadata()
    for id_, metadata in stored.items():
        expected.store(id_, metadata)
    with opened(delta / DATABASE, 60) as connection:
        rows = dict(connection.execute("SELECT embedding_id, id FROM embeddings").fetchall())
        return expected.missing(connection, rows, booleans=booleans)


def metadata_of(delta: Path, count: int = 50) -> dict[str, dict[str, Any]]:
    """What the operations of a queue that only adds say."""
    texts = asked(delta, "SELECT metadata FROM embeddings_queue ORDER BY seq_id")[:count]
    ids = asked(delta, "SELECT id FROM embeddings_queue ORDER BY seq_id")[:count]
    return {id_: parse(text) for id_, text in zip(ids, texts, strict=True)}


@pytest.mark.parametrize("count", [1, 50])
def test_the_rows_of_a_healthy_delta_hold_all_that_was_queued(delta: Path, count: int) -> None:
    """Of few ids each row is looked up, of many the whole table is read."""
    assert missing(delta, metadata_of(delta, count)) == []


@pytest.mark.parametrize(("first", "last"), [("item-0-0", "item-0-49"), ("item-0-7", "item-0-45")])
def test_many_rows_are_compared_some_at_a_time(
    delta: Path, first: str, last: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shared.inspection.chroma.metadata._MOST_ROWS", 7)
    metadata = metadata_of(delta)
    assert missing(delta, metadata) == []
    for id_ in (first, last):
        row = f"(SELECT id FROM embeddings WHERE embedding_id = '{id_}')"
        changed(delta, f"DELETE FROM embedding_metadata WHERE id = {row} AND key = 'position'")
    assert missing(delta, metadata) == [(first, "position"), (last, "position")]


@pytest.mark.parametrize("count", [1, 50])
@pytest.mark.parametrize(
    ("change", "key"),
    [
        ("DELETE FROM embedding_metadata WHERE id = 1 AND key = 'score'", "score"),
        ("UPDATE embedding_metadata SET float_value = 7.5 WHERE id = 1 AND key = 'score'", "score"),
        ("UPDATE embedding_metadata SET int_value = 5 WHERE id = 1 AND key = 'position'", "position"),
        ("UPDATE embedding_metadata SET string_value = 'other' WHERE id = 1 AND key = 'first'", "first"),
        ("UPDATE embedding_metadata SET bool_value = 1 - bool_value WHERE id = 1 AND key = 'even'", "even"),
        ("DELETE FROM embedding_metadata WHERE id = 1 AND key = 'chroma:document'", "chroma:document"),
        ("UPDATE embedding_metadata SET string_value = NULL WHERE id = 1 AND key = 'first'", "first"),
        ("UPDATE embedding_metadata SET key = 'other' WHERE id = 1 AND key = 'first'", "first"),
    ],
)
def test_a_value_that_a_row_lacks_or_has_otherwise_is_found(delta: Path, count: int, change: str, key: str) -> None:
    metadata = metadata_of(delta, count)
    assert missing(changed(delta, change), metadata) == [("item-0-0", key)]


def test_a_text_that_differs_is_left_to_the_full_text_table_which_has_it_too(delta: Path) -> None:
    metadata = metadata_of(delta)
    changed(delta, "UPDATE embedding_metadata SET string_value = 'other' WHERE id = 1 AND key = 'chroma:document'")
    assert missing(delta, metadata) == []


@pytest.mark.parametrize(
    ("number", "equal"),
    [
        (0.1 + 0.2, True),
        (0.3, True),
        (0.30000001, False),
        (1e300, False),
        (10**400, False),
        (True, False),
        ("0.3", False),
    ],
)
def test_numbers_may_differ_in_their_last_digits(delta: Path, number: object, equal: bool) -> None:
    """Chroma 1.5 reads numbers of 16 digits one unit in the last place off."""
    changed(delta, "UPDATE embedding_metadata SET float_value = 0.3 WHERE id = 1 AND key = 'score'")
    assert missing(delta, {"item-0-0": {"score": number}}) == ([] if equal else [("item-0-0", "score")])


def test_lists_and_sparse_vectors_are_kept_elsewhere(delta: Path) -> None:
    assert missing(delta, {"item-0-0": {"tags": ["a"], "sparse": {"indices": [1], "values": [0.5]}}}) == []


def test_an_id_without_a_row_is_not_its_to_tell(delta: Path) -> None:
    assert missing(delta, {"nowhere": {"a": 1}}) == []


def test_before_their_own_column_truth_values_were_whole_numbers(delta: Path) -> None:
    changed(delta, "UPDATE embedding_metadata SET int_value = bool_value, bool_value = NULL WHERE key = 'even'")
    assert missing(delta, metadata_of(delta), booleans=False) == []


def test_an_update_merges_its_keys_and_a_null_removes_one(delta: Path) -> None:
    expected = ExpectedMetadata()
    expected.store("item-0-0", {"kept": 1, "removed": 1, "replaced": 1, "null": None})
    expected.merge("item-0-0", {"removed": None, "replaced": 2, "added": 3})
    expected.merge("item-0-1", {"only": 4})
    expected.store("item-0-2", {"forgotten": 5})
    expected.forget("item-0-2")
    expected.forget("never seen")
    with opened(delta / DATABASE, 60) as connection:
        rows = {"item-0-0": 1, "item-0-1": 2, "item-0-2": 3}
        found = expected.missing(connection, rows, booleans=True)
    assert found == [("item-0-0", "kept"), ("item-0-0", "replaced"), ("item-0-0", "added"), ("item-0-1", "only")]


def test_more_rows_than_a_statement_takes_are_looked_up_in_parts(tmp_path: Path, delta: Path) -> None:
    more = "WITH RECURSIVE n(i) AS (SELECT 51 UNION ALL SELECT i + 1 FROM n WHERE i < 2600)"
    changed(
        delta,
        f"{more} INSERT INTO embeddings (id, segment_id, embedding_id, seq_id) "
        "SELECT i, (SELECT segment_id FROM embeddings), 'more-' || i, X'00' FROM n",
        f"{more} INSERT INTO embedding_metadata (id, key, int_value) SELECT i, 'number', i FROM n",
        "DELETE FROM embedding_metadata WHERE id = 1200",
    )
    wanted = {f"more-{number}": {"number": number} for number in range(51, 1252)}
    assert missing(delta, wanted) == [("more-1200", "number")]


# --- rows that Chroma passes over


def unreadable(delta: Path, *statements: str, of_embeddings: bool = True) -> list[Finding]:
    with opened(changed(delta, *statements) / DATABASE, 60) as connection:
        schema, _ = read_schema(connection)
        return inspect_values(connection, schema, of_embeddings=of_embeddings)


@pytest.mark.parametrize("name", ["healthy_delta", "flushed_delta"])
def test_every_value_of_a_healthy_delta_has_the_type_of_its_column(name: str, request: pytest.FixtureRequest) -> None:
    assert unreadable(request.getfixturevalue(name)) == []


def test_rows_that_a_deleted_collection_left_behind_are_healthy(tmp_path: Path) -> None:
    """`delete_collection` of 1.5 leaves the lists; nobody reads a row that belongs to no embedding."""
    import chromadb

    with chromadb.PersistentClient(tmp_path) as client:
        hnsw = {"sync_threshold": 3, "batch_size": 3}
        for name in ("kept", "deleted"):
            collection = client.create_collection(name, embedding_function=None, configuration={"hnsw": hnsw})
            ids = [f"{name} {number}" for number in range(4)]
            collection.add(ids=ids, embeddings=[[1, 2]] * 4, metadatas=[{"list": ["a", "b"], "text": "c"}] * 4)
        client.delete_collection("deleted")
    unowned = "SELECT count(*) FROM embedding_metadata_array WHERE id NOT IN (SELECT id FROM embeddings)"
    assert asked(tmp_path, unowned) == [8]
    changed(tmp_path, "INSERT INTO embedding_metadata (id, key, string_value) VALUES (4711, 'text', 'c')")
    for depth in (Depth.LISTING, Depth.HEADER, Depth.STRUCTURE):
        verdict = judge_folder(tmp_path, depth, Settings()).verdict
        assert (verdict.status, verdict.findings) == (Status.HEALTHY, ())


ONE = "WHERE rowid = (SELECT rowid FROM embedding_metadata WHERE key = '{}' ORDER BY id LIMIT 1)"


@pytest.mark.parametrize(
    ("change", "key"),
    [
        ("key = X'00'", "first"),
        ("string_value = X'00'", "first"),
        ("int_value = 'x'", "position"),
        ("int_value = 1.5", "position"),
        ("int_value = X'00'", "position"),
        ("float_value = 'x'", "score"),
        ("bool_value = 7", "even"),
        ("bool_value = 'x'", "even"),
    ],
)
def test_a_row_whose_value_has_another_type_is_told(delta: Path, change: str, key: str) -> None:
    where = ONE.format(key)
    (row,) = asked(delta, f"SELECT rowid FROM embedding_metadata {where}")
    detail = f"1 rows of embedding_metadata, the first {row}: no value of its column's type"
    findings = unreadable(delta, f"UPDATE embedding_metadata SET {change} {where}")
    assert findings == [Finding("records.row_unreadable", DATABASE, detail)]


@pytest.mark.parametrize(
    ("change", "key"),
    [
        ("string_value = ''", "first"),
        ("string_value = '5'", "first"),
        ("int_value = -9223372036854775808", "position"),
        ("float_value = 9e999", "score"),
        ("float_value = 1", "score"),
        ("bool_value = 0", "even"),
        ("int_value = 'x'", "first"),
    ],
)
def test_a_row_with_one_value_of_its_column_s_type_is_readable(delta: Path, change: str, key: str) -> None:
    assert unreadable(delta, f"UPDATE embedding_metadata SET {change} {ONE.format(key)}") == []


def test_many_unreadable_rows_are_one_finding_with_the_first(delta: Path) -> None:
    rows = asked(delta, "SELECT rowid FROM embedding_metadata WHERE key = 'first' ORDER BY rowid")
    (finding,) = unreadable(delta, "UPDATE embedding_metadata SET string_value = X'00' WHERE key = 'first'")
    assert finding.detail.startswith(f"{len(rows)} rows of embedding_metadata, the first {rows[0]}: ")


def test_what_the_queue_says_is_compared_with_the_rows_and_not_looked_at_twice(delta: Path) -> None:
    assert unreadable(delta, "UPDATE embedding_metadata SET string_value = X'00'", of_embeddings=False) == []


@pytest.mark.parametrize("of_embeddings", [True, False])
def test_metadata_of_collections_is_always_looked_at(delta: Path, of_embeddings: bool) -> None:
    insert = "INSERT INTO collection_metadata (collection_id, key, {}) SELECT id, 'k{}', {} FROM collections"
    changed(delta, insert.format("str_value", 1, "'fine'"), insert.format("int_value", 2, "'x'"))
    (finding,) = unreadable(delta, of_embeddings=of_embeddings)
    assert finding.code == "records.row_unreadable"
    assert finding.detail.startswith("1 rows of collection_metadata, the first 2: ")


def test_list_values_are_looked_at_too(delta: Path) -> None:
    untyped(delta, "embedding_metadata_array")
    insert = "INSERT INTO embedding_metadata_array (id, key, {}) VALUES ({}, 'tags', {})"
    assert unreadable(delta, insert.format("string_value", 1, "'a'"), insert.format("int_value", 1, 5)) == []
    (finding,) = unreadable(delta, insert.format("string_value", 1, "X'00'"), insert.format("int_value", 99, 5))
    assert finding.detail.startswith("1 rows of embedding_metadata_array, the first 3: ")


def test_a_delta_without_truth_values_is_looked_at_without_them(delta: Path) -> None:
    """They came with the second migration of the rows."""
    changed(delta, "UPDATE embedding_metadata SET int_value = bool_value WHERE key = 'even'")
    assert unreadable(delta, "ALTER TABLE embedding_metadata DROP COLUMN bool_value") == []


def test_rows_numbered_by_text_among_numbers_are_told(flushed_delta: Path, copy_of: CopyOf) -> None:
    folder = copy_of(flushed_delta)
    with closing(sqlite3.connect(folder / DATABASE, isolation_level=None)) as connection:
        connection.execute("CREATE TABLE untyped AS SELECT * FROM embeddings")
        connection.execute("UPDATE untyped SET id = 'x' || id WHERE rowid % 2")
        connection.execute("DROP TABLE embeddings")
        connection.execute("ALTER TABLE untyped RENAME TO embeddings")
    verdict = judge_folder(folder, Depth.STRUCTURE, Settings()).verdict
    assert verdict.status is Status.CORRUPT
    assert "records.row_unreadable" in {finding.code for finding in verdict.findings}
