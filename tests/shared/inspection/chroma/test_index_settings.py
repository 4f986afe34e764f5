"""Which space an index has: decided as Chroma does, which is asked for a distance in a child process."""

from __future__ import annotations

import itertools
import json
import os
import shutil
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path
from typing import Any

import chromadb
import pytest

from shared.inspection.chroma.index_settings import SettingsRefused, index_settings
from shared.model.delta import DATABASE

# A program that knows nothing of Deltaguard: it prints the distance of (6, 8) from (3, 4) for each folder it is given.
PROGRAM = """
import json, sys, chromadb
def distance(folder):
    try:
        with chromadb.PersistentClient(folder) as client:
            collection = client.get_collection("words", embedding_function=None)
            found = collection.query(query_embeddings=[[6, 8]], n_results=1)
            return round(found["distances"][0][0])
    except Exception as error:
        return str(error)[:80]
print(json.dumps([distance(folder) for folder in sys.argv[1:]]))
"""
SPACE_OF = {25: "l2", 0: "cosine", -49: "ip"}
PLACE = ("keys", "#embedding", "float_list", "vector_index", "config")


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("settings") / "base"
    with chromadb.PersistentClient(folder) as client:
        client.create_collection("words", embedding_function=None).add(ids=["a"], embeddings=[[3, 4]])
    return folder


def schema(base: Path, config: dict[str, Any] | None = None, **changes: Any) -> str:
    """The schema that Chroma wrote, with this vector index, or with other keys at the top."""
    with closing(sqlite3.connect(base / DATABASE)) as connection:
        ((text,),) = connection.execute("SELECT schema_str FROM collections")
    written = json.loads(text)
    if config is not None:
        written["keys"]["#embedding"]["float_list"]["vector_index"]["config"] = config
    return json.dumps({**written, **changes})


def hnsw(**settings: Any) -> str:
    return json.dumps({"vector_index": {"hnsw": settings}})


DEFAULTS = {"ef_construction": 100, "max_neighbors": 16, "ef_search": 100, "sync_threshold": 1000, "resize_factor": 1.2}
CONFIGURATIONS = [
    None, "{}", "", "null", "[]", "{", '{"vector_index": null}', '{"vector_index": {}}',
    '{"vector_index": {"spann": {}}}',
    hnsw(), hnsw(space="cosine"), hnsw(space="ip", ef_search=7), hnsw(space="l2", **DEFAULTS), hnsw(ef_search=200),
    hnsw(num_threads=len(os.sched_getaffinity(0))), hnsw(num_threads=999), hnsw(unknown=1), hnsw(space=None),
    hnsw(ef_search=1.5), hnsw(ef_search=-1), hnsw(resize_factor=2), hnsw(sync_threshold=1), hnsw(space="COSINE"),
    '{"hnsw_configuration": {"space": "cosine"}, "_type": "CollectionConfigurationInternal"}',
]  # fmt: skip
SCHEMAS: list[dict[str, Any] | str | None] = [
    None, "", " null ", "{", "[]", "{}", {"space": "cosine"}, {"space": "ip", "hnsw": None}, {}, {"space": None},
    {"hnsw": {"ef_search": 50}}, {"hnsw": {**DEFAULTS, "batch_size": 100}}, {"hnsw": {"space": "ip"}}, {"unknown": 1},
    {"space": "x"}, {"space": "ip", "hnsw": {"sync_threshold": 1}}, {"hnsw": {}, "spann": {}}, {"spann": {}},
]  # fmt: skip
SEGMENTS: list[dict[str, Any]] = [
    {}, {"hnsw:space": "cosine"}, {"hnsw:space": "ip", "hnsw:M": 8}, {"hnsw:M": 8}, {"hnsw:space": "x"}, {"other": 1},
    {"hnsw:unknown": 1}, {"hnsw:batch_size": 1}, {"hnsw:search_ef": 1.5}, {"hnsw:search_ef": True}, {"hnsw:M": "8"},
    {"hnsw:sync_threshold": 2, "hnsw:space": "cosine", "other": "x"}, {"hnsw:resize_factor": 2, "hnsw:space": "ip"},
]  # fmt: skip
CASES = [
    *itertools.product([None], CONFIGURATIONS, SEGMENTS[:3]),
    *itertools.product(SCHEMAS, [None], SEGMENTS[:2]),
    *itertools.product([None], [None], SEGMENTS),
    *itertools.product(SCHEMAS[6:8], CONFIGURATIONS[4:6], [{}]),
]
COLUMNS = {str: "str_value", bool: "bool_value", int: "int_value", float: "float_value"}
BATCHES = [CASES[start::16] for start in range(16)]


