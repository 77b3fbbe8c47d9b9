"""One HTTP/1.1 request: its head read strictly, its body put together. No socket, no clock.

Every head is read twice: by a few lines here, which say what is asked for, and by llhttp (through
httptools), which knows the grammar better. Both must find the same end of the request, or it is
refused: what two readers understand differently is what request smuggling is made of.
"""

import re
from collections.abc import Callable
from typing import Protocol

from httptools import HttpParserError, HttpParserInvalidMethodError, HttpRequestParser

from ventu_lite.errors import ProtocolError

HEAD_END = b"\r\n\r\n"
CHUNKED = -1  # stands where a length would

_TEXT = bytes([9, *range(32, 127), *range(128, 256)])  # all but control characters
_REQUEST_LINE = re.compile(
    rb"([A-Za-z][\w!#$%&'*+.^`|~-]*) ([!\"$-~]+) HTTP/1\.([01])"
)  # no fragment
_OTHER_VERSION = re.compile(rb"[A-Za-z][^ ]* [^ ]+ HTTP/(?!1\.[01])\d(?:\.\d)?")
_ABSOLUTE = re.compile(rb"https?://([^/?@]+)([/?].*)?", re.IGNORECASE)
_HOST = re.compile(rb"(?:[\w.~%!$&'()*+,;=-]*|\[[\w:.%]+\])(?::\d*)?")
_UPGRADE = re.compile(rb"(?<=\n)upgrade:", re.IGNORECASE)

# The fields that HTTP itself or an inference is about; all others wait in the raw head. A field
# that may come several times is joined, any other is refused when repeated, even with the same
# value: RFC 9112, 6.3 allows to accept two equal lengths, but nobody sends them in good faith, and
# whoever merges them trusts the others.
_LISTS = frozenset(b"accept connection content-encoding upgrade x-request-id".split())
_SINGLE = frozenset(
    b"authorization content-length content-type expect host transfer-encoding".split()
    + [b"x-request-timeout"]
)
_EAGER = _LISTS | _SINGLE


class Refused(ProtocolError):
    """The request cannot be read or accepted; after the answer its connection ends.

    Attributes:
        status: The HTTP status to answer with.
    """

    def __init__(self, status: int, detail: str) -> None:
        super().__init__(detail)
        self.status = status


class Channel(Protocol):
    """What a request needs of its connection."""

    @property
    def peer(self) -> str:
        """The address of the client."""

    def encode(self, request: "Request", status: int, headers: bytes, body: bytes) -> bytes:
        """Return the bytes of a response to ``request``."""

    def mark(self) -> None:
        """Take note that a request has been answered."""


class Request:
    """A request, to be answered once, at any later time, in the thread of the event loop.

    Attributes:
        method: As sent, such as ``b"POST"``.
        target: Path and query as sent, such as ``b"/inference?a=b"``, or ``b"*"``.
        minor: 0 for HTTP/1.0, 1 for HTTP/1.1.
        fields: The header fields that most requests are about, by lower-case name; see ``headers``.
        head: The raw head.
        length: The declared size of the body, or ``CHUNKED``.
        body: The whole body, without transfer coding.
        keep_alive: Whether the connection goes on after the answer.
        answer: The encoded response, once there is one.
        is_gone: Whether the client has left; an answer is dropped then.
        on_disconnect: Called once if the client leaves before the answer is given. To be set in
            the handler; who gets hold of the request later must look at ``is_gone`` first.
        channel: The connection.
    """

    __slots__ = (
        "answer", "body", "channel", "fields", "head", "is_gone", "keep_alive", "length",
        "method", "minor", "on_disconnect", "target",
    )  # fmt: skip

    def __init__(
        self,
        channel: Channel,
        method: bytes,
        target: bytes,
        minor: int,
        fields: dict[bytes, bytes],
        head: bytes,
        length: int,
        keep_alive: bool,
    ) -> None:
        self.channel = channel
        self.method = method
        self.target = target
        self.minor = minor
        self.fields = fields
        self.head = head
        self.length = length
        self.keep_alive = keep_alive
        self.body = b""
        self.answer: bytes | None = None
        self.is_gone = False
        self.on_disconnect: Callable[[], None] | None = None

    @property
    def expects_continue(self) -> bool:
        """Whether the client waits for 100 before it sends the body."""
        return self.minor == 1 and b"expect" in self.fields

    @property
    def peer(self) -> str:
        """The address of the client, "" if it has left."""
        return self.channel.peer

    def __repr__(self) -> str:
        return f"<Request {self.method!r} {self.target[:80]!r}>"

    @property
    def headers(self) -> list[tuple[bytes, bytes]]:
        """All header fields as sent, names in lower case, in order. Parsed anew each time."""
        split = (line.partition(b":") for line in self.head[:-4].split(b"\r\n")[1:])
        return [(name.lower(), value.strip(b" \t")) for name, _, value in split]

    def respond(self, status: int, headers: bytes = b"", body: bytes = b"") -> None:
        r"""Give the answer; it is sent when its turn on the connection comes.

        Args:
            status: The final HTTP status.
            headers: Whole lines, such as ``b"Content-Type: application/json\r\n"``, made by
                ``encode_headers`` where a value comes from outside. Date, length and connection
                are added.
            body: All of it; left out for HEAD and for statuses that have none.

        Raises:
            RuntimeError: The request has an answer already.
        """
        if self.is_gone:
            return
        if self.answer is not None:
            raise RuntimeError(f"{self!r} was answered twice")
        self.answer = self.channel.encode(self, status, headers, body)
        self.on_disconnect = None
        self.channel.mark()


