"""The HTML report: one file that asks nobody for anything, readable on a phone, in light and in dark.

Whatever comes from a delta (keys, ids, names, details) is escaped, and a content security policy forbids the page every
request and every script, should something slip through all the same.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime
from importlib.resources import files
from string import Template

from rich.filesize import decimal

from scanner.advice import advice_on
from scanner.report.charts import bar, percent, prefix_map, rate_over_time, shares, shown
from scanner.report.output import Output
from scanner.report.overview import Overview, Prefix, worst
from scanner.run.workers import Tally
from shared.model.findings import CATALOGUE, Weight
from shared.model.verdict import Finding, Status, Verdict

KEPT = {Status.CORRUPT: 1_000, Status.INCOMPLETE: 200, Status.UNDETERMINED: 200}
"""How many deltas of each status are shown with their evidence; of more, the page tells the number."""

_ORDER = (Status.CORRUPT, Status.INCOMPLETE, Status.UNDETERMINED, Status.HEALTHY)
_OPENED = 5
_BINS = 60
_WORST = 8
_LONGEST = 8192
_WORDS = {
    Status.CORRUPT: "Proven by their bytes. Each can be quarantined, and its batch processed again.",
    Status.INCOMPLETE: "Files of these may still be on their way. Check them again later.",
    Status.UNDETERMINED: "Something kept these from being checked. It says nothing about them.",
}


class HtmlReport:
    """A page for people, written when the run ends. Healthy deltas are counted as they come, and forgotten.

    Args:
        output: Where the page goes.
    """

    def __init__(self, output: Output) -> None:
        self._output = output
        self._overview = Overview(KEPT)

    def add(self, verdict: Verdict) -> None:
        """Takes in one verdict."""
        self._overview.add(verdict)

    def finish(self, tally: Tally) -> None:
        """Writes the page."""
        self._output.write(page(self._overview, tally, datetime.now(UTC)))


def page(overview: Overview, tally: Tally, now: datetime) -> str:
    """The whole page."""
    style = _resource("report.css")
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    headline = _headline(tally)
    missing = ["It was interrupted: this is what was checked until then."] * tally.interrupted
    missing += ["Not everything could be listed: deltas may be missing here."] * tally.unfinished
    warning = f'<p class="warning" role="note">{" ".join(missing)}</p>' if missing else ""
    seconds = tally.as_json()["duration_ms"] / 1000
    depths = ", ".join(sorted(overview.depths))
    lead = f"{decimal(tally.size)} in {_counted(tally.total, 'delta')}" + (
        f", checked at depth {depths}" if depths else ""
    )
    versions = ", ".join(f"{name} {version}" for name, version in sorted(overview.versions.items()))
    return Template(_resource("report.html")).substitute(
        style=style,
        style_hash=f"sha256-{digest}",
        title=f"{headline} · Deltaguard",
        when=f"{now.day} {now:%B} {now.year}, {now:%H:%M} UTC",
        headline=headline,
        lead=f"{lead} in {_duration(seconds)}.",
        warning=warning,
        sections="\n".join(_sections(overview, tally)),
        versions=shown(f"Made with {versions}." if versions else ""),
    )


def _sections(overview: Overview, tally: Tally) -> Iterator[str]:
    if not tally.total:
        return
    yield _totals(tally)
    bins, width = overview.timeline.bins(_BINS)
    if len(bins) > 1 and tally.counts[Status.CORRUPT]:
        about = f"The share of corrupt deltas by time of upload, a bar for every {width}; in grey, how many arrived."
        yield _section("time", "When they were uploaded", about, rate_over_time(bins, width))
    root = overview.prefixes.root()
    if root.children:
        about = "Each prefix is as wide as its share of the deltas, and says how many of them are corrupt."
        yield _section("map", "Where they lie", about, _map(root))
    findings = {code: count for code, count in overview.codes.items() if CATALOGUE[code].weight is not Weight.NOTE}
    notes = {code: count for code, count in overview.codes.items() if code not in findings}
    if findings:
        yield _section("findings", "What was found", "How many deltas each finding was made in.", _codes(findings))
    for status in KEPT:
        if overview.kept[status]:
            yield _deltas(status, overview.kept[status], tally.counts[status])
    if notes:
        yield _section(
            "notes", "Notes", "Worth knowing, and nothing is lost by them: they change no verdict.", _codes(notes)
        )


def _headline(tally: Tally) -> str:
    corrupt, incomplete, unchecked = (tally.counts[status] for status in _ORDER[:3])
    if not tally.total:
        return "No deltas were found"
    if corrupt:
        return f"{corrupt:,} of {_counted(tally.total, 'delta')} {'is' if corrupt == 1 else 'are'} corrupt"
    open_ = [f"{incomplete:,} still arriving"] * bool(incomplete) + [f"{unchecked:,} could not be checked"] * bool(
        unchecked
    )
    if open_:
        return f"None of {_counted(tally.total, 'delta')} is known to be corrupt; {', '.join(open_)}"
    return "The one delta is healthy" if tally.total == 1 else f"All {tally.total:,} deltas are healthy"


def _totals(tally: Tally) -> str:
    order = (Status.HEALTHY, *_ORDER[:3])
    items = [
        f"<li{'' if tally.counts[status] else ' class=none'}><b>{tally.counts[status]:,}</b>"
        f'<span class="mark {status}">{status}</span></li>'
        for status in order
    ]
    bars = shares((status.value, tally.counts[status]) for status in order)
    return f'<section aria-label="Totals">{bars}<ul class="totals">{"".join(items)}</ul></section>'


def _section(name: str, title: str, about: str, content: str) -> str:
    return (
        f'<section aria-labelledby="{name}"><h2 id="{name}">{title}</h2><p class="about">{about}</p>{content}</section>'
    )


def _map(root: Prefix) -> str:
    keys = ("none corrupt", "below 1 %", "1 to 5 %", "5 to 20 %", "20 % or more")
    swatches = "".join(
        f'<li><svg aria-hidden="true"><rect class="rate-{number}" width="100%" height="100%"/></svg>{text}</li>'
        for number, text in enumerate(keys)
    )
    rows = "".join(
        f'<tr><th scope="row" class="name">{_name(name)}</th><td class="n">{prefix.corrupt:,}</td>'
        f'<td class="n">{prefix.total:,}</td><td class="n">{percent(prefix.rate)}</td></tr>'
        for name, prefix in worst(root, _WORST)
    )
    head = '<tr><th scope="col">prefix</th><th scope="col" class="n">corrupt</th><th scope="col" class="n">of</th>'
    head += '<th scope="col" class="n">share</th></tr>'
    table = f"<table><caption>Most corrupt deltas</caption><thead>{head}</thead><tbody>{rows}</tbody></table>"
    return f'{prefix_map(root)}<ul class="key">{swatches}</ul>{table if rows else ""}'


def _codes(counts: dict[str, int]) -> str:
    most = max(counts.values())
    colours = {code: _COLOURS[CATALOGUE[code].weight] for code in counts}
    ordered = sorted(counts, key=lambda code: (colours[code], -counts[code], code))
    rows = "".join(
        f'<tr><th scope="row" class="code"><code>{code}</code></th>'
        f'<td class="meaning">{shown(CATALOGUE[code].meaning)}</td>'
        f'<td class="wide">{bar(counts[code] / most, colours[code])}</td>'
        f'<td class="n">{counts[code]:,}</td></tr>'
        for code in ordered
    )
    head = '<tr><th scope="col">code</th><th scope="col" class="meaning">meaning</th><td class="wide"></td>'
    head += '<th scope="col" class="n">deltas</th></tr>'
    return f'<table class="findings"><thead>{head}</thead><tbody>{rows}</tbody></table>'


_COLOURS = {
    Weight.PROOF: "corrupt",
    Weight.PENDING: "corrupt",
    Weight.UNCHECKED: "undetermined",
    Weight.AWAITED: "incomplete",
    Weight.NOTE: "note",
}


def _deltas(status: Status, verdicts: list[Verdict], total: int) -> str:
    opened = _OPENED if status is Status.CORRUPT else 0
    ordered = sorted(verdicts, key=lambda verdict: verdict.delta)
    items = "".join(_delta(verdict, opened=number < opened) for number, verdict in enumerate(ordered))
    rest = total - len(verdicts)
    more = (
        f'<p class="more">And {rest:,} more {status} deltas; <code>--format ndjson</code> has them all.</p>'
        if rest
        else ""
    )
    title = f"{total:,} {status}"
    return _section(status.value, title, _WORDS[status], items + more)


def _delta(verdict: Verdict, *, opened: bool) -> str:
    above, slash, name = verdict.delta.rstrip("/").rpartition("/")
    above += slash
    codes = list(dict.fromkeys(finding.code for finding in verdict.findings))
    told = f"<code>{codes[0]}</code>" + (f" +{len(codes) - 1}" if len(codes) > 1 else "")
    evidence = "".join(_finding(finding) for finding in (*verdict.findings, *verdict.notes))
    facts = "".join(f"<dt>{name}</dt><dd>{value}</dd>" for name, value in _facts(verdict))
    return (
        f"<details{' open' if opened else ''}><summary>"
        f'<span class="mark {verdict.status} name">{_name(above)}<b>{_name(name)}</b></span>'
        f'<span class="codes">{told}</span></summary>'
        f'<div class="evidence"><ol>{evidence}</ol><dl class="facts">{facts}</dl></div></details>\n'
    )


def _finding(finding: Finding) -> str:
    file = f'<span class="name">{_name(finding.file)}</span>' if finding.file else ""
    return (
        f'<li><code>{finding.code}</code>{file}<p class="detail">{shown(finding.detail, _LONGEST)}</p>'
        f'<p class="meaning">{shown(CATALOGUE[finding.code].meaning)}</p></li>'
    )


def _facts(verdict: Verdict) -> Iterable[tuple[str, str]]:
    advice = advice_on(verdict)
    if advice is not None:
        yield "to do", advice.text
    if verdict.collections:
        held = ", ".join(f"{c.count:,} in {shown(c.name, 60)}" for c in verdict.collections[:5])
        rest = len(verdict.collections) - 5
        yield "holds", held + (f" and {rest} more collections" if rest > 0 else "")
    yield "size", decimal(verdict.size)
    if verdict.uploaded is not None:
        yield "uploaded", f"{verdict.uploaded:%Y-%m-%d %H:%M:%S} UTC"
    if verdict.fingerprint:
        yield "fingerprint", f'<span class="name">{shown(verdict.fingerprint)}</span>'


def _name(text: str) -> str:
    """A key or a path, which may be broken into lines behind its slashes."""
    return shown(text, _LONGEST).replace("/", "/<wbr>")


def _counted(number: int, noun: str) -> str:
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"


def _duration(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, hours = int(seconds // 60) % 60, int(seconds // 3600)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {int(seconds % 60)} s"


def _resource(name: str) -> str:
    return files("scanner").joinpath(name).read_text("utf-8")
