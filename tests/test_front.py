"""The HTTP side of the batching service: every answer it can give, from the bytes of a request."""

import asyncio
import gc
import json
import logging
import math
import select
import socket
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, fields
from typing import Any, cast

import msgpack
import pytest

from ventu_lite.addresses import UnixAddress
from ventu_lite.batching.dispatcher import Dispatcher
from ventu_lite.batching.front import Front
from ventu_lite.batching.inference_job import InferenceJob, Reporter
from ventu_lite.batching.jobs import WORKER_DIED, Job
from ventu_lite.batching.links import Links
from ventu_lite.batching.policy import FixedWait
from ventu_lite.batching.queue import UNSERVED, Queue
from ventu_lite.batching.tally import FrontMetrics
from ventu_lite.batching.terms import Terms
from ventu_lite.config import Config
from ventu_lite.http.connection import Connection
from ventu_lite.http.head import read_head
from ventu_lite.http.request import Request
from ventu_lite.http.server import HttpServer, Limits
from ventu_lite.problems import NO_SUCH_ROUTE, ONLY_A_PAGE
from ventu_lite.protocol import Batch, Results, WorkerConnection

try:
    import uvloop
except ImportError:
    uvloop = None  # type: ignore[assignment]  # told from the module by its truth

LOOPS: list[Any] = [pytest.param(asyncio.new_event_loop, id="asyncio")]
if uvloop:
    LOOPS.append(pytest.param(uvloop.new_event_loop, id="uvloop"))

BODY = b'{"text": "hello"}'
PACKED: bytes = msgpack.packb({"text": "hello"})
JSON = b"Content-Type: application/json"
MSGPACK = b"Content-Type: application/msgpack"
X_MSGPACK = b"Content-Type: application/x-msgpack"


def post(*fields: bytes, body: bytes = BODY, target: bytes = b"/inference") -> bytes:
    lines = b"".join(field + b"\r\n" for field in fields)
    head = b"POST %b HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n%b\r\n"
    return head % (target, len(body), lines) + body


def ask(method: bytes, target: bytes, *fields: bytes) -> bytes:
    lines = b"".join(field + b"\r\n" for field in fields)
    return b"%b %b HTTP/1.1\r\nHost: a\r\n%b\r\n" % (method, target, lines)


@dataclass
class Response:
    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @classmethod
    def read(cls, data: bytes) -> "Response":
        head, _, body = data.partition(b"\r\n\r\n")
        line, *lines = head.decode().split("\r\n")
        headers = dict(line.lower().split(": ", 1) for line in lines)
        return cls(int(line.split()[1]), headers, body)


class Transport(asyncio.Transport):
    """What a client would read."""

    def __init__(self) -> None:
        super().__init__()
        self.out: list[bytes] = []
        self.is_over = False

    def write(self, data: Any) -> None:
        self.out.append(data)

    def is_closing(self) -> bool:
        return self.is_over

    def close(self) -> None:
        self.is_over = True

    def can_write_eof(self) -> bool:
        return True

    def write_eof(self) -> None:
        self.is_over = True


class Link:
    """A worker that answers when told to."""

    def __init__(self) -> None:
        self.batches: list[dict[str, bytes]] = []

    def send(self, payloads: dict[str, bytes]) -> None:
        self.batches.append(payloads)

    def cut_off(self, reason: str) -> None:
        """Never needed here."""


class Status:
    """What is known of the service as a whole."""

    why_not_ready = ""

    def health(self, answer: Callable[[bool, dict[str, str]], None]) -> None:
        answer(not self.why_not_ready, {"service": "OK", "detail": self.why_not_ready})

    def metrics(
        self, accept: str, names: list[str], answer: Callable[[int, bytes, str], None]
    ) -> None:
        answer(200, f"{accept} {names}".encode(), "text/plain; version=1")


class Client:
    def __init__(self, site: "Site") -> None:
        self.transport = Transport()
        self.connection: Connection = site.http()
        self.connection.connection_made(self.transport)

    async def send(self, data: bytes) -> None:
        self.connection.data_received(data)
        await turns()

    def read(self) -> Response:
        """Return the only answer that has come."""
        (data,) = self.transport.out
        self.transport.out.clear()
        return Response.read(data)

    def leave(self) -> None:
        self.transport.is_over = True
        self.connection.connection_lost(None)


async def turns() -> None:
    """Let the loop do all that is due: without sockets and threads that takes so many turns."""
    for _ in range(4):
        await asyncio.sleep(0)


