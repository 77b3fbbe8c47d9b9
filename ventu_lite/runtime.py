"""Run the stages of one service in this process: set-up once, deadlines, one batch at a time."""

import atexit
import logging
import os
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from .asking import failure_of, payload_of, response_of
from .batching.choose import make_policy
from .batching.direct import AtOnce, OneByOne
from .batching.local import LocalQueue
from .batching.local_jobs import Answer, expired
from .codecs import sniff
from .config import Codec
from .errors import QueueFull, VentuError
from .health import Health, HealthCheck
from .metrics import metrics_of
from .outcomes import InferenceFailed, Rejected
from .pipeline import Outcome, Pipeline, Run
from .startup import Startup
from .turns import Turns
from .variables import warn_of_unknown_variables

if TYPE_CHECKING:
    from .service import Service

log = logging.getLogger(__name__)


#: Has payloads inferred within so many seconds; returns for each the status and what was said.
AskWorkers = Callable[[Sequence[bytes], float], list[tuple[int, bytes | str]]]


class Model(Protocol):
    """Calls the model for the items of many threads, together or one by one."""

    def ask(self, item: Any, deadline: float) -> Answer:
        """Have one item inferred; see ``LocalQueue.ask``."""

    def ask_all(self, items: Sequence[Any], deadline: float) -> list[Answer]:
        """Have items inferred; see ``LocalQueue.ask_all``."""


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
        self.metrics = metrics_of(service.name)
        self.clock = clock
        self.startup = Startup(self._load, clock=clock)
        self._turns = Turns()
        self._checks = HealthCheck(service, self.startup, self._turns, clock)
        self._use(service.pipeline(prefer_batch=False, clock=clock))
        self._answers_http = False
        self._ask_workers: AskWorkers | None = None
        self._timeout = service.config.timeout
        self._set_up_in: int | None = None

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
        self._model = self._model_of(pipeline)

    def _model_of(self, pipeline: Pipeline) -> Model:
        infer, clock, metrics = pipeline.infer, self.clock, self.metrics
        if pipeline.mode == "single":
            return AtOnce(infer, metrics=metrics, clock=clock)
        config, turns, capacity = self.service.config, self._turns, self.service.config.capacity
        if self.service.max_batch_size == 1:
            return OneByOne(infer, capacity=capacity, turns=turns, metrics=metrics, clock=clock)
        return LocalQueue(
            infer,
            make_policy=partial(make_policy, config),
            max_batch_size=self.service.max_batch_size,
            capacity=capacity,
            turns=turns,
            metrics=metrics,
            clock=clock,
            timeout=config.timeout,
            key=self.service.batch_key,
        )

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
            Unavailable: As ``LocalQueue.ask``.
        """
        startup, clock, pipeline = self.startup, self.clock, self.pipeline
        if not startup.is_ready:
            startup.wait(deadline - clock())
        started = clock()
        item = pipeline.prepare(payload, codec)
        self.metrics.stage("preprocess", pipeline.mode, clock() - started)
        if isinstance(item, Rejected):
            return Reply(self._counted(item))
        try:
            answer = self._model.ask(item, deadline)
        except QueueFull:
            self.metrics.rejected("full")
            raise
        return self._finished(answer, answer_codec, deadline)

    def _finished(self, answer: Answer, codec: Codec, deadline: float) -> Reply:
        result, queue, infer, batch_size = answer
        started = self.clock()
        outcome = self.pipeline.finish(result, codec)
        finished_at = self.clock()
        if not isinstance(result, Rejected):
            self.metrics.stage("postprocess", self.pipeline.mode, finished_at - started)
        if finished_at > deadline:
            outcome = self._expired(outcome)
        elif isinstance(outcome, Rejected):
            self._counted(outcome)
        return Reply(outcome, queue, infer, batch_size)

    def _expired(self, outcome: Outcome) -> Rejected:
        """Reject a job whose deadline passed; what failed before that stays as its cause."""
        rejected = expired()
        if isinstance(outcome, Rejected) and outcome.is_fault:
            rejected.exc.__cause__ = outcome.exc
        return self._counted(rejected)

    def _counted(self, rejected: Rejected) -> Rejected:
        self.metrics.rejected(rejected.reason)
        return rejected

    def use_workers(self, ask: AskWorkers, timeout: float) -> None:
        """Have ``ask_all`` answered by workers elsewhere: this process only forwards.

        Args:
            ask: Asks them.
            timeout: Seconds that a request may take at most, as the command says.
        """
        self._ask_workers = ask
        self._timeout = timeout

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
        if self._ask_workers is not None:
            return self._ask_elsewhere(self._ask_workers, values, seconds)
        deadline = self.clock() + seconds
        if not self.startup.is_ready:
            self.startup.wait(seconds)
        pipeline = self.pipeline
        results = [pipeline.prepare_value(value) for value in values]
        places = [n for n, item in enumerate(results) if not isinstance(item, Rejected)]
        answers = self._model.ask_all([results[n] for n in places], deadline)
        for n, answer in zip(places, answers, strict=True):
            results[n] = pipeline.finish_value(answer.result)
        return [
            self._failure(result) if isinstance(result, Rejected) else result for result in results
        ]

    def _failure(self, rejected: Rejected) -> InferenceFailed:
        """Count and log a rejected item; a route may let the exception pass, unseen by Flask."""
        self._counted(rejected)
        if rejected.is_fault:
            log.error("a request of service.ask failed", exc_info=rejected.exc)
        return failure_of(rejected)

    def _ask_elsewhere(self, ask: AskWorkers, values: Sequence[Any], seconds: float) -> list[Any]:
        schemas, setting = self.service.compose(), self.service.config.codec
        answers: list[Any] = []
        payloads: list[bytes] = []
        for value in values:
            try:
                payloads.append(payload_of(value, schemas.request, setting))
                answers.append(None)
            except Exception as exc:
                answers.append(failure_of(Rejected.of(exc)))
        said = iter(ask(payloads, seconds) if payloads else [])
        codecs = iter([self._codec or sniff(payload) for payload in payloads])
        return [
            response_of(*next(said), next(codecs), schemas.response) if answer is None else answer
            for answer in answers
        ]

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
        pipeline = self.service.pipeline(prefer_batch=prefer_batch, clock=self.clock)
        prepared = [pipeline.prepare_value(value) for value in data]
        with self._turn(pipeline):
            results = pipeline.infer_prepared(prepared)
        answers = [pipeline.finish_value(result) for result in results]
        return [answer.exc if isinstance(answer, Rejected) else answer for answer in answers]

    def _turn(self, pipeline: Pipeline) -> AbstractContextManager[object]:
        """Return what to hold while a function is called: only batch functions take turns."""
        return self._turns if pipeline.mode == "batch" else nullcontext()

    # ------------------------------------------------------------------------- health

    def health(self) -> Health:
        """Return the cached result of a health check; those who ask together share one."""
        return self._checks.recent(self.pipeline)

    def check_health(self, *, batch: bool) -> Health:
        """Run the examples, set-up included, and say how it went.

        Args:
            batch: Run each in a batch of ``warmup_batch_size`` too, by the batch function where
                there is one.
        """
        return self._checks.run(self.pipeline, batch=batch)

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
        if self._answers_http:  # else a command has looked at the environment
            self.metrics.worker("http", is_ready=True)
            warn_of_unknown_variables()
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
        pipeline = self.pipeline
        sizes = [1, composition.warmup_batch_size] if pipeline.mode == "batch" else [1]
        for probe in composition.probes:
            for size in dict.fromkeys(sizes):
                with self._turn(pipeline):
                    run = pipeline.run([probe.payload] * size, probe.codec)
                for outcome in run.outcomes:
                    if isinstance(outcome, Rejected):
                        raise VentuError(
                            f"warm-up with {size} example(s) failed: {outcome.exc!r:.200}"
                        ) from outcome.exc
