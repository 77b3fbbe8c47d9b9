"""Real processes: the same file answers the same under every server that it can run under."""

import contextlib
import json
import signal
import textwrap
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from peers import BatchingPeer
from processes import (
    SAMPLE,
    TIMEOUT,
    Client,
    Process,
    Server,
    flask_run,
    gunicorn,
    short_directory,
    worker,
)
from prometheus_client.parser import text_string_to_metric_families
from sentences import JSON, MSGPACK, Ask, assert_answers, assert_routes, over_http
from waiting import until


@pytest.fixture
def directory() -> Iterator[Path]:
    """An empty directory, short enough for a Unix socket in it."""
    with short_directory() as path:
        yield path


def test_the_sample_under_flask_run() -> None:
    with flask_run(SAMPLE) as server:
        for media_type in (JSON, MSGPACK):
            assert_answers(over_http(server, media_type), media_type)
        server.process.wait_for("ventu_lite.runtime: ready: set-up of service 'sentiment' took ")
        assert_routes(server)


def test_run_http_tells_of_the_set_up_as_flask_run_does(directory: Path) -> None:
    text = f"import runpy\nrunpy.run_path({str(SAMPLE)!r})['service'].run_http(port=0)"
    (directory / "app.py").write_text(text)
    with Process("app.py", cwd=directory) as process:
        port = int(process.wait_for(r"Running on http://localhost:(\d+)")[1])
        Server(process, port).get("/readyz")
        process.wait_for("ventu_lite.runtime: setting up service 'sentiment'")
        process.wait_for("ventu_lite.runtime: ready: set-up of service 'sentiment' took ")


@pytest.mark.parametrize("options", [[], ["--preload"]], ids=["", "preload"])
def test_the_sample_under_gunicorn(options: list[str]) -> None:
    two = ["-w", "2", "--threads", "8", "--chdir", str(SAMPLE.parent)]
    with gunicorn("sentiment:app", *two, *options) as server:
        for media_type in (JSON, MSGPACK):
            assert_answers(over_http(server, media_type), media_type)
        assert_routes(server)
        assert server.process.stop() == 0
        assert "setting up service" not in server.process.output  # who wants it sets logging up


@pytest.mark.parametrize("tcp", [False, True], ids=["unix", "tcp"])
def test_the_sample_behind_a_batching_service(tcp: bool) -> None:
    with BatchingPeer(tcp=tcp) as peer:
        with worker(SAMPLE, *where(peer)) as process:
            for media_type in (JSON, MSGPACK):
                assert_answers(peer_ask(peer), media_type)
            assert process.stop() == 0
        assert not peer.faults


def where(peer: BatchingPeer) -> list[str]:
    return ["--unix", peer.unix] if peer.unix else ["--tcp", f"127.0.0.1:{peer.port}"]


def peer_ask(peer: BatchingPeer) -> Ask:
    return lambda payloads: peer.submit(payloads, timeout=TIMEOUT)


# ------------------------------------------------------------------------------------- metrics


