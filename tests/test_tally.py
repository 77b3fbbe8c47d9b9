"""The series of the batching service."""

import pytest
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import HistogramMetricFamily

from ventu_lite.batching.tally import FrontMetrics, Tally


def samples_of(tally: Tally) -> dict[str, float]:
    family = HistogramMetricFamily("a", "A.", labels=[])
    tally.add_to(family, [])
    return {sample.labels.get("le", sample.name): sample.value for sample in family.samples}


def test_a_value_at_the_upper_end_of_a_bucket_is_in_it() -> None:
    tally = Tally([1, 2])
    for value in (0.5, 1, 1.5, 2, 3):
        tally.observe(value)
    assert samples_of(tally) == {"1.0": 2, "2.0": 4, "+Inf": 5, "a_count": 5, "a_sum": 8.0}


@pytest.mark.parametrize(
    "values",
    [
        pytest.param([], id="none"),
        pytest.param([1.0] * 32, id="all-equal"),
        pytest.param([0.5, 0.5, 3.0, 0.5, 1.0, 2.0, 2.0], id="some-equal"),
        pytest.param([float(n) for n in range(5)], id="all-different"),
    ],
)
def test_many_values_are_counted_as_one_by_one(values: list[float]) -> None:
    together, alone = Tally([1, 2]), Tally([1, 2])
    together.observe_all(values)
    for value in values:
        alone.observe(value)
    assert samples_of(together) == samples_of(alone)


def test_the_series() -> None:
    """Names, types and labels are a promise to dashboards."""
    metrics = FrontMetrics("x", waiting=lambda: 3, workers=lambda: {"unix": 2})
    metrics.request(200, 0.002)
    metrics.request(200, 0.003)
    metrics.request(429, 0.0001)
    metrics.batch_size.observe(2)
    metrics.queue_seconds.observe_all([0.001, 0.001])
    metrics.released["full"] += 1
    metrics.rejected["full"] += 1

    registry = CollectorRegistry()
    registry.register(metrics)
    lines = generate_latest(registry).decode().splitlines()
    assert {line for line in lines if line.startswith("# TYPE")} == {
        "# TYPE ventu_request_seconds histogram",
        "# TYPE ventu_batch_size histogram",
        "# TYPE ventu_queue_seconds histogram",
        "# TYPE ventu_released_total counter",
        "# TYPE ventu_rejected_total counter",
        "# TYPE ventu_queue_jobs gauge",
        "# TYPE ventu_workers gauge",
    }
    assert {
        'ventu_request_seconds_bucket{le="0.0025",service="x",status="200"} 1.0',
        'ventu_request_seconds_bucket{le="0.005",service="x",status="200"} 2.0',
        'ventu_request_seconds_count{service="x",status="429"} 1.0',
        'ventu_request_seconds_sum{service="x",status="200"} 0.005',
        'ventu_batch_size_bucket{le="1.0",service="x"} 0.0',
        'ventu_batch_size_sum{service="x"} 2.0',
        'ventu_queue_seconds_bucket{le="0.001",service="x"} 2.0',
        'ventu_released_total{reason="full",service="x"} 1.0',
        'ventu_rejected_total{reason="full",service="x"} 1.0',
        'ventu_queue_jobs{service="x"} 3.0',
        'ventu_workers{protocol="unix",service="x"} 2.0',
    } <= set(lines)
