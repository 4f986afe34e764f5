"""One delta drawn as an SVG image, light or dark as the reader likes: the same as the text, to be looked at.

It holds no script and refers to nothing outside itself; names of a delta are text in it and nothing else.
"""

from __future__ import annotations

import textwrap
from collections.abc import Iterable

from scanner.picture.anatomy import Anatomy, Place, cells
from scanner.picture.text import KINDS, facts, index_facts, queue_facts
from scanner.report.charts import shown
from shared.inspection.sqlite.pages import PageKind, PageMap
from shared.model.delta import DATABASE, printable

_WIDTH, _MARGIN = 960, 40
_INNER = _WIDTH - 2 * _MARGIN
_COLUMNS = 112  # letters of 13 pixels in a line
_FEW, _LARGE, _SMALL, _GAP = 240, 20, 9, 2  # up to so many squares are large ones; pixels
_MOST_CELLS = 8_000
_MOST_BROKEN, _MOST_PARTS, _MOST_PLACES, _MOST_TREES = 10, 8, 40, 12
_COLOURS = {  # class names by kind of page
    PageKind.TABLE_INTERIOR: "t2",
    PageKind.TABLE_LEAF: "t1",
    PageKind.INDEX_INTERIOR: "x2",
    PageKind.INDEX_LEAF: "x1",
    PageKind.OVERFLOW: "o",
    PageKind.FREELIST_TRUNK: "f",
    PageKind.FREELIST_LEAF: "f",
    PageKind.LOCK_BYTE: "f",
    PageKind.POINTER_MAP: "f",
    PageKind.UNREACHED: "u",
    PageKind.BROKEN: "b",
}
_STYLE = """
svg { --paper: #fff; --ink: #16191d; --dim: #5c646f; --line: #e3e6ea; --bad: #c4302b; --good: #2f7d5b; --other: #a86a00;
  --t1: #9db8e0; --t2: #3f6db5; --x1: #a5d0c6; --x2: #3c8a78; --o: #c9b6e4; --f: #e3e6ea; --u: #f0c766; }
@media (prefers-color-scheme: dark) { svg { --paper: #121417; --ink: #e7e9ec; --dim: #98a1ad; --line: #292e35;
  --bad: #ef6a60; --good: #5cb78c; --other: #d9a03f; --t1: #3f5f92; --t2: #86aae6; --x1: #2f6457; --x2: #71c4b0;
  --o: #6a5690; --f: #30363e; --u: #a5842f; } }
.paper { fill: var(--paper); }
text { fill: var(--ink); font: 13px ui-monospace, SFMono-Regular, Menlo, Consolas, "DejaVu Sans Mono", monospace; }
.h1 { font: 650 22px ui-sans-serif, system-ui, "Segoe UI", Roboto, Arial, sans-serif; letter-spacing: -.01em; }
.h2 { font: 650 15px ui-sans-serif, system-ui, "Segoe UI", Roboto, Arial, sans-serif; }
.strong { font-weight: 650; } .dim { fill: var(--dim); }
.corrupt { fill: var(--bad); } .healthy { fill: var(--good); } .incomplete, .undetermined { fill: var(--other); }
.t1 { fill: var(--t1); } .t2 { fill: var(--t2); } .x1 { fill: var(--x1); } .x2 { fill: var(--x2); }
.o { fill: var(--o); } .f { fill: var(--f); } .u { fill: var(--u); } .b { fill: var(--bad); }
.line { fill: var(--line); }
"""


def plate(anatomy: Anatomy) -> str:
    """The whole image."""
    sheet = _Sheet()
    verdict = anatomy.verdict
    sheet.space(22)
    sheet.text(verdict.status.value.capitalize(), f"h1 {verdict.status}", 8)
    sheet.wrapped(verdict.delta, "strong")
    sheet.text(facts(verdict, len(anatomy.files)), "dim")
    if anatomy.places:
        sheet.title("Findings")
        _findings(sheet, anatomy)
    sheet.title(f"Pages of {DATABASE}")
    _pages(sheet, anatomy)
    sheet.title("Collections")
    _collections(sheet, anatomy)
    sheet.title("Vector indexes")
    _indexes(sheet, anatomy)
    return sheet.image(f"{verdict.status}: {verdict.delta}")


