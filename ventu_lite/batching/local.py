"""Dynamic batching inside one process: the threads of a WSGI server share the calls of a model.

    request threads                                the inference thread
    prepare ─▶ ask: add a job ─▶ SharedQueue ─▶ take a batch ─▶ infer(items)
    finish  ◀─ wait, no longer than the deadline ◀─ an answer for each job

Preparing and finishing run in parallel; the model is called by one thread.
"""

import atexit
import threading
from collections.abc import Callable, Hashable, Sequence
from contextlib import suppress
from functools import partial
from itertools import count
from typing import Any, Final

from ..forks import reset_after_fork
from ..metrics import ServiceMetrics
from ..outcomes import Rejected
from ..turns import Turns
from .inference_thread import InferenceThread
from .jobs import Failure
from .local_jobs import Asked, Infer, Inferred, LocalJob, expired
from .policy import Policy
from .shared_queue import SharedQueue, patience

# Nobody waits at exit for threads that are daemons, such as those of `flask run`, to write the
# answers that they have just got.
_LAST_WORDS: Final = 0.05


class LocalQueue:
    """Forms batches of what many threads ask for at once, and calls a batch function for them.

    The thread that calls it starts with the first job, and ends at exit when no job waits any more.
    Safe for ``os.fork``: a child begins without jobs and without a thread.

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
        self._make_queue = partial(
            SharedQueue,
            make_policy,
            self._begin,
            max_batch_size=max_batch_size,
            capacity=capacity,
            metrics=metrics,
            clock=clock,
        )
        self._turns = turns
        name = f"ventu_lite inference {metrics.name}"
        self._make_thread = partial(
            InferenceThread, infer, turns=turns, name=name, clock=clock, timeout=timeout
        )
        self._key = key
        self._metrics = metrics
        self._clock = clock
        self._timeout = min(timeout, threading.TIMEOUT_MAX)
        self._serials = count()
        self._stops_at_exit = False
        self.reset_locks()
        reset_after_fork(self)

    def reset_locks(self) -> None:
        """Forget, in a child process, the thread and the jobs that stayed with its parent."""
        self._queue = self._make_queue()
        self._thread = self._make_thread(self._queue)

    def _begin(self) -> None:
        if not self._stops_at_exit:
            self._stops_at_exit = True
            atexit.register(self.stop)
        self._thread.start()

    def ask(self, asked: Asked, deadline: float) -> Inferred:
        """Have an item inferred, in company if there is some, and wait until its deadline.

        Raises:
            QueueFull: As many jobs wait as may.
            Unavailable: The process is about to end, or has too many threads.
            VentuError: The model asks itself.
        """
        self._turns.refuse_holder()
        job = self._make_job(asked, deadline, is_alone=True)
        if isinstance(job, Inferred):
            return job
        queue = self._queue
        try:
            queue.add(job)
            if not job.is_done.acquire(timeout=patience(deadline - job.queued_at)):
                queue.expire(job)
        except BaseException:  # somebody pressed Ctrl-C, perhaps
            queue.abandon([job])
            raise
        finally:
            queue.wake_ups.leave(job)
        return self._answer_of(job)

    def ask_all(self, asked: Sequence[Asked], deadline: float) -> list[Inferred]:
        """Have items inferred, in one batch or several, and wait until their deadline.

        Raises:
            QueueFull: There is no place for all of them; none is inferred.
            Unavailable, VentuError: As ``ask``.
        """
        self._turns.refuse_holder()
        made = [self._make_job(one, deadline, is_alone=False) for one in asked]
        jobs = [job for job in made if isinstance(job, LocalJob)]
        queue = self._queue
        try:
            queue.add(*jobs)
            for job in jobs:
                if not job.is_done.acquire(timeout=patience(deadline - self._clock())):
                    queue.expire(job)
        except BaseException:
            queue.abandon(jobs)
            raise
        return [self._answer_of(one) if isinstance(one, LocalJob) else one for one in made]

    def _make_job(self, asked: Asked, deadline: float, *, is_alone: bool) -> LocalJob | Inferred:
        """Return a job for an item, or the answer if its key cannot be told."""
        job = LocalJob(f"{next(self._serials):036x}", asked, deadline, is_in_line=is_alone)
        if self._key is not None:
            try:
                job.key = self._key(asked.item)
            except KeyboardInterrupt:
                raise
            except BaseException as exc:  # sys.exit() in a key must not end the thread
                return Inferred(Rejected.of(exc))
        return job

    def _answer_of(self, job: LocalJob) -> Inferred:
        outcome, size = job.outcome, job.batch_size
        if not size:
            rejected = expired(in_queue=True) if type(outcome) is Failure else outcome
            return Inferred(rejected, self._clock() - job.queued_at)
        waited = job.released_at - job.queued_at
        self._metrics.queue_seconds.observe(waited)
        if type(outcome) is Failure:
            return Inferred(expired(), waited, self._clock() - job.released_at, size)
        return Inferred(outcome, waited, job.infer, size)

    def stop(self) -> None:
        """Take no new jobs, and return when those that are there are done or have expired."""
        with suppress(KeyboardInterrupt):  # who presses Ctrl-C again does not want to wait
            if self._queue.drain(self._timeout):
                threading.Event().wait(_LAST_WORDS)
            self._thread.join(_LAST_WORDS)
