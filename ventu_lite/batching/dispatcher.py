"""The queue of one service in an event loop: when to look at it, and whom to tell.

Every event only notes itself and asks for a turn; one turn for all events of a moment hands
batches out, answers what is finished and sets the one timer.
"""

import asyncio
import logging
import math
import time
from collections.abc import Callable, Mapping
from typing import Protocol, cast

from ..protocol import Results
from .jobs import Failure, Job
from .queue import Queue
from .tally import FrontMetrics
from .workers import Batch

log = logging.getLogger(__name__)


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

    def answered(self, status: int, body: bytes, timing: bytes) -> None:
        """Take the worker's answer.

        Args:
            status: The HTTP status.
            body: The response or the error body.
            timing: What ``Server-Timing`` says of the batch, with a leading comma.
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
        if results.bye:
            self.queue.retire(link)
        batch = self.queue.accept(link, results.payloads, now)
        self._hand_out(now)
        self._ask_for_turn()  # for jobs that come in a moment: before the answers are written, too
        seconds = now - batch.released_at
        if results.infer is not None:  # it cannot have worked for longer than it had the batch
            seconds = min(seconds, results.infer)
        timing = b', infer;dur=%.3f, batch;desc="%d"' % (seconds * 1e3, batch.size)
        self._answer(results.rejected, timing)

    def retire(self, link: Link) -> None:
        """Take note that a worker wants no further batch."""
        self.queue.retire(link)

    def lost(self, link: Link) -> None:
        """Take note that a worker has gone; its jobs are tried again."""
        self.queue.lose(link, self.clock())
        self._ask_for_turn()

    def drain(self) -> None:
        """Take no new jobs, and let no other wait for company."""
        self.queue.drain()
        self._ask_for_turn()

    def close(self) -> None:
        """Stop the timer."""
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
        self._answer({}, b"")
        self._set_timer(now)

    def _hand_out(self, now: float) -> None:
        metrics = self._metrics
        while batch := self.queue.take(now):
            self._send(batch)
            if self._tells:
                self._tell(batch, now)
            metrics.released[batch.reason] += 1
            metrics.batch_size.observe(batch.size)
            metrics.queue_seconds.observe_all([now - job.queued_at for job in batch.jobs.values()])

    def _tell(self, batch: Batch[Link], now: float) -> None:
        log.debug(
            "released %d job(s) to %r (%s): the oldest waited %.3f ms, %d still wait; %s",
            batch.size,
            batch.worker,
            batch.reason,
            (now - next(iter(batch.jobs.values())).queued_at) * 1e3,
            self.queue.waiting,
            self.queue.explain(),
        )

    def _send(self, batch: Batch[Link]) -> None:
        batch.worker.send({job.id: job.payload for job in batch.jobs.values()})

    def _answer(self, rejected: Mapping[str, int], timing: bytes) -> None:
        for job, outcome in self.queue.finished():
            waiting = cast(Waiting, job)
            if type(outcome) is Failure:
                self._metrics.rejected[outcome.reason] += 1
                waiting.failed(outcome)
            else:
                status = rejected.get(job.id, 200) if rejected else 200
                waiting.answered(status, outcome, timing)

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
            link.cut_off("it held a batch for too long")
            self.queue.lose(link, now)
        self.queue.expire(now)
        self._turn()
