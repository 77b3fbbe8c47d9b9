"""What a traceback tells the user: where in his own code something went wrong."""

import logging
import sysconfig
import traceback
from collections.abc import Iterator
from pathlib import PurePath
from types import TracebackType
from typing import Final

from .errors import VentuError

# What stands between a command and the user's file, or between his file and what it gets wrong.
_NOT_THE_USERS: Final = {__name__.partition(".")[0], "click", "flask", "werkzeug"}
# Where libraries are. Code of the user that he has installed there is one as well, to itself.
_STANDARD: Final = {sysconfig.get_path("stdlib"), sysconfig.get_path("platstdlib")}
_INSTALLED: Final = {"site-packages", "dist-packages"}
_LONGEST: Final = 300  # characters; some messages of others are pages
_LONGEST_OF_OURS: Final = 1000


def place_of(exc: BaseException) -> str:
    """Return ``file:line`` of the last of the user's own lines that led to it, "" without one.

    Where none is his, a library may have been told of by a command: its last line then.
    """
    own = (step for step in _steps_to(exc) if not _is_of_a_library(step))
    return _place_in(exc) or next(map(_place, own), "") or last_place_of(exc)


def last_place_of(exc: BaseException) -> str:
    """Return ``file:line`` of the last line that is not ours, a library's perhaps, or ""."""
    return _place_in(exc) or next(map(_place, _steps_to(exc)), "")


def first_place_of(exc: BaseException) -> str:
    """Return ``file:line`` of the first of the user's own lines, "" without one."""
    own = (step for step in _steps(exc.__traceback__) if _is_the_users(step))
    return next(map(_place, own), "")


def in_one_line(exc: BaseException) -> str:
    """Return what was raised, and where in the user's code."""
    line, place = said_by(exc), place_of(exc)
    return f"{line} ({place})" if place else line


def said_by(exc: BaseException) -> str:
    """Return what was raised, in one line."""
    if isinstance(exc, VentuError):
        return _joined(str(exc), _LONGEST_OF_OURS)  # a sentence
    # After a SyntaxError's excerpt, which is indented, and before any notes. Since Python 3.12
    # it has the name that may have been meant, too.
    told = traceback.TracebackException.from_exception(exc, limit=0)
    lines = told.format_exception_only()
    return _joined(next(line for line in lines if not line.startswith(" ")), _LONGEST)


def _joined(text: str, most: int) -> str:
    return " ".join(text.split())[:most]


def traceback_for(exc: BaseException, log: logging.Logger) -> BaseException | None:
    """Return what a line of the log that ends with ``in_one_line(exc)`` is to show below it.

    The frames of ours are for those who have chosen the level "debug"; for others they are cut off
    ``exc`` itself, for good, and then nothing may be left.
    """
    if log.isEnabledFor(logging.DEBUG):
        return exc
    is_ours = all(isinstance(one, VentuError) for one in _with_causes(exc))
    is_told = is_ours and not place_of(exc)
    if is_told:
        return None
    # One of ours without a frame would only repeat what the line has told.
    shown = _with_causes(beginning_with_the_users(exc))
    return next((one for one in shown if one.__traceback__ or not isinstance(one, VentuError)), exc)


def beginning_with_the_users(exc: BaseException) -> BaseException:
    """Cut off it, and off what caused it, the frames that led to the user's first line; return it.

    The exceptions themselves are changed.

    An exception of somebody else that never was in the user's code keeps all that it has, unless it
    is the cause of one of ours, which tells what is to be known.
    """
    is_cause_of_ours = isinstance(exc, VentuError)
    for one in _with_causes(exc):
        steps = list(_steps(one.__traceback__))
        own = next((step for step in steps if _is_the_users(step)), None)
        if own is not None or is_cause_of_ours or isinstance(one, VentuError | SyntaxError):
            one.__traceback__ = own
    return exc


def _with_causes(exc: BaseException) -> Iterator[BaseException]:
    """Yield an exception and those that Python shows above it."""
    seen: set[int] = set()
    one: BaseException | None = exc
    while one is not None and id(one) not in seen:
        seen.add(id(one))
        yield one
        one = one.__cause__ or (None if one.__suppress_context__ else one.__context__)


def _steps(step: TracebackType | None) -> Iterator[TracebackType]:
    while step is not None:
        yield step
        step = step.tb_next


def _is_the_users(step: TracebackType) -> bool:
    module = str(step.tb_frame.f_globals.get("__name__", "")).partition(".")[0]
    return module not in _NOT_THE_USERS and module != "importlib"


def _steps_to(exc: BaseException) -> Iterator[TracebackType]:
    """Yield the steps that are not ours to an exception, then to its causes, the last first."""
    for one in _with_causes(exc):
        yield from reversed([step for step in _steps(one.__traceback__) if _is_the_users(step)])


def _is_of_a_library(step: TracebackType) -> bool:
    path = PurePath(step.tb_frame.f_code.co_filename)
    return any(map(path.is_relative_to, _STANDARD)) or not _INSTALLED.isdisjoint(path.parts)


def _place_in(exc: BaseException) -> str:
    """Return the place that an exception names itself, as it never got as far as a frame."""
    if isinstance(exc, SyntaxError) and exc.filename:
        return f"{exc.filename}:{exc.lineno}"
    return ""


def _place(step: TracebackType) -> str:
    return f"{step.tb_frame.f_code.co_filename}:{step.tb_lineno}"
