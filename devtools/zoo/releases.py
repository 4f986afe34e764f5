"""The releases of chromadb that write directories, what each can do, and the environments they live in."""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import subprocess
import sys
import venv
from dataclasses import dataclass
from pathlib import Path

REQUIREMENTS = Path(__file__).parent / "requirements"
"""Where the locked requirements of each release are; `lock.py` writes them."""
_STUBS = {"onnxruntime": "", "tokenizers": "Tokenizer = object\n"}
"""Modules that some releases import as they start and no history needs: what their requirements leave out."""

RELEASES = (
    "0.4.3",
    "0.4.15",
    "0.4.24",
    "0.5.5",
    "0.5.23",
    "0.6.3",
    "1.0.0",
    "1.0.12",
    "1.0.21",
    "1.1.1",
    "1.2.2",
    "1.3.7",
    "1.4.1",
    "1.5.9",
)
NEWEST = RELEASES[-1]
TOOLS = f"{NEWEST}+tools"
"""An environment of the newest release with what writes through it: LangChain, LlamaIndex and Haystack."""

_SINCE = {
    "truth": "0.4.15",  # truth values in metadata
    "tenants": "0.4.15",
    "uris": "0.4.24",
    "drop_database": "1.0.0",
    "configuration": "1.0.0",
    "forgetting": "1.0.12",  # None in an update takes a key away
    "schema": "1.2.2",
    "sparse": "1.2.2",
    "lists": "1.5.9",
    "fts_off": "1.5.9",
}
_UNTIL = {"nonfinite": "1.4.1", "empty_id": "1.0.0"}


@dataclass(frozen=True, slots=True)
class Release:
    """One release of chromadb.

    Args:
        version: Its number.
    """

    version: str

    @property
    def rank(self) -> int:
        """Its place among the releases, the oldest first."""
        return RELEASES.index(self.version)

    @property
    def legacy(self) -> bool:
        """Whether it is from before 1.0, all Python."""
        return self.version.startswith("0.")

    def can(self, capability: str) -> bool:
        """Whether it takes such operations or values."""
        if capability in _SINCE:
            return self.rank >= RELEASES.index(_SINCE[capability])
        return self.rank <= RELEASES.index(_UNTIL[capability])


def cache_folder() -> Path:
    """Where environments and directories are kept: `DELTAGUARD_ZOO_CACHE`, or a folder of the user's cache."""
    return Path(os.environ.get("DELTAGUARD_ZOO_CACHE") or Path.home() / ".cache" / "deltaguard" / "zoo")


def python_of(version: str) -> Path:
    """The Python of a release's environment, which is made from its locked requirements if it is not there.

    Raises:
        subprocess.CalledProcessError: The requirements cannot be installed.
    """
    locked = REQUIREMENTS / f"{version}.txt"
    folder = cache_folder() / "environments" / version
    python, stamp = folder / "bin" / "python", folder / ".installed"
    wanted = hashlib.sha256((REQUIREMENTS / "common.txt").read_bytes() + locked.read_bytes()).hexdigest()
    if not _made(stamp, wanted):
        folder.parent.mkdir(parents=True, exist_ok=True)
        with (folder.parent / ".lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)  # somebody else may be making it
            if not _made(stamp, wanted):
                _make(folder, locked)
                stamp.write_text(wanted)
    return python


def _made(stamp: Path, wanted: str) -> bool:
    return stamp.is_file() and stamp.read_text() == wanted


def _make(folder: Path, locked: Path) -> None:
    print(f"Making the environment of chromadb {locked.stem} ...", file=sys.stderr)  # noqa: T201
    shutil.rmtree(folder, ignore_errors=True)
    venv.create(folder, with_pip=True)
    options = ["--quiet", "--disable-pip-version-check", "--no-deps", "--require-hashes"]
    subprocess.run([folder / "bin" / "python", "-m", "pip", "install", *options, "-r", locked], check=True)  # noqa: S603
    (packages,) = folder.glob("lib/python*/site-packages")
    for name, text in _STUBS.items():
        (packages / f"{name}.py").write_text(text)
