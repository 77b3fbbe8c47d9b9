"""``GET /metrics``: whose series it shows, in which format, from one process and from many."""

import json
import os
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from itertools import count
from pathlib import Path
from typing import Any

import pytest
from flask import Flask
from flask.testing import FlaskClient
from prometheus_client import REGISTRY, CollectorRegistry, Counter, Metric, generate_latest
from prometheus_client.openmetrics import parser as openmetrics
from prometheus_client.parser import text_string_to_metric_families as parse
from prometheus_flask_exporter import PrometheusMetrics

from ventu_lite import Service
from ventu_lite.exposition import FlaskSeries, exposition, flask_series

OPEN = "application/openmetrics-text"

_numbers = count()


def make_service(fn: Any = None) -> Service:
    service = Service(f"exposed {next(_numbers)}", request=int, response=int, examples=[1])
    service.add_stage("infer", fn or (lambda number: number))
    return service


def samples(text: str) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
    """Return the samples of a page, which must be unique."""
    found = [s for family in parse(text) for s in family.samples]
    known = {(s.name, frozenset(s.labels.items())): s.value for s in found}
    assert len(known) == len(found)
    return known


def parse_open(text: str) -> list[Metric]:
    return list(openmetrics.text_string_to_metric_families(text))  # type: ignore[no-untyped-call]  # no types


def get(client: FlaskClient, series: str, where: str = "/metrics", /, **labels: str) -> float:
    page = samples(client.get(where, query_string={"name[]": series}).text)
    return page.get((series, frozenset(labels.items())), 0.0)


def requests(client: FlaskClient, endpoint: str, status: int = 200, method: str = "GET") -> float:
    """Return how many requests our exporter counted, by its histogram."""
    return get(
        client,
        "flask_http_request_duration_seconds_count",
        method=method,
        endpoint=endpoint,
        status=str(status),
        exporter="ventu_lite",
    )


def endpoint_of(service: Service, name: str) -> str:
    return f"ventu_{service.name.replace(' ', '_')}.{name}"


# ------------------------------------------------------------------------------- formats


def test_text_is_the_default_and_openmetrics_by_negotiation() -> None:
    client = make_service().app.test_client()
    plain = client.get("/metrics")
    assert plain.mimetype == "text/plain"
    assert plain.headers["Cache-Control"] == "no-store"
    assert samples(plain.text)
    opened = client.get("/metrics", headers={"Accept": f"{OPEN};version=1.0.0,text/plain;q=0.1"})
    assert opened.mimetype == OPEN
    assert opened.text.endswith("# EOF\n")
    assert any(family.name == "ventu_batch_size" for family in parse_open(opened.text))


@pytest.mark.parametrize("version", ["abc", "1.", "", "99", "ä"])
def test_an_odd_accept_is_no_crash(version: str) -> None:
    client = make_service().app.test_client()
    accept = {"HTTP_ACCEPT": f"{OPEN};version={version}"}
    response = client.get("/metrics", environ_overrides=accept)
    assert response.status_code == 200
    assert response.mimetype in {OPEN, "text/plain"}


def test_names_restrict_the_page() -> None:
    service = make_service()
    client = service.app.test_client()
    client.post("/inference", data=b"1")
    page = samples(client.get("/metrics?name[]=ventu_request_seconds_count").text)
    assert {name for name, _ in page} == {"ventu_request_seconds_count"}
    page = samples(client.get("/metrics?name[]=ventu_rejected&name[]=ventu_request_seconds").text)
    assert "ventu_request_seconds_sum" in {name for name, _ in page}
    assert client.get("/metrics?name[]=nothing").text == ""


# ------------------------------------------------------------------- one exporter for all


def test_requests_are_grouped_by_endpoint_and_unknown_paths_are_one() -> None:
    service = make_service()
    client = service.app.test_client()
    before = requests(client, "None", 404)
    client.post("/inference", data=b"1")
    client.post("/inference", data=b"[")
    for number in range(5):
        client.get(f"/scan{number}")
    endpoint = endpoint_of(service, "inference")
    assert requests(client, endpoint, 200, "POST") == 1
    assert requests(client, endpoint, 400, "POST") == 1
    assert requests(client, "None", 404) == before + 5
    assert "scan" not in client.get("/metrics").text


def test_methods_that_clients_make_up_are_one() -> None:
    client = make_service().app.test_client()
    before = requests(client, "None", 405, "OTHER")
    client.open("/inference", method="WEIRD1")
    client.open("/inference", method="WEIRD2")
    assert requests(client, "None", 405, "OTHER") == before + 2
    assert "WEIRD" not in client.get("/metrics").text


