"""What must hold for the bytes of any HTTP client, however they come. No socket, no clock.

The last ``CONTROL`` bytes of an input say how it comes: where it is cut, how tight the limits are,
when answers are given, whether the client reads them. The rest is what the client sends. Its
requests are read a second time by h11, another strict reader, written by others.
"""

import asyncio
import heapq
import logging
import re
from collections.abc import Callable
from typing import Any

import h11

from ventu_lite.batching.refusals import unreadable
from ventu_lite.http.connection import Connection
from ventu_lite.http.head import Heads
from ventu_lite.http.request import Request
from ventu_lite.http.server import HttpServer, Limits

CONTROL = 8
LATE, SLOW, TIGHT, EVERY_BYTE, HALF_CLOSED, WAITING, DRAINING, CHECKED = (1 << n for n in range(8))

Seen = tuple[bytes, bytes, bytes]  # method, target, body

_TIGHT = Limits(
    max_line=64, max_head=256, max_body=64, max_held=160, max_pipelined=4, linger_size=512
)
_EVER = 1000.0  # seconds; longer than all deadlines together
_HONEST = b"POST /honest HTTP/1.1\r\nHost: a\r\nContent-Length: 6\r\n\r\nhonest"
_LINE_BREAKS = re.compile(rb"(?:\r\n)*")
_ABSOLUTE = re.compile(rb"https?://[^/?]+(.*)", re.IGNORECASE)


class Loop(asyncio.AbstractEventLoop):
    """The part of an event loop that the connections use, on a clock that is moved by hand."""

    def __init__(self) -> None:
        self.now = 0.0
        self._timers: list[asyncio.TimerHandle] = []
        self._ready: list[asyncio.Handle] = []

    def time(self) -> float:
        return self.now

    def get_debug(self) -> bool:
        return False

    def call_soon(  # type: ignore[override]  # no context
        self, callback: Callable[..., object], *args: Any
    ) -> asyncio.Handle:
        handle = asyncio.Handle(callback, args, self)
        self._ready.append(handle)
        return handle

    def call_at(  # type: ignore[override]  # no context
        self, when: float, callback: Callable[..., object], *args: Any
    ) -> asyncio.TimerHandle:
        handle = asyncio.TimerHandle(when, callback, args, self)
        heapq.heappush(self._timers, handle)
        return handle

    def call_later(  # type: ignore[override]  # no context
        self, delay: float, callback: Callable[..., object], *args: Any
    ) -> asyncio.TimerHandle:
        return self.call_at(self.now + delay, callback, *args)

    def call_exception_handler(self, context: dict[str, Any]) -> None:
        raise AssertionError(context["message"]) from context["exception"]

    def _timer_handle_cancelled(self, handle: asyncio.TimerHandle) -> None:
        """Nothing is counted here."""

    def turn(self) -> None:
        """Call what is ready, until nothing is."""
        while self._ready:
            ready, self._ready = self._ready, []
            for handle in ready:
                if not handle.cancelled():
                    handle._run()

    def advance(self, seconds: float) -> None:
        """Move the clock on, calling what becomes due at its time."""
        self.turn()
        end = self.now + seconds
        while self._timers and self._timers[0].when() <= end:
            handle = heapq.heappop(self._timers)
            self.now = max(self.now, handle.when())
            if not handle.cancelled():
                handle._run()
            self.turn()
        self.now = end


