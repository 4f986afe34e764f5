"""The verdict as tags on `chroma.sqlite3`: how a healthy delta is known again without reading it. No I/O."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime

from shared.delta import Listing
from shared.verdict import RULES, Depth, Status, Verdict

PREFIX = "deltaguard:"
"""What the names of our tags begin with."""

_STATUS, _FINGERPRINT, _DEPTH, _CHECKED_AT, _RULES = (
    f"{PREFIX}{name}" for name in ("status", "fingerprint", "depth", "checked-at", "rules")
)


def with_verdict(tags: Mapping[str, str], verdict: Verdict, now: datetime) -> dict[str, str]:
    """The tags of the database object with this verdict in them; tags of others are kept."""
    return {
        **tags,
        _STATUS: verdict.status.value,
        _FINGERPRINT: verdict.fingerprint,
        _DEPTH: verdict.depth.value,
        _CHECKED_AT: now.strftime("%Y-%m-%dT%H:%M:%SZ"),
        _RULES: RULES,
    }


def without_verdict(tags: Mapping[str, str]) -> dict[str, str]:
    """The tags of others alone."""
    return {name: value for name, value in tags.items() if not name.startswith(PREFIX)}


def healthy_depth(tags: Mapping[str, str], listing: Listing) -> Depth | None:
    """The depth at which exactly these objects were found healthy by these rules, or None.

    An overwritten, added or removed file changes the fingerprint, so a tag loses its force by itself.
    """
    known = {_STATUS: Status.HEALTHY.value, _FINGERPRINT: listing.fingerprint, _RULES: RULES}
    if any(tags.get(name) != value for name, value in known.items()) or tags.get(_DEPTH) not in set(Depth):
        return None
    return Depth(tags[_DEPTH])
