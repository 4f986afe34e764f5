"""The program of the alternatives' child: opens deltas with Chroma, lists and counts.

It is run as `python -m bench.cost.reader PARENT [FOLDER]`. It reads that folder and ends; without one, it stays warm
and reads one folder after the other from standard input. Each answer is a line of JSON: milliseconds, embeddings
counted, peak memory so far in bytes.
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path

from devtools.stack.child import tether


def main() -> None:
    """Reads every folder it is given. Neither closing the client nor what lies between two folders is timed."""
    tether(int(sys.argv[1]))
    import chromadb  # noqa: PLC0415 -- half a second, in which the parent may end
    from chromadb.config import Settings  # noqa: PLC0415

    warm = len(sys.argv) == 2
    for folder in map(str.rstrip, sys.stdin) if warm else sys.argv[2:]:
        started = time.perf_counter()
        client = chromadb.PersistentClient(folder, settings=Settings(anonymized_telemetry=False))
        count = sum(collection.count() for collection in client.list_collections())
        milliseconds = (time.perf_counter() - started) * 1000
        if warm:  # before the answer, so that nothing is at work while something else is measured
            client.close()
        answer = {"milliseconds": milliseconds, "count": count, "peak": _peak_memory()}
        sys.stdout.write(json.dumps(answer) + "\n")
        sys.stdout.flush()
    if not warm:
        os._exit(0)  # as fast as a child can end: closing and Python's own end take another 100 ms


def _peak_memory() -> int:
    # Not `ru_maxrss`: a child starts with that of the process that made it.
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:"))


if __name__ == "__main__":
    main()
