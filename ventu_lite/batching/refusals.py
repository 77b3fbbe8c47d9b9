"""The answers to requests that are not answered with a result. No socket, no clock."""

import os
from typing import Final
from urllib.parse import quote

from pydantic_core import to_json

from ..codecs import pack
from ..config import Codec
from ..errors import PayloadError, Unavailable
from ..headers import whole_seconds
from ..http.head import Head
from ..http.request import Answer
from ..media_types import PROBLEM_TYPE
from ..problems import NO_SUCH_ROUTE, encode_problem, problem, problem_codec
from .terms import MethodNotAllowed, Unauthorized

#: The content types of error bodies.
PROBLEM_TYPES: Final = {codec: type_.encode() for codec, type_ in PROBLEM_TYPE.items()}

_ALLOW_POST: Final = b"Allow: OPTIONS, POST\r\n"
_ALLOW_GET: Final = b"Allow: GET, HEAD, OPTIONS\r\n"


def problem_answer(
    status: int, detail: str, path: str, codec: Codec, id: bytes, headers: bytes = b""
) -> Answer:
    """Return an answer with a problem document.

    Args:
        status: The HTTP status.
        detail: What the client may read.
        path: That of the request, quoted.
        codec: What the document is to be in.
        id: What the client calls the request, or we do.
        headers: More whole lines.
    """
    body = encode_problem(problem(status, detail, f"{path}#{id.decode()}"), codec)
    lines = b"Content-Type: %b\r\nX-Request-ID: %b\r\n%b" % (PROBLEM_TYPES[codec], id, headers)
    return status, lines, body


def refusal(exc: Exception, path: str, head: Head, id: bytes = b"") -> Answer:
    """Return the answer to an inference for which an exception was raised."""
    status, headers = 500, b""
    if isinstance(exc, MethodNotAllowed):
        if head.method == b"OPTIONS":
            return 200, _ALLOW_POST, b""
        status, headers = 405, _ALLOW_POST
    elif isinstance(exc, Unauthorized):
        status, headers = 401, b"WWW-Authenticate: Bearer\r\n"
    elif isinstance(exc, PayloadError):
        status = exc.status
    elif isinstance(exc, Unavailable):
        status = exc.status
        if exc.retry_after is not None:
            headers = b"Retry-After: %d\r\n" % whole_seconds(exc.retry_after)
    return problem_answer(
        status, str(exc), path, _codec_of_error(head), id or _request_id(head), headers
    )


def with_path(body: bytes, path: str, codec: Codec, id: str) -> bytes:
    """Return a worker's problem document with the path, which a worker does not know.

    Args:
        body: The document.
        path: That of the request, quoted.
        codec: What the document is in.
        id: That of the job.
    """
    encode = pack if codec == "msgpack" else to_json
    return body.replace(encode(f"#{id}"), encode(f"{path}#{id}"), 1)


def unreadable(status: int, detail: str, head: Head | None = None, /) -> Answer:
    """Return the answer to a request that gets none from its route, whatever that is."""
    return _elsewhere(status, detail, head, b"Retry-After: 1\r\n" if status in (429, 503) else b"")


def no_such_route(head: Head) -> Answer:
    """Return the answer to a path that leads nowhere."""
    return _elsewhere(404, NO_SUCH_ROUTE, head)


def only_get(head: Head, detail: str = "ask with GET") -> Answer:
    """Return the answer to any other method where only GET makes sense."""
    if head.method == b"OPTIONS":
        return 200, _ALLOW_GET, b""
    return _elsewhere(405, detail, head, _ALLOW_GET)


def _elsewhere(status: int, detail: str, head: Head | None, headers: bytes = b"") -> Answer:
    """Return an answer with a problem document about any request, even one without a head."""
    path = quote(head.path) if head is not None else ""
    return problem_answer(status, detail, path, _codec_of_error(head), _request_id(head), headers)


def _request_id(head: Head | None) -> bytes:
    """Return the id that the client gave, else a new one."""
    given = head.request_id if head is not None else None
    return given or os.urandom(16).hex().encode()


def _codec_of_error(head: Head | None) -> Codec:
    fields = head.fields if head is not None else {}
    accept, sent = fields.get(b"accept", b""), fields.get(b"content-type", b"")
    return problem_codec(accept.decode("latin-1"), sent.decode("latin-1"))
