"""What is said of a mistake that Python, or Flask, has no clear words for."""

import re
from collections.abc import Callable
from typing import Any

import flask
import pytest

from ventu_lite import Service, VentuError

model: Any = None


def forget_global() -> None:
    model: Any = str.upper
    assert model


def forget_global_of_a_closure() -> None:
    model = str.upper
    assert [model(name) for name in "ab"]


def remember_global() -> None:
    global model
    model = None  # as if there was nothing to load


def ask(infer: Callable[[Any], Any], setup: Callable[[], None] = remember_global) -> str:
    """Return why the warm-up of a service fails."""
    service = Service(request=str, response=str, examples=["a"])
    service.add_stage("setup", setup)
    service.add_stage("infer", infer)
    with pytest.raises(VentuError) as caught:
        service.runtime.startup.run()
    return str(caught.value)


@pytest.mark.parametrize(
    "infer",
    [
        pytest.param(lambda text: flask.request.headers["x"], id="request"),
        pytest.param(lambda text: flask.current_app.name, id="current_app"),
    ],
)
def test_a_stage_that_wants_a_request_of_flask_is_told_what_to_do(infer: Any) -> None:
    assert re.fullmatch(
        r"warm-up with example 1 failed: RuntimeError: Working outside of \w+ context;"
        " stages run without a request of Flask: what they need belongs into the schema",
        ask(infer),
    )


@pytest.mark.parametrize("setup", [forget_global, forget_global_of_a_closure])
@pytest.mark.parametrize(
    "infer",
    [
        pytest.param(lambda text: model(text), id="TypeError"),
        pytest.param(lambda text: model.predict(text), id="AttributeError"),
    ],
)
def test_a_global_that_setup_does_not_set_is_told(setup: Any, infer: Any) -> None:
    said = ask(infer, setup)
    assert re.search(
        rf"failed: \w+Error: 'NoneType' object .+; {setup.__name__} \(\S+:\d+\) sets a local"
        " variable `model`; say `global model` in it$",
        said,
    )


@pytest.mark.parametrize(
    ("infer", "setup"),
    [
        pytest.param(lambda text: model(text), remember_global, id="nothing is forgotten"),
        pytest.param(lambda text: [][0], forget_global, id="another exception"),
        pytest.param(lambda text: model(text), str, id="a set-up without code"),
    ],
)
def test_where_that_is_not_certain_nothing_is_told(infer: Any, setup: Any) -> None:
    assert ";" not in ask(infer, setup)
