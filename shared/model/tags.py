"""The verdict as tags on `chroma.sqlite3`: how a healthy delta is known again without reading it. No I/O.

An object takes ten tags (https://docs.aws.amazon.com/AmazonS3/latest/userguide/object-tagging.html), and those of
others are kept. Where our five do not fit, the time is left out; where not even four do, depth and rules stand behind
the fingerprint, in one tag with it. With nine or ten tags of others a verdict cannot be kept as tags.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime

from shared.model.delta import Listing
from shared.model.verdict import RULES, Depth, Status, Verdict

PREFIX = "deltaguard:"
"""What the names of our tags begin with."""

MOST_TAGS = 10
"""Of one object."""

_STATUS, _FINGERPRINT, _DEPTH, _CHECKED_AT, _RULES = (
    f"{PREFIX}{name}" for name in ("status", "fingerprint", "depth", "checked-at", "rules")
)


def with_verdict(tags: Mapping[str, str], verdict: Verdict, now: datetime) -> dict[str, str] | None:
    """The tags of the database object with this verdict in them; tags of others are kept.

    Returns:
        None where there is no room for ours.
    """
    others = without_verdict(tags)
    four = {
        _STATUS: verdict.status.value,
        _FINGERPRINT: verdict.fingerprint,
        _DEPTH: verdict.depth.value,
        _RULES: RULES,
    }
    five = {**four, _CHECKED_AT: now.strftime("%Y-%m-%dT%H:%M:%SZ")}
    two = {_STATUS: verdict.status.value, _FINGERPRINT: _packed(verdict.fingerprint, verdict.depth)}
    fitting = (ours for ours in (five, four, two) if len(others) + len(ours) <= MOST_TAGS)
    ours = next(fitting, None)
    return None if ours is None else {**others, **ours}


def without_verdict(tags: Mapping[str, str]) -> dict[str, str]:
    """The tags of others alone."""
    return {name: value for name, value in tags.items() if not name.startswith(PREFIX)}


def verdict_fingerprint(tags: Mapping[str, str]) -> str | None:
    """The fingerprint of the objects that a verdict among these tags is about; None where there is no such tag."""
    value = tags.get(_FINGERPRINT)
    return None if value is None else value.partition("/")[0]


def has_verdict(tags: Mapping[str, str]) -> bool:
    """Whether a tag of ours is among these."""
    return any(name.startswith(PREFIX) for name in tags)


def healthy_depth(tags: Mapping[str, str], listing: Listing) -> Depth | None:
    """The depth at which exactly these objects were found healthy by these rules, or None.

    An overwritten, added or removed file changes the fingerprint, so a tag loses its force by itself.
    """
    if tags.get(_STATUS) != Status.HEALTHY.value:
        return None
    for depth in Depth:
        apart = {_FINGERPRINT: listing.fingerprint, _RULES: RULES, _DEPTH: depth.value}
        if all(tags.get(name) == value for name, value in apart.items()):
            return depth
        if tags.get(_FINGERPRINT) == _packed(listing.fingerprint, depth):
            return depth
    return None


def _packed(fingerprint: str, depth: Depth) -> str:
    return f"{fingerprint}/{depth.value}/{RULES}"
