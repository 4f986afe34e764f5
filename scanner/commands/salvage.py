"""The command `deltaguard salvage`: a healthy delta out of a corrupt one, in a new place, or why there is none."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Literal

import click

from scanner.find.targets import delta_named, require_objects
from shared.aws.telemetry import use_stderr
from shared.model.delta import DeltaLocation, printable
from shared.model.errors import CouldNotCheck, TargetError, UploadFailed
from shared.model.settings import Settings
from shared.salvage.salvage import Salvage, salvage_folder, salvage_stored
from shared.storage.scratch import scratch_folder
from shared.storage.store import current_store
from shared.upload import upload_delta

_LOST_SHOWN = 20
_EXIT_STATUS = """\b
Exit status:
  0    a whole delta was written and proven; or TARGET is healthy and nothing was written
  1    something is lost: nothing was written, or with --partial the rest
  2    the command line, a target or a setting is wrong; nothing was written
  3    it could not be done for a reason outside the delta; nothing was written
"""


@click.command(epilog=_EXIT_STATUS)
@click.argument("target", metavar="TARGET")
@click.argument("out", metavar="OUT")
@click.option("--partial", is_flag=True, help="Write what is proven even when something is lost, and list what is.")
@click.option(
    "--format",
    "form",
    type=click.Choice(["text", "json"]),
    default="text",
    show_default=True,
    help="A report for people, or one JSON object with every lost id.",
)
@click.pass_context
def salvage(ctx: click.Context, target: str, out: str, partial: bool, form: Literal["text", "json"]) -> None:
    """Build a healthy delta anew from what a corrupt one still proves.

    TARGET and OUT are s3://bucket/prefix or a folder. TARGET is only read; OUT is made, and may not exist. Nothing is
    guessed: what the bytes of TARGET do not prove is lost, and then nothing is written unless --partial says so.
    """
    use_stderr()
    settings = Settings.from_environment()
    source, place = delta_named(target), _new_place(out)
    if isinstance(source, DeltaLocation):
        require_objects(current_store(), source)
    if isinstance(place, DeltaLocation):
        with scratch_folder() as scratch:
            done = _salvaged(source, scratch / "delta", settings, partial=partial)
            if done.written:
                _upload(scratch / "delta", place, done.batch_id, settings)
    else:
        done = _salvaged(source, place, settings, partial=partial)
    click.echo(json.dumps(done.as_json()) if form == "json" else _told(done, out))
    ctx.exit(0 if done.outcome in ("whole", "healthy") else 1)


def _new_place(out: str) -> DeltaLocation | Path:
    """Where the new delta goes.

    Raises:
        TargetError: Something is there already.
    """
    if not out.lower().startswith("s3://"):
        folder = Path(out)
        if folder.exists() or folder.is_symlink():
            raise TargetError(f"{out} exists already; a salvaged delta is written to a new place")
        return folder
    location = DeltaLocation.parse(out)
    if next(current_store().walk(location.bucket, location.prefix), None) is not None:
        raise TargetError(f"{location.uri} exists already; a salvaged delta is written to a new place")
    return location


def _salvaged(source: DeltaLocation | Path, target: Path, settings: Settings, *, partial: bool) -> Salvage:
    if isinstance(source, Path):
        return salvage_folder(source, target, settings, partial=partial)
    return salvage_stored(current_store(), source, target, settings, partial=partial)


def _upload(folder: Path, place: DeltaLocation, batch_id: str | None, settings: Settings) -> None:
    try:
        upload_delta(folder, place.bucket, place.prefix, batch_id=batch_id, settings=settings)
    except UploadFailed as error:
        raise CouldNotCheck("check.storage", str(error)) from error


def _told(done: Salvage, out: str) -> str:
    headline = {
        "healthy": f"{done.delta} is healthy: {done.reason}",
        "refused": f"{done.delta} was not salvaged, nothing was written: {done.reason}",
        "partial": f"{done.delta} was salvaged in part, to {out}",
        "whole": f"{done.delta} was salvaged whole, to {out}",
    }[done.outcome]
    lines = [printable(headline, 2000)]
    if done.outcome != "healthy":
        lines.append(printable(f"  found: {done.verdict}", 1000))
    for part in done.collections:
        lines.append(
            f"  {printable(part.name)}: {part.count} embeddings proven; vectors: {part.from_queue} from the queue, "
            f"{part.from_index} from the index; documents and metadata from the {part.rows_from}"
        )
        lines += [f"    {remark}" for remark in part.remarks]
        if part.why:
            lines.append(printable(f"    lost: {len(part.lost)} embeddings, {part.why}", 1000))
            lines += [f"      {printable(id_)}" for id_ in part.lost[:_LOST_SHOWN]]
        if len(part.lost) > _LOST_SHOWN:
            lines.append(f"      and {len(part.lost) - _LOST_SHOWN} more: --format json has them all")
    if done.written:
        lines.append(f"  written by chromadb {done.chromadb}; healthy at depth open, and holds exactly what was read")
    return "\n".join(lines)
