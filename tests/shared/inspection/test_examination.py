"""An examination end to end: what Chroma wrote is healthy at every depth, damage is found, a fault is no verdict."""

from __future__ import annotations

import shutil
import sqlite3
from collections.abc import Callable
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import shared
from devtools.damage.catalogue import DAMAGES, Damage, apply_damage
from devtools.damage.deltas import DeltaRecipe, build_delta
from shared.inspection.examination import Examination, examine
from shared.inspection.hnsw import vector_index
from shared.inspection.sqlite import database_file
from shared.model.delta import DATABASE
from shared.model.errors import CouldNotCheck
from shared.model.findings import CATALOGUE
from shared.model.verdict import RULES, CollectionCount, Depth, Status, status_of
from shared.storage.folder import FolderContent, list_folder
from tests.support.databases import changed
from tests.support.histories import Chroma

CopyOf = Callable[[Path], Path]


def examined(folder: Path, depth: Depth = Depth.STRUCTURE) -> Examination:
    listing = list_folder(folder)
    return examine(listing, FolderContent(folder, listing, 2**31), depth, probe_seconds=60)


def status(folder: Path, depth: Depth = Depth.STRUCTURE) -> Status:
    return status_of(examined(folder, depth).observed)


def codes(examination: Examination) -> list[str]:
    return [finding.code for finding in examination.observed]


