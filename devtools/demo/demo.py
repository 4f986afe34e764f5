"""`deltaguard demo`: the chunk-40 incident on this machine, from the uploads to the chunk that passes.

It tells what happens in plain words, checks each of its own claims, and ends with 0 only if all of them held.
"""

from __future__ import annotations

import io
import json
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.panel import Panel
from rich.syntax import Syntax
from rich.text import Text

from devtools.damage.catalogue import apply_damage
from devtools.damage.deltas import DeltaRecipe, build_delta, copy_across_commit
from devtools.demo.claims import Claims as _Claims
from devtools.stack.stack import LocalStack, running_stack
from scanner.gate import ChunkRejected, precheck
from shared.model.delta import DATABASE, DeltaLocation
from shared.model.settings import Settings
from shared.quarantine.record import RECORD, QuarantineRecord, latest_record
from shared.storage.store import Store, current_store
from shared.upload import upload_delta
from validator.handler import handler

_BUCKET = "deltas"
_PREFIX = "words/delta"
_CHUNK = 10
_TORN = 9  # the tenth delta, as in the incident
_SILENT = 3
_LOST = 7
_SETTLE_SECONDS = 2
_DEADLINE_SECONDS = 120.0
_OLD_CHECK = """
import chromadb, sys
client = chromadb.PersistentClient(sys.argv[1])
print(sum(collection.count() for collection in client.list_collections()))
"""
_STYLES = {"healthy": "green", "corrupt": "bold red", "incomplete": "yellow", "undetermined": "magenta"}


@click.command()
def demo() -> None:
    """Watch broken deltas being caught, quarantined and kept out of a chunk; needs nothing but this machine.

    \b
    Exit status: 0 if everything the demo claims was checked by it and held, 1 otherwise.
    """
    console = Console(highlight=False)
    claims = _Claims(console)
    started = time.perf_counter()
    settings = {"DELTAGUARD_SETTLE_SECONDS": str(_SETTLE_SECONDS), "DELTAGUARD_ARRIVAL_SECONDS": "0"}
    with tempfile.TemporaryDirectory(prefix="deltaguard-demo-") as scratch, running_stack(_BUCKET, **settings) as stack:
        _tell(console, stack, Path(scratch), claims)
    console.print()
    if claims.failed:
        console.print(f"{claims.failed} of the claims above did not hold.", style="bold red")
        sys.exit(1)
    console.print(f"Every claim above was checked. {time.perf_counter() - started:.0f} seconds, nothing left behind.")


def _tell(console: Console, stack: LocalStack, scratch: Path, claims: _Claims) -> None:
    _title(console, "1. A bucket, a queue for its events, and ten deltas")
    stack.create(prefix=f"{_PREFIX}/", visibility_seconds=_SETTLE_SECONDS)
    console.print(
        f"S3 and SQS run in a moto server at {stack.endpoint}. A pipeline embeds text in ten batches;\n"
        "each becomes a delta, a small Chroma directory. Eight producers use Deltaguard's upload: close the\n"
        "client, upload every file with its checksum, the manifest last, validate what arrived.",
        soft_wrap=True,
    )
    store = current_store()
    keys = [f"{_PREFIX}/{number:02d}-{name}" for number, name in enumerate(_names(), 1)]
    folders = _upload_chunk(console, stack, scratch, keys)

    _title(console, "2. Two producers do it the old way")
    console.print(
        "The tenth uploads the directory while Chroma is still writing to it, as in the chunk-40 incident.\n"
        f"The fourth lost {_LOST} vectors before its upload. The check that people write first, open it with\n"
        "Chroma and count, says of these two:",
        soft_wrap=True,
    )
    _ask_old_check(console, folders, claims)

    _title(console, "3. The events reach the validator")
    verdicts = _deliver(console, stack)
    bad = {keys[_TORN], keys[_SILENT]}
    claims.check(
        "the two broken deltas are corrupt, the other eight healthy", _statuses(verdicts) == _expected(keys, bad)
    )
    claims.check("the queue is empty, and so is the dead-letter queue", stack.waiting() == (0, 0))
    tagged = all(_tag(stack, key) == "healthy" for key in keys if key not in bad)
    claims.check("each healthy delta carries its verdict as a tag", tagged)

    _title(console, "4. Quarantine")
    for key in sorted(bad):
        _show_quarantine(console, stack, store, key, folders[key], claims)

    _title(console, "5. The gate in front of compaction")
    _show_gate(console, keys, bad, claims)


