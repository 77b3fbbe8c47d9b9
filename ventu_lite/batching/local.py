"""Dynamic batching inside one process: the threads of a WSGI server share the calls of a model.

    request threads                                the inference thread
    prepare ─▶ ask: add a job ─▶ Queue ─▶ take a batch ─▶ infer(items)
    finish  ◀─ wait, no longer than the deadline ◀─ an answer for each job

Preparing and finishing run in parallel; the model is called by one thread. Nobody polls: the
inference thread sleeps until the queue says that a batch is due, a request thread until its job is
done or its deadline has come. A request thread that adds a job wakes the inference thread only if
that makes a batch due earlier.
"""

import atexit
import logging
import math
import threading
from collections.abc import Callable, Hashable, Sequence
from contextlib import suppress
from itertools import count
from typing import Any, Final

from ventu_lite.batching.jobs import EXPIRED, Failure
from ventu_lite.batching.local_jobs import Answer, Infer, LocalJob, WakeUps, expired, late_faults
from ventu_lite.batching.policy import Policy
from ventu_lite.batching.queue import Queue
from ventu_lite.batching.workers import Batch
from ventu_lite.errors import Unavailable, VentuError
from ventu_lite.metrics import ServiceMetrics
from ventu_lite.outcomes import Rejected
from ventu_lite.startup import reset_after_fork
from ventu_lite.turns import Turns

log = logging.getLogger(__name__)

#: What the queue calls the inference thread.
_THREAD: Final = "inference thread"
#: A time to wake at that nothing comes before: the inference thread does not sleep.
_AWAKE: Final = -math.inf
# Nobody waits at exit for threads that are daemons, such as those of `flask run`, to write the
# answers that they have just got.
_LAST_WORDS: Final = 0.05
_NO_LIMIT: Final = 2**62  # bytes of a message: there are no messages


