"""A route of the user's that is never reached is named, once."""

import re
from collections.abc import Callable
from contextlib import AbstractContextManager
from itertools import count
from pathlib import Path

import pytest
from flask import Blueprint, Flask
from processes import Server, flask_run, serve

from ventu_lite import Service
from ventu_lite.dead_routes import warn_of_dead_routes
from ventu_lite.mounting import services_of
from ventu_lite.serving.hooks import paths_of, skipped_by_serve

_numbers = count()


def make_service() -> Service:
    service = Service(f"dead routes {next(_numbers)}", request=int, response=int)
    service.add_stage("infer", lambda number: number)
    return service


def mine() -> str:
    """Answer in place of ours."""
    return "mine"


def warning(path: str) -> str:
    place = f"{__file__}:{mine.__code__.co_firstlineno}"
    return (
        f"the route {path} of mine ({place}) is never reached: ventu_lite answers there;"
        " choose another path"
    )


@pytest.mark.parametrize(
    ("path", "method"),
    [
        ("/health", "GET"),
        ("/livez", "GET"),
        ("/readyz", "GET"),
        ("/metrics", "GET"),
        ("/apidoc/swagger", "GET"),
        ("/inference", "POST"),
    ],
)
def test_a_dead_route_is_named_at_the_first_request(
    path: str, method: str, caplog: pytest.LogCaptureFixture
) -> None:
    app = make_service().app
    app.add_url_rule(path, "mine", mine, methods=[method])
    assert caplog.messages == []
    client = app.test_client()
    for _ in range(2):
        client.get("/livez")
        assert client.open(path, method=method).text != "mine"
        assert caplog.messages == [warning(path)]


def test_a_dead_route_of_a_blueprint_is_named(caplog: pytest.LogCaptureFixture) -> None:
    app, others = Flask(__name__), Blueprint("others", __name__)
    app.register_blueprint(make_service().blueprint, url_prefix="/model")
    others.add_url_rule("/health", "health", mine, methods=["GET", "POST"])
    app.register_blueprint(others, url_prefix="/model")
    client = app.test_client()
    assert client.post("/model/health").text == "mine"  # the rest of it is alive
    assert caplog.messages == [warning("/model/health")]


def test_routes_that_are_reached_are_not_named(caplog: pytest.LogCaptureFixture) -> None:
    app = Flask(__name__)
    app.add_url_rule("/model/health", "first", mine)
    app.register_blueprint(make_service().blueprint, url_prefix="/model")
    app.add_url_rule("/model/", "home", mine)
    app.add_url_rule("/model/inference", "form", mine)
    app.add_url_rule("/health", "elsewhere", mine)
    app.add_url_rule("/<name>", "any", lambda name: mine())
    client = app.test_client()
    for path in ("/model/health", "/model/", "/model/inference", "/health", "/name"):
        assert client.get(path).text == "mine"
    assert caplog.messages == []


def test_each_app_of_a_service_is_looked_at(caplog: pytest.LogCaptureFixture) -> None:
    service = make_service()
    for n in (1, 2):
        app = Flask(__name__)
        app.register_blueprint(service.blueprint)
        app.add_url_rule("/livez", "mine", mine)
        app.test_client().get("/")
        assert caplog.messages == [warning("/livez")] * n


def test_where_flask_is_not_asked_all_methods_are_dead(caplog: pytest.LogCaptureFixture) -> None:
    service = make_service()
    app, mounted = service.app, services_of(service.app)[service.name]
    app.add_url_rule("/inference", "form", mine)
    app.add_url_rule("/apidoc/swagger", "apidoc", mine, methods=["POST"])
    assert skipped_by_serve(app, mounted) == []
    warn_of_dead_routes(app, paths_of(app, mounted))
    assert app.test_client().get("/inference").text == "mine"
    assert caplog.messages == [warning("/inference")]


@pytest.mark.parametrize("run", [flask_run, serve])
def test_commands_name_it_and_the_id_of_a_route_that_raised(
    run: Callable[[Path], AbstractContextManager[Server]], tmp_path: Path
) -> None:
    (tmp_path / "app.py").write_text(
        "from ventu_lite import Service\n"
        "service = Service('length', request=str, response=int)\n"
        "service.infer(len)\n"
        "app = service.app\n"
        "@app.get('/health')\n"
        "def health(): return 'mine'\n"
        "@app.get('/boom')\n"
        "def boom(): 1 / 0\n"
    )
    with run(tmp_path / "app.py") as server:
        with server.client() as client:
            answer = client.ask("GET", "/boom", None, {"X-Request-ID": "me"})
        assert answer.status == 500 and b"overloaded" not in answer.body
        place = re.escape(str(tmp_path / "app.py"))
        server.process.wait_for(rf"the route /health of health \({place}:5\) is never reached")
        server.process.wait_for(
            rf"request me failed: ZeroDivisionError: division by zero \({place}:8\); the traceback"
        )
        assert server.process.output.count("is never reached") == 1
