"""The queue between requests and workers: batches, deadlines, retries.

No I/O, no clock, no threads: the caller owns sockets, timers and locks, and passes ``now``, seconds
of a monotonic clock. After each event, or once for several events of one moment, it calls::

    while batch := queue.take(now):
        send(batch)                               # to batch.worker
    for job, outcome in queue.finished():
        answer(job, outcome)
    set_timer(queue.wake_at(now))                 # None: no timer

and when that timer fires, before this::

    for worker in queue.overdue(now):
        cut_off(worker)
        queue.lose(worker, now)
    queue.expire(now)
"""

from collections.abc import Callable, Iterable, Mapping
from itertools import chain
from typing import Any, Generic

from ..errors import PayloadTooLarge, QueueFull, Unavailable
from ..messages import JOB_OVERHEAD, MESSAGE_OVERHEAD
from .jobs import (
    EXPIRED,
    EXPIRED_IN_QUEUE,
    UNSERVED,
    WORKER_DIED,
    Deadlines,
    Failure,
    Job,
    JobTooLarge,
    Parts,
)
from .lanes import Lane, Lanes
from .policy import Policy
from .workers import Batch, DrainRate, Reason, W, Workers

__all__ = [
    "EXPIRED",
    "EXPIRED_IN_QUEUE",
    "UNSERVED",
    "WORKER_DIED",
    "Batch",
    "Failure",
    "Job",
    "JobTooLarge",
    "Queue",
    "Reason",
]


