"""`python -m compaction.reproduce`: the same program as `deltaguard reproduce`.

It makes deltas and a local stack, so it lives in `local`, above compaction. It is looked up by its name here, as the
command line does, for compaction itself stands on nothing of that.
"""

from __future__ import annotations

import sys
from importlib import import_module

if __name__ == "__main__":
    import_module("scanner.cli").cli(["reproduce", *sys.argv[1:]], prog_name="deltaguard")
