"""One inference on its way through the queue; its answer is that of a worker, or says why not."""

import logging
import math
from collections.abc import Callable
from typing import Final

from ..config import Codec
from ..http.request import Request
from .dispatcher import BatchTiming
from .jobs import NO_ANSWER, UNSERVED, Failure, Job
from .refusals import PROBLEM_TYPES, problem_answer, with_path
from .tally import FrontMetrics
from .terms import Terms

log = logging.getLogger(__name__)

_TIMING: Final = (
    b'\r\nServer-Timing: queue;dur=%.3f, infer;dur=%.3f, total;dur=%.3f, batch;desc="%d"\r\n'
)
# What is told of the jobs of one batch that came in one moment: that moment, what the worker took
# (another object for each batch), seconds from then to the answer, the header line.
_TimingLine = tuple[float, BatchTiming, float, bytes]


class Reporter:
    """Counts the answers to inferences, and says how long they took or why there is none.

    Args:
        metrics: Where answers are counted.
        clock: Seconds, on which jobs are timed.
        why_not_ready: Returns why no inference can be answered now, "" if one can.
        abandon: Called with a job whose client has gone.

    Attributes:
        timing_line: What was told last.
    """

    def __init__(
        self,
        metrics: FrontMetrics,
        *,
        clock: Callable[[], float],
        why_not_ready: Callable[[], str],
        abandon: Callable[[Job], None],
    ) -> None:
        self.abandon = abandon
        self.count = metrics.request
        self.clock = clock
        self._why_not_ready = why_not_ready
        self.timing_line: _TimingLine = math.nan, (0.0, 0), 0.0, b""

    def make_timing_line(self, job: Job, timing: BatchTiming) -> _TimingLine:
        """Return what is told of all jobs of a batch that came in one moment."""
        queued_at = job.queued_at
        seconds = self.clock() - queued_at
        waited, (infer, size) = job.released_at - queued_at, timing
        line = _TIMING % (waited * 1e3, infer * 1e3, seconds * 1e3, size)
        made = self.timing_line = queued_at, timing, seconds, line
        return made

    def detail_of(self, failure: Failure) -> str:
        """Return what a client is told of a failure, and why nobody was there, if that is so."""
        why_not = self._why_not_ready() if failure is UNSERVED else ""
        return f"{NO_ANSWER}; {why_not}" if why_not else failure.detail


class InferenceJob(Job):
    """One inference request on its way through the queue; it knows how to answer.

    Attributes:
        request: What it is the job of.
        terms: What its head says.
        reporter: Who counts its answer.
    """

    __slots__ = ("reporter", "request", "terms")

    def __init__(
        self, id: str, request: Request, reporter: Reporter, terms: Terms, queued_at: float
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
        self.reporter = reporter

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
        reporter, terms = self.reporter, self.terms
        queued_at, batch, seconds, line = reporter.timing_line
        if queued_at != self.queued_at or batch is not timing:
            _, _, seconds, line = reporter.make_timing_line(self, timing)
        reporter.count(status, seconds)
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
        reporter = self.reporter
        reporter.count(failure.status, reporter.clock() - self.queued_at)
        if failure.status == 500:
            self._log(f"got no answer: {failure.detail}")
        self._respond_problem(failure.status, reporter.detail_of(failure))

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
        self.reporter.abandon(self)
