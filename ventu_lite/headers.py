"""Header fields of a request, which Flask and the batching service read alike."""

import hmac
import math
from typing import Final

from .errors import PayloadError, UnsupportedMediaType

#: A pattern of what a client may call a request: it fits into a line of a log, and into a header.
SANE_ID: Final = "[A-Za-z0-9._:/+=@~-]{1,128}"

#: What a client is told whose ``Authorization`` is not the one that is wanted.
SEND_KEY: Final = "send the key of this service: Authorization: Bearer KEY"


def has_key(authorization: bytes, key: bytes) -> bool:
    """Tell whether ``Authorization`` holds the key of the service; takes the same time for any."""
    scheme, _, given = authorization.partition(b" ")
    return scheme.lower() == b"bearer" and hmac.compare_digest(given.strip(b" \t"), key)


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