class _Sheet:
    """An image that grows downwards."""

    def __init__(self) -> None:
        self._parts: list[str] = []
        self.y = float(_MARGIN)

    def space(self, height: float) -> None:
        self.y += height

    def text(self, text: str, style: str = "", after: float = 0, indent: int = 0) -> None:
        """One line of text, cut where the image ends."""
        self._parts.append(f'<text class="{style}" x="{_MARGIN + indent}" y="{self.y:g}">{shown(text, 200)}</text>')
        self.y += 20 + after

    def wrapped(self, text: str, style: str = "", indent: int = 0, most: int = 6) -> None:
        """Text in as many lines as it needs, but no more than `most`."""
        columns = _COLUMNS - indent // 8
        for line in textwrap.wrap(printable(text, columns * most), columns) or [""]:
            self.text(line, style, indent=indent)

    def title(self, text: str) -> None:
        self.space(24)
        self.text(text, "h2", 4)

    def add(self, part: str) -> None:
        """An element as it is."""
        self._parts.append(part)

    def image(self, label: str) -> str:
        height = self.y + _MARGIN - 14
        return (
            f'<svg xmlns="http://www.w3.org/2000/svg" width="{_WIDTH}" height="{height:g}" '
            f'viewBox="0 0 {_WIDTH} {height:g}" role="img" aria-label="{shown(label, 300)}">\n<style>{_STYLE}</style>\n'
            f'<rect class="paper" width="100%" height="100%"/>\n' + "\n".join(self._parts) + "\n</svg>\n"
        )


def _findings(sheet: _Sheet, anatomy: Anatomy) -> None:
    sizes = {file.name: file.size for file in anatomy.files}
    file = None
    for place in anatomy.places[:_MOST_PLACES]:
        if place.finding.file != file:
            file = place.finding.file
            sheet.wrapped(
                f"{file}, {sizes[file]:,} bytes" if file in sizes else file or "the delta as a whole", "strong"
            )
            _damage(sheet, [p for p in anatomy.places if p.finding.file == file], sizes.get(file, 0))
        note = place.finding not in anatomy.verdict.findings
        where = "" if place.offset is None else f", at byte {place.offset:,}"
        sheet.text(place.finding.code + where, "dim" if note else str(anatomy.verdict.status))
        sheet.wrapped(place.finding.detail, "dim" if note else "")
    if len(anatomy.places) > _MOST_PLACES:
        sheet.text(f"and {len(anatomy.places) - _MOST_PLACES:,} more", "dim")


def _damage(sheet: _Sheet, places: Iterable[Place], size: int) -> None:
    """The file as a line, with a mark where each finding points to."""
    known = sorted({place.offset for place in places if place.offset is not None})
    if not known or not size:
        return
    y = sheet.y - 9
    sheet.add(f'<rect class="line" x="{_MARGIN}" y="{y + 3:g}" width="{_INNER}" height="4" rx="2"/>')
    for offset in known[:200]:
        x = _MARGIN + min(_INNER - 3, _INNER * offset / size)
        sheet.add(f'<rect class="b" x="{x:.1f}" y="{y:g}" width="3" height="10" rx="1"/>')
    sheet.space(22)


