"""`deltaguard gate` as a person and a pipeline meet it: where a chunk comes from, what is said, and the exit codes."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from devtools.damage.catalogue import apply_damage
from scanner.cli import cli
from shared.storage.store import Store
from tests.conftest import CopyOf, PutDelta

Run = Callable[..., Result]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch) -> Run:
    """The program in this process. An exception that it lets out is raised here."""
    monkeypatch.delenv("CHROMADB_BUCKET", raising=False)

    def run(*arguments: str | Path, stdin: str | None = None) -> Result:
        words = ["gate", *map(str, arguments)]
        return CliRunner().invoke(cli, words, input=stdin, catch_exceptions=False)

    return run


def deltas(*keys: str) -> list[dict[str, Any]]:
    return [{"delta_key": key, "delta_id": key[-1], "embedding_count": 50, "collection": "words"} for key in keys]


@pytest.fixture
def stored(bucket: str, healthy_delta: Path, copy_of: CopyOf, put_delta: PutDelta) -> str:
    """A bucket with two healthy deltas, d/1 and d/2, and a corrupt one, d/3."""
    broken = copy_of(healthy_delta)
    apply_damage("sqlite-truncated", broken)
    for key, folder in (("d/1", healthy_delta), ("d/2", healthy_delta), ("d/3", broken)):
        put_delta(folder, key)
    return bucket


def test_a_chunk_of_healthy_deltas_may_be_merged(run: Run, stored: str, tmp_path: Path) -> None:
    (tmp_path / "chunk.json").write_text(json.dumps(deltas("d/1", "d/2")))
    result = run(tmp_path / "chunk.json", "--bucket", stored)
    assert result.exit_code == 0
    assert result.stdout.endswith("The chunk may be merged: 2 of 2 deltas are healthy.\n")
    assert not result.stderr


def test_a_refusal_says_of_every_bad_delta_why_and_what_to_do(run: Run, stored: str) -> None:
    result = run("-", "--bucket", stored, stdin=json.dumps({"deltas": deltas("d/1", "d/3", "d/9")}))
    assert result.exit_code == 1
    assert "sqlite.truncated  chroma.sqlite3\n" in result.stdout
    assert result.stdout.endswith(
        "The chunk is refused: 2 of 3 deltas are not healthy. Before it is merged:\n"
        "  s3://deltas/d/3/\n    take it away with --quarantine, then process its batch again\n"
        "  s3://deltas/d/9/\n    nothing lies there: look at the key, or process its batch again\n"
    )
    assert not result.stderr, "nobody is told but the one who asked"


def test_programs_read_the_same_in_the_order_of_the_chunk(run: Run, stored: str) -> None:
    chunk = json.dumps({"batch_id": "b", "chunk_index": 4, "deltas": deltas("d/3", "d/1")})
    lines = run("-", "--bucket", stored, "--format", "ndjson", stdin=chunk).stdout.splitlines()
    bad, good, summary = map(json.loads, lines)
    assert (bad["delta"], bad["status"], bad["advice"]["action"]) == ("s3://deltas/d/3/", "corrupt", "quarantine")
    assert (good["delta"], good["status"], good["advice"]) == ("s3://deltas/d/1/", "healthy", None)
    assert (summary["summary"]["corrupt"], summary["summary"]["passes"]) == (1, False)
    whole = json.loads(run("-", "--bucket", stored, "--format", "json", stdin=chunk).stdout)
    assert (whole["passes"], whole["batch_id"], whole["chunk_index"]) == (False, "b", 4)
    assert [verdict["delta"] for verdict in whole["verdicts"]] == ["s3://deltas/d/3/", "s3://deltas/d/1/"]


def test_a_delta_that_holds_other_than_the_chunk_says_is_no_proof_of_corruption(run: Run, stored: str) -> None:
    result = run("-", "--bucket", stored, stdin=json.dumps([deltas("d/1")[0] | {"embedding_count": 7}]))
    assert result.exit_code == 3
    assert "chunk.content_differs" in result.stdout


def test_a_chunks_file_in_s3_names_the_bucket_too(run: Run, store: Store, stored: str) -> None:
    store.put(stored, "chunks.json", json.dumps([deltas("d/3"), deltas("d/1", "d/2")]).encode())
    assert run(f"s3://{stored}/chunks.json", "--index", "1").exit_code == 0
    assert run(f"s3://{stored}/chunks.json", "--index", "0").exit_code == 1


def test_the_bucket_of_the_compaction_is_the_default(
    run: Run, stored: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("CHROMADB_BUCKET", stored)
    result = run("-", "--output", tmp_path / "answer", stdin=json.dumps(deltas("d/1")))
    assert (result.exit_code, result.stdout) == (0, "")
    assert "may be merged" in (tmp_path / "answer").read_text()


def test_an_empty_chunk_may_be_merged(run: Run, stored: str) -> None:
    assert run("-", "--bucket", stored, stdin="[]").exit_code == 0


@pytest.mark.parametrize(
    ("arguments", "stdin", "message"),
    [
        (["-"], "[]", "Give --bucket, or set CHROMADB_BUCKET"),
        (["-", "--bucket", "X"], '[{"delta_key": "d/1"}]', "not an s3://bucket/prefix"),
        (["-", "--bucket", "deltas"], '[{"delta_key": "d"}]', "'d' is only a prefix"),
        (["-", "--bucket", "deltas"], '[{"delta_key": "d/1", "x": 1}]', "deltas.0.x: there is no such field"),
        (["-", "--bucket", "deltas"], '[{"delta_key": "d/1"}, {"delta_key": "d/1"}]', "more than once"),
        (["-", "--bucket", "deltas"], '[[{"delta_key": "d/1"}]]', "say which of them, by its index"),
        (["-", "--bucket", "deltas", "--index", "3"], "[[]]", "there is no chunk 3"),
        (["-", "--bucket", "deltas"], "{", "not JSON"),
        (["-", "--bucket", "deltas"], "", "not JSON"),
        (["no-such-file.json"], "", "no-such-file.json: cannot be read: No such file"),
        (["/"], "", "/: cannot be read: Is a directory"),
        (["s3://deltas"], "", "not a file of chunks"),
        (["s3://deltas/none.json"], "", "s3://deltas/none.json: nothing lies there"),
        (["s3://no-such-bucket/none.json"], "", "nothing lies there"),
    ],
)
@pytest.mark.usefixtures("bucket")
def test_what_is_no_chunk_is_one_clear_line(run: Run, arguments: list[str], stdin: str, message: str) -> None:
    result = run(*arguments, stdin=stdin)
    assert result.exit_code == 2
    assert message in result.stderr
    assert len(result.stderr.splitlines()) == 1
    assert not result.stdout


def test_the_help_tells_the_exit_status(run: Run) -> None:
    text = run("--help").stdout
    assert "Exit status:" in text
    assert "CHROMADB_BUCKET" in text
