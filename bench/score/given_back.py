"""The truth on a directory of the zoo: what Chroma gave back of it before it was damaged, of every tenant and database.

The zoo's own reader and comparison, and besides: queries, full-text queries and filters whose answers are those that
the directory gave before, whatever those were. An index that was made with a low `ef` does not find all, and some
questions are refused: an index is off by the collection's Schema, or a text is too long for SQLite.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from bench.score.children import Emit, forked, in_folder
from bench.score.truth import FEW, TOGETHER, WORDS, one_of_each_type
from devtools.zoo.opinion import answers_difference
from devtools.zoo.reader import read
from devtools.zoo.specimens import Specimen
from devtools.zoo.truth import Answer
from shared.inspection.chroma.contents import opened_delta
from shared.inspection.probe.program import opened

_PIECE = 12_000  # characters of a text in one pattern: SQLite takes 50,000 bytes
_SPECIAL = r"\^-]&~["
"""Letters that mean something else between the brackets of a regular expression."""
_SHORTEST = 3  # characters that the full-text table can find

Reply = list[str] | str
"""The ids that an answer names, or why there is no answer."""


@dataclass(frozen=True, slots=True)
class GivenBack:
    """What Chroma gave back.

    Args:
        answer: All that it holds.
        replies: To each of the questions about it, in their order.
        cosine: Names of collections with a cosine index: what is put into one anew, it rounds.
    """

    answer: Answer
    replies: Sequence[Reply]
    cosine: frozenset[str]

    @classmethod
    def of(cls, made: Specimen, scratch: Path) -> GivenBack:
        """What it gives back of an undamaged directory; the answer is the frozen one.

        Args:
            made: The directory. A copy of it is opened.
            scratch: A folder for the copy.

        Raises:
            RuntimeError: Chroma could not be asked.
        """
        copy = Path(shutil.copytree(made.folder, scratch / "undamaged"))
        ended = forked(in_folder(scratch, partial(_replies, copy, made.truth.answer)))
        shutil.rmtree(copy)
        if ended.trouble:
            raise RuntimeError(f"{made.history['kind']}-{made.history['seed']}: {ended.trouble}")
        with opened_delta(made.folder) as delta:
            cosine = frozenset(collection.name for collection in delta.collections if collection.cosine)
        return cls(made.truth.answer, ended.value, cosine)

    def differences(self, folder: Path, emit: Emit, *, count_first: bool) -> tuple[list[str], list[str]]:  # noqa: ARG002
        """As `bench.score.truth.Expected` says; collections are counted one by one, each before it is read."""
        found = _Announced(emit)
        read(str(folder), found)
        if _held(found) != _held(self.answer):
            return [f"{_held(found)} instead of {_held(self.answer)}"[:200]], []
        values = [f"metadata of collection {name!r} differs" for name in _otherwise_described(found, self.answer)]
        values += filter(None, [answers_difference(found, self.answer, cosine=self.cosine)])
        return self._lost(_replies(folder, self.answer, emit), searched=not values), values

    def _lost(self, replies: Sequence[Reply], *, searched: bool) -> list[str]:
        """What is no longer found; where values are others, only by queries."""
        lost = []
        asked = [question for part in self.answer["collections"] for question in _questions(part)]
        for question, before, after in zip(asked, self.replies, replies, strict=True):
            is_query = "query_embeddings" in question
            if isinstance(before, str):
                continue
            if isinstance(after, str):
                lost.append(f"{_brief(question)}: {after}")
            elif _fewer(before, after, question) if is_query else searched and set(after) != set(before):
                lost.append(f"{_brief(question)} finds {len(after)}, before the damage {len(before)}")
        return lost


def _replies(folder: Path, answer: Answer, emit: Emit) -> list[Reply]:
    replies: list[Reply] = []
    for part in answer["collections"]:
        tenant, database = part["at"]
        emit(f"open {part['name']} to ask")
        with opened(str(folder), (database, tenant)) as client:
            collection = client.get_collection(part["name"], embedding_function=None)
            for question in _questions(part):
                emit(_brief(question))
                replies.append(_reply(collection, question))
    return replies


def _reply(collection: Any, question: dict[str, Any]) -> Reply:
    try:
        if "query_embeddings" in question:
            return list(collection.query(**question, include=[])["ids"][0])
        return list(collection.get(**question, include=[])["ids"])
    except Exception as error:  # noqa: BLE001 -- whatever it is, it is compared; a panic is no Exception
        return f"{type(error).__name__}: {error}"[:150]


def _questions(part: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """What a collection is asked, as arguments of `query` or `get`."""
    if part["ids"]:
        yield {"query_embeddings": [part["vectors"][0]], "n_results": len(part["ids"])}
    for word in WORDS:
        yield {"where_document": {"$contains": word}}
    texts = [text for text in part["documents"] or () if text and len(text) >= _SHORTEST]
    whole = [{"$contains": text} for text in texts if len(text) <= _PIECE]
    for start in range(0, len(whole), TOGETHER):
        some = whole[start : start + TOGETHER]
        yield {"where_document": {"$or": some} if len(some) > 1 else some[0]}
    for text in (text for text in texts if len(text) > _PIECE):
        pieces = [text[at : at + _PIECE] for at in range(0, len(text), _PIECE)]
        yield {"where_document": {"$and": [{"$contains": piece} for piece in pieces if len(piece) >= _SHORTEST]}}
        letters = "".join("\\" + letter if letter in _SPECIAL else letter for letter in sorted(set(text)))
        yield {"where_document": {"$regex": f"^[{letters}]*$"}}  # a pattern of any length ends at a NUL
    for key, value in one_of_each_type(part["metadatas"] or ()):
        yield {"where": {key: value}}


def _fewer(before: list[str], after: list[str], query: dict[str, Any]) -> bool:
    """Whether an index that found everything has come apart. One that did not finds now more, now fewer."""
    return len(before) == query["n_results"] and len(after) < FEW * len(before)


def _brief(question: dict[str, Any]) -> str:
    if "query_embeddings" in question:
        return f"query for {question['n_results']}"
    return str(question)[:80]


class _Announced(dict[str, Any]):
    """An answer that is being given: each stage is announced."""

    def __init__(self, emit: Emit) -> None:
        super().__init__(collections=[], search=[])
        self._emit = emit

    def __setitem__(self, key: str, value: Any) -> None:
        super().__setitem__(key, value)
        if key == "stage":  # `open ...`, the collection it gets, `count of ...`, `get of ...` and so on
            what = str(value).split(" ", 1)[0]
            self._emit("list" if "/" in what else what)


def _held(answer: Answer) -> dict[tuple[str, ...], list[str]]:
    return {(*part["at"], part["name"]): sorted(part["ids"]) for part in answer["collections"]}


def _otherwise_described(found: Answer, wanted: Answer) -> list[str]:
    by_place = {(*part["at"], part["name"]): part["metadata"] for part in found["collections"]}
    return [part["name"] for part in wanted["collections"] if by_place[*part["at"], part["name"]] != part["metadata"]]
