"""The functions of a user: what they are, where they stand, what their annotations say."""

import functools
import inspect
import sys
import typing
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass, field
from types import FrameType, MappingProxyType
from typing import Any, Final, Literal

from .errors import RegistrationError

Kind = Literal["setup", "preprocess", "infer", "postprocess", "teardown"]

KINDS: Final = typing.get_args(Kind)
# How many arguments ventu_lite will pass, and what the sentence of the error calls them.
_ARGUMENTS: Final[dict[Kind, tuple[int, str]]] = {
    "setup": (0, "no arguments"),
    "preprocess": (1, "one argument, the request"),
    "infer": (1, "one argument, the item or the batch"),
    "postprocess": (1, "one argument, the result"),
    "teardown": (0, "no arguments"),
}
_CALL: Final = "__call__"
_PACKAGE: Final = __name__.rpartition(".")[0]


class _Missing:
    """The type of ``MISSING``: there is no annotation, and ``None`` would be one."""

    def __repr__(self) -> str:
        return "MISSING"


MISSING: Final = _Missing()


@dataclass(frozen=True)
class Options:
    """The options of ``infer``; ``Service.infer`` tells what they mean."""

    batch: bool = False
    max_batch_size: int | None = None
    isolate: bool = True
    retry: bool = True
    key: Callable[[Any], Hashable] | None = None


NO_OPTIONS: Final = Options()


@dataclass(frozen=True)
class Stage:
    """One registered function.

    Attributes:
        kind: Its place in the pipeline.
        fn: The user's function, untouched.
        where: ``name (file:line)``, for messages.
        hints: Its annotations, as far as they can be resolved where it stands.
        options: Only of an ``infer`` stage.
    """

    kind: Kind
    fn: Callable[..., Any]
    where: str
    hints: Mapping[str, Any] = field(default_factory=lambda: MappingProxyType({}))
    options: Options = NO_OPTIONS

    @property
    def slot(self) -> str:
        """The place that only one stage can have: there may be one ``infer`` of each mode."""
        return "batch infer" if self.options.batch else self.kind

    def input_type(self) -> Any:
        """Return the type of one item that goes in, ``MISSING`` if it is not annotated."""
        names = list(_signature(self.fn).parameters)
        return self._one_of(self.hints.get(names[0], MISSING)) if names else MISSING

    def output_type(self) -> Any:
        """Return the type of one item that comes out, ``MISSING`` if it is not annotated."""
        return self._one_of(self.hints.get("return", MISSING))

    def _one_of(self, hint: Any) -> Any:
        """Return the type of the elements where the annotation is that of a batch."""
        if not self.options.batch:
            return hint
        arguments = typing.get_args(hint)
        return arguments[0] if arguments else MISSING


def make_stage(kind: Kind, fn: Callable[..., Any], options: Options) -> Stage:
    """Check a function and describe it.

    Raises:
        RegistrationError: It cannot be called as its place wants it, or an option is wrong.
    """
    if kind not in KINDS:
        raise RegistrationError(f"there is no stage {kind!r}; choose one of {', '.join(KINDS)}")
    if not callable(fn):
        raise RegistrationError(f"@service.{kind} got {fn!r}, which is no function")
    stage = Stage(kind, fn, where_is(fn), _hints(fn), options)
    _check_is_plain(stage)
    _check_arguments(stage)
    _check_options(stage)
    return stage


def where_is(fn: Callable[..., Any]) -> str:
    """Return ``name (file:line)`` of a function, as well as it can be told."""
    inner = _innermost(fn)
    code = getattr(inner, "__code__", None) or getattr(type(inner).__call__, "__code__", None)
    name = getattr(inner, "__qualname__", type(inner).__qualname__)
    return f"{name} ({code.co_filename}:{code.co_firstlineno})" if code else name


def where_from() -> str:
    """Return ``file:line`` of the code outside this package that is running now."""
    frame = _user_frame()
    return f"{frame.f_code.co_filename}:{frame.f_lineno}" if frame else "an unknown place"


def _user_frame() -> FrameType | None:
    frame: FrameType | None = sys._getframe(1)
    while frame and str(frame.f_globals.get("__name__", "")).partition(".")[0] == _PACKAGE:
        frame = frame.f_back
    return frame


def _innermost(fn: Callable[..., Any]) -> Callable[..., Any]:
    while isinstance(fn, functools.partial):
        fn = fn.func
    inner: Callable[..., Any] = inspect.unwrap(fn)
    return inner


def _hints(fn: Callable[..., Any]) -> Mapping[str, Any]:
    """Return the annotations, names of the place of registration included.

    A name that cannot be resolved leaves its annotation out: whether that matters is known only
    when the service is composed.
    """
    inner = _innermost(fn)
    target = inner if hasattr(inner, "__code__") else getattr(type(inner), _CALL, inner)
    frame = _user_frame()
    names = dict(frame.f_locals) if frame else {}
    try:
        return typing.get_type_hints(target, localns=names, include_extras=True)
    except Exception:  # an annotation is any expression, so anything can come out of it
        raw = getattr(target, "__annotations__", {})
        return {name: hint for name, hint in raw.items() if not isinstance(hint, str)}


def _signature(fn: Callable[..., Any]) -> inspect.Signature:
    try:
        return inspect.signature(fn)
    except (TypeError, ValueError):  # some builtins have none
        return inspect.Signature()


def _check_is_plain(stage: Stage) -> None:
    inner = _innermost(stage.fn)
    call = getattr(type(inner), _CALL, None)
    is_async = any(map(inspect.iscoroutinefunction, (inner, call)))
    if is_async or any(map(inspect.isasyncgenfunction, (inner, call))):
        raise RegistrationError(
            f"{stage.where} is async, but stages run in plain threads and processes. Make it a"
            " plain function; inside it, asyncio.run(...) can await what must be awaited."
        )
    if inspect.isgeneratorfunction(inner) and not stage.options.batch:
        raise RegistrationError(
            f"{stage.where} is a generator, so calling it gives no {stage.kind} result."
            " Return the value."
        )


def _check_arguments(stage: Stage) -> None:
    count, words = _ARGUMENTS[stage.kind]
    signature = _signature(stage.fn)
    if not signature.parameters and count:  # a builtin that does not tell its arguments
        if hasattr(_innermost(stage.fn), "__code__"):
            raise RegistrationError(f"{stage.where} must take {words}")
        return
    try:
        signature.bind(*[None] * count)
    except TypeError as exc:
        raise RegistrationError(f"{stage.where} must take {words}: {exc}") from exc


def _check_options(stage: Stage) -> None:
    options = stage.options
    if not options.batch and (options.key is not None or options.max_batch_size is not None):
        raise RegistrationError(
            f"{stage.where}: key and max_batch_size are about batches;"
            " add batch=True or leave them out"
        )
    size = options.max_batch_size
    if size is not None and (isinstance(size, bool) or not isinstance(size, int) or size < 1):
        raise RegistrationError(
            f"{stage.where}: max_batch_size is {size!r}, expected an integer from 1"
        )
    if options.key is not None and not callable(options.key):
        raise RegistrationError(
            f"{stage.where}: key is {options.key!r}, expected a function of one item"
        )
