"""One delta taken apart: right about sound ones, and whatever is broken, the rest is still gathered."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from devtools.damage.catalogue import DAMAGES, Damage, apply_damage
from scanner.picture.anatomy import Anatomy, cells, take_apart
from shared.inspection.sqlite.pages import PageKind, PageMap
from shared.model.delta import DATABASE
from shared.model.settings import Settings
from shared.model.verdict import Depth, Status
from shared.storage.store import Store
from tests.conftest import CopyOf, PutDelta
from tests.support import faults

Broken = Callable[..., Anatomy]


def apart(folder: Path) -> Anatomy:
    return take_apart(folder, Depth.STRUCTURE, Settings(), None)


@pytest.fixture
def broken(flushed_delta: Path, copy_of: CopyOf) -> Broken:
    """The anatomy of a flushed delta after one kind of damage."""

    def take(kind: str) -> Anatomy:
        folder = copy_of(flushed_delta)
        apply_damage(kind, folder)
        return apart(folder)

    return take


def test_a_flushed_delta_has_an_index_and_a_queue(flushed_delta: Path) -> None:
    anatomy = apart(flushed_delta)
    assert anatomy.verdict.status is Status.HEALTHY
    assert isinstance(anatomy.pages, PageMap)
    assert (anatomy.marked, anatomy.places) == ({}, ())
    (index,), (collection,) = anatomy.indexes, anatomy.collections
    assert index.header is not None
    assert (index.flushed, index.header.count, index.header.dimension) == (True, 100, 16)
    assert (collection.collection.name, collection.rows, collection.collection.flushed_to) == ("words", 123, 100)
    assert (collection.queued, collection.queue_first, collection.queue_last) == (45, 100, 144)


def test_the_index_of_a_queued_delta_is_a_skeleton(healthy_delta: Path) -> None:
    anatomy = apart(healthy_delta)
    assert [index.flushed for index in anatomy.indexes] == [False]
    assert [part.queued for part in anatomy.collections] == [50]


def test_a_delta_in_s3_is_the_same_as_on_disk(flushed_delta: Path, put_delta: PutDelta, store: Store) -> None:
    local = apart(flushed_delta)
    stored = take_apart(
        put_delta(flushed_delta, "d/1"), Depth.STRUCTURE, Settings(settle_seconds=0, arrival_seconds=0), store
    )
    assert (stored.pages, stored.indexes, stored.collections) == (local.pages, local.indexes, local.collections)


def test_a_damaged_page_is_marked_where_sqlite_only_says_malformed(broken: Broken) -> None:
    anatomy = broken("sqlite-leaf-page-zeroed")
    assert isinstance(anatomy.pages, PageMap)
    assert [anatomy.pages.kinds[number - 1] for number in anatomy.marked] == [PageKind.BROKEN]


@pytest.mark.parametrize(
    ("kind", "code", "file"),
    [
        ("sqlite-truncated", "sqlite.truncated", DATABASE),
        ("data-neighbour-outside", "hnsw.link_invalid", "data_level0.bin"),
        ("data-vector-nan", "hnsw.vector_not_finite", "data_level0.bin"),
        ("pickle-malicious", "hnsw.pickle_hostile", "index_metadata.pickle"),
    ],
)
def test_a_finding_points_to_the_byte_it_names(broken: Broken, kind: str, code: str, file: str) -> None:
    anatomy = broken(kind)
    place = next(place for place in anatomy.places if place.finding.code == code)
    sizes = {f.name: f.size for f in anatomy.files}
    assert place.finding.file.endswith(file)
    assert place.offset is not None
    assert 0 <= place.offset <= sizes[place.finding.file]


def test_what_decided_comes_before_the_notes(broken: Broken) -> None:
    codes = [place.finding.code for place in broken("embedding-row-removed").places]
    assert "records.id_missing" in codes
    assert codes[-1] == "records.recoverable"


def test_without_a_database_the_index_is_still_there(broken: Broken) -> None:
    anatomy = broken("sqlite-missing")
    assert anatomy.pages == anatomy.collections == "there is no chroma.sqlite3"
    assert anatomy.indexes[0].header is not None
    assert anatomy.indexes[0].flushed is None


def test_a_database_above_the_cap_is_not_drawn_and_the_verdict_says_so(
    flushed_delta: Path, put_delta: PutDelta, store: Store
) -> None:
    small = Settings(settle_seconds=0, arrival_seconds=0, max_delta_bytes=1000)
    anatomy = take_apart(put_delta(flushed_delta, "d/1"), Depth.LISTING, small, store)
    assert anatomy.pages == "it could not be read"
    assert [finding.code for finding in anatomy.verdict.findings] == ["check.size_cap"]


def test_a_store_that_fails_is_undetermined(flushed_delta: Path, put_delta: PutDelta, fast_retries: None) -> None:
    location = put_delta(flushed_delta, "d/1")
    failing = faults.answering("SlowDown", 503, lambda request: DATABASE in request.url)
    anatomy = take_apart(location, Depth.LISTING, Settings(settle_seconds=0, arrival_seconds=0), failing)
    assert anatomy.verdict.status is Status.UNDETERMINED


def test_a_cell_of_several_pages_shows_the_broken_one() -> None:
    kinds = bytearray([PageKind.TABLE_LEAF] * 10)
    pages = PageMap(4096, kinds)
    assert cells(pages, {}, 10) == (1, [PageKind.TABLE_LEAF] * 10)
    assert cells(pages, {6: "why"}, 3) == (4, [PageKind.TABLE_LEAF, PageKind.BROKEN, PageKind.TABLE_LEAF])
    kinds[9] = PageKind.UNREACHED
    assert cells(pages, {99: "outside"}, 5)[1] == [PageKind.TABLE_LEAF] * 4 + [PageKind.UNREACHED]


@pytest.mark.slow
@pytest.mark.parametrize("damage", DAMAGES, ids=lambda damage: damage.kind)
def test_every_known_damage_can_be_drawn(
    damage: Damage, healthy_delta: Path, flushed_delta: Path, tmp_path: Path
) -> None:
    if damage.needs == "two flushed":
        pytest.skip("needs two collections")
    source = healthy_delta if damage.needs == "queued" else flushed_delta
    folder = Path(shutil.copytree(source, tmp_path / "delta"))
    apply_damage(damage.kind, folder)
    from tests.scanner.picture.test_text import image_of, text_of

    anatomy = apart(folder)
    assert text_of(anatomy)
    assert image_of(anatomy)
