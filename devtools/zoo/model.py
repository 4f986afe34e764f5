"""What a directory must hold, by what was acknowledged. Where an operation may or may not have been done, both."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from devtools.zoo.history import DEFAULT, At, Op

_MOST_ALTERNATIVES = 64
_REFUSALS = (
    "ValueError",
    "TypeError",
    "KeyError",
    "AttributeError",
    "NotImplementedError",
    "StopIteration",
    "InvalidArgumentError",
    "InvalidCollectionException",
    "InvalidDimensionException",
    "NotFoundError",
    "UniqueConstraintError",
    "DuplicateIDError",
    "ChromaError: Unimplemented",
    'Exception: {"error":"ValueError',
    'Exception: {"detail":',
    "ConnectError",
    "ConnectionError",
)
"""How errors begin that Chroma raises before it does anything."""


@dataclass
class Row:
    """One record."""

    vector: list[float]
    document: str | None = None
    metadata: dict[str, Any] = field(default_factory=dict)
    uri: str | None = None


Rows = dict[str, Row]
State = dict[At, dict[str, Rows]]
"""By tenant and database, by collection, by id."""


@dataclass(frozen=True, slots=True)
class Journal:
    """What a session acknowledged.

    Args:
        outcomes: By the number of an operation, None where it was done, or why Chroma refused it.
        calls: By number, the operations that a tool made of one.
        end: What went wrong beside operations.
    """

    outcomes: Mapping[int, str | None]
    calls: Mapping[int, list[Op]]
    end: str | None = None


class TooUncertain(Exception):
    """So many operations were not acknowledged that anything may be there."""


class Model:
    """Every state that a directory may be in."""

    def __init__(self) -> None:
        self.alternatives: list[State] = [{DEFAULT: {}}]

    def follow(self, ops: Iterable[Op], journal: Journal) -> None:
        """Takes over what a session did.

        Args:
            ops: Its operations.
            journal: What it acknowledged.

        Raises:
            TooUncertain: There are too many alternatives.
        """
        for number, op in enumerate(ops):
            if number not in journal.outcomes:
                self._split(op)
                return  # the session ended here
            error = journal.outcomes[number]
            if error is None:
                place = {key: op[key] for key in ("at", "name") if key in op}
                for call in journal.calls.get(number, [op]):
                    for state in self.alternatives:
                        apply(state, place | call)
            elif not error.startswith(_REFUSALS):  # it failed, perhaps after it was half done
                self._split(op)

    def _split(self, op: Op) -> None:
        if op["do"] in {"read", "wait", "describe", "configure"}:
            return
        others = copy.deepcopy(self.alternatives)
        for state in others:
            apply(state, op)
        self.alternatives += [state for state in others if state not in self.alternatives]
        if len(self.alternatives) > _MOST_ALTERNATIVES:
            raise TooUncertain(f"{len(self.alternatives)} states are possible")


def apply(state: State, op: Op) -> None:
    """Does an operation to a state, as Chroma documents it."""
    do, at = op["do"], tuple(op.get("at", DEFAULT))
    if do == "database":
        state.setdefault(at, {})
    elif do == "drop_database":
        state.pop(at, None)
    elif do == "create":
        state.setdefault(at, {}).setdefault(op["name"], {})
    elif do == "drop":
        state.get(at, {}).pop(op["name"], None)
    elif do == "rename" and op["name"] in state.get(at, {}):
        state[at][op["new_name"]] = state[at].pop(op["name"])
    elif do == "fork" and op["name"] in state.get(at, {}):
        state[at][op["new_name"]] = copy.deepcopy(state[at][op["name"]])
    elif op.get("name") in state.get(at, {}):
        _change(state[at][op["name"]], op)


def _change(rows: Rows, op: Op) -> None:
    do = op["do"]
    if do == "delete":
        for id_ in op["ids"]:
            rows.pop(id_, None)
    elif do == "delete_where":
        ((key, value),) = op["where"].items()
        for id_ in [id_ for id_, row in rows.items() if _matches(row.metadata.get(key), value)]:
            del rows[id_]
    elif do in {"add", "update", "upsert"}:
        for place, id_ in enumerate(op["ids"]):
            _put(rows, do, id_, {key: op[key][place] for key in _COLUMNS if key in op})


_COLUMNS = ("embeddings", "documents", "metadatas", "uris")


def _put(rows: Rows, do: str, id_: str, given: dict[str, Any]) -> None:
    if (id_ in rows and do == "add") or (id_ not in rows and do == "update"):
        return
    row = rows.get(id_)
    if row is None:
        row = rows[id_] = Row(given["embeddings"])
    row.vector = given.get("embeddings", row.vector)
    if given.get("documents") is not None:
        row.document = given["documents"]
    if given.get("uris") is not None:
        row.uri = given["uris"]
    for key, value in (given.get("metadatas") or {}).items():
        if value is None:
            row.metadata.pop(key, None)
        else:
            row.metadata[key] = value


def _matches(stored: Any, wanted: Any) -> bool:
    if isinstance(stored, list):
        return False
    return type(stored) is type(wanted) and bool(stored == wanted)
