"""The exception tree."""

import pickle

import pytest

from ventu_lite import errors
from ventu_lite.errors import InvalidPayload, PayloadError, Unavailable, VentuError

EXCEPTIONS = [
    value
    for value in vars(errors).values()
    if isinstance(value, type) and issubclass(value, Exception)
]


@pytest.mark.parametrize("exception", EXCEPTIONS)
def test_every_exception_has_the_one_base(exception: type[Exception]) -> None:
    assert issubclass(exception, VentuError)


@pytest.mark.parametrize("exception", EXCEPTIONS)
def test_the_tree_in_the_docstring_is_complete(exception: type[Exception]) -> None:
    assert exception.__name__ in (errors.__doc__ or "")


@pytest.mark.parametrize("exception", EXCEPTIONS)
def test_statuses_are_those_of_the_docstring(exception: type[Exception]) -> None:
    if issubclass(exception, PayloadError | Unavailable) and exception is not Unavailable:
        line = next(x for x in (errors.__doc__ or "").splitlines() if exception.__name__ in x)
        said = "400" if exception is PayloadError else line
        assert str(exception.status) in said


@pytest.mark.parametrize(
    ("count", "text"),
    [
        pytest.param(1, "1 field does not fit the request schema", id="one"),
        pytest.param(21, "21 fields do not fit the request schema", id="many"),
    ],
)
def test_an_invalid_payload_says_how_many_fields(count: int, text: str) -> None:
    assert str(InvalidPayload([], count)) == text


@pytest.mark.parametrize(
    "exc",
    [
        pytest.param(InvalidPayload([{"loc": ["a"]}], 3), id="InvalidPayload"),
        pytest.param(Unavailable("busy", retry_after=2.0), id="Unavailable"),
    ],
)
def test_exceptions_survive_pickle(exc: Exception) -> None:
    """``predict`` may run in a pool of processes, which hangs on what it cannot unpickle."""
    copy = pickle.loads(pickle.dumps(exc))
    assert (str(copy), vars(copy)) == (str(exc), vars(exc))
