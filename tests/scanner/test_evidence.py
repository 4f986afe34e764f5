"""What a person reads about a broken delta: the file, the place, what was expected and seen, and what is left of it."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner

from devtools.damage.catalogue import apply_damage
from devtools.damage.deltas import DeltaRecipe, build_delta
from scanner.cli import cli
from shared.model.delta import DATABASE

CopyOf = Callable[[Path], Path]


def told(delta: Path) -> str:
    """The table of `deltaguard check`, its lines joined where they were wrapped."""
    result = CliRunner().invoke(cli, ["check", str(delta), "--format", "table"], catch_exceptions=False)
    assert result.exit_code == 1, result.output
    return " ".join(result.stdout.split())


LEFT = "embeddings of 'words' can be recovered"
LOST_1_OF_50 = f"49 of 50 {LEFT}: vectors of 49 are in the queue, of 0 in sound records of the index; 1 have no sound"
LOST_1_OF_130 = f"129 of 130 {LEFT}: vectors of 31 are in the queue, of 98 in sound records of the index; 1 have no"
LOST_INDEX = f"35 of 123 {LEFT}: vectors of 35 are in the queue, of 0 in sound records of the index; 88 have no sound"

EVIDENCE = {
    # kind of damage: delta, file, the place with what was seen and expected, and what is left
    "queue-vector-short": (
        "healthy_delta", DATABASE, r"row \d+ of embeddings_queue: 124 bytes, dimension 32 needs 128", LOST_1_OF_50,
    ),
    "queue-encoding-unknown": (
        "healthy_delta", DATABASE, r"row \d+ of embeddings_queue: encoding 'FLOAT8', expected FLOAT32", LOST_1_OF_50,
    ),
    "queue-operation-unknown": (
        "healthy_delta", DATABASE, r"row \d+ of embeddings_queue: operation 9 on 'item-0-\d+', expected 0 to 3",
        LOST_1_OF_50,
    ),
    "queue-row-deleted": (
        "healthy_delta", DATABASE, r"1 of 50 embeddings of 'words' have no vector: 'item-0-\d+'", LOST_1_OF_50,
    ),
    "embedding-row-removed": (
        "healthy_delta", DATABASE, r"1 vectors of 'words' have no row in embeddings: 'item-0-\d+'", f"all 50 {LEFT}",
    ),
    "metadata-rows-removed": (
        "healthy_delta", DATABASE, r"as the queue has them, the first '.+' of 'item-0-\d+' in row \d+ of embeddings",
        f"all 50 {LEFT}",
    ),
    "sqlite-root-page-zeroed": (
        "healthy_delta", DATABASE, r"[Pp]age \d+: .+ \(at offset \d+\)", "embeddings_queue: all 50 rows",
    ),
    "sqlite-truncated": (
        "healthy_delta", DATABASE, r"\d+ bytes, but \d+ pages of 4096 need \d+: \d+ bytes are lost", "",
    ),
    "fulltext-rows-deleted": (
        "healthy_delta", DATABASE, r"50 are missing from the full-text table and 0 differ there, the first of row 1",
        f"all 50 {LEFT}",
    ),
    "collection-dimension-changed": (
        "healthy_delta", DATABASE, r"the first in row 1 of embeddings_queue: 128 bytes, dimension 33 needs 132",
        f"all 50 {LEFT}",
    ),
    "collection-removed": (
        "healthy_delta", DATABASE, r"no row in collections: '[-0-9a-f]{36}'; 50 rows of embeddings belong to none",
        "embeddings_queue: all 50 rows",
    ),
    "max-seq-id-added": (
        "healthy_delta", "index_metadata.pickle", r"flushed up to operation 50, but the id map is not there",
        f"all 50 {LEFT}",
    ),
    "header-version": (
        "flushed_delta", "header.bin", r"version at offset 0 is 2, expected 1", LOST_INDEX,
    ),
    "header-entry-point": (
        "flushed_delta", "header.bin", r"entry point at offset 56 is 2147483648, the index has 100 elements",
        f"all 123 {LEFT}",
    ),
    "data-truncated": (
        "flushed_delta", "data_level0.bin", r"10200 bytes, expected 20400 for 100 embeddings", LOST_INDEX,
    ),
    "data-neighbour-outside": (
        "appended_delta", "data_level0.bin",
        r"the first at offset \d+: \d+ links, the highest to element 2147483647; expected at most 32 and 99",
        LOST_1_OF_130,
    ),
    "data-label-changed": (
        "appended_delta", "data_level0.bin", r"first \d+ of 'item-0-\d+'; 1 records .+ the first 1000000 at offset \d+",
        LOST_1_OF_130,
    ),
    "links-truncated": (
        "flushed_delta", "link_lists.bin",
        r"\d+ bytes(, expected 400 for 100 embeddings| of links at offset \d+, the file ends \d+ later)",
        f"all 123 {LEFT}",
    ),
    "pickle-truncated": (
        "flushed_delta", "index_metadata.pickle", r"\d+ bytes: .+ at offset \d+", LOST_INDEX,
    ),
}  # fmt: skip


@pytest.fixture(scope="module")
def appended_delta(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A flushed delta with nothing updated or deleted, so that whichever record of its index is lost is missed.

    Which embedding has which record, Chroma's threads decide anew each time, within a batch.
    """
    folder = tmp_path_factory.mktemp("deltas") / "appended"
    build_delta(folder, DeltaRecipe(embeddings=130, dimension=16, sync_threshold=50, batch=25))
    return folder


@pytest.mark.parametrize("kind", EVIDENCE)
def test_a_person_is_told_where_what_and_how_much_is_left(
    kind: str, request: pytest.FixtureRequest, copy_of: CopyOf
) -> None:
    name, file, place, left = EVIDENCE[kind]
    delta = copy_of(request.getfixturevalue(name))
    apply_damage(kind, delta)
    text = told(delta)
    assert file in text
    assert re.search(place, text), text
    assert left in text, text


def test_the_place_that_is_told_is_where_the_damage_was_done(flushed_delta: Path, copy_of: CopyOf) -> None:
    """Of the damages that tell their own offset."""
    for kind in ("data-label-changed",):
        delta = copy_of(flushed_delta)
        (at,) = re.findall(r"data_level0\.bin at (\d+)", apply_damage(kind, delta))
        assert f"at offset {at}" in told(delta)
    delta = copy_of(flushed_delta)
    (at,) = re.findall(r"chroma\.sqlite3 at (\d+)", apply_damage("sqlite-leaf-page-zeroed", delta))
    assert f"(at offset {at})" in told(delta)