class LocalQueue:
    """Forms batches of what many threads ask for at once, and calls a batch function for them.

    The thread that calls it starts with the first job. It is a daemon, and ends at exit when no
    job waits any more. Safe for ``os.fork``: a child begins without jobs and without a thread.

    Args:
        infer: Returns one result or ``Rejected`` for each item, in the same order.
        make_policy: Returns a new policy that says when to call it.
        max_batch_size: Items of one call.
        capacity: Jobs that may wait.
        turns: Who may call ``infer``.
        metrics: What is counted.
        clock: Monotonic seconds; deadlines are read on it.
        timeout: Seconds that a job lasts at most.
        key: Items of different keys never share a call; each key waits for its own company.
    """

    def __init__(
        self,
        infer: Infer,
        *,
        make_policy: Callable[[], Policy],
        max_batch_size: int,
        capacity: int,
        turns: Turns,
        metrics: ServiceMetrics,
        clock: Callable[[], float],
        timeout: float,
        key: Callable[[Any], Hashable] | None = None,
    ) -> None:
        self._infer = infer
        self._key = key
        self._make_policy = make_policy
        self._max_batch_size = max_batch_size
        self._capacity = capacity
        self._turns = turns
        self._metrics = metrics
        self._clock = clock
        self._timeout = min(timeout, threading.TIMEOUT_MAX)
        self._serials = count()
        self._stops_at_exit = False
        self.reset_locks()
        reset_after_fork(self)

    def reset_locks(self) -> None:
        """Forget, in a child process, the thread and the jobs that stayed with its parent."""
        lock = threading.Lock()
        self._changed = threading.Condition(lock)
        self._emptied = threading.Condition(lock)
        self._wake_ups = WakeUps()
        self._thread: threading.Thread | None = None
        self._is_stopping = False
        self._renew()

    def _renew(self) -> None:
        self._wake_at = _AWAKE
        self._queue: Queue[str] = Queue(
            self._make_policy(),
            max_batch_size=self._max_batch_size,
            capacity=self._capacity,
            max_message=_NO_LIMIT,
            make_policy=self._make_policy,
        )
        self._queue.ready(_THREAD, self._clock())

    # -------------------------------------------------------------- in request threads

    def ask(self, item: Any, deadline: float) -> Answer:
        """Have an item inferred, in company if there is some, and wait until its deadline.

        Raises:
            QueueFull: As many jobs wait as may.
            Unavailable: The process is about to end, or has too many threads.
        """
        job = self._make_job(item, deadline)
        if isinstance(job, Answer):
            return job
        try:
            patience = self._add(job)
            if not job.is_done.acquire(timeout=patience):
                self._expire(job)
        except BaseException:  # it was not taken, or somebody pressed Ctrl-C
            with self._changed:
                self._queue.abandon(job)
                self._release()
            raise
        finally:
            self._wake_ups.leave(job)
        return self._answer_of(job)

    def ask_all(self, items: Sequence[Any], deadline: float) -> list[Answer]:
        """Have items inferred, in one batch or several, and wait until their deadline.

        Raises:
            QueueFull: There is no place for all of them; none is inferred.
            Unavailable: As ``ask``.
            VentuError: The model asks itself.
        """
        if threading.current_thread() is self._thread:
            raise VentuError("a batch function must not ask its own service: it waits for it")
        asked = [self._make_job(item, deadline) for item in items]
        jobs = [job for job in asked if isinstance(job, LocalJob)]
        try:
            for job in jobs:
                self._add(job)
            for job in jobs:
                if not job.is_done.acquire(timeout=_patience(deadline - self._clock())):
                    self._expire(job)
                self._wake_ups.leave(job)
        except BaseException:
            with self._changed:
                for job in jobs:
                    self._queue.abandon(job)
                self._release()
            raise
        finally:
            for job in jobs:
                self._wake_ups.leave(job)
        return [self._answer_of(one) if isinstance(one, LocalJob) else one for one in asked]

    def _make_job(self, item: Any, deadline: float) -> LocalJob | Answer:
        """Return a job for an item, or the answer if its key cannot be told."""
        job = LocalJob(f"{next(self._serials):036x}", item, deadline)
        if self._key is not None:
            try:
                job.key = self._key(item)
                hash(job.key)
            except KeyboardInterrupt:
                raise
            except BaseException as exc:  # sys.exit() in a key must not end the thread
                return Answer(Rejected.of(exc), 0.0, 0.0, 0)
        return job

    def _add(self, job: LocalJob) -> float:
        """Let a job wait; return the seconds until its deadline."""
        with self._changed:
            now = job.queued_at = self._clock()  # in here, so that times never go back
            queue = self._queue
            queue.add(job)
            if self._thread is None:
                self._begin()
            if self._sleeps_too_long(now):
                self._wake_at = _AWAKE
                self._changed.notify()
            self._metrics.queue_jobs(queue.waiting)
        return _patience(job.deadline - now)

    def _sleeps_too_long(self, now: float) -> bool:
        """Tell whether the new job has to wake the inference thread; the lock is held."""
        wake_at = self._wake_at
        if wake_at == math.inf or wake_at == _AWAKE:
            return wake_at == math.inf
        due_at = self._queue.due_at(now)
        return due_at is not None and due_at < wake_at

    def _expire(self, job: LocalJob) -> None:
        """Finish a job whose deadline has come, unless its answer has come, too."""
        with self._changed:
            self._queue.expire(max(self._clock(), job.deadline))  # a lock may wake a bit early
            self._release()

    def _answer_of(self, job: LocalJob) -> Answer:
        outcome, size = job.outcome, job.batch_size
        if not size:
            rejected = expired() if type(outcome) is Failure else outcome
            return Answer(rejected, self._clock() - job.queued_at, 0.0, 0)
        waited = job.released_at - job.queued_at
        self._metrics.queue_seconds.observe(waited)
        if type(outcome) is Failure:
            return Answer(expired(), waited, self._clock() - job.released_at, size)
        return Answer(outcome, waited, job.infer, size)

    def _release(self, infer: float = 0.0) -> None:
        """Let the threads of finished jobs go on; the lock is held."""
        for job, outcome in self._queue.finished():
            self._wake_ups.add(job, outcome, infer)
        self._wake_ups.wake_one()
        self._metrics.queue_jobs(self._queue.waiting)
        if self._is_stopping and self._queue.is_empty:
            self._emptied.notify_all()

    # ------------------------------------------------------------- the inference thread

    def _begin(self) -> None:
        """Start the inference thread; the lock is held.

        Raises:
            Unavailable: The process has too many threads, or ends.
        """
        if not self._stops_at_exit:
            self._stops_at_exit = True
            atexit.register(self.stop)
        name = f"ventu_lite inference {self._metrics.name}"
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        try:
            self._thread.start()
        except RuntimeError as exc:
            self._thread = None
            log.exception("the inference thread cannot start; the next request tries it again")
            raise Unavailable("the model cannot be called now", retry_after=1.0) from exc

    def _run(self) -> None:
        try:
            while self._step():
                pass
        except BaseException as exc:  # not even the model's exceptions come here
            self._die(exc)

    def _step(self) -> bool:
        """Call the model if a batch is due, else sleep until one may be; return whether to go on.

        The turn comes before the batch: a job that comes while a health check runs can join it, and
        one that expires meanwhile is not in it.
        """
        with self._turns:
            batch, items = self._take()
            if batch is not None:
                self._call(batch, items)
                return True
        return self._sleep()

    def _take(self) -> tuple[Batch[str] | None, list[Any]]:
        """Return the batch that is due, if one is, with its items."""
        with self._changed:
            batch = self._queue.take(self._clock())
            if batch is None:
                return None, []  # threads whose jobs have expired will find out by themselves
            self._release()
            return batch, [job.payload for job in batch.jobs.values()]

    def _sleep(self) -> bool:
        """Wait until a batch may be due; return False if none will be."""
        with self._changed:
            now = self._clock()
            due_at = self._queue.due_at(now)
            if due_at is None and self._is_stopping:
                return False
            self._wake_at = math.inf if due_at is None else due_at
            self._changed.wait(None if due_at is None else _patience(due_at - now))
            self._wake_at = _AWAKE
        return True

    def _call(self, batch: Batch[str], items: list[Any]) -> None:
        if log.isEnabledFor(logging.DEBUG):
            waited = batch.released_at - next(iter(batch.jobs.values())).queued_at
            log.debug(
                "released %d job(s) (%s): the oldest waited %.3f ms, %d still wait; %s",
                batch.size, batch.reason, waited * 1e3, self._queue.waiting, self._queue.explain(),
            )  # fmt: skip
        began_at = self._clock()
        try:
            results = self._infer(items)
        except BaseException as exc:  # the isolation lets only KeyboardInterrupt through
            results = [Rejected.of(exc)] * len(items)
        with self._changed:
            now = self._clock()
            late = late_faults(batch, results)
            self._queue.accept(_THREAD, dict(zip(batch.jobs, results, strict=True)), now)
            self._release(now - began_at)
        self._metrics.batch(batch.size, batch.reason, now - began_at)
        for fault in late:
            log.error("the model failed after the deadline of a job", exc_info=fault)

    def _die(self, exc: BaseException) -> None:
        """Fail all jobs; the next one starts another thread."""
        log.error("the inference thread died; the next request starts another", exc_info=exc)
        failed = Rejected.of(exc)
        with self._changed:
            self._queue.expire(math.inf)
            for job, outcome in self._queue.finished():
                self._wake_ups.add(job, failed if outcome is EXPIRED else outcome, 0.0)
            self._thread = None
            self._renew()
            if self._is_stopping:
                self._queue.drain()
            self._release()

    # ------------------------------------------------------------------------- the end

    def stop(self) -> None:
        """Take no new jobs, and return when those that are there are done or have expired."""
        with suppress(KeyboardInterrupt):  # who presses Ctrl-C again does not want to wait
            with self._changed:
                thread = self._thread
                self._is_stopping = True
                self._queue.drain()
                had_jobs = not self._queue.is_empty
                self._changed.notify()
                self._emptied.wait_for(lambda: self._queue.is_empty, self._timeout)
            if had_jobs:
                threading.Event().wait(_LAST_WORDS)
            if thread is not None:
                thread.join(_LAST_WORDS)


def _patience(seconds: float) -> float:
    """Return a timeout that a lock accepts."""
    return min(max(0.0, seconds), threading.TIMEOUT_MAX)
