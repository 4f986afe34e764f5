"""What to do about a delta that is not healthy, from its verdict alone."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from shared.model.verdict import Status, Verdict


class Action(StrEnum):
    """What somebody has to do before the delta can be merged."""

    QUARANTINE = "quarantine"
    """Take it away, then process its batch again."""
    RESUBMIT = "resubmit"
    """Process its batch again; it is not in its place any more."""
    WAIT = "wait"
    """Nothing yet: it is still arriving."""
    CHECK_AGAIN = "check again"
    """Mend what stopped the check, then ask again."""
    COMPARE = "compare"
    """Ask its producer who is right, the chunk or the delta."""


@dataclass(frozen=True, slots=True)
class Advice:
    """What to do about one delta: the kind of it for programs, and a sentence for people."""

    action: Action
    text: str

    def as_json(self) -> dict[str, str]:
        """The advice as programs read it."""
        return {"action": self.action.value, "text": self.text}


_AGAIN = {
    "verdict.deltas_below": "scan what lies below, and remove by hand what does not belong on this level",
    "verdict.disagreement": "look at both findings, and report this to Deltaguard: one of the two is wrong",
    "check.in_use": "close the client that has it open, then check again",
    "check.access_denied": "grant this role s3:ListBucket and s3:GetObject here, then check again",
    "check.throttled": "the store asked to slow down: check again in a minute, with fewer --jobs",
    "check.size_cap": "raise DELTAGUARD_MAX_DELTA_BYTES if it is meant to be so large, then check again",
    "check.disk_full": "free scratch space, then check again",
    "check.memory": "give the process more memory, then check again",
    "check.descriptors": "raise the limit of open files (ulimit -n), then check again",
    "sqlite.schema_newer": "upgrade Deltaguard, then check again",
}


def advice_on(verdict: Verdict) -> Advice | None:
    """The advice on a verdict; None on a healthy one, about which there is nothing to do."""
    codes = [finding.code for finding in verdict.findings]
    match verdict.status:
        case Status.HEALTHY:
            return None
        case Status.CORRUPT if "quarantine.held" in codes:
            action, text = Action.RESUBMIT, "it lies in quarantine: process its batch again"
        case Status.CORRUPT if "layout.database_missing" in codes and not verdict.size:
            action, text = Action.RESUBMIT, "nothing lies there: look at the key, or process its batch again"
        case Status.CORRUPT:
            action, text = Action.QUARANTINE, "take it away with --quarantine, then process its batch again"
        case Status.INCOMPLETE:
            action, text = Action.WAIT, "it is still arriving: wait until it has settled, then check again"
        case Status.UNDETERMINED if "chunk.content_differs" in codes:
            action, text = Action.COMPARE, "ask its producer: correct the chunk, or process its batch again"
        case Status.UNDETERMINED:
            known = (_AGAIN[code] for code in codes if code in _AGAIN)
            action, text = Action.CHECK_AGAIN, next(known, "nothing was touched: check again")
    return Advice(action, text)
