"""The queue of one process, with a lock for the threads that share it."""

import logging
import math
import threading
from collections.abc import Callable, Sequence
from typing import Any, Final

from ..metrics import ServiceMetrics
from ..outcomes import Rejected
from .jobs import Failure
from .local_jobs import Asked, LocalJob, WakeUps, late_faults
from .policy import Policy
from .queue import Queue
from .workers import Batch

log = logging.getLogger(__name__)

#: What the queue calls the inference thread.
_THREAD: Final = "the inference thread"
#: A time to wake at that nothing comes before: the inference thread does not sleep.
_AWAKE: Final = -math.inf
_NO_LIMIT: Final = 2**62  # bytes of a message: there are no messages


class SharedQueue:
    """The jobs of many threads, and the one thread that takes them in batches.

    Nobody polls: the inference thread sleeps until a batch is due, a request thread until its job
    is done or its deadline has come. A job that is added wakes the inference thread only if that
    makes a batch due earlier.

    Args:
        make_policy: Returns a new policy that says when a batch is due.
        begin: Starts the inference thread, with the lock held: for the first job, and for the
            first after it died.
        max_batch_size: Jobs in a batch.
        capacity: Jobs that may wait.
        metrics: What is counted.
        clock: Monotonic seconds; deadlines are read on it.

    Attributes:
        wake_ups: Whom every request thread tells that it goes on.
    """

    def __init__(
        self,
        make_policy: Callable[[], Policy],
        begin: Callable[[], None],
        *,
        max_batch_size: int,
        capacity: int,
        metrics: ServiceMetrics,
        clock: Callable[[], float],
    ) -> None:
        self._make_policy = make_policy
        self._begin = begin
        self._max_batch_size = max_batch_size
        self._capacity = capacity
        self._metrics = metrics
        self._clock = clock
        lock = threading.Lock()
        self._changed = threading.Condition(lock)
        self._emptied = threading.Condition(lock)
        self.wake_ups = WakeUps()
        self._is_stopping = False
        self._renew()

    def _renew(self) -> None:
        self._has_begun = False
        self._wake_at = _AWAKE
        self._queue: Queue[str] = Queue(
            self._make_policy(),
            max_batch_size=self._max_batch_size,
            capacity=self._capacity,
            max_message=_NO_LIMIT,
            make_policy=self._make_policy,
        )
        self._queue.ready(_THREAD, self._clock())

    def describe(self, batch: Batch[str]) -> str:
        """Say what was just taken, and the numbers behind that, for people."""
        return self._queue.describe(batch)

    # -------------------------------------------------------------- in request threads

    def add(self, *jobs: LocalJob) -> None:
        """Let jobs wait, all of them or none.

        Raises:
            QueueFull: There is no place for all of them now.
            PayloadTooLarge: There never is.
            Unavailable: The process is about to end, or has too many threads.
        """
        with self._changed:
            now = self._clock()  # in here, so that times never go back
            queue = self._queue
            queue.check_fits(len(jobs))
            try:
                for job in jobs:
                    job.queued_at = now
                    queue.add(job)
                if not self._has_begun:
                    self._begin()
                    self._has_begun = True
            except BaseException:
                self._abandon(jobs)
                raise
            if self._sleeps_too_long(now):
                self._wake_at = _AWAKE
                self._changed.notify()
            self._metrics.queue_jobs(queue.waiting)

    def expire(self, job: LocalJob) -> None:
        """Finish a job whose deadline has come, unless its answer has come, too."""
        with self._changed:
            self._queue.expire(max(self._clock(), job.deadline))  # a lock may wake a bit early
            self._release()

    def abandon(self, jobs: Sequence[LocalJob]) -> None:
        """Forget those of the jobs that are not done: nobody waits for them any more."""
        with self._changed:
            self._abandon(jobs)

    def _abandon(self, jobs: Sequence[LocalJob]) -> None:
        for job in jobs:
            self._queue.abandon(job)
        self._release()

    def _sleeps_too_long(self, now: float) -> bool:
        """Tell whether the new job has to wake the inference thread; the lock is held."""
        wake_at = self._wake_at
        if wake_at == math.inf or wake_at == _AWAKE:
            return wake_at == math.inf
        due_at = self._queue.due_at(now)
        return due_at is not None and due_at < wake_at

    def _release(self, infer: float = 0.0) -> None:
        """Let the threads of finished jobs go on; the lock is held."""
        for job, outcome in self._queue.finished():
            self.wake_ups.add(job, outcome, infer)
        self.wake_ups.wake_one()
        self._metrics.queue_jobs(self._queue.waiting)
        if self._is_stopping and self._queue.is_empty:
            self._emptied.notify_all()

    # ---------------------------------------------------------- in the inference thread

    def take(self) -> tuple[Batch[str] | None, list[Asked]]:
        """Return the batch that is due, if one is, with what is asked."""
        with self._changed:
            batch = self._queue.take(self._clock())
            if batch is None:
                return None, []  # threads whose jobs have expired will find out by themselves
            self._release()
            return batch, [job.payload for job in batch.jobs.values()]

    def sleep(self) -> bool:
        """Wait until a batch may be due; return False if none will be."""
        with self._changed:
            now = self._clock()
            due_at = self._queue.due_at(now)
            if due_at is None and self._is_stopping:
                return False
            self._wake_at = math.inf if due_at is None else due_at
            self._changed.wait(None if due_at is None else patience(due_at - now))
            self._wake_at = _AWAKE
        return True

    def accept(self, batch: Batch[str], results: Sequence[Any], began_at: float) -> None:
        """Finish a batch with one result or ``Rejected`` for each item, in the same order."""
        with self._changed:
            now = self._clock()
            late = late_faults(batch, results)
            self._queue.accept(_THREAD, dict(zip(batch.jobs, results, strict=True)), now)
            self._release(now - began_at)
        self._metrics.batch(batch.size, batch.reason, now - began_at)
        for fault in late:
            log.error("the model failed after the deadline of a job", exc_info=fault)

    def fail_all(self, exc: BaseException) -> None:
        """Fail all jobs, as the inference thread ends; the next one starts another."""
        failed = Rejected.of(exc)
        with self._changed:
            self._queue.expire(math.inf)
            for job, outcome in self._queue.finished():
                self.wake_ups.add(job, failed if type(outcome) is Failure else outcome, 0.0)
            self._renew()
            if self._is_stopping:
                self._queue.drain()
            self._release()

    # ------------------------------------------------------------------------- the end

    def drain(self, timeout: float) -> bool:
        """Take no new jobs, and wait until those that are there are done; were there any?"""
        with self._changed:
            self._is_stopping = True
            self._queue.drain()
            had_jobs = not self._queue.is_empty
            self._changed.notify()
            self._emptied.wait_for(lambda: self._queue.is_empty, timeout)
        return had_jobs


def patience(seconds: float) -> float:
    """Return a timeout that a lock accepts."""
    return min(max(0.0, seconds), threading.TIMEOUT_MAX)
