"""Suite `import`: what a cold start of each function pays for its imports, beside that of chromadb.

Timed inside a fresh Python, from the statement to its end; of several, the fastest. Byte code is compiled and the files
are in the page cache, since the first round is not counted.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import Any

from bench import ROOT
from bench.cost.figures import Figure
from bench.cost.targets import held
from bench.cost.timing import Measure, in_turns

_HANDLERS = {
    "validator": "validator.handler",
    "scanner": "scanner.handler",
    "compaction": "compaction.handler",
    "resubmission": "validator.resubmission",
}
_ROUNDS = 5
_SECONDS = 60
# No tether: it would import some of what is timed, and an orphan ends within a second.
_IMPORT = """
import sys, time
started = time.perf_counter()
import {module}
milliseconds = (time.perf_counter() - started) * 1000
import json
print(json.dumps({{"milliseconds": milliseconds, "chromadb": "chromadb" in sys.modules, "modules": len(sys.modules)}}))
"""


def figures() -> list[Figure]:
    """Each handler beside `chromadb`, and whether the one pulls in the other."""
    *ours, theirs = map(min, in_turns([_importing(module) for module in (*_HANDLERS.values(), "chromadb")], _ROUNDS))
    return [
        held(f"import/{name}", f"import {module}", cost, "import chromadb", theirs, "ms", _spoilt(module))
        for (name, module), cost in zip(_HANDLERS.items(), ours, strict=True)
    ]


def _spoilt(module: str) -> str:
    return "it imports chromadb" if _answer(module)["chromadb"] else ""


def _importing(module: str) -> Measure:
    return lambda: float(_answer(module)["milliseconds"])


def _answer(module: str) -> dict[str, Any]:
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    command = [sys.executable, "-c", _IMPORT.format(module=module)]
    done = subprocess.run(  # noqa: S603 -- ours
        command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=_SECONDS, check=True
    )
    answer: dict[str, Any] = json.loads(done.stdout)
    return answer
