"""The process that has started a worker, and that the worker must not outlive."""

import contextlib
import os
import signal
import sys
from typing import Final

#: Tells a worker who has started it; unset where workers are started one by one.
PARENT_VARIABLE: Final = "VENTU_PARENT_PROCESS"

_PR_SET_PDEATHSIG: Final = 1  # linux/prctl.h


def has_parent() -> bool:
    """Whether ``serve`` has started this process."""
    return PARENT_VARIABLE in os.environ


def is_orphan() -> bool:
    """Whether this process was started by one that has ended."""
    pid = os.environ.get(PARENT_VARIABLE, "")
    return pid.isdecimal() and int(pid) != os.getppid()


def end_with_parent() -> None:
    """Let the system kill this process when the one that has started it ends, where it can.

    A signal that only asks would not end a model that hangs, with nobody left to ask again.
    """
    if not has_parent() or not sys.platform.startswith("linux"):
        return
    import ctypes

    with contextlib.suppress(OSError, AttributeError):  # a C library that does not know it
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
