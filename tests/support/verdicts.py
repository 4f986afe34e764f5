"""Verdicts that tests act on."""

from __future__ import annotations

from dataclasses import replace

from shared.check.judgement import Judgement, judge_stored
from shared.model.delta import DeltaLocation
from shared.model.settings import Settings
from shared.model.verdict import Depth
from shared.storage.store import Store


def confirmed(store: Store, location: DeltaLocation, settings: Settings) -> Judgement:
    """A verdict that may have consequences, as if a second witness had been asked: that has tests of its own."""
    return replace(judge_stored(store, location, Depth.STRUCTURE, settings), confirmed=True)
