"""The deltas that are measured: made once by real Chroma, then kept for later runs.

They lie in `<temporary folder>/bench-deltas-<user id>/`, one folder for each recipe and version of chromadb, about
200 MB in all. Nothing but a run of `python -m bench` reads them, so they may be removed at any time.
"""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import tempfile
from dataclasses import asdict
from importlib import metadata
from pathlib import Path

from bench import ROOT
from devtools.damage.deltas import DeltaRecipe

_BUILD = """
import json, sys
from pathlib import Path
from devtools.stack.child import tether
from devtools.damage.deltas import DeltaRecipe, build_delta
tether(int(sys.argv[1]))
build_delta(Path(sys.argv[2]), DeltaRecipe(**json.loads(sys.argv[3])))
"""
_BUILD_SECONDS = 300

DIMENSION = 1536
"""Of all vectors that are measured: what the common embedding models give."""


def stocked(embeddings: int, seed: int = 0, dimension: int = DIMENSION) -> Path:
    """A delta with so many embeddings in one collection. It is shared: read it, and open none but a copy with Chroma.

    Args:
        embeddings: How many.
        seed: Of its content; another seed gives other ids.

    Raises:
        RuntimeError: It could not be made.
    """
    recipe = DeltaRecipe(embeddings=embeddings, dimension=dimension, seed=seed)
    # Not `deltaguard-...`: that is what the sweep of abandoned scratch folders removes.
    stock = Path(tempfile.gettempdir()) / f"bench-deltas-{os.getuid()}"
    stock.mkdir(mode=0o700, exist_ok=True)
    kept = stock / key_of(recipe, metadata.version("chromadb"))
    if not kept.is_dir():
        with tempfile.TemporaryDirectory(prefix="building-", dir=stock) as scratch:
            made = Path(scratch) / "delta"
            _build(made, recipe)
            try:
                made.rename(kept)  # whole or not at all
            except OSError:
                if not kept.is_dir():  # otherwise another run was faster, and its delta is as good
                    raise
    return kept


def key_of(recipe: DeltaRecipe, chromadb: str) -> str:
    """The name of the folder of a recipe made with this version of chromadb."""
    whole = json.dumps({"chromadb": chromadb, **asdict(recipe)}, sort_keys=True)
    return f"{recipe.embeddings}x{recipe.dimension}-{hashlib.sha256(whole.encode()).hexdigest()[:16]}"


def _build(folder: Path, recipe: DeltaRecipe) -> None:
    """Builds in a child: a process that has opened a Chroma client has its threads and its memory."""
    sys.stderr.write(f"making a delta of {recipe.embeddings} embeddings, once\n")
    command = [sys.executable, "-c", _BUILD, str(os.getpid()), str(folder), json.dumps(asdict(recipe))]
    done = subprocess.run(  # noqa: S603 -- ours
        command, cwd=ROOT, capture_output=True, text=True, timeout=_BUILD_SECONDS, check=False
    )
    if done.returncode:
        raise RuntimeError(f"making a delta of {recipe.embeddings} embeddings failed: {done.stderr.strip()[-500:]}")
