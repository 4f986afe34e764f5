"""Suite `cold`: the first and the next verdict of a new function, beside opening with Chroma there; the image's size.

Each round starts a fresh Python, as Lambda does, and gives the handler two events about deltas in a moto server of this
process. Lambda's own share (fetching the image, starting the runtime) is not in it.
"""

from __future__ import annotations

import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
from importlib import metadata
from typing import Any

from bench import ROOT
from bench.cost.figures import Figure
from bench.cost.stock import stocked
from bench.cost.targets import held
from devtools.stack.raw_copy import copy
from devtools.stack.stack import running_stack

_ROUNDS = 3
_SECONDS = 120
_EMBEDDINGS = 50
_BUCKET = "deltas"
_OURS = """
import json, sys, time
started = time.perf_counter()
from validator.handler import handler
def judged(key):
    record = {"eventName": "ObjectCreated:Put", "s3": {"bucket": {"name": "deltas"}, "object": {"key": key}}}
    before = time.perf_counter()
    handler({"Records": [record]}, None)
    return before
judged(sys.argv[1] + "/chroma.sqlite3")
first = time.perf_counter() - started
before = judged(sys.argv[2] + "/chroma.sqlite3")
print(json.dumps([first * 1000, (time.perf_counter() - before) * 1000]))
"""
# What people write first: in the function's own process, with nothing but open, list and count.
_RIVAL = """
import json, sys, tempfile, time
from pathlib import Path
started = time.perf_counter()
import boto3, chromadb
def judged(prefix):
    before = time.perf_counter()
    s3 = boto3.client("s3")
    folder = Path(tempfile.mkdtemp(dir=sys.argv[3]))
    for entry in s3.list_objects_v2(Bucket="deltas", Prefix=prefix + "/")["Contents"]:
        path = folder / entry["Key"].removeprefix(prefix + "/")
        path.parent.mkdir(parents=True, exist_ok=True)
        s3.download_file("deltas", entry["Key"], str(path))
    with chromadb.PersistentClient(str(folder)) as client:
        assert sum(collection.count() for collection in client.list_collections())
    return before
judged(sys.argv[1])
first = time.perf_counter() - started
before = judged(sys.argv[2])
print(json.dumps([first * 1000, (time.perf_counter() - before) * 1000]))
"""


def figures() -> list[Figure]:
    """The two verdicts at the deepest depth, and what the image holds."""
    ours, theirs = [], []
    settings = {"DELTAGUARD_SETTLE_SECONDS": "0", "DELTAGUARD_DEPTH": "open"}
    with running_stack(_BUCKET, **settings) as stack:
        stack.create(prefix="none/", visibility_seconds=60)
        delta = stocked(_EMBEDDINGS)
        for round_ in range(_ROUNDS):
            prefixes = [f"round-{round_}/{name}" for name in ("first", "second")]
            for prefix in prefixes:
                copy(delta, f"s3://{_BUCKET}/{prefix}/")
            ours.append(_answer(_OURS, *prefixes))
            theirs.append(_answer(_RIVAL, *prefixes))
    (first, warm), (first_rival, warm_rival) = (_medians(ours), _medians(theirs))
    chroma = "chromadb in the function itself: open, list, count"
    return [
        held("cold/first", "first verdict of a new process, depth open", first, chroma, first_rival, "ms"),
        held("cold/next", "its next verdict, depth open", warm, chroma, warm_rival, "ms"),
        held("cold/warm", "its next verdict, depth open", warm, "its first", first, "ms"),
        held("cold/image", "packages of the image", *_sizes(), "MB"),
    ]


def _medians(rounds: list[list[float]]) -> list[float]:
    return [statistics.median(times) for times in zip(*rounds, strict=True)]


def _answer(program: str, *prefixes: str) -> list[float]:
    with tempfile.TemporaryDirectory(prefix="bench-cold-") as scratch:
        done = subprocess.run(  # noqa: S603 -- ours
            [sys.executable, "-c", program, *prefixes, scratch],
            cwd=ROOT,
            env={**os.environ, "TMPDIR": scratch},
            capture_output=True,
            text=True,
            timeout=_SECONDS,
            check=True,
        )
    answer: list[float] = json.loads(done.stdout.splitlines()[-1])
    return answer


def _sizes() -> tuple[float, str, float]:
    """Megabytes of the image's packages as they are installed here, and of all that Chroma's metadata asks for."""
    lock = (ROOT / "deploy" / "requirements.lock").read_text(encoding="utf-8")
    locked = re.findall(r"^([A-Za-z0-9._-]+)(?:\[[^]]*\])?==", lock, re.MULTILINE)
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    left_out = re.findall(r"^LEFT_OUT := (.+)$", makefile, re.MULTILINE)[0].split()
    ours = sum(map(_megabytes, locked))
    return ours, "with all that they ask for", ours + sum(map(_megabytes, left_out))


def _megabytes(name: str) -> float:
    try:
        files: list[Any] = metadata.files(name) or []
    except metadata.PackageNotFoundError:  # another platform's
        return 0.0
    return sum(file.size or 0 for file in files) / 1e6
