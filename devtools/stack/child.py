"""A child's tether to the process that started it: an interrupt between its start and the wait for it orphans none."""

from __future__ import annotations

import ctypes
import os
import signal

_PR_SET_PDEATHSIG = 1  # prctl(2)


def tether(parent: int) -> None:
    """Has this process killed as soon as its parent ends, or ends it now, if that has happened already.

    Args:
        parent: The process that started this one.
    """
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it died before the line above
        os._exit(1)
