"""What the stages hand to each other: do both sides mean one item, or do both mean a list?

Only a plain contradiction is refused: the types of both sides are known, one is a list of the
other, and no value could be both. Where both are builtin types that differ, there is a doubt.
"""

import inspect
import typing
from collections.abc import Iterator, Mapping
from types import UnionType
from typing import Any, Final

from .annotations import MISSING
from .errors import RegistrationError
from .stages import Stage

# Of one family, a value of any type may do where another is written; of two families, none does.
_FAMILIES: Final = ((bool, int, float, complex), (str,), (bytes,), (dict,), (list, tuple, set))


def refuse_mixed_up(stages: Mapping[str, Stage], request: Any) -> None:
    """Check that no stage expects a list where it gets one item, or the other way round.

    Args:
        stages: By slot.
        request: The type of a request.

    Raises:
        RegistrationError: One does; the message shows the fix.
    """
    for handed, stage in _handovers(stages, request):
        handed, taken = _plain(handed), _plain(stage.hints.get(stage.parameter, MISSING))
        if not _is_surely_one(handed):
            continue
        if stage.options.batch and taken == handed and not hasattr(taken, "shape"):
            # An array of arrays is one, too; and what takes it mostly takes a list of them.
            raise RegistrationError(_takes_one(stage, _name(handed)))
        if not stage.options.batch and _is_list_of(taken, handed):
            raise RegistrationError(_takes_list(stage, _name(handed)))


def doubt_about_lists(stages: Mapping[str, Stage]) -> str:
    """Ask whether each request is a list only because a function for one is written for many.

    Such requests are possible, so who means them says ``request=``, and none of this is asked.

    Returns:
        What may be meant; "" if there is no doubt.
    """
    infer = stages.get("infer")
    if infer is None or "preprocess" in stages or "batch infer" in stages:
        return ""
    taken, returned = infer.hints.get(infer.parameter), infer.hints.get("return")
    if typing.get_origin(taken) is not list or typing.get_origin(returned) is not list:
        return ""
    return (
        f"{infer.where} takes a list, so each single request has to be one. Did you mean"
        f" @service.infer(batch=True)? Else say Service(request={_name(taken)})"
    )


def doubts_about_types(stages: Mapping[str, Stage], request: Any) -> Iterator[str]:
    """Tell of each stage that expects quite another builtin type than it gets.

    Args:
        stages: By slot.
        request: The type of a request.
    """
    for handed, stage in _handovers(stages, request):
        handed, taken = _plain(handed), _plain(stage.input_type())
        if _family(handed) and _family(taken) and _family(handed) != _family(taken):
            yield (
                f"{stage.where} takes {_name(taken)}, but gets {_name(handed)}:"
                " correct the annotation that is wrong"
            )


def _handovers(stages: Mapping[str, Stage], request: Any) -> Iterator[tuple[Any, Stage]]:
    """Yield the type of one item that is handed over, and the stage that gets it or a list."""
    item, post = request, stages.get("postprocess")
    if pre := stages.get("preprocess"):
        yield request, pre
        item = pre.output_type()
    for infer in [stages[slot] for slot in ("infer", "batch infer") if slot in stages]:
        yield item, infer
        if post:
            yield infer.output_type(), post


def _family(hint: Any) -> int:
    """Return which of the families a type belongs to, counted from 1; 0 if to none."""
    # No `in`: there are annotations that cannot be compared.
    families = enumerate(_FAMILIES, 1)
    return next((n for n, family in families if any(hint is one for one in family)), 0)


def _is_surely_one(hint: Any) -> bool:
    """Whether a type is known, and nothing of that type could be a list of such things."""
    kind = typing.get_origin(hint) or hint
    if kind is list:
        return any(_is_surely_one(_plain(part)) for part in typing.get_args(hint))
    is_known = inspect.isclass(kind) and kind not in (Any, UnionType)
    return is_known and not _is_related_to_list(kind)


def _is_related_to_list(kind: type) -> bool:
    try:
        return issubclass(list, kind) or issubclass(kind, list)
    except TypeError:  # a protocol, which a list may fulfil, or a TypedDict
        return not hasattr(kind, "__total__")


def _is_list_of(hint: Any, element: Any) -> bool:
    parts = [_plain(part) for part in typing.get_args(hint)]  # none of a bare typing.List
    return typing.get_origin(hint) is list and parts == [element]


def _plain(hint: Any) -> Any:
    return typing.get_args(hint)[0] if typing.get_origin(hint) is typing.Annotated else hint


def _name(hint: Any) -> str:
    if not typing.get_origin(hint):
        return str(getattr(hint, "__name__", hint))
    parts = ", ".join(map(_name, typing.get_args(hint)))
    return f"list[{parts}]" if typing.get_origin(hint) is list else repr(hint)


def _takes_list(stage: Stage, item: str) -> str:
    said = f"{stage.where} takes list[{item}], but gets one {item} at a time."
    if stage.kind == "infer":
        return f"{said} Did you mean @service.infer(batch=True)? Else annotate it with {item}."
    return f"{said} Write it for one, and annotate it with {item}: only infer can take a list."


def _takes_one(stage: Stage, item: str) -> str:
    return (
        f"{stage.where} takes one {item}, but with batch=True it gets a list of them."
        f" Write it for list[{item}], or leave batch=True out."
    )
