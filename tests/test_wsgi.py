"""The user's own routes behind our HTTP connections: as under any WSGI server."""

import asyncio
import json
import logging
import threading
import tracemalloc
from collections.abc import Awaitable, Callable, Iterator
from typing import Any, NamedTuple

import msgpack
import pytest
from flask import Flask, Response, abort, jsonify, redirect, request, url_for
from waiting import turn_until

from ventu_lite.batching.refusals import unreadable
from ventu_lite.http.head import Head, read_head
from ventu_lite.http.request import Request
from ventu_lite.http.server import HttpServer, run
from ventu_lite.serving import wsgi
from ventu_lite.serving.wsgi import WSGIRoutes

Connected = tuple[asyncio.StreamReader, asyncio.StreamWriter]


class Answer(NamedTuple):
    """What a route has said."""

    status: int
    headers: list[tuple[str, str]]
    body: bytes | None

    @property
    def json(self) -> Any:
        return json.loads(self.body or b"")

    def all(self, name: str) -> list[str]:
        return [value for key, value in self.headers if key == name]


class Asked(Request):
    """A request that keeps its answer."""

    def __init__(self, head: Head, body: bytes = b"") -> None:
        self.head = head
        self.body = body
        self.is_gone = False
        self.is_answered = asyncio.Event()
        self.said: Answer | None = None

    @property
    def peer(self) -> str:
        return "192.0.2.7"

    def respond(self, status: int, headers: bytes = b"", body: bytes | None = b"") -> None:
        lines = [line.partition(": ") for line in headers.decode("latin-1").split("\r\n") if line]
        self.said = Answer(status, [(name, value) for name, _, value in lines], body)
        self.is_answered.set()


def make_request(head: str, body: bytes = b"") -> Asked:
    """Return a request; line breaks in ``head`` are those of the head."""
    text = head.strip("\n")
    if "host:" not in text.lower():
        text += "\nHost: cats.example:81"
    if body and "Content-Length" not in text:
        text += f"\nContent-Length: {len(body)}"
    return Asked(read_head(text.replace("\n", "\r\n").encode("latin-1") + b"\r\n\r\n"), body)


async def answer_to(routes: WSGIRoutes, made: Asked) -> Answer:
    routes(made)
    await asyncio.wait_for(made.is_answered.wait(), 20)
    assert made.said is not None
    return made.said


def ask(app: Any, head: str, body: bytes = b"") -> Answer:
    """Ask an app once."""

    async def main() -> Answer:
        routes = WSGIRoutes(app, "localhost", unreadable)
        routes.port = 8000
        try:
            return await answer_to(routes, make_request(head, body))
        finally:
            routes.close()

    return run(main())


def make_app() -> Flask:
    app = Flask("own")

    @app.route("/environ/<path:rest>", methods=["GET", "POST", "PUT"])
    @app.route("/environ", methods=["GET", "POST", "PUT"])
    def environ(rest: str = "") -> Response:
        kept = {k: v for k, v in request.environ.items() if isinstance(v, (str, bool))}
        return jsonify(kept | {"rest": rest, "args": request.args.to_dict(flat=False)})

    @app.get("/cookies")
    def cookies() -> Response:
        response = jsonify(dict(request.cookies))
        response.set_cookie("a", "1")
        response.set_cookie("b", "2", httponly=True)
        return response

    @app.get("/size/<int:size>")
    def size(size: int) -> bytes:
        return b"x" * size

    @app.post("/echo")
    def echo() -> bytes:
        return request.get_data()

    @app.get("/status/<int:status>")
    def status(status: int) -> tuple[str, int]:
        return "", status

    @app.get("/there")
    def there() -> Any:
        return redirect(url_for("there", _external=True))

    @app.get("/fail")
    def fail() -> str:
        raise KeyError("my secret")

    @app.get("/abort")
    def refuse() -> str:
        abort(418)

    @app.get("/stream")
    def stream() -> Iterator[str]:
        yield "one "
        yield "two"

    @app.get("/say")
    def say() -> str:
        print("careful", file=request.environ["wsgi.errors"])
        return request.remote_addr or ""

    return app


