"""What a probe has to say: its answer, and the embeddings that Chroma gave back.

The file `records` is a row of pages, each a line of JSON, `{"collection", "ids", "documents", "metadatas", "uris",
"width"}`, and after it one vector of `width` float32, little-endian, for each id. Nothing of it is believed unseen: a
hostile delta may have taken the probe over.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from shared.inspection.chroma.contents import Records
from shared.model.errors import CouldNotCheck, faults_explained

_MOST_PAGE = 512 * 1024**2


@dataclass(frozen=True, slots=True)
class Seen:
    """One collection as Chroma shows it.

    Args:
        id: Its UUID.
        name: Its name.
        database: Name of its database.
        tenant: Name of its tenant.
        count: What `count()` says.
        ids: How many embeddings `get()` gives back.
        digest: sha256 (hex) over the sorted ids, as `records.Contents.digest` has it.
        unanswered: Questions that found nothing, or far too little, of what is there.
    """

    id: str
    name: str
    database: str
    tenant: str
    count: int
    ids: int
    digest: str
    unanswered: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Answer:
    """What a probe answered.

    Args:
        chromadb: Version of chromadb, empty where it could not be imported.
        stage: How far it came.
        error: Name of the exception that ended it; None when it came to its end.
        message: What that exception says.
        collections: The collections that it saw; with an error, those before it.
    """

    chromadb: str
    stage: str
    error: str | None
    message: str
    collections: tuple[Seen, ...]


def parse_answer(text: bytes) -> Answer:
    """The answer of a probe.

    Raises:
        ValueError: It is none.
    """
    try:
        said = json.loads(text)
        error = said.get("error")
        # The collection at which an error came up was not seen to its end.
        listed = [seen for seen in said["collections"] if error is None or "digest" in seen]
        seen = tuple(Seen(**{**found, "unanswered": tuple(found.get("unanswered", ()))}) for found in listed)
        return Answer(said.get("chromadb", ""), said["stage"], error, said.get("message", ""), seen)
    except (KeyError, TypeError, AttributeError, RecursionError) as problem:
        raise ValueError(f"not the answer of a probe: {problem!r}") from problem


def pages(path: Path) -> Iterator[tuple[str, Records]]:
    """What Chroma gave back, a page at a time: the id of the collection and some of its embeddings.

    Raises:
        CouldNotCheck: The file cannot be read, or holds something else.
    """
    with faults_explained("reading what a probe found"), path.open("rb") as file:
        while line := file.readline(_MOST_PAGE):
            try:
                head = json.loads(line)
                count, width = len(head["ids"]), head["width"]
                if not 0 <= 4 * count * width <= _MOST_PAGE:
                    raise ValueError(f"a page of {count} vectors of {width}")
                vectors = np.frombuffer(file.read(4 * count * width), "<f4").reshape(count, width)
                columns = [_column(head, key, count) for key in ("documents", "metadatas", "uris")]
                yield head["collection"], Records(head["ids"], vectors, *columns)
            except (ValueError, KeyError, TypeError, RecursionError) as error:
                raise CouldNotCheck("check.probe_failed", f"what a probe found is not readable: {error}") from error


def _column(head: dict[str, Any], key: str, count: int) -> list[Any]:
    values = head[key]
    if values is None:
        return [None] * count
    if len(values) != count:
        raise ValueError(f"{len(values)} {key} for {count} ids")
    return list(values)
