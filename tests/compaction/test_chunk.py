"""`process_chunk_deltas`: everything or nothing, and what comes out is what the deltas held."""

from __future__ import annotations

import json
import sqlite3
import tempfile
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import boto3
import numpy as np
import pytest

import compaction
from compaction import merge as merge_module
from compaction.chunk import process
from compaction.errors import MergeFailed
from devtools.damage.catalogue import apply_damage
from devtools.damage.deltas import DeltaRecipe, build_delta
from devtools.stack.stack import NOTICES, LocalStack
from scanner.gate import ChunkRejected
from shared.check.judgement import judge_stored
from shared.model.delta import MANIFEST, DeltaLocation
from shared.model.errors import SettingsError, TargetError, UploadFailed
from shared.model.settings import Settings
from shared.model.verdict import Depth, Status
from shared.storage.store import Store
from shared.upload import upload_delta
from tests.compaction.conftest import Deltas, rows_of, upserted, vectors
from tests.samples import SAMPLES
from tests.support import faults
from tests.support.crash import killed_at

KEY = "intermediate/batch-1/chunk-0/"
Stored = Callable[[str], dict[str, dict[str, Any]]]
Objects = Callable[[str], set[str]]


def run(deltas: Deltas, grouped: dict[str, Deltas] | None = None, **more: Any) -> dict[str, Any]:
    return process("batch-1", 0, deltas, {"words": deltas} if grouped is None else grouped, **more)


def lines(capsys: pytest.CaptureFixture[str], metric: str) -> list[dict[str, Any]]:
    printed = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    return [line for line in printed if metric in line]


def left_in_scratch() -> list[Path]:
    return list(Path(tempfile.gettempdir()).glob("deltaguard-*"))


@pytest.fixture(autouse=True)
def own_scratch(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path_factory.mktemp("scratch")))


# --- what comes out


@pytest.mark.slow
def test_a_chunk_becomes_one_healthy_intermediate_with_all_that_its_deltas_held(
    chunk: Deltas, chunk_folders: list[Path], stored: Stored, store: Store, bucket: str, tmp_path: Path
) -> None:
    answer = compaction.process_chunk_deltas("batch-1", 0, chunk, {"words": chunk})
    contents = rows_of(chunk_folders, tmp_path)
    assert answer.keys() == {"intermediate_key", "embeddings_processed", "processing_time"}
    assert answer["intermediate_key"] == KEY
    assert answer["embeddings_processed"] == sum(len(rows["words"]) for rows in contents)
    assert answer["processing_time"] > 0
    assert {name: found["rows"] for name, found in stored(KEY).items()} == upserted(contents)
    judgement = judge_stored(store, DeltaLocation(bucket, KEY), Depth.OPEN, Settings())
    assert judgement.verdict.status is Status.HEALTHY
    assert judgement.manifest is not None
    assert judgement.manifest.batch_id == "batch-1"
    assert left_in_scratch() == []


@pytest.mark.slow
def test_the_collection_says_which_chunk_it_is_of_and_keeps_its_settings(
    put_chunk: Callable[..., Deltas], stored: Stored, tmp_path: Path
) -> None:
    build_delta(tmp_path / "cosine", DeltaRecipe(embeddings=3, dimension=4, space="cosine", sync_threshold=7))
    deltas = put_chunk([tmp_path / "cosine"])
    process("batch-1", 5, deltas, {"words": deltas})
    found = stored("intermediate/batch-1/chunk-5/")["words"]
    assert found["metadata"] == {"batch_id": "batch-1", "chunk_index": 5}
    wanted = {"space": "cosine", "ef_construction": 100, "max_neighbors": 16, "sync_threshold": 7}
    assert {name: found["hnsw"][name] for name in wanted} == wanted


@pytest.mark.slow
def test_of_an_id_that_comes_twice_the_later_delta_wins(
    put_chunk: Callable[..., Deltas], stored: Stored, tmp_path: Path
) -> None:
    for number, seed in enumerate((4, 4)):
        folder = tmp_path / f"same-{number}"
        build_delta(folder, DeltaRecipe(embeddings=10, dimension=4, seed=seed, updates=5 * number))
    folders = [tmp_path / "same-0", tmp_path / "same-1"]
    deltas = put_chunk(folders)
    run(deltas)
    first, second = rows_of(folders, tmp_path)
    assert first != second
    assert stored(KEY)["words"]["rows"] == upserted([first, second])["words"] == second["words"]


