"""The functions of a user: what they are, where they stand, what their annotations say."""

import functools
import inspect
import operator
import sys
import typing
from collections.abc import Callable, Hashable, Iterable, Mapping
from dataclasses import dataclass, field
from types import FrameType, MappingProxyType, SimpleNamespace, UnionType
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

    @property
    def name(self) -> str:
        """What the function is called in its file."""
        return self.where.partition(" ")[0].rpartition(".")[2]

    @property
    def is_annotatable(self) -> bool:
        """Whether it is the user's own ``def``, and no lambda, builtin or class."""
        return hasattr(_innermost(self.fn), "__code__") and self.name.isidentifier()

    @property
    def parameter(self) -> str:
        """The name of the first parameter, "" if that cannot be told."""
        signature = _signature(self.fn)
        return next(iter(signature.parameters), "") if signature else ""

    def written(self, name: str) -> Any:
        """Return the annotation of a parameter, or of "return", as it stands in the file."""
        return getattr(_annotated(self.fn), "__annotations__", {}).get(name, MISSING)

    def input_type(self) -> Any:
        """Return the type of one item that goes in, ``MISSING`` if it is not annotated."""
        hint = self.hints.get(self.parameter, MISSING)
        return _element(hint) if self.options.batch else hint

    def output_type(self) -> Any:
        """Return the type of one item that comes out, ``MISSING`` if it is not annotated."""
        hint = self.hints.get("return", MISSING)
        return _without_exceptions(_element(hint)) if self.options.batch else hint


def make_stage(kind: Kind, fn: Callable[..., Any], options: Options) -> Stage:
    """Check a function and describe it.

    Raises:
        RegistrationError: It cannot be called as its place wants it, or an option is wrong.
    """
    if kind not in KINDS:
        raise RegistrationError(f"there is no stage {kind!r}; choose one of {', '.join(KINDS)}")
    if not callable(fn):
        raise RegistrationError(
            f"@service.{kind} got {fn!r}, which is no function;"
            " options are named, such as @service.infer(batch=True)"
        )
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
    place = f"{code.co_filename}:{code.co_firstlineno}" if code else f"given at {where_from()}"
    return f"{name} ({place})"


def where_from() -> str:
    """Return ``file:line`` of the code outside this package that is running now."""
    frame = _user_frame()
    return f"{frame.f_code.co_filename}:{frame.f_lineno}" if frame else "an unknown place"


def _user_frame() -> FrameType | None:
    frame: FrameType | None = sys._getframe(1)
    while frame and str(frame.f_globals.get("__name__", "")).partition(".")[0] == _PACKAGE:
        frame = frame.f_back
    return frame


def _unbound(fn: Callable[..., Any]) -> Callable[..., Any]:
    while isinstance(fn, functools.partial):
        fn = fn.func
    return fn


def _innermost(fn: Callable[..., Any]) -> Callable[..., Any]:
    inner: Callable[..., Any] = inspect.unwrap(_unbound(fn))
    return inner


def _hints(fn: Callable[..., Any]) -> dict[str, Any]:
    """Return the annotations, those with names of the function around the definition included.

    A name that cannot be resolved leaves its annotation out: whether that matters is known only
    when the service is composed.
    """
    target = _annotated(fn)
    module, names = getattr(target, "__globals__", {}), _names_around(target)
    hints: dict[str, Any] = {}
    for name, hint in getattr(target, "__annotations__", {}).items():
        alone = SimpleNamespace(__annotations__={name: hint})
        try:
            hints |= typing.get_type_hints(alone, module, names, include_extras=True)
        except Exception:  # an annotation is any expression, so anything can come out of it
            continue
    inner = _innermost(fn)
    return hints | {"return": inner} if inspect.isclass(inner) else hints


def _annotated(fn: Callable[..., Any]) -> Any:
    """Return the function that has the annotations of ``fn``."""
    inner = _innermost(fn)
    if inspect.isclass(inner):
        return inner.__init__
    return inner if hasattr(inner, "__code__") else getattr(type(inner), _CALL)


def _names_around(target: Any) -> dict[str, Any]:
    """Return the local names of the function in which ``target`` is being defined now."""
    frame = _user_frame()
    code = getattr(target, "__code__", None)
    is_here = frame is not None and code in frame.f_code.co_consts
    return dict(frame.f_locals) if frame and is_here else {}


def _element(hint: Any) -> Any:
    """Return the type of the elements of a list type, ``MISSING`` if it is none."""
    if typing.get_origin(hint) is typing.Annotated:
        hint = typing.get_args(hint)[0]
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if not inspect.isclass(origin) or not issubclass(origin, Iterable):
        return MISSING
    is_pair = origin is tuple and arguments[1:] != (...,)
    is_table = issubclass(origin, Mapping) or hasattr(origin, "shape")
    return MISSING if is_pair or is_table else arguments[0]


def _without_exceptions(hint: Any) -> Any:
    """Return a union without its exceptions, which a batch function may put among its results."""
    if typing.get_origin(hint) not in (typing.Union, UnionType):
        return hint
    left = [part for part in typing.get_args(hint) if not _is_exception(part)]
    return functools.reduce(operator.or_, left) if left else hint


def _is_exception(hint: Any) -> bool:
    return inspect.isclass(hint) and issubclass(hint, BaseException)


def _signature(fn: Callable[..., Any]) -> inspect.Signature | None:
    try:
        return inspect.signature(fn)
    except (TypeError, ValueError):  # some builtins have none
        return None


def _check_is_plain(stage: Stage) -> None:
    # Not the innermost function: a wrapper may be what makes an async function a plain one.
    fn = _unbound(stage.fn)
    both = (fn, getattr(type(fn), _CALL))
    if any(inspect.iscoroutinefunction(f) or inspect.isasyncgenfunction(f) for f in both):
        raise RegistrationError(
            f"{stage.where} is async, but stages run in plain threads and processes. Make it a"
            " plain function; inside it, asyncio.run(...) can await what must be awaited."
        )
    if any(map(inspect.isgeneratorfunction, both)) and not stage.options.batch:
        raise RegistrationError(
            f"{stage.where} is a generator, and calling it runs nothing of it."
            " Make it a plain function that returns."
        )


def _check_arguments(stage: Stage) -> None:
    count, words = _ARGUMENTS[stage.kind]
    signature = _signature(stage.fn)
    if signature is None:
        return
    try:
        signature.bind(*[None] * count)
    except TypeError as exc:
        raise RegistrationError(f"{stage.where} must take {words}: {exc}") from exc


def _check_options(stage: Stage) -> None:
    options = stage.options
    if stage.kind != "infer" and options != NO_OPTIONS:
        raise RegistrationError(f"{stage.where}: only infer has options, {stage.kind} has none")
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
