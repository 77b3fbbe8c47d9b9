"""What a connection is below HTTP: its transport, its deadlines, its end. Knows no requests."""

import asyncio
import contextlib
import socket
import struct
from collections.abc import Callable
from math import inf
from operator import attrgetter
from typing import TYPE_CHECKING, Final

from ..forks import fileno_of

if TYPE_CHECKING:
    from .server import HttpServer, Limits

# The phases, by what the client is expected to send: a request, the rest of a head, the rest of a
# body, nothing that would be read, nothing but its end. IDLE is false: that is asked for each
# request.
IDLE, IN_HEAD, IN_BODY, DEAF, ENDING = range(5)
LISTENING: Final = frozenset((IDLE, IN_HEAD, IN_BODY))

_TIMES: Final[dict[int, Callable[["Limits"], float]]] = {
    IDLE: attrgetter("idle_time"),
    IN_HEAD: attrgetter("head_time"),
    IN_BODY: attrgetter("body_time"),
    DEAF: lambda limits: inf,  # it is our turn
    ENDING: attrgetter("linger_time"),
}
_NO_LINGER: Final = struct.pack("ii", 1, 0)


class BaseConnection(asyncio.Protocol):
    """What ``Connection`` says to its transport, and for how long it waits for the client.

    Attributes:
        deadline: When the client must have sent what it is expected to send.
        write_deadline: When it must have read what it was sent.
    """

    __slots__ = (
        *("_discarded", "_is_reading_paused", "_is_write_paused", "_phase", "_server"),
        *("_transport", "_unsent", "deadline", "write_deadline"),
    )

    def __init__(self, server: "HttpServer") -> None:
        self._server = server
        self._transport: asyncio.Transport | None = None
        self._phase = IDLE
        self._unsent = 0  # bytes of answers that are kept for a client that does not read
        self._discarded = 0
        self._is_reading_paused = False
        self._is_write_paused = False
        self.deadline = inf
        self.write_deadline = inf

    @property
    def peer(self) -> str:
        """The address of the client, "" if it has left."""
        name = self._transport and self._transport.get_extra_info("peername")
        return str(name[0]) if name else ""

    def fileno(self) -> int:
        """Return the file descriptor of the connection, -1 once it is closed or about to be."""
        return fileno_of(self._transport)

    def _expect(self, phase: int) -> None:
        """Enter a phase, and wait for the client as long as the limits say.

        One that does not read the answers is waited for only when it does.
        """
        self._phase = phase
        if not self._is_write_paused:
            self.deadline = self._now() + _TIMES[phase](self._server.limits)

    def _now(self) -> float:
        return self._server.loop.time()

    # ---- back-pressure

    def pause_writing(self) -> None:
        """Take no more requests of a client that does not read the answers."""
        limits = self._server.limits
        assert self._transport is not None
        size = self._transport.get_write_buffer_size()
        self._is_write_paused = True
        self.write_deadline = self._now() + limits.write_time + size / limits.min_rate
        self.deadline = inf
        self._count_unsent(size)
        self._pause_reading(self._phase in LISTENING)

    def resume_writing(self) -> None:
        """Go on where ``pause_writing`` stopped."""
        self._is_write_paused = False
        self.write_deadline = inf
        self._count_unsent(-self._unsent)

    def _pause_reading(self, wanted: bool) -> None:
        if wanted != self._is_reading_paused and self._transport is not None:
            self._is_reading_paused = wanted
            if wanted:
                self._transport.pause_reading()
            else:
                self._transport.resume_reading()

    def _count_unsent(self, size: int) -> None:
        self._unsent += size
        self._server.count_unsent(size)

    # ---- the end

    def abort(self) -> None:
        """Close at once, whatever is unsent.

        With RST: after a mere close the system keeps what is unsent for minutes, and offers it to
        a client that does not read, and does not learn that it was cut off.
        """
        transport, self._transport = self._transport, None
        self.deadline = self.write_deadline = inf
        if transport is None:
            return
        self._count_unsent(-self._unsent)
        sock = transport.get_extra_info("socket")
        if sock is not None:
            with contextlib.suppress(OSError):  # the client was faster
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _NO_LINGER)
        transport.abort()

    def _linger(self) -> None:
        """Say that nothing more will come, and throw away what the client still sends."""
        assert self._transport is not None
        self._expect(ENDING)
        self._pause_reading(False)
        if not self._transport.can_write_eof():  # TLS
            self._transport.close()
            return
        try:
            self._transport.write_eof()
        except OSError:  # the client has reset the connection, and asyncio says so here
            self.abort()

    def _discard(self, size: int) -> None:
        self._discarded += size
        if self._discarded > self._server.limits.linger_size:
            self.abort()

    def _close(self) -> None:
        """Close as soon as everything is written; a deadline sees to it that this ends."""
        if self._transport is not None:
            self._expect(ENDING)
            self._transport.close()
