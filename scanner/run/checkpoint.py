"""What a scan has done so far, in a file: killed at any moment, the next run goes on behind it.

The first line says what is scanned; then there is a line for each verdict, and one for each continuation. Lines are
only ever added, and reach the disk at least once a second. A last line that was torn is dropped.

A scan judges in parallel, so deltas are done out of order. Each found delta has a number and a bookmark. All up to some
number are done, and the bookmark of that one is where the next run begins; the few that were done beyond it are kept by
name. So going on with millions of verdicts needs no more memory than with a few, apart from those that are judged once
more: the undetermined and the incomplete ones, whose reason may be over by now.
"""

from __future__ import annotations

import fcntl
import json
import os
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

from scanner.find.discovery import Bookmark
from shared.model.errors import TargetError, faults_explained
from shared.model.verdict import Status, Verdict

_FORMAT = "deltaguard scan checkpoint 1"
_SYNC_SECONDS = 1.0
_FINAL = (Status.HEALTHY, Status.CORRUPT)


@dataclass(frozen=True, slots=True)
class Place:
    """Where a delta stands in a scan: the root it was found below, its number there from 0 on, and its bookmark."""

    root: int
    number: int
    bookmark: Bookmark


@dataclass(slots=True)
class _Root:
    """How far the deltas below one root are done."""

    bookmark: Bookmark | None = None
    next: int = 0
    beyond: dict[int, tuple[Bookmark, str]] = field(default_factory=dict)

    def done(self, number: int, bookmark: Bookmark, name: str) -> None:
        self.beyond[number] = bookmark, name
        while self.next in self.beyond:
            self.bookmark, _ = self.beyond.pop(self.next)
            self.next += 1


class Checkpoint:
    """The file of one scan, held against use by another process until it is closed.

    Args:
        path: Made when it is not there.
        scan: What is scanned and how; a file of another scan is refused. Values are what JSON can hold.
        started: Kept with a new file; `self.started` is what an older one holds.

    Raises:
        TargetError: It cannot be opened, is in use, is no checkpoint, or one of another scan.
    """

    def __init__(self, path: Path, scan: Mapping[str, Any], started: str) -> None:
        self._path = path
        self.started = started
        self.done: set[str] = set()
        """Names of deltas that are done, though a scan that goes on from the bookmarks finds them again."""
        self.again: dict[str, None] = {}
        """Names of deltas whose verdict was not final, in their order."""
        self._roots: dict[int, _Root] = {}
        self._synced = time.monotonic()
        try:
            self._file = path.open("a+b")
        except OSError as error:
            raise TargetError(f"--resume {path}: {error.strerror}") from error
        try:
            self._take_up(scan)
        except BaseException:
            self._file.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def bookmark(self, root: int) -> Bookmark | None:
        """From where the scan of a root goes on; None for its beginning."""
        return self._roots[root].bookmark if root in self._roots else None

    def verdicts(self) -> Iterator[Verdict]:
        """The final verdicts of the earlier runs, in the order in which they were reached."""
        with self._path.open("rb") as file:
            for line in file:
                entry = json.loads(line)
                if "verdict" in entry and entry["verdict"]["status"] in _FINAL:
                    yield Verdict.from_json(entry["verdict"])

    def add(self, verdict: Verdict, place: Place | None) -> None:
        """Takes down a verdict; `place` is None for a delta that no bookmark is needed for.

        Raises:
            CouldNotCheck: The file cannot be written.
        """
        entry: dict[str, Any] = {"verdict": verdict.as_json()}
        if place is not None:
            entry |= {"root": place.root, "number": place.number, "after": place.bookmark.after}
            if place.bookmark.open:
                entry["open"] = place.bookmark.open
        self._write(entry)

    def close(self) -> None:
        """Brings the last lines to the disk."""
        with faults_explained(f"writing {self._path}"):
            os.fsync(self._file.fileno())
            self._file.close()

    def _write(self, entry: Mapping[str, Any]) -> None:
        with faults_explained(f"writing {self._path}"):
            self._file.write(json.dumps(entry).encode() + b"\n")
            self._file.flush()
            if time.monotonic() - self._synced >= _SYNC_SECONDS:
                os.fsync(self._file.fileno())
                self._synced = time.monotonic()

    def _take_up(self, scan: Mapping[str, Any]) -> None:
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise TargetError(f"--resume {self._path}: another scan is writing to it") from None
        if not self._read(scan):
            self._file.truncate(0)  # nothing, or a first line that was torn
            self._write({"checkpoint": _FORMAT, "scan": scan, "started": self.started})
            return
        # From here on numbers begin anew, since what was found then may not be all that is found now.
        continued = {}
        for number, root in self._roots.items():
            self.done.update(name for _, name in root.beyond.values())
            root.next, root.beyond = 0, {}
            if root.bookmark is not None:
                continued[number] = [root.bookmark.after, root.bookmark.open]
        self.done.difference_update(self.again)
        self._write({"continued": continued, "done": sorted(self.done)})

    def _read(self, scan: Mapping[str, Any]) -> bool:
        """Reads what is there, and cuts off a torn last line. Returns False when not even the first line is whole."""
        try:
            self._file.seek(0)
            first = self._file.readline()
            if not first.endswith(b"\n") and _could_become_a_head(first):
                return False
            self._compare(json.loads(first), scan)
            end = len(first)
            for line in self._file:
                if not line.endswith(b"\n"):
                    self._file.truncate(end)
                    break
                self._learn(json.loads(line))
                end += len(line)
        except OSError as error:
            raise TargetError(f"--resume {self._path}: {error.strerror}") from error
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise TargetError(f"--resume {self._path}: not the checkpoint of a scan, or damaged") from error
        return True

    def _compare(self, head: Mapping[str, Any], scan: Mapping[str, Any]) -> None:
        if head["checkpoint"] != _FORMAT:
            raise ValueError(head["checkpoint"])
        self.started = str(head["started"])
        earlier = head["scan"]
        for name, value in json.loads(json.dumps(scan)).items():
            if earlier.get(name) != value:
                detail = f"it belongs to a scan with {name} {_shown(earlier.get(name))}, not {_shown(value)}"
                raise TargetError(f"--resume {self._path}: {detail}")

    def _learn(self, entry: Mapping[str, Any]) -> None:
        if "continued" in entry:
            self._roots = {
                int(root): _Root(Bookmark(after, tuple(around))) for root, (after, around) in entry["continued"].items()
            }
            self.done = set(entry["done"])
            return
        name, status = entry["verdict"]["delta"], Status(entry["verdict"]["status"])
        if status in _FINAL:
            self.again.pop(name, None)
        else:
            self.again[name] = None
        if "number" in entry:
            bookmark = Bookmark(entry["after"], tuple(entry.get("open", ())))
            self._roots.setdefault(entry["root"], _Root()).done(entry["number"], bookmark, name)
        else:
            self.done.add(name)


def _could_become_a_head(line: bytes) -> bool:
    """Whether this is nothing, or what a kill left of a first line, rather than somebody else's file."""
    start = f'{{"checkpoint": "{_FORMAT}"'.encode()
    return line.startswith(start) or start.startswith(line)


def _shown(value: Any) -> str:
    return json.dumps(value)
