"""The HTTP connections, told with raw bytes over real sockets, under asyncio and under uvloop."""

import asyncio
import functools
import json
import os
import random
import socket
import struct
from collections.abc import Awaitable, Callable, Iterable, Iterator
from dataclasses import dataclass, field
from email.utils import parsedate_to_datetime
from math import inf
from typing import Any

import pytest
from waiting import turn_until

from ventu_lite.batching.refusals import unreadable
from ventu_lite.http.connection import Connection
from ventu_lite.http.head import Heads
from ventu_lite.http.request import SENT, Answer, Request, encode_headers
from ventu_lite.http.server import HttpServer, Limits, run

try:
    import uvloop
except ImportError:
    uvloop = None  # type: ignore[assignment]  # told from the module by its truth

# With the other tests here they come to every line that 5,000 come to; the fuzzer goes on.
MUTATIONS = int(os.environ.get("VENTU_TEST_HTTP_MUTATIONS", "1500"))
PATIENCE = 30 + MUTATIONS / 100  # seconds, on a busy machine
LOOPS: dict[str, Callable[[], asyncio.AbstractEventLoop]] = {"asyncio": asyncio.new_event_loop}
if uvloop:
    LOOPS["uvloop"] = uvloop.new_event_loop

H = b"Host: a\r\n"
GET = b"GET /a HTTP/1.1\r\nHost: a\r\n\r\n"
BYE = b"GET /bye HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n"


def post(body: bytes = b"{}", *fields: bytes, target: bytes = b"/inference") -> bytes:
    lines = b"".join(field + b"\r\n" for field in fields)
    head = b"POST %b HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n%b\r\n"
    return head % (target, len(body), lines) + body


def chunked(*chunks: bytes, trailers: bytes = b"") -> bytes:
    head = b"POST /c HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n"
    body = b"".join(b"%x\r\n%b\r\n" % (len(chunk), chunk) for chunk in chunks)
    return head + body + b"0\r\n" + trailers + b"\r\n"


@dataclass
class Response:
    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def detail(self) -> str:
        return str(json.loads(self.body)["detail"])


def echo(request: Request) -> None:
    request.respond(
        200, b"X-Seen: %b %b\r\n" % (request.method, request.target), request.body or b"nothing"
    )


@dataclass
class Shelf:
    """A handler that answers when told to."""

    requests: list[Request] = field(default_factory=list)
    gone: list[bytes] = field(default_factory=list)
    arrived: asyncio.Event = field(default_factory=asyncio.Event)
    left: asyncio.Event = field(default_factory=asyncio.Event)

    def __call__(self, request: Request) -> None:
        self.requests.append(request)
        self.arrived.set()

        def note() -> None:
            self.gone.append(request.target)
            self.left.set()

        request.on_disconnect = note

    async def wait(self, count: int) -> None:
        while len(self.requests) < count:
            self.arrived.clear()
            await self.arrived.wait()


