"""The writer: real clients of one chromadb, told what to do by a history.

It is run by its path with the Python of an environment that holds some chromadb, and knows only the standard library
and that chromadb. The process that was started imports chromadb and forks: each session of a history runs in a
process of its own, which may be killed.

Each line on standard input is a request in JSON: `{"folder", "session", "journal", "seconds"}`; each line on
standard output an answer: first `{"ready": version}`, then `{"status", "hung"}` of each session. A session acknowledges
every operation in the journal, a file outside the folder, by one line of JSON: `{"op": i}`, with `"error"` where Chroma
refused it. What is not acknowledged may or may not have been done.
"""

from __future__ import annotations

import json
import logging
import os
import select
import signal
import sys
import threading
import time
import warnings
from collections.abc import Callable
from typing import Any

_DEFAULT = ("default_tenant", "default_database")


def main() -> int:
    """Answers requests until standard input ends."""
    warnings.simplefilter("ignore")
    return serve(_write)


def serve(work: Callable[[dict[str, Any]], None]) -> int:
    """Imports chromadb, then forks for each request, until standard input ends.

    Args:
        work: What is done with a request in a process of its own.
    """
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever a module prints is no answer
    logging.disable(logging.CRITICAL)
    import chromadb

    _say(answers, {"ready": chromadb.__version__})
    for line in sys.stdin.buffer:
        request = json.loads(line)
        child = os.fork()
        if child == 0:
            try:
                os.close(answers.fileno())
                os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
                work(request)
            finally:
                os._exit(0)  # threads of Chroma need no goodbye
        _say(answers, _await(child, request["seconds"]))
    return 0


def _say(output: Any, answer: dict[str, Any]) -> None:
    output.write(json.dumps(answer) + "\n")
    output.flush()


def _await(child: int, seconds: float) -> dict[str, Any]:
    descriptor = os.pidfd_open(child)
    try:
        hung = not select.select([descriptor], [], [], seconds)[0]
        if hung:
            os.kill(child, signal.SIGKILL)
    finally:
        os.close(descriptor)
    return {"status": os.waitpid(child, 0)[1], "hung": hung}


