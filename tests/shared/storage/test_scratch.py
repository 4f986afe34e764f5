"""Scratch folders are private, go away at the end of their block, and are swept after a process that was killed."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from shared.check.judgement import judge_folder
from shared.model.errors import CouldNotCheck
from shared.model.settings import Settings
from shared.model.verdict import Depth, Status
from shared.storage.scratch import scratch_folder, sweep_scratch

OWNER = """
import sys
from shared.storage.scratch import scratch_folder
with scratch_folder() as folder:
    (folder / "half a delta").write_bytes(b"x")
    print(folder, flush=True)
    sys.stdin.read()
"""


@pytest.fixture(autouse=True)
def temp(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A disk for scratch folders of this test alone."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path


@contextmanager
def owner(temp: Path) -> Iterator[tuple[subprocess.Popen[str], Path]]:
    """A child process inside its scratch folder, and that folder, which looks an hour old."""
    environment = {**os.environ, "TMPDIR": str(temp), "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    with subprocess.Popen(
        [sys.executable, "-c", OWNER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
    ) as child:
        try:
            assert child.stdout is not None
            folder = Path(child.stdout.readline().strip())
            age(folder.parent)
            yield child, folder
        finally:
            child.kill()


def age(folder: Path) -> None:
    an_hour_ago = time.time() - 3600
    os.utime(folder, (an_hour_ago, an_hour_ago))


def test_a_scratch_folder_is_empty_and_no_other_user_can_reach_it(temp: Path) -> None:
    with scratch_folder() as folder:
        assert list(folder.iterdir()) == []
        below_temp = next(parent for parent in folder.parents if parent.parent == temp)
        assert below_temp.stat().st_mode & 0o777 == 0o700


def test_two_scratch_folders_are_never_the_same() -> None:
    with scratch_folder() as one, scratch_folder() as other:
        assert one != other


def test_a_scratch_folder_is_gone_after_its_block_with_all_that_was_put_there(temp: Path) -> None:
    with scratch_folder() as folder:
        (folder / "a").mkdir()
        (folder / "a" / "b").write_bytes(b"x")
    assert list(temp.iterdir()) == []


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, SystemExit])
def test_a_scratch_folder_is_gone_after_an_exception_too(temp: Path, error: type[BaseException]) -> None:
    with pytest.raises(error), scratch_folder() as folder:
        (folder / "a").write_bytes(b"x")
        raise error
    assert list(temp.iterdir()) == []


def test_no_room_for_a_scratch_folder_is_a_fault_of_the_environment(
    temp: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(temp / "not there"))
    with pytest.raises(CouldNotCheck, match="making a scratch folder") as fault, scratch_folder():
        pass
    assert fault.value.code == "check.local_io"


def test_the_folder_of_a_killed_process_is_swept(temp: Path) -> None:
    with owner(temp) as (child, folder):
        child.send_signal(signal.SIGKILL)
        assert child.wait() == -signal.SIGKILL
        assert (folder / "half a delta").exists()
        assert sweep_scratch() == 1
        assert list(temp.iterdir()) == []


def test_the_folder_of_a_living_process_is_left_however_old_it_looks(temp: Path) -> None:
    with owner(temp) as (_, folder):
        assert sweep_scratch() == 0
        assert (folder / "half a delta").exists()


HOME = f"deltaguard-scratch-{os.geteuid()}"


def everything(folder: Path) -> dict[str, bytes | None]:
    """All files below a folder with their bytes, and all folders and links."""
    return {
        str(path.relative_to(folder)): path.read_bytes() if path.is_file() and not path.is_symlink() else None
        for path in folder.rglob("*")
    }


def home_of(temp: Path) -> Path:
    """The folder of all scratch folders as an earlier run left it, which looks an hour old."""
    home = temp / HOME
    home.mkdir(0o700)
    age(home)
    return home


def leftover(temp: Path) -> tuple[Path, Path]:
    """The scratch folder that a killed process left, and its lock."""
    with owner(temp) as (child, folder):
        child.kill()
        child.wait()
    return folder, folder.with_name(f"{folder.name}.lock")


def data_in(folder: Path) -> Path:
    folder.mkdir(parents=True)
    (folder / "chroma.sqlite3").write_bytes(b"somebody's")
    age(folder)
    return folder


def lock_beside(folder: Path, content: bytes = b"") -> None:
    folder.with_name(f"{folder.name}.lock").write_bytes(content)


def named_as_scratch_was_once(temp: Path) -> None:
    (data_in(temp / "deltaguard-salvaged") / ".lock").touch()
    data_in(temp / "deltaguard-a1b2c3d4" / "content")


def beside_the_scratch_folders(temp: Path) -> None:
    data_in(home_of(temp) / "delta")
    (temp / HOME / "note.txt").write_bytes(b"somebody's")


def beside_a_lock_of_another_program(temp: Path) -> None:
    home = home_of(temp)
    lock_beside(data_in(home / "delta"))
    lock_beside(data_in(home / "other"), b"4711\n")


def beside_a_copy_of_one_of_our_locks(temp: Path) -> None:
    folder, lock = leftover(temp)
    lock_beside(data_in(folder.with_name("delta")), lock.read_bytes())
    assert sweep_scratch() == 1


def behind_a_link_in_place_of_a_scratch_folder(temp: Path) -> None:
    folder, _ = leftover(temp)
    (folder / "half a delta").unlink()
    folder.rmdir()
    folder.symlink_to(data_in(temp / "delta"))


def behind_a_link_in_place_of_a_lock(temp: Path) -> None:
    folder, lock = leftover(temp)
    lock.rename(temp / "lock")
    lock.symlink_to(temp / "lock")
    data_in(folder / "delta")


def behind_a_link_inside_a_scratch_folder(temp: Path) -> None:
    folder, _ = leftover(temp)
    (folder / "link").symlink_to(data_in(temp / "delta"))
    assert sweep_scratch() == 1


def behind_a_planted_link(temp: Path) -> None:
    folder, _ = leftover(temp)
    data_in(folder / "delta")
    (temp / HOME).rename(temp / "elsewhere")
    (temp / HOME).symlink_to(temp / "elsewhere")


def in_a_home_that_others_may_write_to(temp: Path) -> None:
    folder, _ = leftover(temp)
    data_in(folder / "delta")
    (temp / HOME).chmod(0o770)


def in_a_file_in_place_of_the_home(temp: Path) -> None:
    (temp / HOME).write_bytes(b"somebody's")


@pytest.mark.parametrize(
    "put",
    [
        named_as_scratch_was_once, beside_the_scratch_folders, beside_a_lock_of_another_program,
        beside_a_copy_of_one_of_our_locks, behind_a_link_in_place_of_a_scratch_folder, behind_a_link_in_place_of_a_lock,
        behind_a_link_inside_a_scratch_folder, behind_a_planted_link, in_a_home_that_others_may_write_to,
        in_a_file_in_place_of_the_home,
    ],
)  # fmt: skip
def test_what_this_program_did_not_make_is_neither_swept_nor_in_the_way(
    put: Callable[[Path], None], temp: Path
) -> None:
    put(temp)
    before = everything(temp)
    assert before
    assert sweep_scratch() == 0
    with scratch_folder() as folder:
        (folder / "a").write_bytes(b"x")
        assert sweep_scratch() == 0
    assert everything(temp) == before


def test_the_target_of_a_check_that_lies_where_scratch_once_did_is_left(
    temp: Path, healthy_delta: Path, settled: Settings
) -> None:
    delta = Path(shutil.copytree(healthy_delta, temp / "deltaguard-delta"))
    (delta / ".lock").touch()
    age(delta)
    sweep_scratch()
    assert judge_folder(delta, Depth.STRUCTURE, settled).verdict.status is Status.HEALTHY


@pytest.mark.slow
def test_scratch_inside_the_target_of_a_check_is_no_part_of_it(
    temp: Path, healthy_delta: Path, settled: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    delta = Path(shutil.copytree(healthy_delta, temp / "delta"))
    before = everything(delta)
    monkeypatch.setattr(tempfile, "tempdir", str(delta))
    for _ in range(2):
        sweep_scratch()
        assert judge_folder(delta, Depth.OPEN, settled).verdict.status is Status.HEALTHY
    assert everything(delta) == before


def test_the_folder_of_another_user_is_not_ours_to_use(temp: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    planted = home_of(temp)
    real = os.geteuid()
    monkeypatch.setattr("shared.storage.scratch.os.geteuid", lambda: real + 1)
    planted.rename(temp / f"deltaguard-scratch-{real + 1}")
    with scratch_folder() as folder:
        assert planted.with_name(f"deltaguard-scratch-{real + 1}") not in folder.parents
        assert folder.parent.stat().st_mode & 0o777 == 0o700


STAGES = ["os.mkdir", "os.open", "fcntl.flock", "os.write", "os.rmdir", "os.unlink"]
"""The calls of the operating system during which a maker of a scratch folder may be stopped or killed."""


@pytest.mark.parametrize("killed_at", [None, 1, 2, 3])
@pytest.mark.parametrize("stage", STAGES)
def test_a_sweep_at_any_moment_of_another_process_takes_nothing_from_it_while_it_lives(
    stage: str, killed_at: int | None, temp: Path
) -> None:
    """The other process stops before and after each such call in its own code; then a sweep runs here."""
    environment = {**os.environ, "TMPDIR": str(temp), "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    with subprocess.Popen(
        [sys.executable, "-c", HALTING, stage], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        env=environment,
    ) as child:  # fmt: skip
        assert child.stdout is not None
        assert child.stdin is not None
        said = []
        while (line := child.stdout.readline().strip()) not in ("done", ""):
            said.append(line)
            if len(said) == killed_at:
                child.kill()
                child.wait()
                break
            sweep_scratch()
            child.stdin.write("\n")
            child.stdin.flush()
        assert said
        assert killed_at or (line == "done" and child.wait() == 0)
    sweep_scratch()
    left = [path for path in temp.rglob("*") if path.name != HOME]
    assert not [path for path in left if path.is_dir() or path.stat().st_size], "more than an empty lock was left"


HALTING = """
import fcntl, os, sys, tempfile
import shared.storage.scratch
tempfile.gettempdir()  # tries to write there
module, name = sys.argv[1].split(".")
real = getattr(sys.modules[module], name)
halts = True

def halting(*arguments, **named):
    global halts
    if halts:
        print("before", flush=True); sys.stdin.readline()
    result = real(*arguments, **named)
    if halts:
        print("after", flush=True); sys.stdin.readline()
    return result

setattr(sys.modules[module], name, halting)
for _ in range(2):
    with shared.storage.scratch.scratch_folder() as folder:
        halts = False
        (folder / "half a delta").write_bytes(b"x")
        assert os.listdir(folder) == ["half a delta"]
        halts = True
halts = False
print("done", flush=True)
"""
