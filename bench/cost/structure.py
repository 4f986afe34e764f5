"""Suites `structure-500` and `structure-5000`: a verdict at depth `structure` beside asking Chroma, and the bare bytes.

The verdict is the public one on a local folder, `judge_folder`. What `examine` alone takes of it stands beside it.
"""

from __future__ import annotations

from pathlib import Path
from statistics import median

from bench.cost.figures import Figure
from bench.cost.rivals import bytes_and_integrity, chroma_in_child, warm_chroma
from bench.cost.stock import stocked
from bench.cost.targets import held
from bench.cost.timing import Measure, in_turns, steady, timed
from shared.check.judgement import judge_folder
from shared.inspection.examination import examine
from shared.model.settings import Settings
from shared.model.verdict import Depth, Status, status_of
from shared.storage.folder import FolderContent, list_folder
from shared.storage.scratch import scratch_folder

_CHILD_ROUNDS = 11
_ROUNDS = 11


def small() -> list[Figure]:
    """500 embeddings: all of them wait in the queue, there is no index. This is what most deltas are like."""
    return _figures(500)


def large() -> list[Figure]:
    """5,000 embeddings: all of them are in a flushed index."""
    return _figures(5000)


def _figures(embeddings: int) -> list[Figure]:
    suite, name = f"structure-{embeddings}", f"structure, {embeddings} embeddings"
    folder = stocked(embeddings)
    ours = [steady(_judged(folder, embeddings)), steady(_examined(folder, embeddings))]

    def row(key: str, rival: str, measure: Measure, rounds: int) -> Figure:
        verdict, _, theirs = map(median, in_turns([*ours, measure], rounds))
        return held(f"{suite}/{key}", name, verdict, rival, theirs, "ms")

    with scratch_folder() as scratch:
        child = row("child", "Chroma in a new process", chroma_in_child(folder, scratch, embeddings), _CHILD_ROUNDS)
        with warm_chroma(scratch) as measured:
            warm = row("warm", "Chroma in a warm process", steady(measured(folder, embeddings)), _ROUNDS)
        least = row("bytes", "sha256 + integrity_check", steady(bytes_and_integrity(folder)), _ROUNDS)
    whole, bare = map(median, in_turns(ours, _ROUNDS))
    alone = held(f"{suite}/examine", f"{name}, examine() alone", bare, "all of judge_folder()", whole, "ms")
    return [child, warm, least, alone]


def _judged(folder: Path, embeddings: int) -> Measure:
    settings = Settings()

    def judge() -> None:
        verdict = judge_folder(folder, Depth.STRUCTURE, settings).verdict
        counted = sum(collection.count for collection in verdict.collections)
        if verdict.status is not Status.HEALTHY or counted != embeddings:
            raise RuntimeError(f"{folder}: {verdict.status}, {counted} of {embeddings} embeddings: {verdict.reason}")

    return timed(judge)


def _examined(folder: Path, embeddings: int) -> Measure:
    settings = Settings()
    listing = list_folder(folder)

    def judge() -> None:
        content = FolderContent(folder, listing, settings.max_delta_bytes)
        found = examine(listing, content, Depth.STRUCTURE, settings.probe_timeout_seconds)
        counted = sum(collection.count for collection in found.collections)
        if status_of(found.observed) is not Status.HEALTHY or counted != embeddings:
            raise RuntimeError(f"{folder}: {counted} of {embeddings} embeddings: {found.observed}")

    return timed(judge)
