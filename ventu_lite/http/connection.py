"""One HTTP/1.1 connection: requests in, answers out in order, limits and deadlines kept."""

import asyncio
import logging
import re
from math import inf
from typing import TYPE_CHECKING, cast

from ..problems import body_too_large
from .base import DEAF, ENDING, IDLE, IN_BODY, IN_HEAD, LISTENING, BaseConnection
from .body import ChunkedBody, SizedBody
from .head import CHUNKED, HEAD_END, Head, Refused
from .request import SENT, Answer, Request, encode_answer

if TYPE_CHECKING:
    from .server import HttpServer

log = logging.getLogger(__name__)

_TOO_MUCH = "too many bytes of requests are waiting"
_NO_REQUEST = (b"", b"\r")  # half a line break is none either
_LINE_BREAKS = re.compile(rb"(?:\r\n)+")
_NO_HEAD = Head(b"", b"", b"", 1, {}, 0, keep_alive=False)  # of what could not be read


class Connection(BaseConnection):
    """One client: requests in flight, and at most one that is still coming."""

    __slots__ = ("_awaits_continue", "_body", "_buffer", "_held", "_incoming", "_pending")

    def __init__(self, server: "HttpServer") -> None:
        super().__init__(server)
        # A list of at most max_pipelined; a deque takes 600 bytes.
        self._pending: list[Request] = []
        self._buffer = b""  # what could not be taken apart yet
        self._incoming: Request | None = None  # whose body is coming
        self._body: SizedBody | ChunkedBody | None = None
        self._held = 0  # bytes of what is still coming
        self._awaits_continue = False

    # ---- what the transport tells us

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Start the clock, or turn the client away."""
        transport = cast(asyncio.Transport, transport)  # uvloop's looks like one, but is none
        server = self._server
        if not server.add(self):
            self._phase = DEAF
            answer = server.refuse(503, "too many connections")
            server.preambles.refresh()
            transport.write(encode_answer(server.preambles[answer[0]], _NO_HEAD, answer, True))
            transport.close()
            return
        self._transport = transport
        self.deadline = server.loop.time() + server.limits.head_time

    def data_received(self, data: bytes) -> None:
        """Take the requests out of ``data``: mostly one, whole, with a head known before."""
        if not (self._phase or self._pending or self._buffer or self._is_reading_paused):
            end = data.find(HEAD_END) + 4
            head = self._server.heads.known.get(data[:end])
            if head is not None and head.length == len(data) - end:
                self._dispatch(Request(self, head, data[end:]))
                return
        if self._phase not in LISTENING:
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
        self._phase = DEAF
        self._abandon()
        self._count_unsent(-self._unsent)
        self._server.discard(self)

    def resume_writing(self) -> None:
        """Go on where ``pause_writing`` stopped."""
        super().resume_writing()
        if self._phase != IDLE or not self._pending:
            self._expect(self._phase)
        self._server.mark(self)

    # ---- requests in

    def _take(self, data: bytes) -> None:
        """Take as many requests as may be in flight out of ``data``, and keep the rest."""
        position, size = 0, len(data)
        most = self._server.limits.max_pipelined
        try:
            while position < size and self._phase in LISTENING and not self._is_write_paused:
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
            self._give_up(exc.status, str(exc), exc.head)
        if position < size or self._is_reading_paused:
            self._keep(data[position:])

    def _unbuffer(self) -> bytes:
        data, self._buffer = self._buffer, b""
        self._count_held()
        return data

    def _keep(self, rest: bytes) -> None:
        """Store what is not whole, or more than may be in flight."""
        is_listening = self._phase in LISTENING
        if not is_listening:
            rest = b""
        self._buffer = rest
        self._count_held()
        server, limits = self._server, self._server.limits
        is_blocked = self._is_write_paused or bool(rest) and self._is_full()
        self._pause_reading(is_listening and is_blocked)
        if rest and server.held > limits.max_held:
            self._give_up(429, _TOO_MUCH)
        elif rest not in _NO_REQUEST and not is_blocked and self._phase == IDLE:
            self._expect(IN_HEAD)

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
            raise Refused(413, body_too_large(limits.max_body), head)
        self._phase = IDLE
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
        self._expect(IN_BODY)
        self._awaits_continue = is_waiting and request.expects_continue
        self._send_continue()

    def _take_body(self, data: bytes, start: int) -> int:
        limits, body, request = self._server.limits, self._body, self._incoming
        assert body is not None and request is not None
        self._awaits_continue = False
        size = body.size
        position = body.feed(data, start)
        if body.size > limits.max_body:
            raise Refused(413, body_too_large(limits.max_body))
        self.deadline += (body.size - size) / limits.min_rate
        self._count_held()
        if self._server.held > limits.max_held:
            raise Refused(429, _TOO_MUCH)
        if body.is_complete:
            self._body = self._incoming = None
            self._count_held()
            self._phase = IDLE
            request.body = body.content()
            self._dispatch(request)
        return position

    def _dispatch(self, request: Request) -> None:
        server = self._server
        server.held += len(request.body)
        self._pending.append(request)
        self.deadline = inf
        if not request.keep_alive:
            self._phase = DEAF
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

    def _give_up(self, status: int, detail: str, head: Head | None = None) -> None:
        """Refuse what is coming."""
        if self._incoming is not None:
            head = self._incoming.head
        self._refuse(self._server.refuse(status, detail, head), head or _NO_HEAD)

    def _refuse(self, answer: Answer, head: Head) -> None:
        """Answer, after all earlier ones, what cannot be read on; then listen no more."""
        self._expect(DEAF)
        self._body = self._incoming = None
        self._awaits_continue = False
        self._keep(b"")
        last = Request(self, head)
        last.keep_alive = False
        self._pending.append(last)
        last.respond(*answer)

    # ---- answers out

    def answered(self, request: Request) -> None:
        """Have the answer written at the end of this turn of the loop, if it is next."""
        if self._is_write_paused and request.answer is not None:
            self._count_unsent(len(request.answer[2] or b""))
        if self._pending[0] is request:
            self._server.mark(self)

    def flush(self, now: float) -> None:
        """Write, in one piece, all answers whose turn it is."""
        transport, pending, server = self._transport, self._pending, self._server
        if self._is_write_paused or self._phase == ENDING:
            return
        if transport is None or transport.is_closing():
            return
        answers, is_last = [], False
        while pending and not is_last and (answer := pending[0].answer) is not None:
            request = pending.pop(0)
            server.held -= len(request.body)
            # Who keeps the request must not keep what is no longer counted.
            request.body, request.answer = b"", SENT
            is_last = not request.keep_alive or server.is_draining and not pending
            preamble = server.preambles[answer[0]]
            answers.append(encode_answer(preamble, request.head, answer, is_last))
        if answers:
            transport.write(b"".join(answers))
        if is_last:
            self._abandon()
            self._linger()
        elif pending or self._phase or self._is_reading_paused or server.is_draining:
            self._go_on(now)
        else:
            self.deadline = now + server.limits.idle_time

    def _go_on(self, now: float) -> None:
        """Do what has waited for the answers, or wait for the client."""
        if not self._pending:
            if self._phase == IDLE and not self._is_write_paused:
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

    @property
    def is_unanswered(self) -> bool:
        """Whether a request waits for its answer."""
        return any(request.answer is None for request in self._pending)

    def close_if_idle(self) -> None:
        """Close if nothing is in flight and nothing has begun to come."""
        if self._phase == IDLE and not self._pending and self._buffer in _NO_REQUEST:
            self._close()

    def expire(self, now: float) -> None:
        """Do what is due when a deadline has passed."""
        assert self._transport is not None
        if self.write_deadline <= now or self._transport.is_closing():
            self.abort()
        elif self._phase in (IN_HEAD, IN_BODY):
            self._give_up(408, "the request did not come in time")
        else:
            self._close()

    def _abandon(self) -> None:
        """Let go of all that was read, and say so to those who work on it."""
        pending, self._pending = self._pending, []
        self._buffer = b""
        self._body = self._incoming = None
        self._count_held()
        for request in pending:
            self._server.held -= len(request.body)
            request.is_gone = True  # first: a thread that misses the body must see why
            request.body, request.answer = b"", None
            callback, request.on_disconnect = request.on_disconnect, None
            if callback is not None:
                try:
                    callback()
                except Exception:
                    log.exception("on_disconnect failed for %r", request)

    # ---- small helpers

    def _is_full(self) -> bool:
        return len(self._pending) >= self._server.limits.max_pipelined

    def _count_held(self) -> None:
        held = len(self._buffer)
        if self._body is not None:
            held += self._body.size
        self._server.held += held - self._held
        self._held = held
