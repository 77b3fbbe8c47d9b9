"""Many requests with faults among them, and what they leave in the processes that answer them."""

import asyncio
import contextlib
import json
import os
import random
import signal
import socket
import struct
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from crowds import LINES, connections, samples
from deployments import GUNICORN, Deployment, until
from processes import TIMEOUT

from ventu_lite.http.server import run

MODEL = """
from flask import abort
from pydantic import BaseModel, Field
from ventu_lite import Service

class Request(BaseModel):
    text: str = Field(min_length=2)

service = Service("mixture", request=Request, response=str)

@service.preprocess
def look(request):
    if request.text == "abort":
        abort(418)
    return request.text

@service.infer(batch=True)
def shout(batch):
    if "raise" in batch:
        raise ValueError("as it was told")
    return [item.upper() for item in batch]

app = service.app
"""
#: Of a service that gives nobody up while a worker starts.
SETTINGS = {"VENTU_TIMEOUT": "60"}
STATUSES = {"invalid": 422, "raise": 500, "abort": 418}
FAULTS = (*STATUSES, "garbage", "leaves")
# The main thread and those of an event loop's own pool, which starts them when they are needed.
POOL = 1 + min(32, (os.cpu_count() or 1) + 4)
GARBAGE = b"\x16\x03\x01 this is no HTTP\r\n\r\n"


@dataclass(frozen=True)
class Traces:
    """What a deployment has of the system; one number for each process, the front first.

    Attributes:
        files: Open file descriptors.
        threads: Of any kind.
        memory: Resident bytes.
        temporary: Files in the directory for temporary ones, however deep, but not the next.
        totals: Files with metrics. Those of a process that has died stay, or sums would go back.
    """

    files: list[int]
    threads: list[int]
    memory: list[int]
    temporary: int
    totals: int

    @classmethod
    def of(cls, deployment: Deployment) -> "Traces":
        """Look at all processes, as soon as nobody is connected."""
        until(lambda: connections(deployment.server) == 0)
        pids = [deployment.server.process.pid, *deployment.worker_pids()]
        places = [Path(f"/proc/{pid}") for pid in pids]
        pages = [int((place / "statm").read_text().split()[1]) for place in places]
        names = [name for _, _, files in os.walk(deployment.env["TMPDIR"]) for name in files]
        totals = sum(name.endswith(".db") for name in names)
        return cls(
            [len(os.listdir(place / "fd")) for place in places],
            [len(os.listdir(place / "task")) for place in places],
            [count * os.sysconf("SC_PAGE_SIZE") for count in pages],
            len(names) - totals,
            totals,
        )

    def same(self) -> tuple[list[int], list[int], int]:
        """Return what has to be the same as before."""
        return self.files, self.lasting_threads(), self.temporary

    def lasting_threads(self) -> list[int]:
        """Return the threads, as if the front had all that may ever read metrics for it."""
        return [max(POOL, self.threads[0]), *self.threads[1:]]


def assert_same(deployment: Deployment, before: Traces) -> Traces:
    """See that there are as many files, threads and processes, or soon will be; return all."""
    deadline = time.monotonic() + TIMEOUT
    now = Traces.of(deployment)
    while now.same() != before.same() and time.monotonic() < deadline:
        time.sleep(0.05)
        now = Traces.of(deployment)
    assert now.same() == before.same(), f"{now} is not as {before}"
    return now


