"""Scoring: the truth on a delta and a checker's word on it, and what that makes. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from bench.score.plan import Case
from shared.check.judgement import MANIFEST_PROOFS


class Outcome(StrEnum):
    """What a checker's word on a delta is worth. What is not healthy is held: it goes into no merge."""

    HELD = "held"
    MISSED = "missed"
    VALUE_HELD = "value held"
    """Only values are others, and the delta is held."""
    VALUE_MISSED = "value missed"
    """Only values are others: nothing in the delta contradicts them, so structure cannot tell."""
    PASSED = "passed"
    REFUSED = "refused by rule"
    """Chroma gives back everything, today; yet the delta was damaged, and the rules refuse what was damaged."""
    FALSE_ALARM = "false alarm"


REFUSABLE = frozenset({
    "layout.journal_present",
    "sqlite.malformed", "sqlite.not_a_database", "sqlite.header_invalid", "sqlite.truncated",
    "sqlite.table_replaced", "sqlite.unexpected_trigger",
    "hnsw.header_invalid", "hnsw.size_mismatch", "hnsw.link_invalid", "hnsw.entry_point_invalid",
    "hnsw.label_mismatch", "hnsw.pickle_unreadable", "hnsw.pickle_hostile",
    "records.vector_length", "records.metadata_missing",
    "manifest.checksum_differs", "manifest.size_differs", "manifest.file_missing", "manifest.content_differs",
})  # fmt: skip
"""Findings that stand for themselves, whatever Chroma made of the delta: a copy in mid-write, a database that SQLite
calls malformed, an index that contradicts its format, a row and a queue that contradict each other (either may be
the damaged one), a file that is not the one that was closed."""


@dataclass(frozen=True, slots=True)
class Result:
    """One judged case.

    Args:
        case: The delta.
        done: What was done to it.
        harm: What Chroma says is wrong; empty when all is well.
        sort: Of harm (see `bench.score.truth.Truth`).
        said: By checker: `status`, `codes` and `reason`.
        witness: Whether the delta would be `moved`, and `why`, by the word of a second witness; None where none was
            asked.
    """

    case: Case
    done: str
    harm: str
    sort: str
    said: Mapping[str, Mapping[str, Any]]
    witness: Mapping[str, Any] | None = None

    @classmethod
    def of(cls, line: Mapping[str, Any]) -> Result:
        """The result in a worker's line."""
        case, truth = Case(**line["case"]), line["truth"]
        return cls(case, line["done"], truth["harm"], truth["sort"], line["checkers"], line["witness"])

    @property
    def value_only(self) -> bool:
        """Whether the harm is in values alone. For damage that was planned for our own bases the catalogue says so, for
        all other the outcome, too."""
        by_outcome = self.case.source != "catalogue" and self.sort == "values" and not self.case.telling
        return self.case.value_only or by_outcome

    def held(self, checker: str) -> bool:
        """Whether this checker's word keeps the delta out of a merge."""
        return bool(self.said[checker]["status"] not in ("healthy", "raised"))

    def proven(self, checker: str) -> bool:
        """Whether a manifest proves to this checker that the bytes are others, which needs no second witness."""
        return not MANIFEST_PROOFS.isdisjoint(self.said[checker]["codes"])

    def destroyed(self, checker: str) -> bool | None:
        """Whether the delta would be quarantined by this checker's word; None where that was not asked."""
        if self.said[checker]["status"] != "corrupt":
            return False
        if self.proven(checker):
            return True
        return None if self.witness is None else bool(self.witness["moved"])

    def outcome(self, checker: str) -> Outcome:
        """What this checker's word is worth."""
        held, alarmed = self.held(checker), self.said[checker]["status"] == "corrupt"
        if self.harm and self.value_only:
            return Outcome.VALUE_HELD if held else Outcome.VALUE_MISSED
        if self.harm:
            return Outcome.HELD if held else Outcome.MISSED
        if not alarmed:
            return Outcome.PASSED
        return Outcome.REFUSED if self._may_be_refused(checker) else Outcome.FALSE_ALARM

    def _may_be_refused(self, checker: str) -> bool:
        codes = set(self.said[checker]["codes"])
        if self.case.healthy:
            return False
        if self.case.harmless:  # nothing but a manifest may object
            return bool(codes) and all(code.startswith("manifest.") for code in codes)
        if self.case.source == "catalogue" or self.case.refused:
            return True  # broken by plan: harmful to some delta, or refused
        return not codes or bool(codes & REFUSABLE)


@dataclass(slots=True)
class Tally:
    """Outcomes of some results, by checker."""

    cases: int = 0
    harmful: int = 0
    value_only: int = 0
    healthy: int = 0
    undetermined: int = 0
    raised: int = 0
    outcomes: dict[str, Counter[Outcome]] = field(default_factory=dict)
    destroyed: Counter[str] = field(default_factory=Counter)
    """Of the deltas that are harmed and called corrupt, and of which it was asked (`asked`)."""
    asked: Counter[str] = field(default_factory=Counter)
    destroyed_complete: Counter[str] = field(default_factory=Counter)
    """Chroma gives back all that was stored, and no manifest proves that the bytes are others. It must be none."""

    @property
    def harmless(self) -> int:
        """Deltas that were damaged and give everything back."""
        return self.cases - self.harmful - self.value_only - self.healthy

    def count(self, checker: str, outcome: Outcome) -> int:
        """How often this checker's word was worth that."""
        return self.outcomes[checker][outcome]

    def share(self, checker: str, *, values: bool = False) -> float:
        """Per cent that a checker holds of the harmful deltas, without or with those where only values are others."""
        total = self.harmful + (self.value_only if values else 0)
        held = self.count(checker, Outcome.HELD) + (self.count(checker, Outcome.VALUE_HELD) if values else 0)
        return 100.0 * held / total if total else 100.0


def tally(results: Iterable[Result], checkers: Iterable[str]) -> Tally:
    """The outcomes of these results, for each of these checkers."""
    names = list(checkers)
    sums = Tally(outcomes={name: Counter() for name in names})
    for result in results:
        sums.cases += 1
        sums.harmful += bool(result.harm) and not result.value_only
        sums.value_only += bool(result.harm) and result.value_only
        sums.healthy += result.case.healthy and not result.harm
        statuses = {result.said[name]["status"] for name in names}
        sums.undetermined += "undetermined" in statuses
        sums.raised += "raised" in statuses
        for name in names:
            sums.outcomes[name][result.outcome(name)] += 1
            destroyed = result.destroyed(name)
            if not result.harm:
                sums.destroyed_complete[name] += bool(destroyed) and not result.proven(name)
            elif destroyed is not None and result.said[name]["status"] == "corrupt":
                sums.asked[name] += 1
                sums.destroyed[name] += destroyed
    return sums
