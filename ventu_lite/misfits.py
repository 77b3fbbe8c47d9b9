"""How a response does not fit its schema, in one line of the log that shows no value.

What a stage returned may hold what a client sent: only declared fields, types and lengths are told.
"""

from collections.abc import Iterable, Iterator
from contextlib import suppress
from functools import lru_cache
from typing import Any, Final, get_args

from pydantic import TypeAdapter, ValidationError
from pydantic.json_schema import JsonSchemaMode
from pydantic_core.core_schema import ErrorType

_MODES: Final[tuple[JsonSchemaMode, ...]] = ("validation", "serialization")
_MAX_ERRORS: Final = 3
_MAX_TEXT: Final = 200  # characters of a message, or of a place
# What pydantic says of these quotes the value, or somebody else's words about it.
_QUOTING: Final = frozenset(
    ("assertion_error", "get_attribute_error", "iteration_error", "mapping_type")
    + ("no_such_attribute", "union_tag_invalid", "url_parsing", "url_syntax_violation")
    + ("uuid_parsing", "value_error")
)
_TELLING: Final = frozenset(get_args(ErrorType)) - _QUOTING


def misfit(value: Any, exc: ValidationError, adapter: TypeAdapter[Any]) -> str:
    """Return how a value does not fit a schema, without showing any part of it.

    Args:
        value: The value.
        exc: What pydantic said of it.
        adapter: The schema.
    """
    said = errors_in(exc, adapter)
    return f"{kind_of(value)}, which does not fit the response schema {exc.title}: {said}"


def errors_in(exc: ValidationError, adapter: TypeAdapter[Any]) -> str:
    """Return what pydantic found, without showing any part of the value."""
    errors = exc.errors(include_url=False, include_context=False)
    said = [_without_input(error, adapter) for error in errors[:_MAX_ERRORS]]
    if more := len(errors) - len(said):
        said.append(f"and {more} more")
    return "; ".join(said)


def place_in(parts: Iterable[Any], adapter: TypeAdapter[Any]) -> str:
    """Return a place in a value, whose own keys are left out; "" for all of it."""
    fields = _fields(adapter)
    named = (str(part) if isinstance(part, int) or part in fields else "…" for part in parts)
    return ".".join(named)[:_MAX_TEXT]


@lru_cache(maxsize=64)
def _fields(adapter: TypeAdapter[Any]) -> frozenset[str]:
    """Return the names that a schema declares: any other key is the value's own."""
    names: set[str] = set()
    for mode in _MODES:
        with suppress(Exception):  # not every type can be described
            names.update(_names_in(adapter.json_schema(mode=mode)))
    return frozenset(names)


def _names_in(document: Any) -> Iterator[str]:
    if isinstance(document, list):
        for part in document:
            yield from _names_in(part)
    elif isinstance(document, dict):
        if isinstance(properties := document.get("properties"), dict):
            yield from properties
        for part in document.values():
            yield from _names_in(part)


def _without_input(error: Any, adapter: TypeAdapter[Any]) -> str:
    kind = error["type"]
    text = error["msg"][:_MAX_TEXT] if kind in _TELLING else kind
    place = place_in(error["loc"], adapter)
    said = f"{place}: {text}" if place else text
    # What lacks a field was told already, or is told by the place.
    return said if kind == "missing" else f"{said}, found {kind_of(error['input'])}"


def kind_of(value: Any) -> str:
    """Return the type of a value, and its length if it has one."""
    is_sized = isinstance(value, (str, bytes, list, tuple, dict, set, frozenset))
    size = f" of length {len(value)}" if is_sized else ""
    return f"{type(value).__qualname__}{size}"