def load(
    deployment: Deployment, count: int, *, seed: int, faults: float = 0.05, clients: int = 16
) -> Counter[str]:
    """Send requests and see that each is answered as it should be.

    Args:
        deployment: Of ``MODEL``.
        count: How many.
        seed: What the choice of faults depends on.
        faults: The part of them that has one.
        clients: How many come at once.

    Returns:
        How many there were of each kind; "lost" are those that gunicorn's worker took with it.
    """
    seen: Counter[str] = Counter()
    may_lose = deployment.how == GUNICORN

    async def everybody() -> None:
        callers = [
            _Caller(deployment.server.port, random.Random(f"{seed} {number}"), seen, may_lose)
            for number in range(clients)
        ]
        await asyncio.gather(*(it.call(count // clients, faults) for it in callers))

    run(everybody())
    return seen


def load_while_a_worker_dies(deployment: Deployment, count: int, *, seed: int) -> Counter[str]:
    """Send requests, kill a worker in their midst, and wait until another is in its place."""
    before = deployment.worker_pids()
    done = batches(deployment)
    with ThreadPoolExecutor(1) as pool:
        loading = pool.submit(load, deployment, count, seed=seed)
        until(lambda: loading.done() or batches(deployment) > done + 20)
        os.kill(before[0], signal.SIGKILL)
        if deployment.workers:
            deployment.workers[0].wait()
            deployment.workers[0] = deployment.another_worker().__enter__()
        seen = loading.result()
    until(lambda: _is_replaced(deployment, before))
    return seen + load(deployment, count // 4, seed=-seed)  # so that the new one has worked, too


def batches(deployment: Deployment) -> int:
    """Return how many batches were released."""
    return samples(deployment.server)["ventu_batch_size_count"]


@contextlib.contextmanager
def replaced_workers(deployment: Deployment) -> Iterator[None]:
    """End the workers that took the place of others when the block ends."""
    first = list(deployment.workers)
    try:
        yield
    finally:
        for process in deployment.workers:
            if process not in first:
                process.__exit__(None, None, None)


def _is_replaced(deployment: Deployment, before: list[int]) -> bool:
    pids = deployment.worker_pids()
    is_there = len(pids) == len(before) and before[0] not in pids
    return is_there and deployment.server.get("/readyz").status == 200


class _Caller:
    """One client, that comes back whenever its connection has ended."""

    def __init__(
        self, port: int, chance: random.Random, seen: Counter[str], may_lose: bool
    ) -> None:
        self._port = port
        self._chance = chance
        self._seen = seen
        self._may_lose = may_lose
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def call(self, count: int, faults: float) -> None:
        """Ask so many times."""
        chance = self._chance
        for _ in range(count):
            kind = chance.choice(FAULTS) if chance.random() < faults else "good"
            try:
                await self._do(kind)
            except (ConnectionError, asyncio.IncompleteReadError):
                assert self._may_lose, kind
                kind = "lost"
                self._leave(is_rude=False)
            self._seen[kind] += 1
        self._leave(is_rude=False)

    async def _do(self, kind: str) -> None:
        if kind == "garbage":
            self._leave(is_rude=False)
        if self._streams is None:
            self._streams = await asyncio.open_connection("127.0.0.1", self._port)
        reader, writer = self._streams
        text = f"text {self._chance.random()}"
        if kind == "garbage":
            writer.write(GARBAGE)
            assert (await reader.readuntil(b"\r\n")).startswith(b"HTTP/1.1 400 ")
            await reader.read()
            self._leave(is_rude=False)
        elif kind == "leaves":
            request = _post(text)
            writer.write(request[: self._chance.randrange(2 * len(request))])
            await asyncio.sleep(0.02 * self._chance.random())
            self._leave(is_rude=self._chance.random() < 0.5)
        elif kind == "good":
            assert await self._ask(text) == (200, json.dumps(text.upper()).encode())
        else:
            status, _ = await self._ask("" if kind == "invalid" else kind)
            assert status == STATUSES[kind], (kind, status)

    async def _ask(self, text: str) -> tuple[int, bytes]:
        assert self._streams is not None
        reader, writer = self._streams
        writer.write(_post(text))
        head = (await reader.readuntil(b"\r\n\r\n")).lower()
        length = head.partition(b"\r\ncontent-length: ")[2].partition(b"\r\n")[0]
        body = await reader.readexactly(int(length))
        if b"\r\nconnection: close" in head:
            self._leave(is_rude=False)
        return int(head.split(b" ")[1]), body

    def _leave(self, *, is_rude: bool) -> None:
        if self._streams is None:
            return
        _, writer = self._streams
        self._streams = None
        if is_rude and not writer.is_closing():  # with RST
            sock = writer.get_extra_info("socket")
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        writer.transport.abort()


def _post(text: str) -> bytes:
    body = json.dumps({"text": text}).encode()
    return b"%bContent-Length: %d\r\n\r\n%b" % (LINES, len(body), body)
