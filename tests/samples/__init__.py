"""Deltas as every line of Chroma wrote them, frozen."""

from __future__ import annotations

import base64
import json
import tarfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from devtools.damage.deltas import CollectionContent, DeltaContent

_HERE = Path(__file__).parent


@dataclass(frozen=True)
class Sample:
    """One frozen delta: `<version>-<name>.tar.xz`, and `.json` with what it holds."""

    name: str

    def unpack(self, folder: Path) -> Path:
        """The delta, in a new folder below this one."""
        target = folder / self.name
        with tarfile.open(_HERE / f"{self.name}.tar.xz") as archive:
            archive.extractall(target, filter="data")
        return target

    @property
    def content(self) -> DeltaContent:
        """What its writer put into it."""
        return DeltaContent(tuple(_content(collection) for collection in self._collections))

    @property
    def cosine(self) -> frozenset[str]:
        """Names of the collections whose vectors come back rounded: a cosine index keeps directions and lengths."""
        return frozenset(found["name"] for found in self._collections if found["space"] == "cosine")

    @property
    def _collections(self) -> list[dict]:
        return json.loads((_HERE / f"{self.name}.json").read_text(encoding="utf-8"))["collections"]


def _content(found: dict) -> CollectionContent:
    dimension = found["dimension"] or 0
    vectors = np.frombuffer(base64.b64decode(found["vectors"]), "<f4")
    return CollectionContent(
        found["name"],
        dimension,
        tuple(found["ids"]),
        vectors.reshape(len(found["ids"]), dimension),
        tuple(found["documents"]),
        tuple(found["metadatas"]),
    )


SAMPLES: Sequence[Sample] = [Sample(path.name.removesuffix(".tar.xz")) for path in sorted(_HERE.glob("*.tar.xz"))]