def encode_headers(fields: list[tuple[bytes, bytes]]) -> bytes:
    """Return header lines for ``Request.respond``.

    Raises:
        ValueError: A name or value would not stay within its line.
    """
    lines = b"".join([b"%b: %b\r\n" % field for field in fields])
    if lines.count(b"\n") != len(fields) or lines.count(b"\r") != len(fields) or b"\0" in lines:
        raise ValueError("line break or NUL in a header field")
    return lines


def read_head(head: bytes, channel: Channel) -> Request:
    """Return the request of ``head``, which ends with its empty line; the body is still to come.

    Raises:
        Refused: The head is malformed, ambiguous or of another protocol.
    """
    lines = head[:-4].split(b"\r\n")
    if head.translate(None, _TEXT) != b"\r\n" * (len(lines) + 1):
        raise Refused(400, "control character or bare line break in the head")
    line = _REQUEST_LINE.fullmatch(lines[0])
    if line is None:
        if _OTHER_VERSION.fullmatch(lines[0]):
            raise Refused(505, "only HTTP/1.1 and HTTP/1.0 are spoken here")
        raise Refused(400, "not an HTTP/1.1 request line")
    method, target, version = line.groups()
    minor = version == b"1"
    fields = _read_fields(lines)
    host = fields.get(b"host")
    if host is None and minor or host is not None and not _HOST.fullmatch(host):
        raise Refused(400, "exactly one Host is needed")
    if target[0] != 47 or method == b"CONNECT":  # not a path
        target = _path_of(method, target, fields)
    length = _length(fields, minor)
    if b"expect" in fields and fields[b"expect"].lower() != b"100-continue" and minor:
        raise Refused(417, "the only known expectation is 100-continue")
    keep_alive = _keeps_alive(fields, minor) if b"connection" in fields else minor
    return Request(channel, method, target, int(minor), fields, head, length, keep_alive)


def _read_fields(lines: list[bytes]) -> dict[bytes, bytes]:
    fields: dict[bytes, bytes] = {}
    for line in lines[1:]:
        name, _, value = line.partition(b":")
        name = name.lower()
        if name in _EAGER:
            value = value.strip(b" \t")
            if name in fields:
                if name in _SINGLE:
                    raise Refused(400, f"more than one {name.decode()}")
                value = fields[name] + b", " + value
            fields[name] = value
    return fields


def _path_of(method: bytes, target: bytes, fields: dict[bytes, bytes]) -> bytes:
    """Return path and query of another form; an absolute one overrides Host (RFC 9112, 3.2.2)."""
    if method == b"CONNECT":
        raise Refused(501, "this is not a proxy")
    if target == b"*" and method == b"OPTIONS":
        return target
    absolute = _ABSOLUTE.fullmatch(target)
    if absolute is None or not _HOST.fullmatch(absolute[1]):
        raise Refused(400, "the request target is not a path")
    if b"host" in fields:
        fields[b"host"] = absolute[1]
    path = absolute[2] or (b"*" if method == b"OPTIONS" else b"/")
    return path if path[0] != 63 else b"/" + path  # http://host?query


def _length(fields: dict[bytes, bytes], is_1_1: bool) -> int:
    length = fields.get(b"content-length")
    coding = fields.get(b"transfer-encoding")
    if coding is not None:
        if length is not None or not is_1_1:
            raise Refused(400, "Transfer-Encoding beside Content-Length or in HTTP/1.0")
        if coding.lower() != b"chunked":
            raise Refused(501, "the only known Transfer-Encoding is chunked")
        return CHUNKED
    if length is None:
        return 0
    if not length.isdigit() or len(length) > 18:
        raise Refused(400, "Content-Length is not a number")
    return int(length)


def _keeps_alive(fields: dict[bytes, bytes], is_1_1: bool) -> bool:
    options = {option.strip(b" \t") for option in fields[b"connection"].lower().split(b",")}
    return b"close" not in options and (is_1_1 or b"keep-alive" in options)