def _write(request: dict[str, Any]) -> None:
    journal = os.open(request["journal"], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    try:
        Session(request["folder"], request["session"], journal).run()
    except BaseException as error:  # noqa: BLE001 -- a panic of Rust is no Exception
        _acknowledge(journal, {"failed": _shown(error)})


def _acknowledge(journal: int, line: dict[str, Any]) -> None:
    os.write(journal, json.dumps(line).encode() + b"\n")


def _shown(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}"[:300]


class Session:
    """One client on one folder, from opening to its end.

    Args:
        folder: The directory of the delta, or the port of a server that has it.
        session: `ops`, and how it ends: `end` is `close`, `exit` (without closing) or `kill`; with `kill_after`, the
            process kills itself so many milliseconds after it began the operation `kill_at`.
        journal: Descriptor of the file of acknowledgements.
    """

    def __init__(self, folder: str, session: dict[str, Any], journal: int) -> None:
        self._folder = folder
        self._session = session
        self._journal = journal
        self._clients: dict[tuple[str, str], Any] = {}

    def run(self) -> None:
        """Does the operations, and ends as the session says."""
        kill_at = self._session.get("kill_at")
        for number, op in enumerate(self._session["ops"]):
            if number == kill_at:
                _kill_in(self._session["kill_after"] / 1000)
            try:
                done = self._do(op)
            except BaseException as error:  # noqa: BLE001
                _acknowledge(self._journal, {"op": number, "error": _shown(error)})
            else:
                _acknowledge(self._journal, {"op": number} | done)
        if self._session["end"] == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        if self._session["end"] == "close":
            _close(list(self._clients.values()))

    def _do(self, op: dict[str, Any]) -> dict[str, Any]:
        """Does an operation, and returns what else is to be acknowledged: the `calls` that a tool made of it."""
        do, at = op["do"], tuple(op.get("at", _DEFAULT))
        if do in {"tenant", "database", "drop_database"}:
            self._administer(do, at)
            return {}
        client = self._client(at)
        if do == "create":
            _create(client, op)
        elif do == "drop":
            client.delete_collection(op["name"])
        elif do == "tool":
            return {"calls": _use_tool(client, self._folder, op)}
        else:
            _work(client.get_collection(op["name"], embedding_function=None), do, op)
        return {}

    def _administer(self, do: str, at: tuple[str, str]) -> None:
        import chromadb

        self._client(_DEFAULT)  # the settings of the first client hold for the folder
        admin = chromadb.AdminClient(self._settings())
        if do == "tenant":
            admin.create_tenant(at[0])
        elif do == "database":
            admin.create_database(at[1], at[0])
        else:
            admin.delete_database(at[1], at[0])

    def _settings(self) -> Any:
        from chromadb.config import Settings

        if self._folder.isdigit():
            return Settings(
                anonymized_telemetry=False,
                chroma_api_impl="chromadb.api.fastapi.FastAPI",
                chroma_server_host="127.0.0.1",
                chroma_server_http_port=int(self._folder),
            )
        return Settings(anonymized_telemetry=False, is_persistent=True, persist_directory=self._folder)

    def _client(self, at: tuple[str, str]) -> Any:
        import chromadb

        if at not in self._clients:
            where = {} if at == _DEFAULT else {"tenant": at[0], "database": at[1]}
            if self._folder.isdigit():
                client = chromadb.HttpClient(host="127.0.0.1", port=self._folder, settings=self._settings(), **where)
            else:
                client = chromadb.PersistentClient(self._folder, settings=self._settings(), **where)
            self._clients[at] = client
        return self._clients[at]


def _kill_in(seconds: float) -> None:
    def kill() -> None:
        time.sleep(seconds)
        os.kill(os.getpid(), signal.SIGKILL)

    threading.Thread(target=kill, daemon=True).start()


def _close(clients: list[Any]) -> None:
    stopped = set()
    for client in clients:
        if hasattr(client, "close"):
            client.close()
            continue
        system = getattr(client, "_system", client)  # 0.4.3 has none
        if id(system) not in stopped:  # several clients of a folder share it
            system.stop()
            stopped.add(id(system))


def _create(client: Any, op: dict[str, Any]) -> None:
    more: dict[str, Any] = {}
    if op.get("metadata") is not None:
        more["metadata"] = op["metadata"]
    if op.get("configuration") is not None:
        more["configuration"] = op["configuration"]
    if op.get("schema") is not None:
        more["schema"] = _schema(op["schema"])
    client.create_collection(op["name"], embedding_function=None, **more)


def _schema(spec: dict[str, Any]) -> Any:
    """A Schema: `off` lists indexes to turn off (`[kind, key or None]`), `vector` has arguments of the vector index."""
    from chromadb import Schema
    from chromadb.api import types as api

    schema = Schema()
    for kind, key in spec.get("off", ()):
        config = getattr(api, f"{kind}Config")()
        schema.delete_index(config=config, **({} if key is None else {"key": key}))
    if "vector" in spec:
        vector = dict(spec["vector"])
        hnsw = api.HnswIndexConfig(**vector.pop("hnsw")) if "hnsw" in vector else None
        schema.create_index(config=api.VectorIndexConfig(hnsw=hnsw, **vector))
    return schema


def _work(collection: Any, do: str, op: dict[str, Any]) -> None:
    if do in {"add", "update", "upsert"}:
        rows = {key: op[key] for key in ("ids", "embeddings", "documents", "metadatas", "uris") if key in op}
        if "metadatas" in rows:
            rows["metadatas"] = [_metadata(metadata) for metadata in rows["metadatas"]]
        getattr(collection, do)(**rows)
    elif do == "delete":
        collection.delete(ids=op["ids"])
    elif do == "delete_where":
        collection.delete(where=op["where"])
    elif do == "rename":
        collection.modify(name=op["new_name"])
    elif do == "describe":
        collection.modify(metadata=op["metadata"])
    elif do == "configure":
        collection.modify(configuration=op["configuration"])
    elif do == "fork":
        collection.fork(op["new_name"])
    elif do == "read":
        collection.count()
        collection.get(limit=3, include=["embeddings", "documents", "metadatas"])
        collection.query(query_embeddings=[op["vector"]], n_results=2)
    else:
        raise ValueError(f"unknown operation {do!r}")


def _use_tool(client: Any, folder: str, op: dict[str, Any]) -> list[dict[str, Any]]:
    """Has a tool write rows to a collection.

    Returns:
        What it made of them: the calls of the collection's methods, as operations.
    """
    from chromadb.api.models.Collection import Collection

    calls: list[dict[str, Any]] = []
    kept = {name: getattr(Collection, name) for name in ("add", "update", "upsert", "delete")}

    def recording(name: str) -> Any:
        def call(collection: Any, **rows: Any) -> Any:
            given = {key: value for key, value in rows.items() if value is not None}
            calls.append(json.loads(json.dumps({"do": name, **given}, default=list)))
            return kept[name](collection, **rows)

        return call

    for name in kept:
        setattr(Collection, name, recording(name))
    try:
        {"langchain": _langchain, "llama_index": _llama_index, "haystack": _haystack}[op["tool"]](client, folder, op)
    finally:
        for name, method in kept.items():
            setattr(Collection, name, method)
    return calls


def _langchain(client: Any, _: str, op: dict[str, Any]) -> None:
    from langchain_chroma import Chroma
    from langchain_core.embeddings import Embeddings

    class Given(Embeddings):  # type: ignore[misc]
        def embed_documents(self, _: list[str]) -> list[list[float]]:
            return list(op["embeddings"])

        def embed_query(self, _: str) -> list[float]:
            return list(op["embeddings"][0])

    store = Chroma(client=client, collection_name=op["name"], embedding_function=Given())
    store.add_texts(op["documents"], metadatas=op["metadatas"], ids=op["ids"])


def _llama_index(client: Any, _: str, op: dict[str, Any]) -> None:
    from llama_index.core.schema import TextNode
    from llama_index.vector_stores.chroma import ChromaVectorStore

    collection = client.get_collection(op["name"], embedding_function=None)
    columns = zip(op["ids"], op["documents"], op["embeddings"], op["metadatas"], strict=True)
    ChromaVectorStore(chroma_collection=collection).add(
        [TextNode(id_=id_, text=text, embedding=vector, metadata=more) for id_, text, vector, more in columns]
    )


def _haystack(_: Any, folder: str, op: dict[str, Any]) -> None:
    from haystack import Document
    from haystack_integrations.document_stores.chroma import ChromaDocumentStore

    columns = zip(op["ids"], op["documents"], op["embeddings"], op["metadatas"], strict=True)
    store = ChromaDocumentStore(collection_name=op["name"], persist_path=folder)
    store.write_documents(
        [Document(id=id_, content=text, embedding=vector, meta=more) for id_, text, vector, more in columns]
    )


def _metadata(metadata: dict[str, Any] | None) -> dict[str, Any] | None:
    """Metadata with its sparse vectors made: `{"sparse": [indices, values]}`."""
    if metadata is None:
        return None
    return {key: _sparse(value) if isinstance(value, dict) else value for key, value in metadata.items()}


def _sparse(value: dict[str, Any]) -> Any:
    try:
        from chromadb.base_types import SparseVector
    except ImportError:
        from chromadb.api.types import SparseVector
    indices, values = value["sparse"]
    return SparseVector(indices=indices, values=values)


if __name__ == "__main__":
    sys.exit(main())
