"""The batching service and one worker beside mosec, the same model under the same load, in turns.

Run ``python tests/benchmarks/against_mosec.py`` on Linux; wrk has to be installed, mosec
(``pip install mosec==0.9.8``) should be. Prints requests/s, latency and CPU time per request of
each process for some numbers of clients, then start-up time and memory of ``batching`` alone, of
2,000 idle connections, and after 200,000 requests and 5,000 clients that drop their connection.

``--model sleep`` compares a model that takes 5 ms and 0.2 ms more for each item; mosec may choose
the best of several waits for each number of clients. Ours validates requests and responses in both
cases, mosec only parses them.
"""

import argparse
import contextlib
import importlib.util
import os
import re
import shutil
import socket
import struct
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from http_cost import SCRIPT, cpu_seconds, resident
from measuring import verdict

BODY = '{"text": "my cat is very cute"}'
REQUEST = (
    "POST /inference HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\n"
    f"Content-Length: {len(BODY)}\r\n\r\n{BODY}"
).encode()
CLIENTS = {"empty": [1, 16, 64, 256], "sleep": [1, 4, 16, 32, 64, 128]}
WAITS = {"empty": [1], "sleep": [0, 1, 2, 5, 10]}  # of mosec, in ms
RATIOS = {16: 2.0, 64: 2.0, 256: 1.8}
SETTLING = 0.5  # seconds in which a server lets go of clients that have left
WORK = {"empty": "pass", "sleep": "time.sleep(0.005 + 0.0002 * len(batch))"}
OURS = """
import time
from pydantic import BaseModel, Field
from ventu_lite import Service

class Request(BaseModel):
    text: str = Field(min_length=2, examples=["my cat is very cute"])

class Response(BaseModel):
    positive: float = Field(ge=0, le=1)
    negative: float = Field(ge=0, le=1)

service = Service("bench")

@service.infer(batch=True)
def infer(batch: list[Request]) -> list[Response]:
    {work}
    return [Response(positive=0.25, negative=0.75) for _ in batch]

app = service.app
"""
MOSEC = """
import time
from mosec import Server, Worker

class Model(Worker):
    def forward(self, batch):
        {work}
        return [{{"positive": 0.25, "negative": 0.75}} for _ in batch]

if __name__ == "__main__":
    server = Server()
    server.append_worker(Model, max_batch_size=32, max_wait_time={wait})
    server.run()
"""


@dataclass
class Peer:
    """A running server.

    Attributes:
        name: How the table calls it.
        port: Where it takes HTTP.
        pids: Its processes, by what they do.
    """

    name: str
    port: int
    pids: dict[str, int]


@dataclass
class Row:
    """What wrk says of one run; times in milliseconds, ``cpu`` in µs per request."""

    rate: float
    p50: float
    p99: float
    count: int
    cpu: dict[str, float]


def free_port() -> int:
    """Return a port that nobody listens on."""
    with socket.create_server(("127.0.0.1", 0)) as door:
        return int(door.getsockname()[1])


@contextlib.contextmanager
def process(log: Path, *args: str) -> Iterator[int]:
    """Run a Python program until the block ends; yield its process id."""
    with (
        log.open("w") as file,
        subprocess.Popen([sys.executable, *args], stdout=file, stderr=file, cwd=log.parent) as it,
    ):
        try:
            yield it.pid
        finally:
            it.terminate()
            try:
                it.wait(10)
            except subprocess.TimeoutExpired:
                it.kill()


def wait_for(port: int, path: str = "/inference", *, seconds: float = 30.0) -> None:
    """Return as soon as a server answers 200."""
    body = BODY.encode() if path == "/inference" else None
    request = urllib.request.Request(f"http://127.0.0.1:{port}{path}", data=body)
    request.add_header("Content-Type", "application/json")
    give_up_at = time.monotonic() + seconds
    while True:
        try:
            with urllib.request.urlopen(request, timeout=5):
                return
        except (OSError, urllib.error.HTTPError):
            if time.monotonic() > give_up_at:
                raise
            time.sleep(0.002)


@contextlib.contextmanager
def batching(folder: Path, options: list[str]) -> Iterator[Peer]:
    """Run ``batching`` alone."""
    port = free_port()
    args = ["-m", "ventu_lite", "batching", "--unix", "s", "--host", "127.0.0.1"]
    with process(folder / "batching.log", *args, f"--port={port}", *options) as pid:
        wait_for(port, "/livez")
        yield Peer("ventu_lite", port, {"batching": pid})


