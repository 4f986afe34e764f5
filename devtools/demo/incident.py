"""`deltaguard reproduce`: the chunk-40 incident on this machine, what the old code made of it, and what happens now.

A delta that was copied while its client was writing ended a compaction with an error of code 14, which also comes of a
perfectly healthy delta on a machine that has run out of file descriptors. Both are made here. Every claim is checked.
"""

from __future__ import annotations

import io
import json
import shutil
import subprocess
import sys
from collections.abc import Sequence
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.text import Text

from compaction import process_chunk_deltas
from devtools.damage.deltas import DeltaRecipe, build_delta, copy_across_commit
from devtools.demo.claims import Claims
from devtools.stack.stack import LocalStack, running_stack
from scanner.gate import ChunkRejected
from shared.check.judgement import judge_folder, judge_stored
from shared.model.delta import DeltaLocation, is_chroma_file
from shared.model.errors import TargetError
from shared.model.settings import Settings
from shared.model.verdict import Depth, Status, Verdict
from shared.storage.folder import check_size
from shared.storage.scratch import scratch_folder
from shared.storage.store import Store, current_store
from shared.upload import upload_delta

_BUCKET = "deltas"
_DELTAS = 10
_EMBEDDINGS = 50
_SECONDS = 120
_EXIT = {Status.HEALTHY: 0, Status.CORRUPT: 1, Status.INCOMPLETE: 1, Status.UNDETERMINED: 3}

# Children, because whatever a broken delta does to the process that reads it, it does to one of these.
_OLD_MERGE = """
import json, sys
import boto3
from devtools.demo.old_way import OldMerge
old = OldMerge(boto3.client("s3"), sys.argv[1])
error = ""
try:
    old.run(sys.argv[3:], sys.argv[2])
except BaseException as failure:
    error = f"{type(failure).__name__}: {failure}"
print(json.dumps({"merged": old.merged, "error": error}))
"""
_OLD_OPEN = """
import json, sys
import chromadb
steps, error = [], ""
try:
    steps.append("open")
    client = chromadb.PersistentClient(sys.argv[1])
    steps.append("list")
    for collection in client.list_collections():
        steps.append(f"count {collection.name}")
        count = collection.count()
        steps.append(f"get {collection.name}")
        for offset in range(0, count, 1000):
            collection.get(limit=1000, offset=offset, include=["embeddings", "documents", "metadatas"])
except BaseException as failure:
    error = f"{type(failure).__name__}: {failure}"
print(json.dumps({"steps": steps, "error": error}))
"""
_STARVED = """
import json, os, resource, shutil, sys
from pathlib import Path
import chromadb
from chromadb.config import Settings as ChromaSettings
from shared.check.judgement import judge_folder
from shared.model.settings import Settings
from shared.model.verdict import Depth

def leave(free):
    taken = []
    try:
        while True:
            taken.append(os.open(os.devnull, os.O_RDONLY))
    except OSError:
        pass
    for _ in range(free):
        os.close(taken.pop())
    return taken

folder = Path(sys.argv[1])
judge_folder(folder, Depth.STRUCTURE, Settings())
resource.setrlimit(resource.RLIMIT_NOFILE, (256, 256))
error, free = "", 16  # a client takes about seven
while not error and free:
    free -= 1
    copy = shutil.copytree(folder, folder.with_name(f"copy-{free}"))
    taken = leave(free)
    try:
        chromadb.PersistentClient(copy, settings=ChromaSettings(anonymized_telemetry=False)).list_collections()
    except BaseException as failure:
        error = f"{type(failure).__name__}: {failure}"
    for descriptor in taken:
        os.close(descriptor)
taken = leave(0)
starved = judge_folder(folder, Depth.STRUCTURE, Settings()).verdict
for descriptor in taken:
    os.close(descriptor)
afterwards = judge_folder(folder, Depth.STRUCTURE, Settings()).verdict
print(json.dumps({
    "free": free, "error": error, "status": starved.status, "reason": starved.reason, "afterwards": afterwards.status
}))
"""


