"""Writes a delta anew through real Chroma, in a child process with a time limit, some records at a time."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import IO, Any

from shared.inspection.chroma.contents import Records, StoredCollection
from shared.inspection.chroma.placement import number
from shared.model.errors import CouldNotCheck, faults_explained
from shared.storage.scratch import scratch_folder

_PROGRAM = Path(__file__).with_name("chroma_writer.py")
_START_SECONDS = 60.0
_ROWS_PER_SECOND = 50.0  # Chroma writes thousands; a machine in trouble may be this slow


def rebuild(folder: Path, collections: Sequence[StoredCollection], batches: Iterable[tuple[str, Records]]) -> str:
    """Writes collections with their settings, and then their embeddings in the order given.

    Args:
        folder: Where to: an empty folder.
        collections: The collections.
        batches: Embeddings, each with the name of the collection they belong to.

    Returns:
        The version of chromadb that wrote it.

    Raises:
        CouldNotCheck: Chroma did not write all of it, or not in time.
    """
    seconds = _START_SECONDS + sum(collection.count for collection in collections) / _ROWS_PER_SECOND
    with scratch_folder() as scratch, tempfile.TemporaryFile(dir=scratch) as output, \
            tempfile.TemporaryFile(dir=scratch) as errors:  # fmt: skip
        environment = {
            "PATH": os.defpath,
            "HOME": str(scratch),
            "TMPDIR": str(scratch),
            "PYTHONPATH": os.pathsep.join(entry for entry in sys.path if entry),
            "ANONYMIZED_TELEMETRY": "False",
        }
        command = [sys.executable, "-P", str(_PROGRAM), str(folder), str(os.getpid())]
        with faults_explained("starting the writer"):
            child = subprocess.Popen(  # noqa: S603 - the command is this module's own
                command, stdin=subprocess.PIPE, stdout=output, stderr=errors, env=environment, cwd=scratch,
                start_new_session=True,
            )  # fmt: skip
        watch = threading.Timer(seconds, child.kill)
        watch.start()
        try:
            assert child.stdin is not None
            _send(child.stdin, collections, batches)
            code = child.wait()
        finally:
            watch.cancel()
            child.kill()
            child.wait()
        output.seek(0)
        errors.seek(0)
        return _version(output.read(64 * 1024), code, errors.read(64 * 1024).decode(errors="replace"), seconds)


def _send(pipe: IO[bytes], collections: Sequence[StoredCollection], batches: Iterable[tuple[str, Records]]) -> None:
    try:
        with pipe:
            pipe.write(_line([_settings(collection) for collection in collections]))
            for name, records in batches:
                head = {
                    "collection": name,
                    "ids": records.ids,
                    "documents": records.documents,
                    # An embedding without metadata has none, not an empty one.
                    "metadatas": [_written(metadata) if metadata else None for metadata in records.metadatas],
                    "uris": records.uris,
                    "dimension": records.vectors.shape[1],
                }
                pipe.write(_line(head))
                pipe.write(records.vectors.astype("<f4").tobytes())
    except BrokenPipeError:
        return  # the child ended early, and says why


def _line(value: object) -> bytes:
    return json.dumps(value, separators=(",", ":")).encode() + b"\n"


def _settings(collection: StoredCollection) -> dict[str, Any]:
    return {
        "name": collection.name,
        "dimension": collection.dimension,
        "metadata": collection.metadata,
        "configuration": collection.configuration,
        "schema": collection.schema,
    }


def _written(value: Any) -> Any:
    """What must be written so that Chroma stores this value: it reads some numbers of 17 digits as a neighbour."""
    if isinstance(value, dict):
        return {key: _written(part) for key, part in value.items()}
    if isinstance(value, list):
        return [_written(part) for part in value]
    if not isinstance(value, float) or not math.isfinite(value):
        return value
    near = (value, math.nextafter(value, math.inf), math.nextafter(value, -math.inf))
    return next((other for other in near if number(repr(other)) == value), value)


def _version(output: bytes, code: int, said: str, seconds: float) -> str:
    try:
        answer = json.loads(output)
    except ValueError as error:
        detail = f"the writer ended with {code} and no answer within {seconds:.0f} s: {said.strip()[-300:]}"
        raise CouldNotCheck("check.probe_failed", detail) from error
    if "error" in answer:
        detail = f"Chroma did not write the delta: {answer['error']}: {answer['message']}"
        raise CouldNotCheck("check.probe_failed", detail)
    return str(answer["chromadb"])