def _names() -> list[str]:
    return [f"batch-{letter}" for letter in "abcdefghij"]


def _title(console: Console, text: str) -> None:
    console.print()
    console.print(text, style="bold cyan")


def _upload_chunk(console: Console, stack: LocalStack, scratch: Path, keys: list[str]) -> dict[str, Path]:
    """Builds the ten deltas with Chroma and uploads them; returns the folder behind each key."""
    folders = {}
    for number, key in enumerate(keys):
        folder = folders[key] = scratch / f"delta-{number}"
        if number == _TORN:
            copy_across_commit(folder)
            _upload_the_old_way(stack, folder, key)
            continue
        # The third is large enough to have been flushed into an index, the others wait in Chroma's queue.
        flushed = {"embeddings": 120, "sync_threshold": 50} if number == 2 else {"embeddings": 30 + number}
        content = build_delta(folder, DeltaRecipe(dimension=64, seed=number, **flushed))  # type: ignore[arg-type]
        if number == _SILENT:
            for seed in range(_LOST):
                apply_damage("queue-row-deleted", folder, seed)
            _upload_the_old_way(stack, folder, key)
            continue
        with redirect_stdout(io.StringIO()):
            upload_delta(folder, _BUCKET, key, batch_id=key.rpartition("/")[2])
        console.print(f"  uploaded {key}: {content.count} embeddings, with a manifest")
    return folders


def _upload_the_old_way(stack: LocalStack, folder: Path, key: str) -> None:
    """File by file, no manifest, no look at what arrived."""
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            stack.s3.upload_file(str(path), _BUCKET, f"{key}/{path.relative_to(folder).as_posix()}")


def _ask_old_check(console: Console, folders: dict[str, Path], claims: _Claims) -> None:
    answers = {}
    for number in (_TORN, _SILENT):
        key, folder = list(folders.items())[number]
        copy = Path(shutil.copytree(folder, folder.with_name(f"{folder.name}-opened")))  # opening writes
        command = [sys.executable, "-c", _OLD_CHECK, str(copy)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)  # noqa: S603 - our own
        answers[number] = done.returncode, done.stdout.strip()
        said = f"{done.stdout.strip()} embeddings, all is well" if done.returncode == 0 else _last_line(done.stderr)
        console.print(Text(f"  {key}: {said}"), soft_wrap=True)
    stored = 30 + _SILENT
    claims.check("the torn one cannot be counted: nine merges would be thrown away for it", answers[_TORN][0] != 0)
    claims.check(
        f"the silent one opens and counts all {stored}, so it would be merged, with vectors missing",
        answers[_SILENT] == (0, str(stored)),
    )


def _last_line(text: str) -> str:
    return text.strip().rpartition("\n")[2]


def _deliver(console: Console, stack: LocalStack) -> dict[str, dict[str, Any]]:
    """Delivers events until none is left, printing each verdict as it comes. Returns the last verdict of each key."""
    verdicts: dict[str, dict[str, Any]] = {}
    deadline = time.monotonic() + _DEADLINE_SECONDS
    while stack.waiting()[0] and time.monotonic() < deadline:
        with _log_lines() as lines:
            delivery = stack.deliver(handler)
        for line in lines:
            if "status" in line and "depth" in line:
                key = DeltaLocation.parse(line["delta"]).prefix.rstrip("/")
                verdicts[key] = line
                _show_verdict(console, key, line)
        if delivery is None:
            time.sleep(0.1)
    return verdicts