@contextlib.contextmanager
def ours(folder: Path, model: str, options: list[str]) -> Iterator[Peer]:
    """Run ``batching`` and one worker."""
    (folder / "ours.py").write_text(OURS.format(work=WORK[model]))
    with batching(folder, options) as peer:
        args = ["-m", "ventu_lite", "--app", "ours.py", "worker", "--unix", "s"]
        with process(folder / "worker.log", *args) as pid:
            wait_for(peer.port)
            peer.pids["worker"] = pid
            yield peer


@contextlib.contextmanager
def mosec(folder: Path, model: str, wait: int) -> Iterator[Peer]:
    """Run mosec with one worker."""
    port = free_port()
    script = folder / f"mosec_{wait}.py"
    script.write_text(MOSEC.format(work=WORK[model], wait=wait))
    args = ["--address=127.0.0.1", f"--port={port}", "--log-level=error"]
    args += ["--path", str(folder / f"mosec_{wait}")]  # of its sockets
    with process(script.with_suffix(".log"), str(script), *args) as pid:
        wait_for(port)
        yield Peer(f"mosec, {wait} ms", port, {"": pid, **children(pid)})


def children(pid: int) -> dict[str, int]:
    """Return all processes below one, by their names."""
    found: dict[str, int] = {}
    for number, child in enumerate(Path(f"/proc/{pid}/task/{pid}/children").read_text().split()):
        name = Path(f"/proc/{child}/comm").read_text().strip()
        found |= {f"{name} {number}": int(child), **children(int(child))}
    return found


def load(peer: Peer, clients: int, seconds: float, script: str) -> Row:
    """Run wrk once."""
    before = {name: cpu_seconds(pid) for name, pid in peer.pids.items()}
    args = ["wrk", "-t1", f"-c{clients}", f"-d{seconds:g}s", "-s", script, "--latency"]
    url = f"http://127.0.0.1:{peer.port}/inference"
    text = subprocess.run([*args, url], capture_output=True, text=True, check=True).stdout
    if "Non-2xx" in text or "Socket errors" in text:
        raise SystemExit(f"{peer.name} failed:\n{text}")
    count = int(number_in(r"(\d+) requests in", text))
    cpu = {name: (cpu_seconds(pid) - before[name]) / count * 1e6 for name, pid in peer.pids.items()}
    return Row(
        float(number_in(r"Requests/sec: +(\S+)", text)),
        milliseconds(number_in(r"50% +(\S+)", text)),
        milliseconds(number_in(r"99% +(\S+)", text)),
        count,
        cpu,
    )


def number_in(pattern: str, text: str) -> str:
    """Return what the group of a pattern matches."""
    match = re.search(pattern, text)
    assert match is not None, text
    return match[1]


def milliseconds(text: str) -> float:
    """Return a duration of wrk: ``1.5ms``, ``750.00us``, ``2.00s``."""
    match = re.fullmatch(r"([\d.]+)(us|ms|s)", text)
    assert match is not None, text
    return float(match[1]) * {"us": 1e-3, "ms": 1.0, "s": 1e3}[match[2]]


def median_of(rows: list[Row]) -> Row:
    """Return a row of medians."""
    return Row(
        median(row.rate for row in rows),
        median(row.p50 for row in rows),
        median(row.p99 for row in rows),
        sum(row.count for row in rows),
        {name: median(row.cpu[name] for row in rows) for name in rows[0].cpu},
    )


def compare(model: str, clients: list[int], seconds: float, options: list[str]) -> None:
    """Print the table."""
    with tempfile.TemporaryDirectory(prefix="v", dir="/tmp") as name, contextlib.ExitStack() as all:
        folder = Path(name)
        script = folder / "wrk.lua"
        script.write_text(SCRIPT % BODY)
        peers = [all.enter_context(ours(folder, model, options))]
        if importlib.util.find_spec("mosec") is None:
            print("mosec is not installed: nothing to compare with")
        else:
            peers += [all.enter_context(mosec(folder, model, wait)) for wait in WAITS[model]]
        print("clients server        requests/s  p50 ms  p99 ms  CPU µs/request")
        for count in clients:
            rows: dict[str, list[Row]] = defaultdict(list)
            for _ in range(3):
                for peer in peers:
                    rows[peer.name].append(load(peer, count, seconds, str(script)))
            report(count, {name: median_of(runs) for name, runs in rows.items()}, model)


