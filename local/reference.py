"""The pages of docs/ that are made from the code: `python -m local.reference` writes them anew (`make docs`)."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from shared.findings import CATALOGUE, Weight

DOCS = Path(__file__).parent.parent / "docs"

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
        "See `records.recoverable`: it tells where vectors still are. If some are lost, process the batch again.",
    ),
    "records": (
        "Rows against each other and against the index",
        """Seen from `structure` on. `records.recoverable` says of a damaged collection where its vectors still are: in
the queue, in sound records of the index, or in neither, and how many embeddings can be recovered.""",
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
    "chunk": (
        "What the chunk says of the delta",
        """Said by the gate when it has read a delta and found it healthy, but with another collection or another number
of embeddings than the chunk says. Whether the chunk is wrong or the wrong delta lies there, no byte can tell, so the
chunk is refused and the delta stays untouched.""",
        "Ask the producer which is right: correct the chunk, or process the batch again.",
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


PAGES: Mapping[str, Callable[[], str]] = {"findings.md": findings}
"""The pages by file name."""


def stale() -> Iterator[str]:
    """Names of the pages whose file is not what the code says."""
    for name, page in PAGES.items():
        path = DOCS / name
        if not path.is_file() or path.read_text(encoding="utf-8") != page():
            yield name


def main() -> int:
    """Writes the pages that are stale and names them."""
    for name in list(stale()):
        (DOCS / name).write_text(PAGES[name](), encoding="utf-8")
        sys.stdout.write(f"docs/{name}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
