"""Chroma's own records: collections with their settings and segments, and what makes Chroma refuse or overlook them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from devtools.damage.deltas import DeltaRecipe, build_delta
from shared.inspection.chroma.sysdb import Collection, flushed, read_collections
from shared.inspection.sqlite.database_file import opened
from shared.inspection.sqlite.schema import inspect_schema, read_schema
from shared.model.delta import DATABASE
from shared.model.verdict import Finding, Status, status_of
from tests.samples import SAMPLES, Sample
from tests.support.databases import asked, changed, untyped

OTHER = "0a1b2c3d-0000-4000-8000-0123456789ab"


def read(delta: Path) -> tuple[list[Collection], list[Finding]]:
    with opened(delta / DATABASE, 60) as connection:
        schema, _ = read_schema(connection)
        inspect_schema(connection, schema)
        return read_collections(connection, schema)


def findings_of(delta: Path, *statements: str, **values: Any) -> list[Finding]:
    return read(changed(delta, *statements, **values))[1]


def codes(findings: list[Finding]) -> list[str]:
    return [finding.code for finding in findings]


# --- what is healthy


def test_a_collection_is_read_with_its_segments_and_what_these_have_taken_up(delta: Path) -> None:
    (collection,), findings = read(delta)
    assert findings == []
    assert (collection.name, collection.dimension, collection.cosine) == ("words", 32, False)
    assert (collection.flushed_to, collection.applied_to) == (None, 50)
    assert [collection.id] == asked(delta, "SELECT id FROM collections")
    assert [collection.vector_segment] == asked(delta, "SELECT id FROM segments WHERE scope = 'VECTOR'")
    assert [collection.metadata_segment] == asked(delta, "SELECT id FROM segments WHERE scope = 'METADATA'")


def test_a_flushed_collection_says_up_to_which_operation(flushed_delta: Path) -> None:
    (collection,), findings = read(flushed_delta)
    assert findings == []
    assert (collection.flushed_to, collection.applied_to) == (100, 144)


def test_collections_come_in_the_order_of_their_names(tmp_path: Path) -> None:
    build_delta(tmp_path, DeltaRecipe(embeddings=2, dimension=4, collections=3))
    collections, findings = read(tmp_path)
    assert findings == []
    assert [collection.name for collection in collections] == ["words", "words-1", "words-2"]


@pytest.mark.parametrize("sample", SAMPLES, ids=lambda sample: sample.name)
def test_the_distance_of_every_chroma_is_read_where_it_writes_it(sample: Sample, tmp_path: Path) -> None:
    """In `schema_str` (1.5), in `config_json_str` (0.6, 1.0) or in the collection's metadata (before)."""
    collections, findings = read(sample.unpack(tmp_path))
    assert findings == []
    assert {collection.name for collection in collections if collection.cosine} == sample.cosine


@pytest.mark.parametrize("space", ["l2", "cosine", "ip"])
def test_only_a_cosine_collection_keeps_vectors_of_length_1(tmp_path: Path, space: Any) -> None:
    build_delta(tmp_path, DeltaRecipe(embeddings=2, dimension=4, space=space))
    assert [collection.cosine for collection in read(tmp_path)[0]] == [space == "cosine"]


def test_a_distance_that_nobody_can_read_is_not_taken_for_cosine(delta: Path) -> None:
    (collection,), _ = read(changed(delta, "UPDATE collections SET schema_str = 'cosine', config_json_str = 'cosine'"))
    assert not collection.cosine


def test_a_collection_without_settings_is_healthy(delta: Path) -> None:
    assert findings_of(delta, "UPDATE collections SET schema_str = NULL, config_json_str = NULL") == []


def test_a_collection_in_another_database_of_another_tenant_is_healthy(delta: Path) -> None:
    findings = findings_of(
        delta,
        "INSERT INTO tenants (id) VALUES ('acme')",
        f"INSERT INTO databases (id, name, tenant_id) VALUES ('{OTHER}', 'own', 'acme')",
        f"UPDATE collections SET database_id = '{OTHER}'",
    )
    assert findings == []


OLD = "DELETE FROM migrations WHERE dir = 'metadb' AND version > 4"


def test_sequence_numbers_of_chroma_0_x_are_eight_bytes(delta: Path) -> None:
    changed(untyped(delta, "max_seq_id"), "UPDATE max_seq_id SET seq_id = X'0000000000000032'", OLD)
    (collection,), findings = read(delta)
    assert findings == []
    assert collection.applied_to == 50


