"""What does batching in an ordinary Flask app gain, and how near does it come to ``serve``?

The model sleeps 5 ms + 0.2 ms per item, a stand-in for an accelerator, with at most 32 to a batch.
Three servers, one after the other for each number of clients, loaded by wrk with kept connections:

* ``gunicorn -w 1 --threads 64`` with ``max_batch_size=1``
* the same with batching
* ``python -m ventu_lite serve --workers 1``

Goals: at 32 clients 5 times the throughput of the first, at 16 and 32 clients 0.8 times that of the
last. Run it with ``python tests/benchmarks/flask_batching.py``; needs wrk and gunicorn. Options:
``--clients 1,16,32``, ``--seconds 5`` and ``--pin``, which keeps gunicorn on one processor. One
interpreter can use no more at a time, and where switching to a thread on another one is dear, as on
virtual machines, the threads lose much time handing the interpreter to and fro.
"""

import argparse
import contextlib
import os
import re
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path

from flask import Flask

from ventu_lite import Service

HERE = Path(__file__).parent
SCRIPT = """
wrk.method = "POST"
wrk.body = '"my cat is very cute"'
wrk.headers["Content-Type"] = "application/json"
"""
GUNICORN = ("-m", "gunicorn", "-w", "1", "--threads", "64", "--bind", "127.0.0.1:0")
SERVE = ("-m", "ventu_lite", "--app", __file__, "serve", "--workers", "1", "--port", "0")


def create_app() -> Flask:
    """Return the app that is measured."""
    service = Service("sleeper", request=str, response=int, examples=["cat"])

    @service.infer(batch=True)
    def infer(texts: list[str]) -> list[int]:
        time.sleep(0.005 + 0.0002 * len(texts))
        return [len(text) for text in texts]

    return service.app


@contextlib.contextmanager
def server(
    *args: str, env: Mapping[str, str] | None = None, cpus: Collection[int] | None = None
) -> Iterator[str]:
    """Start a server on a free port and yield its URL once it is ready."""
    with tempfile.TemporaryFile("w+") as output:
        process = subprocess.Popen(
            [sys.executable, *args],
            cwd=HERE,
            env=os.environ | {"PYTHONUNBUFFERED": "1"} | dict(env or {}),
            stdout=output,
            stderr=output,
        )
        if cpus is not None:
            os.sched_setaffinity(process.pid, cpus)
        try:
            deadline = time.monotonic() + 30
            while not (url := ready_url(Path(f"/dev/fd/{output.fileno()}"))):
                if process.poll() is not None or time.monotonic() > deadline:
                    output.seek(0)
                    sys.exit(f"{args} did not start:\n{output.read()}")
                time.sleep(0.1)
            yield url
        finally:
            process.terminate()
            process.wait(30)


def ready_url(output: Path) -> str:
    """Return the URL that a server has printed, "" unless it is ready."""
    found = re.search(r"http://[\w.]+:\d+", output.read_text())
    if not found:
        return ""
    try:
        with urllib.request.urlopen(f"{found[0]}/readyz", timeout=5):
            return found[0]
    except OSError:  # an HTTP error is one, too
        return ""


def throughput(url: str, clients: int, seconds: float) -> tuple[float, float]:
    """Return requests per second and the median milliseconds of one, after a warm-up."""
    with tempfile.NamedTemporaryFile("w", suffix=".lua") as script:
        script.write(SCRIPT)
        script.flush()
        threads = str(min(2, clients))
        for duration in (1.0, seconds):
            done = subprocess.run(
                ["wrk", "-t", threads, "-c", str(clients), "-d", f"{duration:g}", "--latency"]
                + ["-s", script.name, f"{url}/inference"],
                check=True,
                capture_output=True,
                text=True,
            ).stdout
    if "Non-2xx" in done:
        sys.exit(done)
    rate = float(re.findall(r"Requests/sec: +([\d.]+)", done)[0])
    value, unit = re.findall(r"50% +([\d.]+)(us|ms|s)", done)[0]
    return rate, float(value) * {"us": 1e-3, "ms": 1.0, "s": 1e3}[unit]


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description="Measure batching in an ordinary Flask app.")
    parser.add_argument("--clients", default="1,4,16,32,64")
    parser.add_argument("--seconds", type=float, default=5.0)
    parser.add_argument("--pin", action="store_true")
    options = parser.parse_args()
    app = "flask_batching:create_app()"
    cpus = [max(os.sched_getaffinity(0))] if options.pin else None
    print("requests/s (median ms)\nclients       one by one        batching           serve")
    for clients in map(int, options.clients.split(",")):
        with server(*GUNICORN, app, env={"VENTU_MAX_BATCH_SIZE": "1"}, cpus=cpus) as url:
            alone, alone_ms = throughput(url, clients, options.seconds)
        with server(*GUNICORN, app, cpus=cpus) as url:
            batching, batching_ms = throughput(url, clients, options.seconds)
        with server(*SERVE) as url:
            serve, serve_ms = throughput(url, clients, options.seconds)
        print(
            f"{clients:7} {alone:7.0f} ({alone_ms:6.1f}) {batching:7.0f} ({batching_ms:6.1f})"
            f" {serve:7.0f} ({serve_ms:6.1f})   × {batching / alone:.2f} of one by one,"
            f" × {batching / serve:.2f} of serve",
            flush=True,
        )


if __name__ == "__main__":
    main()
