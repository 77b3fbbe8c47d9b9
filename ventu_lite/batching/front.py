"""The HTTP side of the batching service: requests become jobs, results become answers."""

import hmac
import math
import os
import re
from collections.abc import Callable
from functools import lru_cache
from typing import Any, Final, Protocol

from pydantic_core import to_json

from ..codecs import MEDIA_TYPE, PROBLEM_TYPE, request_codec, response_type, sniff
from ..config import Codec, CodecSetting, Config
from ..errors import MalformedPayload, PayloadError, Unavailable, VentuError
from ..problems import encode_problem, problem
from .dispatcher import Dispatcher
from .http import Answer
from .http_request import Request, encode_headers
from .jobs import Failure, Job
from .tally import FrontMetrics

_SANE_ID: Final = re.compile(rb"[A-Za-z0-9._:/+=@~-]{1,128}")
_NO_STORE: Final = b"Cache-Control: no-store\r\n"
_PROBES: Final = (b"/health", b"/livez", b"/readyz", b"/metrics")


class Unauthorized(VentuError):
    """The API key is missing or wrong."""


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
        self._timeout = config.timeout
        key = config.api_key
        self._api_key = key.get_secret_value().encode() if key else None
        self._status = status
        self._fallback = fallback
        self._home = home or {}
        base = prefix.encode()
        self._inference = base + b"/inference"
        self._probes = {base + path: path[1:].decode() for path in _PROBES}
        self._root = base + b"/"
        self._id_prefix, self._serial = _id_prefix(), 0

    def handle(self, request: Request) -> None:
        """Answer a request, now or later."""
        path = request.target.partition(b"?")[0]
        if path == self._inference:
            self._infer(request)
        elif path in self._probes:
            self._probe(request, self._probes[path])
        elif self._fallback is not None:
            self._fallback(request)
        else:
            request.respond(*self._elsewhere(request, path))

    def check(self, request: Request) -> Answer | None:
        """Return the answer to a request whose body is not worth reading, else ``None``."""
        path = request.target.partition(b"?")[0]
        if path == self._inference:
            try:
                self._terms(request)
            except (VentuError, MethodNotAllowed) as exc:
                return self.refusal(exc, self._codec_of_error(request), self._request_id(request))
            return None
        if self._fallback is None or path in self._probes:
            return None if request.method in (b"GET", b"HEAD") else self._wrong(request, b"GET")
        return None

    # --------------------------------------------------------------------- inference

    def _infer(self, request: Request) -> None:
        now = self.clock()
        self._serial += 1
        id = f"{self._id_prefix}{self._serial:012x}"
        given = request.fields.get(b"x-request-id")
        sane = given is not None and _SANE_ID.fullmatch(given) is not None
        request_id = given if given is not None and sane else id.encode()
        exchange = Exchange(self, request, "json", request_id)
        try:
            codec, timeout = self._terms(request)
            body = request.body
            if codec is None:
                codec = sniff(body)
                _check_accept(request.fields.get(b"accept", b""), codec, self._setting)
            exchange.codec = codec
            job = Job(id, body, len(body), now, now + timeout, exchange)
            exchange.job = job
            self.dispatcher.add(job)
            request.on_disconnect = exchange.gone
        except (VentuError, MethodNotAllowed) as exc:
            self._refuse(exchange, exc, now)

    def _terms(self, request: Request) -> tuple[Codec | None, float]:
        """Return the codec, if it is announced, and the seconds that a request may take.

        Raises:
            VentuError, MethodNotAllowed: It cannot be answered, whatever its body.
        """
        fields = request.fields
        if request.method != b"POST":
            raise MethodNotAllowed
        if self._api_key is not None:
            _authorize(fields.get(b"authorization", b""), self._api_key)
        content_type = fields.get(b"content-type", b"")
        codec = request_codec(content_type.decode("latin-1"), self._setting)
        if b"content-encoding" in fields and fields[b"content-encoding"].lower() != b"identity":
            raise _unreadable()
        if codec is not None and b"accept" in fields:
            _check_accept(fields[b"accept"], codec, self._setting)
        if b"x-request-timeout" in fields:
            return codec, min(self._timeout, _seconds(fields[b"x-request-timeout"]))
        return codec, self._timeout

    def _refuse(self, exchange: "Exchange", exc: Exception, arrived_at: float) -> None:
        reason = "full" if getattr(exc, "status", 0) == 429 else "invalid"
        if isinstance(exc, (Unavailable, PayloadError)):
            self.metrics.rejected[reason] += 1
        request = exchange.request
        answer = self.refusal(exc, self._codec_of_error(request), exchange.request_id)
        self.metrics.request(answer[0], self.clock() - arrived_at)
        request.respond(*answer)

    def refusal(self, exc: Exception, codec: Codec, request_id: bytes) -> Answer:
        """Return the answer for an exception."""
        if isinstance(exc, MethodNotAllowed):
            return self.problem(405, "ask with POST", codec, request_id, b"Allow: POST\r\n")
        if isinstance(exc, Unauthorized):
            headers = b"WWW-Authenticate: Bearer\r\n"
            return self.problem(401, str(exc), codec, request_id, headers)
        headers = b""
        if isinstance(exc, Unavailable) and exc.retry_after is not None:
            headers = b"Retry-After: %d\r\n" % math.ceil(exc.retry_after)
        status = exc.status if isinstance(exc, (Unavailable, PayloadError)) else 500
        return self.problem(status, str(exc), codec, request_id, headers)

    def problem(
        self, status: int, detail: str, codec: Codec, request_id: bytes, headers: bytes = b""
    ) -> Answer:
        """Return an answer with a problem document."""
        instance = f"{self._inference.decode()}#{request_id.decode()}"
        body = encode_problem(problem(status, detail, instance), codec)
        type_ = PROBLEM_TYPE[codec].encode()
        lines = b"Content-Type: %b\r\nX-Request-ID: %b\r\n%b" % (type_, request_id, headers)
        return status, lines, body

    def _codec_of_error(self, request: Request) -> Codec:
        """Return "msgpack" for a client that speaks nothing else."""
        accept = request.fields.get(b"accept", b"")
        wanted = accept + request.fields.get(b"content-type", b"")
        return "msgpack" if b"msgpack" in wanted and b"json" not in accept else "json"

    def _request_id(self, request: Request) -> bytes:
        given = request.fields.get(b"x-request-id", b"")
        return given if _SANE_ID.fullmatch(given) else os.urandom(16).hex().encode()

    # ------------------------------------------------------------------------ others

    def _probe(self, request: Request, name: str) -> None:
        if request.method not in (b"GET", b"HEAD"):
            request.respond(*self._wrong(request, b"GET"))
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
        from urllib.parse import parse_qs

        query = request.target.partition(b"?")[2].decode("latin-1")
        names = parse_qs(query).get("name[]", [])
        accept = request.fields.get(b"accept", b"").decode("latin-1")

        def answer(body: bytes, content_type: str) -> None:
            headers = encode_headers([(b"Content-Type", content_type.encode())])
            request.respond(200, headers + _NO_STORE, body)

        self._status.metrics(accept, names, answer)

    def _elsewhere(self, request: Request, path: bytes) -> Answer:
        if path != self._root:
            return self.problem(404, "no such route", "json", self._request_id(request))
        if request.method not in (b"GET", b"HEAD"):
            return self._wrong(request, b"GET")
        return 200, b"Content-Type: application/json\r\n", to_json(self._home)

    def _wrong(self, request: Request, allowed: bytes) -> Answer:
        headers = b"Allow: %b, HEAD\r\n" % allowed
        return self.problem(405, "wrong method", "json", self._request_id(request), headers)


