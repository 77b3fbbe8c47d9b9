"""What the stages hand to each other: a list where one item comes is refused, and nothing else."""

import re
from collections.abc import Callable, Iterable, Sequence
from typing import Annotated, Any, List, Protocol  # noqa: UP035  # both lists are tried

import numpy as np
import pytest
from pydantic import BaseModel, Field
from typing_extensions import TypedDict

from ventu_lite import RegistrationError, Service

HERE = re.escape(__file__)
Image = np.ndarray[Any, np.dtype[np.float32]]


class Request(BaseModel):
    text: str


class Row(TypedDict):
    text: str


class Words(list[str]):
    pass


class Sized(Protocol):
    def __len__(self) -> int: ...


@pytest.mark.parametrize("bare", [list, List])  # noqa: UP006  # each has other origins
def test_a_bare_list_may_hold_anything(bare: Any) -> None:
    service = service_of(str, taking(bare))
    service.preprocess(taking(str, list[int]))
    assert service.compose()


def taking(given: Any, returned: Any = float) -> Callable[..., Any]:
    """Return a function of one parameter with these annotations."""

    def stage(items):  # type: ignore[no-untyped-def]
        return items

    stage.__annotations__ = {"items": given, "return": returned}
    return stage


def service_of(request: Any, infer: Callable[..., Any], **options: Any) -> Service:
    service = Service("x", request=request, response=float)
    service.add_stage("infer", infer, **options)
    return service


# ------------------------------------------------------------------------- a forgotten batch=True


@pytest.mark.parametrize(
    ("request_type", "taken", "name"),
    [
        pytest.param(str, list[str], "str", id="builtin"),
        pytest.param(Request, list[Request], "Request", id="model"),
        pytest.param(Row, list[Row], "Row", id="typed dict"),
        pytest.param(str, List[str], "str", id="typing"),  # noqa: UP006
        pytest.param(dict[str, int], list[dict[str, int]], r"dict\[str, int\]", id="generic"),
        pytest.param(list[int], list[list[int]], r"list\[int\]", id="one item is a list itself"),
        pytest.param(
            Annotated[str, Field(min_length=1)],
            Annotated[list[Annotated[str, "a text"]], "all texts"],
            "str",
            id="annotated",
        ),
    ],
)
def test_a_function_of_many_that_would_get_one_is_refused(
    request_type: Any, taken: Any, name: str
) -> None:
    message = (
        rf"^\S*stage \({HERE}:\d+\) takes list\[{name}\], but gets one {name} at a time\."
        rf" Did you mean @service\.infer\(batch=True\)\? Else annotate it with {name}\.$"
    )
    with pytest.raises(RegistrationError, match=message):
        service_of(request_type, taking(taken)).compose()


@pytest.mark.parametrize("item", [str, list[int], Image])
def test_what_preprocess_returns_is_one_item(item: Any) -> None:
    service = service_of(None, taking(list[item]))
    service.preprocess(taking(Request, item))
    with pytest.raises(RegistrationError, match=r"at a time\. Did you mean @service\.infer\(batch"):
        service.compose()


@pytest.mark.parametrize("kind", ["preprocess", "postprocess"])
@pytest.mark.parametrize("batch", [False, True])
def test_only_infer_can_take_a_list(kind: Any, batch: bool) -> None:
    infer = taking(list[float] if batch else float, list[float] if batch else float)
    service = service_of(float, infer, batch=batch)
    service.add_stage(kind, taking(list[float]))
    message = r"gets one float at a time\. Write it for one, and annotate it with float: only infer"
    with pytest.raises(RegistrationError, match=message):
        service.compose()


# -------------------------------------------------------------------------- a batch=True too much


@pytest.mark.parametrize("item", [str, Request, Row, list[int]])
def test_a_function_of_one_that_would_get_a_batch_is_refused(item: Any) -> None:
    message = r"takes one .*, but with batch=True it gets a list of them\. Write it for list\["
    with pytest.raises(RegistrationError, match=message):
        service_of(item, taking(item), batch=True).compose()


# -------------------------------------------------------------------------------- no false alarms


@pytest.mark.parametrize(
    ("request_type", "taken"),
    [
        pytest.param(None, list[str], id="a list is the request, as the function says"),
        pytest.param(list[str], list[str], id="a list is the request, as the service says"),
        pytest.param(str, str, id="one"),
        pytest.param(str, Sequence[str], id="a str is a sequence of str"),
        pytest.param(str, Iterable[str], id="and can be iterated over"),
        pytest.param(str, list[int], id="other elements: whatever that means"),
        pytest.param(str, None, id="no annotation"),
        pytest.param(Any, list[Any], id="anything may be a list"),
        pytest.param(object, list[object], id="so may an object"),
        pytest.param(list, list[list], id="a list of anything may hold lists"),  # type: ignore[type-arg]  # as users write
        pytest.param(list[Any], list[list[Any]], id="so may this one"),
        pytest.param(str | list[str], list[str | list[str]], id="a union"),
    ],
)
def test_a_function_of_one_is_believed(request_type: Any, taken: Any) -> None:
    infer = taking(taken)
    if taken is None:
        del infer.__annotations__["items"]
    assert service_of(request_type, infer).compose()


