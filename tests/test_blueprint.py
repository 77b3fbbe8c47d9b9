"""A service as an app of its own, and as a guest in somebody else's."""

import os
import re
import signal
import subprocess
import sys
import textwrap
import threading
from concurrent.futures import ThreadPoolExecutor
from itertools import count
from pathlib import Path
from runpy import run_path
from typing import Any
from urllib.error import HTTPError
from urllib.request import urlopen

import pytest
from flask import Blueprint, Flask, Response, abort, render_template_string, request
from flask.testing import FlaskClient
from prometheus_client import REGISTRY
from waiting import until
from werkzeug.exceptions import HTTPException, Unauthorized

from ventu_lite import InferenceFailed, RegistrationError, Service
from ventu_lite.mounting import services_of

PATIENCE = 10.0

_numbers = count()


def make_service(fn: Any = None, name: str | None = None, **options: Any) -> Service:
    """Return a service, of a name of its own if none is given, that doubles an integer."""
    name = name or f"mounted {next(_numbers)}"
    stage = options.pop("infer", {})
    service = Service(name, request=int, response=int, **{"examples": [1]} | options)
    service.add_stage("infer", fn or (lambda number: 2 * number), **stage)
    return service


def status(client: FlaskClient, path: str) -> int:
    return client.get(path).status_code


def infer(client: FlaskClient, prefix: str = "") -> bytes:
    body: bytes = client.post(f"{prefix}/inference", data=b"21").data
    return body


# ------------------------------------------------------------------------ an app of its own


def test_app_and_blueprint_are_one_each() -> None:
    service = make_service()
    assert service.app is service.app
    assert service.blueprint is service.blueprint
    assert services_of(service.app)[service.name].service is service
    assert services_of(Flask(__name__)) == {}


def test_all_routes_are_there() -> None:
    client = make_service().app.test_client()
    assert infer(client) == b"42"
    for path in ("/health", "/livez", "/readyz", "/metrics", "/", "/apidoc/openapi.json"):
        assert status(client, path) == 200
    for endpoint in client.get("/").get_json()["endpoints"]:
        assert client.open(endpoint["path"], method=endpoint["method"]).status_code != 404


@pytest.mark.parametrize("name", ["time", "sys", "json", "Größe & more", "a.b", "__main__"])
def test_any_name_will_do(name: str) -> None:
    app = make_service(name=name).app
    assert infer(app.test_client()) == b"42"
    assert app.root_path == os.path.dirname(__file__)


