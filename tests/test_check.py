"""``check``: services that give everybody his own answer, and each way not to."""

import re
from collections.abc import Callable, Sequence
from typing import Annotated, Any

import numpy as np
import pytest
from pydantic import BaseModel, Field, create_model

from ventu_lite import ConfigError, Service, VentuError
from ventu_lite.check import check
from ventu_lite.report import Report, Timing


def service_of(fn: Callable[[list[int]], Sequence[Any]], **given: Any) -> Service:
    settings: dict[str, Any] = {"examples": [1, 2, 3], "max_batch_size": 8} | given
    service = Service(request=int, response=int, **settings)
    service.add_stage("infer", fn, batch=True)
    return service


class Clock:
    """Moves when a model works."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def double(batch: list[int]) -> list[int]:
    return [2 * item for item in batch]


def test_a_service_that_passes() -> None:
    report = check(service_of(double))
    assert report.complaints == []
    assert [timing.size for timing in report.timings] == [1, 2, 4, 8]
    assert (
        list(report.lines())[-1]
        == "passed: the answers are the same alone, in a batch, and beside a bad item"
    )


def test_a_service_of_single_items_gets_no_advice_on_batches() -> None:
    service = Service(request=int, response=int, examples=[1, 2], max_batch_size=4)
    service.add_stage("infer", lambda item: item + 1)
    report = check(service)
    assert (report.complaints, report.remarks) == ([], [])


def test_examples_that_only_msgpack_can_say_are_tried_in_it() -> None:
    service = Service(request=bytes, response=int, examples=[b"\xff", b"\xfe\xff"])
    service.add_stage("infer", lambda batch: [len(item) for item in batch], batch=True)
    assert check(service).complaints == []


def reverse_it(batch: list[int]) -> list[int]:
    return double(batch)[::-1]


def depend_on_company(batch: list[int]) -> list[int]:
    return [item + len(batch) for item in batch]


def drop_one(batch: list[int]) -> list[int]:
    return double(batch)[: max(1, len(batch) - 1)]


@pytest.mark.parametrize(
    ("fn", "complaint"),
    [
        pytest.param(reverse_it, "example 1 in a batch of 2: answered 4, alone 2", id="order"),
        pytest.param(
            depend_on_company, "example 1 in a batch of 2: answered 3, alone 2", id="company"
        ),
    ],
)
def test_answers_must_not_depend_on_their_company(
    fn: Callable[[list[int]], list[int]], complaint: str
) -> None:
    report = check(service_of(fn, warmup_batch_size=1))
    assert f"{complaint} (and 1 more in that batch)" in report.complaints
    assert list(report.lines())[-1] == "failed: correct what is BROKEN above"


def test_a_wrong_number_of_results_is_a_complaint() -> None:
    report = check(service_of(drop_one, warmup_batch_size=1))
    assert any("status 500, alone it is answered" in one for one in report.complaints)


def test_an_item_that_only_a_batch_accepts_is_a_complaint() -> None:
    calls: list[int] = []

    def refuse_the_second_call(batch: list[int]) -> list[Any]:
        calls.append(len(batch))
        is_alone = len(calls) > 1 and len(batch) == 1
        return [ValueError("alone")] if is_alone else double(batch)

    report = check(service_of(refuse_the_second_call, warmup_batch_size=1, examples=[1]))
    assert any("answered, alone it gets status 500" in one for one in report.complaints)


def test_a_function_that_raises_for_larger_batches_only_is_a_complaint() -> None:
    """Every answer is right, after many calls: nothing else would tell."""

    def fit_four(batch: list[int]) -> list[int]:
        if len(batch) > 4:
            raise MemoryError("no room on the device")
        return double(batch)

    (complaint,) = check(service_of(fit_four, max_batch_size=32)).complaints
    assert "fit_four" in complaint
    assert "raised for 8 items together, but for none of them in a smaller batch" in complaint
    assert complaint.endswith("; lower max_batch_size")


def test_a_function_that_raises_only_for_items_of_different_sizes_is_told_otherwise() -> None:
    """A smaller max_batch_size would leave it at that, down to batches of one."""
    service = Service(request=list[float], response=float, examples=[[1, 2], [3, 4, 5]])
    calls: list[list[list[float]]] = []

    def total(batch: list[list[float]]) -> list[float]:
        calls.append(batch)
        return [float(x) for x in np.stack(batch).sum(1)]

    service.add_stage("infer", total, batch=True)
    (complaint,) = check(service).complaints
    assert "raised for 2 items together, but for none of them in a smaller batch" in complaint
    assert complaint.endswith(
        "; as many copies of one example pass: pad items to one size or give `key=`, so that only"
        " items of one size meet"
    )
    assert calls[-2:] == [[[1, 2]] * 2, [[3, 4, 5]] * 2]


def test_without_examples_the_set_up_is_tried_and_the_way_to_have_one_told() -> None:
    service = Service("mute", request=int, response=int)
    service.add_stage("infer", double, batch=True)
    calls: list[str] = []
    service.add_stage("setup", lambda: calls.append("set-up"))
    with pytest.raises(ConfigError) as caught:
        check(service)
    assert calls == ["set-up"]
    assert str(caught.value) == (
        "service 'mute' gets through its set-up, but nothing was asked: it has no example; give it"
        " one or, better, two whose answers differ: Service('mute', examples=[...])"
    )


def test_without_examples_a_list_that_may_be_a_batch_is_told() -> None:
    service = Service("mute")
    service.infer(double)
    message = r"it has no example; double .* Did you mean @service\.infer\(batch=True\)\?"
    with (
        pytest.warns(UserWarning, match="batch=True"),
        pytest.raises(ConfigError, match=message),
    ):
        check(service)


def test_without_examples_a_set_up_that_fails_is_told() -> None:
    service = Service("mute", request=int, response=int)
    service.add_stage("infer", double, batch=True)
    service.add_stage("setup", lambda: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        check(service)


def old_model(name: str, extra: dict[str, Any]) -> type[BaseModel]:
    """Return a model as users of ventu have it, with a key that pydantic 2 calls otherwise."""
    config: Any = {"schema_extra": extra}
    with pytest.warns(UserWarning, match="'schema_extra' has been renamed"):
        return create_model(name, __config__=config, text=(str, ...))


@pytest.mark.parametrize("is_annotated", [False, True])
def test_an_example_under_its_old_name_is_told(is_annotated: bool) -> None:
    question: Any = old_model("Question", {"example": {"text": "x"}})
    if is_annotated:
        question = Annotated[question, Field(description="what is asked")]
    service = Service("old", request=question, response=str)
    service.add_stage("infer", lambda question: question.text)
    with pytest.raises(ConfigError) as caught:
        check(service)
    assert str(caught.value).endswith(
        "it has no example; pydantic 2 does not read schema_extra of Question:"
        " rename it to json_schema_extra"
    )


def test_a_size_of_batches_and_an_answer_under_their_old_names_are_told() -> None:
    request = old_model("Question", {"batch_size": 8})
    response = old_model("Answer", {"example": {"text": "x"}})
    examples = [{"text": "x"}, {"text": "y"}]
    service = Service(request=request, response=response, examples=examples)
    service.add_stage("infer", lambda question: question)
    assert check(service).remarks == [
        "pydantic 2 does not read schema_extra of Question and Answer:"
        " rename it to json_schema_extra"
    ]


def test_what_does_not_fit_is_told_without_the_names_of_exceptions() -> None:
    with pytest.raises(VentuError) as caught:
        check(service_of(lambda batch: ["x" for _ in batch]))
    assert re.match(
        r"warm-up with example 1 failed: \S+ \(\S+:\d+\) returned str of length 1,"
        r" which does not fit the response schema int: ",
        str(caught.value),
    )


def test_one_example_says_nothing_about_order() -> None:
    report = check(service_of(double, examples=[1]))
    assert report.remarks[0] == (
        "with one example the order of answers cannot be checked; give two whose answers differ"
    )


@pytest.mark.parametrize("examples", [[3, -3], [3, -3, 4]])
def test_equal_answers_say_nothing_about_order(examples: list[int]) -> None:
    report = check(service_of(lambda batch: [abs(item) for item in batch], examples=examples))
    is_told = (
        "with the same answer to all examples their order cannot be checked; give two whose answers"
        " differ"
    ) in report.remarks
    assert is_told == (4 not in examples)


@pytest.mark.parametrize(
    ("seconds", "advice"),
    [
        pytest.param(
            lambda size: size * 0.01,
            "a batch gets through only 1.00 × as many items per second as one by one:"
            " a plain @service.infer would do as well",
            id="no-gain",
        ),
        pytest.param(
            lambda size: 0.01,
            "batches get through 8.0 × as many items per second as one by one,"
            " the largest most: a larger max_batch_size may bring more",
            id="free-company",
        ),
        pytest.param(
            lambda size: 0.01 * max(1.0, size / 4),
            "batches get through 4.0 × as many items per second as one by one,"
            " and those of 4 through 90% of that: max_batch_size=4 keeps answers quick",
            id="plateau",
        ),
        pytest.param(
            lambda size: 0.00002 * size,
            "the largest batch takes less time than HTTP around it: its size hardly matters",
            id="next to nothing",
        ),
        pytest.param(
            lambda size: 0.0002 + 0.00001 * size,
            "batches get through 6.0 × as many items per second as one by one, though HTTP around"
            " the largest takes longer",
            id="quick, but much quicker together",
        ),
    ],
)
def test_advice_comes_from_the_measured_batches(
    seconds: Callable[[int], float], advice: str
) -> None:
    clock = Clock()

    def work(batch: list[int]) -> list[int]:
        clock.now += seconds(len(batch))
        return double(batch)

    assert advice in check(service_of(work), clock=clock).remarks


def test_a_batch_that_outlasts_the_timeout_is_told() -> None:
    clock = Clock()

    def work(batch: list[int]) -> list[int]:
        clock.now += len(batch)
        return double(batch)

    report = check(service_of(work, timeout=5), clock=clock)
    assert (
        "the model took 8.0 s for 8 item(s), but a request waits no longer than timeout, 5 s:"
        " raise VENTU_TIMEOUT, or lower VENTU_MAX_BATCH_SIZE"
    ) in report.remarks


def test_a_smaller_batch_is_no_advice_if_one_item_outlasts_the_timeout() -> None:
    clock = Clock()

    def work(batch: list[int]) -> list[int]:
        clock.now += 6
        return double(batch)

    remarks = check(service_of(work, timeout=5), clock=clock).remarks
    (said,) = (one for one in remarks if "timeout" in one)
    assert said.endswith("timeout, 5 s: raise VENTU_TIMEOUT")


def test_the_report_is_a_table() -> None:
    report = Report(["it lies"], ["be careful"], [Timing(2, 0.004), Timing(4, 0.0)])
    assert list(report.lines()) == [
        "batch size    ms/batch     ms/item     items/s",
        "         2       4.000       2.000         500",
        "         4       0.000       0.000         inf",
        "BROKEN: it lies",
        "note: be careful",
        "failed: correct what is BROKEN above",
    ]


def test_an_answer_that_is_not_the_expected_one_is_a_complaint() -> None:
    service = Service("expects", request=str, response=str, examples=[("a", "A"), ("b", "b")])
    service.add_stage("infer", str.upper)
    report = check(service)
    assert report.complaints == ["example 2: answered 'B', expected 'b'"]


def test_of_long_answers_the_place_that_differs_is_shown() -> None:
    service = Service(request=int, response=list[dict[str, str]], examples=[1, 2])
    expected = [{"text": "same"}] * 50

    def answer(batch: list[int]) -> list[Any]:
        return [[*expected, {"text": "x" * 500 if len(batch) == 1 else "other"}] for _ in batch]

    service.add_stage("infer", answer, batch=True)
    (complaint, *_) = check(service).complaints
    assert "at [50].text" in complaint
    said = f"answered 'other' at [50].text, alone '{'x' * 96}... (and"
    assert said in complaint