def test_the_environment_is_that_of_pep_3333() -> None:
    answer = ask(
        make_app(),
        "PUT /environ/caf%C3%A9%2Fbar?x=1&x=%20y HTTP/1.1\n"
        "Content-Type: text/plain\nX-Many: 1\nX-Many: 2\nCookie: a=1\nCookie: b=2",
        b"body",
    )
    seen = answer.json
    assert seen["rest"] == "café/bar"
    assert seen["args"] == {"x": ["1", " y"]}
    expected = {
        "REQUEST_METHOD": "PUT",
        "SCRIPT_NAME": "",
        "PATH_INFO": "/environ/caf\xc3\xa9/bar",
        "QUERY_STRING": "x=1&x=%20y",
        "RAW_URI": "/environ/caf%C3%A9%2Fbar?x=1&x=%20y",
        "SERVER_NAME": "localhost",
        "SERVER_PORT": "8000",
        "SERVER_PROTOCOL": "HTTP/1.1",
        "REMOTE_ADDR": "192.0.2.7",
        "CONTENT_TYPE": "text/plain",
        "CONTENT_LENGTH": "4",
        "HTTP_HOST": "cats.example:81",
        "HTTP_X_MANY": "1,2",
        "HTTP_COOKIE": "a=1; b=2",
        "wsgi.url_scheme": "http",
        "wsgi.multithread": True,
    }
    assert {key: seen.get(key) for key in expected} == expected
    assert "HTTP_CONTENT_TYPE" not in seen and "HTTP_CONTENT_LENGTH" not in seen


def test_names_with_underscores_do_not_pass_for_others() -> None:
    answer = ask(make_app(), "GET /environ HTTP/1.1\nX_Forwarded_For: 1.2.3.4\nX-Real: yes")
    seen = answer.json
    assert seen["HTTP_X_REAL"] == "yes"
    assert "HTTP_X_FORWARDED_FOR" not in seen
    assert "CONTENT_LENGTH" not in seen


def test_an_absolute_target_beats_the_host_header() -> None:
    answer = ask(make_app(), "GET http://dogs.example/there HTTP/1.1\nHost: cats.example")
    assert answer.all("Location") == ["http://dogs.example/there"]


def test_urls_are_made_of_the_host_that_was_asked() -> None:
    answer = ask(make_app(), "GET /there HTTP/1.1")
    assert (answer.status, answer.all("Location")) == (302, ["http://cats.example:81/there"])


def test_urls_without_a_host_are_made_of_the_address() -> None:
    async def main() -> Answer:
        routes = WSGIRoutes(make_app(), "localhost", unreadable)
        routes.port = 8000
        answer = await answer_to(routes, Asked(read_head(b"GET /there HTTP/1.0\r\n\r\n")))
        routes.close()
        return answer

    assert run(main()).all("Location") == ["http://localhost:8000/there"]


def test_cookies_go_both_ways() -> None:
    answer = ask(make_app(), "GET /cookies HTTP/1.1\nCookie: x=1; y=2")
    assert answer.json == {"x": "1", "y": "2"}
    assert answer.all("Set-Cookie") == ["a=1; Path=/", "b=2; HttpOnly; Path=/"]


def test_bodies_may_be_large() -> None:
    body = bytes(range(256)) * 40_000
    assert ask(make_app(), "POST /echo HTTP/1.1", body).body == body


def test_a_chunked_body_is_read() -> None:
    made = make_request("POST /echo HTTP/1.1\nTransfer-Encoding: chunked")
    made.body = b"joined"

    async def main() -> Answer:
        routes = WSGIRoutes(make_app(), "h", unreadable)
        answer = await answer_to(routes, made)
        routes.close()
        return answer

    assert run(main()).body == b"joined"


def test_the_answer_to_head_has_the_size_of_the_body() -> None:
    answer = ask(make_app(), "HEAD /size/1000 HTTP/1.1")
    assert (answer.body, answer.all("Content-Length")) == (None, ["1000"])


