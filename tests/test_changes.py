"""Whether a value that went through bytes is still the same."""

import dataclasses
import math
from typing import Any

import numpy as np
import pytest
from pydantic import BaseModel, PrivateAttr

from ventu_lite.changes import first_change


class Model(BaseModel):
    value: Any
    _note: Any = PrivateAttr(None)


@dataclasses.dataclass
class Data:
    value: Any


class Loner:
    """Equal to nothing but itself."""


class Broken:
    """Cannot be compared."""

    def __eq__(self, other: object) -> bool:
        raise RuntimeError("no")


def noted(value: Any, note: Any) -> Model:
    model = Model(value=value)
    model._note = note
    return model


@pytest.mark.parametrize(
    ("item", "read"),
    [
        pytest.param(1, 1, id="equal"),
        pytest.param(math.nan, float("nan"), id="NaN"),
        pytest.param({"a": [math.nan, 1]}, {"a": [float("nan"), 1]}, id="NaN inside"),
        pytest.param(Model(value=math.nan), Model(value=float("nan")), id="NaN in a model"),
        pytest.param(Data(math.nan), Data(float("nan")), id="NaN in a dataclass"),
        pytest.param((1, (2,)), [1, [2]], id="tuples"),
        pytest.param(np.arange(4).reshape(2, 2), [[0, 1], [2, 3]], id="array"),
        pytest.param(Model(value=np.ones(2)), Model(value=np.ones(2)), id="arrays in models"),
        pytest.param(np.array([math.nan]), np.array([math.nan]), id="NaN in arrays"),
    ],
)
def test_what_is_the_same(item: Any, read: Any) -> None:
    assert first_change(item, read, read) is None


@pytest.mark.parametrize(
    ("item", "read", "place"),
    [
        pytest.param(1, 2, (), id="number"),
        pytest.param({"a": [1, 2]}, {"a": [1, 3]}, ("a", 1), id="inside"),
        pytest.param([1], [1, 1], (), id="length"),
        pytest.param({"a": 1}, {"b": 1}, (), id="keys"),
        pytest.param({1: 1}, [1, 1], (), id="kind"),
        pytest.param(Model(value=math.nan), {"value": math.nan}, (), id="no model"),
        pytest.param(Model(value=[1]), Model(value=[2]), ("value", 0), id="in a model"),
        pytest.param(noted(1, 2), noted(1, 3), ("_note",), id="in a private attribute"),
        pytest.param(Data([1]), Data([2]), ("value", 0), id="in a dataclass"),
        pytest.param(np.ones(2), np.zeros(2), (0,), id="in an array"),
    ],
)
def test_what_is_not(item: Any, read: Any, place: tuple[Any, ...]) -> None:
    assert first_change(item, read, read) == place


@pytest.mark.parametrize("kind", [Loner, Broken])
def test_where_two_readings_differ_nobody_can_tell(kind: type) -> None:
    item, read, again = ({"of_its_own": kind(), "a": 1} for _ in range(3))
    assert first_change(item, read, again) is None
    item["a"] = 2
    assert first_change(item, read, again) == ("a",)


def test_a_key_that_is_drawn_is_of_its_own() -> None:
    assert first_change({"a": 1}, {"b": 1}, {"c": 1}) is None
