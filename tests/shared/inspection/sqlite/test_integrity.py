"""The integrity check beside everything else: its word comes first, its failure proves nothing, and it always ends."""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest

import shared.inspection.examination
from shared.inspection.examination import Examination, examine
from shared.inspection.sqlite import database_file, integrity
from shared.inspection.sqlite.integrity import integrity_checked
from shared.model.delta import DATABASE
from shared.model.errors import CouldNotCheck
from shared.model.verdict import Depth, Finding
from shared.storage.folder import FolderContent, list_folder
from tests.conftest import CopyOf
from tests.support.databases import changed

Opened = Callable[[], Any]


@pytest.fixture
def opened(healthy_delta: Path) -> Opened:
    """Opens a sound database."""
    return partial(database_file.opened, healthy_delta / DATABASE, 60)


@pytest.fixture
def torn(healthy_delta: Path, copy_of: CopyOf) -> Path:
    """A delta in whose database an inner page is not one any more."""
    copy = copy_of(healthy_delta)
    data = bytearray((copy / DATABASE).read_bytes())
    page = next(at for at in range(4096 * 8, len(data), 4096) if data[at] in (0x0D, 0x0A))
    data[page] = 0xFF
    (copy / DATABASE).write_bytes(data)
    return copy


def examined(folder: Path) -> Examination:
    listing = list_folder(folder)
    return examine(listing, FolderContent(folder, listing, 2**31), Depth.STRUCTURE, 60)


def codes(examination: Examination) -> set[str]:
    return {finding.code for finding in examination.observed}


def endless(connection: sqlite3.Connection) -> list[Finding]:
    """An integrity check that never ends, as that of a hostile database might."""
    with database_file.explained("integrity check") as findings:
        connection.execute("WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT max(i) FROM n")
    return findings


def stumble(*_: object) -> None:
    """A look inside that meets what it never expected."""
    raise TypeError("a row that is none")


def checks_running() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name == "integrity check"]


def test_whatever_comes_up_in_a_damaged_database_only_its_damage_is_told(
    torn: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shared.inspection.examination, "_look_inside", stumble)
    assert codes(examined(torn)) == {"sqlite.malformed", "sqlite.readable"}


def test_what_comes_up_in_a_sound_database_is_not_swallowed(
    healthy_delta: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shared.inspection.examination, "_look_inside", stumble)
    with pytest.raises(TypeError, match="a row that is none"):
        examined(healthy_delta)


def test_damage_ends_what_is_read_in_the_meantime(torn: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Or a look through a damaged database would take as long as a statement may take."""
    reading = threading.Event()

    def later(connection: sqlite3.Connection) -> list[Finding]:
        assert reading.wait(60)
        return database_file.inspect_integrity(connection)

    monkeypatch.setattr(integrity, "inspect_integrity", later)
    opened = partial(database_file.opened, torn / DATABASE, 60)
    with opened() as connection, integrity_checked(opened(), connection, 60) as check:
        connection.set_progress_handler(reading.set, 1000)  # it has begun, and would never end by itself
        with pytest.raises(CouldNotCheck, match="interrupted"):
            endless(connection)
        assert [finding.code for finding in check.findings()] == ["sqlite.malformed"]


@pytest.mark.parametrize("damaged", [True, False])
def test_without_a_thread_to_be_had_the_check_is_made_all_the_same(
    healthy_delta: Path, torn: Path, monkeypatch: pytest.MonkeyPatch, damaged: bool
) -> None:
    def refuse(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", refuse)
    assert codes(examined(torn if damaged else healthy_delta)) == (
        {"sqlite.malformed", "sqlite.readable"} if damaged else set()
    )


def nothing_to_search(_: sqlite3.Connection) -> list[Finding]:
    """A look that always finds something."""
    return [Finding("sqlite.fulltext_unusable", DATABASE, "no table")]


def test_a_look_that_follows_is_taken_whether_or_not_the_thread_has_ended_before(opened: Opened) -> None:
    for waiting in (False, True):
        with opened() as connection, integrity_checked(opened(), connection, 60) as check:
            if waiting:
                assert check.findings() == []
            found = check.then(nothing_to_search)
            assert [found(), found()] == [nothing_to_search(connection)] * 2


def test_no_look_follows_damage(torn: Path) -> None:
    opened = partial(database_file.opened, torn / DATABASE, 60)
    with opened() as connection, integrity_checked(opened(), connection, 60) as check:
        assert check.then(nothing_to_search)() == []
        assert [finding.code for finding in check.findings()] == ["sqlite.malformed"]


def test_where_texts_cannot_be_searched_it_is_told_what_is_left_of_the_collection(
    healthy_delta: Path, copy_of: CopyOf
) -> None:
    delta = changed(copy_of(healthy_delta), "DELETE FROM embedding_fulltext_search_content WHERE id = 1")
    assert codes(examined(delta)) == {"sqlite.fulltext_unusable", "records.recoverable"}


def test_a_check_that_takes_too_long_proves_nothing(opened: Opened, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(integrity, "inspect_integrity", endless)
    with (
        opened() as connection,
        integrity_checked(opened(), connection, 0.1) as check,
        pytest.raises(CouldNotCheck) as caught,
    ):
        check.findings()
    assert caught.value.code == "check.timeout"
    assert checks_running() == []


def test_a_check_that_nobody_waits_for_any_more_is_ended(opened: Opened, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(integrity, "inspect_integrity", endless)
    with pytest.raises(KeyboardInterrupt), opened() as connection, integrity_checked(opened(), connection, 60):
        raise KeyboardInterrupt
    assert checks_running() == []


def test_a_database_that_cannot_be_opened_once_more_proves_nothing(
    healthy_delta: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, openings = database_file.opened, iter([True, False])

    def refused_later(*arguments: Any, **named: Any) -> Any:
        if next(openings):
            return real(*arguments, **named)
        raise CouldNotCheck("check.cannot_open", "code 14")

    monkeypatch.setattr(database_file, "opened", refused_later)
    assert codes(examined(healthy_delta)) == {"check.cannot_open"}
