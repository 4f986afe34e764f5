"""`deltaguard estimate`: what a scan would ask of S3, and what that costs."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from datetime import UTC, datetime

from scanner.commands.options import Options, required_roots
from scanner.find.cost import CountedWalk, Estimate
from scanner.find.tasks import Supply
from scanner.report.output import Output
from scanner.run.throttle import Throttle
from shared.model.errors import CouldNotCheck


def estimate(targets: Sequence[str], options: Options) -> int:
    """Tells what a scan of these targets would ask of S3 and cost, from their listing alone. Returns 0.

    Raises:
        SettingsError: A setting has an impossible value.
        TargetError: A target or the output cannot be.
        CouldNotCheck: A place cannot be listed, or the estimate cannot be written.
    """
    judge = options.judge()
    roots = required_roots(targets, judge)
    made = Estimate(options.depth, asks_tags=not options.no_cache)
    now = datetime.now(UTC)

    def fail(reason: str) -> None:
        raise CouldNotCheck("check.storage", reason)

    supply = Supply(
        roots, lambda: CountedWalk(judge.store, made), judge.settings, options.wanted(now), Throttle(1), failed=fail
    )
    for delta in supply.found():
        made.add(delta)
    jobs, cpus = options.threads, os.cpu_count() or 1
    with Output(options.output) as output:
        as_json = options.format == "json"
        output.write(json.dumps(made.as_json(jobs, cpus)) + "\n" if as_json else made.as_text(jobs, cpus))
    return 0
