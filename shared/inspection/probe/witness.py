"""The second witness: what Chroma makes of a delta whose bytes read corrupt.

Our reading of the bytes may be wrong. A delta is moved only when Chroma, twice in fresh processes on disposable copies,
fails, dies, or gives back less or other than the bytes hold as well.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from importlib import metadata
from pathlib import Path

from shared.inspection.probe import chroma
from shared.inspection.probe.answers import Answer, Seen, pages
from shared.inspection.recovery.holdings import Holding, Holdings, read_holdings
from shared.inspection.values import shown, some
from shared.model.delta import DATABASE, Listing
from shared.model.errors import CouldNotCheck, faults_explained
from shared.model.verdict import Finding

_NO_DATABASE = 1
"""Bytes of the longest database file that SQLite takes for an empty one."""

_OPENINGS = 2


@dataclass(frozen=True, slots=True)
class Witness:
    """What Chroma says of a delta whose bytes read corrupt.

    Args:
        agrees: Whether it, too, finds that something is lost: twice it failed, died, or gave back less or other than
            the bytes hold.
        detail: What it did, in plain words with the numbers seen.
        version: The version of chromadb that was asked; empty where none had to be.
    """

    agrees: bool
    detail: str
    version: str


def second_witness(folder: Path, listing: Listing, observed: Sequence[Finding], seconds: float) -> Witness:
    """Asks Chroma about a delta whose bytes read corrupt.

    Args:
        folder: The delta's files. They are copied for each attempt and never opened themselves.
        listing: Its listing.
        observed: What the bytes were found to be.
        seconds: Time limit of one attempt.

    Raises:
        CouldNotCheck: chromadb is not installed, or what happened may be the environment's doing.
    """
    database = listing.by_name.get(DATABASE)
    if database is None or database.size <= _NO_DATABASE:
        what = "there is no database" if database is None else f"the database has {database.size} bytes"
        return Witness(True, f"{what}: Chroma creates an empty database and gives back nothing", "")
    try:
        version = metadata.version("chromadb")
    except metadata.PackageNotFoundError:
        detail = "chromadb is not installed, and nothing is moved without its word: install deltaguard[chroma]"
        raise CouldNotCheck("check.probe_failed", detail) from None
    with faults_explained("asking Chroma about what the bytes hold"), read_holdings(folder) as holdings:
        look = partial(_losses, holdings=holdings, codes={finding.code for finding in observed})
        outcome = chroma.ask_twice(folder, seconds, look, len(holdings.collections), _OPENINGS)
        if outcome.findings:
            return Witness(True, "; ".join(finding.detail for finding in outcome.findings[:3]), version)
        held = sum(len(holding.ids) for holding in holdings.collections.values())
    detail = f"Chroma {version} reports no error and gives back all that the bytes hold: {held} embeddings"
    return Witness(False, f"{detail} in {len(holdings.collections)} collections", version)


def _losses(answer: Answer, found: Path, holdings: Holdings, codes: set[str]) -> list[Finding]:
    """What Chroma gives back less or other than the bytes hold."""
    details = [*_missing(answer, found, holdings), *_unanswered(answer, codes)]
    return [Finding("chroma.content_differs", "", detail) for detail in details]


def _missing(answer: Answer, found: Path, holdings: Holdings) -> Iterator[str]:
    seen = {collection.id.lower(): collection for collection in answer.collections}
    if not holdings.is_chroma and not any(collection.ids for collection in seen.values()):
        yield "the database has none of Chroma's tables, and Chroma creates them anew and gives back nothing"
    for id_, holding in holdings.collections.items():
        name = shown(holding.name)
        if id_ not in seen:
            yield f"Chroma does not list the collection {name}; the bytes hold {len(holding.ids)} embeddings of it"
        elif seen[id_].count != seen[id_].ids:
            yield f"Chroma counts {seen[id_].count} embeddings of {name} and gives back {seen[id_].ids}"
    yield from _other_records(seen, found, holdings)


def _other_records(seen: dict[str, Seen], found: Path, holdings: Holdings) -> Iterator[str]:
    given: dict[str, set[str]] = {id_: set() for id_ in seen}
    differing: dict[tuple[str, str], list[str]] = {}
    for id_, page in pages(found) if any(collection.ids for collection in seen.values()) else ():
        given.setdefault(id_.lower(), set()).update(page.ids)
        holding = holdings.collections.get(id_.lower())
        for part, ids in holdings.others(holding, page).items() if holding else ():
            differing.setdefault((id_.lower(), part), []).extend(ids)
    for id_, holding in holdings.collections.items():
        lost = _lost(holding, given[id_], holdings) if id_ in given else set()
        if lost:
            name = shown(holding.name)
            yield f"Chroma does not give back {len(lost)} embeddings of {name} that the bytes hold: {some(lost)}"
    for (id_, part), ids in differing.items():
        name = shown(holdings.collections[id_].name)
        yield f"Chroma gives back another {part} of {len(ids)} embeddings of {name} than the bytes hold: {some({*ids})}"


def _lost(holding: Holding, given: set[str], holdings: Holdings) -> set[str]:
    """Ids that are held and not given back. What the index alone knows may have been deleted before its last flush."""
    lost = holding.ids - given
    unrowed = holding.indexed - given - holding.ids
    return lost | unrowed if 0 < len(unrowed) <= holdings.bare else lost


def _unanswered(answer: Answer, codes: set[str]) -> Iterator[str]:
    """Questions that find nothing of what is there. Where a healthy delta may do so, only if the bytes explain it."""
    for seen in answer.collections:
        for question in seen.unanswered:
            explained = {
                "query": any(code.startswith("hnsw.") for code in codes),
                "full-text": "sqlite.fulltext_unusable" in codes,
            }.get(question.partition(" ")[0], True)
            if explained:
                yield f"a {question} of {shown(seen.name)} finds nothing, or too little, of its {seen.ids} embeddings"
