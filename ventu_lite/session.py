"""One connection of a worker, from "ready" to its end: events of the protocol ⇄ a socket."""

import logging
import socket
from collections.abc import Callable
from dataclasses import replace

from .events import Batch, Challenge, Closed, Event, Results
from .forks import close_after_fork
from .messages import MessageTooLarge, reject_largest
from .protocol import WorkerConnection
from .states import State
from .wakeup import Readable, StopRequest, wait_readable

log = logging.getLogger(__name__)

LEAVE_TIMEOUT = 1.0  # from bye to the end, for a batch that crossed with it
# Half a message, or a peer that reads nothing, for so long: the other end is gone. Between messages
# silence is normal and lasts as long as nobody sends a request.
SILENCE_TIMEOUT = 30.0
SLOWEST_WRITE = 1_000_000  # bytes per second that a large message may take longer
# No message says welcome. Who gets a batch has been accepted; so has who was not shut out for so
# long, as an idle service says nothing and one that does not like a proof closes at once.
LASTING = 5.0

_RECEIVE_SIZE = 262_144  # the larger, the fewer calls for a large batch


class Session:
    """One connection, from "ready" to its end.

    Args:
        sock: Connected and new; whoever made it closes it.
        connection: What has been said on it: nothing yet.
        answer: Returns the results for the jobs of a batch.
        too_large: Returns the error body for a job whose response does not fit into a message.
        on_accepted: Called once, when it turns out that the other end takes this worker.
        stop: Entered; once it is made, the session comes to its end.
        clock: Seconds that never go back.

    Attributes:
        is_accepted: Whether the other end has turned out to take this worker. Where it has not, a
            new connection is not worth trying soon: without growing delays the two would keep each
            other busy.
    """

    def __init__(
        self,
        sock: socket.socket,
        connection: WorkerConnection,
        answer: Callable[[Batch], Results],
        *,
        too_large: Callable[[str, bytes], bytes],
        on_accepted: Callable[[], None],
        stop: StopRequest,
        clock: Callable[[], float],
    ) -> None:
        self._sock = sock
        self._connection = connection
        self._answer = answer
        self._too_large = too_large
        self._on_accepted = on_accepted
        self._stop = stop
        self._clock = clock
        self._asked_at = self._heard_at = clock()
        self._leave_at: float | None = None
        self._is_proven = False
        self.is_accepted = False
        close_after_fork(self)

    def filenos(self) -> list[int]:
        """Return the file descriptor of the connection: a child that kept it would keep it open."""
        return [self._sock.fileno()]

    def run(self) -> None:
        """Serve until the end that a stop request has asked for.

        Raises:
            OSError: The connection was lost, the peer has closed it or has fallen silent.
            ProtocolError: The peer broke the protocol.
            MessageTooLarge: Not even empty results fit into a message.
        """
        self._sock.setblocking(False)
        try:
            self._send(self._connection.send_ready())
            while self._step():
                pass
        except (BrokenPipeError, ConnectionResetError) as exc:  # how an end looks in a hurry
            raise ConnectionError(self._reason_to_close()) from exc

    def _step(self) -> bool:
        """Wait for one thing to happen and act on it; return whether to go on."""
        if self._stop.is_made and self._leave_at is None:
            self._send(self._connection.send_bye())
            self._leave_at = self._clock() + LEAVE_TIMEOUT
        deadline = self._deadline()
        timeout = None if deadline is None else deadline - self._clock()
        if self._sock in wait_readable(self._awaited(), timeout):
            return self._receive()
        self._stop.forget_wake_ups()
        if deadline is None or self._clock() < deadline:
            return True
        return self._time_out()

    def _awaited(self) -> list[Readable]:
        if self._leave_at is None:
            return [self._sock, self._stop]
        return [self._sock]

    def _deadline(self) -> float | None:
        if self._leave_at is not None:
            return self._leave_at
        if self._connection.is_partial:
            return self._heard_at + SILENCE_TIMEOUT
        return None if self.is_accepted else self._asked_at + LASTING

    def _time_out(self) -> bool:
        if self._leave_at is not None:
            return False
        if self._connection.is_partial:
            raise TimeoutError(f"half a message, then nothing for {SILENCE_TIMEOUT:g} s")
        self._note_acceptance()
        return True

    def _note_acceptance(self) -> None:
        if not self.is_accepted:
            self.is_accepted = True
            self._on_accepted()

    def _receive(self) -> bool:
        try:
            data = self._sock.recv(_RECEIVE_SIZE)
        except BlockingIOError:  # a false alarm of the system
            return True
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
            self._asked_at = self._clock()

    def _reason_to_close(self) -> str:
        if self._is_proven and not self.is_accepted:  # it refuses a bad proof without a word
            return "closed by the batching service, check VENTU_WORKER_SECRET"
        return "closed by the batching service"

    def _serve(self, batch: Batch) -> None:
        self._note_acceptance()
        began_at = self._clock()
        results = self._answer(batch)
        seconds = self._clock() - began_at
        if results.infer is None:
            results = replace(results, infer=seconds)
        log.debug("answered a batch of %d jobs in %.6f s", len(batch.payloads), seconds)
        if self._stop.is_made:
            results = replace(results, bye=True)
        self._send(self._encode(results, batch))
        if results.bye:
            self._leave_at = self._clock() + LEAVE_TIMEOUT

    def _encode(self, results: Results, batch: Batch) -> bytes:
        try:
            return self._connection.send_results(results)
        except MessageTooLarge as exc:
            log.error("%s; answering 500 for the largest results", exc)
        results = reject_largest(
            results,
            self._connection.max_message,
            lambda job: self._too_large(job, batch.payloads[job]),
        )
        return self._connection.send_results(results)

    def _send(self, data: bytes) -> None:
        """Write in one system call where the system has room for it, as it mostly has."""
        try:
            sent = self._sock.send(data)
        except BlockingIOError:
            sent = 0
        if sent == len(data):
            return
        self._sock.settimeout(SILENCE_TIMEOUT + len(data) / SLOWEST_WRITE)
        self._sock.sendall(memoryview(data)[sent:])
        self._sock.setblocking(False)
