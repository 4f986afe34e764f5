"""`python -m bench.score.salvaging`: how many corrupt deltas are salvaged whole, and whether anything wrong comes out.

The damaged deltas are those of the scorecard. What comes out is compared with what was stored before the damage: by
Chroma where a delta is said to be whole, vector by vector where it is said to be a part.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import chromadb.api.rust  # noqa: F401 -- the children of `ask_chroma` inherit what is imported here
import numpy as np

from bench.score.plan import SEEDS, Case, cases
from bench.score.truth import Stored, ask_chroma, same
from bench.score.worker import _build, _made, _Work
from devtools.damage.deltas import CollectionContent, DeltaContent
from shared.inspection.chroma.contents import opened_delta
from shared.model.delta import MANIFEST
from shared.model.errors import CouldNotCheck
from shared.model.settings import Settings
from shared.salvage.salvage import salvage_folder

_DIGITS = 1e-6  # of a cosine index


def main() -> int:
    """Salvages damaged deltas and prints what came of them. The exit code is 1 when anything that came out is wrong."""
    parser = argparse.ArgumentParser(prog="python -m bench.score.salvaging", description=__doc__)
    parser.add_argument("--group", choices=list(SEEDS), default="tuned", help="which seeds")
    parser.add_argument("--limit", type=int, help="how many deltas, evenly among all; all of them otherwise")
    parser.add_argument("--manifest", action="store_true", help="with the manifest that was written before the damage")
    parser.add_argument("--results", type=Path, help="write a line of JSON for each delta there")
    chosen = parser.parse_args()
    ours = [case for case in cases(chosen.group) if case.source in ("catalogue", "generic")]
    damaged = [case for case in ours if not case.kind.startswith("torn-copy")]
    if chosen.limit:
        damaged = damaged[:: max(1, len(damaged) // chosen.limit)][: chosen.limit]
    lines = []
    for line in _results(damaged, with_manifest=chosen.manifest):
        lines.append(line)
        if chosen.results:
            with chosen.results.open("a") as file:
                file.write(json.dumps(line) + "\n")
    return _report(lines)


def _results(damaged: list[Case], *, with_manifest: bool) -> Iterator[dict[str, Any]]:
    with tempfile.TemporaryDirectory(prefix="bench-salvaging-") as scratch:
        root = Path(scratch)
        work = _Work(root, root / "work", None)
        started, built = time.monotonic(), set()
        for number, case in enumerate(damaged, 1):
            if case.base not in built:
                _build(work, case.base)
                built.add(case.base)
            place = root / "case"
            place.mkdir()
            yield _salvaged(root, place, case, with_manifest=with_manifest)
            shutil.rmtree(place)
            if number % 50 == 0 or number == len(damaged):
                sys.stderr.write(f"{number} of {len(damaged)} deltas, {time.monotonic() - started:.0f} s\n")


def _salvaged(root: Path, place: Path, case: Case, *, with_manifest: bool) -> dict[str, Any]:
    delta, out = place / "delta", place / "out"
    expected, manifest, done = _made(root, place, delta, case)
    assert isinstance(expected, Stored)
    if with_manifest and manifest is not None:
        (delta / MANIFEST).write_bytes(manifest)
    line = {"kind": case.kind, "base": case.base, "seed": case.seed, "done": done, "wrong": ""}
    try:
        salvage = salvage_folder(delta, out, Settings(), partial=True)
    except CouldNotCheck as fault:
        return line | {"outcome": "undetermined", "reason": f"{fault.code}: {fault.detail}"}
    line |= {"outcome": salvage.outcome, "reason": salvage.reason, "verdict": salvage.verdict}
    if salvage.outcome == "whole":
        line["wrong"] = ask_chroma(out, expected, place).harm
    elif salvage.outcome == "partial":
        line["wrong"] = _wrong_in_part(out, expected.content, expected.cosine)
    line["kept"] = sum(part.count for part in salvage.collections)
    line["stored"] = expected.content.count
    return line


def _wrong_in_part(out: Path, content: DeltaContent, cosine: bool) -> str:
    """What of a part is not what was stored; empty when all of it is."""
    stored = {collection.name: collection for collection in content.collections}
    with opened_delta(out) as delta:
        for collection in delta.collections:
            expected = stored.get(collection.name)
            if expected is None:
                return f"collection {collection.name!r} was never stored"
            for records in delta.records(collection.name):
                for id_, vector, document, metadata in zip(
                    records.ids, records.vectors, records.documents, records.metadatas, strict=True
                ):
                    wrong = _wrong(expected, id_, vector, document, metadata, cosine)
                    if wrong:
                        return f"{wrong} of {id_!r} is another"
    return ""


def _wrong(expected: CollectionContent, id_: str, vector: Any, document: Any, metadata: Any, cosine: bool) -> str:
    if id_ not in expected.ids:
        return "the id"
    at = expected.ids.index(id_)
    if not np.allclose(vector, expected.vectors[at], rtol=_DIGITS if cosine else 0, atol=0):
        return "the vector"
    if document != expected.documents[at]:
        return "the document"
    return "" if same(metadata, expected.metadatas[at]) else "the metadata"


def _report(lines: list[dict[str, Any]]) -> int:
    corrupt = [line for line in lines if line["outcome"] in ("whole", "partial", "refused")]
    outcomes = Counter(line["outcome"] for line in corrupt)
    by_file: dict[str, Counter[str]] = defaultdict(Counter)
    for line in corrupt:
        by_file[_where(line["verdict"])][line["outcome"]] += 1
    _say(f"{len(lines)} damaged deltas, {len(corrupt)} of them corrupt by structure")
    for outcome in ("whole", "partial", "refused"):
        _say(f"  {outcome:10}{outcomes[outcome]:6}{100 * outcomes[outcome] / max(1, len(corrupt)):7.1f} %")
    _say(f"{'damage found in':24}{'corrupt':>9}{'whole':>8}{'partial':>9}{'refused':>9}")
    for where, sums in sorted(by_file.items()):
        _say(f"{where:24}{sums.total():9}{sums['whole']:8}{sums['partial']:9}{sums['refused']:9}")
    wrong = [line for line in lines if line["wrong"]]
    _say(f"wrong: {len(wrong)}")
    for line in wrong:
        _say(f"  {line['kind']} | {line['base']} | seed {line['seed']} | {line['outcome']}: {line['wrong']}")
        _say(f"    done: {line['done']}\n    found: {line['verdict'][:300]}")
    undetermined = [line for line in lines if line["outcome"] == "undetermined"]
    _say(f"undetermined: {len(undetermined)}")
    for line in undetermined:
        _say(f"  {line['kind']} | {line['base']} | seed {line['seed']}: {line['reason'][:300]}")
    return 1 if wrong else 0


def _where(verdict: str) -> str:
    """The group of the first finding: where the damage was found."""
    return verdict.partition(": ")[2].partition(".")[0]


def _say(text: str) -> None:
    sys.stdout.write(text + "\n")


if __name__ == "__main__":
    sys.exit(main())
