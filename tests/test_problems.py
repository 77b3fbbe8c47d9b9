"""Problem documents in both codecs."""

import json

import msgpack
import pytest

from ventu_lite.config import Codec
from ventu_lite.problems import encode_problem, problem, title_of


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


@pytest.mark.parametrize("codec", ["json", "msgpack"])
def test_a_document_is_the_same_map_in_both_codecs(codec: Codec) -> None:
    document = problem(422, "1 field", "/inference#id", errors=[{"loc": ["a", 0]}], error_count=1)
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
