"""The batching service in this process: recorded conversations, several places, its end."""

import asyncio
import os
import socket
import struct
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import NamedTuple

import pytest
from msgpack import packb, unpackb
from peers import Capture, pieces
from processes import TIMEOUT, short_directory
from waiting import turn_until

from ventu_lite.addresses import Address, TCPAddress, UnixAddress
from ventu_lite.batching.listeners import BACKLOG
from ventu_lite.batching.server import BatchingService, ServiceOptions, running
from ventu_lite.batching.status import PlainStatus
from ventu_lite.config import Config
from ventu_lite.errors import CannotListen
from ventu_lite.http.request import Request
from ventu_lite.http.server import run

READY = bytes(4)

# The clients of a batch, its ids, and what the recorded worker answered, good and rejected.
Outstanding = tuple["list[asyncio.Future[Answer]]", dict[str, str], dict[str, "str | bytes"], str]


def frame(body: bytes) -> bytes:
    return len(body).to_bytes(4, "big") + body


class Answer(NamedTuple):
    """What the service said over HTTP."""

    status: int
    body: bytes


class Stage:
    """A running service, and whoever talks to it."""

    def __init__(self, service: BatchingService, unix: str) -> None:
        self.service = service
        self.unix = unix

    async def ask(
        self, path: str, body: bytes = b"", media_type: str = "application/json"
    ) -> Answer:
        """Ask once; POST if there is a body."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self.service.port)
        try:
            method = "POST" if body else "GET"
            writer.write(
                f"{method} {path} HTTP/1.1\r\nHost: h\r\nConnection: close\r\n"
                f"Content-Type: {media_type}\r\nContent-Length: {len(body)}\r\n\r\n".encode()
                + body
            )
            head, _, content = (await reader.read()).partition(b"\r\n\r\n")
        finally:
            writer.close()
        return Answer(int(head.split(b" ")[1]), content)

    async def worker(self) -> "Worker":
        return Worker(*await asyncio.open_unix_connection(self.unix))

    async def until_waiting(self, count: int) -> None:
        await turn_until(lambda: self.service.dispatcher.queue.waiting == count)

    async def until_ready(self, count: int) -> None:
        await turn_until(lambda: self.service.ready_workers == count)


class Worker(NamedTuple):
    """A worker that says what a test wants."""

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter

    async def reads(self) -> bytes:
        size = int.from_bytes(await self.reader.readexactly(4), "big")
        return await self.reader.readexactly(size)

    async def says(self, data: bytes, piece_size: int | None = None) -> None:
        for piece in pieces(data, piece_size):
            self.writer.write(piece)
            await self.writer.drain()
            if piece_size:
                await asyncio.sleep(0)  # a turn of the loop in which only this has come

    async def answers(self) -> dict[str, bytes]:
        """Read a batch and echo it."""
        batch: dict[str, bytes] = unpackb(await self.reads())
        await self.says(frame(packb(batch)))
        return batch


@asynccontextmanager
async def serving(options: dict[str, object], settings: dict[str, object]) -> AsyncIterator[Stage]:
    with short_directory() as directory:
        unix = str(directory / "s")
        config = Config(port=0, **{"timeout": 20.0, "max_wait": 0.0, **settings})
        made = ServiceOptions("cats", **{"workers_at": [UnixAddress(unix)], **options})  # type: ignore[arg-type]
        service = BatchingService(config, made, PlainStatus)
        async with running(service):
            try:
                yield Stage(service, unix)
            except BaseException:
                service.abort()  # a test that fails does so at once
                raise
        assert not os.path.exists(unix)


def play(
    test: Callable[[Stage], Awaitable[None]],
    options: dict[str, object] | None = None,
    **settings: object,
) -> None:
    async def main() -> None:
        async with serving(options or {}, settings) as stage:
            await asyncio.wait_for(test(stage), TIMEOUT)

    run(main())


# --------------------------------------------------------------- the recorded conversations


@pytest.mark.parametrize("piece_size", [None, 1, 7])
@pytest.mark.parametrize("name", ["json", "msgpack"])
def test_a_recorded_worker_is_served_like_by_the_recorded_service(
    name: str, piece_size: int | None
) -> None:
    """Byte for byte, but for the ids, which a service makes up."""
    capture = Capture.load(name)

    async def test(stage: Stage) -> None:
        worker = await stage.worker()
        says = frame(capture.ready)
        for recorded, results in zip(capture.batches, capture.results, strict=True):
            jobs: dict[str, bytes] = unpackb(recorded)
            clients: list[asyncio.Future[Answer]] = []
            for number, payload in enumerate(jobs.values(), 1):
                asking = stage.ask("/inference", payload, f"application/{name}")
                clients.append(asyncio.ensure_future(asking))
                await stage.until_waiting(number)
            await worker.says(says, piece_size)
            body = await worker.reads()
            ids = dict(zip(jobs, unpackb(body), strict=True))
            for old, new in ids.items():
                recorded = recorded.replace(old.encode(), new.encode())
                results = results.replace(old.encode(), new.encode())
            assert body == recorded
            says = frame(results)
            expected_of = unpackb(results)
            rejected = expected_of.pop("error_ids", "")
            outstanding.append((clients, ids, expected_of, rejected))
        await worker.says(says, piece_size)
        for clients, ids, bodies, rejected in outstanding:
            for client, id in zip(clients, ids.values(), strict=True):
                answer = bodies[id]
                expected = answer.encode() if isinstance(answer, str) else answer
                assert await client == Answer(422 if id in rejected else 200, expected)
        worker.writer.close()

    outstanding: list[Outstanding] = []
    play(test)
    assert len(outstanding) >= 2


# -------------------------------------------------------------------------------- its routes


def test_a_service_says_how_it_is() -> None:
    async def test(stage: Stage) -> None:
        assert (await stage.ask("/livez")).status == 200
        assert (await stage.ask("/readyz")).status == 503
        health = await stage.ask("/health")
        assert health.status == 503 and b"no worker is connected" in health.body
        worker = await stage.worker()
        await worker.says(READY)
        await stage.until_ready(1)
        assert (await stage.ask("/readyz")).status == 200
        assert await stage.ask("/health") == Answer(200, b'{"service":"OK","inference":"OK"}')
        seen = (await stage.ask("/metrics")).body
        assert b'ventu_workers{protocol="unix",service="cats"} 1.0' in seen
        assert b"python_info" in seen
        assert b"/inference" in (await stage.ask("/")).body
        assert (await stage.ask("/nowhere")).status == 404
        worker.writer.close()
        await stage.until_ready(0)
        assert (await stage.ask("/readyz")).status == 503

    play(test)


def test_metrics_that_cannot_be_read_are_told(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("PROMETHEUS_MULTIPROC_DIR", "/nowhere/at/all")

    async def test(stage: Stage) -> None:
        said = b"the metrics cannot be read; the log says why\n"
        assert await stage.ask("/metrics") == Answer(500, said)

    play(test)
    assert "the metrics cannot be read" in caplog.text


def test_a_service_is_at_all_its_places() -> None:
    def fallback(request: Request) -> None:
        request.respond(200, b"", b"mine")

    async def test(stage: Stage) -> None:
        worker = await stage.worker()
        await worker.says(READY)
        for place in ("/v1", "/v2"):
            asking = asyncio.ensure_future(stage.ask(f"{place}/inference", b"1"))
            await worker.answers()
            assert await asking == Answer(200, b"1")
            assert (await stage.ask(f"{place}/readyz")).status == 200
            assert (await stage.ask(f"{place}/inference")).status == 405
        for path in ("/inference", "/v3/readyz", "/"):
            assert await stage.ask(path) == Answer(200, b"mine")
        worker.writer.close()

    play(test, {"prefixes": ["/v1", "/v2"], "fallback": fallback})


def test_workers_may_come_to_several_doors() -> None:
    async def test(stage: Stage) -> None:
        at_unix = await stage.worker()
        await at_unix.says(READY)
        at = stage.service.links[1].address
        assert isinstance(at, TCPAddress) and at.port
        over_tcp = Worker(*await asyncio.open_connection(at.host, at.port))
        await over_tcp.says(READY)
        await stage.until_ready(2)
        seen = (await stage.ask("/metrics")).body
        assert b'ventu_workers{protocol="tcp",service="cats"} 1.0' in seen
        asking = [asyncio.ensure_future(stage.ask("/inference", b"%d" % n)) for n in (1, 2)]
        for worker in (at_unix, over_tcp):
            await worker.answers()
            worker.writer.close()
        assert sorted([(await one).body for one in asking]) == [b"1", b"2"]

    with short_directory() as directory:
        doors = [UnixAddress(str(directory / "s")), TCPAddress("127.0.0.1", 0)]

        async def with_path(stage: Stage) -> None:
            stage.unix = str(directory / "s")
            await test(stage)

        play(with_path, {"workers_at": doors}, max_batch_size=1)
        assert not os.listdir(directory)


# ----------------------------------------------------------------------------------- its end


def test_a_worker_that_comes_while_a_service_ends_is_given_what_was_accepted() -> None:
    async def test(stage: Stage) -> None:
        asking = asyncio.ensure_future(stage.ask("/inference", b"1"))
        await stage.until_waiting(1)
        stopping = asyncio.ensure_future(stage.service.stop())
        await turn_until(lambda: not stage.service._http_servers[0].is_serving())
        worker = await stage.worker()
        await worker.says(READY)
        await worker.answers()
        assert await asking == Answer(200, b"1")
        await stopping
        assert await worker.reader.read() == b""
        worker.writer.close()

    play(test)


def answer_nothing(request: Request) -> None:
    pass


def answer_much(request: Request) -> None:
    request.respond(200, b"", bytes(20_000_000))


@pytest.mark.parametrize(
    ("fallback", "said"),
    [
        (answer_nothing, "1 request(s) have no answer yet, and 0 client(s) have not read theirs"),
        (answer_much, "0 request(s) have no answer yet, and 1 client(s) have not read theirs"),
    ],
)
def test_clients_that_are_not_done_are_dropped_after_a_while(
    fallback: Callable[[Request], None],
    said: str,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    from ventu_lite.batching import server

    monkeypatch.setattr(server, "_DRAIN_GRACE", 0.1)
    asked = asyncio.Event()

    def answer(request: Request) -> None:
        fallback(request)
        asked.set()

    async def test(stage: Stage) -> None:
        with socket.create_connection(("127.0.0.1", stage.service.port)) as client:
            client.sendall(b"GET /mine HTTP/1.1\r\nHost: a\r\n\r\n")
            await asked.wait()
            await stage.service.stop()

    play(test, {"fallback": answer}, timeout=0.1)
    assert f"after 0.2 s of stopping {said}" in caplog.text


def test_an_end_can_be_hurried() -> None:
    async def test(stage: Stage) -> None:
        asking = asyncio.ensure_future(stage.ask("/inference", b"1"))
        await stage.until_waiting(1)
        began_at = time.monotonic()
        stopping = asyncio.ensure_future(stage.service.stop())
        await asyncio.sleep(0)
        stage.service.abort()
        await stopping
        assert time.monotonic() - began_at < 10
        with pytest.raises((ConnectionError, IndexError)):
            await asking

    play(test)


def test_a_burst_is_let_in_one_by_one_and_the_rest_may_wait() -> None:
    """Without uvloop; this one leaves it to the system who is let in when."""
    from ventu_lite.batching.server import _serve

    turn, came_in = 0, []

    def connect() -> asyncio.Protocol:
        came_in.append(turn)
        return asyncio.Protocol()

    async def main(door: socket.socket) -> None:
        nonlocal turn
        server = await _serve(connect, door)
        info = door.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 32)
        (backlog,) = struct.unpack_from("I", info, 28)  # of a socket that listens, it is here
        assert backlog == min(BACKLOG, int(Path("/proc/sys/net/core/somaxconn").read_text()))
        clients = [socket.create_connection(door.getsockname()) for _ in range(10)]
        while len(came_in) < len(clients):
            turn += 1
            await asyncio.sleep(0)
        server.close()
        for client in clients:
            client.close()
        most = max(came_in.count(one) for one in came_in)
        assert most <= 2  # since Python 3.12, one more than the backlog says

    with socket.create_server(("127.0.0.1", 0)) as door:
        door.setblocking(False)
        asyncio.run(asyncio.wait_for(main(door), TIMEOUT))


def test_a_door_that_cannot_be_opened_leaves_the_others_closed() -> None:
    async def main(directory: Path) -> None:
        with socket.create_server(("127.0.0.1", 0)) as taken:
            port = taken.getsockname()[1]
            doors: list[Address] = [
                UnixAddress(str(directory / "s")),
                TCPAddress("127.0.0.1", port),
            ]
            service = BatchingService(Config(port=0), ServiceOptions("x", doors), PlainStatus)
            with pytest.raises(CannotListen, match=f"port {port}: Address already in use"):
                async with running(service):
                    raise AssertionError("it runs")
        assert not os.listdir(directory)

    with short_directory() as directory:
        run(main(directory))
