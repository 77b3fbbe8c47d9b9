"""What a service is once it is composed: schemas, examples, sizes, the pipeline."""

import functools
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from cats import Request, Response, clean, full_service, rate, rate_all
from pydantic import BaseModel, ConfigDict

from ventu_lite import Config, RegistrationError, Service
from ventu_lite.composition import largest_batch
from ventu_lite.isolation import BatchInfer, SingleInfer
from ventu_lite.pipeline import Pipeline
from ventu_lite.stages import Options, make_stage

HERE = re.escape(__file__)


def make(**options: Any) -> Service:
    """Return a service without stages."""
    return Service("x", **options)


def pipeline(service: Service, *, prefer_batch: bool) -> Pipeline:
    return service.compose().pipeline(
        prefer_batch=prefer_batch, clock=lambda: 0.0, on_blameless=lambda *_: None
    )


# ------------------------------------------------------------------------------ schemas


def test_schemas_come_from_the_first_and_the_last_stage() -> None:
    composition = full_service().compose()
    assert composition.request.annotation is Request
    assert composition.response.annotation is Response


def test_schemas_come_from_the_model_call_where_it_is_alone() -> None:
    service = make()
    service.infer(batch=True)(rate_all)
    composition = service.compose()
    assert (composition.request.annotation, composition.response.annotation) == (str, float)


def test_of_two_model_calls_the_one_that_is_annotated_tells() -> None:
    service = make()
    service.infer(lambda text: 0.5)
    service.infer(batch=True)(rate_all)
    assert service.compose().request.annotation is str


def test_arguments_win_over_annotations() -> None:
    composition = full_service(request=dict[str, str], response=float, examples=[]).compose()
    assert composition.request.annotation == dict[str, str]
    assert composition.response.annotation is float


def no_annotations(item):  # type: ignore[no-untyped-def]
    return item


def half(request: Request):  # type: ignore[no-untyped-def]
    return request


def bare(batch: "list") -> list[int]:  # type: ignore[type-arg]
    return batch


def part_of_it(batch: "list[str]") -> "List[int]":  # type: ignore[name-defined]  # noqa: F821
    return batch


def no_member(batch: "list[str]") -> "np.Array":  # type: ignore[name-defined]
    return batch


def arrays(batch: npt.NDArray[np.float32]) -> np.ndarray:
    return batch


class Frame:
    """What pydantic knows as little as a DataFrame of pandas."""


def frames(batch: Frame) -> list[str]: ...  # type: ignore[empty-body]


def nothing(batch: list[str]) -> None: ...


def table(batch: list[str]) -> dict[str, float]: ...  # type: ignore[empty-body]


def number(batch: list[str]) -> np.float64: ...  # type: ignore[empty-body]


def array(batch: "list[int]") -> "Nowhere":  # type: ignore[name-defined]  # noqa: F821
    return batch


@pytest.mark.parametrize(
    ("fn", "batch", "options", "message"),
    [
        pytest.param(
            no_annotations,
            False,
            {},
            rf"service 'x' has no request schema: the first parameter of no_annotations"
            rf" \({HERE}:\d+\) has no annotation\. Write `def no_annotations\(item: Request\)`,"
            r" or say Service\('x', request=Request\)\.$",
            id="request",
        ),
        pytest.param(
            no_annotations,
            True,
            {},
            r"Write `def no_annotations\(item: list\[Request\]\)`",
            id="request of a batch",
        ),
        pytest.param(
            half,
            False,
            {},
            r"has no response schema: the return value of half .* has no annotation\."
            r" Write `def half\(\.\.\.\) -> Response`, or say Service\('x', response=Response\)",
            id="response",
        ),
        pytest.param(
            no_annotations,
            True,
            {"request": Request},
            r"Write `def no_annotations\(\.\.\.\) -> list\[Response\]`",
            id="response of a batch",
        ),
        pytest.param(
            array,
            True,
            {},
            r"the return value of array .* says 'Nowhere', but the name 'Nowhere' is not defined\."
            r" Define or import it above the line that asks for the app, or say Service\(",
            id="an annotation of what is not there",
        ),
        pytest.param(
            part_of_it,
            True,
            {},
            r"says 'List\[int\]', but the name 'List' is not defined\. Define or import it above",
            id="an annotation of which a part is not there",
        ),
        pytest.param(
            no_member,
            True,
            {},
            r"says 'np.Array', but that raises AttributeError\(.*'Array'.*\)\. Define or import",
            id="an annotation that raises",
        ),
        pytest.param(
            arrays,
            True,
            {"request": str},
            r"the return value of arrays .* says ndarray, but a batch function has a list there\."
            r" Write `def arrays\(\.\.\.\) -> list\[list\[float\]\]`,"
            r" or say Service\('x', response=list\[float\]\)\."
            r" Say float instead if each item is one number; what you return is converted\.$",
            id="an array of answers",
        ),
        pytest.param(
            arrays,
            True,
            {"response": float},
            r"says ndarray, but .* `def arrays\(batch: list\[list\[float\]\]\)`,"
            r" or say Service\('x', request=list\[float\]\)\."
            r" Say float instead if each item is one number; make the array inside\.$",
            id="an array of requests",
        ),
        pytest.param(
            frames,
            True,
            {},
            r"says Frame, but .* Write `def frames\(batch: list\[Request\]\)`, or say",
            id="a frame of requests",
        ),
        pytest.param(nothing, True, {}, r"tells none\. .* -> list\[Response\]`", id="None"),
        pytest.param(table, True, {}, r"tells none\. .* -> list\[Response\]`", id="a dict"),
        pytest.param(
            number,
            True,
            {},
            r"says float64, but .* `def number\(\.\.\.\) -> list\[float\]`, or .*=float\)\.$",
            id="a number of numpy",
        ),
        pytest.param(
            bare,
            True,
            {},
            r"the first parameter of bare .* says 'list', which tells none\. Write `def bare\(",
            id="an annotation that does not help",
        ),
        pytest.param(
            lambda item: item,
            False,
            {},
            r"has no annotation\. Say Service\('x', request=Request\)",
            id="a lambda, which cannot be annotated",
        ),
        pytest.param(
            functools.partial(max, 3),
            False,
            {},
            rf"max \(given at {HERE}:\d+\) has no annotation\. Say Service",
            id="a builtin",
        ),
    ],
)
def test_an_unknown_schema_is_told_with_the_fix(
    fn: Callable[..., Any], batch: bool, options: dict[str, Any], message: str
) -> None:
    service = make(**options)
    service.infer(batch=batch)(fn)
    with pytest.raises(RegistrationError, match=message):
        service.compose()