def test_eight_bytes_that_an_old_version_wrote_after_the_upgrade_are_told(delta: Path) -> None:
    """1.x turned them into integers once, and reads nothing else since."""
    changed(delta, "UPDATE max_seq_id SET seq_id = X'0000000000000032'")
    assert codes(read(delta)[1]) == ["records.row_unreadable"]


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
    collection = Collection("c", "words", 3, None, "v", "m", flushed_to, 0)
    assert flushed(collection, {"v": files}) is expected
    assert flushed(replace(collection, vector_segment=None), {"v": files}) is (flushed_to is not None)


# --- rows that Chroma cannot read


@pytest.mark.parametrize(
    ("statement", "words"),
    [
        ("UPDATE collections SET dimension = 'x'", "collection 'words' has an id, a name or a dimension ('x')"),
        ("UPDATE collections SET dimension = 0", "dimension (0) that is none"),
        ("UPDATE collections SET dimension = -3", "dimension (-3) that is none"),
        ("UPDATE collections SET dimension = 1000000", "dimension (1000000) that is none"),
        ("UPDATE collections SET dimension = 1.5", "dimension (1.5) that is none"),
        ("UPDATE collections SET name = X'00'", "collection b'\\x00' has an id, a name"),
        ("UPDATE collections SET name = CAST(X'FF' AS TEXT)", "an id, a name"),
        ("UPDATE collections SET name = hex(zeroblob(257))", "an id, a name"),
        ("UPDATE collections SET id = 'words'", "an id, a name"),
    ],
)
def test_a_collection_that_chroma_cannot_read_is_told(delta: Path, statement: str, words: str) -> None:
    collections, findings = read(changed(delta, statement))
    assert collections == []
    assert codes(findings) == ["records.row_unreadable"]
    assert words in findings[0].detail


@pytest.mark.parametrize("column", ["config_json_str", "schema_str"])
@pytest.mark.parametrize("value", ["'{'", "'[]'", "'5'", "CAST(X'FF' AS TEXT)", "X'7B7D'"])
def test_settings_that_are_not_a_json_object_are_told(delta: Path, column: str, value: str) -> None:
    (finding,) = findings_of(delta, f"UPDATE collections SET {column} = {value}")
    assert finding.code == "records.row_unreadable"
    assert finding.detail.startswith(f"{column} of collections 'words' is not what Chroma can parse: ")


@pytest.mark.parametrize(
    "value",
    [
        "NULL",
        "'{'",
        "'{}'",
        "'[]'",
        """'{"automatically_purge": 1}'""",
        """'{"automatically_purge": true, "_type": 5}'""",
    ],
)
def test_settings_of_the_queue_that_chroma_cannot_parse_are_told(delta: Path, value: str) -> None:
    untyped(delta, "embeddings_queue_config")
    (finding,) = findings_of(delta, f"UPDATE embeddings_queue_config SET config_json_str = {value}")
    assert finding.code == "records.row_unreadable"
    assert finding.detail.startswith("config_json_str of embeddings_queue_config 1 is not what Chroma can parse: ")


@pytest.mark.parametrize(
    "value", ["""'{"automatically_purge": false}'""", """'{"automatically_purge":true,"_type":"t"}'"""]
)
def test_settings_of_the_queue_that_chroma_can_parse_are_no_finding(delta: Path, value: str) -> None:
    assert findings_of(delta, f"UPDATE embeddings_queue_config SET config_json_str = {value}") == []


@pytest.mark.parametrize("value", ["'text'", "1.5", "-5", "X'00'", "X'8000000000000000'", "X'FFFFFFFFFFFFFFFF'"])
def test_a_sequence_number_that_is_none_is_told(delta: Path, value: str) -> None:
    untyped(delta, "max_seq_id")
    (finding,) = findings_of(delta, f"UPDATE max_seq_id SET seq_id = {value}")
    assert finding.code == "records.row_unreadable"
    assert finding.detail.startswith("max_seq_id of segment '")
    assert finding.detail.endswith("which is no sequence number")


@pytest.mark.parametrize("value", ["0", "9223372036854775807", "X'7FFFFFFFFFFFFFFF'", "NULL"])
def test_a_sequence_number_may_be_any_that_sqlite_gives(delta: Path, value: str) -> None:
    untyped(delta, "max_seq_id")
    assert findings_of(delta, OLD, f"UPDATE max_seq_id SET seq_id = {value}") == []


# --- segments


@pytest.mark.parametrize("scope", ["VECTOR", "METADATA"])
def test_a_collection_without_one_of_its_segments_is_told(delta: Path, scope: str) -> None:
    findings = findings_of(delta, f"DELETE FROM segments WHERE scope = '{scope}'")
    detail = f"collection 'words' has no {scope.lower()} segment"
    assert findings == [Finding("records.segment_missing", DATABASE, detail)]


