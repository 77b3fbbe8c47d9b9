"""Compose a service into a Flask blueprint, or into an app of its own."""

import logging
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from flask import Blueprint, Flask, Response, current_app, jsonify, request
from flask.blueprints import BlueprintSetupState
from flask.sansio.app import App
from flask.typing import ResponseReturnValue
from werkzeug.exceptions import HTTPException, MethodNotAllowed, NotFound
from werkzeug.routing import Rule

from .codecs import media_types
from .errors import RegistrationError
from .exposition import exposition, flask_series
from .inference import Inference, problem_response, request_id_of, whole_seconds
from .openapi import document
from .outcomes import UNEXPECTED, InferenceFailed
from .pages import Endpoint, add_pages, home

if TYPE_CHECKING:
    from .service import Service

log = logging.getLogger(__name__)

EXTENSION: Final = "ventu_lite"

_ENDPOINTS: Final = [
    Endpoint("POST", "/inference", "Ask the model."),
    Endpoint("GET", "/health", "Run the example and say whether the model answers."),
    Endpoint("GET", "/livez", "Say that the process lives."),
    Endpoint("GET", "/readyz", "Say whether an inference can be answered now."),
    Endpoint("GET", "/metrics", "The metrics, for Prometheus."),
    Endpoint("GET", "/apidoc/swagger", "The API document, to read and to try out."),
    Endpoint("GET", "/apidoc/redoc", "The API document, to read."),
    Endpoint("GET", "/apidoc/openapi.json", "The API document, for programs."),
]


@dataclass(frozen=True, slots=True)
class Mounted:
    """A service that an app holds.

    Attributes:
        service: The service.
        prefix: Where its routes are, "" at the root; the first place, if there are several.
        blueprints: The names under which the app knows its routes, one for each place.
    """

    service: "Service"
    prefix: str
    blueprints: list[str] = field(default_factory=list)


def services_of(app: Flask) -> dict[str, Mounted]:
    """Return the services of an app by name."""
    mounted: dict[str, Mounted] = app.extensions.get(EXTENSION, {})
    return mounted


def create_app(service: "Service") -> Flask:
    """Return a Flask app that holds one service and answers every error with a problem document."""
    # A root path, or Flask looks for one in the module that happens to have the service's name.
    app = Flask(_identifier(service.name), root_path=os.getcwd(), static_folder=None)
    flask_series().measure(app)
    app.register_blueprint(_routes(service))
    app.register_error_handler(HTTPException, answer_problem)
    return app


def create_blueprint(service: "Service") -> Blueprint:
    """Return a blueprint that holds one service and leaves the rest of the app alone."""
    blueprint = _routes(service)
    flask_series().measure(blueprint)
    return blueprint


def run_http(service: "Service", *, host: str | None = None, port: int | None = None) -> None:
    """Serve with Flask's development server; a no-op where a ``flask`` command runs the app."""
    config = service.config.override(host=host, port=port)
    service.app.run(config.host, config.port, debug=False, threaded=True)


def _routes(service: "Service") -> Blueprint:
    composition = service.compose()
    blueprint = _ServiceBlueprint(service)
    views = _Views(service)
    blueprint.add_url_rule("/inference", "inference", Inference(service), methods=["POST"])
    for name in ("health", "livez", "readyz", "metrics"):
        blueprint.add_url_rule(f"/{name}", name, getattr(views, name))
    blueprint.add_url_rule("/", "home", views.home)
    config = service.config
    examples = [probe.document for probe in composition.probes if probe.document is not None]

    def api_document(server: str) -> dict[str, Any]:
        return document(
            name=service.name,
            version=config.version,
            request=composition.request.adapter,
            response=composition.response.adapter,
            examples=examples,
            media_types=media_types(config.codec),
            server=server,
            api_key=config.api_key is not None,
        )

    add_pages(blueprint, title=service.name, document=api_document)
    return blueprint


def blueprint_name(service: "Service") -> str:
    """Return what the blueprint of a service is called, unless the app calls it otherwise."""
    return f"ventu_{_identifier(service.name)}"


def _identifier(name: str) -> str:
    return re.sub(r"\W", "_", name).lower()


class _ServiceBlueprint(Blueprint):
    """The routes of one service; the app that registers them knows that it holds the service."""

    def __init__(self, service: "Service") -> None:
        super().__init__(blueprint_name(service), __name__)
        self._service = service
        self.record(self._hold)

    def register(self, app: App, options: dict[str, Any]) -> None:
        """Refuse a second service of the same name, which would share its metrics."""
        service = self._service
        for other in app.blueprints.values():
            if not isinstance(other, _ServiceBlueprint) or other._service is service:
                continue
            if other._service.name == service.name:
                raise RegistrationError(
                    f"two services of this app are called {service.name!r};"
                    " give each Service(...) a name of its own"
                )
        super().register(app, options)

    def _hold(self, state: BlueprintSetupState) -> None:
        service, prefix = self._service, state.url_prefix or ""
        mounted: dict[str, Mounted] = state.app.extensions.setdefault(EXTENSION, {})
        for other in mounted.values():
            if other.service is service or other.prefix != prefix or state.subdomain:
                continue
            raise RegistrationError(
                f"service {service.name!r} comes to a place where already {other.service.name!r}"
                " is, and would never be asked; register its blueprint with another url_prefix"
            )
        here = mounted.setdefault(service.name, Mounted(service, prefix))
        here.blueprints.append(f"{state.name_prefix}.{state.name}".lstrip("."))


