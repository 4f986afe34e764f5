"""A worker: builds deltas, damages them, and has them judged. It reads jobs and writes results, one JSON object a line.

It imports chromadb and never opens a client: that is for its forked children.
"""

from __future__ import annotations

import ctypes
import json
import os
import pickle
import random
import shutil
import signal
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import chromadb.api.rust  # noqa: F401 -- children inherit what is imported here
import numpy as np

from bench.score.bases import build_base, is_cosine
from bench.score.checkers import SEED, ask_checkers, manifest_of, would_be_moved
from bench.score.children import Emit, forked
from bench.score.figures import Outcome, Result
from bench.score.generic import break_delta
from bench.score.given_back import GivenBack
from bench.score.healthy import HEALTHY
from bench.score.plan import Case
from bench.score.truth import Expected, Stored, ask_chroma
from bench.score.zoo import thawed
from devtools.damage.deltas import CollectionContent, DeltaContent, _client
from shared.model.verdict import Depth, Status

_BUILD_SECONDS = 120.0
_PR_SET_PDEATHSIG = 1
_WRITER_ROWS, _WRITER_DIMENSION = 2_000, 256  # of devtools.damage.deltas.write_until_killed


def main() -> int:
    """Does jobs from standard input until it ends."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    root, number, *keep = sys.argv[1:]
    work = _Work(Path(root), Path(root) / f"worker-{number}", Path(keep[0]) if keep else None)
    work.scratch.mkdir()
    tempfile.tempdir = str(work.scratch)
    os.environ["ANONYMIZED_TELEMETRY"] = "False"
    for line in sys.stdin:
        job = json.loads(line)
        result = _judge(work, Case(**job)) if "kind" in job else _build(work, job["base"])
        sys.stdout.write(json.dumps(result) + "\n")
        sys.stdout.flush()
    return 0


@dataclass(frozen=True, slots=True)
class _Work:
    """Where a worker works: the folder of all, its own, and one for the deltas to keep."""

    root: Path
    scratch: Path
    keep: Path | None


def _build(work: _Work, name: str) -> dict[str, Any]:
    folder = work.root / "bases" / name

    def build(_: Emit) -> None:
        content = build_base(name, folder / "delta")
        (folder / "content").write_bytes(pickle.dumps(content))
        (folder / "manifest").write_bytes(manifest_of(folder / "delta"))

    folder.mkdir(parents=True)
    ended = forked(build, _BUILD_SECONDS)
    if ended.trouble:
        raise RuntimeError(f"base {name}: {ended.trouble}")
    return {"built": name}


def _judge(work: _Work, case: Case) -> dict[str, Any]:
    """Makes the delta of a case, and has Chroma and every checker say what they think of it."""
    started = time.perf_counter()
    place = work.scratch / "case"
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir()
    delta = place / "delta"
    expected, manifest, done = _made(work.root, place, delta, case)
    checkers = ask_checkers(delta, manifest, place)
    if case.kind.startswith("torn-copy"):
        expected = Stored(_torn_content(delta, place, case), is_cosine(case.base))
    truth = ask_chroma(delta, expected, place)
    checkers[SEED] = {
        "status": str(Status.HEALTHY if truth.seed_passes else Status.CORRUPT), "codes": [], "reason": ""
    }  # fmt: skip
    if (place / "pickle-was-run").exists():
        truth = type(truth)("the pickle was run", "dies", truth.seed_passes)
    corrupt = checkers[Depth.STRUCTURE]["status"] == Status.CORRUPT
    # Of a harmed delta the second witness takes a second: it is asked again, in a process of its own.
    witness = would_be_moved(delta) if corrupt and (not truth.harm or case.sampled) else None
    seconds = round(time.perf_counter() - started, 2)
    line = {"case": asdict(case), "done": done, "truth": truth.as_json(), "checkers": checkers, "seconds": seconds}
    line |= {"witness": witness}
    if work.keep and Result.of(line).outcome(Depth.STRUCTURE) in (Outcome.MISSED, Outcome.FALSE_ALARM):
        kept = work.keep / f"{case.kind}-{case.base or case.source}-{case.seed}"
        shutil.copytree(delta, kept, dirs_exist_ok=True)
    shutil.rmtree(place)
    return line


def _made(root: Path, place: Path, delta: Path, case: Case) -> tuple[Expected, bytes | None, str]:
    """Makes the delta of a case.

    Returns:
        What should come back of it, its manifest from before the damage, and what was done to it.
    """
    expected: Expected
    if case.source == "healthy":

        def make(_: Emit) -> None:
            (place / "content").write_bytes(pickle.dumps(HEALTHY[case.kind](delta, case.seed)))

        ended = forked(make, _BUILD_SECONDS)
        if ended.trouble:
            raise RuntimeError(f"{case}: {ended.trouble}")
        expected = Stored(*pickle.loads((place / "content").read_bytes()))  # noqa: S301 -- written above
        manifest = manifest_of(delta)
    elif case.source == "zoo":
        made = thawed(case.base, place / "frozen")
        expected = GivenBack.of(made, place)
        made.folder.rename(delta)
        manifest = manifest_of(delta)
    else:
        base = root / "bases" / case.base
        shutil.copytree(base / "delta", delta)
        content = pickle.loads((base / "content").read_bytes())  # noqa: S301 -- written by _build
        expected, manifest = Stored(content, is_cosine(case.base)), (base / "manifest").read_bytes()
    if case.healthy:
        return expected, manifest, "healthy"
    done = break_delta(case.kind, case.base, case.seed, delta)
    return expected, None if case.kind.startswith("torn-copy") else manifest, done


def _torn_content(delta: Path, place: Path, case: Case) -> DeltaContent:
    """What the writer of a torn copy may have stored: some number of whole batches, as many as Chroma counts."""
    copy = Path(shutil.copytree(delta, place / "counted"))

    def count(_: Emit) -> int:
        with _client(copy) as client:
            return int(client.get_collection("words").count())

    batches = -(-(forked(count).value or 1) // _WRITER_ROWS)
    shutil.rmtree(copy)
    seed = random.Random(f"{case.kind} {case.base} {case.seed}").randrange(1000)  # noqa: S311 -- as in bench.score.generic
    vectors = np.random.default_rng(seed).standard_normal((_WRITER_ROWS, _WRITER_DIMENSION)).astype(np.float32)
    rows = range(batches * _WRITER_ROWS)
    order = sorted(rows, key=lambda row: f"item-{seed}-{row}")
    ids = tuple(f"item-{seed}-{row}" for row in order)
    texts = tuple(f"the text of {id_}" for id_ in ids)
    places = [row % _WRITER_ROWS for row in order]
    collection = CollectionContent("words", _WRITER_DIMENSION, ids, vectors[places], texts, (None,) * len(ids))
    return DeltaContent((collection,))


if __name__ == "__main__":
    sys.exit(main())
