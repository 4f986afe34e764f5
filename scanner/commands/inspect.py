"""`deltaguard inspect`: looks closely at one delta and draws it."""

from __future__ import annotations

from io import StringIO
from pathlib import Path

import click
from rich.console import Console

from scanner.find.targets import delta_named, require_objects
from scanner.picture.anatomy import take_apart
from scanner.picture.text import drawing
from scanner.report.output import Output
from scanner.run.workers import Tally
from shared.model.delta import DeltaLocation
from shared.model.settings import Settings
from shared.model.verdict import Depth
from shared.storage.scratch import sweep_scratch

_EXIT_STATUS = """\b
Exit status:
  0    the delta is healthy
  1    it is corrupt or incomplete
  2    the command line, the target or a setting is wrong; nothing was drawn
  3    it could not be checked, or not all of it could be read
"""


@click.command(epilog=_EXIT_STATUS)
@click.argument("target")
@click.option("--svg", type=click.Path(path_type=Path), metavar="FILE", help="Also draw it there, as an SVG image.")
@click.option(
    "--depth",
    type=click.Choice([depth.value for depth in Depth]),
    default=Depth.STRUCTURE.value,
    show_default=True,
    help="How far the verdict goes; the drawing is the same.",
)
@click.option("--output", type=click.Path(path_type=Path), metavar="FILE", help="Write the text there, not to stdout.")
@click.pass_context
def inspect(ctx: click.Context, /, target: str, svg: Path | None, depth: str, output: Path | None) -> None:
    """Draw one delta: the pages of its database, its collections and indexes, and where the damage sits.

    TARGET is s3://bucket/prefix or a local folder. It may be broken in any way; that is what this is for.
    """
    settings = Settings.from_environment()
    delta = delta_named(target)
    store = None
    if isinstance(delta, DeltaLocation):
        from shared.storage.store import current_store  # noqa: PLC0415 - boto3 takes 0.2 s, and a local folder needs none

        store = current_store()
        require_objects(store, delta)
    sweep_scratch()
    with Output(output) as text:
        image = None if svg is None else Output(svg)
        anatomy = take_apart(delta, Depth(depth), settings, store)
        page = StringIO()
        terminal = text.stream.isatty()
        console = Console(file=page, force_terminal=terminal, highlight=False, markup=False, emoji=False)
        console.print(drawing(anatomy))
        text.write("".join(line.rstrip() + "\n" for line in page.getvalue().splitlines()))
        if image is not None:
            from scanner.picture.svg import plate  # noqa: PLC0415 - for those who want one

            with image:
                image.write(plate(anatomy))
    tally = Tally()
    tally.add(anatomy.verdict)
    ctx.exit(tally.exit_code())
