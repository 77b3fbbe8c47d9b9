"""One HTTP/1.1 connection: requests in, answers out in order, limits and deadlines kept."""

import asyncio
import logging
import re
import socket
import struct
from math import inf
from typing import TYPE_CHECKING, cast

from ventu_lite.batching.http_body import ChunkedBody, SizedBody
from ventu_lite.batching.http_head import CHUNKED, HEAD_END, Head, Refused
from ventu_lite.batching.http_request import Answer, Request

if TYPE_CHECKING:
    from ventu_lite.batching.http import HttpServer

log = logging.getLogger(__name__)

__all__ = ["Answer", "Connection"]

_IDLE, _HEAD, _BODY, _DEAF, _LINGER = range(5)  # what a connection expects of its client
_TOO_MUCH = "too many bytes of requests are waiting"
_CLOSE = b"Connection: close\r\n\r\n"
_ENDINGS = (b"Connection: keep-alive\r\n\r\n", b"\r\n")  # of HTTP/1.0 and 1.1
_BODILESS = frozenset((204, 304))
_NO_LINGER = struct.pack("ii", 1, 0)
_NO_REQUEST = (b"", b"\r")  # half a line break is none either
_LINE_BREAKS = re.compile(rb"(?:\r\n)+")
_NO_HEAD = Head(b"", b"", b"", 1, {}, 0, keep_alive=False)  # of what could not be read


