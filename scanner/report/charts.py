"""Drawings of the HTML report as inline SVG: shares, a rate over time, a map of prefixes. Strings in, strings out.

Widths are percentages, so a drawing fits a phone and its letters keep their size. Colours are the page's, by class.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import datetime
from html import escape

from scanner.report.overview import Bin, Prefix
from shared.model.delta import printable

_LONGEST = 200
_RATE_HEIGHT, _COUNT_HEIGHT, _GAP, _AXIS = 120, 34, 10, 20
_SCALES = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0)
_ROW, _ROWS = 44, 6
_NARROWEST = 0.35  # percent; a narrower prefix is drawn together with those beside it
_NARROWEST_LABELLED = 1.5
_STEPS = (0.01, 0.05, 0.2)  # where one colour of a rate ends and the next begins


def shown(text: str, most: int = _LONGEST) -> str:
    """Text from a delta as HTML may hold it: no markup, no control characters."""
    return escape(printable(text, most))


def percent(rate: float) -> str:
    """A share in words: `0 %`, `< 0.1 %`, `2.5 %`, `40 %`."""
    if rate and rate < 0.001:
        return "< 0.1 %"
    digits = 0 if rate >= 0.1 else 1
    return f"{100 * rate:.{digits}f}".removesuffix(".0") + " %"


def step(rate: float) -> int:
    """Which colour a rate has: 0 for none, up to 4."""
    return 0 if not rate else 1 + sum(rate >= limit for limit in _STEPS)


def shares(parts: Iterable[tuple[str, int]]) -> str:
    """One bar cut into the shares of some classes, each wide enough to be seen."""
    seen = [(name, count) for name, count in parts if count]
    total = sum(count for _, count in seen)
    widths = [max(0.6, 100 * count / total) for _, count in seen]
    rects, start = [], 0.0
    for (name, _), width in zip(seen, widths, strict=True):
        wide = 100 * width / sum(widths)
        rects.append(f'<rect class="{name}" x="{start:.3f}%" width="{wide:.3f}%" height="100%"/>')
        start += wide
    return f'<svg class="shares" width="100%" height="10" aria-hidden="true">{"".join(rects)}</svg>'


def bar(share: float, name: str) -> str:
    """A bar of this share of the width."""
    return (
        '<svg class="bar" width="100%" height="6" aria-hidden="true">'
        f'<rect class="{name}" width="{max(0.5, 100 * share):.2f}%" height="6" rx="3"/></svg>'
    )


def rate_over_time(bins: Sequence[Bin], width: str) -> str:
    """The corrupt share of each bin as bars, and below how many deltas there are."""
    top = max(bin_.rate for bin_ in bins)
    scale = next((limit for limit in _SCALES if top <= limit), 1.0)
    most = max(bin_.total for bin_ in bins)
    below = _RATE_HEIGHT + _GAP
    drawn = [_gridline(_RATE_HEIGHT * (1 - part), percent(scale * part)) for part in (1.0, 0.5)]
    wide = 100 / len(bins)
    for number, bin_ in enumerate(bins):
        x, w = number * wide + wide * 0.12, wide * 0.76
        height = _RATE_HEIGHT * bin_.rate / scale
        y = _RATE_HEIGHT - height
        grey = _COUNT_HEIGHT * bin_.total / most
        title = f"{moment(bin_.start, width)}: {bin_.corrupt:,} of {bin_.total:,} corrupt ({percent(bin_.rate)})"
        drawn.append(
            f"<g><title>{title}</title>"
            f'<rect class="hit" x="{number * wide:.3f}%" width="{wide:.3f}%" y="0" height="{below + _COUNT_HEIGHT}"/>'
            f'<rect class="corrupt" x="{x:.3f}%" width="{w:.3f}%" y="{y:.1f}" height="{height:.1f}"/>'
            f'<rect class="count" x="{x:.3f}%" width="{w:.3f}%" y="{below}" height="{grey:.1f}"/></g>'
        )
    drawn.append(f'<line class="axis" x1="0" x2="100%" y1="{_RATE_HEIGHT}" y2="{_RATE_HEIGHT}"/>')
    y = below + _COUNT_HEIGHT + _AXIS - 4
    drawn.append(f'<text x="0" y="{y}">{moment(bins[0].start, width)}</text>')
    drawn.append(f'<text x="100%" y="{y}" text-anchor="end">{moment(bins[-1].start, width)}</text>')
    peak = max(bins, key=lambda bin_: bin_.rate)
    label = f"Corrupt share by {width} of upload. The highest is {percent(peak.rate)}, {moment(peak.start, width)}."
    height_ = below + _COUNT_HEIGHT + _AXIS
    return f'<svg width="100%" height="{height_}" role="img" aria-label="{label}">{"".join(drawn)}</svg>'


def moment(when: datetime, width: str) -> str:
    """The beginning of a bin, as exactly as its width needs."""
    day = f"{when.day} {when:%b} {when.year}"
    return f"{day}, {when:%H:%M}" if "minute" in width or "hour" in width else day


def prefix_map(root: Prefix) -> str:
    """The prefixes as an icicle: each as wide as its share of the deltas, those below it under it."""
    rows: list[list[str]] = []
    _draw(root, 0.0, 100.0, rows, 0)
    cells = "".join("".join(row) for row in rows)
    label = f"{root.total:,} deltas by prefix, {root.corrupt:,} of them corrupt. The table below names the worst."
    return f'<svg class="map" width="100%" height="{_ROW * len(rows)}" role="img" aria-label="{label}">{cells}</svg>'


def _draw(prefix: Prefix, x: float, width: float, rows: list[list[str]], level: int) -> None:
    if level == len(rows):
        rows.append([])
    rows[level].append(_cell(prefix, x, width, level))
    if level + 1 == _ROWS:
        return
    children = sorted(prefix.children.values(), key=lambda child: (-child.total, child.name))
    wide = [child for child in children if 100 * child.total / prefix.total * width / 100 >= _NARROWEST]
    for child in wide:
        share = width * child.total / prefix.total
        _draw(child, x, share, rows, level + 1)
        x += share
    narrow = children[len(wide) :]
    if narrow:
        together = Prefix(f"{len(narrow)} more prefixes")
        for child in narrow:
            for status, count in child.counts.items():
                together.counts[status] += count
        _draw(together, x, width * together.total / prefix.total, rows, level + 1)


def _cell(prefix: Prefix, x: float, width: float, level: int) -> str:
    name = prefix.name or "all"
    counts = f"{prefix.corrupt:,} of {prefix.total:,}" if prefix.corrupt else f"{prefix.total:,}"
    colour = f"rate-{step(prefix.rate)}"
    text = ""
    if width >= _NARROWEST_LABELLED:
        label = f"<p>{shown(name, 90)}</p><p>{counts}</p>"
        text = f'<foreignObject width="100%" height="{_ROW}"><div class="label {colour}">{label}</div></foreignObject>'
    return (
        f'<svg x="{x:.3f}%" y="{level * _ROW}" width="{width:.3f}%" height="{_ROW}">'
        f"<title>{shown(name)}: {counts}{' corrupt' if prefix.corrupt else ''}</title>"
        f'<rect class="{colour}" width="100%" height="{_ROW}"/>{text}</svg>'
    )


def _gridline(y: float, label: str) -> str:
    line = f'<line class="grid" x1="0" x2="100%" y1="{y:.1f}" y2="{y:.1f}"/>'
    return f'{line}<text class="scale" x="0" y="{y + 13:.1f}">{escape(label)}</text>'
