"""Which operations Chroma replays on which index: what is healthy is what it gives back, asked in a child process.

Each case is a real delta: 5 of 9 embeddings in an index, and the queue never purged.
"""

from __future__ import annotations

import shutil
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import chromadb
import numpy as np
import pytest

from shared.inspection.chroma.contents import opened_delta
from shared.inspection.examination import Examination, examine
from shared.model.delta import DATABASE
from shared.model.findings import Weight
from shared.model.verdict import Depth, Status, status_of
from shared.storage.folder import FolderContent, list_folder
from tests.support.databases import changed
from tests.support.histories import Chroma

NAME = "words"
OF_INDEX = "segment_id IN (SELECT id FROM segments WHERE scope = 'VECTOR')"
KEEP = (
    "UPDATE embeddings_queue_config SET config_json_str = json_set(config_json_str, '$.automatically_purge', json(?))"
)
PURGED = "DELETE FROM embeddings_queue WHERE seq_id <= 5"


def keep_queue(folder: Path, purge: str = "false") -> None:
    with closing(sqlite3.connect(folder / DATABASE)) as connection, connection:
        connection.execute(KEEP, (purge,))


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Nine operations, of which the index has taken up five; all are in the queue."""
    folder = tmp_path_factory.mktemp("kept")
    with chromadb.PersistentClient(folder) as client:
        hnsw = {"sync_threshold": 5, "batch_size": 5}
        client.create_collection(NAME, embedding_function=None, configuration={"hnsw": hnsw})
    keep_queue(folder)
    with chromadb.PersistentClient(folder) as client:
        collection = client.get_collection(NAME, embedding_function=None)
        for number in range(9):
            collection.add(ids=[f"id {number}"], embeddings=[[number, 1, 2]])
    return folder


@pytest.fixture
def delta(kept: Path, tmp_path: Path) -> Path:
    return shutil.copytree(kept, tmp_path / "delta")


def index_of(delta: Path) -> Path:
    (pickle,) = delta.glob("*/index_metadata.pickle")
    return pickle.parent


def examined(delta: Path) -> Examination:
    listing = list_folder(delta)
    return examine(listing, FolderContent(delta, listing, 2**30), Depth.STRUCTURE, 60.0)


def forget_flush(delta: Path) -> None:
    changed(delta, f"DELETE FROM max_seq_id WHERE {OF_INDEX}")


def lose_id_map(delta: Path) -> None:
    (index_of(delta) / "index_metadata.pickle").unlink()


def lose_index(delta: Path) -> None:
    shutil.rmtree(index_of(delta))


def intact(delta: Path) -> None:
    """Nothing happened."""


def delete_and_add_again(delta: Path) -> None:
    """0.4 lost such an id from its index, where all this was one batch (chroma issue 2062)."""
    with chromadb.PersistentClient(delta) as client:
        collection = client.get_collection(NAME, embedding_function=None)
        collection.delete(ids=["id 0"])
        collection.add(ids=["id 0"], embeddings=[[9, 9, 9]])
    forget_flush(delta)


def lose_both(delta: Path) -> None:
    lose_index(delta)
    forget_flush(delta)


def flush_without_id_map(delta: Path) -> None:
    """What is left when the process is killed after the records of a flush and before its id map."""
    old = (index_of(delta) / "index_metadata.pickle").read_bytes()
    with chromadb.PersistentClient(delta) as client:
        client.get_collection(NAME, embedding_function=None).add(ids=["x"], embeddings=[[7, 7, 7]])
    assert (index_of(delta) / "index_metadata.pickle").read_bytes() != old
    (index_of(delta) / "index_metadata.pickle").write_bytes(old)
    changed(delta, f"UPDATE max_seq_id SET seq_id = 5 WHERE {OF_INDEX}")


def empty_id_map(delta: Path) -> None:
    """An index of which all was deleted, and a few embeddings since."""
    with chromadb.PersistentClient(delta) as client:
        collection = client.get_collection(NAME, embedding_function=None)
        collection.delete(ids=collection.get(include=[])["ids"])
        collection.add(ids=["x", "y"], embeddings=[[7, 7, 7], [8, 8, 8]])


CASES = [
    intact, forget_flush, delete_and_add_again, lose_id_map, lose_index, lose_both, flush_without_id_map, empty_id_map,
]  # fmt: skip


@pytest.mark.parametrize("change", CASES, ids=lambda change: change.__name__)
def test_what_chroma_replays_from_the_queue_is_not_lost(
    delta: Path, chroma: Chroma, change: Callable[[Path], None]
) -> None:
    change(delta)
    truth = chroma.read(delta)[NAME]
    examination = examined(delta)
    assert status_of(examination.observed) is Status.HEALTHY, examination.observed
    assert {finding.weight for finding in examination.observed} <= {Weight.NOTE}
    (collection,) = examination.collections
    assert collection.count == truth["count"] == len(truth["ids"])
    with opened_delta(delta) as opened:
        (records,) = opened.records(NAME)
    assert records.ids == truth["ids"]
    assert np.array_equal(records.vectors, truth["embeddings"])


@pytest.mark.parametrize(
    ("change", "codes"),
    [
        (forget_flush, set()),  # the index has what the queue lost
        (lose_id_map, {"records.vector_missing"}),
        (lose_index, {"records.vector_missing"}),
        (
            lambda delta: (
                flush_without_id_map(delta),
                changed(delta, "DELETE FROM embeddings_queue WHERE seq_id > 8"),
            ),
            {"records.vector_missing", "hnsw.label_mismatch"},
        ),
    ],
)
def test_what_neither_queue_nor_index_holds_is_lost(
    delta: Path, change: Callable[[Path], None], codes: set[str]
) -> None:
    change(delta)
    changed(delta, PURGED)
    found = {finding.code for finding in examined(delta).observed if finding.weight is not Weight.NOTE}
    assert found == codes


def test_an_id_map_that_is_missing_where_the_queue_is_purged_is_told_though_all_is_there_still(delta: Path) -> None:
    """Whoever opens it next purges the queue up to the flush that the database knows of."""
    lose_id_map(delta)
    keep_queue(delta, "true")
    assert "hnsw.pickle_missing" in {finding.code for finding in examined(delta).observed}


@pytest.fixture
def counted_too_few(delta: Path) -> Iterator[Path]:
    import pickle

    path = index_of(delta) / "index_metadata.pickle"
    path.write_bytes(pickle.dumps({**pickle.loads(path.read_bytes()), "total_elements_added": 1}, protocol=3))
    yield delta


def test_labels_that_would_be_given_out_again_are_told(counted_too_few: Path) -> None:
    """The queue has new ids, which then take the places of old ones."""
    details = [f.detail for f in examined(counted_too_few).observed if f.code == "hnsw.label_mismatch"]
    assert details == ["1 labels were given out, but the highest is 5"]


def test_labels_that_nothing_in_the_queue_needs_are_no_finding(counted_too_few: Path, chroma: Chroma) -> None:
    changed(
        counted_too_few,
        "DELETE FROM embeddings_queue WHERE seq_id > 5",
        "DELETE FROM embeddings WHERE id > 5",
        "UPDATE max_seq_id SET seq_id = 5",
    )
    assert chroma.read(counted_too_few)[NAME]["count"] == 5
    assert status_of(examined(counted_too_few).observed) is Status.HEALTHY


def test_vectors_of_operations_that_were_never_committed_are_left_over(delta: Path, chroma: Chroma) -> None:
    """0.x may be killed after its index was written and before the database is committed."""
    changed(
        delta,
        "DELETE FROM embeddings WHERE embedding_id = 'id 4'",
        "DELETE FROM embeddings_queue WHERE id = 'id 4'",
        "UPDATE embeddings_queue SET seq_id = seq_id - 1 WHERE seq_id > 5",
        f"DELETE FROM max_seq_id WHERE {OF_INDEX}",
    )
    assert chroma.read(delta)[NAME]["count"] == 8
    examination = examined(delta)
    assert [finding.code for finding in examination.observed] == ["records.leftover"]


def test_a_vector_whose_operation_was_committed_has_lost_its_row(delta: Path) -> None:
    changed(delta, "DELETE FROM embeddings WHERE embedding_id = 'id 4'", f"DELETE FROM max_seq_id WHERE {OF_INDEX}")
    assert "records.id_missing" in {finding.code for finding in examined(delta).observed}
