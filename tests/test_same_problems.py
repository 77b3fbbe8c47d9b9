"""The same bytes get the same answer from Flask and from ``serve``, and are counted alike."""

import json
import re
import socket
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

import msgpack
import pytest
from processes import TIMEOUT, Server, flask_run, serve, short_directory
from prometheus_client.parser import text_string_to_metric_families
from waiting import until

from ventu_lite.problems import NO_SUCH_ROUTE, ONLY_A_PAGE

APP = """
from flask import abort
from pydantic import BaseModel, Field
from ventu_lite import Service

class Request(BaseModel):
    text: str = Field(min_length=2)

service = Service("same", response=int, max_body=1000, api_key="key")

@service.infer(batch=True)
def infer(batch: list[Request]):
    return [ABORTS[item.text]() if item.text in ABORTS else len(item.text) // 3 for item in batch]

ABORTS = {
    "tea": lambda: abort(418, "no coffee"),
    "rude": lambda: abort(422, "mind your words"),
    "late": lambda: abort(503, "closed"),
    "odd": lambda: 1 / 0,
}

app = service.app
"""

JSON: Final = "Content-Type: application/json"
MSGPACK: Final = "Content-Type: application/msgpack"
CHUNKED: Final = "Transfer-Encoding: chunked"
LARGE: Final = b'"%b"' % (b"a" * 2000)


@dataclass(frozen=True)
class Case:
    """One request, and what both answer.

    Attributes:
        status: The status.
        detail: What the document begins its detail with.
        body, fields, method, target: The request.
        key: What it is let in with, "" for nothing.
        allow: The methods that ``Allow`` names.
        packed: Whether the document is msgpack.
        from_worker: Whether ``serve`` only passes it on: its instance then has the id of the job,
            under which the worker has logged it.
    """

    status: int
    detail: str
    body: bytes = b""
    fields: tuple[str, ...] = (JSON,)
    method: str = "POST"
    target: str = "/inference"
    key: str = "key"
    allow: str = ""
    packed: bool = False
    from_worker: bool = False

    @property
    def path(self) -> str:
        """The path, as Flask sees it."""
        return "/" + self.target.partition("?")[0].lstrip("/")

    @property
    def counts(self) -> dict[str, int]:
        """What it adds to the metrics: requests by status, rejections by reason."""
        if self.path != "/inference" or self.method != "POST":
            return {}
        if self.status in (400, 406, 413, 415, 422):
            return {str(self.status): 1, "invalid": 1}
        return {str(self.status): 1} | ({"failed": 1} if self.from_worker else {})

    def request(self) -> bytes:
        """Return its bytes."""
        lines = [
            f"{self.method} {self.target} HTTP/1.1",
            "Host: same",
            "Connection: close",
            "X-Request-ID: given",
            *self.fields,
        ]
        if self.key:
            lines.append(f"Authorization: Bearer {self.key}")
        if CHUNKED not in self.fields:
            lines.append(f"Content-Length: {len(self.body)}")
        return "\r\n".join([*lines, "", ""]).encode() + self.body


