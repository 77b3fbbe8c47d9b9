"""Compose a service into a Flask blueprint, or into an app of its own."""

import logging
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from flask import Blueprint, Flask, Response, current_app, jsonify, request
from flask.blueprints import BlueprintSetupState
from flask.typing import ResponseReturnValue
from werkzeug.exceptions import HTTPException

from .codecs import media_types
from .errors import RegistrationError
from .exposition import exposition, flask_series
from .inference import Inference, problem_response, request_id_of
from .openapi import document
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
        prefix: Where its routes are, "" at the root.
    """

    service: "Service"
    prefix: str


def services_of(app: Flask) -> dict[str, Mounted]:
    """Return the services of an app by name."""
    mounted: dict[str, Mounted] = app.extensions.get(EXTENSION, {})
    return mounted


def create_app(service: "Service") -> Flask:
    """Return a Flask app that holds one service and answers every error with a problem document."""
    app = Flask(_identifier(service.name), static_folder=None)
    flask_series().measure(app)
    app.register_blueprint(_routes(service))
    app.register_error_handler(HTTPException, _problem)
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
    blueprint = Blueprint(f"ventu_{_identifier(service.name)}", __name__)
    blueprint.record(lambda state: _hold(service, state))
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


def _identifier(name: str) -> str:
    return re.sub(r"\W", "_", name).lower()


def _hold(service: "Service", state: BlueprintSetupState) -> None:
    """Remember which services an app holds, for the command line."""
    mounted = state.app.extensions.setdefault(EXTENSION, {})
    known = mounted.get(service.name)
    if known is not None and known.service is not service:
        raise RegistrationError(
            f"two services of this app are called {service.name!r};"
            " give each Service(...) a name of its own"
        )
    mounted.setdefault(service.name, Mounted(service, state.url_prefix or ""))


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
        return _uncached(jsonify(status="not ready", detail=startup.why_not()), 503)

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
    """Return the user's answer for this path, if one of his routes came after ours."""
    rule = request.url_rule
    for other in current_app.url_map.iter_rules():
        if (
            rule is not None
            and other.rule == rule.rule
            and other.endpoint != rule.endpoint
            and "GET" in (other.methods or ())
        ):
            view = current_app.view_functions[other.endpoint]
            answer: ResponseReturnValue = current_app.ensure_sync(view)()
            return answer
    return None


def _uncached(response: Response, status: int = 200) -> Response:
    response.status_code = status
    response.headers["Cache-Control"] = "no-store"
    return response


def _problem(exc: HTTPException) -> ResponseReturnValue:
    """Answer what Flask itself refuses, such as a wrong method."""
    request_id = request_id_of(request.environ)
    response = problem_response(exc, request_id)
    response.headers["X-Request-ID"] = request_id
    return response
