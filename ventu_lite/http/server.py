"""HTTP/1.1 connections: bytes of strangers in, requests out, answers back in order.

Knows nothing of batching. A handler gets each complete request and answers it whenever it likes;
this module keeps the order, the limits and the clock. What a request may look like is the business
of ``request``.
"""

import asyncio
import logging
import time
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from email.utils import formatdate
from typing import Any, TypeVar

from ..problems import TITLES
from .body import Judge
from .connection import Connection
from .head import Heads
from .request import Answer, Refuse, Request

try:
    import uvloop
except ImportError:  # Windows, PyPy
    uvloop = None  # type: ignore[assignment]  # told from the module by its truth

log = logging.getLogger(__name__)

T = TypeVar("T")
Handler = Callable[[Request], None]


@dataclass(frozen=True, slots=True)
class Limits:
    """What a client may take of us. Sizes are in bytes, times in seconds.

    Attributes:
        max_line: Of the request line. 8 KiB is what RFC 9112 asks for at least, and nginx's and
            Apache's choice.
        max_head: Of request line and headers. Four times that: room for cookies and tokens of a
            browser.
        max_body: Of one body.
        max_held: Of all bodies, whole or not, that wait for their answer; with its answer, or with
            its client, a body goes. 100 clients at ``max_body`` fit. As much again may be kept of
            answers that clients do not read; beyond that those are cut off first who have been at
            it longest.
        max_connections: Twice what a busy proxy keeps open; an idle one takes under 2 KB here.
        max_pipelined: Requests in flight on one connection. More would be unfair to the others in
            the queue.
        head_time: From the first byte to the empty line. Honest heads come in one packet.
        body_time: For the body, and one second more for each ``min_rate`` bytes that have come.
        write_time: Until a client that reads too slowly is cut off, and the same for each
            ``min_rate`` bytes.
        idle_time: Between requests. Longer than the 60 s that load balancers keep idle
            connections, so that they, who know what they are about to send, close first.
        parting_time: While draining, until an idle connection is closed. Its next request may be on
            its way, and is answered; a client in a closed loop sends it within milliseconds.
        linger_time: After the last answer, for the client to read it. Closing on a client that
            still sends would take the answer from its hands (RFC 9112, 9.6).
        linger_size: How much is read and thrown away meanwhile.
        min_rate: Bytes per second of the slowest link that is waited for, 0.8 Mbit/s.
    """

    max_line: int = 8 * 1024
    max_head: int = 32 * 1024
    max_body: int = 10 * 1024 * 1024
    max_held: int = 1024**3
    max_connections: int = 10_000
    max_pipelined: int = 32
    head_time: float = 10.0
    body_time: float = 30.0
    write_time: float = 30.0
    idle_time: float = 75.0
    parting_time: float = 0.25
    linger_time: float = 3.0
    linger_size: int = 64 * 1024 * 1024
    min_rate: float = 100_000.0

    def shortest_time(self) -> float:
        """Return the least time that a deadline set from now on may be away."""
        return min(
            self.head_time, self.body_time, self.write_time, self.idle_time, self.linger_time
        )


def run(main: Coroutine[Any, Any, T]) -> T:
    """Run ``main`` like ``asyncio.run``, on uvloop where there is one."""
    return uvloop.run(main) if uvloop else asyncio.run(main)


