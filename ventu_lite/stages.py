"""The stages of a service: functions of a user, each checked for its place in the pipeline."""

import inspect
import typing
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Final, Literal

from .annotations import (
    MISSING,
    annotation_of,
    element_of,
    hints_of,
    why_unresolved,
    without_exceptions,
)
from .errors import RegistrationError
from .functions import CALL, innermost, signature_of, unbound, where_is

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
        hints: Its annotations, as far as they can be resolved so far.
        options: Only of an ``infer`` stage.
    """

    kind: Kind
    fn: Callable[..., Any]
    where: str
    hints: Mapping[str, Any]
    options: Options

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
        return hasattr(innermost(self.fn), "__code__") and self.name.isidentifier()

    @property
    def parameter(self) -> str:
        """The name of the first parameter, "" if that cannot be told."""
        signature = signature_of(self.fn)
        return next(iter(signature.parameters), "") if signature else ""

    def with_late_names(self) -> "Stage":
        """Return it with the annotations whose names were defined below the function, too."""
        return replace(self, hints={**hints_of(self.fn), **self.hints})

    def written(self, name: str) -> Any:
        """Return the annotation of a parameter, or of "return", as it stands in the file."""
        return annotation_of(self.fn, name)

    def why_unresolved(self, name: str) -> str:
        """Return why such an annotation means nothing; "" if it means something or is not there."""
        return "" if name in self.hints else why_unresolved(self.fn, name)

    def input_type(self) -> Any:
        """Return the type of one item that goes in, ``MISSING`` if it is not annotated."""
        hint = self.hints.get(self.parameter, MISSING)
        return element_of(hint) if self.options.batch else hint

    def output_type(self) -> Any:
        """Return the type of one item that comes out, ``MISSING`` if it is not annotated."""
        hint = self.hints.get("return", MISSING)
        return without_exceptions(element_of(hint)) if self.options.batch else hint


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
    stage = Stage(kind, fn, where_is(fn), hints_of(fn), options)
    _check_is_plain(stage)
    _check_arguments(stage)
    _check_options(stage)
    return stage


def is_size(value: object) -> bool:
    """Tell whether a value can be the size of a batch: an integer from 1."""
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1


def _check_is_plain(stage: Stage) -> None:
    # Not the innermost function: a wrapper may be what makes an async function a plain one.
    fn = unbound(stage.fn)
    both = (fn, getattr(type(fn), CALL))
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
    # A wrapper is what will be called, and it may pass on more than it gets.
    signature = signature_of(stage.fn, follow_wrapped=False)
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
    if size is not None and not is_size(size):
        raise RegistrationError(
            f"{stage.where}: max_batch_size is {size!r}, expected an integer from 1"
        )
    if options.key is not None and not callable(options.key):
        raise RegistrationError(
            f"{stage.where}: key is {options.key!r}, expected a function of one item"
        )