class Transport(asyncio.Transport):
    """Keeps what is written; a slow client leaves it in the buffer until ``drain``."""

    def __init__(self, loop: Loop, protocol: Connection, *, is_slow: bool) -> None:
        super().__init__()
        self.written = b""
        self.is_lost = self.is_aborted = self.is_paused = False
        self._loop, self._protocol = loop, protocol
        self._is_slow = is_slow
        self._is_full = self._is_closing = self._has_ended = False

    def write(self, data: bytes | bytearray | memoryview) -> None:
        assert not self._has_ended, "written after the end"
        if self._is_closing:
            return
        self.written += data
        if self._is_slow and not self._is_full:
            self._is_full = True
            self._protocol.pause_writing()

    def drain(self) -> None:
        """Let the client read everything."""
        if self._is_full:
            self._is_full = False
            if self._is_closing:
                self._loop.call_soon(self._lose)
            self._protocol.resume_writing()

    def get_write_buffer_size(self) -> int:
        return len(self.written) if self._is_full else 0

    def can_write_eof(self) -> bool:
        return True

    def write_eof(self) -> None:
        self._has_ended = True

    def is_closing(self) -> bool:
        return self._is_closing

    def close(self) -> None:
        if not self._is_closing:
            self._is_closing = True
            if not self._is_full:
                self._loop.call_soon(self._lose)

    def abort(self) -> None:
        self._is_closing = self.is_aborted = True
        self._loop.call_soon(self._lose)

    def pause_reading(self) -> None:
        assert not self.is_paused, "paused twice"
        self.is_paused = True

    def resume_reading(self) -> None:
        assert self.is_paused, "resumed twice"
        self.is_paused = False

    def _lose(self) -> None:
        if not self.is_lost:
            self.is_lost = True
            self._protocol.connection_lost(None)


class Faults(logging.Handler):
    """Turns an error that is logged into one: so our code saves one client from another."""

    def emit(self, record: logging.LogRecord) -> None:
        raise AssertionError(record.getMessage())

    def __enter__(self) -> None:
        logging.getLogger("ventu_lite").addHandler(self)

    def __exit__(self, *exc_info: object) -> None:
        logging.getLogger("ventu_lite").removeHandler(self)


class Site:
    """A server with one client, and all that the two have said to each other.

    Args:
        flags: Which of ``LATE`` and its neighbours.

    Attributes:
        requests: Those that came to the handler, oldest first.
        seen: What the handler was asked in each.
    """

    def __init__(self, flags: int) -> None:
        self.flags = flags
        self.requests: list[Request] = []
        self.seen: list[Seen] = []
        self.loop = Loop()  # type: ignore[abstract]  # what is missing is never called
        asyncio._set_running_loop(self.loop)
        try:
            limits = _TIGHT if flags & TIGHT else Limits()
            check = self._check if flags & CHECKED else None
            self.server = HttpServer(self._handle, refuse=unreadable, limits=limits, check=check)
        finally:
            asyncio._set_running_loop(None)
        self.connection, self.transport = self.connect(is_slow=bool(flags & SLOW))

    def connect(self, *, is_slow: bool = False) -> tuple[Connection, Transport]:
        """Return both sides of a new connection."""
        connection = self.server()
        transport = Transport(self.loop, connection, is_slow=is_slow)
        connection.connection_made(transport)
        return connection, transport

    def answer(self) -> None:
        """Answer everything, the last request first: the order must not depend on ours."""
        while open := [one for one in self.requests if one.answer is None and not one.is_gone]:
            for request in reversed(open):
                request.respond(200, b"", b"%d" % self.requests.index(request))
            self.loop.turn()

    def _handle(self, request: Request) -> None:
        self.requests.append(request)
        self.seen.append((request.method, request.target, request.body))
        if not self.flags & LATE:
            request.respond(200, b"", b"%d" % (len(self.requests) - 1))

    def _check(self, request: Request) -> tuple[int, bytes, bytes] | None:
        return (415, b"", b"") if request.fields.get(b"content-type") == b"no" else None


def check(data: bytes) -> None:
    """Raise if the server does anything wrong with a client that sends ``data``."""
    control = data[-CONTROL:].rjust(CONTROL, b"\0")
    stream, flags = data[:-CONTROL], control[0]
    with Faults(logging.ERROR):
        pieces = _pieces(stream, control[1:], bool(flags & EVERY_BYTE))
        verdict = _verdict(flags, pieces, Heads())
        if not flags & (LATE | SLOW | TIGHT | HALF_CLOSED | WAITING | DRAINING):
            known = Heads()
            assert _verdict(flags, [stream], known) == verdict, "the cuts have changed the verdict"
            assert _verdict(flags, pieces, known) == verdict, "known heads have changed the verdict"


