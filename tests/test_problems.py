"""Problem documents in both codecs."""

import json
import math
from datetime import datetime, timezone
from typing import Any

import msgpack
import numpy as np
import pytest

from ventu_lite.config import Codec
from ventu_lite.problems import body_too_large, encode_problem, problem, title_of


def decoded(body: bytes, codec: Codec) -> object:
    return json.loads(body) if codec == "json" else msgpack.unpackb(body)


@pytest.mark.parametrize(
    ("status", "title"),
    [
        (400, "Bad Request"),
        (413, "Content Too Large"),
        (414, "URI Too Long"),
        (418, "I'm a Teapot"),
        (422, "Unprocessable Content"),
        (429, "Too Many Requests"),
        (499, "Bad Request"),
        (503, "Service Unavailable"),
        (599, "Internal Server Error"),
    ],
)
def test_titles_are_those_of_the_standard_or_of_the_class(status: int, title: str) -> None:
    assert title_of(status) == title


@pytest.mark.parametrize(
    ("max_body", "size"),
    [
        (0, "0 bytes"),
        (1000, "1000 bytes"),
        (2**20, "1 MiB"),
        (10 * 2**20, "10 MiB"),
        (10 * 2**20 + 1, "10485761 bytes"),
    ],
)
def test_who_sends_too_much_is_told_the_limit_and_its_name(max_body: int, size: str) -> None:
    assert body_too_large(max_body) == f"body of more than {size} (max_body)"


@pytest.mark.parametrize("codec", ["json", "msgpack"])
def test_a_document_is_the_same_map_in_both_codecs(codec: Codec) -> None:
    extra = {"errors": [{"loc": ["a", 0]}], "error_count": 1}
    document = problem(422, "1 field", "/inference#id", extra)
    assert decoded(encode_problem(document, codec), codec) == {
        "type": "about:blank",
        "title": "Unprocessable Content",
        "status": 422,
        "detail": "1 field",
        "instance": "/inference#id",
        "errors": [{"loc": ["a", 0]}],
        "error_count": 1,
    }


@pytest.mark.parametrize("codec", ["json", "msgpack"])
@pytest.mark.parametrize(
    ("detail", "shown"),
    [
        pytest.param("Größe 😀", "Größe 😀", id="any letters"),
        pytest.param("half \ud83d", "half ?", id="half a surrogate pair"),
    ],
)
def test_any_text_can_be_written(detail: str, shown: str, codec: Codec) -> None:
    """The texts come from other people's exceptions."""
    body = encode_problem(problem(404, detail), codec)
    assert decoded(body, codec) == problem(404, shown)


class Mute:
    def __str__(self) -> str:
        raise RuntimeError("no words")


def circle() -> list[Any]:
    """Return a list that holds itself."""
    endless: list[Any] = []
    endless.append(endless)
    return endless


@pytest.mark.parametrize("codec", ["json", "msgpack"])
@pytest.mark.parametrize(
    ("value", "shown"),
    [
        pytest.param(np.float32(0.5), 0.5, id="numpy"),
        pytest.param(np.ones(2), [1.0, 1.0], id="array"),
        pytest.param(datetime(2026, 1, 2, tzinfo=timezone.utc), "2026-01-02T00:00:00Z", id="date"),
        pytest.param({"error": ValueError("too young")}, {"error": "too young"}, id="pydantic"),
        pytest.param({1, 2}, [1, 2], id="set"),
    ],
)
def test_what_a_stage_adds_is_said_somehow(value: Any, shown: Any, codec: Codec) -> None:
    body = encode_problem(problem(422, "no", extra={"value": value}), codec)
    assert decoded(body, codec) == problem(422, "no", extra={"value": shown})


def test_no_body_holds_what_is_no_json() -> None:
    body = encode_problem(problem(422, "no", extra={"share": math.nan}), "json")
    assert json.loads(body, parse_constant=pytest.fail)["share"] is None


@pytest.mark.parametrize("codec", ["json", "msgpack"])
@pytest.mark.parametrize(("value", "error"), [(Mute(), "no words"), (circle(), "ircular")])
def test_what_nobody_can_say_is_an_error(value: object, error: str, codec: Codec) -> None:
    with pytest.raises((RuntimeError, ValueError), match=error):
        encode_problem(problem(422, "no", extra={"value": value}), codec)


def test_a_stage_may_name_its_own_type_of_problem_but_no_other_status() -> None:
    extra = {"type": "https://example.org/no-credit", "title": "No credit", "status": 200}
    document = problem(402, "10 short", "#7", extra | {"detail": "x", "instance": "y"})
    assert document == extra | {"status": 402, "detail": "10 short", "instance": "#7"}
