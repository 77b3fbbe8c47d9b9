"""What the head of an inference says, before its body is looked at. No socket, no clock."""

import hmac
import math
from functools import lru_cache
from typing import NamedTuple

from ..config import Codec, CodecSetting, Config
from ..errors import MalformedPayload, UnsupportedMediaType, VentuError
from ..media_types import own_type, request_codec, response_type
from .http_head import Head


class Unauthorized(VentuError):
    """The API key is missing or wrong."""


class MethodNotAllowed(VentuError):
    """The route exists, but not for this method."""


class Terms(NamedTuple):
    """What a head says of an inference.

    Attributes:
        codec: Of the body; ``None`` if its first byte has to tell.
        timeout: Seconds that the client waits.
        request_id: That of the client, if it gave a sane one.
        instance: The path, quoted, for problem documents.
        lines: The header of a good answer, up to its id; empty without a codec.
    """

    codec: Codec | None
    timeout: float
    request_id: bytes | None
    instance: str
    lines: bytes


class TermsReader:
    """Reads heads under the settings of one service."""

    def __init__(self, config: Config) -> None:
        self._setting: CodecSetting = config.codec
        self._timeout = config.timeout
        key = config.api_key
        self._api_key = key.get_secret_value().encode() if key else None

    def read(self, head: Head, instance: str) -> Terms:
        """Return what a head says of an inference.

        Args:
            head: The head.
            instance: The path, quoted.

        Raises:
            VentuError: It cannot be answered, whatever its body.
        """
        fields = head.fields
        if head.method != b"POST":
            raise MethodNotAllowed("ask with POST")
        if self._api_key is not None:
            _authorize(fields.get(b"authorization", b""), self._api_key)
        content_type = fields.get(b"content-type", b"")
        codec = request_codec(content_type.decode("latin-1"), self._setting)
        _refuse_encoding(fields.get(b"content-encoding", b""))
        lines = _lines(fields, codec) if codec is not None else b""
        timeout = self._timeout
        if b"x-request-timeout" in fields:
            timeout = min(timeout, _seconds(fields[b"x-request-timeout"]))
        return Terms(codec, timeout, head.request_id, instance, lines)


def sniffed(terms: Terms, head: Head, body: bytes, codec: Codec) -> Terms:
    """Return the terms of a request whose body tells another codec than its head.

    Raises:
        PayloadError: The head tells one, and a worker would believe the body; or the client does
            not accept an answer in that codec.
    """
    if terms.codec is not None:
        failure = MalformedPayload.mistaken if body else MalformedPayload.empty
        raise failure(terms.codec)
    return terms._replace(codec=codec, lines=_lines(head.fields, codec))


def _lines(fields: dict[bytes, bytes], codec: Codec) -> bytes:
    return _cached_lines(fields.get(b"accept", b""), fields.get(b"content-type", b""), codec)


@lru_cache(maxsize=128)
def _cached_lines(accept: bytes, content_type: bytes, codec: Codec) -> bytes:
    """Return the header of a good answer: a worker answers in the codec of the request.

    Raises:
        PayloadError: ``Accept`` excludes that codec.
    """
    own = own_type(content_type.decode("latin-1"), codec)
    media_type = response_type(accept.decode("latin-1"), own, codec)
    return b"Content-Type: %b\r\nX-Request-ID: " % media_type.encode()


def _authorize(header: bytes, key: bytes) -> None:
    scheme, _, given = header.partition(b" ")
    if scheme.lower() != b"bearer" or not hmac.compare_digest(given.strip(), key):
        raise Unauthorized("send the key of this service: Authorization: Bearer KEY")


def _refuse_encoding(encoding: bytes) -> None:
    if encoding and encoding.lower() != b"identity":
        name = encoding[:100].decode("latin-1")
        raise UnsupportedMediaType(
            f"content encoding {name!r} is not read here; send the body as it is"
        )


def _seconds(header: bytes) -> float:
    try:
        seconds = 0.0 if b"_" in header else float(header)  # Python alone reads 1_000
    except ValueError:
        seconds = 0.0
    if not 0 < seconds < math.inf:
        raise MalformedPayload("X-Request-Timeout must be a positive number of seconds")
    return seconds
