"""Who is scored: Deltaguard at each depth, with a manifest, and SQLite's own two checks."""

from __future__ import annotations

import shutil
import sqlite3
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any

from bench.score.children import Emit, forked
from shared.check.judgement import judge_folder
from shared.model.delta import DATABASE, MANIFEST
from shared.model.manifest import Manifest
from shared.model.settings import Settings
from shared.model.verdict import Depth, Status
from shared.upload import _manifest_of

WITH_MANIFEST = "structure+manifest"
OURS = (*(depth.value for depth in (Depth.LISTING, Depth.HEADER, Depth.STRUCTURE)), WITH_MANIFEST)
SEED = "seed's check"
PRAGMAS = ("integrity_check", "quick_check")
RIVALS = (SEED, *PRAGMAS)

_SECONDS = 30.0
_SETTINGS = Settings()


def manifest_of(delta: Path) -> bytes:
    """The manifest that `deltaguard upload` would write for a delta."""
    manifest: Manifest = _manifest_of(delta, judge_folder(delta, Depth.STRUCTURE, _SETTINGS), None)
    return manifest.as_bytes()


def would_be_moved(delta: Path) -> dict[str, Any]:
    """Whether a delta whose bytes read corrupt would be quarantined, by the rule of `--quarantine`, and why (not)."""
    judgement = judge_folder(delta, Depth.STRUCTURE, _SETTINGS, confirm=True)
    said = (f.detail for f in judgement.verdict.observed if f.code.startswith("verdict."))
    return {"moved": judgement.confirmed, "why": "; ".join(said)[:300]}


def ask_checkers(delta: Path, manifest: bytes | None, scratch: Path) -> dict[str, dict[str, Any]]:
    """What each checker but the seed's says of a delta: its status, the codes of findings, and a reason.

    Args:
        delta: The delta. SQLite's checks are given a copy, for they may take back a journal.
        manifest: Made before the damage; None where there cannot have been one.
        scratch: An empty folder for that copy.
    """
    ours = forked(partial(_verdicts, delta, manifest), _SECONDS)
    said: dict[str, dict[str, Any]] = ours.value or {name: _said("raised", [], ours.trouble) for name in OURS}
    for pragma in PRAGMAS:
        copy = Path(shutil.copytree(delta, scratch / "copy"))
        ended = forked(partial(_pragma, copy / DATABASE, pragma), _SECONDS)
        reason = ended.trouble or ended.value
        said[pragma] = _said(Status.CORRUPT if reason else Status.HEALTHY, [], reason)
        shutil.rmtree(copy)
    return said


def _verdicts(delta: Path, manifest: bytes | None, emit: Emit) -> dict[str, dict[str, Any]]:
    said = {}
    for depth in (Depth.LISTING, Depth.HEADER, Depth.STRUCTURE):
        emit(depth)
        said[depth.value] = _verdict(delta, depth)
    if manifest is None:
        return said | {WITH_MANIFEST: said[Depth.STRUCTURE]}
    emit(WITH_MANIFEST)
    (delta / MANIFEST).write_bytes(manifest)
    said[WITH_MANIFEST] = _verdict(delta, Depth.STRUCTURE)
    (delta / MANIFEST).unlink()
    return said


def _verdict(delta: Path, depth: Depth) -> dict[str, Any]:
    before = {path.name for path in delta.iterdir()}
    verdict = judge_folder(delta, depth, _SETTINGS).verdict
    if {path.name for path in delta.iterdir()} != before:
        raise AssertionError("the check changed the delta")
    return _said(verdict.status, sorted({finding.code for finding in verdict.findings}), verdict.reason)


def _said(status: str, codes: list[str], reason: str) -> dict[str, Any]:
    return {"status": str(status), "codes": codes, "reason": reason[:300]}


def _pragma(database: Path, pragma: str, _: Emit) -> str:
    """The first problem that SQLite's own check reports, as somebody would call it who knows nothing of Chroma."""
    try:
        with closing(sqlite3.connect(database)) as connection:
            (answer,) = connection.execute(f"PRAGMA {pragma}").fetchone()
    except sqlite3.Error as error:
        return str(error) or type(error).__name__
    return "" if answer == "ok" else str(answer)