def report(clients: int, rows: dict[str, Row], model: str) -> None:
    """Print the rows for one number of clients, of mosec only the best."""
    (own_name, own), *others = rows.items()
    best = max(others, key=lambda item: item[1].rate, default=None)
    for name, row in [(own_name, own), *([best] if best else [])]:
        cpu = ", ".join(f"{key} {value:.1f}" for key, value in row.cpu.items() if value >= 0.05)
        times = f"{row.p50:>7.2f} {row.p99:>7.2f}"
        print(f"{clients:>7} {name:<12} {row.rate:>11,.0f} {times}  {cpu}", flush=True)
    if best:
        ratio = own.rate / best[1].rate
        goal = RATIOS.get(clients, 0.0) if model == "empty" else 0.0
        aim = (
            f", goal at least {goal:g}: {'reached' if ratio >= goal else 'MISSED'}" if goal else ""
        )
        print(f"        {ratio:.2f} × mosec{aim}", flush=True)
    if model == "empty" and clients == 1:
        print(verdict("median of one client", own.p50, 0.4, " ms"))
    if model == "empty" and clients == 64:
        print(verdict("CPU of batching", own.cpu["batching"], 20, " µs"))
        print(verdict("CPU of the worker", own.cpu["worker"], 8, " µs"))


def start_up(options: list[str]) -> None:
    """Print how long ``batching`` alone takes to start, and its memory."""
    seconds, sizes = [], []
    with tempfile.TemporaryDirectory(prefix="v", dir="/tmp") as folder:
        for _ in range(5):
            started = time.monotonic()
            with batching(Path(folder), options) as peer:
                seconds.append(time.monotonic() - started)
                sizes.append(resident(peer.pids["batching"]) / 1e6)
    print(verdict("start of batching", median(seconds), 0.5, " s"))
    print(verdict("memory of batching", median(sizes), 45, " MB"))


def endurance(options: list[str]) -> None:
    """Print what connections, many requests and rude clients leave behind."""
    with tempfile.TemporaryDirectory(prefix="v", dir="/tmp") as name:
        folder = Path(name)
        script = folder / "wrk.lua"
        script.write_text(SCRIPT % BODY)
        with ours(folder, "empty", options) as peer:
            pid = peer.pids["batching"]
            load(peer, 256, 1, str(script))
            before = resident(pid)
            with contextlib.ExitStack() as open_sockets:
                for _ in range(2000):
                    ask(open_sockets.enter_context(connect(peer.port)))
                print(verdict("2,000 idle clients", (resident(pid) - before) / 1e6, 25, " MB"))
            report_growth(peer, "200,000 requests", lambda: many_requests(peer, str(script)))
            report_growth(peer, "5,000 dropped clients", lambda: drop_clients(peer.port, 5000))


def report_growth(peer: Peer, name: str, work: Callable[[], None]) -> None:
    """Print how much memory and how many files ``work`` leaves."""
    pid = peer.pids["batching"]
    work()  # the first time fills caches and the allocator's pools
    time.sleep(SETTLING)
    size, files = resident(pid), open_files(pid)
    work()
    time.sleep(SETTLING)
    grown = (resident(pid) - size) / 1e6
    print(verdict(f"{name} leave", grown, 1, " MB"))
    print(verdict(f"{name} leave", open_files(pid) - files, 0, " files"))


def many_requests(peer: Peer, script: str) -> None:
    """Send 200,000 requests or more."""
    count = 0
    while count < 200_000:
        count += load(peer, 64, 2, script).count


def drop_clients(port: int, count: int) -> None:
    """Connect and reset: with nothing, half a head, half a body, a whole request sent."""
    pieces = (b"", REQUEST[:40], REQUEST[:-5], REQUEST)
    for number in range(count):
        with connect(port) as sock:
            sock.sendall(pieces[number % 4])
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


def connect(port: int) -> socket.socket:
    """Return a connection."""
    return socket.create_connection(("127.0.0.1", port), timeout=10)


def ask(sock: socket.socket) -> None:
    """Send one request and read its answer."""
    sock.sendall(REQUEST)
    answer = sock.recv(4096)
    assert answer.startswith(b"HTTP/1.1 200"), answer


def open_files(pid: int) -> int:
    """Return how many files a process has open."""
    return len(os.listdir(f"/proc/{pid}/fd"))


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, epilog="What is not known here goes to `batching`, as --max-wait 0."
    )
    parser.add_argument("--model", choices=WORK, default="empty")
    parser.add_argument("--seconds", type=float, default=3, help="of each run")
    parser.add_argument("--clients", type=int, nargs="*")
    parser.add_argument("--only", choices=["compare", "start", "endurance"])
    options, rest = parser.parse_known_args()
    if shutil.which("wrk") is None:
        raise SystemExit("wrk is not installed")
    if options.only in (None, "compare"):
        clients = options.clients or CLIENTS[options.model]
        compare(options.model, clients, options.seconds, rest)
    if options.only == "start" or options.only is None and options.model == "empty":
        start_up(rest)
    if options.only == "endurance" or options.only is None and options.model == "empty":
        endurance(rest)


if __name__ == "__main__":
    main()
