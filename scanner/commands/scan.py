"""`deltaguard scan`: finds the deltas below its targets and checks them."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from datetime import UTC, datetime

import click

from scanner.commands.options import Options, prepare_quarantine, require_movable, required_roots
from scanner.find.targets import StoredRoot
from scanner.find.tasks import Root, Supply
from scanner.report.output import Output
from scanner.run.checkpoint import Checkpoint
from scanner.run.engine import Run
from scanner.run.throttle import Throttle
from shared.model.verdict import RULES, Depth


def scan(targets: Sequence[str], options: Options) -> int:
    """Finds the deltas at and below these targets and judges them.

    Returns:
        The exit code of `scanner.run.workers.Tally`.

    Raises:
        SettingsError: A setting has an impossible value, or deltas are to be moved without chromadb.
        TargetError: A target, the checkpoint or the output cannot be; nothing was checked.
        CouldNotCheck: A bucket cannot be listed, no S3 client can be made, or the results cannot be written.
    """
    prepare_quarantine(options)
    judge = options.judge()
    roots = required_roots(targets, judge)
    require_movable(roots, options)
    with ExitStack() as stack:
        checkpoint, now = None, datetime.now(UTC)
        if options.resume is not None:
            began = now.isoformat(timespec="seconds")
            checkpoint = stack.enter_context(Checkpoint(options.resume, _identity(roots, options), began))
            now = datetime.fromisoformat(checkpoint.started)
        output = stack.enter_context(Output(options.output))
        run = Run(options.handling(judge, checkpoint), output, None)

        def supply(throttle: Throttle, failed: Callable[[str], None]) -> Supply:
            return Supply(roots, lambda: judge.store, judge.settings, options.wanted(now), throttle, checkpoint, failed)

        def count(ended: threading.Event) -> int | None:
            number = 0
            for _ in supply(run.throttle, lambda _: None).tasks():
                number += 1
                if ended.is_set():
                    return None
            return number

        # At depth `listing` a count of its own would take as long as the scan.
        tasks = supply(run.throttle, run.listing_failed).tasks()
        tally = run.of(tasks, None if options.depth is Depth.LISTING else count)
    code = tally.exit_code()
    if not tally.total and not code:
        narrowed = options.subset is not None or options.newer_than is not None
        click.echo("no deltas found" + " that are wanted" * narrowed, err=True)
    return code


def _identity(roots: Sequence[Root], options: Options) -> dict[str, object]:
    """What makes two scans the same one, so that the second can go on where the first stopped."""
    return {
        # A folder as it is written, too: that is how its deltas are named.
        "targets": [
            f"s3://{root.bucket}/{root.prefix}" if isinstance(root, StoredRoot) else [str(root), str(root.absolute())]
            for root in roots
        ],
        "depth": options.depth.value,
        "subset": options.subset,
        "newer-than": options.newer_than,
        "quarantine": options.quarantine,
        "dry-run": options.dry_run,
        "rules": RULES,
    }
