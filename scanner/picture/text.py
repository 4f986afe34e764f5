"""One delta drawn as text: a map of its database, its indexes, its collections, and where the damage sits.

Every mark is a letter, so a drawing without colour says the same. It fits 80 columns.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

from rich.console import Group, RenderableType
from rich.filesize import decimal
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from scanner.picture.anatomy import Anatomy, CollectionPart, IndexPart, Place, cells
from shared.inspection.hnsw.header import IndexHeader
from shared.inspection.sqlite.pages import PageKind, PageMap
from shared.model.delta import DATABASE, printable
from shared.model.verdict import Status, Verdict

KINDS: Mapping[PageKind, tuple[str, str, str]] = {
    PageKind.TABLE_INTERIOR: ("T", "table, inner", "bold blue"),
    PageKind.TABLE_LEAF: ("t", "table, rows", "blue"),
    PageKind.INDEX_INTERIOR: ("X", "index, inner", "bold cyan"),
    PageKind.INDEX_LEAF: ("x", "index, rows", "cyan"),
    PageKind.OVERFLOW: ("o", "overflow of a long row", "magenta"),
    PageKind.FREELIST_TRUNK: ("F", "list of free pages", "dim"),
    PageKind.FREELIST_LEAF: ("f", "free", "dim"),
    PageKind.LOCK_BYTE: ("L", "lock byte, never used", "dim"),
    PageKind.POINTER_MAP: ("p", "pointer map", "dim"),
    PageKind.UNREACHED: (".", "nothing refers to it", "yellow"),
    PageKind.BROKEN: ("#", "broken", "bold white on red"),
}
"""Letter, words and style of each kind of page."""

STATUS_STYLES = {
    Status.CORRUPT: "bold red",
    Status.INCOMPLETE: "yellow",
    Status.UNDETERMINED: "magenta",
    Status.HEALTHY: "bold green",
}
_ACROSS, _MOST_CELLS = 64, 64 * 40
_BAR = 48
_MOST_TREES, _MOST_BROKEN, _MOST_PARTS, _MOST_PLACES = 8, 12, 12, 60


def drawing(anatomy: Anatomy) -> RenderableType:
    """The whole drawing."""
    parts: list[RenderableType] = [_head(anatomy)]
    if anatomy.places:
        parts += [_title("Findings"), *_findings(anatomy)]
    parts += [_title(f"Pages of {DATABASE}"), *_pages(anatomy)]
    parts += [_title("Collections"), *_collections(anatomy.collections)]
    parts += [_title("Vector indexes"), *_indexes(anatomy.indexes)]
    return Group(*parts)


def facts(verdict: Verdict, files: int) -> str:
    """Size, files and upload time in one line."""
    when = f", uploaded {verdict.uploaded:%Y-%m-%d %H:%M} UTC" if verdict.uploaded else ""
    return f"{decimal(verdict.size)} in {files} {'file' if files == 1 else 'files'}{when}, depth {verdict.depth}"


def index_facts(part: IndexPart) -> tuple[str, str]:
    """What an index is, in a few words, and what its header says."""
    total = decimal(sum(part.sizes.values()))
    state = {
        True: "flushed",
        False: "never flushed: an empty skeleton, nothing in it counts",
        None: "no collection refers to it, or that is not known",
    }[part.flushed]
    return f"{total}, {state}", _header(part.header) if part.header else part.problem


def queue_facts(part: CollectionPart) -> tuple[str, str]:
    """Where the vectors of a collection are, and which operations wait in the queue for it."""
    flushed_to = part.collection.flushed_to
    index = "no vector was flushed" if flushed_to is None else f"index up to operation {flushed_to:,}"
    if part.queued is None:
        return index, "queue unreadable"
    queue = f"{part.queued:,} in the queue"
    if part.queue_first is None or part.queue_last is None:  # none, or numbers that are none
        return index, queue
    return index, f"{queue}, {part.queue_first:,} to {part.queue_last:,}"


def _header(header: IndexHeader) -> str:
    return (
        f"{header.count:,} of {header.max_elements:,} elements, dimension {header.dimension:,}, "
        f"{header.max_links} links ({header.max_links_level0} on level 0), {header.record_size:,} bytes a record, "
        f"highest level {header.max_level}, entry point {header.entry_point:,}"
    )


def _title(text: str) -> Text:
    return Text(f"\n{text}", "bold")


def _head(anatomy: Anatomy) -> Text:
    verdict = anatomy.verdict
    return Text.assemble(
        (verdict.status.value, STATUS_STYLES[verdict.status]),
        " ",
        printable(verdict.delta, 1200),
        (f"\n{facts(verdict, len(anatomy.files))}", "dim"),
        overflow="fold",
    )


def _findings(anatomy: Anatomy) -> Iterator[RenderableType]:
    sizes = {file.name: file.size for file in anatomy.files}
    file = None
    for place in anatomy.places[:_MOST_PLACES]:
        if place.finding.file != file:
            file = place.finding.file
            size = f", {sizes[file]:,} bytes" if file in sizes else ""
            yield Text(f"  {printable(file, 300) or 'the delta as a whole'}{size}", "bold", overflow="fold")
            bar = damage_bar([p.offset for p in anatomy.places if p.finding.file == file], sizes.get(file, 0), _BAR)
            if bar:
                yield Text(f"    [{bar}]")
        yield Padding(_finding(place, anatomy.verdict), (0, 0, 0, 4))
    if len(anatomy.places) > _MOST_PLACES:
        yield Text(f"    and {len(anatomy.places) - _MOST_PLACES:,} more", "dim")


def _finding(place: Place, verdict: Verdict) -> Text:
    note = place.finding not in verdict.findings
    where = "" if place.offset is None else f"at byte {place.offset:,}  "
    return Text.assemble(
        (f"{place.finding.code}  ", "dim" if note else "bold red"),
        (where, "bold"),
        printable(place.finding.detail, 1000),
    )


def damage_bar(offsets: Iterable[int | None], size: int, width: int) -> str:
    """A file as a line, with a `#` where the offsets are; empty where there is none."""
    known = [offset for offset in offsets if offset is not None]
    if not known or not size:
        return ""
    marks = {min(width - 1, offset * width // size) for offset in known}
    return "".join("#" if at in marks else "-" for at in range(width))


def _pages(anatomy: Anatomy) -> Iterator[RenderableType]:
    pages = anatomy.pages
    if isinstance(pages, str):
        yield Text(f"  not drawn: {pages}", "yellow")
        return
    width, shown = cells(pages, anatomy.marked, _MOST_CELLS)
    each = "" if width == 1 else f"; a letter stands for {width:,}"
    yield Text(f"  {len(pages.kinds):,} of {pages.page_size:,} bytes{each}", "dim")
    for start in range(0, len(shown), _ACROSS):
        row = Text(f"{start * width + 1:>9} ", "dim")
        for kind in shown[start : start + _ACROSS]:
            row.append(KINDS[kind][0], KINDS[kind][2])
        yield row
    yield from _key(pages, anatomy.marked)
    for number, why in sorted(anatomy.marked.items())[:_MOST_BROKEN]:
        at = f"page {number}, byte {(number - 1) * pages.page_size:,}: "
        yield Padding(Text.assemble((at, "bold red"), printable(why, 300)), (0, 0, 0, 2))
    if len(anatomy.marked) > _MOST_BROKEN:
        yield Text(f"  and {len(anatomy.marked) - _MOST_BROKEN:,} more broken pages", "dim")
    for number, what in (
        (pages.missing, "that the header counts are not in the file"),
        (pages.left_out, "were left out"),
    ):
        if number:
            yield Text(f"  {number:,} more pages {what}", "red")
    yield Text()
    yield _trees(pages)


def _key(pages: PageMap, marked: Mapping[int, str]) -> Iterator[Text]:
    counts = pages.counts() | ({PageKind.BROKEN: len(marked)} if marked else {})
    entries = [
        Text.assemble((letter, style), f" {words} {counts[kind]:,}")
        for kind, (letter, words, style) in KINDS.items()
        if counts.get(kind)
    ]
    for start in range(0, len(entries), 3):
        yield Text.assemble(
            "  ", *(entry + Text(" " * max(1, 25 - len(entry))) for entry in entries[start : start + 3])
        )


def _trees(pages: PageMap) -> Table:
    table = Table(box=None, show_header=False, padding=(0, 2, 0, 0), pad_edge=False)
    largest = sorted(pages.trees, key=lambda tree: (-tree.pages, tree.name))
    for tree in largest[:_MOST_TREES]:
        table.add_row("", f"{tree.pages:,}", Text(tree.name, overflow="fold"), Text(f"from page {tree.root}", "dim"))
    rest = largest[_MOST_TREES:]
    if rest:
        table.add_row("", f"{sum(tree.pages for tree in rest):,}", Text(f"{len(rest)} more tables and indexes", "dim"))
    table.columns[1].justify = "right"
    return table


def _collections(collections: tuple[CollectionPart, ...] | str) -> Iterator[RenderableType]:
    if isinstance(collections, str):
        yield Text(f"  {printable(collections, 300)}", "yellow")
        return
    if not collections:
        yield Text("  none", "dim")
    for part in collections[:_MOST_PARTS]:
        rows = "unreadable rows" if part.rows is None else f"{part.rows:,} rows"
        dimension = "no dimension" if part.collection.dimension is None else f"dimension {part.collection.dimension:,}"
        yield Text.assemble(
            "  ", (printable(part.collection.name, 200), "bold"), f"  {rows}, {dimension}", overflow="fold"
        )
        for line in queue_facts(part):
            yield Text(f"    {line}", "dim")
    if len(collections) > _MOST_PARTS:
        yield Text(f"  and {len(collections) - _MOST_PARTS:,} more", "dim")


def _indexes(indexes: tuple[IndexPart, ...]) -> Iterator[RenderableType]:
    if not indexes:
        yield Text("  none; below 1,000 operations all vectors are in the queue", "dim")
    for part in indexes[:_MOST_PARTS]:
        state, header = index_facts(part)
        yield Text.assemble("  ", (part.segment, "bold"))
        yield Padding(Text(state, "dim"), (0, 0, 0, 4))
        yield Padding(Text(header), (0, 0, 0, 4))
        for base, size in part.sizes.items():
            yield Text(f"    {base:<24}{size:>14,}", "dim")
    if len(indexes) > _MOST_PARTS:
        yield Text(f"  and {len(indexes) - _MOST_PARTS:,} more", "dim")
