"""What Flask would run around the routes that the batching service answers itself.

What only follows the contexts of an app, such as ``teardown_appcontext``, is none of it: it ends
what a route began, as Flask-SQLAlchemy does, and without Flask there is no context to end. Nor is
``got_request_exception``: under Flask, too, no failure of a stage gets that far.
"""

from collections.abc import Callable, Iterable, Iterator
from typing import Any, Final
from urllib.parse import quote

from flask import Flask, request_finished, request_started, request_tearing_down
from werkzeug.exceptions import HTTPException
from werkzeug.routing import RequestRedirect, Rule

from ..blueprint import answer_problem
from ..dead_routes import warn_of_dead_routes
from ..errors import RegistrationError
from ..exposition import flask_series
from ..functions import where_is
from ..inference import Inference
from ..mounting import Mounted
from ..views import Views

# Attributes of app and blueprint: hooks by name of the blueprint, None for the app's own.
_HOOKS: Final = {
    "before_request_funcs": "before_request",
    "after_request_funcs": "after_request",
    "teardown_request_funcs": "teardown_request",
    "url_value_preprocessors": "url_value_preprocessor",
}
_ENDPOINTS: Final = ("inference", "health", "livez", "readyz", "metrics")
# Methods of Flask through which every request goes.
_METHODS: Final = (
    "__call__", "wsgi_app", "full_dispatch_request", "preprocess_request", "dispatch_request",
    "make_response", "finalize_request", "process_response", "do_teardown_request",
    "handle_user_exception", "handle_http_exception", "handle_exception",
)  # fmt: skip
_SIGNALS: Final = (request_started, request_finished, request_tearing_down)
_CLASSES: Final = ("request_class", "response_class")
# What Flask itself may say on these routes; all other statuses our views answer without handlers.
_STATUSES: Final = (405, 500)


def prefixes_of(app: Flask, mounted: Mounted) -> list[str]:
    """Return all places where the routes of a service are, "" for the root, as clients write them.

    Raises:
        RegistrationError: Not every request to one of these paths is meant for the service.
    """
    prefixes = []
    for rule in _rules(app, mounted, "inference"):
        if rule.arguments or rule.subdomain or rule.host:
            raise RegistrationError(
                f"`serve` cannot answer {rule.rule} of service {mounted.service.name!r}: its place"
                " must be a plain path, without variables, host or subdomain"
            )
        prefixes.append(quote(rule.rule.removesuffix("/inference"), safe="/!$&'()*+,;=:@~"))
    return prefixes


def paths_of(app: Flask, mounted: Mounted) -> set[str]:
    """Return the paths that ``serve`` answers without Flask, as the app has them."""
    return {rule.rule for endpoint in _ENDPOINTS for rule in _rules(app, mounted, endpoint)}


def skipped_by_serve(app: Flask, mounted: Mounted) -> list[str]:
    """Return what the user has put around the routes of a service and ``serve`` would skip.

    Each is one clause that names the thing and, if it can be told, its place.
    """
    scopes = [None, *dict.fromkeys(_with_parents(mounted.blueprints))]
    return [
        *_hooks(app, scopes),
        *_error_handlers(app, scopes),
        *_replaced_views(app, mounted),
        *_routes_before_ours(app, mounted),
        *_replaced_methods(app),
        *_replaced_classes(app),
        *_receivers(app),
    ]


def _with_parents(names: Iterable[str]) -> Iterator[str]:
    """Yield a blueprint's name, such as "outer.inner", and those of all that it is nested in."""
    for name in names:
        while name:
            yield name
            name = name.rpartition(".")[0]


def _hooks(app: Flask, scopes: Iterable[str | None]) -> Iterator[str]:
    ours = flask_series().hooks
    for attribute, label in _HOOKS.items():
        hooks: dict[str | None, list[Callable[..., Any]]] = getattr(app, attribute)
        for scope in scopes:
            for fn in hooks.get(scope, ()):
                if fn not in ours:
                    yield f"{label} {where_is(fn)}"


def _error_handlers(app: Flask, scopes: Iterable[str | None]) -> Iterator[str]:
    for scope in scopes:
        for code, handlers in app.error_handler_spec.get(scope, {}).items():
            for error, fn in handlers.items():
                is_for_us = code in _STATUSES or code is None and issubclass(HTTPException, error)
                if is_for_us and fn is not answer_problem:
                    yield f"error handler {where_is(fn)} for {error.__name__}"


def _replaced_views(app: Flask, mounted: Mounted) -> Iterator[str]:
    for endpoint in _ENDPOINTS:
        for rule in _rules(app, mounted, endpoint):
            view = app.view_functions[rule.endpoint]
            if hasattr(view, "__wrapped__"):  # what is below may be ours
                yield f"decorator of view {rule.endpoint}"
            elif not isinstance(getattr(view, "__self__", view), Inference | Views):
                yield f"view {where_is(view)} of {rule.endpoint}"


def _routes_before_ours(app: Flask, mounted: Mounted) -> Iterator[str]:
    """Yield the routes that Flask would take in place of ours because they came first."""
    routes = app.url_map.bind("localhost")
    for endpoint in _ENDPOINTS:
        for rule in _rules(app, mounted, endpoint):
            if rule.arguments or rule.subdomain or rule.host:
                continue
            method = "POST" if endpoint == "inference" else "GET"
            try:
                taken, _ = routes.match(rule.rule, method, return_rule=True)
            except (HTTPException, RequestRedirect):  # pragma: no cover  # ours is there
                continue
            if taken.endpoint != rule.endpoint:
                yield f"route {taken.rule} of {where_is(app.view_functions[taken.endpoint])}"


def _replaced_methods(app: Flask) -> Iterator[str]:
    """Yield what a subclass of Flask overrides, and a middleware, which replaces ``wsgi_app``."""
    for name in _METHODS:
        method = getattr(app, name)
        if getattr(method, "__func__", None) is not getattr(Flask, name):
            yield f"{name} {where_is(method)}"


def _replaced_classes(app: Flask) -> Iterator[str]:
    for name in _CLASSES:
        kind = getattr(app, name)
        if kind is not getattr(Flask, name):
            yield f"{name} {kind.__module__}.{kind.__qualname__}"


def _receivers(app: Flask) -> Iterator[str]:
    for signal in _SIGNALS:
        for fn in signal.receivers_for(app):
            if fn is not warn_of_dead_routes:
                yield f"receiver {where_is(fn)} of {signal.name.replace('-', '_')}"


def _rules(app: Flask, mounted: Mounted, endpoint: str) -> Iterator[Rule]:
    for name in mounted.blueprints:
        yield from app.url_map.iter_rules(f"{name}.{endpoint}")
