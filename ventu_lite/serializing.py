"""Write validated values, by alias. In this module a warning is an error.

pydantic warns where a value does not have the type that its schema says, such as an instance with a
field that was set to something else later. ``warnings="error"`` makes that an exception, but only
to read this argument takes 1.4 µs (pydantic 2.14): three times as long as to write a small
response, and every request would pay it. That the warning itself fails costs nothing.
"""

from typing import Any, Final

from pydantic_core import SchemaSerializer

from .codecs import plain

# Where Python looks up what was warned of before. Anything but a dict it refuses with a TypeError,
# before it asks the filters, by which a user may ignore all warnings. An empty one is left alone by
# ``assertWarns``, which clears the others.
__warningregistry__: Final = ()


def to_json(serializer: SchemaSerializer, value: Any) -> bytes:
    """Return a value as JSON.

    Raises:
        TypeError: There was a warning.
        Exception: JSON cannot say it.
    """
    return serializer.to_json(value, by_alias=True, fallback=plain)


def to_python(serializer: SchemaSerializer, value: Any) -> Any:
    """Return a value in dicts, lists and builtins.

    Raises:
        TypeError: There was a warning.
    """
    return serializer.to_python(value, by_alias=True)
