"""Small batching services for tests: real sockets, one thread, no HTTP, no policy."""

import json
import os
import selectors
import shutil
import socket
import tempfile
import threading
import uuid
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType

from waiting import TIMEOUT

from ventu_lite.errors import ProtocolError
from ventu_lite.frames import FrameDecoder, encode_frame
from ventu_lite.protocol import Batch, BatchingConnection, Closed, Event, Hello, Results, State
from ventu_lite.worker import connect_tcp, connect_unix

DATA = Path(__file__).parent / "data"
MAX_MESSAGE = 1 << 28


def pieces(data: bytes, size: int | None) -> list[bytes]:
    """Cut ``data`` into pieces of ``size`` bytes, or leave it whole."""
    size = size or len(data)
    return [data[start : start + size] for start in range(0, len(data), size)]


@dataclass(frozen=True)
class Capture:
    """A whole conversation between kemingy/batching and ventu's worker, as bodies of frames."""

    ready: bytes
    batches: list[bytes]
    results: list[bytes]

    @classmethod
    def load(cls, name: str) -> "Capture":
        """Read ``json`` or ``msgpack`` from the data directory."""
        streams = {"worker>batching": b"", "batching>worker": b""}
        for line in (DATA / f"{name}.jsonl").read_text().splitlines():
            read = json.loads(line)
            streams[read["from"]] += bytes.fromhex(read["hex"])
        ready, *results = FrameDecoder(MAX_MESSAGE).feed(streams["worker>batching"])
        return cls(ready, FrameDecoder(MAX_MESSAGE).feed(streams["batching>worker"]), results)


def replay(sock: socket.socket, capture: Capture, piece_size: int | None = None) -> list[bytes]:
    """Play the batching service's part of ``capture`` against the worker at the end of ``sock``.

    Every batch goes out in pieces of ``piece_size`` bytes once the worker has asked for it. Returns
    the bodies of the worker's messages, "ready" first, and leaves the connection open.
    """
    decoder = FrameDecoder(MAX_MESSAGE)
    bodies: list[bytes] = []
    for batch in [*capture.batches, None]:
        wanted = len(bodies) + 1
        while len(bodies) < wanted:
            data = sock.recv(65536)
            assert data, "the worker has left"
            bodies += decoder.feed(data)
        if batch is not None:
            for piece in pieces(encode_frame(batch), piece_size):
                sock.sendall(piece)
    return bodies


@dataclass
class _Submission:
    jobs: dict[str, bytes]
    answers: dict[str, tuple[int, bytes]] = field(default_factory=dict)
    is_done: threading.Event = field(default_factory=threading.Event)

    def left(self) -> dict[str, bytes]:
        return {id: body for id, body in self.jobs.items() if id not in self.answers}


@dataclass(eq=False)
class _Line:
    """One worker's connection and the submission that is out on it."""

    sock: socket.socket
    connection: BatchingConnection
    out: _Submission | None = None


