"""What gunicorn does with processes: copies of a loaded one, replacements, and their end."""

import contextlib
import re
import signal
import threading
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
from crowds import at_once
from deployments import children, until
from phases import MODEL, all_left_in_order, come_to, hold, write_model
from processes import Server, gunicorn, nothing_left

# Loads the model at import, so that a master with --preload has it; a thread of the model's own
# holds a lock while the master is copied.
LOADED = (
    MODEL
    + """
import threading

lock = threading.RLock()
held = threading.Event()

def work():
    with lock:
        held.set()
        time.sleep(600)

def log_in():
    if os.environ["FROM"] == "http":
        client = app.test_client()
        assert client.post("/inference", json="x").status_code == 200
    elif os.environ["FROM"] == "python":
        assert service.predict("x") == "X"
    threading.Thread(target=work, daemon=True).start()
    held.wait()

log_in()
"""
)


@contextlib.contextmanager
def running(directory: Path, *options: str, **env: str) -> Iterator[Server]:
    """Run the model under gunicorn; nothing may be left of it."""
    with nothing_left() as given:
        settings = given | {"VENTU_TIMEOUT": "60"} | env
        with gunicorn("app:app", "--threads=8", *options, cwd=directory, env=settings) as server:
            until(lambda: server.get("/readyz").status == 200)
            yield server
            assert server.process.stop() == 0


class Customers:
    """Threads that ask again and again, each time on a new connection, until the block ends.

    Attributes:
        seen: How often there was which status; 0 is a connection that ended without an answer.
    """

    def __init__(self, server: Server, count: int = 4) -> None:
        self.seen: Counter[int] = Counter()
        self._server = server
        self._is_over = threading.Event()
        self._threads = [threading.Thread(target=self._ask) for _ in range(count)]

    def __enter__(self) -> "Customers":
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._is_over.set()
        for thread in self._threads:
            thread.join()

    def _ask(self) -> None:
        while not self._is_over.is_set():
            try:
                answer = self._server.infer(b'"x"')
            except OSError:
                self.seen[0] += 1
            else:
                self.seen[answer.status] += 1


@pytest.mark.parametrize("how", ["http", "python", "not at all"])
def test_copies_of_a_loaded_process(directory: Path, how: str) -> None:
    """Threads and locks of the master stay with it; each copy has a queue of its own."""
    write_model(directory, LOADED)
    with running(directory, "--preload", "--workers=2", FROM=how) as server:
        master = server.process.pid
        until(lambda: len(children(master)) == 2)
        workers = children(master)
        with Customers(server) as customers:
            until(lambda: set(workers) <= set(come_to(directory, "batch")))
        assert set(customers.seen) == {200}
        loaded = come_to(directory, "loaded")
        assert loaded == [master] if how != "not at all" else set(loaded) <= set(workers)
    assert all_left_in_order(directory)


def test_workers_that_are_replaced_after_some_requests(directory: Path) -> None:
    write_model(directory)
    with running(directory, "--workers=2", "--max-requests=20") as server:
        with Customers(server) as customers:
            until(lambda: len(set(come_to(directory, "batch"))) >= 6)
        assert set(customers.seen) == {200}
    assert all_left_in_order(directory)


def test_a_reload_under_load(directory: Path) -> None:
    write_model(directory)
    with running(directory, "--workers=2") as server:
        with Customers(server) as customers:
            until(lambda: len(set(come_to(directory, "batch"))) == 2)
            old = set(children(server.process.pid))
            server.process.signal(signal.SIGHUP)
            until(lambda: len(set(come_to(directory, "batch")) - old) == 2)
            until(lambda: not old & set(children(server.process.pid)))
        assert set(customers.seen) == {200}
    assert all_left_in_order(directory)


def test_a_reload_while_a_request_is_in_flight(directory: Path) -> None:
    write_model(directory)
    with running(directory, "--workers=1") as server:
        gate = hold(directory, "batch")
        answers = at_once(server, ["x", "y"])
        until(lambda: bool(come_to(directory, "batch")))
        (old,) = children(server.process.pid)
        server.process.signal(signal.SIGHUP)
        server.process.wait_for("Handling signal: hup")
        until(lambda: set(children(server.process.pid)) != {old})
        gate.unlink()
        assert [answer.status for answer in answers()] == [200, 200]
        until(lambda: old not in children(server.process.pid))
    assert all_left_in_order(directory)


def test_two_workers_end_with_requests_in_flight(directory: Path) -> None:
    write_model(directory)
    with running(directory, "--workers=2") as server:
        gate = hold(directory, "batch")
        answers = at_once(server, [f"item{number}" for number in range(12)])
        until(lambda: bool(come_to(directory, "batch")))
        until(lambda: accepted(server) == 12)
        server.process.signal(signal.SIGTERM)
        server.process.wait_for("Handling signal: term")
        gate.unlink()
        assert [answer.status for answer in answers()] == [200] * 12
    assert all_left_in_order(directory)


def test_a_batch_function_that_hangs_under_gunicorn_is_told(directory: Path) -> None:
    """Nobody replaces its process, but a load balancer can pass it over until it comes back."""
    write_model(directory)
    with running(directory, "--workers=1", VENTU_TIMEOUT="0.5") as server:
        gate = hold(directory, "batch")
        until(lambda: server.infer(b'"x"').status == 504 and bool(come_to(directory, "batch")))
        until(lambda: server.get("/readyz").status == 503)
        assert b"the batch function has been in use for" in server.get("/readyz").body
        assert server.get("/livez").status == 200
        server.process.wait_for("not ready: the batch function has been in use for")
        gate.unlink()
        until(lambda: server.get("/readyz").status == 200)
        until(lambda: server.infer(b'"x"').status == 200)
    assert all_left_in_order(directory)


def accepted(server: Server) -> int:
    """Return how many connections of clients the workers have taken."""
    port = f":{server.port:04X}"
    found = 0
    for line in Path("/proc/net/tcp").read_text().splitlines()[1:]:
        _, local, _, state, *_, inode = line.split()[:10]
        found += local.endswith(port) and state == "01" and inode != "0"
    return found


def test_a_fork_of_the_model_itself(directory: Path) -> None:
    """A stage may start processes of its own; they disturb neither its service nor its end."""
    forks = MODEL.replace(
        "    return [item.upper()",
        """    pid = os.fork()
    if not pid:
        os._exit(0 if app.test_client().get("/livez").status_code == 200 else 1)
    assert os.waitpid(pid, 0)[1] == 0
    return [item.upper()""",
    )
    write_model(directory, forks)
    with running(directory, "--workers=1") as server:
        with Customers(server, 2) as customers:
            until(lambda: customers.seen[200] >= 10)
        assert set(customers.seen) == {200}
        assert not re.search("Traceback", server.process.output)
    assert all_left_in_order(directory)
