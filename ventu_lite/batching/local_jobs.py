"""A job of a thread of this process, and what that thread gets back."""

import threading
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any, NamedTuple

from ..errors import JobExpired
from ..isolation import Again
from ..outcomes import Rejected
from .jobs import EXPIRED, EXPIRED_IN_QUEUE, Job
from .workers import Batch

Infer = Callable[[Sequence[Any], Again], list[Any]]


class Asked(NamedTuple):
    """What a thread has a model infer.

    Attributes:
        item: What the function gets.
        again: Makes the item anew, or a ``Rejected``, in any thread, for another call: the first
            may have changed it.
    """

    item: Any
    again: Callable[[], Any]


class Inferred(NamedTuple):  # three times as quick to make as a frozen dataclass
    """What became of one item.

    Attributes:
        result: The result, or the bytes of the response, or a ``Rejected``.
        queue: Seconds that it waited for its turn.
        infer: Seconds of the model call so far, 0 if it did not come to that.
        batch_size: Items of that call, 0 if it did not come to that.
    """

    result: Any
    queue: float = 0.0
    infer: float = 0.0
    batch_size: int = 0


def expired(*, in_queue: bool = False) -> Rejected:
    """Return what becomes of a job whose deadline has passed, before its turn or in it."""
    return Rejected.of(JobExpired((EXPIRED_IN_QUEUE if in_queue else EXPIRED).detail))


class LocalJob(Job):
    """A job whose thread waits for it; its payload is an ``Asked``.

    Attributes:
        is_done: Locked until that thread may go on: the cheapest event that there is.
        is_in_line: Whether that thread is woken in its turn, and then wakes the next one: it waits
            for this job alone, and has not gone on.
        outcome: The result, a ``Rejected`` or a ``Failure``.
        infer: Seconds of the model call.
    """

    __slots__ = ("infer", "is_done", "is_in_line", "outcome")

    def __init__(self, id: str, asked: Asked, deadline: float, *, is_in_line: bool) -> None:
        super().__init__(id, asked, 0, 0.0, deadline)
        self.is_done = threading.Lock()
        self.is_done.acquire()
        self.is_in_line = is_in_line
        self.outcome: Any = None
        self.infer = 0.0


class WakeUps:
    """Wakes the threads of finished jobs, one after the other: each of them wakes the next.

    All at once would only queue up for the interpreter, each for some switches of context more,
    with the inference thread in line behind them. Any thread may call anything.
    """

    def __init__(self) -> None:
        self._jobs: deque[LocalJob] = deque()

    def add(self, job: Job, outcome: Any, infer: float) -> None:
        """Note the outcome of a job; its thread is woken in its turn, if it has one."""
        assert isinstance(job, LocalJob)  # nobody adds others
        job.outcome = outcome
        job.infer = infer
        if job.is_in_line:
            self._jobs.append(job)
        else:
            job.is_done.release()

    def leave(self, job: LocalJob) -> None:
        """Go on and wake the next one. Every thread does so in the end, woken or not."""
        job.is_in_line = False
        self.wake_one()

    def wake_one(self) -> None:
        """Wake a thread that still waits, if there is one."""
        with suppress(IndexError):
            while not (job := self._jobs.popleft()).is_in_line:
                pass
            job.is_done.release()


def late_faults(batch: Batch[str], results: Sequence[Any]) -> list[BaseException]:
    """Return the exceptions of jobs whose threads are gone and cannot log them, each once."""
    rejected = (
        result
        for job, result in zip(batch.jobs.values(), results, strict=True)
        if job.state == "done" and isinstance(result, Rejected) and result.is_fault
    )
    return list({id(one.exc): one.exc for one in rejected}.values())
