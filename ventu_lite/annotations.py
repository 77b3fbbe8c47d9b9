"""What the annotations of a function say, as far as they can be resolved."""

import functools
import inspect
import operator
import typing
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from types import SimpleNamespace, UnionType
from typing import Any, Final

from .functions import CALL, innermost, user_frame


class _Missing:
    """The type of ``MISSING``: there is no annotation, and ``None`` would be one."""

    def __repr__(self) -> str:
        return "MISSING"


MISSING: Final = _Missing()


def hints_of(fn: Callable[..., Any]) -> dict[str, Any]:
    """Return the annotations, those with names of the function around the definition included.

    A name that cannot be resolved leaves its annotation out: it may be defined further below, and
    whether it matters is known only when the service is composed.
    """
    target = _annotated(fn)
    hints: dict[str, Any] = {}
    for name in getattr(target, "__annotations__", {}):
        with suppress(Exception):  # an annotation is any expression, so anything can come out of it
            hints |= _resolved(target, name)
    inner = innermost(fn)
    return hints | {"return": inner} if inspect.isclass(inner) else hints


def why_unresolved(fn: Callable[..., Any], name: str) -> str:
    """Return why the annotation of a parameter, or of "return", means nothing; "" if it does."""
    try:
        _resolved(_annotated(fn), name)
    except NameError as exc:
        return f"the name {exc.name!r} is not defined"
    except Exception as exc:
        return f"that raises {exc!r}"
    return ""


def annotation_of(fn: Callable[..., Any], name: str) -> Any:
    """Return the annotation of a parameter, or of "return", as it stands in the file."""
    return getattr(_annotated(fn), "__annotations__", {}).get(name, MISSING)


def element_of(hint: Any) -> Any:
    """Return the type of the elements of a list type, ``MISSING`` if it is none."""
    if typing.get_origin(hint) is typing.Annotated:
        hint = typing.get_args(hint)[0]
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if not inspect.isclass(origin) or not issubclass(origin, Iterable):
        return MISSING
    is_pair = origin is tuple and arguments[1:] != (...,)
    is_table = issubclass(origin, Mapping) or hasattr(origin, "shape")
    return MISSING if is_pair or is_table or not arguments else arguments[0]


def without_exceptions(hint: Any) -> Any:
    """Return a union without its exceptions, which a batch function may put among its results."""
    if typing.get_origin(hint) not in (typing.Union, UnionType):
        return hint
    left = [part for part in typing.get_args(hint) if not _is_exception(part)]
    return functools.reduce(operator.or_, left) if left else hint


def _is_exception(hint: Any) -> bool:
    return inspect.isclass(hint) and issubclass(hint, BaseException)


def _annotated(fn: Callable[..., Any]) -> Any:
    """Return the function that has the annotations of ``fn``."""
    inner = innermost(fn)
    if inspect.isclass(inner):
        return inner.__init__
    return inner if hasattr(inner, "__code__") else getattr(type(inner), CALL)


def _resolved(target: Any, name: str) -> dict[str, Any]:
    """Return one annotation with its names resolved, by its own name; nothing if there is none.

    Raises:
        Exception: Whatever the expression raises.
    """
    hints = getattr(target, "__annotations__", {})
    alone = SimpleNamespace(__annotations__={key: hints[key] for key in hints if key == name})
    module, names = getattr(target, "__globals__", {}), _names_around(target)
    return typing.get_type_hints(alone, module, names, include_extras=True)


def _names_around(target: Any) -> dict[str, Any]:
    """Return the local names of the function in which ``target`` is being defined now."""
    frame = user_frame()
    code = getattr(target, "__code__", None)
    is_here = frame is not None and code in frame.f_code.co_consts
    return dict(frame.f_locals) if frame and is_here else {}
