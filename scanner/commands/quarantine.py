"""`deltaguard quarantine`: what lies in quarantine, back to its place, or gone for good."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable, Iterable, Sequence
from datetime import UTC, datetime, timedelta
from io import StringIO
from typing import TYPE_CHECKING, Any

import click
from rich.console import Console
from rich.filesize import decimal
from rich.table import Table
from rich.text import Text

from scanner.find.targets import StoredRoot, require_bucket, root_named
from scanner.report.output import Output
from shared.model.delta import printable
from shared.model.errors import CouldNotCheck, TargetError
from shared.model.settings import Settings
from shared.model.verdict import Status

if TYPE_CHECKING:
    from shared.quarantine.restore import Held
    from shared.storage.store import Store

_EXIT_STATUS = """\b
Exit status:
  0    done; what was restored is healthy
  1    a restored delta is still corrupt (or incomplete)
  2    the command line, a target or a setting is wrong; nothing was changed
  3    something could not be read, restored or purged; the others were
  130  interrupted (Ctrl-C)
"""
_AGE = re.compile(r"(\d{1,5})([dhm])")
_UNITS = {"d": "days", "h": "hours", "m": "minutes"}
_LONGEST = 8192


def _age(_ctx: click.Context, _parameter: click.Parameter, value: str | None) -> timedelta | None:
    """`30d`, `12h` or `90m` as a time span."""
    if value is None:
        return None
    match = _AGE.fullmatch(value)
    if not match:
        raise click.BadParameter(f"{printable(value)!r} is not an age such as 30d, 12h or 90m")
    return timedelta(**{_UNITS[match[2]]: int(match[1])})


def _common(command: Callable[..., None]) -> Callable[..., None]:
    """The argument and the options that all four commands share."""
    for decorate in (
        click.option(
            "--format",
            "form",
            type=click.Choice(["table", "ndjson"]),
            default="table",
            show_default=True,
            help="A table for people, or one JSON object a delta and a summary.",
        ),
        click.option(
            "--fingerprint",
            metavar="HEX",
            default="",
            callback=lambda _ctx, _parameter, value: value.lower(),
            help="Only those whose fingerprint begins so: one delta may be held in several states.",
        ),
        click.argument("targets", nargs=-1, required=True, metavar="TARGET..."),
    ):
        command = decorate(command)
    return command


_yes = click.option("--yes", is_flag=True, help="Do it without asking.")
_dry_run = click.option("--dry-run", is_flag=True, help="Say what would be done, and change nothing.")


@click.group(epilog=_EXIT_STATUS)
def quarantine() -> None:
    """List, show, restore and purge what lies in quarantine.

    A TARGET is s3://bucket or s3://bucket/prefix: where the deltas lay, not where they lie now. It stands for all that
    was quarantined from there and from below.
    """
    from shared.aws.telemetry import use_stderr  # noqa: PLC0415 - help and usage errors need none of it

    use_stderr()


@quarantine.command("list", epilog=_EXIT_STATUS)
@_common
@click.pass_context
def list_(ctx: click.Context, /, targets: tuple[str, ...], fingerprint: str, form: str) -> None:
    """List what is held of the deltas at and below TARGET."""
    found = _Found(targets, fingerprint)
    _write(form, [held.as_json() for held in found.held], _table(found.held), {"held": len(found.held)})
    ctx.exit(3 if found.unreadable else 0)


@quarantine.command(epilog=_EXIT_STATUS)
@_common
@click.pass_context
def show(ctx: click.Context, /, targets: tuple[str, ...], fingerprint: str, form: str) -> None:
    """Show records and history in full, and whether every copy is there."""
    from shared.quarantine.restore import missing_copies  # noqa: PLC0415 - as above

    found = _Found(targets, fingerprint)
    found.require_some()
    lines, pages = [], []
    for held in found.held:
        missing = missing_copies(found.store, held)
        record = held.record.model_dump(mode="json")
        history = [entry.model_dump(mode="json") for entry in held.history]
        lines.append({**held.as_json(), "missing": list(missing), "record": record, "history": history})
        pages.append(_page(held, missing))
    _write(form, lines, Text("\n\n").join(pages), {"held": len(found.held)})
    ctx.exit(3 if found.unreadable or any(line["missing"] for line in lines) else 0)


@quarantine.command(epilog=_EXIT_STATUS)
@_common
@click.option("--overwrite", is_flag=True, help="Delete what lies in its place now. Without versions it is lost.")
@_dry_run
@_yes
@click.pass_context
def restore(
    ctx: click.Context,
    /,
    targets: tuple[str, ...],
    fingerprint: str,
    form: str,
    overwrite: bool,
    dry_run: bool,
    yes: bool,
) -> None:
    """Put deltas back in their place, and judge them there.

    Of each delta the state that was quarantined last is restored, unless --fingerprint names another. Nothing that lies
    in its place is touched without --overwrite. What is restored stays in quarantine, too, until it is purged, and the
    history there tells of it. A delta that is still corrupt will be quarantined again when the validator sees it.
    """
    from shared.quarantine.restore import restore  # noqa: PLC0415 - as above

    found = _Found(targets, fingerprint)
    found.require_some()
    latest = list({held.origin: held for held in found.held}.values())
    if dry_run:
        _tell_dry_run(form, latest, "would be restored")
        ctx.exit(3 if found.unreadable else 0)
    if len(latest) > 1 or overwrite:
        _confirm(f"Restore {_counted(len(latest))}{', deleting what lies in their place' * overwrite}?", yes)
    lines = []
    for held in latest:
        line = {
            **held.as_json(),
            "restored": False,
            "status": Status.UNDETERMINED.value,
            "findings": [],
            "reason": None,
        }
        try:
            verdict = restore(found.store, held, found.settings, overwrite=overwrite)
            findings = [finding.as_json() for finding in verdict.findings]
            line |= {"restored": True, "status": verdict.status.value, "findings": findings}
            if verdict.status is Status.CORRUPT:
                line["reason"] = (
                    f"restored, but still corrupt; the validator will quarantine it again: {verdict.reason}"
                )
            elif verdict.status is not Status.HEALTHY:
                line["reason"] = f"restored, but {verdict.status}: {verdict.reason}"
        except TargetError as error:
            if len(latest) == 1:
                raise
            line["reason"] = str(error)
        except CouldNotCheck as fault:
            line["reason"] = fault.detail
        lines.append(line)
    statuses = [line["status"] for line in lines]
    counts = {status.value: statuses.count(status.value) for status in Status}
    _write(form, lines, _outcomes((line["status"], line) for line in lines), counts)
    if counts[Status.CORRUPT] or counts[Status.INCOMPLETE]:
        ctx.exit(1)
    ctx.exit(3 if counts[Status.UNDETERMINED] or found.unreadable else 0)


@quarantine.command(epilog=_EXIT_STATUS)
@_common
@click.option(
    "--older-than",
    callback=_age,
    metavar="AGE",
    help="Only what was quarantined or restored last so long ago: 30d, 12h, 90m.  "
    "[default: DELTAGUARD_QUARANTINE_RETENTION_DAYS, or 30d]",
)
@_dry_run
@_yes
@click.pass_context
def purge(
    ctx: click.Context,
    /,
    targets: tuple[str, ...],
    fingerprint: str,
    form: str,
    older_than: timedelta | None,
    dry_run: bool,
    yes: bool,
) -> None:
    """Delete what is held of the deltas at and below TARGET for good.

    All versions of the copies go with it. What a retention of the bucket (S3 Object Lock) forbids is left and named.
    """
    from shared.quarantine.restore import purge  # noqa: PLC0415 - as above

    found = _Found(targets, fingerprint)
    age = timedelta(days=found.settings.quarantine_retention_days) if older_than is None else older_than
    before = datetime.now(UTC) - age
    old = [held for held in found.held if held.since <= before]
    if len(old) < len(found.held):
        click.echo(f"{_counted(len(found.held) - len(old))} held for less than {_told(age)}: kept", err=True)
    if dry_run:
        _tell_dry_run(form, old, "would be purged")
        ctx.exit(3 if found.unreadable else 0)
    if old:
        size = sum(file.size for held in old for file in held.record.files)
        _confirm(f"Delete {_counted(len(old))} ({decimal(size)}) from quarantine, for good?", yes)
    lines = []
    for held in old:
        line = {**held.as_json(), "purged": True, "reason": None}
        try:
            purge(found.store, held)
        except CouldNotCheck as fault:
            line |= {"purged": False, "reason": fault.detail}
        lines.append(line)
    purged = sum(1 for line in lines if line["purged"])
    table = _outcomes(("purged" if line["purged"] else "kept", line) for line in lines)
    _write(form, lines, table, {"purged": purged, "kept": len(found.held) - purged})
    ctx.exit(3 if purged < len(old) or found.unreadable else 0)


class _Found:
    """What is held at and below the targets.

    Raises:
        TargetError: A target is no `s3://bucket/prefix`, or there is no such bucket.
        CouldNotCheck: The quarantine cannot be listed.
    """

    def __init__(self, targets: Sequence[str], fingerprint: str) -> None:
        from shared.quarantine.restore import held_below  # noqa: PLC0415 - as above
        from shared.storage.store import current_store  # noqa: PLC0415 - as above

        self.settings = Settings.from_environment()
        self.store: Store = current_store()
        self.unreadable = False
        self._targets = targets
        found: dict[str, Held] = {}
        for root in [_stored_root(target) for target in targets]:
            require_bucket(self.store, root)
            for held in held_below(self.store, root.bucket, root.prefix, self.settings, self._tell):
                if held.record.fingerprint.startswith(fingerprint):
                    found[held.place.uri] = held
        self.held = list(found.values())

    def require_some(self) -> None:
        """Raises `TargetError` when nothing is held there, unless something could not be read."""
        if not self.held and not self.unreadable:
            raise TargetError(f"{', '.join(self._targets)}: nothing of it lies in quarantine")

    def _tell(self, error: CouldNotCheck) -> None:
        self.unreadable = True
        click.echo(f"Error: {printable(error.detail, _LONGEST)}", err=True)


def _stored_root(target: str) -> StoredRoot:
    if "://" not in target:
        raise TargetError(
            f"{printable(target)}: give the place in S3 that the delta was taken from, s3://bucket/prefix"
        )
    root = root_named(target)
    if not isinstance(root, StoredRoot):
        raise TargetError(f"{printable(target)}: not an s3://bucket/prefix")
    return root


def _is_asked() -> bool:
    """Whether somebody is there to be asked."""
    return sys.stdin is not None and sys.stdin.isatty()


def _confirm(question: str, yes: bool) -> None:
    if yes:
        return
    if not _is_asked():
        raise TargetError("nothing was changed: nobody is there to be asked; --yes does it without")
    if not click.confirm(question, err=True):
        click.echo("nothing was changed", err=True)
        click.get_current_context().exit(0)


def _write(form: str, lines: Iterable[dict[str, Any]], page: Table | Text, summary: dict[str, Any]) -> None:
    with Output(None) as output:
        if form == "ndjson":
            output.write("".join(json.dumps(line) + "\n" for line in (*lines, {"summary": summary})))
            return
        text = StringIO()
        console = Console(file=text, force_terminal=output.stream.isatty(), highlight=False, markup=False, emoji=False)
        if isinstance(page, Text) or page.row_count:
            console.print(page, soft_wrap=isinstance(page, Text))
        told = ", ".join(f"{count} {name}" for name, count in summary.items())
        console.print(Text(f"\n{told}" if text.tell() else told))
        output.write("".join(line.rstrip() + "\n" for line in text.getvalue().splitlines()))


def _tell_dry_run(form: str, held: list[Held], what: str) -> None:
    lines = [{**one.as_json(), "dry_run": True} for one in held]
    _write(form, lines, _table(held), {what if form == "table" else what.replace(" ", "_"): len(held)})


def _columns(*names: str) -> Table:
    table = Table(box=None, header_style="bold", pad_edge=False, padding=(0, 2, 0, 0))
    for name in names:
        table.add_column(name, overflow="fold", justify="right" if name == "size" else "left")
    return table


def _table(held: list[Held]) -> Table:
    table = _columns("quarantined", "delta", "size", "for", "fingerprint")
    for one in held:
        size = decimal(sum(file.size for file in one.record.files))
        back = " (restored)" if any(entry.event == "restored" for entry in one.history) else ""
        when = Text(f"{one.record.quarantined_at:%Y-%m-%d %H:%M}{back}")
        reason = one.codes[0] + f" +{len(one.codes) - 1}" * (len(one.codes) > 1) if one.codes else ""
        table.add_row(when, _shown(one.origin.uri), size, _shown(reason), one.record.fingerprint[:8])
    return table


def _outcomes(lines: Iterable[tuple[str, dict[str, Any]]]) -> Table:
    table = _columns("", "delta", "reason")
    for outcome, line in lines:
        style = {"healthy": "green", "purged": "green", "corrupt": "bold red"}.get(outcome, "yellow")
        table.add_row(Text(outcome, style), _shown(line["delta"]), _shown(line["reason"] or ""))
    return table


def _page(held: Held, missing: tuple[str, ...]) -> Text:
    """Everything about one delta, a line each: paths stay whole for the mouse and for grep."""
    record = held.record
    batch = f"{record.batch_id}, attempt {record.attempt}" if record.batch_id else "not known"
    lines = [
        f"{held.origin.uri}",
        f"  held in     {held.place.uri}",
        f"  since       {record.quarantined_at:%Y-%m-%d %H:%M:%S} UTC",
        f"  batch       {batch}",
        f"  verdict     {record.verdict.get('status')} at depth {record.verdict.get('depth')}",
    ]
    lines += [f"    {f['code']}  {f['file']}: {f['detail']}" for f in record.verdict.get("findings", ())]
    lines.append(f"  {len(record.files)} files, {'every copy is there' if not missing else 'COPIES MISSING'}")
    lines += [f"    {file.size:>12,}  {file.name}{'  MISSING' * (file.name in missing)}" for file in record.files]
    for entry in held.history:
        result = f": {entry.status}" if entry.status else ": cut short" * (entry.event == "restored")
        codes = f" for {', '.join(entry.codes)}" if entry.codes else ""
        lines.append(f"  {entry.at:%Y-%m-%d %H:%M:%S} {entry.event.replace('_', ' ')}{result}{codes}")
    return Text("\n").join(_shown(line) for line in lines)


def _counted(number: int) -> str:
    return f"{number} delta" if number == 1 else f"{number} deltas"


def _told(age: timedelta) -> str:
    return f"{age.days} days" if age >= timedelta(days=1) else f"{age.total_seconds() / 3600:g} hours"


def _shown(text: str) -> Text:
    return Text(printable(text, _LONGEST), overflow="fold")