@click.command()
@click.option("--test-fix", is_flag=True, help="Also run it through the real process_chunk_deltas.")
@click.option("--delta", metavar="S3_URI", help="Take this delta instead of making one. It is only read.")
def reproduce(*, test_fix: bool, delta: str | None) -> None:
    """Have the chunk-40 incident happen on this machine, as it was and as it is now.

    Without --delta everything is made here, and S3 is a moto server. With --delta a copy of that delta is looked at,
    and with --test-fix merged, on this machine; the delta itself is only read.

    \b
    Exit status: 0 if every claim was checked and held, 1 otherwise. With --delta that of `deltaguard check`: 0 healthy,
    1 corrupt or incomplete, 3 could not be checked.
    """
    console = Console(highlight=False)
    claims = Claims(console)
    with scratch_folder() as scratch:
        if delta is not None:
            sys.exit(_look_at(console, DeltaLocation.parse(delta), scratch, claims, test_fix=test_fix))
        with running_stack(
            _BUCKET, CHROMADB_BUCKET=_BUCKET, DELTAGUARD_SETTLE_SECONDS="0", DELTAGUARD_ARRIVAL_SECONDS="0"
        ) as stack:
            stack.s3.create_bucket(Bucket=_BUCKET)
            _tell(console, stack, scratch, claims, test_fix=test_fix)
        _tell_code_14(console, scratch, claims)
    console.print()
    console.print("Every claim above was checked." if not claims.failed else f"{claims.failed} claims did not hold.")
    sys.exit(1 if claims.failed else 0)


def _tell(console: Console, stack: LocalStack, scratch: Path, claims: Claims, *, test_fix: bool) -> None:
    _title(console, f"1. A chunk of {_DELTAS} deltas; the last was copied while its client was writing")
    keys = [f"words/delta/{number:02d}" for number in range(1, _DELTAS + 1)]
    for number, key in enumerate(keys[:-1]):
        build_delta(scratch / key, DeltaRecipe(embeddings=_EMBEDDINGS, dimension=64, seed=number))
        _upload_the_old_way(stack, scratch / key, key)
    copy_across_commit(scratch / keys[-1])
    _upload_the_old_way(stack, scratch / keys[-1], keys[-1])
    console.print(f"  s3://{_BUCKET}/{keys[0]}/ ... s3://{_BUCKET}/{keys[-1]}/")

    _title(console, "2. What the old code did: a client for each delta, get, upsert")
    old = _child(_OLD_MERGE, _BUCKET, "intermediate/old/chunk-40", *keys)
    console.print(Text(f"  {old['error']}", "red"), soft_wrap=True)
    merged = (_DELTAS - 1) * _EMBEDDINGS
    claims.check(
        "it failed, and said nothing of which delta it was", bool(old["error"]) and keys[-1] not in old["error"]
    )
    claims.check(f"{merged} embeddings had been merged by then, and were thrown away", old["merged"] == merged)

    _title(console, "3. What happens now: each delta is judged before anything is merged")
    verdicts = [
        judge_stored(current_store(), _at(key), Depth.STRUCTURE, Settings(settle_seconds=0, arrival_seconds=0)).verdict
        for key in keys
    ]
    _show(console, verdicts[-1])
    statuses = [verdict.status for verdict in verdicts]
    claims.check("the last one is corrupt, with the proof, and the others are healthy",
                 statuses == [Status.HEALTHY] * (_DELTAS - 1) + [Status.CORRUPT])  # fmt: skip
    if test_fix:
        _test_fix(console, stack, scratch, keys, claims)


def _test_fix(console: Console, stack: LocalStack, scratch: Path, keys: list[str], claims: Claims) -> None:
    _title(console, "4. The real function: process_chunk_deltas")
    refused = ""
    try:
        _process(keys)
    except ChunkRejected as error:
        refused = str(error)
    console.print(Text(refused, "red"), soft_wrap=True)
    claims.check("the chunk is refused before any merge, and the delta is named", f"{keys[-1]}/ is corrupt" in refused)
    left = stack.s3.list_objects_v2(Bucket=_BUCKET, Prefix="intermediate/batch/").get("Contents", [])
    claims.check("nothing is left under intermediate/", not left)

    console.print("Its batch is processed again, and uploaded with shared.upload this time:")
    for entry in stack.s3.list_objects_v2(Bucket=_BUCKET, Prefix=f"{keys[-1]}/")["Contents"]:
        stack.s3.delete_object(Bucket=_BUCKET, Key=entry["Key"])
    with redirect_stdout(io.StringIO()):
        again = build_delta(scratch / "again", DeltaRecipe(embeddings=_EMBEDDINGS, dimension=64, seed=_DELTAS))
        upload_delta(scratch / "again", _BUCKET, keys[-1], batch_id="batch")
    answer = _process(keys)
    console.print(f"  {json.dumps(answer)}", soft_wrap=True)
    claims.check("all of it is merged, nothing is skipped",
                 answer["embeddings_processed"] == (_DELTAS - 1) * _EMBEDDINGS + again.count)  # fmt: skip


