"""The program as its users meet it: exit codes, stdout, stderr, and never a traceback."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import boto3
import click
import pytest
from click.testing import CliRunner, Result

from scanner.cli import cli
from scanner.program import LaterCommand, Program
from shared.model.delta import DATABASE
from shared.storage.store import Store
from tests import ROOT
from tests.scanner.report.test_output import FORMATS

SERVERS = ("moto", "rclone")


def run(*arguments: str | Path) -> Result:
    """The program in this process. An exception that it lets out is raised here."""
    return CliRunner().invoke(cli, [str(argument) for argument in arguments], catch_exceptions=False)


def started(*arguments: str | Path) -> subprocess.Popen[str]:
    """The program in a process of its own."""
    command = [sys.executable, "-m", "scanner", *map(str, arguments)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def lines_of(result: Result) -> list[dict[str, Any]]:
    return [json.loads(line) for line in result.stdout.splitlines()]


@pytest.fixture
def broken(copy_of: Callable[[Path], Path], healthy_delta: Path) -> Path:
    """A delta whose upload stopped in the middle of the database."""
    folder = copy_of(healthy_delta)
    os.truncate(folder / DATABASE, (folder / DATABASE).stat().st_size // 2)
    return folder


@pytest.fixture
def without_credentials(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setattr(boto3, "DEFAULT_SESSION", None)  # it keeps the credentials that it saw first


class TestCheck:
    @pytest.mark.parametrize("depth", ["listing", "header", "structure"])
    def test_a_healthy_folder(self, healthy_delta: Path, depth: str) -> None:
        result = run("check", healthy_delta, "--depth", depth, "--format", "ndjson")
        verdict, summary = lines_of(result)
        assert result.exit_code == 0
        assert (verdict["delta"], verdict["status"], verdict["depth"]) == (str(healthy_delta), "healthy", depth)
        assert summary["summary"]["healthy"] == summary["summary"]["total"] == 1

    def test_a_corrupt_one_among_healthy_ones(self, healthy_delta: Path, flushed_delta: Path, broken: Path) -> None:
        result = run("check", healthy_delta, broken, flushed_delta)
        assert result.exit_code == 1
        assert f"corrupt {broken}\n  sqlite.truncated  chroma.sqlite3\n" in result.stdout
        assert "2 healthy, 0 undetermined, 0 incomplete, 1 corrupt" in " ".join(result.stdout.split())

    def test_a_delta_in_s3(self, put_delta, healthy_delta: Path) -> None:
        location = put_delta(healthy_delta, "deltas/good")
        result = run("check", location.uri, location.uri.rstrip("/"), "--format", "ndjson")
        verdict, summary = lines_of(result)
        assert (result.exit_code, verdict["delta"], verdict["status"]) == (0, location.uri, "healthy")
        assert summary["summary"]["total"] == 1, "the same delta, named twice, is judged once"

    def test_one_that_is_still_arriving_is_incomplete(self, store: Store, bucket: str) -> None:
        store.put(bucket, "deltas/new/0b3c9f4e-1111-4222-8333-444455556666/header.bin", b"x" * 100)
        result = run("check", f"s3://{bucket}/deltas/new", "--format", "ndjson")
        assert (result.exit_code, lines_of(result)[0]["status"]) == (1, "incomplete")

    def test_the_format_is_any_that_there_is(self, healthy_delta: Path) -> None:
        for name in FORMATS:
            assert run("check", healthy_delta, "--format", name).exit_code == 0
        assert run("check", healthy_delta, "--format", "xml").exit_code == 2

    @pytest.mark.parametrize(
        ("target", "message"),
        [
            ("no/such/folder", "no/such/folder: no such folder"),
            (__file__, "a file, not a folder"),
            ("x" * 300, "no such folder"),
            ("s3://bucket", "s3://bucket: a delta lies under a prefix"),
            ("s3:///prefix", "not an s3://bucket/prefix"),
            ("gs://bucket/prefix", "not an s3://bucket/prefix"),
            ("s3://bucket/\udcff", "not UTF-8"),
            ("s3://no-such-bucket/deltas/x", "s3://no-such-bucket: no such bucket"),
            ("s3://deltas/nothing/here", "s3://deltas/nothing/here/: nothing lies there"),
        ],
    )
    @pytest.mark.usefixtures("bucket")
    def test_a_target_that_cannot_be_stops_the_run_before_it_starts(
        self, healthy_delta: Path, target: str, message: str
    ) -> None:
        result = run("check", healthy_delta, target)
        assert result.exit_code == 2
        assert message in result.stderr
        assert len(result.stderr.splitlines()) == 1
        assert not result.stdout

    @pytest.mark.usefixtures("aws", "without_credentials")
    def test_no_credentials_is_no_verdict_on_the_delta(self) -> None:
        result = run("check", "s3://bucket/deltas/x", "--format", "ndjson")
        (finding,) = lines_of(result)[0]["findings"]
        assert (result.exit_code, finding["code"]) == (3, "check.storage")
        assert "credentials" in finding["detail"]

    def test_a_wrong_setting_is_named(self, healthy_delta: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("DELTAGUARD_MAX_DELTA_BYTES", "many")
        result = run("check", healthy_delta)
        assert result.exit_code == 2
        assert result.stderr.startswith("Error: DELTAGUARD_MAX_DELTA_BYTES='many'")

    @pytest.mark.parametrize(
        "options",
        [("--depth", "deep"), ("--jobs", "0"), ("--jobs", "65"), ("--jobs", "x"), ("--nope",), ("--output",)],
    )
    def test_a_wrong_option_is_a_usage_error(self, healthy_delta: Path, options: tuple[str, ...]) -> None:
        assert run("check", healthy_delta, *options).exit_code == 2

    def test_no_target_is_a_usage_error(self) -> None:
        assert run("check").exit_code == 2


class TestScan:
    def test_finds_deltas_in_folders(self, healthy_delta: Path, broken: Path, tmp_path: Path) -> None:
        result = run("scan", tmp_path, healthy_delta.parent, "--format", "json")
        document = json.loads(result.stdout)
        assert result.exit_code == 1
        assert {verdict["delta"] for verdict in document["verdicts"]} == {str(broken), str(healthy_delta)}

    def test_finds_deltas_below_a_prefix_but_not_in_quarantine(
        self, put_delta, healthy_delta: Path, broken: Path, bucket: str
    ) -> None:
        for prefix in ("deltas/one", "deltas/two", "deltas-other/three", "quarantine/deltas/four/f00"):
            put_delta(broken if "quarantine" in prefix else healthy_delta, prefix)

        def found(target: str) -> set[str]:
            *verdicts, _ = lines_of(run("scan", target, "--format", "ndjson"))
            return {verdict["delta"].removeprefix(f"s3://{bucket}/") for verdict in verdicts}

        assert found(f"s3://{bucket}/deltas") == {"deltas/one/", "deltas/two/"}
        assert found(f"s3://{bucket}") == {"deltas/one/", "deltas/two/", "deltas-other/three/"}
        assert found(f"s3://{bucket}/quarantine") == {"quarantine/deltas/four/f00/"}, "when it is asked for"

    def test_nothing_found_is_said_and_no_error(self, bucket: str) -> None:
        result = run("scan", f"s3://{bucket}/deltas", "--format", "ndjson")
        assert (result.exit_code, result.stderr) == (0, "no deltas found\n")
        assert lines_of(result)[0]["summary"]["total"] == 0

    @pytest.mark.usefixtures("aws")
    def test_a_missing_bucket_is_a_usage_error(self) -> None:
        result = run("scan", "s3://no-such-bucket/deltas")
        assert (result.exit_code, result.stderr) == (2, "Error: s3://no-such-bucket: no such bucket\n")

    @pytest.mark.usefixtures("aws", "without_credentials")
    def test_a_bucket_that_cannot_be_listed(self) -> None:
        result = run("scan", "s3://bucket/deltas")
        assert (result.exit_code, result.stdout) == (3, "")
        assert result.stderr == "Error: listing s3://bucket/deltas/: Unable to locate credentials\n"

    @pytest.mark.skipif(os.geteuid() == 0, reason="root may read every folder")
    def test_a_folder_that_cannot_be_listed_does_not_hide_the_others(self, healthy_delta: Path, tmp_path: Path) -> None:
        (tmp_path / "locked").mkdir(mode=0)
        result = run("scan", tmp_path, healthy_delta, "--format", "ndjson")
        assert result.exit_code == 3
        assert "locked: Permission denied" in result.stderr
        assert lines_of(result)[-1]["summary"]["healthy"] == 1

    def test_a_hostile_name_stays_a_name(self, tmp_path: Path) -> None:
        hostile = tmp_path / "[red]\x1b[2J\udcff"
        hostile.mkdir()
        (hostile / DATABASE).write_bytes(b"")
        result = run("scan", tmp_path)
        assert result.exit_code in (1, 3)
        assert "[red]\\u001b[2J\\udcff" in result.stdout


class TestOutput:
    def test_results_go_to_the_file(self, healthy_delta: Path, tmp_path: Path) -> None:
        result = run("check", healthy_delta, "--format", "json", "--output", tmp_path / "report.json")
        assert (result.exit_code, result.output) == (0, "")
        assert json.loads((tmp_path / "report.json").read_text())["summary"]["healthy"] == 1

    def test_a_file_that_cannot_be_written_stops_the_run_before_it_starts(self, healthy_delta: Path) -> None:
        result = run("check", healthy_delta, "--output", "no/such/folder/report")
        assert (result.exit_code, result.stdout) == (2, "")
        assert result.stderr == "Error: --output no/such/folder/report: No such file or directory\n"

    def test_a_typo_in_a_target_leaves_the_old_report_alone(self, tmp_path: Path) -> None:
        report = tmp_path / "report"
        report.write_text("of yesterday")
        assert run("check", tmp_path / "typo", "--output", report).exit_code == 2
        assert report.read_text() == "of yesterday"


class TestHelp:
    @pytest.mark.parametrize("arguments", [[], ["check"], ["scan"]])
    def test_every_help_documents_the_exit_status(self, arguments: list[str]) -> None:
        result = run(*arguments, "--help")
        assert result.exit_code == 0
        assert "Exit status:\n    0    every delta is healthy\n" in result.stdout

    def test_the_version_names_what_bears_on_a_verdict(self) -> None:
        assert "rules 2, SQLite 3." in run("--version").stdout

    def test_help_imports_nothing_that_judges(self) -> None:
        program = "import sys; from scanner.cli import cli; cli(['--help'], standalone_mode=False); print(*sys.modules)"
        loaded = subprocess.run(
            [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True
        ).stdout.split()
        assert not {"numpy", "boto3", "rich", "devtools.demo.demo", "chromadb"} & set(loaded)


class TestLaterCommand:
    @pytest.fixture
    def program(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Program]:
        """A program with commands of modules that are written here."""
        monkeypatch.syspath_prepend(tmp_path)
        (tmp_path / "later_good.py").write_text(
            "import click\n@click.command()\n@click.option('--times', type=int)\n"
            "def hello(times):\n    click.echo('hello ' * times)\n"
            "@click.command()\ndef lazy():\n    import a_package_of_nobody\n"
        )
        (tmp_path / "later_lacking.py").write_text("import a_package_of_nobody.deeper\n")
        (tmp_path / "later_wrong.py").write_text("import later_wrong.typo\n")
        program = Program("program")
        for name in ("later_good:hello", "later_good:lazy", "later_lacking:any", "later_wrong:any"):
            module, _, attribute = name.partition(":")
            command = attribute if module == "later_good" else module
            program.add_command(LaterCommand(command, name, f"Does {command}.", "deltaguard[demo]"))
        yield program
        for module in ("later_good", "later_lacking", "later_wrong"):
            sys.modules.pop(module, None)

    def invoke(self, program: click.Group, *arguments: str) -> Result:
        return CliRunner().invoke(program, arguments, catch_exceptions=False)

    def test_the_real_command_takes_the_arguments(self, program: Program) -> None:
        assert self.invoke(program, "hello", "--times", "2").stdout == "hello hello \n"
        assert "--times" in self.invoke(program, "hello", "--help").stdout
        assert self.invoke(program, "hello", "--times", "x").exit_code == 2

    def test_the_help_of_the_group_imports_none(self, program: Program) -> None:
        text = self.invoke(program, "--help").stdout
        assert "Does hello." in text
        assert "later_good" not in sys.modules

    @pytest.mark.parametrize("command", ["later_lacking", "lazy"])
    def test_a_package_that_is_not_installed_is_told_in_a_line(self, program: Program, command: str) -> None:
        result = self.invoke(program, command)
        assert result.exit_code == 2
        assert result.stderr.endswith("pip install 'deltaguard[demo]'\n")
        assert "a_package_of_nobody" in result.stderr

    def test_a_mistake_of_ours_is_not_covered_up(self, program: Program) -> None:
        with pytest.raises(ModuleNotFoundError, match="typo"):
            self.invoke(program, "later_wrong")


class TestProcess:
    @pytest.fixture
    def many(self, tmp_path: Path) -> Path:
        """So many deltas that their ndjson does not fit into a pipe: the program waits until it is read."""
        for number in range(600):
            folder = tmp_path / "many" / str(number)
            folder.mkdir(parents=True)
            (folder / DATABASE).write_bytes(b"")
        return tmp_path / "many"

    def test_exit_codes_without_traceback(self, broken: Path, healthy_delta: Path) -> None:
        programs = [started("check", healthy_delta), started("check", broken), started("check", "s3://x")]
        ends = [program.communicate(timeout=30) for program in programs]
        assert [program.returncode for program in programs] == [0, 1, 2]
        assert [stderr for _, stderr in ends] == ["", "", "Error: s3://x: not an s3://bucket/prefix\n"]

    def test_ctrl_c_ends_with_the_summary_so_far(self, many: Path) -> None:
        program = started("scan", many, "--format", "ndjson")
        assert program.stdout is not None
        assert program.stderr is not None
        program.stdout.readline()
        program.send_signal(signal.SIGINT)
        # Not communicate(): it would miss the lines that readline() has buffered.
        *verdicts, summary = map(json.loads, program.stdout.read().splitlines())
        stderr = program.stderr.read()
        assert program.wait(timeout=30) == 130
        assert summary["summary"]["total"] == len(verdicts) + 1 < 600
        assert "Traceback" not in stderr
        program.stdout.close()
        program.stderr.close()

    def test_a_reader_that_goes_away_ends_it_quietly(self, many: Path) -> None:
        program = started("scan", many, "--format", "ndjson")
        assert program.stdout is not None
        assert program.stderr is not None
        program.stdout.readline()
        program.stdout.close()
        assert program.stderr.read() == ""
        program.stderr.close()
        assert program.wait(timeout=30) == 141
