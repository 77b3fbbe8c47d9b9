"""Run the examples of one service and say how that went."""

import logging
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal

from .examples import Probe
from .forks import reset_after_fork
from .outcomes import Rejected
from .pipeline import Mode, Pipeline
from .retries import Reminders
from .startup import RUNNING, Startup
from .turns import Turns

log = logging.getLogger(__name__)

# Probes come every few seconds from several sides; the model has better things to do.
HEALTH_CACHE: Final = 3.0

NO_EXAMPLE: Final = (
    "there is no example to run, so all that is known is that the process lives;"
    " Service(examples=[...]) gives one"
)


@dataclass(frozen=True)
class Health:
    """What a health check found, as ``GET /health`` shows it.

    Attributes:
        service: Always "OK": somebody is there to say so.
        inference: "OK", "Error", or "Unknown" when there is no example to run.
        detail: Why, unless it is "OK".
    """

    inference: Literal["OK", "Error", "Unknown"]
    service: Literal["OK"] = "OK"
    detail: str = ""

    @property
    def is_ok(self) -> bool:
        """Whether nothing wrong was found."""
        return self.inference != "Error"

    def as_dict(self) -> dict[str, str]:
        """Return it as ``GET /health`` does."""
        body = {"service": self.service, "inference": self.inference}
        return body | ({"detail": self.detail} if self.detail else {})


class Readiness:
    """Whether a worker process can be given a batch now; any thread may ask.

    Args:
        address: What to call its batching service.

    Attributes:
        is_set_up: Whether set-up and warm-up have succeeded.
        is_connected: Whether it is connected to its batching service, and accepted there.
    """

    def __init__(self, address: str) -> None:
        self.is_set_up = False
        self.is_connected = False
        self._address = address

    def why_not(self) -> str:
        """Return why no batch can come, "" if one can."""
        if not self.is_set_up:
            return RUNNING
        if self.is_connected:
            return ""
        return f"not connected to {self._address}, or not accepted there yet"


class HealthCheck:
    """The health and the readiness of one service in this process; any thread may ask.

    An example waits for a turn at a batch function, behind the call that runs but not behind the
    jobs that are queued.

    Args:
        probes: The examples.
        timeout: Seconds that a request waits at most, and a health check for a busy model.
        startup: The set-up.
        turns: Who may call the batch function.
        clock: Monotonic seconds.
    """

    def __init__(
        self,
        probes: Sequence[Probe],
        timeout: float,
        startup: Startup[Any],
        turns: Turns,
        clock: Callable[[], float],
    ) -> None:
        self._probes = probes
        self._patience = min(timeout, threading.TIMEOUT_MAX)
        self._startup = startup
        self._turns = turns
        self._clock = clock
        self._reminders = Reminders(clock)
        self._recent: tuple[float, Health] | None = None
        self.reset_locks()
        reset_after_fork(self)

    def reset_locks(self) -> None:
        """Forget, in a child process, the lock that a thread of its parent may hold."""
        self._lock = threading.Lock()

    def why_not_ready(self, mode: Mode) -> str:
        """Return why no request can be answered now, "" if one can; begin the set-up if need be.

        A turn at the batch function that has lasted longer than a request waits keeps all others
        waiting, too: a call that hangs, or many of ``predict_batch``. What is called for one item
        hangs in the thread of one request alone.

        Args:
            mode: That of the function to which requests come.
        """
        if not self._startup.is_ready:
            self._startup.begin()
            return self._startup.why_not()
        seconds = self._turns.seconds() if mode == "batch" else 0.0
        if seconds <= self._patience:
            self._reminders.forget()
            return ""
        why = f"the batch function has been in use for {seconds:.1f} s without a pause"
        if self._reminders.is_due("a long turn"):
            log.warning("not ready: %s; should a call of it hang, restart this process", why)
        return why

    def recent(self, pipeline: Pipeline) -> Health:
        """Return what was found a moment ago, or now; those who ask together share one run."""
        if why := self.why_not_ready(pipeline.mode):
            return Health("Error", detail=why)
        # A model that hangs must hang one probe, not every thread of the server.
        if not self._lock.acquire(timeout=self._patience):
            return Health("Error", detail=f"the example was not answered in {self._patience:g} s")
        try:
            if self._recent is None or self._clock() - self._recent[0] > HEALTH_CACHE:
                health = self.run((pipeline, 1))
                self._recent = (self._clock(), health)
            return self._recent[1]
        finally:
            self._lock.release()

    def run(self, *ways: tuple[Pipeline, int]) -> Health:
        """Run the examples, set-up included.

        Args:
            ways: Stages to go through, each with a batch size.
        """
        try:
            self._startup.run()
        except Exception as exc:
            log.warning("health check: set-up failed", exc_info=exc)
            return Health("Error", detail="set-up or warm-up failed; the log says why")
        if not self._probes:
            return Health("Unknown", detail=NO_EXAMPLE)
        for number, probe in enumerate(self._probes, 1):
            for way, size in ways:
                if complaint := self._probe(probe, way, size):
                    return Health("Error", detail=f"example {number}: {complaint}")
        return Health("OK")

    def _probe(self, probe: Probe, pipeline: Pipeline, size: int) -> str:
        """Run an example as a batch and return what is wrong, "" if nothing is."""
        is_serial = pipeline.mode == "batch"
        if is_serial and not self._turns.acquire(timeout=self._patience):
            return f"the model was busy for {self._patience:g} s"
        try:
            run = pipeline.run([probe.payload] * size, probe.codec)
        finally:
            if is_serial:
                self._turns.release()
        for outcome in run.outcomes:
            if isinstance(outcome, Rejected):
                log.warning("an example was rejected: %s", outcome.detail, exc_info=outcome.exc)
                return f"status {outcome.status}: {outcome.detail}"
            if probe.differs(outcome):
                return "the answer differs from the expected one"
        return ""