class Site:
    """A front with one worker, and a clock that stands still."""

    def __init__(
        self,
        *,
        api_key: str | None = None,
        capacity: int = 8,
        retry: bool = True,
        prefixes: Sequence[str] = ("",),
        fallback: Callable[[Request], None] | None = None,
        **settings: Any,
    ) -> None:
        if api_key is not None:
            settings["api_key"] = api_key
        self.now = 1000.0
        self.config = Config(**settings)
        self.queue: Queue[Any] = Queue(
            FixedWait(0.0), max_batch_size=4, capacity=capacity, max_message=1000, retry=retry
        )
        self.metrics = FrontMetrics("x", waiting=lambda: self.queue.waiting, workers=dict)
        loop = asyncio.get_running_loop()
        self.dispatcher = Dispatcher(self.queue, self.metrics, loop, lambda: self.now)
        self.status = Status()
        self.front = Front(
            self.dispatcher,
            self.metrics,
            self.config,
            status=self.status,
            clock=lambda: self.now,
            prefixes=prefixes,
            fallback=fallback,
            home={"name": "x"},
        )
        self.http = HttpServer(self.front.handle, check=self.front.check, refuse=self.front.refuse)
        self.worker = Link()

    async def get(self, data: bytes) -> Response:
        """Return what a new client gets without a worker."""
        client = Client(self)
        await client.send(data)
        return client.read()

    async def infer(self, data: bytes, body: bytes = b"{}", status: int = 200) -> Response:
        """Return what a new client gets when the worker answers ``body``."""
        client = Client(self)
        await client.send(data)
        await self.work(body, status)
        return client.read()

    async def work(self, body: bytes = b"{}", status: int = 200) -> dict[str, bytes]:
        """Let the worker take a batch and answer all of it; return the batch."""
        if not self.worker.batches:
            self.dispatcher.ready(self.worker)
            await turns()
        batch = self.worker.batches.pop()
        rejected = {} if status == 200 else dict.fromkeys(batch, status)
        self.now += 0.0625
        results = Results(dict.fromkeys(batch, body), rejected, infer=0.03125)
        self.dispatcher.results(self.worker, results)
        await turns()
        return batch

    def counts(self) -> dict[str, float]:
        """Return what was counted and is not 0: requests by status, rejections by reason."""
        return {
            sample.labels.get("status") or sample.labels["reason"]: sample.value
            for family in self.metrics.collect()
            for sample in family.samples
            if sample.name in ("ventu_request_seconds_count", "ventu_rejected_total")
        }

    def count_of(self, name: str) -> float:
        samples = [sample for family in self.metrics.collect() for sample in family.samples]
        return sum(sample.value for sample in samples if sample.name == name)


def play(scenario: Callable[[Site], Awaitable[None]], **settings: Any) -> None:
    async def main() -> None:
        site = Site(**settings)
        try:
            await scenario(site)
        finally:
            site.dispatcher.close()
            for connection in list(site.http.connections):
                connection.connection_lost(None)
        assert site.http.held == 0

    asyncio.run(main())


def is_problem(response: Response, status: int, detail: str, *, path: str = "/inference") -> bool:
    """Whether this is a problem document that can be found again in the log."""
    assert response.status == status
    is_packed = response.headers["content-type"] == "application/msgpack"
    assert is_packed or response.headers["content-type"] == "application/problem+json"
    document = msgpack.unpackb(response.body) if is_packed else response.json
    assert document["status"] == status
    assert document["instance"] == f"{path}#{response.headers['x-request-id']}"
    assert detail in document["detail"], document["detail"]
    return True


# ---- what is answered


def test_an_inference() -> None:
    async def scenario(site: Site) -> None:
        client = Client(site)
        await client.send(post(JSON))
        site.now += 0.125
        (id, payload), *_ = (await site.work(b'{"ok":1}')).items()
        response = client.read()
        assert (response.status, response.body, payload) == (200, b'{"ok":1}', BODY)
        assert response.headers["content-type"] == "application/json"
        assert response.headers["x-request-id"] == id
        assert response.headers["server-timing"] == (
            'queue;dur=125.000, infer;dur=31.250, total;dur=187.500, batch;desc="1"'
        )
        assert site.counts() == {"200": 1}

    play(scenario)


def test_every_job_of_a_batch_is_told_its_own_times() -> None:
    async def scenario(site: Site) -> None:
        clients = [Client(site) for _ in range(3)]
        for client in clients:
            await client.send(post(JSON))
            site.now += 1
        await site.work()
        timings = [client.read().headers["server-timing"] for client in clients]
        assert [timing.split(",")[0] for timing in timings] == [
            "queue;dur=3000.000",
            "queue;dur=2000.000",
            "queue;dur=1000.000",
        ]
        assert site.count_of("ventu_request_seconds_sum") == 3 + 2 + 1 + 3 * 0.0625

    play(scenario)


def test_job_ids_are_those_of_the_wire() -> None:
    """36 characters, as the protocol splits them by length; none twice."""

    async def scenario(site: Site) -> None:
        for _ in range(3):
            await Client(site).send(post(JSON))
        ids = await site.work()
        assert [len(id) for id in ids] == [36, 36, 36]

    play(scenario)


@pytest.mark.parametrize(
    ("given", "is_taken"),
    [
        pytest.param(b"a-Z.9_:/+=@~", True, id="sane"),
        pytest.param(b"x" * 128, True, id="long"),
        pytest.param(b"x" * 129, False, id="too-long"),
        pytest.param(b"a b", False, id="blank"),
        pytest.param(b"<script>", False, id="markup"),
        pytest.param(b"", False, id="empty"),
        pytest.param(b"\xe4", False, id="not-ascii"),
    ],
)
@pytest.mark.parametrize("is_error", [False, True])
def test_a_sane_request_id_is_returned(given: bytes, is_taken: bool, is_error: bool) -> None:
    async def scenario(site: Site) -> None:
        fields = [JSON, b"X-Request-ID: " + given]
        if is_error:
            response = await site.get(post(*fields, b"X-Request-Timeout: x"))
        else:
            response = await site.infer(post(*fields))
        returned = response.headers["x-request-id"]
        assert (returned == given.decode("latin-1").lower()) == is_taken
        assert returned

    play(scenario)


