"""Msgpack maps, from bytes that nobody vouches for: refuse what is odd before it takes memory."""

from collections.abc import Callable, Mapping
from typing import Any

import msgpack

from .errors import ProtocolError

_ERRORS = (ValueError, TypeError, OverflowError, RecursionError, msgpack.UnpackException)


def pack_map(entries: Mapping[str, object]) -> bytes:
    """Return the bytes of a map."""
    body: bytes = msgpack.packb(entries)
    return body


def unpack_entries(body: bytes, max_entries: int) -> dict[str, bytes]:
    """Return the map of a message. Keys and values may be str or bin, but nothing else.

    Raises:
        ProtocolError: This is no such map, it is too large, or it has a key twice.
    """
    count = _count_entries(body)
    if count > max_entries:
        raise ProtocolError(f"map of {count} entries, expected at most {max_entries}")
    try:
        entries: dict[str, bytes] = msgpack.unpackb(
            body,
            unicode_errors="surrogateescape",  # any bytes in a str, and back again
            object_hook=_once(),
            max_map_len=count,
            max_array_len=0,
            max_ext_len=0,
        )
    except _ERRORS as exc:
        raise _not_a_map(body) from exc
    if set(map(type, entries.values())) != {bytes}:
        _encode_values(entries, body)
    if bytes in map(type, entries):
        entries = _decode_keys(entries)
    if len(entries) < count:
        raise ProtocolError(f"map of {count} entries, {count - len(entries)} of them repeated")
    return entries


def unpack_additions(data: bytes, jobs: int) -> dict[str, Any]:
    """Return the map under ``ventu_lite``; keys unknown today are left for tomorrow."""
    limit = 1024 + 64 * jobs  # a status takes 41 bytes; small enough to hold anything that is legal
    if len(data) > limit:
        raise ProtocolError(f"ventu_lite entry of {len(data)} bytes, expected at most {limit}")
    try:
        additions = msgpack.unpackb(
            data,
            unicode_errors="surrogateescape",
            object_pairs_hook=_without_repeats,
            max_array_len=limit,
            max_ext_len=0,
        )
    except _ERRORS as exc:
        raise ProtocolError("ventu_lite entry is not msgpack") from exc
    if not isinstance(additions, dict):
        raise ProtocolError("ventu_lite entry is not a map")
    return additions


def _without_repeats(pairs: list[tuple[Any, Any]]) -> dict[Any, Any]:
    entries = dict(pairs)
    if len(entries) < len(pairs):
        raise ProtocolError("ventu_lite entry with a repeated key")
    return entries


def _count_entries(body: bytes) -> int:
    kind = body[0] if body else 0
    if kind & 0xF0 == 0x80:
        return kind & 0x0F
    if kind == 0xDE:
        return int.from_bytes(body[1:3], "big")
    if kind == 0xDF:
        return int.from_bytes(body[1:5], "big")
    raise _not_a_map(body)


def _not_a_map(body: bytes) -> ProtocolError:
    return ProtocolError(f"message of {len(body)} bytes is not a msgpack map of byte strings")


def _once() -> Callable[[dict[Any, Any]], dict[Any, Any]]:
    """Return a hook that refuses the second map, as maps in maps could take much memory."""
    seen: list[None] = []

    def hook(entries: dict[Any, Any]) -> dict[Any, Any]:
        if seen:
            raise ValueError("a map in a map")
        seen.append(None)
        return entries

    return hook


def _encode_values(entries: dict[str, Any], body: bytes) -> None:
    for key, value in entries.items():
        if isinstance(value, bytes):
            continue
        if not isinstance(value, str):
            raise _not_a_map(body)
        entries[key] = value.encode("utf-8", "surrogateescape")


def _decode_keys(entries: Mapping[Any, bytes]) -> dict[str, bytes]:
    return {
        key.decode("utf-8", "surrogateescape") if isinstance(key, bytes) else key: value
        for key, value in entries.items()
    }
