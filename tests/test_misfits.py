"""What the log tells of a response that does not fit: fields, types and lengths, never a value."""

from typing import Annotated, Any, Literal

import pytest
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from ventu_lite.misfits import misfit

SECRET = "4111-secret"


def refuse(value: Any) -> Any:
    raise ValueError(f"{value!r} is bad")


class Cat(BaseModel):
    """One of two."""

    model_config = ConfigDict(extra="forbid")
    kind: Literal["cat"]
    age: int


class Dog(BaseModel):
    """The other."""

    kind: Literal["dog"]
    properties: int


def told(annotation: Any, value: Any) -> str:
    adapter: TypeAdapter[Any] = TypeAdapter(annotation)
    with pytest.raises(ValidationError) as caught:
        adapter.validate_python(value)
    return misfit(value, caught.value, adapter)


@pytest.mark.parametrize(
    ("annotation", "value", "said"),
    [
        pytest.param(int, SECRET, "found str of length 11", id="a value"),
        pytest.param(
            dict[str, float], {SECRET: "x"}, "…: Input should be a valid number", id="key"
        ),
        pytest.param(dict[int, int], {SECRET: 1}, "….…: Input should be a valid int", id="bad key"),
        pytest.param(Cat, {"kind": "cat", "age": 1, SECRET: 1}, "…: Extra inputs", id="extra"),
        pytest.param(Annotated[str, AfterValidator(refuse)], SECRET, "value_error", id="own words"),
        pytest.param(
            Annotated[Cat | Dog, Field(discriminator="kind")],
            {"kind": SECRET},
            "union_tag_invalid",
            id="tag",
        ),
        pytest.param(list[Cat], [{"kind": "cat", "age": SECRET}], ": 0.age: Input", id="field"),
        pytest.param(Dog, {"kind": "dog", "properties": SECRET}, ": properties: Inp", id="name"),
    ],
)
def test_no_value_is_shown(annotation: Any, value: Any, said: str) -> None:
    line = told(annotation, value)
    assert said in line
    assert SECRET not in line


def test_a_type_that_cannot_be_described_is_told_all_the_same() -> None:
    class Opaque:
        """No JSON schema has it."""

    class Holder(BaseModel):
        model_config = ConfigDict(arbitrary_types_allowed=True)
        opaque: Opaque

    assert "…: Input should be an instance of" in told(Holder, {"opaque": SECRET})
