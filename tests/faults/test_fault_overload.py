"""More than can be done: full queues, late jobs, clients that leave, are slow, or far too many."""

import contextlib
import http.client
import json
import os
import re
import select
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from crowds import (
    LINES,
    at_once,
    connect,
    connections,
    hang_up,
    honest,
    many,
    post,
    read_all,
    readable,
    reset,
    samples,
)
from deployments import (
    SERVE,
    Deployment,
    behind_batching,
    deployed,
    everywhere,
    other_limits,
    until,
    whole_lines,
)
from processes import TIMEOUT, Answer, Client, Process, Server, nothing_left, worker

# Writes down what it computes. A batch with "first" waits while there is a file "gate".
MODEL = """
import json, os, time
from ventu_lite import Service

service = Service("busy", request=str, response=str)
log = os.open("log", os.O_WRONLY | os.O_APPEND | os.O_CREAT)

def answer(item):
    return "X" * int(item[4:]) if item.startswith("big ") else item.upper()

@service.infer(batch=True)
def shout(batch):
    os.write(log, (json.dumps(batch) + "\\n").encode())
    while "first" in batch and os.path.exists("gate"):
        time.sleep(0.005)
    if "slow" in batch[0]:
        time.sleep(0.02)
    return [answer(item) for item in batch]

app = service.app
"""
PATIENT = {"VENTU_TIMEOUT": "60", "VENTU_MAX_BATCH_SIZE": "4"}

Leave = Callable[[socket.socket], None]
by_each_end = pytest.mark.parametrize("leave", [reset, hang_up], ids=["RST", "FIN"])


def computed(directory: Path) -> list[str]:
    """Return the items that the model has seen."""
    return [item for line in whole_lines(directory / "log") for item in json.loads(line)]


def jobs(server: Server) -> int:
    """Return how many jobs wait."""
    return samples(server)["ventu_queue_jobs"]


@contextlib.contextmanager
def busy(deployment: Deployment) -> Iterator[None]:
    """Let all that is asked meanwhile wait behind a job that is right in the end."""
    with gate(deployment.directory):
        first = at_once(deployment.server, ["first"])
        until(lambda: "first" in computed(deployment.directory))
        yield
    assert [answer.status for answer in first()] == [200]


def without_hurry(directory: Path) -> dict[str, str]:
    """Return variables for HTTP sides that cut nobody off, however long this machine takes."""
    return other_limits(directory, head_time=600.0, body_time=600.0, write_time=600.0)


@contextlib.contextmanager
def gate(directory: Path) -> Iterator[None]:
    """Keep whoever asks for "first" waiting in the model."""
    (directory / "gate").touch()
    try:
        yield
    finally:
        (directory / "gate").unlink()


def assert_told_to_come_again(answer: Answer) -> None:
    assert answer.status == 429
    assert 1 <= int(answer.headers["Retry-After"]) <= 60
    assert json.loads(answer.body)["status"] == 429


def assert_all_is_well(server: Server) -> None:
    """See that nothing waits, and that the next one gets his own answer."""
    with server.client() as client:
        honest(client, "next")
    until(lambda: jobs(server) == 0)


# ---------------------------------------------------------------------------- a full queue


@everywhere
def test_a_full_queue_turns_away_who_comes_next_and_nobody_else(how: str, directory: Path) -> None:
    env = PATIENT | {"VENTU_CAPACITY": "3", "VENTU_MAX_BATCH_SIZE": "2"}
    with deployed(how, MODEL, directory, env=env) as deployment:
        server = deployment.server
        with busy(deployment):
            waiting = at_once(server, ["a", "b", "c"])
            until(lambda: jobs(server) == 3)
            for _ in range(3):
                assert_told_to_come_again(server.infer(b'"one too many"'))
        assert [(answer.status, answer.body) for answer in waiting()] == [
            (200, b'"A"'),
            (200, b'"B"'),
            (200, b'"C"'),
        ]
        assert_all_is_well(server)
        assert samples(server)["ventu_rejected_total/full"] == 3
        assert sorted(computed(directory)) == ["a", "b", "c", "first", "next"]


@everywhere
def test_three_times_as_many_clients_as_places_get_right_answers_or_429(
    how: str, directory: Path
) -> None:
    # One batch is out and as many jobs wait: room for 4, behind eight threads of gunicorn, too.
    env = PATIENT | {"VENTU_CAPACITY": "2", "VENTU_MAX_BATCH_SIZE": "2"}
    with deployed(how, MODEL, directory, env=env) as deployment:
        server = deployment.server

        def ask(number: int) -> list[tuple[str, Answer]]:
            items = [f"slow {number} {serial}" for serial in range(20)]
            with server.client() as client:
                return [(item, client.infer(json.dumps(item).encode())) for item in items]

        with ThreadPoolExecutor(12) as pool, busy(deployment):
            asked = pool.map(ask, range(12))
            until(lambda: samples(server)["ventu_rejected_total/full"] >= 12)
        answers = [pair for pairs in asked for pair in pairs]
        for item, answer in answers:
            if answer.status == 200:
                assert json.loads(answer.body) == item.upper()
            else:
                assert_told_to_come_again(answer)
        count = Counter(answer.status for _, answer in answers)
        assert count[200] >= 4 and count[429] >= 12
        assert samples(server)["ventu_rejected_total/full"] == count[429]
        good = [item for item, answer in answers if answer.status == 200]
        assert sorted(computed(directory)) == sorted(["first", *good])
        assert_all_is_well(server)


