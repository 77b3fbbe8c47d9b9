"""The worker's shell around the wire protocol: connect, serve, back off, stop. It knows no stage.

One thread, blocking, and nothing polls: whatever the worker waits for, it waits for the request to
stop at the same time.
"""

import contextlib
import logging
import math
import select
import signal
import socket
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from types import FrameType, TracebackType
from typing import Protocol

from .errors import ProtocolError
from .protocol import (
    Batch,
    Challenge,
    Closed,
    Event,
    MessageTooLarge,
    Results,
    State,
    WorkerConnection,
    reject_largest,
)

log = logging.getLogger(__name__)

CONNECT_TIMEOUT = 5.0  # a stop request has to wait for this one
LEAVE_TIMEOUT = 1.0  # from bye to the end, for a batch that crossed with it
# Half a message, or a peer that reads nothing, for so long: the other end is gone. Between messages
# silence is normal and lasts as long as nobody sends a request.
SILENCE_TIMEOUT = 30.0
SLOWEST_WRITE = 1_000_000  # bytes per second that a large message may take longer

# A batching service that restarts is back within a second, so the first tries come fast. One that
# is gone for longer is not hammered by all its workers, and yet none of them is late by more than
# an operator would wait for.
FIRST_DELAY, LONGEST_DELAY = 0.1, 5.0

_RECEIVE_SIZE = 262_144  # the larger, the fewer calls for a large batch
_KEEPALIVE = {"TCP_KEEPIDLE": 30, "TCP_KEEPINTVL": 10, "TCP_KEEPCNT": 3}  # noticed after a minute


def connect_unix(path: str) -> socket.socket:
    """Connect to a batching service on this machine.

    Raises:
        OSError: Nobody listens there.
    """
    with _closing_on_error(socket.socket(socket.AF_UNIX)) as sock:
        sock.settimeout(CONNECT_TIMEOUT)
        sock.connect(path)
    return sock


def connect_tcp(host: str, port: int) -> socket.socket:
    """Connect to a batching service on any machine, so that its silent death is noticed.

    Raises:
        OSError: Nobody listens there, or the name is unknown.
    """
    with _closing_on_error(socket.create_connection((host, port), CONNECT_TIMEOUT)) as sock:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for name, value in _KEEPALIVE.items():
            if hasattr(socket, name):  # macOS has another name for the first
                sock.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
    return sock


def backoff() -> Iterator[float]:
    """Yield the seconds to wait before each new try, without end."""
    delay = FIRST_DELAY
    while True:
        yield delay
        delay = min(2 * delay, LONGEST_DELAY)