EMPTY: Final = "the body is empty, expected a request in "
MISTAKEN: Final = "the body was read as "
GET: Final = "GET, HEAD, OPTIONS"
CASES = {
    "no body": Case(400, EMPTY + "JSON", from_worker=True),
    "no body of any type": Case(400, EMPTY + "JSON", fields=(), from_worker=True),
    "no body in chunks": Case(400, EMPTY + "JSON", b"0\r\n\r\n", (JSON, CHUNKED), from_worker=True),
    "blanks": Case(400, EMPTY + "JSON", b" \n", from_worker=True),
    "no msgpack": Case(400, EMPTY + "msgpack", fields=(MSGPACK,), packed=True),
    "half a body": Case(400, "the body is not valid JSON: EOF", b'{"text":', from_worker=True),
    "msgpack as JSON": Case(400, MISTAKEN + "JSON", b"\x80"),
    "JSON as msgpack": Case(400, MISTAKEN + "msgpack", b"{}", (MSGPACK,), packed=True),
    "half a msgpack": Case(
        400,
        "the body is not valid msgpack",
        b"\x81",
        (MSGPACK,),
        packed=True,
        from_worker=True,
    ),
    "no time": Case(400, "X-Request-Timeout must be", b"{}", (JSON, "X-Request-Timeout: soon")),
    "no key": Case(401, "send the key", b"{}", key=""),
    "another key": Case(401, "this Authorization is not", b"{}", (MSGPACK,), key="k", packed=True),
    "nowhere": Case(404, NO_SUCH_ROUTE, method="GET", target="/nowhere?a=b"),
    "nowhere in msgpack": Case(404, NO_SUCH_ROUTE, fields=(MSGPACK,), target="/no", packed=True),
    "nowhere, in other letters": Case(404, NO_SUCH_ROUTE, target="/caf%C3%A9%20au%20lait"),
    "GET": Case(405, "ask with POST", method="GET", allow="OPTIONS, POST"),
    "PUT": Case(405, "ask with POST", b"{}", method="PUT", allow="OPTIONS, POST"),
    "GET for msgpack": Case(
        405,
        "ask with POST",
        fields=("Accept: application/msgpack",),
        method="GET",
        allow="OPTIONS, POST",
        packed=True,
    ),
    "POST to health": Case(405, "ask with GET", b"{}", target="/health", allow=GET),
    "POST to home": Case(405, ONLY_A_PAGE, b"{}", target="/", allow=GET),
    "POST to livez in msgpack": Case(
        405, "ask with GET", fields=(MSGPACK,), target="/livez", allow=GET, packed=True
    ),
    "a page wanted": Case(
        406, "nothing that you accept is written here", b"{}", (JSON, "Accept: text/html")
    ),
    "too large": Case(413, "body of more than 1000 bytes", LARGE),
    "too large in chunks": Case(
        413,
        "body of more than 1000 bytes",
        b"%x\r\n%b\r\n0\r\n\r\n" % (len(LARGE), LARGE),
        (JSON, CHUNKED),
    ),
    "too large for msgpack": Case(
        413, "body of more than 1000 bytes", LARGE, (MSGPACK,), packed=True
    ),
    "plain text": Case(
        415, "content type 'text/plain' is not read here", b"a", ("Content-Type: text/plain",)
    ),
    "another charset": Case(
        415, "charset 'latin-1' is not read", b"{}", (JSON + "; charset=latin-1",)
    ),
    "zipped": Case(
        415, "content encoding 'gzip' is not read", b"{}", (JSON, "Content-Encoding: gzip")
    ),
    "two slashes": Case(
        418, "no coffee", b'{"text": "tea"}', target="//inference", from_worker=True
    ),
    "two slashes and no key": Case(401, "send the key", b"{}", target="//inference", key=""),
    "two slashes, nowhere": Case(404, NO_SUCH_ROUTE, target="//nowhere"),
    "two slashes, POST to health": Case(405, "ask with GET", b"{}", target="//health", allow=GET),
    "what a stage says": Case(418, "no coffee", b'{"text": "tea"}', from_worker=True),
    "what a stage cannot read": Case(422, "mind your words", b'{"text": "rude"}', from_worker=True),
    "a stage that is closed": Case(503, "closed", b'{"text": "late"}', from_worker=True),
    "no field": Case(422, "1 field does not fit", b"{}", from_worker=True),
    "no field in msgpack": Case(
        422, "1 field does not fit", b"\x80", (MSGPACK,), packed=True, from_worker=True
    ),
    "a stage that fails": Case(500, "the service failed", b'{"text": "odd"}', from_worker=True),
}


@dataclass(frozen=True)
class Answer:
    """What a server said: the status line, the headers by lower-case name, the body."""

    line: str
    headers: dict[str, str]
    body: bytes

    @property
    def status(self) -> int:
        return int(self.line.split()[1])

    @property
    def document(self) -> dict[str, Any]:
        is_packed = self.headers["content-type"] == "application/msgpack"
        document: dict[str, Any] = (msgpack.unpackb if is_packed else json.loads)(self.body)
        return document

    @property
    def allow(self) -> str:
        return ", ".join(sorted(self.headers.get("allow", "").split(", ")))


def ask(server: Server, request: bytes) -> Answer:
    """Send bytes, read until the server closes."""
    with socket.create_connection(("127.0.0.1", server.port), TIMEOUT) as sock:
        sock.sendall(request)
        data = b"".join(iter(lambda: sock.recv(65536), b""))
    head, _, body = data.partition(b"\r\n\r\n")
    line, *lines = head.decode("latin-1").split("\r\n")
    pairs = (field.partition(":") for field in lines)
    return Answer(line, {name.lower(): value.strip() for name, _, value in pairs}, body)