def test_routes_and_templates_of_the_user_work_in_the_app_of_a_service() -> None:
    app = make_service().app
    app.get("/mine", endpoint="mine")(lambda: render_template_string("{{ 1 + 1 }}"))
    app.get("/boom", endpoint="boom")(lambda: str(1 // 0))
    client = app.test_client()
    assert client.get("/mine").text == "2"
    boom = client.get("/boom", headers={"X-Request-ID": "me"})
    assert (boom.status_code, boom.mimetype) == (500, "application/problem+json")
    assert boom.headers["X-Request-ID"] == "me"
    assert "division" not in boom.text


APP_WITH_PAGES = """
from flask import render_template
from ventu_lite import Service

service = Service("pages", request=int, response=int)
service.add_stage("infer", lambda number: number)
app = service.app
app.get("/mine", endpoint="mine")(lambda: render_template("mine.html", x=1))
"""


def test_templates_and_static_files_lie_beside_the_file_that_asked_for_the_app(
    tmp_path: Path,
) -> None:
    """As with ``Flask(__name__)``, wherever the command was started."""
    files = {"app.py": APP_WITH_PAGES, "templates/mine.html": "<{{ x }}>", "static/a.txt": "a"}
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    client = run_path(str(tmp_path / "app.py"))["app"].test_client()
    assert client.get("/mine").text == "<1>"
    with client.get("/static/a.txt") as file:
        assert file.text == "a"
    nowhere = client.get("/static/b.txt")
    assert (nowhere.status_code, nowhere.mimetype) == (404, "application/problem+json")


@pytest.mark.parametrize("status", [302, 401, 503])
def test_an_error_with_a_response_of_its_own_is_answered_with_it(status: int) -> None:
    app = make_service().app
    headers = {"WWW-Authenticate": "Negotiate", "X-Mine": "1"}

    @app.get("/mine")
    def mine() -> str:
        raise Unauthorized("not told", response=Response("log in here", status, headers))

    response = app.test_client().get("/mine")
    assert (response.status_code, response.text) == (status, "log in here")
    assert response.headers.getlist("WWW-Authenticate") == ["Negotiate"]
    assert response.headers["X-Mine"] == "1"


@pytest.mark.parametrize("is_fault", [True, False])
def test_the_log_has_the_job_of_a_route_that_failed(
    is_fault: bool, caplog: pytest.LogCaptureFixture
) -> None:
    app = make_service().app

    @app.get("/mine")
    def mine() -> str:
        failure = InferenceFailed(500, "in whatever words")
        failure.job, failure.is_fault = "7", is_fault
        raise failure

    app.test_client().get("/mine", headers={"X-Request-ID": "me"})
    said = "request me failed: its service.ask did, as job 7 did"
    assert caplog.messages == ([said] if is_fault else [])


def test_the_log_has_the_id_of_a_route_that_raised(caplog: pytest.LogCaptureFixture) -> None:
    app = make_service().app

    @app.get("/boom")
    def boom() -> str:
        raise KeyError("secret")

    answer = app.test_client().get("/boom", headers={"X-Request-ID": "me"})
    assert (answer.status_code, answer.get_json()["instance"]) == (500, "/boom#me")
    assert answer.get_json()["detail"].startswith("the service failed on this request; its log")
    traceback, line = caplog.messages
    assert traceback == "Exception on /boom [GET]"
    where = re.escape(f"{__file__}:{boom.__code__.co_firstlineno + 2}")
    assert re.fullmatch(
        f"request me failed: KeyError: 'secret' .{where}.; the traceback is above", line
    )


def test_an_error_that_a_route_chose_keeps_its_words(caplog: pytest.LogCaptureFixture) -> None:
    app = make_service().app
    app.get("/mine")(lambda: abort(500, "in my words"))
    assert app.test_client().get("/mine").get_json()["detail"] == "in my words"
    assert caplog.messages == []


def test_a_handler_of_the_user_sees_what_a_route_asked_in_vain() -> None:
    service = make_service()
    app = service.app
    app.register_error_handler(422, lambda exc: (f"mine: {exc.extra['error_count']}", 422))
    app.get("/mine", endpoint="mine")(lambda: service.ask("x"))
    response = app.test_client().get("/mine")
    assert (response.status_code, response.text) == (422, "mine: 1")


def test_what_is_no_error_stays_as_it_is() -> None:
    class NotModified(HTTPException):
        code = 304

    app = make_service().app

    @app.get("/same")
    def same() -> str:
        raise NotModified

    app.get("/slash/")(lambda: "ok")
    client = app.test_client()
    assert client.get("/same").status_code == 304
    assert client.get("/slash").status_code == 308


def test_several_methods_and_slashes() -> None:
    client = make_service().app.test_client()
    assert client.head("/livez").status_code == 200
    assert client.options("/inference").status_code == 200
    assert client.get("/inference").status_code == 405
    assert client.post("/livez").status_code == 405
    assert client.post("/inference/", data=b"1").status_code == 404


# ---------------------------------------------------------------------------- health, probes


def test_livez_starts_nothing() -> None:
    loaded: list[int] = []
    service = make_service()
    service.setup(lambda: loaded.append(1))
    client = service.app.test_client()
    response = client.get("/livez")
    assert response.get_json() == {"status": "alive"}
    assert response.headers["Cache-Control"] == "no-store"
    assert not loaded


@pytest.mark.parametrize("path", ["/readyz", "/health"])
def test_a_probe_starts_set_up_and_does_not_wait(path: str) -> None:
    begun, go = threading.Event(), threading.Event()

    def load() -> None:
        begun.set()
        go.wait(PATIENCE)

    service = make_service()
    service.setup(load)
    client = service.app.test_client()
    response = client.get(path)
    assert begun.wait(PATIENCE)
    assert response.status_code == 503
    assert "running" in response.get_json()["detail"]
    go.set()
    service.runtime.startup.run()
    assert client.get(path).status_code == 200


def test_readyz_says_when_to_ask_again_after_a_failure(caplog: pytest.LogCaptureFixture) -> None:
    service = make_service()
    service.setup(lambda: [][0])
    client = service.app.test_client()
    assert not service.health_check().is_ok
    response = client.get("/readyz")
    assert response.status_code == 503
    assert 5 <= int(response.headers["Retry-After"]) <= 10
    assert "failed" in response.get_json()["detail"]
    assert client.post("/inference", data=b"1").status_code == 503
    assert "IndexError" in caplog.text


def test_a_batch_function_that_hangs_is_told_until_it_comes_back() -> None:
    begun, go = threading.Event(), threading.Event()

    def hang(numbers: list[int]) -> list[int]:
        if 21 in numbers:
            begun.set()
            assert go.wait(PATIENCE)
        return numbers

    service = make_service(hang, infer={"batch": True}, timeout=0.02)
    service.runtime.startup.run()
    client = service.app.test_client()
    until(lambda: client.post("/inference", data=b"21").status_code == 504 and begun.is_set())
    until(lambda: status(client, "/readyz") == 503)
    response = client.get("/readyz")
    assert "the batch function has been in use for" in response.get_json()["detail"]
    assert response.headers["Retry-After"] == "1"
    assert status(client, "/health") == 503
    assert status(client, "/livez") == 200
    go.set()
    until(lambda: status(client, "/readyz") == status(client, "/health") == 200)


def test_a_function_of_one_item_that_hangs_keeps_its_request_alone() -> None:
    begun, go = threading.Event(), threading.Event()

    def hang(number: int) -> int:
        if number == 0:
            begun.set()
            assert go.wait(PATIENCE)
        return 2 * number

    service = make_service(hang)
    service.runtime.startup.run()
    client = service.app.test_client()
    with ThreadPoolExecutor(1) as pool:
        late = pool.submit(lambda: service.app.test_client().post("/inference", data=b"0"))
        assert begun.wait(PATIENCE)
        assert not late.done()
        assert status(client, "/readyz") == status(client, "/health") == 200
        go.set()
        assert late.result(PATIENCE).data == b"0"


@pytest.mark.parametrize(
    ("options", "expected", "inference"),
    [
        ({"examples": [(1, 2)]}, 200, "OK"),
        ({"examples": None}, 200, "Unknown"),
        ({"examples": [(1, 3)]}, 503, "Error"),
    ],
)
def test_health_shows_what_the_example_says(
    options: dict[str, Any], expected: int, inference: str
) -> None:
    service = make_service(**options)
    service.runtime.startup.run()
    client = service.app.test_client()
    response = client.get("/health")
    assert (response.status_code, response.get_json()["inference"]) == (expected, inference)
    assert response.get_json()["service"] == "OK"
    assert status(client, "/readyz") == 200
    assert infer(client) == b"42"


def test_probes_and_metrics_need_no_key() -> None:
    service = make_service(api_key="k")
    service.runtime.startup.run()
    client = service.app.test_client()
    for path in ("/health", "/livez", "/readyz", "/metrics"):
        assert status(client, path) == 200


# ------------------------------------------------------------------------- in another's app


def test_several_services_live_under_their_prefixes() -> None:
    one, two = make_service(), make_service(lambda number: -number)
    app = Flask(__name__)
    app.register_blueprint(one.blueprint, url_prefix="/one")
    app.register_blueprint(two.blueprint, url_prefix="/two")
    client = app.test_client()
    assert (infer(client, "/one"), infer(client, "/two")) == (b"42", b"-21")
    mounted = services_of(app)
    assert [(m.service, m.prefix) for m in mounted.values()] == [(one, "/one"), (two, "/two")]
    for service in (one, two):
        labels = {"service": service.name, "status": "200"}
        assert REGISTRY.get_sample_value("ventu_request_seconds_count", labels) == 1


def test_one_service_may_be_in_two_places() -> None:
    service = make_service()
    app = Flask(__name__)
    app.register_blueprint(service.blueprint, url_prefix="/v1")
    app.register_blueprint(service.blueprint, url_prefix="/v2", name="again")
    with pytest.raises(ValueError, match="Use 'name='"):
        app.register_blueprint(service.blueprint, url_prefix="/v3")
    client = app.test_client()
    assert infer(client, "/v1") == infer(client, "/v2") == b"42"
    mounted = services_of(app)[service.name]
    assert mounted.prefix == "/v1"
    assert mounted.blueprints == [service.blueprint.name, "again"]


def test_a_service_may_be_in_two_apps() -> None:
    service = make_service()
    for _ in range(2):
        app = Flask(__name__)
        app.register_blueprint(service.blueprint)
        assert infer(app.test_client()) == b"42"
    assert infer(service.app.test_client()) == b"42"


@pytest.mark.parametrize("options", [{}, {"name": "other"}])
def test_two_services_of_one_name_are_refused(options: dict[str, Any]) -> None:
    app = Flask(__name__)
    app.register_blueprint(make_service(name="twin").blueprint, url_prefix="/one")
    with pytest.raises(RegistrationError, match="are called 'twin'; give each"):
        app.register_blueprint(make_service(name="twin").blueprint, url_prefix="/two", **options)


def test_a_variable_that_gives_two_services_one_name_is_named(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("VENTU_NAME", "prod")
    app = Flask(__name__)
    app.register_blueprint(make_service(name="one").blueprint, url_prefix="/one")
    with pytest.raises(RegistrationError, match="VENTU_NAME calls every service .* 'prod'; unset"):
        app.register_blueprint(make_service(name="two").blueprint, url_prefix="/two")


@pytest.mark.parametrize("prefix", [None, "/v1"])
def test_two_services_in_one_place_are_refused(prefix: str | None) -> None:
    """Flask would take both and never ask the second."""
    app = Flask(__name__)
    one, two = make_service(), make_service()
    app.register_blueprint(one.blueprint, url_prefix=prefix)
    with pytest.raises(RegistrationError, match=f"{two.name}'.*already.*{one.name}'.*url_prefix"):
        app.register_blueprint(two.blueprint, url_prefix=prefix)


def test_two_services_may_be_on_two_subdomains() -> None:
    app = Flask(__name__, subdomain_matching=True)
    app.config["SERVER_NAME"] = "x.test"
    for subdomain in ("one", "two"):
        app.register_blueprint(make_service().blueprint, subdomain=subdomain)
    app.get("/", subdomain="mine")(lambda: "mine")
    client = app.test_client()
    for subdomain in ("one", "two"):
        assert client.get("/", base_url=f"http://{subdomain}.x.test").is_json
    assert client.get("/", base_url="http://mine.x.test").text == "mine"


def test_one_service_twice_in_one_place_still_has_a_home_page() -> None:
    service = make_service()
    app = service.app
    app.register_blueprint(service.blueprint, name="again")
    assert app.test_client().get("/").get_json()["name"] == service.name


def test_a_service_may_be_nested() -> None:
    service = make_service()
    inner, outer = Blueprint("inner", __name__), Blueprint("outer", __name__)
    inner.register_blueprint(service.blueprint, url_prefix="/model")
    outer.register_blueprint(inner, url_prefix="/in")
    app = Flask(__name__)
    app.register_blueprint(outer, url_prefix="/out")
    client = app.test_client()
    assert infer(client, "/out/in/model") == b"42"
    mounted = services_of(app)[service.name]
    assert mounted.prefix == "/out/in/model"
    assert mounted.blueprints == [f"outer.inner.{service.blueprint.name}"]
    page = client.get("/out/in/model/metrics").text
    name = service.name.replace(" ", "_")
    assert f'endpoint="outer.inner.ventu_{name}.inference"' in page
    paths = [line["path"] for line in client.get("/out/in/model/").get_json()["endpoints"]]
    assert "/out/in/model/inference" in paths


def test_below_a_script_root() -> None:
    client = make_service().app.test_client()
    response = client.post("/inference", data=b"21", base_url="http://localhost/below")
    assert response.data == b"42"
    paths = [e["path"] for e in client.get("/", base_url="http://x/below").get_json()["endpoints"]]
    assert "/below/inference" in paths


def test_hooks_and_handlers_of_the_user_stay() -> None:
    app = Flask(__name__)
    seen: list[str] = []
    app.before_request(lambda: seen.append("before"))
    app.register_error_handler(404, lambda exc: ("mine", 404))
    app.register_error_handler(405, lambda exc: ("mine too", 405))

    @app.after_request
    def after(response: Response) -> Response:
        response.headers["X-After"] = "1"
        return response

    app.teardown_request(lambda exc: seen.append("teardown"))
    app.register_blueprint(make_service().blueprint, url_prefix="/v1")
    client = app.test_client()
    response = client.post("/v1/inference", data=b"21")
    assert (response.data, response.headers["X-After"]) == (b"42", "1")
    assert seen == ["before", "teardown"]
    assert client.get("/nowhere").text == "mine"
    assert client.get("/v1/inference").text == "mine too"
    refused = client.post("/v1/inference", data=b'"x"')
    assert (refused.status_code, refused.mimetype) == (422, "application/problem+json")
    assert refused.headers["X-After"] == "1"


def test_a_hook_of_the_user_may_refuse_a_request() -> None:
    app = Flask(__name__)
    app.register_blueprint(make_service().blueprint)
    app.before_request(lambda: ("not you", 403) if request.endpoint else None)
    response = app.test_client().post("/inference", data=b"1")
    assert (response.status_code, response.text) == (403, "not you")


# ------------------------------------------------------------------------ the user's own "/"


@pytest.mark.parametrize("is_first", [True, False])
def test_a_home_page_of_the_user_wins(is_first: bool) -> None:
    app = Flask(__name__)
    if is_first:
        app.get("/")(lambda: "mine")
    app.register_blueprint(make_service().blueprint)
    if not is_first:
        app.get("/")(lambda: "mine")
    client = app.test_client()
    assert client.get("/").text == "mine"
    assert client.head("/").status_code == 200
    assert status(client, "/livez") == 200


def test_another_method_at_the_home_page_is_the_user_s() -> None:
    app = make_service().app
    app.post("/")(lambda: "posted")
    client = app.test_client()
    assert client.post("/").text == "posted"
    assert client.get("/").is_json


def test_a_home_page_of_the_user_keeps_its_defaults() -> None:
    app = make_service().app

    @app.get("/", defaults={"page": 1})
    def mine(page: int) -> str:
        return f"page {page}"

    assert app.test_client().get("/").text == "page 1"


def make_guarded(service: Service) -> tuple[Flask, list[str]]:
    """Return an app of a service in which a blueprint of the user guards a home page."""
    guarded = Blueprint("guarded", __name__)
    seen: list[str] = []
    guarded.before_request(lambda: None if request.args.get("key") == "k" else ("no", 401))

    @guarded.url_value_preprocessor
    def note(endpoint: str | None, values: dict[str, Any] | None) -> None:
        seen.append(f"{endpoint} {values}")

    @guarded.after_request
    def mark(response: Response) -> Response:
        response.headers["X-Guarded"] = "1"
        return response

    guarded.get("/")(lambda: "guarded")
    app = service.app
    app.register_blueprint(guarded)
    return app, seen


def test_a_home_page_of_the_user_is_guarded_by_its_own_hooks() -> None:
    app, seen = make_guarded(make_service())
    client = app.test_client()
    refused, answered = client.get("/"), client.get("/?key=k")
    assert (refused.status_code, refused.text) == (401, "no")
    assert (answered.text, answered.headers["X-Guarded"]) == ("guarded", "1")
    assert seen == ["guarded.<lambda> {}"] * 2


# -------------------------------------------------------------------------------- commands

FILE = """
from ventu_lite import Service

service = Service("commanded", request=int, response=int, examples=[1])

@service.infer
def infer(number):
    return number

app = service.app
"""


def start(directory: Path, *words: str, code: str = "") -> "subprocess.Popen[str]":
    (directory / "app.py").write_text(FILE + textwrap.dedent(code))
    return subprocess.Popen(
        [sys.executable, *words],
        cwd=directory,
        env=dict(os.environ) | {"PYTHONUNBUFFERED": "1"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def url_of(process: "subprocess.Popen[str]") -> str:
    """Return the address that a server prints when it listens."""
    assert process.stderr
    for line in process.stderr:
        if found := re.search(r"Running on (http://\S+)", line):
            return found[1]
    raise AssertionError("the server ended")


def end(process: "subprocess.Popen[str]") -> None:
    os.killpg(process.pid, signal.SIGKILL)  # the reloader has a child
    process.communicate(timeout=PATIENCE)


def read(url: str) -> str:
    with urlopen(url, timeout=PATIENCE) as response:
        text: str = response.read().decode()
        return text


def test_flask_run_with_a_reloader_shows_metrics(tmp_path: Path) -> None:
    process = start(tmp_path, "-m", "flask", "run", "--debug", "--port", "0")
    try:
        url = url_of(process)
        assert "ventu_batch_size" in read(f"{url}/metrics")
        with pytest.raises(HTTPError, match="404"):
            read(f"{url}/nowhere")
    finally:
        end(process)


def test_run_http_serves_where_it_says(tmp_path: Path) -> None:
    process = start(tmp_path, "app.py", code="service.run_http(port=0)")
    try:
        assert "alive" in read(f"{url_of(process)}/livez")
    finally:
        end(process)


def test_run_http_does_nothing_where_a_command_runs_the_app(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("FLASK_RUN_FROM_CLI", "true")
    make_service().run_http()
    assert "app.run" in capsys.readouterr().out
