"""The program `deltaguard`: its commands, their options and their help."""

from __future__ import annotations

import signal
import sqlite3
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

import click

from scanner.program import LaterCommand, Program
from scanner.scan import MAX_JOBS
from shared.verdict import RULES, Depth

_EXIT_STATUS = """\b
Exit status:
  0    every delta is healthy
  1    a delta is corrupt or incomplete
  2    the command line, a target or a setting is wrong; nothing was checked
  3    none is corrupt or incomplete, but not everything could be checked
  130  interrupted (Ctrl-C); the summary tells what was checked until then
"""

_LATER = {
    "upload": (
        "scanner.upload:upload",
        "Upload a closed Chroma directory as a delta, whole or not at all.",
        "deltaguard",
    ),
    "demo": (
        "local.demo:demo",
        "Watch broken deltas being caught, quarantined and refused, on this machine.",
        "deltaguard[demo]",
    ),
    "reproduce": (
        "local.incident:reproduce",
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

    A delta is one Chroma directory, in S3 or on disk. Nothing that is checked is ever changed.
    """


for _name, (_target, _help, _extra) in _LATER.items():
    cli.add_command(LaterCommand(_name, _target, _help, _extra))


def _judging_options(command: Callable[..., None]) -> Callable[..., None]:
    """The argument and the options that `check` and `scan` share."""
    for decorate in (
        click.option(
            "--jobs",
            type=click.IntRange(1, MAX_JOBS),
            help="Deltas judged at once.  [default: 4 per CPU; 1 per CPU with --depth open]",
        ),
        click.option(
            "--output", type=click.Path(path_type=Path), metavar="FILE", help="Write the results there, not to stdout."
        ),
        click.option(
            "--format",
            type=click.Choice(["table", "ndjson", "json"]),
            default="table",
            show_default=True,
            help="A table for people, at the end; or JSON as deltas complete, which suits any number of them.",
        ),
        click.option(
            "--depth",
            type=click.Choice([depth.value for depth in Depth]),
            default=Depth.STRUCTURE.value,
            show_default=True,
            callback=lambda _ctx, _parameter, value: Depth(value),
            help="How far to go: names and sizes; also file headers; also every byte; also Chroma itself.",
        ),
        click.argument("targets", nargs=-1, required=True, metavar="TARGET..."),
    ):
        command = decorate(command)
    return command


@cli.command(epilog=_EXIT_STATUS)
@_judging_options
@click.pass_context
def check(ctx: click.Context, /, targets: tuple[str, ...], **options: Any) -> None:
    """Judge exactly the given deltas.

    A TARGET is s3://bucket/prefix or a local folder, and is one delta. To find the deltas below a prefix, use `scan`.
    """
    from scanner import session  # noqa: PLC0415 - half a second that neither help nor usage errors should wait for

    ctx.exit(session.check(targets, session.Options(**options)))


@cli.command(epilog=_EXIT_STATUS)
@_judging_options
@click.pass_context
def scan(ctx: click.Context, /, targets: tuple[str, ...], **options: Any) -> None:
    """Find the deltas at and below the given places, and judge them.

    A TARGET is s3://bucket, s3://bucket/prefix or a local folder. Quarantined deltas are left out, unless TARGET lies
    in the quarantine itself. No delta found is no error.
    """
    from scanner import session  # noqa: PLC0415 - as in `check`

    ctx.exit(session.scan(targets, session.Options(**options)))


def main() -> None:
    """The program; it ends the process with one of the exit codes of the help."""
    try:
        cli(prog_name="deltaguard")
    finally:
        # Checks that still run after Ctrl-C clean up behind themselves first; a second Ctrl-C ends them at once.
        signal.signal(signal.SIGINT, signal.SIG_DFL)