@pytest.mark.parametrize(
    ("response", "array", "answer"),
    [(float, np.ones(2), b"1.0"), (list[float], np.ones((2, 3), np.float32), b"[1.0,1.0,1.0]")],
)
def test_what_is_told_of_arrays_works(response: Any, array: Any, answer: bytes) -> None:
    service = Service("x", request=str, response=response)
    service.infer(batch=True)(lambda batch: array)
    run = pipeline(service, prefer_batch=True).run([b'"a"', b'"b"'], "json")
    assert run.outcomes == [answer] * 2


@pytest.mark.parametrize("side", ["request", "response"])
def test_a_schema_that_cannot_be_is_told_with_its_side(side: str) -> None:
    given = {"request": str, "response": str, side: np.ndarray}
    with pytest.raises(RegistrationError) as caught:
        service = make(**given)
        service.add_stage("infer", no_annotations, batch=True)
        service.compose()
    said = str(caught.value)
    assert said.startswith(f"the {side} of service 'x': pydantic cannot validate <class 'numpy.nda")
    assert said.endswith("in a stage; one that you return is converted.")


def test_a_schema_may_be_defined_below_the_function() -> None:
    service = Service("x")

    @service.infer
    def infer(item: "Below") -> "Below":
        return item

    class Below(BaseModel):
        text: str

    assert service.compose().request.annotation is Below


def test_the_fix_that_the_message_shows_works() -> None:
    service = Service("x", request=Request, response=Response)
    service.infer(no_annotations)
    assert service.compose().request.annotation is Request

    other = Service("x")

    @other.infer
    def infer(item: Request) -> Response:
        return Response(score=len(item.text))

    assert other.compose().response.annotation is Response


def test_without_a_model_call_the_decorator_is_shown() -> None:
    service = make()
    service.preprocess(clean)
    with pytest.raises(RegistrationError, match=r"no model call\. Decorate it: @service\.infer,"):
        service.compose()


# -------------------------------------------------------------------- sizes and examples


class Sized(Request):
    model_config = ConfigDict(json_schema_extra={"batch_size": 5})


@pytest.mark.parametrize(
    ("options", "size"),
    [
        pytest.param({}, 8, id="the ceiling of the decorator"),
        pytest.param({"max_batch_size": 4}, 4, id="the setting below it"),
        pytest.param({"warmup_batch_size": 3}, 3, id="argument"),
        pytest.param({"warmup_batch_size": 100}, 8, id="argument above the ceiling"),
        pytest.param({"request": Sized}, 5, id="schema"),
        pytest.param({"request": Sized, "warmup_batch_size": 2}, 2, id="argument over schema"),
    ],
)
def test_the_warm_up_batch_has_the_size_that_was_said(options: dict[str, Any], size: int) -> None:
    assert full_service(**options).compose().warmup_batch_size == size


@pytest.mark.parametrize("size", [0, -1, True, "3", 1.5])
def test_a_warm_up_batch_has_at_least_one_item(size: Any) -> None:
    with pytest.raises(RegistrationError, match=f"warmup_batch_size is {size!r}, expected an"):
        full_service(warmup_batch_size=size).compose()


def test_without_a_batch_function_the_setting_is_the_ceiling() -> None:
    service = Service(max_batch_size=7)
    service.infer(rate)
    assert service.compose().max_batch_size == 7


