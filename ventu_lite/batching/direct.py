"""Calls of a model in the thread of the request, where there are no batches to form."""

import math
import threading
from collections.abc import Callable, Sequence
from itertools import chain, repeat

from ..errors import QueueFull
from ..forks import reset_after_fork
from ..metrics import ServiceMetrics
from ..turns import Turns
from .local_jobs import Asked, Infer, Inferred, expired
from .workers import DrainRate


class AtOnce:
    """Calls a function of one item, in as many threads at once as there are.

    Args:
        infer: Returns one result or ``Rejected`` for each item.
        metrics: What is counted.
        clock: Monotonic seconds; deadlines are read on it.
    """

    def __init__(
        self, infer: Infer, *, metrics: ServiceMetrics, clock: Callable[[], float]
    ) -> None:
        self._infer = infer
        self._metrics = metrics
        self._clock = clock

    def ask(self, asked: Asked, deadline: float) -> Inferred:
        """Have an item inferred, unless its deadline has passed."""
        clock = self._clock
        began_at = clock()
        if began_at >= deadline:
            return Inferred(expired(in_queue=True))
        (result,) = self._infer([asked.item], lambda _: asked.again())
        seconds = clock() - began_at
        self._metrics.stage("infer", "single", seconds)
        return Inferred(result, 0.0, seconds, 1)

    def ask_all(self, asked: Sequence[Asked], deadline: float) -> list[Inferred]:
        """Have items inferred, one after the other."""
        return [self.ask(one, deadline) for one in asked]


class OneByOne:
    """Calls a batch function for each item alone, where a batch may not be larger.

    Args:
        infer: Returns one result or ``Rejected`` for each item.
        capacity: Threads that may wait for their turn.
        turns: Who may call ``infer``.
        metrics: What is counted.
        clock: Monotonic seconds; deadlines are read on it.
    """

    def __init__(
        self,
        infer: Infer,
        *,
        capacity: int,
        turns: Turns,
        metrics: ServiceMetrics,
        clock: Callable[[], float],
    ) -> None:
        self._infer = infer
        self._capacity = capacity
        self._turns = turns
        self._metrics = metrics
        self._clock = clock
        self.reset_locks()
        reset_after_fork(self)

    def reset_locks(self) -> None:
        """Forget, in a child process, the threads that stayed with its parent."""
        self._guard = threading.Lock()
        self._waiting = 0
        self._rate = DrainRate()

    def ask(self, asked: Asked, deadline: float) -> Inferred:
        """Have an item inferred, and wait for that until its deadline.

        Raises:
            QueueFull: As many threads wait as may.
        """
        return self._ask(asked, deadline, self._capacity)

    def ask_all(self, asked: Sequence[Asked], deadline: float) -> list[Inferred]:
        """Have items inferred, one after the other.

        Raises:
            QueueFull: As many threads wait as may; none is inferred.
        """
        most = chain([self._capacity], repeat(math.inf))  # who has begun keeps its place
        return [self._ask(one, deadline, limit) for one, limit in zip(asked, most, strict=False)]

    def _ask(self, asked: Asked, deadline: float, most: float) -> Inferred:
        """Have an item inferred, if fewer than so many threads wait or it is nobody's turn."""
        queued_at = self._clock()
        if not self._turns.acquire(0) and not self._wait(deadline - queued_at, most):
            return Inferred(expired(in_queue=True), self._clock() - queued_at)
        try:
            began_at = self._clock()
            if began_at >= deadline:
                return Inferred(expired(in_queue=True), began_at - queued_at)
            (result,) = self._infer([asked.item], lambda _: asked.again())
            seconds = self._clock() - began_at
            self._rate.add(1, seconds)
        finally:
            self._turns.release()
        self._metrics.queue_seconds.observe(began_at - queued_at)
        self._metrics.batch(1, "full", seconds)
        return Inferred(result, began_at - queued_at, seconds, 1)

    def _wait(self, patience: float, most: float) -> bool:
        """Wait for a turn, unless so many threads do already; return whether it came."""
        with self._guard:
            if self._waiting >= most:
                wait = self._rate.seconds_for(self._waiting, workers=1)
                raise QueueFull(f"{self._capacity} jobs wait already", retry_after=wait)
            self._count(1)
        try:
            return self._turns.acquire(max(0.0, patience))
        finally:
            with self._guard:
                self._count(-1)

    def _count(self, change: int) -> None:
        self._waiting += change
        self._metrics.queue_jobs(self._waiting)
