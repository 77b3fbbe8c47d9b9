"""Where an HTTP/1.1 request ends, and its body put together. No socket, no clock."""

import re

from httptools import HttpParserError, HttpParserInvalidMethodError, HttpRequestParser

from .head import HEAD_END, Head, Refused

_UPGRADE = re.compile(rb"(?<=\n)upgrade:", re.IGNORECASE)


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

    def check(self, head: Head, data: bytes, *, is_whole: bool) -> None:
        """Return if llhttp, too, takes ``data`` for exactly one request, or for the head of one.

        Raises:
            Refused: It does not.
        """
        # An offer is ignored, as RFC 9110, 7.8 allows; llhttp would skip the body.
        if b"upgrade" in head.fields:
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
        if not is_whole or not head.keep_alive:
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
