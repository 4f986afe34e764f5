"""`deltaguard policy` prints what `shared.aws.policies` makes of the names it is given."""

from __future__ import annotations

import json

import pytest
from click.testing import CliRunner, Result

from scanner.cli import cli
from shared.aws import policies
from shared.aws.policies import Scope

ROLE = "arn:aws:iam::123456789012:role/validator"
QUEUE = "arn:aws:sqs:us-east-1:123456789012:requests"


def run(*arguments: str) -> Result:
    return CliRunner().invoke(cli, ["policy", *arguments], catch_exceptions=False)


def test_the_bucket_policy() -> None:
    result = run("read-denial", "--bucket", "deltas", "--prefix", "words/delta", "--validator", ROLE)
    assert json.loads(result.stdout) == policies.read_denial(Scope("deltas", ("words/delta/",)), validators=[ROLE])


def test_the_policy_of_a_quarantine_bucket() -> None:
    given = ("--bucket", "deltas", "--validator", ROLE, "--of-quarantine")
    result = run("read-denial", *given, "--quarantine-bucket", "held")
    assert json.loads(result.stdout)["Statement"][0]["Resource"] == ["arn:aws:s3:::held/quarantine/*"]
    assert run("read-denial", *given).exit_code == 2


@pytest.mark.parametrize("role", ["validator", "scanner", "compaction", "producer", "operator"])
def test_a_role(role: str) -> None:
    result = run(role, "--bucket", "deltas")
    assert json.loads(result.stdout) == getattr(policies, role)(Scope("deltas"))


def test_resubmission_needs_a_target() -> None:
    assert run("resubmit", "--bucket", "deltas", "--queue", QUEUE).exit_code == 2
    result = run("resubmit", "--bucket", "deltas", "--queue", QUEUE, "--target-queue", QUEUE)
    assert json.loads(result.stdout) == policies.resubmit(Scope("deltas"), queue=QUEUE, target_queue=QUEUE)


def test_quarantine_is_where_the_settings_say(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DELTAGUARD_QUARANTINE_BUCKET", "held")
    monkeypatch.setenv("DELTAGUARD_QUARANTINE_PREFIX", "corrupt/deltas")
    assert "arn:aws:s3:::held/corrupt/deltas/*" in run("validator", "--bucket", "deltas").stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["scanner", "--bucket", "x"], "'x' is not the name of a bucket"),
        (["read-denial", "--bucket", "deltas", "--validator", "me"], "'me' is not an ARN"),
        (["read-denial", "--bucket", "deltas"], "Missing option '--validator'"),
        (["scanner"], "Missing option '--bucket'"),
    ],
)
def test_wrong_usage_is_one_clear_line(arguments: list[str], message: str) -> None:
    result = run(*arguments)
    assert (result.exit_code, result.stdout) == (2, "")
    assert message in result.stderr.splitlines()[-1]
