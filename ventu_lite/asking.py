"""Inferences that a route of the user's own asks for: what goes in, what comes out."""

import contextlib
from collections.abc import Iterator
from typing import Any, Final

from pydantic import ValidationError
from pydantic_core import from_json

from .codecs import encode_request, sniff, unpack
from .config import Codec, CodecSetting
from .errors import InvalidPayload, InvalidResponse, PayloadError, Unavailable, VentuError
from .misfits import misfit
from .outcomes import UNEXPECTED, InferenceFailed, Rejected
from .problems import reason_of
from .validation import Schema

_CANNOT_READ: Final = (
    "the response schema cannot read what it writes: give each field one alias for both ways,"
    ' exclude none that is required, and have no computed_field beside extra="forbid"'
)
# What a problem document says already in other ways, and what it may have in addition.
_COMMON: Final = frozenset({"type", "title", "status", "detail", "instance"})


def failure_of(rejected: Rejected) -> InferenceFailed:
    """Return the exception for an item that was rejected in this process."""
    failure = InferenceFailed(rejected.status, rejected.detail, rejected.extra)
    failure.__cause__ = rejected.exc
    return failure


@contextlib.contextmanager
def failed_together() -> Iterator[None]:
    """Turn what no request of a call could be answered for into an ``InferenceFailed``."""
    try:
        yield
    except (PayloadError, Unavailable) as exc:
        failure = InferenceFailed(exc.status, str(exc))
        if isinstance(exc, Unavailable) and exc.retry_after is not None:
            failure.retry_after = exc.retry_after
        raise failure from exc


def payload_of(value: Any, schema: Schema, setting: CodecSetting) -> bytes:
    """Return the bytes in which a client would send a value, in the richest codec that may be used.

    Raises:
        Exception: The value does not fit the schema, or no codec can say it.
    """
    schema.parse_value(value)
    if setting != "json":
        payload = encode_request(value, "msgpack")
        if setting == "msgpack" or sniff(payload) == "msgpack":  # the worker goes by the first byte
            return payload
    return encode_request(value, "json")


def response_of(status: int, said: bytes | str, codec: Codec, schema: Schema) -> Any:
    """Return the response in the answer of a worker.

    Args:
        status: The HTTP status.
        said: The body of the answer, or the reason why there is none.
        codec: Of the body.
        schema: That of responses.

    Returns:
        The response, the ``InferenceFailed`` that was told, or a ``Rejected`` where nothing is told
        that can be read here.
    """
    if isinstance(said, str):
        return InferenceFailed(status, said)
    try:
        return _response(said, codec, schema) if status == 200 else _told(status, said, codec)
    except Exception as exc:
        code = 500 if status == 200 else status
        return Rejected(code, UNEXPECTED, reason_of(code), exc)


def _response(body: bytes, codec: Codec, schema: Schema) -> Any:
    try:
        return schema.parse(body, codec)
    except InvalidPayload as exc:
        assert isinstance(exc.__cause__, ValidationError)
        found = f"{misfit(body, exc.__cause__, schema.adapter)}; {_CANNOT_READ}"
    except PayloadError as exc:
        found = f"what cannot be read: {exc}"
    raise InvalidResponse(f"a worker answered with {found}")  # their causes would show the value


def _told(status: int, body: bytes, codec: Codec) -> InferenceFailed:
    try:
        document = dict(unpack(body) if codec == "msgpack" else from_json(body))
        detail = str(document["detail"])
    except Exception:  # a worker of another kind says it in its own words
        size = len(body)
        reason = f"a worker answered {status} and {size} bytes that are no problem document"
        raise VentuError(reason) from None
    extra = {name: value for name, value in document.items() if name not in _COMMON}
    failure = InferenceFailed(status, detail, extra)
    failure.job = str(document.get("instance", "")).rpartition("#")[2]
    return failure
