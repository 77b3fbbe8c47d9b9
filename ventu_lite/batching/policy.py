"""When a batch that is not full is worth releasing. No clock, no queue, no I/O.

The queue decides what needs no judgement: a full batch goes at once, nothing goes while no worker
is idle, and no idle worker is kept waiting longer than ``max_wait`` while a job is there. A policy
is asked in between, and is told what it may want to learn from.
"""

from collections.abc import Collection
from dataclasses import dataclass
from typing import Protocol


class Running(Protocol):
    """What a policy may know of a batch that is out at a worker."""

    @property
    def size(self) -> int:
        """The number of jobs in it."""

    @property
    def released_at(self) -> float:
        """When the worker got it."""


class Policy(Protocol):
    """Decides how long an idle worker waits for company for the jobs that are there.

    All times are seconds of one monotonic clock and never decrease from call to call.
    """

    @property
    def max_wait(self) -> float:
        """The longest that an idle worker may be kept waiting while a job is there, in seconds."""

    def job_arrived(self, now: float) -> None:
        """Take note of a new job. Called once per request: it has to be cheap."""

    def batch_released(self, size: int, now: float) -> None:
        """Take note that a worker got a batch of ``size`` jobs."""

    def passed_over(self) -> None:
        """Take note that the worker went to jobs of another key, however due these were."""

    def batch_finished(self, size: int, seconds: float, now: float) -> None:
        """Take note of results: the batch had ``size`` jobs and took ``seconds``.

        A batch whose worker died is not reported: it says nothing about how long batches take.
        """

    def due_at(
        self,
        now: float,
        *,
        since: float,
        waiting: int,
        room: int,
        idle: int,
        busy: Collection[Running],
    ) -> float:
        """Return when the waiting jobs should go if nothing happens before; ``now`` means at once.

        The queue asks again after every event, so only the next event has to be foreseen.

        Args:
            now: The time of the question.
            since: Since when a worker has been idle while a job waited; not after ``now``.
            waiting: Jobs that would go, at least one and fewer than a full batch.
            room: Jobs that could join them before the batch is full, at least one.
            idle: Idle workers, at least one.
            busy: The batches that are out at the other workers, oldest first. A view, not a copy.
        """

    def explain(self) -> str:
        """Return the numbers behind the latest answer of ``due_at``, for people."""


@dataclass(frozen=True, slots=True)
class FixedWait:
    """Wait ``max_wait`` seconds for company, however likely it is; with 0 everything goes at once.

    The clock starts when a worker is idle *and* a job waits. Counted from the oldest job's arrival,
    the jobs that queued during the last batch would be too old to wait for those clients that are
    back a moment after its answers: a loop of clients around a slow model loses up to 1.8 times.
    """

    max_wait: float

    def job_arrived(self, now: float) -> None:
        """Learn nothing."""

    def batch_released(self, size: int, now: float) -> None:
        """Learn nothing."""

    def passed_over(self) -> None:
        """Learn nothing."""

    def batch_finished(self, size: int, seconds: float, now: float) -> None:
        """Learn nothing."""

    def due_at(
        self,
        now: float,
        *,
        since: float,
        waiting: int,
        room: int,
        idle: int,
        busy: Collection[Running],
    ) -> float:
        """Return the end of the wait."""
        return since + self.max_wait

    def explain(self) -> str:
        """Return what was set."""
        return f"the wait is {self.max_wait * 1e3:g} ms"
