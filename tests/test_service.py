"""The registry: what can be registered where, and what comes of it."""

import functools
import re
from collections.abc import Callable
from typing import Any

import pytest
from pydantic import BaseModel, ConfigDict, Field

from ventu_lite import Config, ConfigError, Example, RegistrationError, Service
from ventu_lite.isolation import BatchInfer, SingleInfer
from ventu_lite.stages import Kind

HERE = re.escape(__file__)
KINDS: list[Kind] = ["setup", "preprocess", "infer", "postprocess", "teardown"]


class Request(BaseModel):
    text: str = Field(min_length=2, examples=["my cat"])


class Response(BaseModel):
    score: float


def load() -> None: ...


def clean(request: Request) -> str:
    return request.text


def rate(text: str) -> float:
    return len(text) / 10


def rate_all(texts: list[str]) -> list[float]:
    return [rate(text) for text in texts]


def label(score: float) -> Response:
    return Response(score=score)


FUNCTIONS: dict[Kind, Callable[..., Any]] = {
    "setup": load,
    "preprocess": clean,
    "infer": rate,
    "postprocess": label,
    "teardown": load,
}


def full_service(**options: Any) -> Service:
    service = Service("full", **options)
    service.preprocess(clean)
    service.infer(rate)
    service.infer(batch=True, max_batch_size=8)(rate_all)
    service.postprocess(label)
    return service


def a_clock() -> float:
    return 0.0


# ------------------------------------------------------------------------- registration


@pytest.mark.parametrize("kind", KINDS)
def test_a_decorator_returns_the_function_unchanged(kind: Kind) -> None:
    fn = FUNCTIONS[kind]
    before = dict(vars(fn))
    assert getattr(Service(), kind)(fn) is fn
    assert getattr(Service(), kind)()(fn) is fn
    assert vars(fn) == before


@pytest.mark.parametrize("kind", KINDS)
def test_each_decorator_has_a_twin(kind: Kind) -> None:
    service = Service()
    service.add_stage(kind, FUNCTIONS[kind])
    stage = service.stage(kind)
    assert stage is not None
    assert stage.fn is FUNCTIONS[kind]


def test_the_twin_takes_the_options_of_infer() -> None:
    decorated, added = Service(), Service()
    options: dict[str, Any] = {
        "batch": True,
        "max_batch_size": 3,
        "isolate": False,
        "retry": False,
        "key": len,
    }
    decorated.infer(**options)(rate_all)
    added.add_stage("infer", rate_all, **options)
    assert decorated.stage("batch infer") == added.stage("batch infer")


def test_an_unknown_option_is_a_type_error() -> None:
    with pytest.raises(TypeError, match="'bathc'"):
        Service().add_stage("infer", rate, bathc=True)  # type: ignore[call-arg]


@pytest.mark.parametrize("kind", KINDS)
def test_a_second_function_is_refused_and_both_places_are_named(kind: Kind) -> None:
    service = Service("twice")
    service.add_stage(kind, FUNCTIONS[kind])

    def second(*args: Any) -> None: ...

    line, other = FUNCTIONS[kind].__code__.co_firstlineno, second.__code__.co_firstlineno
    with pytest.raises(
        RegistrationError,
        match=rf"service 'twice' has its {kind} stage already: \w+ \({HERE}:{line}\)\."
        rf" Remove it, or give .*second \({HERE}:{other}\) a service of its own\.",
    ):
        service.add_stage(kind, second)


def test_one_decorator_object_registers_one_function() -> None:
    decorator = Service().infer(batch=True)
    decorator(rate_all)
    with pytest.raises(RegistrationError, match="has its batch infer stage already: rate_all"):
        decorator(rate_all)


def test_a_single_and_a_batch_function_live_side_by_side() -> None:
    service = full_service()
    assert service.mode(prefer_batch=False) == "single"
    assert service.mode(prefer_batch=True) == "batch"


@pytest.mark.parametrize("prefer_batch", [True, False])
def test_the_only_function_serves_both(prefer_batch: bool) -> None:
    single, batch = Service(), Service()
    single.infer(rate)
    batch.infer(batch=True)(rate_all)
    assert single.mode(prefer_batch=prefer_batch) == "single"
    assert batch.mode(prefer_batch=prefer_batch) == "batch"


def test_a_function_that_comes_too_late_is_told_where_it_was_composed() -> None:
    service = full_service()
    service.compose()
    with pytest.raises(
        RegistrationError,
        match=rf"load \({HERE}:\d+\) comes too late: service 'full' was composed at"
        rf" {HERE}:\d+\. Move that line below",
    ):
        service.setup(load)


def test_a_composition_that_failed_can_be_mended() -> None:
    service = Service(request=str)
    with pytest.raises(RegistrationError):
        service.compose()
    service.infer(rate)
    assert service.compose() is service.compose()


def test_the_repr_names_the_stages() -> None:
    assert repr(full_service()) == "<Service 'full' [clean, rate, rate_all, label]>"


# ------------------------------------------------------------------------------ schemas