def samples(server: Server) -> dict[tuple[str, frozenset[str]], float]:
    """Return the samples that ``/metrics`` shows by name and label values."""
    text = server.get("/metrics").body.decode()
    return {
        (sample.name, frozenset(sample.labels.values())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


@pytest.mark.parametrize("options", [[], ["--preload"]], ids=["", "preload"])
def test_totals_are_exact_over_all_processes(directory: Path, options: list[str]) -> None:
    """1,000 requests: 800 over HTTP to two processes, 200 in batches to a third."""
    env = {"PROMETHEUS_MULTIPROC_DIR": str(directory)}
    two = ["-w", "2", "--threads", "8", "--chdir", str(SAMPLE.parent), *options]

    with contextlib.ExitStack() as stack:
        peer = stack.enter_context(BatchingPeer())
        server = stack.enter_context(gunicorn("sentiment:app", *two, env=env))
        process = stack.enter_context(worker(SAMPLE, *where(peer), env=env))
        with ThreadPoolExecutor(8) as pool:
            statuses = sum(pool.map(lambda _: hundred(server), range(8)), start=[])
        for _ in range(10):
            payloads = [b'{"text": "fine"}'] * 17 + [b"no", b"{}", b'{"text": "good"}']
            peer.submit(payloads, timeout=TIMEOUT)
        assert (statuses.count(200), statuses.count(422)) == (760, 40)

        total = "ventu_batch_size_sum", frozenset({"sentiment"})
        until(lambda: samples(server)[total] == 760 + 180)  # counted after the answers
        for _ in range(3):  # whichever process answers
            seen = samples(server)
            assert seen["ventu_request_seconds_count", frozenset({"sentiment", "200"})] == 760
            assert seen["ventu_request_seconds_count", frozenset({"sentiment", "422"})] == 40
            assert seen[total] == 760 + 180
            runs = seen["ventu_batch_size_count", frozenset({"sentiment"})]
            assert 10 < runs <= 760 + 10  # those that come together share one
            assert seen["ventu_rejected_total", frozenset({"sentiment", "invalid"})] == 40 + 20
            assert seen["ventu_queue_seconds_count", frozenset({"sentiment"})] == 760
            assert seen["ventu_workers", frozenset({"sentiment", "unix"})] == 1
            assert seen[flask_total(seen, "200")] == 760

        assert process.stop() == 0
        gone = samples(server).get(("ventu_workers", frozenset({"sentiment", "unix"})), 0.0)
        assert gone == 0
        assert samples(server)[total] == 940


def hundred(server: Server) -> list[int]:
    with server.client() as client:
        return [
            client.infer(b'{"text": "x"}' if number % 20 == 0 else b'{"text": "good"}').status
            for number in range(100)
        ]


def flask_total(
    seen: dict[tuple[str, frozenset[str]], float], status: str
) -> tuple[str, frozenset[str]]:
    (key,) = [
        key for key in seen if key[0] == "flask_http_request_total" and {status, "POST"} <= key[1]
    ]
    return key


# ------------------------------------------------------------------------------ from a script


SCRIPT = """
from ventu_lite import Service

service = Service("script")

@service.infer
def double(item: int) -> int:
    return 2 * item

if __name__ == "__main__":
    service.run_{how}
"""


def script(directory: Path, how: str) -> Process:
    path = directory / "script.py"
    path.write_text(SCRIPT.format(how=how))
    return Process(path)


def test_a_script_serves_http(directory: Path) -> None:
    with script(directory, "http(port=0)") as process:
        port = int(process.wait_for(r"Running on http://\S+:(\d+)")[1])
        with Client(port) as client:
            assert client.infer(b"21").body == b"42"


@pytest.mark.parametrize("tcp", [False, True], ids=["unix", "tcp"])
def test_a_script_joins_a_batching_service(directory: Path, tcp: bool) -> None:
    with BatchingPeer(tcp=tcp) as peer:
        how = f"tcp('127.0.0.1', {peer.port})" if tcp else f"unix({peer.unix!r})"
        with script(directory, how) as process:
            assert peer_ask(peer)([b"21", b"1"]) == [(200, b"42"), (200, b"2")]
            assert process.stop() == 0


# ------------------------------------------------------------------------------------ mishaps


ODD = """
import os, sys, time
from ventu_lite import Service

service = Service("odd")

@service.infer(batch=True)
def act(batch: list[str]) -> list[str]:
    return [ACTIONS[item]() for item in batch]

def recurse() -> None:
    recurse()

def hang() -> str:
    print("hangs", flush=True)
    while os.path.exists("wait"):
        time.sleep(0.01)
    return "done"

ACTIONS = {
    "pid": lambda: str(os.getpid()),
    "exit": lambda: sys.exit(0),
    "recurse": recurse,
    "memory": lambda: bytes(1 << 60),
    "large": lambda: "x" * 10_000_000,
    "hang": hang,
}

app = service.app
"""


def odd_worker(directory: Path, peer: BatchingPeer) -> Process:
    (directory / "app.py").write_text(textwrap.dedent(ODD))
    return worker("app", *where(peer), cwd=directory)


@pytest.mark.parametrize("tcp", [False, True], ids=["unix", "tcp"])
def test_no_stage_ends_a_worker(directory: Path, tcp: bool) -> None:
    with BatchingPeer(tcp=tcp) as peer, odd_worker(directory, peer) as process:
        pid = [(200, f'"{process.pid}"'.encode())]
        ask = peer_ask(peer)
        assert ask([b'"pid"']) == pid
        for what in ("exit", "recurse", "memory"):
            (status, body), *rest = ask([f'"{what}"'.encode(), b'"pid"'])
            assert (status, json.loads(body)["title"]) == (500, "Internal Server Error")
            assert rest == pid
            (job,) = peer.results[-1].rejected
            process.wait_for(rf"job {job} failed: \w+.* \(\S+/app\.py:\d+\)\n  Traceback")
        assert ask([b'"large"', b'"pid"']) == [(200, b'"' + b"x" * 10_000_000 + b'"'), *pid]
        for error in ("SystemExit: 0", "RecursionError: ", "MemoryError|OverflowError"):
            process.wait_for(error)
        assert peer.connections == 1


def test_the_jobs_of_a_killed_worker_are_answered_by_another(directory: Path) -> None:
    (directory / "wait").touch()
    with BatchingPeer() as peer, odd_worker(directory, peer) as first:
        with ThreadPoolExecutor() as pool:
            answers = pool.submit(peer_ask(peer), [b'"hang"', b'"pid"'])
            first.wait_for("hangs")
            first.signal(signal.SIGKILL)
            assert first.wait() == -signal.SIGKILL
            (directory / "wait").unlink()
            with odd_worker(directory, peer) as second:
                assert answers.result() == [(200, b'"done"'), (200, f'"{second.pid}"'.encode())]


def test_a_worker_takes_its_batching_service_up_again(directory: Path) -> None:
    with BatchingPeer() as peer, odd_worker(directory, peer) as process:
        for count in (1, 2, 3):
            assert peer_ask(peer)([b'"pid"'])[0][0] == 200
            assert peer.connections == count
            peer.disconnect()
            process.wait_for("lost .*: closed by the batching service", count=count)
