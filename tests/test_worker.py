"""The worker's shell, against real sockets."""

import contextlib
import errno
import logging
import os
import queue
import re
import signal
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import repeat

import msgpack
import pytest
from peers import MAX_MESSAGE, BatchingPeer, Capture, replay
from processes import TIMEOUT

from ventu_lite import session as session_module
from ventu_lite import worker as worker_module
from ventu_lite.errors import ProtocolError
from ventu_lite.protocol import (
    Batch,
    BatchingConnection,
    Bye,
    Closed,
    Event,
    Ready,
    Results,
    State,
)
from ventu_lite.retries import LONGEST_DELAY
from ventu_lite.wakeup import StopRequest, wait_readable
from ventu_lite.worker import Worker, _when, connect_tcp, connect_unix, stop_on_signals

A, B = "a" * 36, "b" * 36
SOON = "trying again in 0.1 s, then again and again, at most 5 s apart"


def shout(batch: Batch) -> Results:
    """Answer in capitals; reject what is empty."""
    return Results(
        {id: payload.upper() for id, payload in batch.payloads.items()},
        {id: 404 for id, payload in batch.payloads.items() if not payload},
    )


@contextlib.contextmanager
def running(worker: Worker, close: Callable[[], None] = lambda: None) -> Iterator[threading.Thread]:
    """Run the worker in a thread that must have ended, without an exception, at the end.

    In the end the worker is told to stop, then ``close`` is called as the peer that hears its bye.
    """
    failures: list[BaseException] = []

    def run() -> None:
        try:
            worker.run()
        except BaseException as exc:
            failures.append(exc)

    thread = threading.Thread(target=run, name="worker")
    thread.start()
    try:
        yield thread
    finally:
        worker.stop()
        close()
        thread.join(10)
    assert not thread.is_alive(), "the worker does not stop"
    assert not failures, failures


def make_worker(
    connect: Callable[[], socket.socket],
    answer: Callable[[Batch], Results] = shout,
    *,
    secret: str | None = None,
    max_message: int = MAX_MESSAGE,
    on_connected: Callable[[bool], None] = lambda connected: None,
    clock: Callable[[], float] = time.monotonic,
) -> Worker:
    return Worker(
        answer,
        connect,
        address="the peer",
        max_message=max_message,
        secret=secret,
        on_connected=on_connected,
        clock=clock,
    )


class Peer:
    """The batching service's end of socket pairs; ``connect`` makes a new one for the worker."""

    def __init__(self) -> None:
        self._mine: list[socket.socket] = []
        self._is_new = threading.Semaphore(0)
        self._taken = 0

    def connect(self) -> socket.socket:
        mine, theirs = socket.socketpair()
        mine.settimeout(5)
        self._mine.append(mine)
        self._is_new.release()
        return theirs

    def accept(self) -> "Line":
        assert self._is_new.acquire(timeout=10), "the worker does not connect"
        self._taken += 1
        return Line(self._mine[self._taken - 1])

    def close(self) -> None:
        for sock in self._mine:
            sock.close()


