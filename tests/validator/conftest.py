"""The handler with its requests under control."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from tests.support import faults

Through = Callable[[faults.Answer], None]


@pytest.fixture
def through(aws: str, monkeypatch: pytest.MonkeyPatch) -> Through:
    """Has the handler's requests go through an answer of `tests.support.faults` from now on."""
    answers: list[faults.Answer] = [lambda _: None]

    def latest(request: Any) -> Any:
        return answers[-1](request)

    store, messaging = faults.hooked(latest)
    monkeypatch.setattr("validator.handler.current_store", lambda: store)
    monkeypatch.setattr("validator.handler.current_messaging", lambda: messaging)
    return answers.append
