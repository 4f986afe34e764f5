"""Figures: what something costs beside a named alternative, and the target that its ratio is held against. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

Sense = Literal["cheaper", "as much", "below"]


@dataclass(frozen=True, slots=True)
class Target:
    """What a figure is held against.

    Args:
        sense: `cheaper`: the alternative costs at least `limit` times as much. `as much`: ours costs at most `limit`
            times as much as the alternative. `below`: ours is less than `limit`, in the unit of the figure.
        limit: That number.
        unit: Of the limit, for `below`.
        beyond: What ours may cost on top of `limit` times the alternative, for `as much`; in the unit of the figure.
    """

    sense: Sense
    limit: float
    unit: str = ""
    beyond: float = 0.0

    @property
    def text(self) -> str:
        """The target in words."""
        match self.sense:
            case "cheaper":
                return f"at least {self.limit:g} times cheaper"
            case "as much":
                more = f" and {self.beyond:g} {self.unit}" if self.beyond else ""
                times = "" if self.limit == 1 else f"{self.limit:g} times "
                return f"at most {times}as much{more}"
            case "below":
                return f"below {self.limit:g} {self.unit}"

    def is_met(self, ours: float, theirs: float) -> bool:
        """Whether these two costs meet it."""
        match self.sense:
            case "cheaper":
                return theirs >= self.limit * ours
            case "as much":
                return ours <= self.limit * theirs + self.beyond
            case "below":
                return ours < self.limit


@dataclass(frozen=True, slots=True)
class Figure:
    """One cost beside one alternative, both measured in the same run.

    Args:
        name: `suite/figure`: stable, the key of its target in `bench.cost.targets`.
        what: What was measured.
        ours: Its cost.
        against: The alternative.
        theirs: Its cost.
        unit: Of both costs.
        target: What the figure is held against; None when it only explains another one.
        spoilt: Why the target is missed whatever the costs are; empty when nothing is in its way.
    """

    name: str
    what: str
    ours: float
    against: str
    theirs: float
    unit: str
    target: Target | None = None
    spoilt: str = ""

    @property
    def ratio(self) -> float:
        """How many times cheaper ours is; below 1 where it is dearer."""
        return self.theirs / self.ours if self.ours else float("inf")

    @property
    def ratio_text(self) -> str:
        """The ratio in words; turned round where ours is dearer, or where the target is about that."""
        if self.ratio >= 1 and not (self.target and self.target.sense == "as much"):
            return f"{short(self.ratio)} x cheaper"
        return f"{short(self.ours / self.theirs)} x as much" if self.theirs else "costs something, not nothing"

    @property
    def met(self) -> bool | None:
        """Whether the target is met; None without a target."""
        return None if self.target is None else not self.spoilt and self.target.is_met(self.ours, self.theirs)

    def as_json(self) -> dict[str, Any]:
        """The figure as JSON keeps it; JSON has no infinity, so a ratio to no cost at all is null."""
        return {
            "name": self.name,
            "what": self.what,
            "ours": round(self.ours, 3),
            "against": self.against,
            "theirs": round(self.theirs, 3),
            "unit": self.unit,
            "ratio": round(self.ratio, 3) if self.ours else None,
            "target": self.target.text if self.target else None,
            "met": self.met,
            "spoilt": self.spoilt,
        }


def short(number: float) -> str:
    """A number with three digits that mean something: 0.0123, 4.56, 78.9, 1234."""
    if number == 0 or number >= 100:
        return f"{number:.0f}"
    return f"{number:.{1 if number >= 10 else 2}f}" if number >= 1 else f"{number:.3g}"


def missed(figures: Iterable[Figure]) -> list[Figure]:
    """The figures whose target is not met."""
    return [figure for figure in figures if figure.met is False]


def table(figures: Sequence[Figure]) -> str:
    """The figures as lines of text, a column each for ours, theirs, the ratio, the target and whether it is met."""
    verdicts: Mapping[bool | None, str] = {True: "met", False: "MISSED", None: ""}
    rows = [("measured", "ours", "against", "theirs", "ratio", "target", "")]
    rows += [
        (
            figure.what,
            f"{short(figure.ours)} {figure.unit}",
            figure.against,
            f"{short(figure.theirs)} {figure.unit}",
            figure.ratio_text,
            figure.target.text if figure.target else "-",
            verdicts[figure.met] + (f": {figure.spoilt}" if figure.spoilt else ""),
        )
        for figure in figures
    ]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    numbers = (1, 3, 4)  # columns that are aligned to the right
    return "\n".join(
        "  ".join(
            cell.rjust(width) if column in numbers else cell.ljust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    )
