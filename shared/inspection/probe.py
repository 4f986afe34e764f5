"""The program of the probe's child process: opens a delta with Chroma, reads everything, prints one JSON line.

It is run by its path and imports nothing of Deltaguard, since whatever it imports may be killed by a hostile delta.
"""

from __future__ import annotations

import ctypes
import hashlib
import json
import math
import os
import resource
import signal
import sys
from typing import Any

_PAGE = 500
_MAX_FILE_BYTES = 16 * 1024**3
_PR_SET_PDEATHSIG = 1  # prctl(2)


def main(folder: str, parent: int) -> int:
    """Reads the delta in `folder` through Chroma. The answer is JSON on standard output, the exit code 0."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it died before the line above
        return 1
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_FSIZE, (_MAX_FILE_BYTES, _MAX_FILE_BYTES))
    answer: dict[str, Any] = {"stage": "import", "collections": []}
    try:
        _read(folder, answer)
        answer["stage"] = "done"
    except (SystemExit, KeyboardInterrupt):
        raise
    except BaseException as error:  # Rust panics arrive as PanicException, which is no Exception
        answer["error"] = type(error).__name__
        answer["message"] = str(error)[:500]
    print(json.dumps(answer), flush=True)
    os._exit(0)  # Chroma's threads need no goodbye, and a crash in one would spoil the answer


def _read(folder: str, answer: dict[str, Any]) -> None:
    import chromadb
    from chromadb.config import Settings

    answer["chromadb"] = chromadb.__version__
    answer["stage"] = "open"
    client = chromadb.PersistentClient(folder, settings=Settings(anonymized_telemetry=False))
    answer["stage"] = "list"
    for listed in client.list_collections():
        answer["stage"] = f"count of {listed.name!r}"
        collection = client.get_collection(listed.name, embedding_function=None)
        count = collection.count()
        answer["stage"] = f"get of {listed.name!r}"
        ids, vector, document = _get_all(collection, count)
        answer["stage"] = f"query of {listed.name!r}"
        if vector is not None:
            collection.query(query_embeddings=[vector], n_results=min(3, count))
        answer["stage"] = f"full-text query of {listed.name!r}"
        if document is not None:
            collection.get(where_document={"$contains": document}, limit=1, include=[])
        digest = hashlib.sha256("".join(f"{id_}\n" for id_ in sorted(ids)).encode("utf-8", "surrogateescape"))
        answer["collections"].append(
            {"name": listed.name, "count": count, "ids": len(ids), "digest": digest.hexdigest()}
        )


def _get_all(collection: Any, count: int) -> tuple[set[str], list[float] | None, str | None]:
    ids: set[str] = set()
    vector = document = None
    for offset in range(0, count, _PAGE):
        page = collection.get(limit=_PAGE, offset=offset, include=["embeddings", "documents", "metadatas"])
        ids.update(page["ids"])
        if len(page["embeddings"]) != len(page["ids"]):
            raise ValueError(f"{len(page['embeddings'])} vectors for {len(page['ids'])} ids")
        for row in page["embeddings"]:
            if not all(map(math.isfinite, row)):
                raise ValueError("a vector holds NaN or infinity")
        if vector is None and len(page["ids"]):
            vector = [float(number) for number in page["embeddings"][0]]
        if document is None:
            document = next((text[:40] for text in page["documents"] or [] if text and len(text) >= 3), None)
    return ids, vector, document


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], int(sys.argv[2])))
