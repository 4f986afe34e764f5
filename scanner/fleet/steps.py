"""A scan by many functions at once: what the state machine of deploy/scan.asl.json has the scanner's Lambda do.

`plan` lists the targets and writes batches; `judge` judges one batch; `report` joins the verdicts on all of them.
What an invocation did not do is told as `undetermined`, so no delta that was planned is missing in the report.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from itertools import islice
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from scanner.find.discovery import Bookmark, FoundDelta
from scanner.find.targets import StoredRoot, deltas_below, require_bucket, root_named
from scanner.fleet.batches import MOST_BATCHES, BatchSize, Shelf, in_batches
from scanner.report.output import REPORTS, Output
from scanner.run.checker import Judge
from scanner.run.throttle import RetriedCheck, Throttle
from scanner.run.workers import Tally, default_jobs, judge_all
from shared.aws.telemetry import logger, traced
from shared.model.errors import TargetError
from shared.model.settings import Settings
from shared.model.verdict import Depth, Finding, Verdict
from shared.storage.scratch import scratch_folder, sweep_scratch
from shared.storage.store import current_store

RESULTS = "results/"
"""Prefix in the quarantine bucket below which each scan keeps its files, in a folder with the execution's name."""

_RESERVE_SECONDS = 60.0
_READERS = 16


class FleetRequest(BaseModel):
    """The input of an execution.

    Args:
        targets: Where to look for deltas: `s3://bucket/prefix`.
        depth: How far to go.
        batch: How many deltas one invocation is given; None leaves it to the depth.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    targets: Annotated[tuple[str, ...], Field(min_length=1)]
    depth: Depth = Depth.STRUCTURE
    batch: Annotated[int, Field(ge=1, le=5000)] | None = None


class Since(BaseModel):
    """How far the planning came: up to a bookmark in one of the targets, with so many batches and maps."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    target: int = 0
    after: str = ""
    open: tuple[str, ...] = ()
    batches: int = 0
    maps: int = 0


