"""Whatever a damaged delta is said to prove is what was stored in it."""

from __future__ import annotations

import sqlite3
import tempfile
from collections.abc import Callable
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from shared.inspection.hnsw.vectors import through_cosine
from shared.inspection.recovery.evidence import NothingProven, gathered
from shared.model.delta import DATABASE
from tests.support.histories import Chroma, histories, spaces


def executed(statement: str) -> Callable[[Path, int], None]:
    def damage(folder: Path, pick: int) -> None:
        with closing(sqlite3.connect(folder / DATABASE)) as database, database:
            database.execute(statement, {"pick": pick} if ":pick" in statement else {})

    return damage


def every(name: str, change: Callable[[bytes, int], bytes]) -> Callable[[Path, int], None]:
    """Changes a file of all indexes."""

    def damage(folder: Path, pick: int) -> None:
        for path in folder.glob(f"*/{name}"):
            path.write_bytes(change(path.read_bytes(), pick))

    return damage


def removed(name: str) -> Callable[[Path, int], None]:
    def damage(folder: Path, pick: int) -> None:
        for path in folder.glob(f"*/{name}"):
            path.unlink()

    return damage


def with_bit_flipped(content: bytes, pick: int) -> bytes:
    at = pick % max(1, len(content))
    return content[:at] + bytes([content[at] ^ 1 << pick % 8]) + content[at + 1 :] if content else content


A_ROW = "(SELECT {0} FROM {1} LIMIT 1 OFFSET :pick % (SELECT max(1, count(*)) FROM {1}))"
DAMAGES = {
    "id map removed": removed("index_metadata.pickle"),
    "id map cut": every("index_metadata.pickle", lambda content, pick: content[: pick % (len(content) + 1)]),
    "bit of the id map": every("index_metadata.pickle", with_bit_flipped),
    "header removed": removed("header.bin"),
    "bit of the header": every("header.bin", with_bit_flipped),
    "links removed": removed("link_lists.bin"),
    "lengths removed": removed("length.bin"),
    "records cut": every("data_level0.bin", lambda content, pick: content[: pick % (len(content) + 1)]),
    "records extended": every("data_level0.bin", lambda content, pick: content + bytes(pick % 999)),
    "operation lost": executed(
        f"DELETE FROM embeddings_queue WHERE seq_id = {A_ROW.format('seq_id', 'embeddings_queue')}"
    ),
    "row lost": executed(f"DELETE FROM embeddings WHERE id = {A_ROW.format('id', 'embeddings')}"),
    "flushed by a number": executed("UPDATE max_seq_id SET seq_id = seq_id + :pick % 5"),
    "no rows": executed("DROP TABLE embeddings"),
    "no metadata": executed("DROP TABLE embedding_metadata"),
    "no segments": executed("DROP TABLE segments"),
    "no dimension": executed("UPDATE collections SET dimension = NULL"),
    "id changed": executed(
        f"UPDATE embeddings_queue SET id = 'j' WHERE seq_id = {A_ROW.format('seq_id', 'embeddings_queue')}"
    ),
}


def stored(answer: dict[str, Any]) -> dict[tuple[str, str], tuple[bytes, Any, Any, Any]]:
    """What Chroma returns for each id of each collection."""
    return {
        (name, id_): (np.asarray(vector, np.float32).tobytes(), document, metadata, uri)
        for name, found in answer.items()
        for id_, vector, document, metadata, uri in zip(
            found["ids"], found["embeddings"], found["documents"], found["metadatas"], found["uris"], strict=True
        )
    }


@pytest.mark.slow
@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
@settings(max_examples=5, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_what_is_proven_is_what_was_stored(
    damage: Callable[[Path, int], None], data: st.DataObject, chroma: Chroma
) -> None:
    dimension = data.draw(st.integers(1, 5))
    collections = {"one": data.draw(spaces), "two": data.draw(spaces)}
    history = data.draw(histories(dimension))
    pick = data.draw(st.integers(0, 2**31))
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        chroma.write(folder, collections, history)
        truth = stored(chroma.read(folder))
        damage(folder, pick)
        with suppress(NothingProven), gathered(folder, frozenset()) as evidence:
            for part in evidence:
                for records in part.records():
                    # Vectors of the queue come as they were put in, those of the index are rounded already.
                    rounded = through_cosine(records.vectors) if part.stored.cosine else records.vectors
                    for at, id_ in enumerate(records.ids):
                        vector, *rest = truth[part.stored.name, id_]
                        queued = part.placement.queued[part.placement.ids.index(id_)]
                        assert (rounded if queued else records.vectors)[at].tobytes() == vector
                        assert [records.documents[at], records.metadatas[at], records.uris[at]] == rest
                if not part.why:
                    assert {id_ for name, id_ in truth if name == part.stored.name} == {*part.placement.ids}