def test_a_blueprint_counts_its_own_routes_only() -> None:
    service = make_service()
    app = Flask(__name__)
    app.get("/mine", endpoint="mine_only")(lambda: "ok")
    app.register_blueprint(service.blueprint, url_prefix="/v1")
    client = app.test_client()
    client.get("/mine")
    client.get("/v1/livez")
    page = client.get("/v1/metrics").text
    assert "mine_only" not in page
    assert f'endpoint="{endpoint_of(service, "livez")}"' in page


def test_a_blueprint_in_an_app_of_ours_is_counted_once() -> None:
    outer, inner = make_service(), make_service()
    outer.app.register_blueprint(inner.blueprint, url_prefix="/inner")
    client = outer.app.test_client()
    client.get("/inner/livez")
    assert requests(client, endpoint_of(inner, "livez")) == 1


def test_a_request_that_a_hook_before_ours_answers_is_counted_without_a_time() -> None:
    service = make_service()
    app = Flask(__name__)
    app.before_request(lambda: ("closed", 503))
    app.register_blueprint(service.blueprint)
    client = app.test_client()
    labels = {"method": "POST", "status": "503", "exporter": "ventu_lite"}
    registry = flask_series().registry

    def total() -> float:
        return registry.get_sample_value("flask_http_request_total", labels) or 0.0

    before = total()
    assert client.post("/inference").status_code == 503
    assert total() == before + 1


@pytest.mark.parametrize("propagate", [True, False])
def test_an_exception_that_nobody_handles_is_counted_once(propagate: bool) -> None:
    service = make_service()
    app = service.app
    app.config["PROPAGATE_EXCEPTIONS"] = propagate
    name = f"boom_{propagate}"

    @app.get("/boom", endpoint=name)
    def boom() -> str:
        raise KeyError

    client = app.test_client()
    labels = {"method": "GET", "status": "500", "exporter": "ventu_lite"}
    before = get(client, "flask_http_request_exceptions_total", **labels)
    total = get(client, "flask_http_request_total", **labels)
    if propagate:
        with pytest.raises(KeyError):
            client.get("/boom")
    else:
        assert client.get("/boom").status_code == 500
    assert get(client, "flask_http_request_exceptions_total", **labels) == before + 1
    assert get(client, "flask_http_request_total", **labels) == total + 1
    assert requests(client, name, 500) == 1


def test_the_decorators_of_the_exporter_are_honoured() -> None:
    app = make_service().app

    @app.get("/quiet", endpoint="quiet_one")
    @PrometheusMetrics.do_not_track()  # type: ignore[untyped-decorator]  # it is not typed
    def quiet() -> str:
        return "ok"

    @app.get("/quiet_boom", endpoint="quiet_two")
    @PrometheusMetrics.exclude_all_metrics()  # type: ignore[untyped-decorator]  # nor is this
    def quiet_boom() -> str:
        raise KeyError

    client = app.test_client()
    assert client.get("/quiet").text == "ok"
    assert client.get("/quiet_boom").status_code == 500
    assert "quiet" not in client.get("/metrics").text


def test_a_second_exporter_has_series_of_its_own() -> None:
    one, other = FlaskSeries(), FlaskSeries()
    app = Flask(__name__)
    one.measure(app)
    app.get("/")(lambda: "ok")
    app.test_client().get("/")
    assert "flask_http_request_total{" in _text(one.registry)
    assert "flask_http_request_total{" not in _text(other.registry)


def _text(registry: CollectorRegistry) -> str:
    return generate_latest(registry).decode()


# ------------------------------------------------------------------------ the user's own


@pytest.fixture
def own_exporter() -> Iterator[tuple[Flask, Service]]:
    """Return an app that has an exporter of its own, on the default registry, beside ours."""
    known = set(REGISTRY._collector_to_names)
    app, service = Flask(__name__), make_service()
    PrometheusMetrics(app, path="/own")
    app.get("/mine")(lambda: "ok")
    app.register_blueprint(service.blueprint, url_prefix="/v1")
    yield app, service
    for collector in set(REGISTRY._collector_to_names) - known:
        REGISTRY.unregister(collector)


def test_an_exporter_of_the_user_counts_as_if_ours_were_not_there(
    own_exporter: tuple[Flask, Service],
) -> None:
    app, service = own_exporter
    client = app.test_client()
    client.get("/mine")
    for _ in range(3):
        client.get("/v1/livez")
    theirs = {"method": "GET", "status": "200"}
    count = "flask_http_request_duration_seconds_count"
    for where in ("/own", "/v1/metrics"):
        assert get(client, count, where, path="/v1/livez", **theirs) == 3
        assert get(client, count, where, path="/mine", **theirs) == 1
    ours = {"endpoint": endpoint_of(service, "livez"), "exporter": "ventu_lite"}
    assert get(client, count, "/v1/metrics", **theirs, **ours) == 3
    assert "ventu_workers" in client.get("/own").text


