"""`scan --remote`: has the state machine scan, waits for it, and shows its report as that of a scan on this machine."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from uuid import uuid4

import click

from scanner.find.targets import StoredRoot, root_named
from scanner.report.output import REPORTS, Output, Report
from scanner.run.interruption import interruptible
from scanner.run.workers import Tally
from shared.aws.messaging import Messaging, current_messaging
from shared.model.delta import DeltaFile, DeltaLocation, parse_s3_uri, printable
from shared.model.errors import CouldNotCheck, MessagingError, SettingsError, TargetError
from shared.model.settings import VARIABLES, Settings
from shared.model.verdict import Depth, Verdict
from shared.storage.scratch import scratch_folder
from shared.storage.store import current_store

_FIRST_LOOK, _LAST_LOOK = 0.5, 15.0  # seconds between two looks, growing
_PATIENCE = 5  # looks that fail one after another
_USERS_FAULT = {"TargetError": TargetError, "SettingsError": SettingsError}
_LONGEST = 2000


def scan(targets: Sequence[str], depth: Depth, format_: str, output: Path | None) -> int:
    """Scans these targets by the state machine of the settings. Interrupted, it ends that as well.

    Returns:
        The exit code of `scanner.run.workers.Tally`.

    Raises:
        SettingsError: No state machine is set, or a setting of the functions is wrong.
        TargetError: A target cannot be, is not in S3 or does not exist, or the output cannot be.
        CouldNotCheck: The execution cannot be started or followed, or it failed.
    """
    settings = Settings.from_environment()
    machine = settings.scan_state_machine
    if machine is None:
        raise SettingsError(f"--remote needs {VARIABLES['scan_state_machine']}, the ARN of the state machine")
    for target in targets:
        if not isinstance(root_named(target), StoredRoot):
            raise TargetError(f"{target}: --remote scans what lies in S3, s3://bucket/prefix")
    started = time.perf_counter()
    with Output(output) as results:
        try:
            report = _report_of(machine, {"targets": list(targets), "depth": depth.value})
        except MessagingError as error:
            raise CouldNotCheck("check.storage", str(error)) from error
        return _shown(report, REPORTS[format_](results), started).exit_code()


def _report_of(machine: str, request: dict[str, object]) -> str:
    """Runs the state machine. Returns where its ndjson report lies."""
    services = current_messaging()
    name = f"scan-{datetime.now(UTC):%Y%m%dT%H%M%S}-{uuid4().hex[:8]}"
    arn = f"{machine.replace(':stateMachine:', ':execution:')}:{name}"
    services.start(machine, name, json.dumps(request))
    _say(f"started {arn}")
    try:
        with interruptible():
            execution = _ended(services, arn)
    except KeyboardInterrupt:
        services.stop(arn, "interrupted by the user who started it")
        _say(f"stopped {arn}; the verdicts until then stay below results/{name}/verdicts/ in the quarantine bucket")
        raise
    if execution["status"] != "SUCCEEDED":
        error, cause = execution.get("error", execution["status"]), execution.get("cause", "")
        message = _message_in(cause)
        if error in _USERS_FAULT:
            raise _USERS_FAULT[error](message)
        raise CouldNotCheck("check.batch_failed", f"{arn} {execution['status'].lower()}: {error}: {message}")
    return str(json.loads(execution["output"])["ndjson"])


def _ended(services: Messaging, arn: str) -> dict[str, str]:
    """Waits until an execution has ended, and tells how far it is."""
    pause, failed, told = _FIRST_LOOK, 0, ""
    while True:
        time.sleep(pause)
        pause = min(pause * 1.2, _LAST_LOOK)
        try:
            execution = services.execution(arn)
            done, total = services.mapped(arn)
            failed = 0
        except MessagingError:
            failed += 1
            if failed == _PATIENCE:
                raise
            continue
        if execution["status"] != "RUNNING":
            return execution
        now = f"{done:,} of {total:,} batches judged" if total else "listing the deltas"
        if now != told:
            _say(now)
            told = now


def _shown(uri: str, report: Report, started: float) -> Tally:
    """Shows the report of the execution in the format that was asked for, and adds up what it tells."""
    tally = Tally(started=started)
    bucket, key = parse_s3_uri(uri)
    folder, _, name = key.rpartition("/")
    store = current_store()
    stored = store.head(bucket, key)
    with scratch_folder() as scratch:
        file = DeltaFile(name, stored.size, stored.etag, datetime.now(UTC))
        store.download(DeltaLocation(bucket, f"{folder}/"), file, scratch / name)
        with (scratch / name).open(encoding="utf-8") as lines:
            for line in map(json.loads, lines):
                if "summary" not in line:
                    verdict = Verdict.from_json(line)
                    tally.add(verdict)
                    report.add(verdict)
    report.finish(tally)
    if not tally.total:
        _say("no deltas found")
    return tally


def _message_in(cause: str) -> str:
    """The message of the exception that a function raised."""
    try:
        return str(json.loads(cause)["errorMessage"])
    except (ValueError, KeyError, TypeError):
        return cause


def _say(text: str) -> None:
    click.echo(printable(text, _LONGEST), err=True)