def _verdict(flags: int, pieces: list[bytes], heads: Heads) -> tuple[list[Seen], list[int]]:
    """Return the requests that came to the handler, and the statuses of all answers."""
    site = Site(flags)
    site.server.heads = heads
    delivered = _deliver(site, pieces)
    _end(site)
    seen, asked = list(site.seen), _asked(delivered)
    statuses = _statuses(site, [method for method, _, _ in asked], b"HEAD " in delivered)
    good = [request for request, status in zip(asked, statuses, strict=False) if status == 200]
    assert seen[: len(good)] == good, f"{seen} are {good} to h11"
    if not flags & TIGHT:
        assert seen == asked[: len(seen)], f"{seen} are {asked} to h11"
    _check_honest_client(site)
    return seen, statuses


def _pieces(stream: bytes, control: bytes, is_every_byte: bool) -> list[bytes]:
    """Cut a stream at up to three places, or everywhere."""
    if is_every_byte:
        return [stream[n : n + 1] for n in range(len(stream))]
    places = (int.from_bytes(control[n : n + 2], "big") for n in (0, 2, 4))
    cuts = [0, *sorted({place % (len(stream) + 1) for place in places if place}), len(stream)]
    pieces = [stream[start:end] for start, end in zip(cuts, cuts[1:], strict=False)]
    return [piece for piece in pieces if piece]


def _deliver(site: Site, pieces: list[bytes]) -> bytes:
    """Send the pieces as a transport does; return what was delivered."""
    delivered = b""
    for number, piece in enumerate(pieces):
        if site.transport.is_paused:  # neither reads on before something has happened
            site.answer()
            site.transport.drain()
            site.loop.turn()
        if site.transport.is_closing() or site.transport.is_paused:
            break
        delivered += piece
        site.connection.data_received(piece)
        _check_limits(site)
        site.loop.turn()
        _check_limits(site)
        if site.flags & WAITING:
            site.loop.advance(4.0)
        if site.flags & DRAINING and number == 1:
            site.server.is_draining = True
            site.connection.close_if_idle()
            site.loop.turn()
    return delivered


def _check_limits(site: Site) -> None:
    limits = site.server.limits
    assert 0 <= site.server.held <= limits.max_held, f"{site.server.held} bytes are held"
    open = [one for one in site.requests if one.answer is None and not one.is_gone]
    assert len(open) <= limits.max_pipelined, f"{len(open)} requests are in flight"
    kept = sum(len(one.body) for one in site.requests)
    assert kept <= site.server.held, f"{kept} bytes are kept, {site.server.held} are counted"


def _end(site: Site) -> None:
    """Let everything come to its end; nothing may be left."""
    transport, connection = site.transport, site.connection
    if site.flags & HALF_CLOSED and not transport.is_closing():
        connection.eof_received()
    for _ in range(len(site.requests) + 2):
        site.answer()
        transport.drain()
        site.loop.turn()
    assert all(one.answer is not None or one.is_gone for one in site.requests)
    site.loop.advance(_EVER)
    transport.drain()
    site.loop.turn()
    assert transport.is_lost, "the connection never ends"
    assert site.server.held == 0, f"{site.server.held} bytes are still held"
    assert not any(one.body for one in site.requests), "a body is kept without its client"
    assert not site.server.connections


