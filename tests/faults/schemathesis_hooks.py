"""What schemathesis has to be told about our services; it imports this file itself."""

from typing import Any

import msgpack
import schemathesis
from schemathesis import DeserializationContext, Response, SerializationContext


@schemathesis.serializer("application/msgpack")
def to_msgpack(context: SerializationContext, value: Any) -> bytes:
    """Write a request body."""
    body: bytes = msgpack.packb(value)
    return body


@schemathesis.deserializer("application/msgpack")
def from_msgpack(context: DeserializationContext, response: Response) -> Any:
    """Read a response body."""
    return msgpack.unpackb(response.content)
