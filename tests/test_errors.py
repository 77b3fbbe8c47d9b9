"""The exception tree."""

import copy
import pickle

import pytest

from ventu_lite import InferenceFailed, errors
from ventu_lite.errors import BatchFailed, InvalidPayload, PayloadError, Unavailable, VentuError

EXCEPTIONS = [InferenceFailed] + [
    value
    for value in vars(errors).values()
    if isinstance(value, type) and issubclass(value, Exception)
]


def failed_inference() -> InferenceFailed:
    exc = InferenceFailed(429, "8 jobs wait already", {"errors": []})
    exc.retry_after, exc.job = 2.0, "a job"
    return exc


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
        pytest.param(BatchFailed("infer raised OSError"), id="BatchFailed"),
        pytest.param(failed_inference(), id="InferenceFailed"),
    ],
)
def test_exceptions_survive_pickle_and_copy(exc: Exception) -> None:
    """``predict`` may run in a pool of processes, which hangs on what it cannot unpickle."""
    for twin in (pickle.loads(pickle.dumps(exc)), copy.copy(exc)):
        assert type(twin) is type(exc)
        assert (str(twin), vars(twin)) == (str(exc), vars(exc))


def test_a_failed_inference_asks_for_a_new_try_after_a_second_or_more() -> None:
    exc = failed_inference()
    exc.retry_after = 0.0
    assert ("Retry-After", "1") in exc.get_headers()
