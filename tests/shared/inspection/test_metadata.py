"""Documents and metadata of the queue against the rows, where the rows are of no type that Chroma writes."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path

from shared.delta import DATABASE
from shared.judgement import judge_folder
from shared.settings import Settings
from shared.verdict import Depth, Status
from tests.conftest import CopyOf


def test_rows_numbered_by_text_among_numbers_are_compared_like_others(flushed_delta: Path, copy_of: CopyOf) -> None:
    folder = copy_of(flushed_delta)
    with closing(sqlite3.connect(folder / DATABASE, isolation_level=None)) as connection:
        connection.execute("CREATE TABLE untyped AS SELECT * FROM embeddings")
        connection.execute("UPDATE untyped SET id = 'x' || id WHERE rowid % 2")
        connection.execute("DROP TABLE embeddings")
        connection.execute("ALTER TABLE untyped RENAME TO embeddings")
    verdict = judge_folder(folder, Depth.STRUCTURE, Settings()).verdict
    assert verdict.status is Status.CORRUPT
    assert "records.metadata_missing" in {finding.code for finding in verdict.findings}
