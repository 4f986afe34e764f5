"""Random histories: what which release does to a directory. Plain data, the same for the same seed."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from devtools.zoo.kinds import KINDS, Kind
from devtools.zoo.releases import NEWEST, RELEASES, TOOLS, Release
from devtools.zoo.values import WORDS, Values, odd_id

History = dict[str, Any]
"""`seed`, `kind`, `steps`. A step is a `session` (one release, one client), a `server` (one release, several clients
over HTTP) or `maintain` (what users do to a closed directory, by name)."""
Op = dict[str, Any]
At = tuple[str, str]

DEFAULT: At = ("default_tenant", "default_database")


_ALONE = {"sparse", "tools", "bulk", "wide"}
"""Traits that `mixed` has not: a local client takes no sparse vectors, the others are long."""


def make_history(seed: int, versions: Sequence[str] = RELEASES, kinds: Sequence[Kind] = KINDS) -> History:
    """The history of a seed. Seeds take turns among the kinds.

    Args:
        seed: Any whole number.
        versions: The releases to choose from, oldest first.
        kinds: The kinds to take turns.
    """
    kind = kinds[seed % len(kinds)]
    rng = random.Random(f"{seed} {kind.name}")  # noqa: S311 -- repeatable, not secret
    return {"seed": seed, "kind": kind.name, "steps": _Author(rng, kind, versions).steps()}


@dataclass
class _Collection:
    """A collection as far as the author remembers it."""

    at: At
    name: str
    dimension: int
    ids: list[str] = field(default_factory=list)

    @property
    def place(self) -> dict[str, Any]:
        return {"at": list(self.at), "name": self.name}


class _Author:
    """Invents one history."""

    def __init__(self, rng: random.Random, kind: Kind, versions: Sequence[str]) -> None:
        self._rng = rng
        self._kind = kind
        self._versions = [Release(version) for version in versions if kind.takes(version)] or [Release(versions[-1])]
        self._databases: list[At] = [DEFAULT]
        self._collections: list[_Collection] = []
        self._dropped: list[str] = []
        self._fresh = 0
        self._release = self._versions[0]

    def _has(self, trait: str) -> bool:
        mixed = "mixed" in self._kind.traits and trait not in _ALONE
        return trait in self._kind.traits or (mixed and self._rng.random() < 0.25)

    def steps(self) -> list[dict[str, Any]]:
        """The steps, and last in some kinds what a user does to the closed directory."""
        steps: list[dict[str, Any]] = []
        chain = self._chain()
        for number, release in enumerate(chain):
            self._release = release
            if self._has("served"):
                steps.append(self._served())
            else:
                steps.append(self._session(number))
            if self._kind.maintenance and (number == len(chain) - 1 or self._rng.random() < 0.4):
                steps.append({"step": "maintain", "name": self._rng.choice(self._kind.maintenance)})
                if number == len(chain) - 1 and self._rng.random() < 0.4:  # and work goes on
                    steps.append(self._session(number + 1))
        return steps

    def _chain(self) -> list[Release]:
        rng, versions = self._rng, self._versions
        if "outgrown" in self._kind.traits:
            return [rng.choice(versions), Release(NEWEST if rng.random() < 0.6 else rng.choice(versions).version)]
        lengths = (1, 1, 1, 2, 2) if not self._kind.traits & {"chained", "mixed"} else (2, 2, 3, 4)
        chosen = sorted((rng.choice(versions) for _ in range(rng.choice(lengths))), key=lambda release: release.rank)
        if "back" in self._kind.traits:
            chosen.append(rng.choice(versions))
        return chosen

    def _session(self, number: int) -> dict[str, Any]:
        rng = self._rng
        ops = self._ops(number)
        version = TOOLS if "tools" in self._kind.traits else self._release.version
        session: dict[str, Any] = {"step": "session", "version": version, "ops": ops, "end": "close"}
        if self._has("killed"):
            session["end"] = "kill"
            if rng.random() < 0.7:
                session |= {"kill_at": rng.randrange(len(ops)), "kill_after": rng.choice((0, 0.3, 1, 2, 5, 12, 30, 60))}
        elif rng.random() < 0.15:
            session["end"] = "exit"
        return session

    def _served(self) -> dict[str, Any]:
        before = self._ops(0, few=True)
        writers: list[list[Op]] = [[] for _ in range(self._rng.choice((1, 2, 3)))]
        for collection in self._collections:
            for writer in writers:
                for _ in range(self._rng.randrange(1, 6)):
                    writer.append(self._write(collection, fresh=True))
        step: dict[str, Any] = {
            "step": "server",
            "version": self._release.version,
            "before": before,
            "writers": writers,
            "end": "stop",
        }
        if self._has("killed"):
            step |= {"end": "kill", "kill_after": self._rng.choice((0, 50, 200, 500, 1_000))}
        return step

    def _ops(self, number: int, *, few: bool = False) -> list[Op]:
        rng, ops = self._rng, list[Op]()
        if self._has("tenants") and self._release.can("tenants"):
            ops += self._new_databases()
        if number == 0 or rng.random() < 0.3 or not self._collections:
            ops += [self._create() for _ in range(rng.choice((1, 1, 2, 3)))]
        if "outgrown" in self._kind.traits:
            ops += self._bulk(rng.choice((5, 40)) if number == 0 else None)
        elif "outgrown-small" in self._kind.traits:
            ops += self._bulk(rng.choice((90, 130, 250)))
        elif self._has("bulk"):
            ops += self._bulk(None)
        for _ in range(rng.randrange(1, 4) if few else rng.randrange(2, 16)):
            ops.append(self._op())
        if self._has("tenants") and self._release.can("drop_database") and rng.random() < 0.4:
            ops += self._drop_database()
        return ops

    def _new_databases(self) -> list[Op]:
        rng, ops = self._rng, list[Op]()
        tenants = {tenant for tenant, _ in self._databases}
        if rng.random() < 0.6:
            tenant = self._name("tenant")
            tenants.add(tenant)
            ops.append({"do": "tenant", "at": [tenant, ""]})
        for _ in range(rng.choice((1, 2))):
            at = (rng.choice(sorted(tenants)), self._name("database"))
            self._databases.append(at)
            ops.append({"do": "database", "at": list(at)})
        return ops

    def _drop_database(self) -> list[Op]:
        at = self._rng.choice(self._databases)
        self._databases = [known for known in self._databases if known != at] or [DEFAULT]
        self._collections = [collection for collection in self._collections if collection.at != at]
        return [{"do": "drop_database", "at": list(at)}]

    def _name(self, stem: str) -> str:
        self._fresh += 1
        return f"{stem}-{self._fresh}"

    # Collections

    def _create(self) -> Op:
        rng = self._rng
        at = rng.choice(self._databases)
        names = {collection.name for collection in self._collections if collection.at == at}
        elsewhere = [c.name for c in self._collections if c.at != at and c.name not in names]
        elsewhere += [name for name in self._dropped if name not in names]
        name = rng.choice(elsewhere) if elsewhere and rng.random() < 0.6 else self._name("words")
        dimension = rng.choice((1, 2, 3, 8)) if not self._has("wide") else rng.choice((384, 1536))
        collection = _Collection(at, name, dimension)
        self._collections.append(collection)
        return {"do": "create", **collection.place, **self._settings()}

    def _settings(self) -> dict[str, Any]:
        """Where the parameters of an index stand has changed: collection metadata, configuration, Schema."""
        rng = self._rng
        hnsw: dict[str, Any] = {}
        if rng.random() < 0.7 or "spaces" in self._kind.traits:
            hnsw["space"] = rng.choice(("l2", "cosine", "ip", "cosine"))
        if "defaults" not in self._kind.traits and rng.random() < 0.75:
            least = 3 if self._release.legacy and rng.random() < 0.97 else 2  # refused, which leaves half a collection
            threshold = max(least, rng.choice((2, 3, 5, 10, 25, 100)))
            hnsw |= {"sync_threshold": threshold, "batch_size": min(threshold, rng.choice((least, 5, 25, 100)))}
        if self._has("tuned"):
            hnsw |= {"M": rng.choice((2, 5, 16, 64)), "construction_ef": rng.choice((2, 10, 200)), "search_ef": 20}
            hnsw |= {"num_threads": 1, "resize_factor": rng.choice((1.2, 2.0))}
        settings: dict[str, Any] = {}
        new_style = self._release.can("configuration") and rng.random() < 0.6
        if self._has("schema") and self._release.can("schema") and rng.random() < 0.8:
            settings["schema"] = self._schema(hnsw)
        elif new_style and hnsw:
            names = {"M": "max_neighbors", "construction_ef": "ef_construction", "search_ef": "ef_search"}
            settings["configuration"] = {"hnsw": {names.get(key, key): value for key, value in hnsw.items()}}
        elif hnsw:
            settings["metadata"] = {f"hnsw:{key}": value for key, value in hnsw.items()}
        if rng.random() < 0.3:
            settings["metadata"] = settings.get("metadata", {}) | {"about": rng.choice(WORDS), "number": 3, "real": 0.5}
        return settings

    def _schema(self, hnsw: dict[str, Any]) -> dict[str, Any]:
        rng, spec = self._rng, dict[str, Any]()
        kinds = ["StringInvertedIndex", "IntInvertedIndex", "FloatInvertedIndex", "BoolInvertedIndex"]
        off: list[list[Any]] = [[kind, rng.choice((None, "a"))] for kind in kinds if rng.random() < 0.3]
        if self._release.can("fts_off") and rng.random() < 0.5:
            off.append(["FtsIndex", "#document"])
        spec["off"] = off
        if hnsw:
            names = {"M": "max_neighbors", "construction_ef": "ef_construction", "search_ef": "ef_search"}
            index = {names.get(key, key): value for key, value in hnsw.items() if key != "space"}
            spec["vector"] = {"space": hnsw.get("space", "l2")} | ({"hnsw": index} if index else {})
        return spec

    # Operations

    def _op(self) -> Op:
        rng = self._rng
        if not self._collections:
            return self._create()
        collection = rng.choice(self._collections)
        if self._has("restructured") and rng.random() < 0.35:
            return self._restructure(collection)
        if rng.random() < 0.12:
            return {"do": "read", **collection.place, "vector": [0.5] * collection.dimension}
        return self._write(collection)

    def _restructure(self, collection: _Collection) -> Op:
        rng = self._rng
        do = rng.choice(("drop", "rename", "describe", "describe", "configure", "fork", "recreate"))
        if do == "configure" and self._release.can("configuration"):
            hnsw = rng.choice(({"ef_search": 30}, {"sync_threshold": 7, "batch_size": 3}, {"resize_factor": 1.5}))
            return {"do": do, **collection.place, "configuration": {"hnsw": hnsw}}
        if do == "drop" or (do == "recreate" and collection.ids):
            self._collections.remove(collection)
            self._dropped.append(collection.name)
            return {"do": "drop", **collection.place}
        if do == "rename":
            place, collection.name = collection.place, self._name("renamed")
            return {"do": do, **place, "new_name": collection.name}
        if do == "fork":
            return {"do": do, **collection.place, "new_name": self._name("forked")}
        metadata: dict[str, Any] = {"about": rng.choice(WORDS)}
        if rng.random() < 0.3:
            metadata |= {"hnsw:space": rng.choice(("l2", "cosine")), "hnsw:search_ef": 15}
        return {"do": "describe", **collection.place, "metadata": metadata}

    def _write(self, collection: _Collection, *, fresh: bool = False) -> Op:
        rng = self._rng
        do = rng.choice(("add", "add", "add", "upsert", "upsert", "update", "delete", "delete_where"))
        known = collection.ids
        if fresh or not known:
            do = rng.choice(("add", "upsert"))
        if do == "delete_where":
            if rng.random() < 0.7:  # rare: it takes many away
                do = "update"
            else:
                return {"do": do, **collection.place, "where": {"a": rng.choice(("amber", "birch"))}}
        some = rng.sample(known, min(len(known), rng.randrange(1, 9)))
        if do == "delete":
            if rng.random() < 0.2:
                some = list(known)
            if not (self._has("readded") and rng.random() < 0.7):
                collection.ids = [id_ for id_ in known if id_ not in some]
            return {"do": do, **collection.place, "ids": some}
        ids = some if do == "update" else self._ids(collection, fresh=fresh)
        if do == "upsert" and not fresh:
            ids = list(dict.fromkeys([*ids, *some]))
        if do != "update" and not fresh and self._has("tools"):
            return self._by_tool(collection, ids)
        if do != "update":
            collection.ids = list(dict.fromkeys([*known, *ids]))
        return self._rows(do, collection, ids)

    def _by_tool(self, collection: _Collection, ids: list[str]) -> Op:
        """Rows as LangChain, LlamaIndex and Haystack write them: each with a text, a vector and metadata."""
        values, collection.ids = self._values(), list(dict.fromkeys([*collection.ids, *ids]))
        return {
            "do": "tool",
            "tool": self._rng.choice(("langchain", "llama_index", "haystack")),
            **collection.place,
            "ids": ids,
            "documents": values.documents(len(ids)),
            "embeddings": [values.vector(collection.dimension) for _ in ids],
            "metadatas": [values.metadata(changes=False) or {} for _ in ids],
        }

    def _ids(self, collection: _Collection, *, fresh: bool) -> list[str]:
        rng, ids = self._rng, list[str]()
        for _ in range(rng.choice((1, 2, 3, 5, 8, 13, 30))):
            if not fresh and self._has("odd_ids"):
                ids.append(odd_id(rng))
            elif not fresh and rng.random() < 0.2:
                ids.append(f"id-{rng.randrange(40)}")
            else:
                ids.append(self._name("id"))
        if self._has("odd_ids") and self._release.can("empty_id") and rng.random() < 0.1:
            ids.append("")
        if self._has("readded") and collection.ids and rng.random() < 0.6:
            ids += rng.sample(collection.ids, min(3, len(collection.ids)))
        return list(dict.fromkeys(ids))

    def _bulk(self, count: int | None) -> list[Op]:
        """Many records, more than the default threshold if it is not said how many."""
        rng = self._rng
        collection = rng.choice(self._collections)
        left, ops = count or rng.choice((990, 1_000, 1_001, 1_100, 2_050)), list[Op]()
        while left > 0:
            ids = [self._name("many") for _ in range(min(left, 500))]
            left -= len(ids)
            collection.ids += ids
            vectors = [[rng.randrange(-40, 40) / 4 for _ in range(collection.dimension)] for _ in ids]
            ops.append({"do": "add", **collection.place, "ids": ids, "embeddings": vectors})
        return ops

    def _rows(self, do: str, collection: _Collection, ids: list[str]) -> Op:
        rng = self._rng
        op: Op = {"do": do, **collection.place, "ids": ids}
        values = self._values()
        documents = values.documents(len(ids))
        if rng.random() < 0.75 and any(text is not None for text in documents):
            op["documents"] = documents
        if rng.random() < 0.75:
            metadatas = [values.metadata(changes=do != "add") for _ in ids]
            if any(metadata is not None for metadata in metadatas):
                op["metadatas"] = metadatas
        if self._has("uris") and self._release.can("uris"):
            uris = [rng.choice(("u:1", "s3://b/k", "", None)) for _ in ids]
            if any(uri is not None for uri in uris):
                op["uris"] = uris
        # A document without a vector would be embedded, by a model that nobody has here.
        if do != "update" or "documents" in op or rng.random() < 0.5 or len(op) == 4:
            op["embeddings"] = [values.vector(collection.dimension) for _ in ids]
        return op

    def _values(self) -> Values:
        return Values(self._rng, self._release, self._has)
