"""What clients send that is ambiguous, cut short, too large, wrong or only unusual."""

import contextlib
import re
import socket
import struct
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest
from compare_http import GROUPS, said
from deployments import BATCHING, GUNICORN, SERVE, Deployment, deployed, other_limits
from http_reasons import unknown_names
from processes import TIMEOUT, short_directory
from requests_on_the_wire import (
    ACCEPTED,
    BODY,
    CLOSE,
    CLOSING,
    GET,
    HOST,
    ITEM,
    POST,
    REFUSED,
    SIZED,
    SIZES,
    TE,
    Table,
    behind,
    head,
    post,
)
from wire import APP, Answer, answers, connect, is_head, ran, receive, talk

LIMIT = 10 * 1024 * 1024
DIFFERENCES = Path(__file__).parent / "http_differences.md"


def merged(sections: dict[str, Table]) -> Table:
    return {name: entry for table in sections.values() for name, entry in table.items()}


@pytest.fixture(scope="module", params=BATCHING)
def site(request: pytest.FixtureRequest) -> Iterator[Deployment]:
    """A service that many tests ask, one after the other."""
    with short_directory() as directory:
        slowly = other_limits(directory, head_time=600.0, linger_time=600.0)
        with deployed(request.param, APP, directory, env=slowly) as deployment:
            yield deployment


def letters() -> str:
    """Return an item like no other."""
    return f"x{uuid.uuid4().hex}"


def ask(site: Deployment, data: bytes) -> list[Answer]:
    """Return all answers on a new connection, which the server has to end."""
    return answers(talk(site.server.port, data), bodiless=is_head(data))


def assert_serves(site: Deployment) -> None:
    """Check that a good request is answered; whatever was queued before has run then."""
    item = letters()
    (answer,) = ask(site, post(item, CLOSE))
    assert (answer.status, answer.body) == (200, f'"{item.upper()}"'.encode())
    assert item in ran(site.directory)
    assert site.server.process.is_alive


# ---- what must not run


@pytest.mark.parametrize("name", merged(REFUSED))
def test_what_is_ambiguous_or_too_large_is_refused_and_nothing_behind_it_runs(
    site: Deployment, name: str
) -> None:
    status, data = merged(REFUSED)[name]
    marker = letters()
    for request in behind(marker).values():
        (answer,) = ask(site, data + request)
        assert (answer.status, answer.is_last) == (status, True)
        assert answer.fields["content-type"] == "application/problem+json"
    assert_serves(site)
    assert marker not in ran(site.directory)


def test_what_stands_behind_a_good_request_would_be_seen_to_run(site: Deployment) -> None:
    """Otherwise the tests before this one could not fail."""
    for marker in (letters(), letters()):
        for request in behind(marker).values():
            ask(site, post(ITEM) + request)
        assert ran(site.directory).count(marker) == 1 + (site.how == SERVE)


@pytest.mark.parametrize("name", merged(CLOSING))
def test_nothing_runs_behind_a_request_that_was_to_be_the_last(site: Deployment, name: str) -> None:
    status, data = merged(CLOSING)[name]
    marker = letters()
    for request in behind(marker).values():
        (answer,) = ask(site, data + request)
        assert (answer.status, answer.is_last) == (status, True)
    assert_serves(site)
    assert marker not in ran(site.directory)


def test_a_request_in_a_body_does_not_run(site: Deployment) -> None:
    marker = letters()
    for request in behind(marker).values():
        answer, last = ask(site, post_bytes(request) + post(ITEM, CLOSE))
        assert (answer.status, last.status) == (400, 200)
        chunk = b"%x\r\n%b\r\n0\r\n\r\n" % (len(request), request)
        answer, last = ask(site, head(POST, HOST, TE) + chunk + post(ITEM, CLOSE))
        assert (answer.status, last.status) == (400, 200)
    assert_serves(site)
    assert marker not in ran(site.directory)


def post_bytes(body: bytes, *fields: bytes) -> bytes:
    return head(POST, HOST, *fields, b"Content-Length: %d" % len(body)) + body


# ---- cut short


def in_chunks(item: str) -> bytes:
    """Return a request with all that may be around chunks."""
    body = f'"{item}"'.encode()
    first, rest = body[:3], body[3:]
    chunks = b"3;a=b\r\n%b\r\n%x\r\n%b\r\n0;c\r\nX: y\r\n\r\n" % (first, len(rest), rest)
    return head(POST, HOST, TE) + chunks


def end_half(sock: socket.socket) -> bytes:
    """Send no more, and read on."""
    sock.shutdown(socket.SHUT_WR)
    return receive(sock)


