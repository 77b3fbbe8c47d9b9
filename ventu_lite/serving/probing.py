"""The health of a service whose examples are known: they really run, in the batches of all.

They go before all jobs that wait, whatever the capacity, as under Flask: a service with more to do
than it can is healthy while its model answers. Were it called ill, a load balancer would give its
load to the others, which have no less. So an example that gets no answer in time is an error: it
did not wait for others, its batch hangs, or all workers hang in theirs.
"""

from collections.abc import Callable, Sequence
from typing import Final
from uuid import uuid4

from pydantic_core import from_json

from ..batching.dispatcher import BatchTiming, Dispatcher
from ..batching.jobs import Failure, Job
from ..batching.server import BatchingService
from ..batching.status import PlainStatus, health_body
from ..codecs import unpack
from ..config import Codec
from ..examples import Probe
from ..health import HEALTH_CACHE, NO_EXAMPLE

_LONGEST: Final = 300  # characters of a detail


class ProbingStatus(PlainStatus):
    """The status of a service whose examples are known.

    Args:
        batching: The batching service.
        probes: The examples.
    """

    def __init__(self, batching: BatchingService, probes: Sequence[Probe]) -> None:
        super().__init__(batching)
        self._batching = batching
        self._probes = probes
        self._known: tuple[float, bool, dict[str, str]] | None = None
        self._asking: list[Callable[[bool, dict[str, str]], None]] = []

    def health(self, answer: Callable[[bool, dict[str, str]], None]) -> None:
        """Run the examples, at most once in a few seconds; who asks meanwhile shares the result."""
        if why := self.why_not_ready:
            answer(False, health_body("Error", why))
        elif not self._probes:
            answer(True, health_body("Unknown", NO_EXAMPLE))
        elif self._known is not None and self._now() - self._known[0] <= HEALTH_CACHE:
            answer(*self._known[1:])
        else:
            self._asking.append(answer)
            if len(self._asking) == 1:
                self._ask()

    def _ask(self) -> None:
        dispatcher = self._batching.dispatcher
        now = dispatcher.moment()
        round_ = _Round(dispatcher, self._probes, self._tell)
        round_.begin(now, now + self._batching.config.timeout)

    def _tell(self, complaint: str) -> None:
        body = health_body("Error", complaint) if complaint else health_body("OK")
        self._known = (self._now(), not complaint, body)
        asking, self._asking = self._asking, []
        for answer in asking:
            answer(not complaint, body)

    def _now(self) -> float:
        return self._batching.dispatcher.clock()


class _Round:
    """One run of all examples through the queue."""

    def __init__(
        self, dispatcher: Dispatcher, probes: Sequence[Probe], tell: Callable[[str], None]
    ) -> None:
        self._dispatcher = dispatcher
        self._probes = probes
        self._tell = tell
        self._open = len(probes)
        self._complaint = ""

    def begin(self, now: float, deadline: float) -> None:
        """Queue the examples, before all that waits."""
        for number, probe in enumerate(self._probes, 1):
            job = _ProbeJob(self, number, probe, now, deadline)
            try:
                self._dispatcher.add_first(job)
            except Exception as exc:  # draining, or worse: that is what health is about
                self.end(number, str(exc) or type(exc).__name__)

    def end(self, number: int, complaint: str) -> None:
        """Take note of one answer; "" if it was as it should be."""
        if complaint and not self._complaint:
            self._complaint = f"example {number}: {complaint}"
        self._open -= 1
        if not self._open:
            self._tell(self._complaint)


class _ProbeJob(Job):
    """An example on its way through the queue."""

    __slots__ = ("_number", "_probe", "_round")

    def __init__(
        self, round_: _Round, number: int, probe: Probe, now: float, deadline: float
    ) -> None:
        super().__init__(str(uuid4()), probe.payload, len(probe.payload), now, deadline)
        self._round = round_
        self._number = number
        self._probe = probe

    def answered(self, status: int, body: bytes, timing: BatchTiming) -> None:
        """Compare the worker's answer with the expected one."""
        self._round.end(self._number, self._complaint(status, body))

    def _complaint(self, status: int, body: bytes) -> str:
        if status != 200:
            return f"status {status}{_detail(body, self._probe.codec)}"
        try:
            differs = self._probe.differs(body)
        except Exception as exc:  # a worker of another kind may say anything
            return f"the answer cannot be read: {exc}"
        return "the answer differs from the expected one" if differs else ""

    def failed(self, failure: Failure) -> None:
        """Take note that no worker answered."""
        self._round.end(self._number, f"status {failure.status}: {failure.detail}")


def _detail(body: bytes, codec: Codec) -> str:
    """Return what a problem document says, as the end of a line, "" if it is none."""
    try:
        document = unpack(body) if codec == "msgpack" else from_json(body)
        return f": {document['detail']}"[:_LONGEST]
    except Exception:  # a worker of another kind says it in its own words
        return ""
