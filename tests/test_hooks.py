"""What stands around the routes of a service is found before ``serve`` skips it."""

import functools
import re
from typing import Any

import pytest
from blinker import ANY, NamedSignal
from flask import (
    Blueprint,
    Flask,
    Request,
    Response,
    appcontext_tearing_down,
    got_request_exception,
    request_finished,
    request_started,
    request_tearing_down,
)

from ventu_lite import RegistrationError, Service
from ventu_lite.mounting import services_of
from ventu_lite.serving.hooks import prefixes_of, skipped_by_serve


def make_service(name: str = "cats") -> Service:
    service = Service(name, request=int, response=int)
    service.infer(lambda item: item)
    return service


def skipped(app: Flask, name: str = "cats") -> list[str]:
    return list(skipped_by_serve(app, services_of(app)[name]))


def own_app(*, name: str = "cats", **options: Any) -> Flask:
    app = Flask("own")
    app.register_blueprint(make_service(name).blueprint, **options)
    return app


def test_our_own_app_has_nothing() -> None:
    assert skipped(make_service().app) == []


def test_an_own_app_with_other_routes_has_nothing() -> None:
    app = own_app(url_prefix="/cats")
    app.add_url_rule("/", "mine", lambda: "mine")
    app.add_url_rule("/health", "my health", lambda: "mine")
    other = Blueprint("other", __name__)
    other.before_request(lambda: None)
    other.errorhandler(500)(lambda exc: "mine")
    app.register_blueprint(other)
    app.register_error_handler(404, lambda exc: "mine")  # our routes never say that
    app.register_error_handler(ValueError, lambda exc: "mine")
    app.teardown_appcontext(lambda exc: None)  # there is no context to end
    with appcontext_tearing_down.connected_to(mine, app), got_request_exception.connected_to(mine):
        assert skipped(app) == []


def mine(*args: Any) -> Any:
    """Stand around a route."""


@pytest.mark.parametrize(
    ("place", "method"),
    [
        ("before_request", "before_request"),
        ("after_request", "after_request"),
        ("teardown_request", "teardown_request"),
        ("url_value_preprocessor", "url_value_preprocessor"),
    ],
)
@pytest.mark.parametrize("owner", ["app", "blueprint", "outer", "app of blueprint"])
def test_a_hook_is_found(place: str, method: str, owner: str) -> None:
    app, blueprint = Flask("own"), make_service().blueprint
    outer = Blueprint("outer", __name__)
    if owner == "app of blueprint":
        app_method = method.replace("before_", "before_app_").replace("after_", "after_app_")
        app_method = app_method.replace("teardown_", "teardown_app_").replace("url_", "app_url_")
        getattr(outer, app_method)(mine)
    else:
        getattr({"app": app, "blueprint": blueprint, "outer": outer}[owner], method)(mine)
    outer.register_blueprint(blueprint)
    app.register_blueprint(outer, url_prefix="/outer")
    (found,) = skipped(app)
    assert re.fullmatch(place + r" mine \(.*test_hooks.py:\d+\)", found)


@pytest.mark.parametrize("error", [405, 500, Exception])
def test_an_error_handler_is_found(error: Any) -> None:
    app = own_app()
    app.register_error_handler(error, mine)
    (found,) = skipped(app)
    assert re.match(r"error handler mine \(.*test_hooks.py:\d+\) for ", found)


def test_middleware_is_found() -> None:
    class Middleware:
        def __init__(self, app: Any) -> None:
            self.app = app

        def __call__(self, environ: Any, start_response: Any) -> Any:
            return self.app(environ, start_response)

    app = own_app()
    app.wsgi_app = Middleware(app.wsgi_app)  # type: ignore[method-assign]
    (found,) = skipped(app)
    assert re.match(r"wsgi_app .*Middleware \(.*test_hooks.py:\d+\)", found)


@pytest.mark.parametrize(
    "method", ["__call__", "full_dispatch_request", "process_response", "handle_user_exception"]
)
def test_an_overridden_method_of_flask_is_found(method: str) -> None:
    app = type("Own", (Flask,), {method: mine})("own")
    app.register_blueprint(make_service().blueprint)
    (found,) = skipped(app)
    assert re.match(rf"{method} mine \(.*test_hooks.py:\d+\)", found)


