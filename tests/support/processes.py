"""Which processes are there."""

from __future__ import annotations

from pathlib import Path


def living_in(folder: Path) -> list[str]:
    """Command lines of living processes that work in this folder."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            command = (process / "cmdline").read_bytes().replace(b"\0", b" ").decode()
        except OSError:
            continue
        if str(folder) in command:
            found.append(command)
    return found