class Line:
    """One connection as the batching service sees it."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self.connection = BatchingConnection(max_message=MAX_MESSAGE)
        self._events: list[Event] = []

    def receive(self) -> Event:
        """Return the next event."""
        while not self._events:
            self._events += self.connection.receive_data(self.sock.recv(65536))
        return self._events.pop(0)

    def wait_for_data(self) -> None:
        """Wait until the worker has sent something, and leave it unread."""
        assert self.sock.recv(1, socket.MSG_PEEK)

    def send(self, **payloads: bytes) -> None:
        batch = Batch({id * 36: payload for id, payload in payloads.items()})
        self.sock.sendall(self.connection.send_batch(batch))


@pytest.fixture
def peer() -> Iterator[Peer]:
    peer = Peer()
    yield peer
    peer.close()


@pytest.fixture(autouse=True)
def long_farewell(monkeypatch: pytest.MonkeyPatch) -> None:
    """What ends at once must not pass for what ends in time, nor a busy machine come too late."""
    monkeypatch.setattr(session_module, "LEAVE_TIMEOUT", 10 * TIMEOUT)


@pytest.fixture
def no_patience(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session_module, "SILENCE_TIMEOUT", 0.05)
    monkeypatch.setattr(session_module, "SLOWEST_WRITE", 1 << 30)


def warnings_of(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]


def without_infer(event: Event) -> Results:
    assert isinstance(event, Results)
    return Results(event.payloads, event.rejected, None, event.bye)


# Serving


def test_batches_are_answered_one_after_another(peer: Peer) -> None:
    with running(make_worker(peer.connect), peer.close):
        line = peer.accept()
        assert line.receive() == Ready()
        line.send(a=b"x", b=b"")
        assert without_infer(line.receive()) == Results({A: b"X", B: b""}, {B: 404})
        line.send(b=b"y")
        assert without_infer(line.receive()) == Results({B: b"Y"})
        line.sock.close()


def test_the_worker_tells_how_long_it_took(peer: Peer) -> None:
    def answer(batch: Batch) -> Results:
        return Results(batch.payloads, infer=None if A in batch.payloads else 1.5)

    with running(make_worker(peer.connect, answer), peer.close):
        line = peer.accept()
        line.receive()
        line.send(a=b"")
        measured = line.receive()
        assert isinstance(measured, Results) and measured.infer is not None
        line.send(b=b"")
        assert line.receive() == Results({B: b""}, infer=1.5)


@pytest.mark.parametrize("piece_size", [None, 1, 13])
@pytest.mark.parametrize("name", ["json", "msgpack"])
def test_what_kemingy_batching_sent_is_served(
    peer: Peer, name: str, piece_size: int | None
) -> None:
    capture = Capture.load(name)
    with running(make_worker(peer.connect), peer.close):
        ready, *answers = replay(peer.accept().sock, capture, piece_size)
    assert ready == capture.ready
    for batch, body in zip(capture.batches, answers, strict=True):
        answer = msgpack.unpackb(body)
        answer.pop("ventu_lite")
        assert answer == {id: data.upper() for id, data in msgpack.unpackb(batch).items()}


@pytest.mark.parametrize("piece_size", [None, 1])
@pytest.mark.parametrize("secret", [None, "s3cret"])
@pytest.mark.parametrize("tcp", [False, True])
def test_end_to_end(tcp: bool, secret: str | None, piece_size: int | None) -> None:
    with BatchingPeer(tcp=tcp, secret=secret, piece_size=piece_size) as peer:
        with running(make_worker(peer.connect, secret=secret)):
            assert peer.submit([b"x", b""]) == [(200, b"X"), (404, b"")]
            assert peer.submit([b"y"] * 100) == [(200, b"Y")] * 100
        assert peer.connections == 1
        assert peer.faults == []


def test_two_workers_share_the_work() -> None:
    barrier = threading.Barrier(2, timeout=10)

    def answer(batch: Batch) -> Results:
        barrier.wait()
        return shout(batch)

    with BatchingPeer() as peer, contextlib.ExitStack() as stack:
        for _ in range(2):
            stack.enter_context(running(make_worker(peer.connect, answer)))
        peer.wait_for_workers(2)
        other = threading.Thread(target=peer.submit, args=([b"x"],))
        other.start()
        assert peer.submit([b"y"]) == [(200, b"Y")]
        other.join()


def test_a_large_batch_passes() -> None:
    with BatchingPeer(tcp=True) as peer, running(make_worker(peer.connect)):
        (answer,) = peer.submit([b"x" * 5_000_000])
    assert answer == (200, b"X" * 5_000_000)


def test_results_too_large_for_a_message_become_500(caplog: pytest.LogCaptureFixture) -> None:
    def answer(batch: Batch) -> Results:
        return Results({id: payload * 100 for id, payload in batch.payloads.items()})

    with BatchingPeer() as peer, running(make_worker(peer.connect, answer, max_message=3000)):
        answered, refused = peer.submit([b"x", b"\xd9\x26" + b"y" * 38])
    assert answered == (200, b"x" * 100)
    assert refused[0] == 500
    document = msgpack.unpackb(refused[1])  # its payload is a string in msgpack
    assert document["detail"] == "the response is too large to be sent"
    (warning,) = warnings_of(caplog)
    assert re.fullmatch(
        r"message of \d+ bytes, expected at most 3000; answering 500 for the largest results",
        warning,
    )


def test_the_body_for_a_response_that_is_too_large_can_be_chosen() -> None:
    def answer(batch: Batch) -> Results:
        return Results(dict.fromkeys(batch.payloads, bytes(5000)))

    with BatchingPeer() as peer:
        worker = Worker(
            answer,
            peer.connect,
            address="the peer",
            max_message=3000,
            too_large=lambda job, payload: b"no " + payload,
        )
        with running(worker):
            assert peer.submit([b"x"]) == [(500, b"no x")]


def test_jobs_that_were_left_out_are_handed_out_again() -> None:
    def answer(batch: Batch) -> Results:
        id = next(iter(batch.payloads))
        return Results({id: batch.payloads[id]})

    with BatchingPeer() as peer, running(make_worker(peer.connect, answer)):
        assert peer.submit([b"x", b"y", b"z"]) == [(200, b"x"), (200, b"y"), (200, b"z")]
        assert [len(results.payloads) for results in peer.results] == [1, 1, 1]


def test_an_exception_of_answer_ends_the_worker(peer: Peer) -> None:
    """It is a fault of ours; whoever watches the process starts it again."""

    def answer(batch: Batch) -> Results:
        raise KeyError("bug")

    worker = make_worker(peer.connect, answer)
    thread = threading.Thread(target=lambda: [*answers(peer)])
    thread.start()
    with pytest.raises(KeyError, match="bug"):
        worker.run()
    thread.join()


def answers(peer: Peer) -> Iterator[Event]:
    line = peer.accept()
    yield line.receive()
    line.send(a=b"")
    yield line.receive()


# Losing and finding the batching service


def test_a_lost_connection_is_taken_up_again(caplog: pytest.LogCaptureFixture) -> None:
    seen: list[bool] = []
    with BatchingPeer() as peer:
        with running(make_worker(peer.connect, on_connected=seen.append)):
            assert peer.submit([b"x"]) == [(200, b"X")]
            peer.disconnect()
            assert peer.submit([b"y"]) == [(200, b"Y")]
        assert peer.connections == 2
    assert seen == [True, False, True, False]
    assert warnings_of(caplog) == [f"lost the peer: closed by the batching service; {SOON}"]


def test_the_worker_waits_for_its_batching_service(
    peer: Peer, caplog: pytest.LogCaptureFixture
) -> None:
    """It says so once, not at each try."""
    refusals = iter([ConnectionRefusedError("nobody there")] * 3)

    def connect() -> socket.socket:
        for refusal in refusals:
            raise refusal
        return peer.connect()

    with running(make_worker(connect), peer.close):
        assert peer.accept().receive() == Ready()
    assert warnings_of(caplog) == [f"cannot connect to the peer: nobody there; {SOON}"]


def test_a_batching_service_that_is_nowhere_is_told_of_now_and_then(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Who watches sees that the worker goes on; in the words of the system, without its number."""
    now = -5.0

    def connect() -> socket.socket:
        nonlocal now
        now += 5.0
        if now > 10.0:
            worker.stop()
        raise FileNotFoundError(errno.ENOENT, "No such file or directory", "s")

    worker = make_worker(connect, clock=lambda: now)
    worker.run()
    problem = "cannot connect to the peer: No such file or directory; trying again"
    assert warnings_of(caplog) == [
        f"{problem} in {delay} s, then again and again, at most 5 s apart" for delay in (0.1, 0.4)
    ]


