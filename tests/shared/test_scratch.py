"""Scratch folders are private, go away at the end of their block, and are swept after a process that was killed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from shared.errors import CouldNotCheck
from shared.scratch import scratch_folder, sweep_scratch

OWNER = """
import sys
from shared.scratch import scratch_folder
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


def test_a_folder_whose_process_was_killed_before_it_could_lock_it_is_swept(temp: Path) -> None:
    folder = Path(tempfile.mkdtemp(prefix="deltaguard-"))
    age(folder)
    assert sweep_scratch() == 1
    assert not folder.exists()


def test_a_folder_that_was_made_a_moment_ago_is_left_since_its_lock_may_be_on_its_way() -> None:
    folder = Path(tempfile.mkdtemp(prefix="deltaguard-"))
    assert sweep_scratch() == 0
    assert folder.exists()


def test_folders_of_other_programs_are_left(temp: Path) -> None:
    other = temp / "other-tool"
    other.mkdir()
    (other / ".lock").touch()
    age(other)
    assert sweep_scratch() == 0
    assert other.exists()