# ------------------------------------------------------------------------------- deadlines


@everywhere
def test_a_job_that_waits_until_its_deadline_is_not_computed(how: str, directory: Path) -> None:
    with deployed(how, MODEL, directory, env=PATIENT) as deployment:
        server = deployment.server
        with busy(deployment):
            began_at = time.monotonic()
            late = server.infer(b'"late"', X_Request_Timeout="0.2")
            assert late.status == 504
            assert time.monotonic() - began_at >= 0.2
            until(lambda: jobs(server) == 0)
        assert_all_is_well(server)
        assert computed(directory) == ["first", "next"]
        assert samples(server)["ventu_rejected_total/expired"] == 1


def give_up(client: Client) -> bool:
    """Ask for "first" and wait until it is too late, whether or not the model has begun with it."""
    return client.infer(b'"first"', X_Request_Timeout="0.2").status == 504


@everywhere
def test_an_answer_that_comes_after_the_deadline_goes_to_nobody_else(
    how: str, directory: Path
) -> None:
    with deployed(how, MODEL, directory, env=PATIENT) as deployment:
        server = deployment.server
        with gate(directory), server.client() as client:
            until(lambda: give_up(client) and bool(computed(directory)))
            assert computed(directory) == ["first"]
            others = at_once(server, ["a", "b"])
            until(lambda: jobs(server) == 2)
        assert [answer.body for answer in others()] == [b'"A"', b'"B"']
        assert_all_is_well(server)


@everywhere
def test_a_client_that_reads_on_after_the_deadline_gets_the_whole_answer(
    how: str, directory: Path
) -> None:
    """The deadline is that of the job: an answer that has begun is not cut."""
    size = 5_000_000
    with deployed(how, MODEL, directory, env=PATIENT) as deployment:
        sock = connect(deployment.server.port, segment=536)
        with contextlib.closing(sock):
            sock.sendall(post(f"big {size}", b"X-Request-Timeout: 5\r\nConnection: close\r\n"))
            late_at = time.monotonic() + 5
            response = http.client.HTTPResponse(sock)
            response.begin()
            time.sleep(max(0.0, late_at - time.monotonic()))
            assert response.status == 200
            assert response.read() == b'"%b"' % (b"X" * size)
        assert_all_is_well(deployment.server)


# -------------------------------------------------------------------- clients that leave

HEAD = LINES + b"Content-Length: 1000\r\n\r\n"
CHUNKED = LINES + b"Transfer-Encoding: chunked\r\n\r\n"
#: What a client may have sent when it leaves before its request is whole.
BEGINNINGS = [
    b"",
    b"P",
    LINES[:-10],
    HEAD[:-2],
    HEAD,
    HEAD + b'"' + b"x" * 500,
    LINES + b"Expect: 100-continue\r\nContent-Length: 9\r\n\r\n",
    CHUNKED,
    CHUNKED + b'4\r\n"abc\r\n4\r\nde',
]


def leave_before_the_request_is_whole(port: int, leave: Leave) -> None:
    for beginning in BEGINNINGS:
        sock = connect(port)
        sock.sendall(beginning)
        leave(sock)


def leave_while_the_answer_is_written(port: int, leave: Leave) -> None:
    for size in (0, 1000):
        sock = connect(port, segment=536)
        sock.sendall(post("big 2000000"))
        until(lambda sock=sock: bool(readable([sock])))  # type: ignore[misc]  # bound at once
        assert len(sock.recv(size)) <= size
        leave(sock)