class Queue(Generic[W]):
    """The jobs of one service and the workers that share them. Not safe for threads.

    A worker is whatever hashable object the caller chooses. It is idle from ``ready`` until
    ``take`` gives it a batch, then busy until ``accept`` or ``lose``. A batch goes to the worker
    that has been idle longest, so a job that a worker left out goes to another one if it can.

    A job that was added is finished exactly once: ``finished`` reports it with its outcome (the
    worker's result, or a ``Failure``), unless ``abandon`` was called first.

    Each key has a lane of its own: its jobs never share a batch with others, and wait for their own
    company. Of the batches that are due, the one whose oldest job has the earliest deadline goes.

    Attributes:
        refusal: Why no new job is taken now, "" if any is.

    Args:
        policy: When to release a batch that is not full.
        max_batch_size: Jobs in a batch.
        capacity: Jobs that may wait. Jobs that are tried again do not count.
        max_message: Bytes of a message to a worker; ids and headers are counted with it.
        batch_timeout: Seconds after which ``overdue`` reports a worker; None for never.
        retry: Whether the jobs of a worker that died are tried again.
        make_policy: Returns a policy for one more key, which may learn nothing from the others;
            without it all share ``policy``.
    """

    def __init__(
        self,
        policy: Policy,
        *,
        max_batch_size: int,
        capacity: int,
        max_message: int,
        batch_timeout: float | None = None,
        retry: bool = True,
        make_policy: Callable[[], Policy] | None = None,
    ) -> None:
        self._decided = policy
        self._capacity = capacity
        self._largest = max_message - MESSAGE_OVERHEAD - JOB_OVERHEAD
        self._batch_timeout = batch_timeout
        self._retry = retry
        # With a smaller capacity a batch is full when nobody else may come.
        most, most_bytes = min(max_batch_size, capacity), max_message - MESSAGE_OVERHEAD
        policies = chain([policy], iter(make_policy or (lambda: policy), None))
        self._lanes = Lanes(lambda: Lane(next(policies), most, most_bytes))
        self._parts = Parts()
        self._deadlines = Deadlines()
        self._workers: Workers[W] = Workers()
        self._rate = DrainRate()
        self._finished: list[tuple[Job, Any]] = []
        self._is_draining = False
        self.refusal = ""

    def add(self, job: Job) -> None:
        """Let a new job wait, from ``job.queued_at`` on.

        Raises:
            Unavailable: No new jobs are taken now.
            JobTooLarge: It fits into no message.
            QueueFull: As many jobs wait as may; ``retry_after`` says for how long.
        """
        assert job.state == "new", f"job {job.id} was added before"
        lanes = self._lanes
        if self.refusal or job.size > self._largest or lanes.count >= self._capacity:
            self._check_place(job)
        job.state = "waiting"
        lane = lanes.append(job)
        self._deadlines.add(job)
        lane.policy.job_arrived(job.queued_at)

    def add_first(self, job: Job) -> None:
        """Let a new job go before all that wait, however many they are.

        For jobs that look after the service, which no load may keep from the model.

        Raises:
            Unavailable, JobTooLarge: As ``add``.
        """
        self._check_taken(job)
        job.state = "waiting"
        lane = self._lanes.append(job)
        lane.bring_last_to_front()
        self._deadlines.add(job)
        lane.policy.job_arrived(job.queued_at)

    def check_fits(self, count: int) -> None:
        """Refuse more jobs of one call than may ever wait together: to try again is of no use.

        Raises:
            PayloadTooLarge: They are more than ``capacity``.
        """
        if count > self._capacity:
            raise PayloadTooLarge(
                f"{count} requests at once, at most {self._capacity} fit: ask in parts"
            )

    def abandon(self, job: Job) -> bool:
        """Forget a job whose client has gone; return False if nobody waited for it any more.

        From now on it takes no place. If it is out at a worker, its result will be dropped.
        """
        if job.state not in ("waiting", "out"):
            return False
        self._end(job)
        self._deadlines.leave(1)
        return True

    def expire(self, now: float) -> None:
        """Finish the jobs whose deadline has come, wherever they are.

        With ``EXPIRED`` at a worker, ``EXPIRED_IN_QUEUE`` or, where no worker is there,
        ``UNSERVED`` in the queue.
        """
        due = self._deadlines.due(now)
        if due:  # seldom, and this is asked for each batch
            unanswered = EXPIRED_IN_QUEUE if self._workers else UNSERVED
            self._fail([job for job in due if job.state == "out"], EXPIRED)
            self._fail([job for job in due if job.state == "waiting"], unanswered)

    def finished(self) -> list[tuple[Job, Any]]:
        """Return the jobs finished since the last call, each with its result or ``Failure``."""
        finished, self._finished = self._finished, []
        return finished

    def ready(self, worker: W, now: float) -> None:
        """Take note that a worker wants a batch; that is also how a new worker joins.

        Raises:
            ProtocolError: It has one already. Close its connection and call ``lose``.
        """
        self._workers.ready(worker, now)

    def take(self, now: float) -> Batch[W] | None:
        """Return the next batch and the worker that gets it, None while it is better to wait.

        Read its payloads before any other call: a job that expires or is abandoned loses its own.
        """
        if not self._workers.idle:
            return None
        self.expire(now)
        if self._parts.count:
            jobs, is_last_try = self._parts.take()
            return self._release(jobs, "full", now, is_last_try=is_last_try)
        lane = self._due_lane(now) if self._lanes.count else None
        if lane is None:
            return None
        reason = self._reason(lane, now)
        self._decided = lane.policy
        jobs = self._lanes.take(lane, self._workers.idle_since)
        return self._release(jobs, reason, now, is_last_try=False)

    def accept(self, worker: W, results: Mapping[str, Any], now: float) -> Batch[W]:
        """Finish jobs with the results of a worker, which then is idle again; return its batch.

        Results of jobs that are done already are dropped. A job without a result counts as if its
        worker had died.

        Args:
            worker: Who sent them.
            results: One entry per job, by id. The values become outcomes; the queue does not look.
            now: When they came.

        Raises:
            ProtocolError: The worker has no batch, or not one with these ids. Nothing has changed.
                Close its connection and call ``lose``.
        """
        batch, jobs = self._workers.batch_for(worker, results)
        answered = self._answer(jobs, results.values())
        if len(results) < batch.size:
            self._try_again(batch, now)
        seconds = now - batch.released_at
        self._rate.add(answered, seconds)
        self._policy_of(batch.jobs.values()).batch_finished(batch.size, seconds, now)
        self._workers.finish(batch, now)
        return batch

    def retire(self, worker: W) -> None:
        """Take note that a worker wants no further batch. It still answers the one that it has."""
        self._workers.retire(worker)

    def lose(self, worker: W, now: float) -> Batch[W] | None:
        """Take out a worker that died, left or was cut off; return the batch that it had.

        Its jobs are tried again, in two halves, each without other jobs and before all others. A
        job that was alone is tried once more. Without ``retry``, or after that last try, the
        outcome is ``WORKER_DIED``.
        """
        batch = self._workers.remove(worker)
        if batch is not None:
            self._rate.add(0, now - batch.released_at)
            self._try_again(batch, now)
        return batch

    def due_at(self, now: float) -> float | None:
        """Return when ``take`` will have a batch if nothing happens before, None for never."""
        if not self._workers.idle or not (self._lanes.count or self._parts.count):
            return None
        if self._parts.count:
            return now
        return min([self._lane_due_at(lane, now) for lane in self._lanes.with_jobs()])

    def describe(self, batch: Batch[W]) -> str:
        """Say what was just taken, and the numbers behind that, for people."""
        waited = batch.released_at - min(job.queued_at for job in batch.jobs.values())
        return (
            f"released {batch.size} job(s) to {batch.worker} ({batch.reason}): the oldest waited"
            f" {waited * 1e3:.3f} ms, {self.waiting} still wait; {self._decided.explain()}"
        )

    def next_deadline(self) -> float | None:
        """Return when ``expire`` will have something to do, None for never."""
        return self._deadlines.next()

    def next_cutoff(self) -> float | None:
        """Return when ``overdue`` will report a worker, None for never."""
        oldest = self._workers.oldest_release()
        if self._batch_timeout is None or oldest is None:
            return None
        return oldest + self._batch_timeout

    def wake_at(self, now: float) -> float | None:
        """Return the earliest of ``due_at``, ``next_deadline`` and ``next_cutoff``."""
        times = (self.due_at(now), self.next_deadline(), self.next_cutoff())
        return min([time for time in times if time is not None], default=None)

    def overdue(self, now: float) -> list[W]:
        """Return the workers that hold a batch for too long. The caller has to ``lose`` them."""
        if self._batch_timeout is None:
            return []
        limit, busy = self._batch_timeout, self._workers.busy
        return [worker for worker, batch in busy.items() if batch.released_at + limit <= now]

    def drain(self) -> None:
        """Take no new jobs and wait for no company; done when ``is_empty``."""
        self._is_draining = True
        self.refusal = "the service is shutting down"

    def refuse(self, why: str) -> None:
        """Take no new jobs from now on, or again if there is no reason; who waits goes on."""
        if not self._is_draining:
            self.refusal = why

    @property
    def is_empty(self) -> bool:
        """Whether every job is done."""
        return not self._deadlines.count

    @property
    def waiting(self) -> int:
        """The number of waiting jobs, those that are tried again included."""
        return self._lanes.count + self._parts.count

    def _check_place(self, job: Job) -> None:
        """Refuse a job, unless only expired ones are in its way."""
        self._check_taken(job)
        self.expire(job.queued_at)
        if self._lanes.count >= self._capacity:
            raise QueueFull(f"{self._capacity} jobs wait already", retry_after=self._retry_after())

    def _check_taken(self, job: Job) -> None:
        """Refuse a job that would be refused by an empty queue, too."""
        if self.refusal:
            raise Unavailable(self.refusal, retry_after=self._retry_after())
        if job.size > self._largest:
            raise JobTooLarge(f"payload of {job.size} bytes, expected at most {self._largest}")

    def _retry_after(self) -> float:
        """Return how long the workers of this moment, or one, take for the jobs that wait."""
        return self._rate.seconds_for(self.waiting, workers=max(1, len(self._workers)))

    def _due_lane(self, now: float) -> Lane | None:
        """Return the lane whose batch goes next, None while none is due; some job has to wait."""
        due = [lane for lane in self._lanes.with_jobs() if self._lane_due_at(lane, now) <= now]
        return min(due, key=lambda lane: lane.deadline) if due else None

    def _lane_due_at(self, lane: Lane, now: float) -> float:
        """Return when the next batch of a lane goes; a job waits in it, and a worker is idle."""
        if lane.is_full or self._is_draining:
            return now
        policy, workers = lane.policy, self._workers
        since = lane.idle_since(workers.idle_since)
        due_at = policy.due_at(
            now,
            since=since,
            waiting=lane.count,
            room=lane.room,
            idle=len(workers.idle),
            busy=workers.busy.values(),
        )
        return min(due_at, since + policy.max_wait)

    def _reason(self, lane: Lane, now: float) -> Reason:
        """Return why a lane's next batch, which is due, is released."""
        if lane.is_full:
            return "full"
        max_wait = lane.policy.max_wait
        since = lane.idle_since(self._workers.idle_since)
        return "wait" if max_wait and now >= since + max_wait else "idle"

    def _policy_of(self, jobs: Iterable[Job]) -> Policy:
        """Return the policy of jobs that share a key; there has to be one."""
        return self._lanes.of(next(iter(jobs)).key).policy

    def _release(
        self, jobs: list[Job], reason: Reason, now: float, *, is_last_try: bool
    ) -> Batch[W]:
        self._policy_of(jobs).batch_released(len(jobs), now)
        return self._workers.give(jobs, reason, now, is_last_try=is_last_try)

    def _answer(self, jobs: list[Job], results: Iterable[Any]) -> int:
        """Finish the jobs that are still out with their results; return how many."""
        finished = self._finished
        before = len(finished)
        for job, result in zip(jobs, results, strict=True):
            if job.state == "out":
                job.state = "done"
                job.payload = None
                finished.append((job, result))
        answered = len(finished) - before
        self._deadlines.leave(answered)
        return answered

    def _try_again(self, batch: Batch[W], now: float) -> None:
        """Put the jobs that are still out to the front, or fail them."""
        self.expire(now)
        batch.unanswered = jobs = [job for job in batch.jobs.values() if job.state == "out"]
        if not self._retry or batch.is_last_try:
            self._fail(jobs, WORKER_DIED)
            return
        for job in jobs:
            job.state = "waiting"
        self._parts.put(jobs, is_last_try=batch.size == 1)

    def _fail(self, jobs: list[Job], failure: Failure) -> None:
        for job in jobs:
            self._end(job)
            self._finished.append((job, failure))
        if jobs:
            self._deadlines.leave(len(jobs))

    def _end(self, job: Job) -> None:
        """Make a job done and clear its place among the waiting; deadlines are the caller's."""
        was_waiting, job.state = job.state == "waiting", "done"
        job.payload = None
        if not was_waiting:
            return
        if job.attempts:
            self._parts.leave()
        else:
            self._lanes.leave(job)