class Client:
    """Writes bytes as they are, reads responses."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer

    async def send(self, data: bytes, *, cuts: int | None = None) -> None:
        if cuts is None:
            self.writer.write(data)
        for piece in () if cuts is None else pieces_of(data, cuts):
            self.writer.write(piece)
            await asyncio.sleep(0)  # a turn of the loop in which only this has come
        await self.writer.drain()

    async def read(self, *, has_body: bool = True) -> Response:
        head = (await self.reader.readuntil(b"\r\n\r\n")).decode("latin-1")
        line, *lines = head[:-4].split("\r\n")
        headers = {name.lower(): value for name, value in (row.split(": ", 1) for row in lines)}
        size = int(headers.get("content-length", "0")) if has_body else 0
        return Response(int(line.split()[1]), headers, await self.reader.readexactly(size))

    async def ask(self, data: bytes, *, cuts: int | None = None) -> Response:
        await self.send(data, cuts=cuts)
        return await self.read()

    async def ends(self) -> bool:
        """Whether the server ends the connection and says nothing more."""
        try:
            return await self.reader.read(1) == b""
        except ConnectionResetError:
            return True

    async def close(self) -> None:
        self.writer.close()
        try:
            await self.writer.wait_closed()
        except ConnectionError:
            pass


@dataclass
class Site:
    server: HttpServer
    port: int
    clients: list[Client] = field(default_factory=list)

    async def connect(self) -> Client:
        client = Client(*await asyncio.open_connection("127.0.0.1", self.port))
        self.clients.append(client)
        return client

    async def connection(self) -> Connection:
        await turn_until(lambda: self.server.connections)
        return next(iter(self.server.connections))


Scenario = Callable[[Site], Awaitable[None]]


async def visit(scenario: Scenario, handler: Callable[[Request], None], options: Any) -> None:
    """Play ``scenario`` and check that the server is as empty afterwards as before."""
    server = HttpServer(handler, refuse=unreadable, **options)
    listener = await asyncio.get_running_loop().create_server(server, "127.0.0.1", 0)
    site = Site(server, listener.sockets[0].getsockname()[1])
    try:
        await scenario(site)
    finally:
        for client in site.clients:
            await client.close()
        listener.close()
        server.abort()
        await server.drain()
        await listener.wait_closed()
    assert server.held == 0
    assert not is_ticking(server)


def is_ticking(server: HttpServer) -> bool:
    return server._sweeping is not None


@pytest.fixture(params=LOOPS)
def play(request: pytest.FixtureRequest) -> Iterator[Callable[..., None]]:
    loop = LOOPS[request.param]()

    def play(scenario: Scenario, handler: Callable[[Request], None] = echo, **options: Any) -> None:
        loop.run_until_complete(asyncio.wait_for(visit(scenario, handler, options), PATIENCE))

    yield play
    assert not asyncio.all_tasks(loop)
    loop.close()


def pieces_of(data: bytes, cuts: int) -> Iterator[bytes]:
    """Cut ``data`` into single bytes (0) or at random, always the same for one number."""
    rng = random.Random(cuts)
    scale = 1 + len(data) // 1000  # thousands of single bytes would only take long
    while data:
        size = scale if cuts == 0 else rng.randint(1, 40 * scale)
        yield data[:size]
        data = data[size:]


CUTS = [pytest.param(None, id="whole"), pytest.param(0, id="bytes"), pytest.param(7, id="random")]
Play = Callable[..., None]


# ---- requests that must work


@pytest.mark.parametrize("cuts", CUTS)
def test_pipelined_requests_of_every_kind_are_answered_in_order(
    play: Play, cuts: int | None
) -> None:
    """The parser must not care where the network cut the stream."""
    bodies = [b"x" * 100, b"\r\n\r\n" * 9, b"\r\n", b"GET / HTTP/1.1\r\n\r\n"]
    trailers = b"X-Sum: 1\r\nEmpty:\r\n"
    stream = GET + b"".join(post(body) for body in bodies)
    stream += chunked(*bodies) + chunked(trailers=trailers) + chunked(b"a", trailers=trailers) + BYE

    async def scenario(site: Site) -> None:
        client = await site.connect()
        await client.send(stream, cuts=cuts)
        answers = [await client.read() for _ in range(len(bodies) + 5)]
        expected = [b"nothing", *bodies, b"".join(bodies), b"nothing", b"a", b"nothing"]
        assert [answer.body for answer in answers] == expected
        assert answers[-1].headers["x-seen"] == "GET /bye"
        assert answers[-1].headers["connection"] == "close"
        assert "connection" not in answers[0].headers
        assert await client.ends()

    play(scenario)


@pytest.mark.parametrize(
    ("data", "seen"),
    [
        pytest.param(b"GET /a?b=c%20d HTTP/1.1\r\n" + H + b"\r\n", "GET /a?b=c%20d", id="query"),
        pytest.param(b"GET http://b/c?d HTTP/1.1\r\n" + H + b"\r\n", "GET /c?d", id="absolute"),
        pytest.param(b"GET HTTP://b HTTP/1.1\r\n" + H + b"\r\n", "GET /", id="absolute-bare"),
        pytest.param(b"GET http://b?c HTTP/1.1\r\n" + H + b"\r\n", "GET /?c", id="absolute-query"),
        pytest.param(b"OPTIONS * HTTP/1.1\r\n" + H + b"\r\n", "OPTIONS *", id="asterisk"),
        pytest.param(b"OPTIONS http://b HTTP/1.1\r\n" + H + b"\r\n", "OPTIONS *", id="absolute-*"),
        pytest.param(b"\r\n" + GET, "GET /a", id="leading-line-break"),
        pytest.param(b"\r\n" * 100 + GET, "GET /a", id="leading-line-breaks"),
        pytest.param(b"GET / HTTP/1.1\r\nHost:\r\n\r\n", "GET /", id="empty-host"),
        pytest.param(b"GET / HTTP/1.1\r\nhOST:\t [::1]:80 \r\n\r\n", "GET /", id="ipv6-host"),
        pytest.param(post(b"", b"X: \xff\x80 \t y"), "POST /inference", id="obs-text"),
        pytest.param(post(b"", b"Accept: a", b"ACCEPT: b"), "POST /inference", id="two-accepts"),
        pytest.param(
            b"PATCH / HTTP/1.1\r\n" + H + b"Content-Length: 0\r\n\r\n", "PATCH /", id="PATCH"
        ),
    ],
)
def test_unusual_but_legal_requests_work(play: Play, data: bytes, seen: str) -> None:
    async def scenario(site: Site) -> None:
        client = await site.connect()
        answer = await client.ask(data)
        assert (answer.status, answer.headers["x-seen"]) == (200, seen)
        assert (await client.ask(GET)).status == 200  # the connection goes on

    play(scenario)


def test_a_request_holds_what_was_sent(play: Play) -> None:
    shelf = Shelf()

    async def scenario(site: Site) -> None:
        client = await site.connect()
        fields = (b"ACCEPT: a", b"Accept:  b ", b"X-Other: \t1", b"Content-Type: x/y")
        await client.send(post(b"body", *fields, target=b"http://b:1/p"))
        await shelf.wait(1)
        request = shelf.requests[0]
        assert (request.method, request.target, request.minor) == (b"POST", b"/p", 1)
        assert request.fields[b"accept"] == b"a, b"
        assert request.fields[b"content-type"] == b"x/y"
        assert request.fields[b"host"] == b"b:1"
        assert b"x-other" not in request.fields
        assert (b"x-other", b"1") in request.headers
        assert request.headers[0] == (b"host", b"a")
        assert request.body == b"body"
        assert repr(request) == "<Request b'POST' b'/p'>"

    play(scenario, shelf)


@pytest.mark.parametrize(
    ("fields", "connection"),
    [(b"", "close"), (b"Connection: Keep-Alive\r\n", "keep-alive")],
)
def test_http_1_0_closes_unless_asked_not_to(play: Play, fields: bytes, connection: str) -> None:
    async def scenario(site: Site) -> None:
        client = await site.connect()
        answer = await client.ask(b"GET / HTTP/1.0\r\n" + fields + b"\r\n")
        assert answer.headers["connection"] == connection
        if connection == "close":
            assert await client.ends()
        else:
            assert (await client.ask(GET)).status == 200

    play(scenario)


@pytest.mark.parametrize("value", [b"close", b"Close", b"foo, close", b"keep-alive,close"])
def test_connection_close_is_obeyed(play: Play, value: bytes) -> None:
    async def scenario(site: Site) -> None:
        client = await site.connect()
        answer = await client.ask(post(b"x", b"Connection: " + value) + GET)
        assert answer.headers["connection"] == "close"
        assert await client.ends()

    play(scenario)


def test_head_and_204_have_no_body(play: Play) -> None:
    def handler(request: Request) -> None:
        request.respond(204 if request.target == b"/204" else 200, b"", b"12345")

    async def scenario(site: Site) -> None:
        client = await site.connect()
        await client.send(b"HEAD / HTTP/1.1\r\n" + H + b"\r\n")
        head = await client.read(has_body=False)
        assert head.headers["content-length"] == "5"
        empty = await client.ask(b"GET /204 HTTP/1.1\r\n" + H + b"\r\n")
        assert (empty.status, empty.headers.get("content-length")) == (204, None)
        assert (await client.ask(GET)).body == b"12345"

    play(scenario, handler)


@pytest.mark.parametrize(("lines", "length"), [(b"Content-Length: 600\r\n", "600"), (b"", None)])
def test_the_answer_to_head_needs_no_body_to_tell_its_length(
    play: Play, lines: bytes, length: str | None
) -> None:
    def handler(request: Request) -> None:
        request.respond(200, lines, None if request.method == b"HEAD" else b"12345")

    async def scenario(site: Site) -> None:
        client = await site.connect()
        await client.send(b"HEAD / HTTP/1.1\r\n" + H + b"\r\n" + post())
        head = await client.read(has_body=False)
        assert (head.status, head.headers.get("content-length")) == (200, length)
        assert (await client.reader.readuntil(b"\r\n")).startswith(b"HTTP/1.1 200 ")

    play(scenario, handler)


def test_an_empty_body_has_its_length(play: Play) -> None:
    """Else a client would wait for the end of the connection."""

    async def scenario(site: Site) -> None:
        client = await site.connect()
        assert (await client.ask(GET)).headers["content-length"] == "0"

    play(scenario, lambda request: request.respond(200))


def test_every_response_has_a_date(play: Play) -> None:
    async def scenario(site: Site) -> None:
        client = await site.connect()
        answer = await client.ask(GET)
        assert parsedate_to_datetime(answer.headers["date"]).year >= 2024

    play(scenario)


def test_an_offered_upgrade_is_ignored_and_the_body_read(play: Play) -> None:
    """Java's HttpClient offers h2c with every first request, bodies included."""
    offer = (b"Connection: Upgrade, HTTP2-Settings", b"Upgrade: h2c", b"HTTP2-Settings: AAMAAABk")

    async def scenario(site: Site) -> None:
        client = await site.connect()
        assert (await client.ask(post(b"whole", *offer))).body == b"whole"
        await client.send(post(b"in pieces", *offer)[:-5])
        assert (await client.ask(b"ieces")).body == b"in pieces"
        data = chunked(b"chunk").replace(H, H + b"\r\n".join(offer) + b"\r\n")
        assert (await client.ask(data)).body == b"chunk"
        assert (await client.ask(GET)).status == 200

    play(scenario)