@pytest.mark.parametrize("signal", [request_started, request_finished, request_tearing_down])
@pytest.mark.parametrize("is_for_all_apps", [False, True])
def test_a_receiver_of_a_signal_is_found(signal: NamedSignal, is_for_all_apps: bool) -> None:
    app, other = own_app(), own_app()
    with signal.connected_to(mine, ANY if is_for_all_apps else app):
        (found,) = skipped(app)
        name = signal.name.replace("-", "_")
        assert re.fullmatch(rf"receiver mine \(.*test_hooks.py:\d+\) of {name}", found)
        assert len(skipped(other)) == is_for_all_apps
    assert skipped(app) == []


def test_no_failure_of_a_stage_is_told_by_a_signal() -> None:
    """So nobody who listens for it misses anything under ``serve``."""
    service = Service("cats", request=int, response=int)
    service.add_stage("infer", lambda item: 1 // item)
    told: list[Any] = []

    def listen(sender: Any, **more: Any) -> None:
        told.append(sender)

    app = Flask("own")
    app.register_blueprint(service.blueprint)
    with got_request_exception.connected_to(listen):
        assert app.test_client().post("/inference", json=0).status_code == 500
    assert told == []


class OwnRequest(Request): ...


class OwnResponse(Response): ...


@pytest.mark.parametrize(
    ("name", "kind"), [("request_class", OwnRequest), ("response_class", OwnResponse)]
)
@pytest.mark.parametrize("is_inherited", [False, True])
def test_a_class_of_requests_or_responses_is_found(
    name: str, kind: type, is_inherited: bool
) -> None:
    own: type[Flask] = type("Own", (Flask,), {name: kind} if is_inherited else {})
    app = own("own")
    if not is_inherited:
        setattr(app, name, kind)
    app.register_blueprint(make_service().blueprint)
    assert skipped(app) == [f"{name} {__name__}.{kind.__name__}"]


@pytest.mark.parametrize("endpoint", ["inference", "health", "metrics"])
def test_a_replaced_view_is_found(endpoint: str) -> None:
    app = own_app()
    name = f"ventu_cats.{endpoint}"
    app.view_functions[name] = mine
    (found,) = skipped(app)
    assert re.fullmatch(rf"view mine \(.*\) of {name}", found)


@pytest.mark.parametrize("endpoint", ["inference", "health"])
def test_a_decorator_of_a_view_is_found(endpoint: str) -> None:
    app = own_app()
    name = f"ventu_cats.{endpoint}"
    app.view_functions[name] = functools.wraps(app.view_functions[name])(lambda: mine())
    assert skipped(app) == [f"decorator of view {name}"]


def test_a_route_that_flask_takes_in_place_of_ours_is_found() -> None:
    app = Flask("own")
    app.get("/health")(mine)
    app.register_blueprint(make_service().blueprint)
    (found,) = skipped(app)
    assert re.match(r"route /health of mine \(", found)


def test_all_that_is_found_is_told() -> None:
    app = own_app()
    app.before_request(mine)
    app.after_request(lambda response: response)
    assert [one.partition(" ")[0] for one in skipped(app)] == ["before_request", "after_request"]


# ------------------------------------------------------------------------------------- places


def prefixes(app: Flask) -> list[str]:
    return prefixes_of(app, services_of(app)["cats"])


@pytest.mark.parametrize(
    ("prefix", "place"),
    [(None, ""), ("/cats", "/cats"), ("/cats/", "/cats"), ("/a b/é", "/a%20b/%C3%A9")],
)
def test_a_place_is_what_clients_write(prefix: str | None, place: str) -> None:
    assert prefixes(own_app(url_prefix=prefix)) == [place]


def test_all_places_of_a_service_are_known() -> None:
    app, blueprint = Flask("own"), make_service().blueprint
    app.register_blueprint(blueprint, url_prefix="/v1")
    app.register_blueprint(blueprint, url_prefix="/v2", name="second")
    outer = Blueprint("outer", __name__, url_prefix="/outer")
    outer.register_blueprint(blueprint, url_prefix="/v3")
    app.register_blueprint(outer)
    assert prefixes(app) == ["/v1", "/v2", "/outer/v3"]
    assert skipped(app) == []


@pytest.mark.parametrize(
    "options",
    [
        pytest.param({"url_prefix": "/<language>"}, id="variable"),
        pytest.param({"subdomain": "cats"}, id="subdomain"),
    ],
)
def test_a_place_that_is_no_plain_path_is_refused(options: dict[str, str]) -> None:
    app = own_app(**options)
    with pytest.raises(RegistrationError, match="`serve` cannot answer /.*must be a plain path"):
        prefixes(app)
    assert skipped(app) == []
