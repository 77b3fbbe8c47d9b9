"""A request to stop that can be waited for together with a socket. Nothing here polls."""

import contextlib
import math
import select
import signal
import socket
import threading
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

    In the main thread every signal with a handler wakes the one who waits: Python only notes one
    that comes just before the wait, and would call its handler after that.
    """

    def __init__(self) -> None:
        self.is_made = False
        self._sockets: tuple[socket.socket, socket.socket] | None = None
        self._woken_before: int | None = None

    def __enter__(self) -> None:
        self._sockets = socket.socketpair()
        for sock in self._sockets:
            sock.setblocking(False)
        if threading.current_thread() is threading.main_thread():
            fileno = self._sockets[1].fileno()
            self._woken_before = signal.set_wakeup_fd(fileno, warn_on_full_buffer=False)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        assert self._sockets is not None
        if self._woken_before is not None:
            signal.set_wakeup_fd(self._woken_before)
        sockets, self._sockets = self._sockets, None
        for sock in sockets:
            sock.close()

    def make(self) -> None:
        """Wake the one who waits. Returns at once, however often it is called and by whom."""
        self.is_made = True  # first, for one who is about to enter or to look
        if (sockets := self._sockets) is not None:
            with contextlib.suppress(OSError):  # nobody waits any more, or has been woken already
                sockets[1].send(b"\0")

    def forget_wake_ups(self) -> None:
        """Let the next wait last, although a signal has ended this one; a request stays made."""
        assert self._sockets is not None, "enter before waiting"
        with contextlib.suppress(BlockingIOError):
            self._sockets[0].recv(4096)

    def fileno(self) -> int:
        """Return what becomes readable when the request is made."""
        assert self._sockets is not None, "enter before waiting"
        return self._sockets[0].fileno()
