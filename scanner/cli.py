"""The program `deltaguard`: its commands, their options and their help."""

from __future__ import annotations

import signal
import sqlite3
from collections.abc import Callable
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource

from scanner.find.selection import moment, seconds, subset
from scanner.program import LaterCommand, Program
from scanner.run.workers import MAX_JOBS
from shared.model.verdict import RULES, Depth

_EXIT_STATUS = """\b
Exit status:
  0    every delta is healthy
  1    a delta is corrupt or incomplete
  2    the command line, a target or a setting is wrong; nothing was checked
  3    none is corrupt or incomplete, but not everything was or could be checked
  130  interrupted (Ctrl-C); the summary tells what was checked until then
"""

_LATER = {
    "inspect": ("scanner.commands.inspect:inspect", "Draw one delta, and where its damage sits.", "deltaguard"),
    "gate": ("scanner.commands.gate:gate", "Tell whether a chunk may be merged, and what to do if not.", "deltaguard"),
    "quarantine": (
        "scanner.commands.quarantine:quarantine",
        "List, show, restore and purge what lies in quarantine.",
        "deltaguard",
    ),
    "policy": (
        "scanner.commands.policy:policy",
        "Print the access policies of the bucket and of each role.",
        "deltaguard",
    ),
    "upload": (
        "scanner.commands.upload:upload",
        "Upload a closed Chroma directory as a delta, whole or not at all.",
        "deltaguard",
    ),
    "demo": (
        "devtools.demo.demo:demo",
        "Watch broken deltas being caught, quarantined and refused, on this machine.",
        "deltaguard[demo]",
    ),
    "salvage": (
        "scanner.commands.salvage:salvage",
        "Build a healthy delta anew from what a corrupt one still proves.",
        "deltaguard[chroma]",
    ),
    "reproduce": (
        "devtools.demo.incident:reproduce",
        "Have the chunk-40 incident happen on this machine, as it was and as it is now.",
        "deltaguard[demo]",
    ),
}
"""Commands of other modules: `module:attribute`, the line in the help, and what to install for it."""


def _print_version(ctx: click.Context, _: click.Parameter, wanted: bool) -> None:
    if not wanted or ctx.resilient_parsing:
        return
    try:
        version = metadata.version("deltaguard")
    except metadata.PackageNotFoundError:
        version = "(not installed)"
    click.echo(f"deltaguard {version}, rules {RULES}, SQLite {sqlite3.sqlite_version}")
    ctx.exit()


@click.group(cls=Program, epilog=_EXIT_STATUS, context_settings={"help_option_names": ["-h", "--help"]})
@click.option(
    "--version",
    is_flag=True,
    is_eager=True,
    expose_value=False,
    callback=_print_version,
    help="Show the versions that bear on a verdict and exit.",
)
def cli() -> None:
    """Find corrupt Chroma deltas before a compaction does.

    A delta is one Chroma directory, in S3 or on disk. Nothing is ever changed but with --quarantine.
    """


for _name, (_target, _help, _extra) in _LATER.items():
    cli.add_command(LaterCommand(_name, _target, _help, _extra))


_Command = Callable[..., None]

_targets = click.argument("targets", nargs=-1, required=True, metavar="TARGET...")
_depth = click.option(
    "--depth",
    type=click.Choice([depth.value for depth in Depth]),
    default=Depth.STRUCTURE.value,
    show_default=True,
    callback=lambda _ctx, _parameter, value: Depth(value),
    help="How far to go: names and sizes; also file headers; also every byte; also Chroma itself.",
)
_output = click.option(
    "--output", type=click.Path(path_type=Path), metavar="FILE", help="Write the results there, not to stdout."
)
_jobs = click.option(
    "--jobs",
    type=click.IntRange(1, MAX_JOBS),
    help="Deltas judged at once; fewer while S3 asks to slow down.  [default: 4 per CPU; 1 per CPU with --depth open]",
)
_no_cache = click.option(
    "--no-cache", is_flag=True, help="Judge also what carries the tag of an earlier, healthy verdict on the same bytes."
)


def _readable(parse: Callable[[str], object]) -> Callable[[click.Context, click.Parameter, str | None], str | None]:
    """A callback that lets only such text pass as can be parsed."""

    def callback(_ctx: click.Context, _parameter: click.Parameter, text: str | None) -> str | None:
        if text is not None:
            try:
                parse(text)
            except ValueError as error:
                raise click.BadParameter(str(error)) from None
        return text

    return callback


def _together(*options: Callable[[_Command], _Command]) -> Callable[[_Command], _Command]:
    """Several options as one decorator; the help shows them in this order."""

    def decorate(command: _Command) -> _Command:
        for option in reversed(options):
            command = option(command)
        return command

    return decorate