@pytest.mark.slow
def test_the_order_of_a_collection_is_the_one_that_is_given_for_it(
    put_chunk: Callable[..., Deltas], stored: Stored, tmp_path: Path
) -> None:
    for number in range(2):
        build_delta(tmp_path / f"same-{number}", DeltaRecipe(embeddings=6, dimension=4, seed=4, updates=3 * number))
    deltas = put_chunk([tmp_path / "same-0", tmp_path / "same-1"])
    run(deltas, {"words": deltas[::-1]})
    contents = rows_of([tmp_path / "same-1", tmp_path / "same-0"], tmp_path)
    assert stored(KEY)["words"]["rows"] == upserted(contents)["words"]


@pytest.mark.slow
def test_collections_of_different_dimension_go_side_by_side(
    put_chunk: Callable[..., Deltas], stored: Stored, tmp_path: Path
) -> None:
    build_delta(tmp_path / "words", DeltaRecipe(embeddings=5, dimension=4))
    build_delta(tmp_path / "lines", DeltaRecipe(embeddings=6, dimension=9, collection_name="lines"))
    words, texts = put_chunk([tmp_path / "words"]), put_chunk([tmp_path / "lines"], "lines")
    answer = run(words + texts, {"words": words, "lines": texts})
    found = stored(KEY)
    assert answer["embeddings_processed"] == 11
    assert {name: vectors(collection["rows"]).shape for name, collection in found.items()} == {
        "words": (5, 4),
        "lines": (6, 9),
    }


@pytest.mark.slow
@pytest.mark.parametrize("name", ["queued", "flushed", "cosine", "deleted", "empty"])
def test_deltas_of_every_chroma_merge_together(
    name: str, put_chunk: Callable[..., Deltas], stored: Stored, tmp_path: Path
) -> None:
    samples = [sample for sample in SAMPLES if sample.name.endswith(f"-{name}")]
    folders = [sample.unpack(tmp_path / "samples") for sample in samples]
    run([{"delta_key": delta["delta_key"]} for delta in put_chunk(folders)], {})
    expected = upserted(rows_of(folders, tmp_path))
    found = {name: collection["rows"] for name, collection in stored(KEY).items()}
    assert len(samples) == 6
    assert found.keys() == expected.keys()
    for collection, rows in expected.items():
        assert {id_: row[1:] for id_, row in found[collection].items()} == {id_: row[1:] for id_, row in rows.items()}
        if name == "cosine" and rows:  # an index of cosine gives back directions, rounded
            np.testing.assert_allclose(vectors(found[collection]), vectors(rows), rtol=3e-7)
        else:
            assert {id_: row[0] for id_, row in found[collection].items()} == {id_: r[0] for id_, r in rows.items()}


# --- nothing at all


@pytest.mark.parametrize("damage", ["sqlite-truncated", "queue-row-deleted"])
def test_one_corrupt_delta_and_nothing_is_merged(
    damage: str,
    chunk_folders: list[Path],
    put_chunk: Callable[..., Deltas],
    put_delta: Any,
    objects: Objects,
    tmp_path: Path,
    copy_of: Any,
    capsys: pytest.CaptureFixture[str],
) -> None:
    broken = copy_of(chunk_folders[0])
    apply_damage(damage, broken, 1)
    put_delta(broken, "words/delta/broken")
    deltas = [*put_chunk(chunk_folders), {"delta_key": "words/delta/broken", "collection": "words"}]
    with pytest.raises(ChunkRejected, match="words/delta/broken/ is corrupt"):
        run(deltas)
    assert objects("intermediate/") == set()
    assert left_in_scratch() == []
    assert len(lines(capsys, "ChunksRejected")) == 1


def test_a_delta_that_changes_between_gate_and_merge_fails_the_chunk_by_its_name(
    chunk: Deltas, bucket: str, objects: Objects, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    gate = merge_module.precheck

    def then_changed(*arguments: Any, **more: Any) -> Any:
        verdicts = gate(*arguments, **more)
        boto3.client("s3").put_object(Bucket=bucket, Key=f"{chunk[1]['delta_key']}/chroma.sqlite3", Body=b"another")
        return verdicts

    monkeypatch.setattr(merge_module, "precheck", then_changed)
    with pytest.raises(MergeFailed, match=r"words/delta/d1/: not merged.*changed after the gate"):
        run(chunk)
    assert objects("intermediate/") == set()
    assert len(lines(capsys, "MergesFailed")) == 1


def test_what_the_gate_downloaded_is_not_downloaded_again(chunk: Deltas) -> None:
    downloads: list[str] = []

    def note(request: Any) -> None:
        if request.method == "GET" and request.url.endswith(".sqlite3") and "Range" not in request.headers:
            downloads.append(request.url)

    run(chunk, store=faults.doing(note))
    assert len(downloads) == len(set(downloads)) == len(chunk)


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (DeltaRecipe(embeddings=4, dimension=5, seed=9), "other/.*dimension 5, those of .*d0/ 8"),
        (DeltaRecipe(embeddings=4, dimension=8, seed=9, space="cosine"), "has space cosine, that of .*d0/ l2"),
        (DeltaRecipe(embeddings=4, dimension=8, collections=2), "4 embeddings of 'words-1', which the chunk does not"),
    ],
    ids=["dimension", "space", "more collections"],
)
def test_a_delta_that_does_not_fit_fails_the_chunk_by_its_name(
    other: DeltaRecipe,
    message: str,
    chunk_folders: list[Path],
    put_chunk: Callable[..., Deltas],
    objects: Objects,
    tmp_path: Path,
) -> None:
    build_delta(tmp_path / "other", other)
    deltas = put_chunk([*chunk_folders, tmp_path / "other"])
    with pytest.raises(MergeFailed, match=message) as failure:
        run(deltas)
    assert failure.value.place.endswith("words/delta/other/")
    assert objects("intermediate/") == set()
    assert left_in_scratch() == []


