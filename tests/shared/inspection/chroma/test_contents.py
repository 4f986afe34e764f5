"""What the reader returns is what Chroma returns: asked of real Chroma in a child process, for every kind of delta."""

from __future__ import annotations

import json
import shutil
import sqlite3
import tempfile
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from shared.inspection.chroma.contents import opened_delta
from shared.model.delta import DATABASE
from tests.samples import SAMPLES, Sample
from tests.support.histories import Chroma, histories, spaces


def differences(folder: Path, answer: dict[str, Any]) -> list[str]:
    found = []
    with opened_delta(folder) as delta:
        if {c.name for c in delta.collections} != set(answer):
            found.append(f"collections {[c.name for c in delta.collections]} instead of {sorted(answer)}")
        for collection in delta.collections:
            expected = answer[collection.name]
            if collection.count != expected["count"] or collection.metadata != expected["metadata"]:
                found.append(f"{collection} instead of {expected['count']}, {expected['metadata']}")
            parts = list(delta.records(collection.name, most=7))
            for field in ("ids", "documents", "metadatas", "uris"):
                read = [value for part in parts for value in getattr(part, field)]
                if json.dumps(read, sort_keys=True) != json.dumps(expected[field], sort_keys=True):
                    found.append(f"{field} of {collection.name}: {read} instead of {expected[field]}")
            vectors = [part.vectors for part in parts]
            stored = np.asarray(expected["embeddings"], np.float32)
            if stored.size and np.concatenate(vectors).tobytes() != stored.tobytes():
                places = np.flatnonzero((np.concatenate(vectors) != stored).any(axis=1))
                found.append(f"vectors of {collection.name}: rows {places} differ")
    return found


@pytest.mark.slow
@pytest.mark.parametrize("sample", SAMPLES, ids=lambda sample: sample.name)
def test_samples_of_every_version_read_as_chroma_reads_them(sample: Sample, tmp_path: Path, chroma: Chroma) -> None:
    folder = sample.unpack(tmp_path)
    assert differences(folder, chroma.read(folder)) == []


@pytest.mark.slow
@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_any_history_reads_as_chroma_reads_it(data: st.DataObject, chroma: Chroma) -> None:
    dimension = data.draw(st.integers(1, 9))
    collections = {"one": data.draw(spaces), "two": data.draw(spaces)}
    history = data.draw(histories(dimension))
    with tempfile.TemporaryDirectory() as scratch:
        chroma.write(Path(scratch), collections, history)
        assert differences(Path(scratch), chroma.read(Path(scratch))) == []


def late_differences(chroma: Chroma, first: list[Any], later: list[Any]) -> list[str]:
    """What is read otherwise than Chroma reads it of a delta whose rows have not taken up the later operations."""
    collections = {"one": {"space": "l2"}, "two": {"space": "cosine"}}
    with tempfile.TemporaryDirectory() as scratch:
        early, late = Path(scratch) / "early", Path(scratch) / "late"
        chroma.write(early, collections, first)
        shutil.copytree(early, late)
        chroma.write(late, {}, later)
        with closing(sqlite3.connect(early / DATABASE)) as database, database:
            database.execute("ATTACH ? AS late", (str(late / DATABASE),))
            database.execute(
                """INSERT INTO embeddings_queue SELECT * FROM late.embeddings_queue
                   WHERE seq_id > (SELECT coalesce(max(seq_id), 0) FROM embeddings_queue)"""
            )
            database.execute("UPDATE collections SET dimension = 3")
        return differences(early, chroma.read(early))


@pytest.mark.slow
@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_operations_that_the_rows_have_not_taken_up_yet_count(data: st.DataObject, chroma: Chroma) -> None:
    assert late_differences(chroma, data.draw(histories(3)), data.draw(histories(3))) == []


@pytest.mark.slow
def test_a_zero_that_is_still_in_the_queue_loses_its_sign_as_it_will_in_its_row(chroma: Chroma) -> None:
    vectors = [[0.0, 0.0, 0.0]]
    first = [("one", "add", {"ids": ["a"], "embeddings": vectors})]
    later = [("one", "add", {"ids": ["b"], "metadatas": [{"a": -0.0}], "embeddings": vectors})]
    assert late_differences(chroma, first, later) == []
