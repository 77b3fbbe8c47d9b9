"""Failures that come again and again: told once in full, then in one line each.

The workers of one ``serve`` are many processes, and each that dies is started anew. They share a
directory, so that none of them tells at length what another one has told.
"""

import contextlib
import hashlib
import os
import traceback
from typing import Final, TextIO

from .last_words import STACKS, in_short
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

    def is_news(self, failure: BaseException | str) -> bool:
        """Whether a failure has not been told; from now on it has.

        Args:
            failure: What was said, or an exception: one of its type at its line.
        """
        key = _key(failure)
        if key in self._told:
            return False
        self._told.add(key)
        return not self._folder or _is_first(os.path.join(self._folder, key))

    def leave_note(self, failure: BaseException | str) -> None:
        """Let whoever watches this process know why it ends."""
        said = " ".join(failure.split()) if isinstance(failure, str) else in_one_line(failure)
        if self._folder:
            with contextlib.suppress(OSError):  # who watched it is gone
                with open(_note(self._folder, os.getpid()), "w", encoding="utf-8") as file:
                    file.write(said)

    def open_note(self) -> TextIO | None:
        """Return a file for the stacks of a process that crashes, ``None`` if nobody watches."""
        if self._folder:
            with contextlib.suppress(OSError):  # who watched it is gone
                return open(_note(self._folder, os.getpid()), "a", encoding="utf-8")
        return None


def take_note(folder: str, pid: int) -> str:
    """Return in one line what a process that has ended has noted, "" if nothing, and forget it."""
    path = _note(folder, pid)
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            said = file.read()
        os.unlink(path)
    except OSError:
        return ""
    return in_short(said) if STACKS in said else said


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


def _key(failure: BaseException | str) -> str:
    """Return a file name."""
    text = failure if isinstance(failure, str) else _type_and_lines(failure)
    return "failure-" + hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def _type_and_lines(exc: BaseException) -> str:
    """Return what stays the same; the message may be another each time."""
    cause = exc.__cause__ or exc.__context__
    steps = [*traceback.walk_tb(exc.__traceback__)]
    steps += traceback.walk_tb(cause.__traceback__) if cause else []
    lines = [f"{frame.f_code.co_filename}:{number}" for frame, number in steps]
    return "\n".join([type(exc).__qualname__, *lines])
