"""What a traceback tells the user: where in his own code something went wrong."""

import traceback
from collections.abc import Iterator
from types import TracebackType
from typing import Final

from .errors import VentuError

# What stands between a command and the user's file, or between his file and what it gets wrong.
_NOT_THE_USERS: Final = {__name__.partition(".")[0], "click", "flask", "werkzeug"}
_LONGEST: Final = 300  # characters; some messages are pages


def place_of(exc: BaseException) -> str:
    """Return ``file:line`` of the last of the user's own lines that led to it, "" without one."""
    if isinstance(exc, SyntaxError) and exc.filename:  # it never got as far as a frame
        return f"{exc.filename}:{exc.lineno}"
    for one in _with_causes(exc):
        places = [_place(step) for step in _steps(one.__traceback__) if _is_the_users(step)]
        if places:
            return places[-1]
    return ""


def first_place_of(exc: BaseException) -> str:
    """Return ``file:line`` of the first of the user's own lines, "" without one."""
    own = (step for step in _steps(exc.__traceback__) if _is_the_users(step))
    return next(map(_place, own), "")


def in_one_line(exc: BaseException) -> str:
    """Return what was raised, and where in the user's code."""
    is_ours = isinstance(exc, VentuError)
    # After a SyntaxError's excerpt, which is indented, and before any notes.
    lines = traceback.format_exception_only(exc)
    said = str(exc) if is_ours else next(line for line in lines if not line.startswith(" "))
    line, place = " ".join(said.split()), place_of(exc)
    return f"{line:.{_LONGEST}} ({place})" if place else f"{line:.{_LONGEST}}"


def beginning_with_the_users(exc: BaseException) -> BaseException:
    """Return it, and what caused it, without the frames that led to the user's first line.

    An exception of somebody else that never was in the user's code keeps all that it has.
    """
    for one in _with_causes(exc):
        steps = list(_steps(one.__traceback__))
        own = next((step for step in steps if _is_the_users(step)), None)
        if own is not None or isinstance(one, VentuError | SyntaxError):
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


def _place(step: TracebackType) -> str:
    return f"{step.tb_frame.f_code.co_filename}:{step.tb_lineno}"