class Judge:
    """llhttp's opinion on requests, many of them with one parser."""

    __slots__ = ("_begun", "_completed", "_parser")

    def __init__(self) -> None:
        self._renew()

    def _renew(self) -> None:
        self._begun = self._completed = 0
        self._parser = HttpRequestParser(self)

    def on_message_begin(self) -> None:
        """Count what llhttp takes for the start of a request."""
        self._begun += 1

    def on_message_complete(self) -> None:
        """Count what llhttp takes for the end of a request."""
        self._completed += 1

    def check(self, request: Request, data: bytes, *, is_whole: bool) -> None:
        """Return if llhttp, too, takes ``data`` for exactly one request, or for the head of one.

        Raises:
            Refused: It does not.
        """
        if (
            b"upgrade" in request.fields
        ):  # ignored, as RFC 9110, 7.8 allows; llhttp would skip the body
            data = _UPGRADE.sub(b"ignored:", data)
        self._begun = self._completed = 0
        try:
            self._parser.feed_data(data)
        except HttpParserError:
            # llhttp wants nothing after a request that closes: only a new parser's verdict counts
            self._renew()
            self._check_alone(data)
        if self._begun != 1 or self._completed != is_whole:
            self._renew()
            raise Refused(400, "the request does not end where its head says")
        if not is_whole or not request.keep_alive:
            self._renew()

    def _check_alone(self, data: bytes) -> None:
        try:
            self._parser.feed_data(data)
        except HttpParserInvalidMethodError as exc:
            self._renew()
            raise Refused(501, "unknown method") from exc
        except HttpParserError as exc:
            self._renew()
            raise Refused(400, f"malformed request: {exc}") from exc


class SizedBody:
    """A body of a known length that comes in pieces."""

    __slots__ = ("_content", "_length", "is_complete")

    def __init__(self, length: int) -> None:
        self._content = bytearray()
        self._length = length
        self.is_complete = False

    @property
    def size(self) -> int:
        """How many bytes have come."""
        return len(self._content)

    def feed(self, data: bytes, start: int) -> int:
        """Take what belongs to this body from ``start`` on; return where the rest begins."""
        end = min(len(data), start + self._length - len(self._content))
        self._content += data[start:end]
        self.is_complete = len(self._content) == self._length
        return end

    def content(self) -> bytes:
        """Return the whole body."""
        return bytes(self._content)


class ChunkedBody:
    """A body in chunks, which llhttp takes apart; extensions and trailers are read over."""

    __slots__ = ("_content", "_parser", "_tail", "_wire_size", "is_complete")

    # A chunk of one byte needs five around it; extensions beyond that serve only those who like to
    # keep us busy.
    _FREE_OVERHEAD = 32 * 1024
    _OVERHEAD_PER_BYTE = 8

    def __init__(self, head: bytes) -> None:
        self._content = bytearray()
        self._parser = HttpRequestParser(self)
        self._tail = b""
        self._wire_size = 0
        self.is_complete = False
        self._parser.feed_data(_UPGRADE.sub(b"ignored:", head))

    @property
    def size(self) -> int:
        """How many bytes of content have come."""
        return len(self._content)

    def on_body(self, piece: bytes) -> None:
        """Take the content of a chunk, or a part of it."""
        self._content += piece

    def on_message_complete(self) -> None:
        """Take note of the end."""
        self.is_complete = True

    def feed(self, data: bytes, start: int) -> int:
        """Take what belongs to this body from ``start`` on; return where the rest begins.

        llhttp does not say where it found the end, and would take what follows for its next
        request. But a body in chunks always ends with an empty line, so it is fed from one to the
        next of them.

        Raises:
            Refused: These are no chunks, or there is much more around them than in them.
        """
        try:
            while start < len(data) and not self.is_complete:
                end = self._next_cut(data, start)
                self._parser.feed_data(data[start:end])
                self._wire_size += end - start
                start = end
        except HttpParserError as exc:
            raise Refused(400, f"malformed chunk: {exc}") from exc
        if self._wire_size > self.size * (1 + self._OVERHEAD_PER_BYTE) + self._FREE_OVERHEAD:
            raise Refused(400, "more around the chunks than in them")
        return start

    def _next_cut(self, data: bytes, start: int) -> int:
        """Return the index after the next empty line, which may have begun in earlier data."""
        seam = self._tail + data[start : start + 3]
        found = seam.find(HEAD_END)
        if found >= 0:
            end = start + found + 4 - len(self._tail)
        else:
            found = data.find(HEAD_END, start)
            end = found + 4 if found >= 0 else len(data)
        self._tail = b"" if found >= 0 else (self._tail + data[max(start, len(data) - 3) :])[-3:]
        return end

    def content(self) -> bytes:
        """Return the whole body."""
        return bytes(self._content)
