"""Run the stages of one service in this process: set-up once, deadlines, one batch at a time."""

import logging
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

from .asking import failure_of
from .batching.local_jobs import Inferred, expired
from .batching.model import Model, model_of
from .config import Codec
from .errors import BatchFailed, QueueFull
from .forwarding import AskWorkers, forward
from .health import Health, HealthCheck
from .isolation import OnBlameless
from .lifecycle import Lifecycle
from .metrics import Reason, metrics_of
from .outcomes import InferenceFailed, Rejected
from .pipeline import Pipeline, Run
from .retries import Reminders
from .startup import Startup
from .tracebacks import in_one_line, traceback_for
from .turns import Turns
from .variables import warn_of_unknown_variables

if TYPE_CHECKING:
    from .service import Service

log = logging.getLogger(__name__)

T = TypeVar("T")


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
        self._composition = service.compose()
        self.metrics = metrics_of(service.name)
        self.clock = clock
        self.startup = Startup(self._load, clock=clock)
        self._turns = Turns(clock)
        self._checks = HealthCheck(
            self._composition.probes, service.config.timeout, self.startup, self._turns, clock
        )
        self._lifecycle = Lifecycle(self._composition, self._turns)
        self._reminders = Reminders(clock)
        self._on_blameless: OnBlameless = self._log_blameless
        self.pipeline = self._pipeline(prefer_batch=False)
        self._model: Model  # of a process that runs stages, once it is set up
        self._is_http_worker = False
        self._ask_workers: AskWorkers | None = None
        self._count_rejected: Callable[[Reason], None] = self.metrics.rejected
        self._timeout = service.config.timeout

    def act_as_worker(self, on_blameless: OnBlameless | None = None) -> None:
        """Call the batch function where both are registered, and answer no HTTP; before set-up.

        Args:
            on_blameless: Called when it raised, but no item is to blame; else the log tells.
        """
        self._on_blameless = on_blameless or self._log_blameless
        self.pipeline = self._pipeline(prefer_batch=True)
        self._is_http_worker = False

    def count_as_http_worker(self) -> None:
        """Count this process as a worker for HTTP, now or as soon as it is ready."""
        self._is_http_worker = True
        if self.startup.is_ready:
            self.metrics.worker("http", is_ready=True)

    def _log_blameless(self, where: str, size: int, exc: BaseException) -> None:
        """Warn of what no answer shows; in turns, as batch functions are called."""
        if self._reminders.is_due(where):
            log.warning(
                "%s raised for %d items together, but for none of them in a smaller batch: %s;"
                " if that comes again, lower max_batch_size",
                where,
                size,
                in_one_line(exc),
            )

    def _pipeline(self, *, prefer_batch: bool) -> Pipeline:
        return self._composition.pipeline(
            prefer_batch=prefer_batch, clock=self.clock, on_blameless=self._on_blameless
        )

    # ------------------------------------------------------------------------ answers

    def answer(
        self, payload: bytes, codec: Codec, answer_codec: Codec, deadline: float
    ) -> Inferred:
        """Take one payload all the way before a deadline.

        Args:
            payload: What the client sent.
            codec: What it is in.
            answer_codec: What the answer is to be in.
            deadline: A time on ``clock``.

        Returns:
            The bytes of the answer or a ``Rejected``, and how that went.

        Raises:
            NotReady: Set-up has not succeeded by then.
            Unavailable: As ``LocalQueue.ask``.
        """
        startup, pipeline = self.startup, self.pipeline
        if not startup.is_ready:
            startup.wait(deadline - self.clock())
        item = self._prepared(pipeline.prepare, payload, codec)
        if isinstance(item, Rejected):
            return Inferred(self._counted(item))
        result, queue, infer, batch_size = self._inferred(self._model.ask, item, deadline)
        outcome = self._finished(deadline, pipeline.finish, result, answer_codec)
        if isinstance(outcome, Rejected):
            self._counted(outcome)
        return Inferred(outcome, queue, infer, batch_size)

    def _prepared(self, prepare: Callable[..., Any], *given: Any) -> Any:
        """Return an item, or the ``Rejected`` in its place, and count the stage."""
        started = self.clock()
        item = prepare(*given)
        self.metrics.stage("preprocess", self.pipeline.mode, self.clock() - started)
        return item

    def _inferred(self, ask: Callable[[Any, float], T], asked: Any, deadline: float) -> T:
        """Return what a model says, and count what it has no place for."""
        try:
            return ask(asked, deadline)
        except QueueFull:
            self.metrics.rejected("full")
            raise

    def _finished(
        self, deadline: float, finish: Callable[..., Any], result: Any, *options: Any
    ) -> Any:
        """Return an outcome, or the ``Rejected`` in its place, and count the stage if it ran."""
        started = self.clock()
        outcome = finish(result, *options)
        finished_at = self.clock()
        if not isinstance(result, Rejected):
            self.metrics.stage("postprocess", self.pipeline.mode, finished_at - started)
        return _expired(outcome) if finished_at > deadline else outcome

    def _counted(self, rejected: Rejected) -> Rejected:
        self._count_rejected(rejected.reason)
        return rejected

    def use_workers(
        self, ask: AskWorkers, timeout: float, *, count_rejected: Callable[[Reason], None]
    ) -> None:
        """Have ``ask_all`` answered by workers elsewhere: this process only forwards.

        Args:
            ask: Asks them.
            timeout: Seconds that a request may take at most, as the command says.
            count_rejected: Counts what does not even get to them, or comes back unreadable.
        """
        self._ask_workers = ask
        self._timeout = timeout
        self._count_rejected = count_rejected

    def ask_all(self, values: Sequence[Any], timeout: float | None) -> list[Any]:
        """Have Python values answered as ``POST /inference`` answers payloads.

        Args:
            values: What clients would send.
            timeout: Seconds that they may take together, if fewer than the setting.

        Returns:
            For each value the response, or an ``InferenceFailed``.

        Raises:
            VentuError: As ``answer``, or there is no place for all of them.
        """
        seconds = self._timeout if timeout is None else min(timeout, self._timeout)
        if self._ask_workers is None:
            answers = self._ask(values, seconds)
        else:
            answers = forward(values, seconds, ask=self._ask_workers, composition=self._composition)
        return [self._failure(one) if isinstance(one, Rejected) else one for one in answers]

    def _ask(self, values: Sequence[Any], seconds: float) -> list[Any]:
        """Return for each value what ``answer`` has for a payload."""
        deadline = self.clock() + seconds
        if not self.startup.is_ready:
            self.startup.wait(seconds)
        pipeline = self.pipeline
        answers = [self._prepared(pipeline.prepare_value, value) for value in values]
        places = [n for n, item in enumerate(answers) if not isinstance(item, Rejected)]
        items = [answers[n] for n in places]
        inferred = self._inferred(self._model.ask_all, items, deadline)
        for n, one in zip(places, inferred, strict=True):
            answers[n] = self._finished(deadline, pipeline.finish_value, one.result)
        return answers

    def _failure(self, rejected: Rejected) -> InferenceFailed:
        """Count and log a rejected item; a route may let the exception pass, unseen by Flask."""
        self._counted(rejected)
        if fault := rejected.fault:
            is_told = isinstance(fault, BatchFailed) and not fault.is_news()  # of another item
            said = str(fault) if is_told else in_one_line(fault)
            shown = None if is_told else traceback_for(fault, log)
            log.error("a request of service.ask failed: %s", said, exc_info=shown)
        return failure_of(rejected)

    def run(self, payloads: Sequence[bytes]) -> Run:
        """Take a batch all the way, as a worker does; set-up must have succeeded."""
        with self._turns:
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
        pipeline = self._pipeline(prefer_batch=prefer_batch)
        prepared = [pipeline.prepare_value(value) for value in data]
        with self._turns.turn_for(pipeline.mode):
            results = pipeline.infer_prepared(prepared)
        answers = [pipeline.finish_value(result) for result in results]
        return [answer.exc if isinstance(answer, Rejected) else answer for answer in answers]

    # ------------------------------------------------------------------------- health

    def why_not_ready(self) -> str:
        """Return why no inference can be answered now, "" if one can."""
        return self._checks.why_not_ready(self.pipeline.mode)

    def health(self) -> Health:
        """Return the cached result of a health check; those who ask together share one."""
        return self._checks.recent(self.pipeline)

    def check_health(self, *, batch: bool) -> Health:
        """Run the examples, set-up included, and say how it went.

        Args:
            batch: Run each in a batch of ``warmup_batch_size`` too, by the batch function where
                there is one.
        """
        ways = [(self.pipeline, 1)]
        if batch:
            size = self._composition.warmup_batch_size
            ways.append((self._pipeline(prefer_batch=True), size))
        return self._checks.run(*ways)

    # ------------------------------------------------------------------------- set-up

    def _load(self) -> None:
        """Set the service up and warm it up.

        Raises:
            Exception: What ``setup`` raises.
            VentuError: An example was rejected.
        """
        started = self.clock()
        self._lifecycle.set_up()
        set_up_at = self.clock()
        self._lifecycle.warm_up(self.pipeline)
        warmed_up = self.clock() - set_up_at
        composition, turns, metrics = self._composition, self._turns, self.metrics
        self._model = model_of(
            composition, self.pipeline, turns=turns, metrics=metrics, clock=self.clock
        )
        if self._is_http_worker:  # else a command has looked at the environment
            self.metrics.worker("http", is_ready=True)
            warn_of_unknown_variables()
        log.info("ready: set-up took %.2f s, warm-up %.2f s", set_up_at - started, warmed_up)


def _expired(outcome: object) -> Rejected:
    """Reject an item whose deadline passed; what failed before that stays as its cause."""
    if isinstance(outcome, Rejected) and outcome.reason == "expired":
        return outcome
    rejected = expired()
    if isinstance(outcome, Rejected) and outcome.is_fault:
        rejected.exc.__cause__ = outcome.exc
    return rejected