@behind_batching
@by_each_end
def test_clients_that_leave_at_any_moment_leave_nothing_behind(
    how: str, leave: Leave, directory: Path
) -> None:
    """A body of ``max_held`` bytes is only taken when nothing at all is held for others."""
    env = PATIENT | {"VENTU_MAX_HELD": "1MiB"}
    largest = json.dumps("x" * (1024**2 - 2)).encode()
    with deployed(how, MODEL, directory, env=env) as deployment:
        server = deployment.server
        with gate(directory):
            running = connect(server.port)
            running.sendall(post("first"))
            until(lambda: computed(directory) == ["first"])
            for count, requests in enumerate([post("a"), post("b") + post("c")], 1):
                queued = connect(server.port)
                queued.sendall(requests)
                until(lambda count=count: jobs(server) == count)  # type: ignore[misc]  # at once
                leave(queued)
                until(lambda: jobs(server) == 0)
            leave(running)
            until(lambda: samples(server)["ventu_rejected_total/gone"] == 4)
            leave_before_the_request_is_whole(server.port, leave)
        assert_all_is_well(server)
        assert computed(directory) == ["first", "next"]
        leave_while_the_answer_is_written(server.port, leave)
        until(lambda: server.infer(largest).status == 200)
        assert_all_is_well(server)
        assert samples(server)["ventu_rejected_total/gone"] == 4


@by_each_end
def test_clients_that_leave_gunicorn_harm_nobody(leave: Leave, directory: Path) -> None:
    """A WSGI server does not say that a client has left: its job is done, but nothing stays."""
    with deployed("gunicorn", MODEL, directory, env=PATIENT) as deployment:
        server = deployment.server
        with gate(directory):
            running = connect(server.port)
            running.sendall(post("first"))
            until(lambda: computed(directory) == ["first"])
            queued = connect(server.port)
            queued.sendall(post("a"))
            until(lambda: jobs(server) == 1)
            leave(queued)
            leave(running)
            leave_before_the_request_is_whole(server.port, leave)
        leave_while_the_answer_is_written(server.port, leave)
        assert_all_is_well(server)


# ------------------------------------------------------------------------ too many clients


@behind_batching
def test_one_connection_too_many_gets_503_and_is_closed(how: str, directory: Path) -> None:
    env = PATIENT | {"VENTU_MAX_CONNECTIONS": "4"}
    with deployed(how, MODEL, directory, env=env) as deployment:
        server = deployment.server
        until(lambda: connections(server) == 0)
        with many(server.port, 3) as idle, server.client() as client:
            honest(client, "in time")
            until(lambda: connections(server) == 4)
            for _ in range(3):
                with contextlib.closing(connect(server.port)) as sock:
                    assert_refused(read_all(sock))
                honest(client, "still")
            reset(idle.pop())
            until(lambda: connections(server) == 3)
            with server.client() as another:
                honest(another, "again")
        assert_all_is_well(server)


def assert_refused(answer: bytes) -> None:
    head = answer.partition(b"\r\n\r\n")[0]
    assert head.startswith(b"HTTP/1.1 503 ")
    assert b"\r\nConnection: close" in head
    assert re.search(rb"\r\nRetry-After: [1-9]\d*(\r\n|$)", head)


