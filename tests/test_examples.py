"""Where examples come from, and when an answer is the expected one."""

import dataclasses
import json
from collections.abc import Callable
from typing import Annotated, Any

import msgpack
import numpy as np
import pytest
from pydantic import BaseModel, ConfigDict, Field, RootModel, computed_field, field_validator

from ventu_lite import Example, RegistrationError
from ventu_lite.annotations import MISSING
from ventu_lite.config import Codec
from ventu_lite.examples import Probe, find_examples
from ventu_lite.schema_examples import batch_size_in
from ventu_lite.validation import Schema


class Request(BaseModel):
    text: str = Field(min_length=2)


class Response(BaseModel):
    score: float


class WithExamples(Request):
    model_config = ConfigDict(json_schema_extra={"examples": [{"text": "one"}, {"text": "two"}]})


class WithExample(Request):
    model_config = ConfigDict(json_schema_extra={"example": {"text": "one"}, "batch_size": 7})


class ByFunction(Request):
    model_config = ConfigDict(
        json_schema_extra=lambda schema: schema.update(example={"text": "fn"})
    )


class Inner(BaseModel):
    number: int = Field(examples=[3, 4])
    kind: str = "x"


class ByField(BaseModel):
    text: str = Field(examples=["hello", "bye"])
    inner: Inner
    option: int | None = Field(None, examples=[7])
    rest: int = 1


class Half(BaseModel):
    text: str = Field(examples=["hello"])
    number: int


class Node(BaseModel):
    name: str = Field(examples=["root"])
    child: "Node" = None  # type: ignore[assignment]
    other: "Node" = None  # type: ignore[assignment]


class Constant(BaseModel):
    kind: Annotated[str, Field(json_schema_extra={"const": "fixed"})]


class Aliased(BaseModel):
    model_config = ConfigDict(extra="forbid")
    text: str = Field(alias="theText")

    @computed_field
    def size(self) -> int:
        return len(self.text)


class Several(BaseModel):
    text: str = Field(examples=["one", "two", "three"])
    size: int = Field(examples=[1, 2])
    kind: str = Field("a", examples=["b"])


class Root(RootModel[list[int]]):
    model_config = ConfigDict(json_schema_extra={"examples": [[1, 2]]})


@dataclasses.dataclass
class Point:
    x: Annotated[int, Field(examples=[3])]


class Documented(Response):
    model_config = ConfigDict(json_schema_extra={"examples": [{"score": 0.25}]})


class Expected(Response):
    model_config = ConfigDict(json_schema_extra={"example": {"score": 0.25}})


def found(
    given: Any,
    request: Any = Request,
    response: Any = Response,
    codecs: tuple[Codec, ...] = ("json", "msgpack"),
) -> list[Probe]:
    return find_examples(given, Schema(request), Schema(response), codecs)


@pytest.mark.parametrize(
    ("given", "schema", "requests"),
    [
        pytest.param([{"text": "ab"}], Request, [{"text": "ab"}], id="a list"),
        pytest.param({"text": "ab"}, Request, [{"text": "ab"}], id="one alone"),
        pytest.param([], WithExample, [], id="none, on purpose"),
        pytest.param([Request(text="ab")], Request, [{"text": "ab"}], id="an instance"),
        pytest.param([Example({"text": "ab"})], Request, [{"text": "ab"}], id="an Example"),
        pytest.param([({"text": "ab"}, {"score": 1})], Request, [{"text": "ab"}], id="a pair"),
        pytest.param([Aliased(theText="a")], Aliased, [{"theText": "a"}], id="by alias"),
        pytest.param([[1.0, 2.0]], list[float], [[1.0, 2.0]], id="a list of lists"),
        pytest.param([np.ones(2)], list[float], [[1.0, 1.0]], id="an array"),
        pytest.param([Point(1)], Point, [{"x": 1}], id="a dataclass"),
        pytest.param(None, WithExamples, [{"text": "one"}, {"text": "two"}], id="schema: examples"),
        pytest.param(None, WithExample, [{"text": "one"}], id="schema: example"),
        pytest.param(None, ByFunction, [{"text": "fn"}], id="schema: by a function"),
        pytest.param(
            None,
            ByField,
            [
                {"text": "hello", "inner": {"number": 3}, "option": 7},
                {"text": "bye", "inner": {"number": 4}, "option": 7},
            ],
            id="schema: fields",
        ),
        pytest.param(
            None,
            Several,
            [{"text": "one", "size": 1, "kind": "b"}, {"text": "two", "size": 2, "kind": "b"}],
            id="schema: several of fields",
        ),
        pytest.param(None, Node, [{"name": "root"}], id="schema: fields of a recursive model"),
        pytest.param(None, Point, [{"x": 3}], id="schema: fields of a dataclass"),
        pytest.param(None, Constant, [{"kind": "fixed"}], id="schema: a constant"),
        pytest.param(None, Root, [[1, 2]], id="schema: RootModel"),
        pytest.param(None, Half, [], id="schema: a required field has none"),
        pytest.param(None, Request, [], id="schema: nothing"),
        pytest.param(None, list[int], [], id="schema: no object"),
        pytest.param(None, Callable[..., Any], [], id="schema: JSON cannot describe it"),
    ],
)
def test_where_examples_come_from(given: Any, schema: Any, requests: list[Any]) -> None:
    probes = found(given, schema)
    assert [json.loads(probe.payload) for probe in probes] == requests
    assert [probe.document for probe in probes] == requests
    assert all(probe.codec == "json" for probe in probes)


