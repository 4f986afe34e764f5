"""A chunk: the deltas that a compaction merges together, as its caller describes them. Plain values, no I/O."""

from __future__ import annotations

import json
from typing import Annotated, Any, Self

from pydantic import AliasChoices, BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from shared.model.delta import DeltaLocation, delta_prefix_of, printable
from shared.model.errors import TargetError

MAX_CHUNK_BYTES = 64 * 1024 * 1024
"""Bytes of the largest chunks file that is read."""

_DELTAS = dict.fromkeys(("deltas", "delta_results", "chunk_deltas"))  # names that callers have for the same
_PROBLEMS_SHOWN = 5
_WORDS = {
    "extra_forbidden": "there is no such field",
    "missing": "this field is missing",
    "model_type": "an object is needed here",
}
_KINDS = {dict: "an object without chunks", str: "a text", int: "a number", float: "a number", type(None): "null"}
_LONGEST_KEY = 1024  # bytes of UTF-8, https://docs.aws.amazon.com/AmazonS3/latest/userguide/object-keys.html
_Count = Annotated[int, Field(ge=0)]


class ChunkDelta(BaseModel):
    """One delta of a chunk.

    Args:
        delta_key: Its prefix in the bucket, with or without `/` at the end: `words/delta/0f3a`.
        delta_id: Its name, the last part of the key.
        embedding_count: How many embeddings its producer says it holds.
        collection: The collection that they belong to.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    delta_key: str
    delta_id: str | None = None
    embedding_count: _Count | None = None
    collection: str | None = None

    @field_validator("delta_key")
    @classmethod
    def _names_a_delta(cls, key: str) -> str:
        parts = key.removesuffix("/").split("/")
        if "" in parts or len(key.encode("utf-8", "surrogatepass")) > _LONGEST_KEY or not _is_utf8(key):
            raise ValueError(f"{printable(key)!r} is not the prefix of a delta, such as words/delta/0f3a")
        if len(parts) == 1:
            raise ValueError(f"{printable(key)!r} is only a prefix; a delta lies below one, such as words/delta/0f3a")
        if delta_prefix_of(key) is not None:
            raise ValueError(f"{printable(key)!r} is a file of a delta; give {printable(key.rpartition('/')[0])}")
        return key.removesuffix("/")

    @model_validator(mode="after")
    def _agrees_with_itself(self) -> Self:
        name = self.delta_key.rpartition("/")[2]
        if self.delta_id is not None and self.delta_id != name:
            key, id_ = printable(self.delta_key), printable(self.delta_id)
            raise ValueError(f"{key!r} is only a prefix, or that of another delta than {id_!r}")
        return self


class Chunk(BaseModel):
    """The deltas that are merged into one intermediate, in order: later ones win.

    Args:
        batch_id: The batch that the intermediate belongs to.
        chunk_index: Its number in that batch.
        deltas: The deltas.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", populate_by_name=True)

    batch_id: str | None = None
    chunk_index: _Count | None = None
    deltas: tuple[ChunkDelta, ...] = Field(validation_alias=AliasChoices(*_DELTAS))

    @field_validator("deltas")
    @classmethod
    def _names_each_once(cls, deltas: tuple[ChunkDelta, ...]) -> tuple[ChunkDelta, ...]:
        seen: set[str] = set()
        for delta in deltas:
            if delta.delta_key in seen:
                raise ValueError(f"{printable(delta.delta_key)!r} is there more than once")
            seen.add(delta.delta_key)
        return deltas

    @classmethod
    def of(cls, value: object) -> Self:
        """A chunk from JSON's values: an object with `deltas` (or `delta_results`), or the list of deltas alone.

        Raises:
            TargetError: It is not one; the message names the first problems and where they are.
        """
        try:
            return cls.model_validate({"deltas": value} if isinstance(value, list) else value)
        except ValidationError as error:
            raise TargetError(f"not a chunk: {_told(error)}") from error

    def locations(self, bucket: str) -> list[DeltaLocation]:
        """Where the deltas lie.

        Raises:
            TargetError: The bucket's name cannot be one.
        """
        return [DeltaLocation.parse(f"s3://{bucket}/{delta.delta_key}") for delta in self.deltas]


def chunks_in(data: bytes) -> list[Any]:
    """The chunks of a chunks file, a JSON list of them, not looked at yet.

    Raises:
        TargetError: It is no such list, or larger than may be read.
    """
    return _listed(_parsed(data))


def chunk_in(data: bytes, index: int | None) -> Chunk:
    """The chunk that a file tells of: with an index, one of a chunks file; without, the file is the chunk itself.

    Raises:
        TargetError: There is none, it is not a chunk, or an index is needed to tell which.
    """
    value = _parsed(data)
    if index is not None:
        return chunk_at(_listed(value), index)
    several = value.get("chunks") if isinstance(value, dict) else value
    if isinstance(several, list) and any(_looks_like_chunk(one) for one in several):
        raise TargetError(f"this is a chunks file of {len(several)} chunks: say which of them, by its index")
    return Chunk.of(value)


def chunk_at(chunks: list[Any], index: int) -> Chunk:
    """The chunk that says it has this index, or else the one at this place in the list.

    Raises:
        TargetError: There is none, or it is not a chunk.
    """
    named = [chunk for chunk in chunks if isinstance(chunk, dict) and chunk.get("chunk_index") == index]
    if len(named) > 1:
        raise TargetError(f"{len(named)} chunks have the index {index}")
    if named:
        return Chunk.of(named[0])
    if any(isinstance(chunk, dict) and "chunk_index" in chunk for chunk in chunks) or not 0 <= index < len(chunks):
        raise TargetError(f"there is no chunk {index} among the {len(chunks)} of the chunks file")
    return Chunk.of(chunks[index])


def _parsed(data: bytes) -> Any:
    if len(data) > MAX_CHUNK_BYTES:
        raise TargetError(f"a chunks file of more than {MAX_CHUNK_BYTES} bytes is not read")
    try:
        return json.loads(data)
    except (ValueError, RecursionError) as error:
        raise TargetError(f"not JSON: {printable(str(error), 200)}") from error


def _listed(value: Any) -> list[Any]:
    chunks = value.get("chunks") if isinstance(value, dict) else value
    if not isinstance(chunks, list):
        raise TargetError(f"a chunks file holds a list of chunks, this one {_KINDS.get(type(value), 'something else')}")
    return chunks


def _looks_like_chunk(value: Any) -> bool:
    return isinstance(value, list) or (isinstance(value, dict) and not _DELTAS.keys().isdisjoint(value))


def _is_utf8(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _told(error: ValidationError) -> str:
    """The first problems of a value, each with its place."""
    problems = error.errors(include_url=False, include_input=False, include_context=False)
    told = []
    for problem in problems[:_PROBLEMS_SHOWN]:
        where = ".".join(str(part) for part in problem["loc"])
        what = _WORDS.get(problem["type"]) or problem["msg"].removeprefix("Value error, ")
        told.append(f"{where}: {what}" if where else what)
    more = len(problems) - _PROBLEMS_SHOWN
    return printable("; ".join(told), 800) + (f"; and {more} more" if more > 0 else "")
