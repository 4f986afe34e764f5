"""Random values for the rows of a history: vectors, documents, metadata, ids."""

from __future__ import annotations

import random
import struct
from collections.abc import Callable
from typing import Any

from devtools.zoo.releases import Release

WORDS = ("amber", "birch", "cedar", "delta", "fjörd", "grove", "雪", "ledge", "it's", '"quoted"', "%", "a_b", "\n", "🜁")
_ODD_TEXTS = (
    "",
    " ",
    "\0",
    "a\0b",
    "null",
    "\ud7ff",
    "e\u0301",
    "x" * 70_000,
    "\r\n\t",
    "NULL",
    "'; --",
    "\ufeffbom",
    "ab",
)
_ODD_IDS = ("id 1", "größe", "数", "a/b", "../up", "'", '"', "%s", "\n", "0", "00", "NULL", "x" * 600, "a\0b", "🜁", " ")
_WHOLE = (0, 1, -1, 2**31, -(2**31), 2**53, 2**63 - 1, -(2**63))
_REAL = (0.0, 0.5, -0.25, 1.5e300, -2.5e-300, 1e16, 3.0)
_ODD_NUMBERS = (0.0, -0.0, 1e-45, 3.4e38, -3.4e38, 1e-20, 1e20, 1.0)
_LISTS = (["p", "q", "p"], [1, -2], [0.5, 1.5], [True, False], ["雪"], [3] * 20)
_NOT_FINITE = (float("nan"), float("inf"), float("-inf"))


def single(number: float) -> float:
    """The number as float32 has it."""
    return float(struct.unpack("<f", struct.pack("<f", number))[0])


def odd_id(rng: random.Random) -> str:
    """An id of a shape that programs trip over."""
    return rng.choice(_ODD_IDS) + rng.choice(("", "", "1"))


class Values:
    """Invents values that a release takes.

    Args:
        rng: Where chance comes from.
        release: The release.
        has: Whether the history has a trait just now.
    """

    def __init__(self, rng: random.Random, release: Release, has: Callable[[str], bool]) -> None:
        self._rng = rng
        self._release = release
        self._has = has

    def vector(self, dimension: int) -> list[float]:
        """A vector of numbers that float32 holds exactly."""
        rng = self._rng
        if self._has("nonfinite") and self._release.can("nonfinite") and rng.random() < 0.3:
            vector = [single(rng.gauss(0, 1)) for _ in range(dimension)]
            vector[rng.randrange(dimension)] = rng.choice(_NOT_FINITE)
            return vector
        if self._has("odd_vectors") and rng.random() < 0.5:
            return [single(rng.choice(_ODD_NUMBERS)) for _ in range(dimension)]
        if rng.random() < 0.5:
            return [rng.randrange(-40, 40) / 4 for _ in range(dimension)]
        scale = rng.choice((1, 1, 1, 1e-6, 1e6))
        return [single(rng.gauss(0, scale)) for _ in range(dimension)]

    def documents(self, count: int) -> list[str | None]:
        """Texts; None among them is a matter of its own, which 1.5.9 may die of (see the kinds `documents`)."""
        texts: list[str | None] = [self._document() for _ in range(count)]
        if self._has("odd_documents") and self._rng.random() < 0.5:
            texts = [None if self._rng.random() < 0.3 else text for text in texts]
        return texts

    def _document(self) -> str:
        rng = self._rng
        if self._has("odd_documents") and rng.random() < 0.4:
            return rng.choice(_ODD_TEXTS)
        return " ".join(rng.choices(WORDS, k=rng.choice((1, 3, 8))))

    def metadata(self, *, changes: bool) -> dict[str, Any] | None:
        """Metadata of a row, or none.

        Args:
            changes: Whether it is for rows that may be there already, so that None takes a key away.
        """
        rng = self._rng
        if rng.random() < 0.15:
            return None
        keys = rng.sample(("a", "b", "c", "key", "é"), rng.choice((1, 2, 3)))
        return {key: self._value(changes=changes) for key in keys}

    def _value(self, *, changes: bool) -> Any:
        rng, choices = self._rng, ["text", "text", "whole", "real"]
        choices += ["truth"] * self._release.can("truth")
        choices += ["none"] * (changes and self._release.can("forgetting") and self._has("odd_metadata"))
        choices += ["list"] * 4 * (self._has("lists") and self._release.can("lists"))
        choices += ["sparse"] * 4 * (self._has("sparse") and self._release.can("sparse"))
        chosen = rng.choice(choices)
        if chosen == "sparse":
            indices = sorted(rng.sample(range(1_000), rng.choice((1, 2, 5))))
            return {"sparse": [indices, [rng.randrange(1, 20) / 4 for _ in indices]]}
        odd = self._has("odd_metadata")
        values: dict[str, Any] = {
            "text": rng.choice(_ODD_TEXTS if odd else WORDS),
            "whole": rng.choice(_WHOLE) if odd else rng.randrange(-5, 5),
            "real": rng.choice(_REAL) if odd else rng.randrange(-20, 20) / 4,
            "truth": rng.random() < 0.5,
            "list": rng.choice(_LISTS),
            "none": None,
        }
        return values[chosen]