@pytest.mark.parametrize(
    ("status", "lines", "length"),
    [
        pytest.param(
            "200 OK", [("Content-Length", str(600 * 2**20))], [str(600 * 2**20)], id="told"
        ),
        pytest.param("200 OK", [], [], id="not-told"),
        pytest.param("200 OK", [("Content-Length", "long")], [], id="no-number"),
        pytest.param("204 NO CONTENT", [("Content-Length", "5")], [], id="bodiless"),
    ],
)
def test_head_costs_nothing_however_much_it_asks_about(
    status: str, lines: list[tuple[str, str]], length: list[str]
) -> None:
    """Neither what an app tells of nor what it says too much is put together."""

    def app(environ: Any, start_response: Any) -> Any:
        start_response(status, lines)
        return (b"%d" % n * 2**20 for n in range(10))

    tracemalloc.start()
    try:
        answer = ask(app, "HEAD / HTTP/1.1")
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert (answer.body, answer.all("Content-Length")) == (None, length)
    assert peak < 5 * 2**20


@pytest.mark.parametrize("status", [204, 304, 400, 599])
def test_a_status_is_passed_on(status: int) -> None:
    answer = ask(make_app(), f"GET /status/{status} HTTP/1.1")
    assert (answer.status, answer.body) == (status, b"")


@pytest.mark.parametrize("status", [0, 99, 102, 199, 600, 1000])
def test_a_status_that_no_answer_has_is_a_failure(
    caplog: pytest.LogCaptureFixture, status: int
) -> None:
    """After a 102 a client would take the next answer on its connection for this one."""
    answer = ask(make_app(), f"GET /status/{status} HTTP/1.1\nX-Request-ID: mine")
    assert (answer.status, answer.all("X-Request-ID")) == (500, ["mine"])
    assert caplog.messages == [
        f"the app answered <Request b'GET' b'/status/{status}'> with status {status},"
        " not one of 200 to 599"
    ]


@pytest.mark.parametrize(("path", "status"), [("/nowhere", 404), ("/abort", 418)])
def test_errors_are_the_apps_own(path: str, status: int) -> None:
    answer = ask(make_app(), f"GET {path} HTTP/1.1")
    assert answer.status == status
    assert answer.all("Content-Type") == ["text/html; charset=utf-8"]


def test_an_exception_is_logged_and_answered(caplog: pytest.LogCaptureFixture) -> None:
    answer = ask(make_app(), "GET /fail HTTP/1.1")
    assert answer.status == 500
    assert answer.body and b"secret" not in answer.body
    assert "KeyError: 'my secret'" in caplog.text


@pytest.mark.parametrize("error", [ZeroDivisionError, SystemExit])
def test_an_app_that_fails_itself_is_logged_and_answered(
    caplog: pytest.LogCaptureFixture, error: type[BaseException]
) -> None:
    def app(environ: Any, start_response: Any) -> Any:
        raise error

    answer = ask(app, "GET / HTTP/1.1\nX-Request-ID: mine\nAccept: application/msgpack")
    assert answer.status == 500
    assert answer.all("Content-Type") == ["application/msgpack"]
    assert answer.all("X-Request-ID") == ["mine"]
    assert msgpack.unpackb(answer.body or b"")["instance"] == "/#mine"
    assert "the app failed on <Request b'GET' b'/'>" in caplog.text


@pytest.mark.parametrize("value", ["a\r\nb: c", "a\nb", "a\0"])
def test_a_header_with_a_line_break_is_an_error(value: str) -> None:
    def app(environ: Any, start_response: Any) -> Any:
        start_response("200 OK", [("X-Bad", value)])
        return [b""]

    assert ask(app, "GET / HTTP/1.1").status == 500


def test_lines_of_our_connection_are_not_repeated() -> None:
    def app(environ: Any, start_response: Any) -> Any:
        lines = [("Content-Length", "2"), ("Connection", "close"), ("Date", "x"), ("X-Kept", "é")]
        write = start_response("200 OK", lines)
        write(b"h")
        return [b"i"]

    assert ask(app, "GET / HTTP/1.1") == Answer(200, [("X-Kept", "é")], b"hi")


def test_a_stream_is_sent_when_it_is_whole_and_closed() -> None:
    class Chunks:
        closed = False

        def __iter__(self) -> Iterator[bytes]:
            yield from (b"one ", b"two")

        def close(self) -> None:
            self.closed = True

    chunks = Chunks()

    def app(environ: Any, start_response: Any) -> Any:
        start_response("200 OK", [])
        return chunks

    assert ask(app, "GET / HTTP/1.1").body == b"one two"
    assert chunks.closed
    assert ask(make_app(), "GET /stream HTTP/1.1").body == b"one two"


