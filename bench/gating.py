"""Suite `gate`: refusing a chunk whose last delta is corrupt, beside merging it until that delta fails.

Both reach the same S3, a moto server in a process of its own; it answers some hundreds of requests a second and so
bounds the gate more than the merge. The merge is what a compaction without a gate does, in a process that has imported
chromadb already: download a delta, open it, get everything, upsert it, close it, and the next.
"""

from __future__ import annotations

import io
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from datetime import UTC, datetime
from pathlib import Path
from statistics import median

import boto3

from bench.figures import Figure
from bench.stock import stocked
from bench.targets import held
from bench.timing import Measure, timed
from local.damage import apply_damage
from scanner.gate import ChunkRejected, precheck
from shared.delta import DATABASE, DeltaLocation
from shared.judgement import judge_stored
from shared.scratch import scratch_folder
from shared.settings import Settings
from shared.storage import current_store
from shared.tags import with_verdict
from shared.verdict import Depth

_DELTAS, _EMBEDDINGS, _ROUNDS = 100, 100, 5
_DIFFERENT = 10  # deltas of their own content; the others repeat it, which spares the merge more than the gate
_BUCKET = "deltas"
_SECONDS = 900
_ROOT = Path(__file__).resolve().parent.parent
_SERVE = """
import logging, sys, threading
from moto.server import ThreadedMotoServer
from bench.tether import tether
tether(int(sys.argv[1]))
logging.getLogger("werkzeug").setLevel(logging.ERROR)
server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
server.start()
print(server.get_host_and_port()[1], flush=True)
threading.Event().wait()
"""
_MERGE = """
import json, sys, tempfile, time
from pathlib import Path
import boto3, chromadb
from bench.tether import tether
tether(int(sys.argv[1]))
bucket, keys = sys.argv[2], json.loads(sys.argv[3])
s3 = boto3.client("s3")

def merge(key, scratch, merged):
    folder = scratch / key.replace("/", "-")
    for entry in s3.list_objects_v2(Bucket=bucket, Prefix=key + "/")["Contents"]:
        file = folder / entry["Key"].removeprefix(key + "/")
        file.parent.mkdir(parents=True, exist_ok=True)
        s3.download_file(bucket, entry["Key"], str(file))
    with chromadb.PersistentClient(path=str(folder)) as client:
        for collection in client.list_collections():
            found = collection.get(include=["embeddings", "documents", "metadatas"])
            rows = {name: found[name] for name in ("ids", "embeddings", "documents", "metadatas")}
            merged.get_or_create_collection(collection.name).upsert(**rows)

done = 0
with tempfile.TemporaryDirectory(prefix="bench-merge-") as scratch:
    with chromadb.PersistentClient(path=str(Path(scratch) / "merged")) as merged:
        started = time.perf_counter()
        try:
            for key in keys:
                merge(key, Path(scratch), merged)
                done += 1
        except Exception as error:
            failed = f"{type(error).__name__}: {error}"
        milliseconds = (time.perf_counter() - started) * 1000
print(json.dumps({"milliseconds": milliseconds, "done": done, "failed": failed}))
"""


def figures(deltas: int = _DELTAS, embeddings: int = _EMBEDDINGS, rounds: int = _ROUNDS) -> list[Figure]:
    """The gate where the validator has tagged what is healthy, and where nothing is tagged.

    Args:
        deltas: How many the chunk has.
        embeddings: How many each of them has.
        rounds: How often the gate is measured, before and after the one merge.
    """
    with _served(), scratch_folder() as scratch:
        keys = _uploaded(deltas, embeddings, scratch)
        gate = _refusing(keys)
        untagged = [gate() for _ in range(rounds + 1)][1:]  # the first warms up
        merging = _merging(keys)
        untagged += [gate() for _ in range(rounds)]
        _tag(keys[:-1])
        tagged = [gate() for _ in range(2 * rounds + 1)][1:]
    against = f"merging until the {deltas}th fails"
    what = f"gate, {deltas} deltas of {embeddings}, the last corrupt"
    return [
        held("gate/tagged", f"{what}, the rest tagged", median(tagged), against, merging, "ms"),
        held("gate/untagged", f"{what}, none tagged", median(untagged), against, merging, "ms"),
    ]


