"""Run the stages of one service in this process: set-up once, deadlines, one batch at a time."""

import atexit
import logging
import os
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Literal, NamedTuple

from .config import Codec
from .errors import JobExpired, VentuError
from .examples import Probe
from .metrics import metrics_of
from .outcomes import Rejected
from .pipeline import Outcome, Pipeline, Run
from .startup import Startup, reset_after_fork

if TYPE_CHECKING:
    from .service import Service

log = logging.getLogger(__name__)

# Probes come every few seconds from several sides; the model has better things to do.
HEALTH_CACHE: Final = 3.0

NO_EXAMPLE: Final = (
    "there is no example to run, so all that is known is that the process lives;"
    " Service(examples=[...]) gives one"
)


class Reply(NamedTuple):  # three times as quick to make as a frozen dataclass
    """What became of one request in this process.

    Attributes:
        outcome: The answer or the rejection.
        queue: Seconds that it waited for its turn at a batch function.
        infer: Seconds of the model call, 0 if it did not come to that.
        batch_size: Items of that call.
    """

    outcome: Outcome
    queue: float = 0.0
    infer: float = 0.0
    batch_size: int = 0


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


class Runtime:
    """One service in this process; every method may be called from any thread.

    Args:
        service: What to run.
        clock: Monotonic seconds; deadlines are read on it.

    Attributes:
        pipeline: The stages that requests go through.
    """

    def __init__(
        self,
        service: "Service",
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.service = service
        self._use(service.pipeline(prefer_batch=False, clock=clock))
        self._answers_http = False
        self.startup = Startup(self._load, clock=clock)
        self.metrics = metrics_of(service.name)
        self.clock = clock
        self._set_up_in: int | None = None
        self._health: tuple[float, Health] | None = None
        self.reset_locks()
        reset_after_fork(self)

    def reset_locks(self) -> None:
        """Forget, in a child process, the locks that threads of its parent may hold."""
        self._batch_lock = threading.Lock()
        self._health_lock = threading.Lock()

    def use_batch_function(self) -> None:
        """Call the batch function where both are registered, as a worker does; before set-up."""
        self._use(self.service.pipeline(prefer_batch=True, clock=self.clock))
        self._answers_http = False

    def answers_http(self) -> None:
        """Count this process as a worker for HTTP, now or as soon as it is ready."""
        self._answers_http = True
        if self.startup.is_ready:
            self.metrics.worker("http", is_ready=True)

    def _use(self, pipeline: Pipeline) -> None:
        self.pipeline = pipeline
        # A batch function must not be called by two threads at once.
        self._is_serial = pipeline.mode == "batch"

    # ------------------------------------------------------------------------ answers

    def answer(self, payload: bytes, codec: Codec, answer_codec: Codec, deadline: float) -> Reply:
        """Take one payload all the way before a deadline.

        Args:
            payload: What the client sent.
            codec: What it is in.
            answer_codec: What the answer is to be in.
            deadline: A time on ``clock``.

        Raises:
            NotReady: Set-up has not succeeded by then.
        """
        startup, clock, pipeline = self.startup, self.clock, self.pipeline
        if not startup.is_ready:
            startup.wait(deadline - clock())
        started = clock()
        item = pipeline.prepare(payload, codec)
        prepared_at = clock()
        self.metrics.stage("preprocess", pipeline.mode, prepared_at - started)
        if isinstance(item, Rejected):
            return Reply(self._counted(item))
        patience = min(max(0.0, deadline - prepared_at), threading.TIMEOUT_MAX)
        if self._is_serial and not self._batch_lock.acquire(timeout=patience):
            return Reply(self._expired(), queue=clock() - prepared_at)
        begun_at = clock()
        try:
            if begun_at >= deadline:
                return Reply(self._expired(), queue=begun_at - prepared_at)
            (result,) = pipeline.infer([item])
        finally:
            if self._is_serial:
                self._batch_lock.release()
        return self._finished(result, answer_codec, deadline, prepared_at, begun_at)

    def _finished(
        self, result: Any, codec: Codec, deadline: float, prepared_at: float, begun_at: float
    ) -> Reply:
        clock, metrics, mode = self.clock, self.metrics, self.pipeline.mode
        inferred_at = clock()
        outcome = self.pipeline.finish(result, codec)
        finished_at = clock()
        metrics.stage("infer", mode, inferred_at - begun_at)
        if not isinstance(result, Rejected):
            metrics.stage("postprocess", mode, finished_at - inferred_at)
        if self._is_serial:
            metrics.queue_seconds.observe(begun_at - prepared_at)
            metrics.batch_size.observe(1)
        if finished_at > deadline:
            outcome = self._expired(outcome)
        elif isinstance(outcome, Rejected):
            self._counted(outcome)
        return Reply(outcome, begun_at - prepared_at, inferred_at - begun_at, 1)

    def _expired(self, outcome: Outcome = b"") -> Rejected:
        """Reject a job whose deadline passed; what failed before that stays as its cause."""
        expired = JobExpired("there was no answer within the deadline")
        if isinstance(outcome, Rejected) and outcome.is_fault:
            expired.__cause__ = outcome.exc
        return self._counted(Rejected.of(expired))

    def _counted(self, rejected: Rejected) -> Rejected:
        self.metrics.rejected(rejected.reason)
        return rejected

    def run(self, payloads: Sequence[bytes]) -> Run:
        """Take a batch all the way, as a worker does; set-up must have succeeded."""
        with self._batch_lock:
            run = self.pipeline.run(payloads, self._codec)
        self.metrics.run(run, self.pipeline.mode)
        for outcome in run.outcomes:
            if isinstance(outcome, Rejected):
                self.metrics.rejected(outcome.reason)
        return run

    @property
    def _codec(self) -> Codec | None:
        setting = self.service.config.codec
        return None if setting == "auto" else setting

    def predict(self, data: Sequence[Any], *, prefer_batch: bool) -> list[Any]:
        """Take Python values all the way, set-up included.

        Returns:
            *n* responses in the same order, or exceptions in place of those that failed.
        """
        self.startup.run()
        pipeline = self.service.pipeline(prefer_batch=prefer_batch, clock=self.clock)
        prepared = [pipeline.prepare_value(value) for value in data]
        with self._turn(pipeline):
            results = pipeline.infer_prepared(prepared)
        answers = [pipeline.finish_value(result) for result in results]
        return [answer.exc if isinstance(answer, Rejected) else answer for answer in answers]

    def _turn(self, pipeline: Pipeline) -> AbstractContextManager[object]:
        """Return what to hold while a function is called: only batch functions take turns."""
        return self._batch_lock if pipeline.mode == "batch" else nullcontext()

    # ------------------------------------------------------------------------- health

    def health(self) -> Health:
        """Return the cached result of a health check; those who ask together share one."""
        if not self.startup.is_ready:
            self.startup.begin()
            return Health("Error", detail=self.startup.why_not())
        # A model that hangs must hang one probe, not every thread of the server.
        if not self._health_lock.acquire(timeout=self._patience):
            return Health("Error", detail=f"the example was not answered in {self._patience:g} s")
        try:
            if self._health is None or self.clock() - self._health[0] > HEALTH_CACHE:
                health = self.check_health(batch=False)
                self._health = (self.clock(), health)
            return self._health[1]
        finally:
            self._health_lock.release()

    def check_health(self, *, batch: bool) -> Health:
        """Run the examples, set-up included, and say how it went.

        Args:
            batch: Run each in a batch of ``warmup_batch_size`` too, by the batch function where
                there is one.
        """
        try:
            self.startup.run()
        except Exception as exc:
            log.warning("health check: set-up failed", exc_info=exc)
            return Health("Error", detail="set-up or warm-up failed; the log says why")
        composition = self.service.compose()
        if not composition.probes:
            return Health("Unknown", detail=NO_EXAMPLE)
        ways = [(self.pipeline, 1)]
        if batch:
            pipeline = self.service.pipeline(prefer_batch=True, clock=self.clock)
            ways.append((pipeline, composition.warmup_batch_size))
        for number, probe in enumerate(composition.probes):
            for pipeline, size in ways:
                if complaint := self._probe(probe, pipeline, size):
                    return Health("Error", detail=f"example {number}: {complaint}")
        return Health("OK")

    def _probe(self, probe: Probe, pipeline: Pipeline, size: int) -> str:
        """Run an example as a batch and return what is wrong, "" if nothing is."""
        is_serial = pipeline.mode == "batch"
        if is_serial and not self._batch_lock.acquire(timeout=self._patience):
            return f"the model was busy for {self._patience:g} s"
        try:
            run = pipeline.run([probe.payload] * size, probe.codec)
        finally:
            if is_serial:
                self._batch_lock.release()
        for outcome in run.outcomes:
            if isinstance(outcome, Rejected):
                log.warning("an example was rejected: %s", outcome.detail, exc_info=outcome.exc)
                return f"status {outcome.status}: {outcome.detail}"
            if probe.differs(outcome):
                return "the answer differs from the expected one"
        return ""

    @property
    def _patience(self) -> float:
        """Seconds to wait for a busy model before the health check complains."""
        return min(self.service.config.timeout, threading.TIMEOUT_MAX)

    # ------------------------------------------------------------------------- set-up

    def _load(self) -> None:
        """Set the service up and warm it up.

        Raises:
            Exception: What ``setup`` raises.
            VentuError: An example was rejected.
        """
        started = self.clock()
        self._set_up()
        set_up_at = self.clock()
        self._warm_up()
        warmed_up = self.clock() - set_up_at
        if self._answers_http:
            self.metrics.worker("http", is_ready=True)
        log.info("ready: set-up took %.2f s, warm-up %.2f s", set_up_at - started, warmed_up)

    def _set_up(self) -> None:
        if self._set_up_in is not None:  # it succeeded, the warm-up after it did not
            return
        if stage := self.service.stage("setup"):
            stage.fn()
        self._set_up_in = os.getpid()
        if self.service.stage("teardown"):
            atexit.register(self._tear_down)

    def _tear_down(self) -> None:
        stage = self.service.stage("teardown")
        if stage and self._set_up_in == os.getpid():  # a forked child owns nothing of it
            stage.fn()

    def _warm_up(self) -> None:
        """Run the examples alone and, where there is a batch function, as a batch."""
        composition = self.service.compose()
        sizes = [1, composition.warmup_batch_size] if self._is_serial else [1]
        for probe in composition.probes:
            for size in dict.fromkeys(sizes):
                run = self.pipeline.run([probe.payload] * size, probe.codec)
                for outcome in run.outcomes:
                    if isinstance(outcome, Rejected):
                        raise VentuError(
                            f"warm-up with {size} example(s) failed: {outcome.exc!r:.200}"
                        ) from outcome.exc
