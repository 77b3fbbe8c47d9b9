"""What must hold for the body of any request: told, read, validated, written and read again.

The last two bytes of an input choose the schema and the codec; the rest is the body, or a header.
"""

import dataclasses
import enum
import json
import re
from collections.abc import Callable
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from typing import Annotated, Any, Literal
from uuid import UUID

from bounded import memory_at_most
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter
from pydantic_core import to_json

from ventu_lite.codecs import pack, sniff, unpack
from ventu_lite.config import Codec
from ventu_lite.errors import (
    InvalidPayload,
    MalformedPayload,
    NotAcceptable,
    UnsupportedMediaType,
)
from ventu_lite.media_types import MEDIA_TYPE, request_codec, response_type
from ventu_lite.validation import MAX_FIELD_ERRORS, Schema

CONTROL = 2
JSON = 128  # in the last byte; the bits below choose the schema


class Color(enum.Enum):
    RED = "red"
    BLUE = 2


class Node(BaseModel):
    name: str = Field("", max_length=20, alias="label")
    children: list["Node"] = Field([], alias="below")
    parent: "Node | None" = None


class Strict(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid")

    number: int
    text: str = ""
    flag: bool | None = None
    pair: dict[str, list[float]] = {}


class Times(BaseModel):
    at: datetime | None = None
    day: date | None = None
    clock: time | None = None
    span: timedelta | None = None
    amount: Decimal | None = None
    id: UUID | None = None
    raw: bytes | None = None
    color: Color | None = None
    numbers: set[int] = set()
    pair: tuple[int, str] | None = None


class Cat(BaseModel):
    kind: Literal["cat"]
    lives: Annotated[int, Field(ge=0, le=9)] = 9


class Dog(BaseModel):
    kind: Literal["dog"]
    tricks: list[str]


@dataclasses.dataclass
class Point:
    x: float
    y: float = 0.0
    tags: list[str] = dataclasses.field(default_factory=list)


SCHEMAS = [
    Schema(annotation)
    for annotation in (
        Any,
        list[float],
        dict[str, int],
        Node,
        Strict,
        Times,
        Annotated[Cat | Dog, Field(discriminator="kind")],
        Point,
        int | str | list[bool] | None,
        list[Point],
    )
]
_ANYTHING = SCHEMAS[0]
_NOT_FINITE = re.compile(r"\b(?:nan|inf|NaN|Infinity)\b")  # JSON says null instead
_JSON_TEXT: TypeAdapter[Any] = TypeAdapter(Any)


def check(data: bytes) -> None:
    """Raise if a body, or a header, is not treated as it should be."""
    body, control = data[:-CONTROL], data[-CONTROL:].rjust(CONTROL, b"\0")
    codec: Codec = "json" if control[1] & JSON else "msgpack"
    _check_headers(body.decode("latin-1"))
    _check_sniffed(body)
    _check_unpacked(body)
    _check_parsed(SCHEMAS[control[1] % JSON % len(SCHEMAS)], body, codec)


def _check_headers(value: str) -> None:
    for setting in ("auto", "json", "msgpack"):
        try:
            assert request_codec(value, setting) in (None, "json", "msgpack")
        except UnsupportedMediaType as exc:
            assert len(str(exc)) < 1000
        try:
            assert response_type(value, MEDIA_TYPE["json"], setting)
        except NotAcceptable as exc:
            assert len(str(exc)) < 1000


def _check_sniffed(body: bytes) -> None:
    """What JSON or msgpack can be read as a map or an array must be told by its first byte."""
    if isinstance(_or_none(unpack, body), dict | list):
        assert sniff(body) == "msgpack"
    if _or_none(_read_json, body) is not None:
        assert sniff(body) == "json"


def _or_none(read: Callable[[bytes], Any], body: bytes) -> Any:
    try:
        return read(body)
    except (MalformedPayload, ValueError, RecursionError):
        return None


def _read_json(body: bytes) -> Any:
    def refuse(constant: str) -> None:
        raise ValueError(f"{constant} is no JSON")

    return json.loads(body.decode(), parse_constant=refuse)


def _check_unpacked(body: bytes) -> None:
    with memory_at_most(1_000_000 + 200 * len(body)):
        try:
            value = unpack(body)
        except MalformedPayload as exc:
            assert len(str(exc)) < 1000
            return
    again = pack(value)  # a Timestamp has become a string
    assert pack(unpack(again)) == again


def _check_parsed(schema: Schema, body: bytes, codec: Codec) -> None:
    # A body of one byte for each item may make an error in each of some types for each.
    with memory_at_most(1_000_000 + 5000 * len(body)):
        try:
            value = schema.parse(body, codec)
        except MalformedPayload as exc:
            assert len(str(exc)) < 1000
            return
        except InvalidPayload as exc:
            _check_errors(exc, body)
            return
    if codec == "msgpack" or not _NOT_FINITE.search(repr(value)):
        _check_written(schema, value, codec)


def _check_errors(exc: InvalidPayload, body: bytes) -> None:
    assert 1 <= len(exc.errors) <= MAX_FIELD_ERRORS and len(exc.errors) <= exc.error_count
    assert len(to_json(exc.errors)) < MAX_FIELD_ERRORS * (1000 + 8 * len(body))


def _check_written(schema: Schema, value: Any, codec: Codec) -> None:
    """What was read can be written, and is the same when it is read again."""
    try:
        written = schema.encode(schema.validate(value), codec)
    except OverflowError:
        assert codec == "msgpack", "JSON has integers of any size"
        return
    again = schema.parse(written, codec)
    assert sorted(schema.encode(schema.validate(again), codec)) == sorted(
        written
    )  # a set has no order
    if schema is not _ANYTHING:  # anything does not say that a string was a time
        is_same = again == value or repr(again) == repr(value)  # NaN is not itself
        assert is_same, f"{value!r} has become {again!r}"
