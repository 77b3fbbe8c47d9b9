"""Payloads into items and results into bytes, by a schema."""

import dataclasses
import datetime
import decimal
import enum
import json
import sys
import typing
import uuid
from types import SimpleNamespace
from typing import Annotated, Any, Generic, TypeVar

import msgpack
import numpy as np
import numpy.typing as npt
import pytest
from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, Json, RootModel, field_validator
from pydantic import ValidationError as PydanticError
from pydantic.dataclasses import dataclass as pydantic_dataclass
from typing_extensions import TypedDict

from ventu_lite.config import Codec
from ventu_lite.errors import (
    InvalidPayload,
    MalformedPayload,
    PayloadError,
    PayloadTooLarge,
    RegistrationError,
)
from ventu_lite.validation import MAX_FIELD_ERRORS, MAX_PATIENCE, MAX_TEXT, Schema

T = TypeVar("T")
CODECS: tuple[Codec, ...] = ("json", "msgpack")
both_codecs = pytest.mark.parametrize("codec", CODECS)


class Text(BaseModel):
    text: str = Field(min_length=2)


class Score(BaseModel):
    score: float = Field(ge=0, le=1)


class Aliased(BaseModel):
    score: float = Field(alias="theScore")


class Numbers(RootModel[list[int]]):
    pass


class Page(BaseModel, Generic[T]):
    items: list[T]


class Typed(TypedDict):
    a: int


class Old(typing.TypedDict):
    a: int


@dataclasses.dataclass
class Box:
    side: Annotated[float, Field(ge=0)]


@dataclasses.dataclass(slots=True)
class Scene:
    boxes: list[Box]
    center: list[float]


@dataclasses.dataclass
class Scaled:
    score: float

    def __post_init__(self) -> None:
        self.score *= 2


@pydantic_dataclass
class Point:
    x: int


class Doubled(BaseModel):
    score: float

    @field_validator("score")
    @classmethod
    def double(cls, score: float) -> float:
        return 2 * score


class Color(enum.Enum):
    RED = "red"


class Everything(BaseModel):
    data: bytes
    at: datetime.datetime
    amount: decimal.Decimal
    id: uuid.UUID
    color: Color


class Later(BaseModel):
    inner: "Inner"


class Inner(BaseModel):
    a: int


class Never(BaseModel):
    inner: "Nowhere"  # type: ignore[name-defined]  # noqa: F821  # that is the point


def rendered(schema: Schema, value: Any, codec: Codec) -> bytes:
    return schema.encode(schema.validate(value), codec)


def encoded(value: Any, codec: Codec) -> bytes:
    return json.dumps(value).encode() if codec == "json" else msgpack.packb(value)


def decoded(body: bytes, codec: Codec) -> Any:
    if codec == "json":
        return json.loads(body)
    return msgpack.unpackb(body, strict_map_key=False)


SCHEMAS: list[Any] = [
    pytest.param(Text, {"text": "hi"}, Text(text="hi"), id="model"),
    pytest.param(Numbers, [1, 2], Numbers([1, 2]), id="RootModel"),
    pytest.param(Page[int], {"items": [1]}, Page[int](items=[1]), id="generic model"),
    pytest.param(Later, {"inner": {"a": 1}}, Later(inner=Inner(a=1)), id="forward reference"),
    pytest.param(Box, {"side": 1.5}, Box(1.5), id="dataclass"),
    pytest.param(Point, {"x": 1}, Point(1), id="pydantic dataclass"),
    pytest.param(Typed, {"a": 1}, {"a": 1}, id="TypedDict"),
    pytest.param(list[float], [0.5], [0.5], id="list"),
    pytest.param(Annotated[int, Field(gt=3)], 4, 4, id="Annotated"),
    pytest.param(int | None, None, None, id="optional"),
    pytest.param(Text | Box, {"side": 1.5}, Box(1.5), id="union"),
    pytest.param(Any, {"a": [1, "b", None]}, {"a": [1, "b", None]}, id="Any"),
]


@both_codecs
@pytest.mark.parametrize(("annotation", "value", "item"), SCHEMAS)
def test_any_type_of_pydantic_is_a_schema_both_ways(
    annotation: Any, value: Any, item: Any, codec: Codec
) -> None:
    schema = Schema(annotation)
    assert schema.parse(encoded(value, codec), codec) == item
    assert schema.parse_value(value) == item
    assert decoded(rendered(schema, item, codec), codec) == value
    assert decoded(rendered(schema, value, codec), codec) == value