class Worker:
    """Serves one batching service until it is told to stop.

    Args:
        answer: Called in the thread of ``run`` with every batch; returns results for its jobs. An
            exception of it ends ``run``, so it turns those of user functions into rejections.
        connect: Returns a new socket that is connected, or raises ``OSError``.
        address: What to call the batching service in logs.
        max_message: The largest message to read and to send, in bytes.
        secret: What the batching service may want a proof of.
        on_connected: Called with ``True`` and ``False`` as connections begin and end.
        clock: Seconds that never go back.
    """

    def __init__(
        self,
        answer: Callable[[Batch], Results],
        connect: Callable[[], socket.socket],
        *,
        address: str,
        max_message: int,
        secret: str | None = None,
        on_connected: Callable[[bool], None] = lambda connected: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._answer = answer
        self._connect = connect
        self._address = address
        self._max_message = max_message
        self._secret = secret
        self._on_connected = on_connected
        self._clock = clock
        self._stop = _StopRequest()

    def run(self) -> None:
        """Connect, serve, and connect again, until ``stop`` is called."""
        with self._stop:
            delays = backoff()
            while not self._stop.is_made:
                was_useful, problem = self._attempt()
                if was_useful:
                    delays = backoff()
                if not self._stop.is_made:
                    self._wait(problem, next(delays))
        log.info("stopped")

    def stop(self) -> None:
        """Finish the batch in hand, then return from ``run``.

        Returns at once; safe in a signal handler and in any thread, before, in and after ``run``.
        """
        self._stop.make()

    def _attempt(self) -> tuple[bool, str]:
        """Serve one connection to its end; return whether it was any good, and why it ended."""
        try:
            sock = self._connect()
        except OSError as exc:
            return False, f"cannot connect to {self._address}: {exc}"
        connection = WorkerConnection(max_message=self._max_message, secret=self._secret)
        session = _Session(sock, connection, self._answer, self._stop, self._clock)
        log.info("connected to %s", self._address)
        self._on_connected(True)
        try:
            session.run()
        except (OSError, ProtocolError, MessageTooLarge) as exc:
            return session.was_useful, f"lost {self._address}: {exc}"
        finally:
            sock.close()
            self._on_connected(False)
        return session.was_useful, f"left {self._address}"

    def _wait(self, problem: str, delay: float) -> None:
        log.warning("%s; trying again in %.1f s", problem, delay)
        _wait_readable([self._stop], delay)


class _Session:
    """One connection, from "ready" to its end."""

    def __init__(
        self,
        sock: socket.socket,
        connection: WorkerConnection,
        answer: Callable[[Batch], Results],
        stop: "_StopRequest",
        clock: Callable[[], float],
    ) -> None:
        self._sock = sock
        self._connection = connection
        self._answer = answer
        self._stop = stop
        self._clock = clock
        self._began_at = self._heard_at = clock()
        self._leave_at: float | None = None
        self._batches = 0
        self._is_proven = False

    @property
    def was_useful(self) -> bool:
        """Whether a new connection may be worth trying soon.

        A peer that accepts and closes at once, or does not like our secret, is not: without the
        growing delays the two would keep each other busy.
        """
        return self._batches > 0 or self._clock() - self._began_at >= LONGEST_DELAY

    def run(self) -> None:
        """Serve until the end that a stop request has asked for.

        Raises:
            OSError: The connection was lost, the peer has closed it or has fallen silent.
            ProtocolError: The peer broke the protocol.
            MessageTooLarge: Not even empty results fit into a message.
        """
        self._send(self._connection.send_ready())
        while self._step():
            pass

    def _step(self) -> bool:
        """Wait for one thing to happen and act on it; return whether to go on."""
        if self._stop.is_made and self._leave_at is None:
            self._send(self._connection.send_bye())
            self._leave_at = self._clock() + LEAVE_TIMEOUT
        deadline = self._deadline()
        timeout = None if deadline is None else deadline - self._clock()
        if self._sock in _wait_readable(self._awaited(), timeout):
            return self._receive()
        if deadline is None or self._clock() < deadline:
            return True
        return self._time_out()

    def _awaited(self) -> "list[_Readable]":
        if self._leave_at is None:
            return [self._sock, self._stop]
        return [self._sock]

    def _deadline(self) -> float | None:
        if self._leave_at is not None:
            return self._leave_at
        return self._heard_at + SILENCE_TIMEOUT if self._connection.is_partial else None

    def _time_out(self) -> bool:
        if self._leave_at is None:
            raise TimeoutError(f"half a message, then nothing for {SILENCE_TIMEOUT:g} s")
        return False

    def _receive(self) -> bool:
        data = self._sock.recv(_RECEIVE_SIZE)
        self._heard_at = self._clock()
        if self._connection.state is State.LEFT:
            return bool(data)  # a peer that does not know bye may go on; its end is all we wait for
        return all([self._handle(event) for event in self._connection.receive_data(data)])

    def _handle(self, event: Event) -> bool:
        match event:
            case Batch():
                self._serve(event)
            case Challenge():
                self._prove(event)
            case Closed() if self._leave_at is None:
                raise ConnectionError(self._reason_to_close())
            case _:
                return False
        return True

    def _prove(self, challenge: Challenge) -> None:
        if self._connection.state is State.CHALLENGED:  # else it crossed with our bye
            self._send(self._connection.send_proof(challenge))
            self._is_proven = True

    def _reason_to_close(self) -> str:
        if self._is_proven and not self.was_useful:  # it refuses a bad proof without a word
            return "closed by the batching service, check VENTU_WORKER_SECRET"
        return "closed by the batching service"

    def _serve(self, batch: Batch) -> None:
        self._batches += 1
        began_at = self._clock()
        results = self._answer(batch)
        seconds = self._clock() - began_at
        if results.infer is None:
            results = replace(results, infer=seconds)
        log.debug("answered a batch of %d jobs in %.6f s", len(batch.payloads), seconds)
        if self._stop.is_made:
            results = replace(results, bye=True)
        self._send(self._encode(results))
        if results.bye:
            self._leave_at = self._clock() + LEAVE_TIMEOUT

    def _encode(self, results: Results) -> bytes:
        try:
            return self._connection.send_results(results)
        except MessageTooLarge as exc:
            log.error("%s; answering 500 for the largest results", exc)
        return self._connection.send_results(reject_largest(results, self._connection.max_message))

    def _send(self, data: bytes) -> None:
        self._sock.settimeout(SILENCE_TIMEOUT + len(data) / SLOWEST_WRITE)
        self._sock.sendall(data)


class _Readable(Protocol):
    def fileno(self) -> int: ...


class _StopRequest:
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
        self.is_made = True  # first, for one who is about to enter or to look
        if (sockets := self._sockets) is not None:
            with contextlib.suppress(OSError):  # nobody waits any more, or has been woken already
                sockets[1].send(b"\0", socket.MSG_DONTWAIT)

    def fileno(self) -> int:
        assert self._sockets is not None, "enter before waiting"
        return self._sockets[0].fileno()


def _wait_readable(awaited: "list[_Readable]", timeout: float | None) -> "list[_Readable]":
    """Return those with something to read, none of them after ``timeout`` seconds."""
    poller = select.poll()  # select() knows no file descriptor above 1023
    for readable in awaited:
        poller.register(readable.fileno(), select.POLLIN)
    ready = dict(poller.poll(None if timeout is None else max(0, math.ceil(timeout * 1000))))
    return [readable for readable in awaited if readable.fileno() in ready]


@contextlib.contextmanager
def _closing_on_error(sock: socket.socket) -> Iterator[socket.socket]:
    try:
        yield sock
    except BaseException:
        sock.close()
        raise


@contextlib.contextmanager
def stop_on_signals(worker: Worker) -> Iterator[None]:
    """Ctrl-C or SIGTERM: finish the batch and leave. The same signal again kills at once.

    The old handlers are back afterwards. Only the main thread may use this.
    """

    def handle(signum: int, frame: FrameType | None) -> None:
        signal.signal(signum, signal.SIG_DFL)
        worker.stop()

    signums = (signal.SIGINT, signal.SIGTERM)
    old = {signum: signal.signal(signum, handle) for signum in signums}
    try:
        yield
    finally:
        for signum, handler in old.items():
            signal.signal(signum, signal.SIG_DFL if handler is None else handler)
