"""A handler around each Lambda handler, for serverless offline, which hangs when one raises or returns nothing.

What is raised becomes the payload that Lambda answers with, so that callers see what they would see in production
(https://docs.aws.amazon.com/lambda/latest/dg/python-exceptions.html).
"""

from __future__ import annotations

import json
import os
import time
import traceback
from dataclasses import dataclass, field
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any

FUNCTION, ENVIRONMENT = "DELTAGUARD_LOCAL_FUNCTION", "DELTAGUARD_LOCAL_ENVIRONMENT"


@dataclass
class InvocationContext:
    """What Lambda tells a function about its invocation, its time included."""

    function_name: str = "deltaguard-validator"
    timeout: float = 300.0
    memory_limit_in_mb: int = 2048
    aws_request_id: str = "local"
    started: float = field(default_factory=time.monotonic)

    @property
    def invoked_function_arn(self) -> str:
        """The function's ARN in the account that moto plays."""
        return f"arn:aws:lambda:us-east-1:123456789012:function:{self.function_name}"

    def get_remaining_time_in_millis(self) -> int:
        """Milliseconds until Lambda would end the invocation."""
        return max(0, round((self.timeout - (time.monotonic() - self.started)) * 1000))


def handler(event: object, _context: object) -> Any:
    """Runs the handler that this process stands for. Never raises, and never returns anything empty."""
    try:
        function, name, timeout = _function()
        answer = function(event, InvocationContext(name, timeout))
        json.dumps(answer)
    except Exception as error:  # noqa: BLE001 - Lambda's runtime answers for every exception, too
        return {
            "errorMessage": str(error),
            "errorType": type(error).__name__,
            "stackTrace": traceback.format_tb(error.__traceback__),
        }
    return answer or {}


@cache
def _function() -> tuple[Any, str, float]:
    """The handler, the function's name and its time limit; the environment becomes the one of the template."""
    entry = json.loads(Path(os.environ[ENVIRONMENT]).read_text(encoding="utf-8"))[os.environ[FUNCTION]]
    os.environ.update(entry["environment"])
    module, _, attribute = entry["handler"].rpartition(".")
    return getattr(import_module(module), attribute), entry["name"], entry["timeout"]
