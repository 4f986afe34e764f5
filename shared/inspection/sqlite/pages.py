"""What each page of a database file is for, from the bytes alone and however broken they are.

Every tree of `sqlite_schema` is walked from its root, every overflow chain and the freelist to its end. A page is taken
once, so cycles end, and no number in the file decides how much is read. SQLite itself is not asked.

Source: https://www.sqlite.org/fileformat2.html, sections 1.3 to 1.7 and 2.1.
"""

from __future__ import annotations

import struct
from array import array
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from enum import IntEnum

from shared.model.delta import printable

_HEADER_BYTES = 100
MOST_PAGES = 262_144
"""Pages that are looked at: 1 GiB of 4 KiB each."""
_MOST_CELLS = 10_000_000  # some ten seconds
_SMALLEST_CELL = 6  # bytes, its pointer included; btree.c, MX_CELL
_MOST_BROKEN = 1_000
_MOST_TREES = 10_000
_LOCK_BYTE = 1 << 30
_NAME_BYTES = 200


_SMALLEST_PAGE = 512
_TREE_INTERIOR, _TREE_LEAF = 5, 13  # kinds of the pages of a table's tree
_ROW_BYTES = 50  # that a row counts for besides its content


class PageKind(IntEnum):
    """What a page is for."""

    UNREACHED = 0
    """Nothing that could be read refers to it."""
    TABLE_INTERIOR = 1
    TABLE_LEAF = 2
    INDEX_INTERIOR = 3
    INDEX_LEAF = 4
    OVERFLOW = 5
    FREELIST_TRUNK = 6
    FREELIST_LEAF = 7
    LOCK_BYTE = 8
    POINTER_MAP = 9
    BROKEN = 10
    """Something refers to it, and it is none of the kinds that could stand there."""


_BTREE = {2: PageKind.INDEX_INTERIOR, 5: PageKind.TABLE_INTERIOR, 10: PageKind.INDEX_LEAF, 13: PageKind.TABLE_LEAF}
_INTERIOR = (2, 5)
_TABLE = (5, 13)


@dataclass(frozen=True, slots=True)
class Tree:
    """A table or an index with the pages that were found of it, overflow included."""

    name: str
    root: int
    pages: int


@dataclass(slots=True)
class PageMap:
    """The pages of a file, numbered from 1 as SQLite does.

    Args:
        page_size: Bytes of a page.
        kinds: Kind of each page, the first at index 0.
        broken: Why a page is broken, by its number; of the first thousand.
        trees: The tables and indexes, the schema itself first.
        missing: Pages that the header counts and the file lacks.
        left_out: Pages of the file beyond those that are looked at.
    """

    page_size: int
    kinds: bytearray
    broken: dict[int, str] = field(default_factory=dict)
    trees: list[Tree] = field(default_factory=list)
    missing: int = 0
    left_out: int = 0

    def counts(self) -> dict[PageKind, int]:
        """How many pages there are of each kind that occurs."""
        counted = {kind: self.kinds.count(kind) for kind in PageKind}
        return {kind: count for kind, count in counted.items() if count}


def map_pages(read: Callable[[int, int], bytes], size: int) -> PageMap | str:
    """The map of a database file, or in words why there can be none.

    Args:
        read: The bytes at an offset, so many or fewer where the file ends.
        size: Bytes of the file.

    Raises:
        CouldNotCheck: What `read` raises.
    """
    head = read(0, _HEADER_BYTES)
    if len(head) < _HEADER_BYTES or not head.startswith(b"SQLite format 3\x00"):
        return f"the first {len(head)} bytes are not the header of a database"
    (page_size,) = struct.unpack(">H", head[16:18])
    page_size = 65536 if page_size == 1 else page_size
    if page_size < 512 or page_size & (page_size - 1):
        return f"the header says pages of {page_size} bytes, which no database has"
    return _Walk(read, head, page_size, size).whole()