def _pages(sheet: _Sheet, anatomy: Anatomy) -> None:
    pages = anatomy.pages
    if isinstance(pages, str):
        sheet.wrapped(f"not drawn: {pages}", "undetermined")
        return
    width, kinds = cells(pages, anatomy.marked, _MOST_CELLS)
    each = "" if width == 1 else f"; a square stands for {width:,}"
    side = _LARGE if len(kinds) <= _FEW else _SMALL
    step = side + _GAP
    across = _INNER // step
    sheet.text(f"{len(pages.kinds):,} of {pages.page_size:,} bytes, {across * width:,} in a row{each}", "dim")
    top = sheet.y - 8
    squares: dict[str, list[str]] = {}
    for number, kind in enumerate(kinds):
        x, y = _MARGIN + number % across * step, top + number // across * step
        squares.setdefault(_COLOURS[kind], []).append(f"M{x} {y:g}h{side}v{side}h-{side}z")
    for name, drawn in squares.items():
        sheet.add(f'<path class="{name}" d="{"".join(drawn)}"/>')
    sheet.y = top + -(-len(kinds) // across) * step + 22
    _key(sheet, pages, len(anatomy.marked))
    for number, why in sorted(anatomy.marked.items())[:_MOST_BROKEN]:
        sheet.wrapped(f"page {number}, byte {(number - 1) * pages.page_size:,}: {why}")
    if len(anatomy.marked) > _MOST_BROKEN:
        sheet.text(f"and {len(anatomy.marked) - _MOST_BROKEN:,} more broken pages", "dim")
    for number, what in (
        (pages.missing, "that the header counts are not in the file"),
        (pages.left_out, "were left out"),
    ):
        if number:
            sheet.text(f"{number:,} more pages {what}", "corrupt")
    largest = sorted(pages.trees, key=lambda tree: (-tree.pages, tree.name))[:_MOST_TREES]
    names = ", ".join(f"{tree.name} {tree.pages:,}" for tree in largest)
    sheet.wrapped(f"most pages: {names}", "dim")


def _key(sheet: _Sheet, pages: PageMap, marked: int) -> None:
    counts = pages.counts() | ({PageKind.BROKEN: marked} if marked else {})
    entries = [(kind, f"{words} {counts[kind]:,}") for kind, (_, words, _) in KINDS.items() if counts.get(kind)]
    for start in range(0, len(entries), 4):
        for column, (kind, words) in enumerate(entries[start : start + 4]):
            x = _MARGIN + column * 220
            square = f'<rect class="{_COLOURS[kind]}" x="{x}" y="{sheet.y - 9:g}" width="{_SMALL}" height="{_SMALL}"/>'
            sheet.add(f'{square}<text x="{x + 16}" y="{sheet.y:g}">{words}</text>')
        sheet.space(20)
    sheet.space(4)


def _collections(sheet: _Sheet, anatomy: Anatomy) -> None:
    if isinstance(anatomy.collections, str):
        sheet.wrapped(anatomy.collections, "undetermined")
        return
    if not anatomy.collections:
        sheet.text("none", "dim")
    for part in anatomy.collections[:_MOST_PARTS]:
        sheet.wrapped(part.collection.name, "strong", most=2)
        rows = "unreadable rows" if part.rows is None else f"{part.rows:,} rows"
        dimension = part.collection.dimension
        held = rows + (", no dimension" if dimension is None else f", dimension {dimension:,}")
        sheet.wrapped("; ".join((held, *queue_facts(part))), "dim")
    if len(anatomy.collections) > _MOST_PARTS:
        sheet.text(f"and {len(anatomy.collections) - _MOST_PARTS:,} more", "dim")


def _indexes(sheet: _Sheet, anatomy: Anatomy) -> None:
    if not anatomy.indexes:
        sheet.text("none; below 1,000 operations all vectors are in the queue", "dim")
    for part in anatomy.indexes[:_MOST_PARTS]:
        sheet.text(part.segment, "strong")
        for line in index_facts(part):
            sheet.wrapped(line, "dim")
        sheet.wrapped(", ".join(f"{base} {size:,}" for base, size in part.sizes.items()), "dim")
    if len(anatomy.indexes) > _MOST_PARTS:
        sheet.text(f"and {len(anatomy.indexes) - _MOST_PARTS:,} more", "dim")
