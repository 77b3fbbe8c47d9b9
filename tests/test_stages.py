"""What a user's function is, where it stands, and what its annotations say."""

from __future__ import annotations

import asyncio
import functools
import re
import types
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Annotated, Any, Generic, Optional, TypeVar

import numpy as np
import numpy.typing as npt
import pytest
from pydantic import BaseModel

from ventu_lite.errors import RegistrationError
from ventu_lite.stages import MISSING, NO_OPTIONS, Kind, Options, make_stage, where_from, where_is

if TYPE_CHECKING:
    from somewhere import Unknown  # type: ignore[import-not-found]

T = TypeVar("T")
HERE = __file__
BATCH = Options(batch=True)


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


# --------------------------------------------------------------------------- annotations


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
        pytest.param(f_exception, Request | None, Response | float, id="exceptions among results"),
        pytest.param(f_only_exceptions, Any, ValueError | KeyError, id="nothing but exceptions"),
    ],
)
def test_a_batch_function_is_annotated_with_lists_of_items(
    fn: Callable[..., Any], item: Any, result: Any
) -> None:
    stage = make_stage("infer", fn, BATCH)
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


# ------------------------------------------------------------------------------- places


def test_a_function_is_told_by_name_file_and_line() -> None:
    line = plain.__code__.co_firstlineno
    assert where_is(plain) == f"plain ({HERE}:{line})"
    assert where_is(functools.partial(plain)) == where_is(timed(plain)) == where_is(plain)


@pytest.mark.parametrize(
    ("fn", "name"), [(len, "len"), (Maker, "Maker"), (np.exp, "exp"), (Model(), "Model")]
)
def test_every_callable_has_a_place(fn: Callable[..., Any], name: str) -> None:
    """Where there is no code to point at, it is the line that handed it over."""
    told, _, place = where_is(fn).partition(" ")
    assert told == name
    assert f"{HERE}:" in place


def test_the_place_of_a_call_is_that_of_the_code_outside_the_package() -> None:
    assert where_from().startswith(f"{HERE}:")


# --------------------------------------------------------------------------- what is refused


async def coroutine(x: int) -> int:
    return x


async def async_generator(x: int) -> AsyncIterator[int]:
    yield x


class AsyncCall:
    async def __call__(self, x: int) -> int:
        return x

    async def method(self, x: int) -> int:
        return x


def generator(x: int) -> Iterator[int]:
    yield x


class GeneratorCall:
    def __call__(self, x: int) -> Iterator[int]:
        yield x


class NoArguments:
    def __call__(self) -> None: ...


ASYNC = "is async, but stages run in plain threads .* asyncio.run"


@pytest.mark.parametrize(
    ("kind", "fn", "options", "message"),
    [
        pytest.param("infer", coroutine, NO_OPTIONS, ASYNC, id="async"),
        pytest.param("infer", functools.partial(coroutine), NO_OPTIONS, ASYNC, id="async partial"),
        pytest.param("infer", async_generator, BATCH, ASYNC, id="async generator"),
        pytest.param("infer", AsyncCall(), NO_OPTIONS, ASYNC, id="async callable"),
        pytest.param("infer", AsyncCall().method, NO_OPTIONS, ASYNC, id="async method"),
        pytest.param("infer", generator, NO_OPTIONS, "is a generator, and", id="generator"),
        pytest.param("infer", GeneratorCall(), NO_OPTIONS, "is a generator", id="generator call"),
        pytest.param("infer", 3, NO_OPTIONS, "@service.infer got 3, which", id="no function"),
        pytest.param("serve", plain, NO_OPTIONS, "no stage 'serve'; choose one", id="no stage"),
        pytest.param(
            "infer",
            lambda: 1,
            NO_OPTIONS,
            "must take one argument, the item or the batch: too many",
            id="too few parameters",
        ),
        pytest.param(
            "infer", NoArguments(), NO_OPTIONS, "must take one argument", id="of a callable"
        ),
        pytest.param(
            "preprocess",
            lambda x, y: x,
            NO_OPTIONS,
            "must take one argument, the request: missing a required argument: 'y'",
            id="too many parameters",
        ),
        pytest.param(
            "postprocess",
            lambda *, x: x,
            NO_OPTIONS,
            "must take one argument, the result: too many",
            id="by keyword alone",
        ),
        pytest.param("setup", plain, NO_OPTIONS, "must take no arguments: missing", id="setup"),
        pytest.param("teardown", plain, NO_OPTIONS, "must take no arguments", id="teardown"),
        pytest.param(
            "infer", plain, Options(key=len), "about batches; add batch=True", id="key of one item"
        ),
        pytest.param(
            "infer", plain, Options(max_batch_size=3), "add batch=True", id="size of one item"
        ),
        pytest.param(
            "preprocess", plain, BATCH, "only infer has options, preprocess has", id="options"
        ),
        pytest.param(
            "infer",
            plain,
            Options(True, max_batch_size=0),
            "max_batch_size is 0, expected an integer from 1",
            id="size 0",
        ),
        pytest.param(
            "infer", plain, Options(True, max_batch_size=True), "max_batch_size is True", id="bool"
        ),
        pytest.param(
            "infer",
            plain,
            Options(True, key="text"),  # type: ignore[arg-type]
            "key is 'text', expected a function",
            id="key is no function",
        ),
    ],
)
def test_what_cannot_work_is_refused_at_registration(
    kind: Kind, fn: Any, options: Options, message: str
) -> None:
    with pytest.raises(RegistrationError, match=message):
        make_stage(kind, fn, options)


def test_a_refusal_says_where_the_function_stands() -> None:
    place = re.escape(f"({HERE}:{coroutine.__code__.co_firstlineno})")
    with pytest.raises(RegistrationError, match=f"^coroutine {place} is async"):
        make_stage("infer", coroutine, NO_OPTIONS)


def awaited(fn: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(fn)
    def wrapper(*args: Any) -> Any:
        return asyncio.run(fn(*args))

    return wrapper


@pytest.mark.parametrize(
    ("fn", "options"),
    [
        pytest.param(awaited(coroutine), NO_OPTIONS, id="an async function made plain"),
        pytest.param(generator, BATCH, id="a generator of results"),
        pytest.param(lambda x, y=1, *z, **k: x, NO_OPTIONS, id="more parameters with defaults"),
        pytest.param(types.MethodType(with_option, 1), NO_OPTIONS, id="a method made by hand"),
    ],
)
def test_what_works_is_taken(fn: Callable[..., Any], options: Options) -> None:
    assert make_stage("infer", fn, options).fn is fn


def test_missing_has_a_readable_repr() -> None:
    assert repr(MISSING) == "MISSING"