def _refusing(keys: list[str]) -> Measure:
    """The gate's refusal of the chunk, which names the last delta and no other."""

    def refuse() -> None:
        with redirect_stdout(io.StringIO()):  # its logs and metrics
            try:
                precheck(_BUCKET, keys)
            except ChunkRejected as error:
                if [verdict.delta for verdict in error.rejected] == [f"s3://{_BUCKET}/{keys[-1]}/"]:
                    return
                raise
        raise RuntimeError("the gate let a corrupt delta pass")

    return timed(refuse)


def _merging(keys: list[str]) -> float:
    """Milliseconds that a merge of the chunk takes until it fails, at the last delta."""
    command = [sys.executable, "-c", _MERGE, str(os.getpid()), _BUCKET, json.dumps(keys)]
    done = subprocess.run(  # noqa: S603 -- ours
        command, cwd=_ROOT, capture_output=True, text=True, timeout=_SECONDS, check=False
    )
    if done.returncode:
        raise RuntimeError(f"the merge ended in no way that was meant: {done.stderr.strip()[-500:]}")
    answer = json.loads(done.stdout)
    if answer["done"] != len(keys) - 1:
        raise RuntimeError(f"the merge failed after {answer['done']} of {len(keys)} deltas: {answer['failed']}")
    return float(answer["milliseconds"])


def _uploaded(deltas: int, embeddings: int, scratch: Path) -> list[str]:
    """The keys of a chunk, the last of them that of a delta whose database is cut."""
    client = boto3.client("s3")
    client.create_bucket(Bucket=_BUCKET)
    keys = [f"words/delta/{number:04}" for number in range(deltas)]
    for number, key in enumerate(keys):
        folder = stocked(embeddings, seed=number % _DIFFERENT)
        if key == keys[-1]:
            folder = Path(shutil.copytree(folder, scratch / "corrupt"))
            apply_damage("sqlite-truncated", folder)
        for path in sorted(path for path in folder.rglob("*") if path.is_file()):
            client.upload_file(str(path), _BUCKET, f"{key}/{path.relative_to(folder).as_posix()}")
    return keys


def _tag(keys: list[str]) -> None:
    """Tags deltas as the validator does once it has found them healthy."""
    store = current_store()
    for key in keys:
        location = DeltaLocation(_BUCKET, f"{key}/")
        verdict = judge_stored(store, location, Depth.STRUCTURE, Settings()).verdict
        store.set_tags(_BUCKET, location.key(DATABASE), with_verdict({}, verdict, datetime.now(UTC)))


@contextmanager
def _served() -> Iterator[None]:
    """A moto server in a process of its own, and an environment that leads to it."""
    with subprocess.Popen(  # noqa: S603 -- ours
        [sys.executable, "-c", _SERVE, str(os.getpid())],
        cwd=_ROOT,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,  # Ctrl-C is ours to handle
    ) as process:
        before = dict(os.environ)
        try:
            assert process.stdout is not None
            endpoint = f"http://127.0.0.1:{int(process.stdout.readline())}"
            for name in ("AWS_PROFILE", "AWS_SESSION_TOKEN", "AWS_ENDPOINT_URL_S3", "AWS_REGION"):
                os.environ.pop(name, None)
            os.environ |= {
                "AWS_ENDPOINT_URL": endpoint,
                "AWS_ACCESS_KEY_ID": "bench",
                "AWS_SECRET_ACCESS_KEY": "bench",  # moto accepts any
                "AWS_DEFAULT_REGION": "us-east-1",
                "AWS_XRAY_SDK_ENABLED": "false",
                "ANONYMIZED_TELEMETRY": "False",
            }
            yield
        finally:
            os.environ.clear()
            os.environ.update(before)
            process.kill()
