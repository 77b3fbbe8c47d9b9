"""Which media types are read and written."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ventu_lite.config import Codec, CodecSetting
from ventu_lite.errors import NotAcceptable, UnsupportedMediaType
from ventu_lite.media_types import (
    MEDIA_TYPE,
    media_types_of,
    own_type,
    request_codec,
    response_type,
)

JSON = "application/json"
MSGPACK = "application/msgpack"
X_MSGPACK = "application/x-msgpack"
BROWSER = "text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8"


@pytest.mark.parametrize(
    ("setting", "types"),
    [("auto", [JSON, MSGPACK]), ("json", [JSON]), ("msgpack", [MSGPACK])],
)
def test_a_setting_chooses_the_media_types(setting: CodecSetting, types: list[str]) -> None:
    assert media_types_of(setting) == types


@pytest.mark.parametrize(
    ("content_type", "codec"),
    [
        (JSON, "json"),
        ("Application/JSON", "json"),
        (" application/json ;charset=utf-8", "json"),
        ('application/json; charset="UTF-8"', "json"),
        ("application/json; charset=us-ascii", "json"),
        ("application/json;", "json"),
        (MSGPACK, "msgpack"),
        (X_MSGPACK, "msgpack"),
        ("APPLICATION/X-MSGPACK", "msgpack"),
        ("application/vnd.msgpack", "msgpack"),
        ("", None),
        ("*/*", None),
        ("application/octet-stream", None),
        ("application/x-www-form-urlencoded", None),
        ("application/x-www-form-urlencoded; charset=UTF-8", None),
    ],
)
def test_content_types_that_are_read(content_type: str, codec: Codec | None) -> None:
    assert request_codec(content_type, "auto") == codec


@pytest.mark.parametrize("setting", ["json", "msgpack"])
def test_an_unspecific_type_is_the_one_codec_that_is_set(setting: Codec) -> None:
    assert request_codec("", setting) == setting


@pytest.mark.parametrize(
    ("content_type", "setting", "message"),
    [
        ("text/plain", "auto", f"'text/plain' is not read here; send {JSON} or {MSGPACK}$"),
        ("multipart/form-data; boundary=x", "auto", "'multipart/form-data' is not read"),
        ("application/problem+json", "auto", "is not read here"),
        (MSGPACK, "json", f"send {JSON}$"),
        (JSON, "msgpack", f"send {MSGPACK}$"),
        ("application/json; charset=latin-1", "auto", "charset 'latin-1' .* send utf-8"),
        ("x" * 5000, "auto", "^content type 'x{100}' is not"),
    ],
)
def test_content_types_that_are_refused(
    content_type: str, setting: CodecSetting, message: str
) -> None:
    with pytest.raises(UnsupportedMediaType, match=message):
        request_codec(content_type, setting)


@pytest.mark.parametrize(
    ("content_type", "codec", "own"),
    [
        pytest.param(JSON, "json", JSON, id="as it is"),
        pytest.param(X_MSGPACK, "msgpack", X_MSGPACK, id="by its old name"),
        pytest.param(" Application/X-MSGPACK ; a=b", "msgpack", X_MSGPACK, id="bare"),
        pytest.param(f"{JSON}; charset=utf-8", "json", JSON, id="no charset"),
        pytest.param("", "msgpack", MSGPACK, id="none"),
        pytest.param("application/x-www-form-urlencoded", "json", JSON, id="curl"),
    ],
)
def test_a_request_has_a_type_that_can_be_answered_in(
    content_type: str, codec: Codec, own: str
) -> None:
    assert own_type(content_type, codec) == own


@pytest.mark.parametrize(
    ("accept", "own", "answer"),
    [
        pytest.param("", JSON, JSON, id="none: own"),
        pytest.param("", MSGPACK, MSGPACK, id="none: own msgpack"),
        pytest.param("", X_MSGPACK, X_MSGPACK, id="none: own by its old name"),
        pytest.param("*/*", MSGPACK, MSGPACK, id="anything: own"),
        pytest.param("application/*", X_MSGPACK, X_MSGPACK, id="any application: own"),
        pytest.param(JSON, MSGPACK, JSON, id="the other one"),
        pytest.param("APPLICATION/JSON", MSGPACK, JSON, id="capitals"),
        pytest.param(X_MSGPACK, JSON, X_MSGPACK, id="by its old name"),
        pytest.param("application/vnd.msgpack", JSON, "application/vnd.msgpack", id="registered"),
        pytest.param(f"{JSON};q=0.4, {MSGPACK};q=0.5", JSON, MSGPACK, id="the better one"),
        pytest.param(f"{JSON}, {MSGPACK}", MSGPACK, MSGPACK, id="a tie: own"),
        pytest.param(f"{JSON};q=0, */*", JSON, MSGPACK, id="anything but"),
        pytest.param(BROWSER, JSON, JSON, id="a browser"),
        pytest.param(f"{JSON}; charset=utf-8", MSGPACK, JSON, id="charset"),
        pytest.param(f"{JSON};v=1;q=0.9, {MSGPACK};q=0.1", MSGPACK, JSON, id="parameter and q"),
        pytest.param("application/problem+json", JSON, JSON, id="problem documents alone"),
        pytest.param(f"{JSON}, application/problem+json", JSON, JSON, id="with problems"),
        pytest.param(f"text/html, {MSGPACK}", JSON, MSGPACK, id="one of them known"),
    ],
)
def test_the_answer_comes_in_what_the_client_accepts(accept: str, own: str, answer: str) -> None:
    assert response_type(accept, own, "auto") == answer


def test_the_setting_limits_the_answer() -> None:
    assert response_type("*/*", MSGPACK, "json") == JSON


@pytest.mark.parametrize(
    ("accept", "setting"),
    [
        ("text/html", "auto"),
        ("*/*;q=0", "auto"),
        ("garbage", "auto"),
        (f"{JSON};q=0, {MSGPACK};q=0", "auto"),
        (MSGPACK, "json"),
    ],
)
def test_a_client_that_accepts_nothing_is_told_so(accept: str, setting: CodecSetting) -> None:
    with pytest.raises(NotAcceptable, match="; accept application/json"):
        response_type(accept, JSON, setting)


@given(st.text(max_size=60), st.text(max_size=60))
def test_no_header_does_more_than_fail_cleanly(accept: str, content_type: str) -> None:
    try:
        assert response_type(accept, JSON, "auto")
    except NotAcceptable:
        pass
    try:
        request_codec(content_type, "auto")
    except UnsupportedMediaType:
        pass


def test_every_codec_has_its_media_type() -> None:
    assert MEDIA_TYPE == {"json": JSON, "msgpack": MSGPACK}


def test_no_time_is_spent_on_a_long_accept() -> None:
    with pytest.raises(NotAcceptable, match="more than 1000 characters is not read"):
        response_type("a/b," * 300 + "application/json", "application/json", "auto")