# ---- codecs


@pytest.mark.parametrize(
    ("fields", "body", "setting", "media_type"),
    [
        pytest.param([JSON], BODY, "auto", "application/json", id="json"),
        pytest.param([MSGPACK], PACKED, "auto", "application/msgpack", id="msgpack"),
        pytest.param([], BODY, "auto", "application/json", id="told-by-a-json-body"),
        pytest.param([], PACKED, "auto", "application/msgpack", id="told-by-a-msgpack-body"),
        pytest.param(
            [b"Content-Type: application/x-www-form-urlencoded"],
            BODY,
            "auto",
            "application/json",
            id="curl",
        ),
        pytest.param([], PACKED, "json", "application/json", id="told-by-the-setting"),
        pytest.param([], PACKED, "msgpack", "application/msgpack", id="msgpack-alone"),
        pytest.param([JSON, b"Accept: */*"], BODY, "auto", "application/json", id="any"),
        pytest.param([b"Accept: */*"], PACKED, "auto", "application/msgpack", id="any-and-sniff"),
        pytest.param(
            [JSON + b"; charset=utf-8"], BODY, "auto", "application/json", id="json-and-parameter"
        ),
        pytest.param([X_MSGPACK], PACKED, "auto", "application/x-msgpack", id="x-msgpack"),
        pytest.param(
            [X_MSGPACK + b"; a=b", b"Accept: */*"],
            PACKED,
            "auto",
            "application/x-msgpack",
            id="x-msgpack-and-parameter",
        ),
        pytest.param(
            [MSGPACK, b"Accept: text/html, application/x-msgpack"],
            PACKED,
            "auto",
            "application/x-msgpack",
            id="accepted-by-its-old-name",
        ),
    ],
)
def test_the_answer_is_in_the_codec_of_the_request(
    fields: list[bytes], body: bytes, setting: str, media_type: str
) -> None:
    async def scenario(site: Site) -> None:
        for _ in range(2):  # the second time the head is known
            response = await site.infer(post(*fields, body=body), b"anything")
            assert (response.status, response.headers["content-type"]) == (200, media_type)
            assert response.body == b"anything"

    play(scenario, codec=setting)


def test_one_head_may_come_with_bodies_in_either_codec() -> None:
    """What the first body has told must not be remembered with the head."""

    async def scenario(site: Site) -> None:
        bodies = [b"[1, 2]", b"\x93\x01\x02\x03\x04\x05"] * 2
        assert len({post(body=body).partition(b"\r\n\r\n")[0] for body in bodies}) == 1
        types = [
            (await site.infer(post(body=body))).headers["content-type"].partition("/")[2]
            for body in bodies
        ]
        assert types == ["json", "msgpack"] * 2

    play(scenario)


REFUSALS = [
    pytest.param(post(b"Content-Type: text/plain"), 415, "text/plain", id="type"),
    pytest.param(post(JSON, b"Content-Encoding: gzip"), 415, "content encoding", id="gzip"),
    pytest.param(post(JSON, b"Accept: application/msgpack"), 406, "accept", id="accept"),
    pytest.param(post(b"Accept: application/msgpack"), 406, "accept", id="accept-and-sniff"),
    pytest.param(post(JSON, b"X-Request-Timeout: 0"), 400, "positive", id="timeout-zero"),
    pytest.param(post(JSON, b"X-Request-Timeout: -1"), 400, "positive", id="timeout-negative"),
    pytest.param(post(JSON, b"X-Request-Timeout: nan"), 400, "positive", id="timeout-nan"),
    pytest.param(post(JSON, b"X-Request-Timeout: inf"), 400, "positive", id="timeout-infinite"),
    pytest.param(post(JSON, b"X-Request-Timeout: soon"), 400, "positive", id="timeout-text"),
    pytest.param(post(JSON, body=PACKED), 400, "as JSON, but", id="json-label"),
    pytest.param(post(MSGPACK), 400, "as msgpack, but", id="msgpack-label"),
    pytest.param(post(MSGPACK, body=b""), 400, "empty, expected a request in msgpack", id="empty"),
    pytest.param(post(JSON, b"X-Request-Timeout: 1_0"), 400, "positive", id="timeout-underscore"),
    pytest.param(post(JSON, body=b"1" * 960), 413, "at most 952", id="too-large-for-a-message"),
]


@pytest.mark.parametrize(("data", "status", "detail"), REFUSALS)
def test_what_is_refused_says_why_and_is_counted(data: bytes, status: int, detail: str) -> None:
    async def scenario(site: Site) -> None:
        for number in (1, 2):
            assert is_problem(await site.get(data), status, detail)
            assert site.counts() == {str(status): number, "invalid": number}
        assert site.queue.is_empty

    play(scenario)