@pytest.mark.parametrize("value", ["'../..'", "X'00'", "'0a1b'", "NULL", "CAST(X'FF' AS TEXT)"])
def test_a_segment_whose_id_is_no_uuid_is_told_and_never_becomes_a_path(delta: Path, value: str) -> None:
    untyped(delta, "segments")
    collections, findings = read(changed(delta, f"UPDATE segments SET id = {value} WHERE scope = 'VECTOR'"))
    assert codes(findings) == ["records.row_unreadable", "records.segment_missing"]
    assert "which is no UUID" in findings[0].detail
    assert collections[0].vector_segment is None


@pytest.mark.parametrize("value", ["'urn:chroma:segment/vector/hnsw'", "'hnsw'", "NULL", "X'00'", "5"])
def test_a_segment_of_a_type_that_is_none_is_not_judged_as_if_it_were(delta: Path, value: str) -> None:
    untyped(delta, "segments")
    (finding,) = findings_of(delta, f"UPDATE segments SET type = {value} WHERE scope = 'VECTOR'")
    newer = value.startswith("'urn:")
    assert finding.code == ("sqlite.schema_newer" if newer else "records.row_unreadable")
    assert status_of([finding]) is (Status.UNDETERMINED if newer else Status.CORRUPT)


def test_a_segment_of_a_scope_that_is_none_is_told(delta: Path) -> None:
    findings = findings_of(delta, "UPDATE segments SET scope = 'RECORD' WHERE scope = 'VECTOR'")
    assert codes(findings) == ["records.row_unreadable", "records.segment_missing"]


def test_a_collection_that_is_gone_while_its_segments_stayed_is_told_with_its_rows(delta: Path) -> None:
    (id_,) = asked(delta, "SELECT id FROM collections")
    (finding,) = findings_of(delta, "DELETE FROM collections")
    detail = f"1 collections have segments but no row in collections: '{id_}'; 50 rows of embeddings belong to none"
    assert finding == Finding("records.collection_missing", DATABASE, detail)


def test_rows_of_the_other_collections_are_not_counted_as_lost(tmp_path: Path) -> None:
    build_delta(tmp_path, DeltaRecipe(embeddings=7, dimension=4, collections=3))
    (finding,) = findings_of(tmp_path, "DELETE FROM collections WHERE name = 'words-1'")
    assert finding.detail.endswith("; 7 rows of embeddings belong to none")


def test_a_collection_that_was_deleted_leaves_nothing_to_tell(tmp_path: Path) -> None:
    import chromadb

    build_delta(tmp_path, DeltaRecipe(embeddings=7, dimension=4, collections=2))
    with chromadb.PersistentClient(tmp_path) as client:
        client.delete_collection("words-1")
    collections, findings = read(tmp_path)
    assert (codes(findings), [collection.name for collection in collections]) == ([], ["words"])


# --- databases and tenants


@pytest.mark.parametrize(
    ("statement", "words"),
    [
        ("DELETE FROM databases", "collection 'words' belongs to '00000000-0000-0000-0000-000000000000', which is no"),
        (f"UPDATE collections SET database_id = '{OTHER}'", f"collection 'words' belongs to '{OTHER}', which is no"),
        ("UPDATE collections SET database_id = NULL", "collection 'words' belongs to None, which is no database"),
        ("DELETE FROM tenants", "is named 'default_database', of tenant 'default_tenant'"),
        ("UPDATE databases SET tenant_id = 'nobody'", "of tenant 'nobody'; Chroma opens default_database"),
        (
            "UPDATE databases SET name = 'other'",
            "is named 'other', of tenant 'default_tenant'; Chroma opens default_da",
        ),
        ("UPDATE databases SET name = CAST(X'FF' AS TEXT)", "is named '\\udcff'"),
    ],
)
def test_a_database_or_tenant_that_is_not_there_hides_its_collections(delta: Path, statement: str, words: str) -> None:
    untyped(delta, "collections")
    findings = findings_of(delta, "PRAGMA foreign_keys = OFF", statement)
    assert codes(findings) == ["records.database_missing"]
    assert words in findings[0].detail


def test_no_name_or_value_is_shown_unescaped(delta: Path) -> None:
    findings = findings_of(
        delta,
        "UPDATE collections SET name = :evil, config_json_str = :evil, database_id = :evil",
        "UPDATE segments SET type = :evil",
        evil="\x1b[2J\n\u202e",
    )
    assert len(findings) >= 3
    assert all(finding.detail.isprintable() for finding in findings)
