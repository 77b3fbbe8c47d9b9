"""What both doors read in the head of a request."""

import re

import pytest

from ventu_lite.errors import PayloadError, UnsupportedMediaType
from ventu_lite.headers import SANE_ID, refuse_encoding, seconds_in, whole_seconds, why_locked_out

KEY = b"s3cret"


@pytest.mark.parametrize(
    ("given", "is_sane"),
    [
        ("a-Z.9_:/+=@~", True),
        ("a" * 128, True),
        ("a" * 129, False),
        ("", False),
        ("a b", False),
        ("a\n", False),
        ("é", False),
    ],
)
def test_an_id_is_as_sane_in_text_as_in_bytes(given: str, is_sane: bool) -> None:
    assert bool(re.fullmatch(SANE_ID, given)) == is_sane
    assert bool(re.fullmatch(SANE_ID.encode(), given.encode())) == is_sane


@pytest.mark.parametrize("given", [b"Bearer s3cret", b"bearer  s3cret", b"BEARER \ts3cret \t"])
def test_the_key_is_found(given: bytes) -> None:
    assert why_locked_out(given, KEY) == ""


@pytest.mark.parametrize(
    "given", [b"", b"Bearer", b"s3cret", b"Basic s3cret", b"Bearer s3creT", b"Bearer \x85s3cret"]
)
def test_another_key_is_none(given: bytes) -> None:
    why = why_locked_out(given, KEY)
    assert why.startswith("this Authorization is not" if given else "send the key of this service:")


@pytest.mark.parametrize("given", ["", "identity", "Identity"])
def test_a_body_as_it_is_may_pass(given: str) -> None:
    refuse_encoding(given)


def test_a_body_that_is_compressed_may_not() -> None:
    with pytest.raises(UnsupportedMediaType, match=r"content encoding 'x{100}' is not read here"):
        refuse_encoding("x" * 200)


@pytest.mark.parametrize(("given", "seconds"), [("1", 1.0), ("0.5", 0.5), (" 2e1 ", 20.0)])
def test_seconds_are_read(given: str, seconds: float) -> None:
    assert seconds_in(given) == seconds


@pytest.mark.parametrize(
    "given", ["", "0", "-1", "nan", "inf", "1e999", "soon", "1_0", "\xa05", "\u0665"]
)
def test_what_is_no_positive_number_is_refused(given: str) -> None:
    """Python takes more for a number than any other reader of such a header."""
    with pytest.raises(PayloadError, match="must be a positive number of seconds"):
        seconds_in(given)


@pytest.mark.parametrize(("given", "seconds"), [(0.0, 1), (0.2, 1), (1.0, 1), (1.1, 2)])
def test_a_client_is_asked_to_wait_for_whole_seconds_from_one(given: float, seconds: int) -> None:
    assert whole_seconds(given) == seconds
