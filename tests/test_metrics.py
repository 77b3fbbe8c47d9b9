"""The series of one service, by their names and labels."""

import os
from itertools import count
from pathlib import Path

import pytest
from prometheus_client import REGISTRY, CollectorRegistry

from ventu_lite import ConfigError
from ventu_lite.metrics import Metrics, ServiceMetrics, metrics_of
from ventu_lite.pipeline import Run

_numbers = count()


@pytest.fixture
def registry() -> CollectorRegistry:
    return CollectorRegistry()


@pytest.fixture
def metrics(registry: CollectorRegistry) -> ServiceMetrics:
    return ServiceMetrics(Metrics(registry), "cats")


def get(registry: CollectorRegistry, series: str, **labels: str) -> float | None:
    return registry.get_sample_value(series, {"service": "cats"} | labels)


def test_all_series_have_their_names(registry: CollectorRegistry) -> None:
    Metrics(registry)
    assert {family.name: family.type for family in registry.collect()} == {
        "ventu_request_seconds": "histogram",
        "ventu_stage_seconds": "histogram",
        "ventu_batch_size": "histogram",
        "ventu_queue_seconds": "histogram",
        "ventu_rejected": "counter",
        "ventu_released": "counter",
        "ventu_queue_jobs": "gauge",
        "ventu_workers": "gauge",
    }


def test_requests_are_counted_by_status(
    registry: CollectorRegistry, metrics: ServiceMetrics
) -> None:
    for status in (200, 200, 404):
        metrics.request(status, 0.002)
    assert get(registry, "ventu_request_seconds_count", status="200") == 2
    assert get(registry, "ventu_request_seconds_sum", status="200") == 0.004
    assert get(registry, "ventu_request_seconds_bucket", status="404", le="0.0025") == 1
    assert get(registry, "ventu_request_seconds_bucket", status="404", le="0.001") == 0


def test_rejected_jobs_are_counted_by_reason(
    registry: CollectorRegistry, metrics: ServiceMetrics
) -> None:
    metrics.rejected("invalid")
    metrics.rejected("invalid")
    metrics.rejected("expired")
    assert get(registry, "ventu_rejected_total", reason="invalid") == 2
    assert get(registry, "ventu_rejected_total", reason="expired") == 1
    assert get(registry, "ventu_rejected_total", reason="failed") is None


def test_a_run_counts_its_stages_and_items(
    registry: CollectorRegistry, metrics: ServiceMetrics
) -> None:
    metrics.run(Run([b""] * 3, preprocess=1, infer=2, postprocess=4, batch_size=3), "batch")
    metrics.run(Run([b""], preprocess=8, infer=0, postprocess=0, batch_size=0), "batch")

    def seconds(stage: str) -> float | None:
        return get(registry, "ventu_stage_seconds_sum", stage=stage, mode="batch")

    assert [seconds(stage) for stage in ("preprocess", "infer", "postprocess")] == [9, 2, 4]
    assert get(registry, "ventu_batch_size_count") == 1
    assert get(registry, "ventu_batch_size_bucket", le="2.0") == 0
    assert get(registry, "ventu_batch_size_bucket", le="4.0") == 1


def test_a_call_of_a_batch_function_is_counted(
    registry: CollectorRegistry, metrics: ServiceMetrics
) -> None:
    metrics.batch(3, "full", 2.0)
    metrics.batch(5, "full", 4.0)
    metrics.batch(1, "wait", 1.0)
    assert get(registry, "ventu_released_total", reason="full") == 2
    assert get(registry, "ventu_released_total", reason="wait") == 1
    assert get(registry, "ventu_batch_size_sum") == 9
    assert get(registry, "ventu_stage_seconds_sum", stage="infer", mode="batch") == 7


def test_only_who_has_a_queue_says_how_long_it_is(
    registry: CollectorRegistry, metrics: ServiceMetrics
) -> None:
    assert get(registry, "ventu_queue_jobs") is None
    metrics.queue_jobs(4)
    metrics.queue_jobs(2)
    assert get(registry, "ventu_queue_jobs") == 2


def test_a_worker_comes_and_goes(registry: CollectorRegistry, metrics: ServiceMetrics) -> None:
    metrics.worker("unix", is_ready=True)
    assert get(registry, "ventu_workers", protocol="unix") == 1
    metrics.worker("unix", is_ready=False)
    assert get(registry, "ventu_workers", protocol="unix") == 0


def test_the_series_of_a_service_are_one_and_in_the_default_registry() -> None:
    name = f"metrics {next(_numbers)}"
    metrics_of(name).request(200, 1.0)
    assert metrics_of(name) is metrics_of(name)
    labels = {"service": name, "status": "200"}
    assert REGISTRY.get_sample_value("ventu_request_seconds_count", labels) == 1


@pytest.fixture
def as_if_before_import(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let prometheus_client look as if the variable had been there when it was imported."""
    monkeypatch.setattr("prometheus_client.values.ValueClass", object)


@pytest.mark.usefixtures("as_if_before_import")
@pytest.mark.parametrize(
    ("what", "what_to_do"), [("missing", r"mkdir -p \S+/metrics"), ("a file", "name a directory")]
)
def test_a_directory_that_cannot_be_used_is_refused(
    what: str,
    what_to_do: str,
    registry: CollectorRegistry,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    directory = tmp_path / "metrics"
    if what == "a file":
        directory.write_text("")
    monkeypatch.setenv("PROMETHEUS_MULTIPROC_DIR", str(directory))
    with pytest.raises(ConfigError, match=what_to_do):
        Metrics(registry)


def test_a_directory_that_comes_too_late_is_refused(
    registry: CollectorRegistry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PROMETHEUS_MULTIPROC_DIR", os.fspath(tmp_path))
    with pytest.raises(ConfigError, match="before Python starts"):
        Metrics(registry)
