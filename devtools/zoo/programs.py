"""Programs that run beside this one: each answers requests, one line of JSON for another."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

_ENVIRONMENT = {"HOME": "/nonexistent", "ANONYMIZED_TELEMETRY": "False"}


class NotDone(Exception):
    """Something could not be done, for a reason of this machine or of a release that hangs or does not start."""


def environment(**more: str) -> dict[str, str]:
    """The environment of a program that has no home and reports to nobody."""
    return {**os.environ, **_ENVIRONMENT, **more}


class Program:
    """A program that `writer.serve` runs in: it forks for each request.

    Args:
        command: How it is started.
        folder: Where.

    Raises:
        NotDone: It does not start.
    """

    def __init__(self, command: Sequence[str], folder: Path | None = None) -> None:
        self._process = subprocess.Popen(  # noqa: S603 -- ours
            command,
            cwd=folder,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env=environment(),
        )
        self._name = " ".join(command)
        self._answer()

    def ask(self, request: dict[str, Any]) -> int:
        """Sends a request and waits for its end.

        Args:
            request: With `seconds`, how long it may take.

        Returns:
            The wait status of the process that was forked for it.

        Raises:
            NotDone: It took longer, or the program died.
        """
        self.send(request)
        answer = self._answer()
        if answer["hung"]:
            raise NotDone(f"{self._name} took more than {request['seconds']:g} s")
        return int(answer["status"])

    def send(self, request: dict[str, Any]) -> None:
        """Sends a request; `finish` waits for it."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            self.finish()
            raise NotDone(f"{self._name} died")
        answer: dict[str, Any] = json.loads(line)
        return answer

    def finish(self) -> None:
        """Lets it end what it does, and end."""
        for pipe in (self._process.stdin, self._process.stdout):
            assert pipe is not None
            pipe.close()
        self._process.wait()