_ANSWER_HEADERS: Final = (
    b"Content-Type: %b\r\nX-Request-ID: %b\r\nServer-Timing: queue;dur=%.3f, infer;dur=%.3f,"
    b' total;dur=%.3f, batch;desc="%d"\r\n'
)


class MethodNotAllowed(Exception):
    """The route exists, but not for this method."""


class Exchange:
    """One inference request on its way: who asked, how to answer."""

    __slots__ = ("codec", "front", "job", "request", "request_id")

    def __init__(self, front: Front, request: Request, codec: Codec, request_id: bytes) -> None:
        self.front = front
        self.request = request
        self.codec: Codec = codec
        self.request_id = request_id
        self.job: Job | None = None

    def answered(self, job: Job, status: int, body: bytes, infer: float | None) -> None:
        """Pass the worker's answer on."""
        front = self.front
        seconds = front.clock() - job.queued_at
        front.metrics.request(status, seconds)
        if status != 200:
            self._rejected(status, body)
            return
        headers = _ANSWER_HEADERS % (
            _TYPES[self.codec],
            self.request_id,
            (job.released_at - job.queued_at) * 1e3,
            (infer or 0.0) * 1e3,
            seconds * 1e3,
            job.batch_size,
        )
        self.request.respond(200, headers, body)

    def _rejected(self, status: int, body: bytes) -> None:
        reason = "invalid" if status in (400, 422) else "failed"
        self.front.metrics.rejected[reason] += 1
        if not body:  # the worker could not even send why
            detail = "the worker rejected this request"
            self.request.respond(*self.front.problem(status, detail, self.codec, self.request_id))
            return
        lines = b"Content-Type: %b\r\nX-Request-ID: %b\r\n"
        headers = lines % (PROBLEM_TYPE[self.codec].encode(), self.request_id)
        self.request.respond(status, headers, body)

    def failed(self, job: Job, failure: Failure) -> None:
        """Say that no worker answered."""
        front = self.front
        front.metrics.request(failure.status, front.clock() - job.queued_at)
        answer = front.problem(failure.status, failure.detail, self.codec, self.request_id)
        self.request.respond(*answer)

    def gone(self) -> None:
        """Take note that the client has left."""
        if self.job is not None:
            self.front.dispatcher.abandon(self.job)


