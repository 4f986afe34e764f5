"""A delta drawn as text and as an image: what is there, in 80 columns, and nothing of its names takes effect."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime
from io import StringIO
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from click.testing import CliRunner, Result
from rich.console import Console

from devtools.damage.catalogue import apply_damage
from scanner.cli import cli
from scanner.picture.anatomy import Anatomy, CollectionPart, IndexPart, Place, take_apart
from scanner.picture.svg import _COLOURS, plate
from scanner.picture.text import KINDS, damage_bar, drawing, queue_facts
from shared.inspection.chroma.sysdb import Collection
from shared.inspection.sqlite.pages import PageKind, PageMap, Tree
from shared.model.delta import DeltaFile
from shared.model.settings import Settings
from shared.model.verdict import Depth, Finding, Verdict
from tests.conftest import CopyOf, PutDelta
from tests.support.browser import find_browser

HOSTILE = "<script>\x1b[2J\u202e]]>&'\"[red]"


def text_of(anatomy: Anatomy) -> str:
    """The drawing without colour, 80 columns wide; what controls a terminal is no part of it."""
    page = StringIO()
    Console(file=page, width=80, highlight=False, markup=False, emoji=False).print(drawing(anatomy))
    text = page.getvalue()
    assert all(character.isprintable() or character == "\n" for character in text)
    assert max(map(len, text.splitlines())) <= 80
    return text


def image_of(anatomy: Anatomy) -> ElementTree.Element:
    """The image, read by a parser that takes nothing but well-formed XML; it refers to nothing."""
    image = ElementTree.fromstring(plate(anatomy))
    names = {name for element in image.iter() for name in element.attrib}
    assert not [name for name in names if name.startswith("on") or "href" in name]
    assert {element.tag.rpartition("}")[2] for element in image.iter()} <= {"svg", "style", "rect", "text", "path"}
    return image


def words_of(image: ElementTree.Element) -> str:
    return "\n".join(element.text or "" for element in image.iter() if element.tag.endswith("text"))


@pytest.fixture
def garbled(flushed_delta: Path, copy_of: CopyOf) -> Path:
    folder = copy_of(flushed_delta)
    apply_damage("sqlite-page-garbage", folder)
    return folder


def apart(folder: Path) -> Anatomy:
    return take_apart(folder, Depth.STRUCTURE, Settings(), None)


def hostile() -> Anatomy:
    """A delta whose every name is hostile that its writer could choose."""
    finding = Finding("sqlite.malformed", HOSTILE, HOSTILE)
    collection = Collection("id", HOSTILE, 3, None, None, None, None, 0)
    pages = PageMap(4096, bytearray(9), {3: "all zeros"}, [Tree("words", 1, 9)], 4, 5)
    return Anatomy(
        Verdict(f"s3://b/{HOSTILE}/", Depth.STRUCTURE, (finding,)),
        (DeltaFile(HOSTILE, 10, "", datetime(2026, 1, 1, tzinfo=UTC)),),
        pages,
        {3: HOSTILE},
        (IndexPart("0b3c", {"header.bin": 1}, None, "1 bytes, expected 100", None),),
        (CollectionPart(collection, None, None, None, None),),
        (Place(finding, 5), Place(finding, 10**18)),
    )


def test_a_sound_delta_is_drawn_with_its_parts(flushed_delta: Path) -> None:
    text = text_of(apart(flushed_delta))
    for part in (
        "healthy ", "Pages of chroma.sqlite3", "of 4,096 bytes", "        1 TT", "t table, rows", "embeddings_queue",
        "words  123 rows, dimension 16", "index up to operation 100", "45 in the queue, 100 to 144",
        "100 of 128 elements, dimension 16", "flushed",
    ):  # fmt: skip
        assert part in text
    assert "Findings" not in text
    assert "#" not in text


def test_where_the_damage_sits_is_said_and_marked(garbled: Path) -> None:
    text = text_of(apart(garbled))
    assert "Findings\n  chroma.sqlite3, 348,160 bytes\n" in text
    assert "# broken 1" in text
    assert "where a page of an index belongs" in text
    rows = [line[10:] for line in text.splitlines() if line[:10].strip().isdigit() and line[9:10] == " "]
    assert sum(row.count("#") for row in rows) == 1


def test_the_image_says_the_same(garbled: Path) -> None:
    words = words_of(image_of(apart(garbled)))
    for part in ("Corrupt", "sqlite.malformed", "broken 1", "where a page of an index belongs", "words", "flushed"):
        assert part in words


def test_every_kind_of_page_has_a_letter_and_a_colour_of_its_own() -> None:
    assert set(KINDS) == set(_COLOURS) == set(PageKind)
    assert len({letter for letter, _, _ in KINDS.values()}) == len(PageKind)


def test_hostile_names_are_drawn_as_what_they_are() -> None:
    assert "<script>\\u001b[2J\\u202e]]>&'\"[red]" in text_of(hostile()).replace("\n", "")
    assert "<script>\\u001b[2J" in words_of(image_of(hostile()))


@pytest.mark.parametrize(
    ("offsets", "size", "bar"),
    [
        ([0, None, 99], 100, "#--------#"),
        ([50], 100, "-----#----"),
        ([10**30], 100, "---------#"),
        ([None], 100, ""),
        ([5], 0, ""),
        ([], 9, ""),
    ],
)
def test_damage_on_a_line(offsets: list[int | None], size: int, bar: str) -> None:
    assert damage_bar(offsets, size, 10) == bar


def test_a_large_database_is_drawn_in_cells_of_several_pages(flushed_delta: Path) -> None:
    anatomy = apart(flushed_delta)
    anatomy.pages.kinds = bytearray([PageKind.TABLE_LEAF]) * 100_000  # type: ignore[union-attr]
    assert "100,000 of 4,096 bytes; a letter stands for 40" in text_of(anatomy)
    assert "a square stands for 13" in words_of(image_of(anatomy))


class TestCommand:
    def run(self, *arguments: Any) -> Result:
        words = ["inspect", *map(str, arguments)]
        return CliRunner().invoke(cli, words, catch_exceptions=False)

    def test_a_healthy_and_a_corrupt_delta_end_as_a_check_does(self, flushed_delta: Path, garbled: Path) -> None:
        assert self.run(flushed_delta).exit_code == 0
        assert self.run(garbled).exit_code == 1

    def test_an_image_is_written_beside_the_text(self, garbled: Path, tmp_path: Path) -> None:
        result = self.run(garbled, "--svg", tmp_path / "delta.svg")
        assert "Pages of chroma.sqlite3" in result.stdout
        assert (tmp_path / "delta.svg").read_text().startswith("<svg ")

    def test_a_delta_in_s3(self, healthy_delta: Path, put_delta: PutDelta) -> None:
        result = self.run(put_delta(healthy_delta, "d/1").uri)
        assert (result.exit_code, "50 in the queue" in result.stdout) == (0, True)

    @pytest.mark.parametrize("target", ["no/such/folder", "s3://deltas", "s3://deltas/nothing", "s3://none-such/d/1"])
    @pytest.mark.usefixtures("bucket")
    def test_a_target_that_cannot_be_is_one_line(self, target: str) -> None:
        result = self.run(target)
        assert (result.exit_code, len(result.stderr.splitlines()), result.stdout) == (2, 1, "")

    def test_an_image_that_cannot_be_written_is_one_line(self, flushed_delta: Path, tmp_path: Path) -> None:
        result = self.run(flushed_delta, "--svg", tmp_path / "no" / "delta.svg")
        assert (result.exit_code, len(result.stderr.splitlines())) == (2, 1)


@pytest.mark.slow
def test_a_browser_takes_the_image(garbled: Path, tmp_path: Path) -> None:
    image = tmp_path / "delta.svg"
    image.write_text(plate(apart(garbled)))
    dom, console = find_browser().dom(image)
    assert console == []
    assert "where a page of an index belongs" in dom


def test_a_queue_whose_numbers_are_none_is_drawn_without_them(healthy_delta: Path) -> None:
    part = apart(healthy_delta).collections[0]
    assert isinstance(part, CollectionPart)
    assert queue_facts(replace(part, queue_last=None)) == ("no vector was flushed", "50 in the queue")
    assert queue_facts(replace(part, queued=None))[1] == "queue unreadable"
