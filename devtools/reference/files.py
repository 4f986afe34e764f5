"""The files that are made from the code: `python -m devtools.reference.files` writes them anew (`make docs`)."""

from __future__ import annotations

import inspect
import json
import re
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from devtools.reference.roles import roles
from shared.aws.events import NOTICES, Resubmission, ResubmitRequest
from shared.model.findings import CATALOGUE, Weight
from shared.model.settings import VARIABLES, Settings

ROOT = Path(__file__).parents[2]
_GIB = 1024**3

_WEIGHTS = {
    Weight.DOUBT: "undetermined, whatever else was found",
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
    "verdict": (
        "Doubt about a verdict",
        """Something speaks against acting on what was found. Nothing is moved, the gate refuses the delta, and a
person is told.""",
        "Look at the evidence of both sides in the findings. `verdict.deltas_below`: a file lies one level too high.",
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
        "Made from `shared/model/findings.py` by `make docs`. A code is stable: logs, metrics and tools may match on",
        "it. The status of a delta follows from its findings and from nothing else: `undetermined` if one of them is a",
        "doubt, else `corrupt` if one is a proof, else `undetermined` if something could not be checked, else",
        "`incomplete` if something is awaited, else `healthy`.",
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


_EVENTS = """# Events and messages

Made from `shared/aws/events.py` by `make docs`. `DELTAGUARD_EVENT_BUS` names the EventBridge bus that is told, and
`DELTAGUARD_RESUBMIT_QUEUE_URL` the queue of requests to process a batch again; without them nobody is told, and
nothing is asked for. Events have the source `deltaguard`:

```json
{"source": ["deltaguard"], "detail-type": ["Delta Quarantined", "Resubmission Exhausted"]}
```

## What a consumer can count on

- **After the act.** A `Delta Quarantined` is sent when the delta lies whole in quarantine, where its record says so.
- **At least once, whatever is killed.** The quarantine record is written before anything is deleted, and
  `told.json` beside it once everything was sent. Any later event of that delta finds a record that was not told of,
  and tells. A `Delta Validated` is sent when the bytes were found healthy, and then the delta is tagged: the tag is
  what stands for *told*. It follows within the same run of the validator, so a reader whom a bucket policy binds to
  the tag should try again if it is faster. When an event cannot be sent, the message that led to it goes back to
  its queue.
- **Seldom twice.** A healthy tag answers a late or repeated event of S3, and nothing is sent again. Two runs at
  once may both tell; so may a run after one that was killed. Then `id` is the same: keep the ids you acted on.
- **About bytes.** `fingerprint` says which state of a delta is meant. A delta that is uploaded again has another
  one, and is told of anew. The same bytes that come back under the same key are the same quarantine.
- **Of limited size.** Long texts are cut, at most 20 findings are named, and of refused deltas as many as find room
  (hundreds). All there is to know of a quarantined delta stands in its `quarantine.json`.

A `Delta Undetermined` is told each time that the check fails. A delta that was overwritten or moved while it was
looked at is none: it is looked at again.

## When a message comes back

A delta that is still arriving sends its message back to the queue until it has settled: hidden for the rest of
`DELTAGUARD_SETTLE_SECONDS`. One that could not be checked comes back after about 30 seconds, then 60, 120 and so on
up to 6 hours, half of it by chance. With a `maxReceiveCount` of 10 that is about 4 hours until it is given up to
the dead-letter queue, which should raise an alarm: the delta is untouched, and after a redrive all goes on. There
also ends the event of a delta that never becomes complete where manifests are required
(`DELTAGUARD_MANIFEST=required`). Where they are optional, a delta that misses files is corrupt once it has settled.

## How a batch is processed again

1. The validator quarantines a corrupt delta whose manifest names a batch, and sends a *request* to the resubmit
   queue.
2. `validator.resubmission.handler` reads it, on the producer's side. It counts the starts of the batch in S3, below
   `<quarantine prefix>/resubmissions/`, each quarantine once, and starts `DELTAGUARD_RESUBMIT_TARGET` with a
   *resubmission*: a message to an SQS queue, or an execution of a state machine. Executions are named after batch
   and quarantine, so a repeat is none; in a FIFO queue the same holds for 5 minutes, and elsewhere `id` tells.
3. After `DELTAGUARD_MAX_RESUBMISSIONS` starts (3 by default; 0 for none) the batch is not started again. One
   `Resubmission Exhausted` and the metric `ResubmissionsExhausted` call for a person. To allow a batch more, remove
   its folder there.
"""
_MESSAGES: Mapping[type[BaseModel], str] = {
    ResubmitRequest: "Request: validator to resubmit queue",
    Resubmission: "Resubmission: to the target",
}


def events() -> str:
    """docs/events.md: what is told to whom and when, with the JSON schema of each event and message."""
    titles = {notice: f"Event `{notice.detail_type}`" for notice in NOTICES} | dict(_MESSAGES)
    lines = [_EVENTS.rstrip()]
    for model, title in titles.items():
        schema = _untitled(model.model_json_schema())
        del schema["description"]  # it stands above
        lines += [
            "",
            f"## {title}",
            "",
            inspect.getdoc(model) or "",
            "",
            "```json",
            json.dumps(schema, indent=1),
            "```",
        ]
    return "\n".join(lines) + "\n"


def _untitled(schema: Any) -> Any:
    """A JSON schema without the titles that only repeat the names of fields."""
    if isinstance(schema, dict):
        return {k: _untitled(v) for k, v in schema.items() if not (k == "title" and isinstance(v, str))}
    return schema


def settings() -> str:
    """docs/settings.md: every setting with its variable, its default and its meaning."""
    meanings = _meanings(Settings.__doc__ or "")
    lines = [
        "# Settings",
        "",
        "Made from `shared/model/settings.py` by `make docs`. Environment variables, read at start; one that is empty",
        "counts as not set, and a value that cannot be used is one clear error that names the variable. AWS's own",
        "variables (`AWS_ENDPOINT_URL`, credentials, region) are read by boto3.",
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
    "docs/events.md": events,
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