class BatchingPeer:
    """A batching service that hands whole submissions to whichever worker is ready.

    A submission whose worker dies, or leaves jobs out, is handed to the next one. Use it as a
    context manager; ``connect`` is what a ``Worker`` wants.

    Args:
        tcp: Listen on a free TCP port of this host instead of a Unix socket in a short directory.
        piece_size: Write messages in pieces of so many bytes.
        secret: What workers must prove to know.
        max_message: The largest message to read and to send.

    Attributes:
        unix: The path that it listens on, or ``None``.
        port: The port that it listens on, or ``None``.
        connections: How many connections were accepted so far.
        faults: What workers did against the protocol; each has cost a connection.
        results: Every results message, as it was understood.
    """

    def __init__(
        self,
        *,
        tcp: bool = False,
        piece_size: int | None = None,
        secret: str | None = None,
        max_message: int = MAX_MESSAGE,
    ) -> None:
        self.unix: str | None = None
        self.port: int | None = None
        self.connections = 0
        self.faults: list[ProtocolError] = []
        self.results: list[Results] = []
        self._tcp = tcp
        self._piece_size = piece_size
        self._secret = secret
        self._max_message = max_message
        self._queue: deque[_Submission] = deque()
        self._lines: set[_Line] = set()
        self._todo: deque[Callable[[], None]] = deque()
        self._changed = threading.Condition()
        self._is_closed = False
        self._thread = threading.Thread(target=self._run, name="batching peer")

    def __enter__(self) -> "BatchingPeer":
        self._directory = tempfile.mkdtemp(prefix="v", dir="/tmp")  # a path that is short enough
        if self._tcp:
            self._listener = socket.create_server(("127.0.0.1", 0))
            self.port = self._listener.getsockname()[1]
        else:
            self.unix = f"{self._directory}/s"
            self._listener = socket.socket(socket.AF_UNIX)
            self._listener.bind(self.unix)
            self._listener.listen()
        self._wake, self._waker = socket.socketpair()
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._listener, selectors.EVENT_READ, self._accept)
        self._selector.register(self._wake, selectors.EVENT_READ, self._work)
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._do(self._close)
        self._thread.join(2 * TIMEOUT)
        assert not self._thread.is_alive(), "the peer's thread hangs"
        self._drop_all()  # one that was accepted while closing
        self._selector.close()
        for sock in (self._listener, self._wake, self._waker):
            sock.close()
        shutil.rmtree(self._directory)

    def connect(self) -> socket.socket:
        """Return a socket connected to this peer, as a worker would make it."""
        if self.unix is not None:
            return connect_unix(self.unix)
        assert self.port is not None
        return connect_tcp("127.0.0.1", self.port)

    def submit(
        self, payloads: Sequence[bytes], timeout: float = TIMEOUT
    ) -> list[tuple[int, bytes]]:
        """Send one batch and return the HTTP status and body of each job, in the same order.

        Raises:
            TimeoutError: No worker has answered all of them in time.
        """
        submission = _Submission({str(uuid.uuid4()): payload for payload in payloads})
        self._do(lambda: self._queue.append(submission))
        if not submission.is_done.wait(timeout):
            raise TimeoutError(f"{len(submission.left())} of {len(payloads)} jobs unanswered")
        return [submission.answers[id] for id in submission.jobs]

    def disconnect(self) -> None:
        """Close the connections of all workers, as a batching service that dies."""
        self._do(self._drop_all)

    def wait_for_workers(self, count: int, timeout: float = TIMEOUT) -> None:
        """Wait until exactly ``count`` workers can be given a batch or have one."""
        with self._changed:
            if not self._changed.wait_for(lambda: self._ready() == count, timeout):
                raise TimeoutError(f"{self._ready()} workers, expected {count}")

    def _ready(self) -> int:
        lines = list(self._lines)  # at once: the peer's thread may change it meanwhile
        states = [line.connection.state for line in lines]
        return sum(state in (State.IDLE, State.BUSY) for state in states)

    def _do(self, action: Callable[[], None]) -> None:
        self._todo.append(action)
        self._waker.send(b"\0")

    def _run(self) -> None:
        while not self._is_closed:
            self._step()

    def _step(self) -> None:
        for key, _ in self._selector.select():
            key.data()
        with self._changed:
            self._hand_out()
            self._changed.notify_all()

    def _work(self) -> None:
        self._wake.recv(4096)
        while self._todo:
            self._todo.popleft()()

    def _drop_all(self) -> None:
        for line in list(self._lines):
            self._drop(line)

    def _close(self) -> None:
        self._drop_all()
        self._is_closed = True

    def _accept(self) -> None:
        sock, _ = self._listener.accept()
        sock.settimeout(TIMEOUT)
        challenge = os.urandom(32) if self._secret is not None else None
        connection = BatchingConnection(
            max_message=self._max_message, secret=self._secret, challenge=challenge
        )
        line = _Line(sock, connection)
        self.connections += 1
        self._lines.add(line)
        self._selector.register(sock, selectors.EVENT_READ, lambda: self._receive(line))

    def _receive(self, line: _Line) -> None:
        if line not in self._lines:
            return
        try:
            for event in line.connection.receive_data(line.sock.recv(65536)):
                self._handle(line, event)
        except ProtocolError as exc:
            self.faults.append(exc)
            self._drop(line)
        except OSError:
            self._drop(line)

    def _handle(self, line: _Line, event: Event) -> None:
        if isinstance(event, Hello):
            self._send(line, line.connection.send_challenge())
        if isinstance(event, Results):
            self._take(line, event)
        if isinstance(event, Closed) or line.connection.state is State.LEFT:
            self._drop(line)

    def _take(self, line: _Line, results: Results) -> None:
        submission, line.out = line.out, None
        assert submission is not None
        self.results.append(results)
        for id, body in results.payloads.items():
            submission.answers[id] = (results.rejected.get(id, 200), body)
        if submission.left():
            self._queue.appendleft(submission)
        else:
            submission.is_done.set()

    def _hand_out(self) -> None:
        for line in list(self._lines):
            if self._queue and line.connection.state is State.IDLE:
                line.out = self._queue.popleft()
                self._send(line, line.connection.send_batch(Batch(line.out.left())))

    def _send(self, line: _Line, data: bytes) -> None:
        try:
            for piece in pieces(data, self._piece_size):
                line.sock.sendall(piece)
        except OSError:
            self._drop(line)

    def _drop(self, line: _Line) -> None:
        if line in self._lines:
            self._lines.remove(line)
            self._selector.unregister(line.sock)
            line.sock.close()
            if line.out is not None:
                self._queue.appendleft(line.out)
