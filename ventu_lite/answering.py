"""Requests answered in the process that runs the stages: deadlines kept, stages counted."""

from collections.abc import Callable, Sequence
from contextvars import copy_context
from functools import partial
from typing import Any, TypeVar

from .batching.local_jobs import Asked, Inferred, expired
from .batching.model import Model
from .config import Codec
from .errors import PayloadTooLarge, QueueFull
from .metrics import ServiceMetrics
from .outcomes import Rejected
from .pipeline import Pipeline

T = TypeVar("T")


class Answering:
    """Takes requests through the stages of a service that is set up; any thread may call it.

    Args:
        pipeline: The stages.
        model: Calls the one in the middle, for many threads together.
        metrics: What is counted.
        clock: Monotonic seconds; deadlines are read on it.

    Attributes:
        model: As given.
    """

    def __init__(
        self,
        pipeline: Pipeline,
        model: Model,
        *,
        metrics: ServiceMetrics,
        clock: Callable[[], float],
    ) -> None:
        self.model = model
        self._pipeline = pipeline
        self._metrics = metrics
        self._clock = clock

    def answer(
        self, payload: bytes, codec: Codec, answer_codec: Codec, deadline: float
    ) -> Inferred:
        """Take one payload all the way before a deadline, and count it if it is rejected.

        Args:
            payload: What the client sent.
            codec: What it is in.
            answer_codec: What the answer is to be in.
            deadline: A time on the clock.

        Returns:
            The bytes of the answer or a ``Rejected``, and how that went.

        Raises:
            Unavailable: As ``LocalQueue.ask``.
        """
        pipeline = self._pipeline
        asked = self._prepared(pipeline.prepare, payload, codec)
        if isinstance(asked.item, Rejected):
            return Inferred(self._counted(asked.item))
        result, queue, infer, batch_size = self._inferred(self.model.ask, asked, deadline)
        outcome = self._finished(deadline, pipeline.finish, result, answer_codec)
        if isinstance(outcome, Rejected):
            self._counted(outcome)
        return Inferred(outcome, queue, infer, batch_size)

    def answer_values(self, values: Sequence[Any], deadline: float) -> list[Any]:
        """Take Python values all the way before a deadline.

        Returns:
            For each value what ``answer`` has for a payload: a response or a ``Rejected``, which
            is not counted.

        Raises:
            Unavailable: As ``LocalQueue.ask_all``.
        """
        pipeline = self._pipeline
        asked = [self._prepared(pipeline.prepare_value, value) for value in values]
        answers = [one.item for one in asked]
        places = [n for n, item in enumerate(answers) if not isinstance(item, Rejected)]
        inferred = self._inferred(self.model.ask_all, [asked[n] for n in places], deadline)
        for n, one in zip(places, inferred, strict=True):
            answers[n] = self._finished(deadline, pipeline.finish_value, one.result)
        return answers

    def _prepared(self, prepare: Callable[..., Any], *given: Any) -> Asked:
        """Return an item, or the ``Rejected`` in its place, and count the stage."""
        started = self._clock()
        # The inference thread would have no request of Flask, which a stage may look at.
        asked = Asked(prepare(*given), partial(copy_context().run, prepare, *given))
        self._metrics.stage("preprocess", self._pipeline.mode, self._clock() - started)
        return asked

    def _inferred(self, ask: Callable[[Any, float], T], asked: Any, deadline: float) -> T:
        """Return what the model says, and count what it has no place for."""
        try:
            return ask(asked, deadline)
        except (QueueFull, PayloadTooLarge) as exc:
            self._metrics.rejected("full" if isinstance(exc, QueueFull) else "invalid")
            raise

    def _finished(
        self, deadline: float, finish: Callable[..., Any], result: Any, *options: Any
    ) -> Any:
        """Return an outcome, or the ``Rejected`` in its place, and count the stage if it ran."""
        started = self._clock()
        outcome = finish(result, *options)
        finished_at = self._clock()
        if not isinstance(result, Rejected):
            self._metrics.stage("postprocess", self._pipeline.mode, finished_at - started)
        return _expired(outcome) if finished_at > deadline else outcome

    def _counted(self, rejected: Rejected) -> Rejected:
        self._metrics.rejected(rejected.reason)
        return rejected


def _expired(outcome: object) -> Rejected:
    """Reject an item whose deadline passed; what failed before that stays as its cause."""
    if isinstance(outcome, Rejected) and outcome.reason == "expired":
        return outcome
    rejected = expired()
    if isinstance(outcome, Rejected) and outcome.is_fault:
        rejected.exc.__cause__ = outcome.exc
    return rejected
