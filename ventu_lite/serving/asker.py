"""Jobs of other threads of the batching service's process: those of the user's own routes."""

import asyncio
import os
import uuid
from collections.abc import Sequence
from concurrent.futures import Future
from typing import Any

from ..batching.dispatcher import BatchTiming, Dispatcher
from ..batching.jobs import Failure, Job
from ..errors import Unavailable

Answers = list[tuple[int, bytes | str]]


class AskedJob(Job):
    """A job that a thread waits for, with others.

    Attributes:
        asked: What it belongs to.
        place: Where its answer goes.
    """

    __slots__ = ("asked", "place")

    def __init__(
        self, asked: "_Asked", place: int, payload: bytes, queued_at: float, deadline: float
    ) -> None:
        super().__init__(str(uuid.uuid4()), payload, len(payload), queued_at, deadline)
        self.asked = asked
        self.place = place

    def answered(self, status: int, body: bytes, timing: BatchTiming) -> None:
        """Take the worker's answer."""
        self.asked.take(self.place, status, body)

    def failed(self, failure: Failure) -> None:
        """Take note that no worker answered."""
        self.asked.take(self.place, failure.status, failure.detail)


class _Asked:
    """What one call of a thread is about."""

    def __init__(self, count: int) -> None:
        self.future: Future[Answers] = Future()
        self._answers: list[Any] = [None] * count
        self._missing = count

    def take(self, place: int, status: int, said: bytes | str) -> None:
        self._answers[place] = status, said
        self._missing -= 1
        if not self._missing and not self.future.done():
            self.future.set_result(self._answers)


class Asker:
    """Lets threads ask the workers of a batching service, as clients do over HTTP.

    To be made in the thread of the event loop; called in any other.
    """

    def __init__(self, dispatcher: Dispatcher) -> None:
        self._dispatcher = dispatcher
        self._loop = asyncio.get_running_loop()
        self._pid = os.getpid()

    def __call__(self, payloads: Sequence[bytes], seconds: float) -> Answers:
        """Have payloads inferred, in one batch or several, and wait for that.

        Args:
            payloads: At least one.
            seconds: After which those that are not done get 504.

        Returns:
            For each payload the status and the body of a worker, or the reason why there is none.

        Raises:
            VentuError: There is no place for all of them, and none is inferred; or one is too large
                for a message; or this is a forked child, which no answer reaches.
        """
        if os.getpid() != self._pid:
            raise Unavailable(
                "service.ask was called in a process that a route has forked, which no answer"
                " reaches: call it in the route, and hand its answer to the process"
            )
        asked = _Asked(len(payloads))
        self._loop.call_soon_threadsafe(self._add, asked, payloads, seconds)
        return asked.future.result()

    def _add(self, asked: _Asked, payloads: Sequence[bytes], seconds: float) -> None:
        now = self._dispatcher.moment()
        jobs = [
            AskedJob(asked, place, payload, now, now + seconds)
            for place, payload in enumerate(payloads)
        ]
        try:
            self._dispatcher.add_all(jobs)
        except Exception as exc:  # a thread waits for it, whatever it is
            asked.future.set_exception(exc)