@pytest.mark.parametrize(
    ("item", "taken"),
    [
        pytest.param(str, list[str], id="a list"),
        pytest.param(str, Sequence[str], id="a sequence"),
        pytest.param(list[Any], list[Any], id="a list of lists is a list of anything"),
        pytest.param(Any, Any, id="anything"),
        pytest.param(Sequence[Any], Sequence[Any], id="a sequence of anything"),
        pytest.param(Sized, Sized, id="what a list fulfils"),
        pytest.param(Words, Words, id="a list of its own kind, which may hold such lists"),
        pytest.param(Image, Image, id="an array, of which functions take lists"),
    ],
)
def test_a_batch_function_is_believed(item: Any, taken: Any) -> None:
    service = service_of(str, taking(taken), batch=True)
    service.preprocess(taking(str, item))
    assert service.compose()


def test_what_preprocess_does_not_tell_is_not_guessed() -> None:
    service = service_of(str, taking(list[str]))
    service.preprocess(lambda text: text.split())
    assert service.compose()


def test_what_a_batch_function_returns_besides_exceptions_is_one_item() -> None:
    service = service_of(str, taking(list[str], list[float | Exception]), batch=True)
    service.postprocess(taking(float))
    assert service.compose()


# ------------------------------------------------------- lists of which nobody says what they mean


@pytest.mark.parametrize(
    ("schema", "examples"),
    [
        pytest.param(Request, [{"text": "a"}], id="model"),
        pytest.param(str, ["a", "b"], id="builtin"),
    ],
)
def test_an_example_of_one_for_a_list_is_told_with_what_may_be_meant(
    schema: Any, examples: Any
) -> None:
    """The error is what is read, so no warning comes before it."""
    service = Service("x", examples=examples)
    service.infer(taking(list[schema], list[float]))
    message = r"^the example .* does not fit .* Did you mean @service\.infer\(batch=True\)\? Else"
    with pytest.raises(RegistrationError, match=message):
        service.compose()


@pytest.mark.parametrize("item", [str, Request])
def test_a_list_for_a_single_request_is_warned_of(item: type) -> None:
    service = Service("x")
    service.infer(taking(list[item], list[item]))  # type: ignore[valid-type]
    with pytest.warns(UserWarning) as caught:
        service.compose()
    (told,) = caught
    assert told.filename == __file__
    assert re.search(f"stage \\({HERE}:\\d+\\) takes a list, so each single", str(told.message))
    assert str(told.message).endswith(
        f"Did you mean @service.infer(batch=True)? Else say Service(request=list[{item.__name__}])"
    )


@pytest.mark.parametrize(
    ("options", "request_type", "returned"),
    [
        pytest.param({"batch": True}, None, list[str], id="batch"),
        pytest.param({}, list[str], list[str], id="meant"),
        pytest.param({}, None, int, id="one answer"),
    ],
)
def test_other_lists_are_not_warned_of(
    options: dict[str, Any], request_type: Any, returned: Any
) -> None:
    service = Service("x", request=request_type)
    service.add_stage("infer", taking(list[str], returned), **options)
    assert service.compose()  # a warning would be an error here


# -------------------------------------------------------------- builtin types that cannot be meant


@pytest.mark.parametrize(
    ("made", "taken", "batch", "said"),
    [
        pytest.param(int, list[str], True, "takes str, but gets int", id="batch"),
        pytest.param(int, str, False, "takes str, but gets int", id="one"),
        pytest.param(str, list[bytes], True, "takes bytes, but gets str", id="bytes"),
        pytest.param(list, float, False, "takes float, but gets list", id="list"),
    ],
)
def test_a_stage_that_gets_another_builtin_is_warned_of(
    made: Any, taken: Any, batch: bool, said: str
) -> None:
    service = service_of(None, taking(taken), batch=batch)
    service.preprocess(taking(str, made))
    with pytest.warns(UserWarning) as caught:
        service.compose()
    (told,) = caught
    assert told.filename == __file__
    message = rf"stage \({HERE}:\d+\) {said}: correct the annotation that is wrong$"
    assert re.search(message, str(told.message))


def test_a_postprocess_that_gets_another_builtin_is_warned_of() -> None:
    service = service_of(str, taking(list[str], list[float | Exception]), batch=True)
    service.postprocess(taking(str))
    with pytest.warns(UserWarning, match="takes str, but gets float"):
        service.compose()


@pytest.mark.parametrize(
    ("made", "taken"),
    [
        pytest.param(int, float, id="numbers"),
        pytest.param(bool, int, id="a bool is an int"),
        pytest.param(tuple, list[list], id="one may be used as the other"),  # type: ignore[type-arg]
        pytest.param(list[int], list[tuple[int, ...]], id="parts"),
        pytest.param(Any, list[str], id="anything"),
        pytest.param(object, list[str], id="any object"),
        pytest.param(int | str, list[str], id="a union"),
        pytest.param(Words, list[str], id="a class of the user"),
        pytest.param(Annotated[str, {}], list[Annotated[str, []]], id="what has no hash"),
        pytest.param(Request, list[str], id="a model"),
        pytest.param(None, list[str], id="nothing"),
        pytest.param(int, None, id="nothing is said"),
    ],
)
def test_other_types_are_not_warned_of(made: Any, taken: Any) -> None:
    infer = taking(taken)
    if taken is None:
        del infer.__annotations__["items"]
    service = service_of(None, infer, batch=True)
    service.preprocess(taking(str, made))
    assert service.compose()  # a warning would be an error here
