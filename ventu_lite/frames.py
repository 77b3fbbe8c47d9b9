"""Frames, the envelopes of the wire protocol: a 4-byte big-endian length, then so many bytes."""

import re
import struct

from .errors import ProtocolError

_HEADER = struct.Struct(">i")

# How others begin who have come to the wrong port. As a length each is larger than any message.
_OTHERS = [
    (re.compile(rb"HTTP|[A-Z]{3} |POST|HEAD|PATC|DELE|OPTI|CONN|TRAC|PRI "), "HTTP"),
    (re.compile(rb"[\x15\x16]\x03[\x00-\x04]", re.DOTALL), "TLS"),
]


def encode_frame(body: bytes) -> bytes:
    """Return ``body`` with its header, ready to be written in one call."""
    return _HEADER.pack(len(body)) + body


class FrameDecoder:
    """Turn a byte stream, however it was cut up, back into the bodies of its frames.

    Args:
        max_size: The largest body to accept, in bytes. It is judged by the header, so that a peer
            cannot make us hold more than this.

    Attributes:
        max_size: The same, and may be changed: what comes next may be smaller or larger.
    """

    def __init__(self, max_size: int) -> None:
        self.max_size = max_size
        self._buffer = bytearray()

    @property
    def is_partial(self) -> bool:
        """Whether a frame has begun and not ended."""
        return bool(self._buffer)

    def feed(self, data: bytes) -> list[bytes]:
        """Return the bodies that ``data`` completes, oldest first.

        Raises:
            ProtocolError: A header announces a negative or too large body. The stream cannot be
                understood any further; bodies that came before it in ``data`` are lost too.
        """
        buffer = self._buffer
        buffer += data
        bodies = []
        while len(buffer) >= _HEADER.size:
            (size,) = _HEADER.unpack_from(buffer)
            if not 0 <= size <= self.max_size:
                raise self._bad_size(size)
            end = _HEADER.size + size
            if len(buffer) < end:
                break
            with memoryview(buffer) as view:  # a slice of the buffer itself would be copied twice
                bodies.append(bytes(view[_HEADER.size : end]))
            del buffer[:end]
        return bodies

    def feed_eof(self) -> None:
        """Check that the stream did not end inside a frame.

        Raises:
            ProtocolError: It did.
        """
        if self._buffer:
            raise ProtocolError(f"stream ends inside a frame, after {len(self._buffer)} bytes")

    def _bad_size(self, size: int) -> ProtocolError:
        for pattern, name in _OTHERS:
            if pattern.match(self._buffer):
                return ProtocolError(f"the peer speaks {name}, is this the right port?")
        limit = "at least 0" if size < 0 else f"at most {self.max_size}"
        return ProtocolError(f"frame of {size} bytes, expected {limit}")
