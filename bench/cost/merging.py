"""Suites `merge`, `refusal` and `merge-memory`: a chunk of ten deltas through compaction, beside the old way.

S3 is a moto server in a process of its own, and everything goes over HTTP. The old way is `devtools.demo.old_way`: a
Chroma client for each delta, `get` in thousands, `upsert`. It is not charged for looking at what it has uploaded.
"""

from __future__ import annotations

import io
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import count
from pathlib import Path
from statistics import median
from typing import Any

from bench import ROOT
from bench.cost.figures import Figure
from bench.cost.s3 import BUCKET, metered, running_s3
from bench.cost.stock import DIMENSION, stocked
from bench.cost.targets import held
from bench.cost.timing import Measure, in_turns, timed
from compaction.chunk import process
from compaction.download import Checkout
from devtools.damage.catalogue import apply_damage
from devtools.demo.old_way import OldMerge
from scanner.gate import ChunkRejected, precheck
from shared.check.judgement import judge_stored
from shared.model.delta import DATABASE, DeltaLocation
from shared.model.settings import Settings
from shared.model.tags import with_verdict
from shared.model.verdict import Depth
from shared.storage.scratch import scratch_folder
from shared.storage.store import current_store
from shared.upload import upload_delta

_DELTAS = 10
_EMBEDDINGS = 500
_ROUNDS = 3
_MANY = 5000
_SECONDS = 1800
_MB = 1_000_000
_MERGE = """
import contextlib, io, json, sys
from pathlib import Path
from devtools.stack.child import tether
from compaction.chunk import process
tether(int(sys.argv[1]))
deltas = [{"delta_key": key, "collection": "words"} for key in sys.argv[3:]]
with contextlib.redirect_stdout(io.StringIO()):
    answer = process("memory", int(sys.argv[2]), deltas, {"words": deltas})
lines = Path("/proc/self/status").read_text().splitlines()
peak = next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:"))
print(json.dumps({"embeddings": answer["embeddings_processed"], "peak": peak}))
"""
_numbers = count()


@dataclass(frozen=True, slots=True)
class _Chunk:
    """A chunk in the bucket: the keys of its deltas, and how many embeddings they hold together."""

    keys: list[str]
    embeddings: int

    @property
    def deltas(self) -> list[dict[str, Any]]:
        """The deltas as a caller of compaction describes them."""
        return [{"delta_key": key, "collection": "words"} for key in self.keys]


def whole(deltas: int = _DELTAS, embeddings: int = _EMBEDDINGS, rounds: int = _ROUNDS) -> list[Figure]:
    """A healthy chunk: all of it beside the old way, and the gate's share of it, with tags and without."""
    with running_s3():
        untagged, tagged = _uploaded("untagged", deltas, embeddings), _uploaded("tagged", deltas, embeddings)
        _tag(tagged)
        measures = [_merged(tagged), _merged(untagged), _merged_old(untagged)]
        ours, cold, old = map(median, in_turns(measures, rounds))
        gates = [_gated(tagged), _fetched(untagged, judged=True), _fetched(untagged, judged=False)]
        by_tag, judged, fetched = map(median, in_turns(gates, rounds))
    name = f"chunk of {deltas} x {embeddings}"
    return [
        held("merge/old-way", f"{name}, merged", cold, "the old way", old, "ms"),
        held("merge/gate-tagged", f"{name}, gate, by tags", by_tag, "all of the merge", ours, "ms"),
        held("merge/gate", f"{name}, gate, without tags", max(judged - fetched, 0.0), "all of the merge", cold, "ms"),
        held("merge/gate-and-download", f"{name}, gate with the one download", judged, "all of the merge", cold, "ms"),
    ]


def refusal(deltas: int = _DELTAS, embeddings: int = _EMBEDDINGS, rounds: int = _ROUNDS) -> list[Figure]:
    """The last delta of a chunk is corrupt: time, bytes and thrown-away work until compaction knows."""
    with running_s3():
        untagged, tagged = _uploaded("untagged", deltas, embeddings), _uploaded("tagged", deltas, embeddings)
        _tag(_Chunk(tagged.keys[:-1], 0))
        for chunk in (untagged, tagged):
            _corrupt(chunk.keys[-1], embeddings)
        costs = [_refused(tagged), _refused(untagged), _refused_old(untagged)]
        by_tag, judged, old = map(median, in_turns([timed(cost.run) for cost in costs], rounds))
    name = f"chunk of {deltas} x {embeddings}, the last corrupt"
    downloaded = [cost.downloaded / _MB for cost in costs]
    thrown_away = [float(cost.thrown_away) for cost in costs]
    return [
        held("refusal/time-tagged", f"{name}: refused, others tagged", by_tag, "the old way fails", old, "ms"),
        held("refusal/time", f"{name}: refused, no tags", judged, "the old way fails", old, "ms"),
        held(
            "refusal/bytes-tagged",
            "bytes read until then, others tagged",
            downloaded[0],
            "the old way",
            downloaded[2],
            "MB",
        ),
        held("refusal/bytes", "bytes read until then, no tags", downloaded[1], "the old way", downloaded[2], "MB"),
        held("refusal/thrown-away", "embeddings merged in vain", thrown_away[1], "the old way", thrown_away[2], ""),
    ]


