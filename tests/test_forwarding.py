"""``service.ask`` where workers elsewhere run the stages: what goes wrong on this side of them."""

from collections.abc import Sequence
from itertools import count
from typing import Any

import pytest
from pydantic import BaseModel, ConfigDict, Field, computed_field

from ventu_lite import InferenceFailed, Service
from ventu_lite.config import CodecSetting

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
    service.runtime.use_workers(ask, 5.0, count_rejected=rejected.append)
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
    runtime = service.runtime
    runtime.pipeline.response.validate(response)
    written = runtime.pipeline.finish(response, "json" if codec == "json" else "msgpack")
    assert isinstance(written, bytes)
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
