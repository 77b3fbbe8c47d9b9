"""The queue of one service in an event loop: when to look at it, and whom to tell.

Every event only notes itself and asks for a turn; one turn for all events of a moment hands
batches out, answers what is finished and sets the one timer.
"""

import asyncio
import logging
import math
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, Protocol, cast

from ..errors import PayloadError, Unavailable
from ..problems import reason_of
from ..protocol import Results
from .jobs import WORKER_DIED, Failure, Job
from .queue import Queue
from .tally import FrontMetrics
from .workers import Batch

log = logging.getLogger(__name__)

#: What is told of a batch: seconds that the worker took, and jobs in it.
BatchTiming = tuple[float, int]
_HELD_TOO_LONG: Final = (
    "it held a batch for too long (batch_timeout says how long); if the model needs more time,"
    " raise VENTU_TIMEOUT"
)
_NO_TIMING: Final = (0.0, 0)


class Link(Protocol):
    """A connected worker."""

    def __hash__(self) -> int:
        """Tell it from other workers."""

    def send(self, payloads: dict[str, bytes]) -> None:
        """Give it a batch."""

    def cut_off(self, reason: str) -> None:
        """Close its connection, and end its process if it is ours; ``lost`` is not called."""


class Waiting(Protocol):
    """A job that knows who waits for it."""

    id: str

    def answered(self, status: int, body: bytes, timing: BatchTiming) -> None:
        """Take the worker's answer.

        Args:
            status: The HTTP status.
            body: The response or the error body.
            timing: That of the batch, the same object for all its jobs.
        """

    def failed(self, failure: Failure) -> None:
        """Take note that no worker answered."""


