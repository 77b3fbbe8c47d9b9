"""``service.ask`` where workers elsewhere run the stages: what goes wrong on this side of them."""

import datetime
import traceback
from collections.abc import Sequence
from itertools import count
from typing import Any

import numpy as np
import pytest
from pydantic import BaseModel, ConfigDict, Field, computed_field

from ventu_lite import InferenceFailed, Service
from ventu_lite.asking import Asking
from ventu_lite.codecs import sniff
from ventu_lite.config import Codec, CodecSetting
from ventu_lite.errors import PayloadTooLarge
from ventu_lite.forwarding import Forwarder, payload_of, response_of
from ventu_lite.outcomes import Rejected
from ventu_lite.validation import Schema

_numbers = count()


class Renamed(BaseModel):
    score: str = Field(serialization_alias="s")


class Excluded(BaseModel):
    score: str = Field(exclude=True)


class Computed(BaseModel):
    model_config = ConfigDict(extra="forbid")

    text: str

    @computed_field
    def score(self) -> str:
        return self.text


def make_service(request: Any = str, response: Any = str, **settings: Any) -> Service:
    named: dict[str, Any] = {"request": request, "response": response, "codec": "json"}
    service = Service(f"forward {next(_numbers)}", **named | settings)
    service.add_stage("infer", lambda item: item)
    return service


def forwarding(service: Service, *said: tuple[int, bytes | str]) -> list[str]:
    """Have a service ask workers that say this; return why what is rejected will be."""

    def ask(payloads: Sequence[bytes], seconds: float) -> list[tuple[int, bytes | str]]:
        assert len(payloads) == len(said)
        return list(said)

    rejected: list[str] = []
    service.runtime.asking = Asking(Forwarder(ask, service.compose()), 5.0, rejected.append)
    return rejected


def test_a_request_that_cannot_be_sent_is_logged_and_counted(
    caplog: pytest.LogCaptureFixture,
) -> None:
    class Odd(BaseModel):
        text: str

        def model_post_init(self, context: Any) -> None:
            if self.text == "odd":
                raise RuntimeError("no rows in the table")

    service = make_service(Odd)
    rejected = forwarding(service, (200, b'"a"'))
    odd, good, invalid = service.ask_all([{"text": "odd"}, {"text": "a"}, {}])
    assert good == "a"
    assert (odd.code, type(odd.__cause__), invalid.code) == (500, RuntimeError, 422)
    (line,) = caplog.messages
    assert line.startswith("a request of service.ask failed: RuntimeError: no rows in the table")
    assert rejected == ["failed", "invalid"]


@pytest.mark.parametrize("codec", ["json", "msgpack"])
@pytest.mark.parametrize(
    ("response", "said"),
    [
        pytest.param(Renamed(score="SECRET"), "score: Field required", id="another-name"),
        pytest.param(Excluded(score="SECRET"), "score: Field required", id="not-written"),
        pytest.param(
            Computed(text="SECRET"),
            "score: Extra inputs are not permitted, found str of length 6",
            id="not-read",
        ),
    ],
)
def test_a_response_schema_that_cannot_read_what_it_writes_is_named(
    response: BaseModel, said: str, codec: CodecSetting, caplog: pytest.LogCaptureFixture
) -> None:
    """Such a service answers in one process, so the log must say why it does not here."""
    service = make_service(int, type(response), codec=codec)
    schema = service.compose().response
    schema.validate(response)
    written = schema.encode(schema.validate(response), "json" if codec == "json" else "msgpack")
    rejected = forwarding(service, (200, written))
    with pytest.raises(InferenceFailed) as caught:
        service.ask(1)
    assert caught.value.code == 500
    (line,) = caplog.messages
    assert f"does not fit the response schema {type(response).__name__}: {said}; " in line
    assert "the response schema cannot read what it writes" in line
    assert "SECRET" not in caplog.text
    assert rejected == ["failed"]


def test_the_log_has_the_reason_of_a_route_that_failed_above(
    caplog: pytest.LogCaptureFixture,
) -> None:
    service = make_service()
    forwarding(service, (200, b"5"))
    app = service.app

    @app.get("/own")
    def own() -> str:
        return str(service.ask("a"))

    assert app.test_client().get("/own").status_code == 500
    why, which = caplog.messages
    assert why.startswith("a request of service.ask failed: a worker answered with bytes of length")
    assert which.endswith("failed: its service.ask did, for the reason above")


