"""What the HTTP connections cost by themselves: an empty handler under wrk.

Run ``python tests/benchmarks/http_cost.py``; wrk has to be installed. Prints requests/s, latency
and CPU time of the server per request for some numbers of clients, and the memory of 2,000 idle
connections.
"""

import argparse
import asyncio
import contextlib
import os
import re
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from ventu_lite.batching.refusals import unreadable
from ventu_lite.http.request import Request
from ventu_lite.http.server import HttpServer, run

TICKS = os.sysconf("SC_CLK_TCK")
PAGE = os.sysconf("SC_PAGE_SIZE")
BODY = '{"text": "my cat is very cute, isn\'t it"}'
SCRIPT = """
wrk.method = "POST"
wrk.body = [[%s]]
wrk.headers["Content-Type"] = "application/json"
"""


def answer(request: Request) -> None:
    """Answer at once with next to nothing."""
    request.respond(200, b"Content-Type: application/json\r\n", b"{}")


async def serve() -> None:
    """Serve until killed; print the port."""
    listener = await asyncio.get_running_loop().create_server(
        HttpServer(answer, refuse=unreadable), "127.0.0.1", 0
    )
    print(listener.sockets[0].getsockname()[1], flush=True)
    await asyncio.Event().wait()


@contextlib.contextmanager
def server(loop: str) -> Iterator[tuple[int, int]]:
    """Run a server in a process of its own; yield its process id and port."""
    command = [sys.executable, __file__, "--serve", loop]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            yield process.pid, int(process.stdout.readline())
        finally:
            process.kill()


def cpu_seconds(pid: int) -> float:
    """Return the CPU time that a process has used, in the kernel as well."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / TICKS


def resident(pid: int) -> int:
    """Return the resident memory of a process in bytes."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * PAGE


def load(pid: int, port: int, clients: int, seconds: int, script: str) -> str:
    """Return one row of the table."""
    command = ["wrk", "-t1", f"-c{clients}", f"-d{seconds}s", "-s", script, "--latency"]
    before = cpu_seconds(pid)
    url = f"http://127.0.0.1:{port}/inference"
    text = subprocess.run([*command, url], capture_output=True, text=True, check=True).stdout
    used = cpu_seconds(pid) - before
    if "Non-2xx" in text or "Socket errors" in text:
        raise SystemExit(text)
    found = [
        re.search(pattern, text, re.MULTILINE)
        for pattern in (
            r"Requests/sec: +(\S+)",
            r"^ +50% +(\S+)",
            r"^ +99% +(\S+)",
            r"(\d+) requests",
        )
    ]
    rate, p50, p99, count = [match[1] if match else "?" for match in found]
    return f"{clients:>7} {float(rate):>12,.0f} {p50:>9} {p99:>9} {used / int(count) * 1e6:>10.1f}"


def idle_memory(pid: int, port: int, count: int) -> float:
    """Return the megabytes that ``count`` keep-alive connections take after one request each."""
    request = b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n%b"
    before = resident(pid)
    with contextlib.ExitStack() as stack:
        for _ in range(count):
            sock = stack.enter_context(socket.create_connection(("127.0.0.1", port)))
            sock.sendall(request % (len(BODY), BODY.encode()))
            sock.recv(4096)
        return (resident(pid) - before) / 1e6


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=int, default=5)
    parser.add_argument("--clients", type=int, nargs="*", default=[1, 16, 64, 256])
    parser.add_argument("--loop", choices=["fast", "asyncio"], default="fast")
    parser.add_argument("--serve", choices=["fast", "asyncio"], help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve:
        (run if options.serve == "fast" else asyncio.run)(serve())
    if shutil.which("wrk") is None:
        raise SystemExit("wrk is not installed")
    with server(options.loop) as (pid, port):
        print(f"2,000 idle connections: {idle_memory(pid, port, 2000):.1f} MB")
    with tempfile.NamedTemporaryFile("w", suffix=".lua") as script:
        script.write(SCRIPT % BODY)
        script.flush()
        print("clients   requests/s       p50       p99  CPU µs/request")
        with server(options.loop) as (pid, port):
            for clients in options.clients:
                print(load(pid, port, clients, options.seconds, script.name), flush=True)


if __name__ == "__main__":
    main()
