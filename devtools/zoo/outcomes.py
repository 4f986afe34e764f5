"""Outcomes: a directory, what Chroma and Deltaguard say of it, and whether they disagree."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tempfile
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from devtools.zoo.history import make_history
from devtools.zoo.kinds import KINDS
from devtools.zoo.opinion import Opinion, opinion
from devtools.zoo.runner import Writers
from devtools.zoo.specimens import Specimen, specimen
from devtools.zoo.truth import Reader
from shared.model.verdict import Depth, Status

_UNSETTLED = ("layout.journal_unsettled",)


@dataclass(frozen=True, slots=True)
class Outcome:
    """One directory, and what is said of it.

    Args:
        specimen: The directory.
        opinion: What Deltaguard says; None where there is no truth to hold it against. Where a killed writer left its
            journal, that is of the directory after Chroma opened it, as the finding says to do.
        unsettled: Whether there was such a journal, so that the directory as it is was `undetermined`.
    """

    specimen: Specimen
    opinion: Opinion | None
    unsettled: bool = False

    @property
    def disagreement(self) -> str:
        """In which way Deltaguard says otherwise, empty where it does not.

        `corrupt` and `not healthy`, though everything comes back; `search`, that it is not healthy where only
        `$contains` does not work; `content`, it reads something else; `missed`, Chroma fails and depth `structure` does
        not see it. Of a directory with a hot journal it need not say more than that a client settles it: to look inside
        would mean to write to it.
        """
        said, truth = self.opinion, self.specimen.truth.outcome
        if said is None:
            return ""
        if truth == "complete" and Status.CORRUPT in said.statuses.values():
            return "corrupt"
        if truth == "complete" and not said.healthy and said.codes != _UNSETTLED:
            return "not healthy"
        if truth == "unsearchable" and not said.healthy:
            return "search"
        if said.healthy and truth != "fails" and said.content:
            return "content"
        return "missed" if truth == "fails" and said.statuses.get("structure") == Status.HEALTHY else ""

    @property
    def why(self) -> str:
        """What it says that is wrong, briefly."""
        if self.disagreement == "missed":
            return self.specimen.truth.why
        said = self.opinion
        return "" if said is None else (" ".join(said.codes) or said.content)


_crew: tuple[Writers, Reader] | None = None


def examine(seed: int, versions: Sequence[str], kinds: Sequence[str]) -> Outcome:
    """The outcome of a seed. Called in a process that keeps its writers for the next one."""
    global _crew  # noqa: PLW0603 -- one for each worker
    _crew = _crew or (Writers(), Reader())
    history = make_history(seed, versions, [kind for kind in KINDS if kind.name in kinds])
    return judged(specimen(history, *_crew))


def judged(made: Specimen, depths: Sequence[Depth] = tuple(Depth)) -> Outcome:
    """A directory with Deltaguard's opinion of it at some depths."""
    if made.truth.outcome == "unknown":
        return Outcome(made, None)
    answer = made.truth.answer if made.truth.outcome != "fails" else None
    said = opinion(made.folder, answer, depths)
    if not said.unsettled:
        return Outcome(made, said)
    with tempfile.TemporaryDirectory(prefix="zoo-") as scratch:
        return Outcome(made, opinion(settled(made.folder, Path(scratch) / "delta"), answer, depths), unsettled=True)


def settled(folder: Path, copy: Path) -> Path:
    """A copy of a directory that Chroma opened and closed."""
    shutil.copytree(folder, copy)
    subprocess.run([sys.executable, "-c", _OPENS, str(copy)], check=True)  # noqa: S603 -- ours
    return copy


_OPENS = """
import sys, chromadb
from chromadb.config import Settings
chromadb.PersistentClient(sys.argv[1], settings=Settings(anonymized_telemetry=False)).close()
"""


def label(outcome: Outcome) -> str:
    """Its kind, seed, and releases in their order."""
    history = outcome.specimen.history
    steps = [step.get("version") or step["name"] for step in history["steps"]]
    return f"{history['kind']}-{history['seed']} ({', '.join(steps)})"


def keep(outcome: Outcome, output: Path) -> Path:
    """Copies a directory that Deltaguard is wrong about, with its recipe and both sides' words."""
    history = outcome.specimen.history
    target = output / f"{history['kind']}-{history['seed']}"
    shutil.rmtree(target, ignore_errors=True)
    shutil.copytree(outcome.specimen.folder, target / "delta")
    (target / "history.json").write_text(json.dumps(history))
    said = outcome.opinion
    lines = [
        label(outcome),
        f"disagreement: {outcome.disagreement}",
        f"Chroma: {outcome.specimen.truth.outcome} {outcome.specimen.truth.why}",
        f"Deltaguard: {said.statuses if said else ''}",
        *(said.findings if said else ()),
        f"content: {said.content if said else ''}",
        "refused on the way:",
        *outcome.specimen.refused,
    ]
    (target / "README.txt").write_text("\n".join(lines) + "\n")
    return target


def table(outcomes: Iterable[Outcome]) -> list[str]:
    """The outcomes by kind, and the disagreements by what is said."""
    kinds: dict[str, Counter[str]] = defaultdict(Counter)
    wrong: Counter[str] = Counter()
    for outcome in outcomes:
        kinds[outcome.specimen.history["kind"]][outcome.specimen.truth.outcome] += 1
        kinds[outcome.specimen.history["kind"]]["unsettled"] += outcome.unsettled
        if outcome.disagreement:
            kinds[outcome.specimen.history["kind"]][f"! {outcome.disagreement}"] += 1
            wrong[f"{outcome.disagreement}: {outcome.why[:100]}"] += 1
    columns = (
        "complete",
        "unsearchable",
        "differs",
        "fails",
        "unknown",
        "unsettled",
        "! corrupt",
        "! not healthy",
        "! search",
        "! content",
        "! missed",
    )
    rows = [(kind, *(str(counts[column] or "") for column in columns)) for kind, counts in sorted(kinds.items())]
    total: Counter[str] = sum(kinds.values(), Counter())
    rows.append(("all", *(str(total[column] or "") for column in columns)))
    lines = [
        "".join(f"{cell:<32}" if not i else f"{cell:>14}" for i, cell in enumerate(row))
        for row in (("kind", *columns), *rows)
    ]
    return [*lines, "", *(f"{count:>5}  {what}" for what, count in wrong.most_common())]
