"""A history, done: writers and servers of many releases over one directory, and what they acknowledged."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import tempfile
import time
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from devtools.zoo.history import History, Op
from devtools.zoo.maintenance import maintain
from devtools.zoo.model import Model
from devtools.zoo.releases import python_of

_WRITER = Path(__file__).parent / "writer.py"
_SESSION_SECONDS = 300.0
_SERVER_SECONDS = 60.0
_MOST_WRITERS = 5
_EPHEMERAL = {"HOME": "/nonexistent", "ANONYMIZED_TELEMETRY": "False"}


class NotDone(Exception):
    """A history could not be done to its end, for a reason of this machine or of a release that hangs."""


class Writers:
    """Writers that are ready, by release; the least recently used ones are ended."""

    def __init__(self) -> None:
        self._running: OrderedDict[str, subprocess.Popen[str]] = OrderedDict()

    def run(self, version: str, folder: str, session: dict[str, Any], journal: Path) -> None:
        """Runs one session.

        Raises:
            NotDone: It hangs, or there is no such writer.
        """
        writer = self._writer(version)
        assert writer.stdin is not None and writer.stdout is not None
        request = {"folder": folder, "session": session, "journal": str(journal), "seconds": _SESSION_SECONDS}
        writer.stdin.write(json.dumps(request) + "\n")
        writer.stdin.flush()
        answer = writer.stdout.readline()
        if not answer:
            raise NotDone(f"the writer of {version} died")
        if json.loads(answer)["hung"]:
            raise NotDone(f"a session of {version} took more than {_SESSION_SECONDS:g} s")

    def _writer(self, version: str) -> subprocess.Popen[str]:
        if version in self._running:
            self._running.move_to_end(version)
            return self._running[version]
        while len(self._running) >= _MOST_WRITERS:
            _end(self._running.popitem(last=False)[1])
        writer = subprocess.Popen(  # noqa: S603 -- ours
            [python_of(version), "-I", _WRITER],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env={**os.environ, **_EPHEMERAL},
        )
        assert writer.stdout is not None
        if not writer.stdout.readline():
            raise NotDone(f"the writer of {version} does not start")
        self._running[version] = writer
        return writer

    def close(self) -> None:
        """Ends them all."""
        while self._running:
            _end(self._running.popitem()[1])


def _end(process: subprocess.Popen[str]) -> None:
    for pipe in (process.stdin, process.stdout):
        if pipe is not None:
            pipe.close()
    process.terminate()
    process.wait()


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
            refused += [
                f"{step['version']} {ops[n]['do'] if n >= 0 else 'session'}: {why}" for n, why in journal.items() if why
            ]
            if -1 in journal:  # it did not open
                continue
            model.follow(ops, journal)
    return model, refused


def _session(writers: Writers, version: str, folder: str, session: dict[str, Any]) -> dict[int, str | None]:
    with tempfile.TemporaryDirectory(prefix="zoo-") as scratch:
        journal = Path(scratch) / "journal"
        writers.run(version, folder, session, journal)
        return _read_journal(journal)


def _read_journal(journal: Path) -> dict[int, str | None]:
    lines = [json.loads(line) for line in journal.read_text().splitlines()] if journal.exists() else []
    return {line.get("op", -1): line.get("error") or line.get("failed") for line in lines}


def _served(writers: Writers, step: dict[str, Any], folder: Path) -> tuple[list[list[Op]], list[dict[int, str | None]]]:
    """Several clients of one server at once; their rows have ids of their own, so their order does not matter."""
    parts: list[list[Op]] = [step["before"]]
    with _server(step["version"], folder, step["end"]) as port:
        journals = [_session(writers, step["version"], str(port), {"ops": step["before"], "end": "exit"})]
        with tempfile.TemporaryDirectory(prefix="zoo-") as scratch:
            clients = []
            for number, ops in enumerate(step["writers"]):
                journal = Path(scratch) / str(number)
                request = {"folder": str(port), "session": {"ops": ops, "end": "exit"}, "journal": str(journal)}
                client = subprocess.Popen(  # noqa: S603 -- ours
                    [python_of(step["version"]), "-I", _WRITER],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.DEVNULL,
                    stderr=subprocess.DEVNULL,
                    text=True,
                    env={**os.environ, **_EPHEMERAL},
                )
                assert client.stdin is not None
                client.stdin.write(json.dumps({**request, "seconds": _SESSION_SECONDS}) + "\n")
                client.stdin.close()
                clients.append((client, ops, journal))
            for client, ops, journal in clients:
                client.wait()
                parts.append(ops)
                journals.append(_read_journal(journal))
    return parts, journals


@contextmanager
def _server(version: str, folder: Path, end: str) -> Iterator[int]:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        port = listening.getsockname()[1]
    python = python_of(version)
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
            env={**os.environ, **_EPHEMERAL, **settings},
        )
        try:
            _await_port(server, port, version)
            yield port
        finally:
            server.send_signal(signal.SIGKILL if end == "kill" else signal.SIGTERM)
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
