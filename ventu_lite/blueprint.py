"""Compose a service into a Flask blueprint, or into an app of its own."""

import logging
from typing import TYPE_CHECKING, Any

from flask import Blueprint, Flask, request
from flask.typing import ResponseReturnValue
from werkzeug.exceptions import HTTPException, InternalServerError, MethodNotAllowed, NotFound

from .apidoc import add_pages
from .dead_routes import watch
from .exposition import flask_series
from .functions import folder
from .inference import Inference, problem_response, request_id_of
from .logs import show_to_developer
from .media_types import media_types_of
from .mounting import ServiceBlueprint, identifier
from .openapi import document
from .outcomes import UNEXPECTED, InferenceFailed
from .problems import NO_SUCH_ROUTE, ONLY_A_PAGE
from .tracebacks import in_one_line
from .variables import is_imported_by_command
from .views import Views

if TYPE_CHECKING:
    from .service import Service

log = logging.getLogger(__name__)


def create_app(service: "Service") -> Flask:
    """Return a Flask app that holds one service and answers every error with a problem document."""
    # A root path, or Flask looks for one in the module that happens to have the service's name.
    app = Flask(identifier(service.name), root_path=folder())
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
    if not is_imported_by_command():
        show_to_developer()
    service.app.run(config.host, config.port, debug=False, threaded=True)


def _routes(service: "Service") -> Blueprint:
    composition = service.compose()
    blueprint = ServiceBlueprint(service)
    blueprint.record(lambda state: watch(state.app))
    views = Views(service)
    blueprint.add_url_rule("/inference", "inference", Inference(service), methods=["POST"])
    for name in ("health", "livez", "readyz", "metrics"):
        blueprint.add_url_rule(f"/{name}", name, getattr(views, name))
    blueprint.add_url_rule("/", "home", views.home)
    config = service.config

    def api_document(server: str) -> dict[str, Any]:
        return document(
            name=service.name,
            version=config.version,
            request=composition.request.adapter,
            response=composition.response.adapter,
            examples=composition.documents,
            media_types=media_types_of(config.codec),
            server=server,
            api_key=config.api_key is not None,
        )

    add_pages(blueprint, title=service.name, document=api_document)
    return blueprint


def answer_problem(exc: HTTPException) -> ResponseReturnValue:
    """Answer what Flask itself refuses, such as a wrong method."""
    request_id = request_id_of(request.environ)
    if exc is request.routing_exception:
        exc.description = _why_nowhere(exc)
    if isinstance(exc, InferenceFailed) and exc.is_fault:
        why = f"as job {exc.job} did" if exc.job else "for the reason above"
        _log(request_id, f"its service.ask did, {why}")
    elif isinstance(exc, InternalServerError) and exc.original_exception is not None:
        exc.description = UNEXPECTED
        said = in_one_line(exc.original_exception)  # Flask has logged all of it, without the id
        _log(request_id, f"{said}; the traceback is above")
    response = problem_response(exc, request_id)
    response.headers["X-Request-ID"] = request_id
    return response


def _log(request_id: str, why: str) -> None:
    log.error("request %s failed: %s", request_id, why, extra={"request_id": request_id})


def _why_nowhere(exc: HTTPException) -> str | None:
    """Return what to say where no route is found, in the words of the batching service."""
    if isinstance(exc, NotFound):
        return NO_SUCH_ROUTE
    if isinstance(exc, MethodNotAllowed):
        if request.path == "/":
            return ONLY_A_PAGE
        methods = sorted({*(exc.valid_methods or ())} - {"HEAD", "OPTIONS"})
        return f"ask with {' or '.join(methods)}"
    return exc.description
