"""What the annotations of a user's function say about the items of its stage."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Annotated, Any, Generic, List, Optional, TypeVar  # noqa: UP035

import numpy as np
import numpy.typing as npt
import pytest
from pydantic import BaseModel

from ventu_lite.annotations import MISSING
from ventu_lite.stages import NO_OPTIONS, Options, make_stage

if TYPE_CHECKING:
    from somewhere import Unknown  # type: ignore[import-not-found]

T = TypeVar("T")


class Request(BaseModel):
    text: str


class Response(BaseModel):
    score: float


class Page(BaseModel, Generic[T]):
    items: list[T]


def plain(request: Request) -> Response: ...  # type: ignore[empty-body]


def timed(fn: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(fn)
    def wrapper(*args: Any) -> Any:
        return fn(*args)

    return wrapper


class Model:
    def method(self, request: Request) -> Response: ...  # type: ignore[empty-body]

    @classmethod
    def of_class(cls, request: Request) -> Response: ...  # type: ignore[empty-body]

    @staticmethod
    def static(request: Request) -> Response: ...  # type: ignore[empty-body]

    def __call__(self, request: Request) -> Response: ...  # type: ignore[empty-body]


class Maker:
    def __init__(self, request: Request) -> None: ...


def with_option(option: int, request: Request) -> Response: ...  # type: ignore[empty-body]


@pytest.mark.parametrize(
    ("fn", "output"),
    [
        pytest.param(plain, Response, id="function"),
        pytest.param(timed(plain), Response, id="decorated"),
        pytest.param(functools.partial(with_option, 1), Response, id="partial"),
        pytest.param(Model().method, Response, id="bound method"),
        pytest.param(Model.of_class, Response, id="class method"),
        pytest.param(Model.static, Response, id="static method"),
        pytest.param(Model(), Response, id="callable object"),
        pytest.param(Maker, Maker, id="class"),
    ],
)
def test_annotations_are_found_in_every_kind_of_callable(
    fn: Callable[..., Any], output: Any
) -> None:
    stage = make_stage("preprocess", fn, NO_OPTIONS)
    assert (stage.input_type(), stage.output_type()) == (Request, output)
    assert stage.fn is fn


@pytest.mark.parametrize(
    "fn",
    [
        pytest.param(len, id="builtin"),
        pytest.param(max, id="builtin without a signature"),
        pytest.param({}.get, id="builtin method"),
        pytest.param(np.exp, id="ufunc"),
        pytest.param(lambda x: x, id="lambda"),
    ],
)
def test_some_callables_tell_nothing(fn: Callable[..., Any]) -> None:
    stage = make_stage("infer", fn, NO_OPTIONS)
    assert (stage.input_type(), stage.output_type()) == (MISSING, MISSING)


def f_list(b: list[Request]) -> list[Response]: ...  # type: ignore[empty-body]
def f_sequence(b: Sequence[Request]) -> Iterator[Response]:
    yield Response(score=1)


def f_tuple(b: tuple[Request, ...]) -> tuple[Response, ...]: ...  # type: ignore[empty-body]
def f_generic(b: list[Page[int]]) -> list[Page[float]]: ...  # type: ignore[empty-body]
def f_annotated(b: Annotated[list[Request], "few"]) -> list[Annotated[float, "x"]]: ...  # type: ignore[empty-body]
def f_array(b: np.ndarray) -> npt.NDArray[np.float32]: ...  # type: ignore[empty-body]
def f_pair(b: tuple[Request, int]) -> dict[str, Response]: ...  # type: ignore[empty-body]
def f_optional(b: Optional[list[Request]]) -> list[Response] | None: ...  # noqa: UP045  # both ways
def f_bare(b: list) -> list: ...  # type: ignore[empty-body,type-arg]
def f_old(b: List) -> Sequence: ...  # type: ignore[empty-body,type-arg]  # noqa: UP006
def f_exception(b: list[Request | None]) -> list[Response | float | ValueError]: ...  # type: ignore[empty-body]
def f_only_exceptions(b: list[Any]) -> list[ValueError | KeyError]: ...  # type: ignore[empty-body]


@pytest.mark.parametrize(
    ("fn", "item", "result"),
    [
        pytest.param(f_list, Request, Response, id="list"),
        pytest.param(f_sequence, Request, Response, id="sequence and iterator"),
        pytest.param(f_tuple, Request, Response, id="tuple"),
        pytest.param(f_generic, Page[int], Page[float], id="generic"),
        pytest.param(f_annotated, Request, Annotated[float, "x"], id="Annotated"),
        pytest.param(f_array, MISSING, MISSING, id="array, whose parameters are no items"),
        pytest.param(f_pair, MISSING, MISSING, id="pair and dict"),
        pytest.param(f_optional, MISSING, MISSING, id="optional"),
        pytest.param(f_bare, MISSING, MISSING, id="bare list"),
        pytest.param(f_old, MISSING, MISSING, id="bare List"),
        pytest.param(f_exception, Request | None, Response | float, id="exceptions among results"),
        pytest.param(f_only_exceptions, Any, ValueError | KeyError, id="nothing but exceptions"),
    ],
)
def test_a_batch_function_is_annotated_with_lists_of_items(
    fn: Callable[..., Any], item: Any, result: Any
) -> None:
    stage = make_stage("infer", fn, Options(batch=True))
    assert (stage.input_type(), stage.output_type()) == (item, result)


def test_names_of_the_function_around_are_known() -> None:
    class Local(BaseModel):
        a: int

    def local(request: Local) -> list[Local]: ...  # type: ignore[empty-body]

    stage = make_stage("preprocess", local, NO_OPTIONS)
    assert (stage.input_type(), stage.output_type()) == (Local, list[Local])


def test_names_at_the_place_of_registration_do_not_hide_those_of_the_function() -> None:
    """A function from another module means the names of that module."""

    class Request(BaseModel):
        another: int

    assert make_stage("preprocess", plain, NO_OPTIONS).input_type() is not Request


def test_one_unknown_name_does_not_hide_the_others() -> None:
    def half(request: Request) -> Unknown: ...

    stage = make_stage("preprocess", half, NO_OPTIONS)
    assert (stage.input_type(), stage.output_type()) == (Request, MISSING)
    assert stage.written("return") == "Unknown"


@pytest.mark.parametrize("name", ["request", "return", "nothing"])
def test_why_an_annotation_means_nothing_is_told(name: str) -> None:
    def half(request: Request) -> list[Unknown]: ...  # type: ignore[empty-body]

    said = "the name 'Unknown' is not defined" if name == "return" else ""
    assert make_stage("preprocess", half, NO_OPTIONS).why_unresolved(name) == said


def test_a_name_that_is_defined_below_the_function_is_found_later() -> None:
    def early(request: Below) -> Request: ...  # type: ignore[empty-body]

    stage = make_stage("preprocess", early, NO_OPTIONS)
    assert (stage.input_type(), stage.output_type()) == (MISSING, Request)

    class Below(BaseModel):
        a: int

    def elsewhere() -> None:
        """The names around are those of the first time, too."""
        late = stage.with_late_names().with_late_names()
        assert (late.input_type(), late.output_type()) == (MISSING, Request)

    elsewhere()
    late = stage.with_late_names()
    assert (late.input_type(), late.output_type()) == (Below, Request)


def test_missing_has_a_readable_repr() -> None:
    assert repr(MISSING) == "MISSING"
