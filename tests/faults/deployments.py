"""The ways to run a service, each of them whole, so that a fault can be tried on all."""

import contextlib
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
    serve,
    worker,
)

SERVE, UNIX, TCP, GUNICORN = "serve", "batching over unix", "batching over tcp", "gunicorn"
#: Those with a batching service in front of worker processes.
BATCHING = (SERVE, UNIX, TCP)
EVERY = (*BATCHING, GUNICORN)

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
        given = stack.enter_context(nothing_left(files=True)) | dict(env or {})
        started: list[Process] = []
        address: tuple[str, ...] = ("--unix", "s")
        if how == SERVE:
            both = (*options, f"--workers={workers}")
            server = stack.enter_context(serve("app.py", *both, cwd=directory, env=given))
        elif how == GUNICORN:
            both = ("--threads=8", "--workers=1")
            server = stack.enter_context(gunicorn("app:app", *both, cwd=directory, env=given))
        else:
            door = address if how == UNIX else ("--tcp", "127.0.0.1:0")
            server = stack.enter_context(batching(*door, *options, cwd=directory, env=given))
            if how == TCP:
                found = server.process.wait_for(r"tcp:(?://)?127\.0\.0\.1:(\d+)")
                address = ("--tcp", f"127.0.0.1:{found[1]}")
            for _ in range(workers):
                process = worker("app.py", *address, cwd=directory, env=given)
                started.append(stack.enter_context(process))
        deployment = Deployment(how, server, directory, started, address, given)
        if is_ready:
            until(lambda: server.get("/readyz").status == 200)
        yield deployment


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