def test_metrics_of_the_user_are_shown() -> None:
    counter = Counter(f"mine_{next(_numbers)}", "Mine.")
    counter.inc(3)
    client = make_service().app.test_client()
    assert get(client, f"{counter._name}_total") == 3
    REGISTRY.unregister(counter)


def test_a_collector_that_keeps_its_families_finds_them_unchanged() -> None:
    family = Metric("flask_exporter_info", "Mine.", "gauge")
    family.add_sample("flask_exporter_info", {"version": "mine"}, 1)

    class Keeper:
        def collect(self) -> list[Metric]:
            return [family]

    keeper = Keeper()
    REGISTRY.register(keeper)
    try:
        for _ in range(2):
            body, _type = exposition(None, ["flask_exporter_info"])
            assert ("flask_exporter_info", frozenset({("version", "mine")})) in samples(
                body.decode()
            )
    finally:
        REGISTRY.unregister(keeper)
    assert len(family.samples) == 1


# ------------------------------------------------------------------------ many processes

FILE = """
import json, os, sys
from flask import Flask
from prometheus_flask_exporter import PrometheusMetrics
from ventu_lite import Service

def make(name):
    service = Service(name, request=int, response=int, examples=[1])
    service.infer(lambda batch: [6 // n for n in batch], batch=True) if name == "b" else (
        service.infer(lambda n: 6 // n))
    return service

app = Flask(__name__)
if "own" in sys.argv:
    PrometheusMetrics(app, path="/own")
app.get("/mine")(lambda: "ok")
a, b = make("a"), make("b")
app.register_blueprint(a.blueprint, url_prefix="/a")
app.register_blueprint(b.blueprint, url_prefix="/b")
client = app.test_client()
"""

WORK = """
for _ in range(5):
    client.post("/a/inference", data=b"1")
    client.get("/mine")
for _ in range(3):
    client.post("/b/inference", data=b"2")
    client.post("/b/inference", data=b"0")
client.post("/b/inference", data=b"[")
"""

SHOW = """
print(json.dumps([client.get("/a/metrics").text, client.get(
    "/b/metrics", headers={"Accept": "application/openmetrics-text"}).text]))
"""


def run_file(directory: Path, code: str, *args: str, metrics: Path | None = None) -> Any:
    path = directory / "many.py"
    path.write_text(textwrap.dedent(FILE + code))
    environ = dict(os.environ) | {"PROMETHEUS_MULTIPROC_DIR": str(metrics or directory)}
    return subprocess.run(
        [sys.executable, "-W", "error", str(path), *args],
        capture_output=True,
        text=True,
        timeout=60,
        env=environ,
        cwd=directory,
    )


@pytest.mark.parametrize("own", [(), ("own",)], ids=["alone", "beside a user's exporter"])
def test_the_totals_of_many_processes_are_exact(own: tuple[str, ...], tmp_path: Path) -> None:
    for _ in range(2):
        done = run_file(tmp_path, WORK, *own)
        assert done.returncode == 0, done.stderr
    shown = run_file(tmp_path, WORK + SHOW, *own)
    assert shown.returncode == 0, shown.stderr
    text, opened = json.loads(shown.stdout)
    page = samples(text)

    def value(series: str, **labels: str) -> float:
        return page[series, frozenset(labels.items())]

    def answered(service: str, status: str) -> float:
        return value("ventu_request_seconds_count", service=service, status=status)

    assert [answered("a", "200"), answered("b", "200")] == [15, 9]
    assert [answered("b", "500"), answered("b", "400")] == [9, 3]
    assert value("ventu_rejected_total", service="b", reason="failed") == 9
    assert value("ventu_rejected_total", service="b", reason="invalid") == 3
    assert value("ventu_batch_size_sum", service="b") == 18
    assert value("ventu_queue_seconds_count", service="b") == 18
    ours = {"method": "POST", "exporter": "ventu_lite"}
    assert value("flask_http_request_total", status="200", **ours) == 24
    count = "flask_http_request_duration_seconds_count"
    assert value(count, endpoint="ventu_a.inference", status="200", **ours) == 15
    if own:
        assert value("flask_http_request_total", method="POST", status="200") == 24
        assert value("flask_http_request_total", method="GET", status="200") == 15
    assert value("ventu_workers", service="a", protocol="http") == 1  # the others have ended
    assert parse_open(opened)


def test_a_directory_that_is_missing_ends_the_start(tmp_path: Path) -> None:
    done = run_file(tmp_path, "", metrics=tmp_path / "missing")
    assert done.returncode == 1
    assert "ConfigError: PROMETHEUS_MULTIPROC_DIR=" in done.stderr
    assert f"mkdir -p {tmp_path / 'missing'}" in done.stderr


def test_metrics_are_there_under_the_reloader(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("WERKZEUG_RUN_MAIN", "true")
    FlaskSeries()  # the exporter decides when it is made
    assert make_service().app.test_client().get("/metrics").status_code == 200
