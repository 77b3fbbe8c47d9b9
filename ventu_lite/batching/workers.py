"""Who is idle, who has which batch, and how fast they are. No I/O, no clock."""

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Generic, Literal, TypeVar

from ..errors import ProtocolError
from .jobs import Job

#: The label of ``ventu_released_total``.
Reason = Literal["full", "idle", "wait"]

W = TypeVar("W", bound=Hashable)


@dataclass(slots=True, eq=False)
class Batch(Generic[W]):
    """Jobs that one worker gets in one message.

    Attributes:
        worker: Who gets it.
        jobs: The jobs by id, oldest first.
        reason: Why it was released. A part that is tried again cannot grow: it counts as full.
        released_at: When.
        size: The number of jobs.
        is_last_try: Whether its one job was alone when a worker died before.
        is_farewell: Whether the worker wants no further batch.
        unanswered: Jobs that it left out, or had when it went. They wait again, or have failed.
    """

    worker: W
    jobs: dict[str, Job]
    reason: Reason
    released_at: float
    size: int
    is_last_try: bool
    is_farewell: bool = False
    unanswered: Sequence[Job] = ()


class Workers(Generic[W]):
    """The workers of one service. Each is idle, or busy with one batch.

    Attributes:
        idle: Those that wait for a batch, longest idle first.
        busy: The batches that are out, oldest first.
        idle_since: Since when at least one has been idle; stale while none is.
    """

    __slots__ = ("busy", "idle", "idle_since")

    def __init__(self) -> None:
        self.idle: dict[W, None] = {}
        self.busy: dict[W, Batch[W]] = {}
        self.idle_since = 0.0

    def __len__(self) -> int:
        return len(self.idle) + len(self.busy)

    def ready(self, worker: W, now: float) -> None:
        """Make a worker idle, a new one too.

        Raises:
            ProtocolError: It has a batch.
        """
        if worker in self.busy:
            raise ProtocolError("ready while a batch is out")
        if not self.idle:
            self.idle_since = now
        self.idle[worker] = None

    def give(self, jobs: list[Job], reason: Reason, now: float, *, is_last_try: bool) -> Batch[W]:
        """Give the jobs to the worker that has been idle longest; there has to be one."""
        worker = next(iter(self.idle))
        del self.idle[worker]
        size = len(jobs)
        for job in jobs:
            job.state = "out"
            job.attempts += 1
            job.released_at = now
            job.batch_size = size
        by_id = {job.id: job for job in jobs}
        batch = self.busy[worker] = Batch(worker, by_id, reason, now, size, is_last_try)
        return batch

    def batch_for(self, worker: W, results: Mapping[str, Any]) -> tuple[Batch[W], list[Job]]:
        """Return the batch and the jobs that these results answer, in order; nothing changes.

        Raises:
            ProtocolError: The worker has no batch, or not one with these ids.
        """
        batch = self.busy.get(worker)
        if batch is None:
            raise ProtocolError("results while no batch is out")
        try:
            return batch, list(map(batch.jobs.__getitem__, results))
        except KeyError as exc:
            raise ProtocolError(f"result for {exc}, which is not in the batch") from exc

    def finish(self, batch: Batch[W], now: float) -> None:
        """Make the worker of a batch idle again, unless that was its last."""
        del self.busy[batch.worker]
        if not batch.is_farewell:
            self.ready(batch.worker, now)

    def retire(self, worker: W) -> None:
        """Give a worker no further batch."""
        self.idle.pop(worker, None)
        batch = self.busy.get(worker)
        if batch is not None:
            batch.is_farewell = True

    def remove(self, worker: W) -> Batch[W] | None:
        """Forget a worker; return the batch that it had."""
        self.idle.pop(worker, None)
        return self.busy.pop(worker, None)

    def oldest_release(self) -> float | None:
        """Return when the batch that has been out longest was released."""
        return next(iter(self.busy.values())).released_at if self.busy else None


class DrainRate:
    """How fast workers answer jobs, for ``Retry-After``.

    Both the jobs that a batch answered and the seconds that its worker had it are averaged with a
    weight of 0.1 for the latest batch, so about the last 20 count. The time of workers is measured,
    not time on the wall: a quiet hour does not make the service look slow.
    """

    __slots__ = ("_jobs", "_seconds")

    _WEIGHT: Final = 0.1
    _SHORTEST: Final = 1.0  # the header has whole seconds, and 0 would invite a hot loop
    _LONGEST: Final = 60.0  # beyond that a prediction is worth nothing

    def __init__(self) -> None:
        self._jobs = 0.0
        self._seconds = 0.0

    def add(self, jobs: int, seconds: float) -> None:
        """Take note that one worker answered ``jobs`` in ``seconds``; none if it died."""
        self._jobs += self._WEIGHT * (jobs - self._jobs)
        self._seconds += self._WEIGHT * (seconds - self._seconds)

    def seconds_for(self, jobs: int, *, workers: int) -> float:
        """Return how long ``workers`` take for ``jobs``, from 1 to 60 s; 1 s before any batch."""
        if not self._jobs:
            return self._LONGEST if self._seconds else self._SHORTEST
        seconds = jobs * self._seconds / (self._jobs * workers)
        return min(max(seconds, self._SHORTEST), self._LONGEST)
