"""`python -m compaction.reproduce`: the same program as `deltaguard reproduce`.

The program makes deltas and a local stack, so it lives above compaction, in `local`; it is looked up by its name here,
since compaction itself stands on nothing of that.
"""

from __future__ import annotations

from importlib import import_module

if __name__ == "__main__":
    import_module("local.incident").reproduce(prog_name="python -m compaction.reproduce")