def memory(deltas: int = _DELTAS, few: int = _EMBEDDINGS, many: int = _MANY, rounds: int = 1) -> list[Figure]:
    """What ten times as many embeddings add to the peak of the process that merges them."""
    with running_s3():
        small, large = _uploaded("few", deltas, few), _uploaded("many", deltas, many)
        peaks = in_turns([_peak(small), _peak(large)], rounds)
    low, high = map(median, peaks)
    name = f"merge of {large.embeddings} embeddings, peak memory"
    vectors = (large.embeddings - small.embeddings) * DIMENSION * 4 / _MB
    beyond = f"{name} beyond that of {small.embeddings}"
    return [
        held("merge-memory/growth", beyond, high - low, "the vectors of the others", vectors, "MB"),
        held("merge-memory/total", name, high, f"that of {small.embeddings}", low, "MB"),
    ]


def _uploaded(name: str, deltas: int, embeddings: int) -> _Chunk:
    keys = [f"words/{name}/{number:02d}" for number in range(deltas)]
    with _silent():
        for seed, key in enumerate(keys):
            upload_delta(stocked(embeddings, seed), BUCKET, key)
    return _Chunk(keys, deltas * embeddings)


def _tag(chunk: _Chunk) -> None:
    """Tags deltas as the validator does once it has found them healthy."""
    store, settings = current_store(), Settings.from_environment()
    for key in chunk.keys:
        location = DeltaLocation(BUCKET, f"{key}/")
        verdict = judge_stored(store, location, Depth.STRUCTURE, settings).verdict
        store.set_tags(BUCKET, location.key(DATABASE), with_verdict({}, verdict, datetime.now(UTC)) or {})


def _corrupt(key: str, embeddings: int) -> None:
    """Replaces a delta by one that was cut off on its way: Chroma opens it and fails when it reads."""
    with scratch_folder() as scratch:
        folder = Path(shutil.copytree(stocked(embeddings, 0), scratch / "delta"))
        apply_damage("sqlite-truncated", folder, 1)
        current_store().upload(BUCKET, f"{key}/{DATABASE}", folder / DATABASE)


def _merged(chunk: _Chunk) -> Measure:
    def run() -> None:
        with _silent():
            answer = process("bench", next(_numbers), chunk.deltas, {"words": chunk.deltas})
        if answer["embeddings_processed"] != chunk.embeddings:
            raise RuntimeError(f"{answer['embeddings_processed']} of {chunk.embeddings} embeddings were merged")

    return timed(run)


def _merged_old(chunk: _Chunk) -> Measure:
    def run() -> None:
        old = OldMerge(metered().client, BUCKET)
        old.run(chunk.keys, f"intermediate/old/chunk-{next(_numbers)}")
        if old.merged != chunk.embeddings:
            raise RuntimeError(f"{old.merged} of {chunk.embeddings} embeddings were merged the old way")

    return timed(run)


def _gated(chunk: _Chunk) -> Measure:
    def run() -> None:
        precheck(BUCKET, chunk.keys)

    return timed(run)


def _fetched(chunk: _Chunk, *, judged: bool) -> Measure:
    """The files of a chunk on this disk, with the gate before it or without."""

    def run() -> None:
        with scratch_folder() as scratch:
            checkout = Checkout(current_store(), scratch)
            if judged:
                precheck(BUCKET, chunk.keys, store=checkout)
            for key in chunk.keys:
                location = DeltaLocation(BUCKET, f"{key}/")
                checkout.checked_out(location, checkout.list_delta(location).fingerprint)

    return timed(run)


@dataclass(slots=True)
class _Refusal:
    """A merge that must fail: how it is done, and after it what it had cost."""

    attempt: Callable[[_Refusal], None]
    downloaded: int = 0
    thrown_away: int = 0

    def run(self) -> None:
        self.attempt(self)


def _refused(chunk: _Chunk) -> _Refusal:
    def attempt(cost: _Refusal) -> None:
        meter = metered()
        try:
            with _silent():
                process("bench", next(_numbers), chunk.deltas, {"words": chunk.deltas}, store=meter.store)
        except ChunkRejected:
            cost.downloaded = meter.downloaded
            return
        raise RuntimeError("a chunk with a corrupt delta was merged")

    return _Refusal(attempt)


def _refused_old(chunk: _Chunk) -> _Refusal:
    def attempt(cost: _Refusal) -> None:
        meter = metered()
        old = OldMerge(meter.client, BUCKET)
        with suppress(Exception):  # it fails with whatever Chroma finds to say
            old.run(chunk.keys, f"intermediate/old/chunk-{next(_numbers)}")
            raise SystemExit("the old way has merged a corrupt delta")
        cost.downloaded, cost.thrown_away = meter.downloaded, old.merged

    return _Refusal(attempt)


def _peak(chunk: _Chunk) -> Measure:
    def measure() -> float:
        command = [sys.executable, "-c", _MERGE, str(os.getpid()), str(next(_numbers)), *chunk.keys]
        done = subprocess.run(  # noqa: S603 -- ours
            command, cwd=ROOT, capture_output=True, text=True, timeout=_SECONDS, check=False
        )
        if done.returncode:
            raise RuntimeError(f"merging {chunk.embeddings} embeddings failed: {done.stderr.strip()[-500:]}")
        answer = json.loads(done.stdout)
        if answer["embeddings"] != chunk.embeddings:
            raise RuntimeError(f"{answer['embeddings']} of {chunk.embeddings} embeddings were merged")
        return float(answer["peak"]) / _MB

    return measure


@contextmanager
def _silent() -> Iterator[None]:
    """Logs and metrics go to standard output, where the figures are wanted."""
    with redirect_stdout(io.StringIO()):
        yield
