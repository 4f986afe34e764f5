"""Logs, metrics and traces: the only module that knows CloudWatch's formats and X-Ray.

Log lines are JSON; metrics are EMF lines (https://docs.aws.amazon.com/AmazonCloudWatch/latest/monitoring/
CloudWatch_Embedded_Metric_Format_Specification.html) among them. Both go to standard output, where Lambda picks them
up, or to standard error in a program whose results go to standard output.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from typing import TextIO

from aws_lambda_powertools import Logger, Tracer
from aws_lambda_powertools.metrics import EphemeralMetrics, MetricUnit

from shared.model.verdict import Status, Verdict

NAMESPACE = "Deltaguard"
UNKNOWN_COLLECTION = "unknown"


class _Output:
    """Standard output as it is at the time of writing, or standard error when a command says so."""

    def __init__(self) -> None:
        self.to_stderr = False

    def write(self, text: str) -> int:
        return self._stream.write(text)

    def flush(self) -> None:
        self._stream.flush()

    @property
    def _stream(self) -> TextIO:
        return sys.stderr if self.to_stderr else sys.stdout


_output = _Output()
logger = Logger(service="deltaguard", stream=_output)  # type: ignore[arg-type]  # write and flush are all it calls


def use_stderr() -> None:
    """Sends logs and metrics of this process to standard error."""
    _output.to_stderr = True


@contextmanager
def traced(name: str, **annotations: str) -> Iterator[Callable[[str, str], None]]:
    """An X-Ray subsegment around the block, with searchable annotations. Does nothing where tracing is off.

    Yields:
        A function that adds an annotation which is only known later: its name and its value.
    """
    tracer = _tracer()
    with tracer.provider.in_subsegment(name=f"## {name}"):
        for key, value in annotations.items():
            tracer.put_annotation(key, value)
        yield tracer.put_annotation


@cache
def _tracer() -> Tracer:
    # Importing the X-Ray SDK costs as much as everything else together, so not before the first trace.
    return Tracer(service="deltaguard", auto_patch=False)


def count_verdict(component: str, stage: str, verdict: Verdict, collection: str) -> None:
    """Sends the metrics of one verdict: attempts, duration, the one that its status stands for, and disagreement."""
    outcome = {
        Status.HEALTHY: "DeltaValidationSuccess",
        Status.CORRUPT: "DeltaValidationFailures",
        Status.UNDETERMINED: "DeltasUndetermined",
    }
    metrics = {"DeltaValidationAttempts": 1.0, **dict.fromkeys(outcome.values(), 0.0)}
    if verdict.status in outcome:
        metrics[outcome[verdict.status]] = 1.0
    metrics["VerdictDisagreements"] = float(any(f.code == "verdict.disagreement" for f in verdict.observed))
    _emit(component, stage, collection, metrics, verdict.depth.value, verdict.duration_ms)


def count(component: str, stage: str, metric: str, collection: str = UNKNOWN_COLLECTION) -> None:
    """Adds one to a metric such as `DeltasQuarantined` or `ChunksRejected`."""
    _emit(component, stage, collection, {metric: 1.0})


def _emit(
    component: str,
    stage: str,
    collection: str,
    metrics: dict[str, float],
    depth: str | None = None,
    duration_ms: float | None = None,
) -> None:
    # Sets of dimensions: with the collection, or the depth, to look closer; without them for the alarms.
    blob = EphemeralMetrics(namespace=NAMESPACE, service=component)
    blob.add_dimension(name="stage", value=stage)
    blob.add_dimension(name="service", value=component)
    blob.add_dimensions(stage=stage, service=component, collection=collection or UNKNOWN_COLLECTION)
    if depth is not None:
        blob.add_dimensions(stage=stage, service=component, depth=depth)
    for name, value in metrics.items():
        blob.add_metric(name=name, unit=MetricUnit.Count, value=value)
    if duration_ms is not None:
        blob.add_metric(name="DeltaValidationDuration", unit=MetricUnit.Milliseconds, value=duration_ms)
    _output.write(json.dumps(blob.serialize_metric_set()) + "\n")
    blob.clear_metrics()
