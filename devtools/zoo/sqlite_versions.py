"""Deltaguard's verdicts under another SQLite than the one that Python links.

    python -m devtools.zoo.sqlite_versions DIRECTORY...

Prints one line of JSON: the version of SQLite, and by directory the verdict at depth `structure`, status and codes. The
package `pysqlite3` brings a newer SQLite in a library that exports it; loaded before all others, Python's own `sqlite3`
uses that one.
"""

from __future__ import annotations

import json
import os
import sqlite3
import subprocess
import sys
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from shared.check.judgement import judge_folder
from shared.model.settings import Settings
from shared.model.verdict import Depth


def verdicts(folders: Sequence[Path]) -> dict[str, Any]:
    """The verdicts on directories under the SQLite of this process: `sqlite`, its version, and `verdicts`, by path."""
    found = {}
    for folder in folders:
        verdict = judge_folder(folder, Depth.STRUCTURE, Settings()).verdict
        found[str(folder)] = [verdict.status.value, sorted({finding.code for finding in verdict.findings})]
    return {"sqlite": sqlite3.sqlite_version, "verdicts": found}


def verdicts_elsewhere(folders: Sequence[Path]) -> dict[str, Any]:
    """The same under the SQLite of `pysqlite3`.

    Raises:
        FileNotFoundError: That is not installed.
        subprocess.CalledProcessError: The program failed.
    """
    done = subprocess.run(  # noqa: S603 -- ours
        [sys.executable, "-m", "devtools.zoo.sqlite_versions", *map(str, folders)],
        cwd=Path(__file__).resolve().parents[2],
        env={**os.environ, "LD_PRELOAD": str(library())},
        check=True,
        capture_output=True,
        text=True,
    )
    answer: dict[str, Any] = json.loads(done.stdout)
    return answer


def library() -> Path:
    """The library of `pysqlite3` that exports SQLite.

    Raises:
        FileNotFoundError: It is not installed.
    """
    package = find_spec("pysqlite3")
    for folder in (package.submodule_search_locations or ()) if package else ():
        for found in Path(folder).glob("_sqlite3*.so"):
            return found
    raise FileNotFoundError("the package pysqlite3, which brings another SQLite, is not installed")


if __name__ == "__main__":
    print(json.dumps(verdicts([Path(word) for word in sys.argv[1:]])))  # noqa: T201
