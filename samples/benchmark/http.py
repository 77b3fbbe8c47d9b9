"""HTTP/1.1 as a client of a benchmark needs it: bytes of requests, answers, ``Server-Timing``.

Bytes and values only: no socket and no clock. The reader is strict, because an answer that it
understood wrongly would be counted as a good one.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from urllib.parse import urlsplit

# Of one answer; it only has to stop a server that never ends its head or its body.
MAX_HEAD = 64 * 1024
MAX_BODY = 256 * 1024 * 1024

_STATUS = re.compile(rb"HTTP/1\.[01] ([1-5][0-9][0-9])(?: [^\r\n\0]*)?\Z")
_FIELD = re.compile(rb"([!#$%&'*+.^_`|~0-9A-Za-z-]+):[ \t]*([^\r\n\0]*)\Z")
_LENGTH = re.compile(rb"[0-9]{1,15}\Z")
_CHUNK = re.compile(rb"([0-9A-Fa-f]{1,8})[ \t]*(?:;[^\r\n\0]*)?\Z")
_QUEUE = re.compile(rb"(?:^|,)[ \t]*queue(?:;[^,]*?)??;dur=([0-9]+(?:\.[0-9]+)?)")
_BATCH = re.compile(rb'(?:^|,)[ \t]*batch(?:;[^,]*?)??;desc="?([1-9][0-9]{0,8})\b')


class Unreadable(Exception):
    """What came is not an HTTP/1.1 answer, or has no end that can be found."""


@dataclass(frozen=True, slots=True)
class Address:
    """Where requests go.

    Attributes:
        host: Name or address, without brackets.
        port: The TCP port.
        target: Path and query.
        authority: The value of ``Host``.
    """

    host: str
    port: int
    target: str
    authority: str

    @classmethod
    def of(cls, url: str) -> "Address":
        """Return the parts of a URL.

        Raises:
            ValueError: It is not an ``http`` URL with a host.
        """
        parts = urlsplit(url if "://" in url else f"http://{url}")
        if parts.scheme != "http":
            raise ValueError(f"{url!r} is not http: measure behind the TLS proxy, or the proxy's")
        if not parts.hostname:
            raise ValueError(f"{url!r} has no host")
        target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        return cls(parts.hostname, parts.port or 80, target, parts.netloc.rpartition("@")[2])


def request_bytes(method: str, address: Address, headers: Mapping[str, str], body: bytes) -> bytes:
    """Return a whole request; ``Content-Length`` is added where there is a body.

    Raises:
        ValueError: A header or the target holds a character that would end its line.
    """
    fields = {"Host": address.authority, **headers}
    if body or method in ("POST", "PUT", "PATCH"):
        fields["Content-Length"] = str(len(body))
    lines = [f"{method} {address.target} HTTP/1.1", *(f"{k}: {v}" for k, v in fields.items())]
    for line in lines:
        if re.search(r"[\r\n\0]", line) or not line.isascii():
            raise ValueError(f"{line!r} cannot stand in a request")
    return "\r\n".join([*lines, "", ""]).encode() + body


@dataclass(slots=True)
class Answer:
    """One answer.

    Attributes:
        status: Its status code.
        body: Its body, without the framing.
        timing: The value of ``Server-Timing``, empty if there is none.
        closes: Whether the connection ends with it.
    """

    status: int
    body: bytes
    timing: bytes
    closes: bool


class AnswerReader:
    """Turn the bytes of one connection into answers, however they were cut.

    One request is out at a time, so more bytes than one answer has are an error.
    """

    def __init__(self) -> None:
        self._buffer = b""

    @property
    def is_empty(self) -> bool:
        """Whether nothing of an answer has come."""
        return not self._buffer

    def feed(self, data: bytes) -> Answer | None:
        """Return the answer that ``data`` completes, if it does.

        Raises:
            Unreadable: The bytes are not one HTTP/1.1 answer.
        """
        self._buffer += data
        return self._take(is_over=False)

    def feed_eof(self) -> Answer | None:
        """Return the answer that the end of the stream completes, if it does.

        Raises:
            Unreadable: The stream ends inside an answer.
        """
        if not self._buffer:
            return None
        answer = self._take(is_over=True)
        if answer is None:
            raise Unreadable(f"the answer ends after {len(self._buffer)} bytes")
        return answer

    def _take(self, *, is_over: bool) -> Answer | None:
        while (split := self._buffer.find(b"\r\n\r\n")) >= 0:
            head = _Head.of(self._buffer[:split])
            if head.status >= 200:
                return self._whole(head, split + 4, is_over)
            if head.status == 101:
                raise Unreadable("the server switches protocols")
            self._buffer = self._buffer[split + 4 :]  # 100 Continue, 103 Early Hints
        if len(self._buffer) > MAX_HEAD:
            raise Unreadable(f"a head of more than {MAX_HEAD} bytes")
        if not b"HTTP/1.".startswith(self._buffer[:7]):
            raise Unreadable("not HTTP/1.1")
        return None

    def _whole(self, head: "_Head", start: int, is_over: bool) -> Answer | None:
        closes = head.closes
        if head.status in (204, 304):
            body, end = b"", start
        elif head.is_chunked:
            found = _unchunk(self._buffer, start)
            if found is None:
                return None
            body, end = found
        elif head.length is not None:
            end = start + head.length
            if len(self._buffer) < end:
                return None
            body = self._buffer[start:end]
        else:
            if len(self._buffer) - start > MAX_BODY:
                raise Unreadable(f"a body of more than {MAX_BODY} bytes")
            if not is_over:
                return None
            body, end, closes = self._buffer[start:], len(self._buffer), True
        if end != len(self._buffer):
            raise Unreadable(f"{len(self._buffer) - end} bytes after the answer")
        self._buffer = b""
        return Answer(head.status, body, head.timing, closes)


@dataclass(slots=True)
class _Head:
    """What the head of an answer says about it."""

    status: int
    length: int | None = None
    is_chunked: bool = False
    closes: bool = False
    timing: bytes = b""

    @classmethod
    def of(cls, data: bytes) -> "_Head":
        first, *lines = data.split(b"\r\n")
        match = _STATUS.match(first)
        if match is None:
            raise Unreadable("not a status line of HTTP/1.1")
        head = cls(int(match[1]), closes=first.startswith(b"HTTP/1.0"))
        for line in lines:
            head._add(line)
        if head.is_chunked and head.length is not None:
            raise Unreadable("both a length and chunks")
        return head

    def _add(self, line: bytes) -> None:
        match = _FIELD.match(line)
        if match is None:
            raise Unreadable("not a header field")
        name = match[1].lower()
        if name == b"content-length":
            self._set_length(match[2].strip())
        elif name == b"transfer-encoding":
            if match[2].strip().lower() != b"chunked":
                raise Unreadable("a transfer coding that was not asked for")
            self.is_chunked = True
        elif name == b"connection":
            options = [option.strip() for option in match[2].lower().split(b",")]
            self.closes = b"close" in options or self.closes and b"keep-alive" not in options
        elif name == b"server-timing":
            self.timing = self.timing + b"," + match[2] if self.timing else match[2]

    def _set_length(self, value: bytes) -> None:
        if not _LENGTH.match(value) or self.length not in (None, int(value)):
            raise Unreadable("not a length")
        self.length = int(value)
        if self.length > MAX_BODY:
            raise Unreadable(f"a body of more than {MAX_BODY} bytes")


def _unchunk(data: bytes, start: int) -> tuple[bytes, int] | None:
    """Return the body that begins at ``start`` and where it ends, if it is whole."""
    pieces: list[bytes] = []
    while True:
        end = data.find(b"\r\n", start)
        if end < 0:
            if len(data) - start > MAX_HEAD:
                raise Unreadable("not the size of a chunk")
            return None
        match = _CHUNK.match(data, start, end)
        if match is None:
            raise Unreadable("not the size of a chunk")
        start, size = end + 2, int(match[1], 16)
        if size == 0:
            return _trailer(data, start, b"".join(pieces))
        if sum(map(len, pieces)) + size > MAX_BODY:
            raise Unreadable(f"a body of more than {MAX_BODY} bytes")
        if len(data) < start + size + 2:
            return None
        if data[start + size : start + size + 2] != b"\r\n":
            raise Unreadable("a chunk of another size than it says")
        pieces.append(data[start : start + size])
        start += size + 2


def _trailer(data: bytes, start: int, body: bytes) -> tuple[bytes, int] | None:
    """Skip the fields after the last chunk."""
    while (end := data.find(b"\r\n", start)) >= 0:
        if end == start:
            return body, end + 2
        if not _FIELD.match(data, start, end):
            raise Unreadable("not a trailer field")
        start = end + 2
    if len(data) - start > MAX_HEAD:
        raise Unreadable("a trailer without an end")
    return None


def queue_seconds(timing: bytes) -> float | None:
    """Return how long the job waited in the queue, as ``Server-Timing`` tells, if it does."""
    match = _QUEUE.search(timing)
    return float(match[1]) / 1e3 if match else None


def batch_size(timing: bytes) -> int | None:
    """Return the size of the job's batch, as ``Server-Timing`` tells, if it does."""
    match = _BATCH.search(timing)
    return int(match[1]) if match else None
