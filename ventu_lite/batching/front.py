"""The HTTP side of the batching service: requests become jobs, results become answers."""

import math
import os
from collections.abc import Callable
from typing import Any, Final, Protocol
from urllib.parse import parse_qs, unquote_to_bytes

from pydantic_core import to_json

from ..codecs import MEDIA_TYPE, sniff
from ..config import Codec, CodecSetting, Config
from ..errors import PayloadError, Unavailable, VentuError
from .dispatcher import Dispatcher
from .http_request import Answer, Request, encode_headers
from .jobs import Failure, Job
from .refusals import PROBLEM_TYPES, no_such_route, only_get, problem_answer, refusal
from .tally import FrontMetrics
from .terms import Terms, TermsReader, path_of, sniffed

_FIRST_SERIAL: Final = 10**11  # so that each has twelve digits
_NO_STORE: Final = b"Cache-Control: no-store\r\n"
# What is told of the jobs of one batch that came in one moment: that moment, what the worker took
# (another object for each batch), seconds from then to the answer, the header line.
_Told = tuple[float, bytes, float, bytes]
_PROBES: Final = (b"/health", b"/livez", b"/readyz", b"/metrics")


class Status(Protocol):
    """What is known of the service as a whole."""

    @property
    def why_not_ready(self) -> str:
        """Why no inference can be answered now, "" if one can."""

    def health(self, answer: Callable[[bool, dict[str, str]], None]) -> None:
        """Call ``answer`` with whether it is healthy and what to say, now or later."""

    def metrics(self, accept: str, names: list[str], answer: Callable[[bytes, str], None]) -> None:
        """Call ``answer`` with the exposition and its content type, now or later."""


class Front:
    """Answers the routes of one service; any other goes to ``fallback``.

    Args:
        dispatcher: Where jobs go.
        metrics: Where answers are counted.
        config: The settings.
        prefix: Where the routes are, "" at the root.
        status: What health, readiness and metrics say.
        clock: Seconds, the same as the dispatcher's.
        fallback: Answers the other routes; ``None`` if there are none.
        home: What ``GET /`` says without a fallback.
    """

    def __init__(
        self,
        dispatcher: Dispatcher,
        metrics: FrontMetrics,
        config: Config,
        *,
        status: Status,
        clock: Callable[[], float],
        prefix: str = "",
        fallback: Callable[[Request], None] | None = None,
        home: dict[str, Any] | None = None,
    ) -> None:
        self.clock = clock
        self.metrics = metrics
        self.dispatcher = dispatcher
        self._setting: CodecSetting = config.codec
        self._reader = TermsReader(config)
        self._status = status
        self._fallback = fallback
        self._home = home or {}
        self._instance = f"{prefix}/inference"
        base = unquote_to_bytes(prefix)
        self._inference = base + b"/inference"
        self._probes = {base + path: path[1:].decode() for path in _PROBES}
        self._root = base + b"/"
        self._id_prefix, self._serial = _id_prefix(), _FIRST_SERIAL
        self.told: _Told = math.nan, b"", 0.0, b""

    def handle(self, request: Request) -> None:
        """Answer a request, now or later."""
        terms = request.head.note
        if terms is None:
            self._route(request)
            return
        now = self.dispatcher.moment()
        serial = self._serial = self._serial + 1
        job = InferenceJob(f"{self._id_prefix}{serial}", request, self, terms, now)
        try:
            if self._setting == "auto" and (codec := sniff(request.body)) != terms.codec:
                job.terms = sniffed(terms, request.head, request.body, codec)
            self.dispatcher.add(job)
        except VentuError as exc:
            self._refuse(request, exc, now, job.request_id)
        else:
            request.on_disconnect = job.client_left

    def check(self, request: Request) -> Answer | None:
        """Return the answer to a request whose body is not worth reading, else ``None``."""
        path = path_of(request.head)
        if path == self._inference:
            try:
                self._reader.read(request.head)
            except VentuError as exc:
                return refusal(exc, self._instance, request.head)
            return None
        if request.method in (b"GET", b"HEAD"):
            return None
        if path in self._probes:
            return only_get(request.head)
        return self._elsewhere(request, path) if self._fallback is None else None

    # --------------------------------------------------------------------- inference

    def _route(self, request: Request) -> None:
        """Answer a request whose head was not seen before, or is not that of an inference."""
        path = path_of(request.head)
        if path == self._inference:
            self._learn_and_infer(request)
        elif path in self._probes:
            self._probe(request, self._probes[path])
        elif self._fallback is not None:
            self._fallback(request)
        else:
            request.respond(*self._elsewhere(request, path))

    def _learn_and_infer(self, request: Request) -> None:
        try:
            request.head.note = self._reader.read(request.head)
        except VentuError as exc:
            self._refuse(request, exc, self.clock())
        else:
            self.handle(request)

    def tell(self, job: "InferenceJob", timing: bytes) -> "_Told":
        """Return what is told of all jobs of a batch that came in one moment."""
        queued_at = job.queued_at
        seconds = self.clock() - queued_at
        waited = job.released_at - queued_at
        line = _TIMING % (waited * 1e3, seconds * 1e3, timing)
        told = self.told = queued_at, timing, seconds, line
        return told

    def _refuse(
        self, request: Request, exc: Exception, arrived_at: float, request_id: bytes = b""
    ) -> None:
        if isinstance(exc, (Unavailable, PayloadError)):
            self.metrics.rejected["full" if exc.status == 429 else "invalid"] += 1
        answer = refusal(exc, self._instance, request.head, request_id)
        self.metrics.request(answer[0], self.clock() - arrived_at)
        request.respond(*answer)

    def problem(self, status: int, detail: str, codec: Codec, request_id: bytes) -> Answer:
        """Return an answer with a problem document about an inference."""
        return problem_answer(status, detail, self._instance, codec, request_id)

    # ------------------------------------------------------------------------ others

    def _probe(self, request: Request, name: str) -> None:
        if request.method not in (b"GET", b"HEAD"):
            request.respond(*only_get(request.head))
        elif name == "livez":
            _respond_json(request, 200, {"status": "alive"})
        elif name == "readyz":
            why = self._status.why_not_ready
            ready = {"status": "not ready", "detail": why} if why else {"status": "ready"}
            _respond_json(request, 503 if why else 200, ready)
        elif name == "health":
            self._status.health(lambda ok, body: _respond_json(request, 200 if ok else 503, body))
        else:
            self._metrics(request)

    def _metrics(self, request: Request) -> None:
        query = request.target.partition(b"?")[2].decode("latin-1")
        names = parse_qs(query).get("name[]", [])
        accept = request.fields.get(b"accept", b"").decode("latin-1")

        def answer(body: bytes, content_type: str) -> None:
            headers = encode_headers([(b"Content-Type", content_type.encode())])
            request.respond(200, headers + _NO_STORE, body)

        self._status.metrics(accept, names, answer)

    def _elsewhere(self, request: Request, path: bytes) -> Answer:
        if path != self._root:
            return no_such_route(request.head)
        if request.method not in (b"GET", b"HEAD"):
            return only_get(request.head)
        return 200, b"Content-Type: application/json\r\n", to_json(self._home)


