"""What the head of an inference says, before its body is looked at. No socket, no clock."""

import hmac
import math
import os
import re
from functools import lru_cache
from typing import Final, NamedTuple
from urllib.parse import unquote_to_bytes

from ..codecs import MEDIA_TYPE, request_codec, response_type
from ..config import Codec, CodecSetting, Config
from ..errors import MalformedPayload, UnsupportedMediaType, VentuError
from .http_head import Head

_SANE_ID: Final = re.compile(rb"[A-Za-z0-9._:/+=@~-]{1,128}")


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
    """

    codec: Codec | None
    timeout: float
    request_id: bytes | None


class TermsReader:
    """Reads heads under the settings of one service."""

    def __init__(self, config: Config) -> None:
        self._setting: CodecSetting = config.codec
        self._timeout = config.timeout
        key = config.api_key
        self._api_key = key.get_secret_value().encode() if key else None

    def read(self, head: Head) -> Terms:
        """Return what a head says of an inference.

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
        if codec is not None and b"accept" in fields:
            _check_accept(fields[b"accept"], codec)
        timeout = self._timeout
        if b"x-request-timeout" in fields:
            timeout = min(timeout, _seconds(fields[b"x-request-timeout"]))
        return Terms(codec, timeout, given_id(head))


def sniffed(terms: Terms, head: Head, body: bytes, codec: Codec) -> Terms:
    """Return the terms of a request whose body tells another codec than its head.

    Raises:
        PayloadError: The head tells one, and a worker would believe the body; or the client does
            not accept an answer in that codec.
    """
    if terms.codec is not None:
        failure = MalformedPayload.mistaken if body else MalformedPayload.empty
        raise failure(terms.codec)
    _check_accept(head.fields.get(b"accept", b""), codec)
    return terms._replace(codec=codec)


def given_id(head: Head) -> bytes | None:
    """Return the id that the client gave to a request, if it is a sane one."""
    given = head.fields.get(b"x-request-id", b"")
    return given if _SANE_ID.fullmatch(given) else None


def request_id(head: Head | None) -> bytes:
    """Return the id that the client gave, else a new one."""
    given = given_id(head) if head is not None else None
    return given or os.urandom(16).hex().encode()


def path_of(head: Head) -> bytes:
    """Return the path as WSGI servers hand it over: decoded, ``%6C`` is ``l``."""
    path = head.target.partition(b"?")[0]
    return unquote_to_bytes(path) if b"%" in path else path


@lru_cache(maxsize=128)
def _check_accept(accept: bytes, codec: Codec) -> None:
    """Refuse an ``Accept`` that excludes the codec of the request: a worker answers in that.

    Raises:
        PayloadError: It does.
    """
    if accept:
        response_type(accept.decode("latin-1"), MEDIA_TYPE[codec], codec)


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
