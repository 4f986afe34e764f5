"""The verdict on a delta: its status, what was found, and how far the check went. Plain values, no I/O."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from typing import Any, Self

from shared.model.findings import CATALOGUE, Weight

RULES = "2"
"""Version of the rules. It changes when an unchanged delta could get another verdict, and makes older tags void."""


_SHOWN_OF_A_CODE = 20


class Status(StrEnum):
    """What is known about a delta. Only `CORRUPT` has consequences for stored objects."""

    HEALTHY = "healthy"
    CORRUPT = "corrupt"
    INCOMPLETE = "incomplete"
    UNDETERMINED = "undetermined"


class Depth(StrEnum):
    """How far a check goes, each including the ones before it."""

    LISTING = "listing"
    HEADER = "header"
    STRUCTURE = "structure"
    OPEN = "open"

    def includes(self, other: Depth) -> bool:
        """Whether a check of this depth answers everything that one of depth `other` answers."""
        order = list(Depth)
        return order.index(self) >= order.index(other)


@dataclass(frozen=True, slots=True)
class Finding:
    """One observed defect.

    Args:
        code: A key of `shared.model.findings.CATALOGUE`.
        file: Name inside the delta, `""` when the finding is about the delta as a whole.
        detail: Plain words with the numbers seen. Never holds a document, a vector or a credential.

    Raises:
        KeyError: The code is not in the catalogue.
    """

    code: str
    file: str
    detail: str

    def __post_init__(self) -> None:
        CATALOGUE[self.code]

    @property
    def weight(self) -> Weight:
        """What this finding does to the verdict."""
        return CATALOGUE[self.code].weight

    def as_json(self) -> dict[str, str]:
        """The finding as the ndjson contract has it."""
        return {"code": self.code, "file": self.file, "detail": self.detail}


@dataclass(frozen=True, slots=True)
class CollectionCount:
    """What one collection of a delta holds. `dimension` is None for a collection that never held a vector."""

    name: str
    dimension: int | None
    count: int

    def as_json(self) -> dict[str, Any]:
        """The collection as the ndjson contract has it."""
        return {"name": self.name, "dimension": self.dimension, "count": self.count}


def status_of(findings: Iterable[Finding]) -> Status:
    """The status that these findings lead to: a doubt outweighs a proof, a proof the rest, a note changes nothing."""
    weights = {finding.weight for finding in findings}
    if Weight.DOUBT in weights:
        return Status.UNDETERMINED
    if weights & {Weight.PROOF, Weight.PENDING}:
        return Status.CORRUPT
    if Weight.UNCHECKED in weights:
        return Status.UNDETERMINED
    if Weight.AWAITED in weights:
        return Status.INCOMPLETE
    return Status.HEALTHY


@dataclass(frozen=True, slots=True)
class Verdict:
    """The outcome of one check of one delta.

    Args:
        delta: What was checked: `s3://bucket/prefix/` or a folder.
        depth: The depth that was asked for.
        observed: Everything found, notes included, in the order found.
        collections: What was counted; empty above depth `structure`.
        size: Bytes of all files together.
        fingerprint: Of the listing that was judged.
        duration_ms: Wall time of the check in milliseconds.
        versions: Versions that bear on the outcome: `rules`, `sqlite`, and `chromadb` when it was asked.
        uploaded: When its newest file was last modified, in UTC; None where that is not known.
    """

    delta: str
    depth: Depth
    observed: tuple[Finding, ...] = ()
    collections: tuple[CollectionCount, ...] = ()
    size: int = 0
    fingerprint: str = ""
    duration_ms: float = 0.0
    versions: dict[str, str] = field(default_factory=dict)
    uploaded: datetime | None = None

    @property
    def status(self) -> Status:
        """The status that the findings lead to."""
        return status_of(self.observed)

    @property
    def findings(self) -> tuple[Finding, ...]:
        """What decided the status (empty when healthy)."""
        return tuple(f for f in self.observed if f.weight is not Weight.NOTE)

    @property
    def notes(self) -> tuple[Finding, ...]:
        """What is worth saying and changes nothing."""
        return tuple(f for f in self.observed if f.weight is Weight.NOTE)

    @property
    def reason(self) -> str:
        """The decisive findings in one line: `code: detail`, joined by `; `."""
        return "; ".join(f"{f.code}: {f.detail}" for f in self.findings)

    def as_json(self) -> dict[str, Any]:
        """One line of the ndjson contract, with `notes`, `versions`, `uploaded_at` besides what it promises."""
        return {
            "delta": self.delta,
            "status": self.status.value,
            "findings": [finding.as_json() for finding in self.findings],
            "notes": [finding.as_json() for finding in self.notes],
            "depth": self.depth.value,
            "collections": [collection.as_json() for collection in self.collections],
            "bytes": self.size,
            "fingerprint": self.fingerprint,
            "duration_ms": round(self.duration_ms, 3),
            "versions": self.versions,
            "uploaded_at": self.uploaded and f"{self.uploaded:%Y-%m-%dT%H:%M:%SZ}",
        }

    @classmethod
    def from_json(cls, line: Mapping[str, Any]) -> Self:
        """The verdict that `as_json` gave.

        Raises:
            KeyError: Something is missing, or a code is not in the catalogue.
            TypeError: A finding or a collection has another shape.
        """
        uploaded = line.get("uploaded_at")
        return cls(
            line["delta"],
            Depth(line["depth"]),
            tuple(Finding(**finding) for finding in (*line["findings"], *line["notes"])),
            tuple(CollectionCount(**collection) for collection in line["collections"]),
            line["bytes"],
            line["fingerprint"],
            line["duration_ms"],
            line["versions"],
            uploaded and datetime.fromisoformat(uploaded),
        )


def abridged(findings: list[Finding]) -> list[Finding]:
    """The first findings of each code, and how many more there are: a hostile delta can have millions."""
    counts: Counter[str] = Counter()
    kept = []
    for finding in findings:
        counts[finding.code] += 1
        if counts[finding.code] <= _SHOWN_OF_A_CODE:
            kept.append(finding)
    more = ((code, count - _SHOWN_OF_A_CODE) for code, count in counts.items())
    return kept + [Finding(code, "", f"and {count} more of these") for code, count in more if count > 0]
