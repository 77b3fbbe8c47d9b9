"""What becomes of one item; and of an ``InferenceFailed`` in a route of the user's."""

from typing import Any

import pytest
from flask import Flask
from flask.testing import FlaskClient
from werkzeug.exceptions import HTTPException, ImATeapot, UnprocessableEntity

from ventu_lite import InferenceFailed
from ventu_lite.outcomes import UNEXPECTED, Rejected


class Ours(InferenceFailed):
    """A user may give it a constructor of his own."""

    def __init__(self) -> None:
        super().__init__(422, "mine")


def client_of(failure: InferenceFailed, *handled: type[HTTPException] | int) -> FlaskClient:
    """Return a client of an app that lets a failure pass, and says which handler has seen it."""
    app = Flask(__name__)

    @app.get("/")
    def ask() -> str:
        raise failure

    for one in handled:
        app.register_error_handler(one, lambda exc, one=one: f"{one} saw {exc.description}")
    return app.test_client()


@pytest.mark.parametrize(
    "status", [400, 401, 404, 405, 406, 408, 413, 415, 416, 422, 429, 500, 503, 504]
)
def test_a_handler_of_its_status_sees_a_failure(status: int) -> None:
    """Flask looks for it by the class of an exception, not by its ``code``."""
    failure = InferenceFailed(status, "no")
    assert client_of(failure, status).get("/").text == f"{status} saw no"
    assert client_of(failure, 418).get("/").status_code == status
    assert failure.code == status
    assert f"{failure!r} {failure}".startswith(f"<InferenceFailed {status}: no>")
    assert type(failure) is type(InferenceFailed(status, "again"))


@pytest.mark.parametrize("error", [InferenceFailed, UnprocessableEntity, HTTPException])
def test_a_handler_of_a_class_sees_a_failure(error: type[HTTPException]) -> None:
    failure = InferenceFailed(422, "no")
    assert client_of(failure, error, 418).get("/").text == f"{error} saw no"


def test_a_status_that_werkzeug_does_not_know_is_answered_with_it() -> None:
    response = client_of(InferenceFailed(507, "no place"), 500).get("/")
    assert (response.status_code, response.get_json()["detail"]) == (507, "no place")


def test_a_failure_may_be_subclassed() -> None:
    assert client_of(Ours(), 422).get("/").text == "422 saw mine"
    assert client_of(Ours(), Ours, HTTPException).get("/").text == f"{Ours} saw mine"


@pytest.mark.parametrize("status", [200, 399, 600, "422", None])
def test_a_failure_has_the_status_of_an_error(status: Any) -> None:
    with pytest.raises(ValueError, match="expected 400 to 599"):
        InferenceFailed(status, "no")


class Lazy:
    def __str__(self) -> str:
        raise RuntimeError("too late")


def test_an_exception_that_cannot_be_read_is_a_fault() -> None:
    odd = ImATeapot(Lazy())  # type: ignore[arg-type]  # Flask's lazy texts are no str
    rejected = Rejected.of(odd)
    assert (rejected.status, rejected.is_fault, rejected.detail) == (500, True, UNEXPECTED)
    assert rejected.exc.__cause__ is odd


def test_a_fault_is_not_told_by_its_words() -> None:
    assert not Rejected.of(ImATeapot(UNEXPECTED)).is_fault
    assert not Rejected.of(InferenceFailed(500, UNEXPECTED)).is_fault
    fault = InferenceFailed(500, "the other service failed")
    fault.is_fault = True
    assert Rejected.of(fault).is_fault
