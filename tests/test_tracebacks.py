"""What is left of a traceback for the user, and the place in his code that it names."""

import json
import logging
import sys
import traceback
from collections.abc import Callable

import pytest

from ventu_lite import RegistrationError, Service, VentuError
from ventu_lite.tracebacks import (
    beginning_with_the_users,
    first_place_of,
    in_one_line,
    last_place_of,
    place_of,
    traceback_for,
)


def caught(fn: Callable[[], object]) -> BaseException:
    """Return what a function raises, as a command catches it: from its own frame on."""
    try:
        as_ours(fn)
    except BaseException as exc:
        return exc
    raise AssertionError("nothing was raised")


def as_ours(fn: Callable[[], object]) -> None:
    """Call a function from a frame of ours."""
    exec(OURS, {"__name__": "ventu_lite.cli", "fn": fn})


OURS = compile("fn()", "/ours/cli.py", "exec")


def fail() -> None:
    raise KeyError("mine")


def outer() -> None:
    fail()


def line_of(fn: Callable[[], object], offset: int = 1) -> str:
    return f"{__file__}:{fn.__code__.co_firstlineno + offset}"


def misuse() -> None:
    Service("x", no_such_setting=1)


def test_the_place_is_the_last_line_of_the_user() -> None:
    exc = caught(misuse)
    assert isinstance(exc, RegistrationError)
    assert place_of(exc) == line_of(misuse)
    assert place_of(caught(outer)) == line_of(fail)
    assert first_place_of(caught(outer)).startswith(f"{__file__}:")


LIBRARY = compile("raise KeyError('theirs')", "/venv/site-packages/torch/nn.py", "exec")


def misuse_of_a_library() -> None:
    exec(LIBRARY, {"__name__": "torch.nn"})


def misuse_of_the_standard_library() -> None:
    json.loads("{")


@pytest.mark.parametrize("fn", [misuse_of_a_library, misuse_of_the_standard_library])
def test_the_place_is_the_users_where_a_library_raises(fn: Callable[[], None]) -> None:
    exc = caught(fn)
    assert place_of(exc) == line_of(fn)
    assert last_place_of(exc).startswith(("/venv/site-packages/torch/nn.py:1", json.__path__[0]))
    wrapped = VentuError("warm-up failed")
    wrapped.__cause__ = exc
    assert place_of(wrapped) == line_of(fn)


def test_a_library_alone_is_the_place() -> None:
    """The command line may name one as the app."""
    exc = caught_by_us(misuse_of_a_library)
    assert exc.__traceback__ and exc.__traceback__.tb_next
    exc.__traceback__.tb_next = exc.__traceback__.tb_next.tb_next
    assert place_of(exc) == "/venv/site-packages/torch/nn.py:1"


def test_the_place_of_a_syntax_error_is_its_own() -> None:
    assert place_of(caught(lambda: compile("\n1 +", "model.py", "exec"))) == "model.py:2"


def test_what_was_never_in_the_users_code_has_no_place() -> None:
    exc = KeyError("x")
    assert (place_of(exc), first_place_of(exc)) == ("", "")
    assert in_one_line(exc) == "KeyError: 'x'"


@pytest.mark.parametrize(
    ("exc", "said"),
    [
        (OSError("two\n lines"), "OSError: two lines"),
        (VentuError("ours, in a sentence"), "ours, in a sentence"),
        (OSError("x" * 1000), "OSError: " + "x" * 291),
        (VentuError("x" * 2000), "x" * 1000),
    ],
)
def test_one_line_is_one_line_and_no_page(exc: Exception, said: str) -> None:
    assert in_one_line(exc) == said


def test_one_line_names_the_place_of_the_cause() -> None:
    cause = caught(fail)
    exc = VentuError("warm-up failed")
    exc.__cause__ = cause
    assert in_one_line(exc) == f"warm-up failed ({line_of(fail)})"


