"""The worker protocol by hand: either end of a connection, played by a test."""

import contextlib
import socket
import struct
from typing import Any

import msgpack
from deployments import Deployment
from processes import TIMEOUT

READY = bytes(4)


def packed(value: object) -> bytes:
    """Return msgpack."""
    data: bytes = msgpack.packb(value)
    return data


def frame(body: bytes) -> bytes:
    """Return a body behind its length."""
    return struct.pack(">i", len(body)) + body


def message(entries: object) -> bytes:
    """Return a whole message, whether or not the protocol knows such."""
    return frame(packed(entries))


def addition(**entries: object) -> dict[str, bytes]:
    """Return the entry that only ventu_lite reads."""
    return {"ventu_lite": packed(entries)}


class Line:
    """A socket on which the test plays one end."""

    def __init__(self, sock: socket.socket) -> None:
        sock.settimeout(TIMEOUT)
        self.sock = sock

    def __enter__(self) -> "Line":
        return self

    def __exit__(self, *_: object) -> None:
        self.sock.close()

    def say(self, data: bytes) -> None:
        """Send, although the other end may close meanwhile: that is what is tried here."""
        with contextlib.suppress(ConnectionError):
            self.sock.sendall(data)

    def hear(self) -> Any:
        """Return the next message."""
        return msgpack.unpackb(self.read(struct.unpack(">i", self.read(4))[0]))

    def is_closed(self) -> bool:
        """Wait for the end, and tell whether nothing came before it."""
        try:
            return self.sock.recv(1) == b""
        except ConnectionError:
            return True

    def read(self, size: int) -> bytes:
        """Return so many bytes."""
        data = b""
        while len(data) < size:
            more = self.sock.recv(size - len(data))
            assert more, "the other end has closed"
            data += more
        return data


def connect(deployment: Deployment) -> Line:
    """Connect where workers do, and say nothing yet."""
    option, place = deployment.address
    if option == "--tcp":
        host, _, port = place.partition(":")
        return Line(socket.create_connection((host, int(port)), TIMEOUT))
    sock = socket.socket(socket.AF_UNIX)
    sock.connect(str(deployment.directory / place))
    return Line(sock)