def test_at_the_longest_delay_there_is_only_that_one() -> None:
    assert _when(LONGEST_DELAY) == "every 5 s"


def test_a_peer_that_closes_at_once_is_not_hammered(
    peer: Peer, caplog: pytest.LogCaptureFixture
) -> None:
    """And it is told once: that a connection was made does not mean that the problem is over."""
    caplog.set_level(logging.DEBUG)
    with running(make_worker(peer.connect), peer.close):
        for _ in range(3):
            peer.accept().sock.close()
        peer.accept()
    delays = re.findall(r"trying again in (\S+) s", caplog.text)
    assert delays[:3] == ["0.1", "0.2", "0.4"]
    assert warnings_of(caplog) == [f"lost the peer: closed by the batching service; {SOON}"]
    assert caplog.text.count("connected to the peer") == 1


def test_a_problem_that_comes_back_is_told_again(
    peer: Peer, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    with running(make_worker(peer.connect), peer.close):
        for _ in range(2):
            peer.accept().sock.close()
        line = peer.accept()
        line.receive()
        line.send(a=b"")
        line.receive()
        line.sock.close()
        peer.accept()
    problem = f"lost the peer: closed by the batching service; {SOON}"
    connected = "connected to the peer"
    assert [record.getMessage() for record in caplog.records][:5] == [
        *(connected, problem),
        *(connected, problem),  # the one that got a batch
        connected,
    ]


def test_who_hears_no_complaint_has_been_accepted(
    peer: Peer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An idle batching service says nothing."""
    seen: queue.SimpleQueue[bool] = queue.SimpleQueue()
    monkeypatch.setattr(session_module, "LASTING", 0.05)
    with running(make_worker(peer.connect, on_connected=seen.put), peer.close):
        line = peer.accept()
        assert line.receive() == Ready()
        assert seen.get(timeout=30)
        line.sock.close()
        assert not seen.get(timeout=30)


def test_delays_start_again_after_a_batch(peer: Peer, caplog: pytest.LogCaptureFixture) -> None:
    with running(make_worker(peer.connect), peer.close):
        peer.accept().sock.close()
        line = peer.accept()
        line.receive()
        line.send(a=b"")
        line.receive()
        line.sock.close()
        peer.accept()
    delays = [message.rpartition("; ")[2] for message in warnings_of(caplog)]
    assert delays == [SOON, SOON]


def test_a_fault_of_the_peer_costs_one_connection(
    peer: Peer, caplog: pytest.LogCaptureFixture
) -> None:
    with running(make_worker(peer.connect), peer.close):
        line = peer.accept()
        line.receive()
        line.sock.sendall(b"\xff\xff\xff\xff")
        assert line.receive() == Closed()
        assert peer.accept().receive() == Ready()
    assert warnings_of(caplog) == [f"lost the peer: frame of -1 bytes, expected at least 0; {SOON}"]


@pytest.mark.usefixtures("no_patience")
def test_half_a_message_is_not_waited_for_without_end(
    peer: Peer, caplog: pytest.LogCaptureFixture
) -> None:
    with running(make_worker(peer.connect), peer.close):
        line = peer.accept()
        line.receive()
        line.sock.sendall(b"\0\0")
        assert line.receive() == Closed()
        assert peer.accept().receive() == Ready()
    assert warnings_of(caplog) == [
        f"lost the peer: half a message, then nothing for 0.05 s; {SOON}"
    ]


@pytest.mark.usefixtures("no_patience")
def test_a_peer_that_does_not_read_is_lost(peer: Peer, caplog: pytest.LogCaptureFixture) -> None:
    with running(
        make_worker(peer.connect, lambda batch: Results({A: bytes(4_000_000)})), peer.close
    ):
        line = peer.accept()
        line.receive()
        line.send(a=b"")
        peer.accept()
    assert warnings_of(caplog) == [f"lost the peer: timed out; {SOON}"]


@pytest.mark.parametrize(
    ("secret", "said"),
    [
        ("wrong", "closed by the batching service, check VENTU_WORKER_SECRET"),
        (None, "batching service asks for a secret, set VENTU_WORKER_SECRET"),
    ],
    ids=["wrong", "missing"],
)
def test_who_does_not_know_the_secret_is_told_once_and_never_counts_as_connected(
    caplog: pytest.LogCaptureFixture, secret: str | None, said: str
) -> None:
    seen: list[bool] = []
    tries = threading.Semaphore(0)
    with BatchingPeer(secret="right") as peer:

        def connect() -> socket.socket:
            tries.release()
            return peer.connect()

        with running(make_worker(connect, secret=secret, on_connected=seen.append)):
            for _ in range(4):
                assert tries.acquire(timeout=30)
    assert not seen
    assert warnings_of(caplog) == [f"lost the peer: {said}; {SOON}"]


# Stopping


def test_stop_before_run(peer: Peer) -> None:
    worker = make_worker(peer.connect)
    worker.stop()
    with running(worker) as thread:
        thread.join(TIMEOUT)
        assert not thread.is_alive()
    worker.stop()


def test_stop_while_idle(peer: Peer) -> None:
    """A batch may be under way, so the worker stays until the peer has closed."""
    worker = make_worker(peer.connect)
    with running(worker) as thread:
        line = peer.accept()
        line.receive()
        worker.stop()
        assert line.receive() == Bye()
        assert thread.is_alive()
        line.sock.close()
        thread.join(TIMEOUT)
        assert not thread.is_alive()


def test_stop_while_idle_with_a_peer_that_does_not_know_bye(
    peer: Peer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(session_module, "LEAVE_TIMEOUT", 0.05)
    worker = make_worker(peer.connect)
    with running(worker):
        line = peer.accept()
        line.receive()
        worker.stop()
        assert line.receive() == Bye()
        assert line.receive() == Closed()


def test_stop_while_busy(peer: Peer) -> None:
    is_busy, go_on = threading.Event(), threading.Event()

    def answer(batch: Batch) -> Results:
        is_busy.set()
        assert go_on.wait(10)
        return shout(batch)

    worker = make_worker(peer.connect, answer)
    with running(worker):
        line = peer.accept()
        line.receive()
        line.send(a=b"x")
        assert is_busy.wait(10)
        worker.stop()
        go_on.set()
        assert without_infer(line.receive()) == Results({A: b"X"}, bye=True)
        assert line.connection.state is State.LEFT
        line.sock.sendall(b"more")  # of a peer that does not know bye
        line.sock.close()


def test_stop_while_a_batch_is_under_way(peer: Peer) -> None:
    worker = make_worker(peer.connect)
    with running(worker):
        line = peer.accept()
        line.receive()
        worker.stop()
        line.wait_for_data()
        line.send(a=b"x")
        assert line.receive() == Bye()
        assert without_infer(line.receive()) == Results({A: b"X"}, bye=True)
        line.sock.close()


def test_stop_while_backing_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker_module, "backoff", lambda: repeat(10 * TIMEOUT))
    has_failed = threading.Event()

    def connect() -> socket.socket:
        has_failed.set()
        raise ConnectionRefusedError("nobody there")

    worker = make_worker(connect)
    with running(worker) as thread:
        assert has_failed.wait(10)
        worker.stop()
        thread.join(TIMEOUT)
        assert not thread.is_alive()


def test_stop_while_a_challenge_is_under_way(peer: Peer) -> None:
    worker = make_worker(peer.connect, secret="s3cret")
    with running(worker):
        line = peer.accept()
        line.connection = BatchingConnection(max_message=99, secret="s3cret", challenge=bytes(32))
        line.receive()
        worker.stop()
        challenge = line.connection.send_challenge()
        line.wait_for_data()
        line.sock.sendall(challenge)
        with pytest.raises(ProtocolError, match="expected a proof and nothing else"):
            line.receive()
        line.sock.close()


def test_stop_is_harmless_when_repeated(peer: Peer) -> None:
    worker = make_worker(peer.connect)
    with running(worker):
        line = peer.accept()
        line.receive()
        for _ in range(10_000):  # more than the wake-up socket holds
            worker.stop()
        assert line.receive() == Bye()
        line.sock.close()


def test_stopping_when_the_peer_resets_is_no_warning(caplog: pytest.LogCaptureFixture) -> None:
    with BatchingPeer(tcp=True) as peer, running(make_worker(peer.connect)):
        assert peer.submit([b"x"]) == [(200, b"X")]
    assert warnings_of(caplog) == []


# Sockets and signals


def test_tcp_connections_notice_a_dead_peer() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        with connect_tcp("127.0.0.1", listener.getsockname()[1]) as sock:
            assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) != 0
            assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY) != 0
            assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) == 20_000


def test_keep_alive_is_tuned_only_where_it_can_be(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(socket, "TCP_KEEPIDLE")
    with socket.create_server(("127.0.0.1", 0)) as listener:
        connect_tcp("127.0.0.1", listener.getsockname()[1]).close()


def test_a_failed_connect_leaks_nothing() -> None:
    with pytest.raises(FileNotFoundError, match="There is no directory /nowhere"):
        connect_unix("/nowhere/batching.socket")
    with pytest.raises(FileNotFoundError, match="No such file or directory"):
        connect_unix("none.socket")


def test_a_signal_stops_the_worker(peer: Peer) -> None:
    """The handlers that were there before are there again."""
    before = [signal.getsignal(signum) for signum in (signal.SIGINT, signal.SIGTERM)]
    worker = make_worker(peer.connect)

    def send_signal() -> None:
        line = peer.accept()
        line.receive()
        os.kill(os.getpid(), signal.SIGTERM)
        assert line.receive() == Bye()
        line.sock.close()

    thread = threading.Thread(target=send_signal)
    with stop_on_signals(worker):
        thread.start()
        worker.run()
    thread.join()
    assert [signal.getsignal(signum) for signum in (signal.SIGINT, signal.SIGTERM)] == before


def test_a_signal_that_comes_just_before_a_wait_stops_the_worker(peer: Peer) -> None:
    """Python has noted it, but no system call of the main thread ends for it."""
    worker = make_worker(peer.connect)

    def send_signal() -> None:
        line = peer.accept()
        line.receive()
        line.send(a=b"x")
        line.receive()
        signal.pthread_kill(threading.get_ident(), signal.SIGTERM)  # the main thread sleeps on
        assert line.receive() == Bye()
        line.sock.close()

    with ThreadPoolExecutor(1) as pool:
        sending = pool.submit(send_signal)
        with stop_on_signals(worker):
            worker.run()
        sending.result(TIMEOUT)


def test_a_signal_that_is_no_request_wakes_once() -> None:
    request = StopRequest()
    before = signal.signal(signal.SIGUSR1, lambda signum, frame: None)
    try:
        with request:
            signal.raise_signal(signal.SIGUSR1)
            assert wait_readable([request], TIMEOUT) == [request]
            request.forget_wake_ups()
            request.forget_wake_ups()
            assert wait_readable([request], 0.0) == []
            assert not request.is_made
        assert signal.set_wakeup_fd(-1) == -1
    finally:
        signal.signal(signal.SIGUSR1, before)


def test_the_second_signal_kills(peer: Peer) -> None:
    with stop_on_signals(make_worker(peer.connect)):
        signal.raise_signal(signal.SIGTERM)
        assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
        assert callable(signal.getsignal(signal.SIGINT))


# The peers


def test_the_peer_notes_the_faults_of_a_worker() -> None:
    with BatchingPeer() as peer, peer.connect() as sock:
        sock.sendall(struct.pack(">i", -1))
        sock.settimeout(10)
        assert sock.recv(1) == b""
        assert [str(fault) for fault in peer.faults] == ["frame of -1 bytes, expected at least 0"]


def test_the_peer_wants_its_workers_in_time() -> None:
    with BatchingPeer() as peer, pytest.raises(TimeoutError, match="0 workers, expected 1"):
        peer.wait_for_workers(1, timeout=0.01)
