"""The reader: all that the newest chromadb gives back of a directory, of every tenant and database.

A program like the writer: each request is `{"folder", "answer", "seconds"}`, a directory that may be written to, and a
file for the answer, pickled: `collections`, a list of dicts, and where reading failed `stage` and `error`. `search` has
what a search for words of the documents did not find, in words.
"""

from __future__ import annotations

import pickle
import sqlite3
import sys
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

from devtools.zoo.writer import serve

_PAGE = 300
_SEARCHES = 25
_SEARCH_OFF = "FTS indexing is disabled"
_INCLUDE = ["embeddings", "documents", "metadatas", "uris"]


def _read(request: dict[str, Any]) -> None:
    answer: dict[str, Any] = {"stage": "open", "collections": [], "search": []}
    try:
        read(request["folder"], answer)
        answer["stage"] = None
    except BaseException as error:  # noqa: BLE001 -- a panic of Rust is no Exception
        answer["error"] = f"{type(error).__name__}: {error}"[:500]
    Path(request["answer"]).write_bytes(pickle.dumps(answer))


def read(folder: str, answer: dict[str, Any]) -> None:
    """Reads everything into `answer`.

    Raises:
        BaseException: Whatever Chroma raises.
    """
    import chromadb
    from chromadb.config import Settings

    settings = Settings(anonymized_telemetry=False)
    for _ in range(2):  # the first one migrates, which another connection of the same client may not see
        with suppress(chromadb.errors.NotFoundError, ValueError):  # the default database may be gone
            chromadb.PersistentClient(folder, settings=settings).close()
    for tenant, database in places(folder):
        answer["stage"] = f"open {tenant}/{database}"
        with chromadb.PersistentClient(folder, settings=settings, tenant=tenant, database=database) as client:
            names = _names(client)
            for name in names:
                answer["stage"] = f"{tenant}/{database}/{name!r}"
                answer["collections"].append(
                    {"at": (tenant, database), "name": name} | _collection(client, name, answer)
                )


def places(folder: str) -> list[tuple[str, str]]:
    """Every tenant and database, as the tables of a directory have them; Chroma has no list of tenants."""
    with closing(sqlite3.connect(Path(folder) / "chroma.sqlite3")) as database:
        rows = database.execute("SELECT tenant_id, name FROM databases ORDER BY 1, 2").fetchall()
    return [(tenant, name) for tenant, name in rows]


def _names(client: Any) -> list[str]:
    names: list[str] = []
    while page := client.list_collections(limit=50, offset=len(names)):
        names += [listed.name for listed in page]
    return names


def _collection(client: Any, name: str, answer: dict[str, Any]) -> dict[str, Any]:
    at = answer["stage"]
    collection = client.get_collection(name, embedding_function=None)
    answer["stage"] = f"count of {at}"
    count = collection.count()
    answer["stage"] = f"get of {at}"
    whole = collection.get(include=_INCLUDE)
    answer["stage"] = f"pages of {at}"
    paged: list[str] = []
    for offset in range(0, count, _PAGE):
        page = collection.get(limit=_PAGE, offset=offset, include=_INCLUDE)
        if len(page["embeddings"]) != len(page["ids"]):
            raise ValueError(f"{len(page['embeddings'])} vectors for {len(page['ids'])} ids")
        paged += page["ids"]
    if sorted(paged) != sorted(whole["ids"]) or count != len(whole["ids"]):
        raise ValueError(f"counted {count}, got {len(whole['ids'])} at once and {len(paged)} in pages")
    answer["stage"] = f"query of {at}"
    if count:
        found = collection.query(query_embeddings=[whole["embeddings"][0]], n_results=min(3, count))
        if not found["ids"][0]:
            raise ValueError("a query found nothing")
    answer["search"] += [f"{name}: {why}" for why in _unfound(collection, whole)]
    return {
        "count": count,
        "metadata": collection.metadata,
        "ids": whole["ids"],
        "vectors": [list(map(float, vector)) for vector in whole["embeddings"]] if count else [],
        "documents": whole["documents"],
        "metadatas": [_plain(metadata) for metadata in whole["metadatas"]],
        "uris": whole["uris"],
    }


def _unfound(collection: Any, whole: dict[str, Any]) -> list[str]:
    """What `$contains` does not find of words that are there; the index may be off by the collection's Schema."""
    texts = dict(zip(whole["ids"], whole["documents"] or (), strict=False))
    usual = [text[:20] for text in texts.values() if text and len(text) >= 3 and "\0" not in text]
    unfound = []
    for wanted in usual[:: max(1, len(usual) // _SEARCHES)]:
        try:
            found = collection.get(where_document={"$contains": wanted}, include=[])["ids"]
        except Exception as error:
            if _SEARCH_OFF in str(error):
                return []
            raise
        missing = {id_ for id_, text in texts.items() if text and wanted in text} - set(found)
        if missing:
            unfound.append(f"{wanted!r} is not found in {sorted(missing)[:3]}")
    return unfound


def _plain(metadata: dict[str, Any] | None) -> dict[str, Any] | None:
    if metadata is None:
        return None
    return {
        key: {"sparse": [list(value.indices), list(value.values)]} if hasattr(value, "indices") else value
        for key, value in metadata.items()
    }


if __name__ == "__main__":
    sys.exit(serve(_read))
