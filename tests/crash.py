"""A child process that kills itself (SIGKILL) just before its N-th S3 request: a crash at any point of a protocol.

Run as `python -m tests.crash upload N FOLDER BUCKET KEY`, `python -m tests.crash quarantine N BUCKET KEY` or
`python -m tests.crash compaction N KEY...`.
It exits with 0 when the work needed fewer requests.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

from compaction.chunk import process
from shared.delta import DeltaLocation
from shared.judgement import judge_stored
from shared.quarantine import quarantine
from shared.settings import Settings
from shared.storage import Store, s3_client
from shared.upload import upload_delta
from shared.verdict import Depth

ROOT = Path(__file__).parent.parent


def killed_at(request: int, work: str, *arguments: str) -> bool:
    """Runs the work in a child that is killed before its `request`-th request. Returns whether it came that far."""
    command = [sys.executable, "-m", "tests.crash", work, str(request), *arguments]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=180, check=False)
    assert done.returncode in (0, -signal.SIGKILL), done.stderr
    return done.returncode != 0


def _dying_store(request: int) -> Store:
    client = s3_client()
    seen = 0

    def count(**_: Any) -> None:
        nonlocal seen
        seen += 1
        if seen == request:
            os.kill(os.getpid(), signal.SIGKILL)

    client.meta.events.register("before-send.s3", count)
    return Store(client)


def main(work: str, request: str, *arguments: str) -> None:
    settings = Settings(settle_seconds=0)
    store = _dying_store(int(request))
    if work == "upload":
        folder, bucket, key = arguments
        upload_delta(folder, bucket, key, store=store, settings=settings)
        return
    if work == "compaction":
        process("batch", 0, [{"delta_key": key} for key in arguments], {}, store=store, settings=settings)
        return
    location = DeltaLocation(arguments[0], arguments[1] + "/")
    judgement = judge_stored(store, location, Depth.STRUCTURE, settings)
    if not judgement.gone:
        quarantine(store, location, judgement, settings)


if __name__ == "__main__":
    main(*sys.argv[1:])
