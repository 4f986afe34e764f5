"""`python -m devtools.zoo.lock`: resolves the requirements of every release anew, by hash. Needs uv.

What most releases share stands once, in `requirements/common.txt`; a release's own file has the rest. What they ask for
to embed text, or to talk to other services, is left out: no history needs it.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
from collections import defaultdict
from pathlib import Path

from devtools.zoo.releases import NEWEST, RELEASES, REQUIREMENTS, TOOLS, Release

_LEFT_OUT = (
    "coloredlogs",
    "flatbuffers",
    "google-auth",
    "hf-xet",
    "huggingface-hub",
    "humanfriendly",
    "kubernetes",
    "mpmath",
    "oauthlib",
    "onnxruntime",
    "pulsar-client",
    "requests-oauthlib",
    "sympy",
    "tokenizers",
    "uvloop",
    "websocket-client",
)
_OF_LEGACY = ("fastapi<0.116", "numpy<2", "setuptools<80")  # a later FastAPI refuses what their own clients send
_TOOLS = ("langchain-chroma", "llama-index-vector-stores-chroma", "chroma-haystack")
_OPTIONS = ("--python-version", "3.11", "--generate-hashes", "--no-header", "--no-annotate", "--no-emit-index-url")


def main() -> int:
    """Writes the files."""
    resolved = {version: _resolved(*_wanted(version)) for version in RELEASES}
    resolved[TOOLS] = _resolved(*_wanted(NEWEST), *_TOOLS)
    pins: dict[str, set[str]] = defaultdict(set)
    for blocks in resolved.values():
        for name, block in blocks.items():
            pins[name].add(block)
    shared = {name for name in pins if 4 * sum(name in blocks for blocks in resolved.values()) > len(resolved)}
    common = {name: min(blocks) for name, blocks in pins.items() if name in shared and len(blocks) == 1}
    _write("common", "", common)
    for version, blocks in resolved.items():
        _write(version, "-r common.txt\n", {name: block for name, block in blocks.items() if name not in common})
    return 0


def _wanted(version: str) -> tuple[str, ...]:
    return (f"chromadb=={version}", *(_OF_LEGACY if Release(version).legacy else ()))


def _resolved(*wanted: str) -> dict[str, str]:
    """Requirements and what they require, pinned, with their hashes, by name.

    Raises:
        subprocess.CalledProcessError: They cannot be resolved.
    """
    with tempfile.TemporaryDirectory() as scratch:
        wishes = Path(scratch) / "wishes.in"
        wishes.write_text("\n".join(wanted) + "\n")
        left_out = [word for name in _LEFT_OUT for word in ("--no-emit-package", name)]
        command = ["uv", "pip", "compile", str(wishes), *_OPTIONS, *left_out]
        text = subprocess.run(command, check=True, capture_output=True, text=True).stdout  # noqa: S603 -- ours
    blocks = [block.strip() for block in re.split(r"\n(?=\S)", text) if block.strip()]
    return {block.split("==")[0]: block for block in blocks}


def _write(name: str, head: str, blocks: dict[str, str]) -> None:
    text = head + "".join(f"{block}\n" for _, block in sorted(blocks.items()))
    (REQUIREMENTS / f"{name}.txt").write_text(text)


if __name__ == "__main__":
    sys.exit(main())