@pytest.mark.parametrize(
    ("said", "message"),
    [
        ({"embedding_count": 13}, "the chunk says 13 embeddings in 'words', the delta holds 12 in 'words'"),
        ({"embedding_count": 11}, "the chunk says 11 embeddings in 'words', the delta holds 12 in 'words'"),
        ({"collection": "lines"}, "the chunk says collection 'lines', the delta holds 12 in 'words'"),
    ],
    ids=["fewer", "more", "another collection"],
)
def test_a_delta_that_holds_other_than_the_chunk_says_is_refused_and_the_event_names_the_chunk(
    said: dict[str, Any], message: str, stack: LocalStack, chunk_folders: list[Path], objects: Objects
) -> None:
    upload_delta(chunk_folders[0], "deltas", "words/delta/d0")
    deltas = [{"delta_key": "words/delta/d0", "collection": "words", "embedding_count": 12, **said}]
    with pytest.raises(ChunkRejected, match=f"chunk.content_differs: {message}"):
        run(deltas, {deltas[0]["collection"]: deltas})
    (event,) = stack.taken(NOTICES)
    assert event["detail-type"] == "Chunk Rejected"
    assert (event["detail"]["batch_id"], event["detail"]["chunk_index"]) == ("batch-1", 0)
    assert objects("intermediate/") == set()


@pytest.mark.slow
def test_of_a_delta_that_several_collections_list_the_chunk_says_one_and_all_are_merged(
    put_chunk: Callable[..., Deltas], stored: Stored, tmp_path: Path
) -> None:
    build_delta(tmp_path / "both", DeltaRecipe(embeddings=4, dimension=8, collections=2))
    (entry,) = put_chunk([tmp_path / "both"])
    answer = run([entry], {"words": [entry], "words-1": [{**entry, "collection": "words-1"}]})
    assert answer["embeddings_processed"] == 8
    assert {name: len(found["rows"]) for name, found in stored(KEY).items()} == {"words": 4, "words-1": 4}
    with pytest.raises(ChunkRejected, match="the chunk says 8 embeddings in 'words'"):
        run([{**entry, "embedding_count": 8}], {"words": [entry], "words-1": [entry]})


@pytest.mark.slow
def test_an_intermediate_is_as_its_deltas_are_with_no_index_and_nothing_that_held_it_back(
    chunk: Deltas, bucket: str, tmp_path: Path
) -> None:
    run(chunk)
    names = {
        entry["Key"].removeprefix(KEY)
        for entry in boto3.client("s3").list_objects_v2(Bucket=bucket, Prefix=KEY)["Contents"]
    }
    boto3.client("s3").download_file(bucket, f"{KEY}chroma.sqlite3", str(tmp_path / "one.sqlite3"))
    with closing(sqlite3.connect(tmp_path / "one.sqlite3")) as database:
        read = {
            "indexed up to": "SELECT max(seq_id) FROM max_seq_id JOIN segments ON id = segment_id AND scope = 'VECTOR'",
            "queued": "SELECT count(*) FROM embeddings_queue",
            "purged": "SELECT json_extract(config_json_str, '$.automatically_purge') FROM embeddings_queue_config",
        }
        found = {name: database.execute(query).fetchone()[0] for name, query in read.items()}
    assert names == {"chroma.sqlite3", MANIFEST}
    assert found == {"indexed up to": None, "queued": 12 + 35 + 9, "purged": 1}