_TYPES: Final = {codec: media_type.encode() for codec, media_type in MEDIA_TYPE.items()}


def _id_prefix() -> str:
    """Return the part of the job ids that tells this process from any other, as in a UUID 4."""
    digits = os.urandom(12).hex()
    return f"{digits[:8]}-{digits[8:12]}-4{digits[12:15]}-8{digits[15:18]}-"


@lru_cache(maxsize=128)
def _check_accept(accept: bytes, codec: Codec, setting: CodecSetting) -> None:
    """Refuse an ``Accept`` that excludes the codec of the request: a worker answers in that.

    Raises:
        PayloadError: It does.
    """
    if accept:
        response_type(accept.decode("latin-1"), MEDIA_TYPE[codec], codec)


def _authorize(header: bytes, key: bytes) -> None:
    scheme, _, given = header.partition(b" ")
    if scheme.lower() != b"bearer" or not hmac.compare_digest(given.strip(), key):
        raise Unauthorized("send the key of this service: Authorization: Bearer KEY")


def _seconds(header: bytes) -> float:
    try:
        seconds = float(header)
    except ValueError:
        seconds = 0.0
    if not 0 < seconds < math.inf:
        raise MalformedPayload("X-Request-Timeout must be a positive number of seconds")
    return seconds


def _unreadable() -> PayloadError:
    from ..errors import UnsupportedMediaType

    return UnsupportedMediaType("no content encoding is read here; send the body as it is")


def _respond_json(request: Request, status: int, body: dict[str, str]) -> None:
    request.respond(status, b"Content-Type: application/json\r\n" + _NO_STORE, to_json(body))
