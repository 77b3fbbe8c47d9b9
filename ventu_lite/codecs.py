"""Payload bytes and Python values: JSON and msgpack.

What a value looks like in each codec:

=================  ==============================  ====================================
value              JSON                            msgpack
=================  ==============================  ====================================
``bytes``          a string, as pydantic is told   *bin*
``datetime``       ISO 8601 string                 the same; a Timestamp is read as well
``Decimal, UUID``  string                          string
``Enum``           its value                       its value
NaN, infinities    ``null``; read where the        as they are
                   schema has a float
numpy, torch       as their ``tolist()``           the same
=================  ==============================  ====================================

JSON has no NaN, so a response with one does not say so; a schema with ``FiniteFloat`` makes it
an error instead. Map keys of a msgpack request are strings: integers are refused, because keys
that collide on purpose would make the table slow. A schema in pydantic's strict mode takes dates,
UUIDs, enums and tuples from JSON, but not from msgpack, which cannot say that it means them.

An empty list takes 72 bytes in Python, three in JSON with its comma, one in msgpack. A msgpack
body may hold only as many lists and maps as there is room for in the largest body of JSON, so that
a limit for bodies means the same memory for both.
"""

from collections.abc import Callable
from typing import Any, Final

import msgpack
from pydantic import BaseModel
from pydantic_core import to_json, to_jsonable_python

from .config import Codec
from .errors import MalformedPayload, PayloadTooLarge

_JSON_STARTS = frozenset(b' \t\r\n{["-0123456789tfn')
_LARGEST_FIXINT: Final = 0x7F  # of the numbers that msgpack writes in one byte

# Deeper values cannot be built by the JSON parser either (its limit is 200).
_UNPACK_ERRORS = (ValueError, TypeError, OverflowError, RecursionError, msgpack.UnpackException)

# What msgpack says in its own terms, or not at all.
_REASONS: Final[dict[type[Exception], str]] = {
    msgpack.ExtraData: "more bytes come after its end",
    msgpack.FormatError: "it has a byte that means nothing",
    msgpack.StackError: "it is nested too deeply",
}

_Hook = Callable[[Any], Any]

# How many bytes of brackets, commas, quotes and colons JSON may need for one byte of msgpack: a
# list of empty lists.
_MOST_PER_BYTE: Final = 3


def sniff(payload: bytes) -> Codec:
    """Tell the codec by the first byte, which is enough for all but one-byte msgpack bodies.

    What is neither counts as JSON, whose users read the better error: an empty body, and text
    without quotes. In msgpack its first byte would be a small number, and all there is.

    Source: the wire protocol, "JSON or msgpack is not announced".
    """
    if not payload or payload[0] in _JSON_STARTS:
        return "json"
    return "json" if payload[0] <= _LARGEST_FIXINT and len(payload) > 1 else "msgpack"


def unpack(payload: bytes, *, max_json: int | None = None) -> Any:
    """Return the value of a msgpack payload; Timestamps become aware datetimes.

    Args:
        payload: The bytes.
        max_json: The most bytes that its lists and maps may take in JSON, whatever they hold, or
            the length of the payload if that is more; ``None`` for a payload of our own.

    Raises:
        MalformedPayload: It is truncated, has a tail, a key that is no string, bad UTF-8, …
        PayloadTooLarge: It has more lists and maps than ``max_json`` allows.
    """
    try:
        # To count takes a third longer where there are many; most bodies are too small for that.
        if max_json is None or _MOST_PER_BYTE * len(payload) <= max_json:
            return msgpack.unpackb(payload, timestamp=3)
        list_hook, map_hook = _counting_hooks(max(max_json, len(payload)))
        return msgpack.unpackb(payload, timestamp=3, list_hook=list_hook, object_hook=map_hook)
    except _UNPACK_ERRORS as exc:
        raise MalformedPayload(f"the body is not valid msgpack: {_reason(exc)}") from exc


def unpack_own(payload: bytes) -> Any:
    """Return the value of a msgpack payload that a process of ours wrote: keys may be numbers.

    Raises:
        MalformedPayload: It is truncated, has a list as a key, …
    """
    try:
        return msgpack.unpackb(payload, timestamp=3, strict_map_key=False)
    except _UNPACK_ERRORS as exc:
        raise MalformedPayload(f"the body is not valid msgpack: {_reason(exc)}") from exc


def _reason(exc: BaseException) -> str:
    for kind, reason in _REASONS.items():
        if isinstance(exc, kind):
            return reason
    said = str(exc) or type(exc).__name__
    if "exceeds max_" in said:  # the body is shorter than what it says
        return "it is cut off, or declares a length that does not fit into it"
    return said.removesuffix(" when strict_map_key=True")[:200]


def _counting_hooks(most: int) -> tuple[_Hook, _Hook]:
    """Return what msgpack is to call with each list, and with each map, until there are too many.

    Counted is what JSON needs at least: brackets and commas, quotes and colons for keys.
    """
    left = most

    def count_list(value: list[Any]) -> list[Any]:
        nonlocal left
        left -= (len(value) or 1) + 1
        if left < 0:
            raise _too_many(most)
        return value

    def count_map(value: dict[str, Any]) -> dict[str, Any]:
        nonlocal left
        left -= (4 * len(value) or 1) + 1
        if left < 0:
            raise _too_many(most)
        return value

    return count_list, count_map


def _too_many(most: int) -> PayloadTooLarge:
    return PayloadTooLarge(f"the body holds more lists and maps than fit into {most} bytes of JSON")


def pack(value: Any) -> bytes:
    """Return ``value`` as msgpack; numpy, torch, datetime, Decimal, UUID and Enum included.

    Raises:
        TypeError, ValueError, OverflowError: It holds something that msgpack cannot say.
    """
    return msgpack.packb(value, default=plain)


def encode_request(value: Any, codec: Codec) -> bytes:
    """Return the bytes in which a client would send a value.

    Raises:
        Exception: The codec cannot say it.
    """
    return to_json(value, fallback=plain) if codec == "json" else pack(value)


def dumped(value: Any) -> Any:
    """Return an instance of a model as a client would write it, anything else as it is."""
    if isinstance(value, BaseModel):
        return value.model_dump(by_alias=True, round_trip=True)
    return value


def plain(value: Any) -> Any:
    """Return a value that JSON and msgpack can say for one that only Python can.

    Raises:
        TypeError, ValueError: Nobody knows how to say it.
    """
    if not hasattr(value, "tolist"):
        return to_jsonable_python(value, fallback=_to_list)
    simple = value.tolist()  # a scalar may have become a date, a complex number, …
    return simple if isinstance(simple, list) else to_jsonable_python(simple)


def _to_list(value: Any) -> Any:
    if not hasattr(value, "tolist"):
        raise TypeError(f"neither JSON nor msgpack can say {type(value).__name__}")
    return value.tolist()


def deep_plain(value: Any) -> Any:
    """Return ``value`` with every numpy or torch part, however deep, as plain Python."""
    if hasattr(value, "tolist"):
        return value.tolist()
    if isinstance(value, dict):
        return {deep_plain(key): deep_plain(part) for key, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [deep_plain(part) for part in value]
    return value
