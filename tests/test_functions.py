"""Where a user's function stands."""

import functools
import os
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from ventu_lite.functions import folder, where_from, where_is

HERE = __file__


def plain() -> None: ...


@functools.wraps(plain)
def wrapped() -> None: ...


class Model:
    def __call__(self) -> None: ...


def test_a_function_is_told_by_name_file_and_line() -> None:
    line = plain.__code__.co_firstlineno
    assert where_is(plain) == f"plain ({HERE}:{line})"
    assert where_is(functools.partial(plain)) == where_is(wrapped) == where_is(plain)


@pytest.mark.parametrize(
    ("fn", "name"), [(len, "len"), (Exception, "Exception"), (np.exp, "exp"), (Model(), "Model")]
)
def test_every_callable_has_a_place(fn: Callable[..., Any], name: str) -> None:
    """Where there is no code to point at, it is the line that handed it over."""
    told, _, place = where_is(fn).partition(" ")
    assert told == name
    assert f"{HERE}:" in place


def test_the_folder_is_that_of_the_code_outside_the_package() -> None:
    assert folder() == os.path.dirname(HERE) != os.getcwd()
    names: dict[str, Any] = {"folder": folder}
    exec("found = folder()", names)  # as in a notebook: there is no file
    assert names["found"] == os.getcwd()


def test_the_place_of_a_call_is_that_of_the_code_outside_the_package() -> None:
    assert where_from().startswith(f"{HERE}:")
