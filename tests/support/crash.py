"""A process that kills itself (SIGKILL) at its N-th S3 request: a crash at any point of a protocol.

`before` the request: it never left. `after` it: the store has done it, and nobody has seen the answer. A warm process
that has imported everything forks one for each crash, so hundreds of them take seconds.
"""

from __future__ import annotations

import atexit
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from functools import cache
from typing import Any, Literal

from compaction.chunk import process
from shared.model.delta import DeltaLocation
from shared.model.settings import Settings
from shared.quarantine.move import quarantine
from shared.quarantine.restore import held_below, purge, restore
from shared.storage.client import s3_client
from shared.storage.store import Store
from shared.upload import upload_delta
from tests import ROOT
from tests.support.verdicts import confirmed

SETTINGS = Settings(settle_seconds=0, arrival_seconds=0)
Moment = Literal["before", "after"]
_HOOKS = {"before": "before-send.s3", "after": "response-received.s3"}


def killed_at(request: int, work: str, *arguments: str, moment: Moment = "before") -> bool:
    """Does the work in a process that is killed at its `request`-th request. Returns whether it came that far."""
    environment = {name: value for name, value in os.environ.items() if name.startswith(("AWS_", "CHROMADB_"))}
    process = _nursery()
    process.stdin.write(json.dumps([environment, moment, request, work, arguments]) + "\n")
    process.stdin.flush()
    signal_, told = json.loads(process.stdout.readline())
    assert signal_ in (0, signal.SIGKILL), told
    return signal_ != 0


@cache
def _nursery() -> Any:
    command = [sys.executable, "-m", "tests.support.crash"]
    process = subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    atexit.register(process.communicate)  # closes its input, which ends it, and waits
    return process


def _upload(store: Store, folder: str, bucket: str, key: str) -> None:
    upload_delta(folder, bucket, key, store=store, settings=SETTINGS)


def _quarantine(store: Store, bucket: str, key: str) -> None:
    location = DeltaLocation(bucket, key + "/")
    judgement = confirmed(Store(s3_client()), location, SETTINGS)
    if not judgement.gone:
        quarantine(store, location, judgement, SETTINGS)


def _restore(store: Store, bucket: str, key: str, *options: str) -> None:
    for held in held_below(store, bucket, key + "/", SETTINGS, _fail):
        restore(store, held, SETTINGS, overwrite="overwrite" in options)


def _purge(store: Store, bucket: str, key: str) -> None:
    for held in held_below(store, bucket, key + "/", SETTINGS, _fail):
        purge(store, held)


def _compaction(store: Store, *keys: str) -> None:
    process("batch", 0, [{"delta_key": key} for key in keys], {}, store=store, settings=SETTINGS)


def _fail(error: Exception) -> None:
    raise error


_WORKS: dict[str, Callable[..., None]] = {
    "compaction": _compaction,
    "upload": _upload,
    "quarantine": _quarantine,
    "restore": _restore,
    "purge": _purge,
}


def _dying_store(request: int, moment: Moment) -> Store:
    client = s3_client()
    seen = 0

    def count(**_: Any) -> None:
        nonlocal seen
        seen += 1
        if seen == request:
            os.kill(os.getpid(), signal.SIGKILL)

    client.meta.events.register(_HOOKS[moment], count)
    return Store(client)


def _child(environment: dict[str, str], moment: Moment, request: int, work: str, arguments: list[str]) -> None:
    os.environ.update(environment)
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # the logs; stdout belongs to the parent's answers
    _WORKS[work](_dying_store(request, moment), *arguments)


def main() -> None:
    for line in sys.stdin:
        child = os.fork()
        if child == 0:
            try:
                _child(*json.loads(line))
                os._exit(0)
            except BaseException as error:  # noqa: BLE001 - a forked child must end here, whatever happens
                sys.stderr.write(f"{type(error).__name__}: {error}\n")
                os._exit(1)
        _, status = os.waitpid(child, 0)
        told = [os.WTERMSIG(status), ""] if os.WIFSIGNALED(status) else [-os.waitstatus_to_exitcode(status), line]
        sys.stdout.write(json.dumps(told) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
