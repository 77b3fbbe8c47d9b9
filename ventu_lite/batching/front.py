"""The routes of the batching service: requests become jobs, or are answered at once."""

import os
from collections.abc import Callable, Iterable
from typing import Any, Final, Protocol
from urllib.parse import parse_qs, quote, unquote_to_bytes

from pydantic_core import to_json

from ..codecs import sniff
from ..config import CodecSetting, Config
from ..errors import VentuError
from ..http.head import Head
from ..http.request import Answer, Request, encode_headers
from ..problems import ONLY_A_PAGE
from .dispatcher import Dispatcher
from .inference_job import InferenceJob, Reporter
from .refusals import no_such_route, only_get, refusal, unreadable
from .tally import FrontMetrics
from .terms import MethodNotAllowed, Terms, TermsReader, sniffed

_FIRST_SERIAL: Final = 10**11  # so that each has twelve digits
_NO_STORE: Final = b"Cache-Control: no-store\r\n"
_PROBES: Final = (b"/health", b"/livez", b"/readyz", b"/metrics")


class Status(Protocol):
    """What is known of the service as a whole."""

    @property
    def why_not_ready(self) -> str:
        """Why no inference can be answered now, "" if one can."""

    def health(self, answer: Callable[[bool, dict[str, str]], None]) -> None:
        """Call ``answer`` with whether it is healthy and what to say, now or later."""

    def metrics(
        self, accept: str, names: list[str], answer: Callable[[int, bytes, str], None]
    ) -> None:
        """Call ``answer`` with a status, the exposition and its content type, now or later."""


class Front:
    """Answers the routes of one service, wherever they are; any other goes to ``fallback``.

    Every POST to an inference route that is answered is counted, once.

    Args:
        dispatcher: Where jobs go.
        metrics: Where answers are counted.
        config: The settings.
        status: What health, readiness and metrics say.
        clock: Seconds, the same as the dispatcher's.
        prefixes: Where the routes are, "" for the root.
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
        prefixes: Iterable[str] = ("",),
        fallback: Callable[[Request], None] | None = None,
        home: dict[str, Any] | None = None,
    ) -> None:
        self._clock = clock
        self._metrics = metrics
        self._dispatcher = dispatcher
        self._setting: CodecSetting = config.codec
        self._reader = TermsReader(config)
        self._status = status
        self._reporter = Reporter(
            metrics,
            clock=clock,
            why_not_ready=lambda: status.why_not_ready,
            abandon=dispatcher.abandon,
        )
        self._fallback = fallback
        self._home = home or {}
        bases = [unquote_to_bytes(prefix) for prefix in prefixes]
        self._instances = {base + b"/inference": quote(base + b"/inference") for base in bases}
        self._probes = {base + path: path[1:].decode() for base in bases for path in _PROBES}
        self._homes = {base + b"/" for base in bases}
        self._id_prefix, self._serial = _id_prefix(), _FIRST_SERIAL

    def handle(self, request: Request) -> None:
        """Answer a request, now or later."""
        terms: Terms | None = request.head.note
        if terms is None:
            self._route(request)
            return
        now = self._dispatcher.moment()
        serial = self._serial = self._serial + 1
        job = InferenceJob(f"{self._id_prefix}{serial}", request, self._reporter, terms, now)
        try:
            if self._setting == "auto" and (codec := sniff(request.body)) != terms.codec:
                job.terms = sniffed(terms, request.head, request.body, codec)
            self._dispatcher.add(job)
        except VentuError as exc:
            request.respond(*self._refusal(exc, request.head, now, job.request_id))
        else:
            request.on_disconnect = job.client_left

    def check(self, request: Request) -> Answer | None:
        """Return the answer to a request whose body is not worth reading, else ``None``."""
        head = request.head
        path = head.path
        if path in self._instances:
            try:
                self._reader.read(head, self._instances[path])
            except VentuError as exc:
                return self._refusal(exc, head, self._clock())
            return None
        if head.method in (b"GET", b"HEAD"):
            return None
        if path in self._probes:
            return only_get(head)
        return self._elsewhere(head, path) if self._fallback is None else None

    def refuse(self, status: int, detail: str, head: Head | None = None, /) -> Answer:
        """Return the answer to a request that does not come whole, or has no room."""
        if head is not None and head.method == b"POST" and head.path in self._instances:
            self._count(status, 0.0)
        return unreadable(status, detail, head)

    # --------------------------------------------------------------------- inference

    def _route(self, request: Request) -> None:
        """Answer a request whose head was not seen before, or is not that of an inference."""
        path = request.head.path
        if path in self._instances:
            self._learn_and_infer(request, self._instances[path])
        elif path in self._probes:
            self._probe(request, self._probes[path])
        elif self._fallback is not None:
            self._fallback(request)
        else:
            request.respond(*self._elsewhere(request.head, path))

    def _learn_and_infer(self, request: Request, instance: str) -> None:
        try:
            request.head.note = self._reader.read(request.head, instance)
        except VentuError as exc:
            request.respond(*self._refusal(exc, request.head, self._clock()))
        else:
            self.handle(request)

    def _refusal(self, exc: Exception, head: Head, arrived_at: float, id: bytes = b"") -> Answer:
        answer = refusal(exc, self._instances[head.path], head, id)
        if not isinstance(exc, MethodNotAllowed):
            self._count(answer[0], self._clock() - arrived_at)
        return answer

    def _count(self, status: int, seconds: float) -> None:
        """Count an inference that does not get into the queue."""
        self._metrics.refused(status)
        self._metrics.request(status, seconds)

    # ------------------------------------------------------------------------ others

    def _probe(self, request: Request, name: str) -> None:
        if request.method not in (b"GET", b"HEAD"):
            request.respond(*only_get(request.head))
        elif name == "livez":
            request.respond(*_document(200, {"status": "alive"}))
        elif name == "readyz":
            request.respond(*_readiness(self._status.why_not_ready))
        elif name == "health":
            self._status.health(
                lambda ok, body: request.respond(*_document(200 if ok else 503, body))
            )
        else:
            self._show_metrics(request)

    def _show_metrics(self, request: Request) -> None:
        query = request.target.partition(b"?")[2].decode("latin-1")
        names = parse_qs(query).get("name[]", [])
        accept = request.fields.get(b"accept", b"").decode("latin-1")

        def answer(status: int, body: bytes, content_type: str) -> None:
            headers = encode_headers([(b"Content-Type", content_type.encode())])
            request.respond(status, headers + _NO_STORE, body)

        self._status.metrics(accept, names, answer)

    def _elsewhere(self, head: Head, path: bytes) -> Answer:
        if path not in self._homes:
            return no_such_route(head)
        if head.method not in (b"GET", b"HEAD"):
            return only_get(head, ONLY_A_PAGE)
        return 200, b"Content-Type: application/json\r\n", to_json(self._home)


def _id_prefix() -> str:
    """Return the part of the job ids that tells this process from any other, as in a UUID 4."""
    digits = os.urandom(12).hex()
    return f"{digits[:8]}-{digits[8:12]}-4{digits[12:15]}-8{digits[15:18]}-"


def _readiness(why_not: str) -> Answer:
    if why_not:
        return _document(503, {"status": "not ready", "detail": why_not}, b"Retry-After: 1\r\n")
    return _document(200, {"status": "ready"})


def _document(status: int, body: dict[str, str], headers: bytes = b"") -> Answer:
    return status, b"Content-Type: application/json\r\n" + _NO_STORE + headers, to_json(body)