class _Views:
    """The routes that people and probes ask."""

    def __init__(self, service: "Service") -> None:
        self._service = service
        self._runtime = service.runtime

    def health(self) -> ResponseReturnValue:
        """Say whether the example is answered as it should be."""
        health = self._runtime.health()
        return _uncached(jsonify(health.as_dict()), 200 if health.is_ok else 503)

    def livez(self) -> ResponseReturnValue:
        """Say that the process lives."""
        return _uncached(jsonify(status="alive"))

    def readyz(self) -> ResponseReturnValue:
        """Say whether an inference can be answered now, and see to it that it soon can."""
        startup = self._runtime.startup
        if startup.is_ready:
            return _uncached(jsonify(status="ready"))
        startup.begin()
        response = _uncached(jsonify(status="not ready", detail=startup.why_not()), 503)
        response.headers["Retry-After"] = whole_seconds(startup.retry_after())
        return response

    def metrics(self) -> ResponseReturnValue:
        """Show the metrics of this process, or of all that share a directory."""
        body, content_type = exposition(
            request.headers.get("Accept"), request.args.getlist("name[]")
        )
        return _uncached(Response(body, content_type=content_type))

    def home(self) -> ResponseReturnValue:
        """Show the endpoints, unless the user's app has a page of its own at this path."""
        if (own := _own_page()) is not None:
            return own
        probes = self._service.compose().probes
        return home(
            _ENDPOINTS,
            title=self._service.name,
            version=self._service.config.version,
            examples=[p.document for p in probes if p.document is not None],
            api_key=self._service.config.api_key is not None,
        )


def _own_page() -> ResponseReturnValue | None:
    """Return the user's answer for this path, if one of his routes came after ours.

    Flask takes the first route; from here on the request is the user's, as if ours were not there.
    """
    ours = request.url_rule
    for rule in current_app.url_map.iter_rules():
        if ours and _place(rule) == _place(ours) and _is_get(rule) and not _is_ours(rule):
            before = request.blueprints
            request.url_rule, request.view_args = rule, dict(rule.defaults or {})
            answer = _run_hooks([name for name in request.blueprints if name not in before])
            return current_app.dispatch_request() if answer is None else answer
    return None


def _place(rule: Rule) -> tuple[str | None, ...]:
    return rule.host, rule.subdomain, rule.rule


def _is_ours(rule: Rule) -> bool:
    blueprint = current_app.blueprints.get(rule.endpoint.rpartition(".")[0])
    return isinstance(blueprint, _ServiceBlueprint)


def _is_get(rule: Rule) -> bool:
    return rule.methods is None or "GET" in rule.methods


def _run_hooks(blueprints: Sequence[str]) -> ResponseReturnValue | None:
    """Run what blueprints want to be run before their views, as Flask does."""
    app = current_app
    for name in reversed(blueprints):
        for preprocessor in app.url_value_preprocessors.get(name, ()):
            preprocessor(request.endpoint, request.view_args)
    for name in reversed(blueprints):
        for hook in app.before_request_funcs.get(name, ()):
            answer: ResponseReturnValue | None = app.ensure_sync(hook)()
            if answer is not None:
                return answer
    return None


def _uncached(response: Response, status: int = 200) -> Response:
    response.status_code = status
    response.headers["Cache-Control"] = "no-store"
    return response


def answer_problem(exc: HTTPException) -> ResponseReturnValue:
    """Answer what Flask itself refuses, such as a wrong method."""
    request_id = request_id_of(request.environ)
    if exc is request.routing_exception:
        exc.description = _why_nowhere(exc)
    if isinstance(exc, InferenceFailed) and exc.description == UNEXPECTED:
        why = f"as job {exc.job} did" if exc.job else "for the reason above"
        log.error("request %s failed: its service.ask did, %s", request_id, why)
    response = problem_response(exc, request_id)
    response.headers["X-Request-ID"] = request_id
    return response


def _why_nowhere(exc: HTTPException) -> str | None:
    """Return what to say where no route is found, in the words of the batching service."""
    if isinstance(exc, NotFound):
        return "no such route"
    if isinstance(exc, MethodNotAllowed):
        methods = sorted({*(exc.valid_methods or ())} - {"HEAD", "OPTIONS"})
        return f"ask with {' or '.join(methods)}"
    return exc.description
