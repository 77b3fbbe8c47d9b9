"""The worker's shell around the wire protocol: connect, serve, back off, stop. It knows no stage.

One thread, blocking, and nothing polls: whatever the worker waits for, it waits for the request to
stop at the same time.
"""

import contextlib
import errno
import logging
import os
import signal
import socket
import time
from collections.abc import Callable, Iterator
from types import FrameType

from .codecs import sniff
from .errors import ProtocolError
from .events import Batch, Results
from .messages import MessageTooLarge
from .problems import encode_problem, problem
from .protocol import WorkerConnection
from .retries import LONGEST_DELAY, Reminders, backoff
from .session import Session
from .signals import on_stop_signals
from .silence import notice_silence
from .wakeup import StopRequest, wait_readable

log = logging.getLogger(__name__)

CONNECT_TIMEOUT = 5.0  # a stop request has to wait for this one


def connect_unix(path: str) -> socket.socket:
    """Connect to a batching service on this machine.

    Raises:
        OSError: Nobody listens there.
    """
    with _closing_on_error(socket.socket(socket.AF_UNIX)) as sock:
        sock.settimeout(CONNECT_TIMEOUT)
        try:
            sock.connect(path)
        except FileNotFoundError:
            directory = os.path.dirname(path)
            if not directory or os.path.isdir(directory):
                raise
            raise FileNotFoundError(errno.ENOENT, f"There is no directory {directory}") from None
    return sock


def connect_tcp(host: str, port: int) -> socket.socket:
    """Connect to a batching service on any machine, so that its silent death is noticed.

    Raises:
        OSError: Nobody listens there, or the name is unknown.
    """
    with _closing_on_error(socket.create_connection((host, port), CONNECT_TIMEOUT)) as sock:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        notice_silence(sock)
    return sock


def too_large_problem(job: str, payload: bytes) -> bytes:
    """Return the error body for a job whose response does not fit into a message."""
    document = problem(500, "the response is too large to be sent", f"#{job}")
    return encode_problem(document, sniff(payload))


class Worker:
    """Serves one batching service until it is told to stop.

    Args:
        answer: Called in the thread of ``run`` with every batch; returns results for its jobs. An
            exception of it ends ``run``, so it turns those of user functions into rejections.
        connect: Returns a new socket that is connected, or raises ``OSError``.
        address: What to call the batching service in logs.
        hint: What to say where it cannot be reached.
        max_message: The largest message to read and to send, in bytes.
        secret: What the batching service may want a proof of.
        too_large: Returns the error body for a job whose response does not fit into a message; it
            gets the id and the payload.
        on_connected: Called with ``True`` once a connection is accepted by the other end, which
            wants a proof of the secret perhaps, and with ``False`` when it ends.
        clock: Seconds that never go back.
    """

    def __init__(
        self,
        answer: Callable[[Batch], Results],
        connect: Callable[[], socket.socket],
        *,
        address: str,
        hint: str = "",
        max_message: int,
        secret: str | None = None,
        too_large: Callable[[str, bytes], bytes] = too_large_problem,
        on_connected: Callable[[bool], None] = lambda connected: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._answer = answer
        self._connect = connect
        self._address = address
        self._hint = hint
        self._max_message = max_message
        self._secret = secret
        self._too_large = too_large
        self._on_connected = on_connected
        self._clock = clock
        self._reminders = Reminders(clock)
        self._was_refused = False  # the last connection
        self._stop = StopRequest()

    def run(self) -> None:
        """Connect, serve, and connect again, until ``stop`` is called."""
        with self._stop:
            delays = backoff()
            while not self._stop.is_made:
                was_accepted, problem = self._attempt()
                if was_accepted:
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
        """Serve one connection to its end; return whether it was accepted, and why it ended."""
        try:
            sock = self._connect()
        except OSError as exc:
            return False, f"cannot connect to {self._address}: {exc.strerror or exc}{self._hint}"
        connection = WorkerConnection(max_message=self._max_message, secret=self._secret)
        session = Session(
            sock,
            connection,
            self._answer,
            too_large=self._too_large,
            on_accepted=self._note_acceptance,
            stop=self._stop,
            clock=self._clock,
        )
        if not self._was_refused:
            log.info("connected to %s", self._address)
        try:
            session.run()
        except (OSError, ProtocolError, MessageTooLarge) as exc:
            return session.is_accepted, f"lost {self._address}: {exc}"
        finally:
            sock.close()
            self._was_refused = not session.is_accepted
            if session.is_accepted:
                self._on_connected(False)
        return session.is_accepted, f"left {self._address}"

    def _note_acceptance(self) -> None:
        if self._was_refused:  # so that it was not told at each vain try
            log.info("connected to %s", self._address)
        self._reminders.forget()
        self._on_connected(True)

    def _wait(self, problem: str, delay: float) -> None:
        level = logging.WARNING if self._reminders.is_due(problem) else logging.DEBUG
        log.log(level, "%s; trying again %s", problem, _when(delay))
        wait_readable([self._stop], delay)
        self._stop.forget_wake_ups()


def _when(delay: float) -> str:
    if delay == LONGEST_DELAY:
        return f"every {delay:g} s"
    return f"in {delay:.1f} s, then again and again, at most {LONGEST_DELAY:g} s apart"


@contextlib.contextmanager
def _closing_on_error(sock: socket.socket) -> Iterator[socket.socket]:
    try:
        yield sock
    except BaseException:
        sock.close()
        raise


@contextlib.contextmanager
def stop_on_signals(worker: Worker) -> Iterator[None]:
    """A signal to stop: finish the batch and leave. The same signal again kills at once.

    The old handlers are back afterwards. Only the main thread may use this.
    """

    def handle(signum: int, frame: FrameType | None) -> None:
        signal.signal(signum, signal.SIG_DFL)
        worker.stop()

    with on_stop_signals(handle):
        yield
