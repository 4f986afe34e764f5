"""`deltaguard policy`: the access policies of `shared.aws.policies`, printed as JSON."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import click

from shared.aws import policies
from shared.aws.policies import Policy, Scope
from shared.model.delta import BUCKET_NAME, printable
from shared.model.settings import Settings

_Command = Callable[..., None]


@click.group()
def policy() -> None:
    """Print the access policies of the bucket and of each role, as JSON for put-bucket-policy or a template.

    They allow what a run really uses and nothing more. Add AWSLambdaBasicExecutionRole for the logs of a function, and
    the rights to your KMS key if the bucket is encrypted with one.
    """


def _bucket(_ctx: click.Context, _parameter: click.Parameter, value: str | None) -> str | None:
    if value is not None and not BUCKET_NAME.fullmatch(value):
        raise click.BadParameter(f"{printable(value)!r} is not the name of a bucket")
    return value


def _arns(_ctx: click.Context, _parameter: click.Parameter, value: Any) -> Any:
    for arn in (value,) if isinstance(value, str) else value or ():
        if not arn.startswith("arn:") or arn.count(":") < 5:
            raise click.BadParameter(f"{printable(arn)!r} is not an ARN")
    return value


def _arn(name: str, text: str, *, required: bool = False, multiple: bool = False) -> Callable[[_Command], _Command]:
    return click.option(name, metavar="ARN", callback=_arns, required=required, multiple=multiple, help=text)


def _scoped(command: _Command) -> _Command:
    """The options that say which part of S3 a policy is about."""
    for decorate in (
        click.option(
            "--partition",
            type=click.Choice(["aws", "aws-cn", "aws-us-gov"]),
            default="aws",
            show_default=True,
            help="The part of AWS that the account is in.",
        ),
        click.option(
            "--quarantine-prefix", metavar="PREFIX", help="[default: DELTAGUARD_QUARANTINE_PREFIX, or quarantine]"
        ),
        click.option(
            "--quarantine-bucket",
            metavar="BUCKET",
            callback=_bucket,
            help="[default: DELTAGUARD_QUARANTINE_BUCKET, or the same bucket]",
        ),
        click.option(
            "--prefix",
            "prefixes",
            metavar="PREFIX",
            multiple=True,
            help="Of the deltas; again for more.  [default: all]",
        ),
        click.option("--bucket", metavar="BUCKET", required=True, callback=_bucket, help="Where the deltas lie."),
    ):
        command = decorate(command)
    return command


def _scope(
    bucket: str, prefixes: tuple[str, ...], quarantine_bucket: str | None, quarantine_prefix: str | None, partition: str
) -> Scope:
    settings = Settings.from_environment()
    return Scope(
        bucket,
        tuple(_folder(prefix) for prefix in prefixes) or ("",),
        quarantine_bucket or settings.quarantine_bucket,
        _folder(quarantine_prefix or settings.quarantine_prefix),
        partition,
    )


def _folder(prefix: str) -> str:
    return prefix.strip("/") + "/" if prefix.strip("/") else ""


def _print(document: Policy) -> None:
    click.echo(json.dumps(document, indent=2))


def _split(options: dict[str, Any]) -> tuple[Scope, dict[str, Any]]:
    """The scope that the options of `_scoped` make, and the other options."""
    names = ("bucket", "prefixes", "quarantine_bucket", "quarantine_prefix", "partition")
    scope = _scope(**{name: options[name] for name in names})
    return scope, {name: value for name, value in options.items() if name not in names}


@policy.command("read-denial")
@_scoped
@_arn("--validator", "Role of the validator; again for more.", required=True, multiple=True)
@_arn("--producer", "Role that uploads deltas; again for more.", multiple=True)
@_arn("--compaction", "Role that merges deltas; again for more.", multiple=True)
@_arn("--operator", "Role that restores and purges; again for more.", multiple=True)
@click.option("--of-quarantine", is_flag=True, help="The policy of the quarantine bucket, where that is another one.")
def read_denial(**options: Any) -> None:
    """Bucket policy: no delta can be read until it is validated, and quarantine by nobody else.

    It denies the reading of chroma.sqlite3 as long as it has no tag deltaguard:status=healthy, and the setting of such
    tags to all but validators.
    """
    scope, given = _split(options)
    roles = {f"{name}s": given[name] for name in ("validator", "compaction", "operator")}
    if not given["of_quarantine"]:
        _print(policies.read_denial(scope, **roles, producers=given["producer"]))
    elif scope.quarantine_bucket in (None, scope.bucket):
        raise click.UsageError("--of-quarantine needs a --quarantine-bucket that is another one")
    else:
        _print(policies.quarantine_denial(scope, **roles))


@policy.command()
@_scoped
@_arn("--events-queue", "Queue that S3's events come from.")
@_arn("--resubmit-queue", "Queue for re-processing requests.")
@_arn("--event-bus", "EventBridge bus that is told.")
def validator(**options: Any) -> None:
    """Role policy of the validator."""
    scope, given = _split(options)
    _print(policies.validator(scope, **given))


@policy.command()
@_scoped
@click.option("--quarantine", is_flag=True, help="It also moves corrupt deltas into quarantine.")
def scanner(**options: Any) -> None:
    """Role policy of the scanner; it only reads unless --quarantine is given."""
    scope, given = _split(options)
    _print(policies.scanner(scope, **given))


@policy.command()
@_scoped
@click.option(
    "--intermediate-prefix",
    metavar="PREFIX",
    default="intermediate/",
    show_default=True,
    callback=lambda _ctx, _parameter, value: _folder(value),
    help="Where the results of chunks go.",
)
@click.option(
    "--snapshot-prefix",
    metavar="PREFIX",
    default="snapshots/",
    show_default=True,
    callback=lambda _ctx, _parameter, value: _folder(value),
    help="Where snapshots go.",
)
@_arn("--event-bus", "EventBridge bus that is told of refused chunks.")
def compaction(**options: Any) -> None:
    """Role policy of compaction with its gate."""
    scope, given = _split(options)
    _print(policies.compaction(scope, **given))


@policy.command()
@_scoped
def producer(**options: Any) -> None:
    """Role policy of a producer that uploads with `upload_delta`."""
    _print(policies.producer(_split(options)[0]))


@policy.command()
@_scoped
def operator(**options: Any) -> None:
    """Role policy of a person who uses `deltaguard quarantine`."""
    _print(policies.operator(_split(options)[0]))


@policy.command()
@_scoped
@_arn("--queue", "Queue of re-processing requests.", required=True)
@_arn("--target-queue", "Queue that starts a batch.")
@_arn("--state-machine", "State machine that processes a batch.")
@_arn("--event-bus", "EventBridge bus for the alarm to a person.")
def resubmit(**options: Any) -> None:
    """Role policy of the function that has batches processed again."""
    scope, given = _split(options)
    if not given["target_queue"] and not given["state_machine"]:
        raise click.UsageError("give the --target-queue or the --state-machine that a batch is started with")
    _print(policies.resubmit(scope, **given))
