"""The files that are made from the code: `python -m local.reference` writes them anew (`make docs`)."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import fields
from pathlib import Path

from local.roles import roles
from shared.findings import CATALOGUE, Weight
from shared.settings import VARIABLES, Settings

ROOT = Path(__file__).parent.parent
_GIB = 1024**3

_WEIGHTS = {
    Weight.PROOF: "corrupt",
    Weight.PENDING: "corrupt, or incomplete while files may still arrive",
    Weight.UNCHECKED: "undetermined",
    Weight.AWAITED: "incomplete",
    Weight.NOTE: "none, it is a note",
}
_GROUPS: Mapping[str, tuple[str, str, str]] = {
    "layout": (
        "Names and sizes of the objects",
        """Seen at every depth, from one listing. What looks wrong about an index from outside is looked into at
`structure` before it counts, since Chroma leaves the folder of a deleted collection behind.""",
        "Upload the delta again, from a folder whose client is closed: `deltaguard upload` sees to that.",
    ),
    "sqlite": (
        "The database file",
        """The header is seen from depth `header` on, the rest from `structure` on. `sqlite.readable` says what is left
of a damaged database.""",
        "Process the batch again. After `sqlite.schema_newer`: upgrade Deltaguard, nothing was held against the delta.",
    ),
    "hnsw": (
        "The vector index",
        """Only of an index that was flushed: below 1,000 operations there is none, and what lies in its folder is an
empty skeleton that Chroma rebuilds.""",
        "See `records.recoverable`: vectors in the queue do not need the index. If not, process the batch again.",
    ),
    "records": (
        "Rows against each other and against the index",
        """Seen from `structure` on. `records.recoverable` says of a damaged collection where its vectors still are: in
the queue, in a sound index, or in neither.""",
        "Process the batch again, unless `records.recoverable` says that all can be recovered.",
    ),
    "manifest": (
        "What the producer promised",
        """Compared at every depth where the store tells sizes and checksums, and at `structure` with the bytes. This is
the only way to see damage in values alone: a flipped bit of a vector, two files swapped.""",
        "Upload the delta again if the producer still has it, else process the batch again.",
    ),
    "chroma": (
        "What Chroma itself says",
        "Only at depth `open`. A failure counts when a second, fresh process of its own fails in the same way.",
        "Process the batch again, and report the delta: the bytes should have shown it before Chroma was asked.",
    ),
    "quarantine": (
        "What was found before",
        "Said by the gate when a delta of a chunk is not in its place because it was quarantined.",
        "Process the batch again, then the chunk.",
    ),
    "check": (
        "Why it could not be checked",
        "The environment, not the delta. Nothing is touched, and the check is made again.",
        "Mend what the detail names: access, disk, memory, descriptors, time-outs, the installation of chromadb.",
    ),
    "arrival": (
        "Why it is too early",
        "Files may still be on their way. The delta is left alone and looked at again.",
        "Wait. If it stays so, the producer died half-way: process the batch again.",
    ),
}


def findings() -> str:
    """docs/findings.md: every finding code by group, with what it means and what it does to a verdict."""
    lines = [
        "# Findings",
        "",
        "Made from `shared/findings.py` by `make docs`. A code is stable: logs, metrics and tools may match on it. The",
        "status of a delta follows from its findings and from nothing else: `corrupt` if one of them is a proof, else",
        "`undetermined` if something could not be checked, else `incomplete` if something is awaited, else `healthy`.",
    ]
    for group, (title, words, advice) in _GROUPS.items():
        lines += [
            "",
            f"## {title}: `{group}.*`",
            "",
            words,
            "",
            f"**What to do.** {advice}",
            "",
            "| code | what it means | status |",
            "|---|---|---|",
        ]
        for code, kind in CATALOGUE.items():
            if code.partition(".")[0] == group:
                lines.append(f"| `{code}` | {kind.meaning} | {_WEIGHTS[kind.weight]} |")
    return "\n".join(lines) + "\n"


def settings() -> str:
    """docs/settings.md: every setting with its variable, its default and its meaning."""
    meanings = _meanings(Settings.__doc__ or "")
    lines = [
        "# Settings",
        "",
        "Made from `shared/settings.py` by `make docs`. Environment variables, read at start; one that is empty counts",
        "as not set, and a value that cannot be used is one clear error that names the variable. AWS's own variables",
        "(`AWS_ENDPOINT_URL`, credentials, region) are read by boto3.",
        "",
        "| variable | default | meaning |",
        "|---|---|---|",
    ]
    for field in fields(Settings):
        variable, default = VARIABLES[field.name], _shown_default(field.default)
        lines.append(f"| `{variable}` | {default} | {meanings[field.name]} |")
    return "\n".join(lines) + "\n"


def _meanings(docstring: str) -> dict[str, str]:
    """The meaning of each argument, from a docstring's `Args:`."""
    found = re.findall(r"^ {8}(\w+): (.+(?:\n {12}.+)*)", docstring, re.MULTILINE)
    return {name: " ".join(text.split()) for name, text in found}


def _shown_default(value: object) -> str:
    if value is None:
        return "none"
    if isinstance(value, bool):
        return "`required`" if value else "`optional`"
    if isinstance(value, int) and value >= _GIB:
        return f"{value / _GIB:g} GiB"
    return f"{value:g}" if isinstance(value, (int, float)) else f"`{value}`"


PAGES: Mapping[str, Callable[[], str]] = {
    "docs/findings.md": findings,
    "docs/settings.md": settings,
    "deploy/roles.json": roles,
}
"""The files by their paths."""


def stale() -> Iterator[str]:
    """Paths of the files that are not what the code says."""
    for name, page in PAGES.items():
        path = ROOT / name
        if not path.is_file() or path.read_text(encoding="utf-8") != page():
            yield name


def main() -> int:
    """Writes the files that are stale and names them."""
    for name in list(stale()):
        (ROOT / name).write_text(PAGES[name](), encoding="utf-8")
        sys.stdout.write(f"{name}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
