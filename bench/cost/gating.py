"""Suite `gate`: refusing a chunk whose last delta is corrupt, beside merging it until that delta fails.

Both reach the same S3, a moto server in a process of its own; it answers some hundreds of requests a second and so
bounds the gate more than the merge. The merge is what a compaction without a gate does, in a process that has imported
chromadb already: download a delta, open it, get everything, upsert it, close it, and the next.
It is made in parts, and the gate is measured between them, so that what slows the machine down slows down both.
"""

from __future__ import annotations

import io
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout
from datetime import UTC, datetime
from pathlib import Path
from statistics import median

import boto3

from bench import ROOT
from bench.cost.figures import Figure
from bench.cost.s3 import BUCKET, running_s3
from bench.cost.stock import stocked
from bench.cost.targets import held
from bench.cost.timing import Measure, timed
from devtools.damage.catalogue import apply_damage
from scanner.gate import ChunkRejected, precheck
from shared.check.judgement import judge_stored
from shared.model.delta import DATABASE, DeltaLocation
from shared.model.settings import Settings
from shared.model.tags import with_verdict
from shared.model.verdict import Depth
from shared.storage.scratch import scratch_folder
from shared.storage.store import current_store

_DELTAS, _EMBEDDINGS, _ROUNDS = 100, 100, 10
_DIFFERENT = 10  # deltas of their own content; the others repeat it, which spares the merge more than the gate
_MERGE = """
import json, sys, tempfile, time
from pathlib import Path
import boto3, chromadb
from devtools.demo.old_way import OldMerge
from devtools.stack.child import tether
tether(int(sys.argv[1]))
old = OldMerge(boto3.client("s3"), sys.argv[2])
with tempfile.TemporaryDirectory(prefix="bench-merge-") as scratch, old.begun(Path(scratch) / "merged") as merge:
    for line in sys.stdin:
        done, failed, started = 0, "", time.perf_counter()
        try:
            for key in json.loads(line):
                merge(key)
                done += 1
        except Exception as error:
            failed = f"{type(error).__name__}: {error}"
        milliseconds = (time.perf_counter() - started) * 1000
        print(json.dumps({"milliseconds": milliseconds, "done": done, "failed": failed}), flush=True)
"""


def figures(deltas: int = _DELTAS, embeddings: int = _EMBEDDINGS, rounds: int = _ROUNDS) -> list[Figure]:
    """The gate where the validator has tagged what is healthy, and where nothing is tagged.

    Args:
        deltas: How many the chunk has.
        embeddings: How many each of them has.
        rounds: In how many parts the one merge is made; the gate is measured in between.
    """
    with running_s3(), scratch_folder() as scratch:
        chunks = [_uploaded(f"{name}/delta", deltas, embeddings, scratch) for name in ("tagged", "untagged")]
        _tag(chunks[0][:-1])
        gates = [_refusing(keys) for keys in chunks]
        with _merging() as merge:
            for gate in gates:
                gate()  # warms up
            costs: list[list[float]] = [[], []]
            merging, size = 0.0, -(-deltas // rounds)
            for start in range(0, deltas, size):
                for gate, cost in zip(gates, costs, strict=True):
                    cost.append(gate())
                merging += merge(chunks[0][start : start + size], start + size >= deltas)
    against = f"merging until the {deltas}th fails"
    what = f"gate, {deltas} deltas of {embeddings}, the last corrupt"
    tagged, untagged = map(median, costs)
    return [
        held("gate/tagged", f"{what}, the rest tagged", tagged, against, merging, "ms"),
        held("gate/untagged", f"{what}, none tagged", untagged, against, merging, "ms"),
    ]


def _refusing(keys: list[str]) -> Measure:
    """The gate's refusal of the chunk, which names the last delta and no other."""

    def refuse() -> None:
        with redirect_stdout(io.StringIO()):  # its logs and metrics
            try:
                precheck(BUCKET, keys)
            except ChunkRejected as error:
                if [verdict.delta for verdict in error.rejected] == [f"s3://{BUCKET}/{keys[-1]}/"]:
                    return
                raise
        raise RuntimeError("the gate let a corrupt delta pass")

    return timed(refuse)


@contextmanager
def _merging() -> Iterator[Callable[[list[str], bool], float]]:
    """A process that merges one chunk part by part; the block gets what merges the next part.

    It takes the keys and whether the last of them is to fail, and returns milliseconds.
    """
    command = [sys.executable, "-c", _MERGE, str(os.getpid()), BUCKET]
    with subprocess.Popen(  # noqa: S603 -- ours
        command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, start_new_session=True
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        asking, answering = process.stdin, process.stdout

        def merge(keys: list[str], fails: bool) -> float:
            asking.write(json.dumps(keys) + "\n")
            asking.flush()
            answer = json.loads(answering.readline() or "null")
            if answer is None or answer["done"] != len(keys) - fails:
                raise RuntimeError(f"the merge did not go as it was meant to, see above: {answer}")
            return float(answer["milliseconds"])

        try:
            yield merge
        finally:
            process.kill()


def _uploaded(prefix: str, deltas: int, embeddings: int, scratch: Path) -> list[str]:
    """The keys of a chunk below a prefix, the last of them that of a delta whose database is cut."""
    client = boto3.client("s3")
    keys = [f"{prefix}/{number:04}" for number in range(deltas)]
    for number, key in enumerate(keys):
        folder = stocked(embeddings, seed=number % _DIFFERENT)
        if key == keys[-1]:
            folder = Path(shutil.copytree(folder, scratch / f"corrupt-{len(list(scratch.iterdir()))}"))
            apply_damage("sqlite-truncated", folder)
        for path in sorted(path for path in folder.rglob("*") if path.is_file()):
            client.upload_file(str(path), BUCKET, f"{key}/{path.relative_to(folder).as_posix()}")
    return keys


def _tag(keys: list[str]) -> None:
    """Tags deltas as the validator does once it has found them healthy."""
    store = current_store()
    for key in keys:
        location = DeltaLocation(BUCKET, f"{key}/")
        verdict = judge_stored(store, location, Depth.STRUCTURE, Settings()).verdict
        store.set_tags(BUCKET, location.key(DATABASE), with_verdict({}, verdict, datetime.now(UTC)) or {})
