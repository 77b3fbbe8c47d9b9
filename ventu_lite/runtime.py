"""One service in this process: its set-up, what answers its requests then, and its health."""

import logging
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from .answering import Answering
from .asking import Asking
from .batch_runner import BatchRunner
from .batching.local_jobs import Inferred
from .batching.model import model_of
from .config import Codec
from .health import Health, HealthCheck
from .isolation import OnBlameless
from .lifecycle import Lifecycle
from .logs import show_to_developer
from .metrics import metrics_of
from .outcomes import Rejected
from .pipeline import Pipeline
from .startup import Startup
from .too_large import TooLargeLog
from .turns import Turns
from .variables import is_imported_by_command, warn_of_unknown_variables

if TYPE_CHECKING:
    from .service import Service

log = logging.getLogger(__name__)


class Runtime:
    """One service in this process; every method may be called from any thread.

    It is made when the user's file is imported, so that a command says later, but before the
    set-up, what the process is: see ``count_as_http_worker``, ``act_as_worker`` and ``asking``.

    Args:
        service: What to run.
        clock: Monotonic seconds; deadlines are read on it.

    Attributes:
        clock: As given.
        metrics: The series of the service.
        startup: The set-up; it makes what answers requests in this process.
        asking: What answers ``service.ask``. Where workers run the stages, it is replaced.
    """

    def __init__(self, service: "Service", *, clock: Callable[[], float] = time.monotonic) -> None:
        self._composition = service.compose()
        timeout = service.config.timeout
        self.clock = clock
        self.metrics = metrics_of(service.name)
        self.startup = Startup(self._load, clock=clock)
        self.asking = Asking(self._answer_values, timeout, self.metrics.rejected)
        self._turns = Turns(clock)
        self._lifecycle = Lifecycle(self._composition, self._turns)
        self._checks = HealthCheck(
            self._composition.probes, timeout, self.startup, self._turns, clock
        )
        self._too_large = TooLargeLog(clock)
        self._pipeline = self._make_pipeline(prefer_batch=False)
        self._is_http_worker = False

    def _make_pipeline(
        self, *, prefer_batch: bool, on_blameless: OnBlameless | None = None
    ) -> Pipeline:
        return self._composition.pipeline(
            prefer_batch=prefer_batch,
            clock=self.clock,
            on_blameless=on_blameless or self._too_large,
        )

    # ------------------------------------------------------------- what the process is

    def count_as_http_worker(self) -> None:
        """Count this process as a worker for HTTP, now or as soon as it is ready."""
        self._is_http_worker = True
        if self.startup.is_ready:
            self.metrics.worker("http", is_ready=True)

    def act_as_worker(self, on_blameless: OnBlameless | None = None) -> BatchRunner:
        """Call the batch function where both are registered, and answer no HTTP; before set-up.

        Args:
            on_blameless: Called when it raised, but no item is to blame; else the log tells.

        Returns:
            What takes the batches.
        """
        self._pipeline = self._make_pipeline(prefer_batch=True, on_blameless=on_blameless)
        self._is_http_worker = False
        setting = self._composition.config.codec
        return BatchRunner(self._pipeline, setting, turns=self._turns, metrics=self.metrics)

    # ------------------------------------------------------------------------ requests

    def answer(
        self, payload: bytes, codec: Codec, answer_codec: Codec, deadline: float
    ) -> Inferred:
        """Take one payload all the way before a deadline, set-up included.

        See ``Answering.answer``.

        Raises:
            NotReady: Set-up has not succeeded by then.
        """
        answering = self.startup.wait(deadline - self.clock())
        return answering.answer(payload, codec, answer_codec, deadline)

    def _answer_values(self, values: Sequence[Any], seconds: float) -> list[Any]:
        deadline = self.clock() + seconds
        return self.startup.wait(seconds).answer_values(values, deadline)

    def predict(self, data: Sequence[Any], *, prefer_batch: bool) -> list[Any]:
        """Take Python values all the way, set-up included; they are counted nowhere.

        Returns:
            *n* responses in the same order, or exceptions in place of those that failed.
        """
        self.startup.run()
        pipeline = self._make_pipeline(prefer_batch=prefer_batch)
        prepared = [pipeline.prepare_value(value) for value in data]
        with self._turns.turn_for(pipeline.mode):
            results = pipeline.infer_prepared(prepared, lambda n: pipeline.prepare_value(data[n]))
        answers = [pipeline.finish_value(result) for result in results]
        return [answer.exc if isinstance(answer, Rejected) else answer for answer in answers]

    # ------------------------------------------------------------------------- health

    def why_not_ready(self) -> str:
        """Return why no inference can be answered now, "" if one can."""
        return self._checks.why_not_ready(self._pipeline.mode)

    def health(self) -> Health:
        """Return the cached result of a health check; those who ask together share one."""
        return self._checks.recent(self._pipeline)

    def check_health(self, *, batch: bool) -> Health:
        """Run the examples, set-up included, and say how it went.

        Args:
            batch: Run each in a batch of ``warmup_batch_size`` too, by the batch function where
                there is one.
        """
        ways = [(self._pipeline, 1)]
        if batch:
            size = self._composition.warmup_batch_size
            ways.append((self._make_pipeline(prefer_batch=True), size))
        return self._checks.run(*ways)

    # ------------------------------------------------------------------------- set-up

    def _load(self) -> Answering:
        """Set the service up, warm it up, and return what answers requests.

        Raises:
            Exception: What ``setup`` raises.
            VentuError: An example was rejected.
        """
        if self._is_http_worker:  # else a command shows what happens
            if is_imported_by_command():  # that of Flask; ours have set logging up
                show_to_developer()
            log.info("setting up service %r", self.metrics.name)
        started = self.clock()
        self._lifecycle.set_up()
        set_up_at = self.clock()
        self._lifecycle.warm_up(self._pipeline)
        warmed_up = self.clock() - set_up_at
        answering = self._make_answering()
        if self._is_http_worker:  # else a command has looked at the environment
            self.metrics.worker("http", is_ready=True)
            warn_of_unknown_variables()
        log.info(
            "ready: set-up of service %r took %.2f s, warm-up %.2f s",
            self.metrics.name,
            set_up_at - started,
            warmed_up,
        )
        return answering

    def _make_answering(self) -> Answering:
        metrics, clock = self.metrics, self.clock
        model = model_of(
            self._composition, self._pipeline, turns=self._turns, metrics=metrics, clock=clock
        )
        return Answering(self._pipeline, model, metrics=metrics, clock=clock)