def test_identity_is_no_encoding() -> None:
    async def scenario(site: Site) -> None:
        assert (await site.infer(post(JSON, b"Content-Encoding: Identity"))).status == 200

    play(scenario)


@pytest.mark.parametrize(
    ("fields", "is_packed"),
    [
        pytest.param([b"Accept: application/msgpack"], True, id="accept"),
        pytest.param([MSGPACK], True, id="content-type"),
        pytest.param([MSGPACK, b"Accept: application/json"], False, id="accept-json"),
        pytest.param([JSON], False, id="json"),
    ],
)
def test_an_error_is_msgpack_for_who_speaks_nothing_else(
    fields: list[bytes], is_packed: bool
) -> None:
    async def scenario(site: Site) -> None:
        response = await site.get(post(*fields, b"X-Request-Timeout: no"))
        read = msgpack.unpackb if is_packed else json.loads
        assert read(response.body)["status"] == response.status
        assert ("msgpack" in response.headers["content-type"]) == is_packed

    play(scenario)


# ---- who may ask, and how


@pytest.mark.parametrize("header", [b"Bearer s3cret", b"bearer  s3cret"])
def test_the_api_key_opens(header: bytes) -> None:
    async def scenario(site: Site) -> None:
        assert (await site.infer(post(JSON, b"Authorization: " + header))).status == 200

    play(scenario, api_key="s3cret")


@pytest.mark.parametrize("fields", [[], [b"Authorization: Bearer no"], [b"Authorization: s3cret"]])
def test_without_the_api_key_it_stays_shut(fields: list[bytes]) -> None:
    async def scenario(site: Site) -> None:
        response = await site.get(post(JSON, *fields))
        assert is_problem(response, 401, "Bearer KEY")
        assert response.headers["www-authenticate"] == "bearer"
        assert site.counts() == {"401": 1}

    play(scenario, api_key="s3cret")


def test_a_head_that_is_remembered_serves_nobody_else() -> None:
    """Heads are found again by all their bytes: no key, id, deadline or codec may be another's."""

    async def scenario(site: Site) -> None:
        key, wrong = b"Authorization: Bearer s3cret", b"Authorization: Bearer s3creT"
        ann = post(JSON, key, b"X-Request-ID: ann")
        bob = post(JSON, key, b"X-Request-ID: bob")
        for _ in range(3):
            assert (await site.infer(ann)).headers["x-request-id"] == "ann"
            assert (await site.infer(bob)).headers["x-request-id"] == "bob"
            assert (await site.get(post(JSON, wrong, b"X-Request-ID: ann"))).status == 401
            assert (await site.get(post(JSON, b"X-Request-ID: ann"))).status == 401
            assert (await site.get(post(JSON, key, b"Accept: text/plain"))).status == 406

    play(scenario, api_key="s3cret")


def test_ids_that_we_make_are_not_remembered() -> None:
    async def scenario(site: Site) -> None:
        ids = {(await site.infer(post(JSON))).headers["x-request-id"] for _ in range(3)}
        ids |= {(await site.get(post(b"Content-Type: a/b"))).headers["x-request-id"] for _ in ids}
        assert len(ids) == 6

    play(scenario)


def test_options_are_told_as_flask_tells_them() -> None:
    async def scenario(site: Site) -> None:
        response = await site.get(ask(b"OPTIONS", b"/inference"))
        assert (response.status, response.headers["allow"]) == (200, "options, post")
        assert response.body == b""
        assert site.counts() == {}

    play(scenario)


@pytest.mark.parametrize("method", [b"GET", b"HEAD", b"PUT", b"DELETE"])
def test_inference_wants_post(method: bytes) -> None:
    async def scenario(site: Site) -> None:
        response = await site.get(ask(method, b"/inference"))
        assert (response.status, response.headers["allow"]) == (405, "options, post")
        assert bool(response.body) == (method != b"HEAD")
        assert site.counts() == {}

    play(scenario)


def test_a_query_does_not_matter() -> None:
    async def scenario(site: Site) -> None:
        assert (await site.infer(post(JSON, target=b"/inference?a=b"))).status == 200

    play(scenario)


# ---- before the body is read


@pytest.mark.parametrize(
    ("line", "fields", "status"),
    [
        pytest.param(b"POST /inference", [b"Content-Type: text/plain"], 415, id="type"),
        pytest.param(b"POST /inference", [JSON], 401, id="key"),
        pytest.param(b"PUT /inference", [JSON], 405, id="method"),
        pytest.param(b"POST /health", [], 405, id="probe"),
        pytest.param(b"POST /", [], 405, id="home"),
        pytest.param(b"POST /elsewhere", [], 404, id="elsewhere"),
    ],
)
def test_a_body_that_is_not_worth_reading_is_not_read(
    line: bytes, fields: list[bytes], status: int
) -> None:
    async def scenario(site: Site) -> None:
        if status != 401:
            fields.append(b"Authorization: Bearer s3cret")
        lines = b"".join(field + b"\r\n" for field in fields)
        client = Client(site)
        await client.send(b"%b HTTP/1.1\r\nHost: a\r\nContent-Length: 9\r\n%b\r\n" % (line, lines))
        response = client.read()
        assert (response.status, response.headers["connection"]) == (status, "close")

    play(scenario, api_key="s3cret")


