"""A checkpoint goes on where a scan stopped, however it stopped, and is not taken for that of another scan."""

from __future__ import annotations

import random
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scanner.find.discovery import Bookmark, FoundDelta, find_stored
from scanner.run.checkpoint import Checkpoint, Place
from shared.model.delta import DeltaFile
from shared.model.errors import TargetError
from shared.model.verdict import CollectionCount, Depth, Finding, Status, Verdict

SCAN = {"targets": ["s3://bucket/words/"], "depth": "structure"}
NOW = "2026-11-25T12:00:00+00:00"
UNKNOWN = (Finding("check.storage", "", "time-out"),)
WORDS = (CollectionCount("words", 32, 12),)


def verdict(name: str, observed: tuple[Finding, ...] = ()) -> Verdict:
    return Verdict(name, Depth.STRUCTURE, observed, WORDS, 100, "f" * 64, 1.5, {"rules": "1"})


def place(number: int, root: int = 0) -> Place:
    return Place(root, number, Bookmark(f"words/{number}/chroma.sqlite3"))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "checkpoint"


def test_verdicts_come_back_as_they_were(path: Path) -> None:
    corrupt = verdict("b", (Finding("sqlite.truncated", "x\udcff\x1b", "d"), Finding("layout.foreign_file", "f", "n")))
    with Checkpoint(path, SCAN, NOW) as first:
        first.add(verdict("a"), place(0))
        first.add(corrupt, place(1))
    with Checkpoint(path, SCAN, "later") as second:
        assert list(second.verdicts()) == [verdict("a"), corrupt]
        assert second.started == NOW, "when the first run began"


def test_it_goes_on_behind_the_last_delta_before_which_none_is_missing(path: Path) -> None:
    with Checkpoint(path, SCAN, NOW) as first:
        assert first.bookmark(0) is None
        for number in (1, 0, 4, 2, 6):
            first.add(verdict(str(number)), place(number))
    with Checkpoint(path, SCAN, NOW) as second:
        assert second.bookmark(0) == place(2).bookmark
        assert second.done == {"4", "6"}
        second.add(verdict("3"), place(0))
    with Checkpoint(path, SCAN, NOW) as third:
        assert third.bookmark(0) == place(0).bookmark
        assert {verdict.delta for verdict in third.verdicts()} == set("012346")


def test_each_root_has_its_own_bookmark(path: Path) -> None:
    with Checkpoint(path, SCAN, NOW) as first:
        first.add(verdict("a"), place(0, root=1))
        first.add(verdict("b"), Place(0, 0, Bookmark("x/y/z", ("x/",))))
    with Checkpoint(path, SCAN, NOW) as second:
        assert second.bookmark(0) == Bookmark("x/y/z", ("x/",))
        assert second.bookmark(1) == place(0).bookmark
        assert second.bookmark(2) is None


def test_what_could_not_be_checked_is_judged_once_more(path: Path) -> None:
    with Checkpoint(path, SCAN, NOW) as first:
        first.add(verdict("a", UNKNOWN), place(0))
        first.add(verdict("b", (Finding("arrival.settling", "", "1 s"),)), place(1))
        first.add(verdict("c"), place(2))
    with Checkpoint(path, SCAN, NOW) as second:
        assert list(second.again) == ["a", "b"]
        assert [verdict.delta for verdict in second.verdicts()] == ["c"]
        second.add(verdict("a"), None)
        second.add(verdict("b", UNKNOWN), None)
    with Checkpoint(path, SCAN, NOW) as third:
        assert list(third.again) == ["b"]
        assert [verdict.delta for verdict in third.verdicts()] == ["c", "a"]


@pytest.mark.parametrize("cut", [1, 20, 100])
def test_a_torn_last_line_is_dropped_and_written_anew(path: Path, cut: int) -> None:
    with Checkpoint(path, SCAN, NOW) as first:
        first.add(verdict("a"), place(0))
        first.add(verdict("b"), place(1))
    path.write_bytes(path.read_bytes()[:-cut])
    with Checkpoint(path, SCAN, NOW) as second:
        assert [verdict.delta for verdict in second.verdicts()] == ["a"]
        second.add(verdict("b"), place(0))
    with Checkpoint(path, SCAN, NOW) as third:
        assert [verdict.delta for verdict in third.verdicts()] == ["a", "b"]


@pytest.mark.parametrize("length", [0, 1, 10, 60, 120])
def test_so_is_a_torn_first_line(path: Path, length: int) -> None:
    Checkpoint(path, SCAN, NOW).close()
    path.write_bytes(path.read_bytes()[:length])
    with Checkpoint(path, SCAN, "later") as second:
        assert second.started == "later"


