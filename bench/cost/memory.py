"""Suite `memory`: the peak of a process that judges a delta with a large index, beyond what its imports take.

The file that matters is `data_level0.bin`, which holds every vector. Peaks are the high-water mark of the resident
set (`VmHWM` in /proc/<pid>/status); `ru_maxrss` would start with the peak of the process that made the child.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from statistics import median

from bench import ROOT
from bench.cost.figures import Figure
from bench.cost.rivals import child_answer, copied
from bench.cost.stock import stocked
from bench.cost.targets import held
from bench.cost.timing import Measure, in_turns
from shared.storage.scratch import scratch_folder

_EMBEDDINGS = 20_000
_FEW = 20
_ROUNDS = 3
_SECONDS = 120
_MB = 1_000_000
_JUDGE = """
import json, sys
from pathlib import Path
from devtools.stack.child import tether
from shared.check.judgement import judge_folder
from shared.model.settings import Settings
from shared.model.verdict import Depth
tether(int(sys.argv[1]))
verdict = judge_folder(Path(sys.argv[2]), Depth.STRUCTURE, Settings()).verdict
lines = Path("/proc/self/status").read_text().splitlines()
peak = next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:"))
print(json.dumps({"status": verdict.status, "count": sum(c.count for c in verdict.collections), "peak": peak}))
"""


def figures() -> list[Figure]:
    """What judging 20,000 embeddings adds to the peak, and the whole peak beside that of Chroma."""
    large, tiny = stocked(_EMBEDDINGS), stocked(_FEW)
    largest = max(path.stat().st_size for path in large.rglob("*") if path.is_file()) / _MB
    with scratch_folder() as scratch:
        measures = [_peak(large, _EMBEDDINGS), _peak(tiny, _FEW), _chroma_peak(large, scratch)]
        ours, baseline, chroma = map(median, in_turns(measures, _ROUNDS))
    what = f"structure, {_EMBEDDINGS} embeddings, peak memory"
    return [
        held("memory/growth", f"{what} beyond imports", ours - baseline, "its largest file", largest, "MB"),
        held("memory/total", f"{what} in all", ours, "Chroma opening and counting it", chroma, "MB"),
        held("memory/imports", "of which imports and a tiny delta", baseline, "all of it", ours, "MB"),
    ]


def _peak(folder: Path, embeddings: int) -> Measure:
    command = [sys.executable, "-c", _JUDGE, str(os.getpid()), str(folder)]

    def measure() -> float:
        done = subprocess.run(  # noqa: S603 -- ours
            command, cwd=ROOT, capture_output=True, text=True, timeout=_SECONDS, check=True
        )
        answer = json.loads(done.stdout)
        if (answer["status"], answer["count"]) != ("healthy", embeddings):
            raise RuntimeError(f"{folder} with {embeddings} embeddings: {done.stdout.strip()}")
        return float(answer["peak"]) / _MB

    return measure


def _chroma_peak(folder: Path, scratch: Path) -> Measure:
    def measure() -> float:
        with copied(folder, scratch) as copy:
            return float(child_answer(copy, _EMBEDDINGS)["peak"]) / _MB

    return measure
