"""Clients in great number, or rude ones: raw sockets, so that each byte and each end is chosen."""

import contextlib
import json
import resource
import select
import socket
import struct
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from processes import TIMEOUT, Answer, Client, Server
from prometheus_client.parser import text_string_to_metric_families

LISTENING = "0A"  # as /proc/net/tcp says it
LINES = b"POST /inference HTTP/1.1\r\nHost: h\r\nContent-Type: application/json\r\n"


def post(item: str, *fields: bytes) -> bytes:
    """Return the bytes of one request."""
    body = json.dumps(item).encode()
    return b"".join((LINES, *fields, b"Content-Length: %d\r\n\r\n" % len(body), body))


def connect(port: int, *, segment: int = 0) -> socket.socket:
    """Return a connection.

    Args:
        port: Of a server on this machine.
        segment: If given, the largest segment of a client that takes little at a time, so that the
            systems of both sides keep little for it: most of an answer stays with the server.
    """
    sock = socket.socket()
    sock.settimeout(TIMEOUT)
    if segment:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_MAXSEG, segment)
    try:
        sock.connect(("127.0.0.1", port))
    except BaseException:
        sock.close()
        raise
    return sock


def reset(sock: socket.socket) -> None:
    """Leave with RST: what is on its way is lost."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    sock.close()


def hang_up(sock: socket.socket) -> None:
    """Leave with FIN, after all that was sent."""
    with contextlib.suppress(OSError):  # the server was faster
        sock.shutdown(socket.SHUT_WR)
    sock.close()


@contextlib.contextmanager
def many(port: int, count: int, *, segment: int = 0) -> Iterator[list[socket.socket]]:
    """Open connections; they are reset at the end, so that no port of this machine stays taken."""
    make_room_for(count)
    socks: list[socket.socket] = []
    try:
        for _ in range(count):
            socks.append(connect(port, segment=segment))
        yield socks
    finally:
        for sock in socks:
            if sock.fileno() >= 0:
                reset(sock)


def readable(socks: Sequence[socket.socket], patience: float = 0.0) -> list[socket.socket]:
    """Return those for which something has come, or the end; none after that many seconds."""
    poll = select.poll()
    by_number = {sock.fileno(): sock for sock in socks}
    for number in by_number:
        poll.register(number, select.POLLIN)
    return [by_number[number] for number, _ in poll.poll(patience * 1000)]


def read_all(sock: socket.socket) -> bytes:
    """Read until the server closes, or resets."""
    data = b""
    with contextlib.suppress(ConnectionError):
        while piece := sock.recv(1 << 20):
            data += piece
    return data


def make_room_for(connections: int) -> None:
    """Let this process and its children have so many; skip the test if the system does not."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    files = connections + 500  # for all else
    if hard != resource.RLIM_INFINITY and hard < files:
        pytest.skip("the hard limit of open files is too low here")
    if soft != resource.RLIM_INFINITY and soft < files:
        resource.setrlimit(resource.RLIMIT_NOFILE, (files, hard))


def at_once(server: Server, items: Sequence[str], **headers: str) -> Callable[[], list[Answer]]:
    """Ask for all items at once, each over a connection of its own.

    Returns:
        A function that waits for the answers, in the same order. To be called once.
    """
    pool = ThreadPoolExecutor(len(items))
    asked = [pool.submit(server.infer, json.dumps(item).encode(), **headers) for item in items]

    def answers() -> list[Answer]:
        found = [answer.result(2 * TIMEOUT) for answer in asked]
        pool.shutdown()
        return found

    return answers


def honest(client: Client, item: str) -> float:
    """Ask and see that the answer is right; return how long it took."""
    began_at = time.monotonic()
    answer = client.infer(json.dumps(item).encode())
    assert (answer.status, answer.body) == (200, json.dumps(item.upper()).encode())
    return time.monotonic() - began_at


def samples(server: Server) -> Counter[str]:
    """Return the samples of ``/metrics``, by name and the values of their labels."""
    seen: Counter[str] = Counter()
    for family in text_string_to_metric_families(server.get("/metrics").body.decode()):
        for sample in family.samples:
            values = [v for k, v in sorted(sample.labels.items()) if k not in ("service", "le")]
            seen["/".join([sample.name, *values])] += int(sample.value)
    return seen


def connections(server: Server) -> int:
    """Return how many connections the server has accepted and not closed."""
    rows = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    ours = [row for row in rows if int(row[1].partition(":")[2], 16) == server.port]
    return sum(row[9] != "0" for row in ours if row[3] != LISTENING)
