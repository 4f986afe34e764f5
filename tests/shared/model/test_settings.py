"""Settings come from `DELTAGUARD_*` variables; one that cannot be used stops the program at start, by its name."""

from __future__ import annotations

import pytest

from shared.model.errors import SettingsError
from shared.model.settings import Act, Settings
from shared.model.verdict import Depth


def test_without_variables_the_defaults_hold() -> None:
    assert Settings.from_environment({}) == Settings(
        quarantine_bucket=None,
        quarantine_prefix="quarantine",
        depth=Depth.OPEN,
        settle_seconds=60,
        manifest_required=False,
        max_delta_bytes=2 * 1024**3,
        probe_timeout_seconds=60,
        stage="dev",
        event_bus=None,
        resubmit_queue_url=None,
        resubmit_target=None,
        max_resubmissions=3,
        quarantine_retention_days=30,
        arrival_seconds=21600,
        act=Act.QUARANTINE,
        max_quarantines_per_minute=None,
    )


BUS = "arn:aws-us-gov:events:us-gov-west-1:123456789012:event-bus/deltas"
QUEUE = "https://sqs.eu-central-1.amazonaws.com/123456789012/re-process"
MACHINE = "arn:aws:states:eu-central-1:123456789012:stateMachine:embed:7"
SET = [
    ("DELTAGUARD_QUARANTINE_BUCKET", "held-deltas", Settings(quarantine_bucket="held-deltas")),
    ("DELTAGUARD_QUARANTINE_PREFIX", "held/deltas", Settings(quarantine_prefix="held/deltas")),
    ("DELTAGUARD_QUARANTINE_PREFIX", "/held/", Settings(quarantine_prefix="held")),
    ("DELTAGUARD_DEPTH", "listing", Settings(depth=Depth.LISTING)),
    ("DELTAGUARD_DEPTH", "structure", Settings(depth=Depth.STRUCTURE)),
    ("DELTAGUARD_SETTLE_SECONDS", "0", Settings(settle_seconds=0)),
    ("DELTAGUARD_SETTLE_SECONDS", "2.5", Settings(settle_seconds=2.5)),
    ("DELTAGUARD_ARRIVAL_SECONDS", "3600", Settings(arrival_seconds=3600)),
    ("DELTAGUARD_ACT", "report", Settings(act=Act.REPORT)),
    ("DELTAGUARD_MAX_QUARANTINES_PER_MINUTE", "60", Settings(max_quarantines_per_minute=60)),
    ("DELTAGUARD_MANIFEST", "required", Settings(manifest_required=True)),
    ("DELTAGUARD_MANIFEST", "optional", Settings(manifest_required=False)),
    ("DELTAGUARD_MAX_DELTA_BYTES", "1", Settings(max_delta_bytes=1)),
    ("DELTAGUARD_PROBE_TIMEOUT_SECONDS", "1", Settings(probe_timeout_seconds=1)),
    ("DELTAGUARD_STAGE", "prod", Settings(stage="prod")),
    ("DELTAGUARD_EVENT_BUS", "default", Settings(event_bus="default")),
    ("DELTAGUARD_EVENT_BUS", BUS, Settings(event_bus=BUS)),
    ("DELTAGUARD_RESUBMIT_QUEUE_URL", QUEUE, Settings(resubmit_queue_url=QUEUE)),
    ("DELTAGUARD_RESUBMIT_TARGET", f"{QUEUE}.fifo", Settings(resubmit_target=f"{QUEUE}.fifo")),
    ("DELTAGUARD_RESUBMIT_TARGET", MACHINE, Settings(resubmit_target=MACHINE)),
    ("DELTAGUARD_MAX_RESUBMISSIONS", "0", Settings(max_resubmissions=0)),
    ("DELTAGUARD_MAX_RESUBMISSIONS", "100", Settings(max_resubmissions=100)),
    ("DELTAGUARD_QUARANTINE_RETENTION_DAYS", "90", Settings(quarantine_retention_days=90)),
    ("DELTAGUARD_QUARANTINE_RETENTION_DAYS", "0", Settings(quarantine_retention_days=0)),
]


@pytest.mark.parametrize(("variable", "text", "expected"), SET)
def test_a_variable_sets_its_setting_and_no_other(variable: str, text: str, expected: Settings) -> None:
    assert Settings.from_environment({variable: text}) == expected
    assert Settings.from_environment({variable: f"  {text}\n"}) == expected


@pytest.mark.parametrize("variable", sorted({variable for variable, _, _ in SET}))
@pytest.mark.parametrize("text", ["", "  "])
def test_a_variable_that_is_set_but_empty_counts_as_not_set(variable: str, text: str) -> None:
    assert Settings.from_environment({variable: text}) == Settings()


