"""The port of a process without Flask: what it shows where, from its first moment on."""

import contextlib
import json
import select
import socket
import struct
import threading
from collections.abc import Callable
from typing import Any
from urllib.request import urlopen

import pytest
from processes import TIMEOUT, Client
from waiting import until

from ventu_lite.metrics import metrics_of
from ventu_lite.metrics_port import MOST_CLIENTS, serve


def threads_from_now_on() -> Callable[[], int]:
    """Return what counts the threads that are new: one of another test may be about to end."""
    others = set(threading.enumerate())
    return lambda: len(set(threading.enumerate()) - others)


def test_a_process_without_flask_serves_its_metrics() -> None:
    metrics_of("without Flask")
    port = serve("127.0.0.1", 0, lambda: "")
    with urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as response:
        assert "ventu_batch_size" in response.read().decode()
    with urlopen(f"http://127.0.0.1:{port}/metrics?name[]=ventu_x", timeout=10) as response:
        assert response.read() == b""
    with pytest.raises(OSError, match="in use"):
        serve("127.0.0.1", port, lambda: "")


def test_the_head_of_the_metrics_can_be_asked_for() -> None:
    with Client(serve("127.0.0.1", 0, lambda: "")) as client:
        whole, head = (client.ask(method, "/metrics", None, {}) for method in ("GET", "HEAD"))
        assert (head.status, head.body) == (whole.status, b"") == (200, b"")
        for name in ("Content-Type", "Cache-Control"):
            assert head.headers[name] == whole.headers[name] != ""
        refused = client.ask("DELETE", "/metrics", None, {})
        assert (refused.status, refused.headers["Allow"]) == (405, "GET, HEAD")


@pytest.mark.parametrize(
    ("request_line", "why", "status", "body"),
    [
        ("GET /livez", "", 200, {"status": "alive"}),
        ("GET /livez", "busy", 200, {"status": "alive"}),
        ("GET /readyz", "", 200, {"status": "ready"}),
        ("GET /readyz?verbose", "busy", 503, {"status": "not ready", "detail": "busy"}),
        ("HEAD /readyz", "", 200, None),
        ("HEAD /readyz", "busy", 503, None),
        ("POST /readyz", "", 405, {"title": "Method Not Allowed", "detail": "ask with GET"}),
        ("GET /ready", "", 404, {"title": "Not Found", "detail": "no such route"}),
        ("GET /", "", 404, {"title": "Not Found", "detail": "no such route"}),
    ],
)
def test_a_process_without_flask_can_be_probed(
    request_line: str, why: str, status: int, body: dict[str, str] | None
) -> None:
    """A probe with a mistake in its path must not pass for healthy."""
    method, path = request_line.split()
    with Client(serve("127.0.0.1", 0, lambda: why)) as client:
        answer = client.ask(method, path, None, {})
    assert answer.status == status
    said = json.loads(answer.body) if answer.body else None
    if said and status in (404, 405):
        assert answer.headers["Content-Type"] == "application/problem+json"
        assert (said.pop("status"), said.pop("type", "about:blank")) == (status, "about:blank")
    else:
        assert answer.headers["Cache-Control"] == "no-store"
        assert answer.headers["Content-Type"] == "application/json"
    assert said == body
    assert answer.headers["Allow"] == ("GET, HEAD" if status == 405 else None)


