"""The catalogue of damage: each kind changes a real delta, the same way each time, and runs nothing."""

from __future__ import annotations

import shutil
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from devtools.damage.catalogue import DAMAGES, Damage, Needs, apply_damage
from devtools.damage.deltas import DeltaRecipe, build_delta, read_delta
from devtools.damage.file_breaks import MARKER
from shared.model.delta import DATABASE

_FLUSHED = DeltaRecipe(embeddings=70, sync_threshold=20, batch=20)
_RECIPES: dict[Needs, DeltaRecipe] = {
    "any": _FLUSHED,
    "queued": DeltaRecipe(embeddings=40),
    "flushed": _FLUSHED,
    "two flushed": DeltaRecipe(embeddings=70, sync_threshold=20, batch=20, collections=2),
}


@pytest.fixture(scope="module")
def deltas(tmp_path_factory: pytest.TempPathFactory) -> dict[Needs, Path]:
    """One healthy delta for each that a damage can need."""
    root = tmp_path_factory.mktemp("healthy")
    for needs, recipe in _RECIPES.items():
        build_delta(root / needs, recipe)
    return {needs: root / needs for needs in _RECIPES}


def _bytes(directory: Path) -> dict[str, bytes]:
    return {str(path.relative_to(directory)): path.read_bytes() for path in directory.rglob("*") if path.is_file()}


def _broken(delta: Path, target: Path, kind: str, seed: int = 0) -> dict[str, bytes]:
    shutil.copytree(delta, target)
    assert apply_damage(kind, target, seed)
    return _bytes(target)


@pytest.mark.parametrize("damage", DAMAGES, ids=lambda damage: damage.kind)
def test_each_damage_changes_the_bytes_and_is_repeatable(
    deltas: dict[Needs, Path], tmp_path: Path, damage: Damage
) -> None:
    healthy = deltas[damage.needs]
    once = _broken(healthy, tmp_path / "once", damage.kind)
    assert once != _bytes(healthy)
    assert once == _broken(healthy, tmp_path / "again", damage.kind)
    assert not Path(MARKER).exists()


@pytest.mark.parametrize("damage", [d for d in DAMAGES if d.needs == "any"], ids=lambda damage: damage.kind)
def test_damage_to_any_delta_fits_a_queued_one_too(deltas: dict[Needs, Path], tmp_path: Path, damage: Damage) -> None:
    assert _broken(deltas["queued"], tmp_path / "broken", damage.kind) != _bytes(deltas["queued"])


def test_another_seed_is_another_damage(deltas: dict[Needs, Path], tmp_path: Path) -> None:
    one, two = (_broken(deltas["any"], tmp_path / str(seed), "sqlite-truncated", seed) for seed in (1, 2))
    assert len(one[DATABASE]) != len(two[DATABASE])


def test_kinds_are_unique_and_harm_has_one_meaning() -> None:
    assert len({damage.kind for damage in DAMAGES}) == len(DAMAGES)
    for damage in DAMAGES:
        assert damage.harm or not damage.value_only, f"{damage.kind}: values can only be harmed"
        assert not (damage.harm and damage.refused), f"{damage.kind}: harm alone is reason enough"


def test_an_unknown_kind_is_refused_with_the_known_ones(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no such damage; there are sqlite-missing"):
        apply_damage("moth-eaten", tmp_path)


def test_index_damage_needs_an_index(tmp_path: Path) -> None:
    build_delta(tmp_path, DeltaRecipe(embeddings=0))
    with pytest.raises(ValueError, match="no collection of this delta has an index folder"):
        apply_damage("header-missing", tmp_path)


def test_sqlite_takes_a_hot_journal_for_its_own(deltas: dict[Needs, Path], tmp_path: Path) -> None:
    _broken(deltas["queued"], tmp_path / "broken", "journal-hot")
    with closing(sqlite3.connect(tmp_path / "broken" / DATABASE)) as database:
        assert database.execute("SELECT count(*) FROM embeddings").fetchone() == (37,)
        assert database.execute("PRAGMA integrity_check").fetchone() == ("ok",)


@pytest.mark.parametrize("damage", [d for d in DAMAGES if not d.harm and not d.refused], ids=lambda d: d.kind)
def test_harmless_damage_loses_nothing(deltas: dict[Needs, Path], tmp_path: Path, damage: Damage) -> None:
    _broken(deltas[damage.needs], tmp_path / "broken", damage.kind)
    assert read_delta(tmp_path / "broken") == read_delta(deltas[damage.needs])
