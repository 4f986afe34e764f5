"""Texts that lie in the full-text table under numbers which operations of the queue are about to take.

0.4 leaves texts of deleted embeddings behind, and an upgrade from 0.4.3 to 0.4.5 puts texts under numbers of other
rows. Where an operation that waits in the queue comes upon one, every read of Chroma fails.
"""

from __future__ import annotations

import shutil
import sqlite3
import tempfile
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import chromadb.errors
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from devtools.damage.deltas import _client
from shared.check.judgement import judge_folder
from shared.model.delta import DATABASE
from shared.model.settings import Settings
from shared.model.verdict import Depth
from shared.salvage.salvage import salvage_folder

_NAMES = ["one", "two"]
_Operation = tuple[str, str, str, bool]


@pytest.fixture(scope="module")
def applied(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two collections with three embeddings that were applied to the rows: numbers 1 to 3."""
    folder = tmp_path_factory.mktemp("texts") / "applied"
    with _client(folder) as client:
        for name, ids in zip(_NAMES, (["a", "b"], ["a"]), strict=True):
            collection = client.create_collection(name, embedding_function=None)
            collection.add(ids=ids, embeddings=[[1.0, 2.0]] * len(ids), documents=["a text"] * len(ids))
            collection.count()
    return folder


def leave_texts(folder: Path, numbers: set[int]) -> None:
    with closing(sqlite3.connect(folder / DATABASE)) as database, database:
        rows = [(number, "left behind") for number in numbers]
        database.executemany("INSERT INTO embedding_fulltext_search (rowid, string_value) VALUES (?, ?)", rows)


def do(folder: Path, operations: list[_Operation]) -> None:
    """Has Chroma do operations. What it cannot apply stays in the queue."""
    with _client(folder) as client:
        for kind, name, id_, has_document in operations:
            collection = client.get_collection(name, embedding_function=None)
            row: dict[str, Any] = {"ids": [id_]}
            if kind != "delete":
                row |= {"embeddings": [[3.0, 4.0]], "documents": ["more text"] if has_document else None}
            with suppress(chromadb.errors.InternalError):
                getattr(collection, kind)(**row)


def blocked(folder: Path) -> bool:
    """Whether depth `structure` says so, and nothing else."""
    verdict = judge_folder(folder, Depth.STRUCTURE, Settings()).verdict
    codes = {finding.code for finding in verdict.findings}
    assert codes <= {"sqlite.fulltext_unusable"}
    return bool(codes)


def fails(folder: Path, names: list[str]) -> bool:
    """Whether Chroma fails to read a copy, its collections in this order."""
    with tempfile.TemporaryDirectory() as scratch, _client(Path(shutil.copytree(folder, f"{scratch}/copy"))) as client:
        try:
            for name in names:
                client.get_collection(name, embedding_function=None).count()
        except chromadb.errors.InternalError:
            return True
    return False


def test_a_document_waits_for_a_number_that_has_a_text_left_behind(applied: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(applied, tmp_path / "delta"))
    leave_texts(folder, {4})
    assert not blocked(folder)  # nothing waits
    do(folder, [("add", "one", "c", True)])
    assert blocked(folder)
    assert fails(folder, _NAMES)
    salvage = salvage_folder(folder, tmp_path / "salvaged", Settings())
    assert salvage.outcome == "whole", salvage.reason
    assert [(part.name, part.count) for part in salvage.collections] == [("one", 3), ("two", 1)]


def test_another_collection_may_take_the_number_so_that_nothing_is_in_the_way(applied: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(applied, tmp_path / "delta"))
    leave_texts(folder, {4})
    do(folder, [("add", "one", "c", True), ("add", "two", "c", False)])
    assert not blocked(folder)
    assert not fails(folder, _NAMES)


_operations = st.tuples(
    st.sampled_from(["add", "add", "upsert", "update", "delete"]),
    st.sampled_from(_NAMES[:1] * 3 + _NAMES),
    st.sampled_from("abcd"),
    st.booleans(),
)


@pytest.mark.slow
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(operations=st.lists(_operations, min_size=1, max_size=6), texts=st.sets(st.integers(4, 7), min_size=1))
def test_chroma_fails_where_the_numbers_say_so(applied: Path, operations: list[_Operation], texts: set[int]) -> None:
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(shutil.copytree(applied, Path(scratch) / "delta"))
        leave_texts(folder, texts)
        do(folder, operations)
        ends = {fails(folder, names) for names in (_NAMES, _NAMES[::-1])}
        assert {blocked(folder)} == ends or len(ends) == 2  # it may depend on what is read first
