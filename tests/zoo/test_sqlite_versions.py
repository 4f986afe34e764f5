"""Verdicts do not change with the SQLite that Python links: healthy and damaged directories under two versions."""

from __future__ import annotations

import random
import shutil
import sqlite3
from collections.abc import Sequence
from pathlib import Path

import pytest

from bench.score.bases import SUITABLE, build_base
from bench.score.generic import GENERIC
from devtools.damage.catalogue import DAMAGES, apply_damage
from devtools.zoo.frozen import all_frozen
from devtools.zoo.sqlite_versions import library, verdicts, verdicts_elsewhere
from tests.support import sweep

pytestmark = pytest.mark.slow


def require_same_verdicts(folders: Sequence[Path]) -> None:
    try:
        library()
    except FileNotFoundError as error:
        pytest.skip(str(error))
    here, elsewhere = verdicts(folders), verdicts_elsewhere(folders)
    assert here["sqlite"] == sqlite3.sqlite_version
    assert here["sqlite"] != elsewhere["sqlite"]
    both = {folder: (verdict, elsewhere["verdicts"][folder]) for folder, verdict in here["verdicts"].items()}
    assert not {Path(folder).name: pair for folder, pair in both.items() if pair[0] != pair[1]}


def test_a_directory_of_real_clients_has_the_same_verdict_under_another_sqlite(tmp_path: Path) -> None:
    folders = []
    for frozen in all_frozen():
        (tmp_path / frozen.name).mkdir()
        folders.append(frozen.thaw(tmp_path / frozen.name).folder.rename(tmp_path / f"{frozen.name}-delta"))
    require_same_verdicts(folders)


def test_a_damaged_delta_has_the_same_verdict_and_findings_under_another_sqlite(tmp_path: Path) -> None:
    folders = []
    for damage in DAMAGES:
        for base in SUITABLE[damage.needs][:2]:
            whole = tmp_path / base
            if not whole.is_dir():
                build_base(base, whole)
            folders.append(shutil.copytree(whole, tmp_path / f"{damage.kind} of {base}"))
            apply_damage(damage.kind, folders[-1], seed=7)
    require_same_verdicts(folders)


def test_a_delta_damaged_by_chance_has_the_same_verdict_and_findings_under_another_sqlite(tmp_path: Path) -> None:
    folders = []
    for generic in GENERIC:
        base = generic.bases[0]
        if not (tmp_path / base).is_dir():
            build_base(base, tmp_path / base)
        for seed in range(sweep.few(1, 20)):
            folders.append(shutil.copytree(tmp_path / base, tmp_path / f"{generic.kind} {seed} of {base}"))
            generic.break_(folders[-1], random.Random(f"{generic.kind} {base} {seed}"))
    require_same_verdicts(folders)