@pytest.mark.parametrize(
    ("codecs", "request_value", "codec"),
    [
        pytest.param(("json", "msgpack"), b"\xff", "msgpack", id="what JSON cannot say"),
        pytest.param(("json", "msgpack"), b"a", "json", id="what it can"),
        pytest.param(("msgpack",), b"a", "msgpack", id="as the setting says"),
    ],
)
def test_the_first_codec_that_can_say_it_is_used(
    codecs: tuple[Codec, ...], request_value: bytes, codec: Codec
) -> None:
    (probe,) = found([request_value], bytes, codecs=codecs)
    assert probe.codec == codec
    assert probe.document == (None if request_value == b"\xff" else "a")


@pytest.mark.parametrize(("schema", "size"), [(WithExample, 7), (Request, None), (int, None)])
def test_the_batch_size_of_the_schema_is_read(schema: Any, size: int | None) -> None:
    assert batch_size_in(Schema(schema)) == size


class Raising(BaseModel):
    text: str

    @field_validator("text")
    @classmethod
    def check(cls, text: str) -> str:
        raise KeyError(text)


@pytest.mark.parametrize(
    ("given", "schema", "message"),
    [
        pytest.param(
            [{"text": "x"}],
            Request,
            r"example \{'text': 'x'\} does not fit the request schema: text: String should have"
            r" at least 2 characters\. Correct it",
            id="a field",
        ),
        pytest.param(
            [1.0, 2.0],
            list[float],
            r"example 1.0 does .*: Input should be a valid .*examples=\[\.\.\.\]\), a list of",
            id="a list that is meant as one request",
        ),
        pytest.param([{"text": "y" * 200}], int, r"'y{50,90}\.\.\. does not fit", id="long"),
        pytest.param([{"text": "x"}], Raising, ": KeyError: 'x'. Correct", id="validator"),
        pytest.param([object()], Any, "neither JSON nor msgpack can say object", id="no data"),
    ],
)
def test_an_example_that_does_not_fit_is_named(given: Any, schema: Any, message: str) -> None:
    with pytest.raises(RegistrationError, match=message):
        found(given, schema)


@pytest.mark.parametrize(
    ("answer", "response", "message"),
    [
        pytest.param(
            {"score": "x"}, Response, "score: Input should be a valid number, unable", id="type"
        ),
        pytest.param(b"\xff", bytes, "invalid utf-8", id="what JSON cannot say"),
    ],
)
def test_an_expected_answer_that_does_not_fit_is_named(
    answer: Any, response: Any, message: str
) -> None:
    with pytest.raises(
        RegistrationError, match=f"expected answer .* does not fit the response.*{message}"
    ):
        found([Example({"text": "ab"}, answer)], response=response)


@pytest.mark.parametrize(
    ("given", "request_schema", "response", "expected"),
    [
        pytest.param([{"text": "ab"}], Request, Response, MISSING, id="not given"),
        pytest.param([({"text": "ab"}, {"score": 1})], Request, Response, {"score": 1}, id="pair"),
        pytest.param([Example("ab", None)], str, None, None, id="null is an answer"),
        pytest.param(None, WithExample, Expected, {"score": 0.25}, id="example of the schema"),
        pytest.param(None, WithExamples, Expected, MISSING, id="several requests"),
        pytest.param(
            None, WithExample, Documented, MISSING, id="examples of the schema are for readers"
        ),
        pytest.param([{"text": "ab"}], Request, Expected, MISSING, id="for another request"),
    ],
)
def test_where_expected_answers_come_from(
    given: Any, request_schema: Any, response: Any, expected: Any
) -> None:
    assert found(given, request_schema, response)[0].expected == expected


@pytest.mark.parametrize(
    ("expected", "got", "differs"),
    [
        pytest.param(1.0, 1.0005, False, id="within the relative tolerance"),
        pytest.param(1.0, 1.01, True, id="outside"),
        pytest.param(0.0, 0.000001, False, id="within the absolute tolerance"),
        pytest.param(1, 1.0, False, id="int and float"),
        pytest.param(1, True, True, id="a bool is no number"),
        pytest.param(True, True, False, id="bool"),
        pytest.param(float("nan"), float("nan"), False, id="NaN"),
        pytest.param(float("inf"), float("inf"), False, id="infinity"),
        pytest.param("a", "a", False, id="text"),
        pytest.param("a", "b", True, id="another text"),
        pytest.param("1", 1, True, id="another type"),
        pytest.param([1.0, 2.0], [1.0, 2.0001], False, id="list"),
        pytest.param([1.0, 2.0], [1.0], True, id="shorter list"),
        pytest.param({"a": [1.0]}, {"a": [1.0001]}, False, id="nested"),
        pytest.param({"a": 1}, {"b": 1}, True, id="other keys"),
        pytest.param({"a": 1}, {"a": 1, "b": 2}, True, id="more keys"),
        pytest.param(None, None, False, id="null"),
        pytest.param({1: 2.0}, {1: 2.0001}, False, id="integer keys"),
    ],
)
def test_an_answer_is_compared_with_a_tolerance(expected: Any, got: Any, differs: bool) -> None:
    probe = found([Example("ab", expected)], str, Any, codecs=("msgpack",))[0]
    assert probe.differs(msgpack.packb(got)) is differs


def test_answers_in_json_are_compared_too() -> None:
    probe = found([("ab", 1.5)], str, float)[0]
    assert not probe.differs(b"1.5")
    assert probe.differs(b"2.5")


def test_without_an_expected_answer_nothing_differs() -> None:
    assert not found(["ab"], str)[0].differs(b"anything")


def test_a_tuple_of_examples_is_refused_as_it_may_mean_two_things() -> None:
    said = r"\('my cat', 'my dog'\).*=\[a, b\] are two requests, .*=\[\(a, b\)\] is one request"
    with pytest.raises(RegistrationError, match=said):
        find_examples(("my cat", "my dog"), Schema(str), Schema(str), ["json"])
