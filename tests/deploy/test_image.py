"""The image: what it installs is locked, agrees with what is tested, and is enough for what the functions do."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.deploy.conftest import ROOT

# Depth open, in a process that cannot import what the image leaves out.
PROGRAM = """
import sys
from pathlib import Path
from shared.check.judgement import judge_folder
from shared.model.settings import Settings
from shared.model.verdict import Depth
verdict = judge_folder(Path(sys.argv[1]), Depth.OPEN, Settings()).verdict
print(verdict.status, verdict.versions.get("chromadb"), *(finding.detail for finding in verdict.findings))
"""


def pins(lock: Path) -> dict[str, str]:
    found = re.findall(r"^([A-Za-z0-9._-]+)(?:\[[^]]*\])?==([^ ;\\]+)", lock.read_text(), re.MULTILINE)
    return dict(found)


def left_out() -> list[str]:
    names = re.search(r"^LEFT_OUT := (.+)$", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert names
    return names[1].split()


def test_every_package_of_the_image_is_the_version_that_is_tested() -> None:
    image, tested = pins(ROOT / "deploy/requirements.lock"), pins(ROOT / "requirements.lock")
    assert {"boto3", "chromadb", "numpy", "pydantic"} <= set(image)
    assert image.items() <= tested.items()
    assert not set(image) & set(left_out())


def test_every_file_of_a_package_is_known_by_its_hash() -> None:
    entries = re.split(r"\n(?=\S)", (ROOT / "deploy/requirements.lock").read_text().strip())
    assert all("--hash=sha256:" in entry for entry in entries)


def test_only_what_the_image_needs_is_sent_to_the_builder() -> None:
    ignored = (ROOT / ".dockerignore").read_text().split()
    copied = re.findall(r"^COPY (?!--from)(\S+)", (ROOT / "Dockerfile").read_text(), re.MULTILINE)
    assert ignored[0] == "*"
    assert {line[1:] for line in ignored if line.startswith("!")} == {path.rstrip("/") for path in copied}


@pytest.mark.slow
def test_chroma_reads_a_delta_without_the_packages_that_are_left_out(tmp_path: Path, flushed_delta: Path) -> None:
    for name in left_out():
        module = name.replace("-", "_")
        (tmp_path / f"{module}.py").write_text(f"raise ImportError('{name} is not in the image')\n")
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join((str(tmp_path), str(ROOT)))}
    check = "import onnxruntime"
    done = subprocess.run([sys.executable, "-c", check], env=environment, capture_output=True, text=True, check=False)
    assert "onnxruntime is not in the image" in done.stderr
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(flushed_delta)], env=environment, capture_output=True, text=True, check=True
    )
    assert re.fullmatch(r"healthy \d+\.\d+\.\d+\n", done.stdout)