def make(**options: Any) -> Service:
    """Return a service without stages."""
    return Service("x", **options)


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
            r"the return value of array .* says 'Nowhere', which tells none\. Write",
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


# ------------------------------------------------------------------- settings and sizes


def test_settings_are_fields_of_the_config() -> None:
    service = Service("name", version="2", config=Config(port=1, timeout=3), timeout=2)
    config = service.config
    assert (config.name, config.version, config.port, config.timeout) == ("name", "2", 1, 2.0)
    assert service.name == "name"


def test_a_service_may_have_no_name() -> None:
    assert Service().name == "Deep Learning Service"


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"timeout": -1}, ConfigError, "^timeout=-1: Input should be greater than 0"),
        ({"time_out": 1}, RegistrationError, "no setting 'time_out'. Did you mean 'timeout'"),
        ({"name": ""}, ConfigError, "^name='': String should have at least 1"),
    ],
)
def test_a_bad_setting_is_refused_at_once(
    options: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        Service(**options)


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
    assert service.max_batch_size == 7


@pytest.mark.parametrize(
    ("codec", "codecs"),
    [("auto", ["json", "msgpack"]), ("json", ["json"]), ("msgpack", ["msgpack"])],
)
def test_the_setting_says_which_codecs_are_spoken(codec: str, codecs: list[str]) -> None:
    assert Service(codec=codec).codecs == codecs


def test_examples_are_checked_when_the_service_is_composed() -> None:
    with pytest.raises(RegistrationError, match="does not fit the request schema: text: "):
        full_service(examples=[{"text": "x"}]).compose()


# ----------------------------------------------------------------------------- pipeline


@pytest.mark.parametrize(
    ("prefer_batch", "infer"), [(False, SingleInfer), (True, BatchInfer)], ids=["single", "batch"]
)
def test_the_pipeline_runs_the_stages(prefer_batch: bool, infer: type) -> None:
    pipeline = full_service().pipeline(prefer_batch=prefer_batch, clock=a_clock)
    assert isinstance(pipeline.infer, infer)
    assert pipeline.run([b'{"text": "my cat"}']).outcomes == [b'{"score":0.6}']


@pytest.mark.parametrize("option", ["retry", "isolate"])
def test_a_function_that_must_not_run_twice_does_not(option: str) -> None:
    calls = []

    def fail(batch: list[int]) -> list[int]:
        calls.append(batch)
        raise ValueError

    service = make()
    options: dict[str, Any] = {"batch": True, option: False}
    service.infer(**options)(fail)
    service.pipeline(prefer_batch=True, clock=a_clock).run([b"1", b"2"])
    assert calls == [[1, 2]]


def test_the_options_reach_the_call() -> None:
    calls = []

    def infer(batch: list[int]) -> list[int]:
        calls.append(batch)
        return batch

    service = make()
    service.infer(batch=True, max_batch_size=2, key=lambda item: item % 2)(infer)
    service.pipeline(prefer_batch=True, clock=a_clock).run([b"1", b"2", b"3", b"5"])
    assert calls == [[1, 3], [5], [2]]


# ------------------------------------------------------------------------------- shells


def test_predict_takes_one_request_all_the_way() -> None:
    assert full_service().predict({"text": "my cat"}) == Response(score=0.6)


def test_predict_raises_what_went_wrong() -> None:
    service = make()

    @service.infer
    def infer(number: int) -> float:
        return 1 / number

    with pytest.raises(ZeroDivisionError):
        service.predict(0)


def test_predict_batch_returns_exceptions_in_their_places() -> None:
    good, bad = full_service().predict_batch([{"text": "my cat"}, {"text": ""}])
    assert good == Response(score=0.6)
    assert isinstance(bad, Exception)


def test_predict_batch_of_nothing_is_nothing() -> None:
    assert full_service().predict_batch([]) == []


@pytest.mark.parametrize("expected", [0.6, 0.7])
def test_the_health_check_compares_the_expected_answer(expected: float) -> None:
    service = full_service(examples=[Example({"text": "my cat"}, {"score": expected})])
    health = service.health_check(batch=True)
    assert health.inference == ("OK" if expected == 0.6 else "Error")


def test_app_and_blueprint_are_the_same_each_time() -> None:
    service = full_service()
    assert service.app is service.app
    assert service.blueprint is service.blueprint
    assert service.runtime is service.runtime


@pytest.mark.parametrize(
    ("run", "message"),
    [
        pytest.param(lambda s: s.run_http(port=65536), "--port=65536: Input should be", id="http"),
        pytest.param(lambda s: s.run_unix("x" * 200), "socket path has 200 bytes", id="unix"),
        pytest.param(lambda s: s.run_tcp("localhost", 65536), "port 65536 does not", id="tcp"),
    ],
)
def test_an_address_that_cannot_be_is_refused_before_anything_runs(
    run: Callable[[Service], None], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        run(full_service())


def test_making_the_app_loads_nothing() -> None:
    service = full_service()

    @service.setup
    def load() -> None:
        raise AssertionError("called")

    assert service.app
