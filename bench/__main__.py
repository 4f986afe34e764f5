"""`python -m bench`: every cost as a ratio to a named alternative, measured in the same run.

What is compared is measured in turns, and the medians are shown. The deltas are made once and kept (see
`bench.cost.stock`). Run it on a machine that does nothing else: on a busy one a ratio near its target falls to either
side.
Exit status: 0 every target is met, 1 one is missed, 2 wrong command line, 130 interrupted.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import signal
import sqlite3
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

from bench.cost import coldstart, gating, imports, load, memory, merging, probing, scanning, structure
from bench.cost.figures import Figure, missed, table
from bench.cost.targets import unmeasured
from shared.storage.scratch import sweep_scratch

SUITES: Mapping[str, Callable[[], list[Figure]]] = {
    "structure-500": structure.small,
    "structure-5000": structure.large,
    "probe": probing.figures,
    "scan-moto": scanning.moto_figures,
    "scan-rclone": scanning.rclone_figures,
    "gate": gating.figures,
    "memory": memory.figures,
    "import": imports.figures,
    "cold": coldstart.figures,
    "load": load.figures,
    "merge": merging.whole,
    "refusal": merging.refusal,
    "merge-memory": merging.memory,
}
"""By name, in the order in which they run. A suite's figures are named `<suite>/<figure>`."""

_INTERRUPTED = 130


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the suites that are asked for and prints their figures. Returns the exit status."""
    parser = _parser()
    options = parser.parse_args(arguments)
    if options.json is not None:
        try:
            options.json.open("a").close()  # now, rather than after minutes of measuring
        except OSError as error:
            parser.error(f"--json {options.json}: {error.strerror}")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    sweep_scratch()
    started, machine = time.monotonic(), _machine()
    figures: list[Figure] = []
    try:
        for name in [name for name in SUITES if name in (options.only or SUITES)]:
            sys.stderr.write(f"{name} ...\n")
            figures += _run(name)
    except KeyboardInterrupt:
        sys.stderr.write("interrupted\n")
        return _INTERRUPTED
    seconds = time.monotonic() - started
    if options.json is not None:
        whole = {"machine": machine, "seconds": round(seconds, 1), "figures": [f.as_json() for f in figures]}
        options.json.write_text(json.dumps(whole, indent=2) + "\n")
    circumstances = f"{seconds:.0f} s, {machine['processors']} processors, load {machine['load']} at the start"
    sys.stdout.write(f"{table(figures)}\n\n{_conclusion(figures)}; {circumstances}\n")
    return 1 if missed(figures) else 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m bench", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--only", nargs="+", choices=SUITES, metavar="NAME", help=f"only these: {', '.join(SUITES)}")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the figures and the machine to FILE")
    return parser


def _run(name: str) -> list[Figure]:
    figures = SUITES[name]()
    forgotten = unmeasured(name, figures)
    if forgotten:
        raise RuntimeError(f"suite {name} measures nothing for {', '.join(sorted(forgotten))}")
    return figures


def _conclusion(figures: Sequence[Figure]) -> str:
    held = sum(figure.met is not None for figure in figures)
    return f"{held - len(missed(figures))} of {held} targets met"


def _machine() -> dict[str, Any]:
    """What the costs, and less so the ratios, depend on."""
    return {
        "processors": len(os.sched_getaffinity(0)),
        "load": round(os.getloadavg()[0], 1),
        "system": platform.platform(),
        "python": platform.python_version(),
        "sqlite": sqlite3.sqlite_version,
        "chromadb": metadata.version("chromadb"),
        "numpy": metadata.version("numpy"),
    }


if __name__ == "__main__":
    sys.exit(main())
