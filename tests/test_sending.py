"""In which bytes a Python value gets to a worker as it is."""

import dataclasses
import datetime
import math
import uuid
from collections.abc import Sequence
from typing import Annotated, Any

import numpy as np
import pydantic.dataclasses
import pytest
from pydantic import (
    AliasChoices,
    Base64Bytes,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PrivateAttr,
    RootModel,
    SecretBytes,
    SecretStr,
    ValidationInfo,
    field_serializer,
    field_validator,
)

from ventu_lite.config import Codec
from ventu_lite.sending import CannotTravel, carry
from ventu_lite.validation import Schema

BOTH: list[Codec] = ["msgpack", "json"]
HUSH = SecretStr("hush")
MOMENT = datetime.datetime(2026, 1, 2, 3)


class Secret(BaseModel):
    token: SecretStr
    key: SecretBytes = SecretBytes(b"")


class Strict(BaseModel):
    model_config = ConfigDict(strict=True)

    when: datetime.datetime
    ids: tuple[int, ...]


class Raw(BaseModel):
    data: bytes


class Root(RootModel[list[Raw]]):
    pass


@dataclasses.dataclass
class RawData:
    data: bytes
    inner: Raw | None = None


@pydantic.dataclasses.dataclass
class Renamed:
    data: bytes = Field(validation_alias="d")


class ReadOtherwise(BaseModel):
    one: bytes = Field(validation_alias=AliasChoices("1st", "one"), serialization_alias="first")
    two: bytes = Field(b"", exclude=True)


class ByName(BaseModel):
    model_config = ConfigDict(validate_by_alias=False, validate_by_name=True, extra="allow")

    data: bytes = Field(alias="d")


class WrittenOtherwise(BaseModel):
    when: datetime.datetime

    @field_serializer("when")
    def write(self, when: datetime.datetime) -> str:
        return when.strftime("%d.%m.")


class Encoded(BaseModel):
    data: Base64Bytes
    token: SecretStr = SecretStr("")


class Drawn(BaseModel):
    id: uuid.UUID = Field(default_factory=uuid.uuid4)
    _lock: Any = PrivateAttr(default_factory=object)


def carried(value: Any, kind: Any, codecs: Sequence[Codec] = BOTH) -> tuple[Any, Any, Codec]:
    """Return what a schema makes of a value, what it makes of its bytes, and their codec."""
    schema = Schema(kind)
    item = schema.parse_value(value)
    payload, codec = carry(value, schema, codecs, item)
    return item, schema.parse(payload, codec), codec


@pytest.mark.parametrize(
    ("kind", "value", "codec"),
    [
        pytest.param(Secret, Secret(token=HUSH, key=SecretBytes(b"b")), "msgpack", id="secret"),
        pytest.param(list[Secret], [Secret(token=HUSH)], "msgpack", id="secrets in a list"),
        pytest.param(Secret, {"token": HUSH}, "msgpack", id="secret in a map"),
        pytest.param(RawData, RawData(b"\xff", Raw(data=b"\xff")), "msgpack", id="dataclass"),
        pytest.param(list[RawData], [RawData(b"\xff")], "msgpack", id="dataclasses"),
        pytest.param(list[Raw], [Raw(data=b"\xff")], "msgpack", id="models"),
        pytest.param(dict[str, Raw], {"a": Raw(data=b"\xff")}, "msgpack", id="models in a map"),
        pytest.param(Root, Root([Raw(data=b"\xff")]), "msgpack", id="root model"),
        pytest.param(Renamed, Renamed(**{"d": b"\xff"}), "msgpack", id="alias of a dataclass"),
        pytest.param(
            ReadOtherwise, ReadOtherwise(one=b"\xff", two=b"2"), "msgpack", id="alias, excluded"
        ),
        pytest.param(
            ByName,
            ByName(**{"data": b"\xff", "more": b"\xff"}),
            "msgpack",
            id="by name, with extras",
        ),
        pytest.param(WrittenOtherwise, WrittenOtherwise(when=MOMENT), "msgpack", id="serializer"),
        pytest.param(Encoded, Encoded(data=b"aGk=", token=HUSH), "msgpack", id="base64"),
        pytest.param(Strict, Strict(when=MOMENT, ids=(1,)), "json", id="strict"),
        pytest.param(dict[int, str], {1: "a"}, "json", id="numbers as keys"),
        pytest.param(dict[datetime.date, int], {MOMENT.date(): 1}, "msgpack", id="dates as keys"),
        pytest.param(int, 2**70, "json", id="more than 64 bits"),
        pytest.param(int, 48, "json", id="msgpack that looks like JSON"),
        pytest.param(set[int], {1, 2}, "msgpack", id="set"),
        pytest.param(list[float], [0.5, math.inf], "msgpack", id="floats"),
        pytest.param(list[float], np.ones(3), "msgpack", id="array"),
    ],
)
def test_a_value_arrives_as_it_is(kind: Any, value: Any, codec: Codec) -> None:
    item, read, used = carried(value, kind)
    assert (read, type(read), used) == (item, type(item), codec)


