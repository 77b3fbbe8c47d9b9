"""Waiting jobs: one lane for each key. No I/O, no clock.

Removal is lazy, as in ``jobs``: the place of a job that has left is cleared when it comes to the
front, or when such places outnumber the others.
"""

from collections import deque
from collections.abc import Callable, Collection, Hashable
from typing import Final

from ..messages import JOB_OVERHEAD
from .jobs import GARBAGE, Job
from .policy import Policy


class Lane:
    """The waiting jobs of one key, in the order in which they came.

    Args:
        policy: When to release a batch that is not full.
        most: Jobs in a batch.
        most_bytes: Bytes in a batch, with ``JOB_OVERHEAD`` for each job.

    Attributes:
        policy: As given.
        count: Jobs that wait.
        since: Since when at least one has been waiting; stale while ``count`` is 0.
        passed_over: Since when a worker was idle while a job waited here, if another lane got it
            then; None if none did.
    """

    __slots__ = (
        *("_most", "_most_bytes", "_places", "_size"),
        *("count", "passed_over", "policy", "since"),
    )

    def __init__(self, policy: Policy, most: int, most_bytes: int) -> None:
        self.policy = policy
        self._most = most
        self._most_bytes = most_bytes
        self._places: deque[Job] = deque()
        self._size = 0
        self.count = 0
        self.since = 0.0
        self.passed_over: float | None = None

    @property
    def room(self) -> int:
        """How many jobs could join the next batch, by number alone."""
        return self._most - self.count

    @property
    def is_full(self) -> bool:
        """Whether no job can join the next batch, not even with an empty payload."""
        return self.count >= self._most or self._size + JOB_OVERHEAD > self._most_bytes

    @property
    def deadline(self) -> float:
        """That of the job at the front; some job has to wait."""
        places = self._places
        while places[0].state != "waiting":
            places.popleft()
        return places[0].deadline

    def idle_since(self, idle_since: float) -> float:
        """Return since when a worker has been idle while a job waited here, if both are now.

        Args:
            idle_since: Since when a worker has been idle.
        """
        if self.passed_over is not None:
            return self.passed_over
        return max(self.since, idle_since)

    def append(self, job: Job) -> None:
        """Put a waiting job at the end."""
        if not self.count:
            self.since, self.passed_over = job.queued_at, None
        self.count += 1
        self._size += job.size + JOB_OVERHEAD
        self._places.append(job)

    def bring_last_to_front(self) -> None:
        """Let the job that was appended last go before all others."""
        self._places.rotate(1)

    def leave(self, job: Job) -> None:
        """Take note that a job of this lane no longer waits; its state says so already."""
        self.count -= 1
        self._size -= job.size + JOB_OVERHEAD
        if len(self._places) > 2 * self.count + GARBAGE:
            self._places = deque(job for job in self._places if job.state == "waiting")

    def take(self) -> list[Job]:
        """Remove and return the jobs of the next batch, oldest first."""
        places, most_bytes = self._places, self._most_bytes
        room = self._most
        taken: list[Job] = []
        size = 0
        while places and room:
            job = places.popleft()
            if job.state == "waiting":
                size += job.size + JOB_OVERHEAD
                if size > most_bytes:
                    size -= job.size + JOB_OVERHEAD
                    places.appendleft(job)
                    break
                room -= 1
                taken.append(job)
        self.count -= len(taken)
        self._size -= size
        self.passed_over = None
        return taken


class Lanes:
    """The lanes of all keys. Jobs of different keys never share a batch.

    Args:
        make_lane: Returns a new lane.

    Attributes:
        count: Jobs that wait in all of them.
    """

    __slots__ = ("_by_key", "_make_lane", "count")

    _MOST: Final = 256  # lanes: more keys than that repeat too seldom to learn from

    def __init__(self, make_lane: Callable[[], Lane]) -> None:
        self._make_lane = make_lane
        self._by_key: dict[Hashable, Lane] = {}
        self.count = 0

    def of(self, key: Hashable) -> Lane:
        """Return the lane of a key, a new one if it has none or lost it for want of jobs."""
        lane = self._by_key.get(key)
        if lane is None:
            if len(self._by_key) >= self._MOST:
                self._by_key = {key: lane for key, lane in self._by_key.items() if lane.count}
            lane = self._by_key[key] = self._make_lane()
        return lane

    def with_jobs(self) -> Collection[Lane]:
        """Return the lanes in which jobs wait; some job has to."""
        lanes = self._by_key.values()
        return lanes if len(lanes) == 1 else [lane for lane in lanes if lane.count]

    def append(self, job: Job) -> Lane:
        """Put a waiting job at the end of its lane; return that lane."""
        lane = self._by_key.get(job.key) or self.of(job.key)
        lane.append(job)
        self.count += 1
        return lane

    def leave(self, job: Job) -> None:
        """Take note that a job no longer waits; its state says so already."""
        self.of(job.key).leave(job)
        self.count -= 1

    def take(self, lane: Lane, idle_since: float) -> list[Job]:
        """Remove and return the jobs of the next batch of a lane, oldest first.

        The others have seen a worker pass by that was idle: for them the wait began then, or busy
        lanes could make them wait for ever.
        """
        for other in self.with_jobs():
            other.passed_over = other.idle_since(idle_since)
            if other is not lane:
                other.policy.passed_over()
        jobs = lane.take()
        self.count -= len(jobs)
        return jobs
