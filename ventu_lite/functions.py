"""The functions of a user: what they are underneath, and where they stand."""

import functools
import inspect
import os
import sys
from collections.abc import Callable
from types import FrameType
from typing import Any, Final

CALL: Final = "__call__"
_PACKAGE: Final = __name__.rpartition(".")[0]


def where_is(fn: Callable[..., Any]) -> str:
    """Return ``name (file:line)`` of a function, as well as it can be told."""
    inner = innermost(fn)
    code = getattr(inner, "__code__", None) or getattr(type(inner).__call__, "__code__", None)
    name = getattr(inner, "__qualname__", type(inner).__qualname__)
    place = f"{code.co_filename}:{code.co_firstlineno}" if code else f"given at {where_from()}"
    return f"{name} ({place})"


def where_from() -> str:
    """Return ``file:line`` of the code outside this package that is running now."""
    file, line = place()
    return f"{file}:{line}" if line else file


def place() -> tuple[str, int]:
    """Return the file and the line of the code outside this package that is running now."""
    frame = user_frame()
    return (frame.f_code.co_filename, frame.f_lineno) if frame else ("an unknown place", 0)


def folder() -> str:
    """Return the folder of the file outside this package that is running now.

    Where there is no file, as in a notebook, it is the working directory.
    """
    frame = user_frame()
    file = frame.f_globals.get("__file__") if frame else None
    return os.path.dirname(os.path.abspath(file)) if file else os.getcwd()


def user_frame() -> FrameType | None:
    """Return the innermost frame outside this package, ``None`` if there is none."""
    frame: FrameType | None = sys._getframe(1)
    while frame and str(frame.f_globals.get("__name__", "")).partition(".")[0] == _PACKAGE:
        frame = frame.f_back
    return frame


def unbound(fn: Callable[..., Any]) -> Callable[..., Any]:
    """Return what the user made a ``partial`` of, else the function itself."""
    while isinstance(fn, functools.partial):
        fn = fn.func
    return fn


def innermost(fn: Callable[..., Any]) -> Callable[..., Any]:
    """Return the function below partials and wrappers."""
    inner: Callable[..., Any] = inspect.unwrap(unbound(fn))
    return inner


def signature_of(
    fn: Callable[..., Any], *, follow_wrapped: bool = True
) -> inspect.Signature | None:
    """Return how a function is called, ``None`` if that cannot be told.

    Args:
        fn: The function.
        follow_wrapped: Tell of the function below wrappers, where the annotations are.
    """
    try:
        return inspect.signature(fn, follow_wrapped=follow_wrapped)
    except (TypeError, ValueError):  # some builtins have none
        return None
