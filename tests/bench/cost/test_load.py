"""The suite `load` loses nothing, also when it is small, and notices when something is lost."""

from __future__ import annotations

from typing import Any

import pytest

from bench.cost import load
from devtools.stack.stack import LocalStack


@pytest.mark.slow
def test_a_small_load_comes_through_whole_and_is_counted() -> None:
    time, requests = load.figures(deltas=11, events=40)
    assert time.ours > 0 < time.theirs
    assert requests.theirs == 1 + 5
    assert requests.ours > requests.theirs
    assert "11 deltas, 40 events" in time.what


@pytest.mark.slow
def test_an_object_that_is_lost_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    validated = load._validated

    def lose(stack: LocalStack, events: Any) -> Any:
        cost = validated(stack, events)
        stack.s3.delete_object(Bucket="deltas", Key="words/delta/00001/chroma.sqlite3")
        return cost

    monkeypatch.setattr(load, "_validated", lose)
    with pytest.raises(RuntimeError, match="not the healthy are left"):
        load.figures(deltas=3, events=5)
