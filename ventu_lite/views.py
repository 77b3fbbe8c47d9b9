"""The routes that people and probes ask: health, metrics and the home page."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Final

from flask import Response, current_app, request
from flask.typing import ResponseReturnValue
from pydantic_core import to_json
from werkzeug.routing import Rule

from .exposition import exposition
from .headers import whole_seconds
from .home import Endpoint, home
from .mounting import is_ours

if TYPE_CHECKING:
    from .service import Service

_ENDPOINTS: Final = [
    Endpoint("POST", "/inference", "Ask the model."),
    Endpoint("GET", "/health", "Run the examples and say whether the model answers."),
    Endpoint("GET", "/livez", "Say that the process lives."),
    Endpoint("GET", "/readyz", "Say whether an inference can be answered now."),
    Endpoint("GET", "/metrics", "The metrics, for Prometheus."),
    Endpoint("GET", "/apidoc/swagger", "The API document, to read and to try out."),
    Endpoint("GET", "/apidoc/redoc", "The API document, to read."),
    Endpoint("GET", "/apidoc/openapi.json", "The API document, for programs."),
]


class Views:
    """The views of one service, but for the inference and the API document."""

    def __init__(self, service: "Service") -> None:
        self._service = service
        self._runtime = service.runtime

    def health(self) -> ResponseReturnValue:
        """Say whether the examples are answered as they should be."""
        health = self._runtime.health()
        return _document(200 if health.is_ok else 503, health.as_dict())

    def livez(self) -> ResponseReturnValue:
        """Say that the process lives."""
        return _document(200, {"status": "alive"})

    def readyz(self) -> ResponseReturnValue:
        """Say whether an inference can be answered now, and see to it that it soon can."""
        why_not = self._runtime.why_not_ready()
        if not why_not:
            return _document(200, {"status": "ready"})
        response = _document(503, {"status": "not ready", "detail": why_not})
        wait = self._runtime.startup.retry_after()
        response.headers["Retry-After"] = str(whole_seconds(wait))
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
        return home(
            _ENDPOINTS,
            title=self._service.name,
            version=self._service.config.version,
            examples=self._service.compose().documents,
            api_key=self._service.config.api_key is not None,
        )


def _own_page() -> ResponseReturnValue | None:
    """Return the user's answer for this path, if one of his routes came after ours.

    Flask takes the first route; from here on the request is the user's, as if ours were not there.
    """
    app, ours = current_app, request.url_rule
    for rule in app.url_map.iter_rules():
        if ours and _place(rule) == _place(ours) and _is_get(rule) and not is_ours(app, rule):
            before = request.blueprints
            request.url_rule, request.view_args = rule, dict(rule.defaults or {})
            answer = _run_hooks([name for name in request.blueprints if name not in before])
            return app.dispatch_request() if answer is None else answer
    return None


def _place(rule: Rule) -> tuple[str | None, ...]:
    return rule.host, rule.subdomain, rule.rule


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


def _document(status: int, document: Mapping[str, str]) -> Response:
    """Return what the batching service answers, byte for byte."""
    return _uncached(Response(to_json(document), status, content_type="application/json"))


def _uncached(response: Response) -> Response:
    response.headers["Cache-Control"] = "no-store"
    return response