def counts(server: Server) -> Counter[str]:
    """Return what was counted so far: requests by status, rejections by reason."""
    text = server.get("/metrics").body.decode()
    return Counter(
        {
            sample.labels.get("status") or sample.labels["reason"]: sample.value
            for family in text_string_to_metric_families(text)
            for sample in family.samples
            if sample.name in ("ventu_request_seconds_count", "ventu_rejected_total")
        }
    )


@pytest.fixture(scope="module")
def servers() -> Iterator[tuple[Server, Server]]:
    with short_directory() as directory:
        (directory / "app.py").write_text(APP)
        with (
            flask_run("app.py", cwd=directory) as flask,
            serve("app.py", "--workers=1", cwd=directory) as front,
        ):
            front.process.wait_for("ready on")
            until(lambda: flask.get("/readyz").status == 200)
            yield flask, front


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_both_say_the_same(servers: tuple[Server, Server], case: Case) -> None:
    flask, front = (ask(server, case.request()) for server in servers)
    for answer in (flask, front):
        assert answer.status == answer.document["status"] == case.status
        assert answer.headers["x-request-id"] == "given"
        kind = "application/msgpack" if case.packed else "application/problem+json"
        assert answer.headers["content-type"] == kind
        assert answer.allow == case.allow
        assert answer.document["detail"].startswith(case.detail)
    assert ("www-authenticate" in flask.headers) == ("www-authenticate" in front.headers)
    one, other = flask.document, front.document
    assert front.line.endswith(f" {other['title']}")  # werkzeug has words of its own
    instances = [document.pop("instance") for document in (one, other)]
    assert instances[0] == f"{case.path}#given"
    if case.from_worker:
        assert re.fullmatch(rf"{case.path}#[0-9a-f-]{{36}}", instances[1])
    else:
        assert instances[1] == instances[0]
    if case.status == 406:  # `serve` can only answer in the codec of the request
        del one["detail"], other["detail"]
    assert one == other


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_both_count_the_same(servers: tuple[Server, Server], case: Case) -> None:
    for server in servers:
        before = counts(server)
        ask(server, case.request())
        assert counts(server) - before == case.counts


def test_good_answers_and_questions_for_methods_are_counted_alike(
    servers: tuple[Server, Server],
) -> None:
    good = Case(200, "", b'{"text": "four"}')
    methods = Case(200, "", method="OPTIONS")
    for server in servers:
        before = counts(server)
        assert ask(server, good.request()).body == b"1"
        assert ask(server, methods.request()).status == 200
        assert counts(server) - before == {"200": 1}


@pytest.mark.parametrize("path", ["/livez", "/readyz", "/health"])
def test_probes_get_the_same_bytes(servers: tuple[Server, Server], path: str) -> None:
    one, other = (server.get(path) for server in servers)
    assert (one.status, one.body) == (other.status, other.body)
    for name in ("Content-Type", "Cache-Control"):
        assert one.headers[name] == other.headers[name]


@pytest.mark.parametrize(
    ("request_", "status", "title"),
    [
        pytest.param(b"GET / HTTP/1.1\r\n\r\n", 400, "Bad Request", id="no host"),
        pytest.param(b"\x16\x03\x01", 400, "Bad Request", id="TLS"),
        pytest.param(b"GET /" + b"a" * 9000, 414, "URI Too Long", id="endless line"),
        pytest.param(
            b"GET / HTTP/1.1\r\nX: " + b"a" * 40_000,
            431,
            "Request Header Fields Too Large",
            id="endless head",
        ),
    ],
)
def test_what_has_no_head_gets_a_whole_document(
    servers: tuple[Server, Server], request_: bytes, status: int, title: str
) -> None:
    """Of ``serve`` alone: a WSGI server answers that in its own words."""
    answer = ask(servers[1], request_)
    document = answer.document
    assert (answer.status, document["status"], document["title"]) == (status, status, title)
    assert document["instance"] == f"#{answer.headers['x-request-id']}"
    assert len(answer.headers["x-request-id"]) == 32
