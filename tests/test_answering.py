"""Requests on their way through the stages in this process: deadlines, codecs, what is counted."""

from collections.abc import Callable
from itertools import count
from typing import Any

from prometheus_client import REGISTRY

from ventu_lite import JobExpired, Service
from ventu_lite.answering import Answering
from ventu_lite.batching.local_jobs import Inferred
from ventu_lite.batching.model import model_of
from ventu_lite.metrics import metrics_of
from ventu_lite.outcomes import Rejected
from ventu_lite.turns import Turns

PATIENCE = 10.0

_numbers = count()


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


class Answers:
    """The answers of a service of its own name for integers."""

    def __init__(
        self,
        infer: Callable[[Any], Any],
        *,
        batch: bool = False,
        clock: Clock | None = None,
        postprocess: Callable[[Any], Any] | None = None,
    ) -> None:
        self.name = f"answering {next(_numbers)}"
        self.clock = clock or Clock()
        service = Service(self.name, request=int, response=int)
        service.add_stage("infer", infer, batch=batch, max_batch_size=1 if batch else None)
        if postprocess:
            service.add_stage("postprocess", postprocess)
        self._answering = self._make(service)

    def _make(self, service: Service) -> Answering:
        clock, metrics, composition = self.clock, metrics_of(self.name), service.compose()
        pipeline = composition.pipeline(
            prefer_batch=False, clock=clock, on_blameless=lambda *_: None
        )
        model = model_of(composition, pipeline, turns=Turns(clock), metrics=metrics, clock=clock)
        return Answering(pipeline, model, metrics=metrics, clock=clock)

    def answer(self, payload: bytes, *codecs: Any, seconds: float = PATIENCE) -> Inferred:
        codec, answer_codec = codecs or ("json", "json")
        return self._answering.answer(payload, codec, answer_codec, self.clock.now + seconds)

    def answer_values(self, *values: Any, seconds: float = PATIENCE) -> list[Any]:
        return self._answering.answer_values(values, self.clock.now + seconds)

    def sample(self, series: str, **labels: str) -> float:
        return REGISTRY.get_sample_value(series, {"service": self.name} | labels) or 0.0

    def rejected(self, reason: str) -> float:
        return self.sample("ventu_rejected_total", reason=reason)

    def stages(self, mode: str) -> list[float]:
        return [
            self.sample("ventu_stage_seconds_count", stage=stage, mode=mode)
            for stage in ("preprocess", "infer", "postprocess")
        ]


def doubled(number: int) -> int:
    return 2 * number


def rejected(reply: Inferred) -> Rejected:
    assert isinstance(reply.result, Rejected)
    return reply.result


def test_a_payload_is_answered() -> None:
    reply = Answers(doubled).answer(b"21")
    assert reply.result == b"42"
    assert reply.batch_size == 1


def test_the_answer_may_be_in_another_codec() -> None:
    answers = Answers(doubled)
    assert answers.answer(b"\x15", "msgpack", "json").result == b"42"
    assert answers.answer(b"21", "json", "msgpack").result == b"*"


# --------------------------------------------------------------------------- deadlines


def slow(clock: Clock, fn: Callable[[int], int] = int) -> Callable[[int], int]:
    """Return a stage that takes as many seconds as its item says."""

    def stage(number: int) -> int:
        clock.now += number
        return fn(number)

    return stage


def test_a_deadline_may_have_passed_before() -> None:
    seen: list[int] = []
    answers = Answers(seen.append)
    assert rejected(answers.answer(b"1", seconds=-1.0)).status == 504
    assert not seen


def test_a_deadline_may_pass_during_the_call() -> None:
    clock = Clock()
    answers = Answers(slow(clock), clock=clock)
    assert answers.answer(b"9").result == b"9"
    reply = answers.answer(b"11")
    assert rejected(reply).status == 504
    assert rejected(reply).exc.__cause__ is None
    assert reply.infer == 11
    assert answers.rejected("expired") == 1


def test_what_failed_before_a_deadline_is_not_forgotten() -> None:
    clock = Clock()
    answers = Answers(slow(clock, lambda number: 1 // (number < 11)), clock=clock)
    reply = answers.answer(b"11")
    assert rejected(reply).status == 504
    assert isinstance(rejected(reply).exc.__cause__, ZeroDivisionError)
    assert (answers.rejected("expired"), answers.rejected("failed")) == (1, 0)


def test_values_expire_like_payloads() -> None:
    clock = Clock()
    answers = Answers(int, postprocess=slow(clock), clock=clock)
    good, late = answers.answer_values(1, 2, seconds=2.5)
    assert good == 1
    assert isinstance(late.exc, JobExpired)
    assert str(late.exc) == (
        "no answer within the timeout of this request; the model was still at work on it"
    )


def test_what_failed_before_the_deadline_of_a_value_is_not_forgotten() -> None:
    clock = Clock()
    end = slow(clock, lambda number: 1 // (number < 3))
    answers = Answers(int, postprocess=end, clock=clock)
    (late,) = answers.answer_values(3, seconds=2.5)
    assert late.status == 504
    assert isinstance(late.fault, ZeroDivisionError)


# ---------------------------------------------------------------------------- metrics


def test_a_stage_that_did_not_run_is_not_counted() -> None:
    answers = Answers(lambda number: 6 // number)
    answers.answer(b"1")
    assert answers.stages("single") == [1, 1, 1]
    answers.answer(b"0")
    assert answers.stages("single") == [2, 2, 1]
    answers.answer(b"x")
    assert answers.stages("single") == [3, 2, 1]
    assert (answers.rejected("failed"), answers.rejected("invalid")) == (1, 1)
    assert answers.sample("ventu_batch_size_count") == 0
    assert answers.sample("ventu_queue_seconds_count") == 0


def test_the_stages_of_values_are_counted_like_those_of_payloads() -> None:
    """What is rejected is counted by those who tell it."""
    answers = Answers(lambda number: 6 // number)
    assert [type(one) for one in answers.answer_values(1, 0, "x")] == [int, Rejected, Rejected]
    assert answers.stages("single") == [3, 2, 1]
    assert (answers.rejected("failed"), answers.rejected("invalid")) == (0, 0)


def test_a_batch_function_counts_batches_and_waiting() -> None:
    answers = Answers(lambda numbers: numbers, batch=True)
    answers.answer(b"1")
    assert answers.stages("batch") == [1, 1, 1]
    assert answers.sample("ventu_batch_size_count") == 1
    assert answers.sample("ventu_batch_size_sum") == 1
    assert answers.sample("ventu_queue_seconds_count") == 1
