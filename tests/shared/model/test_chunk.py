"""A chunk as its caller describes it: every shape that is used, and a clear word about every other."""

from __future__ import annotations

import json
from typing import Any

import pytest

from shared.model.chunk import MAX_CHUNK_BYTES, Chunk, chunk_in, chunks_in
from shared.model.errors import TargetError

WHOLE = {"delta_key": "words/delta/0f3a/", "delta_id": "0f3a", "embedding_count": 50, "collection": "words"}
KEY = {"delta_key": "words/delta/0f3b"}


def file(value: Any) -> bytes:
    return json.dumps(value).encode()


@pytest.mark.parametrize(
    "value", [[WHOLE, KEY], *({name: [WHOLE, KEY]} for name in ("deltas", "delta_results", "chunk_deltas"))]
)
def test_a_chunk_is_a_list_of_deltas_or_an_object_with_them(value: Any) -> None:
    chunk = Chunk.of(value)
    assert chunk_in(file(value), None) == chunk
    assert [location.uri for location in chunk.locations("bucket")] == [
        "s3://bucket/words/delta/0f3a/",
        "s3://bucket/words/delta/0f3b/",
    ]
    assert (chunk.deltas[0].embedding_count, chunk.deltas[0].collection) == (50, "words")
    assert (chunk.deltas[1].embedding_count, chunk.deltas[1].collection) == (None, None)


def test_a_chunk_may_say_which_it_is() -> None:
    chunk = Chunk.of({"batch_id": "b-1", "chunk_index": 40, "deltas": [KEY]})
    assert (chunk.batch_id, chunk.chunk_index) == ("b-1", 40)


def test_a_chunk_of_chunks_is_merged_in_the_same_way() -> None:
    assert Chunk.of([{"delta_key": "intermediate/b-1/chunk-3/"}]).deltas[0].delta_key == "intermediate/b-1/chunk-3"


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ([{"delta_key": "words"}], "deltas.0.delta_key: 'words' is only a prefix"),
        ([{**WHOLE, "delta_key": "words/delta/"}], "deltas.0: 'words/delta' is only a prefix, or that of another"),
        ([{"delta_key": ""}], "'' is not the prefix of a delta"),
        ([{"delta_key": "/words/0f3a"}], "'/words/0f3a' is not the prefix of a delta"),
        ([{"delta_key": "words//0f3a"}], "is not the prefix of a delta"),
        ([{"delta_key": "words/\ud800"}], "is not the prefix of a delta"),
        ([{"delta_key": "words/" + "ä" * 600}], "is not the prefix of a delta"),
        ([{"delta_key": "w/0f3a/chroma.sqlite3"}], "is a file of a delta; give w/0f3a"),
        ([KEY, {"delta_key": "words/delta/0f3b/"}], "deltas: 'words/delta/0f3b' is there more than once"),
        ([{**KEY, "embeding_count": 1}], "deltas.0.embeding_count: there is no such field"),
        ({"deltas": [KEY], "index": 1}, "index: there is no such field"),
        ([{"delta_id": "0f3b"}], "deltas.0.delta_key: this field is missing"),
        ([{**KEY, "embedding_count": -1}], "deltas.0.embedding_count"),
        ([{**KEY, "embedding_count": "many"}], "deltas.0.embedding_count"),
        (["words/delta/0f3b"], "deltas.0: an object is needed here"),
        ({}, "deltas: this field is missing"),
        ("words", "an object is needed here"),
        (None, "an object is needed here"),
        ([{"delta_key": 7}] * 9, "; and 4 more"),
    ],
)
def test_what_is_no_chunk_is_refused_with_the_place_of_each_problem(value: Any, message: str) -> None:
    with pytest.raises(TargetError) as raised:
        Chunk.of(value)
    told = str(raised.value)
    assert told.startswith("not a chunk: ")
    assert message in told
    assert told.isprintable()


@pytest.mark.parametrize("chunks", [[[WHOLE], [KEY]], {"chunks": [[WHOLE], [KEY]]}, [{"deltas": [WHOLE]}, [KEY]]])
def test_a_chunks_file_has_chunks_by_their_places(chunks: Any) -> None:
    assert chunk_in(file(chunks), 1) == Chunk.of([KEY])
    assert len(chunks_in(file(chunks))) == 2
    for index in (2, -1):
        with pytest.raises(TargetError, match=f"no chunk {index} among the 2"):
            chunk_in(file(chunks), index)


def test_a_chunks_file_has_chunks_by_the_index_that_they_say() -> None:
    chunks = [{"chunk_index": 7, "deltas": [WHOLE]}, {"chunk_index": 0, "deltas": [KEY]}]
    assert chunk_in(file(chunks), 0).deltas[0].delta_key == KEY["delta_key"]
    with pytest.raises(TargetError, match="no chunk 1 "):
        chunk_in(file(chunks), 1)
    with pytest.raises(TargetError, match="2 chunks have the index 7"):
        chunk_in(file([chunks[0], chunks[0]]), 7)


@pytest.mark.parametrize("chunks", [[[WHOLE], [KEY]], {"chunks": [{"deltas": [KEY]}]}])
def test_a_chunks_file_without_an_index_is_asked_which(chunks: Any) -> None:
    with pytest.raises(TargetError, match="say which of them, by its index"):
        chunk_in(file(chunks), None)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "not JSON"),
        (b"\xff\xfe", "not JSON"),
        (b"[" * 100_000, "not JSON"),
        (b"7", "this one a number"),
        (b"{}", "this one an object without chunks"),
        (b" " * (MAX_CHUNK_BYTES + 1), "is not read"),
    ],
)
def test_a_file_that_holds_no_chunks_is_refused(data: bytes, message: str) -> None:
    with pytest.raises(TargetError, match=message):
        chunk_in(data, 0)