def shown(exc: BaseException) -> str:
    return "".join(traceback.format_exception(beginning_with_the_users(exc)))


def test_frames_of_ours_that_led_to_the_user_are_left_out() -> None:
    text = shown(caught_by_us(outer))
    assert "/ours/cli.py" not in text
    assert text.index("in outer") < text.index("in fail")


def caught_by_us(fn: Callable[[], object]) -> BaseException:
    """Return what a function raises, without the frames of this file that called ours."""
    exc = caught(fn)
    step = exc.__traceback__
    while step is not None and step.tb_frame.f_code is not OURS:
        step = step.tb_next
    return exc.with_traceback(step)


def test_frames_of_ours_after_those_of_the_user_are_kept() -> None:
    text = shown(caught_by_us(misuse))
    assert "/ours/cli.py" not in text
    assert "ventu_lite/service.py" in text


def test_an_error_of_ours_alone_is_shown_with_the_users_as_its_cause() -> None:
    exc = VentuError("warm-up failed")
    exc.__cause__ = caught_by_us(fail)
    text = shown(exc)
    assert text.startswith("Traceback (most recent call last)")
    assert text.endswith("direct cause of the following exception:\n\n" + last_line(exc))
    assert "in fail" in text and "/ours/cli.py" not in text


def last_line(exc: BaseException) -> str:
    return traceback.format_exception_only(exc)[-1]


def test_a_fault_of_ours_keeps_all_its_frames() -> None:
    exc = caught_by_us(fail)
    assert exc.__traceback__ is not None
    exc.__traceback__.tb_next = None  # as if it was raised there
    assert "/ours/cli.py" in shown(exc)


def test_a_fault_of_a_library_that_is_told_of_by_one_of_ours_keeps_none() -> None:
    exc = VentuError("nobody can write it")
    exc.__cause__ = caught_by_us(fail)
    assert exc.__cause__.__traceback__ is not None
    exc.__cause__.__traceback__.tb_next = None  # as if no line of the user was called
    assert shown(exc).startswith(last_line(exc.__cause__))


@pytest.mark.parametrize("kind", [KeyError, VentuError])
def test_a_circle_of_causes_ends(kind: type[Exception]) -> None:
    first, second = kind("first"), kind("second")
    first.__cause__, second.__cause__ = second, first
    assert place_of(first) == ""
    log = logging.getLogger("tests.tracebacks")
    assert traceback_for(first, log) is (None if kind is VentuError else first)


@pytest.mark.skipif(sys.version_info < (3, 11), reason="notes came with Python 3.11")
def test_a_note_does_not_hide_what_was_raised() -> None:
    exc = ValueError("real reason")
    getattr(exc, "add_note")("see the manual")  # noqa: B009  # the types are those of 3.10
    assert in_one_line(exc) == "ValueError: real reason"


def misspelt() -> None:
    lenght = "what a user meant"
    print(lenhgt, lenght)  # type: ignore[name-defined]  # noqa: F821  # and what he wrote


@pytest.mark.skipif(sys.version_info < (3, 12), reason="Python tells it from 3.12 on")
def test_one_line_has_the_hint_that_python_gives() -> None:
    assert "not defined. Did you mean: 'lenght'? (" in in_one_line(caught(misspelt))


def test_what_is_told_in_one_line_is_not_told_again_below_it() -> None:
    log = logging.getLogger("tests.tracebacks")
    log.setLevel("INFO")
    theirs = caught(fail)
    assert traceback_for(theirs, log) is theirs
    alone = VentuError("ours, in a sentence")
    assert traceback_for(alone, log) is None
    caused = VentuError("warm-up failed")
    caused.__cause__ = theirs
    assert traceback_for(caused, log) is theirs
    caused.__cause__ = alone
    assert traceback_for(caused, log) is None
    log.setLevel("DEBUG")
    assert traceback_for(alone, log) is alone