def test_the_process_s_own_environment_is_read_by_default(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DELTAGUARD_STAGE", "staging")
    assert Settings.from_environment().stage == "staging"


@pytest.mark.parametrize(
    ("variable", "text", "rule"),
    [
        ("DELTAGUARD_QUARANTINE_RETENTION_DAYS", "30d", "whole number of days"),
        ("DELTAGUARD_QUARANTINE_RETENTION_DAYS", "40000", "at most 36500"),
        ("DELTAGUARD_QUARANTINE_BUCKET", "Not_A Bucket", "bucket"),
        ("DELTAGUARD_QUARANTINE_BUCKET", "s3://held/deltas", "bucket"),
        ("DELTAGUARD_QUARANTINE_PREFIX", "/", "must be a key prefix"),
        ("DELTAGUARD_QUARANTINE_PREFIX", "a//b", "must be a key prefix"),
        ("DELTAGUARD_QUARANTINE_PREFIX", "../b", "must be a key prefix"),
        ("DELTAGUARD_QUARANTINE_PREFIX", "a/./b", "must be a key prefix"),
        ("DELTAGUARD_DEPTH", "deep", "must be one of listing, header, structure, open"),
        ("DELTAGUARD_DEPTH", "OPEN", "must be one of listing, header, structure, open"),
        ("DELTAGUARD_SETTLE_SECONDS", "a minute", "must be a number of seconds"),
        ("DELTAGUARD_SETTLE_SECONDS", "-1", "must be at least 0 seconds"),
        ("DELTAGUARD_SETTLE_SECONDS", "nan", "seconds"),
        ("DELTAGUARD_SETTLE_SECONDS", "inf", "seconds"),
        ("DELTAGUARD_ARRIVAL_SECONDS", "6h", "must be a number of seconds"),
        ("DELTAGUARD_ACT", "delete", "must be quarantine or report"),
        ("DELTAGUARD_MAX_QUARANTINES_PER_MINUTE", "0", "whole number from 1"),
        ("DELTAGUARD_MANIFEST", "yes", "must be optional or required"),
        ("DELTAGUARD_MAX_DELTA_BYTES", "0", "at least 1"),
        ("DELTAGUARD_MAX_DELTA_BYTES", "-5", "whole number of bytes"),
        ("DELTAGUARD_MAX_DELTA_BYTES", "1.5", "whole number of bytes"),
        ("DELTAGUARD_MAX_DELTA_BYTES", "2GB", "whole number of bytes"),
        ("DELTAGUARD_MAX_DELTA_BYTES", "9" * 5000, ""),
        ("DELTAGUARD_PROBE_TIMEOUT_SECONDS", "0.5", "must be at least 1 seconds"),
        ("DELTAGUARD_PROBE_TIMEOUT_SECONDS", "soon", "must be a number of seconds"),
        ("DELTAGUARD_EVENT_BUS", "a bus", "event bus"),
        ("DELTAGUARD_EVENT_BUS", "arn:aws:sqs:us-east-1:123456789012:deltas", "event bus"),
        ("DELTAGUARD_RESUBMIT_QUEUE_URL", "deltas", "URL of an SQS queue"),
        ("DELTAGUARD_RESUBMIT_QUEUE_URL", "arn:aws:sqs:us-east-1:123456789012:deltas", "URL of an SQS queue"),
        ("DELTAGUARD_RESUBMIT_QUEUE_URL", "https://example.org/", "URL of an SQS queue"),
        ("DELTAGUARD_RESUBMIT_TARGET", "arn:aws:lambda:us-east-1:123456789012:function:f", "ARN of a state machine"),
        ("DELTAGUARD_RESUBMIT_TARGET", "embed", "ARN of a state machine"),
        ("DELTAGUARD_MAX_RESUBMISSIONS", "-1", "whole number from 0 to 100"),
        ("DELTAGUARD_MAX_RESUBMISSIONS", "101", "whole number from 0 to 100"),
        ("DELTAGUARD_MAX_RESUBMISSIONS", "three", "whole number from 0 to 100"),
        ("DELTAGUARD_MAX_RESUBMISSIONS", "³", "whole number from 0 to 100"),
    ],
)
def test_a_wrong_value_is_one_error_that_names_variable_value_and_rule(variable: str, text: str, rule: str) -> None:
    with pytest.raises(SettingsError) as wrong:
        Settings.from_environment({variable: text, "DELTAGUARD_STAGE": "prod"})
    assert str(wrong.value).startswith(f"{variable}={text!r}: ")
    assert rule in str(wrong.value)
    assert str(wrong.value).isprintable()


def test_a_time_that_is_too_long_is_not_called_too_short() -> None:
    with pytest.raises(SettingsError) as wrong:
        Settings.from_environment({"DELTAGUARD_SETTLE_SECONDS": "1e10"})
    assert "at most" in str(wrong.value)


def test_corrupt_deltas_stay_in_their_own_bucket_unless_one_is_set() -> None:
    assert Settings().quarantine_of("deltas") == ("deltas", "quarantine/")
    held = Settings(quarantine_bucket="held", quarantine_prefix="a/b")
    assert held.quarantine_of("deltas") == ("held", "a/b/")
