"""Failures that come again and again: told once in full, then in one line each.

The workers of one ``serve`` are many processes, and each that dies is started anew. They share a
directory, so that none of them tells at length what another one has told.
"""

import contextlib
import hashlib
import os
import traceback
from typing import Final

from .tracebacks import in_one_line

#: Tells a worker which directory it shares with those that ``serve`` has started and will start.
FAILURES_VARIABLE: Final = "VENTU_FAILURES"


class Failures:
    """What has been told in full.

    Args:
        folder: Shared with other processes; "" for this one alone.
    """

    def __init__(self, folder: str = "") -> None:
        self._folder = folder
        self._told: set[str] = set()

    def is_news(self, exc: BaseException) -> bool:
        """Whether a failure of this type at this line has not been told; from now on it has."""
        key = _key(exc)
        if key in self._told:
            return False
        self._told.add(key)
        return not self._folder or _is_first(os.path.join(self._folder, key))

    def leave_note(self, exc: BaseException) -> None:
        """Let whoever watches this process know why it ends."""
        if self._folder:
            with contextlib.suppress(OSError):  # who watched it is gone
                with open(_note(self._folder, os.getpid()), "w", encoding="utf-8") as file:
                    file.write(in_one_line(exc))


def take_note(folder: str, pid: int) -> str:
    """Return what a process that has ended has noted, "" if nothing, and throw it away."""
    path = _note(folder, pid)
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            said = file.read()
        os.unlink(path)
    except OSError:
        return ""
    return said


def shared_failures() -> Failures:
    """Return those that this process shares with the other workers of its ``serve``, if any."""
    return Failures(os.environ.get(FAILURES_VARIABLE, ""))


def _note(folder: str, pid: int) -> str:
    return os.path.join(folder, f"note-{pid}")


def _is_first(path: str) -> bool:
    try:
        os.close(os.open(path, os.O_CREAT | os.O_EXCL, 0o600))
    except FileExistsError:
        return False
    except OSError:  # better told twice than never
        return True
    return True


def _key(exc: BaseException) -> str:
    """Return a file name for the type and the line; a message may be another each time."""
    cause = exc.__cause__ or exc.__context__
    steps = [*traceback.walk_tb(exc.__traceback__)]
    steps += traceback.walk_tb(cause.__traceback__) if cause else []
    lines = [f"{frame.f_code.co_filename}:{number}" for frame, number in steps]
    text = "\n".join([type(exc).__qualname__, *lines])
    return "failure-" + hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()