class Connection(asyncio.Protocol):
    """One client: requests in flight, at most one that is still coming, and two deadlines."""

    __slots__ = (
        "_awaits_continue", "_body", "_buffer", "_discarded", "_held", "_incoming",
        "_is_reading_paused", "_is_write_paused", "_pending", "_phase", "_server", "_transport",
        "_unsent", "deadline", "write_deadline",
    )  # fmt: skip

    def __init__(self, server: "HttpServer") -> None:
        self._server = server
        self._transport: asyncio.Transport | None = None
        self._phase = _IDLE
        self._pending: list[
            Request
        ] = []  # a list of at most max_pipelined; a deque takes 600 bytes
        self._buffer = b""  # what could not be taken apart yet
        self._incoming: Request | None = None  # whose body is coming
        self._body: SizedBody | ChunkedBody | None = None
        self._held = 0  # bytes of what is still coming
        self._unsent = 0  # bytes of answers that are kept for a client that does not read
        self._discarded = 0
        self._awaits_continue = False
        self._is_reading_paused = False
        self._is_write_paused = False
        self.deadline = inf
        self.write_deadline = inf

    # ---- what the transport tells us

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Start the clock, or turn the client away."""
        transport = cast(asyncio.Transport, transport)  # uvloop's looks like one, but is none
        server = self._server
        if not server.add(self):
            self._phase = _DEAF
            answer = server.refuse(503, "too many connections")
            server.preambles.refresh()
            transport.write(self._encode(self._unread_request(), answer, True))
            transport.close()
            return
        self._transport = transport
        self.deadline = server.loop.time() + server.limits.head_time

    def data_received(self, data: bytes) -> None:
        """Take the requests out of ``data``: mostly one, whole, with a head known before."""
        if not (self._phase or self._pending or self._is_reading_paused):
            end = data.find(HEAD_END) + 4
            head = self._server.heads.known.get(data[:end])
            if head is not None and head.length == len(data) - end:
                self._dispatch(Request(self, head, data[end:]))
                return
        if self._phase >= _DEAF:
            self._discard(len(data))
            return
        if self._buffer:
            data = self._unbuffer() + data
        self._take(data)

    def eof_received(self) -> None:
        """Write what is ready; who sends no more is taken for gone, as Go and nginx do."""
        self._server.preambles.refresh()
        self.flush(self._now())
        self._abandon()
        self._close()

    def connection_lost(self, exc: Exception | None) -> None:
        """Tell everybody who still works for this client."""
        self._transport = None
        self._phase = _DEAF
        self._abandon()
        self._count_unsent(-self._unsent)
        self._server.discard(self)

    def pause_writing(self) -> None:
        """Take no more requests of a client that does not read the answers."""
        limits = self._server.limits
        assert self._transport is not None
        size = self._transport.get_write_buffer_size()
        self._is_write_paused = True
        self.write_deadline = self._now() + limits.write_time + size / limits.min_rate
        self.deadline = inf
        self._count_unsent(size)
        self._pause_reading(self._phase < _DEAF)

    def resume_writing(self) -> None:
        """Go on where ``pause_writing`` stopped."""
        limits = self._server.limits
        self._is_write_paused = False
        self.write_deadline = inf
        self._count_unsent(-self._unsent)
        if self._phase != _IDLE or not self._pending:
            times = (limits.idle_time, limits.head_time, limits.body_time, inf, limits.linger_time)
            self.deadline = self._now() + times[self._phase]
        self._server.mark(self)

    # ---- requests in

    def _take(self, data: bytes) -> None:
        """Take as many requests as may be in flight out of ``data``, and keep the rest."""
        position, size = 0, len(data)
        most = self._server.limits.max_pipelined
        try:
            while position < size and self._phase < _DEAF and not self._is_write_paused:
                if len(self._pending) >= most:
                    break
                start = position
                if self._body is None:
                    position = self._take_head(data, start)
                else:
                    position = self._take_body(data, start)
                if position == start:
                    break  # the head is not whole
        except Refused as exc:
            head = self._incoming.head if self._incoming is not None else exc.head
            self._refuse(self._server.refuse(exc.status, str(exc), head), head or _NO_HEAD)
        if position < size or self._is_reading_paused:
            self._keep(data[position:])

    def _unbuffer(self) -> bytes:
        data, self._buffer = self._buffer, b""
        self._count_held()
        return data

    def _keep(self, rest: bytes) -> None:
        """Store what is not whole, or more than may be in flight."""
        if self._phase >= _DEAF:
            rest = b""
        self._buffer = rest
        self._count_held()
        server, limits = self._server, self._server.limits
        is_blocked = self._is_write_paused or bool(rest) and self._is_full()
        self._pause_reading(self._phase < _DEAF and is_blocked)
        if rest and server.held > limits.max_held:
            self._refuse(server.refuse(429, _TOO_MUCH))
        elif rest not in _NO_REQUEST and not is_blocked and self._phase == _IDLE:
            self._phase = _HEAD
            self.deadline = self._now() + limits.head_time

    def _take_head(self, data: bytes, start: int) -> int:
        limits = self._server.limits
        if data.startswith(b"\r\n", start):  # some clients end a body with a line break too many
            return _LINE_BREAKS.match(data, start).end()  # type: ignore[union-attr]  # it matches
        end = data.find(HEAD_END, start) + 4
        if end == 3 or end - start > limits.max_line:
            self._check_size(data, start, end)
            if end == 3:
                return start
        server = self._server
        head = server.heads.read(data[start:end])
        length = head.length
        if length > limits.max_body:
            raise Refused(413, f"body of more than {limits.max_body} bytes", head)
        self._phase = _IDLE
        request = Request(self, head)
        stop = end + length
        if length == CHUNKED or stop > len(data):
            self._begin_body(request, is_waiting=end == len(data))
            return end
        if not head.is_judged:
            whole = data if stop - start == len(data) else data[start:stop]
            server.judge.check(head, whole, is_whole=True)
            server.heads.keep(head)
        request.body = data[end:stop]
        self._dispatch(request)
        return stop

    def _check_size(self, data: bytes, start: int, end: int) -> None:
        """Judge a long or unfinished head; the verdict must not depend on how it was cut."""
        limits = self._server.limits
        stop = end if end > 3 else len(data)
        if not (data[start : start + 1].isalpha() or data[start] == 13):
            # TLS, or a worker at the wrong door: nobody has to wait for the end of such a head
            raise Refused(400, "this port speaks plain HTTP/1.1")
        line_end = data.find(b"\r", start, stop)
        if (line_end if line_end >= 0 else stop) - start > limits.max_line:
            raise Refused(414, f"request line of more than {limits.max_line} bytes")
        if stop - start > limits.max_head:
            raise Refused(431, f"headers of more than {limits.max_head} bytes")

    def _begin_body(self, request: Request, *, is_waiting: bool) -> None:
        server = self._server
        if not request.head.is_judged:
            server.judge.check(request.head, request.head.raw, is_whole=False)
        answer = server.check(request) if server.check is not None else None
        if answer is not None:
            self._refuse(answer, request.head)
            return
        is_chunked = request.length == CHUNKED
        self._body = ChunkedBody(request.head.raw) if is_chunked else SizedBody(request.length)
        self._incoming = request
        self._phase = _BODY
        self.deadline = self._now() + server.limits.body_time
        self._awaits_continue = is_waiting and request.expects_continue
        self._send_continue()

    def _take_body(self, data: bytes, start: int) -> int:
        limits, body, request = self._server.limits, self._body, self._incoming
        assert body is not None and request is not None
        self._awaits_continue = False
        size = body.size
        position = body.feed(data, start)
        if body.size > limits.max_body:
            raise Refused(413, f"body of more than {limits.max_body} bytes")
        self.deadline += (body.size - size) / limits.min_rate
        self._count_held()
        if self._server.held > limits.max_held:
            raise Refused(429, _TOO_MUCH)
        if body.is_complete:
            self._body = self._incoming = None
            self._count_held()
            self._phase = _IDLE
            request.body = body.content()
            self._dispatch(request)
        return position

    def _dispatch(self, request: Request) -> None:
        server = self._server
        server.held += len(request.body)
        self._pending.append(request)
        self.deadline = inf
        if not request.keep_alive:
            self._phase = _DEAF
        if server.held > server.limits.max_held:
            server.held -= len(request.body)
            request.body = b""  # the answer may wait long for its turn
            request.respond(*server.refuse(429, _TOO_MUCH, request.head))
            return
        try:
            server.handler(request)
        except Exception:
            log.exception("the handler failed on %r", request)
            if request.answer is None:
                request.respond(*server.refuse(500, "internal error", request.head))

    def _refuse(self, answer: Answer, head: Head = _NO_HEAD) -> None:
        """Answer, after all earlier ones, what cannot be read on; then listen no more."""
        self._phase = _DEAF
        self._body = self._incoming = None
        self._awaits_continue = False
        self.deadline = inf
        self._keep(b"")
        last = Request(self, head)
        last.keep_alive = False
        self._pending.append(last)
        last.respond(*answer)

    def _unread_request(self) -> Request:
        """Return what stands for a request that could not be read or accepted."""
        return Request(self, _NO_HEAD)

    # ---- answers out

    @property
    def peer(self) -> str:
        """The address of the client, "" if it has left."""
        name = self._transport and self._transport.get_extra_info("peername")
        return str(name[0]) if name else ""

    def answered(self, request: Request) -> None:
        """Have the answer written at the end of this turn of the loop, if it is next."""
        if self._is_write_paused and request.answer is not None:
            self._count_unsent(len(request.answer[2]))
        if self._pending[0] is request:
            self._server.mark(self)

    def flush(self, now: float) -> None:
        """Write, in one piece, all answers whose turn it is."""
        transport, pending, server = self._transport, self._pending, self._server
        if self._is_write_paused or self._phase == _LINGER:
            return
        if transport is None or transport.is_closing():
            return
        answers, is_last = [], False
        while pending and not is_last and (answer := pending[0].answer) is not None:
            request = pending.pop(0)
            server.held -= len(request.body)
            is_last = not request.keep_alive or server.is_draining and not pending
            answers.append(self._encode(request, answer, is_last))
        if answers:
            transport.write(b"".join(answers))
        if is_last:
            self._linger()
        elif pending or self._phase or self._is_reading_paused or server.is_draining:
            self._go_on(now)
        else:
            self.deadline = now + server.limits.idle_time

    def _encode(self, request: Request, answer: Answer, is_last: bool) -> bytes:
        """Return the bytes of a response."""
        status, headers, body = answer
        head = request.head
        length = b"Content-Length: %d\r\n" % len(body)
        if status in _BODILESS:
            length = body = b""
        elif head.method == b"HEAD":
            body = b""
        ending = _CLOSE if is_last else _ENDINGS[head.minor]
        return b"".join((self._server.preambles[status], headers, length, ending, body))

    def _go_on(self, now: float) -> None:
        """Do what has waited for the answers, or wait for the client."""
        if not self._pending:
            if self._phase == _IDLE and not self._is_write_paused:
                self.deadline = now + self._server.limits.idle_time
            self._send_continue()
            if self._server.is_draining:
                self.close_if_idle()
        if self._is_reading_paused and not self._is_write_paused:
            self._take(self._unbuffer())

    def _send_continue(self) -> None:
        """Ask for the body once all earlier requests are answered."""
        if self._awaits_continue and not self._pending and self._transport is not None:
            self._awaits_continue = False
            self._transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")

    # ---- the end

    def close_if_idle(self) -> None:
        """Close if nothing is in flight and nothing has begun to come."""
        if self._phase == _IDLE and not self._pending and self._buffer in _NO_REQUEST:
            self._close()

    def abort(self) -> None:
        """Close at once, whatever is unsent.

        With RST: after a mere close the system keeps what is unsent for minutes, and offers it to
        a client that does not read, and does not learn that it was cut off.
        """
        transport, self._transport = self._transport, None
        if transport is None:
            return
        self.deadline = self.write_deadline = inf
        self._count_unsent(-self._unsent)
        sock = transport.get_extra_info("socket")
        if sock is not None:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _NO_LINGER)
        transport.abort()

    def expire(self, now: float) -> None:
        """Do what is due when a deadline has passed."""
        assert self._transport is not None
        if self.write_deadline <= now or self._transport.is_closing():
            self.abort()
        elif self._phase in (_HEAD, _BODY):
            self._refuse(self._server.refuse(408, "the request did not come in time"))
        else:
            self._close()

    def _linger(self) -> None:
        """Say that nothing more will come, and throw away what the client still sends."""
        assert self._transport is not None
        self._phase = _LINGER
        self._abandon()
        self._pause_reading(False)
        if not self._is_write_paused:
            self.deadline = self._now() + self._server.limits.linger_time
        if not self._transport.can_write_eof():  # TLS
            self._transport.close()
            return
        try:
            self._transport.write_eof()
        except OSError:  # the client has reset the connection, and asyncio says so here
            self.abort()

    def _close(self) -> None:
        """Close as soon as everything is written; ``expire`` sees to it that this ends."""
        if self._transport is not None:
            self._phase = _LINGER
            if not self._is_write_paused:
                self.deadline = self._now() + self._server.limits.linger_time
            self._transport.close()

    def _discard(self, size: int) -> None:
        self._discarded += size
        if self._discarded > self._server.limits.linger_size:
            self.abort()

    def _abandon(self) -> None:
        """Let go of all that was read, and say so to those who work on it."""
        pending, self._pending = self._pending, []
        self._buffer = b""
        self._body = self._incoming = None
        self._count_held()
        for request in pending:
            self._server.held -= len(request.body)
            request.is_gone = True
            callback, request.on_disconnect = request.on_disconnect, None
            if callback is not None:
                try:
                    callback()
                except Exception:
                    log.exception("on_disconnect failed for %r", request)

    # ---- small helpers

    def _is_full(self) -> bool:
        return len(self._pending) >= self._server.limits.max_pipelined

    def _now(self) -> float:
        return self._server.loop.time()

    def _pause_reading(self, wanted: bool) -> None:
        if wanted != self._is_reading_paused and self._transport is not None:
            self._is_reading_paused = wanted
            if wanted:
                self._transport.pause_reading()
            else:
                self._transport.resume_reading()

    def _count_held(self) -> None:
        held = len(self._buffer)
        if self._body is not None:
            held += self._body.size
        self._server.held += held - self._held
        self._held = held

    def _count_unsent(self, size: int) -> None:
        self._unsent += size
        self._server.count_unsent(size)