_judging = _together(
    _targets,
    _depth,
    click.option(
        "--format",
        type=click.Choice(["table", "ndjson", "json", "junit", "html"]),
        default="table",
        show_default=True,
        help="A table for people, at the end; JSON as deltas complete, which suits any number of them; JUnit XML for "
        "CI; or a page for the browser.",
    ),
    _output,
    _jobs,
    _no_cache,
    click.option(
        "--quarantine",
        is_flag=True,
        help="Once all are judged, move each corrupt delta in S3 into quarantine, if Chroma, asked as a second "
        "witness, finds it corrupt, too.",
    ),
    click.option("--dry-run", is_flag=True, help="With --quarantine: say what would be moved, and touch nothing."),
)
_choosing = _together(
    click.option(
        "--subset",
        metavar="PART",
        callback=_readable(subset),
        help="Only a part, the same in every run and spread over all prefixes: the second of ten (2/10), a share (5%), "
        "or as many as have some bytes together (2G).",
    ),
    click.option(
        "--newer-than",
        metavar="WHEN",
        callback=_readable(lambda text: moment(text, datetime.now(UTC))),
        help="Only deltas with a file modified since then: 7d, 12h, or a date such as 2026-11-25.",
    ),
)


def _require_sense(options: dict[str, Any]) -> None:
    if options["dry_run"] and not options["quarantine"]:
        raise click.UsageError("--dry-run goes with --quarantine: nothing else would be changed")
    if options.get("yes") and not options["quarantine"]:
        raise click.UsageError("--yes goes with --quarantine: nothing else would be asked")
    resume, output = options.get("resume"), options["output"]
    if resume is not None and output is not None and resume.absolute() == output.absolute():
        raise click.UsageError("--resume and --output name the same file")


def _require_possible_far_away(ctx: click.Context) -> None:
    possible = {"targets", "depth", "format", "output", "remote", "no_cache"}  # far away no tag is believed anyway
    given = [p for p in ctx.command.params if ctx.get_parameter_source(p.name or "") is ParameterSource.COMMANDLINE]
    if refused := [p.opts[0] for p in given if p.name not in possible]:
        raise click.UsageError(f"{', '.join(refused)}: not with --remote, which judges everything and changes nothing")


@cli.command(epilog=_EXIT_STATUS)
@_judging
@click.pass_context
def check(ctx: click.Context, /, targets: tuple[str, ...], **options: Any) -> None:
    """Judge exactly the given deltas.

    A TARGET is s3://bucket/prefix or a local folder, and is one delta. To find the deltas below a prefix, use `scan`.
    """
    _require_sense(options)
    from scanner.commands.check import check as run_check  # noqa: PLC0415 - half a second that neither help nor usage errors should wait for
    from scanner.commands.options import Options  # noqa: PLC0415 - half a second that neither help nor usage errors should wait for

    ctx.exit(run_check(targets, Options(**options)))


@cli.command(epilog=_EXIT_STATUS)
@_judging
@_choosing
@click.option(
    "--max-duration",
    metavar="TIME",
    callback=_readable(seconds),
    help="Begin no check after that time: 90s, 10m, 2h. What is left makes exit status 3.",
)
@click.option(
    "--resume",
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="FILE",
    help="Keep what was done in FILE, and go on where the same scan stopped. The report is that of all its runs.",
)
@click.option(
    "--remote",
    is_flag=True,
    help="Have many functions at once scan: start DELTAGUARD_SCAN_STATE_MACHINE and wait for its report.",
)
@click.option(
    "--yes",
    is_flag=True,
    help="With --quarantine: move the corrupt deltas also where they are more than 5 and more than 20 % of all.",
)
@click.pass_context
def scan(ctx: click.Context, /, targets: tuple[str, ...], **options: Any) -> None:
    """Find the deltas at and below the given places, and judge them.

    A TARGET is s3://bucket, s3://bucket/prefix or a local folder. Quarantined deltas are left out, unless TARGET lies
    in the quarantine itself. No delta found is no error.
    """
    _require_sense(options)
    if options.pop("remote"):
        _require_possible_far_away(ctx)
        from scanner.fleet import remote  # noqa: PLC0415 - as in `check`

        ctx.exit(remote.scan(targets, options["depth"], options["format"], options["output"]))
    from scanner.commands.options import Options  # noqa: PLC0415 - as in `check`
    from scanner.commands.scan import scan as run_scan  # noqa: PLC0415 - as in `check`

    ctx.exit(run_scan(targets, Options(**options)))


@cli.command()
@_targets
@_depth
@click.option(
    "--format", type=click.Choice(["table", "json"]), default="table", show_default=True, help="For people, or JSON."
)
@_output
@_jobs
@_no_cache
@_choosing
@click.pass_context
def estimate(ctx: click.Context, /, targets: tuple[str, ...], **options: Any) -> None:
    """Tell what a scan would take: requests, bytes, dollars, time.

    It lists the TARGETs as `scan` does, once, and reads no object.
    """
    from scanner.commands.estimate import estimate as run_estimate  # noqa: PLC0415 - as in `check`
    from scanner.commands.options import Options  # noqa: PLC0415 - as in `check`

    ctx.exit(run_estimate(targets, Options(**options)))


def main() -> None:
    """The program; it ends the process with one of the exit codes of the help."""
    try:
        cli(prog_name="deltaguard")
    finally:
        # Checks that still run after Ctrl-C clean up behind themselves first; a second Ctrl-C ends them at once.
        signal.signal(signal.SIGINT, signal.SIG_DFL)