# ---- requests that must not


def head(*lines: bytes) -> bytes:
    return b"\r\n".join(lines) + b"\r\n\r\n"


POST = b"POST / HTTP/1.1"
TE = b"Transfer-Encoding: chunked"
REFUSED = {
    "two-lengths": (400, head(POST, b"Host: a", b"Content-Length: 1", b"Content-Length: 2")),
    "equal-lengths": (400, head(POST, b"Host: a", b"Content-Length: 1", b"Content-Length: 1")),
    "length-list": (400, head(POST, b"Host: a", b"Content-Length: 1, 1") + b"x"),
    "length-plus": (400, head(POST, b"Host: a", b"Content-Length: +1") + b"x"),
    "length-minus": (400, head(POST, b"Host: a", b"Content-Length: -1") + b"x"),
    "length-hex": (400, head(POST, b"Host: a", b"Content-Length: 0x1") + b"x"),
    "length-empty": (400, head(POST, b"Host: a", b"Content-Length:")),
    "length-huge": (400, head(POST, b"Host: a", b"Content-Length: " + b"9" * 30)),
    "length-underscore": (400, head(POST, b"Host: a", b"Content-Length: 1_0") + b"x" * 10),
    "length-superscript": (400, head(POST, b"Host: a", b"Content-Length: \xb2") + b"xx"),
    "length-and-chunked": (400, head(POST, b"Host: a", b"Content-Length: 5", TE) + b"0\r\n\r\n"),
    "chunked-and-length": (400, head(POST, b"Host: a", TE, b"Content-Length: 5") + b"0\r\n\r\n"),
    "gzip-chunked": (501, head(POST, b"Host: a", b"Transfer-Encoding: gzip, chunked")),
    "identity": (501, head(POST, b"Host: a", b"Transfer-Encoding: identity")),
    "xchunked": (501, head(POST, b"Host: a", b"Transfer-Encoding: xchunked")),
    "chunked-twice": (400, head(POST, b"Host: a", TE, TE)),
    "chunked-1.0": (400, head(b"POST / HTTP/1.0", b"Host: a", TE) + b"0\r\n\r\n"),
    "chunked-vtab": (400, head(POST, b"Host: a", b"Transfer-Encoding: \x0bchunked")),
    "bare-lf": (400, b"GET / HTTP/1.1\nHost: a\n\r\n\r\n"),
    "bare-lf-header": (400, head(b"GET / HTTP/1.1", b"Host: a\nX: y")),
    "bare-cr-header": (400, head(b"GET / HTTP/1.1", b"Host: a", b"X: a\rY: b")),
    "cr-and-lf-apart": (400, head(b"GET / HTTP/1.1", b"Host: a", b"X: a\ry\nz")),
    "obs-fold": (400, head(b"GET / HTTP/1.1", b"Host: a", b"X: y", b" z")),
    "obs-fold-tab": (400, head(b"GET / HTTP/1.1", b"Host: a", b"\tz")),
    "space-first": (400, head(b"GET / HTTP/1.1", b" Host: a")),
    "space-before-colon": (400, head(POST, b"Host: a", b"Content-Length : 1") + b"x"),
    "tab-before-colon": (400, head(POST, b"Host: a", b"Transfer-Encoding\t: chunked")),
    "no-colon": (400, head(b"GET / HTTP/1.1", b"Host: a", b"X")),
    "empty-name": (400, head(b"GET / HTTP/1.1", b"Host: a", b": x")),
    "bad-name": (400, head(b"GET / HTTP/1.1", b"Host: a", b"X(y): x")),
    "nul": (400, head(b"GET / HTTP/1.1", b"Host: a", b"X: a\0b")),
    "control": (400, head(b"GET / HTTP/1.1", b"Host: a", b"X: a\x01b")),
    "del": (400, head(b"GET / HTTP/1.1", b"Host: a", b"X: a\x7fb")),
    "no-host": (400, head(b"GET / HTTP/1.1")),
    "two-hosts": (400, head(b"GET / HTTP/1.1", b"Host: a", b"Host: a")),
    "host-list": (400, head(b"GET / HTTP/1.1", b"Host: a, b/c")),
    "host-user": (400, head(b"GET / HTTP/1.1", b"Host: a@b")),
    "two-types": (400, head(POST, b"Host: a", b"Content-Type: a/b", b"Content-Type: c/d")),
    "expect-other": (417, head(POST, b"Host: a", b"Expect: 200-ok", b"Content-Length: 1")),
    "two-spaces": (400, head(b"GET  / HTTP/1.1", b"Host: a")),
    "two-spaces-later": (400, head(b"GET /  HTTP/1.1", b"Host: a")),
    "trailing-space": (400, head(b"GET / HTTP/1.1 ", b"Host: a")),
    "tab-for-space": (400, head(b"GET\t/ HTTP/1.1", b"Host: a")),
    "no-version": (400, head(b"GET /")),
    "lower-case-http": (400, head(b"GET / http/1.1", b"Host: a")),
    "http-0.9": (505, head(b"GET / HTTP/0.9", b"Host: a")),
    "http-1.2": (505, head(b"GET / HTTP/1.2", b"Host: a")),
    "http-2": (505, head(b"GET / HTTP/2.0", b"Host: a")),
    "http-2-preface": (505, b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"),
    "rtsp": (400, head(b"OPTIONS / RTSP/1.0", b"Host: a")),
    "unknown-method": (501, head(b"FOO / HTTP/1.1", b"Host: a")),
    "lower-case-method": (501, head(b"get / HTTP/1.1", b"Host: a")),
    "connect": (501, head(b"CONNECT a:1 HTTP/1.1", b"Host: a")),
    "connect-path": (501, head(b"CONNECT /a HTTP/1.1", b"Host: a")),
    "relative": (400, head(b"GET a HTTP/1.1", b"Host: a")),
    "asterisk-get": (400, head(b"GET * HTTP/1.1", b"Host: a")),
    "other-scheme": (400, head(b"GET ftp://a/b HTTP/1.1", b"Host: a")),
    "absolute-user": (400, head(b"GET http://u@a/b HTTP/1.1", b"Host: a")),
    "absolute-odd-host": (400, head(b'GET http://a"b/c HTTP/1.1', b"Host: a")),
    "fragment": (400, head(b"GET /a#b HTTP/1.1", b"Host: a")),
    "raw-utf-8": (400, head(b"GET /\xc3\xa9 HTTP/1.1", b"Host: a")),
    "tls": (400, bytes.fromhex("16030100c8010000c40303")),
    "worker": (400, b"\x00\x00\x00\x00\x00\x00\x00\x02{}"),
    "chunk-size-space": (400, head(POST, b"Host: a", TE) + b"1 \r\nx\r\n0\r\n\r\n"),
    "chunk-size-sign": (400, head(POST, b"Host: a", TE) + b"+1\r\nx\r\n0\r\n\r\n"),
    "chunk-size-0x": (400, head(POST, b"Host: a", TE) + b"0x1\r\nx\r\n0\r\n\r\n"),
    "chunk-size-huge": (400, head(POST, b"Host: a", TE) + b"f" * 17 + b"\r\n"),
    "chunk-size-empty": (400, head(POST, b"Host: a", TE) + b"\r\n"),
    "chunk-too-long": (400, head(POST, b"Host: a", TE) + b"1\r\nxy\r\n0\r\n\r\n"),
    "chunk-lf": (400, head(POST, b"Host: a", TE) + b"1\nx\r\n0\r\n\r\n"),
    "chunk-data-lf": (400, head(POST, b"Host: a", TE) + b"1\r\nx\n0\r\n\r\n"),
    "chunk-extension-lf": (400, head(POST, b"Host: a", TE) + b"1;a\nx\r\n0\r\n\r\n"),
    "chunk-extension-cr": (400, head(POST, b"Host: a", TE) + b"1;a\rb\r\nx\r\n0\r\n\r\n"),
    "chunk-extension-long": (400, head(POST, b"Host: a", TE) + b"1;" + b"a" * 40_000),
    "trailer-length": (400, chunked(b"x", trailers=b"Content-Length: 4\r\n")),
    "trailer-lf": (400, chunked(b"x", trailers=b"A: b\nC: d\r\n")),
    "trailers-long": (400, chunked(b"x", trailers=b"A: %b\r\n" % (b"b" * 40_000))),
    "long-line": (414, b"GET /" + b"a" * 8192 + b" HTTP/1.1\r\n" + H + b"\r\n"),
    "endless-line": (414, b"G" * 9000),
    "long-headers": (431, head(b"GET / HTTP/1.1", b"Host: a", b"X: " + b"a" * 33_000)),
    "many-headers": (431, head(b"GET / HTTP/1.1", b"Host: a", *[b"X: " + b"a" * 99] * 400)),
    "endless-header": (431, b"GET / HTTP/1.1\r\nX: " + b"a" * 33_000),
    "large-body": (413, head(POST, b"Host: a", b"Content-Length: 10485761")),
}


@pytest.mark.parametrize("cuts", CUTS)
@pytest.mark.parametrize("name", REFUSED)
def test_what_is_ambiguous_or_too_large_is_refused(play: Play, name: str, cuts: int | None) -> None:
    """The connection ends, since nobody can say where the next request would start."""
    status, data = REFUSED[name]

    async def scenario(site: Site) -> None:
        client = await site.connect()
        earlier = await client.ask(GET)
        answer = await client.ask(data, cuts=cuts)
        assert (earlier.status, answer.status) == (200, status)
        assert answer.headers["connection"] == "close"
        assert answer.headers["content-type"] == "application/problem+json"
        assert answer.detail
        assert await client.ends()

    play(scenario)


@pytest.mark.parametrize("name", ["two-lengths", "tls", "chunk-lf", "long-line"])
def test_a_refusal_waits_for_the_answers_before_it(play: Play, name: str) -> None:
    shelf = Shelf()

    async def scenario(site: Site) -> None:
        client = await site.connect()
        await client.send(GET + GET)
        await shelf.wait(2)
        await client.send(REFUSED[name][1])
        shelf.requests[1].respond(200, b"", b"second")
        shelf.requests[0].respond(200, b"", b"first")
        bodies = [(await client.read()).body for _ in range(2)]
        assert bodies == [b"first", b"second"]
        assert (await client.read()).status == REFUSED[name][0]
        assert await client.ends()

    play(scenario, shelf)


NAMED = b"X-Request-ID: mine"


@pytest.mark.parametrize(
    ("status", "data", "limits"),
    [
        pytest.param(408, post(b"half", NAMED)[:-1], Limits(body_time=0.1), id="late"),
        pytest.param(413, post(b"large", NAMED), Limits(max_body=1), id="large"),
        pytest.param(429, post(b"half", NAMED)[:-1], Limits(max_held=2), id="half-held"),
        pytest.param(429, post(b"whole", NAMED), Limits(max_held=2), id="held"),
        pytest.param(400, head(POST, b"Host: a", TE, NAMED) + b"?\r\n", Limits(), id="chunk"),
        pytest.param(500, head(b"GET / HTTP/1.1", b"Host: a", NAMED), Limits(), id="failed"),
    ],
)
def test_a_refusal_names_the_request_if_its_head_was_read(
    play: Play, status: int, data: bytes, limits: Limits
) -> None:
    def fail(request: Request) -> None:
        raise KeyError("handler")

    async def scenario(site: Site) -> None:
        client = await site.connect()
        answer = await client.ask(data)
        assert (answer.status, answer.headers["x-request-id"]) == (status, "mine")

    play(scenario, fail, limits=limits)


@pytest.mark.parametrize("size", [-1, 0])
def test_a_head_may_be_as_long_as_its_limit(play: Play, size: int) -> None:
    limits = Limits(max_line=100, max_head=200)
    line = b"GET /" + b"a" * (100 + size - 14) + b" HTTP/1.1"
    data = head(line, b"Host: a", b"X: " + b"b" * (200 + size - len(line) - 18))
    assert (len(line), len(data)) == (100 + size, 200 + size)

    async def scenario(site: Site) -> None:
        for cuts in (None, 0, 3):
            client = await site.connect()
            assert (await client.ask(data, cuts=cuts)).status == 200

    play(scenario, limits=limits)


def test_a_chunked_body_is_refused_as_soon_as_it_passes_the_limit(play: Play) -> None:
    async def scenario(site: Site) -> None:
        client = await site.connect()
        part = head(POST, b"Host: a", TE) + b"ffffff\r\n" + b"x" * 1001
        assert (await client.ask(part)).status == 413
        other = await site.connect()
        assert (await other.ask(chunked(b"x" * 1000))).status == 200

    play(scenario, limits=Limits(max_body=1000))


def test_a_client_that_is_still_sending_can_read_its_refusal(play: Play) -> None:
    """Closing at once would reset the connection under the answer."""

    async def scenario(site: Site) -> None:
        client = await site.connect()
        size = 20_000_000
        await client.send(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n" % size)
        for _ in range(100):
            await client.send(b"x" * (size // 100))
        assert (await client.read()).status == 413
        assert await client.ends()

    play(scenario)


def test_lingering_ends_after_a_time(play: Play) -> None:
    async def scenario(site: Site) -> None:
        client = await site.connect()
        assert (await client.ask(REFUSED["tls"][1])).status == 400
        await turn_until(lambda: not site.server.connections)

    play(scenario, limits=Limits(linger_time=0.05))


def test_lingering_ends_after_a_size(play: Play) -> None:
    async def scenario(site: Site) -> None:
        client = await site.connect()
        assert (await client.ask(REFUSED["tls"][1])).status == 400
        with pytest.raises(ConnectionError):
            while True:
                await client.send(b"x" * 100_000)

    play(scenario, limits=Limits(linger_size=1_000_000))


# ---- Expect


def test_100_is_sent_when_the_head_is_acceptable(play: Play) -> None:
    async def scenario(site: Site) -> None:
        client = await site.connect()
        data = post(b"body", b"Expect: 100-Continue")
        await client.send(data[:-4])
        assert (await client.read()).status == 100
        assert (await client.ask(b"body")).body == b"body"
        assert (await client.ask(data)).status == 200  # the body came with the head

    play(scenario)


def test_100_waits_for_the_answers_before_it(play: Play) -> None:
    shelf = Shelf()

    async def scenario(site: Site) -> None:
        client = await site.connect()
        await client.send(GET + post(b"body", b"Expect: 100-continue")[:-4])
        await shelf.wait(1)
        shelf.requests[0].respond(200)
        assert [(await client.read()).status for _ in range(2)] == [200, 100]
        await client.send(b"body")
        await shelf.wait(2)
        shelf.requests[1].respond(201)
        assert (await client.read()).status == 201

    play(scenario, shelf)


@pytest.mark.parametrize("length", [b"99999999999", b"5"])
def test_a_body_that_is_not_wanted_is_not_asked_for(play: Play, length: bytes) -> None:
    def check(request: Request) -> Answer | None:
        return unreadable(404, "no such route") if request.target == b"/none" else None

    data = head(b"POST /none HTTP/1.1", b"Host: a", b"Expect: 100-continue", b"Content-Length: ")

    async def scenario(site: Site) -> None:
        client = await site.connect()
        answer = await client.ask(data[:-4] + length + b"\r\n\r\n")
        assert answer.status == (404 if length == b"5" else 413)
        assert await client.ends()

    play(scenario, check=check)


def test_http_1_0_gets_no_100(play: Play) -> None:
    async def scenario(site: Site) -> None:
        client = await site.connect()
        await client.send(b"POST / HTTP/1.0\r\nExpect: 100-continue\r\nContent-Length: 2\r\n\r\n")
        connection = await site.connection()
        await turn_until(lambda: connection._body)
        assert (await client.ask(b"ab")).status == 200

    play(scenario)


# ---- answers at any later time


def test_answers_leave_in_the_order_of_the_requests(play: Play) -> None:
    shelf = Shelf()

    async def scenario(site: Site) -> None:
        client = await site.connect()
        await client.send(GET * 10)
        await shelf.wait(10)
        for number, request in reversed(list(enumerate(shelf.requests))):
            request.respond(200, b"", b"%d" % number)
        bodies = [(await client.read()).body for _ in range(10)]
        assert bodies == [b"%d" % number for number in range(10)]

    play(scenario, shelf)


def test_only_so_many_requests_of_one_connection_are_in_flight(play: Play) -> None:
    shelf = Shelf()

    async def scenario(site: Site) -> None:
        client = await site.connect()
        await client.send(post(b"x") * 20)
        for turn in range(5):
            await shelf.wait(4 * turn + 4)
            await asyncio.sleep(0)  # a turn in which a fifth would come
            assert len(shelf.requests) == 4 * turn + 4
            for request in shelf.requests[-4:]:
                request.respond(200)
            for _ in range(4):
                assert (await client.read()).status == 200

    play(scenario, shelf, limits=Limits(max_pipelined=4))


def test_answers_of_one_turn_are_written_in_one_piece() -> None:
    async def scenario() -> None:
        server, transport = HttpServer(echo, refuse=unreadable), Transcript()
        connection = server()
        connection.connection_made(transport)
        connection.data_received(GET * 5)
        await asyncio.sleep(0)  # the turn at whose end they are written
        assert [piece.count(b"HTTP/1.1 200 OK\r\n") for piece in transport.pieces] == [5]
        connection.connection_lost(None)

    asyncio.run(scenario())


def test_a_second_answer_is_an_error(play: Play) -> None:
    shelf = Shelf()

    async def scenario(site: Site) -> None:
        client = await site.connect()
        await client.send(GET)
        await shelf.wait(1)
        shelf.requests[0].respond(200)
        with pytest.raises(RuntimeError, match="answered twice"):
            shelf.requests[0].respond(200)
        assert (await client.read()).status == 200

    play(scenario, shelf)


def test_a_handler_that_raises_makes_a_500(play: Play, caplog: pytest.LogCaptureFixture) -> None:
    def handler(request: Request) -> None:
        raise KeyError("secret")

    async def scenario(site: Site) -> None:
        client = await site.connect()
        for _ in range(2):
            answer = await client.ask(GET)
            assert answer.status == 500
            assert b"secret" not in answer.body

    play(scenario, handler)
    assert "KeyError" in caplog.text


def test_a_handler_may_close_the_connection(play: Play) -> None:
    def handler(request: Request) -> None:
        request.keep_alive = False
        request.respond(200)

    async def scenario(site: Site) -> None:
        client = await site.connect()
        assert (await client.ask(GET + GET)).headers["connection"] == "close"
        assert await client.ends()

    play(scenario, handler)


def test_header_values_cannot_start_a_new_line() -> None:
    assert encode_headers([(b"A", b"b"), (b"C", b"d")]) == b"A: b\r\nC: d\r\n"
    for value in (b"a\r\nb", b"a\nb", b"a\rb", b"a\0b"):
        with pytest.raises(ValueError, match="line break"):
            encode_headers([(b"A", value)])


# ---- clients that leave


def test_a_client_that_leaves_is_noticed_once(play: Play) -> None:
    shelf = Shelf()

    async def scenario(site: Site) -> None:
        client = await site.connect()
        await client.send(GET + post(b"x") + post(b"half")[:-1])
        await shelf.wait(2)
        await client.close()
        await shelf.left.wait()
        await turn_until(lambda: not site.server.connections)
        assert shelf.gone == [b"/a", b"/inference"]
        assert all(request.is_gone for request in shelf.requests)
        for request in shelf.requests:
            request.respond(200)  # nobody minds
            request.respond(200)

    play(scenario, shelf)


def test_who_keeps_a_request_keeps_none_of_its_bytes(play: Play) -> None:
    """Places of jobs that are done are cleared late; the limit of what is held must hold."""
    shelf = Shelf()

    async def scenario(site: Site) -> None:
        patient, hasty = await site.connect(), await site.connect()
        await patient.send(post(b"x" * 1000))
        await shelf.wait(1)
        assert site.server.held == len(shelf.requests[0].body) == 1000
        shelf.requests[0].respond(200, b"", b"y" * 1000)
        assert (await patient.read()).status == 200
        assert (shelf.requests[0].body, shelf.requests[0].answer) == (b"", SENT)
        with pytest.raises(RuntimeError, match="answered twice"):
            shelf.requests[0].respond(200)
        await hasty.send(post(b"x" * 1000) * 2)
        await shelf.wait(3)
        shelf.requests[2].respond(200, b"", b"y" * 1000)  # whose turn never comes
        await hasty.close()
        await turn_until(lambda: len(site.server.connections) == 1)
        assert [(one.body, one.answer) for one in shelf.requests[1:]] == [(b"", None)] * 2

    play(scenario, shelf)


def test_an_answered_request_is_not_reported_gone(play: Play) -> None:
    shelf = Shelf()

    async def scenario(site: Site) -> None:
        client = await site.connect()
        await client.send(GET)
        await shelf.wait(1)
        shelf.requests[0].respond(200)
        await client.close()
        await turn_until(lambda: not site.server.connections)
        assert shelf.gone == []

    play(scenario, shelf)


def test_a_failing_callback_does_not_keep_the_others_from_theirs(
    play: Play, caplog: pytest.LogCaptureFixture
) -> None:
    shelf = Shelf()

    def fail() -> None:
        raise KeyError("callback")

    async def scenario(site: Site) -> None:
        client = await site.connect()
        await client.send(GET + GET)
        await shelf.wait(2)
        shelf.requests[0].on_disconnect = fail
        await client.close()
        await shelf.left.wait()
        assert shelf.gone == [b"/a"]

    play(scenario, shelf)
    assert "callback" in caplog.text


def test_an_answer_that_is_ready_reaches_a_client_that_only_reads(play: Play) -> None:
    """``printf … | socat`` ends its half after the request."""

    async def scenario(site: Site) -> None:
        client = await site.connect()
        await client.send(post(b"x") * 3)
        client.writer.write_eof()
        assert [(await client.read()).status for _ in range(3)] == [200] * 3
        assert await client.ends()

    play(scenario)


def test_a_request_cut_short_is_never_handled(play: Play) -> None:
    for data in (post(b"x" * 10), chunked(b"x" * 10)):
        shelf = Shelf()

        async def scenario(site: Site, data: bytes = data) -> None:
            for size in range(len(data)):
                client = await site.connect()
                await client.send(data[:size])
                client.writer.write_eof()
                assert await client.ends()

        play(scenario, shelf)
        assert shelf.requests == []


# ---- time


@pytest.mark.parametrize(
    ("data", "status"),
    [
        pytest.param(b"POST / HTTP/1.1\r\nHost", 408, id="head"),
        pytest.param(post(b"half")[:-1], 408, id="body"),
        pytest.param(chunked(b"half")[:-1], 408, id="chunks"),
        pytest.param(GET + b"POST", 408, id="next-head"),
        pytest.param(GET, None, id="idle"),
        pytest.param(b"", None, id="silent"),
        pytest.param(b"\r\n\r\n", None, id="line-breaks"),
        pytest.param(b"\r\n\r", None, id="half-a-line-break"),
    ],
)
def test_who_does_not_send_is_not_waited_for(play: Play, data: bytes, status: int | None) -> None:
    limits = Limits(head_time=0.1, body_time=0.1, idle_time=0.1)

    async def scenario(site: Site) -> None:
        client = await site.connect()
        await client.send(data)
        if data.startswith(b"GET"):
            assert (await client.read()).status == 200
        if status:
            assert (await client.read()).status == status
        assert await client.ends()

    play(scenario, limits=limits)


def test_dripping_a_head_gains_no_time(play: Play) -> None:
    async def scenario(site: Site) -> None:
        client = await site.connect()
        await client.send(b"GET / HTTP/1.1\r\nX: ")
        answer = asyncio.ensure_future(client.read())
        while not answer.done():
            await client.send(b"x")
            await asyncio.sleep(0.01)  # a client that is slow
        assert (await answer).status == 408

    play(scenario, limits=Limits(head_time=0.1))


def test_a_body_that_comes_steadily_gets_more_time(play: Play) -> None:
    """Every 1,000 bytes are worth a second here, so the body may take longer than body_time."""

    async def scenario(site: Site) -> None:
        client = await site.connect()
        await client.send(post(b"x" * 2000)[:-1000])
        connection = await site.connection()
        await turn_until(lambda: connection.deadline > site.server.loop.time() + 0.9)
        assert (await client.ask(b"x" * 1000)).status == 200

    play(scenario, limits=Limits(body_time=0.05, min_rate=1000))


def test_nobody_is_hurried_while_the_answer_is_being_made(play: Play) -> None:
    shelf = Shelf()

    async def scenario(site: Site) -> None:
        slow, other = await site.connect(), await site.connect()
        await slow.send(GET)
        await shelf.wait(1)
        await other.send(b"GET")
        assert (await other.read()).status == 408  # so that much time has passed
        shelf.requests[0].respond(200)
        assert (await slow.read()).status == 200

    play(scenario, shelf, limits=Limits(head_time=0.1, body_time=0.1, idle_time=0.1))


def test_nothing_ticks_without_connections(play: Play) -> None:
    async def scenario(site: Site) -> None:
        assert not is_ticking(site.server)
        client = await site.connect()
        await client.ask(GET)
        assert is_ticking(site.server)
        await client.close()
        await turn_until(lambda: not site.server.connections)

    play(scenario)  # which looks at the timer once more at the end


# ---- amounts


def test_too_many_connections_are_turned_away(play: Play) -> None:
    async def scenario(site: Site) -> None:
        clients = [await site.connect() for _ in range(2)]
        for client in clients:
            assert (await client.ask(GET)).status == 200
        third = await site.connect()
        assert (await third.read()).status == 503
        assert await third.ends()
        await clients[0].close()
        await turn_until(lambda: len(site.server.connections) == 1)
        assert (await (await site.connect()).ask(GET)).status == 200

    play(scenario, limits=Limits(max_connections=2))


def test_bodies_beyond_what_may_be_held_get_429(play: Play) -> None:
    shelf = Shelf()

    async def scenario(site: Site) -> None:
        holders = [await site.connect() for _ in range(2)]
        await holders[0].send(post(b"x" * 600))  # whole
        await holders[1].send(post(b"x" * 600)[:-300])  # half
        await turn_until(lambda: site.server.held >= 900)
        client = await site.connect()
        answer = await client.ask(post(b"x" * 200))
        assert (answer.status, answer.headers["retry-after"]) == (429, "1")
        await client.send(post(b"x" * 600)[:-300])
        assert (await client.read()).status == 429
        assert await client.ends()
        shelf.requests[0].respond(200)
        assert (await holders[0].read()).status == 200
        await holders[1].send(b"x" * 300)
        await shelf.wait(2)
        assert site.server.held == 600

    play(scenario, shelf, limits=Limits(max_held=1000))


def test_what_waits_behind_requests_in_flight_is_held_as_well(play: Play) -> None:
    shelf = Shelf()

    async def scenario(site: Site) -> None:
        client = await site.connect()
        await client.send(GET + post(b"x" * 2000))
        await shelf.wait(1)
        shelf.requests[0].respond(200)
        assert [(await client.read()).status for _ in range(2)] == [200, 429]
        assert await client.ends()

    play(scenario, shelf, limits=Limits(max_pipelined=1, max_held=1000))


def test_a_client_that_does_not_read_is_not_read_from(play: Play) -> None:
    """Otherwise its answers would pile up here."""
    handled = 0

    def handler(request: Request) -> None:
        nonlocal handled
        handled += 1
        request.respond(200, b"", b"x" * 1_000_000)

    async def scenario(site: Site) -> None:
        client = await site.connect()
        client.writer.transport.pause_reading()  # type: ignore[attr-defined]  # it has one
        await client.send(GET * 100)
        connection = await site.connection()
        await turn_until(lambda: connection._is_write_paused)
        for _ in range(20):
            await asyncio.sleep(0)  # turns in which more would be read
        assert handled <= 64
        client.writer.transport.resume_reading()  # type: ignore[attr-defined]
        for _ in range(100):
            assert len((await client.read()).body) == 1_000_000

    play(scenario, handler)


def test_a_client_that_never_reads_is_cut_off(play: Play) -> None:
    def handler(request: Request) -> None:
        request.respond(200, b"", b"x" * 50_000_000)

    async def scenario(site: Site) -> None:
        client = await site.connect()
        client.writer.transport.pause_reading()  # type: ignore[attr-defined]
        await client.send(GET)
        await site.connection()
        await turn_until(lambda: not site.server.connections)
        client.writer.transport.resume_reading()  # type: ignore[attr-defined]
        with pytest.raises(ConnectionResetError):  # an end would look like that of a connection
            await client.read()

    play(scenario, handler, limits=Limits(write_time=0.1, min_rate=1e12))


# ---- the end


def test_draining_answers_what_was_accepted(play: Play) -> None:
    shelf = Shelf()

    async def scenario(site: Site) -> None:
        idle, busy, half = [await site.connect() for _ in range(3)]
        await idle.send(GET)
        await shelf.wait(1)
        shelf.requests[0].respond(200)
        assert (await idle.read()).status == 200
        await busy.send(GET + GET)
        await shelf.wait(3)
        await half.send(GET[:-1])
        connections = site.server.connections
        await turn_until(lambda: any(connection._buffer for connection in connections))
        draining = asyncio.ensure_future(site.server.drain())
        assert await idle.ends()
        await half.send(GET[-1:])
        await shelf.wait(4)
        for request in shelf.requests[1:]:
            request.respond(200)
        assert "connection" not in (await busy.read()).headers
        assert (await busy.read()).headers["connection"] == "close"
        assert (await half.read()).headers["connection"] == "close"
        for client in (idle, busy, half):
            await client.close()
        await draining

    play(scenario, shelf)


def test_a_request_on_its_way_when_draining_begins_is_answered(play: Play) -> None:
    """Its client could not know; the answer says that it is the last one."""

    async def scenario(site: Site) -> None:
        clients = [await site.connect() for _ in range(2)]
        for client in clients:
            assert "connection" not in (await client.ask(GET)).headers
        draining = asyncio.ensure_future(site.server.drain())
        await turn_until(lambda: site.server.is_draining)
        assert (await clients[0].ask(GET)).headers["connection"] == "close"
        assert await clients[0].ends()
        assert await clients[1].ends()  # it has asked for nothing
        await draining

    play(scenario, lambda request: request.respond(200))


def test_the_last_answer_before_the_end_is_the_last_request_handled(play: Play) -> None:
    """A client that is told to close must be able to send the rest again elsewhere."""
    handled: list[Request] = []

    def handler(request: Request) -> None:
        handled.append(request)
        request.respond(200)

    async def scenario(site: Site) -> None:
        client = await site.connect()
        await client.ask(GET)
        site.server.is_draining = True
        assert "connection" not in (await client.ask(GET + GET)).headers
        assert (await client.read()).headers["connection"] == "close"
        assert await client.ends()
        assert len(handled) == 3

    play(scenario, handler)


def test_run_uses_the_fast_loop_where_there_is_one() -> None:
    async def name() -> str:
        return type(asyncio.get_running_loop()).__module__

    assert run(name()).startswith("uvloop" if uvloop else "asyncio")


# ---- strangers


class Transcript(asyncio.Transport):
    """A transport that writes down what happens to it; nobody reads what is written."""

    def __init__(self, **extra: Any) -> None:
        super().__init__(extra)
        self.pieces: list[bytes] = []
        self.is_ended = self.is_closed = self.is_aborted = self.is_paused = False

    def write(self, data: bytes | bytearray | memoryview) -> None:
        assert not self.is_ended
        self.pieces.append(bytes(data))

    def write_eof(self) -> None:
        self.is_ended = True

    def pause_reading(self) -> None:
        self.is_paused = True

    def resume_reading(self) -> None:
        self.is_paused = False

    def can_write_eof(self) -> bool:
        return True

    def is_closing(self) -> bool:
        return self.is_closed

    def close(self) -> None:
        self.is_ended = self.is_closed = True

    def abort(self) -> None:
        self.is_ended = self.is_closed = self.is_aborted = True

    def get_write_buffer_size(self) -> int:
        return sum(map(len, self.pieces))


class Line:
    """One connection and its transport, on a loop whose turns are told.

    Args:
        handler: As for a server.
        options: The same; those of a transport are in ``extra``.
    """

    def __init__(
        self, handler: Callable[[Request], None] = echo, extra: Any = None, **options: Any
    ) -> None:
        self.server = HttpServer(handler, refuse=unreadable, **options)
        self.transport = Transcript(**extra or {})
        self.connection = self.server()
        self.connection.connection_made(self.transport)

    @property
    def seconds(self) -> float:
        """How long the client is waited for."""
        return self.connection.deadline - self.server.loop.time()

    def __enter__(self) -> "Line":
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.connection.connection_lost(None)
        assert self.server.unsent == self.server.held == 0


def in_a_loop(test: Callable[[], Awaitable[None]]) -> Callable[[], None]:
    @functools.wraps(test)
    def run_it() -> None:
        asyncio.run(asyncio.wait_for(test(), PATIENCE))

    return run_it


@in_a_loop
async def test_a_connection_whose_last_bytes_nobody_takes_is_cut_off() -> None:
    """Closing once more would change nothing, and the deadline would be set for ever."""
    with Line() as line:
        line.connection.close_if_idle()
        assert line.transport.is_closed and not line.transport.is_aborted
        assert line.seconds <= Limits().linger_time
        line.connection.expire(line.connection.deadline)
        assert line.transport.is_aborted


@in_a_loop
async def test_an_abort_resets_the_connection() -> None:
    """Otherwise the system would go on offering what is unsent to a client that does not read."""
    told: list[tuple[Any, ...]] = []

    class Socket:
        def setsockopt(self, *option: Any) -> None:
            told.append(option)

    with Line(extra={"socket": Socket()}) as line:
        line.connection.abort()
        assert told == [(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))]
        assert line.transport.is_aborted


@in_a_loop
async def test_an_abort_that_comes_after_the_client_has_left_ends_all_the_same() -> None:
    class Socket:
        def setsockopt(self, *option: Any) -> None:
            raise OSError("Invalid argument")  # what macOS says of one that was reset

    with Line(extra={"socket": Socket()}) as line:
        line.connection.abort()
        assert line.transport.is_aborted


def test_a_deadline_that_cannot_be_kept_keeps_no_other_from_being_kept(
    caplog: pytest.LogCaptureFixture,
) -> None:
    class Broken(Transcript):
        def close(self) -> None:
            raise ValueError("no way")

    @in_a_loop
    async def test() -> None:
        with Line(limits=Limits(head_time=0.01)) as line:
            broken, late = Broken(), Transcript()
            line.server().connection_made(broken)
            await turn_until(lambda: broken.is_aborted and line.transport.is_closed)
            line.server().connection_made(late)
            await turn_until(lambda: late.is_closed)

    test()
    assert "a deadline could not be kept" in caplog.messages and "no way" in caplog.text


@pytest.mark.parametrize(("came", "seconds"), [(0, 0.0), (1000, 1.0), (2500, 2.5)])
def test_what_has_come_of_a_body_is_worth_time(came: int, seconds: float) -> None:
    @in_a_loop
    async def test() -> None:
        with Line(limits=Limits(min_rate=1000)) as line:
            line.connection.data_received(post(b"x" * 5000)[:-5000])
            before = line.connection.deadline
            line.connection.data_received(b"x" * came)
            assert line.connection.deadline - before == pytest.approx(seconds)

    test()


@in_a_loop
async def test_a_client_has_its_time_to_send_only_while_it_reads() -> None:
    """One that reads slowly has another deadline, and would be cut off in the midst of answers."""
    with Line(Shelf()) as line:
        line.connection.pause_writing()
        assert line.transport.is_paused
        line.connection.eof_received()
        assert (line.connection.deadline, line.transport.is_closed) == (inf, True)
        line.connection.resume_writing()
        assert line.seconds <= Limits().linger_time


@pytest.mark.parametrize("more", [b"", b"?"])
def test_a_client_that_waits_for_its_answer_has_no_deadline(more: bytes) -> None:
    @in_a_loop
    async def test() -> None:
        with Line(Shelf()) as line:
            line.connection.data_received(GET + more)
            assert line.connection.deadline == inf
            line.connection.pause_writing()
            line.connection.resume_writing()
            assert line.connection.deadline == inf

    test()


@in_a_loop
async def test_the_end_of_a_client_that_was_not_read_from_is_noticed() -> None:
    with Line() as line:
        line.connection.data_received(GET)
        line.connection.pause_writing()
        assert line.transport.is_paused
        line.server.is_draining = True
        line.connection.resume_writing()
        await asyncio.sleep(0)  # the turn at whose end the last answer is written
        assert line.transport.is_ended and not line.transport.is_paused


@in_a_loop
async def test_of_an_answer_to_head_nothing_is_unsent() -> None:
    shelf = Shelf()
    with Line(shelf) as line:
        line.connection.data_received(b"HEAD / HTTP/1.1\r\n" + H + b"\r\n")
        line.connection.pause_writing()
        shelf.requests[0].respond(200, b"Content-Length: 600\r\n", None)
        assert line.server.unsent == 0


SEEDS = [
    GET,
    post(b'{"text": "my cat"}', b"Content-Type: application/json", b"Accept: */*"),
    chunked(b"abc", b"\r\n\r\n", trailers=b"A: b\r\n"),
    post(b"x", b"Expect: 100-continue"),
    GET + post(b"x") + chunked(b"y") + BYE,
    *(data for _, data in REFUSED.values() if len(data) < 200),
]
SPICES = [
    *[b"\r", b"\n", b"\r\n", b"\r\n\r\n", b"\0", b" ", b"\t", b":", b",", b";", b"\xff", b"0"],
    *[b"Content-Length: 3\r\n", b"Transfer-Encoding: chunked\r\n", b"Host: b\r\n", b"HTTP/1.1"],
    *[b"Connection: close\r\n", b"Upgrade: h2c\r\nConnection: upgrade\r\n", b"Expect: x\r\n", GET],
]


def mutate(rng: random.Random) -> bytes:
    data = bytearray(rng.choice(SEEDS))
    for _ in range(rng.randint(1, 4)):
        at = rng.randrange(len(data) + 1)
        end = min(len(data), at + rng.randint(0, 12))
        match rng.randrange(5):
            case 0:
                data[at:at] = rng.choice(SPICES)
            case 1:
                data[at:end] = rng.choice(SPICES)
            case 2:
                del data[at:end]
            case 3:
                data[at:at] = data[at:end]
            case _:
                data[at : at + 1] = bytes([rng.randrange(256)])
    return bytes(data)


def test_an_honest_client_is_answered_beside_mutants(play: Play) -> None:
    rng = random.Random(MUTATIONS)

    async def scenario(site: Site) -> None:
        honest = await site.connect()
        for number in range(MUTATIONS):
            mutant = await site.connect()
            await mutant.send(mutate(rng))
            mutant.writer.write_eof()
            while await mutant.reader.read(65536):
                pass
            await mutant.close()
            site.clients.pop()
            if number % 50 == 0:
                body = b"%d" % number
                assert (await honest.ask(post(body))).body == body

    play(scenario)


async def transcript_of(
    pieces: Iterable[bytes], heads: Heads | None = None
) -> tuple[list[bytes], bool, list[bytes]]:
    """Return the status lines, whether the connection ended, and the requests handled.

    Args:
        pieces: What the client sends, as it comes.
        heads: Those that other clients have sent before.
    """
    seen: list[bytes] = []

    def handler(request: Request) -> None:
        seen.append(b"%b %b %b" % (request.method, request.target, request.body))
        request.respond(200)

    server, transport = HttpServer(handler, refuse=unreadable), Transcript()
    server.heads = heads or server.heads
    connection = server()
    connection.connection_made(transport)
    for piece in pieces:
        connection.data_received(piece)
        await asyncio.sleep(0)  # a turn of the loop in which only this has come
    await asyncio.sleep(0)  # the turn at whose end answers are written
    connection.connection_lost(None)
    assert server.held == 0
    lines = [line for line in b"".join(transport.pieces).split(b"\r\n") if line[:5] == b"HTTP/"]
    return [line for line in lines if b" 100 " not in line], transport.is_ended, seen


def test_the_verdict_does_not_depend_on_the_cuts() -> None:
    rng = random.Random(MUTATIONS + 1)

    async def scenario() -> None:
        for number in range(MUTATIONS // 2):
            data = mutate(rng)
            whole = await transcript_of([data])
            assert await transcript_of(pieces_of(data, 0)) == whole, data
            assert await transcript_of(pieces_of(data, number + 1)) == whole, data

    asyncio.run(scenario())


@pytest.mark.parametrize("before", [b"", b"\r", b"\r\n", b"\r\n\r", b"\n", GET + b"\r", b" "])
def test_the_verdict_does_not_depend_on_the_cut_before_a_known_head(before: bytes) -> None:
    """Half a line break that waits is a part of what comes next."""
    data = before + post(b"body")

    async def scenario() -> None:
        heads = Heads()
        assert (await transcript_of([post(b"body"), GET], heads))[0] == [b"HTTP/1.1 200 OK"] * 2
        whole = await transcript_of([data], heads)
        for size in range(1, len(data)):
            assert await transcript_of([data[:size], data[size:]], heads) == whole, size

    asyncio.run(scenario())
