"""A large payload is refused at the first bad element of a list."""

from dataclasses import dataclass, field
from typing import Any, Literal

import pytest
from pydantic import BaseModel, TypeAdapter, ValidationError

from ventu_lite.errors import InvalidPayload
from ventu_lite.impatience import impatient_validator
from ventu_lite.validation import MAX_PATIENCE, Schema


class Point(BaseModel):
    x: float
    y: float


class Shape(BaseModel):
    type: Literal["list"] = "list"  # a field of that name is no schema of that type
    points: list[Point]
    default: Any = {"type": "list", "schema": {"type": "list"}}


@dataclass
class Table:
    rows: list[list[int]]
    names: set[str] = field(default_factory=set)


class Tree(BaseModel):
    value: int
    below: "list[Tree]" = []


def errors_of(annotation: Any, value: Any) -> list[tuple[int | str, ...]]:
    validator = impatient_validator(TypeAdapter(annotation).core_schema)
    with pytest.raises(ValidationError) as caught:
        validator.validate_python(value)
    return [error["loc"] for error in caught.value.errors()]


@pytest.mark.parametrize(
    ("annotation", "value", "errors"),
    [
        pytest.param(list[int], ["a", "b"], [(0,)], id="list"),
        pytest.param(tuple[int, ...], ["a", "b"], [(0,)], id="tuple"),
        pytest.param(set[int], ["a", "b"], [(0,)], id="set"),
        pytest.param(frozenset[int], ["a", "b"], [(0,)], id="frozenset"),
        pytest.param(Shape, {"points": [{}, {}]}, [("points", 0, "x"), ("points", 0, "y")], id="m"),
        pytest.param(list[Shape], [{"points": [{"x": 1, "y": 2}]}, {}], [(1, "points")], id="ms"),
        pytest.param(Table, {"rows": [[1], ["a", "b"], 3]}, [("rows", 1, 0)], id="dataclass"),
        pytest.param(Tree, {"value": 1, "below": [{}, {}]}, [("below", 0, "value")], id="tree"),
        pytest.param(dict[str, int], {"a": "b", "c": "d"}, [("a",)], id="dict"),
        pytest.param(dict[str, list[int]], {"a": ["b", "c"]}, [("a", 0)], id="dict-of-lists"),
        pytest.param(list[int] | None, ["a", "b"], [(0,)], id="nullable"),
    ],
)
def test_a_list_ends_at_its_first_error(
    annotation: Any, value: Any, errors: list[tuple[int | str, ...]]
) -> None:
    assert errors_of(annotation, value) == errors


@pytest.mark.parametrize(
    ("annotation", "value"),
    [
        pytest.param(Shape, {"points": [{"x": 1, "y": "2"}]}, id="model"),
        pytest.param(Table, {"rows": [[1, 2], []], "names": ["a"]}, id="dataclass"),
        pytest.param(Tree, {"value": 1, "below": [{"value": 2, "below": []}]}, id="tree"),
        pytest.param(list[int] | list[str], ["1", "2"], id="union"),
    ],
)
def test_what_fits_becomes_the_same(annotation: Any, value: Any) -> None:
    adapter = TypeAdapter(annotation)
    expected = adapter.validate_python(value)
    assert impatient_validator(adapter.core_schema).validate_python(value) == expected


def test_the_schema_of_others_is_not_changed() -> None:
    schema = Schema(Shape)
    impatient_validator(schema.adapter.core_schema)
    with pytest.raises(InvalidPayload) as caught:
        schema.parse(b'{"points": [1, 2]}', "json")
    assert caught.value.error_count == 2


@pytest.mark.parametrize(("spaces", "errors"), [(0, 2), (1, 1)])
def test_only_a_large_payload_is_refused_early(spaces: int, errors: int) -> None:
    payload = b'["a", "b"' + b" " * (MAX_PATIENCE - 10 + spaces) + b"]"
    with pytest.raises(InvalidPayload) as caught:
        Schema(list[int]).parse(payload, "json")
    assert caught.value.error_count == errors
