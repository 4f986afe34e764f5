"""Suite `probe`: Chroma's own word on a delta, asked as depth `open` asks it, beside a fresh process for each delta.

Both copy the delta, have the same program read all of it, and remove the copy; all of this is timed.
"""

from __future__ import annotations

import json
import os
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path
from statistics import median

from bench.cost.figures import Figure
from bench.cost.rivals import copied
from bench.cost.stock import DIMENSION, stocked
from bench.cost.targets import held
from bench.cost.timing import Measure, in_turns, timed
from shared.inspection.chroma.records import Contents
from shared.inspection.probe import chroma, program
from shared.model.delta import DATABASE
from shared.model.settings import Settings
from shared.model.verdict import CollectionCount
from shared.storage.scratch import scratch_folder

_ROUNDS = 11
# Loaded by its path: the folder of the program holds modules that must not shadow others'.
_FRESH = """
import importlib.util, json, os, sys
spec = importlib.util.spec_from_file_location("probe", sys.argv[1])
probe = importlib.util.module_from_spec(spec)
spec.loader.exec_module(probe)
answer = {"collections": []}
probe.read(sys.argv[2], answer)
print(json.dumps(answer), flush=True)
os._exit(0)
"""
_SIZES = (50, 500)


def figures() -> list[Figure]:
    """A row for each size: what a probe costs in the midst of many."""
    rows = []
    for embeddings in _SIZES:
        folder = stocked(embeddings)
        with scratch_folder() as scratch:
            measures = [_probed(folder, _contents(folder)), _fresh(folder, scratch, embeddings)]
            ours, theirs = map(median, in_turns(measures, _ROUNDS))
        what = f"open, one probe of {embeddings} embeddings"
        rows.append(held(f"probe/fresh-{embeddings}", what, ours, "a fresh process each", theirs, "ms"))
    return rows


def _contents(folder: Path) -> Contents:
    """What the records of a stocked delta say: it has one collection, and nothing was deleted."""
    with closing(sqlite3.connect(f"{(folder / DATABASE).as_uri()}?mode=ro&immutable=1", uri=True)) as connection:
        ids = {id_ for (id_,) in connection.execute("SELECT embedding_id FROM embeddings")}
        ((name,),) = connection.execute("SELECT name FROM collections").fetchall()
    return Contents(CollectionCount(name, DIMENSION, len(ids)), ids)


def _probed(folder: Path, contents: Contents) -> Measure:
    seconds = Settings().probe_timeout_seconds

    def ask() -> None:
        findings, _ = chroma.probe(folder, (contents,), seconds)
        if findings:
            raise RuntimeError(f"the probe of {folder} finds fault with it: {findings}")

    return timed(ask)


def _fresh(folder: Path, scratch: Path, embeddings: int) -> Measure:
    """The program of the probe in a Python that was started for it."""

    def ask() -> None:
        with copied(folder, scratch) as copy:
            command = [sys.executable, "-c", _FRESH, program.__file__, str(copy)]
            environment = os.environ | {"ANONYMIZED_TELEMETRY": "False", "OMP_NUM_THREADS": "1"}
            done = subprocess.run(command, capture_output=True, text=True, env=environment, check=True)  # noqa: S603 -- ours
        answer = json.loads(done.stdout)
        counts = [collection["count"] for collection in answer["collections"]]
        if counts != [embeddings]:
            raise RuntimeError(f"the fresh probe of {folder} failed: {done.stdout.strip()[-500:]}")

    return timed(ask)