def test_the_client_is_known_and_what_the_app_writes_is_logged(
    caplog: pytest.LogCaptureFixture,
) -> None:
    assert ask(make_app(), "GET /say HTTP/1.1").body == b"192.0.2.7"
    assert caplog.messages == ["careful"]


def bounded(test: Callable[[], Awaitable[None]]) -> None:
    async def main() -> None:
        await asyncio.wait_for(test(), 30)

    run(main())


def test_a_stream_without_end_ends_when_its_client_has_left() -> None:
    begun, ended = threading.Event(), threading.Event()

    def app(environ: Any, start_response: Any) -> Any:
        start_response("200 OK", [])

        def forever() -> Iterator[bytes]:
            try:
                while True:
                    begun.set()
                    yield b"x"
            finally:
                ended.set()

        return forever()

    async def test() -> None:
        routes, made = WSGIRoutes(app, "h", unreadable), make_request("GET / HTTP/1.1")
        routes(made)
        await asyncio.to_thread(begun.wait, 20)
        made.is_gone = True
        assert await asyncio.to_thread(ended.wait, 20)
        routes.close()

    bounded(test)


def test_what_nobody_waits_for_any_more_is_not_begun(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wsgi, "THREADS", 1)
    may_go = threading.Event()
    called = []

    def app(environ: Any, start_response: Any) -> Any:
        called.append(environ["PATH_INFO"])
        may_go.wait(20)
        start_response("200 OK", [])
        return []

    async def test() -> None:
        routes = WSGIRoutes(app, "h", unreadable)
        first, left, last = (make_request(f"GET /{name} HTTP/1.1") for name in ("a", "b", "c"))
        routes(first)
        routes(left)
        left.is_gone = True
        may_go.set()
        await answer_to(routes, last)
        assert called == ["/a", "/c"]
        routes.close()

    bounded(test)


class Threadless:
    """Has the system refuse every new thread until ``may_start`` is set."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.may_start = False
        start = threading.Thread.start

        def start_or_not(thread: threading.Thread) -> None:
            if not self.may_start:
                raise RuntimeError("can't start new thread")
            start(thread)

        monkeypatch.setattr(threading.Thread, "start", start_or_not)


def test_without_any_thread_a_request_is_turned_away_and_forgotten(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A thread that comes later must not run what was answered; nor may its place be taken."""
    system, called = Threadless(monkeypatch), []

    def app(environ: Any, start_response: Any) -> Any:
        called.append(environ["PATH_INFO"])
        start_response("200 OK", [])
        return []

    async def test() -> None:
        routes = WSGIRoutes(app, "h", unreadable)
        for _ in range(wsgi.THREADS + 1):
            answer = await answer_to(routes, make_request("GET /early HTTP/1.1"))
            assert (answer.status, answer.all("Retry-After")) == (503, ["1"])
        system.may_start = True
        assert (await answer_to(routes, make_request("GET /late HTTP/1.1"))).status == 200
        assert called == ["/late"]
        routes.close()

    bounded(test)
    assert caplog.messages == [
        "a thread for the routes cannot start, 0 run: can't start new thread"
    ]


