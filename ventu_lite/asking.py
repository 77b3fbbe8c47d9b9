"""Inferences that a route of the user's own asks for: what goes in, what comes out."""

import contextlib
from collections.abc import Iterator
from typing import Any, Final

from pydantic_core import from_json

from .codecs import encode_request, sniff, unpack
from .config import Codec, CodecSetting
from .errors import PayloadError, Unavailable
from .outcomes import UNEXPECTED, InferenceFailed, Rejected
from .validation import Schema

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
    """Return the response in the answer of a worker, or an ``InferenceFailed``.

    Args:
        status: The HTTP status.
        said: The body of the answer, or the reason why there is none.
        codec: Of the body.
        schema: That of responses.
    """
    if isinstance(said, str):
        return InferenceFailed(status, said)
    try:
        if status == 200:
            return schema.parse(said, codec)
        document = dict(unpack(said) if codec == "msgpack" else from_json(said))
        extra = {name: value for name, value in document.items() if name not in _COMMON}
        failure = InferenceFailed(status, str(document["detail"]), extra)
        failure.job = str(document.get("instance", "")).rpartition("#")[2]
        return failure
    except Exception as exc:  # a worker of another kind says it in its own words
        failure = InferenceFailed(status if status != 200 else 500, UNEXPECTED)
        failure.__cause__ = exc
        return failure