@pytest.mark.parametrize(
    ("annotation", "reason"),
    [
        pytest.param(3, "3: Unable to generate", id="a value"),
        pytest.param("Missing", "'Missing': name 'Missing' is not defined", id="a name"),
        pytest.param(list["Missing"], "name 'Missing' is not defined", id="a name inside"),  # type: ignore[name-defined]  # noqa: F821
        pytest.param(Never, "name 'Nowhere' is not defined", id="a model with a name"),
        pytest.param(
            Old,
            "use `typing_extensions.TypedDict`",
            id="the TypedDict of an old Python",
            marks=pytest.mark.skipif(sys.version_info >= (3, 12), reason="it is good there"),
        ),
    ],
)
def test_a_type_that_cannot_be_validated_is_refused_at_once(annotation: Any, reason: str) -> None:
    """Not at the first request."""
    with pytest.raises(RegistrationError, match=f"^pydantic cannot validate .*{reason}.* Use a "):
        Schema(annotation)


class Tensor:
    """As that of torch."""

    def tolist(self) -> list[float]: ...  # type: ignore[empty-body]


@pytest.mark.parametrize(
    ("annotation", "advice"),
    [
        pytest.param(np.ndarray, "list[float] for ndarray, or list[list[float]]", id="array"),
        pytest.param(npt.NDArray[np.int8], "list[float] for ndarray, or list", id="typed array"),
        pytest.param(dict[str, np.ndarray], "list[float] for ndarray, or list", id="inside"),
        pytest.param(int | Tensor, "list[float] for Tensor, or list[list[float]]", id="tensor"),
        pytest.param(
            np.float32,
            "float for float32: what you return is converted.",
            id="float",
        ),
        pytest.param(list[np.float64], "float for float64: what", id="list of floats"),
        pytest.param(np.uint8, "int for uint8: what", id="int"),
        pytest.param(np.bool_, f"bool for {np.bool_.__name__}: what", id="bool"),
        pytest.param(np.str_, "str for str_: what", id="str"),
    ],
)
def test_what_stands_for_an_array_is_told(annotation: Any, advice: str) -> None:
    with pytest.raises(RegistrationError) as caught:
        Schema(annotation)
    assert f". Write {advice}" in str(caught.value)
    assert "arbitrary_types_allowed" not in str(caught.value)


@pytest.mark.parametrize("annotation", [type(sys), np.complex64, type("Own", (), {})])
def test_what_no_builtin_stands_for_is_told_with_all_that_can_be_said(annotation: Any) -> None:
    with pytest.raises(RegistrationError) as caught:
        Schema(annotation)
    assert str(caught.value).endswith(
        ". Use a BaseModel, a dataclass, a TypedDict or a builtin such as list[float]."
    )
    assert "arbitrary_types_allowed" not in str(caught.value)


# ----------------------------------------------------------------------------- requests


@pytest.mark.parametrize(
    ("payload", "codec"),
    [
        pytest.param(b"{", "json", id="truncated"),
        pytest.param(b'{"text": "\xff"}', "json", id="bad UTF-8"),
        pytest.param(b'"\\ud800"', "json", id="half a surrogate pair"),
        pytest.param(b"[" * 100_000, "json", id="too deep"),
        pytest.param(b"\xc1", "msgpack", id="bad msgpack"),
        pytest.param(msgpack.packb({1: 2}), "msgpack", id="integer key"),
    ],
)
def test_bytes_of_another_kind_are_malformed(payload: bytes, codec: Codec) -> None:
    with pytest.raises(MalformedPayload, match="^the body is not valid "):
        Schema(Text).parse(payload, codec)


@pytest.mark.parametrize(
    ("payload", "is_text"),
    [(b"my cat", True), (b"text=my cat", True), (b'{"text": "x}', False), (b"{'text': 1}", True)],
)
def test_who_sends_text_without_quotes_is_told_so(payload: bytes, is_text: bool) -> None:
    with pytest.raises(MalformedPayload) as failed:
        Schema(str).parse(payload, "json")
    assert str(failed.value).endswith("; text and names need double quotes") == is_text


