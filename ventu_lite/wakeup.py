"""A request to stop that can be waited for together with a socket. Nothing here polls."""

import contextlib
import math
import select
import socket
from collections.abc import Sequence
from types import TracebackType
from typing import Protocol


class Readable(Protocol):
    """What has a file descriptor to wait for."""

    def fileno(self) -> int:
        """Return the file descriptor."""


def wait_readable(awaited: Sequence[Readable], timeout: float | None) -> list[Readable]:
    """Return those with something to read, none of them after ``timeout`` seconds."""
    poller = select.poll()  # select() knows no file descriptor above 1023
    for readable in awaited:
        poller.register(readable.fileno(), select.POLLIN)
    ready = dict(poller.poll(None if timeout is None else max(0, math.ceil(timeout * 1000))))
    return [readable for readable in awaited if readable.fileno() in ready]


class StopRequest:
    """A request that a signal handler or another thread makes, and that can be waited for.

    Enter it before waiting. The flag is for those who look, the socket for those who wait; neither
    needs a lock, which a signal handler could not take.
    """

    def __init__(self) -> None:
        self.is_made = False
        self._sockets: tuple[socket.socket, socket.socket] | None = None

    def __enter__(self) -> None:
        self._sockets = socket.socketpair()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        assert self._sockets is not None
        sockets, self._sockets = self._sockets, None
        for sock in sockets:
            sock.close()

    def make(self) -> None:
        """Wake the one who waits. Returns at once, however often it is called and by whom."""
        self.is_made = True  # first, for one who is about to enter or to look
        if (sockets := self._sockets) is not None:
            with contextlib.suppress(OSError):  # nobody waits any more, or has been woken already
                sockets[1].send(b"\0", socket.MSG_DONTWAIT)

    def fileno(self) -> int:
        """Return what becomes readable when the request is made."""
        assert self._sockets is not None, "enter before waiting"
        return self._sockets[0].fileno()