@pytest.fixture(scope="module")
def two_flushed_delta(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("deltas") / "two"
    build_delta(folder, DeltaRecipe(embeddings=130, dimension=16, collections=2, sync_threshold=50, batch=25))
    return folder


@pytest.fixture
def delta(request: pytest.FixtureRequest) -> Path:
    """The delta of that name."""
    return Path(request.getfixturevalue(request.param))


both = pytest.mark.parametrize("delta", ["healthy_delta", "flushed_delta"], indirect=True)
shallow = pytest.mark.parametrize("depth", [Depth.LISTING, Depth.HEADER, Depth.STRUCTURE])


@both
@pytest.mark.parametrize("depth", Depth)
def test_a_healthy_delta_has_no_finding_at_any_depth(delta: Path, depth: Depth) -> None:
    assert codes(examined(delta, depth)) == []


@pytest.mark.parametrize(
    ("delta", "counted"),
    [
        ("healthy_delta", [CollectionCount("words", 32, 50)]),
        ("flushed_delta", [CollectionCount("words", 16, 123)]),
        ("two_flushed_delta", [CollectionCount("words", 16, 130), CollectionCount("words-1", 16, 130)]),
    ],
    indirect=["delta"],
)
def test_the_structure_tells_what_every_collection_holds(delta: Path, counted: list[CollectionCount]) -> None:
    assert list(examined(delta).collections) == counted
    assert examined(delta, Depth.HEADER).collections == ()


def test_the_versions_that_bear_on_the_outcome_are_told(healthy_delta: Path) -> None:
    from importlib.metadata import version

    expected = {"rules": RULES, "sqlite": sqlite3.sqlite_version}
    assert examined(healthy_delta).versions == expected
    assert examined(healthy_delta, Depth.OPEN).versions == {**expected, "chromadb": version("chromadb")}


@both
def test_examining_changes_no_byte_of_a_delta(delta: Path, copy_of: CopyOf) -> None:
    copy = copy_of(delta)
    before = {path: path.read_bytes() for path in copy.rglob("*") if path.is_file()}
    examined(copy)
    assert {path: path.read_bytes() for path in copy.rglob("*") if path.is_file()} == before


RECIPES = {
    "no collection": DeltaRecipe(collections=0),
    "an empty collection": DeltaRecipe(embeddings=0),
    "one embedding": DeltaRecipe(embeddings=1, dimension=1),
    "all deleted again": DeltaRecipe(embeddings=20, deletes=20),
    "all deleted again, flushed": DeltaRecipe(embeddings=60, deletes=60, sync_threshold=10, batch=10),
    "without documents": DeltaRecipe(documents=False),
    "updates and deletes": DeltaRecipe(updates=20, deletes=20),
    "updates and deletes, flushed": DeltaRecipe(
        embeddings=100, updates=40, deletes=40, dimension=8, sync_threshold=10, batch=10
    ),
    "flushed to the last row": DeltaRecipe(embeddings=100, dimension=8, sync_threshold=50, batch=50),
    "cosine": DeltaRecipe(space="cosine"),
    "cosine, flushed": DeltaRecipe(embeddings=120, dimension=8, space="cosine", sync_threshold=50, batch=25),
    "inner product, flushed": DeltaRecipe(embeddings=120, dimension=8, space="ip", sync_threshold=50, batch=25),
    "past the index's first size": DeltaRecipe(embeddings=1300, dimension=4, sync_threshold=200),
    "several collections": DeltaRecipe(embeddings=30, dimension=4, collections=3),
    "a name in other letters": DeltaRecipe(embeddings=5, collection_name="words.of-many_parts"),
}


@pytest.mark.parametrize("recipe", RECIPES.values(), ids=RECIPES)
def test_a_delta_that_chroma_wrote_is_healthy_whatever_it_holds(recipe: DeltaRecipe, tmp_path: Path) -> None:
    content = build_delta(tmp_path / "delta", recipe)
    examination = examined(tmp_path / "delta")
    assert examination.observed == []
    seen = [(counted.name, counted.count) for counted in examination.collections]
    assert seen == [(collection.name, len(collection.ids)) for collection in content.collections]


DELTA_FOR = {
    "any": "healthy_delta",
    "queued": "healthy_delta",
    "flushed": "flushed_delta",
    "two flushed": "two_flushed_delta",
}
CASES = [
    pytest.param(damage, delta, id=f"{damage.kind} of {delta}")
    for damage in DAMAGES
    for delta in dict.fromkeys([DELTA_FOR[damage.needs], *(["flushed_delta"] if damage.needs == "any" else [])])
]


def cases(wanted: Callable[[Damage], bool]) -> pytest.MarkDecorator:
    chosen = [case for case in CASES if wanted(case.values[0])]  # type: ignore[arg-type]
    return pytest.mark.parametrize(("damage", "delta"), chosen, indirect=["delta"])


seeds = pytest.mark.parametrize("seed", [0, *(pytest.param(seed, marks=pytest.mark.slow) for seed in (1, 2))])


@cases(lambda damage: not damage.harm and not damage.refused)
@seeds
def test_damage_that_loses_nothing_is_healthy(damage: Damage, delta: Path, seed: int, copy_of: CopyOf) -> None:
    copy = copy_of(delta)
    apply_damage(damage.kind, copy, seed)
    examination = examined(copy)
    assert status_of(examination.observed) is Status.HEALTHY, examination.observed


@cases(lambda damage: damage.harm and not damage.value_only)
@seeds
def test_damage_that_loses_something_is_corrupt(damage: Damage, delta: Path, seed: int, copy_of: CopyOf) -> None:
    copy = copy_of(delta)
    done = apply_damage(damage.kind, copy, seed)
    examination = examined(copy)
    assert status_of(examination.observed) is Status.CORRUPT, (done, examination.observed)


@cases(lambda damage: damage.refused)
def test_damage_that_chroma_survives_by_luck_is_refused_too(damage: Damage, delta: Path, copy_of: CopyOf) -> None:
    copy = copy_of(delta)
    done = apply_damage(damage.kind, copy)
    assert status(copy) is not Status.HEALTHY, done


@cases(bool)
def test_a_deeper_check_finds_all_that_a_shallower_one_finds(damage: Damage, delta: Path, copy_of: CopyOf) -> None:
    copy = copy_of(delta)
    apply_damage(damage.kind, copy)
    listing, header, structure = (set(examined(copy, depth).observed) for depth in list(Depth)[:3])
    assert listing <= header <= structure


class Faulty:
    """A content whose bytes cannot be had."""

    def __init__(self, inner: FolderContent, failing: str) -> None:
        self._inner = inner
        self._failing = failing

    def head(self, name: str, length: int) -> bytes:
        if self._failing == "head":
            raise CouldNotCheck("check.throttled", "reading s3://deltas/d1/chroma.sqlite3: SlowDown")
        return self._inner.head(name, length)

    def folder(self) -> Path:
        if self._failing == "folder":
            raise CouldNotCheck("check.disk_full", "writing to the scratch folder: No space left on device")
        return self._inner.folder()

    @property
    def in_place(self) -> bool:
        return self._inner.in_place


@pytest.mark.parametrize(("failing", "code"), [("head", "check.throttled"), ("folder", "check.disk_full")])
def test_bytes_that_cannot_be_had_make_a_delta_undetermined(healthy_delta: Path, failing: str, code: str) -> None:
    listing = list_folder(healthy_delta)
    content = Faulty(FolderContent(healthy_delta, listing, 2**31), failing)
    examination = examine(listing, content, Depth.OPEN, 60)
    assert codes(examination) == [code]
    assert status_of(examination.observed) is Status.UNDETERMINED


def test_what_is_not_asked_for_cannot_fail(healthy_delta: Path) -> None:
    listing = list_folder(healthy_delta)
    content = FolderContent(healthy_delta, listing, 2**31)
    assert examine(listing, Faulty(content, "head"), Depth.LISTING, 60).observed == []
    assert examine(listing, Faulty(content, "folder"), Depth.HEADER, 60).observed == []


@pytest.mark.parametrize("depth", Depth)
def test_a_journal_in_use_proves_a_copy_in_mid_write_and_nothing_in_place(
    healthy_delta: Path, copy_of: CopyOf, depth: Depth
) -> None:
    """Its head alone is read. Who opens the database where the journal belongs settles it."""
    copy = copy_of(healthy_delta)
    apply_damage("journal-hot", copy)
    listing = list_folder(copy)
    for in_place, code in ((False, "layout.journal_present"), (True, "layout.journal_unsettled")):
        content = Faulty(FolderContent(copy, listing, 2**31, in_place=in_place), "folder")
        examination = examine(listing, content, depth, 60)
        assert codes(examination) == [code]
        assert status_of(examination.observed) is (Status.UNDETERMINED if in_place else Status.CORRUPT)


@pytest.mark.parametrize("name", ["chroma.sqlite3-journal", "chroma.sqlite3-wal"])
@pytest.mark.parametrize("content", [bytes(4096), b"half a transaction", b"\x37\x7f\x06\x82" + bytes(28)])
@pytest.mark.parametrize("depth", [Depth.LISTING, Depth.HEADER, Depth.STRUCTURE])
def test_a_journal_that_sqlite_does_not_use_is_a_note(
    healthy_delta: Path, copy_of: CopyOf, chroma: Chroma, name: str, content: bytes, depth: Depth
) -> None:
    """`journal_mode=persist` zeroes its header after a commit; section 3 of SQLite's file format."""
    copy = copy_of(healthy_delta)
    (copy / name).write_bytes(content)
    examination = examined(copy, depth)
    assert codes(examination) == ["layout.journal_stale"]
    assert status_of(examination.observed) is Status.HEALTHY
    assert chroma.read(copy)["words"]["count"] == 50


@pytest.mark.parametrize("depth", [Depth.LISTING, Depth.HEADER])
def test_a_suspicious_index_is_looked_into_before_it_is_called_corrupt(
    flushed_delta: Path, copy_of: CopyOf, depth: Depth
) -> None:
    copy = copy_of(flushed_delta)
    next(copy.rglob("length.bin")).unlink()
    assert status(copy, depth) is Status.CORRUPT
    listing = list_folder(copy)
    examination = examine(listing, Faulty(FolderContent(copy, listing, 2**31), "folder"), depth, 60)
    assert status_of(examination.observed) is Status.UNDETERMINED


@pytest.mark.parametrize("depth", [Depth.LISTING, Depth.HEADER, Depth.STRUCTURE])
@pytest.mark.parametrize("how", ["a file is missing", "its header is garbage"])
def test_a_damaged_index_that_no_collection_refers_to_is_harmless(
    healthy_delta: Path, flushed_delta: Path, copy_of: CopyOf, depth: Depth, how: str
) -> None:
    copy = copy_of(healthy_delta)
    index = next(flushed_delta.rglob("header.bin")).parent
    left_behind = Path(shutil.copytree(index, copy / index.name))
    if how == "a file is missing":
        (left_behind / "length.bin").unlink()
    else:
        (left_behind / "header.bin").write_bytes(b"\xff" * 100)
    assert status(copy, depth) is Status.HEALTHY


@both
def test_an_index_that_becomes_shorter_while_it_is_read_is_undetermined(
    delta: Path, copy_of: CopyOf, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy = copy_of(delta)
    listing = list_folder(copy)
    looked = vector_index.inspect_index

    def shortened(*arguments: Any, **named: Any) -> vector_index.Index:
        for path in copy.rglob("data_level0.bin"):
            path.write_bytes(path.read_bytes()[:1000])
        return looked(*arguments, **named)

    monkeypatch.setattr(vector_index, "inspect_index", shortened)
    examination = examine(listing, FolderContent(copy, listing, 2**31), Depth.STRUCTURE, 60)
    # A skeleton is not looked at.
    assert codes(examination) == (["check.changed"] if any(copy.rglob("index_metadata.pickle")) else [])


def spied_openings(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, bool]]:
    """How the database was opened, each time."""
    seen: list[dict[str, bool]] = []
    opened = database_file.opened

    def spied(path: Path, seconds: float, **named: bool) -> Any:
        seen.append(named)
        return opened(path, seconds, **named)

    monkeypatch.setattr(database_file, "opened", spied)
    return seen


@both
def test_texts_that_are_utf_8_are_looked_at_once_and_strictly(delta: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = spied_openings(monkeypatch)
    examined(delta)
    assert [opening["lenient"] for opening in seen] == [False] * 2


NOT_UTF8 = [
    ("UPDATE collections SET name = CAST(X'FF' AS TEXT)", "records.row_unreadable"),
    ("UPDATE embeddings_queue SET id = CAST(X'FF' AS TEXT) WHERE seq_id = 1", "records.operation_unknown"),
    ("UPDATE embeddings SET embedding_id = CAST(X'FF' AS TEXT) WHERE id = 1", "records.row_unreadable"),
    ("UPDATE embedding_metadata SET string_value = CAST(X'FF' AS TEXT) WHERE id = 1", "records.metadata_missing"),
    ("UPDATE migrations SET sql = CAST(X'FF' AS TEXT) WHERE version = 2", "sqlite.migration_mismatch"),
]


@pytest.mark.parametrize(("statement", "code"), NOT_UTF8)
def test_a_text_that_is_not_utf_8_makes_for_a_second_look_and_no_finding_twice(
    healthy_delta: Path, copy_of: CopyOf, monkeypatch: pytest.MonkeyPatch, statement: str, code: str
) -> None:
    copy = changed(copy_of(healthy_delta), statement)
    seen = spied_openings(monkeypatch)
    examination = examined(copy)
    assert [opening["lenient"] for opening in seen] == [False] * 2 + [True] * 2
    assert code in codes(examination)
    assert len(set(examination.observed)) == len(examination.observed)


def test_texts_that_chroma_never_reads_need_not_be_utf_8(healthy_delta: Path, copy_of: CopyOf) -> None:
    not_text = "CAST(X'FF' AS TEXT)"
    copy = changed(copy_of(healthy_delta), f"INSERT INTO maintenance_log VALUES (9, {not_text}, {not_text})")
    assert examined(copy).observed == []


# --- what is left of a damaged delta


def notes_of(examination: Examination, code: str) -> list[str]:
    return [finding.detail for finding in examination.observed if finding.code == code]


def test_damage_that_all_collections_share_tells_what_is_left_of_each(two_flushed_delta: Path, copy_of: CopyOf) -> None:
    copy = changed(copy_of(two_flushed_delta), "PRAGMA foreign_keys = OFF", "DELETE FROM tenants")
    examination = examined(copy)
    left = notes_of(examination, "records.recoverable")
    heads = [text.split(" can ")[0] for text in left]
    assert heads == ["all 130 embeddings of 'words'", "all 130 embeddings of 'words-1'"]
    assert len(notes_of(examination, "sqlite.readable")) == 1


def test_damage_to_one_collection_says_nothing_of_the_others(two_flushed_delta: Path, copy_of: CopyOf) -> None:
    copy = copy_of(two_flushed_delta)
    apply_damage("data-neighbour-outside", copy)
    (left,) = notes_of(examined(copy), "records.recoverable")
    assert left.startswith("129 of 130 embeddings of 'words")


@pytest.mark.parametrize("name", ["link_lists.bin", "length.bin"])
def test_what_does_not_depend_on_a_missing_file_can_be_recovered(
    flushed_delta: Path, copy_of: CopyOf, name: str
) -> None:
    copy = copy_of(flushed_delta)
    next(copy.rglob(name)).unlink()
    examination = examined(copy)
    assert codes(examination) == ["layout.segment_file_missing", "records.recoverable"]
    assert notes_of(examination, "records.recoverable")[0].startswith("all 123 embeddings of 'words' can be recovered")


@pytest.mark.parametrize("name", ["header.bin", "data_level0.bin"])
def test_what_depends_on_a_missing_file_cannot(flushed_delta: Path, copy_of: CopyOf, name: str) -> None:
    copy = copy_of(flushed_delta)
    next(copy.rglob(name)).unlink()
    examination = examined(copy)
    assert codes(examination) == ["layout.segment_file_missing", "records.recoverable"]
    assert notes_of(examination, "records.recoverable")[0].startswith("35 of 123 embeddings of 'words' can ")


def test_what_can_still_be_read_of_a_database_that_is_not_sound_is_told(healthy_delta: Path, copy_of: CopyOf) -> None:
    copy = copy_of(healthy_delta)
    apply_damage("sqlite-unread-page-zeroed", copy)
    (readable,) = notes_of(examined(copy), "sqlite.readable")
    rows = "embedding_metadata: all 265 rows, embeddings_queue: all 50 rows"
    assert readable == f"collections: all 1 rows, embeddings: 0 rows, then damage, {rows}"


def test_nothing_is_read_of_a_database_that_would_have_to_be_run(healthy_delta: Path, copy_of: CopyOf) -> None:
    copy = changed(copy_of(healthy_delta), "CREATE INDEX computed ON embeddings (hex(seq_id))")
    assert codes(examined(copy)) == ["sqlite.unexpected_expression"]


def test_a_delta_that_only_a_newer_deltaguard_can_judge_is_left_alone(healthy_delta: Path, copy_of: CopyOf) -> None:
    copy = changed(copy_of(healthy_delta), "INSERT INTO migrations VALUES ('sysdb', 99, 'name', 'sql', 'hash')")
    assert codes(examined(copy)) == ["sqlite.schema_newer"]
    assert status(copy) is Status.UNDETERMINED


def test_a_delta_over_the_size_cap_is_undetermined_and_its_headers_are_still_looked_at(healthy_delta: Path) -> None:
    listing = list_folder(healthy_delta)
    examination = examine(listing, FolderContent(healthy_delta, listing, 1000), Depth.STRUCTURE, 60)
    assert codes(examination) == ["check.size_cap"]


def test_a_broken_database_is_not_asked_further(healthy_delta: Path, copy_of: CopyOf) -> None:
    copy = copy_of(healthy_delta)
    (copy / DATABASE).write_bytes(b"not a database " * 1000)
    assert codes(examined(copy, Depth.OPEN)) == ["sqlite.not_a_database"]


def test_chroma_is_not_asked_about_a_delta_that_is_corrupt_already(flushed_delta: Path, copy_of: CopyOf) -> None:
    copy = copy_of(flushed_delta)
    next(copy.rglob("index_metadata.pickle")).unlink()
    assert "chromadb" not in examined(copy, Depth.OPEN).versions


def test_an_index_folder_that_no_collection_knows_is_worth_a_note(healthy_delta: Path, copy_of: CopyOf) -> None:
    copy = copy_of(healthy_delta)
    apply_damage("harmless-segment-unreferenced", copy)
    assert "layout.segment_unreferenced" in codes(examined(copy))
    assert status(copy) is Status.HEALTHY


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(mutation=st.lists(st.tuples(st.integers(0, 2**31), st.binary(min_size=1, max_size=64)), min_size=1, max_size=8))
def test_no_mutation_of_the_database_raises_anything(
    mutation: list[tuple[int, bytes]], flushed_delta: Path, copy_of: CopyOf
) -> None:
    copy = copy_of(flushed_delta)
    data = bytearray((copy / DATABASE).read_bytes())
    for place, new in mutation:
        at = place % (len(data) - len(new))
        data[at : at + len(new)] = new
    (copy / DATABASE).write_bytes(data)
    assert isinstance(examined(copy), Examination)


ODD = ["X'00FF'", "CAST(X'FF' AS TEXT)", "NULL", "'text'", "9223372036854775807", "-1", "1.5", "X'8000000000000000'"]
odd = pytest.mark.parametrize("value", [*ODD[:2], *(pytest.param(value, marks=pytest.mark.slow) for value in ODD[2:])])


def columns_of(delta: Path) -> list[tuple[str, str]]:
    with closing(sqlite3.connect(delta / DATABASE)) as connection:
        tables = "sql LIKE 'CREATE TABLE%' AND sql NOT LIKE '%WITHOUT ROWID'"
        query = f"SELECT t.name, c.name FROM sqlite_schema t, pragma_table_info(t.name) c WHERE {tables}"
        return list(connection.execute(query))


@both
@odd
def test_no_value_of_another_type_in_any_column_raises_anything(delta: Path, value: str, copy_of: CopyOf) -> None:
    copy = copy_of(delta)
    intact = (copy / DATABASE).read_bytes()
    raised = {}
    for table, column in columns_of(copy):
        (copy / DATABASE).write_bytes(intact)
        with closing(sqlite3.connect(copy / DATABASE, isolation_level=None)) as connection:
            last = f"(SELECT max(rowid) FROM {table})"
            with suppress(sqlite3.IntegrityError):
                connection.execute(f"UPDATE {table} SET {column} = {value} WHERE rowid = {last}")
        try:
            examined(copy)
        except Exception as error:  # noqa: BLE001 -- any error at all is what this looks for
            raised[table, column] = error
    assert raised == {}


@pytest.mark.parametrize("code", CATALOGUE)
def test_every_code_of_the_catalogue_is_one_that_some_check_can_report(code: str) -> None:
    root = Path(shared.__file__).parent.parent
    sources = [path for room in ("shared", "validator", "scanner") for path in (root / room).rglob("*.py")]
    assert any(f'"{code}"' in path.read_text() for path in sources if path.name != "findings.py")