class Dispatcher:
    """Gives the jobs of a queue to links, and the results back to the jobs.

    Only for the thread of its event loop.

    Args:
        queue: The jobs and the workers.
        metrics: What is counted.
        loop: The event loop.
        clock: Monotonic seconds; the time of uvloop's own clock comes in whole milliseconds.
    """

    def __init__(
        self,
        queue: Queue[Link],
        metrics: FrontMetrics,
        loop: asyncio.AbstractEventLoop,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.queue = queue
        self._metrics = metrics
        self._loop = loop
        self.clock = clock
        self._tells = log.isEnabledFor(logging.DEBUG)
        self._turn_is_due = False
        self._moment = -math.inf
        self._timer: asyncio.TimerHandle | None = None
        self._wake_at = math.inf

    def moment(self) -> float:
        """Return the time, the same one for all that comes before the next turn.

        It all came in one turn of the loop, so what lies between is our own work; and what has the
        same time can be counted and told together.
        """
        if not self._turn_is_due:
            self._ask_for_turn()
        return self._moment

    def add(self, job: Job) -> None:
        """Let a job wait for its turn.

        Raises:
            Unavailable, PayloadError: The queue does not take it.
        """
        self.queue.add(job)
        if not self._turn_is_due:
            self._ask_for_turn()

    def add_first(self, job: Job) -> None:
        """Let a job go before all that wait, however many they are; see ``Queue.add_first``.

        Raises:
            Unavailable, PayloadError: The queue does not take it.
        """
        self.queue.add_first(job)
        self._ask_for_turn()

    def add_all(self, jobs: Sequence[Job]) -> None:
        """Let jobs wait for their turn, all of them or none; the refusal is counted.

        Raises:
            Unavailable, PayloadError: As ``add``, for the first that is not taken; or there is
                never room for so many.
        """
        try:
            self.queue.check_fits(len(jobs))
            for job in jobs:
                self.add(job)
        except Exception as exc:
            for job in jobs:
                self.queue.abandon(job)
            if isinstance(exc, PayloadError | Unavailable):
                self._metrics.refused(exc.status)
            raise

    def abandon(self, job: Job) -> None:
        """Forget a job whose client has gone."""
        if self.queue.abandon(job):
            self._metrics.rejected["gone"] += 1
            self._ask_for_turn()

    def ready(self, link: Link) -> None:
        """Take note that a worker wants a batch.

        Raises:
            ProtocolError: It has one.
        """
        self.queue.ready(link, self.clock())
        self._ask_for_turn()

    def results(self, link: Link, results: Results) -> None:
        """Answer the jobs of a batch, but hand out the next one first.

        The worker is the narrow place: it must not wait while answers are written.

        Raises:
            ProtocolError: They do not belong to the batch of this worker.
        """
        now = self._moment = self.clock()
        batch = self.queue.accept(link, results.payloads, now)
        if batch.unanswered:
            _warn_of_unanswered(batch)
        self._hand_out(now)
        self._ask_for_turn()  # for jobs that come in a moment: before the answers are written, too
        seconds = now - batch.released_at
        if results.infer is not None:  # it cannot have worked for longer than it had the batch
            seconds = min(seconds, results.infer)
        self._answer(results.rejected, (seconds, batch.size))

    def retire(self, link: Link) -> None:
        """Take note that a worker wants no further batch; to be called before its last results."""
        self.queue.retire(link)

    def lost(self, link: Link) -> None:
        """Take note that a worker has gone; its jobs are tried again."""
        self._lose(link, self.clock())
        self._ask_for_turn()

    @property
    def refusal(self) -> str:
        """Why no new job is taken now, "" if any is."""
        return self.queue.refusal

    def refuse(self, why: str) -> None:
        """Take no new jobs for this reason, or again if there is none."""
        self.queue.refuse(why)

    def close(self) -> None:
        """Take no new jobs and stop the timer; who still waits, such as a thread, is let go."""
        self.queue.drain()
        self.queue.expire(math.inf)
        self._answer({}, _NO_TIMING)
        if self._timer is not None:
            self._timer.cancel()

    def _ask_for_turn(self) -> None:
        if not self._turn_is_due:
            self._turn_is_due = True
            self._moment = self.clock()
            self._loop.call_soon(self._turn)

    def _turn(self) -> None:
        self._turn_is_due = False
        now = self.clock()
        self._hand_out(now)
        self._answer({}, _NO_TIMING)
        self._set_timer(now)

    def _hand_out(self, now: float) -> None:
        metrics = self._metrics
        while batch := self.queue.take(now):
            self._send(batch, now)
            if self._tells:
                log.debug("%s", self.queue.describe(batch))
            metrics.released[batch.reason] += 1
            metrics.batch_size.observe(batch.size)
            metrics.queue_seconds.observe_all([now - job.queued_at for job in batch.jobs.values()])

    def _send(self, batch: Batch[Link], now: float) -> None:
        try:
            batch.worker.send({job.id: job.payload for job in batch.jobs.values()})
        except Exception:  # one broken worker must not keep the others from their jobs
            log.exception("a batch could not be sent to %r", batch.worker)
            self._cut_off(batch.worker, "it could not be sent a batch", now)

    def _answer(self, rejected: Mapping[str, int], timing: BatchTiming) -> None:
        for job, outcome in cast("list[tuple[Waiting, Any]]", self.queue.finished()):
            try:
                if type(outcome) is Failure:
                    self._metrics.rejected[outcome.reason] += 1
                    job.failed(outcome)
                else:
                    status = rejected.get(job.id, 200) if rejected else 200
                    if status != 200:
                        self._metrics.rejected[reason_of(status)] += 1
                    job.answered(status, outcome, timing)
            except Exception:  # who cannot take an answer must not keep the others from theirs
                log.exception("the answer to job %s is lost", job.id)

    def _cut_off(self, link: Link, reason: str, now: float) -> None:
        try:
            link.cut_off(reason)
        except Exception:  # its jobs wait, and those of others
            log.exception("%r could not be cut off", link)
        self._lose(link, now)

    def _lose(self, link: Link, now: float) -> None:
        batch = self.queue.lose(link, now)
        if batch is not None and batch.unanswered:
            _warn_of_unanswered(batch)

    def _set_timer(self, now: float) -> None:
        """See to it that ``_timed_out`` comes when it is needed, or earlier.

        The next deadline moves on with every batch. A timer that comes too early does no harm, but
        to set another each time costs more than the turn itself.
        """
        wake_at = self.queue.wake_at(now)
        if wake_at is None or self._wake_at <= wake_at:
            return
        if self._timer is not None:
            self._timer.cancel()
        self._wake_at = wake_at
        # uvloop rounds to milliseconds. A wait of less than half of one comes at once, again and
        # again until it is due: at 16 clients that makes a third more requests than to round up.
        self._timer = self._loop.call_later(max(0.0, wake_at - now), self._timed_out)

    def _timed_out(self) -> None:
        self._timer = None
        self._wake_at = math.inf
        now = self.clock()
        for link in self.queue.overdue(now):
            self._cut_off(link, _HELD_TOO_LONG, now)
        self.queue.expire(now)
        self._turn()


def _warn_of_unanswered(batch: Batch[Link]) -> None:
    jobs = batch.unanswered
    wait = jobs[0].state == "waiting"
    log.warning(
        "%r has not answered %d of its %d job(s); they %s",
        batch.worker,
        len(jobs),
        batch.size,
        "are tried again" if wait else f"get {WORKER_DIED.status}",
    )
