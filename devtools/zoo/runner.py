"""A history, done: writers and servers of many releases over one directory, and what they acknowledged."""

from __future__ import annotations

import json
import socket
import subprocess
import tempfile
import time
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from devtools.zoo.history import History, Op
from devtools.zoo.maintenance import maintain
from devtools.zoo.model import Journal, Model
from devtools.zoo.programs import NotDone, Program, environment
from devtools.zoo.releases import python_of

_WRITER = Path(__file__).parent / "writer.py"
_SESSION_SECONDS = 300.0
_SERVER_SECONDS = 60.0
_MOST_WRITERS = 5


class Writers:
    """Writers that are ready, by release; the least recently used ones are ended.

    Args:
        pythons: The Python that has a release, where it is not that of its own environment.
    """

    def __init__(self, pythons: Mapping[str, Path] | None = None) -> None:
        self._pythons = pythons or {}
        self._running: OrderedDict[str, Program] = OrderedDict()

    def python(self, version: str) -> Path:
        """The Python that has a release."""
        return self._pythons.get(version) or python_of(version)

    def start(self, version: str) -> Program:
        """A new writer.

        Raises:
            NotDone: It does not start.
        """
        return Program([str(self.python(version)), "-I", str(_WRITER)])

    def run(self, version: str, folder: str, session: dict[str, Any], journal: Path) -> None:
        """Runs one session.

        Raises:
            NotDone: It hangs, or there is no such writer.
        """
        self._writer(version).ask(request(folder, session, journal))

    def _writer(self, version: str) -> Program:
        if version in self._running:
            self._running.move_to_end(version)
        else:
            while len(self._running) >= _MOST_WRITERS:
                self._running.popitem(last=False)[1].finish()
            self._running[version] = self.start(version)
        return self._running[version]

    def close(self) -> None:
        """Ends them all."""
        while self._running:
            self._running.popitem()[1].finish()


def request(folder: str, session: dict[str, Any], journal: Path) -> dict[str, Any]:
    """What a writer is asked to do one session."""
    return {"folder": folder, "session": session, "journal": str(journal), "seconds": _SESSION_SECONDS}


def perform(history: History, folder: Path, writers: Writers) -> tuple[Model, list[str]]:
    """Does a history in a new folder.

    Returns:
        What must be there, and what Chroma refused, in words.

    Raises:
        NotDone, TooUncertain: There is no saying what must be there.
    """
    folder.mkdir(parents=True)
    model, refused = Model(), list[str]()
    for step in history["steps"]:
        if step["step"] == "maintain":
            if (folder / "chroma.sqlite3").exists():
                maintain(folder, step["name"])
            continue
        if step["step"] == "session":
            journals = [_session(writers, step["version"], str(folder), step)]
            parts = [step["ops"]]
        else:
            parts, journals = _served(writers, step, folder)
        for ops, journal in zip(parts, journals, strict=True):
            refused += [f"{step['version']} {ops[n]['do']}: {why}" for n, why in journal.outcomes.items() if why]
            refused += [f"{step['version']} session: {journal.end}"] if journal.end else []
            model.follow(ops, journal)
    return model, refused


def _session(writers: Writers, version: str, folder: str, session: dict[str, Any]) -> Journal:
    with tempfile.TemporaryDirectory(prefix="zoo-") as scratch:
        journal = Path(scratch) / "journal"
        writers.run(version, folder, session, journal)
        return _read_journal(journal)


def _read_journal(journal: Path) -> Journal:
    lines = [json.loads(line) for line in journal.read_text().splitlines()] if journal.exists() else []
    return Journal(
        {line["op"]: line.get("error") for line in lines if "op" in line},
        {line["op"]: line["calls"] for line in lines if "calls" in line},
        next((line["failed"] for line in lines if "failed" in line), None),
    )


def _served(writers: Writers, step: dict[str, Any], folder: Path) -> tuple[list[list[Op]], list[Journal]]:
    """Several clients of one server at once; their rows have ids of their own, so their order does not matter."""
    parts: list[list[Op]] = [step["before"]]
    version = step["version"]
    with _server(writers.python(version), version, folder) as (server, port):
        journals = [_session(writers, version, str(port), {"ops": step["before"], "end": "exit"})]
        with tempfile.TemporaryDirectory(prefix="zoo-") as scratch:
            clients = []
            for number, ops in enumerate(step["writers"]):
                journal = Path(scratch) / str(number)
                clients.append((writers.start(version), ops, journal))
                clients[-1][0].send(request(str(port), {"ops": ops, "end": "exit"}, journal))
            if step["end"] == "kill":
                time.sleep(step["kill_after"] / 1000)
                server.kill()
            for client, ops, journal in clients:
                client.finish()
                parts.append(ops)
                journals.append(_read_journal(journal))
    return parts, journals


@contextmanager
def _server(python: Path, version: str, folder: Path) -> Iterator[tuple[subprocess.Popen[bytes], int]]:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        port = listening.getsockname()[1]
    if version == "0.4.3":  # has no command of its own yet
        command = [str(python), "-m", "uvicorn", "chromadb.app:app", "--host", "127.0.0.1", "--port", str(port)]
    else:
        run = "from chromadb.cli.cli import app; app()"
        command = [str(python), "-c", run, "run", "--path", str(folder), "--host", "127.0.0.1", "--port", str(port)]
    settings = {"IS_PERSISTENT": "True", "PERSIST_DIRECTORY": str(folder)} if version == "0.4.3" else {}
    with tempfile.TemporaryDirectory(prefix="zoo-") as scratch:
        server = subprocess.Popen(  # noqa: S603 -- ours
            command,
            cwd=scratch,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            env=environment(**settings),
        )
        try:
            _await_port(server, port, version)
            yield server, port
        finally:
            server.terminate()
            try:
                server.wait(_SERVER_SECONDS)
            except subprocess.TimeoutExpired:
                server.kill()
                server.wait()


def _await_port(server: subprocess.Popen[bytes], port: int, version: str) -> None:
    deadline = time.monotonic() + _SERVER_SECONDS
    while time.monotonic() < deadline and server.poll() is None:
        try:
            socket.create_connection(("127.0.0.1", port), 1).close()
        except OSError:
            time.sleep(0.05)
        else:
            return
    raise NotDone(f"the server of {version} does not answer")