class _Walk:
    """One look at a file."""

    def __init__(self, read: Callable[[int, int], bytes], head: bytes, page_size: int, size: int) -> None:
        self._read = read
        self._head = head
        self._usable = max(480, page_size - head[20])  # the smallest that SQLite allows
        in_file = -(-size // page_size)
        changes, counted = struct.unpack(">II", head[24:32])
        (valid_for,) = struct.unpack(">I", head[92:96])
        counted = counted if changes == valid_for and counted else in_file  # section 1.3.7
        self._last = min(in_file, counted)
        self._known = min(self._last, MOST_PAGES)
        self._cells_left = _MOST_CELLS
        self.map = PageMap(page_size, bytearray(self._known))
        self.map.missing = max(0, counted - in_file)
        self.map.left_out = self._last - self._known

    def whole(self) -> PageMap:
        self._set_aside()
        roots: list[tuple[str, int]] = []
        self._tree("sqlite_schema", 1, roots)
        for name, root in roots[:_MOST_TREES]:
            self._tree(name, root, None)
        self._freelist(*struct.unpack(">II", self._head[32:40]))
        return self.map

    def _set_aside(self) -> None:
        """Pages that no tree may use: the one that is locked, and the pointer maps of an auto-vacuum database."""
        lock = _LOCK_BYTE // self.map.page_size + 1
        if lock <= self._known:
            self.map.kinds[lock - 1] = PageKind.LOCK_BYTE
        if struct.unpack(">I", self._head[52:56])[0]:
            for number in range(2, self._known + 1, self._usable // 5 + 1):
                self.map.kinds[number - 1] = PageKind.POINTER_MAP

    def _tree(self, name: str, root: int, roots: list[tuple[str, int]] | None) -> None:
        """Walks one tree. `roots` takes in what the rows say, when it is the schema's."""
        taken = 0
        table: bool | None = None
        waiting = array("Q", [root])
        parents = array("Q", [0])
        while waiting:
            number, parent = waiting.pop(), parents.pop()
            data = self._take(number, parent, name)
            if data is None:
                continue
            taken += 1
            at = _HEADER_BYTES if number == 1 else 0
            kind = data[at]
            if kind not in _BTREE or (table is not None and (kind in _TABLE) != table):
                wanted = "a tree" if table is None else "a table" if table else "an index"
                what = "all zeros" if not any(data) else f"type {kind}"
                self._break(number, f"{what}, where a page of {wanted} belongs, {name}", PageKind.BROKEN)
                continue
            table = kind in _TABLE
            self.map.kinds[number - 1] = _BTREE[kind]
            children, chains = self._cells(number, data, at, kind)
            for child in children:
                waiting.append(child)
                parents.append(number)
            for first, length in chains:
                taken += self._chain(first, length, number, name)
            if roots is not None and kind == 13:
                roots += self._roots(data, at)
        self.map.trees.append(Tree(name, root, taken))

    def _take(self, number: int, parent: int, name: str) -> bytes | None:
        """The bytes of a page that something refers to; None when it is not there, is cut, or was taken before."""
        origin = f"page {parent}" if parent else "the schema"
        if not 1 <= number <= self._last:
            if parent:
                self._break(parent, f"points to page {number}, the file has {self._last}")
            elif number:
                self._break(1, f"says that {name} begins on page {number}, the file has {self._last}")
            return None
        if number > self._known:
            return None
        if self.map.kinds[number - 1] or number in self.map.broken:
            self._break(number, f"used twice, the second time by {origin} for {name}")
            return None
        size = self.map.page_size
        data = self._read((number - 1) * size, size)
        if len(data) < size:
            self._break(number, f"{len(data)} bytes are left of it", PageKind.BROKEN)
            return None
        return data

    def _cells(self, number: int, data: bytes, at: int, kind: int) -> tuple[list[int], list[tuple[int, int]]]:
        """The children of a page, and the overflow chains that begin on it, each with the number of its pages."""
        interior = kind in _INTERIOR
        start = at + (12 if interior else 8)
        (cells,) = struct.unpack_from(">H", data, at + 3)
        fit = (self._usable - start) // _SMALLEST_CELL
        if cells > fit:
            self._break(number, f"{cells} cells, {fit} would fit")
            cells = 0
        cells = min(cells, self._cells_left)
        self._cells_left -= cells
        children: list[int] = []
        chains: list[tuple[int, int]] = []
        for (offset,) in struct.iter_unpack(">H", data[start : start + 2 * cells]):
            if not start + 2 * cells <= offset <= self._usable - 4:
                self._break(number, f"a cell at byte {offset}, outside its page's {self._usable}")
                continue
            if interior:
                children.append(struct.unpack_from(">I", data, offset)[0])
            if kind != 5:
                chain = self._overflow(data, offset + 4 * interior, kind)
                if chain is None:
                    self._break(number, f"the cell at byte {offset} leaves its page")
                elif chain[1]:
                    chains.append(chain)
        if interior:
            children.append(struct.unpack_from(">I", data, at + 8)[0])
        return children, chains

    def _overflow(self, data: bytes, offset: int, kind: int) -> tuple[int, int] | None:
        """First page and number of pages of what a cell has no room for; None when the cell is not one."""
        payload, offset = _varint(data, offset)
        if kind == 13:
            _, offset = _varint(data, offset)
        usable = self._usable
        most = usable - 35 if kind == 13 else (usable - 12) * 64 // 255 - 23
        if payload <= most:
            return (0, 0) if offset + payload <= usable else None
        least = (usable - 12) * 32 // 255 - 23
        local = least + (payload - least) % (usable - 4)
        local = local if local <= most else least
        if offset + local + 4 > usable:
            return None
        (first,) = struct.unpack_from(">I", data, offset + local)
        return first, -(-(payload - local) // (usable - 4))

    def _chain(self, number: int, length: int, parent: int, name: str) -> int:
        """Follows an overflow chain. Returns how many pages of it there are."""
        taken = 0
        while taken < length:
            data = self._take(number, parent, name)
            if data is None:
                return taken
            self.map.kinds[number - 1] = PageKind.OVERFLOW
            taken += 1
            parent, number = number, struct.unpack_from(">I", data)[0]
        if number:
            self._break(parent, f"the last of {length} overflow pages, yet it points to page {number}")
        return taken

    def _freelist(self, number: int, counted: int) -> None:
        taken, parent = 0, 1
        while number:
            data = self._take(number, parent, "the freelist")
            if data is None:
                break
            self.map.kinds[number - 1] = PageKind.FREELIST_TRUNK
            following, leaves = struct.unpack_from(">II", data)
            taken += 1
            if leaves > self._usable // 4 - 2:
                self._break(number, f"{leaves} free pages listed, {self._usable // 4 - 2} would fit")
                leaves = 0
            for (leaf,) in struct.iter_unpack(">I", data[8 : 8 + 4 * leaves]):
                if self._take(leaf, number, "the freelist") is not None:
                    self.map.kinds[leaf - 1] = PageKind.FREELIST_LEAF
                    taken += 1
            parent, number = number, following
        if taken != counted and not self.map.left_out:
            self._break(1, f"counts {counted} free pages, the freelist has {taken}")

    def _roots(self, data: bytes, at: int) -> Iterator[tuple[str, int]]:
        """Names and root pages of the rows of one leaf of the schema; rows that are none are left out."""
        (cells,) = struct.unpack_from(">H", data, at + 3)
        pointers = data[at + 8 : at + 8 + 2 * min(cells, (self._usable - at - 8) // _SMALLEST_CELL)]
        for (offset,) in struct.iter_unpack(">H", pointers):
            row = _schema_row(data[: self._usable], offset)
            if row is not None:
                yield row

    def _break(self, number: int, why: str, kind: PageKind | None = None) -> None:
        """Notes that a page is broken; `kind` only where it is nothing else."""
        if not 1 <= number <= self._known:
            return
        if kind is not None:
            self.map.kinds[number - 1] = kind
        if len(self.map.broken) < _MOST_BROKEN:
            self.map.broken.setdefault(number, printable(why, 200))


def schema_bytes(read: Callable[[int, int], bytes], most: int) -> int:
    """Bytes of the rows of `sqlite_schema`, which SQLite parses before anything else; counted until they exceed `most`.

    A page that is not one of a table's tree counts for nothing: SQLite itself will tell what is wrong with it.

    Args:
        read: The bytes of a database: offset, length.
        most: Where to stop.
    """
    (page_size,) = struct.unpack(">H", read(16, 2).ljust(2, b"\0"))
    page_size = 65536 if page_size == 1 else page_size
    if page_size < _SMALLEST_PAGE:
        return 0
    total, waiting, seen = 0, [1], {1}
    while waiting and total <= most:
        number = waiting.pop()
        page = read((number - 1) * page_size, page_size)
        at = 100 if number == 1 else 0
        head = page[at : at + 12].ljust(12, b"\0")
        (cells,) = struct.unpack(">H", head[3:5])
        total += _ROW_BYTES * cells
        start = at + (12 if head[0] == _TREE_INTERIOR else 8)
        offsets = [int.from_bytes(page[start + 2 * i : start + 2 * i + 2]) for i in range(cells)]
        if head[0] == _TREE_LEAF:
            total += sum(_varint(page, offset)[0] for offset in offsets)
        elif head[0] == _TREE_INTERIOR:
            children = [int.from_bytes(page[offset : offset + 4]) for offset in offsets]
            new = {*children, int.from_bytes(head[8:12])} - seen - {0}
            seen |= new
            waiting += new
    return total


def _varint(data: bytes, offset: int) -> tuple[int, int]:
    """A variable-length integer (section 1.6) and the offset behind it; what is outside of `data` counts as zeros."""
    value = 0
    for position in range(9):
        byte = data[offset + position] if offset + position < len(data) else 0
        if position == 8:
            return value << 8 | byte, offset + 9
        value = value << 7 | byte & 0x7F
        if byte < 0x80:
            return value, offset + position + 1
    raise AssertionError("nine bytes are the most")


def _schema_row(data: bytes, offset: int) -> tuple[str, int] | None:
    """Name and root page of a cell of the schema: columns type, name, tbl_name and rootpage stand first."""
    _, offset = _varint(data, offset)
    _, offset = _varint(data, offset)
    length, at = _varint(data, offset)
    end = offset + length
    types: list[int] = []
    while at < min(end, len(data)) and len(types) < 4:
        kind, at = _varint(data, at)
        types.append(kind)
    if len(types) < 4 or not 1 <= types[3] <= 6 or types[1] < 13 or not types[1] % 2:
        return None  # a view or a trigger has no root page
    sizes = [(kind - 12) // 2 if kind >= 12 else (0, 1, 2, 3, 4, 6, 8, 8, 0, 0, 0, 0)[kind] for kind in types]
    name_at, root_at = end + sizes[0], end + sum(sizes[:3])
    if root_at + sizes[3] > len(data):
        return None
    name = data[name_at : name_at + min(sizes[1], _NAME_BYTES)].decode("utf-8", "replace")
    root = int.from_bytes(data[root_at : root_at + sizes[3]], "big", signed=True)
    return (printable(name, 60), root) if root > 0 else None
