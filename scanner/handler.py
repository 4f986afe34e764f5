"""`scanner.handler.handler`: the Lambda that scans what lies below prefixes, as far as its time goes."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from scanner.find.discovery import FoundDelta
from scanner.find.targets import StoredRoot, deltas_below, require_bucket
from scanner.fleet.steps import operate, seconds_left, stored_root
from scanner.run.actions import Brake, action_of, remove_all
from scanner.run.checker import Judge
from scanner.run.workers import MAX_JOBS, Tally, default_jobs, judge_all, require_witness
from shared.aws.telemetry import logger, traced
from shared.check.judgement import Judgement
from shared.model.delta import DeltaLocation, parse_s3_uri
from shared.model.errors import CouldNotCheck, TargetError
from shared.model.settings import Act, Settings
from shared.model.verdict import Depth, Status
from shared.quarantine.record import is_quarantined
from shared.storage.scratch import scratch_folder, sweep_scratch

_RESERVE_SECONDS = 30.0  # for the checks that still run, and for writing the results


class ScanRequest(BaseModel):
    """What the event asks for.

    Args:
        targets: Where to look for deltas: `s3://bucket/prefix`.
        depth: How far to go.
        quarantine: Whether corrupt deltas are moved into quarantine; never without being asked.
        yes: Whether they are moved even where they are a great part of what was judged.
        output: Where one JSON object a delta and the summary go, as `s3://bucket/key`; None keeps only the summary.
        max_duration: Seconds after which no further delta is begun; at most what the invocation has.
        jobs: How many deltas are judged at once; None leaves it to the depth and the CPUs.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    targets: Annotated[tuple[str, ...], Field(min_length=1)]
    depth: Depth = Depth.STRUCTURE
    quarantine: bool = False
    yes: bool = False
    output: str | None = None
    max_duration: Annotated[float, Field(gt=0)] | None = None
    jobs: Annotated[int, Field(ge=1, le=MAX_JOBS)] | None = None


def handler(event: object, context: Any) -> dict[str, Any]:
    """Finds the deltas at and below the targets and judges them, as `deltaguard scan` does.

    Args:
        event: A `ScanRequest`, or with an `operation` one step of a fleet scan (`scanner.fleet.steps.operate`).
        context: Lambda's; its remaining time bounds the work. None counts as unbounded.

    Returns:
        `summary` as the last line of the results has it, with `quarantined` and `complete`: whether every delta was
        reached. `output` names the results where they were asked for.

    Raises:
        TargetError: The event is no such request, or a target does not exist.
        SettingsError: A setting is wrong, or deltas are to be moved without chromadb.
        CouldNotCheck: A bucket cannot be listed, or the results cannot be written.
    """
    if isinstance(event, dict) and "operation" in event:
        return operate(event, context)
    request = _request(event)
    if request.quarantine:
        require_witness()
    roots = [stored_root(target) for target in dict.fromkeys(request.targets)]
    output = None if request.output is None else _object_named(request.output)
    settings = Settings.from_environment()
    sweep_scratch()
    scan = _Scan(request, settings, _deadline(request, context))
    for root in roots:
        require_bucket(scan.judge.store, root)
    with scratch_folder() as scratch, traced("scan"):
        path = scratch / "results.ndjson"
        with path.open("x", encoding="utf-8") as results:
            scan.run(roots, lambda line: results.write(json.dumps(line) + "\n"))
            summary = scan.summary()
            results.write(json.dumps({"summary": summary}) + "\n")
        if output is not None:
            scan.judge.store.upload(*output, path)
    logger.info("Scan ended", extra={"targets": request.targets, **summary})
    return {"summary": summary} | ({"output": request.output} if output else {})


class _Scan:
    """One scan while it runs."""

    def __init__(self, request: ScanRequest, settings: Settings, deadline: float) -> None:
        self.judge = Judge(request.depth, settings)
        self._request, self._settings, self._deadline = request, settings, deadline
        self._tally = Tally()
        self._quarantined = 0
        self._late = False
        self._jobs = request.jobs or default_jobs(request.depth, os.cpu_count() or 1)

    def run(self, roots: list[StoredRoot], write: Callable[[dict[str, Any]], object]) -> None:
        """Judges what lies below the roots, writes each verdict, and moves what is corrupt if it was asked to."""
        corrupt: dict[DeltaLocation, None] = {}
        with closing(judge_all(self._found(roots), self.judge, self._jobs)) as verdicts:
            for verdict in verdicts:
                self._tally.add(verdict)
                if verdict.status is Status.CORRUPT:
                    corrupt[DeltaLocation.parse(verdict.delta)] = None
                write(verdict.as_json())
        if self._request.quarantine:
            self._remove(corrupt)

    def _remove(self, corrupt: dict[DeltaLocation, None]) -> None:
        brake = Brake(self._tally.total, len(corrupt), self._request.yes)
        if brake.holds:
            logger.error(brake.reason)
            return
        movable = [location for location in corrupt if not is_quarantined(location, self._settings)]
        action = action_of(self._settings, logger.warning, dry_run=False)
        moved = remove_all(self.judge.store, movable, self._confirm, action, logger.warning, self._jobs)
        if self._settings.act is Act.QUARANTINE:
            self._quarantined = moved
        self._tally.unfinished = self._tally.unfinished or moved < len(movable)

    def _confirm(self, location: DeltaLocation) -> Judgement:
        if time.monotonic() > self._deadline:
            self._late = True
            raise CouldNotCheck("check.timeout", f"{location.uri}: no time was left to move it")
        return self.judge.confirmed(location)

    def summary(self) -> dict[str, Any]:
        """What was done, in numbers."""
        complete = not (self._late or self._tally.unfinished)
        return {**self._tally.as_json(), "quarantined": self._quarantined, "complete": complete}

    def _found(self, roots: list[StoredRoot]) -> Iterator[FoundDelta]:
        for root in roots:
            try:
                for delta in deltas_below(self.judge.store, root, self._settings):
                    if time.monotonic() > self._deadline:
                        self._late = True
                        return
                    yield delta
            except CouldNotCheck as fault:
                self._tally.unfinished = True
                logger.error("Target cannot be listed to its end", extra={"target": root, "reason": fault.detail})


def _request(event: object) -> ScanRequest:
    try:
        return ScanRequest.model_validate(event)
    except ValidationError as error:
        problems = "; ".join(f"{'.'.join(map(str, e['loc'])) or 'event'}: {e['msg']}" for e in error.errors())
        raise TargetError(f"not a request for a scan: {problems}") from error


def _object_named(uri: str) -> tuple[str, str]:
    bucket, key = parse_s3_uri(uri)
    if not key or key.endswith("/"):
        raise TargetError(f"output {uri}: not an s3://bucket/key")
    return bucket, key


def _deadline(request: ScanRequest, context: Any) -> float:
    return time.monotonic() + min(seconds_left(context) - _RESERVE_SECONDS, request.max_duration or float("inf"))
