"""The targets: what each figure is held against. A figure that is not here only explains another one."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from bench.cost.figures import Figure, Target

TARGETS: Mapping[str, Target] = {
    "structure-500/child": Target("cheaper", 50),
    "structure-500/warm": Target("cheaper", 10),
    "structure-500/bytes": Target("as much", 1.6),
    "structure-5000/child": Target("cheaper", 12),
    "structure-5000/bytes": Target("as much", 1.6),
    "probe/fresh-50": Target("cheaper", 3),
    "probe/fresh-500": Target("cheaper", 3),
    "gate/tagged": Target("cheaper", 50),
    "scan-moto/listing": Target("as much", 1.111),
    "scan-moto/header": Target("as much", 1.176),
    "scan-moto/structure": Target("cheaper", 20),
    "scan-rclone/listing": Target("as much", 1.111),
    "scan-rclone/header": Target("as much", 1.176),
    "scan-rclone/structure": Target("cheaper", 20),
    "memory/growth": Target("as much", 1, "MB", beyond=80),
    "import/validator": Target("below", 400, "ms"),
    "cold/warm": Target("cheaper", 2),
    "cold/image": Target("as much", 0.6),
    "load/requests": Target("as much", 8),
    "merge/old-way": Target("cheaper", 1.5),
    "merge/gate-tagged": Target("as much", 0.05),
    "merge/gate": Target("as much", 0.15),
    "refusal/time-tagged": Target("cheaper", 5),
    "refusal/time": Target("cheaper", 2),
    "refusal/bytes-tagged": Target("cheaper", 5),
    "refusal/thrown-away": Target("as much", 0),
    "merge-memory/growth": Target("below", 80, "MB"),
}
"""By the name of the figure."""


def held(name: str, what: str, ours: float, against: str, theirs: float, unit: str, spoilt: str = "") -> Figure:
    """A figure with the target that the table has for its name, if any. The arguments are those of `Figure`."""
    return Figure(name, what, ours, against, theirs, unit, TARGETS.get(name), spoilt)


def unmeasured(suite: str, figures: Iterable[Figure]) -> set[str]:
    """The targets of a suite that none of these figures is held against: a name that was mistyped, or forgotten."""
    return {name for name in TARGETS if name.partition("/")[0] == suite} - {figure.name for figure in figures}