def test_the_very_first_request_gets_no_metrics_under_another_path(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It comes as soon as a thread accepts it, and before ``serve`` returns."""
    start, here = threading.Thread.start, threading.current_thread()
    answers: list[int] = []

    def start_and_ask(thread: Any) -> None:
        port = thread._target.__self__.server_port
        start(thread)
        if threading.current_thread() is here:
            with Client(port) as client:
                answers.append(client.get("/nowhere").status)

    monkeypatch.setattr(threading.Thread, "start", start_and_ask)
    serve("127.0.0.1", 0, lambda: "")
    assert answers == [404]


def test_a_client_that_says_nothing_or_goes_away_holds_nothing(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """And leaves no traceback in the middle of a log."""
    monkeypatch.setattr("ventu_lite.metrics_port.PATIENCE", 0.1)
    port = serve("127.0.0.1", 0, lambda: "")
    threads = threads_from_now_on()
    for said in (b"", b"GET /metr", b"GET /metrics HTTP/1.1\r\nHost: "):
        with socket.create_connection(("127.0.0.1", port), TIMEOUT) as sock:
            with contextlib.suppress(ConnectionError):  # it is closed before all is said
                sock.sendall(said)
                assert sock.recv(1) == b""
    monkeypatch.setattr("ventu_lite.metrics_port.PATIENCE", TIMEOUT)
    with socket.create_connection(("127.0.0.1", port), TIMEOUT) as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        sock.sendall(b"GET /metrics HTTP/1.1\r\n")
    with Client(port) as client:
        assert client.get("/readyz").status == 200
    until(lambda: not threads())
    assert capfd.readouterr() == ("", "")


def test_a_client_that_is_slow_is_cut_off_however_busy_it_looks(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A byte now and then is no reason to go on."""
    monkeypatch.setattr("ventu_lite.metrics_port.PATIENCE", 0.2)
    port = serve("127.0.0.1", 0, lambda: "")
    with socket.create_connection(("127.0.0.1", port), TIMEOUT) as sock:

        def is_closed() -> bool:
            sock.sendall(b"x")
            return bool(select.select([sock], [], [], 0)[0])

        with contextlib.suppress(ConnectionError):  # it is closed
            sock.sendall(b"GET /readyz HTTP/1.1\r\nX: ")
            until(is_closed, pause=0.01)


def test_a_client_that_does_not_read_its_answer_is_cut_off(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    port = serve("127.0.0.1", 0, lambda: "x" * 50_000_000)
    threads = threads_from_now_on()
    with socket.create_connection(("127.0.0.1", port), TIMEOUT) as sock:
        sock.sendall(b"GET /readyz HTTP/1.1\r\n\r\n")
        assert sock.recv(1)  # the answer has begun
        monkeypatch.setattr("ventu_lite.metrics_port.PATIENCE", 0.2)
        until(lambda: not threads())


@pytest.mark.parametrize("said", [b"", b"GET /readyz HTTP/1.1\r\nX: "], ids=["mute", "slow"])
def test_clients_that_hold_every_place_do_not_keep_a_probe_out(
    monkeypatch: pytest.MonkeyPatch, said: bytes
) -> None:
    """The one that came first makes room."""
    monkeypatch.setattr("ventu_lite.metrics_port.PATIENCE", 10 * TIMEOUT)
    port = serve("127.0.0.1", 0, lambda: "")
    threads = threads_from_now_on()
    with contextlib.ExitStack() as stack:
        crowd = []
        for _ in range(MOST_CLIENTS * 3):
            sock = socket.create_connection(("127.0.0.1", port), TIMEOUT)
            crowd.append(stack.enter_context(sock))
            sock.sendall(said)
        with Client(port) as client:
            assert client.get("/readyz").status == 200
        until(lambda: threads() <= MOST_CLIENTS)  # who leaves his place has yet to end
        crowd[0].settimeout(TIMEOUT)
        with contextlib.suppress(ConnectionResetError):
            assert crowd[0].recv(1) == b""
    until(lambda: not threads())


def test_one_that_does_not_end_when_cut_off_does_not_keep_a_probe_out(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Those that came after it make room."""
    is_busy, is_over = threading.Event(), threading.Event()

    def why_not_ready() -> str:
        is_busy.set()
        return str(is_over.wait(TIMEOUT))

    monkeypatch.setattr("ventu_lite.metrics_port.PATIENCE", 10 * TIMEOUT)
    port = serve("127.0.0.1", 0, why_not_ready)
    threads = threads_from_now_on()
    with contextlib.ExitStack() as stack:
        stack.callback(is_over.set)
        crowd = [socket.create_connection(("127.0.0.1", port), TIMEOUT)]
        crowd[0].sendall(b"GET /readyz HTTP/1.1\r\n\r\n")
        assert is_busy.wait(TIMEOUT)
        for _ in range(MOST_CLIENTS * 2):
            crowd.append(socket.create_connection(("127.0.0.1", port), TIMEOUT))
        for sock in crowd:
            stack.enter_context(sock)
        with Client(port) as client:
            assert client.get("/livez").status == 200
        until(lambda: threads() <= MOST_CLIENTS)
    until(lambda: not threads())


def test_who_cannot_be_answered_in_time_keeps_the_threads_few() -> None:
    """Where all wait for the same disk, more threads would only wait with them."""
    is_over = threading.Event()
    port = serve("127.0.0.1", 0, lambda: str(is_over.wait(TIMEOUT)))
    threads = threads_from_now_on()
    with contextlib.ExitStack() as stack:
        stack.callback(is_over.set)
        for _ in range(MOST_CLIENTS):
            sock = stack.enter_context(socket.create_connection(("127.0.0.1", port), TIMEOUT))
            sock.sendall(b"GET /readyz HTTP/1.1\r\n\r\n")
        until(lambda: threads() == MOST_CLIENTS)
        with socket.create_connection(("127.0.0.1", port), TIMEOUT) as late:
            assert late.recv(1) == b""
        assert threads() == MOST_CLIENTS
        is_over.set()
        until(lambda: not threads())
        with Client(port) as client:
            assert client.get("/livez").status == 200
