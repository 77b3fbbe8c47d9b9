"""Metrics of several sources as one text."""

import os
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Metric
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_open
from prometheus_client.parser import text_string_to_metric_families as parse
from prometheus_client.registry import REGISTRY

from ventu_lite.families import (
    Families,
    Together,
    expose,
    forget_process,
    is_shared,
    process_collectors,
)


def registry(*, jobs: int, reason: str = "full") -> CollectorRegistry:
    made = CollectorRegistry()
    counter = Counter("jobs", "Jobs.", ["reason"], registry=made)
    counter.labels(reason).inc(jobs)
    seconds = Histogram("seconds", "Time.", ["stage"], registry=made, buckets=(1, 2))
    for _ in range(jobs):
        seconds.labels(reason).observe(1.5)
    return made


def value(text: str, name: str, **labels: str) -> list[float]:
    return [
        sample.value
        for family in parse(text)
        for sample in family.samples
        if sample.name == name and sample.labels == labels
    ]


def test_families_of_several_sources_are_shown_once() -> None:
    text = expose([registry(jobs=2), registry(jobs=3, reason="gone")], "")[0].decode()
    assert text.count("# TYPE jobs_total counter") == text.count("# TYPE seconds histogram") == 1
    assert value(text, "jobs_total", reason="full") == [2]
    assert value(text, "jobs_total", reason="gone") == [3]
    assert value(text, "seconds_count", stage="gone") == [3]


def test_where_two_sources_have_a_sample_the_first_one_counts() -> None:
    """The front knows the jobs of a batch, a worker only those that reached its function."""
    body, _ = expose([registry(jobs=2), registry(jobs=9)], "")
    assert value(body.decode(), "jobs_total", reason="full") == [2]
    assert value(body.decode(), "seconds_bucket", stage="full", le="2.0") == [2]


@pytest.mark.parametrize(
    ("accept", "content_type"),
    [
        ("", "text/plain"),
        ("application/openmetrics-text; version=1.0.0", "application/openmetrics-text"),
        ("application/openmetrics-text; version=x", "text/plain"),
    ],
)
def test_the_client_may_ask_for_openmetrics(accept: str, content_type: str) -> None:
    body, told = expose([registry(jobs=2), registry(jobs=1, reason="gone")], accept)
    assert told.startswith(content_type)
    families = list((parse_open if "open" in content_type else parse)(body.decode()))
    assert {"jobs", "seconds"} <= {family.name for family in families}


@pytest.mark.parametrize(
    ("names", "shown"),
    [
        ([], {"jobs_total", "jobs_created", "seconds_bucket", "seconds_count"}),
        (["jobs"], {"jobs_total", "jobs_created"}),
        (["seconds_count"], {"seconds_count"}),
        (["nothing"], set()),
    ],
)
def test_only_what_was_asked_for_is_shown(names: list[str], shown: set[str]) -> None:
    found = Together([registry(jobs=1)], names).collect()
    seen = {sample.name for family in found for sample in family.samples}
    assert seen >= shown if not names else seen == shown


def test_what_was_collected_before_is_kept() -> None:
    counter, gauge = CounterMetricFamily("a", "A."), GaugeMetricFamily("b", "B.")
    counter.add_metric([], 1)
    gauge.add_metric([], 2)
    families: list[Metric] = [counter, gauge]
    assert list(Families(iter(families)).collect()) == families


def test_one_process_has_the_default_registry(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PROMETHEUS_MULTIPROC_DIR", raising=False)
    assert not is_shared()
    assert process_collectors() == [REGISTRY]


def test_many_processes_have_their_directory(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PROMETHEUS_MULTIPROC_DIR", str(tmp_path))
    assert is_shared()
    (collector,) = process_collectors()
    assert isinstance(collector, CollectorRegistry) and list(collector.collect()) == []


@pytest.mark.parametrize("was_ready", [True, False])
def test_a_process_that_has_ended_leaves_its_totals_if_it_had_any(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, was_ready: bool
) -> None:
    folder = tmp_path / "metrics"
    folder.mkdir()
    monkeypatch.setenv("PROMETHEUS_MULTIPROC_DIR", str(folder))
    files = ["counter_7.db", "histogram_7.db", "gauge_livesum_7.db"]
    others = ["counter_77.db", "gauge_livesum_77.db"]
    for name in files + others:
        (folder / name).touch()
    forget_process(7, was_ready)
    left = set(os.listdir(folder)) - set(others)
    assert left == ({"counter_7.db", "histogram_7.db"} if was_ready else set())
    assert set(others) <= set(os.listdir(folder))


def test_without_a_directory_there_is_nothing_to_forget(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PROMETHEUS_MULTIPROC_DIR", raising=False)
    forget_process(7, False)


def test_a_gauge_is_no_reason_to_fail() -> None:
    made = CollectorRegistry()
    Gauge("g", "G.", registry=made).set(3)
    assert value(expose([made], "")[0].decode(), "g") == [3]
