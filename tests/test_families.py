"""Metrics of several sources as one text."""

import json
import os
import threading
from pathlib import Path
from typing import Any

import pytest
from processes import TIMEOUT
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Metric
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.mmap_dict import MmapedDict
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_open
from prometheus_client.parser import text_string_to_metric_families as parse
from prometheus_client.registry import REGISTRY

from ventu_lite import families
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
    assert list(collector.collect()) == []


def test_a_process_that_was_never_ready_leaves_nothing(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PROMETHEUS_MULTIPROC_DIR", str(tmp_path))
    for pid in (7, 77):
        write(tmp_path / f"counter_{pid}.db", a=1.0)
        write(tmp_path / f"gauge_livesum_{pid}.db", b=1.0)
    forget_process(7, False)
    assert sorted(os.listdir(tmp_path)) == ["counter_77.db", "gauge_livesum_77.db"]


def write(path: Path, at: float = 0.0, **values: float) -> None:
    """Write a file as a process does."""
    file: Any = MmapedDict(str(path))  # type: ignore[no-untyped-call]  # it is not typed
    for name, number in values.items():
        file.write_value(json.dumps([name, name, {}, "Help."]), number, at)
    file.close()


def totals(folder: Path) -> dict[str, float]:
    """Return what is shown of all processes."""
    (collector,) = process_collectors()
    return {s.name: s.value for family in collector.collect() for s in family.samples}


def test_all_that_have_ended_leave_one_file_of_each_kind(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """However many workers die, the directory does not grow, and no sum goes back."""
    monkeypatch.setenv("PROMETHEUS_MULTIPROC_DIR", str(tmp_path))
    for pid in range(1, 40):
        write(tmp_path / f"counter_{pid}.db", a_total=1.0, **{f"c{pid % 3}_total": 2.0})
        write(tmp_path / f"gauge_max_{pid}.db", peak=float(pid % 7))
        write(tmp_path / f"gauge_livesum_{pid}.db", alive=1.0)
        before = totals(tmp_path)
        assert before.pop("alive") == 1.0
        forget_process(pid, True)
        assert totals(tmp_path) == before
    assert sorted(os.listdir(tmp_path)) == ["counter_ended.db", "gauge_max_ended.db"]
    assert before == {"a_total": 39, "c0_total": 26, "c1_total": 26, "c2_total": 26, "peak": 6}


@pytest.mark.parametrize(
    ("kind", "values", "total"),
    [
        ("counter", (1, 2, 3), 6),
        ("summary", (1, 2, 3), 6),
        ("gauge_sum", (-1, 5, 3), 7),
        ("gauge_min", (-1, -2, -1), -2),
        ("gauge_min", (5, 3, 4), 3),
        ("gauge_max", (-3, -1, -2), -1),
        ("gauge_mostrecent", (5, 9, 7), 7),
    ],
)
def test_those_that_have_ended_are_put_together_as_those_that_live(
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    kind: str,
    values: tuple[float, ...],
    total: float,
) -> None:
    monkeypatch.setenv("PROMETHEUS_MULTIPROC_DIR", str(tmp_path))
    for pid, number in enumerate(values, 1):
        write(tmp_path / f"{kind}_{pid}.db", at=float(pid), a=number)
    assert totals(tmp_path) == {"a": total}
    for pid in 3, 1, 2:  # they need not end in the order in which they were heard of
        forget_process(pid, True)
        assert totals(tmp_path) == {"a": total}
    assert os.listdir(tmp_path) == [f"{kind}_ended.db"]


@pytest.mark.parametrize(
    "mode", sorted(mode for mode in Gauge._MULTIPROC_MODES if "live" in mode or mode == "all")
)
def test_a_gauge_of_a_process_goes_with_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, mode: str
) -> None:
    """The default is such a gauge: nobody wants to see what it was in a process that has gone."""
    monkeypatch.setenv("PROMETHEUS_MULTIPROC_DIR", str(tmp_path))
    for pid in 1, 2, 3:
        write(tmp_path / f"gauge_{mode}_{pid}.db", at=1.0, mine=3.0)
    forget_process(1, True)
    forget_process(2, True)
    assert os.listdir(tmp_path) == [f"gauge_{mode}_3.db"]
    assert totals(tmp_path) == {"mine": 3.0}


def test_without_room_the_totals_stay_where_they_are(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PROMETHEUS_MULTIPROC_DIR", str(tmp_path))
    write(tmp_path / "counter_7.db", a_total=1.0)

    (tmp_path / "counter_ended.db.new").symlink_to("/dev/full")
    forget_process(7, True)
    assert os.listdir(tmp_path) == ["counter_7.db"]
    assert totals(tmp_path) == {"a_total": 1.0}


def test_no_file_goes_while_a_thread_reads_them_all(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A file that is gone when its turn comes would cost the reader all the others."""
    monkeypatch.setenv("PROMETHEUS_MULTIPROC_DIR", str(tmp_path))
    write(tmp_path / "counter_7.db", a_total=1.0)
    forgetting = threading.Thread(target=forget_process, args=(7, False))
    with families._files:  # as a reader does
        forgetting.start()
        forgetting.join(0.1)
        assert os.listdir(tmp_path) == ["counter_7.db"]
    forgetting.join(TIMEOUT)
    assert os.listdir(tmp_path) == []


def test_without_a_directory_there_is_nothing_to_forget(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv("PROMETHEUS_MULTIPROC_DIR", raising=False)
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "counter_7.db", a_total=1.0)
    forget_process(7, False)
    assert os.listdir(tmp_path) == ["counter_7.db"]


def test_a_gauge_is_no_reason_to_fail() -> None:
    made = CollectorRegistry()
    Gauge("g", "G.", registry=made).set(3)
    assert value(expose([made], "")[0].decode(), "g") == [3]
