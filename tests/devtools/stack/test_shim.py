"""The shim around a handler: whatever the handler does, serverless offline gets the answer that Lambda would give."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from devtools.stack import shim


@pytest.fixture(autouse=True)
def function(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    entry = {
        "handler": f"{__name__}.asked",
        "name": "deltaguard-local-one",
        "timeout": 60,
        "environment": {"SEEN": "yes"},
    }
    (tmp_path / "environment.json").write_text(json.dumps({"one": entry}))
    monkeypatch.setenv(shim.ENVIRONMENT, str(tmp_path / "environment.json"))
    monkeypatch.setenv(shim.FUNCTION, "one")
    monkeypatch.setenv("SEEN", "not yet")
    shim._function.cache_clear()
    yield
    shim._function.cache_clear()


def asked(event: dict[str, Any], context: Any) -> Any:
    """The handler under the shim."""
    import os

    match event["do"]:
        case "raise":
            raise LookupError("no such delta")
        case "nothing":
            return None
        case "what JSON has not":
            return {1, 2}
        case "context":
            return [context.function_name, context.get_remaining_time_in_millis(), os.environ["SEEN"]]
    return event["do"]


def test_an_answer_is_handed_on() -> None:
    assert shim.handler({"do": "this"}, None) == "this"


def test_an_exception_becomes_the_payload_that_lambda_answers_with() -> None:
    answer = shim.handler({"do": "raise"}, None)
    assert (answer["errorType"], answer["errorMessage"]) == ("LookupError", "no such delta")
    assert "asked" in "".join(answer["stackTrace"])


def test_nothing_is_answered_with_something_empty_that_does_not_hang() -> None:
    assert shim.handler({"do": "nothing"}, None) == {}


def test_what_is_no_json_is_an_error_as_in_lambda() -> None:
    assert shim.handler({"do": "what JSON has not"}, None)["errorType"] == "TypeError"


def test_the_handler_sees_its_name_its_time_and_the_environment_of_the_template() -> None:
    name, milliseconds, seen = shim.handler({"do": "context"}, None)
    assert (name, seen) == ("deltaguard-local-one", "yes")
    assert 0 < milliseconds <= 60_000