class HttpServer:
    """All connections of one listener or several: ``loop.create_server(HttpServer(handler), …)``.

    To be made and used in the thread of a running event loop. Keep what ``create_server`` returns:
    uvloop closes the socket of a listener that nobody holds.

    Attributes:
        connections: The open ones.
        held: Bytes of requests that were read and not yet answered.
        unsent: Bytes of answers to clients that do not read.
        is_draining: Whether every answer is the last one of its connection.
    """

    def __init__(
        self,
        handler: Handler,
        *,
        refuse: Refuse,
        limits: Limits | None = None,
        check: Callable[[Request], Answer | None] | None = None,
    ) -> None:
        """Store what to serve.

        Args:
            handler: Gets each complete request, must not block, and sees to ``request.respond``.
            refuse: Makes the answer to what never reaches ``handler``, and to what it fails on.
            limits: What a client may take of us.
            check: Asked when a head has come whose body has not; an answer is sent at once, and
                the body is never read. A request that comes in one piece is not checked: the
                handler has to do it.
        """
        self.handler = handler
        self.limits = limits or Limits()
        self.check = check
        self.refuse = refuse
        self.judge = Judge()
        self.heads = Heads()
        self.loop = asyncio.get_running_loop()
        self.connections: set[Connection] = set()
        self.held = 0
        self.unsent = 0
        self.is_draining = False
        self._dirty: list[Connection] = []
        self._sweeping: asyncio.TimerHandle | None = None
        self._empty: asyncio.Future[None] | None = None
        self.preambles = Preambles()

    def __call__(self) -> "Connection":
        """Return the protocol of a new connection."""
        return Connection(self)

    async def drain(self) -> None:
        """Let no connection outlive its requests; return when none is left.

        Close the listening sockets first. Whoever cannot wait for slow clients calls ``abort``
        after a while.
        """
        self.is_draining = True
        if not self.connections:
            return
        if self._empty is None or self._empty.done():
            self._empty = self.loop.create_future()
        parting = self.loop.call_later(self.limits.parting_time, self._close_idle)
        try:
            await asyncio.shield(self._empty)
        finally:
            parting.cancel()

    def _close_idle(self) -> None:
        for connection in list(self.connections):
            connection.close_if_idle()

    def abort(self) -> None:
        """Close every connection at once, answered or not."""
        for connection in list(self.connections):
            connection.abort()

    def add(self, connection: "Connection") -> bool:
        """Take up a new connection, or return False if there are too many."""
        if len(self.connections) >= self.limits.max_connections:
            return False
        self.connections.add(connection)
        if self._sweeping is None:
            self._sweeping = self.loop.call_later(self.limits.shortest_time(), self._sweep)
        return True

    def discard(self, connection: "Connection") -> None:
        """Forget a connection."""
        self.connections.discard(connection)
        if self.connections:
            return
        if self._sweeping is not None:
            self._sweeping.cancel()
            self._sweeping = None
        if self._empty is not None and not self._empty.done():
            self._empty.set_result(None)

    def count_unsent(self, size: int) -> None:
        """Take note of bytes that a client does not read, or of fewer."""
        self.unsent += size
        if size > 0 and self.unsent > self.limits.max_held:
            self.loop.call_soon(self._cut_off_slowest)  # a transport may be in the midst of it

    def _cut_off_slowest(self) -> None:
        if self.unsent > self.limits.max_held and self.connections:
            min(self.connections, key=lambda it: it.write_deadline).abort()

    def _sweep(self) -> None:
        """Look at all deadlines; one timer for all is cheaper than one for each.

        A deadline that is set after this sweep is at least the shortest time away: no need to come
        earlier.
        """
        now = self.loop.time()
        shortest = self.limits.shortest_time()
        earliest = now + shortest
        for connection in list(self.connections):
            if connection.deadline <= now or connection.write_deadline <= now:
                self._expire(connection, now)
            earliest = min(earliest, connection.deadline, connection.write_deadline)
        earliest = max(earliest, now + shortest / 20)
        self._sweeping = self.loop.call_at(earliest, self._sweep)

    def _expire(self, connection: Connection, now: float) -> None:
        try:
            connection.expire(now)
        except Exception:  # one broken connection must not keep the deadlines of the others
            log.exception("a deadline could not be kept")
            connection.abort()

    def mark(self, connection: "Connection") -> None:
        """Flush ``connection`` when this turn of the loop is over, together with all others."""
        if not self._dirty:
            self.loop.call_soon(self._flush)
        self._dirty.append(connection)

    def _flush(self) -> None:
        dirty, self._dirty = self._dirty, []
        now = self.loop.time()
        self.preambles.refresh()
        for connection in dirty:
            try:
                connection.flush(now)
            except Exception:  # one broken connection must not keep the answers of the others
                log.exception("an answer could not be written")
                connection.abort()


class Preambles(dict[int, bytes]):
    """Status line and Date by status; made once a second if ``refresh`` is called before use."""

    _second = 0

    def refresh(self) -> None:
        """Forget the Date of another second."""
        now = int(time.time())
        if now != self._second:
            self._second = now
            self.clear()

    def __missing__(self, status: int) -> bytes:
        reason = TITLES.get(status, "")
        date = formatdate(self._second, usegmt=True)
        preamble = self[status] = f"HTTP/1.1 {status} {reason}\r\nDate: {date}\r\n".encode()
        return preamble
