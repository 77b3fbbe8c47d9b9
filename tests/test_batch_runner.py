"""Whole batches as a worker runs them: what is counted, and in which codec they are read."""

from collections.abc import Sequence
from itertools import count

import pytest
from prometheus_client import REGISTRY

from ventu_lite import Service
from ventu_lite.batch_runner import BatchRunner
from ventu_lite.config import CodecSetting
from ventu_lite.metrics import metrics_of
from ventu_lite.turns import Turns

_numbers = count()


def make_runner(
    setting: CodecSetting = "auto", turns: Turns | None = None
) -> tuple[str, BatchRunner]:
    """Return a runner that doubles integers, and the name of its service."""
    service = Service(f"runner {next(_numbers)}", request=int, response=int)
    service.add_stage("infer", lambda numbers: [2 * number for number in numbers], batch=True)
    pipeline = service.compose().pipeline(
        prefer_batch=True, clock=lambda: 0.0, on_blameless=lambda *_: None
    )
    metrics = metrics_of(service.name)
    return service.name, BatchRunner(pipeline, setting, turns=turns or Turns(), metrics=metrics)


def samples(service: str, *series: str, **labels: str) -> Sequence[float | None]:
    return [REGISTRY.get_sample_value(one, {"service": service} | labels) for one in series]


def test_a_batch_is_counted() -> None:
    name, runner = make_runner()
    run = runner.run([b"1", b'"x"', b"2", b"\x03"])
    assert (run.outcomes[0], run.outcomes[3]) == (b"2", b"\x06")
    assert samples(name, "ventu_batch_size_sum", "ventu_batch_size_count") == [3, 1]
    assert samples(name, "ventu_rejected_total", reason="invalid") == [1]


def test_a_batch_of_which_nothing_reached_the_model_is_none() -> None:
    name, runner = make_runner()
    runner.run([b'"x"'])
    assert samples(name, "ventu_batch_size_count") == [0]
    for stage, runs in (("preprocess", 1), ("infer", None), ("postprocess", None)):
        labels = {"stage": stage, "mode": "batch"}
        assert samples(name, "ventu_stage_seconds_count", **labels) == [runs]


@pytest.mark.parametrize(
    ("setting", "expected"),
    [
        pytest.param("auto", b"2", id="each-tells-its-own"),
        pytest.param("msgpack", b"b", id="the-setting"),  # there the byte "1" is 49
    ],
)
def test_the_codec_is_the_one_that_is_set(setting: CodecSetting, expected: bytes) -> None:
    _, runner = make_runner(setting)
    assert runner.run([b"1"]).outcomes == [expected]


def test_a_runner_says_what_it_calls_and_what_it_reads() -> None:
    _, runner = make_runner("json")
    assert (runner.mode, runner.codec) == ("batch", "json")


def test_a_batch_has_a_turn_of_its_own() -> None:
    turns = Turns()
    _, runner = make_runner(turns=turns)
    with turns, pytest.raises(Exception, match="must not ask its own service"):
        runner.run([b"1"])
    assert runner.run([b"1"]).outcomes == [b"2"]