@pytest.mark.parametrize(
    "content",
    [b"{}", b"{}\n", b'{"summary": {}}\n', b"status  delta\n", b"\x00\xff", b'{"checkpoint": "another 9"}\n', b"[1]\n"],
)
def test_a_file_of_somebody_else_is_left_alone(path: Path, content: bytes) -> None:
    path.write_bytes(content)
    with pytest.raises(TargetError, match="not the checkpoint of a scan"):
        Checkpoint(path, SCAN, NOW)
    assert path.read_bytes() == content


@pytest.mark.parametrize("line", [b"{}\n", b"nonsense\n", b'{"verdict": {"delta": "x"}}\n', b'{"verdict": 3}\n'])
def test_a_damaged_line_in_the_middle_is_told(path: Path, line: bytes) -> None:
    with Checkpoint(path, SCAN, NOW) as first:
        first.add(verdict("a"), place(0))
    path.write_bytes(path.read_bytes() + line + path.read_bytes().splitlines(keepends=True)[1])
    with pytest.raises(TargetError, match="damaged"):
        Checkpoint(path, SCAN, NOW)


def test_another_scan_is_told_with_what_differs(path: Path) -> None:
    Checkpoint(path, SCAN, NOW).close()
    with pytest.raises(TargetError, match='a scan with depth "structure", not "header"'):
        Checkpoint(path, {**SCAN, "depth": "header"}, NOW)


def test_two_scans_do_not_write_to_one_file(path: Path) -> None:
    with Checkpoint(path, SCAN, NOW), pytest.raises(TargetError, match="another scan is writing to it"):
        Checkpoint(path, SCAN, NOW)


def test_a_file_that_cannot_be_made_is_told(tmp_path: Path) -> None:
    with pytest.raises(TargetError, match="No such file or directory"):
        Checkpoint(tmp_path / "no" / "file", SCAN, NOW)


class Canned:
    """A listing of deltas, some inside others."""

    def __init__(self, names: list[str]) -> None:
        self._keys = sorted(f"words/{name}/chroma.sqlite3" for name in names)

    def walk(self, bucket: str, prefix: str, after: str = "") -> Iterator[tuple[str, DeltaFile]]:  # noqa: ARG002
        return ((key, DeltaFile(key, 1, "e", datetime(2026, 1, 1, tzinfo=UTC))) for key in self._keys if key > after)

    def found(self, checkpoint: Checkpoint) -> list[FoundDelta]:
        seen = find_stored(self, "bucket", "words/", since=checkpoint.bookmark(0))
        return [delta for delta in seen if delta.name not in checkpoint.done | checkpoint.again.keys()]


@given(st.data())
@settings(max_examples=60, deadline=None)
def test_stopped_any_number_of_times_every_delta_has_its_verdict_once(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    path = tmp_path_factory.mktemp("run") / "checkpoint"
    names = data.draw(st.lists(st.sampled_from(["a", "b", "a/b", "a/c", "c", "c/d/e", "d"]), min_size=1, unique=True))
    listing, rng = Canned(names), data.draw(st.randoms())
    for _ in range(len(names) + 1):
        with Checkpoint(path, SCAN, NOW) as run:
            tasks = [(name, None) for name in run.again]
            tasks += [(delta.name, Place(0, n, delta.bookmark)) for n, delta in enumerate(listing.found(run))]
            done = random.Random(rng.random()).sample(tasks, data.draw(st.integers(min(1, len(tasks)), len(tasks))))
            for name, where in done:
                run.add(verdict(name, UNKNOWN if data.draw(st.booleans()) and where else ()), where)
        if data.draw(st.booleans()):
            with path.open("ab") as file:
                file.write(b'{"verdict": {"delta": "torn')
    for _ in range(2):
        with Checkpoint(path, SCAN, NOW) as run:
            for name in run.again:
                run.add(verdict(name), None)
            for number, delta in enumerate(listing.found(run)):
                run.add(verdict(delta.name), Place(0, number, delta.bookmark))
    with Checkpoint(path, SCAN, NOW) as run:
        verdicts = list(run.verdicts())
        assert sorted(verdict.delta for verdict in verdicts) == sorted(f"s3://bucket/words/{name}/" for name in names)
        assert {verdict.status for verdict in verdicts} == {Status.HEALTHY}
        assert not run.again
        assert not listing.found(run)