def resident(server: Server) -> int:
    """Return the bytes of memory that the process has now."""
    pages = int(Path(f"/proc/{server.process.pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


MOST = 10_000


def test_ten_thousand_idle_connections_are_borne_and_one_more_is_not(directory: Path) -> None:
    env = PATIENT | {"VENTU_MAX_CONNECTIONS": str(MOST)} | without_hurry(directory)
    with deployed(SERVE, MODEL, directory, env=env) as deployment:
        server = deployment.server
        with server.client() as client:
            honest(client, "before")
            memory = resident(server)
            with many(server.port, MOST - 1) as idle:
                until(lambda: connections(server) == MOST)
                for number in range(50):
                    honest(client, f"among many {number}")
                with contextlib.closing(connect(server.port)) as sock:
                    assert_refused(read_all(sock))
                for sock in idle[:: MOST // 20]:
                    sock.sendall(post("not so idle"))
                for sock in idle[:: MOST // 20]:
                    assert b'"NOT SO IDLE"' in sock.recv(4096)
                assert resident(server) - memory < 80e6  # 8 KB for each
            until(lambda: connections(server) == 1)
            honest(client, "after")
        assert_all_is_well(server)


# ----------------------------------------------------------------------------- slow clients


@behind_batching
def test_a_thousand_slow_clients_harm_nobody(how: str, directory: Path) -> None:
    """Most send a byte now and then, the others read nothing of what they asked for."""
    env = PATIENT | {"VENTU_MAX_BATCH_SIZE": "32"} | without_hurry(directory)
    with deployed(how, MODEL, directory, env=env) as deployment:
        server = deployment.server
        with contextlib.ExitStack() as stack:
            client = stack.enter_context(server.client())
            honest(client, "before")
            memory = resident(server)
            senders = stack.enter_context(many(server.port, 800))
            readers = stack.enter_context(many(server.port, 200, segment=536))
            for sock in senders[::2]:
                sock.sendall(HEAD)
            for sock in readers:
                sock.sendall(post("big 200000"))
            until(lambda: len(readable(readers)) == len(readers))
            for serial in range(30):
                for sock, start in zip(
                    senders, 400 * [b"x", LINES[serial : serial + 1]], strict=True
                ):
                    sock.sendall(start)
                honest(client, f"honest {serial}")
                honest(client, f"another {serial}")
            assert not readable(senders)
            assert resident(server) - memory < 1.5 * 200_000 * len(readers) + 50e6
        assert_all_is_well(server)


@behind_batching
def test_answers_that_nobody_reads_fill_no_memory(how: str, directory: Path) -> None:
    """Whoever lets most of ``max_held`` wait for longest has to go; 400 MB are asked for."""
    env = PATIENT | {"VENTU_MAX_BATCH_SIZE": "32", "VENTU_MAX_HELD": "16MiB"}
    with deployed(how, MODEL, directory, env=env) as deployment:
        server = deployment.server
        with server.client() as client, many(server.port, 200, segment=536) as readers:
            honest(client, "before")
            memory, most = resident(server), 0
            for serial, sock in enumerate(readers):
                sock.sendall(10 * post("big 200000"))
                if not serial % 10:
                    honest(client, f"honest {serial}")
                    most = max(most, resident(server))
            until(lambda: jobs(server) == 0)
            assert max(most, resident(server)) - memory < 100e6
            assert 0 < connections(server) < 100
        assert_all_is_well(server)


# ``batching`` with less patience than an option can give it: half a minute is long for a test.
IMPATIENT = """
import asyncio
from ventu_lite.addresses import UnixAddress
from ventu_lite.http.server import Limits, run
from ventu_lite.batching.server import BatchingService, ServiceOptions, running
from ventu_lite.batching.status import PlainStatus
from ventu_lite.config import Config

async def main():
    limits = Limits(head_time=2.0, body_time=2.0, write_time=2.0, linger_time=1.0, min_rate=1e9)
    options = ServiceOptions("busy", [UnixAddress("s")], limits=limits)
    service = BatchingService(Config(port=0), options, PlainStatus)
    async with running(service):
        print("ready on", service.url, flush=True)
        await asyncio.Event().wait()

run(main())
"""


@contextlib.contextmanager
def impatient(directory: Path) -> Iterator[Server]:
    (directory / "app.py").write_text(MODEL)
    with nothing_left(files=True) as mark:
        env = mark | PATIENT | {"VENTU_MAX_BATCH_SIZE": "32"}
        with Process("-c", IMPATIENT, cwd=directory, env=env) as process:
            server = Server(process, int(process.wait_for(r"ready on \S+:(\d+)")[1]))
            with worker("app.py", "--unix", "s", cwd=directory, env=env):
                until(lambda: server.get("/readyz").status == 200)
                yield server


@contextlib.contextmanager
def honest_all_the_time(server: Server) -> Iterator[None]:
    """Have an honest client ask again and again meanwhile; its answers are all right."""
    is_over = threading.Event()

    def ask() -> int:
        with server.client() as client:
            for serial in range(1_000_000):
                honest(client, f"honest {serial}")
                if is_over.wait(0.005):
                    return serial
        raise AssertionError("it never came to an end")

    with ThreadPoolExecutor(1) as pool:
        asking = pool.submit(ask)
        try:
            yield
        finally:
            is_over.set()
        assert asking.result() > 10


def test_a_thousand_slow_senders_are_cut_at_their_time_limit(directory: Path) -> None:
    with impatient(directory) as server, honest_all_the_time(server):
        with many(server.port, 1000) as slow:
            for sock in slow[::2]:
                sock.sendall(LINES + b"Content-Length: 1000000\r\n\r\n")
            left = set(slow)
            began_at = time.monotonic()
            while left:
                for sock in readable(list(left), 0.01):  # the last ones must not be quick
                    assert read_all(sock).startswith(b"HTTP/1.1 408 ")
                    left.discard(sock)
                for sock in left:
                    with contextlib.suppress(ConnectionError):  # cut just now
                        sock.send(b"P")
                assert time.monotonic() - began_at < TIMEOUT, f"{len(left)} were not cut"
            until(lambda: connections(server) == 1)


def test_a_thousand_slow_readers_are_cut_at_their_time_limit(directory: Path) -> None:
    size = 200_000
    with impatient(directory) as server, honest_all_the_time(server):
        memory = resident(server)
        with many(server.port, 1000, segment=536) as slow:
            for sock in slow:
                sock.sendall(post(f"big {size}"))
            most = 0
            cut: set[int] = set()
            poll = select.poll()
            for sock in slow:
                poll.register(sock, select.POLLHUP)
            began_at = time.monotonic()
            while len(cut) < len(slow):
                for number, _ in poll.poll(50):
                    cut.add(number)
                    poll.unregister(number)
                most = max(most, resident(server))
                assert time.monotonic() - began_at < TIMEOUT, f"{len(slow) - len(cut)} were not cut"
            assert most - memory < 1.5 * size * len(slow) + 50e6
            until(lambda: connections(server) == 1)
        assert_all_is_well(server)
