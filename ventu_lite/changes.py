"""Where a value, on its way through bytes, became another.

Not every value can be compared: a schema may draw a random id, and a class may hold all its
instances for different. So bytes are read twice, and where the two readings differ, too, nobody
can tell. A tuple or an array counts as the list in which a client would send it.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any, Final

from pydantic import BaseModel

Place = tuple[Any, ...]

_NOTHING: Final = object()


def first_change(item: Any, read: Any, again: Any, place: Place = ()) -> Place | None:
    """Return where an item differs from what was read, ``None`` if it is the same.

    Args:
        item: What there should be.
        read: What was made of the bytes.
        again: What was made of the same bytes for a second time.
        place: Where all three are found.
    """
    if is_equal(item, read):
        return None
    mine, theirs, others = map(_parts, (item, read, again))
    if not mine or _kind(item) is not _kind(read) or mine.keys() != theirs.keys():
        is_steady = first_change(read, again, again) is None
        return place if is_steady else None
    for key, part in mine.items():
        found = first_change(part, theirs[key], others.get(key, _NOTHING), (*place, key))
        if found is not None:
            return found
    return None


def is_equal(one: Any, other: Any) -> bool:
    """Tell whether two values are surely the same; where they hold NaN or arrays, it says no."""
    try:
        return one is other or bool(one == other) or bool(one != one and other != other)
    except Exception:  # a class may not be able to compare, or not say it in one word
        return False


def _parts(value: Any) -> Mapping[Any, Any]:
    """Return the parts of which a value is made by their names; empty if it has none."""
    if hasattr(value, "tolist"):
        value = value.tolist()
    if isinstance(value, dict):
        return value
    if isinstance(value, (list, tuple)):
        return dict(enumerate(value))
    if isinstance(value, BaseModel):
        return vars(value) | (value.__pydantic_extra__ or {}) | (value.__pydantic_private__ or {})
    if dataclasses.is_dataclass(value):
        names = [field.name for field in dataclasses.fields(value)]
        return {name: getattr(value, name, _NOTHING) for name in names}
    return {}


def _kind(value: Any) -> type:
    if isinstance(value, (list, tuple)) or hasattr(value, "tolist"):
        return list
    return dict if isinstance(value, dict) else type(value)
