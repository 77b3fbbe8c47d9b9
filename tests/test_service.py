"""The registry: what can be registered where, and what comes of it."""

import re
from collections.abc import Callable
from typing import Any

import pytest
from cats import Response, clean, full_service, label, rate, rate_all

from ventu_lite import Config, ConfigError, Example, Health, RegistrationError, Service
from ventu_lite.stages import Kind

HERE = re.escape(__file__)
KINDS: list[Kind] = ["setup", "preprocess", "infer", "postprocess", "teardown"]


def load() -> None: ...


FUNCTIONS: dict[Kind, Callable[..., Any]] = {
    "setup": load,
    "preprocess": clean,
    "infer": rate,
    "postprocess": label,
    "teardown": load,
}


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
    assert service._stages[kind].fn is FUNCTIONS[kind]


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
    assert decorated._stages == added._stages


def test_an_unknown_option_is_a_type_error() -> None:
    with pytest.raises(TypeError, match="'bathc'"):
        Service().add_stage("infer", rate, bathc=True)  # type: ignore[call-arg]


@pytest.mark.parametrize("kind", KINDS)
def test_a_second_function_is_refused_and_both_places_are_named(kind: Kind) -> None:
    service = Service("twice")
    service.add_stage(kind, FUNCTIONS[kind])

    def second(*args: Any) -> None: ...

    first, other = FUNCTIONS[kind].__code__, second.__code__.co_firstlineno
    place = f"{re.escape(first.co_filename)}:{first.co_firstlineno}"
    with pytest.raises(
        RegistrationError,
        match=rf"service 'twice' has its {kind} stage already: \w+ \({place}\)\."
        rf" Remove it, or give .*second \({HERE}:{other}\) a service of its own\.",
    ):
        service.add_stage(kind, second)


def test_a_cell_of_a_notebook_that_runs_again_is_told_how() -> None:
    cell = "@service.infer(batch=True)\ndef f(batch): ..."
    names = {"service": Service("nb")}
    exec(compile(cell, "<cell 0>", "exec"), names)
    with pytest.raises(RegistrationError) as caught:
        exec(compile(cell, "<cell 1>", "exec"), names)
    assert str(caught.value) == (
        "service 'nb' has its batch infer stage already: f (<cell 0>:1). Remove it, or give"
        " f (<cell 1>:1) a service of its own; in a notebook, make the Service anew."
    )


def test_one_decorator_object_registers_one_function() -> None:
    decorator = Service().infer(batch=True)
    decorator(rate_all)
    with pytest.raises(RegistrationError, match="has its batch infer stage already: rate_all"):
        decorator(rate_all)


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


# ------------------------------------------------------------------- settings


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


# ------------------------------------------------------------------------------- shells


def test_predict_takes_one_request_all_the_way() -> None:
    assert full_service().predict({"text": "my cat"}) == Response(score=0.6)


def test_predict_raises_what_went_wrong() -> None:
    service = Service("x")

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
    health: Health = service.health_check(batch=True)
    assert type(health) is Health
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
