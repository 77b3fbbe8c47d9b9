"""Header fields that Flask and the batching service read and write alike."""

import hmac
import math
from typing import Final

from .errors import PayloadError, UnsupportedMediaType

#: A pattern of what a client may call a request: it fits into a line of a log, and into a header.
SANE_ID: Final = "[A-Za-z0-9._:/+=@~-]{1,128}"


def why_locked_out(authorization: bytes, key: bytes) -> str:
    """Tell a client whose ``Authorization`` does not hold the key; "" for one whose does.

    Any other key takes the same time.
    """
    scheme, _, given = authorization.partition(b" ")
    if scheme.lower() == b"bearer" and hmac.compare_digest(given.strip(b" \t"), key):
        return ""
    if not authorization:
        return "send the key of this service: Authorization: Bearer KEY"
    return "this Authorization is not `Bearer KEY` with the key of this service"


def refuse_encoding(content_encoding: str) -> None:
    """Let a body pass that is as it is.

    Raises:
        UnsupportedMediaType: It is compressed.
    """
    if content_encoding and content_encoding.lower() != "identity":
        raise UnsupportedMediaType(
            f"content encoding {content_encoding[:100]!r} is not read here; send the body as it is"
        )


def seconds_in(x_request_timeout: str) -> float:
    """Return the seconds that a client waits.

    Raises:
        PayloadError: It is no positive number.
    """
    try:
        # Python alone reads 1_000, and other blanks and digits than those of ASCII.
        is_plain = x_request_timeout.isascii() and "_" not in x_request_timeout
        seconds = float(x_request_timeout) if is_plain else 0.0
    except ValueError:
        seconds = 0.0
    if not 0 < seconds < math.inf:
        raise PayloadError("X-Request-Timeout must be a positive number of seconds")
    return seconds


def whole_seconds(seconds: float) -> int:
    """Return a value for ``Retry-After``: whole seconds, at least one."""
    return max(1, math.ceil(seconds))