@pytest.mark.parametrize(
    ("payload", "codec", "detail"),
    [
        pytest.param(b"", "json", "the body is empty, expected a request in JSON", id="empty"),
        pytest.param(
            b" \r\n", "json", "the body is empty, expected a request in JSON", id="only blanks"
        ),
        pytest.param(
            b"", "msgpack", "the body is empty, expected a request in msgpack", id="no msgpack"
        ),
        pytest.param(
            msgpack.packb({"text": "hi"}),
            "json",
            "the body was read as JSON, but does not begin like it; send application/json",
            id="msgpack as JSON",
        ),
        pytest.param(
            b'{"text": "hi"}',
            "msgpack",
            "the body was read as msgpack, but does not begin like it; send application/msgpack",
            id="JSON as msgpack",
        ),
    ],
)
def test_what_is_wrong_with_a_whole_body_is_said(payload: bytes, codec: Codec, detail: str) -> None:
    """What the parser says of its first byte helps nobody."""
    with pytest.raises(MalformedPayload) as failed:
        Schema(Text).parse(payload, codec)
    assert str(failed.value) == detail
    assert failed.value.__cause__ is not None


@both_codecs
@pytest.mark.parametrize(
    ("value", "error"),
    [
        pytest.param(
            {},
            {"type": "missing", "loc": ["text"], "msg": "Field required"},
            id="missing",
        ),
        pytest.param(
            {"text": "x"},
            {
                "type": "string_too_short",
                "loc": ["text"],
                "msg": "String should have at least 2 characters",
            },
            id="constraint",
        ),
        pytest.param(
            {"text": 1},
            {"type": "string_type", "loc": ["text"], "msg": "Input should be a valid string"},
            id="type",
        ),
    ],
)
def test_a_value_that_does_not_fit_is_told_by_field(
    value: Any, error: dict[str, Any], codec: Codec
) -> None:
    with pytest.raises(InvalidPayload) as caught:
        Schema(Text).parse(encoded(value, codec), codec)
    assert caught.value.errors == [error]
    assert caught.value.error_count == 1


def test_at_most_twenty_errors_are_listed_and_all_are_counted() -> None:
    with pytest.raises(InvalidPayload, match="^500 fields do not fit") as caught:
        Schema(list[int]).parse_value(["x"] * 500)
    assert len(caught.value.errors) == MAX_FIELD_ERRORS == 20
    assert caught.value.error_count == 500


def test_errors_do_not_repeat_values() -> None:
    with pytest.raises(InvalidPayload) as caught:
        Schema(Page[int]).parse(b'{"items": ["secret"]}', "json")
    assert "secret" not in str(caught.value.errors)


def test_long_names_are_cut_in_errors() -> None:
    """A client that is answered with his own megabytes costs more than he pays."""
    for given, shown in [
        ("k" * 10_000, "k" * (MAX_TEXT - 1) + "…"),
        ("k" * (MAX_TEXT + 1), "k" * (MAX_TEXT - 1) + "…"),
        ("k" * MAX_TEXT, "k" * MAX_TEXT),
    ]:
        with pytest.raises(InvalidPayload) as caught:
            Schema(dict[str, int]).parse_value({given: "x"})
        assert caught.value.errors[0]["loc"] == [shown]


def test_a_payload_may_be_as_large_as_its_limit() -> None:
    schema = Schema(str, max_body=5)
    assert schema.parse(b'"abc"', "json") == "abc"
    with pytest.raises(PayloadTooLarge, match=r"^body of more than 5 bytes \(max_body\)$"):
        schema.parse(b'"abcd"', "json")


def test_a_large_payload_in_msgpack_may_be_no_larger_in_json() -> None:
    """A small one is not worth the count."""
    limit = MAX_PATIENCE + 1000
    schema = Schema(list[list[int]], max_body=limit)
    small: list[list[int]] = [[]] * (MAX_PATIENCE - 3)  # a byte each, and 3 for the outer one
    large: list[list[int]] = [[]] * (MAX_PATIENCE - 2)
    assert schema.parse(msgpack.packb(small), "msgpack") == small
    with pytest.raises(PayloadTooLarge, match=f"{limit} bytes of JSON"):
        schema.parse(msgpack.packb(large), "msgpack")


def test_bad_json_inside_a_field_is_an_error_of_that_field() -> None:
    with pytest.raises(InvalidPayload) as caught:
        Schema(list[Json[int]]).parse(b'["{"]', "json")
    assert caught.value.errors[0]["loc"] == [0]


@pytest.mark.parametrize("codec", ["json", "msgpack"])
def test_a_duration_that_python_cannot_say_does_not_fit(codec: Codec) -> None:
    payload = b'"-P999999999DT1S"' if codec == "json" else msgpack.packb("-P999999999DT1S")
    with pytest.raises(InvalidPayload) as caught:
        Schema(datetime.timedelta).parse(payload, codec)
    assert caught.value.errors[0]["msg"] == "a number or duration is too large"


class Picky(BaseModel):
    text: str

    @field_validator("text")
    @classmethod
    def check(cls, text: str) -> str:
        if text == "value":
            raise ValueError("not this one")
        raise KeyError(text)


