"""A delta in a local folder: what lies beside and below its own files is nobody's business, whatever it is."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from shared.check.judgement import judge_folder
from shared.model.delta import DATABASE, MANIFEST
from shared.model.errors import CouldNotCheck
from shared.model.settings import Settings
from shared.model.verdict import Depth, Status
from shared.storage.folder import list_folder
from tests.conftest import CopyOf
from tests.support.uploads import manifest_of

SEGMENT = "0a1b2c3d-0000-4000-8000-0123456789ab"


def _tree(path: Path) -> None:
    (path / "deeper").mkdir(parents=True)
    for number in range(50):
        (path / "deeper" / str(number)).touch()


STRANGE: dict[str, Callable[[Path], object]] = {
    "a link to nowhere": lambda path: path.symlink_to("nowhere"),
    "a link to a folder": lambda path: path.symlink_to("/"),
    "a link to itself": lambda path: path.symlink_to(path.name),
    "a FIFO, which blocks whoever opens it": os.mkfifo,
    "a folder with many files": _tree,
}


@pytest.mark.parametrize("kind", STRANGE)
@pytest.mark.parametrize("place", ["notes", "deeper/notes", f"{SEGMENT}/notes", f"{SEGMENT}/deeper/notes"])
def test_what_is_not_the_delta_s_never_stops_the_check(
    healthy_delta: Path, copy_of: CopyOf, monkeypatch: pytest.MonkeyPatch, kind: str, place: str
) -> None:
    monkeypatch.setattr("shared.storage.folder.MAX_FILES", 20)
    folder = copy_of(healthy_delta)
    (folder / place).parent.mkdir(parents=True, exist_ok=True)
    STRANGE[kind](folder / place)
    own = [file.name for file in list_folder(healthy_delta).files]
    assert [file.name for file in list_folder(folder).files] == own
    assert judge_folder(folder, Depth.STRUCTURE, Settings()).verdict.status is Status.HEALTHY


@pytest.mark.parametrize(("name", "stops"), [("notes", False), (SEGMENT, True)])
def test_a_folder_that_cannot_be_listed_stops_the_check_only_where_it_is_an_index(
    healthy_delta: Path, copy_of: CopyOf, monkeypatch: pytest.MonkeyPatch, name: str, stops: bool
) -> None:
    folder = copy_of(healthy_delta)
    (folder / name).mkdir()
    listed = os.scandir

    def refused(path: Any) -> Any:  # root, who may run this, can list every folder
        if Path(path).name == name:
            raise PermissionError(errno.EACCES, "Permission denied")
        return listed(path)

    monkeypatch.setattr(os, "scandir", refused)
    verdict = judge_folder(folder, Depth.STRUCTURE, Settings()).verdict
    assert verdict.status is (Status.UNDETERMINED if stops else Status.HEALTHY)


@pytest.mark.parametrize("kind", list(STRANGE)[:4])
@pytest.mark.parametrize("name", [DATABASE, f"{DATABASE}-wal", SEGMENT, f"{SEGMENT}/header.bin", MANIFEST])
def test_a_link_or_special_file_with_the_name_of_an_own_file_is_not_followed(
    healthy_delta: Path, copy_of: CopyOf, kind: str, name: str
) -> None:
    folder = copy_of(healthy_delta)
    (folder / name).parent.mkdir(exist_ok=True)
    (folder / name).unlink(missing_ok=True)
    STRANGE[kind](folder / name)
    with pytest.raises(CouldNotCheck, match="a link or a special file; it was not followed"):
        list_folder(folder)
    verdict = judge_folder(folder, Depth.STRUCTURE, Settings()).verdict
    assert (verdict.status, verdict.findings[0].code) == (Status.UNDETERMINED, "check.local_io")


def test_a_link_that_a_manifest_names_is_not_called_lost(healthy_delta: Path, copy_of: CopyOf) -> None:
    folder = copy_of(healthy_delta)
    entry = b'"files": [{"name": "notes.txt", "size": 1, "crc64nvme": "AAAAAAAAAAA="},'
    (folder / MANIFEST).write_bytes(manifest_of(folder).replace(b'"files": [', entry))
    assert judge_folder(folder, Depth.LISTING, Settings()).verdict.status is Status.CORRUPT
    (folder / "notes.txt").symlink_to("/etc/passwd")
    verdict = judge_folder(folder, Depth.LISTING, Settings()).verdict
    assert (verdict.status, verdict.findings[0].code) == (Status.UNDETERMINED, "check.local_io")


def test_deltas_below_a_folder_are_seen(healthy_delta: Path, copy_of: CopyOf, tmp_path: Path) -> None:
    folder = copy_of(healthy_delta)
    for place in ("a/b", SEGMENT):
        shutil.copytree(healthy_delta, folder / place)
    assert list_folder(folder).below == (f"{SEGMENT}/", "a/b/")
    assert judge_folder(folder, Depth.STRUCTURE, Settings()).verdict.status is Status.HEALTHY
    (folder / DATABASE).write_bytes(b"SQLite format 3, almost")
    verdict = judge_folder(folder, Depth.STRUCTURE, Settings()).verdict
    assert (verdict.status, verdict.findings[-1].code) == (Status.UNDETERMINED, "verdict.deltas_below")
