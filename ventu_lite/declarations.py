"""The types of requests and responses: as the user gave them, or as his functions declare them."""

import inspect
import typing
from collections.abc import Mapping
from types import NoneType
from typing import Any, Literal

from .annotations import MISSING
from .errors import RegistrationError
from .stages import Stage
from .substitutes import class_of, substitute_for
from .validation import Schema

Side = Literal["request", "response"]


def declared(side: Side, given: Any, stages: Mapping[str, Stage], service: str) -> Any:
    """Return what was given, else what the annotation of the outermost stage says.

    Args:
        side: Which of the two.
        given: What the user said of it, ``None`` if nothing.
        stages: By slot; there is an ``infer``.
        service: The name of the service, for messages.

    Raises:
        RegistrationError: Nothing tells; the message shows the fix.
    """
    if given is not None:
        return given
    outer = stages.get("preprocess" if side == "request" else "postprocess")
    infers = [stages[slot] for slot in ("infer", "batch infer") if slot in stages]
    asked = [outer] if outer else infers
    hints = (one.input_type() if side == "request" else one.output_type() for one in asked)
    known = next((hint for hint in hints if hint is not MISSING), MISSING)
    if known is MISSING:
        raise RegistrationError(_unknown(side, asked[0], service))
    return known


def _unknown(side: Side, stage: Stage, service: str) -> str:
    """Return why a stage does not tell the type, and what to write."""
    place = stage.parameter if side == "request" else "return"
    part = "first parameter" if side == "request" else "return value"
    one = _one(side, stage, place)
    return (
        f"service {service!r} has no {side} schema: the {part} of {stage.where}"
        f" {_found(stage, place)}. {_fix(side, stage, place, one)}"
        f" Service({service!r}, {side}={one}).{_of_arrays(side, one)}"
    )


def _found(stage: Stage, place: str) -> str:
    written = stage.written(place)
    if written is MISSING:
        return "has no annotation"
    if why := stage.why_unresolved(place):
        return f"says {written!r}, but {why}"
    if kind := _class_of_one(stage, place):
        return f"says {kind.__name__}, but a batch function has a list there"
    return f"says {written!r}, which tells none"


def _fix(side: Side, stage: Stage, place: str, one: str) -> str:
    if stage.why_unresolved(place):
        return "Define or import it above the line that asks for the app, or say"
    if not stage.is_annotatable:  # a lambda or a builtin
        return "Say"
    typed = f"list[{one}]" if stage.options.batch else one
    shown = f"({place}: {typed})" if side == "request" else f"(...) -> {typed}"
    return f"Write `def {stage.name}{shown}`, or say"


def _of_arrays(side: Side, one: str) -> str:
    """Tell more where an array stands: only the user knows how many dimensions one item has."""
    if one != "list[float]":
        return ""
    more = "make the array inside" if side == "request" else "what you return is converted"
    return f" Say float instead if each item is one number; {more}."


def _one(side: Side, stage: Stage, place: str) -> str:
    """Return what to write for the type of one item."""
    kind = _class_of_one(stage, place)
    return substitute_for(kind) or (
        kind.__name__ if kind and _is_valid(kind) else side.capitalize()
    )


def _is_valid(kind: type) -> bool:
    """Tell whether a class could be what the user means by one item; a DataFrame could not."""
    try:
        Schema(kind)
    except RegistrationError:
        return False
    return True


def _class_of_one(stage: Stage, place: str) -> type | None:
    """Return the class that stands where a batch function has a list, ``None`` if none does."""
    hint = stage.hints.get(place)
    if not stage.options.batch or hint in (list, NoneType):
        return None
    if typing.get_origin(hint) and not substitute_for(hint):  # a dict[...], a union
        return None
    kind = class_of(hint)
    return kind if inspect.isclass(kind) else None