def test_the_text_of_a_value_error_in_a_validator_is_meant_for_the_client() -> None:
    with pytest.raises(InvalidPayload) as caught:
        Schema(Picky).parse_value({"text": "value"})
    assert caught.value.errors[0]["msg"] == "Value error, not this one"


@both_codecs
def test_another_exception_in_a_validator_is_no_payload_error(codec: Codec) -> None:
    with pytest.raises(KeyError):
        Schema(Picky).parse(encoded({"text": "other"}, codec), codec)


def test_a_strict_schema_takes_uuids_from_json_alone() -> None:
    """The documentation of the codecs says so."""

    class Strict(BaseModel):
        model_config = ConfigDict(strict=True)
        id: uuid.UUID

    value = {"id": str(uuid.UUID(int=1))}
    assert Schema(Strict).parse(encoded(value, "json"), "json").id == uuid.UUID(int=1)
    with pytest.raises(PayloadError):
        Schema(Strict).parse(encoded(value, "msgpack"), "msgpack")


# ---------------------------------------------------------------------------- responses


@both_codecs
def test_types_that_only_python_knows_go_both_ways(codec: Codec) -> None:
    schema = Schema(Everything)
    item = Everything(
        data=b"bytes",
        at=datetime.datetime(2026, 1, 2, tzinfo=datetime.timezone.utc),
        amount=decimal.Decimal("1.50"),
        id=uuid.UUID(int=1),
        color=Color.RED,
    )
    body = rendered(schema, item, codec)
    assert decoded(body, codec) == {
        "data": "bytes" if codec == "json" else b"bytes",
        "at": "2026-01-02T00:00:00Z" if codec == "json" else "2026-01-02T00:00:00Z",
        "amount": "1.50",
        "id": "00000000-0000-0000-0000-000000000001",
        "color": "red",
    }
    assert schema.parse(body, codec) == item


def test_a_timestamp_of_msgpack_fits_a_datetime() -> None:
    moment = datetime.datetime(2026, 1, 2, tzinfo=datetime.timezone.utc)
    payload = msgpack.packb(moment, datetime=True)
    assert Schema(datetime.datetime).parse(payload, "msgpack") == moment


@pytest.mark.parametrize("annotation", [float, Any, dict[str, float]], ids=str)
@pytest.mark.parametrize("number", [float("nan"), float("inf"), np.float32("nan")], ids=repr)
def test_json_has_null_for_what_is_no_number(annotation: Any, number: Any) -> None:
    value = {"a": number} if annotation == dict[str, float] else number
    assert rendered(Schema(annotation), value, "json") in (b"null", b'{"a":null}')


def test_msgpack_keeps_infinity() -> None:
    assert msgpack.unpackb(rendered(Schema(float), float("inf"), "msgpack")) == float("inf")


def test_a_finite_float_makes_nan_an_error() -> None:
    with pytest.raises(PydanticError):
        rendered(Schema(FiniteFloat), float("nan"), "json")


def test_nan_in_json_is_read_where_a_float_is_wanted() -> None:
    item = Schema(float).parse(b"NaN", "json")
    assert item != item


@both_codecs
@pytest.mark.parametrize(
    ("annotation", "value", "answer"),
    [
        pytest.param(float, np.float32(0.5), 0.5, id="float32"),
        pytest.param(int, np.int64(3), 3, id="int64"),
        pytest.param(bool, np.bool_(True), True, id="bool_"),
        pytest.param(str, np.str_("a"), "a", id="str_"),
        pytest.param(float, np.array(0.5), 0.5, id="0-d array"),
        pytest.param(list[float], np.array([0.5]), [0.5], id="1-d array"),
        pytest.param(list[list[int]], np.ones((2, 2), int), [[1, 1], [1, 1]], id="2-d array"),
        pytest.param(list[float], (np.float32(0.5),), [0.5], id="tuple of scalars"),
        pytest.param(Score, {"score": np.float32(0.5)}, {"score": 0.5}, id="scalar in a dict"),
        pytest.param(
            Page[list[float]], {"items": np.ones((1, 2))}, {"items": [[1, 1]]}, id="in a dict"
        ),
        pytest.param(Any, {"a": np.ones(1)}, {"a": [1.0]}, id="array as Any"),
        pytest.param(Any, [np.float32(0.5)], [0.5], id="scalar as Any"),
        pytest.param(Any, Box(np.float32(0.5)), {"side": 0.5}, id="dataclass as Any"),
        pytest.param(Box, Box(np.float32(0.5)), {"side": 0.5}, id="scalar in a dataclass"),
        pytest.param(
            Scene,
            Scene([Box(1)], np.ones(2)),  # type: ignore[arg-type]
            {"boxes": [{"side": 1.0}], "center": [1.0, 1.0]},
            id="array in a dataclass",
        ),
        pytest.param(Score, SimpleNamespace(score=0.5), {"score": 0.5}, id="by attributes"),
        pytest.param(Score, Box, None, id="a class without them"),
    ],
)
def test_results_may_be_what_models_return(
    annotation: Any, value: Any, answer: Any, codec: Codec
) -> None:
    schema = Schema(annotation)
    if answer is None:
        with pytest.raises(PydanticError):
            rendered(schema, value, codec)
    else:
        assert decoded(rendered(schema, value, codec), codec) == answer


