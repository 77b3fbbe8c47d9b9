"""Which functions can take which place in a service."""

import asyncio
import functools
import re
import types
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import pytest

from ventu_lite.errors import RegistrationError
from ventu_lite.stages import NO_OPTIONS, Kind, Options, make_stage

HERE = __file__
BATCH = Options(batch=True)


def plain(request: str) -> float:
    return len(request)


def with_option(option: int, request: str) -> float:
    return option * len(request)


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


def with_model(fn: Callable[..., Any]) -> Callable[..., Any]:
    """Return a function that hands over one argument more than it gets."""

    @functools.wraps(fn)
    def wrapper(item: Any) -> Any:
        return fn("model", item)

    return wrapper


@with_model
def injected(model: str, request: str) -> str:
    return model + request


@functools.wraps(plain)
def hungry(model: str, request: str) -> str:
    return model + request


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
        pytest.param("infer", hungry, NO_OPTIONS, "missing a required argument", id="of a wrapper"),
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
        pytest.param(injected, NO_OPTIONS, id="a wrapper that hands over more than it gets"),
        pytest.param(generator, BATCH, id="a generator of results"),
        pytest.param(lambda x, y=1, *z, **k: x, NO_OPTIONS, id="more parameters with defaults"),
        pytest.param(types.MethodType(with_option, 1), NO_OPTIONS, id="a method made by hand"),
    ],
)
def test_what_works_is_taken(fn: Callable[..., Any], options: Options) -> None:
    assert make_stage("infer", fn, options).fn is fn
