"""The packaged stack: what `serverless package` makes of serverless.yml, with no credentials at all."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests import ROOT

SERVERLESS = ROOT / "node_modules" / ".bin" / "serverless"


def require_node() -> None:
    if shutil.which("node") is None:
        pytest.skip("Node.js is not installed")
    if not SERVERLESS.exists():
        pytest.skip("the packages of package-lock.json are not installed: run `make node_modules`")


@pytest.fixture(scope="session")
def template_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    require_node()
    folder = tmp_path_factory.mktemp("package")
    environment = {name: value for name, value in os.environ.items() if not name.startswith("AWS_")}
    environment |= {"SLS_TELEMETRY_DISABLED": "1", "HOME": str(folder), "AWS_EC2_METADATA_DISABLED": "true"}
    command = [str(SERVERLESS), "package", "--stage", "test", "--package", str(folder)]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder / "cloudformation-template-update-stack.json"


@pytest.fixture(scope="session")
def template(template_file: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(template_file.read_text())
    return content


@pytest.fixture(scope="session")
def resources(template: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = template["Resources"]
    return found
