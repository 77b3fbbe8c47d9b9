"""A job, how it ends, and two orders in which jobs are kept: by deadline, and in parts.

No I/O, no clock. Removal is lazy: a job's state says that it has left, its place is cleared when it
comes to the front, and places without a job are cleared when they outnumber the others. So every
operation costs O(1) amortised (a deadline out of order O(log n)) and garbage stays bounded.
"""

import heapq
from collections import deque
from collections.abc import Hashable
from dataclasses import dataclass
from typing import Any, Final, Literal

from ..errors import PayloadError

State = Literal["new", "waiting", "out", "done"]

#: As many places without a job are not worth clearing.
GARBAGE: Final = 64


@dataclass(slots=True, eq=False)
class Job:
    """One request on its way through the queue.

    Attributes:
        id: 36 characters, unique among the jobs of its queue.
        payload: What the worker gets: bytes, or a parsed item inside one process. None once the
            job is done, even while a worker still has it: a place that is cleared later keeps
            nothing large. Whoever else holds the bytes, such as a request, has to see to that, too.
        size: Bytes of the payload; 0 where no message has to be made of it.
        queued_at: When it came, in seconds of a monotonic clock.
        deadline: When an answer is of no more use.
        key: Jobs of different keys never share a batch. Hashable.
        state: "new", "waiting", "out" (at a worker), "done". Only the queue sets it.
        attempts: How often a worker got it.
        released_at: When a worker got it last.
        batch_size: How many jobs that worker got with it, itself included.
    """

    id: str
    payload: Any
    size: int
    queued_at: float
    deadline: float
    key: Hashable = None
    state: State = "new"
    attempts: int = 0
    released_at: float = 0.0
    batch_size: int = 0


class JobTooLarge(PayloadError):
    """The payload alone is larger than a message to a worker may be."""

    status = 413


@dataclass(frozen=True, slots=True)
class Failure:
    """The outcome of a job that no worker answered.

    Attributes:
        status: The HTTP status.
        reason: The label of ``ventu_rejected_total``.
        detail: What the client is told.
    """

    status: int
    reason: str
    detail: str


NO_ANSWER: Final = "no answer within the timeout of this request"
EXPIRED: Final = Failure(504, "expired", f"{NO_ANSWER}; the model was still at work on it")
EXPIRED_IN_QUEUE: Final = Failure(504, "expired", f"{NO_ANSWER}; it still waited for its turn")
UNSERVED: Final = Failure(504, "expired", f"{NO_ANSWER}; no worker was ready")
WORKER_DIED: Final = Failure(500, "worker_died", "the worker died; the log says how")


class Parts:
    """Jobs of workers that died: each part is a batch of its own, the latest death first.

    Attributes:
        count: Jobs that wait.
    """

    __slots__ = ("_parts", "count")

    def __init__(self) -> None:
        self._parts: deque[tuple[list[Job], bool]] = deque()
        self.count = 0

    def put(self, jobs: list[Job], *, is_last_try: bool) -> None:
        """Put waiting jobs to the front, in two halves."""
        self.count += len(jobs)
        half = (len(jobs) + 1) // 2
        for part in (jobs[half:], jobs[:half]):
            if part:
                self._parts.appendleft((part, is_last_try))

    def leave(self) -> None:
        """Take note that a job of some part no longer waits; its state says so already."""
        self.count -= 1

    def take(self) -> tuple[list[Job], bool]:
        """Remove the first part with a waiting job; some job has to wait.

        Returns:
            The waiting jobs of that part, and whether it is their last try.
        """
        while True:
            part, is_last_try = self._parts.popleft()
            jobs = [job for job in part if job.state == "waiting"]
            if jobs:
                self.count -= len(jobs)
                return jobs, is_last_try


class Deadlines:
    """Jobs that are not done, by deadline.

    Deadlines mostly come in order; those that do, wait in a plain queue. The others, which a client
    may ask for, go through a heap, so that one of them costs the rest nothing. The job at the front
    of either is never a job that is done.

    Attributes:
        count: Jobs that are not done.
    """

    __slots__ = ("_heap", "_in_order", "_serial", "count")

    def __init__(self) -> None:
        self._in_order: deque[Job] = deque()
        self._heap: list[tuple[float, int, Job]] = []
        self._serial = 0
        self.count = 0

    def add(self, job: Job) -> None:
        """Watch a job until ``leave`` says that it is done."""
        self.count += 1
        in_order = self._in_order
        if not in_order or in_order[-1].deadline <= job.deadline:
            in_order.append(job)
            return
        self._serial += 1  # jobs cannot be compared
        heapq.heappush(self._heap, (job.deadline, self._serial, job))

    def leave(self, count: int) -> None:
        """Take note that ``count`` jobs are done; their states say so already."""
        self.count -= count
        self._clear_fronts()
        if len(self._in_order) + len(self._heap) > 2 * self.count + GARBAGE:
            self._in_order = deque(job for job in self._in_order if job.state != "done")
            self._heap = [entry for entry in self._heap if entry[2].state != "done"]
            heapq.heapify(self._heap)

    def next(self) -> float | None:
        """Return the earliest deadline, None without a job."""
        earliest = self._in_order[0].deadline if self._in_order else None
        if self._heap and (earliest is None or self._heap[0][0] < earliest):
            return self._heap[0][0]
        return earliest

    def due(self, now: float) -> list[Job]:
        """Return the jobs whose deadline has come.

        The caller makes them done and tells ``leave``.
        """
        due = []
        while self._in_order and self._in_order[0].deadline <= now:
            due.append(self._in_order.popleft())
        while self._heap and self._heap[0][0] <= now:
            due.append(heapq.heappop(self._heap)[2])
        return [job for job in due if job.state != "done"]

    def _clear_fronts(self) -> None:
        in_order, heap = self._in_order, self._heap
        while in_order and in_order[0].state == "done":
            in_order.popleft()
        while heap and heap[0][2].state == "done":
            heapq.heappop(heap)