@pytest.mark.parametrize("batch", [pytest.param(n, marks=pytest.mark.slow if n else ()) for n in range(len(BATCHES))])
def test_the_space_is_the_one_that_chroma_takes(base: Path, tmp_path: Path, batch: int) -> None:
    """Rows as old versions wrote them, in every combination; where Chroma refuses, so do the rules."""
    ours, folders = [], []
    for number, (declared, configured, segment) in enumerate(BATCHES[batch]):
        text = schema(base, declared) if isinstance(declared, dict) else declared
        folder = shutil.copytree(base, tmp_path / f"{number}")
        with closing(sqlite3.connect(folder / DATABASE)) as connection, connection:
            connection.execute("UPDATE collections SET schema_str = ?, config_json_str = ?", (text, configured))
            for key, value in segment.items():
                into = f"segment_metadata (segment_id, key, {COLUMNS[type(value)]})"
                row = f"INSERT INTO {into} SELECT id, ?, ? FROM segments WHERE scope = 'VECTOR'"
                connection.execute(row, (key, value))
        folders.append(str(folder))
        try:
            ours.append(index_settings(text, configured, segment).space)
        except SettingsRefused as refusal:
            ours.append(f"refused: {refusal}")
    command = [sys.executable, "-c", PROGRAM, *folders]
    answer = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    for case, mine, distance in zip(BATCHES[batch], ours, json.loads(answer.splitlines()[-1]), strict=True):
        theirs = SPACE_OF.get(distance) if isinstance(distance, int) else f"refused: {distance}"
        assert mine == theirs or (mine.startswith("refused") and str(theirs).startswith("refused")), (
            case,
            mine,
            theirs,
        )


def test_the_metadata_of_the_collection_itself_counts_for_nothing(base: Path, tmp_path: Path) -> None:
    """0.x copies it into the segment when the collection is made; who changes it later changes no index."""
    from shared.inspection.chroma.sysdb import read_collections
    from shared.inspection.sqlite.database_file import opened
    from shared.inspection.sqlite.schema import inspect_schema, read_schema

    folder = shutil.copytree(base, tmp_path / "delta")
    with closing(sqlite3.connect(folder / DATABASE)) as connection, connection:
        connection.execute("UPDATE collections SET schema_str = NULL, config_json_str = NULL")
        insert = "INSERT INTO collection_metadata (collection_id, key, str_value) SELECT id, 'hnsw:space', 'cosine'"
        connection.execute(f"{insert} FROM collections")
    with opened(folder / DATABASE, 60) as connection:
        database, _ = read_schema(connection)
        inspect_schema(connection, database)
        (collection,), findings = read_collections(connection, database)
    assert (findings, collection.cosine) == ([], False)
    command = [sys.executable, "-c", PROGRAM, str(folder)]
    answer = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    assert json.loads(answer.splitlines()[-1]) == [25]


@pytest.mark.parametrize("alias", ["key_overrides", "#float_list", "$vector_index"])
def test_names_of_an_earlier_schema_are_known(base: Path, alias: str) -> None:
    names = {"key_overrides": "keys", "#float_list": "float_list", "$vector_index": "vector_index"}
    text = schema(base, {"space": "cosine"}).replace(f'"{names[alias]}"', f'"{alias}"')
    assert index_settings(text, None, {}).space == "cosine"
