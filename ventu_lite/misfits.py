"""How a response does not fit its schema, in one line of the log that shows no value.

What a stage returned may hold what a client sent: only fields, types and lengths are told.
"""

from typing import Any, Final

from pydantic import ValidationError

_MAX_ERRORS: Final = 3
_MAX_TEXT: Final = 200  # characters of a message, or of a place


def misfit(value: Any, exc: ValidationError) -> str:
    """Return how a value does not fit a schema, without showing any part of it."""
    errors = exc.errors(include_url=False, include_context=False)
    said = [_without_input(error) for error in errors[:_MAX_ERRORS]]
    if more := len(errors) - len(said):
        said.append(f"and {more} more")
    return f"{_kind(value)}, which does not fit the response schema {exc.title}: {'; '.join(said)}"


def _without_input(error: Any) -> str:
    place, text = ".".join(map(str, error["loc"])), error["msg"][:_MAX_TEXT]
    said = f"{place[:_MAX_TEXT]}: {text}" if place else text
    # What lacks a field was told already, or is told by the place.
    return said if error["type"] == "missing" else f"{said}, found {_kind(error['input'])}"


def _kind(value: Any) -> str:
    """Return the type of a value, and its length if it has one."""
    is_sized = isinstance(value, (str, bytes, list, tuple, dict, set, frozenset))
    size = f" of length {len(value)}" if is_sized else ""
    return f"{type(value).__qualname__}{size}"