@pytest.mark.parametrize(
    ("options", "setting", "size"),
    [
        ({"batch": True, "max_batch_size": 16}, 64, 16),
        ({"batch": True, "max_batch_size": 64}, 16, 16),
        ({"batch": True}, 64, 64),
        ({}, 64, 64),
    ],
)
def test_the_ceiling_of_the_decorator_holds(
    options: dict[str, Any], setting: int, size: int
) -> None:
    stage = make_stage("infer", rate, Options(**options))
    assert largest_batch({stage.slot: stage}, Config(max_batch_size=setting)) == size


SIZED = make_stage("infer", rate, Options(batch=True, max_batch_size=128))


def set_in_file(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Config:
    (folder / ".env").write_text("VENTU_MAX_BATCH_SIZE=32\n")
    monkeypatch.chdir(folder)
    return Config()


def set_in_environment(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Config:
    monkeypatch.setenv("VENTU_MAX_BATCH_SIZE", "32")
    return Config()


@pytest.mark.parametrize(
    ("make_config", "size"),
    [
        pytest.param(lambda *_: Config(), 128, id="by nobody"),
        pytest.param(lambda *_: Service(config=Config()).config, 128, id="by nobody, in a Config"),
        pytest.param(lambda *_: Config().override(max_batch_size=None), 128, id="by no flag"),
        pytest.param(lambda *_: Config().override(max_batch_size=32), 32, id="by a flag"),
        pytest.param(lambda *_: Service(max_batch_size=32).config, 32, id="in the code"),
        pytest.param(set_in_environment, 32, id="in the environment"),
        pytest.param(set_in_file, 32, id="in .env"),
    ],
)
def test_a_setting_lowers_the_ceiling_only_where_it_was_set(
    make_config: Callable[..., Config],
    size: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert largest_batch({SIZED.slot: SIZED}, make_config(tmp_path, monkeypatch)) == size


@pytest.mark.parametrize(
    ("setting", "codec"), [("auto", "json"), ("json", "json"), ("msgpack", "msgpack")]
)
def test_the_setting_says_in_which_codec_an_example_is_sent(setting: str, codec: str) -> None:
    (probe,) = full_service(codec=setting).compose().probes
    assert probe.codec == codec


def test_what_only_msgpack_can_say_is_an_example_where_it_is_spoken() -> None:
    service = Service(request=bytes, response=float, examples=[b"\xff"])
    service.infer(len)
    assert service.compose().probes[0].codec == "msgpack"


@pytest.mark.parametrize("retry", [True, False])
def test_the_function_that_workers_call_says_whether_it_may_be_called_again(retry: bool) -> None:
    alone, both = make(), make()
    alone.infer(retry=retry)(rate)
    both.infer(retry=not retry)(rate)
    both.infer(batch=True, retry=retry)(rate_all)
    workers_call = [service.compose().worker_stage for service in (alone, both)]
    assert [stage.options.retry for stage in workers_call] == [retry, retry]


# ----------------------------------------------------------------------------- pipeline


def test_a_single_and_a_batch_function_live_side_by_side() -> None:
    service = full_service()
    assert pipeline(service, prefer_batch=False).mode == "single"
    assert pipeline(service, prefer_batch=True).mode == "batch"


@pytest.mark.parametrize("prefer_batch", [True, False])
def test_the_only_function_serves_both(prefer_batch: bool) -> None:
    single, batch = make(), make()
    single.infer(rate)
    batch.infer(batch=True)(rate_all)
    assert pipeline(single, prefer_batch=prefer_batch).mode == "single"
    assert pipeline(batch, prefer_batch=prefer_batch).mode == "batch"


@pytest.mark.parametrize(
    ("prefer_batch", "infer"), [(False, SingleInfer), (True, BatchInfer)], ids=["single", "batch"]
)
def test_the_pipeline_runs_the_stages(prefer_batch: bool, infer: type) -> None:
    whole = pipeline(full_service(), prefer_batch=prefer_batch)
    assert isinstance(whole.infer, infer)
    assert whole.run([b'{"text": "my cat"}']).outcomes == [b'{"score":0.6}']


@pytest.mark.parametrize("option", ["retry", "isolate"])
def test_a_function_that_must_not_run_twice_does_not(option: str) -> None:
    calls = []

    def fail(batch: list[int]) -> list[int]:
        calls.append(batch)
        raise ValueError

    service = make()
    options: dict[str, Any] = {"batch": True, option: False}
    service.infer(**options)(fail)
    pipeline(service, prefer_batch=True).run([b"1", b"2"])
    assert calls == [[1, 2]]


def test_the_options_reach_the_call() -> None:
    calls = []

    def infer(batch: list[int]) -> list[int]:
        calls.append(batch)
        return batch

    service = make()
    service.infer(batch=True, max_batch_size=2, key=lambda item: item % 2)(infer)
    pipeline(service, prefer_batch=True).run([b"1", b"2", b"3", b"5"])
    assert calls == [[1, 3], [5], [2]]
