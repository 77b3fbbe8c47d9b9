"""What the head of an inference says, before its body is looked at. No socket, no clock."""

from functools import lru_cache
from typing import NamedTuple

from ..config import Codec, CodecSetting, Config
from ..errors import MalformedPayload, VentuError
from ..headers import refuse_encoding, seconds_in, why_locked_out
from ..http.head import Head
from ..media_types import own_type, request_codec, response_type


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
        key = self._api_key
        if key is not None and (why := why_locked_out(fields.get(b"authorization", b""), key)):
            raise Unauthorized(why)
        content_type = fields.get(b"content-type", b"")
        codec = request_codec(content_type.decode("latin-1"), self._setting)
        refuse_encoding(fields.get(b"content-encoding", b"").decode("latin-1"))
        lines = _lines(fields, codec) if codec is not None else b""
        timeout = self._timeout
        if b"x-request-timeout" in fields:
            timeout = min(timeout, seconds_in(fields[b"x-request-timeout"].decode("latin-1")))
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
