"""The ways to run a service, each of them whole, so that a fault can be tried on all."""

import contextlib
import os
import socket
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest
from processes import (
    TIMEOUT,
    Process,
    Server,
    batching,
    gunicorn,
    nothing_left,
    reserved_port,
    serve,
    worker,
)

SERVE, UNIX, TCP, GUNICORN = "serve", "batching over unix", "batching over tcp", "gunicorn"
#: Those with a batching service in front of worker processes.
BATCHING = (SERVE, UNIX, TCP)
EVERY = (*BATCHING, GUNICORN)

#: A request may wait for a worker to start: on a busy machine that is more than the usual 5 s.
_PATIENT = {"VENTU_TIMEOUT": str(TIMEOUT)}

everywhere = pytest.mark.parametrize("how", EVERY)
behind_batching = pytest.mark.parametrize("how", BATCHING)


@dataclass(frozen=True)
class Deployment:
    """A service that runs.

    Attributes:
        how: One of ``EVERY``.
        server: Its HTTP side. Of "serve" and "gunicorn" the process is the parent of the workers.
        directory: Where its processes run; ``app.py`` is there, and the socket ``s`` if one is.
        workers: The ``worker`` processes that were started one by one, none of "serve" and
            "gunicorn".
        address: The options that lead another ``worker`` to it.
        env: The variables that its processes have in addition.
    """

    how: str
    server: Server
    directory: Path
    workers: list[Process]
    address: tuple[str, ...]
    env: Mapping[str, str]

    def worker_pids(self) -> list[int]:
        """Return the processes that run the stages, as far as they have not ended."""
        if self.workers:
            return [process.pid for process in self.workers if process.is_alive]
        return children(self.server.process.pid)

    def another_worker(self) -> Process:
        """Return one more worker, to be entered."""
        return worker("app.py", *self.address, cwd=self.directory, env=self.env)


@contextlib.contextmanager
def deployed(
    how: str,
    app: str,
    directory: Path,
    *options: str,
    workers: int = 1,
    env: Mapping[str, str] | None = None,
    is_ready: bool = True,
) -> Iterator[Deployment]:
    """Run a service; every process of it must be gone at the end.

    Args:
        how: One of ``EVERY``.
        app: The Python code; it needs a service and, for gunicorn, ``app``.
        directory: Where to run it; short enough for a Unix socket in it.
        options: For ``serve`` or ``batching``; gunicorn gets none of them: use ``env``.
        workers: How many; with gunicorn there is one process with eight threads.
        env: Variables for all processes.
        is_ready: Whether to wait until it is.
    """
    (directory / "app.py").write_text(app)
    with contextlib.ExitStack() as stack:
        given = stack.enter_context(nothing_left(files=True)) | _PATIENT | dict(env or {})
        started: list[Process] = []
        address: tuple[str, ...] = ("--unix", "s")
        if how == SERVE:
            both = (*options, f"--workers={workers}")
            server = stack.enter_context(serve("app.py", *both, cwd=directory, env=given))
        elif how == GUNICORN:
            both = ("--threads=8", "--workers=1")
            server = stack.enter_context(gunicorn("app:app", *both, cwd=directory, env=given))
        else:
            if how == TCP:
                address = ("--tcp", f"127.0.0.1:{stack.enter_context(reserved_port())}")
            server = stack.enter_context(batching(*address, *options, cwd=directory, env=given))
            for _ in range(workers):
                process = worker("app.py", *address, cwd=directory, env=given)
                started.append(stack.enter_context(process))
        deployment = Deployment(how, server, directory, started, address, given)
        if is_ready:
            until(lambda: server.get("/readyz").status == 200)
        yield deployment


# Stands before every program that Python starts there.
_OTHER_LIMITS = """
from functools import partial
from ventu_lite.http import server as http

http.Limits = partial(http.Limits, **{})
"""


def other_limits(directory: Path, **limits: float) -> dict[str, str]:
    """Return variables for HTTP sides that have other limits than an option can give them.

    Args:
        directory: Where to write down the limits, for every Python that has the variables.
        limits: Some of ``Limits``.
    """
    (directory / "sitecustomize.py").write_text(_OTHER_LIMITS.format(limits))
    return {"PYTHONPATH": str(directory)}


def whole_lines(path: Path) -> list[str]:
    """Return the lines of a file that others write to, but not one that is half written yet."""
    return path.read_text().split("\n")[:-1] if path.exists() else []


def doors_of(process: Process) -> set[tuple[str, int]]:
    """Return the addresses and ports at which a process and its children listen by TCP."""
    inodes = set()
    for path in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):  # it has ended
            if os.getpgid(int(path.name)) == process.pid:
                for file in (path / "fd").iterdir():
                    with contextlib.suppress(FileNotFoundError):  # it was closed a moment ago
                        inodes.add(os.readlink(file))
    found = set()
    for table, family in (("tcp", socket.AF_INET), ("tcp6", socket.AF_INET6)):
        for row in Path(f"/proc/net/{table}").read_text().splitlines()[1:]:
            cells = row.split()
            if cells[3] == "0A" and f"socket:[{cells[9]}]" in inodes:
                address, _, port = cells[1].partition(":")
                words = bytes.fromhex(address)
                swapped = (words[at : at + 4][::-1] for at in range(0, len(words), 4))
                found.add((socket.inet_ntop(family, b"".join(swapped)), int(port, 16)))
    return found


def children(pid: int) -> list[int]:
    """Return the direct children of a process."""
    listed = Path(f"/proc/{pid}/task/{pid}/children").read_text()
    return [int(child) for child in listed.split()]


def until(claim: Callable[[], bool]) -> None:
    """Wait until a claim holds."""
    deadline = time.monotonic() + TIMEOUT
    while not claim():
        assert time.monotonic() < deadline, "it never came to that"
        time.sleep(0.01)