@pytest.mark.parametrize("codec", BOTH)
def test_nan_arrives_in_either_codec(codec: Codec) -> None:
    _, read, _ = carried({"a": [math.nan, 1.5]}, dict[str, list[float]], [codec])
    assert math.isnan(read["a"][0]) and read["a"][1] == 1.5


def test_what_was_not_set_is_not_set_there() -> None:
    _, read, _ = carried(ReadOtherwise(**{"one": b"\xff"}), ReadOtherwise)
    assert read.model_fields_set == {"one"}


@pytest.mark.parametrize("value", [{}, Drawn()])
def test_what_the_schema_draws_is_let_pass(value: Any) -> None:
    """Each reading has another id, so to compare them would refuse every request."""
    item, read, _ = carried(value, Drawn)
    assert (read.id == item.id) is isinstance(value, Drawn)


@pytest.mark.parametrize(
    ("kind", "value", "why"),
    [
        pytest.param(
            Any, MOMENT, "in msgpack, another value arrives; in json, another value arrives",
            id="date without a type",
        ),
        pytest.param(
            dict[str, Any], {"SECRET": {"SECRET": MOMENT}}, "another value arrives at ….…;",
            id="inside",
        ),
        pytest.param(Any, Raw(data=b"SECRET"), "another value arrives;", id="model without a type"),
        pytest.param(str, "SECRET\ud800", "a UnicodeEncodeError", id="half a surrogate pair"),
        pytest.param(
            dict[int, bytes], {1: b"SECRET\xff"},
            "int is not allowed for map key; in json, .*invalid utf-8", id="bytes and numbers",
        ),
        pytest.param(
            Annotated[Any, BeforeValidator(lambda one: one)], {"a": object()},
            "neither JSON nor msgpack can say object", id="unknown",
        ),
    ],
)  # fmt: skip
def test_a_value_that_would_change_is_refused_without_being_shown(
    kind: Any, value: Any, why: str
) -> None:
    with pytest.raises(CannotTravel, match=why) as caught:
        carried(value, kind)
    assert str(caught.value).startswith("no codec carries this request as it is: in msgpack, ")
    assert "SECRET" not in str(caught.value)


def test_a_value_is_read_twice_only_if_its_bytes_may_say_something_else() -> None:
    """The validators of a user may take their time."""
    seen = []

    class Watched(BaseModel):
        value: Any

        @field_validator("value")
        @classmethod
        def look(cls, value: Any, info: ValidationInfo) -> Any:
            seen.append(value)
            return value

    carried_in, _ = carry({"value": [1, "a", b"\xff"]}, Schema(Watched), BOTH, Watched(value=1))
    assert seen == [1] and carried_in
    seen.clear()
    carry({"value": (1,)}, Schema(Watched), BOTH, Watched(value=(1,)))
    assert seen == [(1,), [1], [1]]


def test_an_example_may_be_read_as_something_else() -> None:
    assert carry({"when": MOMENT}, Schema(Any), ["json"]) == (
        b'{"when":"2026-01-02T03:00:00"}',
        "json",
    )


def test_an_example_must_fit() -> None:
    with pytest.raises(CannotTravel, match="in msgpack, it does not fit .*valid string, found int"):
        carry(1, Schema(str), ["msgpack"])