class InferenceJob(Job):
    """One inference request on its way through the queue; it knows how to answer.

    Attributes:
        request: What it is the job of.
        terms: What its head says.
        front: Who counts it.
    """

    __slots__ = ("front", "request", "terms")

    def __init__(
        self, id: str, request: Request, front: Front, terms: Terms, queued_at: float
    ) -> None:
        # What Job.__init__ does, too: a call less is a percent of all that a request takes here.
        self.payload = body = request.body
        self.id = id
        self.size = len(body)
        self.queued_at = queued_at
        self.deadline = queued_at + terms.timeout
        self.context = self.key = None
        self.state = "new"
        self.attempts = 0
        self.released_at = 0.0
        self.batch_size = 0
        self.request = request
        self.terms = terms
        self.front = front

    @property
    def request_id(self) -> bytes:
        """What the client calls it, else its own id."""
        return self.terms.request_id or self.id.encode()

    @property
    def codec(self) -> Codec:
        """What it came in and is answered in."""
        return self.terms.codec or "json"

    def answered(self, status: int, body: bytes, timing: bytes) -> None:
        """Pass the worker's answer on."""
        front, terms = self.front, self.terms
        queued_at, batch, seconds, line = front.told
        if queued_at != self.queued_at or batch is not timing:
            _, _, seconds, line = front.tell(self, timing)
        front.metrics.request(status, seconds)
        if status != 200:
            self._rejected(status, body)
            return
        request_id = terms.request_id or self.id.encode()
        self.request.respond(200, b"".join((_TYPES[terms.codec], request_id, line)), body)

    def _rejected(self, status: int, body: bytes) -> None:
        front, request, codec = self.front, self.request, self.codec
        front.metrics.rejected["invalid" if status in (400, 422) else "failed"] += 1
        if not body:  # the worker could not even send why
            detail = "the worker rejected this request"
            request.respond(*front.problem(status, detail, codec, self.request_id))
            return
        lines = b"Content-Type: %b\r\nX-Request-ID: %b\r\n"
        request.respond(status, lines % (PROBLEM_TYPES[codec], self.request_id), body)

    def failed(self, failure: Failure) -> None:
        """Say that no worker answered."""
        front = self.front
        front.metrics.request(failure.status, front.clock() - self.queued_at)
        self.request.respond(
            *front.problem(failure.status, failure.detail, self.codec, self.request_id)
        )

    def client_left(self) -> None:
        """Take note that nobody waits any more."""
        self.front.dispatcher.abandon(self)


_TIMING: Final = b"\r\nServer-Timing: queue;dur=%.3f, total;dur=%.3f%b\r\n"
_TYPES: Final[dict[Codec | None, bytes]] = {
    codec: b"Content-Type: %b\r\nX-Request-ID: " % media_type.encode()
    for codec, media_type in MEDIA_TYPE.items()
}


def _id_prefix() -> str:
    """Return the part of the job ids that tells this process from any other, as in a UUID 4."""
    digits = os.urandom(12).hex()
    return f"{digits[:8]}-{digits[8:12]}-4{digits[12:15]}-8{digits[15:18]}-"


def _respond_json(request: Request, status: int, body: dict[str, str]) -> None:
    request.respond(status, b"Content-Type: application/json\r\n" + _NO_STORE, to_json(body))