def test_with_fewer_threads_requests_wait_for_those_there_are(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    system, may_go = Threadless(monkeypatch), threading.Event()

    def app(environ: Any, start_response: Any) -> Any:
        may_go.wait(20)
        start_response("200 OK", [])
        return []

    async def test() -> None:
        routes = WSGIRoutes(app, "h", unreadable)
        first, second = make_request("GET / HTTP/1.1"), make_request("GET / HTTP/1.1")
        system.may_start = True
        routes(first)
        system.may_start = False
        routes(second)
        may_go.set()
        for made in (first, second):
            await asyncio.wait_for(made.is_answered.wait(), 20)
            assert made.said is not None and made.said.status == 200
        routes.close()

    bounded(test)


def test_only_so_many_requests_wait_for_a_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    """Routes that hang would else keep a head of each client that tries in vain."""
    monkeypatch.setattr(wsgi, "THREADS", 1)
    monkeypatch.setattr(wsgi, "MAX_WAITING", 2)
    begun, may_go = threading.Event(), threading.Event()

    def app(environ: Any, start_response: Any) -> Any:
        begun.set()
        may_go.wait(20)
        start_response("200 OK", [])
        return []

    async def test() -> None:
        routes = WSGIRoutes(app, "h", unreadable)
        routes(make_request("GET / HTTP/1.1"))
        await turn_until(begun.is_set)
        waiting = [make_request("GET / HTTP/1.1") for _ in range(2)]
        for made in waiting:
            routes(made)
        answer = await answer_to(routes, make_request("GET / HTTP/1.1"))
        assert (answer.status, answer.all("Retry-After")) == (503, ["1"])
        assert answer.json["detail"] == "too many requests are waiting"
        may_go.set()
        await asyncio.wait_for(waiting[1].is_answered.wait(), 20)
        assert (await answer_to(routes, make_request("GET / HTTP/1.1"))).status == 200
        routes.close()

    bounded(test)


def test_bodies_of_clients_that_left_do_not_wait_for_a_thread(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Nobody counts them any more, so nobody may keep them."""
    monkeypatch.setattr(wsgi, "THREADS", 1)
    may_go = threading.Event()
    called = []

    def app(environ: Any, start_response: Any) -> Any:
        called.append(environ["PATH_INFO"])
        may_go.wait(60)
        start_response("200 OK", [])
        return [environ["wsgi.input"].read()]

    async def say(port: int, path: bytes, body: bytes) -> Connected:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(
            b"POST %b HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n" % (path, len(body))
        )
        writer.write(body)
        return reader, writer

    async def leave(server: HttpServer, port: int, size: int) -> None:
        _, writer = await say(port, b"/left", b"x" * size)
        await turn_until(lambda: server.held > size)
        writer.transport.abort()
        await turn_until(lambda: server.held < size)

    async def test() -> None:
        routes, size = WSGIRoutes(app, "h", unreadable), 2**20
        server = HttpServer(routes, refuse=unreadable)
        listener = await asyncio.get_running_loop().create_server(server, "127.0.0.1", 0)
        port = listener.sockets[0].getsockname()[1]
        _, first = await say(port, b"/first", b"a")
        await turn_until(lambda: called)
        tracemalloc.start()
        try:
            for _ in range(10):
                await leave(server, port, size)
            kept = tracemalloc.get_traced_memory()[0]
        finally:
            tracemalloc.stop()
        assert kept < 3 * size
        reader, last = await say(port, b"/last", b"body")
        may_go.set()
        assert (await reader.readuntil(b"body")).startswith(b"HTTP/1.1 200 ")
        assert called == ["/first", "/last"]
        for writer in (first, last):
            writer.close()
        listener.close()
        await server.drain()
        routes.close()

    bounded(test)


def test_a_client_that_leaves_while_its_body_is_taken_is_not_answered(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The thread would else pass an empty body for that of the client."""
    monkeypatch.setattr(wsgi, "THREADS", 1)
    called = []

    class Leaving(Asked):
        @property
        def headers(self) -> list[tuple[bytes, bytes]]:
            self.is_gone, self.body = True, b""  # as the connection does, in its own thread
            return super().headers

    def app(environ: Any, start_response: Any) -> Any:
        called.append(environ["PATH_INFO"])
        start_response("200 OK", [])
        return []

    async def test() -> None:
        routes = WSGIRoutes(app, "h", unreadable)
        routes(Leaving(read_head(b"PUT /left HTTP/1.1\r\nHost: a\r\n\r\n"), b"body"))
        await answer_to(routes, make_request("GET /other HTTP/1.1"))
        assert called == ["/other"]
        routes.close()

    bounded(test)


def test_a_route_that_hangs_does_not_keep_the_process_from_its_end(
    caplog: pytest.LogCaptureFixture,
) -> None:
    before = set(threading.enumerate())
    begun, may_go = threading.Event(), threading.Event()

    def app(environ: Any, start_response: Any) -> Any:
        begun.set()
        may_go.wait(20)
        start_response("200 OK", [])
        return []

    async def test() -> None:
        routes = WSGIRoutes(app, "h", unreadable)
        routes(make_request("GET / HTTP/1.1"))
        await turn_until(begun.is_set)
        routes.close()

    bounded(test)
    (thread,) = set(threading.enumerate()) - before
    assert thread.daemon
    with caplog.at_level(logging.DEBUG):
        may_go.set()
        thread.join(20)  # and answers nobody, as the loop has ended
    assert not thread.is_alive() and not caplog.messages
