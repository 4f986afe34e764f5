"""The second witness: what Chroma makes of a delta whose bytes read corrupt.

Our reading of the bytes may be wrong. A delta is moved only when Chroma, twice in fresh processes on disposable copies,
fails, dies, or gives back less or other than the bytes hold as well.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from shared.delta import DATABASE, Listing
from shared.errors import CouldNotCheck
from shared.inspection import chroma
from shared.verdict import Finding

_NO_DATABASE = 1
"""Bytes of the longest database file that SQLite takes for an empty one."""


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
        what = "There is no database" if database is None else f"The database has {database.size} bytes"
        return Witness(True, f"{what}: Chroma creates an empty database and gives back nothing", "")
    if find_spec("chromadb") is None:
        detail = "chromadb is not installed, and nothing is moved without its word: install deltaguard[chroma]"
        raise CouldNotCheck("check.probe_failed", detail)
    found, version = chroma.probe(folder, (), seconds)
    if found:
        return Witness(True, found[0].detail, version)
    return Witness(False, f"Chroma {version} gives everything back and reports no error", version)