def test_a_panic_of_chroma_fails_the_chunk_and_names_the_delta(
    chunk: Deltas, objects: Objects, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    class PanicException(BaseException):
        pass

    def panic(*_: Any) -> None:
        raise PanicException("index out of bounds")

    monkeypatch.setattr("compaction.writer.Target.upsert", panic)
    with pytest.raises(MergeFailed, match="d0/: not merged, and nothing with it: PanicException"):
        run(chunk)
    assert objects("intermediate/") == set()
    assert left_in_scratch() == []


@pytest.mark.usefixtures("fast_retries")
def test_a_store_that_takes_no_manifest_leaves_nothing_that_looks_finished(chunk: Deltas, objects: Objects) -> None:
    store = faults.answering(
        "InternalError",
        500,
        lambda request: request.method == "PUT" and "chunk-0" in request.url and MANIFEST in request.url,
    )
    with pytest.raises(UploadFailed, match="intermediate/batch-1/chunk-0"):
        run(chunk, store=store)
    assert objects("intermediate/") == set()


# --- once more


def test_a_repeated_call_answers_with_the_intermediate_that_is_there(chunk: Deltas, objects: Objects) -> None:
    first = run(chunk)
    written: list[str] = []
    again = faults.doing(lambda request: written.append(request.url) if request.method in ("PUT", "DELETE") else None)
    second = run(chunk, store=again)
    assert {**second, "processing_time": 0} == {**first, "processing_time": 0}
    assert written == []


def test_the_rest_of_an_attempt_that_was_killed_is_replaced(
    chunk: Deltas, bucket: str, objects: Objects, stored: Stored, store: Store
) -> None:
    boto3.client("s3").put_object(Bucket=bucket, Key=f"{KEY}chroma.sqlite3", Body=b"half of it")
    run(chunk)
    assert judge_stored(store, DeltaLocation(bucket, KEY), Depth.STRUCTURE, Settings()).verdict.status is Status.HEALTHY


@pytest.mark.slow
def test_killed_before_any_request_nothing_looks_finished_that_is_not_and_the_next_call_completes_it(
    chunk: Deltas, store: Store, bucket: str
) -> None:
    keys = [delta["delta_key"] for delta in chunk[::2]]
    location = DeltaLocation(bucket, "intermediate/batch/chunk-0/")
    request = 1
    while killed_at(request, "compaction", *keys):
        names = store.list_delta(location).by_name
        judgement = judge_stored(store, location, Depth.STRUCTURE, Settings())
        assert MANIFEST not in names or judgement.verdict.status is Status.HEALTHY
        request += 5
    assert request > 20
    judgement = judge_stored(store, location, Depth.STRUCTURE, Settings())
    assert [found.count for found in judgement.verdict.collections] == [12 + 9]


@pytest.mark.slow
def test_an_intermediate_of_other_deltas_is_replaced(chunk: Deltas, stored: Stored) -> None:
    run(chunk[:1])
    before = stored(KEY)["words"]["rows"]
    run(chunk)
    assert before.keys() < stored(KEY)["words"]["rows"].keys()


@pytest.mark.parametrize("receipt", [b"not JSON", b"{}"])
def test_a_receipt_that_cannot_be_read_is_passed_over(receipt: bytes, chunk: Deltas, bucket: str) -> None:
    first = run(chunk[:1])
    boto3.client("s3").put_object(Bucket=bucket, Key="intermediate/batch-1/chunk-0.receipt.json", Body=receipt)
    assert run(chunk[:1])["embeddings_processed"] == first["embeddings_processed"]


# --- wrong input


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("no/slash", 0, [{"delta_key": "a/b"}], {}), "batch_id 'no/slash'"),
        (("b", -1, [{"delta_key": "a/b"}], {}), "chunk_index -1"),
        (("b", True, [{"delta_key": "a/b"}], {}), "chunk_index True"),
        (("b", 0, [], {}), "no deltas"),
        (("b", 0, [{"delta_id": "b"}], {}), "delta_key: this field is missing"),
        (("b", 0, [{"delta_key": "a/b"}], {"words": [{"delta_key": "a/c"}]}), "name different deltas, such as 'a/b'"),
        (("b", 0, [{"delta_key": "a/b"}], {"words": "a/b"}), "is not a list of deltas"),
        (("b", 0, [{"delta_key": "a/b"}], ["words"]), "deltas_by_collection is a list"),
    ],
)
def test_a_chunk_that_makes_no_sense_is_refused(arguments: Any, message: str) -> None:
    with pytest.raises(TargetError, match=message):
        process(*arguments)


@pytest.mark.parametrize(
    ("value", "message"), [("", "CHROMADB_BUCKET is not set"), ("Not_A_Bucket", "must be the name")]
)
def test_without_a_bucket_it_says_which_variable_is_missing(
    value: str, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CHROMADB_BUCKET", value)
    with pytest.raises(SettingsError, match=message):
        process("b", 0, [{"delta_key": "a/b"}], {})