def _tell_code_14(console: Console, scratch: Path, claims: Claims) -> None:
    _title(console, "Code 14 is not corruption: a healthy delta, and a process that runs out of file descriptors")
    build_delta(scratch / "healthy", DeltaRecipe(embeddings=_EMBEDDINGS, dimension=64))
    answer = _child(_STARVED, str(scratch / "healthy"))
    console.print(Text(f"  Chroma, with {answer.get('free')} left: {answer['error']}", "red"), soft_wrap=True)
    status = answer.get("status")
    console.print(Text(f"  Deltaguard: {status}: {answer.get('reason')}", "magenta"), soft_wrap=True)
    claims.check("Chroma cannot open the healthy delta: code 14, as in the incident", "code: 14" in answer["error"])
    claims.check("Deltaguard says that it could not check, which touches nothing", status == Status.UNDETERMINED)
    claims.check("with descriptors to spare the same delta is healthy", answer.get("afterwards") == Status.HEALTHY)


def _look_at(console: Console, location: DeltaLocation, scratch: Path, claims: Claims, *, test_fix: bool) -> int:
    """A delta of the user's: what the old code makes of a copy, and the verdict on it. Returns the exit status."""
    settings = Settings.from_environment()
    store = current_store()
    folder = _downloaded(store, location, scratch / "delta", settings)
    _title(console, f"1. {location.uri}, copied to this machine")
    _title(console, "2. What the old code does: open, list, count, get")
    opened = shutil.copytree(folder, scratch / "opened")  # opening writes
    old = _child(_OLD_OPEN, str(opened))
    console.print(Text(f"  {' > '.join(old['steps'])}: {old['error'] or 'no error'}", "red" if old["error"] else ""))
    _title(console, "3. What happens now")
    verdict = judge_folder(folder, Depth.OPEN, settings).verdict
    _show(console, verdict)
    if test_fix:
        _title(console, "4. The real function: process_chunk_deltas, with the copy in a bucket on this machine")
        with running_stack(
            _BUCKET, CHROMADB_BUCKET=_BUCKET, DELTAGUARD_SETTLE_SECONDS="0", DELTAGUARD_ARRIVAL_SECONDS="0"
        ) as stack:
            stack.s3.create_bucket(Bucket=_BUCKET)
            key = f"delta/{location.delta_id}"
            _upload_the_old_way(stack, folder, key)
            try:
                console.print(f"  {json.dumps(_process([key]))}", soft_wrap=True)
                held = verdict.status is Status.HEALTHY
            except ChunkRejected as error:
                console.print(Text(f"  {error}", "red"), soft_wrap=True)
                held = verdict.status is not Status.HEALTHY
            claims.check("it does what the verdict says", held)
    return 1 if claims.failed else _EXIT[verdict.status]


def _downloaded(store: Store, location: DeltaLocation, folder: Path, settings: Settings) -> Path:
    """A copy of Chroma's files of a delta, which is only read.

    Raises:
        TargetError: Nothing lies there.
        CouldNotCheck: It cannot be read, or is too large.
    """
    listing = store.list_delta(location)
    if not listing.files:
        raise TargetError(f"{location.uri}: nothing lies there")
    check_size(listing, settings.max_delta_bytes)
    folder.mkdir()
    for file in listing.files:
        if is_chroma_file(file.name):  # other names are never written, so none can leave the folder
            target = folder / file.name
            target.parent.mkdir(exist_ok=True)
            store.download(location, file, target)
    return folder


def _process(keys: Sequence[str]) -> dict[str, Any]:
    """The real function; its logs are for CloudWatch."""
    with redirect_stdout(io.StringIO()):
        return process_chunk_deltas("batch", 40, [{"delta_key": key} for key in keys], {})


def _upload_the_old_way(stack: LocalStack, folder: Path, key: str) -> None:
    """File by file, no manifest, no look at what arrived."""
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            stack.s3.upload_file(str(path), _BUCKET, f"{key}/{path.relative_to(folder).as_posix()}")


def _child(program: str, *arguments: str) -> dict[str, Any]:
    """What a program in a process of its own prints last."""
    command = [sys.executable, "-c", program, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=_SECONDS, check=False)  # noqa: S603 - ours
    if done.returncode:
        return {
            "error": f"the process ended with {done.returncode}: {done.stderr.strip()[-200:]}",
            "merged": 0,
            "steps": [],
        }
    answer: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return answer


def _at(key: str) -> DeltaLocation:
    return DeltaLocation(_BUCKET, f"{key}/")


def _show(console: Console, verdict: Verdict) -> None:
    console.print(Text(f"  {verdict.status}: {verdict.delta} ({verdict.duration_ms:.0f} ms)", "bold"), soft_wrap=True)
    for finding in verdict.findings[:5]:
        console.print(Text(f"    {finding.code}: {finding.detail}", "dim"), soft_wrap=True)


def _title(console: Console, text: str) -> None:
    console.print()
    console.print(text, style="bold")