@pytest.mark.parametrize(
    ("request_", "counts"),
    [
        pytest.param(post(b"Content-Type: a/b")[:-1], {"415": 1, "invalid": 1}, id="type"),
        pytest.param(post(JSON, b"Accept: a/b")[:-1], {"406": 1, "invalid": 1}, id="accept"),
        pytest.param(
            b"POST /inference HTTP/1.1\r\nHost: a\r\nContent-Length: 99999999\r\n\r\n",
            {"413": 1, "invalid": 1},
            id="large",
        ),
        pytest.param(
            b"POST /inference HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\nno",
            {"400": 1, "invalid": 1},
            id="no-chunks",
        ),
        pytest.param(
            b"POST /health HTTP/1.1\r\nHost: a\r\nContent-Length: 99999999\r\n\r\n",
            {},
            id="large-elsewhere",
        ),
        pytest.param(
            b"PUT /inference HTTP/1.1\r\nHost: a\r\nContent-Length: 9\r\n\r\n", {}, id="put"
        ),
        pytest.param(b"POST nowhere", {}, id="no-head"),
    ],
)
def test_what_is_refused_before_its_body_has_come_is_counted_too(
    request_: bytes, counts: dict[str, float]
) -> None:
    async def scenario(site: Site) -> None:
        client = Client(site)
        await client.send(request_)
        assert client.transport.out or not counts
        assert site.counts() == counts

    play(scenario)


def test_what_there_is_no_room_for_is_counted() -> None:
    async def scenario(site: Site) -> None:
        site.http.limits = Limits(max_held=len(BODY) - 1)
        assert is_problem(await site.get(post(JSON)), 429, "too many bytes")
        assert site.counts() == {"429": 1, "full": 1}

    play(scenario)


def test_a_body_that_is_worth_reading_may_come_late() -> None:
    async def scenario(site: Site) -> None:
        client = Client(site)
        for piece in (post(JSON)[:-1], post(JSON)[-1:]):
            assert client.transport.out == []
            await client.send(piece)
        assert list((await site.work()).values()) == [BODY]
        assert client.read().status == 200

    play(scenario)


def test_what_the_fallback_wants_is_read() -> None:
    seen: list[tuple[bytes, bytes]] = []

    def fallback(request: Request) -> None:
        seen.append((request.target, request.body))
        request.respond(201)

    async def scenario(site: Site) -> None:
        for target in (b"/own", b"/", b"/inference"):
            data = post(JSON, target=target)
            client = Client(site)
            client.connection.data_received(data[:-1])
            await client.send(data[-1:])
            assert client.read().status == 201
        assert (await site.get(post(target=b"/a/livez"))).status == 405
        assert seen == [(b"/own", BODY), (b"/", BODY), (b"/inference", BODY)]
        response = await site.infer(post(JSON, target=b"/a/inference"))
        assert response.status == 200

    play(scenario, fallback=fallback, prefixes=["/a"])


# ---- load, deadlines, workers


def test_a_full_queue_says_when_to_come_again() -> None:
    async def scenario(site: Site) -> None:
        clients = [Client(site) for _ in range(3)]
        for client in clients:
            await client.send(post(JSON))
        response = clients[2].read()
        assert is_problem(response, 429, "2 jobs wait already")
        assert response.headers["retry-after"] == "1"
        assert site.counts() == {"429": 1, "full": 1}

    play(scenario, capacity=2)


@pytest.mark.parametrize(
    ("field", "seconds"),
    [
        pytest.param(b"X-Request-Timeout: 0.5", 0.5, id="shorter"),
        pytest.param(b"X-Request-Timeout: 99", 5.0, id="longer"),
        pytest.param(b"X-Other: 1", 5.0, id="none"),
    ],
)
def test_the_deadline(field: bytes, seconds: float) -> None:
    async def scenario(site: Site) -> None:
        client = Client(site)
        await client.send(post(JSON, field))
        deadline = site.queue.next_deadline()
        assert deadline is not None and math.isclose(deadline - site.now, seconds)
        site.now += seconds
        site.dispatcher.ready(site.worker)
        await turns()
        assert is_problem(client.read(), 504, "timeout")
        assert site.counts() == {"504": 1, "expired": 1}

    play(scenario, timeout=5.0)


@pytest.mark.parametrize(
    ("why_not", "detail"),
    [
        (
            "still loading: worker 1",
            "no answer within the timeout of this request; still loading: worker 1",
        ),
        ("", UNSERVED.detail),  # one has just become ready
    ],
)
def test_a_deadline_that_passes_while_nobody_is_there(why_not: str, detail: str) -> None:
    async def scenario(site: Site) -> None:
        client = Client(site)
        await client.send(post(JSON))
        site.status.why_not_ready = why_not
        site.now += 5.0
        site.queue.expire(site.now)
        site.dispatcher.moment()
        await turns()
        assert is_problem(client.read(), 504, detail)

    play(scenario, timeout=5.0)


