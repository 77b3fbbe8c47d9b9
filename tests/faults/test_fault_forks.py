"""Processes that a model or a route forks: their end, and what they must not keep."""

import errno
import json
import os
import signal
import socket
from pathlib import Path

from deployments import SERVE, behind_batching, deployed, until

# The helpers of the pool are forked with the first batch, by then connected, and outlive it.
APP = """
import multiprocessing, os, signal, time
from concurrent.futures import ProcessPoolExecutor
from ventu_lite import InferenceFailed, Service

service = Service("forks", request=str, response=str)
fork = multiprocessing.get_context("fork")
pool = ProcessPoolExecutor(1, mp_context=fork)

def helper() -> str:
    process = fork.Process(target=time.sleep, args=(60,))
    process.start()
    process.terminate()
    process.join(20)
    return f"ended by {process.exitcode}"

@service.infer(batch=True)
def infer(batch: list[str]) -> list[str]:
    lengths = list(pool.map(len, batch))
    if "helper" in batch:
        return [helper()] * len(batch)
    if "die" in batch and not os.path.exists("helper"):
        with open("helper", "w") as file:
            file.write(str(multiprocessing.active_children()[0].pid))
        os.kill(os.getpid(), signal.SIGKILL)
    return [str(length) for length in lengths]

@service.teardown
def teardown() -> None:
    pool.shutdown()

app = service.app

@app.get("/helper")
def own() -> str:
    return helper()

def ask() -> str:
    try:
        return service.ask("from a helper")
    except InferenceFailed as exc:
        return f"{exc.code}: {exc.description}"

@app.get("/ask")
def asked() -> list[str]:
    return [service.ask("four"), pool.submit(ask).result(20), service.ask("five.")]

@app.get("/pool")
def pooled() -> str:
    return str(pool.submit(os.getpid).result())
"""


@behind_batching
def test_a_stage_forks_a_process_and_terminates_it(how: str, directory: Path) -> None:
    """It must end, and must not take the signal for one to its parent."""
    with deployed(how, APP, directory) as service:
        assert service.server.infer(b'"helper"').body == b'"ended by -15"'
        assert service.server.infer(b'"again"').body == b'"5"'
        assert service.server.process.stop() == 0


def test_a_route_forks_a_process_and_terminates_it(directory: Path) -> None:
    with deployed(SERVE, APP, directory) as service:
        assert service.server.get("/helper").body == b"ended by -15"
        assert service.server.infer(b'"again"').body == b'"5"'
        assert service.server.process.stop() == 0


@behind_batching
def test_a_worker_dies_whose_helpers_live(how: str, directory: Path) -> None:
    """Its connection is closed all the same, so another worker gets its batch at once.

    Under ``serve`` they end with it. A worker that was started alone may have a supervisor who
    thinks otherwise.
    """
    with deployed(how, APP, directory, "--timeout=30", workers=2) as service:
        assert service.server.infer(b'"die"').body == b'"3"'
        assert service.server.infer(b'"after"').body == b'"5"'
        helper = int((directory / "helper").read_text())
        if how == SERVE:
            until(lambda: not Path(f"/proc/{helper}").exists())
        else:
            os.kill(helper, signal.SIGKILL)  # it is there: nobody's


def test_a_helper_of_a_route_that_asks_is_told_who_can(directory: Path) -> None:
    """It has no event loop that could bring the answer: it would wait for ever."""
    with deployed(SERVE, APP, directory) as service:
        before, inside, after = json.loads(service.server.get("/ask").body)
        assert (before, after) == ("4", "5")
        assert inside.startswith("503: service.ask was called in a process that a route has forked")


def test_the_front_dies_and_a_helper_of_a_route_lives(directory: Path) -> None:
    """Nobody must be able to connect to a service that is gone."""
    with deployed(SERVE, APP, directory) as service:
        helper = int(service.server.get("/pool").body)
        service.server.process.signal(signal.SIGKILL)
        try:
            until(lambda: is_refused(service.server.port))
        finally:
            os.kill(helper, signal.SIGKILL)


def is_refused(port: int) -> bool:
    with socket.socket() as client:
        return client.connect_ex(("127.0.0.1", port)) == errno.ECONNREFUSED