def test_what_a_worker_has_told_is_neither_logged_nor_counted_again(
    caplog: pytest.LogCaptureFixture,
) -> None:
    service = make_service()
    rejected = forwarding(service, (500, b'{"detail": "no", "instance": "#7"}'))
    with pytest.raises(InferenceFailed) as caught:
        service.ask("a")
    assert (caught.value.code, caught.value.description, caught.value.job) == (500, "no", "7")
    assert not caplog.messages
    assert not rejected


@pytest.mark.parametrize("setting", ["auto", "json", "msgpack"])
@pytest.mark.parametrize("value", [5, 48, "text", [1.5, None], {"a": [1]}, np.arange(3)])
def test_a_payload_can_be_read_by_a_worker(setting: CodecSetting, value: Any) -> None:
    """A worker goes by the first byte: 5 looks like a control character of JSON, 48 like "0"."""
    schema = Schema(Any)
    payload, codec = payload_of(value, schema, setting)
    assert codec == (sniff(payload) if setting == "auto" else setting)
    read = schema.parse(payload, codec)
    assert np.array_equal(read, value) if isinstance(value, np.ndarray) else read == value


class Strict(BaseModel):
    model_config = ConfigDict(strict=True)

    when: datetime.datetime
    ids: tuple[int, ...]


@pytest.mark.parametrize("codec", ["json", "msgpack"])
@pytest.mark.parametrize(
    ("schema", "value"),
    [
        pytest.param(dict[int, float], {1: 0.5, -(2**40): 2.0}, id="numbers as keys"),
        pytest.param(Strict, Strict(when=datetime.datetime(2026, 1, 2), ids=(1,)), id="strict"),
    ],
)
def test_a_response_is_read_as_it_was_written(schema: Any, value: Any, codec: Codec) -> None:
    schema = Schema(schema)
    assert response_of(200, schema.encode(schema.validate(value), codec), codec, schema) == value


def test_a_request_that_no_codec_carries_is_told_without_being_shown(
    caplog: pytest.LogCaptureFixture,
) -> None:
    service = make_service(dict[tuple[str, str], str], codec="auto")
    rejected = forwarding(service)
    with pytest.raises(InferenceFailed) as caught:
        service.ask({("SECRET", "SECRET"): "SECRET"})
    assert (caught.value.code, rejected) == (500, ["failed"])
    (line,) = caplog.messages
    assert line.startswith(
        "a request of service.ask failed: no codec carries this request as it is: in msgpack,"
        " the body is not valid msgpack: list is not allowed for map key"
    )
    assert (
        "; in json, it does not fit the request schema: ….…: Input should be a valid array" in line
    )
    assert "SECRET" not in caplog.text


def test_a_request_that_no_worker_would_take_is_too_large() -> None:
    with pytest.raises(PayloadTooLarge, match="body of more than 2 bytes"):
        payload_of({1, 2, 3}, Schema(set[int], max_body=2), "auto")


@pytest.mark.parametrize(
    ("status", "said", "expected"),
    [
        pytest.param(200, b'"a"', "a", id="response"),
        pytest.param(422, b'{"detail": "no", "errors": []}', (422, "no"), id="problem"),
        pytest.param(504, "too late", (504, "too late"), id="no-worker"),
    ],
)
def test_what_comes_of_an_answer(status: int, said: bytes | str, expected: Any) -> None:
    answer = response_of(status, said, "json", Schema(str))
    if isinstance(expected, str):
        assert answer == expected
        return
    assert isinstance(answer, InferenceFailed)
    assert (answer.code, answer.description) == expected


@pytest.mark.parametrize(
    ("status", "said", "expected", "why"),
    [
        pytest.param(
            200, b"5", 500, "bytes of length 1, which does not fit the response schema str: Input"
            " should be a valid string, found int; the response schema cannot read what it writes",
            id="response-of-another-schema",
        ),
        pytest.param(
            200, b"SECRET", 500, "what cannot be read: the body is not valid JSON: expected value",
            id="response-in-no-codec",
        ),
        pytest.param(
            503, b"SECRET", 503, "503 and 6 bytes that are no problem document",
            id="words-of-its-own",
        ),
        pytest.param(500, b"", 500, "500 and 0 bytes", id="no-words"),
    ],
)  # fmt: skip
def test_an_answer_that_cannot_be_read_is_rejected_without_being_shown(
    status: int, said: bytes, expected: int, why: str
) -> None:
    rejected = response_of(status, said, "json", Schema(str))
    assert isinstance(rejected, Rejected)
    assert (rejected.status, rejected.is_fault) == (expected, True)
    told = "".join(traceback.format_exception(rejected.exc))
    assert f"a worker answered {'' if status != 200 else 'with '}{why}" in told
    assert "SECRET" not in told
