"""Where a process was when it crashed, or was cut off: the stacks of its threads.

They are written by C code, so a call that crashes or never comes back to Python is shown, too.
"""

import contextlib
import faulthandler
import os
import re
import signal
import sys
from pathlib import Path
from typing import Final, TextIO

#: Asks a worker to show its stacks and end. Processes that do not know it end, and leave no core.
SHOW_AND_END: Final = signal.SIGUSR2

#: What is in stacks, and hardly in anything else.
STACKS: Final = " (most recent call first):\n"

# Standard error may be closed, or be no file.
_CANNOT_WRITE: Final = (AttributeError, OSError, RuntimeError, ValueError)
_CRASH: Final = re.compile(r"^Fatal Python error: (.*)$", re.MULTILINE)
_FRAME: Final = re.compile(r'^  File "(.*)", line (\d+) in (.*)$', re.MULTILINE)
_OURS: Final = str(Path(__file__).parent) + os.sep


def enable_last_words(file: TextIO | None = None) -> None:
    """Have this process show its stacks when it crashes or gets ``SHOW_AND_END``.

    What the user's file has set up already stays as it is. In the main thread only.

    Args:
        file: Where to, ``None`` for standard error. Processes that it forks crash there, anyway.
    """
    with contextlib.suppress(*_CANNOT_WRITE):
        if not faulthandler.is_enabled():
            faulthandler.enable(file or sys.stderr)
            os.register_at_fork(after_in_child=_use_stderr)
        if signal.getsignal(SHOW_AND_END) is signal.SIG_DFL:  # which then ends the process
            faulthandler.register(SHOW_AND_END, file or sys.stderr, chain=True)


def _use_stderr() -> None:
    with contextlib.suppress(*_CANNOT_WRITE):
        faulthandler.enable()


def in_short(stacks: str) -> str:
    """Return what has crashed, if anything, in which stage, and at which line of what it called."""
    frames = []
    for file, line, name in _FRAME.findall(_current(stacks)):
        if file.startswith(_OURS):
            break
        frames.append(f"{name} ({file}:{line})")
    crash = _CRASH.search(stacks)
    said = [crash[1]] if crash else []
    said += [f"in {frame}" for frame in frames[-1:]]
    said += [f"at {frame}" for frame in frames[:-1][:1]]
    return " ".join(said)


def _current(stacks: str) -> str:
    """Return the part of the thread that has crashed, or has got the signal."""
    threads = stacks.split("\n\n")
    return next((part for part in threads if part.startswith("Current thread")), threads[0])
