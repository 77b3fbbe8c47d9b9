"""One inference on its way through the queue; its answer is that of a worker, or says why not."""

import logging
from typing import TYPE_CHECKING

from ..config import Codec
from .dispatcher import BatchTiming
from .http_request import Request
from .jobs import Failure, Job
from .refusals import PROBLEM_TYPES, problem_answer, with_path
from .terms import Terms

if TYPE_CHECKING:
    from .front import Front

log = logging.getLogger(__name__)


class InferenceJob(Job):
    """One inference request on its way through the queue; it knows how to answer.

    Attributes:
        request: What it is the job of.
        terms: What its head says.
        front: Who counts it.
    """

    __slots__ = ("front", "request", "terms")

    def __init__(
        self, id: str, request: Request, front: "Front", terms: Terms, queued_at: float
    ) -> None:
        # What Job.__init__ does, too: a call less is a percent of all that a request takes here.
        self.payload = body = request.body
        self.id = id
        self.size = len(body)
        self.queued_at = queued_at
        self.deadline = queued_at + terms.timeout
        self.key = None
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

    def answered(self, status: int, body: bytes, timing: BatchTiming) -> None:
        """Pass the worker's answer on."""
        front, terms = self.front, self.terms
        queued_at, batch, seconds, line = front.timing_line
        if queued_at != self.queued_at or batch is not timing:
            _, _, seconds, line = front.make_timing_line(self, timing)
        front.metrics.request(status, seconds)
        if status != 200:
            self._rejected(status, body)
            return
        request_id = terms.request_id or self.id.encode()
        self.request.respond(200, b"".join((terms.lines, request_id, line)), body)

    def _rejected(self, status: int, body: bytes) -> None:
        if status == 500 and self.terms.request_id:  # others are those of stages that abort
            self._log(f"got {status} from a worker; look for the job in its log")
        if not body:  # the worker could not even send why
            self._respond_problem(status, "the worker rejected this request")
            return
        codec, lines = self.codec, b"Content-Type: %b\r\nX-Request-ID: %b\r\n"
        body = with_path(body, self.terms.instance, codec, self.id)
        self.request.respond(status, lines % (PROBLEM_TYPES[codec], self.request_id), body)

    def failed(self, failure: Failure) -> None:
        """Say that no worker answered."""
        self.front.metrics.request(failure.status, self.front.clock() - self.queued_at)
        if failure.status == 500:
            self._log(f"got no answer: {failure.detail}")
        self._respond_problem(failure.status, self.front.detail_of(failure))

    def _respond_problem(self, status: int, detail: str) -> None:
        terms = self.terms
        answer = problem_answer(status, detail, terms.instance, self.codec, self.request_id)
        self.request.respond(*answer)

    def _log(self, what: str) -> None:
        """Join the id that the client knows and that which the worker knows."""
        request_id = self.request_id.decode()
        log.error(
            "request %s failed: job %s %s",
            request_id,
            self.id,
            what,
            extra={"request_id": request_id, "job_id": self.id},
        )

    def client_left(self) -> None:
        """Take note that nobody waits any more."""
        self.front.dispatcher.abandon(self)