@contextmanager
def _log_lines() -> Iterator[list[dict[str, Any]]]:
    """Collects the JSON lines that the handler writes to standard output, as CloudWatch would."""
    lines: list[dict[str, Any]] = []
    with redirect_stdout(io.StringIO()) as output:
        yield lines
    lines += map(json.loads, output.getvalue().splitlines())


def _show_verdict(console: Console, key: str, line: dict[str, Any]) -> None:
    status = line["status"]
    text = Text("  ") + Text(f"{status:<12}", _STYLES[status]) + Text(f" {key}  ({line['duration_ms']:.0f} ms)")
    console.print(text, soft_wrap=True)
    for finding in line["findings"][:3]:
        console.print(Text(f"               {finding['code']}: {finding['detail']}", "dim"), soft_wrap=True)


def _statuses(verdicts: dict[str, dict[str, Any]]) -> dict[str, str]:
    return {key: line["status"] for key, line in verdicts.items()}


def _expected(keys: list[str], bad: set[str]) -> dict[str, str]:
    return {key: "corrupt" if key in bad else "healthy" for key in keys}


def _tag(stack: LocalStack, key: str) -> str | None:
    tags = stack.s3.get_object_tagging(Bucket=_BUCKET, Key=f"{key}/{DATABASE}")["TagSet"]
    return next((tag["Value"] for tag in tags if tag["Key"] == "deltaguard:status"), None)


def _show_quarantine(
    console: Console, stack: LocalStack, store: Store, key: str, folder: Path, claims: _Claims
) -> None:
    location = DeltaLocation(_BUCKET, f"{key}/")
    held = latest_record(store, location, Settings.from_environment())
    if held is None:
        claims.check(f"{key} is in quarantine", held=False)
        return
    place, record = held
    if record.prefix.endswith("04-batch-d/"):
        console.print(f"Beside the files of {key}, {RECORD} says why and how to put them back:", soft_wrap=True)
        console.print(Panel(Syntax(_shortened(record), "json", background_color="default", word_wrap=True)))
    originals = {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    copies = {
        file.name: stack.s3.get_object(Bucket=place.bucket, Key=place.key(file.name))["Body"].read()
        for file in record.files
    }
    claims.check(f"every file of {key} lies in quarantine, byte for byte", originals == copies)
    claims.check("nothing of it is left in its place", not store.list_delta(location).files)


def _shortened(record: QuarantineRecord) -> str:
    shown = json.loads(record.model_dump_json())
    shown["fingerprint"] = shown["fingerprint"][:16] + "..."
    shown["verdict"] = {name: shown["verdict"][name] for name in ("status", "depth", "findings")}
    shown["files"][1:] = [f"... and {len(shown['files']) - 1} more"]
    return json.dumps(shown, indent=1, ensure_ascii=False)


def _show_gate(console: Console, keys: list[str], bad: set[str], claims: _Claims) -> None:
    console.print("Compaction asks the gate before it merges anything. The whole chunk of ten:")
    refused: set[str] = set()
    with redirect_stdout(io.StringIO()):
        try:
            precheck(_BUCKET, keys)
        except ChunkRejected as error:
            refused = {DeltaLocation.parse(verdict.delta).prefix.rstrip("/") for verdict in error.rejected}
            message = str(error)
    if refused:
        console.print(Text(message, "red"), soft_wrap=True)
    claims.check("the gate refuses the chunk and names both, not only the first", refused == bad)
    rest = [key for key in keys if key not in bad]
    console.print("The same chunk without the two:")
    with redirect_stdout(io.StringIO()):
        passed = precheck(_BUCKET, rest)
    milliseconds = sum(verdict.duration_ms for verdict in passed)
    claims.check(
        f"the other {len(passed)} pass, by their tags, {milliseconds:.0f} ms of work", len(passed) == len(rest)
    )
