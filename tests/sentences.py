"""What is asked of ``samples/sentiment.py``, and what it has to answer wherever it runs."""

import json
from collections.abc import Callable
from functools import cache
from typing import Any

import msgpack
import pytest
from processes import Server
from vaderSentiment.vaderSentiment import SentimentIntensityAnalyzer

JSON, MSGPACK = "application/json", "application/msgpack"

SENTENCES = [
    "my cat is very cute",
    "VADER is smart, handsome, and funny!",
    "The plot was good, but the characters are uncompelling and the dialog is not great.",
    "Today SUX!",
    "Not bad at all :)",
    "Das Wetter ist schön 🌞 and I love it",
    "the cat sat on the mat",
]

Ask = Callable[[list[bytes]], list[tuple[int, bytes]]]


@cache
def expected() -> list[dict[str, float]]:
    """What the model itself says of each sentence."""
    scores = [SentimentIntensityAnalyzer().polarity_scores(s)["compound"] for s in SENTENCES]
    return [{"positive": (1 + score) / 2, "negative": (1 - score) / 2} for score in scores]


def over_http(server: Server, media_type: str) -> Ask:
    """Return a function that posts payloads one by one over one connection."""

    def ask(payloads: list[bytes]) -> list[tuple[int, bytes]]:
        with server.client() as client:
            answers = [client.infer(payload, media_type) for payload in payloads]
        good = [answer for answer in answers if answer.status == 200]
        assert {answer.headers["Content-Type"] for answer in good} == {media_type}
        return [(answer.status, answer.body) for answer in answers]

    return ask


def assert_answers(ask: Ask, media_type: str) -> None:
    """Ask for every sentence, and for two texts that do not fit the schema."""
    pack: Any = msgpack.packb if media_type == MSGPACK else lambda item: json.dumps(item).encode()
    unpack: Any = msgpack.unpackb if media_type == MSGPACK else json.loads
    payloads = [pack({"text": text}) for text in [*SENTENCES, "x"]] + [pack({})]
    answers = ask(payloads)
    good = [unpack(body) for status, body in answers if status == 200]
    assert good == [{k: pytest.approx(v) for k, v in answer.items()} for answer in expected()]
    assert [status for status, _ in answers] == [200] * len(SENTENCES) + [422, 422]
    locations = [unpack(body)["errors"][0]["loc"] for _, body in answers[-2:]]
    assert locations == [["text"], ["text"]]


def assert_routes(server: Server) -> None:
    """Ask the process that a kept connection leads to, which has answered an inference."""
    with server.client() as client:
        assert client.infer(b'{"text": "hello"}').status == 200
        assert json.loads(client.get("/health").body) == {"service": "OK", "inference": "OK"}
        assert client.get("/readyz").status == client.get("/livez").status == 200
        assert b"ventu_request_seconds_count" in client.get("/metrics").body
        document = json.loads(client.get("/apidoc/openapi.json").body)
        assert document["info"]["title"] == "sentiment"
        assert client.get("/apidoc/swagger").status == client.get("/apidoc/redoc").status == 200
