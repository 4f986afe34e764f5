"""`deltaguard gate`: reads a chunk, asks the gate whether it may be merged, and tells its answer."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import click

from scanner.advice import advice_on
from scanner.gate import JOBS, judge_chunk
from scanner.report.output import REPORTS, Output
from scanner.run.workers import MAX_JOBS, Tally
from shared.aws.telemetry import use_stderr
from shared.model.chunk import MAX_CHUNK_BYTES, Chunk, chunk_in
from shared.model.delta import parse_s3_uri, printable
from shared.model.errors import ObjectGone, TargetError
from shared.model.settings import Settings
from shared.model.verdict import Depth, Status, Verdict
from shared.storage.store import Store, current_store

_EXIT_STATUS = """\b
Exit status:
  0    the chunk may be merged: every delta is healthy
  1    refused: a delta is corrupt or incomplete
  2    the command line, the chunk or a setting is wrong; nothing was checked
  3    refused: no delta is corrupt or incomplete, but not every one could be confirmed
"""
_LONGEST = 8192


@click.command(epilog=_EXIT_STATUS)
@click.argument("chunk", metavar="CHUNK.json")
@click.option("--index", type=int, metavar="N", help="The chunk of this number, of a chunks file.")
@click.option(
    "--bucket",
    envvar="CHROMADB_BUCKET",
    help="Where the deltas lie.  [default: CHROMADB_BUCKET, else the bucket of CHUNK.json]",
)
@click.option(
    "--depth",
    type=click.Choice([depth.value for depth in Depth]),
    default=Depth.STRUCTURE.value,
    show_default=True,
    help="How far to go where no tag answers.",
)
@click.option(
    "--jobs", type=click.IntRange(1, MAX_JOBS), default=JOBS, show_default=True, help="Deltas judged at once."
)
@click.option(
    "--format",
    "format_",
    type=click.Choice(["table", "ndjson", "json"]),
    default="table",
    show_default=True,
    help="For people, or for programs.",
)
@click.option(
    "--output", type=click.Path(path_type=Path), metavar="FILE", help="Write the answer there, not to stdout."
)
@click.pass_context
def gate(
    ctx: click.Context,
    /,
    chunk: str,
    index: int | None,
    bucket: str | None,
    depth: str,
    jobs: int,
    format_: str,
    output: Path | None,
) -> None:
    """Tell whether a chunk may be merged: all of its deltas are healthy, or each one that is not is named.

    CHUNK.json is a file, s3://bucket/key, or - for stdin. It holds the chunk as the compaction is given it, a list of
    {"delta_key", "delta_id", "embedding_count", "collection"} or an object with such a list as "deltas"; or it is a
    chunks file, a list of chunks, of which --index tells one. Nothing is changed, and nobody is told but you.
    """
    use_stderr()
    settings = Settings.from_environment()
    read, home = _read(chunk)
    wanted = chunk_in(read, index)
    where = bucket or home
    if where is None:
        raise TargetError("where do the deltas lie? Give --bucket, or set CHROMADB_BUCKET")
    wanted.locations(where)  # the bucket's name can be one
    with Output(output) as out:
        tally = Tally()
        verdicts = judge_chunk(where, wanted, depth=Depth(depth), settings=settings, jobs=jobs)
        for verdict in verdicts:
            tally.add(verdict)
        _ANSWERS[format_](out, wanted, verdicts, tally)
    ctx.exit(tally.exit_code())


def _read(target: str) -> tuple[bytes, str | None]:
    """The bytes of a chunk file, and the bucket that they came from, if they did."""
    if target.startswith("s3://"):
        bucket, key = parse_s3_uri(target)
        return _read_stored(current_store(), bucket, key), bucket
    try:
        with click.open_file(target, "rb") as file:
            return file.read(MAX_CHUNK_BYTES + 1), None
    except (OSError, ValueError) as error:
        problem = getattr(error, "strerror", None) or str(error)
        raise TargetError(f"{target}: cannot be read: {problem}") from error


def _read_stored(store: Store, bucket: str, key: str) -> bytes:
    uri = f"s3://{bucket}/{key}"
    if not key or key.endswith("/"):
        raise TargetError(f"{uri}: not a file of chunks; give s3://{bucket}/KEY")
    try:
        return store.read(bucket, key, MAX_CHUNK_BYTES + 1)
    except ObjectGone as error:
        raise TargetError(f"{uri}: nothing lies there") from error


def _table(output: Output, _: Chunk, verdicts: Sequence[Verdict], tally: Tally) -> None:
    report = REPORTS["table"](output)
    for verdict in verdicts:
        report.add(verdict)
    report.finish(tally)
    refused = [verdict for verdict in verdicts if verdict.status is not Status.HEALTHY]
    if not refused:
        output.write(f"\nThe chunk may be merged: {len(verdicts)} of {len(verdicts)} deltas are healthy.\n")
        return
    lines = [
        f"\nThe chunk is refused: {len(refused)} of {len(verdicts)} deltas are not healthy. Before it is merged:\n"
    ]
    for verdict in refused:
        advice = advice_on(verdict)
        lines += [f"  {printable(verdict.delta, _LONGEST)}\n", f"    {advice.text}\n" if advice else ""]
    output.write("".join(lines))


def _ndjson(output: Output, _: Chunk, verdicts: Sequence[Verdict], tally: Tally) -> None:
    lines = [
        *map(_told, verdicts),
        {"summary": {**tally.as_json(), "passes": tally.counts[Status.HEALTHY] == tally.total}},
    ]
    output.write("".join(json.dumps(line) + "\n" for line in lines))


def _json(output: Output, chunk: Chunk, verdicts: Sequence[Verdict], tally: Tally) -> None:
    whole = {
        "passes": tally.counts[Status.HEALTHY] == tally.total,
        "batch_id": chunk.batch_id,
        "chunk_index": chunk.chunk_index,
        "verdicts": [*map(_told, verdicts)],
        "summary": tally.as_json(),
    }
    output.write(json.dumps(whole, indent=1) + "\n")


def _told(verdict: Verdict) -> dict[str, Any]:
    advice = advice_on(verdict)
    return {**verdict.as_json(), "advice": advice and advice.as_json()}


_Answer = Callable[[Output, Chunk, Sequence[Verdict], Tally], None]
_ANSWERS: dict[str, _Answer] = {"table": _table, "ndjson": _ndjson, "json": _json}