def _statuses(site: Site, methods: list[bytes], may_be_head: bool) -> list[int]:
    """Return the status of each answer, read by h11, once their number and order are right.

    Args:
        site: Who has answered.
        methods: Those of the requests that h11 finds; one more may have been refused.
        may_be_head: Whether that may have been a HEAD, whose refusal has no body.
    """
    rest, statuses = site.transport.written, list[int]()
    while rest:
        method = methods[len(statuses)] if len(statuses) < len(methods) else b"POST"
        if len(statuses) >= len(methods) and may_be_head and rest.endswith(b"\r\n\r\n"):
            method = b"HEAD"
        status, body, rest = _read_response(method, rest)
        if status == 200 and method != b"HEAD":
            assert body == b"%d" % statuses.count(200), "an answer at the place of another"
        if status != 100:
            statuses.append(status)
    if not site.transport.is_aborted:
        answered = [request for request in site.requests if not request.is_gone]
        assert statuses.count(200) == len(answered), f"{statuses} for {len(answered)} requests"
    refused = statuses[: -1 if statuses else 0].count(200) - len(statuses[:-1])
    assert not refused or site.flags & TIGHT, f"{statuses}: read on after a refusal"
    return statuses


def _read_response(method: bytes, data: bytes) -> tuple[int, bytes, bytes]:
    """Return the status and body of the first response in ``data``, and what follows it."""
    if method == b"HEAD" and data.partition(b"\r\n\r\n")[2].startswith(b"{"):
        method = b"POST"  # a refusal that does not know what it refuses
    client = h11.Connection(h11.CLIENT)
    client.send(h11.Request(method=method, target="/", headers=[("Host", "a")]))
    client.send(h11.EndOfMessage())
    client.receive_data(data)
    head = client.next_event()
    if isinstance(head, h11.InformationalResponse):
        return head.status_code, b"", client.trailing_data[0]
    assert isinstance(head, h11.Response), head
    body = b""
    while isinstance(event := client.next_event(), h11.Data):
        body += event.data
    assert isinstance(event, h11.EndOfMessage), event
    return head.status_code, body, client.trailing_data[0]


def _asked(rest: bytes) -> list[Seen]:
    """Return the requests that h11 finds."""
    found = []
    while rest := rest[_LINE_BREAKS.match(rest).end() :]:  # type: ignore[union-attr]  # it matches
        request, rest = _read_request(rest)
        if request is None:
            break
        found.append(request)
    return found


def _read_request(data: bytes) -> tuple[Seen | None, bytes]:
    """Return the first request in ``data``, ``None`` if it is none, and what follows it."""
    server = h11.Connection(h11.SERVER, max_incomplete_event_size=1 << 20)
    server.receive_data(data)
    body = b""
    try:
        head = server.next_event()
        if not isinstance(head, h11.Request):
            return None, b""
        while isinstance(event := server.next_event(), h11.Data):
            body += event.data
    except h11.RemoteProtocolError:
        return None, b""
    if not isinstance(event, h11.EndOfMessage):
        return None, b""
    return (head.method, _path(head.method, head.target), body), server.trailing_data[0]


def _path(method: bytes, target: bytes) -> bytes:
    """Return what an absolute target means (RFC 9112, 3.2.2 and 3.2.4)."""
    absolute = _ABSOLUTE.fullmatch(target)
    if absolute is None:
        return target
    if not absolute[1]:
        return b"*" if method == b"OPTIONS" else b"/"
    return absolute[1] if absolute[1].startswith(b"/") else b"/" + absolute[1]


def _check_honest_client(site: Site) -> None:
    """The next client of the same server must not notice what the one before has sent."""
    site.server.is_draining = False
    for pieces in ([_HONEST], [_HONEST[:30], _HONEST[30:]]):
        connection, transport = site.connect()
        count = len(site.requests)
        for piece in pieces:
            connection.data_received(piece)
            site.answer()
            site.loop.turn()
        assert site.seen[count:] == [(b"POST", b"/honest", b"honest")], "not understood"
        assert _read_response(b"POST", transport.written)[:2] == (200, b"%d" % count)
        transport.abort()
        site.loop.turn()
        assert site.server.held == 0