@pytest.mark.parametrize("shape", [(), (2,), (2, 2)])
def test_results_may_be_tensors(shape: tuple[int, ...]) -> None:
    torch = pytest.importorskip("torch")
    annotations: list[Any] = [float, list[float], list[list[float]]]
    schema = Schema(annotations[len(shape)])
    tensor = torch.ones(shape)
    assert json.loads(rendered(schema, tensor, "json")) == np.ones(shape).tolist()


def test_a_subclass_is_written_as_the_schema_says() -> None:
    class Fine(Score):
        secret: str = "internal"

    assert json.loads(rendered(Schema(Score), Fine(score=1), "json")) == {"score": 1.0}


@both_codecs
def test_answers_have_the_aliases_of_the_api_document(codec: Codec) -> None:
    body = rendered(Schema(Aliased), {"theScore": 1}, codec)
    assert decoded(body, codec) == {"theScore": 1.0}


@both_codecs
def test_integer_keys_are_texts_in_json_alone(codec: Codec) -> None:
    answer = decoded(rendered(Schema(dict[int, str]), {1: "a"}, codec), codec)
    assert answer == ({"1": "a"} if codec == "json" else {1: "a"})


def changed(instance: Any, **fields: Any) -> Any:
    for name, value in fields.items():
        setattr(instance, name, value)
    return instance


@both_codecs
@pytest.mark.parametrize(
    ("annotation", "value"),
    [
        pytest.param(Score, {"score": 2}, id="constraint"),
        pytest.param(Score, {"other": 1}, id="missing"),
        pytest.param(Score, None, id="None"),
        pytest.param(Score, changed(Score(score=1), score="high"), id="changed model"),
        pytest.param(Score, Score.model_construct(score="high"), id="constructed model"),
        pytest.param(Scaled, Scaled("high"), id="wrong type in a dataclass with __post_init__"),  # type: ignore[arg-type]
        pytest.param(Box, Box(-1), id="dataclass"),
        pytest.param(list[Box], [Box(1), Box(-1)], id="dataclass in a list"),
        pytest.param(Box | None, Box(-1), id="optional dataclass"),
        pytest.param(Any, object(), id="what nobody can write"),
        pytest.param(str, "\ud800", id="half a surrogate pair"),
    ],
)
def test_a_result_that_does_not_fit_is_an_error(annotation: Any, value: Any, codec: Codec) -> None:
    with pytest.raises((PydanticError, TypeError, ValueError, AttributeError)):
        rendered(Schema(annotation), value, codec)


@pytest.mark.parametrize(
    ("annotation", "value", "body"),
    [
        pytest.param(list[Scaled], [Scaled(1)], b'[{"score":2.0}]', id="__post_init__"),
        pytest.param(Scaled, Scaled(1), b'{"score":2.0}', id="__post_init__ at the top"),
        pytest.param(Doubled, Doubled(score=1), b'{"score":2.0}', id="validator of a model"),
    ],
)
def test_what_changes_a_value_when_it_is_made_does_not_run_again(
    annotation: Any, value: Any, body: bytes
) -> None:
    assert rendered(Schema(annotation), value, "json") == body


@pytest.mark.parametrize(
    ("annotation", "value", "codec"),
    [
        pytest.param(int, 2**64, "msgpack", id="65 bits in msgpack"),
        pytest.param(bytes, b"\xff", "json", id="bytes that are no text in JSON"),
    ],
)
def test_what_one_codec_cannot_say_is_an_error_there_alone(
    annotation: Any, value: Any, codec: Codec
) -> None:
    other: Codec = "json" if codec == "msgpack" else "msgpack"
    assert rendered(Schema(annotation), value, other)
    with pytest.raises((OverflowError, ValueError)):
        rendered(Schema(annotation), value, codec)