def test_a_worker_that_died() -> None:
    async def scenario(site: Site) -> None:
        client = Client(site)
        await client.send(post(JSON))
        site.dispatcher.ready(site.worker)
        await turns()
        site.dispatcher.lost(site.worker)
        await turns()
        assert is_problem(client.read(), 500, "the worker died; the log says how")
        assert site.counts() == {"500": 1, "worker_died": 1}

    play(scenario, retry=False)


@pytest.mark.parametrize(
    ("status", "reason"), [(422, "invalid"), (400, "invalid"), (404, "failed"), (500, "failed")]
)
def test_what_a_worker_rejects_is_passed_on(status: int, reason: str) -> None:
    async def scenario(site: Site) -> None:
        response = await site.infer(post(JSON, b"X-Request-ID: me"), b'{"why":1}', status)
        assert (response.status, response.body) == (status, b'{"why":1}')
        assert response.headers["content-type"] == "application/problem+json"
        assert response.headers["x-request-id"] == "me"
        assert site.counts() == {str(status): 1, reason: 1}

    play(scenario)


@pytest.mark.parametrize(
    ("encode", "decode"),
    [
        pytest.param(lambda value: json.dumps(value).encode(), json.loads, id="json"),
        pytest.param(msgpack.packb, msgpack.unpackb, id="msgpack"),
    ],
)
@pytest.mark.parametrize("prefix", ["", "/caf%C3%A9"])
def test_the_problem_document_of_a_worker_gets_the_path(
    encode: Callable[[Any], bytes], decode: Callable[[bytes], Any], prefix: str
) -> None:
    """A worker knows the job only; nothing else of its document is touched."""

    async def scenario(site: Site) -> None:
        client = Client(site)
        target = f"{prefix}/inference".encode()
        await client.send(post(body=encode({"text": "hello"}), target=target))
        site.dispatcher.ready(site.worker)
        await turns()
        (job,) = site.worker.batches[-1]
        document = {"detail": f'of "#{job[1:]}" or #{job}', "instance": f"#{job}"}
        site.dispatcher.results(site.worker, Results({job: encode(document)}, {job: 418}))
        await turns()
        said = decode(client.read().body)
        assert said == document | {"instance": f"{prefix}/inference#{job}"}

    play(scenario, prefixes=[prefix])


def test_a_worker_that_does_not_say_why() -> None:
    async def scenario(site: Site) -> None:
        assert is_problem(await site.infer(post(JSON), b"", 500), 500, "the worker rejected")

    play(scenario)


def test_the_error_of_a_msgpack_request_is_msgpack() -> None:
    async def scenario(site: Site) -> None:
        response = await site.infer(post(body=PACKED), b"", 500)
        assert msgpack.unpackb(response.body)["status"] == 500
        assert response.headers["content-type"] == "application/msgpack"

    play(scenario)


# ---- what the log says


def told(caplog: pytest.LogCaptureFixture) -> list[tuple[str, str, str]]:
    """Return the errors in the log: request, job, and what was said."""
    records = [one for one in caplog.records if one.levelno >= logging.ERROR]
    known = [(one.__dict__["request_id"], one.__dict__["job_id"]) for one in records]
    return [(*ids, one.getMessage()) for ids, one in zip(known, records, strict=True)]


