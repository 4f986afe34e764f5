"""`deltaguard check`: checks exactly the deltas that are named."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

from scanner.commands.options import Options, prepare_quarantine, require_movable
from scanner.find.targets import delta_named, require_objects
from scanner.find.tasks import Task
from scanner.report.output import Output
from scanner.run.engine import Run
from shared.model.delta import DeltaLocation


def check(targets: Sequence[str], options: Options) -> int:
    """Judges exactly these targets.

    Returns:
        The exit code of `scanner.run.workers.Tally`.

    Raises:
        SettingsError: A setting has an impossible value, or deltas are to be moved without chromadb.
        TargetError: A target or the output cannot be; nothing was checked.
        CouldNotCheck: No S3 client can be made, or the results cannot be written.
    """
    prepare_quarantine(options)
    judge = options.judge()
    deltas = list(dict.fromkeys(delta_named(target) for target in targets))
    require_movable(deltas, options)
    stored = [delta for delta in deltas if isinstance(delta, DeltaLocation)]
    if stored:
        store = judge.store
        with ThreadPoolExecutor(options.threads) as pool:
            list(pool.map(lambda location: require_objects(store, location), stored))
    # Whoever names each delta has looked at it: no share of them is too great.
    options = replace(options, yes=True)
    with Output(options.output) as output:
        run = Run(options.handling(judge), output, len(deltas))
        return run.of(Task(delta, None) for delta in deltas).exit_code()
