"""What do a thousand slow clients cost the honest ones?

Run ``python tests/benchmarks/slow_neighbours.py`` on Linux. ``serve`` with one worker and a model
that costs nothing is asked by some clients in a closed loop, in turns with and without neighbours
in a process of their own: 400 that send a head byte by byte, 400 a body, and 200 that never read
their answer of 200 KB. Prints the latency of both, and the median ratio of neighbours in time.
"""

import argparse
import asyncio
import contextlib
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from statistics import median, quantiles

from measuring import verdict

TESTS = Path(__file__).parent.parent
sys.path += [str(TESTS), str(TESTS / "faults")]

from crowds import LINES, many, post, readable  # noqa: E402  # after the line above
from deployments import SERVE, deployed  # noqa: E402
from processes import short_directory  # noqa: E402

from ventu_lite.http.server import run  # noqa: E402

MODEL = """
from ventu_lite import Service

service = Service("neighbours", request=str, response=str)

@service.infer(batch=True)
def shout(batch):
    return ["x" * int(item[4:]) if item.startswith("big ") else item.upper() for item in batch]

app = service.app
"""
ANSWER = b'"HONEST"'
PAUSE = 0.2  # seconds between two bytes of a slow client


def be_slow(port: int, count: int) -> None:
    """Be all the neighbours, until killed."""
    readers, senders = count // 5, count - count // 5
    with (
        many(port, senders) as slow,
        many(port, readers, segment=536) as deaf,
    ):
        for sock in slow[::2]:
            sock.sendall(LINES + b"Content-Length: 1000\r\n\r\n")
        for sock in deaf:
            sock.sendall(post("big 200000"))
        while len(readable(deaf)) < len(deaf):
            time.sleep(PAUSE)
        print("ready", flush=True)
        while True:
            for sock in slow:
                with contextlib.suppress(ConnectionError):  # its time is over
                    sock.send(b"P")
            time.sleep(PAUSE)


@contextlib.contextmanager
def neighbours(port: int, count: int) -> Iterator[None]:
    """Have neighbours while the block runs."""
    command = [sys.executable, __file__, "--be-slow", str(port), "--neighbours", str(count)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            if process.stdout.readline() != "ready\n":
                raise SystemExit("the neighbours did not come")
            yield
        finally:
            process.kill()


async def ask_for(port: int, seconds: float) -> list[float]:
    """Return how long each answer to one client took."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    took = []
    end = time.monotonic() + seconds
    while (began_at := time.monotonic()) < end:
        writer.write(post("honest"))
        head = await reader.readuntil(b"\r\n\r\n")
        body = await reader.readexactly(len(ANSWER))
        if not head.startswith(b"HTTP/1.1 200 ") or body != ANSWER:
            raise SystemExit(f"a wrong answer: {head!r} {body!r}")
        took.append(time.monotonic() - began_at)
    writer.transport.abort()
    return took


def latencies(port: int, clients: int, seconds: float) -> list[float]:
    """Return the milliseconds of each answer to all clients."""

    async def everybody() -> list[list[float]]:
        return await asyncio.gather(*(ask_for(port, seconds) for _ in range(clients)))

    found: list[list[float]] = []

    async def main() -> None:
        found.extend(await everybody())

    run(main())
    return [took * 1e3 for one in found for took in one]


def p99(values: list[float]) -> float:
    """Return the value that one in a hundred exceeds."""
    return quantiles(values, n=100)[98]


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=3, help="of each run")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--clients", type=int, default=8)
    parser.add_argument("--neighbours", type=int, default=1000)
    parser.add_argument("--be-slow", type=int, metavar="PORT", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.be_slow:
        be_slow(options.be_slow, options.neighbours)
    measured: list[list[float]] = []
    print("round   alone: p50     p99 ms   with neighbours: p50     p99 ms   ratio of p99")
    with short_directory() as folder, deployed(SERVE, MODEL, folder) as deployment:
        port = deployment.server.port
        latencies(port, options.clients, 1.0)
        for serial in range(options.rounds):
            alone = latencies(port, options.clients, options.seconds)
            with neighbours(port, options.neighbours):
                among = latencies(port, options.clients, options.seconds)
            measured.append([p99(alone), p99(among)])
            print(
                f"{serial + 1:5} {median(alone):12.2f} {p99(alone):10.2f}"
                f" {median(among):22.2f} {p99(among):10.2f} {p99(among) / p99(alone):14.2f}",
                flush=True,
            )
    ratio = median(among / alone for alone, among in measured)
    print(verdict(f"p99 beside {options.neighbours} slow clients", ratio, 2, " x"))


if __name__ == "__main__":
    main()
