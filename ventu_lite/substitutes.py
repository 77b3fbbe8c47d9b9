"""What to write in an annotation for a type that pydantic does not know, but that we convert."""

import inspect
import typing
from typing import Any, Final

# By what a type of numpy descends from; its module is not imported to find out.
_SCALARS: Final = {
    "floating": "float",
    "integer": "int",
    "bool": "bool",
    "bool_": "bool",  # numpy 1
    "str_": "str",
}


def class_of(hint: Any) -> Any:
    """Return what a type is one of, without its parameters: numpy's ``NDArray[...]`` is ndarray."""
    kind = typing.get_origin(hint) or hint
    named = getattr(kind, "__value__", None)  # of an alias, as of `type Row = ...`
    return kind if named is None else class_of(named)


def substitute_for(hint: Any) -> str:
    """Return what stands for an array, a tensor or a number of theirs; "" for any other type."""
    kind = class_of(hint)
    if not inspect.isclass(kind) or not hasattr(kind, "tolist"):
        return ""
    names = [base.__name__ for base in kind.__mro__]
    if "generic" not in names:  # numpy's word for a scalar
        return "list[float]"
    return next((_SCALARS[name] for name in names if name in _SCALARS), "")


def advice_on(hint: Any) -> str:
    """Return what to write for the first array or number in a type; "" if it has none."""
    if not (written := substitute_for(hint)):
        return next(filter(None, map(advice_on, typing.get_args(hint))), "")
    name = class_of(hint).__qualname__
    if written == "list[float]":
        return (
            f"Write {written} for {name}, or list[list[float]] by its dimensions: make the array of"
            " a request in a stage; one that you return is converted."
        )
    return f"Write {written} for {name}: what you return is converted."