def reset(sock: socket.socket) -> bytes:
    """Leave without a goodbye."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    return b""


def leave(sock: socket.socket) -> bytes:
    """Close as everybody does."""
    return b""


WAYS_TO_SEND = {"sized": post, "chunked": in_chunks}
WAYS_TO_LEAVE = {"half": end_half, "reset": reset, "close": leave}


@pytest.mark.parametrize("way_to_leave", WAYS_TO_LEAVE)
@pytest.mark.parametrize("way_to_send", WAYS_TO_SEND)
def test_a_request_cut_short_at_any_byte_never_reaches_the_model(
    site: Deployment, way_to_send: str, way_to_leave: str
) -> None:
    item = letters()
    data = WAYS_TO_SEND[way_to_send](item)
    for size in range(len(data)):
        with connect(site.server.port) as sock:
            sock.sendall(data[:size])
            assert WAYS_TO_LEAVE[way_to_leave](sock) == b""
    assert_serves(site)
    assert item not in ran(site.directory)
    (answer, _) = ask(site, data + head(GET, HOST, CLOSE))
    assert (answer.status, ran(site.directory).count(item)) == (200, 1)


@pytest.mark.parametrize("way_to_send", WAYS_TO_SEND)
def test_a_request_cut_anywhere_waits_for_its_rest(site: Deployment, way_to_send: str) -> None:
    item = letters()
    data = WAYS_TO_SEND[way_to_send](item) + head(GET, HOST, CLOSE)
    size_of_first = len(WAYS_TO_SEND[way_to_send](item))
    with contextlib.ExitStack() as stack:
        socks = [stack.enter_context(connect(site.server.port)) for _ in range(size_of_first)]
        for size, sock in enumerate(socks):
            sock.sendall(data[:size])
        assert_serves(site)
        assert item not in ran(site.directory)
        for size, sock in enumerate(socks):
            sock.sendall(data[size:])
        for sock in socks:
            assert [answer.status for answer in answers(receive(sock))] == [200, 200]
    assert ran(site.directory).count(item) == size_of_first


# ---- as large as may be


@pytest.mark.parametrize(("size", "status"), [(LIMIT, 200), (LIMIT + 1, 413)])
def test_a_body_may_be_as_large_as_the_limit(site: Deployment, size: int, status: int) -> None:
    body = BODY.ljust(size)
    chunks = [body[at : at + 65536] for at in range(0, size, 65536)]
    coded = b"".join(b"%x\r\n%b\r\n" % (len(chunk), chunk) for chunk in chunks) + b"0\r\n\r\n"
    for data in (post_bytes(body, CLOSE), head(POST, HOST, CLOSE, TE) + coded):
        (answer,) = ask(site, data)
        assert (answer.status, answer.is_last) == (status, True)
    assert_serves(site)


# ---- methods, paths, types

METHODS = "GET HEAD POST PUT PATCH DELETE OPTIONS TRACE PROPFIND".split()
PROBES = ("/health", "/livez", "/readyz", "/metrics", "/")


def expected(method: str, path: str) -> tuple[int, set[str]]:
    """Return the status, and the methods that must be named in ``Allow``."""
    if path == "/nowhere":
        return 404, set()
    allowed = {"POST"} if path == "/inference" else {"GET", "HEAD"}
    if method in allowed:
        return 200, set()
    return (200, allowed | {"OPTIONS"}) if method == "OPTIONS" else (405, allowed)


def ask_when_told(site: Deployment, start: bytes, body: bytes) -> list[Answer]:
    """Send a head, and the body only when it is asked for."""
    with connect(site.server.port) as sock:
        sock.sendall(head(start, HOST, CLOSE, b"Expect: 100-continue", SIZED))
        stream = sock.recv(65536)
        if stream.startswith(b"HTTP/1.1 100 "):
            assert stream.endswith(b"\r\n\r\n")
            sock.sendall(body)
            stream = b""
        return answers(stream + receive(sock), bodiless=is_head(start))


@pytest.mark.parametrize("path", ["/inference", *PROBES, "/nowhere"])
def test_each_route_knows_its_methods(site: Deployment, path: str) -> None:
    """With a body or without, and whether it comes at once or is waited for."""
    for method in METHODS:
        line = f"{method} {path} HTTP/1.1".encode()
        status, allowed = expected(method, path)
        whole = ask(site, head(line, HOST, CLOSE, SIZED) + BODY)
        waited = ask_when_told(site, line, BODY)
        bare = ask(site, head(line, HOST, CLOSE))
        without = 400 if (method, path) == ("POST", "/inference") else status
        seen = [[answer.status for answer in found] for found in (whole, waited, bare)]
        assert seen == [[status], [status], [without]], method
        for answer in (*whole, *waited, *bare):
            assert set(answer.fields.get("allow", "").split(", ")) >= allowed
            assert answer.is_last
    assert_serves(site)


PACKED = b"\xa6abcdef"
J, M = b"Content-Type: application/json", b"Content-Type: application/msgpack"
TYPES = {
    "none": (200, BODY, []),
    "empty": (200, BODY, [b"Content-Type:"]),
    "any": (200, BODY, [b"Content-Type: */*"]),
    "form": (200, BODY, [b"Content-Type: application/x-www-form-urlencoded"]),
    "JSON": (200, BODY, [J]),
    "JSON in capitals": (200, BODY, [J.upper()]),
    "JSON with a parameter": (200, BODY, [J + b"; charset=utf-8"]),
    "msgpack": (200, PACKED, [M]),
    "msgpack without a type": (200, PACKED, []),
    "msgpack called JSON": (400, PACKED, [J]),
    "JSON called msgpack": (400, BODY, [M]),
    "text": (415, BODY, [b"Content-Type: text/plain"]),
    "XML": (415, BODY, [b"Content-Type: application/xml"]),
    "multipart": (415, BODY, [b"Content-Type: multipart/form-data; boundary=a"]),
    "half a type": (415, BODY, [b"Content-Type: application"]),
    "nonsense": (415, BODY, [b"Content-Type: /,\xff;;"]),
    "long": (415, BODY, [b"Content-Type: a/" + b"b" * 7000]),
    "gzip": (415, BODY, [b"Content-Encoding: gzip"]),
    "identity": (200, BODY, [b"Content-Encoding: identity"]),
    "Accept all": (200, BODY, [b"Accept: */*"]),
    "Accept nothing in particular": (200, BODY, [b"Accept:"]),
    "Accept the same": (200, BODY, [J, b"Accept: application/json"]),
    "Accept with weights": (200, BODY, [J, b"Accept: text/html, application/*;q=0.1"]),
    "Accept in two lines": (200, BODY, [J, b"Accept: text/html", b"Accept: application/json"]),
    "Accept another": (406, BODY, [J, b"Accept: application/msgpack"]),
    "Accept all but this": (406, BODY, [J, b"Accept: */*, application/json;q=0"]),
    "Accept HTML": (406, BODY, [b"Accept: text/html"]),
}


@pytest.mark.parametrize("name", TYPES)
def test_types_are_told_and_negotiated(site: Deployment, name: str) -> None:
    status, body, fields = TYPES[name]
    (answer,) = ask(site, post_bytes(body, CLOSE, *fields))
    assert answer.status == status
    if status == 200:
        assert answer.body == body.upper()
    else:
        assert b"about:blank" in answer.body


@pytest.mark.parametrize("accept", [b"text/html", b"image/png;q=0.1", b"", b";,\xff", b"*/*;q=0"])
def test_probes_answer_whatever_is_accepted(site: Deployment, accept: bytes) -> None:
    """A probe that gets 406 would have a healthy service restarted."""
    for path in PROBES:
        line = f"GET {path} HTTP/1.1".encode()
        (answer,) = ask(site, head(line, HOST, CLOSE, b"Accept: " + accept))
        assert answer.status == 200, path


# ---- unusual, but legal


@pytest.mark.parametrize("name", merged(ACCEPTED))
def test_what_is_legal_is_answered_and_so_is_the_next_request(site: Deployment, name: str) -> None:
    status, data = merged(ACCEPTED)[name]
    marker = letters()
    first, second = ask(site, data + behind(marker)["POST"])
    assert (first.status, first.is_last) == (status, False)
    if b"POST" in data:
        assert first.body == BODY.upper()
    assert (second.status, second.body) == (200, f'"{marker.upper()}"'.encode())
    assert ran(site.directory).count(marker) == 1


def test_what_is_legal_may_come_byte_by_byte(site: Deployment) -> None:
    for name, (status, data) in merged(ACCEPTED).items():
        with connect(site.server.port) as sock:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            for byte in data + behind(letters())["POST"]:
                sock.sendall(bytes([byte]))
            found = answers(receive(sock), bodiless=is_head(data))
        statuses = [answer.status for answer in found if answer.status != 100]
        assert statuses == [status, 200], name


@pytest.mark.parametrize("count", [20, 100])
def test_pipelined_requests_are_answered_in_order(site: Deployment, count: int) -> None:
    """More than may be in flight at once wait in the connection."""
    items = [letters() for _ in range(count)]
    stream = b"".join((in_chunks if n % 3 else post)(item) for n, item in enumerate(items))
    *found, last = ask(site, stream + head(GET, HOST, CLOSE))
    assert [answer.body for answer in found] == [f'"{item.upper()}"'.encode() for item in items]
    assert (last.status, last.is_last) == (200, True)
    assert set(items) <= set(ran(site.directory))


def test_the_body_of_an_expecting_client_is_asked_for(site: Deployment) -> None:
    (answer,) = ask_when_told(site, POST, BODY)
    assert (answer.status, answer.body) == (200, BODY.upper())


@pytest.mark.parametrize(
    ("status", "fields"),
    [
        pytest.param(413, [b"Content-Length: 10485761"], id="large"),
        pytest.param(415, [SIZED, b"Content-Type: text/plain"], id="type"),
        pytest.param(406, [SIZED, J, b"Accept: text/html"], id="accept"),
        pytest.param(400, [SIZED, b"X-Request-Timeout: -1"], id="timeout"),
        pytest.param(501, [b"Transfer-Encoding: gzip"], id="coding"),
    ],
)
def test_a_body_that_is_not_wanted_is_not_asked_for(
    site: Deployment, status: int, fields: list[bytes]
) -> None:
    """And if the client sends one nevertheless, it is no request."""
    marker = letters()
    data = head(POST, HOST, b"Expect: 100-continue", *fields)
    with connect(site.server.port) as sock:
        sock.sendall(data)
        stream = sock.recv(65536)
        sock.sendall(behind(marker)["POST"])
        (answer,) = answers(stream + receive(sock))
    assert (answer.status, answer.is_last) == (status, True)
    assert_serves(site)
    assert marker not in ran(site.directory)


@pytest.mark.parametrize("minor", [0, 1])
def test_a_connection_is_kept_for_get_head_and_post(site: Deployment, minor: int) -> None:
    """Each answer must end where it says, or the next one is not found."""
    lines = [f"{line} HTTP/1.{minor}".encode() for line in ("HEAD /livez", "GET /livez")]
    heads = [head(line, HOST, b"Connection: keep-alive") for line in lines]
    body = head(f"POST /inference HTTP/1.{minor}".encode(), HOST, b"Connection: keep-alive", SIZED)
    with connect(site.server.port) as sock:
        for _ in range(3):
            for data in (heads[0], heads[1], body + BODY):
                sock.sendall(data)
                (answer,) = answers(receive_one(sock, is_head(data)), bodiless=is_head(data))
                assert (answer.status, answer.is_last) == (200, False)
                assert answer.fields.get("connection") == (None if minor else "keep-alive")


def receive_one(sock: socket.socket, bodiless: bool) -> bytes:
    """Return the next answer, which nothing may follow."""
    stream = b""
    while b"\r\n\r\n" not in stream:
        stream += sock.recv(65536)
    match = re.search(rb"Content-Length: (\d+)", stream)
    assert match
    size = stream.index(b"\r\n\r\n") + 4 + (0 if bodiless else int(match[1]))
    while len(stream) < size:
        stream += sock.recv(65536)
    return stream


def test_an_encoded_path_asks_for_the_key_as_well(directory: Path) -> None:
    with deployed(SERVE, APP, directory, env={"VENTU_API_KEY": "s3cret"}) as site:
        for path in (b"/inference", b"/infer%65nce", b"/%69nference", b"http://a/infer%65nce"):
            line = b"POST %b HTTP/1.1" % path
            for fields, status in ([], 401), ([b"Authorization: Bearer s3cret"], 200):
                (answer,) = ask(site, head(line, HOST, CLOSE, SIZED, *fields) + BODY)
                assert answer.status == status, path


# ---- beside others


def test_malformed_chunks_are_the_fault_of_the_client_under_gunicorn_too(directory: Path) -> None:
    """A traceback for each would let anybody fill the log."""
    marker = letters()
    with deployed(GUNICORN, APP, directory) as site:
        for name, (_, data) in SIZES.items():
            with connect(site.server.port) as sock:
                sock.sendall(data + behind(marker)["POST"])
                stream = end_half(sock)
            statuses = {int(status) for status in re.findall(rb"HTTP/1\.1 (\d{3}) ", stream)}
            assert statuses <= {400, 413}, name
        assert_serves(site)
        assert marker not in ran(directory)
        assert "Traceback" not in site.server.process.output


def rows() -> dict[str, list[str]]:
    """Return the cells of the page of differences, by the name of the request."""
    lines = re.findall(r"^\| (.*) \|$", DIFFERENCES.read_text(), re.MULTILINE)
    cells = [[cell.strip() for cell in line.split(" | ")] for line in lines]
    return {name: rest for name, *rest in cells if name not in ("request", "---")}


def test_the_page_of_differences_says_what_we_answer(site: Deployment) -> None:
    port, written = site.server.port, rows()
    seen = {
        name: said(port, data, TIMEOUT)
        for table in GROUPS.values()
        for name, (_, data) in table.items()
    }
    assert seen == {name: cells[0] for name, cells in written.items()}


def test_the_page_of_differences_explains_each() -> None:
    written = rows()
    assert not [name for name, (*seen, why) in written.items() if len({*seen}) > 1 and not why]
    assert not unknown_names({*written})