class _Operation(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    run: Annotated[str, Field(pattern=r"^[A-Za-z0-9_.-]{1,80}$")]
    request: FleetRequest


class Plan(_Operation):
    """Go on planning, from the beginning or from where the invocation before this one stopped."""

    operation: Literal["plan"]
    since: Since = Since()


class JudgeBatch(_Operation):
    """Judge a batch."""

    operation: Literal["judge"]
    batch: Annotated[int, Field(ge=0)]


class MakeReport(_Operation):
    """Join the verdicts on all batches; `began` is when the execution did."""

    operation: Literal["report"]
    batches: Annotated[int, Field(ge=0)]
    began: datetime


_OPERATIONS: TypeAdapter[Plan | JudgeBatch | MakeReport] = TypeAdapter(
    Annotated[Plan | JudgeBatch | MakeReport, Field(discriminator="operation")]
)


def operate(event: object, context: Any) -> dict[str, Any]:
    """Does one step of a fleet scan.

    Args:
        event: A `Plan`, a `JudgeBatch` or a `MakeReport`.
        context: Lambda's; its remaining time bounds the work. None counts as unbounded.

    Returns:
        What the state machine has to know, far below the 256 kB that a state may pass on.

    Raises:
        TargetError: The event is no such step, or a target does not exist.
        SettingsError: A setting is wrong.
        CouldNotCheck: A bucket cannot be listed, or S3 does not give or take what belongs to the scan.
    """
    try:
        step = _OPERATIONS.validate_python(event)
    except ValidationError as error:
        problems = "; ".join(f"{'.'.join(map(str, e['loc'])) or 'event'}: {e['msg']}" for e in error.errors())
        raise TargetError(f"not a step of a fleet scan: {problems}") from error
    sweep_scratch()
    settings = Settings.from_environment()
    roots = [stored_root(target) for target in dict.fromkeys(step.request.targets)]
    bucket, _ = settings.quarantine_of(roots[0].bucket)
    shelf = Shelf(current_store(), bucket, f"{RESULTS}{step.run}/")
    end = time.monotonic() + seconds_left(context) - _RESERVE_SECONDS
    with traced(step.operation):
        if isinstance(step, Plan):
            return _plan(step, roots, shelf, settings, end)
        return _judge(step, shelf, settings, end) if isinstance(step, JudgeBatch) else _report(step, shelf)


def seconds_left(context: Any) -> float:
    """How long the invocation may still take; infinite where that is not known."""
    remaining = getattr(context, "get_remaining_time_in_millis", None)
    return float("inf") if remaining is None else float(remaining()) / 1000


def _plan(step: Plan, roots: list[StoredRoot], shelf: Shelf, settings: Settings, end: float) -> dict[str, Any]:
    """Writes batches until the targets end, the time is over, or one map has as many as it may."""
    since = step.since
    if since == Since():
        for root in roots:
            require_bucket(shelf.store, root)
    size = BatchSize.of(step.request.depth, step.request.batch)
    batches: list[dict[str, int]] = []
    more = False
    for target, root in list(enumerate(roots))[since.target :]:
        bookmark = Bookmark(since.after, since.open) if target == since.target and since.after else None
        for deltas in in_batches(deltas_below(shelf.store, root, settings, bookmark), size):
            number = since.batches + len(batches)
            shelf.put_batch(number, deltas)
            batches.append({"batch": number, "deltas": len(deltas)})
            if more := len(batches) == MOST_BATCHES or time.monotonic() > end:
                last = deltas[-1].bookmark
                since = Since(target=target, after=last.after, open=last.open, batches=number + 1, maps=since.maps)
                break
        if more:
            break
    key = shelf.put_worklist(since.maps, batches)
    planned = since.batches if more else since.batches + len(batches)
    logger.info("Scan planned", extra={"batches": len(batches), "more": more})
    return {
        "bucket": shelf.bucket,
        "worklist": key,
        "here": len(batches),
        "deltas": sum(batch["deltas"] for batch in batches),
        "batches": planned,
        "more": more,
        "since": since.model_copy(update={"batches": planned, "maps": since.maps + 1}).model_dump(),
    }


def _judge(step: JudgeBatch, shelf: Shelf, settings: Settings, end: float) -> dict[str, Any]:
    """Judges a batch as `deltaguard scan` would, at the rate that S3 allows, and writes the verdicts in its order."""
    judge = Judge(step.request.depth, settings)
    deltas = shelf.batch(step.batch)
    jobs = default_jobs(judge.depth, os.cpu_count() or 1)
    throttle = Throttle(jobs)
    tally = Tally()
    retried = RetriedCheck(judge, throttle, lambda verdict: any(f.code == "check.throttled" for f in verdict.findings))
    impatience = threading.Timer(min(end - time.monotonic(), threading.TIMEOUT_MAX), throttle.end)
    impatience.daemon = True
    impatience.start()
    found: dict[str, Verdict] = {}
    try:
        for verdict in judge_all(_in_time(deltas, end), retried, jobs):
            found[verdict.delta] = verdict
    finally:
        impatience.cancel()
    late = "the time of the invocation was over before this delta's turn; give it fewer (`batch`)"
    verdicts = [found.get(d.name) or unjudged(d, judge.depth, "check.timeout", late) for d in deltas]
    for verdict in verdicts:
        tally.add(verdict)
    shelf.put_verdicts(step.batch, (verdict.as_json() for verdict in verdicts))
    logger.info("Batch judged", extra={"batch": step.batch, **tally.as_json()})
    return {"batch": step.batch, **tally.as_json()}


def _in_time(deltas: list[FoundDelta], end: float) -> Iterator[FoundDelta]:
    for delta in deltas:
        if time.monotonic() >= end:
            return
        yield delta


def unjudged(delta: FoundDelta, depth: Depth, code: str, why: str) -> Verdict:
    """The verdict on a delta that nobody came to: `undetermined`."""
    listing = delta.listing
    size, fingerprint = (listing.size, listing.fingerprint) if listing else (0, "")
    finding = Finding(code, "", f"{delta.name}: {why}")
    return Verdict(delta.name, depth, (finding,), size=size, fingerprint=fingerprint)


def _report(step: MakeReport, shelf: Shelf) -> dict[str, Any]:
    """Writes the report of all batches as ndjson and as a page."""
    tally = Tally(started=time.perf_counter() - (datetime.now(UTC) - step.began).total_seconds())
    with scratch_folder() as folder:
        paths = {format_: folder / f"report.{format_}" for format_ in ("ndjson", "html")}
        outputs = {format_: Output(path) for format_, path in paths.items()}
        reports = [REPORTS[format_](output) for format_, output in outputs.items()]
        for verdict in _verdicts(shelf, step):
            tally.add(verdict)
            for report in reports:
                report.add(verdict)
        for report, output in zip(reports, outputs.values(), strict=True):
            with output:
                report.finish(tally)
        for format_, path in paths.items():
            shelf.store.upload(shelf.bucket, f"{shelf.prefix}report.{format_}", path)
    logger.info("Scan reported", extra=tally.as_json())
    return {"summary": tally.as_json(), **{format_: shelf.uri(f"report.{format_}") for format_ in paths}}


def _verdicts(shelf: Shelf, step: MakeReport) -> Iterator[Verdict]:
    """The verdicts on all batches in their order, read some at a time."""
    failed = f"the batch failed as often as it was tried: see the execution {step.run}"

    def of_batch(number: int) -> list[Verdict]:
        lines = shelf.verdicts(number)
        if lines is not None:
            return [Verdict.from_json(line) for line in lines]
        return [unjudged(d, step.request.depth, "check.batch_failed", failed) for d in shelf.batch(number)]

    numbers = iter(range(step.batches))
    with ThreadPoolExecutor(_READERS) as pool:
        while some := list(islice(numbers, _READERS)):
            for verdicts in pool.map(of_batch, some):
                yield from verdicts


def stored_root(target: str) -> StoredRoot:
    """The place in S3 that a target names.

    Raises:
        TargetError: It names none.
    """
    root = root_named(target) if "://" in target else None
    if not isinstance(root, StoredRoot):
        raise TargetError(f"{target}: not an s3://bucket/prefix")
    return root