def test_the_log_joins_the_id_of_a_client_and_that_of_its_job(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """The worker, whose log has the traceback, knows the job alone."""

    async def scenario(site: Site) -> None:
        client = Client(site)
        await client.send(post(JSON, b"X-Request-ID: me"))
        (job,) = await site.work(b"{}", 500)
        said = "got 500 from a worker; look for the job in its log"
        assert told(caplog) == [("me", job, f"request me failed: job {job} {said}")]

    play(scenario)


@pytest.mark.parametrize(
    ("fields", "status"),
    [
        pytest.param([], 500, id="one-id"),
        pytest.param([b"X-Request-ID: me"], 422, id="the-fault-of-the-client"),
        pytest.param([b"X-Request-ID: me"], 404, id="what-a-stage-says"),
        pytest.param([b"X-Request-ID: me"], 503, id="that-it-is-not-ready"),
    ],
)
def test_what_a_worker_s_log_says_under_the_id_of_the_client_is_not_repeated(
    fields: list[bytes], status: int, caplog: pytest.LogCaptureFixture
) -> None:
    async def scenario(site: Site) -> None:
        assert (await site.infer(post(JSON, *fields), b"{}", status)).status == status
        assert told(caplog) == []

    play(scenario)


@pytest.mark.parametrize("id", ["me", ""])
def test_a_job_that_nobody_answers_is_in_the_log(id: str, caplog: pytest.LogCaptureFixture) -> None:
    async def scenario(site: Site) -> None:
        client = Client(site)
        await client.send(post(JSON, b"X-Request-ID: " + id.encode()))
        site.dispatcher.ready(site.worker)
        await turns()
        site.dispatcher.lost(site.worker)
        await turns()
        (job,) = site.worker.batches.pop()
        request = id or job
        assert client.read().headers["x-request-id"] == request
        said = f"request {request} failed: job {job} got no answer: {WORKER_DIED.detail}"
        assert told(caplog) == [(request, job, said)]

    play(scenario, retry=False)


# ---- clients that leave


def test_a_client_that_leaves_takes_its_job_along() -> None:
    async def scenario(site: Site) -> None:
        waiting, stays = Client(site), Client(site)
        await waiting.send(post(JSON))
        await stays.send(post(JSON))
        waiting.leave()
        assert len(await site.work()) == 1
        assert waiting.transport.out == []
        assert stays.read().status == 200
        assert site.counts() == {"200": 1, "gone": 1}

    play(scenario)


def test_a_client_that_leaves_while_its_job_is_out() -> None:
    async def scenario(site: Site) -> None:
        client = Client(site)
        await client.send(post(JSON))
        site.dispatcher.ready(site.worker)
        await turns()
        client.leave()
        await site.work()
        assert client.transport.out == []
        assert site.counts() == {"gone": 1}
        assert site.queue.is_empty

    play(scenario)


def test_a_client_that_leaves_between_the_answer_and_its_writing() -> None:
    async def scenario(site: Site) -> None:
        client = Client(site)
        await client.send(post(JSON))
        site.dispatcher.ready(site.worker)
        await turns()
        (batch,) = site.worker.batches
        site.dispatcher.results(site.worker, Results(dict.fromkeys(batch, b"{}")))
        client.leave()
        await turns()
        assert client.transport.out == []
        assert site.counts() == {"200": 1}

    play(scenario)


def test_a_client_that_leaves_with_half_a_body() -> None:
    async def scenario(site: Site) -> None:
        client = Client(site)
        await client.send(post(JSON)[:-1])
        client.leave()
        await turns()
        assert site.counts() == {}

    play(scenario)


# ---- other routes


def test_the_probes() -> None:
    async def scenario(site: Site) -> None:
        assert (await site.get(ask(b"GET", b"/livez"))).json == {"status": "alive"}
        assert (await site.get(ask(b"GET", b"/readyz"))).json == {"status": "ready"}
        health = await site.get(ask(b"GET", b"/health"))
        assert (health.status, health.json["service"]) == (200, "OK")
        assert health.headers["cache-control"] == "no-store"
        site.status.why_not_ready = "no worker"
        assert (await site.get(ask(b"GET", b"/livez"))).status == 200
        ready = await site.get(ask(b"GET", b"/readyz"))
        assert (ready.status, ready.json["detail"]) == (503, "no worker")
        assert ready.headers["retry-after"] == "1"
        assert (await site.get(ask(b"GET", b"/health"))).status == 503
        assert site.counts() == {}

    play(scenario)


def test_the_metrics() -> None:
    async def scenario(site: Site) -> None:
        data = ask(b"GET", b"/metrics?name[]=a&name%5B%5D=b", b"Accept: text/plain")
        response = await site.get(data)
        assert response.body == b"text/plain ['a', 'b']"
        assert response.headers["content-type"] == "text/plain; version=1"
        assert response.headers["cache-control"] == "no-store"

    play(scenario)


@pytest.mark.parametrize("target", [b"/health", b"/livez", b"/readyz", b"/metrics", b"/"])
def test_get_routes_know_head_and_nothing_else(target: bytes) -> None:
    async def scenario(site: Site) -> None:
        response = await site.get(ask(b"HEAD", target))
        assert (response.status, response.body) == (200, b"")
        assert int(response.headers["content-length"]) > 0
        response = await site.get(post(JSON, target=target))
        assert (response.status, response.headers["allow"]) == (405, "get, head, options")
        path = target.decode()
        assert is_problem(response, 405, ONLY_A_PAGE if path == "/" else "ask with GET", path=path)
        response = await site.get(ask(b"OPTIONS", target))
        assert (response.status, response.headers["allow"]) == (200, "get, head, options")

    play(scenario)


def test_a_path_may_be_percent_encoded() -> None:
    """WSGI servers decode it, so the same clients must be served here."""

    async def scenario(site: Site) -> None:
        assert (await site.get(ask(b"GET", b"/%6Civez"))).json == {"status": "alive"}
        assert (await site.infer(post(JSON, target=b"/%69nference"))).status == 200
        response = await site.get(ask(b"GET", b"/livez%3Fa"))
        assert is_problem(response, 404, NO_SUCH_ROUTE, path="/livez%3Fa")

    play(scenario)


@pytest.mark.parametrize("target", [b"//inference", b"///inference", b"/%2Finference"])
def test_slashes_in_front_are_one(target: bytes) -> None:
    """Clients whose base address ends in a slash send two, and Flask takes them for one."""

    async def scenario(site: Site) -> None:
        key = b"Authorization: Bearer s3cret"
        assert (await site.infer(post(JSON, key, target=target))).status == 200
        assert is_problem(await site.get(post(JSON, target=target)), 401, "KEY")
        client = Client(site)
        await client.send(post(JSON, target=target)[:-1])
        assert is_problem(client.read(), 401, "KEY")
        assert site.counts() == {"200": 1, "401": 2}
        health = target.replace(b"inference", b"health")
        assert (await site.get(ask(b"GET", health))).status == 200
        assert is_problem(await site.get(ask(b"GET", b"//a//b")), 404, "", path="/a//b")

    play(scenario, api_key="s3cret")


def test_a_service_is_at_home_in_all_its_places() -> None:
    async def scenario(site: Site) -> None:
        for place in ("/a", "/b%20c"):
            path = f"{place}/inference"
            for _ in range(2):  # the second time the head is known
                data = post(MSGPACK, b"Authorization: Bearer s3cret", target=path.encode())
                assert is_problem(await site.get(data), 400, "as msgpack", path=path)
            client = Client(site)
            await client.send(post(JSON, target=path.encode())[:-1])
            assert is_problem(client.read(), 401, "KEY", path=path)
            assert (await site.get(ask(b"GET", f"{place}/livez".encode()))).status == 200
            assert (await site.get(ask(b"GET", f"{place}/".encode()))).json == {"name": "x"}
        assert (await site.get(ask(b"GET", b"/"))).status == 404

    play(scenario, prefixes=["/a", "/b%20c"], api_key="s3cret")


def test_home_and_nowhere() -> None:
    async def scenario(site: Site) -> None:
        assert (await site.get(ask(b"GET", b"/"))).json == {"name": "x"}
        response = await site.get(ask(b"GET", b"/nowhere"))
        assert is_problem(response, 404, NO_SUCH_ROUTE, path="/nowhere")

    play(scenario)


# ---- on the wire


@pytest.mark.parametrize("new_loop", LOOPS)
def test_the_next_batch_is_written_before_the_answers(
    new_loop: Callable[[], asyncio.AbstractEventLoop],
) -> None:
    """To call ``write`` first is not enough: old versions of uvloop only take note of it."""

    async def connect(protocol: Callable[[], asyncio.Protocol]) -> socket.socket:
        ours, theirs = socket.socketpair()
        await asyncio.get_running_loop().create_unix_connection(protocol, sock=ours)
        theirs.setblocking(False)
        return theirs

    async def main() -> None:
        site = Site()
        links = Links(site.dispatcher, address=UnixAddress("x"), max_message=1000)
        protocol = links()
        client = await connect(site.http)
        peer = await connect(lambda: protocol)
        worker = WorkerConnection(max_message=1000)
        client.sendall(post(JSON) * 8)
        peer.sendall(worker.send_ready())
        first = await read(peer)
        (batch,) = worker.receive_data(first)
        assert isinstance(batch, Batch) and len(batch.payloads) == 4

        results = worker.send_results(Results(dict.fromkeys(batch.payloads, b"{}")))
        protocol.data_received(results)
        assert is_readable(peer) and not is_readable(client)
        assert (await read(client)).count(b"200 OK") == 4
        links.close()
        site.http.abort()
        await site.http.drain()
        site.dispatcher.close()
        client.close()
        peer.close()

    async def read(sock: socket.socket) -> bytes:
        return await asyncio.get_running_loop().sock_recv(sock, 65536)

    def is_readable(sock: socket.socket) -> bool:
        return bool(select.select([sock], [], [], 0)[0])

    loop = new_loop()
    loop.run_until_complete(asyncio.wait_for(main(), 30))
    loop.close()


# ---- nothing stays


def test_nothing_of_a_finished_request_stays() -> None:
    async def scenario(site: Site) -> None:
        gc.collect()  # what other tests have left
        client = Client(site)
        for data in (post(JSON), post(), post(body=PACKED), post(JSON, b"X-Request-Timeout: 0")):
            await client.send(data)
            if not site.queue.is_empty:
                await site.work()
            assert client.read().status in (200, 400)
        left = [one for one in gc.get_objects() if type(one) in (InferenceJob, Request)]
        assert left == [], [gc.get_referrers(one) for one in left]

    play(scenario)


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(post(JSON), id="answered"),
        pytest.param(post(), id="sniffed"),
        pytest.param(post(JSON, b"X-Request-Timeout: 0"), id="refused"),
        pytest.param(ask(b"GET", b"/livez"), id="probe"),
    ],
)
def test_a_request_leaves_no_circle_behind(data: bytes) -> None:
    """What only the garbage collector can free stops the process every now and then."""

    async def scenario(site: Site) -> None:
        client = Client(site)

        async def ask_once() -> None:
            client.connection.data_received(data)
            if not site.queue.is_empty:
                batch = await taken()
                site.dispatcher.results(site.worker, Results(dict.fromkeys(batch, b"{}")))
            await turns()
            assert len(client.transport.out) == 1
            client.transport.out.clear()

        async def taken() -> dict[str, bytes]:
            await turns()
            return site.worker.batches.pop()

        site.dispatcher.ready(site.worker)
        await ask_once()
        gc.collect()
        gc.disable()
        try:
            for _ in range(100):
                await ask_once()
            assert gc.collect() == 0
        finally:
            gc.enable()

    play(scenario)


def test_a_job_of_http_is_a_job_in_all_that_it_has() -> None:
    terms = Terms("json", 5.0, None, "/inference", b"")
    request = Request(cast(Connection, None), read_head(ask(b"POST", b"/inference")), b"body")
    job = InferenceJob("a", request, cast(Reporter, None), terms, 1.0)
    plain = Job("a", b"body", 4, 1.0, 6.0)
    for name in (field.name for field in fields(Job)):
        assert getattr(job, name) == getattr(plain, name)
